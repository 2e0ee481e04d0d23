"""What a run scores held-out images with beside class texts: a linear head, made at its start, or a dictionary."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor

from zsrobust import data
from zsrobust.adaptations.linear import LinearHead
from zsrobust.models import HeadClassifier
from zsrobust.objectives.coadv import CoAdv
from zsrobust.preprocess import to_unit
from zsrobust.progress import progress_bar
from zsrobust.training.validation import recipe_geometry

if TYPE_CHECKING:
    from zsrobust.models import Clip
    from zsrobust.objectives.objective import Objective
    from zsrobust.training.loop import SourceData
    from zsrobust.training.recipe import Recipe

_BATCH = 64


def start_head(
    recipe: Recipe, clip: Clip, source: SourceData, *, fit: bool = True, progress: bool = False
) -> LinearHead:
    """Return the head at its start, a function of recipe and data alone, on the model's device.

    Args:
        recipe: its `objective.head_start` says which start, its seed which random one.
        clip: the model before hardening; it gives a probe its features.
        source: its used images are what a probe is fitted on, its class names are the head's rows.
        fit: False where a checkpoint's head is put in afterwards: a probe is not fitted again then, a
            random head stands in its place.
        progress: draw a progress bar while a probe's features are computed.

    Raises:
        UserError: if the source has fewer than two classes.
        FloatingPointError: if a feature of a probe is not finite.
    """
    classes = len(source.classes or [])
    if recipe.objective.head_start == "probe" and fit:
        features, labels = _clean_features(recipe, clip, source, progress)
        return LinearHead.probe(features, labels, classes)
    dimensions = int(clip.config["model_cfg"]["embed_dim"])
    return LinearHead.random(classes, dimensions, recipe.seed).to(clip.device)


def trained_head(objective: Objective, clip: Clip, source: SourceData) -> HeadClassifier | None:
    """Return the classifier of the head or the dictionary as it stands; None where class texts score."""
    encoder, names = clip.image_encoder(), source.classes
    if isinstance(objective, CoAdv):
        vectors = objective.unit_vectors()
        return HeadClassifier.dictionary(encoder, vectors, objective.scale, names)
    if not objective.trains_head:
        return None
    head = objective.head
    return HeadClassifier.linear(encoder, head.weight, head.bias, names)


def _clean_features(
    recipe: Recipe, clip: Clip, source: SourceData, progress: bool
) -> tuple[Tensor, Tensor]:
    """Return features (N, D) and labels (N,) of the used source images, as training sees them."""
    encoder = clip.image_encoder("bf16" if recipe.precision == "bf16" else "fp32")
    geometry = recipe_geometry(recipe, clip, source)
    features, labels = [], []
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        bar = stack.enter_context(progress_bar()) if progress else None
        task = bar.add_task("features for the probe", total=len(source.indices)) if bar else None
        for batch in data.batches(source.images, source.indices, geometry, _BATCH):
            features.append(encoder(to_unit(batch.images.to(clip.device))))
            labels.append(cast(Tensor, batch.labels).to(clip.device))
            if bar and task is not None:
                bar.advance(task, len(batch))
    return torch.cat(features), torch.cat(labels)
