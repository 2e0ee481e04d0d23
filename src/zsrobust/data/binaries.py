"""STL-10 as its authors give it: one file of pixels for a split, read by seeking."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from zsrobust.data.storage import Opened, cannot_read, read_classnames
from zsrobust.errors import UserError

if TYPE_CHECKING:
    from PIL.Image import Image

_SIDE = 96
_BYTES = 3 * _SIDE * _SIDE


@dataclass(slots=True)
class PlanarImages:
    """Pictures of 96 x 96 pixels one after the other in a file, each (channel, column, row).

    Args:
        file: N * 27648 bytes.
        ids: N of them.
        labels: N of them.
    """

    file: Path
    ids: list[str]
    labels: list[int] | None
    captioned: bool = field(init=False, default=False)
    encoded: bool = field(init=False, default=False)

    def stored(self, index: int) -> bytes:
        """Return the 96 * 96 * 3 bytes of its RGB pixels, row by row as of CIFAR's batches."""
        try:
            with self.file.open("rb") as stream:
                stream.seek(index * _BYTES)
                data = stream.read(_BYTES)
        except OSError as error:
            raise cannot_read(self.file, error) from error
        if len(data) != _BYTES:
            raise UserError(f"{self.file}: cut off at {self.ids[index]}; bring the file anew.")
        planes = np.frombuffer(data, dtype=np.uint8).reshape(3, _SIDE, _SIDE)
        return planes.transpose(2, 1, 0).tobytes()

    def picture(self, index: int, stored: bytes, what: str) -> Image:
        """Return the pixels as a picture."""
        del index, what
        from PIL import Image

        return Image.frombytes("RGB", (_SIDE, _SIDE), stored)

    def captions(self, index: int) -> None:
        """STL-10 carries no captions."""
        del index


def open_stl10(root: Path, split: str) -> Opened | None:
    """Open stl10_binary: SPLIT_X.bin, SPLIT_y.bin (labels from 1), class_names.txt.

    The MD5 of both files is compared with the published one that torchvision holds. An id is
    SPLIT/NUMBER in the order of the file.

    Raises:
        UserError: if the files are there but are not the published ones.
    """
    base = root / "stl10_binary"
    pixels, labels = base / f"{split}_X.bin", base / f"{split}_y.bin"
    if not pixels.is_file():
        return None
    import torchvision
    from torchvision.datasets.utils import check_integrity

    published: Any = torchvision.datasets.STL10
    for name, md5 in getattr(published, f"{split}_list"):
        if name.startswith(f"{split}_") and not check_integrity(str(base / name), md5):
            raise UserError(
                f"{base / name}: not the published file (its MD5 differs); unpack "
                f"{published.filename} there anew."
            )
    numbers = np.fromfile(labels, dtype=np.uint8)
    ids = [f"{split}/{number:05d}" for number in range(len(numbers))]
    storage = PlanarImages(pixels, ids, [int(number) - 1 for number in numbers])
    listed = base / "class_names.txt"
    return Opened("stl10", split, storage, read_classnames(listed) if listed.is_file() else None)
