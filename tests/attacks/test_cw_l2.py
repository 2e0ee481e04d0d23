"""CW-L2: closed forms, the original's loop written out with autograd and torch's Adam, the golden networks."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from zsrobust.attacks.cw_l2 import CwL2
from zsrobust.errors import UserError
from zsrobust.threat import Threat

from . import golden
from .toys import attacked, network, samples

L2 = Threat("l2", 0.25)


def original(net: nn.Module, attack: CwL2, image, label: int) -> tuple[float, int, list[float]]:
    """One sample, as the original's code goes: smallest norm of a success, queries, the constants tried."""
    centre = torch.atanh((2 * image - 1) * 0.999999)
    start = (centre.tanh() + 1) / 2
    c, lower, upper = attack.initial_c, 0.0, math.inf
    smallest, queries, tried = math.inf, 0, []
    for search in range(attack.search_steps):
        if search == attack.search_steps - 1 and attack.search_steps >= 10:
            c = min(upper, 1e10)
        tried.append(c)
        moved = torch.zeros_like(image, requires_grad=True)
        adam = torch.optim.Adam([moved], lr=attack.step_size)
        found, before = False, math.inf
        for step in range(attack.steps):
            x = ((centre + moved).tanh() + 1) / 2
            z = net(x[None])[0]
            margin = z[label] - torch.cat([z[:label], z[label + 1 :]]).max()
            loss = (x - start).square().sum() + c * (margin + attack.kappa).clamp(min=0)
            adam.zero_grad()
            loss.backward()
            adam.step()
            queries += 1
            if attack.abort_early and step % max(attack.steps // 10, 1) == 0:
                if loss.item() > 0.9999 * before:
                    break
                before = loss.item()
            if margin.item() + attack.kappa < 0:
                found = True
                smallest = min(smallest, float((x.detach() - image).norm()))
        if found:
            upper = c
        else:
            lower = c
        c = 10 * c if math.isinf(upper) else (lower + upper) / 2
    return smallest, queries, tried


@pytest.mark.parametrize(
    "options",
    [
        {"steps": 40, "initial_c": 0.1, "search_steps": 5},
        {"steps": 40, "initial_c": 0.01, "search_steps": 4, "abort_early": False},
        {"steps": 25, "initial_c": 1.0, "search_steps": 11},
        {"steps": 40, "initial_c": 0.1, "search_steps": 4, "kappa": 0.05},
    ],
    ids=["plain", "no abort", "repeated", "kappa"],
)
def test_it_equals_the_original(options):
    """Smallest norms, queries spent and with them every constant and every early end, sample by sample."""
    net = network()
    images, labels, ids = samples(net, 9)
    attack = CwL2(threat=L2, **options)
    found = attacked(net, attack, images, labels, ids, early_exit=False, keep_images=True, slots=4)
    constants = set()
    for image, label, name in zip(images, labels.tolist(), ids, strict=True):
        o = found[name]
        if not o.clean_correct:
            continue
        smallest, queries, tried = original(net, attack, image, label)
        assert o.queries == queries
        if math.isfinite(smallest):
            # What is handed over is the nearest success.
            assert float((o.image - image).norm()) == pytest.approx(smallest, rel=1e-6)
            assert o.smallest is not None
            assert o.smallest <= smallest * (1 + 1e-6)
            if attack.kappa == 0 and not attack.abort_early:
                assert o.smallest == pytest.approx(smallest, rel=1e-6)
        constants.add(tuple(tried))
    assert len(constants) > 1


@pytest.mark.parametrize("classes", [2, 3])
def test_the_smallest_norm_of_a_linear_model_is_the_closed_form(classes):
    """min over k of margin_k / |w_y - w_k|_2, away from the box; broken are those of at most eps."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(3 * 4 * 4, classes)).double()
    images = 0.45 + 0.1 * torch.rand(24, 3, 4, 4, dtype=torch.float64)
    with torch.no_grad():
        z = net(images)
        labels = z.argmax(1)
        weight = net[1].weight
        lengths = (weight[labels][:, None] - weight[None]).norm(dim=2)  # (N, K)
        closest = (z.gather(1, labels[:, None]) - z) / lengths.clamp_min(1e-9)
        closest[torch.arange(24), labels] = torch.inf
        closest = closest.amin(1)
    eps = float(closest.median())
    attack = CwL2(threat=Threat("l2", eps), steps=300, initial_c=0.1)
    ids = [str(i) for i in range(24)]
    found = attacked(net, attack, images, labels, ids, early_exit=False)
    for name, distance in zip(ids, closest.tolist(), strict=True):
        assert found[name].smallest is not None
        assert distance * (1 - 1e-6) <= found[name].smallest <= 1.02 * distance
        if not 0.98 < distance / eps < 1.001:
            assert found[name].broken == (distance < eps)
    assert 8 < sum(o.broken for o in found.values()) < 16


@pytest.mark.parametrize("classes", [2, 3, 10])
def test_outcomes_do_not_depend_on_slots_or_order_in_float64(classes):
    """Equal for 1, 7 and 64 slots and shuffled ids: each sample gives up and searches for itself."""
    net = network(classes)
    attack = CwL2(threat=L2, steps=20, search_steps=3, initial_c=0.3, step_size=0.02)
    images, labels, ids = samples(net, 20)

    def outcomes(order: list[int], slots: int):
        index = torch.tensor(order)
        names = [ids[i] for i in order]
        found = attacked(net, attack, images[index], labels[index], names, slots=slots)
        return {
            o.id: (o.broken, o.step, o.step_within, o.queries, o.smallest and round(o.smallest, 8))
            for o in found.values()
        }

    plain = list(range(20))
    expected = outcomes(plain, 64)
    assert 1 < sum(row[0] for row in expected.values()) < 17
    shuffled = np.random.default_rng(0).permutation(20).tolist()
    assert outcomes(plain, 1) == expected
    assert outcomes(plain, 7) == expected
    assert outcomes(shuffled, 7) == expected


def test_steps_are_counted_within_a_search_step():
    """The record's step is of all queries, step_within of those with one constant."""
    net = network()
    images, labels, ids = samples(net, 20)
    attack = CwL2(threat=L2, steps=20, search_steps=4, initial_c=0.03, abort_early=False)
    found = attacked(net, attack, images, labels, ids)
    broken = [o for o in found.values() if o.broken]
    assert any(o.step > 20 for o in broken)
    assert all(o.step_within == o.step % 20 for o in broken)
    assert {o.queries for o in found.values() if o.robust} == {80}


def test_early_exit_changes_no_outcome():
    """What is broken with early exit is broken without, at the same query."""
    net = network()
    images, labels, ids = samples(net, 20)
    attack = CwL2(threat=L2, steps=20, search_steps=4, initial_c=0.1)
    early = attacked(net, attack, images, labels, ids)
    late = attacked(net, attack, images, labels, ids, early_exit=False)
    assert {n: o.step for n, o in early.items()} == {n: o.step for n, o in late.items()}
    assert all(late[n].smallest <= o.smallest for n, o in early.items() if o.broken)


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_black_and_white_images_stay_in_the_box(value):
    """tanh is flat there, so long steps; every query is finite and in [0, 1], in float32."""
    net = network().float()
    images = torch.full((4, 3, 12, 12), value)
    with torch.no_grad():
        labels = net(images).argmax(1)
    attack = CwL2(threat=L2, steps=30, search_steps=3, initial_c=10.0, step_size=0.3)
    with torch.no_grad():
        state = attack.init(images, labels, net(images), torch.arange(4))
    moved = False
    for _ in range(90):
        query = attack.query(state).detach().requires_grad_()
        assert bool(((query >= 0) & (query <= 1)).all())
        logits = net(query)
        (grad,) = torch.autograd.grad(attack.loss(state, logits).sum(), query)
        moved |= bool(((query - images).abs() > 1e-3).any())
        state, _ = attack.update(state, logits.detach(), grad)
    assert bool(torch.isfinite(state["moved"]).all())
    assert moved


def test_a_zero_gradient_gives_no_nan_and_breaks_nothing():
    """Also after c has grown a thousandfold; what is handed over is the image itself, or nearly."""
    blind = nn.Sequential(nn.Flatten(), nn.Linear(432, 4)).double()
    nn.init.zeros_(blind[1].weight)
    nn.init.constant_(blind[1].bias, 0.0)
    blind[1].bias.data[1] = 1.0
    images, _, ids = samples(network(), 4)
    labels = torch.ones(4, dtype=torch.int64)
    attack = CwL2(threat=L2, steps=10, search_steps=4)
    found = attacked(blind, attack, images, labels, ids, keep_images=True)
    assert all(o.robust and o.smallest is None for o in found.values())
    for image, name in zip(images, ids, strict=True):
        assert torch.allclose(found[name].image, image, atol=1e-6)


def test_eps_zero_breaks_nothing():
    """The smallest norms are found all the same."""
    net = network()
    images, labels, ids = samples(net, 10)
    attack = CwL2(threat=Threat("l2", 0.0), steps=20, search_steps=2, initial_c=1.0)
    found = attacked(net, attack, images, labels, ids)
    assert not any(o.broken for o in found.values())
    assert any(o.smallest for o in found.values())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threat": Threat("linf", 0.01)}, "defined for l2 alone, got linf"),
        ({"steps": 0}, "steps must be >= 1, got 0"),
        ({"search_steps": 0}, "search_steps must be >= 1, got 0"),
        ({"step_size": 0.0}, "step_size must be a finite number > 0, got 0.0"),
        ({"initial_c": -1.0}, "initial_c must be a finite number > 0, got -1.0"),
        ({"kappa": -1.0}, "kappa must be a finite number >= 0, got -1.0"),
        ({"kappa": math.nan}, "kappa must be a finite number >= 0, got nan"),
    ],
)
def test_mistakes_are_one_line(options, message):
    """They name what was given and what is allowed."""
    with pytest.raises(UserError, match=message) as caught:
        CwL2(**{"threat": L2, **options})
    assert "\n" not in str(caught.value)


def test_settings_differ_where_queries_differ():
    """Every option moves the key of a cell."""
    options = [
        {},
        {"steps": 100},
        {"search_steps": 5},
        {"step_size": 0.1},
        {"initial_c": 1.0},
        {"kappa": 1.0},
        {"abort_early": False},
    ]
    settings = [CwL2(threat=L2, **given).settings() for given in options]
    assert all(a != b for i, a in enumerate(settings) for b in settings[:i])


@pytest.mark.skipif(golden.folder() is None, reason="ZSROBUST_GOLDEN names no folder")
def test_its_smallest_norms_come_near_fabs():
    """cnn-plain, l2: both attacks look for the same number; 12 images, a tenth of the default's queries."""
    case = golden.CASES["cnn-plain_L2_0.3"]
    images, labels, ids = golden.images(case, 12)
    rows = {row["id"]: row for row in golden.reference(case)}
    attack = CwL2(threat=case.threat, steps=150, search_steps=6, initial_c=0.1)
    net = golden.network(case.network)
    found = attacked(net, attack, images, labels, ids, early_exit=False)
    ratios = []
    for name, o in found.items():
        assert o.clean_correct == rows[name]["clean_correct"]
        if o.clean_correct:
            norm = rows[name]["attacks"]["fab"]["0"]["min_norm"]
            ratios.append(o.smallest / norm)
            if abs(norm / case.threat.eps - 1) > 0.1:
                assert o.broken == rows[name]["attacks"]["fab"]["0"]["broken"]
    assert len(ratios) >= 5
    # Where the boundary is nearer than one step of Adam, Carlini and Wagner's attack stays behind.
    assert min(ratios) > 0.95
    assert np.median(ratios) < 1.05
