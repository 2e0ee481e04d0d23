"""Adaptations: which parameters a hardening moves. Importing this package imports no torch.

`ADAPTATIONS` is written out by hand: name -> (module, class, what it is, for `zsrobust list adaptations`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from importlib import import_module
from typing import Any

from zsrobust.adaptations.adaptation import PROMPTS, Adaptation
from zsrobust.adaptations.full import Full
from zsrobust.errors import unknown_name

ADAPTATIONS: dict[str, tuple[str, str, str]] = {
    "full": (
        "full",
        "Full",
        "the whole image tower, of any open_clip model",
    ),
    "partial": (
        "partial",
        "Partial",
        "the last blocks, the norms and biases up to a budget, or the last tensors",
    ),
    "linear": (
        "linear",
        "Linear",
        "nothing of the tower: only the head of objective `linear` moves",
    ),
    "lora": (
        "lora",
        "Lora",
        "low-rank additions to attention and MLP weights, merged into them at the end",
    ),
    "pixel": (
        "pixel",
        "Pixel",
        "a prompt added to the image: a padding frame, a fixed or a random patch",
    ),
    "token": (
        "token",
        "Token",
        "prompt tokens beside the patches, at the input or at every block",
    ),
    "pixel+token": (
        "pixel_token",
        "PixelToken",
        "both prompts trained together, as the TeCoA authors' script does",
    ),
}

PROMPTING = ("pixel", "token", "pixel+token")
"""Those that leave the weights alone and put prompts beside them."""

__all__ = [
    "ADAPTATIONS",
    "PROMPTING",
    "PROMPTS",
    "Adaptation",
    "Full",
    "adaptation_class",
    "build",
    "setting_names",
]


def adaptation_class(name: str) -> type[Adaptation]:
    """Return the class of a name in `ADAPTATIONS`.

    Raises:
        UserError: for an unknown name, with the nearest ones.
    """
    if name not in ADAPTATIONS:
        raise unknown_name("adaptation", name, ADAPTATIONS)
    module, kind, _ = ADAPTATIONS[name]
    # Only when asked for: most of the modules need torch.
    found: type[Adaptation] = getattr(import_module(f"{__name__}.{module}"), kind)
    return found


def setting_names(name: str) -> tuple[str, ...]:
    """Return the names of an adaptation's settings."""
    return tuple(f.name for f in fields(adaptation_class(name)))


def build(name: str, settings: Mapping[str, Any] | None = None) -> Adaptation:
    """Return the adaptation of that name.

    Args:
        name: see `ADAPTATIONS`.
        settings: what differs from its defaults; see its class.

    Raises:
        UserError: for an unknown name, a setting that it does not have, or a value out of its range.
    """
    chosen, known = adaptation_class(name), setting_names(name)
    for key in settings or {}:
        if key not in known:
            raise unknown_name(f"setting of adaptation {name}", key, known)
    return chosen(**(settings or {}))
