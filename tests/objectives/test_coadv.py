"""CoAdv.: TeCoA's formula over a random dictionary, written out slowly."""

from __future__ import annotations

import pytest
import torch

from zsrobust.errors import UserError
from zsrobust.objectives import objective_class
from zsrobust.objectives.coadv import CoAdv, random_dictionary


def test_losses_match_the_formula(encode, batch, moved, slow):
    """Fixed and trained alike; the length of a trained row does not matter, nor does a feature's."""
    vectors = torch.nn.functional.normalize(random_dictionary(4, 5, seed=0).double(), dim=1)
    expected = slow(encode(moved), vectors, batch.labels.tolist(), 20.0)
    for kind, length in (("fixed", 1.0), ("trained", 3.0)):
        objective = CoAdv(length * vectors, 20.0, dictionary=kind)
        found = objective.losses(encode, moved, batch)
        assert found.tolist() == pytest.approx(expected, rel=1e-10)
        assert torch.equal(found, objective.attack_losses(encode, moved, batch))
    longer = objective.losses(lambda x: 7 * encode(x), moved, batch)
    assert longer.tolist() == pytest.approx(expected, rel=1e-10)
    sharper = CoAdv(vectors, 20.0, temperature=0.1).losses(encode, moved, batch)
    expected = slow(encode(moved), vectors, batch.labels.tolist(), 10.0)
    assert sharper.tolist() == pytest.approx(expected, rel=1e-10)


class Loss(torch.nn.Module):
    """The losses as a function of features."""

    def __init__(self, objective, batch):
        super().__init__()
        self.objective, self.batch = objective, batch

    def forward(self, features):
        return self.objective.losses(lambda _: features, self.batch.images, self.batch)


def test_gradients_are_right(encode, batch, moved):
    """gradcheck in the features and in a trained dictionary."""
    objective = CoAdv(random_dictionary(4, 5, seed=0).double(), 3.0, dictionary="trained")
    loss = Loss(objective, batch)

    def at(features, vectors):
        return torch.func.functional_call(loss, {"objective.vectors": vectors}, (features,))

    features = encode(moved).detach().requires_grad_()
    vectors = objective.vectors.detach().clone().requires_grad_()
    assert torch.autograd.gradcheck(at, (features, vectors))


def test_the_dictionary_is_random_unit_rows_of_the_seed_alone():
    """Standard normal directions: mean 0, no two alike; the global stream is neither read nor moved."""
    state = torch.random.get_rng_state()
    rows = random_dictionary(300, 64, seed=0)
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.manual_seed(7)
    assert torch.equal(rows, random_dictionary(300, 64, seed=0))
    assert not torch.equal(rows, random_dictionary(300, 64, seed=1))
    torch.testing.assert_close(rows.norm(dim=1), torch.ones(300))
    cosines = (rows @ rows.T)[~torch.eye(300, dtype=torch.bool)]
    assert abs(float(cosines.mean())) < 0.01
    assert float(cosines.std()) == pytest.approx(64**-0.5, rel=0.05)
    with pytest.raises(UserError, match="two classes or more, the source has 1"):
        random_dictionary(1, 5, seed=0)


def test_only_a_trained_dictionary_is_a_parameter():
    vectors = random_dictionary(4, 5, seed=0)
    assert list(CoAdv(vectors, 1.0).named_parameters()) == []
    assert CoAdv(vectors, 1.0).state_dict() == {}
    trained = CoAdv(vectors, 1.0, dictionary="trained")
    assert [name for name, _ in trained.named_parameters()] == ["vectors"]
    assert trained.settings() == {"name": "coadv", "scale": 1.0, "dictionary": "trained"}


def test_it_is_in_the_table_and_needs_labels(encode, batch):
    assert objective_class("coadv") is CoAdv
    assert (CoAdv.needs, CoAdv.trains_head, CoAdv.scored_by) == ("labels", False, "dictionary")
    batch.labels = None
    with pytest.raises(UserError, match="'coadv' needs labels; without them use 'imgcoadv'"):
        CoAdv(random_dictionary(4, 5, seed=0), 1.0).losses(encode, batch.images, batch)
