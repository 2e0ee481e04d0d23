"""What is known of one sample after one attack."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(slots=True)
class Outcome:
    """One sample under one attack, or under a sequence of attacks.

    A sample that the model gets wrong unattacked is a clean mistake: it is never attacked, `broken` stays
    False, and it is not `robust`.
    """

    id: str
    """The sample's stable id."""
    label: int
    """Index of the true class."""
    clean_correct: bool
    """Whether the model is right on the clean image, under the duplicates rule asked for."""
    clean_margin: float
    """Logit of the true class (its text group) minus the largest other one, on the clean image."""
    broken: bool = False
    """Whether a judged query inside the threat set was misclassified."""
    by: str | None = None
    """Name of the attack that broke it; null if none did."""
    step: int | None = None
    """Number of the query that broke it, from 0, counted over all targets and restarts; null if none did."""
    step_within: int | None = None
    """The same, counted within its target or restart."""
    queries: int = 0
    """Queries spent on the sample, over all attacks of a sequence."""
    margin: float = float("inf")
    """Smallest margin on any judged query inside the threat set; the clean margin if there was none."""
    distance: float = 0.0
    """Distance from the clean image, in the threat's norm, of the query with that margin."""
    smallest: float | None = None
    """Smallest distance of any misclassified query, inside the ball or not; minimum-norm attacks alone."""
    image: Tensor | None = None
    """(3, H, W) in [0, 1], only where asked for:
    the query that broke the sample where it left at once (early exit), else the attack's `final`."""

    @property
    def robust(self) -> bool:
        """Right on the clean image and not broken (traps 28)."""
        return self.clean_correct and not self.broken


def robust_accuracy(outcomes: list[Outcome]) -> float:
    """Return the share of all samples that stayed right; clean mistakes count as broken.

    Raises:
        ValueError: for no outcomes, since the accuracy of nothing is not zero.
    """
    if not outcomes:
        raise ValueError("robust_accuracy of no samples: pass at least one outcome.")
    return sum(outcome.robust for outcome in outcomes) / len(outcomes)
