"""From indices of a set to batches of uint8 tensors, in exactly the order asked for.

Workers only change the time it takes: nothing is drawn at random here, and batches come in order.
Worker processes are started with "spawn" (traps 52), so a script that asks for them needs the usual
`if __name__ == "__main__":` around its beginning. Ctrl-C and SIGTERM are their parent's alone (interrupt.py).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from zsrobust.data.sets import ImageSet
from zsrobust.errors import UserError, ZsRobustError
from zsrobust.hashing import image_hash
from zsrobust.interrupt import heed_parent, shielded
from zsrobust.preprocess import to_uint8

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor


@dataclass(slots=True)
class Batch:
    """Some samples with their pixels.

    Attributes:
        ids: N of them.
        images: (N, 3, H, W) uint8, after `geometry`.
        labels: (N,) int64; None for a set without labels.
        captions: N lists, empty where a sample has none; None for a set without captions.
        hashes: N, `hashing.image_hash` of the stored bytes.
        indices: N, of the samples in their set.
    """

    ids: list[str]
    images: Tensor
    labels: Tensor | None
    captions: list[list[str]] | None
    hashes: list[str]
    indices: list[int]

    def __len__(self) -> int:
        return len(self.ids)


def batches(
    image_set: ImageSet,
    indices: Sequence[int],
    geometry: Callable[[Image], Image] | None,
    batch_size: int,
    workers: int = 0,
) -> Iterator[Batch]:
    """Return batches over `indices`, in their order; the last may be smaller.

    Args:
        image_set: read by index.
        indices: of samples.
        geometry: resize and crop, as `Preprocess.geometry()` gives it; None keeps native pixels.
            With workers it must be picklable.
        batch_size: at least 1.
        workers: processes that read and decode; 0 means this one.

    Raises:
        UserError: if a picture is unreadable, sizes within a batch differ, or `batch_size` < 1.
        EnvironmentFault: if a file cannot be read any more.
    """
    if batch_size < 1:
        raise UserError(f"batch size {batch_size}: must be at least 1.")
    lists = (indices[at : at + batch_size] for at in range(0, len(indices), batch_size))
    return batches_of(image_set, lists, geometry, workers)


def batches_of(
    image_set: ImageSet,
    index_lists: Iterable[Sequence[int]],
    geometry: Callable[[Image], Image] | None,
    workers: int = 0,
) -> Iterator[Batch]:
    """Return one batch for each list of indices, in order; arguments and errors as in `batches`.

    The lists are taken as they are needed, two ahead of each worker, and no batch is kept.
    """
    from torch import Generator
    from torch.utils.data import DataLoader

    loader: Any = DataLoader(
        _Reader(image_set, geometry),  # type: ignore[arg-type]  # map-style by its methods
        batch_sampler=index_lists,  # type: ignore[arg-type]  # any iterable does
        collate_fn=_as_it_is,
        num_workers=workers,
        multiprocessing_context="spawn" if workers else None,
        worker_init_fn=_begin if workers else None,
        # The loader draws a seed for its workers, unused here: not from the global stream.
        generator=Generator(),
    )
    with shielded() if workers else contextlib.nullcontext():
        loaded = iter(loader)
    for batch in loaded:
        if isinstance(batch, ZsRobustError):
            raise batch
        yield batch


class _Reader:
    """What the loader asks for a whole batch at a time; lives in the workers."""

    def __init__(self, image_set: ImageSet, geometry: Callable[[Image], Image] | None) -> None:
        self.image_set = image_set
        self.geometry = geometry

    def __len__(self) -> int:
        return len(self.image_set)

    def __getitems__(self, indices: Sequence[int]) -> Batch | ZsRobustError:
        # Raised in a worker, an error would come out with the worker's traceback as its message.
        try:
            return self._read([int(index) for index in indices])
        except ZsRobustError as error:
            return error

    def _read(self, indices: list[int]) -> Batch:
        import torch

        of = self.image_set
        pixels, hashes = [], []
        for index in indices:
            stored = of.stored(index)
            picture = of.picture(index, stored)
            if self.geometry is not None:
                picture = self.geometry(picture)
            pixels.append(to_uint8(picture))  # (3, H, W)
            hashes.append(image_hash(stored))
            if pixels[-1].shape != pixels[0].shape:
                (height, width), (first_height, first_width) = (
                    pixels[-1].shape[1:],
                    pixels[0].shape[1:],
                )
                raise UserError(
                    f"{of.name}, {of.ids[index]}: {width} x {height} pixels in a batch of "
                    f"{first_width} x {first_height}; images of different sizes cannot be attacked "
                    "at native resolution: use the resolution 'model'."
                )
        labels = of.labels
        return Batch(
            ids=[of.ids[index] for index in indices],
            images=torch.stack(pixels),
            labels=None
            if labels is None
            else torch.tensor([labels[index] for index in indices], dtype=torch.int64),
            captions=[of.captions(index) or [] for index in indices] if of.captioned else None,
            hashes=hashes,
            indices=indices,
        )


def _begin(_: int) -> None:
    heed_parent()


def _as_it_is(batch: Any) -> Any:
    return batch
