"""MI-FGSM: closed forms, and the paper's algorithm written as a plain loop."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from zsrobust.attacks import robust_accuracy
from zsrobust.attacks.mi_fgsm import MiFgsm
from zsrobust.errors import UserError
from zsrobust.threat import Threat

from . import golden
from .toys import attacked, network, samples

LINF, L2 = Threat("linf", 4 / 255), Threat("l2", 0.25)
BOTH = pytest.mark.parametrize("threat", [LINF, L2], ids=lambda threat: threat.norm)


def algorithm_1(net: nn.Module, attack: MiFgsm, image, label: int):
    """One sample, as the paper writes it, clipped to the ball and [0, 1]: every iterate, the clean image first."""
    eps, norm = attack.threat.eps, attack.threat.norm
    step = eps / attack.steps if attack.step_size is None else attack.step_size
    iterates, g = [image], torch.zeros_like(image)
    for _ in range(attack.steps):
        x = iterates[-1].clone().requires_grad_()
        loss = nn.functional.cross_entropy(net(x[None]), torch.tensor([label]))
        (gradient,) = torch.autograd.grad(loss, x)
        g = attack.decay * g + gradient / gradient.abs().sum()
        if norm == "linf":
            new = (iterates[-1] + step * g.sign()).clamp(image - eps, image + eps)
        else:
            new = iterates[-1] + step * g / g.norm()
            new = image + (new - image) * min(1.0, eps / float((new - image).norm()))
        iterates.append(new.clamp(0, 1))
    return iterates


@pytest.mark.parametrize(
    "options",
    [{}, {"decay": 0.0}, {"decay": 0.5, "steps": 5}, {"step_size": 0.02, "steps": 12}],
    ids=["default", "no momentum", "half", "long steps"],
)
@BOTH
def test_it_equals_the_papers_algorithm(threat, options):
    """Which iterate breaks a sample, and the last one, sample by sample."""
    net = network()
    images, labels, ids = samples(net, 24)
    attack = MiFgsm(threat=threat, **options)
    found = attacked(net, attack, images, labels, ids, slots=5)
    whole = attacked(net, attack, images, labels, ids, slots=5, early_exit=False, keep_images=True)
    broken = 0
    for image, label, name in zip(images, labels.tolist(), ids, strict=True):
        if not found[name].clean_correct:
            continue
        iterates = torch.stack(algorithm_1(net, attack, image, label))
        with torch.no_grad():
            wrong = (net(iterates).argmax(1) != label).nonzero()[:, 0].tolist()
        assert found[name].step == (wrong[0] if wrong else None)
        assert whole[name].queries == attack.steps + 1
        assert torch.allclose(whole[name].image, iterates[-1], atol=1e-9)
        broken += bool(wrong)
    assert 2 < broken < 20


@BOTH
def test_a_linear_model_is_broken_exactly_where_the_closed_form_says(threat):
    """Two classes: w.x + b - eps |w|_dual < 0 is the whole truth away from the box."""
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
    found = attacked(net, MiFgsm(threat=Threat(threat.norm, eps)), images, labels, ids)
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
        attack = MiFgsm(threat=threat)
        found = attacked(net, attack, images[index], labels[index], names, slots=slots)
        return {
            o.id: (o.broken, o.step, o.step_within, o.queries, round(o.margin, 9))
            for o in found.values()
        }

    plain = list(range(40))
    expected = outcomes(plain, 64)
    assert 1 < sum(row[0] for row in expected.values()) < 34
    shuffled = np.random.default_rng(0).permutation(40).tolist()
    assert outcomes(plain, 1) == expected
    assert outcomes(plain, 7) == expected
    assert outcomes(shuffled, 7) == expected


def test_momentum_goes_on_where_the_gradient_turns():
    """With decay 1 two equal gradients outweigh a third one against them; without momentum it turns."""
    images = torch.full((1, 3, 2, 2), 0.5, dtype=torch.float64)
    signs = [1.0, 1.0, -1.0]
    for decay, expected in ((1.0, 0.53), (0.0, 0.51)):
        attack = MiFgsm(threat=Threat("linf", 0.1), steps=3, step_size=0.01, decay=decay)
        state = attack.init(images, torch.zeros(1).long(), torch.zeros(1, 2), torch.zeros(1).long())
        for sign, length in zip(signs, (1.0, 5.0, 100.0), strict=True):
            state, done = attack.update(state, torch.zeros(1, 2), sign * length * images)
        assert float(state["images"].max()) == pytest.approx(expected)
        assert not bool(done)


@pytest.mark.parametrize("value", [0.0, 1.0])
@BOTH
def test_black_and_white_images_stay_in_ball_and_box(threat, value):
    """Every iterate, in float32, with steps that would leave the ball."""
    net = network().float()
    images = torch.full((4, 3, 12, 12), value)
    attack = MiFgsm(threat=threat, step_size=0.3, steps=5)
    labels = net(images).argmax(1)
    ids = [str(i) for i in range(4)]
    found = attacked(net, attack, images, labels, ids, early_exit=False, keep_images=True)
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
    found = attacked(blind, MiFgsm(threat=threat), images, labels, ids, keep_images=True)
    assert all(o.robust for o in found.values())
    assert all(torch.equal(found[n].image, i) for n, i in zip(ids, images, strict=True))
    net = network()
    still = MiFgsm(threat=Threat(threat.norm, 0.0))
    images, labels, ids = samples(net, 20)
    found = attacked(net, still, images, labels, ids)
    assert not any(o.broken for o in found.values())


def test_the_default_step_is_the_papers():
    """eps / steps, so that the default reaches the edge of the ball and no further."""
    assert MiFgsm(threat=LINF).step == pytest.approx(0.4 / 255)
    assert MiFgsm(threat=LINF).settings()["step_size"] == MiFgsm(threat=LINF).step


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "steps must be >= 1, got 0"),
        ({"step_size": 0.0}, "the step size must be > 0, got 0.0"),
        ({"step_size": math.nan}, "the step size must be > 0, got nan"),
        ({"decay": -0.1}, "decay must be a finite number >= 0, got -0.1"),
    ],
)
def test_mistakes_are_one_line(options, message):
    """They name what was given and what is allowed."""
    with pytest.raises(UserError, match=message) as caught:
        MiFgsm(threat=LINF, **options)
    assert "\n" not in str(caught.value)


def test_settings_differ_where_queries_differ():
    """Every option moves the key of a cell."""
    options = [{}, {"steps": 20}, {"step_size": 0.1}, {"decay": 0.5}]
    settings = [MiFgsm(threat=LINF, **given).settings() for given in options]
    assert all(a != b for i, a in enumerate(settings) for b in settings[:i])


@pytest.mark.skipif(golden.folder() is None, reason="ZSROBUST_GOLDEN names no folder")
def test_on_a_golden_network_it_lies_between_clean_and_autoattack():
    """cnn-robust, linf: no stronger than AutoAttack's standard run, within 6 points of PGD with 10 steps."""
    case = golden.CASES["cnn-robust_Linf_8-255"]
    images, labels, ids = golden.images(case)
    rows = golden.reference(case)
    attack = MiFgsm(threat=case.threat)
    found = attacked(golden.network(case.network), attack, images, labels, ids)
    accuracy = robust_accuracy([found[name] for name in ids])

    def share(name: str) -> float:
        runs = [row["attacks"][name]["0"] for row in rows if row["clean_correct"]]
        return sum(not run["broken"] for run in runs) / len(rows)

    assert share("standard") <= accuracy <= share("pgd10") + 0.06
