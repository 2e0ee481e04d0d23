"""Examples for a report: single samples under attack, chosen by a rule and never by their looks.

The rule: of each set, the first samples of its fixed order that the first model gets right unattacked. Every
model is then attacked on its own, by the same attack with the same noise, as an evaluation would.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from zsrobust import data
from zsrobust.attacks.engine import Groups, evaluating, full_precision, judge_logits, run
from zsrobust.errors import UserError
from zsrobust.evaluation.evaluate import (
    clip_of,
    open_suite,
    read_device,
    spec_of,
)
from zsrobust.evaluation.measure import plan_to_measure
from zsrobust.models import Clip, ZeroShotClassifier
from zsrobust.models.classifier import DEFAULT_TEMPLATES
from zsrobust.preprocess import ImageRule, Preprocess, to_unit
from zsrobust.threat import Norm, Resolution, Threat, parse_eps

if TYPE_CHECKING:
    from zsrobust.attacks.engine import Duplicates
    from zsrobust.data import ImageSet

Shown = Literal["clean image", "breaking query", "last image"]

_LOOKED_AT = 16  # samples at a time, until enough are found


@dataclass(frozen=True, kw_only=True)
class AttackedExample:
    """What one model made of an example, before and after the attack on it."""

    model: str
    """The model's spec."""
    image: NDArray[Any]
    """(H, W, 3), float in [0, 1] or uint8; what it is stands in `shown`."""
    shown: Shown
    """"breaking query": the query that broke the model. "last image": what the attack came to in the end, where
    it broke nothing or went on after it had (no early exit); the model may be right or wrong on it. "clean
    image": the model was wrong before any attack, and clean mistakes are not attacked."""
    said_clean: str
    """The class it gave the clean image; of classes with one text the true one, else the first."""
    probability_clean: float
    """The probability it gave that class."""
    right_clean: bool
    """Whether that is right under the duplicates rule, as an evaluation scores it."""
    said: str
    """The class it gave `image`."""
    probability: float
    right: bool
    """Whether that is right, as above."""
    broken: bool
    """Right on the clean image and wrong on a judged query inside the threat set."""
    step: int | None
    """Number of the query that broke it, from 0, counted within its restart or target; None if none did."""


@dataclass(frozen=True, kw_only=True)
class Example:
    """One sample, and what each model made of it."""

    image_set: str
    id: str
    true_class: str
    classes: int
    """How many classes the models chose from."""
    clean: NDArray[np.uint8]
    """(H, W, 3), at the attack resolution."""
    attack: str
    threat: Threat
    attacked: list[AttackedExample] = field(default_factory=list)


def collect_examples(
    models: Sequence[Any],
    sets: str | Sequence[str],
    attack: str,
    eps: float | str,
    *,
    per_set: int = 1,
    norm: Norm = "linf",
    limit: int | None = None,
    seed: int = 0,
    templates: Sequence[str] | None = None,
    duplicates: Duplicates = "merge",
    precision: str = "fp32",
    resolution: Resolution | None = None,
    preprocess: ImageRule = "model",
    device: str = "auto",
) -> list[Example]:
    """Return the first `per_set` samples of each set that the first model gets right, attacked for each model.

    Args:
        models: spec strings, Clips, or anything with `.spec`; they share one image rule.
        sets: a suite's name, a set's spec, or several.
        attack: a name as `attacks.plan` reads it.
        eps: in [0, 1]-pixel units.
        per_set: examples of each set.
        norm: "linf" or "l2".
        limit: look no further than the first N samples of the fixed order; None is all.
        seed: of the noise. With the seed of an evaluation an example is attacked as it was there.
        templates: as in `evaluate`.
        duplicates: as in `evaluate`.
        precision: as in `evaluate`.
        resolution: as in `evaluate`.
        preprocess: as in `evaluate`.
        device: "auto", "cpu", "cuda", ...

    Returns:
        Examples in the order of the sets; fewer than asked for where the first model is right on fewer.

    Raises:
        UserError: as `evaluate`, and if the models see images of different sizes.
    """
    if per_set < 1:
        raise UserError(f"per_set must be >= 1, got {per_set}.")
    if not models:
        raise UserError("no model given: name at least one, for instance mini-clip.")
    radius = parse_eps(eps, norm)
    plan_to_measure(attack, Threat(norm, radius))
    names = [spec_of(given) for given in models]
    clips = [clip_of(given).to(read_device(device)) for given in models]
    _check_one_rule(names, clips)
    suite = data.load_suite(sets if isinstance(sets, str) else ",".join(sets))
    found = []
    for _, image_set in open_suite(suite):
        names_of_set, found_words = image_set.texts(templates)
        words, classnames = list(found_words or DEFAULT_TEMPLATES), names_of_set or []
        threat = Threat(norm, radius, resolution or image_set.resolution)
        rule = clips[0].preprocess.under(preprocess, image_set.paper_resize)
        classifiers = [
            ZeroShotClassifier.from_texts(clip, classnames, words, precision=precision)
            for clip in clips
        ]
        for index, pixels in _first_right(
            image_set, classifiers[0], rule, threat, per_set, limit, duplicates
        ):
            label = int((image_set.labels or [])[index])
            attacked = [
                _attack(
                    name,
                    model,
                    pixels,
                    label,
                    image_set.ids[index],
                    attack,
                    threat,
                    seed,
                    duplicates,
                )
                for name, model in zip(names, classifiers, strict=True)
            ]
            found.append(
                Example(
                    image_set=image_set.name,
                    id=image_set.ids[index],
                    true_class=classnames[label],
                    classes=len(classnames),
                    clean=pixels.permute(1, 2, 0).numpy(),
                    attack=attack,
                    threat=threat,
                    attacked=attacked,
                )
            )
    return found


def _check_one_rule(names: list[str], clips: list[Clip]) -> None:
    """One clean picture is shown for all models: they must see the same one."""
    first = clips[0].preprocess.settings()
    geometry = ("size", "interpolation", "resize_mode", "fill_color")
    for name, clip in zip(names, clips, strict=True):
        settings = clip.preprocess.settings()
        if any(settings[key] != first[key] for key in geometry):
            raise UserError(
                f"{names[0]} and {name} resize images in different ways: examples need models with one image "
                "rule; leave one out."
            )


def _first_right(
    image_set: ImageSet,
    classifier: ZeroShotClassifier,
    rule: Preprocess,
    threat: Threat,
    count: int,
    limit: int | None,
    duplicates: Duplicates,
) -> list[tuple[int, Tensor]]:
    """Return (index, (3, H, W) uint8) of the first samples that the classifier gets right."""
    geometry = None if threat.resolution == "native" else rule.geometry()
    found: list[tuple[int, Tensor]] = []
    device = classifier.anchors.device
    groups = Groups.of(classifier.groups, len(classifier.anchors), device)
    # One by one at native resolution, where sizes may differ within a batch.
    batch_size = 1 if geometry is None else _LOOKED_AT
    for batch in data.batches(image_set, image_set.first(limit), geometry, batch_size):
        if batch.labels is None:
            raise UserError(f"set {image_set.name!r} has no labels.")
        with torch.no_grad(), evaluating(classifier), full_precision():
            logits = classifier(to_unit(batch.images.to(device)))
        right, _ = judge_logits(logits, batch.labels.to(device), groups, duplicates)
        for index, pixels, is_right in zip(
            batch.indices, batch.images, right.tolist(), strict=True
        ):
            if is_right:
                found.append((index, pixels))
                if len(found) == count:
                    return found
    return found


def _attack(
    name: str,
    model: ZeroShotClassifier,
    pixels: Tensor,
    label: int,
    sample_id: str,
    attack: str,
    threat: Threat,
    seed: int,
    duplicates: Duplicates,
) -> AttackedExample:
    images = to_unit(pixels[None]).to(model.anchors.device)
    (outcome,) = run(
        model,
        images,
        torch.tensor([label]),
        attack=attack,
        norm=threat.norm,
        eps=threat.eps,
        ids=[sample_id],
        resolution=threat.resolution,
        seed=seed,
        duplicates=duplicates,
        keep_images=True,
    )
    shown: Shown = "clean image"
    after = images
    if outcome.image is not None:
        # The engine hands over the breaking query where a sample leaves at once, else the attack's `final`.
        at_once = plan_to_measure(attack, threat).early_exit
        shown = "breaking query" if outcome.broken and at_once else "last image"
        after = outcome.image[None].to(images.device)
    before, then = (_answer(model, pixels, label, duplicates) for pixels in (images, after))
    return AttackedExample(
        model=name,
        image=after[0].permute(1, 2, 0).cpu().numpy(),
        shown=shown,
        said_clean=before.said,
        probability_clean=before.probability,
        right_clean=before.right,
        said=then.said,
        probability=then.probability,
        right=then.right,
        broken=outcome.broken,
        step=outcome.step if outcome.step_within is None else outcome.step_within,
    )


class _Answer(NamedTuple):
    said: str
    probability: float
    right: bool


def _answer(
    model: ZeroShotClassifier, images: Tensor, label: int, duplicates: Duplicates
) -> _Answer:
    """Return the class that the model gives one image, its probability among the text groups, and if it is right.

    Classes with one text cannot be told apart: "merge" names the true one where it is among them, "keep" the
    first one, as published numbers have it.
    """
    device = model.anchors.device
    groups = Groups.of(model.groups, len(model.anchors), device)
    with torch.no_grad(), evaluating(model), full_precision():
        logits = model(images)
    right, _ = judge_logits(logits, torch.tensor([label], device=device), groups, duplicates)
    probabilities = groups.reduce(logits)[0].double().softmax(0)
    best = int(probabilities.argmax())
    names = model.classnames or []
    said = label if bool(right) else int(groups.representative[best])
    return _Answer(names[said], float(probabilities[best]), bool(right))
