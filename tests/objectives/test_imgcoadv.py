"""ImgCoAdv.: the image InfoNCE, written out slowly; both views learn, ranks add up to one batch."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from zsrobust.errors import UserError
from zsrobust.objectives import objective_class
from zsrobust.objectives.imgcoadv import ImgCoAdv, info_nce
from zsrobust.objectives.objective import TrainingBatch


def test_losses_match_the_formula(encode, batch, moved, slow):
    """Adversarial -> clean: the softmax runs over the clean images; a temperature replaces the scale."""
    for options, scale in (({}, 20.0), ({"temperature": 0.1}, 10.0)):
        objective = ImgCoAdv(20.0, **options)
        batch = objective.prepare(batch, encode)
        found = objective.losses(encode, moved, batch)
        expected = slow(encode(moved), encode(batch.images), range(6), scale)
        assert found.tolist() == pytest.approx(expected, rel=1e-10)
        attacked = objective.attack_losses(encode, moved, batch)
        assert attacked.tolist() == pytest.approx(expected, rel=1e-10)


def test_gradients_are_right_in_both_views(encode, batch, moved):
    """gradcheck; the clean side is not stopped."""
    views = [encode(images).detach().requires_grad_() for images in (moved, batch.images)]
    own = torch.arange(6)
    assert torch.autograd.gradcheck(lambda a, c: info_nce(a, c, own, 3.0), tuple(views))


def test_the_learner_moves_both_sides_and_the_adversary_its_own_image_alone(encode, batch, moved):
    """d/dtheta by autograd of the formula; the adversary's clean features carry no gradient."""
    objective = ImgCoAdv(4.0)
    batch = objective.prepare(batch, encode)
    (found,) = torch.autograd.grad(objective.losses(encode, moved, batch).sum(), encode.weights)
    normalise = torch.nn.functional.normalize
    cosines = normalise(encode(moved), dim=1) @ normalise(encode(batch.images), dim=1).T
    loss = -(4.0 * cosines).log_softmax(1).diagonal().sum()
    (expected,) = torch.autograd.grad(loss, encode.weights)
    torch.testing.assert_close(found, expected)
    (one_sided,) = torch.autograd.grad(
        objective.attack_losses(encode, moved, batch).sum(), encode.weights
    )
    assert not torch.allclose(one_sided, expected)


class Ranks:
    """Two ranks in one process: what each hands over is added up, values and gradients."""

    def __init__(self, parts: list[TrainingBatch], encode: Any) -> None:
        self.ids = [name for part in parts for name in part.ids]
        self.encode = encode
        self.rows: list[torch.Tensor] = []

    def objective(self) -> ImgCoAdv:
        return ImgCoAdv(4.0, gather=lambda _: self.ids, add_up=self.collect)

    def collect(self, rows: torch.Tensor) -> torch.Tensor:
        self.rows.append(rows)
        return rows


@pytest.mark.parametrize("last", ["ef", "a"])
def test_ranks_that_add_up_see_the_whole_batch(encode, batch, moved, slow, last):
    """Each places its features in the global batch; a sample that stands in on the second rank counts once."""
    names = list("abcdef")
    of = {"ef": [list("abcd"), list("ef")], "a": [list("abc"), list("a")]}[last]

    def part(mine):
        where = [names.index(n) for n in mine]
        return TrainingBatch(ids=mine, images=batch.images[where])

    parts = [part(mine) for mine in of]
    ranks = Ranks(parts, encode)
    shared = [ranks.objective().prepare(copy.copy(p), encode) for p in parts]
    everybody = list(dict.fromkeys(ranks.ids))
    whole = encode(batch.images[[names.index(n) for n in everybody]])
    summed = ranks.rows[0] + ranks.rows[1]
    torch.testing.assert_close(summed, whole.detach())

    for own, prepared in zip(of, shared, strict=True):
        where = [names.index(n) for n in own]
        other = summed - ranks.rows[of.index(own)]
        objective = ImgCoAdv(
            4.0, gather=lambda _: ranks.ids, add_up=lambda rows, other=other: rows + other
        )
        found = objective.losses(encode, moved[where], prepared)
        expected = slow(encode(moved[where]), whole, [everybody.index(n) for n in own], 4.0)
        assert found.tolist() == pytest.approx(expected, rel=1e-9)


def test_one_image_cannot_be_contrasted(encode, batch):
    one = TrainingBatch(ids=["a"], images=batch.images[:1])
    with pytest.raises(UserError, match="a batch needs two or more"):
        ImgCoAdv(4.0).prepare(one, encode)


def test_it_is_in_the_table_with_its_needs():
    """No labels, no names; it couples the batch; the texts score it."""
    assert objective_class("imgcoadv") is ImgCoAdv
    assert (ImgCoAdv.needs, ImgCoAdv.couples_batch, ImgCoAdv.scored_by) == ("images", True, "texts")
    assert list(ImgCoAdv(4.0).parameters()) == []
    assert ImgCoAdv(4.0).settings() == {"name": "imgcoadv", "scale": 4.0}
