"""Write a set as tars in the layout of CLIP benchmark (see `tars.py`), whole or not at all."""

from __future__ import annotations

import io
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

from zsrobust.data.sets import ImageSet
from zsrobust.data.tars import CLASSNAMES, NSHARDS, TEMPLATES
from zsrobust.errors import UserError
from zsrobust.files import machine_faults, refuse_file


def pack(
    image_set: ImageSet, out: Path, indices: Sequence[int] | None = None, shard_size: int = 10_000
) -> Path:
    """Write OUT/SPLIT/0.tar, 1.tar, ..., nshards.txt and the texts, and return `out`.

    A sample's key is its index in `image_set`, padded with zeros; in the packed set it is the id.
    JPEG, PNG and WebP are kept byte for byte, so their hashes stay; arrays and other formats become
    PNG. The same set gives the same bytes. A set without labels is marked as one of image-text
    pairs (dataset_type.txt: retrieval), as CLIP benchmark does.

    Args:
        image_set: what to write.
        out: a folder that does not exist yet, or is empty.
        indices: of the samples, in the order to write; None means all, as stored.
        shard_size: samples a tar, at least 1.

    Raises:
        UserError: if `out` is not empty, an index comes twice or there is none, or a picture that
            must be converted is unreadable.
        EnvironmentFault: if the disk is full or the folder cannot be written.
    """
    chosen = list(range(len(image_set)) if indices is None else indices)
    if shard_size < 1:
        raise UserError(f"shard size {shard_size}: must be at least 1.")
    if not chosen or len(set(chosen)) != len(chosen):
        raise UserError(
            f"pack {image_set.name}: the indices must be at least one, and each one once; "
            f"got {len(chosen)}, {len(set(chosen))} of them different."
        )
    out = Path(os.path.abspath(out))
    refuse_file(out)
    if out.exists() and any(out.iterdir()):
        raise UserError(
            f"{out} exists and is not empty; choose another folder, or remove it first."
        )
    temporary = out.with_name(f".{out.name}.{os.getpid()}.partial")
    with machine_faults(out):
        try:
            shards_at = temporary / image_set.split
            shards_at.mkdir(parents=True)
            shards = [chosen[at : at + shard_size] for at in range(0, len(chosen), shard_size)]
            for number, shard in enumerate(shards):
                with (shards_at / f"{number}.tar").open("wb") as stream:
                    _write_shard(image_set, shard, stream)
                    stream.flush()
                    os.fsync(stream.fileno())
            _write(shards_at / NSHARDS, [str(len(shards))])
            if image_set.classnames is not None:
                _write(temporary / CLASSNAMES, image_set.classnames)
            else:
                _write(temporary / "dataset_type.txt", ["retrieval"])
            if image_set.templates is not None:
                texts = [template.replace("{}", "{c}") for template in image_set.templates]
                _write(temporary / TEMPLATES, texts)
            for folder in (shards_at, temporary):
                _sync(folder)
            temporary.replace(out)
            _sync(out.parent)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
    return out


def _write_shard(image_set: ImageSet, indices: Sequence[int], stream: BinaryIO) -> None:
    from webdataset import TarWriter

    width = max(6, len(str(len(image_set) - 1)))
    # encoder=False: bytes go in as they are. mtime: the same set gives the same tar.
    writer = TarWriter(stream, encoder=False, mtime=0.0)
    for index in indices:
        ending, data = _image(image_set, index)
        sample = {"__key__": f"{index:0{width}d}", ending: data}
        if image_set.labels is not None:
            sample["cls"] = str(image_set.labels[index]).encode("ascii")
        captions = image_set.captions(index)
        if captions is not None:
            sample["txt"] = "\n".join(captions).encode("utf-8")
        writer.write(sample)
    writer.close()


def _image(image_set: ImageSet, index: int) -> tuple[str, bytes]:
    """Return ending and bytes of a sample; the ending is by content, not by the file's name."""
    stored = image_set.stored(index)
    if image_set.encoded:
        if stored.startswith(b"\xff\xd8\xff"):
            return "jpg", stored
        if stored.startswith(b"\x89PNG\r\n\x1a\n"):
            return "png", stored
        if stored.startswith(b"RIFF") and stored[8:12] == b"WEBP":
            return "webp", stored
    buffer = io.BytesIO()
    image_set.picture(index, stored).save(buffer, format="PNG")
    return "png", buffer.getvalue()


def _write(path: Path, lines: Sequence[str]) -> None:
    with path.open("w", encoding="utf-8", newline="\n") as stream:
        stream.write("".join(f"{line}\n" for line in lines))
        stream.flush()
        os.fsync(stream.fileno())


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
