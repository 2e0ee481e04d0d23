"""The learning rate as a pure function of the optimiser step; there is no scheduler state to save."""

from __future__ import annotations

import math

from zsrobust.errors import UserError


def learning_rate(
    step: int, *, base: float, warmup: int, total: int, kind: str = "cosine"
) -> float:
    """Return the rate of optimiser step `step`.

    Args:
        step: 0 <= step < total; optimiser steps, not micro-batches (traps 43).
        base: the rate at the end of the warm-up.
        warmup: steps W of the linear warm-up: base (t + 1) / W for t < W.
        total: all steps M of the run.
        kind: "cosine": base (1 + cos(pi (t - W) / (M - W))) / 2 after the warm-up; "constant": base.

    Source: the authors' schedule, facts 3.6. Difference: none.
    """
    if step < warmup:
        return base * (step + 1) / warmup
    if kind == "constant":
        return base
    return base * 0.5 * (1.0 + math.cos(math.pi * (step - warmup) / max(total - warmup, 1)))


def warmup_steps(warmup: float | int | None, total: int) -> int:
    """Return the number of warm-up steps: None is min(1000, 10% of all), below 1 a fraction, else a count.

    Raises:
        UserError: for a count beyond all steps: the rate would never come to its base.
    """
    if warmup is None:
        return min(1000, round(0.1 * total))
    if 0 <= warmup < 1:
        return round(warmup * total)
    if warmup > total:
        raise UserError(
            f"schedule.warmup is {int(warmup)} steps, the whole run has {total}: give fewer, or a fraction "
            "of all steps such as 0.1."
        )
    return int(warmup)
