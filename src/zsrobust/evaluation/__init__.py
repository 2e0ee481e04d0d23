"""Evaluation: cells, statistics, tables."""

from __future__ import annotations

from typing import Any

__all__ = ["EvaluationTable", "evaluate"]

_HOME = {"evaluate": "evaluate", "EvaluationTable": "table"}


def __getattr__(name: str) -> Any:
    """Bring in what needs torch only when it is asked for."""
    if name in _HOME:
        import importlib

        return getattr(importlib.import_module(f"zsrobust.evaluation.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
