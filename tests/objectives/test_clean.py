"""CE: TeCoA's formula at the clean images, and no adversary."""

from __future__ import annotations

import contextlib
import copy
from types import SimpleNamespace

import pytest
import torch

from zsrobust.errors import UserError
from zsrobust.objectives import objective_class
from zsrobust.objectives.clean import Ce
from zsrobust.threat import Threat
from zsrobust.training import step as module
from zsrobust.training.step import Learner, StepSettings, training_step


@pytest.fixture
def anchors():
    draw = torch.Generator().manual_seed(3)
    rows = torch.randn(4, 5, generator=draw, dtype=torch.float64)
    return torch.nn.functional.normalize(rows, dim=1)


def test_losses_match_the_formula(encode, batch, anchors, slow):
    found = Ce(anchors, 20.0).double().losses(encode, batch.images, batch)
    expected = slow(encode(batch.images), anchors, batch.labels.tolist(), 20.0)
    assert found.tolist() == pytest.approx(expected, rel=1e-10)


def test_the_step_is_that_of_clean_images(encode, batch, anchors, monkeypatch):
    """No adversary is asked; the update is the gradient step of the clean loss, by hand."""
    monkeypatch.setattr(module, "maximise", lambda *_, **__: pytest.fail("attacked"))
    before = copy.deepcopy(encode)
    objective = Ce(anchors, 5.0).double()
    learner = Learner(encode, objective)
    optimiser = torch.optim.SGD(learner.parameters(), lr=1.0)
    fabric = SimpleNamespace(
        world_size=1,
        no_backward_sync=lambda *_, **__: contextlib.nullcontext(),
        backward=lambda loss: loss.backward(),
        all_reduce=lambda value, reduce_op: value,
    )
    settings = StepSettings(
        threat=Threat("linf", 0.1),
        steps=2,
        step_size=0.1,
        start="uniform",
        momentum=0.0,
        seed=0,
        micro_batch=None,
    )
    loss = training_step(
        fabric,
        learner,
        learner,
        optimiser,
        batch,
        epoch=0,
        rate=0.5,
        global_size=6,
        settings=settings,
    )
    expected = torch.nn.functional.cross_entropy(
        5.0 * torch.nn.functional.normalize(before(batch.images), dim=1) @ anchors.T, batch.labels
    )
    (gradient,) = torch.autograd.grad(expected, before.weights)
    assert loss == pytest.approx(expected.item())
    torch.testing.assert_close(encode.weights, before.weights - 0.5 * gradient)


def test_it_is_in_the_table_and_needs_labels(encode, batch, anchors):
    assert objective_class("ce") is Ce
    assert (Ce.needs, Ce.couples_batch, Ce.scored_by) == ("labels", False, "texts")
    objective = Ce(anchors, 20.0)
    assert not objective.adversarial
    assert objective.settings() == {"name": "ce", "scale": 20.0}
    batch.labels = None
    with pytest.raises(UserError, match="objective 'ce' needs labels"):
        objective.losses(encode, batch.images, batch)
