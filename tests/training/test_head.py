"""A hardening with the objective adv: its head starts, trains, resumes, is kept, and scores held-out images."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from zsrobust import attacks, data
from zsrobust.adaptations.linear import LinearHead
from zsrobust.models import HeadClassifier, ZeroShotClassifier, load_clip
from zsrobust.preprocess import to_unit
from zsrobust.training import loop
from zsrobust.training.head import start_head
from zsrobust.training.loop import harden, open_source
from zsrobust.training.recipe import Recipe, parse_recipe
from zsrobust.training.run import Run


@pytest.fixture
def base(toy_recipe) -> dict[str, Any]:
    """With the objective adv, scored on all held-out pictures."""
    validation = {"split": "val", "limit": 30, "attack": "pgd-2"}
    return {**toy_recipe, "objective": {"name": "adv"}, "validation": validation}


def numbers(run: Run) -> dict[str, torch.Tensor]:
    """Everything that a run leaves: the model's tensors and the head's."""
    clip = load_clip(run.spec)
    head = read_head(run)
    return clip.model.state_dict() | {"head.weight": head.weight, "head.bias": head.bias}


def read_head(run: Run) -> HeadClassifier:
    encoder = load_clip(run.spec).image_encoder()
    return HeadClassifier.from_file(encoder, run.model / "head.safetensors")


def held_out(recipe: Recipe) -> tuple[torch.Tensor, torch.Tensor]:
    """Images (N, 3, 16, 16) in [0, 1] and labels of the validation split, in its order."""
    images = data.open_set(recipe.source.set, "val")
    geometry = load_clip(recipe.model).preprocess.geometry()
    batch = next(data.batches(images, images.first(30), geometry, 30))
    return to_unit(batch.images), batch.labels


def right(classifier: torch.nn.Module, images: torch.Tensor, labels: torch.Tensor) -> float:
    with torch.no_grad():
        return float((classifier(images).argmax(1) == labels).float().mean())


def test_a_run_keeps_its_head_and_was_scored_with_it(base, tmp_path):
    """head.safetensors loads into HeadClassifier and gives the accuracies that the log holds; so do the texts."""
    recipe = parse_recipe({**base, "epochs": 12})
    run = harden(recipe, tmp_path / "run")
    files = {p.name for p in run.model.iterdir()}
    assert files == {
        "adaptation.json",
        "head.safetensors",
        "open_clip_config.json",
        "open_clip_model.safetensors",
    }
    losses = [row["loss"] for row in run.read_log("step")]
    assert sum(losses[-4:]) < 0.8 * sum(losses[:4])

    head = read_head(run)
    images, labels = held_out(recipe)
    (row,) = run.read_log("validation")
    assert row["scored_by"] == "head"
    assert row["clean"] == pytest.approx(right(head, images, labels))
    names = open_source(recipe).images.classnames
    source = data.open_set(recipe.source.set, "val")
    outcomes = attacks.run(
        head,
        images,
        labels,
        ids=[source.ids[i] for i in source.first(30)],
        attack="pgd-2",
        norm="linf",
        eps="2/255",
    )
    assert row["robust"] == pytest.approx(attacks.robust_accuracy(outcomes))
    assert 0 < row["robust"] <= row["clean"]
    texts = ZeroShotClassifier.from_texts(load_clip(run.spec), names)
    assert row["text_clean"] == pytest.approx(right(texts, images, labels))
    assert row["text_clean"] != row["clean"]

    assert head.classnames == names
    record = json.loads((run.model / "adaptation.json").read_text())
    assert record["objective"] == {"name": "adv", "head": "linear", "head_start": "random"}
    assert record["head"] == {"kind": "linear", "classes": 5, "sha256": head.content_hash}


def test_the_zero_shot_model_loads_without_its_head(base, tmp_path):
    """run:DIR and plain open_clip pass over the file; text tower and scale stay bit for bit, the tower moved."""
    import open_clip

    run = harden(parse_recipe({**base, "epochs": 1, "validation": None}), tmp_path / "run")
    before, ours = load_clip(base["model"]).model.state_dict(), load_clip(run.spec)
    plain = open_clip.create_model(f"local-dir:{run.model}").state_dict()
    after = ours.model.state_dict()
    assert all(torch.equal(after[n], plain[n]) for n in after)
    moved = {n for n in before if not torch.equal(before[n], after[n])}
    assert moved
    assert all(n.startswith("visual.") for n in moved)


@pytest.mark.parametrize("start", ["random", "probe"])
@pytest.mark.parametrize("stop_at", [1, 5])
def test_a_stopped_run_goes_on_to_the_same_model_and_head(
    base, tmp_path, monkeypatch, harden_until, start, stop_at
):
    """Bit for bit; a probe is not fitted again, the checkpoint holds the head."""
    recipe = parse_recipe({**base, "objective": {"name": "adv", "head_start": start}})
    whole = harden(recipe, tmp_path / "whole")
    harden_until(recipe, tmp_path / "cut", stop_at)
    assert (tmp_path / "cut" / "checkpoint.pt").is_file()
    monkeypatch.setattr(LinearHead, "probe", lambda *_: pytest.fail("fitted again"))
    torch.rand(3)  # what happens between the two must not matter
    resumed = harden(recipe, tmp_path / "cut")

    a, b = numbers(whole), numbers(resumed)
    assert all(torch.equal(a[name], b[name]) for name in a)
    for event in ("step", "validation"):
        assert whole.read_log(event) == resumed.read_log(event)


def test_a_probe_is_fitted_on_the_clean_features_of_the_source(base, tmp_path):
    """Of the model before hardening, on the used images alone; it is the head that training starts from."""
    recipe = parse_recipe(
        {
            **base,
            "source": {**base["source"], "limit": 40},
            "objective": {"name": "adv", "head_start": "probe"},
            "optimiser": {"name": "sgd", "lr": 1e-12},
            "epochs": 1,
            "validation": None,
        }
    )
    clip, source = load_clip(recipe.model), open_source(recipe)
    batch = next(data.batches(source.images, source.indices, clip.preprocess.geometry(), 40))
    assert len(batch) == 40
    with torch.no_grad():
        features = clip.image_encoder()(to_unit(batch.images))
    expected = LinearHead.probe(features, batch.labels, 5)
    run = harden(recipe, tmp_path / "run")
    found = read_head(run)
    torch.testing.assert_close(found.weight, expected.weight.detach(), rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(found.bias, expected.bias.detach(), rtol=1e-3, atol=1e-4)
    record = json.loads((run.model / "adaptation.json").read_text())
    assert record["objective"]["head_start"] == "probe"


def test_a_random_head_follows_the_seed_alone(base):
    """Not the global stream, not the data's size; `resumes` changes it for probes alone."""
    recipe = parse_recipe(base)
    clip = load_clip(recipe.model)
    first = start_head(recipe, clip, open_source(recipe)).weight
    torch.manual_seed(5)
    fewer = parse_recipe({**base, "source": {**base["source"], "limit": 20}})
    assert torch.equal(first, start_head(fewer, clip, open_source(fewer), fit=False).weight)
    assert torch.equal(first, LinearHead.random(5, 16, seed=0).weight)
    other = parse_recipe({**base, "seed": 1})
    assert not torch.equal(first, start_head(other, clip, open_source(other)).weight)


def test_one_step_moves_the_head_by_the_rate_of_the_tower(base, tmp_path):
    """SGD in float64 on clean images (no adversary): W - lr (dL/dW + decay W), b - lr dL/db, by the formula."""
    recipe = parse_recipe(
        {
            **base,
            "source": {**base["source"], "limit": 16},
            "validation": {**base["validation"], "limit": 5},
            "precision": "fp64",
            "adversary": {"steps": 0, "start": "clean"},
            "optimiser": {"name": "sgd", "lr": 0.05, "momentum": 0.0, "weight_decay": 0.1},
            "schedule": {"warmup": 0, "kind": "constant"},
            "epochs": 1,
            "micro_batch": 7,
        }
    )
    found = read_head(harden(recipe, tmp_path / "run"))

    clip, source = load_clip(recipe.model), open_source(recipe)
    batch = next(data.batches(source.images, source.indices, clip.preprocess.geometry(), 16))
    clip.model.double()
    with torch.no_grad():
        features = clip.image_encoder()(to_unit(batch.images).double())
    start = LinearHead.random(5, 16, seed=0).double()
    error = (features @ start.weight.T + start.bias).softmax(1)
    error = (error - torch.nn.functional.one_hot(batch.labels, 5)).detach()
    weight = start.weight - 0.05 * (error.T @ features / 16 + 0.1 * start.weight)
    bias = start.bias - 0.05 * error.mean(0)
    torch.testing.assert_close(found.weight, weight.detach().float(), rtol=0, atol=1e-6)
    torch.testing.assert_close(found.bias, bias.detach().float(), rtol=0, atol=1e-6)


def test_the_best_epochs_head_is_kept_with_its_model(base, tmp_path, monkeypatch):
    """select: best takes both from one epoch."""
    from zsrobust.training.validation import Scores

    scores, heads = iter([0.4, 0.8, 0.6]), []

    def fake(recipe, clip, source, fabric, head):
        heads.append(head.weight.clone())
        right = int(next(scores) * 10)
        return Scores([str(i) for i in range(10)], [True] * 10, [i < right for i in range(10)], 0.5)

    monkeypatch.setattr(loop, "validate", fake)
    best = {"select": "best", "validation": {**base["validation"], "every": "epoch"}}
    run = harden(parse_recipe({**base, **best, "epochs": 3}), tmp_path / "run")
    assert torch.equal(read_head(run).weight, heads[1])
    assert not torch.equal(heads[1], heads[2])


def test_a_text_run_keeps_no_head(base, tmp_path):
    """And its log says that the texts gave the scores."""
    recipe = parse_recipe({**base, "objective": {"name": "tecoa"}, "epochs": 1})
    run = harden(recipe, tmp_path / "run")
    assert not (run.model / "head.safetensors").exists()
    assert "head" not in json.loads((Path(run.model) / "adaptation.json").read_text())
    (row,) = run.read_log("validation")
    assert row["scored_by"] == "texts"
    assert "text_clean" not in row
