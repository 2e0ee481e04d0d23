"""Intervals: of one accuracy, of a mean over sets, of a paired difference.

All are 95%. They are conditional on these sets and, for one seed, on that training run: they say how far
another draw of images from the same sets would move the number, and nothing else.

Values are one number a sample: 1 right, 0 wrong (several seeds: the mean over them).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float64]

DRAWS = 10_000
LEVEL = 0.95


@dataclass(frozen=True, slots=True)
class Interval:
    """A number with its 95% interval, all in [-1, 1]."""

    value: float
    low: float
    high: float
    samples: int

    def row(self) -> dict[str, Any]:
        """Return the numbers as JSON."""
        return {
            "value": self.value,
            "low": self.low,
            "high": self.high,
            "samples": self.samples,
        }


def wilson(values: Values) -> Interval:
    """Return an accuracy with Wilson's score interval.

    Args:
        values: (n,) of 0 and 1, n >= 1.

    Raises:
        ValueError: for no samples, since the accuracy of nothing is not zero; for other values.
    """
    if len(values) == 0:
        raise ValueError("accuracy of no samples")
    if not np.isin(values, (0.0, 1.0)).all():
        raise ValueError("Wilson's interval is one of 0 and 1 alone; use mean_over_sets")
    return _wilson(round(float(values.sum())), len(values))


@lru_cache(maxsize=4096)  # one number is asked for by the table, its flags and its plots
def _wilson(right: int, count: int) -> Interval:
    from scipy.stats import binomtest

    ends = binomtest(right, count).proportion_ci(LEVEL, method="wilson")
    return Interval(right / count, float(ends.low), float(ends.high), count)


def mean_over_sets(sets: Sequence[Values], seed: int = 0) -> Interval:
    """Return the unweighted mean over sets; interval by bootstrap over samples within sets.

    Args:
        sets: one array a set, each of at least one sample, in a fixed order.
        seed: of the 10,000 draws.

    Raises:
        ValueError: for no sets, or one without samples.
    """
    if not sets:
        raise ValueError("mean over no sets")
    draws = sum(_bootstrap_means(values, seed, i) for i, values in enumerate(sets)) / len(sets)
    value = float(np.mean([values.mean() for values in sets]))
    return _percentiles(value, np.asarray(draws), sum(len(values) for values in sets))


def paired_difference(first: Sequence[Values], second: Sequence[Values], seed: int = 0) -> Interval:
    """Return mean(second) - mean(first) over sets, by paired bootstrap over the same samples.

    Args:
        first: one array a set.
        second: the same samples in the same order.
        seed: of the 10,000 draws.

    Raises:
        ValueError: if the two do not hold the same numbers of samples.
    """
    if [len(a) for a in first] != [len(b) for b in second]:
        raise ValueError("a paired difference needs the same samples on both sides")
    return mean_over_sets([b - a for a, b in zip(first, second, strict=True)], seed)


def _bootstrap_means(values: Values, seed: int, stream: int) -> Values:
    """Return the means of 10,000 resamples of `values`.

    Resampling n values with replacement is a multinomial draw over the distinct values, so each draw
    costs as many numbers as there are distinct values (two or three), not n.
    """
    if len(values) == 0:
        raise ValueError("bootstrap of no samples")
    rng = np.random.default_rng([seed, stream])
    distinct, counts = np.unique(values, return_counts=True)
    picked = rng.multinomial(len(values), counts / len(values), size=DRAWS)
    return np.asarray(picked @ distinct / len(values), dtype=np.float64)


def _percentiles(value: float, draws: Values, samples: int) -> Interval:
    tail = 100 * (1 - LEVEL) / 2
    low, high = np.percentile(draws, [tail, 100 - tail])
    return Interval(value, float(low), float(high), samples)
