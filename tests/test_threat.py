"""The threat: reading eps, projection, membership."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from zsrobust.errors import UserError
from zsrobust.threat import Threat, format_eps, parse_eps

norms = st.sampled_from(["linf", "l2"])
radii = st.floats(0.0, 1.0)


@st.composite
def pairs(draw):
    """Clean images in [0, 1] (often all 0 or all 1) and points anywhere near them."""
    seed = draw(st.integers(0, 2**31))
    generator = torch.Generator().manual_seed(seed)
    kind = draw(st.sampled_from(["random", "zeros", "ones"]))
    clean = {
        "random": torch.rand(3, 3, 4, 5, generator=generator),
        "zeros": torch.zeros(3, 3, 4, 5),
        "ones": torch.ones(3, 3, 4, 5),
    }[kind]
    spread = draw(st.sampled_from([0.01, 1.0, 100.0]))
    return clean, clean + spread * torch.randn(3, 3, 4, 5, generator=generator)


@given(pairs(), norms, radii)
@settings(max_examples=200, deadline=None)
def test_projection_lies_in_ball_and_box(pair, norm, eps):
    """What is projected is in the threat set, also by an independent measure."""
    clean, images = pair
    threat = Threat(norm, eps)
    projected = threat.project(images, clean)
    assert bool(threat.contains(projected, clean).all())
    assert projected.min() >= 0
    assert projected.max() <= 1
    delta = (projected.double() - clean.double()).flatten(1)
    length = delta.abs().amax(1) if norm == "linf" else delta.pow(2).sum(1).sqrt()
    assert bool((length <= eps * (1 + 1e-6) + 1e-6).all())


@given(pairs(), norms, radii)
@settings(max_examples=100, deadline=None)
def test_projection_is_idempotent(pair, norm, eps):
    """Projecting twice is projecting once, to 1e-6."""
    clean, images = pair
    threat = Threat(norm, eps)
    once = threat.project(images, clean)
    assert torch.allclose(threat.project(once, clean), once, atol=1e-6, rtol=0)


def test_what_lies_inside_is_not_moved():
    """A point of ball and box is its own projection."""
    clean = torch.full((1, 3, 2, 2), 0.5)
    images = clean + 0.01
    for norm in ("linf", "l2"):
        assert torch.equal(Threat(norm, 0.1).project(images, clean), images)


def test_membership_is_exact_to_its_slack():
    """2e-6 beyond eps is outside, half an ulp is not."""
    clean = torch.full((1, 1, 1, 1), 0.5)
    threat = Threat("linf", 0.1)
    assert bool(threat.contains(clean + 0.1, clean))
    assert not bool(threat.contains(clean + 0.1 + 2e-6, clean))
    assert not bool(threat.contains(torch.full((1, 1, 1, 1), 1.0001), torch.ones(1, 1, 1, 1)))


def test_steepest_of_a_zero_gradient_is_zero():
    """sign(0) is 0 and an l2 step of a zero gradient is zero, not NaN (traps 22)."""
    zero = torch.zeros(2, 3, 2, 2)
    for norm in ("linf", "l2"):
        assert torch.equal(Threat(norm, 0.1).steepest(zero), zero)


@pytest.mark.parametrize(("text", "value"), [("8/255", 8 / 255), ("0.0314", 0.0314), (0.5, 0.5)])
def test_eps_is_read_as_a_fraction_or_a_number(text, value):
    """eps is in [0, 1]-pixel units."""
    assert parse_eps(text) == pytest.approx(value, abs=1e-12)


def test_a_linf_eps_above_one_asks_whether_it_was_meant_in_levels():
    """8 is refused with the question; an l2 eps of 3 is ordinary (traps 1)."""
    with pytest.raises(UserError, match=r"did you mean 8/255\?"):
        parse_eps("8")
    assert parse_eps("3.0", "l2") == 3.0
    with pytest.raises(UserError, match="did you mean 8/255"):
        Threat("linf", 8)


@pytest.mark.parametrize("text", ["eight", "1/0", "-0.1", "nan", "inf"])
def test_what_is_no_radius_is_refused(text):
    """A mistake names what was given."""
    with pytest.raises(UserError, match="eps"):
        parse_eps(text)


def test_eps_is_shown_as_people_write_it():
    """Whole levels as k/255, other numbers with four digits."""
    assert format_eps(2 / 255) == "2/255"
    assert format_eps(0.05) == "0.05"
    assert format_eps(3.0) == "3"


def test_unknown_norm_is_refused_with_the_nearest():
    """did you mean."""
    with pytest.raises(UserError, match="did you mean 'linf'"):
        Threat("lin", 0.1)


@pytest.mark.parametrize("tail", [0.0, 1.5])
def test_l2_projection_stays_inside_at_full_size(tail):
    """At 336 px a float32 norm errs by more than membership forgives: last iterates would not be judged."""
    generator = torch.Generator().manual_seed(0)
    shape = (2, 3, 336, 336)
    clean = 0.3 + 0.4 * torch.rand(shape, generator=generator)
    spread = torch.exp(tail * torch.randn(shape, generator=generator))
    direction = torch.randn(shape, generator=generator) * spread
    for eps in (0.5, 1.0, 3.0):
        threat = Threat("l2", eps)
        stepped = clean + 2 * eps * threat.steepest(direction)
        assert bool(threat.contains(threat.project(stepped, clean), clean).all())
