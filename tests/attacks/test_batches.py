"""What no attack may depend on: how samples are batched, in which order they come, how many classes there are."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from zsrobust import attacks
from zsrobust.attacks import Outcome
from zsrobust.attacks.names import ATTACKS, ENSEMBLES
from zsrobust.threat import Norm

SHORT = {
    "pgd": "pgd-6",
    "cw-margin": "cw-margin-6:restarts=2",
    "mi-fgsm": "mi-fgsm-5",
    "apgd-ce": "apgd-ce-12:restarts=2",
    "apgd-dlr": "apgd-dlr-12",
    "apgd-t": "apgd-t-8:targets=3",
    "fab": "fab-8",
    "fab-t": "fab-t-8:targets=3:restarts=2",
    "square": "square-60",
    "cw-l2": "cw-l2-20:search_steps=5:step=0.05",
}
"""Every attack that takes a number, with few of them; the others as they are."""
NAMES = [SHORT.get(name, name) for name in ATTACKS]


def net(classes: int, dtype: torch.dtype = torch.float64) -> nn.Module:
    """A small convolutional network on 8 px images."""
    torch.manual_seed(classes)
    return (
        nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1),
            nn.Tanh(),
            nn.AvgPool2d(2),
            nn.Flatten(),
            nn.Linear(8 * 16, classes),
        )
        .to(dtype)
        .eval()
    )


def samples(
    model: nn.Module, count: int, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor]:
    """Images of noise with the model's own labels; every seventh has another."""
    images = torch.rand(count, 3, 8, 8, generator=torch.Generator().manual_seed(5)).to(dtype)
    labels = model(images).argmax(1)
    classes = int(model[-1].out_features)  # type: ignore[union-attr, index, arg-type]
    labels[::7] = (labels[::7] + 1) % classes
    return images, labels


def eps_of(name: str) -> tuple[Norm, float]:
    """Return norm and a radius at which some samples are broken and some are not."""
    if name.startswith("cw-l2"):
        return "l2", 0.3
    return "linf", 0.03 if name.startswith("square") else 0.012


def found(
    model: nn.Module, images: Tensor, labels: Tensor, name: str, order: list[int], slots: int
) -> dict[str, Outcome]:
    norm, eps = eps_of(name)
    outcomes = attacks.run(
        model,
        images[order],
        labels[order],
        attack=name,
        norm=norm,
        eps=eps,
        ids=[f"sample {i}" for i in order],
        slots=slots,
    )
    return {outcome.id: outcome for outcome in outcomes}


@pytest.mark.parametrize("name", NAMES)
def test_outcomes_do_not_depend_on_batches_or_order_in_float64(name):
    """Slots of 1, 7 and 64, in order and shuffled: broken and step are the same, sample by sample."""
    model = net(5)
    images, labels = samples(model, 42)
    order = list(range(42))
    first = found(model, images, labels, name, order, 64)
    broken = sum(outcome.broken for outcome in first.values())
    assert 0 < broken < sum(outcome.clean_correct for outcome in first.values())
    order = torch.randperm(42, generator=torch.Generator().manual_seed(1)).tolist()
    for slots in (1, 7, 64):
        again = found(model, images, labels, name, order, slots)
        for key, outcome in first.items():
            assert (again[key].broken, again[key].step) == (outcome.broken, outcome.step), key


@pytest.mark.parametrize("name", NAMES)
def test_in_float32_hardly_a_sample_depends_on_them(name):
    """At most 1% of 400 samples are broken in one way of batching and not in the other."""
    model = net(5, torch.float32)
    images, labels = samples(model, 400, torch.float32)
    order = list(range(400))
    first = found(model, images, labels, name, order, 64)
    order = torch.randperm(400, generator=torch.Generator().manual_seed(2)).tolist()
    again = found(model, images, labels, name, order, 7)
    assert sum(first[key].broken != again[key].broken for key in first) <= 4


@pytest.mark.parametrize("groups", [None, "equal texts"])
@pytest.mark.parametrize("classes", [2, 3, 4, 1000])
@pytest.mark.parametrize("name", [*NAMES, *ENSEMBLES])
def test_every_attack_and_ensemble_takes_every_model(name, classes, groups):
    """Two classes, three, a thousand, and with a twin for the first: no exception, and all is decided."""
    if name.startswith("fab-8") and classes > 10:
        pytest.skip("untargeted FAB takes a gradient a class and says so")
    model = net(classes)
    images, labels = samples(model, 6)
    # A radius at which next to nothing survives: what does costs an ensemble thousands of queries.
    norm, eps = ("l2", 2.0) if name.startswith("cw-l2") else ("linf", 0.3)
    texts = None
    if groups is not None:
        texts = [0, *range(classes - 1)] if classes > 2 else [0, 1]
    outcomes = attacks.run(model, images, labels, attack=name, norm=norm, eps=eps, groups=texts)
    assert len(outcomes) == 6
    assert any(outcome.broken for outcome in outcomes) or classes == 2
