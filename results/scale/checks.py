"""Check the hardenings behind the table against slow references, before a finding is called failed.

    python results/scale/checks.py [FOLDER of zsrobust study mini/scale]

On 16 source photographs, for the model as each run left it: its features against plain open_clip's (prompts stand
in no plain model; tests/adaptations has a reference of theirs), the objective's losses against the formula in
float64, and two gradients, of what was trained and of the image that an adversary moves, against central
differences. Anchors and scale are compared once. Writes results/scale/checks.json, which page.py shows.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
from lightning_fabric import Fabric
from safetensors.torch import load_file
from torch import Tensor

from zsrobust import data
from zsrobust.cli.output import say
from zsrobust.files import write_json
from zsrobust.models import Clip, load_clip
from zsrobust.models.classifier import text_anchors
from zsrobust.models.load import HEAD_NAME
from zsrobust.models.spec import parse_spec
from zsrobust.objectives.objective import Objective, TrainingBatch
from zsrobust.training.loop import SourceData, build_objective, open_source
from zsrobust.training.recipe import Recipe
from zsrobust.training.run import Run
from zsrobust.training.validation import recipe_geometry
from zsrobust.workflows.collection_recipe import load_collection

HERE = Path(__file__).resolve().parent
COLLECTION = "mini/scale"
IMAGES = 16
STEP = 1e-4
"""Of the central differences, in the unit of what moves."""


def main() -> None:
    """Check every run of the rows."""
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path("runs") / "studies" / COLLECTION
    collection = load_collection(COLLECTION)
    if collection is None:
        raise SystemExit(f"{COLLECTION} is no collection")
    (rows,) = (member for member in collection.members if member.folder == "rows")
    runs = []
    for one in rows.combinations:
        place = folder / "runs" / one.folder
        runs.append({"run": one.folder, **check_run(place)})
        say(f"{runs[-1]}")
    model = rows.combinations[0].recipe.model
    write_json(HERE / "checks.json", {"model": check_model(model), "runs": runs})


def check_model(spec: str) -> dict[str, float]:
    """Return how far anchors and scale of the model before hardening lie from plain open_clip's."""
    clip, (plain, tokenizer) = load_clip(spec), _plain(parse_spec(spec).folder)
    names = ["dog", "traffic light", "sea snake, serpent of the sea"]
    with torch.no_grad():
        features = plain.encode_text(tokenizer([f"a photo of a {name}." for name in names]))
    expected = features / features.norm(dim=1, keepdim=True)
    found = text_anchors(clip, names, ["a photo of a {}."]).anchors
    return {
        "anchors": float((found - expected).abs().max()),
        "scale": abs(clip.logit_scale - float(plain.logit_scale.detach().exp())),
    }


def check_run(place: Path) -> dict[str, float | None]:
    """Return how far a hardened model's features, losses and gradients lie from their references."""
    recipe = Recipe.model_validate_json((place / "recipe.json").read_text("utf-8"))
    run = Run(place, recipe)
    before, after = load_clip(recipe.model), load_clip(run.spec)
    source = open_source(recipe)
    source = replace(source, indices=source.indices[:IMAGES])
    batch = _batch(recipe, before, source)
    plain_features = None
    if not recipe.adaptation.name.startswith(("pixel", "token")):
        with torch.no_grad():
            clean = after.image_encoder()(batch.images)
            other = _plain(run.model)[0].encode_image(after.preprocess.normalise(batch.images))
        plain_features = float((clean - other).abs().max() / other.abs().max())

    objective = _objective(recipe, run, before, source)
    after.model.double()
    objective.double()
    encode = after.image_encoder()
    batch.images = batch.images.double()
    moved = (batch.images + 2 / 255 * torch.sign(torch.sin(37 * batch.images))).clamp(0, 1)
    batch = objective.prepare(batch, encode)
    with torch.no_grad():
        found = objective.losses(encode, moved, batch)
        expected = by_formula(objective, encode, moved, batch)
    trained = _trained(after, before, objective)
    return {
        "features": plain_features,
        "losses": float(np.abs(found.numpy() - expected).max()),
        "gradient of what is trained": _gradient(
            lambda: objective.losses(encode, moved, batch).mean(), trained
        ),
        "gradient of the image": _gradient(
            lambda: objective.attack_losses(encode, moved, batch).sum(), [moved]
        ),
    }


def _plain(folder: Path | None) -> tuple[Any, Any]:
    """Return a folder's model as open_clip alone loads it, and its tokenizer."""
    model = open_clip.create_model(f"local-dir:{folder}").eval()
    return model, open_clip.get_tokenizer(f"local-dir:{folder}")


def _batch(recipe: Recipe, clip: Clip, source: SourceData) -> TrainingBatch:
    geometry = recipe_geometry(recipe, clip, source)
    (read,) = data.batches(source.images, source.indices, geometry, IMAGES)
    captions = None if read.captions is None else [texts[0] for texts in read.captions]
    return TrainingBatch(read.ids, read.images.float() / 255, read.labels, captions)


def _objective(recipe: Recipe, run: Run, clip: Clip, source: SourceData) -> Objective:
    """Return the run's objective as it was at the end: a head with what was learnt."""
    random = {**recipe.objective.model_dump(), "head_start": None}
    plain = recipe.model_copy(update={"objective": type(recipe.objective).model_validate(random)})
    fabric = Fabric(accelerator="cpu", devices=1)
    objective, _ = build_objective(plain, clip, source, fabric)
    if objective.trains_head:
        kept = load_file(run.model / HEAD_NAME)
        objective.head.load_state_dict({name: kept[name] for name in ("weight", "bias")})
    return objective


def by_formula(objective: Any, encode: Any, images: Tensor, batch: Any) -> Any:
    """Return each sample's loss from features alone, in NumPy (facts 2.1, 5; successors 3.1)."""
    features, clean = encode(images).numpy(), encode(batch.images).numpy()
    if objective.name == "fare":
        return np.square(features - batch.targets["original"].double().numpy()).sum(axis=1)
    if objective.name == "imgcoadv":
        logits, own = objective.scale * _unit(features) @ _unit(clean).T, np.arange(len(features))
    elif objective.trains_head:
        weight, bias = objective.head.weight.numpy(), objective.head.bias.numpy()
        logits, own = features @ weight.T + bias, batch.labels.numpy()
    elif objective.name == "coadv":
        logits = objective.scale * _unit(features) @ objective.vectors.numpy().T
        own = batch.labels.numpy()
    elif objective.name == "tecoa-pairs":
        anchors, own = batch.targets["anchors"].double().numpy(), batch.targets["own"].numpy()
        logits = objective.scale * _unit(features) @ anchors.T
    else:
        logits = objective.scale * _unit(features) @ objective.anchors.numpy().T
        own = batch.labels.numpy()
    shifted = logits - logits.max(axis=1, keepdims=True)
    return np.log(np.exp(shifted).sum(axis=1)) - shifted[np.arange(len(own)), own]


def _unit(rows: Any) -> Any:
    return rows / np.sqrt(np.square(rows).sum(axis=1, keepdims=True))


def _trained(after: Clip, before: Clip, objective: Objective) -> list[Tensor]:
    """Return what the hardening moved: new parameters, or those of the tower that differ, and a head."""
    old = dict(before.model.named_parameters())
    new = dict(after.model.named_parameters())
    added = [p for name, p in new.items() if name not in old]
    moved = [p for name, p in new.items() if name in old and not torch.equal(p.float(), old[name])]
    return [*(added or moved), *(p for p in objective.parameters() if objective.trains_head)]


def _gradient(loss: Callable[[], Tensor], moving: list[Tensor]) -> float:
    """Return the relative error of the derivative along a fixed direction, half of it the gradient's own."""
    for tensor in moving:
        tensor.requires_grad_(True)
    gradients = torch.autograd.grad(loss(), moving)
    for tensor in moving:
        tensor.requires_grad_(False)
    generator = torch.Generator().manual_seed(0)
    drawn = [torch.randn(g.shape, generator=generator, dtype=g.dtype) for g in gradients]
    along = [
        g / _length(gradients) + d / _length(drawn) for g, d in zip(gradients, drawn, strict=True)
    ]
    derivative = sum(float((g * a).sum()) for g, a in zip(gradients, along, strict=True))

    def at(share: float) -> float:
        with torch.no_grad():
            for tensor, a in zip(moving, along, strict=True):
                tensor.add_(a, alpha=share)
            value = float(loss())
            for tensor, a in zip(moving, along, strict=True):
                tensor.sub_(a, alpha=share)
        return value

    difference = (at(STEP) - at(-STEP)) / (2 * STEP)
    return abs(difference - derivative) / abs(derivative)


def _length(tensors: Any) -> float:
    return float(sum(float(t.square().sum()) for t in tensors) ** 0.5)


if __name__ == "__main__":
    main()
