"""A small network and its images, which the tests of single attacks share, and an attack run on them."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from zsrobust.attacks import Plan
from zsrobust.attacks.engine import Attack, Chunk, attack_chunks
from zsrobust.attacks.outcome import Outcome

CPU = torch.device("cpu")


def network(classes: int = 10) -> nn.Module:
    """A small seeded CNN on 12x12 images in float64, with logits spread enough to be worth attacking."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 5 * 5, classes)
    ).double()
    with torch.no_grad():
        net[-1].weight.mul_(4)
    return net


def samples(net: nn.Module, count: int):
    """Random images with the network's own labels, every seventh one wrong, and ids."""
    torch.manual_seed(1)
    images = torch.rand(count, 3, 12, 12, dtype=torch.float64)
    with torch.no_grad():
        logits = net(images)
    labels = logits.argmax(1)
    labels[::7] = (labels[::7] + 1) % logits.shape[1]
    return images, labels, [f"image {i}" for i in range(count)]


def attacked(
    net: nn.Module, attack: Attack, images, labels, ids, *, early_exit: bool = True, **options: Any
) -> dict[str, Outcome]:
    """Outcomes by id."""
    plan = Plan(attack, "every", early_exit, 1)
    found = attack_chunks(net, [Chunk(ids, images, labels)], plan, device=CPU, **options)
    return {outcome.id: outcome for outcome in found}
