"""Adaptations: which parameters a hardening moves. Importing this package imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from zsrobust.adaptations.full import Full
from zsrobust.errors import unknown_name

ADAPTATIONS: dict[str, type[Full]] = {"full": Full}

__all__ = ["ADAPTATIONS", "Full", "build"]


def build(name: str, settings: Mapping[str, Any] | None = None) -> Full:
    """Return the adaptation of that name.

    Raises:
        UserError: for an unknown name, or a setting that it does not have.
    """
    if name not in ADAPTATIONS:
        raise unknown_name("adaptation", name, ADAPTATIONS)
    chosen = ADAPTATIONS[name]
    known = {f.name for f in fields(chosen)}
    for key in settings or {}:
        if key not in known:
            raise unknown_name(f"setting of adaptation {name}", key, known)
    return chosen(**(settings or {}))
