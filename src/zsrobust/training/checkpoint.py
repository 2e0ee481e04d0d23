"""Checkpoints: everything needed to go on, written atomically.

One dict in plain sight: the adapted parameters, what the objective trains along, the optimiser, the position
(epoch and step within it), and torch's random state. Order and noise need no state: they are functions of
(seed, epoch, sample id).
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from zsrobust.errors import UserError, one_line
from zsrobust.files import write_atomically
from zsrobust.models.weights import read_file

FORMAT = 1
_MEND = "delete it to start the run anew"


@dataclass(frozen=True)
class Position:
    """Where a run stands: the next step to take."""

    epoch: int
    step: int
    """Optimiser steps taken within the epoch; after its last one, its validation may be still to do."""


def save_checkpoint(
    path: Path,
    *,
    parameters: dict[str, torch.Tensor],
    optimiser: torch.optim.Optimizer,
    position: Position,
    best: dict[str, Any] | None,
) -> None:
    """Write a checkpoint at `path`, or leave the old one.

    Raises:
        EnvironmentFault: if the disk is full or the folder cannot be written.
    """
    state = {
        "format": FORMAT,
        "parameters": parameters,
        "optimiser": optimiser.state_dict(),
        "epoch": position.epoch,
        "step": position.step,
        "random": torch.get_rng_state(),
        "best": best,
    }
    # Into memory first: torch's own writer turns a full disk into an error without a cause (traps 54).
    buffer = io.BytesIO()
    torch.save(state, buffer)
    write_atomically(path, lambda stream: stream.write(buffer.getbuffer()))


def load_checkpoint(
    path: Path,
    *,
    parameters: dict[str, torch.Tensor],
    optimiser: torch.optim.Optimizer,
) -> tuple[Position, dict[str, Any] | None]:
    """Read a checkpoint into `parameters` (in place) and `optimiser`; return position and best epoch.

    Raises:
        UserError: if the file is damaged, of another format, of another model, or asks for more than
            tensors and plain values, of which nothing is run.
    """
    state = read_file(path, mend=_MEND)
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        found = state.get("format") if isinstance(state, dict) else type(state).__name__
        raise UserError(
            f"checkpoint {path} has format {found!r}, this version reads {FORMAT}; {_MEND}."
        )
    absent = {"parameters", "optimiser", "epoch", "step", "random", "best"} - state.keys()
    if absent:
        raise damaged(path, f"{', '.join(sorted(absent))} is missing")
    best = state["best"]
    if best is not None and not (
        isinstance(best, dict) and {"score", "epoch", "parameters"} <= best.keys()
    ):
        raise damaged(path, "its best epoch is none")
    for stored in (state["parameters"], *([] if best is None else [best["parameters"]])):
        _refuse_other_tensors(path, stored, parameters)
    if not all(isinstance(state[name], int) and state[name] >= 0 for name in ("epoch", "step")):
        raise damaged(path, f"its position is epoch {state['epoch']!r}, step {state['step']!r}")
    with torch.no_grad():
        for name, tensor in state["parameters"].items():
            parameters[name].copy_(tensor)
    try:
        optimiser.load_state_dict(state["optimiser"])
        torch.set_rng_state(state["random"])
    except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise damaged(path, one_line(error)) from error
    for moved, kept in optimiser.state.items():
        for value in kept.values():
            if isinstance(value, torch.Tensor) and value.dim() and value.shape != moved.shape:
                raise damaged(path, "the optimiser's state has other shapes than the parameters")
    return Position(state["epoch"], state["step"]), best


def check_position(path: Path, position: Position, epochs: int, per_epoch: int) -> None:
    """Refuse a position beyond the run's end: it would pass for a run that is done.

    Args:
        path: of the checkpoint.
        position: that it holds.
        epochs: of the run.
        per_epoch: optimiser steps of an epoch.

    Raises:
        UserError: if it lies beyond.
    """
    if position.epoch > epochs or position.step > per_epoch:
        raise damaged(
            path,
            f"epoch {position.epoch}, step {position.step} of {epochs} epochs with {per_epoch} steps each",
        )


def damaged(path: Path, cause: str) -> UserError:
    """Return the error for a checkpoint that was read and cannot be gone on from."""
    return UserError(f"checkpoint {path} is damaged ({cause}); {_MEND}.")


def _refuse_other_tensors(path: Path, stored: Any, parameters: dict[str, torch.Tensor]) -> None:
    if not isinstance(stored, dict) or set(stored) != set(parameters):
        raise UserError(
            f"checkpoint {path} belongs to another model: its tensors have other names; {_MEND}."
        )
    for name, tensor in stored.items():
        if not isinstance(tensor, torch.Tensor) or tensor.shape != parameters[name].shape:
            raise damaged(path, f"{name} has another shape than the model's")
