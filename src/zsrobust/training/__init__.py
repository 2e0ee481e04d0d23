"""Hardening: recipes, the training step, the loop, checkpoints, runs."""

from __future__ import annotations

from typing import Any

__all__ = ["Recipe", "Run", "harden", "load_recipe", "recipe_names"]

_HOME = {
    "Recipe": "recipe",
    "load_recipe": "recipe",
    "recipe_names": "recipe",
    "Run": "run",
    "harden": "loop",
}


def __getattr__(name: str) -> Any:
    """Bring in what needs torch only when it is asked for."""
    if name in _HOME:
        import importlib

        return getattr(importlib.import_module(f"zsrobust.training.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
