"""CW-L2 and MI-FGSM beside foolbox's, an implementation by others; for tests alone."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from zsrobust.attacks import Outcome, Plan
from zsrobust.attacks.cw_l2 import CwL2
from zsrobust.attacks.engine import Attack, Chunk, attack_chunks
from zsrobust.attacks.mi_fgsm import MiFgsm
from zsrobust.threat import Threat

foolbox = pytest.importorskip("foolbox")

CPU = torch.device("cpu")
COUNT = 24


@pytest.fixture(scope="module")
def net() -> nn.Module:
    """A small seeded CNN on 12x12 images, with logits spread enough to be worth attacking."""
    torch.manual_seed(0)
    found = nn.Sequential(
        nn.Conv2d(3, 8, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 5 * 5, 10)
    ).eval()
    with torch.no_grad():
        found[-1].weight.mul_(4)
    return found


@pytest.fixture(scope="module")
def chunk(net: nn.Module) -> Chunk:
    """Images with the network's own labels."""
    torch.manual_seed(1)
    images = torch.rand(COUNT, 3, 12, 12)
    with torch.no_grad():
        labels = net(images).argmax(1)
    return Chunk([str(i) for i in range(COUNT)], images, labels)


def ours(net: nn.Module, chunk: Chunk, attack: Attack) -> list[Outcome]:
    """Outcomes with images, every step spent."""
    plan = Plan(attack, "every", early_exit=False, eot=1)
    found = attack_chunks(net, [chunk], plan, device=CPU, keep_images=True)
    return sorted(found, key=lambda outcome: int(outcome.id))


def test_cw_l2_finds_foolboxs_smallest_norms(net, chunk):
    """One sample a batch there, since it gives up by the sum over the batch; float32 in both."""
    settings = {"steps": 100, "binary_search_steps": 5, "stepsize": 0.02, "initial_const": 0.01}
    theirs = []
    model = foolbox.PyTorchModel(net, bounds=(0, 1), device="cpu")
    for image, label in zip(chunk.images, chunk.labels, strict=True):
        attack = foolbox.attacks.L2CarliniWagnerAttack(**settings, abort_early=False)
        found = attack.run(model, image[None], label[None])
        theirs.append(float((found - image).norm()))
    mine = CwL2(
        threat=Threat("l2", 5.0),
        steps=100,
        search_steps=5,
        step_size=0.02,
        initial_c=0.01,
        abort_early=False,
    )
    norms = [outcome.smallest for outcome in ours(net, chunk, mine)]
    assert all(norm is not None for norm in norms)
    assert norms == pytest.approx(theirs, rel=2e-3)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_mi_fgsm_without_momentum_makes_foolboxs_steps(net, chunk, norm):
    """The iterated fast gradient method: the same last iterate but for rounding."""
    eps = {"linf": 8 / 255, "l2": 0.5}[norm]
    kind = {
        "linf": foolbox.attacks.LinfMomentumIterativeFastGradientMethod,
        "l2": foolbox.attacks.L2MomentumIterativeFastGradientMethod,
    }[norm]
    model = foolbox.PyTorchModel(net, bounds=(0, 1), device="cpu")
    attack = kind(momentum=0.0, abs_stepsize=eps / 4, steps=6)
    theirs = attack.run(model, chunk.images, foolbox.Misclassification(chunk.labels), epsilon=eps)
    mine = MiFgsm(threat=Threat(norm, eps), steps=6, step_size=eps / 4, decay=0.0)
    images = torch.stack([o.image for o in ours(net, chunk, mine) if o.image is not None])
    near = (images - theirs).flatten(1).abs().amax(1) < 1e-5
    # A gradient of next to nothing has either sign: two samples may part at a pixel.
    assert int(near.sum()) >= COUNT - 2


def test_mi_fgsm_breaks_what_foolboxs_breaks(net, chunk):
    """It adds raw gradients up where the paper divides each by its length: a sample or two may differ."""
    eps = 2 / 255
    model = foolbox.PyTorchModel(net, bounds=(0, 1), device="cpu")
    attack = foolbox.attacks.LinfMomentumIterativeFastGradientMethod(
        momentum=1.0, abs_stepsize=eps / 10, steps=10
    )
    theirs = attack.run(model, chunk.images, foolbox.Misclassification(chunk.labels), epsilon=eps)
    with torch.no_grad():
        broken = (net(theirs).argmax(1) != chunk.labels).tolist()
    mine = [outcome.broken for outcome in ours(net, chunk, MiFgsm(threat=Threat("linf", eps)))]
    assert 3 < sum(broken) < COUNT - 3
    assert sum(a != b for a, b in zip(mine, broken, strict=True)) <= 1
