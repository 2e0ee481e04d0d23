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

from zsrobust.errors import UserError
from zsrobust.files import write_atomically

FORMAT = 1


@dataclass(frozen=True)
class Position:
    """Where a run stands: the next step to take."""

    epoch: int
    step: int
    """Optimiser steps taken within the epoch."""


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
        UserError: if the file is damaged, of another format, or of another model.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for one cause
        raise UserError(
            f"checkpoint {path} cannot be read ({type(error).__name__}): delete it to start the run anew."
        ) from error
    if state.get("format") != FORMAT:
        raise UserError(
            f"checkpoint {path} has format {state.get('format')!r}, this version reads {FORMAT}."
        )
    stored = state["parameters"]
    if set(stored) != set(parameters):
        raise UserError(
            f"checkpoint {path} belongs to another model: its tensors have other names."
        )
    with torch.no_grad():
        for name, tensor in stored.items():
            parameters[name].copy_(tensor)
    optimiser.load_state_dict(state["optimiser"])
    torch.set_rng_state(state["random"])
    return Position(state["epoch"], state["step"]), state["best"]
