"""CIFAR as its authors give it: python pickles of rows, read and checked by torchvision."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from zsrobust.data.downloads import downloading
from zsrobust.data.storage import ArrayImages, Opened, cannot_read
from zsrobust.errors import UserError

Dataset = Literal["CIFAR10", "CIFAR100"]


def open_cifar(roots: list[Path], dataset: Dataset, split: str, *, download: bool) -> Opened | None:
    """Open the first of `roots` that holds the batches; None if none does and no download is asked.

    torchvision compares the MD5 of every batch with the published one before it unpickles it. An id
    is SPLIT/NUMBER in the order of the batches; the stored bytes are a row's 32 * 32 * 3 RGB bytes.

    Args:
        roots: folders that may hold cifar-10-batches-py; a download goes into the last.
        dataset: torchvision's class.
        split: "train" or "test".
        download: fetch the archive if it is in none of them.

    Raises:
        UserError: if batches are there, or were fetched, but are not the published ones.
        EnvironmentFault: if the download fails, or a batch cannot be read.
    """
    import torchvision

    loader: Any = getattr(torchvision.datasets, dataset)
    root = next((root for root in roots if (root / loader.base_folder).is_dir()), None)
    if root is not None:
        batches = _read(loader, root, split)
    elif download:
        with downloading(dataset, roots[-1]):
            batches = loader(str(roots[-1]), train=split == "train", download=True)
    else:
        return None
    ids = [f"{split}/{number:05d}" for number in range(len(batches.data))]
    labels = [int(label) for label in batches.targets]
    return Opened(
        dataset.lower(), split, ArrayImages(batches.data, ids, labels), list(batches.classes)
    )


def _read(loader: Any, root: Path, split: str) -> Any:
    try:
        return loader(str(root), train=split == "train")
    except OSError as error:
        raise cannot_read(Path(error.filename or root / loader.base_folder), error) from error
    except RuntimeError as error:
        raise UserError(
            f"{root / loader.base_folder}: not the published batches (their MD5 differs); unpack "
            f"{loader.filename} there anew."
        ) from error
