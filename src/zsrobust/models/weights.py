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
# A counter that is read only when batch norm's statistics move, which they never do here.
_OPTIONAL = "num_batches_tracked"


def read_file(path: Path) -> Any:
    """Return what a safetensors or pickled checkpoint holds, on the CPU; nothing is executed.

    Raises:
        UserError: if the file is missing, damaged, of another form, or holds more than tensors and
            plain values.
        EnvironmentFault: if it cannot be read.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file.")
    try:
        with path.open("rb") as stream:
            head = stream.read(9)
    except OSError as error:
        raise unreadable(path, error) from error
    if path.suffix == ".safetensors" or head[8:] == b"{":
        return _read_safetensors(path)
    return _read_pickle(path)


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tensors: dict[str, Tensor] = load_file(str(path))
    except SafetensorError as error:
        raise UserError(
            f"{path}: not a whole safetensors file ({first_line(error)}); fetch or write it again."
        ) from error
    return tensors


def _read_pickle(path: Path) -> Any:
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
        text = str(error)
        found = re.search(r"GLOBAL ([\w.]+)", text) or re.search(r"class ([\w.]+) ", text)
        if "TorchScript" in text:
            reason = "a TorchScript archive, not a table of tensors; save its state_dict()"
        elif found:
            reason = (
                f"the pickle asks for {found[1]}, and only tensors and plain values are unpickled; "
                "save the bare state_dict()"
            )
        else:
            reason = f"not a readable checkpoint ({first_line(error)}); fetch or write it again"
        raise UserError(f"{path}: {reason}.") from error


def tensor_table(found: Any, path: Path) -> dict[str, Tensor]:
    """Return `found` as a table of names and tensors.

    Raises:
        UserError: if it is none, is empty, or holds anything but tensors.
    """
    if not isinstance(found, Mapping) or not found:
        raise UserError(f"{path}: holds {type(found).__name__}, not a table of named tensors.")
    others = [str(name) for name, value in found.items() if not isinstance(value, Tensor)]
    if others:
        raise UserError(f"{path}: entries that are no tensors: {few(others)}.")
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
        UserError: if a tensor is left over, missing, or of another shape; `what` names the file,
            `mend` says what to do.
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
    wrong = [
        f"{len(names)} {word} ({few(names)})"
        for word, names in (("missing", missing), ("left over", left), ("of another shape", shapes))
        if names
    ]
    if wrong:
        raise UserError(f"{what}: tensors do not fit the model: {'; '.join(wrong)}; {mend}.")
    # The state dict's own tensors are the places: a missing counter keeps its value.
    module.load_state_dict({name: tensors.get(name, place) for name, place in places.items()})


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
