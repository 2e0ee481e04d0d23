"""LP: the cross-entropy of a linear head, written out slowly; the adversary is a setting."""

from __future__ import annotations

import math

import pytest
import torch

from zsrobust.adaptations.linear import LinearHead
from zsrobust.errors import UserError
from zsrobust.objectives import objective_class
from zsrobust.objectives.linear import Linear


@pytest.fixture
def objective() -> Linear:
    return Linear(LinearHead.random(4, 5, seed=0)).double()


def test_losses_match_the_formula(objective, encode, batch):
    """On features as they are, not normalised."""
    found = objective.losses(encode, batch.images, batch)
    head, expected = objective.head, []
    for f, label in zip(encode(batch.images).tolist(), batch.labels.tolist(), strict=True):
        logits = [
            sum(w * v for w, v in zip(row, f, strict=True)) + b
            for row, b in zip(head.weight.tolist(), head.bias.tolist(), strict=True)
        ]
        expected.append(math.log(sum(math.exp(z) for z in logits)) - logits[label])
    assert found.tolist() == pytest.approx(expected, rel=1e-10)
    assert torch.equal(found, objective.attack_losses(encode, batch.images, batch))


def test_the_head_learns_where_the_tower_is_frozen(objective, encode, batch):
    """Nothing of the tower needs a gradient: the head's is that of the formula."""
    encode.requires_grad_(False)
    objective.losses(encode, batch.images, batch).mean().backward()
    features, head = encode(batch.images), objective.head
    with torch.no_grad():
        error = head(features).softmax(1) - torch.nn.functional.one_hot(batch.labels, 4)
    torch.testing.assert_close(head.weight.grad, error.T @ features / 6)
    torch.testing.assert_close(head.bias.grad, error.mean(0))


def test_the_adversary_is_none_unless_asked_for():
    """And the record says which."""
    head = LinearHead.random(4, 5, seed=0)
    assert not Linear(head).adversarial
    attacked = Linear(head, "probe", "pgd")
    assert attacked.adversarial
    assert attacked.settings() == {
        "name": "linear",
        "head": "linear",
        "head_start": "probe",
        "adversary": "pgd",
    }


def test_it_is_in_the_table_and_needs_labels(objective, encode, batch):
    assert objective_class("linear") is Linear
    assert (Linear.needs, Linear.trains_head, Linear.scored_by) == ("labels", True, "head")
    batch.labels = None
    with pytest.raises(UserError, match="objective 'linear' needs labels"):
        objective.losses(encode, batch.images, batch)
