"""Held-out source images: the only ones on which a learning rate or an epoch may be chosen (traps 36)."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from zsrobust import attacks, data
from zsrobust.attacks.engine import Chunk, Groups, attack_chunks
from zsrobust.attacks.outcome import Outcome
from zsrobust.errors import UserError
from zsrobust.files import write_json
from zsrobust.models import HeadClassifier, ZeroShotClassifier, load_clip
from zsrobust.objectives import objective_class
from zsrobust.preprocess import to_unit

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from lightning_fabric import Fabric
    from PIL.Image import Image
    from torch import Tensor

    from zsrobust.data import ImageSet
    from zsrobust.models import Clip
    from zsrobust.training.loop import SourceData
    from zsrobust.training.recipe import Recipe

_BATCH = 64


@dataclass(frozen=True)
class Scores:
    """What a model does on held-out source images."""

    ids: list[str]
    clean_correct: list[bool]
    robust_correct: list[bool]
    """Right and not broken, in the order of `ids`."""
    true_probability: float
    """Mean softmax probability of the true class on the attacked images; clean mistakes as they are."""
    text_clean: float | None = None
    """Clean accuracy in [0, 1] by the class texts, where a head or a dictionary gave the scores."""
    scored_by: str = "texts"
    """What gave the logits, or the truth: `Objective.scored_by`."""
    clean_probability: float | None = None
    """Mean softmax probability of the true class on the clean images."""

    @property
    def clean(self) -> float:
        """Clean accuracy in [0, 1]."""
        return sum(self.clean_correct) / len(self.ids)

    @property
    def robust(self) -> float:
        """Robust accuracy in [0, 1]; clean mistakes count as broken."""
        return sum(self.robust_correct) / len(self.ids)

    def row(self) -> dict[str, Any]:
        """Return the log line; "scored_by" says what gave the logits, or the truth."""
        row: dict[str, Any] = {
            "samples": len(self.ids),
            "scored_by": self.scored_by,
            "clean": self.clean,
            "robust": self.robust,
            "true_probability": self.true_probability,
        }
        if self.clean_probability is not None:
            row["clean_probability"] = self.clean_probability
        return row if self.text_clean is None else row | {"text_clean": self.text_clean}


def kept_scores(file: Path, asked: dict[str, Any], score: Callable[[], Scores]) -> Scores:
    """Return the scores in `file` if they are those that are asked for; else score, and keep them there.

    Args:
        file: JSON, there or not.
        asked: what determines the scores, as JSON.
        score: called if they are not there.

    Raises:
        UserError: if the file is damaged.
        EnvironmentFault: if it cannot be written.
    """
    if file.is_file():
        try:
            record = json.loads(file.read_text("utf-8"))
            if record.get("asked") == asked:
                return Scores(**record["scores"])
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise UserError(
                f"{file} is damaged: delete it, what it held is then scored again."
            ) from error
    found = score()
    write_json(file, {"asked": asked, "scores": asdict(found)})
    return found


def recipe_geometry(
    recipe: Recipe, clip: Clip, source: SourceData
) -> Callable[[Image], Image] | None:
    """Return resize and crop before the attack; None where the ball lies at native resolution."""
    resolution = recipe.threat.resolution or source.images.resolution
    if resolution == "native":
        return None
    rule = clip.preprocess.under(recipe.source.preprocess, source.images.paper_resize)
    return rule.geometry()


@dataclass(frozen=True)
class HeldOut:
    """Held-out source images, opened."""

    images: ImageSet
    classes: list[str] | None
    """The source's class names; of a source without any, their own."""
    classnames: list[str]
    """What stands in the templates."""


def open_held_out(recipe: Recipe, source: SourceData) -> HeldOut:
    """Open the recipe's held-out source images.

    They need labels, unless the objective makes its own, and the source's class names. A source without
    class names (`fare`, `imgcoadv` and `tecoa-pairs` need none) leaves them to the held-out images.

    Raises:
        UserError: if the recipe has no validation block, or if the set has no labels, has other class
            names than the source, or is what is trained on.
    """
    settings = recipe.validation
    if settings is None:
        raise UserError("the recipe has no validation block: add one with set, split and limit.")
    attacks.plan(settings.attack, recipe.attack_threat())
    images = data.open_set(settings.set or recipe.source.set, settings.split)
    whole = [opened.split.partition("[")[0] for opened in (images, source.images)]
    if settings.set in (None, recipe.source.set) and whole[0] == whole[1]:
        shared = set(source.ids) & {images.ids[i] for i in images.first(settings.limit)}
        if shared:
            raise UserError(
                f"validation.split {settings.split!r} is the split that is trained on, {len(shared)} of its "
                f"images are; hold some out, as {whole[0]}[{len(source.ids)}:] does."
            )
    named = f"validation set {settings.set or recipe.source.set!r}"
    needs = objective_class(recipe.objective.name).needs
    if needs == "names" and images.classnames is None:
        return HeldOut(images, source.classes, source.classnames or [])
    if images.labels is None or images.classnames is None:
        raise UserError(
            f"{named} has no labels, so that nothing can be scored: name images of the source in class "
            "folders as validation.set, or leave the validation block out."
        )
    if source.classes is None and needs in ("images", "captions"):
        return HeldOut(
            images, images.classnames, images.texts(recipe.source.templates)[0] or images.classnames
        )
    if source.classes != images.classnames:
        raise UserError(
            f"{named} must have the source's class names: name held-out images of its classes as "
            "validation.set, or leave the validation block out."
        )
    return HeldOut(images, source.classes, source.classnames or images.classnames)


def validate(
    recipe: Recipe,
    clip: Clip,
    source: SourceData,
    fabric: Fabric | None,
    head: HeadClassifier | None = None,
) -> Scores:
    """Attack the recipe's held-out source images at the trained eps; score what the objective trains.

    Where the objective makes its own labels, the truth is what the original model, loaded anew, sees in
    the clean image (in float32).

    The attack runs all its steps on every clean-correct sample, so that the probabilities compare
    models at the same effort.

    Args:
        recipe: its `validation` block says which images and which attack.
        clip: the model as it stands.
        source: what is trained on; its class names and templates are the texts.
        fabric: its device is taken; None takes the model's.
        head: the head that the objective trains or its dictionary, on the model's encoder: it is
            attacked and scored, and the class texts only give `text_clean`. None: the class texts are.

    Raises:
        UserError: as `open_held_out`.
    """
    opened = open_held_out(recipe, source)
    held_out, names = opened.images, opened.classnames
    settings = recipe.validation
    if settings is None:
        raise UserError("the recipe has no validation block: add one with set, split and limit.")
    scored_by = objective_class(recipe.objective.name).scored_by
    if head is None and scored_by in ("head", "dictionary"):
        scored_by = "texts"  # so asked
    device = clip.device if fabric is None else fabric.device
    texts = ZeroShotClassifier.from_texts(clip, names, source.templates).to(device)
    classifier = texts if head is None else head.to(device)
    dtype = torch.float32
    if recipe.precision == "fp64":
        dtype = torch.float64
        texts.double()
        classifier.double()
    original = None
    if scored_by == "pseudo-labels":
        before = load_clip(recipe.model, device)
        original = ZeroShotClassifier.from_texts(before, names, source.templates)
    classes = len(Groups.of(classifier.groups, len(classifier.groups), device).representative)
    plan = attacks.plan(f"{settings.attack}:early_exit=false", recipe.attack_threat(), classes)
    indices = held_out.first(settings.limit)

    text_correct = 0
    attacked_p: dict[str, float] = {}
    clean_p: dict[str, float] = {}

    def score(names: Sequence[str], logits: Tensor, labels: Tensor, into: dict[str, float]) -> None:
        true = logits.softmax(1).gather(1, labels[:, None])[:, 0]
        into.update(zip(names, true.tolist(), strict=True))

    def chunks() -> Iterator[Chunk]:
        nonlocal text_correct
        for batch in data.batches(held_out, indices, recipe_geometry(recipe, clip, source), _BATCH):
            images = to_unit(batch.images).to(device, dtype)
            with torch.no_grad():
                if original is not None:
                    labels = original(images.float()).argmax(1)
                elif batch.labels is not None:
                    labels = batch.labels.to(device)
                else:
                    raise UserError("the validation set has no labels.")
                logits = classifier(images)
                if head is not None:
                    found = texts.groups[texts(images).argmax(1)]  # equal texts are one (traps 57)
                    text_correct += int((found == texts.groups[labels]).sum())
            score(batch.ids, logits, labels, clean_p)
            yield Chunk(batch.ids, images, labels, logits)

    outcomes: dict[str, Outcome] = {}
    attacked: list[tuple[str, int, Tensor]] = []

    def flush() -> None:
        if attacked:
            with torch.no_grad():
                logits = classifier(torch.stack([image for _, _, image in attacked]))
            labels = torch.tensor([label for _, label, _ in attacked], device=device)
            score([name for name, _, _ in attacked], logits, labels, attacked_p)
            attacked.clear()

    for outcome in attack_chunks(
        classifier, chunks(), plan, device=device, seed=recipe.seed, keep_images=True
    ):
        outcomes[outcome.id] = outcome
        if outcome.image is not None:
            attacked.append((outcome.id, outcome.label, outcome.image))
            outcome.image = None  # only a batch of images is held at a time (traps 56)
        if len(attacked) == _BATCH:
            flush()
    flush()
    ids = [held_out.ids[i] for i in indices]
    shown = clean_p | attacked_p  # clean mistakes are never attacked: they stand as they are
    return Scores(
        ids=ids,
        clean_correct=[outcomes[i].clean_correct for i in ids],
        robust_correct=[outcomes[i].robust for i in ids],
        true_probability=sum(shown[i] for i in ids) / len(ids),
        text_clean=None if head is None else text_correct / len(ids),
        scored_by=scored_by,
        clean_probability=sum(clean_p[i] for i in ids) / len(ids),
    )
