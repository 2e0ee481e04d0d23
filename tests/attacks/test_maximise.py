"""The training adversary: any loss of a batch, last iterate, input-only gradients."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from zsrobust.attacks.pgd import frozen, maximise
from zsrobust.threat import Threat

THREAT = Threat("linf", 2 / 255)


def test_two_steps_of_size_eps_by_hand():
    """x' = clip(clip(x + start + eps sign g0) + eps sign g1), the last iterate, with the gradients of then."""
    torch.manual_seed(0)
    w = torch.randn(3 * 4 * 4, 3)
    x = torch.rand(5, 3, 4, 4)
    start = (torch.rand_like(x) * 2 - 1) * THREAT.eps

    def loss(images):
        return (images.flatten(1) @ w).pow(2).sum(1)

    found = maximise(loss, x, THREAT, steps=2, step_size=THREAT.eps, start=start)
    a = (x + start).clamp(x - THREAT.eps, x + THREAT.eps).clamp(0, 1)
    for _ in range(2):
        a = a.requires_grad_()
        (g,) = torch.autograd.grad(loss(a).sum(), a)
        a = (a.detach() + THREAT.eps * g.sign()).clamp(x - THREAT.eps, x + THREAT.eps).clamp(0, 1)
    assert torch.equal(found, a)
    assert bool(THREAT.contains(found, x).all())


def test_no_steps_return_the_start_and_no_start_the_image():
    """steps = 0 is noise alone; start None begins clean."""
    x = torch.rand(2, 3, 4, 4)
    start = torch.full_like(x, 1.0)
    assert torch.equal(
        maximise(lambda i: i.sum((1, 2, 3)), x, THREAT, steps=0, step_size=1.0, start=start),
        THREAT.project(x + start, x),
    )
    assert torch.equal(
        maximise(lambda i: i.sum((1, 2, 3)), x, THREAT, steps=0, step_size=1.0, start=None), x
    )


def test_a_sum_over_samples_makes_the_step_independent_of_the_batch():
    """The same perturbation alone and in company, linf and l2 (traps 23)."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(48, 8), nn.Tanh(), nn.Linear(8, 4)).double()
    x = torch.rand(6, 3, 4, 4, dtype=torch.float64)
    y = torch.arange(6) % 4
    for threat in (THREAT, Threat("l2", 0.3)):

        def attack(images, labels, threat=threat):
            def loss(z):
                return nn.functional.cross_entropy(net(z), labels, reduction="none")

            return maximise(loss, images, threat, steps=3, step_size=threat.eps / 2, start=None)

        together = attack(x, y)
        alone = torch.cat([attack(x[i : i + 1], y[i : i + 1]) for i in range(6)])
        assert torch.allclose(together, alone, atol=1e-12, rtol=0)
        assert not torch.equal(together, x)


def test_momentum_renormalises_the_direction_after_each_accumulation():
    """FARE's adversary: v <- sign(mu v + sign g), two steps by hand (facts: successors 3.1)."""
    x = torch.full((1, 1, 1, 3), 0.5, dtype=torch.float64)
    gradients = iter([torch.tensor([1.0, -1.0, 1.0]), torch.tensor([-1.0, -1.0, 0.0])])

    def loss(images):
        return (images * next(gradients).double().reshape(1, 1, 1, 3)).sum((1, 2, 3))

    found = maximise(
        loss, x, Threat("linf", 0.1), steps=2, step_size=0.01, start=None, momentum=0.9
    )
    # first: v = (1, -1, 1); second: sign(0.9 (1, -1, 1) + (-1, -1, 0)) = (-1, -1, 1)
    assert (found - x).flatten().tolist() == pytest.approx([0.0, -0.02, 0.02])


def test_a_broken_gradient_is_an_error():
    """It must not pass for robustness."""
    x = torch.zeros(1, 3, 2, 2)
    with pytest.raises(FloatingPointError, match="not finite"):
        maximise(lambda i: i.sqrt().sum((1, 2, 3)), x, THREAT, steps=1, step_size=0.1, start=None)


def test_frozen_takes_and_gives_back_what_moves():
    """Only what required a gradient before requires one after; none is left behind (traps 11)."""
    net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    net[0].weight.requires_grad_(False)
    before = [p.requires_grad for p in net.parameters()]

    def fail():
        with frozen(net):
            assert not any(p.requires_grad for p in net.parameters())
            raise RuntimeError("inside")

    with pytest.raises(RuntimeError, match="inside"):
        fail()
    assert [p.requires_grad for p in net.parameters()] == before
    assert all(p.grad is None for p in net.parameters())
