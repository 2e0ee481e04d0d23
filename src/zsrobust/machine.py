"""What a program runs on: the versions that rounding depends on, and the device that a name means."""

from __future__ import annotations

import os
import platform

import torch

from zsrobust.errors import UserError


def versions() -> dict[str, str]:
    """Return the versions of this package, torch, open_clip and Python, for the records of a run."""
    import open_clip

    from zsrobust import __version__

    return {
        "zsrobust": __version__,
        "torch": torch.__version__,
        "open_clip": open_clip.__version__,
        "python": platform.python_version(),
    }


UNITS = {"cpu": "CPU cores", "cuda": "GPUs"}


def training_device(name: str, what: str) -> torch.device:
    """Return the device that a training runs on; "auto" is a GPU where there is one.

    Args:
        name: auto, cpu, cuda or cuda:N.
        what: the training, for the message: "hardening".

    Raises:
        UserError: for another name, and for a device that is not here.
    """
    wanted = ("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name
    kind, _, number = wanted.partition(":")
    if kind not in ("cpu", "cuda") or (number and not number.isdigit()):
        raise UserError(f"device {name!r}: {what} runs on auto, cpu, cuda or cuda:N.")
    if kind == "cuda" and not torch.cuda.is_available():
        raise UserError(f"device {name!r}: no CUDA device is here; use device=cpu.")
    # A processor's number means nothing to torch, and it wraps numbers of more than seven bits.
    there = torch.cuda.device_count() if kind == "cuda" else max(os.cpu_count() or 1, 2)
    if number and int(number) >= there:
        raise UserError(f"device {name!r}: {there} {UNITS[kind]} are here; numbers start at 0.")
    return torch.device(kind, int(number)) if number else torch.device(kind)
