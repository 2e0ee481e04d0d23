"""Where the images of a set lie, and how one of them is read by number.

A storage is indexed once and then read by seeking, so that a sample costs the same wherever it
stands. It keeps no open file: it can be sent to worker processes as it is.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from zsrobust.errors import EnvironmentFault, UserError
from zsrobust.preprocess import decode

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL.Image import Image

# The formats of photographs that Pillow opens, listed here and not asked of Pillow: its plug-ins
# differ from machine to machine (and one of them claims .h5).
PICTURE_ENDINGS = frozenset(
    [
        "jpg",
        "jpeg",
        "jpe",
        "jfif",
        "png",
        "webp",
        "bmp",
        "gif",
        "tif",
        "tiff",
        "ppm",
        "pgm",
        "pbm",
        "pnm",
        "jp2",
        "tga",
        "avif",
    ]
)


class Storage(Protocol):
    """The samples of one split, numbered from 0.

    Attributes:
        ids: unique, the same on every machine.
        labels: aligned with `ids`; None for a set without labels.
        captioned: whether any sample has captions.
        encoded: whether the stored bytes are picture files, not bare pixels.
    """

    ids: list[str]
    labels: list[int] | None
    captioned: bool
    encoded: bool

    def stored(self, index: int) -> bytes:
        """Return the bytes as stored."""

    def picture(self, index: int, stored: bytes, what: str) -> Image:
        """Return `stored` as an RGB picture; errors name `what`."""

    def captions(self, index: int) -> list[str] | None:
        """Return the captions of a sample, None where it has none."""


@dataclass(frozen=True, slots=True)
class Opened:
    """What a source gives: a storage and the texts found beside it (None where there are none)."""

    name: str
    split: str
    storage: Storage
    classnames: list[str] | None = None
    templates: list[str] | None = None


@dataclass(slots=True)
class FileImages:
    """Pictures as files of their own, with an optional .txt of captions beside each."""

    files: list[Path]
    ids: list[str]
    labels: list[int] | None
    captioned: bool = field(init=False)
    encoded: bool = field(init=False, default=True)

    def __post_init__(self) -> None:
        self.captioned = any(file.with_suffix(".txt").is_file() for file in self.files)

    def stored(self, index: int) -> bytes:
        """Return the file's bytes."""
        try:
            return self.files[index].read_bytes()
        except OSError as error:
            raise cannot_read(self.files[index], error) from error

    def picture(self, index: int, stored: bytes, what: str) -> Image:
        """Decode a file's bytes."""
        del index
        return decode(stored, what)

    def captions(self, index: int) -> list[str] | None:
        """Return the lines of the .txt beside the file."""
        texts = self.files[index].with_suffix(".txt")
        return caption_lines(texts.read_bytes()) if texts.is_file() else None


@dataclass(slots=True)
class ArrayImages:
    """Pictures as rows of one array.

    Args:
        pixels: (N, H, W, 3) uint8; the stored bytes of a sample are its row's, in this order.
        ids: N of them.
        labels: N of them.
    """

    pixels: NDArray[np.uint8]
    ids: list[str]
    labels: list[int] | None
    captioned: bool = field(init=False, default=False)
    encoded: bool = field(init=False, default=False)

    def stored(self, index: int) -> bytes:
        """Return the row's H * W * 3 bytes."""
        row: bytes = self.pixels[index].tobytes()
        return row

    def picture(self, index: int, stored: bytes, what: str) -> Image:
        """Return the row as a picture."""
        del stored, what
        from PIL import Image

        return Image.fromarray(self.pixels[index])

    def captions(self, index: int) -> None:
        """Arrays carry no captions."""
        del index


@dataclass(slots=True)
class SelectedImages:
    """Some samples of another storage, in the order given."""

    whole: Storage
    indices: list[int]
    ids: list[str] = field(init=False)
    labels: list[int] | None = field(init=False)
    captioned: bool = field(init=False)
    encoded: bool = field(init=False)

    def __post_init__(self) -> None:
        whole = self.whole
        self.ids = [whole.ids[i] for i in self.indices]
        self.labels = None if whole.labels is None else [whole.labels[i] for i in self.indices]
        self.captioned = any(whole.captions(i) for i in self.indices) if whole.captioned else False
        self.encoded = whole.encoded

    def stored(self, index: int) -> bytes:
        """Return the bytes as stored."""
        return self.whole.stored(self.indices[index])

    def picture(self, index: int, stored: bytes, what: str) -> Image:
        """Return `stored` as an RGB picture."""
        return self.whole.picture(self.indices[index], stored, what)

    def captions(self, index: int) -> list[str] | None:
        """Return the captions of a sample."""
        return self.whole.captions(self.indices[index])


def cannot_read(path: Path, error: OSError) -> EnvironmentFault:
    """Return the fault for a file that was there when the set was opened and cannot be read now."""
    return EnvironmentFault(
        f"cannot read {path}: {error.strerror or error}; mend it and start the same command again."
    )


def caption_lines(stored: bytes) -> list[str]:
    """Return the captions of a .txt, one a line, empty lines left out."""
    lines = stored.decode("utf-8", errors="replace").splitlines()
    return [line.strip() for line in lines if line.strip()]


def read_classnames(path: Path) -> list[str]:
    """Return the class names of a classnames.txt: line k + 1 is the name of label k.

    Raises:
        UserError: if a line before the last name is empty, or there is no name at all.
    """
    names = [line.strip() for line in _read_lines(path)]
    while names and not names[-1]:
        names.pop()
    if not names or "" in names:
        line = names.index("") + 1 if names else 1
        raise UserError(f"{path}, line {line}: empty; line k + 1 must hold the name of label k.")
    return names


def read_templates(path: Path) -> list[str]:
    """Return the templates of a zeroshot_classification_templates.txt, one a line.

    The place of the class name is `{}`; CLIP benchmark writes `{c}` there, which is read as `{}`.

    Raises:
        UserError: if a line has no such place.
    """
    templates = [line.strip().replace("{c}", "{}") for line in _read_lines(path)]
    templates = [template for template in templates if template]
    for template in templates:
        if "{}" not in template:
            raise UserError(
                f"{path}: the template {template!r} has no place for the class name; write {{c}}."
            )
    return templates


def _read_lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text ({error.reason}); save it as UTF-8.") from error
    except OSError as error:
        raise cannot_read(path, error) from error
