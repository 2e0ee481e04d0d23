"""TeCoA without labels: the formula with the labels that were predicted, whatever the set says."""

from __future__ import annotations

import pytest
import torch

from zsrobust.objectives import objective_class
from zsrobust.objectives.pseudo import TecoaPseudo


def test_losses_match_the_formula(encode, batch, moved, slow):
    """By sample id, in any order; the set's own labels are not read."""
    draw = torch.Generator().manual_seed(3)
    rows = torch.randn(4, 5, generator=draw, dtype=torch.float64)
    anchors = torch.nn.functional.normalize(rows, dim=1)
    predicted = {"f": 3, "a": 1, "b": 0, "c": 2, "d": 1, "e": 1, "unused": 2}
    objective = TecoaPseudo(anchors, 20.0, predicted).double()
    batch = objective.prepare(batch, encode)
    found = objective.losses(encode, moved, batch)
    expected = slow(encode(moved), anchors, [1, 0, 2, 1, 1, 3], 20.0)
    assert found.tolist() == pytest.approx(expected, rel=1e-10)
    assert torch.equal(found, objective.attack_losses(encode, moved, batch))
    batch.labels = None
    assert torch.equal(objective.losses(encode, moved, objective.prepare(batch, encode)), found)


def test_it_is_in_the_table_with_its_needs():
    """Class names alone; held-out images are scored against pseudo-labels."""
    assert objective_class("tecoa-pseudo") is TecoaPseudo
    assert (TecoaPseudo.needs, TecoaPseudo.scored_by) == ("names", "pseudo-labels")
    objective = TecoaPseudo(torch.eye(2), 20.0, {})
    assert objective.settings() == {"name": "tecoa-pseudo", "scale": 20.0}
