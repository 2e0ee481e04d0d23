"""Flags: stated reasons to distrust a number. They stand beside it and never change it.

Three are here, those that the records alone can raise. docs/trust.md says what each means and what to do.
A changed threshold is a changed protocol version (`PROTOCOL` in cells.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from zsrobust.evaluation.statistics import wilson

if TYPE_CHECKING:
    from zsrobust.evaluation.table import Row

FEW_SAMPLES = "few-samples"
WEAK_ATTACK = "weak-attack"
NOT_CONVERGED = "not-converged"

# few-samples: the 95% interval is wider than this.
WIDEST_INTERVAL = 0.15
# weak-attack: an attack of fewer steps is weak. not-converged is asked of attacks with at least as many.
FEWEST_STEPS = 10
# not-converged: with at least so many breaks, at least this share and this number of them in the last tenth.
FEWEST_BREAKS = 20
LATE_SHARE = 0.05
LATE_BREAKS = 3

# What follows a gradient; an attack of any other algorithm is black-box.
GRADIENT_ALGORITHMS = frozenset({"pgd"})


@dataclass(frozen=True, slots=True)
class About:
    """What a flag stands for, in words for its reader."""

    raised_if: str
    means: str
    do: str


ABOUT: dict[str, About] = {
    FEW_SAMPLES: About(
        f"the 95% interval is wider than {100 * WIDEST_INTERVAL:.0f} points",
        "The number may lie far from what more samples would give.",
        "Measure more samples: raise --limit, or leave it out.",
    ),
    WEAK_ATTACK: About(
        f"every attack is black-box, has fewer than {FEWEST_STEPS} steps, or is cross-entropy with a fixed "
        "step of at least eps",
        "A stronger attack would most likely break more: the robust accuracy is too high.",
        "Measure again with --attacks pgd-20,cw-margin-20 or stronger.",
    ),
    NOT_CONVERGED: About(
        f"of at least {FEWEST_BREAKS} breaks, at least {100 * LATE_SHARE:.0f}% (and {LATE_BREAKS}) fall in "
        "the last tenth of the attack's steps",
        "The attack was still finding samples when it stopped: more steps would break more.",
        "Measure again with more steps, for instance pgd-100.",
    ),
}


@dataclass(frozen=True, slots=True)
class Flag:
    """A flag raised for one column of a row."""

    name: str
    column: str
    """"clean", an attack's name, or "robust" where it is judged on the union of the attacks."""
    why: str
    """The numbers that raised it, as a clause."""

    def row(self) -> dict[str, str]:
        """Return the flag as JSON."""
        return {"flag": self.name, "column": self.column, "why": self.why}


def flags(row: Row) -> list[Flag]:
    """Return the flags of one model on one set at one eps, in the order of `ABOUT`.

    few-samples and not-converged are judged a cell (clean, each attack), weak-attack on the union.
    Where the row knows no settings of its attacks, the two that need them are not judged.
    """
    found = [flag for column in ("clean", *row.robust) if (flag := _few_samples(row, column))]
    if weak := _weak_attack(row):
        found.append(weak)
    return [*found, *(flag for attack in row.plans if (flag := _not_converged(row, attack)))]


def _few_samples(row: Row, column: str) -> Flag | None:
    interval = wilson(row.values(column))
    width = interval.high - interval.low
    if width <= WIDEST_INTERVAL:
        return None
    why = f"its interval is {100 * width:.1f} points wide with {interval.samples} sample(s)"
    return Flag(FEW_SAMPLES, column, why)


def _weak_attack(row: Row) -> Flag | None:
    # In a ball of radius 0 there is nothing for a stronger attack to find.
    if not row.robust or not row.eps or set(row.robust) - set(row.plans):
        return None
    reasons = {name: _weakness(row.plans[name], row.eps) for name in row.robust}
    if any(reason is None for reason in reasons.values()):
        return None
    return Flag(WEAK_ATTACK, "robust", "; ".join(f"{name} {why}" for name, why in reasons.items()))


def _weakness(plan: Mapping[str, Any], eps: float) -> str | None:
    """Return why an attack with these settings is weak at eps; None if it is not."""
    if plan["algorithm"] not in GRADIENT_ALGORITHMS:
        return "is black-box"
    if plan["steps"] < FEWEST_STEPS:
        return f"has {plan['steps']} step(s)"
    step = plan.get("step_size")  # an attack that sets its own step has none
    if plan["loss"] == "cross-entropy" and step is not None and step >= eps:
        return "is cross-entropy with a step of at least eps"
    return None


def _not_converged(row: Row, attack: str) -> Flag | None:
    plan = row.plans[attack]
    steps = plan.get("steps", 0)
    if steps < FEWEST_STEPS or plan["judge"] != "every":
        return None
    breaks = [step for step in row.steps[attack] if step is not None]
    late = sum(10 * step > 9 * steps for step in breaks)  # query number s is what s steps led to
    if len(breaks) < FEWEST_BREAKS or late < LATE_BREAKS or late / len(breaks) < LATE_SHARE:
        return None
    why = f"{late} of {len(breaks)} breaks fall in the last tenth of {steps} steps"
    return Flag(NOT_CONVERGED, attack, why)
