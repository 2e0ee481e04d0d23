"""FGSM: one step of length eps, by hand and in closed form."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from zsrobust.attacks import robust_accuracy
from zsrobust.attacks.fgsm import Fgsm
from zsrobust.threat import Threat

from . import golden
from .toys import attacked, network, samples

LINF, L2 = Threat("linf", 4 / 255), Threat("l2", 0.25)
BOTH = pytest.mark.parametrize("threat", [LINF, L2], ids=lambda threat: threat.norm)


@BOTH
def test_it_is_one_step_along_the_gradient(threat):
    """clean + eps sign(g), clean + eps g / |g|, clipped to [0, 1]; two queries, broken at the second."""
    net = network()
    images, labels, ids = samples(net, 40)
    found = attacked(net, Fgsm(threat=threat), images, labels, ids, keep_images=True, slots=7)
    x = images.clone().requires_grad_()
    (g,) = torch.autograd.grad(nn.functional.cross_entropy(net(x), labels, reduction="sum"), x)
    length = g.flatten(1).norm(dim=1)[:, None, None, None]
    step = g.sign() if threat.norm == "linf" else g / length
    stepped = (images + threat.eps * step).clamp(0, 1)
    with torch.no_grad():
        clean, wrong = net(images).argmax(1) == labels, net(stepped).argmax(1) != labels
    for i, name in enumerate(ids):
        o = found[name]
        assert o.clean_correct == bool(clean[i])
        if not o.clean_correct:
            continue
        assert o.broken == bool(wrong[i])
        assert o.queries == 2
        assert o.step == (1 if o.broken else None)
        assert torch.allclose(o.image, stepped[i], atol=1e-12)
    assert 1 < sum(o.broken for o in found.values()) < 34


@BOTH
def test_a_linear_model_is_broken_exactly_where_the_closed_form_says(threat):
    """Two classes: one step reaches the end of the ball in the best direction."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(3 * 4 * 4, 2)).double()
    images = 0.4 + 0.2 * torch.rand(100, 3, 4, 4, dtype=torch.float64)
    with torch.no_grad():
        labels = net(images).argmax(1)
        w = net[1].weight[1] - net[1].weight[0]
        margins = (labels.double() * 2 - 1) * (
            images.flatten(1) @ w + net[1].bias[1] - net[1].bias[0]
        )
        dual = float(w.abs().sum() if threat.norm == "linf" else w.norm())
    ordered = (margins / dual).sort().values
    eps = float(ordered[49:51].mean())  # half of them can be broken, none is on the edge
    ids = [str(i) for i in range(100)]
    found = attacked(net, Fgsm(threat=Threat(threat.norm, eps)), images, labels, ids)
    assert [found[name].broken for name in ids] == (margins < eps * dual).tolist()
    assert sum(o.broken for o in found.values()) == 50


@BOTH
@pytest.mark.parametrize("classes", [2, 3, 10])
def test_outcomes_do_not_depend_on_slots_or_order_in_float64(threat, classes):
    """Equal for 1, 7 and 64 slots and shuffled ids, also with few classes."""
    net = network(classes)
    images, labels, ids = samples(net, 40)

    def outcomes(order: list[int], slots: int):
        index = torch.tensor(order)
        names = [ids[i] for i in order]
        attack = Fgsm(threat=threat)
        found = attacked(net, attack, images[index], labels[index], names, slots=slots)
        return {o.id: (o.broken, o.step, o.queries, round(o.margin, 9)) for o in found.values()}

    plain = list(range(40))
    expected = outcomes(plain, 64)
    assert 1 < sum(row[0] for row in expected.values()) < 34
    shuffled = np.random.default_rng(0).permutation(40).tolist()
    assert outcomes(plain, 1) == expected
    assert outcomes(plain, 7) == expected
    assert outcomes(shuffled, 7) == expected


@pytest.mark.parametrize("value", [0.0, 1.0])
@BOTH
def test_black_and_white_images_stay_in_ball_and_box(threat, value):
    """In float32, and they move."""
    net = network().float()
    images = torch.full((4, 3, 12, 12), value)
    labels = net(images).argmax(1)
    ids = [str(i) for i in range(4)]
    found = attacked(net, Fgsm(threat=threat), images, labels, ids, keep_images=True)
    for image, o in zip(images, found.values(), strict=True):
        assert bool(threat.contains(o.image[None], image[None]))
        assert not torch.equal(o.image, image)


@BOTH
def test_a_zero_gradient_leaves_the_image_and_eps_zero_breaks_nothing(threat):
    """No NaN, no break."""
    blind = nn.Sequential(nn.Flatten(), nn.Linear(432, 4)).double()
    nn.init.zeros_(blind[1].weight)
    images, _, ids = samples(network(), 8)
    labels = blind(images).argmax(1)
    found = attacked(blind, Fgsm(threat=threat), images, labels, ids, keep_images=True)
    assert all(o.robust for o in found.values())
    assert all(torch.equal(found[n].image, i) for n, i in zip(ids, images, strict=True))
    net = network()
    images, labels, ids = samples(net, 20)
    found = attacked(net, Fgsm(threat=Threat(threat.norm, 0.0)), images, labels, ids)
    assert not any(o.broken for o in found.values())


@pytest.mark.skipif(golden.folder() is None, reason="ZSROBUST_GOLDEN names no folder")
def test_on_a_golden_network_it_is_weaker_than_autoattack_and_not_idle():
    """cnn-robust, linf: it breaks no more than AutoAttack's standard run does, and at least half of that."""
    case = golden.CASES["cnn-robust_Linf_8-255"]
    images, labels, ids = golden.images(case)
    rows = golden.reference(case)
    found = attacked(golden.network(case.network), Fgsm(threat=case.threat), images, labels, ids)
    accuracy = robust_accuracy([found[name] for name in ids])
    runs = [row["attacks"]["standard"]["0"] for row in rows if row["clean_correct"]]
    strongest = sum(not run["broken"] for run in runs) / len(rows)
    assert strongest <= accuracy <= (strongest + len(runs) / len(rows)) / 2
