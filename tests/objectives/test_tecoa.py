"""TeCoA against its formula, written out slowly in float64."""

from __future__ import annotations

import math

import pytest
import torch

from zsrobust.errors import UserError
from zsrobust.objectives import objective_class
from zsrobust.objectives.objective import TrainingBatch
from zsrobust.objectives.tecoa import Tecoa, TecoaPairs, tecoa_losses


def slow_loss(features, anchors, positive, scale):
    """-log of the softmax over texts of one image, sum by sum."""
    losses = []
    for f, row in zip(features.tolist(), positive, strict=True):
        norm = math.sqrt(sum(v * v for v in f))
        cosines = []
        for t in anchors.tolist():
            length = math.sqrt(sum(v * v for v in t))
            cosines.append(sum(a * b for a, b in zip(f, t, strict=True)) / norm / length)
        denominator = sum(math.exp(scale * c) for c in cosines)
        losses.append(-math.log(math.exp(scale * cosines[row]) / denominator))
    return losses


@pytest.fixture
def parts():
    torch.manual_seed(0)
    anchors = torch.nn.functional.normalize(torch.randn(7, 5, dtype=torch.float64), dim=1)
    weights = torch.randn(12, 5, dtype=torch.float64)
    images = torch.rand(6, 3, 2, 2, dtype=torch.float64)
    labels = torch.tensor([0, 6, 3, 3, 1, 5])
    return anchors, lambda x: x.flatten(1) @ weights, images, labels


def test_labels_match_the_formula(parts):
    """All K class texts in the softmax, whatever the batch holds (traps 37)."""
    anchors, encode, images, labels = parts
    objective = Tecoa(anchors, logit_scale=24.7).double()
    batch = TrainingBatch(ids=list("abcdef"), images=images, labels=labels)
    found = objective.losses(encode, images, objective.prepare(batch, encode))
    expected = slow_loss(encode(images), anchors, labels.tolist(), 24.7)
    assert found.tolist() == pytest.approx(expected, rel=1e-10)
    assert torch.equal(found, objective.attack_losses(encode, images, batch))


def test_temperature_replaces_the_models_scale(parts):
    """tau = 0.1 is a scale of 10; None takes exp(logit_scale); 0 and less are refused."""
    anchors, encode, images, labels = parts
    batch = TrainingBatch(ids=list("abcdef"), images=images, labels=labels)
    found = Tecoa(anchors, 24.7, temperature=0.1).double().losses(encode, images, batch)
    assert found.tolist() == pytest.approx(
        slow_loss(encode(images), anchors, labels.tolist(), 10.0), rel=1e-10
    )
    with pytest.raises(UserError, match="temperature must be > 0"):
        Tecoa(anchors, 24.7, temperature=0.0)


def test_loss_ignores_the_length_of_features(parts):
    """TeCoA works on unit features (traps 18)."""
    anchors, encode, images, labels = parts
    features = encode(images)
    assert torch.allclose(
        tecoa_losses(features, anchors, labels, 20.0),
        tecoa_losses(features * 37, anchors, labels, 20.0),
    )


def test_gradient_is_right(parts):
    """gradcheck of the loss in its features."""
    anchors, encode, images, labels = parts
    features = encode(images).requires_grad_()
    assert torch.autograd.gradcheck(lambda f: tecoa_losses(f, anchors, labels, 3.0), (features,))


WORDS = {"cat": 0, "dog": 1, "Cat": 0, "bird": 2, "fish": 3}


def pairs_objective(**options):
    torch.manual_seed(1)
    table = torch.randn(4, 5, dtype=torch.float64) * 3
    return table, TecoaPairs(
        tokenise=lambda texts: torch.tensor([[WORDS[t], 9] for t in texts]),
        encode_texts=lambda texts: table[[WORDS[t] for t in texts]],
        logit_scale=20.0,
        **options,
    )


def test_pairs_match_the_formula_over_unique_texts(parts):
    """Equal texts (by token ids: the tokenizer lower-cases) count once and are positives of all their images."""
    _, encode, images, _ = parts
    captions = ["dog", "cat", "bird", "Cat", "dog", "cat"]
    table, objective = pairs_objective()
    batch = objective.prepare(
        TrainingBatch(ids=list("abcdef"), images=images, captions=captions), encode
    )
    found = objective.losses(encode, images, batch)
    # unique texts in order of appearance: dog, cat, bird
    expected = slow_loss(encode(images), table[[1, 0, 2]], [0, 1, 2, 1, 0, 1], 20.0)
    assert found.tolist() == pytest.approx(expected, rel=1e-10)


def test_pairs_see_the_texts_of_all_ranks(parts):
    """The negatives are the texts of the global batch; the images stay this rank's."""
    _, encode, images, _ = parts
    captions = ["dog", "cat", "dog", "dog", "cat", "cat"]
    table, objective = pairs_objective(gather=lambda mine: ["fish", "bird", *mine])
    batch = objective.prepare(
        TrainingBatch(ids=list("abcdef"), images=images, captions=captions), encode
    )
    found = objective.losses(encode, images, batch)
    expected = slow_loss(encode(images), table[[3, 2, 1, 0]], [2, 3, 2, 2, 3, 3], 20.0)
    assert found.tolist() == pytest.approx(expected, rel=1e-10)


def test_one_text_cannot_be_contrasted(parts):
    """A batch of one caption has loss 0 and teaches nothing: refused."""
    _, encode, images, _ = parts
    _, objective = pairs_objective()
    with pytest.raises(UserError, match="nothing to contrast"):
        objective.prepare(
            TrainingBatch(ids=list("ab"), images=images[:2], captions=["cat", "Cat"]), encode
        )


def test_what_a_sample_lacks_is_said(parts):
    """Labels for tecoa, captions for tecoa-pairs."""
    anchors, encode, images, _ = parts
    batch = TrainingBatch(ids=list("abcdef"), images=images)
    with pytest.raises(UserError, match="needs labels; for captions use 'tecoa-pairs'"):
        Tecoa(anchors, 1.0).losses(encode, images, batch)
    with pytest.raises(UserError, match="needs captions; for class labels use 'tecoa'"):
        pairs_objective()[1].prepare(batch, encode)
    with pytest.raises(UserError, match="did you mean 'tecoa"):
        objective_class("tecao")


def test_objectives_say_what_they_need_and_whether_they_couple_the_batch():
    """Pairs cannot be accumulated; labels can."""
    assert (Tecoa.needs, Tecoa.couples_batch) == ("labels", False)
    assert (TecoaPairs.needs, TecoaPairs.couples_batch) == ("captions", True)
