"""What makes the engine cheaper: a screen in low precision, and batches of one size for a compiled model."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from zsrobust import attacks
from zsrobust.attacks import Outcome
from zsrobust.attacks.engine import Chunk, attack_chunks
from zsrobust.errors import UserError
from zsrobust.threat import Threat

CPU = torch.device("cpu")
NAMES = ["pgd-5", "apgd-ce-5", "apgd-t-5", "fab-t-5", "square-20", "autoattack-fare"]


class Net(nn.Module):
    """A smooth network in any precision; counts the rows that it was given."""

    def __init__(self, dtype: torch.dtype, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(108, 24), nn.Tanh(), nn.Linear(24, 5)).to(
            dtype
        )
        self.dtype = dtype
        self.sizes: list[int] = []

    def forward(self, images: Tensor) -> Tensor:
        self.sizes.append(len(images))
        return self.body(images.to(self.dtype)).double()


@pytest.fixture
def samples() -> Chunk:
    """Forty images in float64, one of them mislabelled."""
    images = torch.rand(
        40, 3, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1)
    )
    labels = Net(torch.float64)(images).argmax(1)
    labels[3] = (labels[3] + 1) % 5
    return Chunk([str(i) for i in range(40)], images, labels)


def found(model: nn.Module, chunk: Chunk, name: str, eps: float, **options) -> dict[str, Outcome]:
    plan = attacks.plan(name, Threat("linf", eps), 5)
    return {o.id: o for o in attack_chunks(model, [chunk], plan, device=CPU, slots=8, **options)}


@pytest.mark.parametrize("name", NAMES)
def test_a_screen_only_adds_to_what_is_broken(samples, name):
    """In float64, with a copy in bf16: every sample broken without it is broken with it; every hit stands."""
    model, rough = Net(torch.float64), Net(torch.bfloat16)
    eps = 0.2 if name.startswith("square") else 0.05
    without = found(model, samples, name, eps)
    screened = found(model, samples, name, eps, screen=rough, keep_images=True)
    assert sum(o.broken for o in without.values()) > 3
    assert rough.sizes
    for key, outcome in without.items():
        assert screened[key].clean_correct == outcome.clean_correct
        assert screened[key].broken >= outcome.broken
    for outcome in screened.values():
        if outcome.broken:
            assert outcome.image is not None
            assert int(model(outcome.image[None]).argmax()) != outcome.label
            assert outcome.margin < 0


def test_a_screens_false_hits_are_attacked_in_full(samples):
    """A copy that is always wrong: its hits fall, and the model's own attack finds what it finds alone."""

    class Backwards(Net):
        def forward(self, images: Tensor) -> Tensor:
            return -super().forward(images)

    model = Net(torch.float64)
    without = found(model, samples, "apgd-ce-5", 0.05)
    screened = found(model, samples, "apgd-ce-5", 0.05, screen=Backwards(torch.float64))
    for key, outcome in without.items():
        if not screened[key].broken or outcome.broken:
            assert (screened[key].broken, screened[key].step) == (outcome.broken, outcome.step)
        assert screened[key].queries >= outcome.queries


def test_a_screen_saves_the_models_own_forwards(samples):
    """What the copy finds costs the model one look each."""
    model = Net(torch.float64)
    found(model, samples, "pgd-5", 0.2)
    alone = sum(model.sizes)
    model.sizes.clear()
    found(model, samples, "pgd-5", 0.2, screen=Net(torch.bfloat16))
    assert sum(model.sizes) < alone


def test_a_screen_wants_an_early_exit(samples):
    """What it finds leaves at once; that and the worst margin of all steps exclude each other."""
    with pytest.raises(UserError, match="has no early exit, a screen goes with one"):
        found(
            Net(torch.float64), samples, "pgd-5:early_exit=false", 0.05, screen=Net(torch.float64)
        )


@pytest.mark.parametrize("name", NAMES)
def test_padded_batches_have_one_size_and_the_same_outcomes(samples, name):
    """Also the first look at a small chunk; outcomes are those without, exactly in float64."""
    model = Net(torch.float64)
    plain = found(model, samples, name, 0.05)
    model.sizes.clear()
    few = [
        Chunk(samples.ids[i : i + 6], samples.images[i : i + 6], samples.labels[i : i + 6])
        for i in range(0, 40, 6)
    ]
    plan = attacks.plan(name, Threat("linf", 0.05), 5)
    padded = {o.id: o for o in attack_chunks(model, few, plan, device=CPU, slots=8, pad=True)}
    assert set(model.sizes) == {8}
    for key, outcome in plain.items():
        assert (padded[key].broken, padded[key].step) == (outcome.broken, outcome.step)
