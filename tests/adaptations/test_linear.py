"""The linear head: where it starts, and that a probe is the one optimum of its loss."""

from __future__ import annotations

import math

import pytest
import torch

from zsrobust.adaptations.linear import PROBE_L2, LinearHead, probe_loss
from zsrobust.errors import UserError


def numbers(head: LinearHead) -> torch.Tensor:
    """Weights and biases in one tensor (K, D + 1)."""
    return torch.cat([head.weight, head.bias[:, None]], dim=1).detach()


def clouds(
    classes: int = 3, apart: float = 1.0, samples: int = 90
) -> tuple[torch.Tensor, torch.Tensor]:
    """Overlapping clouds of points with features of very different size and offset."""
    draw = torch.Generator().manual_seed(0)
    labels = torch.arange(samples) % classes
    centres = apart * torch.randn(classes, 4, generator=draw)
    points = centres[labels] + torch.randn(samples, 4, generator=draw)
    return points * torch.tensor([1.0, 30.0, 0.01, 5.0]) + torch.tensor([0, 100, 3, -7]), labels


def test_random_start_is_pytorchs_and_depends_on_the_seed_alone():
    """Uniform in +-1 / sqrt(D), weights and biases; the global stream is neither read nor moved."""
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = LinearHead.random(50, 64, seed=3)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    again, other = LinearHead.random(50, 64, seed=3), LinearHead.random(50, 64, seed=4)
    assert torch.equal(numbers(first), numbers(again))
    assert not torch.equal(numbers(first), numbers(other))

    linear = torch.nn.Linear(64, 50)
    assert (first.weight.shape, first.bias.shape) == (linear.weight.shape, linear.bias.shape)
    bound = 1 / math.sqrt(64)
    drawn = numbers(first).double() / bound
    assert 0.99 < float(drawn.abs().max()) <= 1
    assert float(linear.weight.detach().abs().max()) == pytest.approx(bound, rel=0.01)
    # Mean and variance of a uniform in [-1, 1], to four standard errors of 3,250 draws.
    assert abs(float(drawn.mean())) < 4 * math.sqrt(1 / 3 / 3250)
    assert abs(float(drawn.square().mean()) - 1 / 3) < 4 * math.sqrt(4 / 45 / 3250)
    assert len(drawn.unique(dim=0)) == 50


def test_forward_is_a_linear_layer_on_the_features_as_they_are():
    head = LinearHead.random(3, 4, seed=0)
    features = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    slow = [
        [
            sum(w * f for w, f in zip(row, sample, strict=True)) + b
            for row, b in zip(head.weight.tolist(), head.bias.tolist(), strict=True)
        ]
        for sample in features.tolist()
    ]
    torch.testing.assert_close(head(features), torch.tensor(slow))


def slow_value(theta: torch.Tensor, features: torch.Tensor, labels: torch.Tensor, l2: float):
    """Mean cross-entropy + l2 / 2 |theta|^2 of standardised features, by autograd's own means."""
    x = features.double()
    x = (x - x.mean(0)) / x.std(0, correction=0)
    logits = x @ theta[:, :-1].T + theta[:, -1]
    return torch.nn.functional.cross_entropy(logits, labels) + l2 / 2 * theta.square().sum()


def test_probe_loss_and_its_closed_gradient_are_those_of_the_formula():
    features, labels = clouds()
    draw = torch.Generator().manual_seed(1)
    theta = torch.randn(3, 5, generator=draw, dtype=torch.float64, requires_grad=True)
    expected = slow_value(theta, features, labels, 0.1)
    (slope,) = torch.autograd.grad(expected, theta)
    x = features.double()
    standard = (x - x.mean(0)) / x.std(0, correction=0)
    value, gradient = probe_loss(standard, labels, 3, 0.1)(theta.detach())
    torch.testing.assert_close(value, expected.detach(), rtol=1e-12, atol=0)
    torch.testing.assert_close(gradient, slope, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("apart", [0.5, 20.0], ids=["overlapping", "separable"])
def test_a_probe_reaches_the_optimum(apart):
    """The gradient there is 0, which is enough, since the loss is strictly convex; also of separable classes."""
    features, labels = clouds(apart=apart)
    head = LinearHead.probe(features, labels, 3)
    x = features.double()
    deviation = x.std(0, correction=0)
    theta = torch.cat(
        [
            head.weight.double() * deviation,
            (head.bias.double() + head.weight.double() @ x.mean(0))[:, None],
        ],
        dim=1,
    ).detach()
    at_zero = torch.zeros_like(theta).requires_grad_()
    (start,) = torch.autograd.grad(slow_value(at_zero, features, labels, PROBE_L2), at_zero)
    theta.requires_grad_()
    (slope,) = torch.autograd.grad(slow_value(theta, features, labels, PROBE_L2), theta)
    # What is left is the tolerance and the rounding of the head to float32.
    assert float(slope.abs().max()) < 1e-5
    assert float(start.abs().max()) > 0.1

    accuracy = float((head(features).argmax(1) == labels).float().mean())
    assert accuracy == 1.0 if apart > 1 else 0.4 < accuracy < 1.0
    assert head.weight.dtype == torch.float32


def test_a_probe_agrees_with_newtons_method():
    """Two classes, by twenty Newton steps on the same loss: the same probabilities."""
    features, labels = clouds(classes=2)
    x = features.double()
    x = (x - x.mean(0)) / x.std(0, correction=0)

    def value(flat: torch.Tensor) -> torch.Tensor:
        return slow_value(flat.reshape(2, 5), features, labels, PROBE_L2)

    flat = torch.zeros(10, dtype=torch.float64)
    for _ in range(20):
        slope = torch.autograd.functional.jacobian(value, flat)
        curvature = torch.autograd.functional.hessian(value, flat)
        flat = flat - torch.linalg.solve(curvature, slope)
    expected = (x @ flat.reshape(2, 5)[:, :-1].T + flat.reshape(2, 5)[:, -1]).softmax(1)
    found = LinearHead.probe(features, labels, 2)(features).softmax(1).double()
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-4)


def test_a_probe_draws_nothing_and_does_not_care_for_blocks(monkeypatch):
    """Twice the same bits, whatever the global stream; in blocks of seven samples the same optimum."""
    from zsrobust.adaptations import linear

    features, labels = clouds()
    torch.manual_seed(1)
    first = numbers(LinearHead.probe(features, labels, 3))
    torch.manual_seed(2)
    assert torch.equal(first, numbers(LinearHead.probe(features, labels, 3)))
    monkeypatch.setattr(linear, "_ROWS", 7)
    blocks = numbers(LinearHead.probe(features, labels, 3))
    torch.testing.assert_close(blocks, first, rtol=1e-3, atol=1e-4)


def test_a_class_without_a_sample_and_a_constant_feature_leave_the_probe_finite():
    """The bias of the empty class is held by the penalty; it is never predicted."""
    features, labels = clouds(apart=20.0)
    constant = torch.cat([features, torch.full((len(features), 1), 0.1)], dim=1)
    head = LinearHead.probe(constant, labels, 4)
    assert bool(torch.isfinite(numbers(head)).all())
    assert float(head.weight.detach()[:, 4].abs().max()) < 1e-6
    assert (head(constant).argmax(1) == labels).all()


def test_what_cannot_be_a_head_is_refused():
    with pytest.raises(UserError, match="two classes or more, the source has 1"):
        LinearHead.random(1, 4, seed=0)
    features, labels = clouds()
    features[3, 1] = math.nan
    with pytest.raises(FloatingPointError, match="not finite"):
        LinearHead.probe(features, labels, 3)
