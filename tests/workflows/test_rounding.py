"""Rounding to 8 bits: never outside eps, and no further from nearest than eps demands."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from zsrobust.errors import UserError
from zsrobust.threat import Threat
from zsrobust.workflows.rounding import check_levels, round_within

THREATS = st.one_of(
    st.builds(Threat, st.just("linf"), st.floats(1 / 255, 1)),
    st.builds(Threat, st.just("linf"), st.integers(1, 255).map(lambda k: k / 255)),
    st.builds(Threat, st.just("l2"), st.floats(1 / 255, 6)),
)


def drawn(seed: int, kind: str, reach: float):
    """Two clean images of a kind, and points around them, rather outside the ball than inside."""
    torch.manual_seed(seed)
    clean = {
        "any": torch.randint(0, 256, (2, 3, 5, 4)),
        "black": torch.zeros(2, 3, 5, 4),
        "white": torch.full((2, 3, 5, 4), 255),
    }[kind].to(torch.uint8)
    points = clean / 255 + reach * 1.2 * (2 * torch.rand(2, 3, 5, 4) - 1)
    return clean, points.clamp(0, 1)


@settings(max_examples=150, deadline=None)
@given(THREATS, st.integers(0, 2**31), st.sampled_from(["any", "black", "white"]))
@example(Threat("linf", 226 / 255), 355, "white")  # half a level, in float32 and not in float64
def test_the_result_lies_in_the_ball(threat, seed, kind):
    """By the exact levels, for points in and out of the ball; linf in whole levels that eps holds."""
    clean, points = drawn(seed, kind, threat.eps)
    rounded = round_within(points, clean, threat)
    assert rounded.dtype == torch.uint8
    assert bool(threat.contains(rounded.double() / 255, clean.double() / 255).all())
    change = (rounded.int() - clean.int()).abs()
    if threat.norm == "linf":
        assert int(change.max()) <= threat.eps * 255 + 1e-6
        wanted = points.double() * 255
        near = (wanted.round() - clean.double()).abs() <= threat.eps * 255
        # Nearest; half a level may go either way.
        assert bool(((rounded.double() - wanted).abs()[near] <= 0.5 + 1e-9).all())
    else:
        # No number is further from the clean image than rounding to nearest would put it.
        farthest = (points.double() * 255 - clean.double()).abs().round()
        assert bool((change <= farthest).all())


@pytest.mark.parametrize(
    "eps", ["1/255", "4/255", "8/255", "16/255", "128/255", 0.0314, 8 / 255 - 1e-10]
)
def test_linf_keeps_every_level_that_eps_holds(eps):
    """An eps that rounding put a hair below its level keeps it; 0.0314 is eight levels and a little."""
    threat = Threat("linf", eps)
    levels = round(threat.eps * 255)
    clean = torch.full((1, 3, 2, 2), 128, dtype=torch.uint8)
    for sign in (-1, 1):
        moved = clean / 255 + sign * threat.eps
        moved = moved.clamp(0, 1)
        change = round_within(moved, clean, threat).int() - 128
        assert set(change.flatten().tolist()) == {max(-128, min(127, sign * levels))}


def test_l2_takes_back_as_few_as_it_can_beginning_with_the_least():
    """Against all choices of numbers to take back, on an image of eight numbers."""
    torch.manual_seed(0)
    clean = torch.full((1, 1, 2, 4), 100, dtype=torch.uint8)
    tried = 0
    for _ in range(40):
        away = 4 * torch.randn(1, 1, 2, 4, dtype=torch.float64)
        threat = Threat("l2", float(away.norm()) / 255)
        points = (100 + away) / 255
        change = round_within(points, clean, threat).double() - 100
        nearest, cut = away.round(), away.trunc()
        up = (nearest != cut).flatten().nonzero()[:, 0].tolist()
        fewest = next(
            count
            for count in range(len(up) + 1)
            if any(
                _length(nearest, cut, some) <= threat.eps * 255 + 1e-6
                for some in itertools.combinations(up, count)
            )
        )
        taken = [k for k in up if change.flatten()[k] == cut.flatten()[k]]
        rest = (away - cut).abs().flatten()
        assert all(rest[k] <= rest[other] for k in taken for other in set(up) - set(taken))
        assert len(taken) >= fewest
        if taken:
            tried += 1
            one_less = sorted(taken, key=lambda k: float(rest[k]))[:-1]
            assert _length(nearest, cut, one_less) > threat.eps * 255
    assert tried > 5


def _length(nearest: torch.Tensor, cut: torch.Tensor, back: tuple[int, ...] | list[int]) -> float:
    mixed = nearest.flatten().clone()
    mixed[list(back)] = cut.flatten()[list(back)]
    return float(mixed.norm())


def test_an_image_of_8_bits_in_the_ball_stays_as_it_is():
    """Nothing is lost twice."""
    torch.manual_seed(0)
    clean = torch.randint(0, 256, (4, 3, 6, 6)).to(torch.uint8)
    moved = (clean.int() + torch.randint(-3, 4, clean.shape)).clamp(0, 255).to(torch.uint8)
    for threat in (Threat("linf", 3 / 255), Threat("l2", 1.0)):
        assert torch.equal(round_within(moved / 255, clean, threat), moved)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_an_eps_below_one_level_is_refused(norm):
    check_levels(Threat(norm, "1/255"))
    for eps in (0.0, 0.9 / 255):
        with pytest.raises(
            UserError, match=r"less than one of the 255 levels .* give 1/255 or more"
        ):
            check_levels(Threat(norm, eps))
