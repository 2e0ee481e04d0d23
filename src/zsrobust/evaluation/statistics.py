"""Intervals: of one accuracy, of a mean over sets, of a paired difference.

All are 95%. They are conditional on these sets and, for one seed, on that training run: they say how far
another draw of images from the same sets would move the number, and nothing else.

The bootstrap resamples what was seen. Where every set's values are equal among themselves (all right, all
wrong; two models that never differ) each resample is the same, and the interval would be a point: certainty
from a few images. There, and only there, a bound for what was never seen stands in (`_without_spread`).

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

    Where no set has two different values, the interval is that of `_without_spread`; for sets of n samples
    each, k sets at 0% (or all at 100%) have Wilson's interval of 0 (or all) right of k n.

    Args:
        sets: one array a set, each of at least one sample, in a fixed order; values in [0, 1].
        seed: of the 10,000 draws.

    Raises:
        ValueError: for no sets, or one without samples.
    """
    return _mean_over_sets(sets, seed, lowest=0.0)


def _mean_over_sets(sets: Sequence[Values], seed: int, *, lowest: float) -> Interval:
    """Return the mean and its interval; no value can lie outside [lowest, 1]."""
    if not sets:
        raise ValueError("mean over no sets")
    if all(len(values) and (values == values[0]).all() for values in sets):
        return _without_spread(sets, lowest)
    draws = sum(_bootstrap_means(values, seed, i) for i, values in enumerate(sets)) / len(sets)
    value = float(np.mean([values.mean() for values in sets]))
    return _percentiles(value, np.asarray(draws), sum(len(values) for values in sets))


def paired_difference(first: Sequence[Values], second: Sequence[Values], seed: int = 0) -> Interval:
    """Return mean(second) - mean(first) over sets, by paired bootstrap over the same samples.

    Where no set has two different differences, the interval is that of `_without_spread`; two models that
    agree on all of k sets of n samples each have 0 +- w, w the upper end of Wilson's interval of 0 of k n.

    Args:
        first: one array a set.
        second: the same samples in the same order.
        seed: of the 10,000 draws.

    Raises:
        ValueError: if the two do not hold the same numbers of samples.
    """
    if [len(a) for a in first] != [len(b) for b in second]:
        raise ValueError("a paired difference needs the same samples on both sides")
    differences = [b - a for a, b in zip(first, second, strict=True)]
    return _mean_over_sets(differences, seed, lowest=-1.0)


def _without_spread(sets: Sequence[Values], lowest: float) -> Interval:
    """Return the mean of sets whose values are equal within each, with a bound for values never seen.

    Let set i of k, all of whose n_i samples have the value c_i, hold a share p_i of samples with other values.
    They move the mean up by at most sum p_i (1 - c_i) / k. Seeing none of them has the probability
    prod (1 - p_i)^n_i, about exp(-sum p_i n_i): what bounds sum p_i n_i bounds the mean, and it moves most
    where one set takes the whole sum, the one with the largest (1 - c_i) / (k n_i). So the end is the largest
    (1 - c_i) w(k n_i), w(n) = z^2 / (n + z^2) being the upper end of Wilson's interval of 0 of n. Downwards
    alike. Sets of one size count as if pooled, and a small one is not hidden behind larger ones.
    """
    value = float(np.mean([values[0] for values in sets]))
    wilsons = [_wilson(0, len(sets) * len(values)).high for values in sets]
    up = max((1.0 - values[0]) * end for values, end in zip(sets, wilsons, strict=True))
    down = max((values[0] - lowest) * end for values, end in zip(sets, wilsons, strict=True))
    samples = sum(len(values) for values in sets)
    return Interval(value, max(lowest, value - float(down)), min(1.0, value + float(up)), samples)


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
