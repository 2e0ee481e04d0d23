"""Intervals: against closed formulas, a plain resampling loop, and their own promise of 95%."""

from __future__ import annotations

import math

import numpy as np
import pytest

from zsrobust.evaluation import statistics
from zsrobust.evaluation.statistics import mean_over_sets, paired_difference, wilson

Z = 1.959963984540054  # the 97.5% point of the normal distribution


def binary(right: int, count: int) -> np.ndarray:
    """The first `right` of `count` samples right."""
    return (np.arange(count) < right).astype(np.float64)


@pytest.mark.parametrize(
    ("right", "count"), [(0, 1), (1, 1), (0, 40), (40, 40), (7, 40), (199, 400)]
)
def test_wilson_is_the_closed_formula(right, count):
    """(p + z^2/2n +- z sqrt(p(1-p)/n + z^2/4n^2)) / (1 + z^2/n)."""
    p = right / count
    centre = (p + Z**2 / (2 * count)) / (1 + Z**2 / count)
    half = Z * math.sqrt(p * (1 - p) / count + Z**2 / (4 * count**2)) / (1 + Z**2 / count)
    found = wilson(binary(right, count))
    assert found.value == p
    assert found.samples == count
    assert found.low == pytest.approx(max(centre - half, 0), abs=1e-12)
    assert found.high == pytest.approx(min(centre + half, 1), abs=1e-12)


def test_wilson_refuses_what_is_no_share_of_samples():
    """Nothing is not 0%, and averages over seeds have no binomial interval."""
    with pytest.raises(ValueError, match="no samples"):
        wilson(np.zeros(0))
    with pytest.raises(ValueError, match="0 and 1"):
        wilson(np.array([0.5, 1.0, 0.0]))


# Values as they come: of one seed, of three seeds averaged, and a difference of two models.
VALUES = {
    "one seed": binary(30, 80),
    "three seeds averaged": np.repeat([0.0, 1 / 3, 2 / 3, 1.0], [20, 12, 8, 40]),
    "a difference": np.repeat([-1.0, 0.0, 1.0], [6, 50, 24]),
}


@pytest.mark.parametrize("values", VALUES.values(), ids=VALUES.keys())
def test_the_bootstrap_draws_what_a_resampling_loop_draws(values):
    """Multinomial over distinct values = picking n samples with replacement: one distribution."""
    drawn = statistics._bootstrap_means(values, 0, 0)
    rng = np.random.default_rng(123)
    loop = np.array([rng.choice(values, len(values)).mean() for _ in range(10_000)])
    assert len(drawn) == 10_000
    # Two samples of 10,000 from one distribution lie further apart than this once in a hundred times.
    points = np.union1d(drawn, loop)
    below = [np.searchsorted(np.sort(x), points + 1e-9) / 10_000 for x in (drawn, loop)]
    assert np.abs(below[0] - below[1]).max() < 1.63 * math.sqrt(2 / 10_000)
    shares = [2.5, 50, 97.5]
    step = 1 / len(values)  # the means lie on a grid, their quantiles move by whole steps
    assert np.abs(np.percentile(drawn, shares) - np.percentile(loop, shares)).max() < 1.01 * step
    spread = values.std() / math.sqrt(len(values))
    assert drawn.mean() == pytest.approx(values.mean(), abs=0.05 * spread)
    assert drawn.std() == pytest.approx(spread, rel=0.04)


def test_the_interval_of_a_mean_is_close_to_the_normal_one():
    """Unweighted mean over sets: variances of the sets' means add, divided by the number of sets squared."""
    sets = [binary(150, 400), binary(30, 100), VALUES["three seeds averaged"]]
    found = mean_over_sets(sets)
    error = math.sqrt(sum(v.var() / len(v) for v in sets)) / 3
    assert found.value == pytest.approx(np.mean([150 / 400, 30 / 100, sets[2].mean()]))
    assert found.samples == 580
    assert found.low == pytest.approx(found.value - Z * error, abs=0.1 * error)
    assert found.high == pytest.approx(found.value + Z * error, abs=0.1 * error)


def test_the_mean_counts_each_set_once_however_large():
    """Macro, not pooled (traps 49): 100% of 10 and 0% of 1000 is 50%."""
    assert mean_over_sets([np.ones(10), np.zeros(1000)]).value == 0.5


def test_several_seeds_averaged_are_what_the_mean_is_made_of():
    """Per sample the mean over seeds, then the same bootstrap: narrower than any one seed's interval."""
    rng = np.random.default_rng(0)
    seeds = (rng.random((3, 300)) < 0.5).astype(np.float64)
    averaged = mean_over_sets([seeds.mean(axis=0)])
    assert averaged.value == pytest.approx(seeds.mean())
    single = [mean_over_sets([one]) for one in seeds]
    assert averaged.high - averaged.low < min(one.high - one.low for one in single)


def test_two_models_that_never_differ_may_differ_on_other_samples():
    """The difference is exactly nothing; the bound is Wilson's for 0 of so many, on both sides."""
    values = binary(31, 77)
    found = paired_difference([values], [values.copy()])
    end = Z**2 / (77 + Z**2)
    assert (found.value, found.samples) == (0.0, 77)
    assert (found.low, found.high) == pytest.approx((-end, end), abs=1e-12)
    two = paired_difference([values, binary(3, 77)], [values.copy(), binary(3, 77)])
    assert two.high == -two.low == pytest.approx(wilson(np.zeros(154)).high, abs=1e-12)


@pytest.mark.parametrize("right", [0, 1])
@pytest.mark.parametrize("count", [1, 20, 200])
def test_all_wrong_or_all_right_is_no_certainty(right, count):
    """One set, or several of one size: Wilson's interval of all their samples."""
    for sets in (1, 5):
        found = mean_over_sets([np.full(count, float(right))] * sets)
        pooled = wilson(np.full(sets * count, float(right)))
        assert found.value == right
        assert (found.low, found.high) == pytest.approx((pooled.low, pooled.high), abs=1e-12)


def test_without_spread_the_smallest_set_decides():
    """A mean over sets counts a set of ten as much as one of a thousand: the thousand do not vouch for the ten."""
    found = mean_over_sets([np.zeros(1000), np.zeros(10)])
    assert found.high == wilson(np.zeros(20)).high > wilson(np.zeros(1010)).high
    # Truth: 0.05 in the small set shows itself in ten samples less often than not; its mean lies within.
    assert 0.95**10 > 0.5
    assert found.low <= 0.05 / 2 <= found.high


def test_sets_without_spread_at_other_values():
    """0% and 100%: each can move one way. A difference of 1 in all can only shrink, by 2 at most a sample."""
    found = mean_over_sets([np.zeros(50), np.ones(50)])
    end = wilson(np.zeros(100)).high
    assert (found.value, found.low, found.high) == pytest.approx((0.5, 0.5 - end, 0.5 + end))
    third = mean_over_sets([np.full(100, 1 / 3)])  # three seeds that agree on every sample
    assert (third.low, third.high) == pytest.approx((1 / 3 - end / 3, 1 / 3 + 2 * end / 3))
    won = paired_difference([np.zeros(100)], [np.ones(100)])
    assert (won.value, won.low, won.high) == pytest.approx((1.0, 1.0 - 2 * end, 1.0))


def test_one_sample_that_differs_brings_the_bootstrap_back():
    """The design's interval wherever resampling shows anything."""
    values = [binary(1, 50), np.zeros(50)]
    draws = sum(statistics._bootstrap_means(v, 0, i) for i, v in enumerate(values)) / 2
    found = mean_over_sets(values)
    assert (found.low, found.high) == pytest.approx(tuple(np.percentile(draws, [2.5, 97.5])))


def test_the_bound_covers_the_truth_where_nothing_was_seen():
    """Whatever shares two sets hide: seeing none of them is rare where the mean lies beyond the bound."""
    small, large = 10, 40
    end = mean_over_sets([np.zeros(small), np.zeros(large)]).high
    for share in np.linspace(
        0, 1, 101
    ):  # how much of a mean just beyond the bound lies in the small set
        p, q = 2 * end * share, 2 * end * (1 - share)
        if max(p, q) <= 1:
            assert (1 - p) ** small * (1 - q) ** large < 0.05


def test_a_paired_difference_is_second_minus_first_and_uses_the_pairs():
    """Two models that differ on 8 of 100 samples: far narrower than two independent intervals would say."""
    first = binary(50, 100)
    second = first.copy()
    second[50:58] = 1.0
    found = paired_difference([first], [second])
    assert found.value == pytest.approx(0.08)
    error = math.sqrt(0.08 * 0.92 / 100)
    assert found.high - found.low == pytest.approx(2 * Z * error, rel=0.1)
    assert found.high - found.low < 0.5 * 2 * Z * math.sqrt(2 * 0.25 / 100)
    back = paired_difference([second], [first])
    assert back.value == -found.value
    assert back.low == pytest.approx(-found.high, abs=0.011)  # by one sample at most


def test_pairs_of_unequal_length_are_refused():
    """A difference needs the same samples."""
    with pytest.raises(ValueError, match="same samples"):
        paired_difference([np.ones(3)], [np.ones(4)])
    with pytest.raises(ValueError, match="same samples"):
        paired_difference([np.ones(3)], [np.ones(3), np.ones(3)])


def test_no_samples_raise():
    """The mean of nothing is not zero."""
    with pytest.raises(ValueError, match="no sets"):
        mean_over_sets([])
    with pytest.raises(ValueError, match="no samples"):
        mean_over_sets([np.ones(3), np.zeros(0)])
    with pytest.raises(ValueError, match="no samples"):
        paired_difference([np.zeros(0)], [np.zeros(0)])


def test_the_same_numbers_give_the_same_interval():
    """Seeded; another seed moves the ends a little and the value not at all."""
    sets = [binary(150, 400), binary(30, 100)]
    assert mean_over_sets(sets) == mean_over_sets([values.copy() for values in sets])
    other = mean_over_sets(sets, seed=1)
    assert other.value == mean_over_sets(sets).value
    assert other != mean_over_sets(sets)
    assert other.low == pytest.approx(mean_over_sets(sets).low, abs=0.005)


def test_order_of_the_samples_does_not_matter():
    """The bootstrap sees values, not positions."""
    values = VALUES["three seeds averaged"]
    shuffled = np.random.default_rng(0).permutation(values)
    found, again = mean_over_sets([values]), mean_over_sets([shuffled])
    assert (found.low, found.high) == (again.low, again.high)
    assert found.value == pytest.approx(again.value)


def test_equal_sets_are_resampled_independently():
    """Each set has its own stream of draws: two copies make the mean's interval narrower by sqrt(2)."""
    values = binary(100, 200)
    one, two = mean_over_sets([values]), mean_over_sets([values, values])
    ratio = (one.high - one.low) / (two.high - two.low)
    assert ratio == pytest.approx(math.sqrt(2), rel=0.05)


def test_intervals_cover_the_truth_as_often_as_they_say():
    """300 worlds: accuracy, mean over sets, and paired difference hold the truth in about 95% of them."""
    rng = np.random.default_rng(7)
    worlds = 300
    covered = dict.fromkeys(["accuracy", "mean", "difference"], 0)
    for world in range(worlds):
        # Second minus first is +0.1 in truth: 15% of the samples are won, 5% lost.
        first, second = [], []
        for size, rate in ((80, 0.4), (150, 0.7)):
            a = (rng.random(size) < rate).astype(np.float64)
            u = rng.random(size)
            b = np.where(a == 1, (u >= 0.05 / rate), (u < 0.15 / (1 - rate))).astype(np.float64)
            first.append(a)
            second.append(b)
        found = wilson(first[0])
        covered["accuracy"] += found.low <= 0.4 <= found.high
        found = mean_over_sets(first, seed=world)
        covered["mean"] += found.low <= 0.55 <= found.high
        found = paired_difference(first, second, seed=world)
        covered["difference"] += found.low <= 0.1 <= found.high
    # 95% of 300 with three standard errors (1.3 points each) and the bootstrap's small-sample bias.
    assert all(0.90 <= count / worlds <= 0.99 for count in covered.values()), covered


def test_an_interval_goes_into_json_as_plain_numbers():
    """No numpy scalars: json would refuse them."""
    row = mean_over_sets([binary(3, 10)]).row()
    assert set(row) == {"value", "low", "high", "samples"}
    assert all(type(value) in (int, float) for value in row.values())
    assert all(type(value) in (int, float) for value in wilson(binary(3, 10)).row().values())
