"""Adv. against its formula, written out slowly in float64."""

from __future__ import annotations

import math

import pytest
import torch

from zsrobust.adaptations.linear import LinearHead
from zsrobust.attacks.pgd import frozen, maximise
from zsrobust.errors import UserError
from zsrobust.objectives import objective_class
from zsrobust.objectives.adversarial import Adv
from zsrobust.objectives.objective import TrainingBatch
from zsrobust.threat import Threat
from zsrobust.training.step import Learner, parameter_groups


def slow_loss(features, weight, bias, labels):
    """-log of the softmax over classes of one image, sum by sum."""
    losses = []
    for f, label in zip(features.tolist(), labels.tolist(), strict=True):
        logits = [
            sum(w * v for w, v in zip(row, f, strict=True)) + b
            for row, b in zip(weight.tolist(), bias.tolist(), strict=True)
        ]
        losses.append(-math.log(math.exp(logits[label]) / sum(math.exp(z) for z in logits)))
    return losses


class Encoder(torch.nn.Module):
    """Images (N, 3, 2, 2) -> features (N, 5)."""

    def __init__(self):
        super().__init__()
        draw = torch.Generator().manual_seed(0)
        self.weights = torch.nn.Parameter(torch.randn(12, 5, generator=draw))

    def forward(self, images):
        return images.flatten(1) @ self.weights


@pytest.fixture
def parts():
    draw = torch.Generator().manual_seed(1)
    images = torch.rand(6, 3, 2, 2, generator=draw, dtype=torch.float64)
    labels = torch.tensor([0, 3, 2, 2, 1, 3])
    learner = Learner(Encoder(), Adv(LinearHead.random(4, 5, seed=0))).double()
    return learner, TrainingBatch(ids=list("abcdef"), images=images, labels=labels)


def test_losses_match_the_formula(parts):
    """Of features as they are: twice as long, another loss. The adversary maximises the same."""
    learner, batch = parts
    head, encode = learner.objective.head, learner.encoder
    found = learner.objective.losses(encode, batch.images, learner.objective.prepare(batch, encode))
    expected = slow_loss(encode(batch.images), head.weight, head.bias, batch.labels)
    assert found.tolist() == pytest.approx(expected, rel=1e-10)
    assert torch.equal(found, learner.objective.attack_losses(encode, batch.images, batch))
    longer = learner.objective.losses(lambda x: 2 * encode(x), batch.images, batch)
    expected = slow_loss(2 * encode(batch.images), head.weight, head.bias, batch.labels)
    assert longer.tolist() == pytest.approx(expected, rel=1e-10)
    assert not torch.allclose(longer, found)


def test_the_adversary_raises_the_learners_own_loss(parts):
    """One step of eps along the sign of the formula's gradient in the image, through encoder and head."""
    learner, batch = parts
    threat = Threat("linf", 0.05)
    with frozen(learner):
        found = maximise(
            lambda images: learner.attack_losses(images, batch),
            batch.images,
            threat,
            steps=1,
            step_size=0.05,
            start=None,
            momentum=0.0,
        )
    head = learner.objective.head
    features = learner.encoder(batch.images)
    error = (features @ head.weight.T + head.bias).softmax(1)
    error -= torch.nn.functional.one_hot(batch.labels, 4)
    gradient = (error @ head.weight @ learner.encoder.weights.T).reshape(batch.images.shape)
    expected = (batch.images + 0.05 * gradient.sign()).clamp(0, 1).detach()
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    assert (learner(found, batch) > learner(batch.images, batch)).all()


def test_the_gradient_reaches_head_and_encoder(parts):
    """By the formula: d/db is the mean error of the probabilities, d/dW that times the features."""
    learner, batch = parts
    learner(batch.images, batch).mean().backward()
    head = learner.objective.head
    with torch.no_grad():
        features = learner.encoder(batch.images)
        error = (features @ head.weight.T + head.bias).softmax(1)
        error -= torch.nn.functional.one_hot(batch.labels, 4)
        torch.testing.assert_close(head.bias.grad, error.mean(0))
        torch.testing.assert_close(head.weight.grad, error.T @ features / 6)
    assert float(learner.encoder.weights.grad.abs().max()) > 1e-3


def test_the_heads_weights_decay_its_bias_does_not(parts):
    """In one optimiser with the tower, at one rate."""
    learner, _ = parts
    named = [(f"objective.{n}", p) for n, p in learner.objective.named_parameters()]
    assert [name for name, _ in named] == ["objective.head.weight", "objective.head.bias"]
    decays, rests = parameter_groups(named, 0.1)
    assert (decays["weight_decay"], rests["weight_decay"]) == (0.1, 0.0)
    assert decays["params"] == [learner.objective.head.weight]
    assert rests["params"] == [learner.objective.head.bias]


def test_it_is_in_the_table_with_its_needs():
    """Labels, no coupling, a head; the others train none."""
    assert objective_class("adv") is Adv
    assert (Adv.needs, Adv.couples_batch, Adv.adversarial) == ("labels", False, True)
    trains = {name: objective_class(name).trains_head for name in ("tecoa", "tecoa-pairs", "adv")}
    assert trains == {"tecoa": False, "tecoa-pairs": False, "adv": True}
    settings = Adv(LinearHead.random(2, 3, seed=0), "probe").settings()
    assert settings == {"name": "adv", "head": "linear", "head_start": "probe"}


def test_samples_without_labels_are_refused(parts):
    learner, batch = parts
    batch.labels = None
    with pytest.raises(UserError, match="'adv' needs labels; for captions use 'tecoa-pairs'"):
        learner(batch.images, batch)
