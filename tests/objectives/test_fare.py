"""FARE against its formula, with the three tests that its description states (successors 3.1)."""

from __future__ import annotations

import copy

import pytest
import torch

from zsrobust.attacks.pgd import frozen, maximise
from zsrobust.models import load_clip
from zsrobust.objectives import objective_class
from zsrobust.objectives.fare import Fare, original_encoder, squared_distances
from zsrobust.randomness import ball_start, sample_keys
from zsrobust.threat import Threat
from zsrobust.training.step import Learner


@pytest.fixture
def objective(encode) -> Fare:
    """Of an encoder that has moved since: the original has other weights."""
    original = copy.deepcopy(encode).requires_grad_(False)
    original.weights += 0.1
    return Fare(original)


def test_losses_match_the_formula(objective, encode, batch, moved):
    """Summed over dimensions, features as they are, against the original's clean features."""
    batch = objective.prepare(batch, encode)
    found = objective.losses(encode, moved, batch)
    expected = [
        sum((a - b) ** 2 for a, b in zip(f, g, strict=True))
        for f, g in zip(
            encode(moved).tolist(), objective.original(batch.images).tolist(), strict=True
        )
    ]
    assert found.tolist() == pytest.approx(expected, rel=1e-10)
    assert torch.equal(found, objective.attack_losses(encode, moved, batch))


def test_the_loss_is_exactly_zero_where_nothing_moved(encode, batch):
    """At e = e0 and x' = x."""
    objective = Fare(copy.deepcopy(encode).requires_grad_(False))
    batch = objective.prepare(batch, encode)
    assert torch.equal(
        objective.losses(encode, batch.images, batch), torch.zeros(6, dtype=torch.float64)
    )


def test_only_a_random_start_moves_the_adversary(encode, batch):
    """At e = e0 the gradient at the clean image is zero: from there no step moves; from noise it does."""
    objective = Fare(copy.deepcopy(encode).requires_grad_(False))
    learner, threat = Learner(encode, objective), Threat("linf", 0.05)
    batch = objective.prepare(batch, encode)
    keys = sample_keys(0, "train/0", batch.ids)
    noise = ball_start(keys, torch.zeros_like(keys), batch.images, "linf", 0.05)
    found = {}
    with frozen(learner):
        for name, start in (("clean", None), ("uniform", noise)):
            found[name] = maximise(
                lambda images: learner.attack_losses(images, batch),
                batch.images,
                threat,
                steps=2,
                step_size=0.02,
                start=start,
                momentum=0.9,
            )
    assert torch.equal(found["clean"], batch.images)
    started = threat.project(batch.images + noise, batch.images)
    assert (learner(found["uniform"], batch) > learner(started, batch)).all()


def test_the_square_is_summed_not_averaged(objective, encode, batch, moved):
    """An embedding that is repeated doubles the loss."""
    batch = objective.prepare(batch, encode)
    features, original = encode(moved), batch.targets["original"]
    once = squared_distances(features, original)
    twice = squared_distances(features.repeat(1, 2), original.repeat(1, 2))
    torch.testing.assert_close(twice, 2 * once)


def test_gradient_is_right(batch, encode):
    """gradcheck in the features; none goes to the original."""
    features = encode(batch.images).detach().requires_grad_()
    original = (features + 1).detach().requires_grad_()
    assert torch.autograd.gradcheck(lambda f: squared_distances(f, original), (features,))
    assert not squared_distances(features.detach(), original).requires_grad


def test_the_original_is_one_more_image_tower_and_nothing_else(tiny_clip_folder):
    """It keeps its features when the model moves; text tower and scale are shared, not copied; it is frozen."""
    clip = load_clip(f"local-dir:{tiny_clip_folder}")
    images = torch.rand(2, 3, 16, 16)
    with torch.no_grad():
        before = clip.image_encoder()(images)
        original = original_encoder(clip)
        assert torch.equal(original(images), before)
        for parameter in clip.model.visual.parameters():
            parameter.add_(0.1)
        assert torch.equal(original(images), before)
        assert not torch.equal(clip.image_encoder()(images), before)
    ours = {id(t) for t in clip.model.state_dict(keep_vars=True).values()}
    twin = original.model.state_dict(keep_vars=True)
    own = {name for name, tensor in twin.items() if id(tensor) not in ours}
    assert own == {name for name in twin if name.startswith("visual.")}
    assert not any(parameter.requires_grad for parameter in Fare(original).parameters())
    assert original.model is not clip.model


def test_it_is_in_the_table_with_its_needs(encode):
    """Images alone."""
    assert objective_class("fare") is Fare
    assert (Fare.needs, Fare.couples_batch, Fare.scored_by) == ("images", False, "texts")
    assert Fare(encode).settings() == {"name": "fare"}
