"""Attacks on any PyTorch classifier of images in [0, 1].

Each attack is a state machine in a file of its own; the engine schedules and judges it, `names` says what
each name stands for. Importing this package imports no torch.
"""

from __future__ import annotations

from typing import Any

from zsrobust.attacks.names import ATTACKS, ENSEMBLES, Plan, plan

__all__ = ["ATTACKS", "ENSEMBLES", "Outcome", "Plan", "plan", "robust_accuracy", "run"]


def __getattr__(name: str) -> Any:
    """Bring in what needs torch only when it is asked for."""
    if name == "run":
        from zsrobust.attacks.engine import run

        return run
    if name in ("Outcome", "robust_accuracy"):
        from zsrobust.attacks import outcome

        return getattr(outcome, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
