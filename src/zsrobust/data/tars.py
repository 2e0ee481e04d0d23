"""WebDataset folders in the layout of CLIP benchmark: the form in which sets travel.

    ROOT/classnames.txt                              line k + 1 is the name of label k
    ROOT/zeroshot_classification_templates.txt       one a line, {c} for the class name; optional
    ROOT/SPLIT/nshards.txt                           the number of tars; optional here
    ROOT/SPLIT/0.tar, 1.tar, ...                     KEY.jpg|png|webp, KEY.cls (the label), KEY.txt

The tars are indexed once (offset and size of every member) and read by seeking. webdataset itself
reads them only from front to back, which gives neither a chosen order nor a restart in mid-epoch.
"""

from __future__ import annotations

import os
import re
import tarfile
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

from zsrobust.data.storage import (
    PICTURE_ENDINGS,
    Opened,
    cannot_read,
    caption_lines,
    read_classnames,
    read_templates,
)
from zsrobust.errors import UserError, unknown_name
from zsrobust.preprocess import decode

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from PIL.Image import Image

CLASSNAMES = "classnames.txt"
TEMPLATES = "zeroshot_classification_templates.txt"
NSHARDS = "nshards.txt"

# webdataset's own rule: the key ends at the first dot of the last path component.
_KEY_AND_ENDING = re.compile(r"^((?:.*/|)[^.]+)[.]([^/]*)$")

# First bytes of compressed files; of bzip2 more than "BZh", which a member's name may begin with.
_COMPRESSIONS = {
    "gzip": rb"\x1f\x8b",
    "bzip2": rb"BZh.1AY&SY",
    "xz": rb"\xfd7zXZ\x00",
    "zstd": rb"\(\xb5/\xfd",
}

# (shard, offset, size) of one member.
Place = tuple[int, int, int]
NOWHERE: Place = (-1, -1, -1)


@dataclass(slots=True)
class TarImages:
    """Pictures as members of tars.

    Args:
        shards: the tars.
        ids: N keys.
        labels: N of them, or None.
        images: (N, 3) int64, shard, offset and size of each picture.
        texts: (N, 3) int64, the same of each .txt, -1 where a sample has none.
    """

    shards: list[Path]
    ids: list[str]
    labels: list[int] | None
    images: NDArray[np.int64]
    texts: NDArray[np.int64]
    captioned: bool = field(init=False)
    encoded: bool = field(init=False, default=True)

    def __post_init__(self) -> None:
        self.captioned = bool((self.texts[:, 0] >= 0).any())

    def stored(self, index: int) -> bytes:
        """Return the member's bytes."""
        return self._read(self.images[index], self.ids[index])

    def picture(self, index: int, stored: bytes, what: str) -> Image:
        """Decode a member's bytes."""
        del index
        return decode(stored, what)

    def captions(self, index: int) -> list[str] | None:
        """Return the lines of the sample's .txt."""
        if self.texts[index, 0] < 0:
            return None
        return caption_lines(self._read(self.texts[index], self.ids[index]))

    def _read(self, place: NDArray[np.int64], key: str) -> bytes:
        shard, offset, size = (int(number) for number in place)
        path = self.shards[shard]
        try:
            with path.open("rb") as stream:
                stream.seek(offset)
                data = stream.read(size)
        except OSError as error:
            raise cannot_read(path, error) from error
        if len(data) != size:
            raise UserError(
                f"{path}: cut off within sample {key!r} since the set was opened; open it again."
            )
        return data


def open_tars(folder: Path, split: str | None, classnames: list[str] | None = None) -> Opened:
    """Open a folder of tars.

    Args:
        folder: the root of a set (with split folders), or a folder with the tars themselves.
        split: None means "test" under a root. A folder of tars is one split, named as the folder is
            if classnames.txt stands in its parent, else "test"; asking it for another is refused.
        classnames: from a card; None means the folder's classnames.txt.

    Raises:
        UserError: if the folder, the split or a shard is missing, a tar is damaged, or a sample
            breaks the layout; the message names shard and key.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; give a folder with SPLIT/0.tar, 1.tar, ...")
    # Not resolve(): a set is named as the user names its folder, also through a link.
    folder = Path(os.path.abspath(folder))
    if _tars(folder):
        inner = (folder.parent / CLASSNAMES).is_file() and not (folder / CLASSNAMES).is_file()
        root, own = (folder.parent, folder.name) if inner else (folder, "test")
        if split not in (None, own, folder.name):
            raise UserError(
                f"{folder} holds tars and no splits, but split {split!r} was asked for; "
                f"put them into {folder / str(split)}, or leave the split out."
            )
        split, shards_at = own, folder
    else:
        root, split = folder, split or "test"
        splits = split_names(root)
        if not splits:
            raise UserError(f"{root}: no tar in it or in its folders; expected SPLIT/0.tar.")
        if split not in splits:
            raise unknown_name(f"split of {root}", split, splits)
        shards_at = root / split
    if classnames is None and (root / CLASSNAMES).is_file():
        classnames = read_classnames(root / CLASSNAMES)
    templates = read_templates(root / TEMPLATES) if (root / TEMPLATES).is_file() else None
    storage = _index(shards_at, classnames)
    return Opened(
        root.name, split, storage, classnames if storage.labels is not None else None, templates
    )


def split_names(root: Path) -> list[str]:
    """Return the names of the folders in `root` that hold tars."""
    return sorted({path.parent.name for path in root.glob("*/*.tar") if path.is_file()})


def _tars(folder: Path) -> list[Path]:
    return [path for path in folder.glob("*.tar") if path.is_file()]


def _shards(folder: Path) -> list[Path]:
    """Return the tars by number; nshards.txt, where there is one, must agree."""
    shards = sorted(
        _tars(folder),
        key=lambda path: (not path.stem.isdecimal(), path.stem.zfill(20), path.name),
    )
    stated = folder / NSHARDS
    if stated.is_file():
        text = stated.read_text(encoding="utf-8", errors="replace").strip()
        if text != str(len(shards)):
            raise UserError(
                f"{stated} says {text!r}, but {len(shards)} tars are there; bring the missing ones."
            )
    return shards


@dataclass(slots=True)
class _Members:
    """What the tar holds under one key."""

    image: Place = NOWHERE
    image_ending: str = ""
    text: Place = NOWHERE
    label: bytes | None = None
    others: list[str] = field(default_factory=list)


def _index(folder: Path, classnames: list[str] | None) -> TarImages:
    shards = _shards(folder)
    samples: list[tuple[int, str, _Members]] = []
    for number, shard in enumerate(shards):
        try:
            with shard.open("rb") as stream:
                members = _members(stream, shard, number)
        except OSError as error:
            raise cannot_read(shard, error) from error
        samples += [(number, key, member) for key, member in members.items()]
    if not samples:
        raise UserError(f"{folder}: the tars hold no samples; expected KEY.jpg and KEY.cls.")
    # Class names without a single label make an error of the first sample, unless captions show
    # that the set is one of image-text pairs.
    labelled = any(member.label is not None for _, _, member in samples) or (
        classnames is not None and all(member.text == NOWHERE for _, _, member in samples)
    )
    if labelled and classnames is None:
        raise UserError(
            f"{folder}: the samples have labels, but there is no {CLASSNAMES} in it or in its "
            "parent; write one, line k + 1 is the name of label k."
        )
    labels = []
    for number, key, member in samples:
        where = f"{shards[number]}: sample {key!r}"
        if member.image == NOWHERE:
            found = ", ".join(member.others) or "only a label or text"
            raise UserError(
                f"{where} has no image (found: {found}); expected {key}.jpg, .png or .webp."
            )
        if labelled:
            labels.append(_label(member.label, len(classnames or []), where))
    keys = [key for _, key, _ in samples]
    if max(Counter(keys).values()) > 1:
        keys = [f"{shards[number].stem}/{key}" for number, key, _ in samples]
    return TarImages(
        shards=shards,
        ids=keys,
        labels=labels if labelled else None,
        images=np.array([member.image for _, _, member in samples], dtype=np.int64),
        texts=np.array([member.text for _, _, member in samples], dtype=np.int64),
    )


def _members(stream: BinaryIO, shard: Path, number: int) -> dict[str, _Members]:
    """Return the samples of one tar by key, in the order of the tar."""
    samples: dict[str, _Members] = {}
    key = ""
    head = stream.read(16)
    packed = [kind for kind, magic in _COMPRESSIONS.items() if re.match(magic, head, re.DOTALL)]
    if packed:
        raise UserError(
            f"{shard}: compressed with {packed[0]}, so that no picture can be found by seeking; "
            "unpack it to a plain tar."
        )
    stream.seek(0)
    try:
        # "r:" and not "r": a compressed tar cannot be read by seeking.
        with tarfile.open(fileobj=stream, mode="r:") as tar:
            while (member := tar.next()) is not None:
                tar.members.clear()  # type: ignore[attr-defined]  # else it keeps about 1 kB a member
                match = _KEY_AND_ENDING.match(member.name.removeprefix("./"))
                if not member.isreg() or match is None:
                    continue
                key, ending = match.group(1), match.group(2).lower()
                # Nothing is unpacked here, but a key may become a file's name wherever it is used.
                if key.startswith("/") or ".." in key.split("/"):
                    raise UserError(
                        f"{shard}: the member {member.name!r} would leave the folder that it is unpacked "
                        "in; pack the set anew, with keys without .. and a leading /."
                    )
                sample = samples.setdefault(key, _Members())
                place = (number, member.offset_data, member.size)
                where = f"{shard}: sample {key!r}"
                if ending in PICTURE_ENDINGS:
                    if sample.image != NOWHERE:
                        raise UserError(
                            f"{where} has two images (.{sample.image_ending} and .{ending}); "
                            "keep one of them."
                        )
                    sample.image, sample.image_ending = place, ending
                elif ending == "cls":
                    if sample.label is not None:
                        raise UserError(f"{where} has two .cls; keep one of them.")
                    stream.seek(member.offset_data)
                    sample.label = stream.read(member.size)
                elif ending == "txt":
                    sample.text = place
                else:
                    sample.others.append(f".{ending}")
            end = tar.offset
    except tarfile.TarError as error:
        raise _damaged(shard, key, str(error)) from error
    # tarfile takes any unreadable header after the first for the end; the true one is all zeros.
    stream.seek(end)
    block = stream.read(tarfile.BLOCKSIZE)
    if block != bytes(tarfile.BLOCKSIZE):
        raise _damaged(shard, key, "no end mark")
    return samples


def _damaged(shard: Path, key: str, cause: str) -> UserError:
    after = f"after sample {key!r}" if key else "at its beginning"
    return UserError(f"{shard}: damaged or cut off {after} ({cause}); bring the file anew.")


def _label(stored: bytes | None, classes: int, where: str) -> int:
    if stored is None:
        raise UserError(f"{where} has no label; expected a .cls beside its image.")
    try:
        label = int(stored.decode("ascii").strip())
    except ValueError as error:
        raise UserError(
            f"{where}: its .cls holds {stored[:20]!r}; expected a whole number."
        ) from error
    if not 0 <= label < classes:
        raise UserError(
            f"{where} has label {label}, but there are {classes} class names (0 to {classes - 1}); "
            f"mend the .cls or {CLASSNAMES}."
        )
    return label
