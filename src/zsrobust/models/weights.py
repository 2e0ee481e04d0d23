"""Tensors out of a file, and into a module: nothing executed, nothing left over, nothing missing.

Pickles are read with tensors only (traps 17). Beside tensors they may hold numpy scalars, which the
TeCoA authors' files do (`best_acc1`); any other global is refused by its name.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
import torch
from torch import Tensor, nn

from zsrobust.errors import EnvironmentFault, UserError
from zsrobust.files import write_atomically

# Buffers that some releases wrote and others rebuild: a mask, position ids, OpenAI's three sizes.
_DROPPABLE = ("attn_mask", "position_ids", "input_resolution", "context_length", "vocab_size")
_AGAIN = "fetch or write it again"
_LFS_POINTER = b"version https://git-lfs.github.com/spec/"
# Of pickles that torch.save writes; its reader of tensors alone knows no later one.
_TORCH_PROTOCOL = b"\x02"
# Fewer bits come with scales of their own, and would be read without them.
_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
# A counter that is read only when batch norm's statistics move, which they never do here.
_OPTIONAL = "num_batches_tracked"


def read_file(path: Path, mend: str = "") -> Any:
    """Return what a safetensors or pickled checkpoint holds, on the CPU; nothing is executed.

    Args:
        path: of the file.
        mend: what to do with one that cannot be read; "" for weights: to fetch or to write them again.

    Raises:
        UserError: if the file is missing, damaged, of another form, or holds more than tensors and
            plain values.
        EnvironmentFault: if it cannot be read.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file.")
    try:
        with path.open("rb") as stream:
            head = stream.read(len(_LFS_POINTER))
    except OSError as error:
        raise unreadable(path, error) from error
    if not head:
        raise UserError(f"{path}: an empty file; {mend or _AGAIN}.")
    if head == _LFS_POINTER:
        raise UserError(f"{path}: a pointer of Git LFS, not the file itself; run git lfs pull.")
    if path.suffix == ".safetensors" or head[8:9] == b"{":
        return _read_safetensors(path)
    return _read_pickle(path, head, mend)


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tensors: dict[str, Tensor] = load_file(str(path))
    except SafetensorError as error:
        cause = first_line(error).removeprefix("Error while deserializing header: ")
        raise UserError(f"{path}: not a whole safetensors file ({cause}); {_AGAIN}.") from error
    return tensors


def _read_pickle(path: Path, head: bytes, mend: str) -> Any:
    # What numpy itself would call to make its scalar again.
    scalar = cast(Any, np.float64(0.0)).__reduce__()[0]
    harmless: list[Any] = [np.dtype, *{type(np.dtype(kind)) for kind in "?bBhHiIlLqQefd"}]
    # Numpy renamed the module in 2.0: files carry either name.
    harmless += [(scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")]
    try:
        with torch.serialization.safe_globals(harmless), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what is to be said is said below
            return torch.load(path, map_location="cpu", weights_only=True)
    except MemoryError:
        raise
    except Exception as error:  # a damaged pickle can raise anything
        cause, advice = _refused(str(error), head)
        raise UserError(f"{path}: {cause}; {mend or advice}.") from error


def _refused(text: str, head: bytes) -> tuple[str, str]:
    """Return why a pickle was not read, and what to do; torch's own text advises to run it.

    Args:
        text: of torch's error.
        head: the file's first bytes.
    """
    found = re.search(r"GLOBAL ([\w.]+)", text) or re.search(r"class ([\w.]+) ", text)
    if "TorchScript" in text:
        return "a TorchScript archive, not a table of tensors", "save its state_dict()"
    if found:
        return (
            f"the pickle asks for {found[1]}, and only tensors and plain values are unpickled: nothing "
            "of it was run",
            "save the bare state_dict()",
        )
    if head[:1] == b"\x80" and head[1:2] > _TORCH_PROTOCOL:
        return (
            f"a pickle of protocol {head[1]}, which torch.save does not write: nothing of it was run",
            "save the bare state_dict() with torch.save",
        )
    if head[:2] == b"PK" or head[:1] == b"\x80":
        return "a damaged or cut off checkpoint", _AGAIN
    return "neither safetensors nor a checkpoint of torch.save", _AGAIN


def tensor_table(found: Any, path: Path) -> dict[str, Tensor]:
    """Return `found` as a table of names and tensors.

    Raises:
        UserError: if it is none, is empty, or holds anything but tensors.
    """
    mend = "save the model's state_dict()"
    if not isinstance(found, Mapping):
        raise UserError(
            f"{path}: holds a value of type {type(found).__name__}, not a table of named tensors; {mend}."
        )
    if not found:
        raise UserError(f"{path}: holds an empty table, no tensors; {mend}.")
    others = [str(name) for name, value in found.items() if not isinstance(value, Tensor)]
    if others:
        raise UserError(f"{path}: entries that are no tensors: {few(others)}; {mend}.")
    return {str(name): value for name, value in found.items()}


def strip_prefix(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Return the table without a prefix that every name has; unchanged if any name lacks it."""
    if all(name.startswith(prefix) for name in tensors):
        return {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    return tensors


def fill(module: nn.Module, tensors: Mapping[str, Tensor], what: str, mend: str) -> None:
    """Copy every tensor into `module`, all of them, into every place; dtypes are the module's.

    Named exceptions: buffers in `_DROPPABLE` may be left over, `num_batches_tracked` missing.

    Raises:
        UserError: if a tensor is left over, missing, of another shape, whole numbers for fractions, or
            not finite; `what` names the file, `mend` says what to do.
    """
    places = module.state_dict()
    left = [
        name for name in tensors if name not in places and name.rpartition(".")[2] not in _DROPPABLE
    ]
    missing = [
        name for name in places if name not in tensors and name.rpartition(".")[2] != _OPTIONAL
    ]
    shapes = [
        f"{name} is {tuple(tensors[name].shape)} for {tuple(place.shape)}"
        for name, place in places.items()
        if name in tensors and tensors[name].shape != place.shape
    ]

    kinds = [
        f"{name} is {tensors[name].dtype} for {place.dtype}"
        for name, place in places.items()
        if name in tensors
        and (
            tensors[name].dtype not in _FLOATS
            if place.is_floating_point()
            else tensors[name].is_floating_point() or tensors[name].is_complex()
        )
    ]
    wrong = [
        f"{len(names)} {word} ({few(names)})"
        for word, names in (
            ("missing", missing),
            ("left over", left),
            ("of another shape", shapes),
            ("of another type", kinds),
        )
        if names
    ]
    if wrong:
        raise UserError(f"{what}: tensors do not fit the model: {'; '.join(wrong)}; {mend}.")
    broken = [
        name
        for name in places
        if name.rpartition(".")[2] not in _DROPPABLE and not _finite(tensors.get(name))
    ]
    if broken:
        raise UserError(
            f"{what}: {len(broken)} tensors hold NaN or infinity ({few(broken)}); fetch or write it again."
        )
    # The state dict's own tensors are the places: a missing counter keeps its value.
    module.load_state_dict({name: tensors.get(name, place) for name, place in places.items()})


def _finite(tensor: Tensor | None) -> bool:
    return tensor is None or not tensor.is_floating_point() or bool(torch.isfinite(tensor).all())


def write_bytes(path: Path, content: bytes) -> None:
    """Write a whole file atomically.

    Raises:
        EnvironmentFault: if the disk is full or the folder cannot be written.
    """

    def write(stream: BinaryIO) -> None:
        stream.write(content)

    write_atomically(path, write)


def unreadable(path: Path, error: OSError) -> EnvironmentFault:
    """Return the error for a file that is there and cannot be read."""
    return EnvironmentFault(
        f"cannot read {path}: {error.strerror or error}; mend it and try again."
    )


def few(names: Sequence[str], count: int = 3) -> str:
    """Return the first few names, for a message."""
    return ", ".join(names[:count]) + (", ..." if len(names) > count else "")


def first_line(error: BaseException) -> str:
    """Return an error's first line, cut to what fits into one of ours."""
    lines = str(error).strip().splitlines()
    return (lines[0] if lines else type(error).__name__)[:160].rstrip(" .:;")
