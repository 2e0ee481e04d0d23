"""The engine on a real CLIP and real photographs (held-out source images, labelled by the model itself)."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from zsrobust import attacks, data
from zsrobust.models import ZeroShotClassifier, load_clip
from zsrobust.preprocess import to_unit

pytestmark = pytest.mark.needs_data


def photographs(count: int):
    """Images, ids and the classifier; labels are its own predictions, so that every sample is attacked."""
    clip = load_clip("mini-clip")
    source = data.open_set("mini/tiny_imagenet", "val")
    indices = source.first(count)
    batch = next(data.batches(source, indices, clip.preprocess.geometry(), count))
    classifier = ZeroShotClassifier.from_texts(clip, source.classnames, source.templates)
    images = to_unit(batch.images)
    with torch.no_grad():
        labels = classifier(images).argmax(1)
    return classifier, images, labels, batch.ids


def outcomes(classifier, images, labels, ids, order, slots):
    index = torch.tensor(order)
    found = attacks.run(
        classifier,
        images[index],
        labels[index],
        ids=[ids[i] for i in order],
        attack="pgd-5",
        eps="0.001",
        slots=slots,
    )
    return {o.id: (o.broken, o.step) for o in found}


def test_outcomes_of_400_photographs_barely_depend_on_slots_and_order_in_float32():
    """Broken or not, at which step: but for at most 0.5% of 400 samples, for 1, 7 and 64 slots and shuffled."""
    classifier, images, labels, ids = photographs(400)
    plain = list(range(400))
    expected = outcomes(classifier, images, labels, ids, plain, 64)
    broken = sum(b for b, _ in expected.values())
    assert 80 < broken < 320  # both kinds, so that there is something to compare
    shuffled = np.random.default_rng(0).permutation(400).tolist()
    for order, slots in ((plain, 1), (plain, 7), (shuffled, 64)):
        found = outcomes(classifier, images, labels, ids, order, slots)
        differing = sum(found[i] != expected[i] for i in expected)
        assert differing <= 2, f"slots {slots}: {differing} of 400 differ"


def test_outcomes_of_photographs_do_not_depend_on_slots_and_order_in_float64():
    """Exactly equal."""
    classifier, images, labels, ids = photographs(16)
    classifier.double()
    images = images.double()
    plain = list(range(16))
    expected = outcomes(classifier, images, labels, ids, plain, 64)
    assert 2 < sum(b for b, _ in expected.values()) < 16
    shuffled = np.random.default_rng(0).permutation(16).tolist()
    assert outcomes(classifier, images, labels, ids, plain, 1) == expected
    assert outcomes(classifier, images, labels, ids, plain, 7) == expected
    assert outcomes(classifier, images, labels, ids, shuffled, 7) == expected


def test_loss_gradient_against_finite_differences():
    """The gradient with respect to the pixels, through normalisation and tower, in float64."""
    classifier, images, labels, _ = photographs(2)
    classifier.double()
    x = images.double().requires_grad_()
    loss = torch.nn.functional.cross_entropy(classifier(x), labels, reduction="sum")
    (gradient,) = torch.autograd.grad(loss, x)
    torch.manual_seed(0)
    direction = torch.randn_like(x)
    h = 1e-5
    with torch.no_grad():
        ends = [
            torch.nn.functional.cross_entropy(
                classifier(x + s * h * direction), labels, reduction="sum"
            )
            for s in (1, -1)
        ]
    assert float((gradient * direction).sum()) == pytest.approx(
        float(ends[0] - ends[1]) / (2 * h), rel=1e-6
    )
