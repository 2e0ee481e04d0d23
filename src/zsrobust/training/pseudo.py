"""Pseudo-labels: the class that the original model sees in a clean image."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from zsrobust import data
from zsrobust.models import ZeroShotClassifier
from zsrobust.preprocess import to_unit
from zsrobust.progress import progress_bar
from zsrobust.training.validation import recipe_geometry

if TYPE_CHECKING:
    from lightning_fabric import Fabric

    from zsrobust.models import Clip
    from zsrobust.models.classifier import TextAnchors
    from zsrobust.training.loop import SourceData
    from zsrobust.training.recipe import Recipe

_BATCH = 64


@dataclass(frozen=True)
class PseudoLabels:
    """What the original model says of the source."""

    labels: dict[str, int]
    """Sample id -> the number of a class name; of classes with equal texts the first."""
    classes: int
    """How many class names there are."""
    accuracy: float | None
    """In [0, 1], any class of the true one's text counts as right; null where the source has no labels."""

    @property
    def used(self) -> int:
        """How many of the classes any image got."""
        return len(set(self.labels.values()))

    def row(self) -> dict[str, Any]:
        """Return it as JSON, for the log."""
        images = len(self.labels)
        return {"images": images, "classes_used": self.used, "accuracy": self.accuracy}

    def sentence(self) -> str:
        """Return it in words."""
        known = "their accuracy is unknown, the source has no labels"
        if self.accuracy is not None:
            known = f"{100 * self.accuracy:.1f}% of them are right"
        return (
            f"pseudo-labels of {len(self.labels)} source images, {self.used} of {self.classes} classes used: "
            f"{known}"
        )


def pseudo_labels(
    recipe: Recipe,
    clip: Clip,
    source: SourceData,
    texts: TextAnchors,
    fabric: Fabric,
    workers: int,
    *,
    progress: bool = False,
) -> PseudoLabels:
    """Predict the class of every used source image, clean, as training sees it, in float32.

    Each rank predicts its share. A run that resumes predicts again: the same, on the same machine.

    Args:
        recipe: where the ball lies, and with it how images are resized.
        clip: the model before hardening, on its device.
        source: its used images.
        texts: the anchors of its class names.
        fabric: its ranks.
        workers: loading processes.
        progress: draw a progress bar.
    """
    classifier = ZeroShotClassifier(clip.image_encoder(), texts.anchors, clip.logit_scale)
    found: dict[str, int] = {}
    right = labelled = 0
    mine = source.indices[fabric.global_rank :: fabric.world_size]
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        bar = stack.enter_context(progress_bar()) if progress else None
        task = bar.add_task("pseudo-labels", total=len(mine)) if bar else None
        geometry = recipe_geometry(recipe, clip, source)
        for batch in data.batches(source.images, mine, geometry, _BATCH, workers):
            predicted = classifier(to_unit(batch.images.to(clip.device))).argmax(1).cpu()
            found |= zip(batch.ids, predicted.tolist(), strict=True)
            if batch.labels is not None:
                groups = texts.groups.cpu()
                right += int((groups[predicted] == groups[batch.labels]).sum())
                labelled += len(batch)
            if bar and task is not None:
                bar.advance(task, len(batch))
    if fabric.world_size > 1:
        parts: list[Any] = [None] * fabric.world_size
        torch.distributed.all_gather_object(parts, (found, right, labelled))
        found = {name: label for part, _, _ in parts for name, label in part.items()}
        right, labelled = (sum(part[i] for part in parts) for i in (1, 2))
    classes = len(source.classnames or [])
    return PseudoLabels(found, classes, right / labelled if labelled else None)
