"""Hardenings by every objective beside tecoa and adv: what they need, learn, keep, and are scored with."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from zsrobust import data
from zsrobust.errors import UserError
from zsrobust.models import HeadClassifier, ZeroShotClassifier, load_clip
from zsrobust.objectives.coadv import random_dictionary
from zsrobust.preprocess import to_unit
from zsrobust.training import loop
from zsrobust.training.loop import harden
from zsrobust.training.recipe import Recipe, parse_recipe
from zsrobust.training.run import Run

NAMES = ["blue star", "green box", "grey cat", "red ball", "white dog"]
KINDS: dict[str, dict[str, Any]] = {
    "ce": {"name": "ce"},
    "coadv": {"name": "coadv"},
    "coadv-trained": {"name": "coadv", "dictionary": "trained"},
    "imgcoadv": {"name": "imgcoadv"},
    "tecoa-pseudo": {"name": "tecoa-pseudo"},
    "fare": {"name": "fare"},
}


@pytest.fixture
def base(toy_recipe) -> dict[str, Any]:
    """Scored on all held-out pictures."""
    return {**toy_recipe, "validation": {"split": "val", "limit": 30, "attack": "pgd-2"}}


@pytest.fixture
def bare_folder(tiny_set_folder, tmp_path) -> Path:
    """The sixty images without labels or class names: DIR/train/*.png."""
    folder = tmp_path / "bare" / "train"
    folder.mkdir(parents=True)
    for image in sorted((tiny_set_folder / "train").rglob("*.png")):
        shutil.copy(image, folder / f"{image.parent.name}-{image.name}")
    return folder.parent


def numbers(run: Run) -> dict[str, torch.Tensor]:
    """Everything that a run leaves: the model's tensors and a dictionary's."""
    found = dict(load_clip(run.spec).model.state_dict())
    if (run.model / "head.safetensors").is_file():
        found["head"] = read_head(run).weight
    return found


def read_head(run: Run) -> HeadClassifier:
    return HeadClassifier.from_file(
        load_clip(run.spec).image_encoder(), run.model / "head.safetensors"
    )


def held_out(recipe: Recipe) -> tuple[torch.Tensor, torch.Tensor]:
    """Images (N, 3, 16, 16) in [0, 1] and labels of the validation split, in its order."""
    images = data.open_set(recipe.source.set, "val")
    geometry = load_clip(recipe.model).preprocess.geometry()
    batch = next(data.batches(images, images.first(30), geometry, 30))
    return to_unit(batch.images), batch.labels


def predicted(classifier: torch.nn.Module, images: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return classifier(images).argmax(1)


@pytest.mark.parametrize("kind", KINDS)
def test_training_lowers_the_objectives_own_loss(base, tmp_path, kind):
    """The last epoch's mean lies below the first one's; the image tower alone moved."""
    settings = {"objective": KINDS[kind], "epochs": 10, "validation": None, "checkpoint_every": 100}
    run = harden(parse_recipe({**base, **settings}), tmp_path / "run")
    losses = [row["loss"] for row in run.read_log("step")]
    # FARE begins at a loss that only the adversary makes.
    assert sum(losses[-4:]) < 0.9 * sum(losses[:4])
    before, after = load_clip(base["model"]).model.state_dict(), numbers(run)
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved
    assert all(name.startswith("visual.") for name in moved)
    record = json.loads((run.model / "adaptation.json").read_text())
    assert record["objective"]["name"] == KINDS[kind]["name"]
    assert record["fingerprint"] == load_clip(run.spec).fingerprint


@pytest.mark.parametrize("kind", KINDS)
def test_a_stopped_run_goes_on_to_the_same_weights(base, tmp_path, harden_until, kind):
    """Bit for bit, with what the objective trains along; what it keeps frozen is made again."""
    recipe = parse_recipe({**base, "objective": KINDS[kind]})
    whole = harden(recipe, tmp_path / "whole")
    harden_until(recipe, tmp_path / "cut", 5)
    checkpoint = torch.load(tmp_path / "cut" / "checkpoint.pt", weights_only=True)
    along = {name for name in checkpoint["parameters"] if not name.startswith("visual.")}
    assert along == ({"objective.vectors"} if kind == "coadv-trained" else set())
    torch.rand(3)  # what happens between the two must not matter
    resumed = harden(recipe, tmp_path / "cut")
    a, b = numbers(whole), numbers(resumed)
    assert all(torch.equal(a[name], b[name]) for name in a)
    for event in ("step", "validation"):
        assert whole.read_log(event) == resumed.read_log(event)


@pytest.mark.parametrize("kind", ["fare", "imgcoadv"])
def test_images_alone_are_enough(base, tmp_path, bare_folder, kind):
    """A folder without classes gives the run that the same images in class folders give, but for their order."""
    recipe = parse_recipe(
        {
            **base,
            "source": {"set": f"folder:{bare_folder}", "split": "train"},
            "objective": KINDS[kind],
            "validation": None,
            "epochs": 1,
        }
    )
    run = harden(recipe, tmp_path / "run")
    assert len(run.read_log("step")) == 4
    record = json.loads((run.model / "adaptation.json").read_text())
    assert record["source"]["set"] == "bare"
    source = loop.open_source(recipe)
    assert (source.classnames, source.classes) == (None, None)


def test_what_a_source_lacks_is_said_before_the_model_is_loaded(base, bare_folder, monkeypatch):
    """One line each: labels, class names, or held-out labels."""
    bare = {**base, "source": {"set": f"folder:{bare_folder}", "split": "train"}}
    monkeypatch.setattr(loop, "load_clip", lambda *_: pytest.fail("loaded"))
    for kind, message in (
        ("ce", "'ce' needs labels and class names, .* 'fare' with images alone"),
        ("coadv", "'coadv' needs labels"),
        ("tecoa-pseudo", "needs class names, .* list them as objective.classnames, or use 'fare'"),
    ):
        with pytest.raises(UserError, match=message):
            loop.open_source(parse_recipe({**bare, "objective": KINDS[kind]}))
    own = {"name": "tecoa-pseudo", "classnames": NAMES}
    with pytest.raises(
        UserError, match=r"has class names of its own: leave objective\.classnames out"
    ):
        loop.open_source(parse_recipe({**base, "objective": own}))


def test_held_out_images_need_labels(base, bare_folder, tmp_path):
    """fare without labels: refused in one line before training, or scored on labelled images of the source."""
    (bare_folder / "val").mkdir()
    for image in list((bare_folder / "train").iterdir())[:4]:
        shutil.copy(image, bare_folder / "val")
    bare = {
        **base,
        "source": {"set": f"folder:{bare_folder}", "split": "train"},
        "objective": KINDS["fare"],
        "epochs": 1,
    }
    with pytest.raises(
        UserError, match=r"no labels, so that nothing can be scored: .*validation\.set"
    ):
        harden(parse_recipe(bare), tmp_path / "none")
    labelled = {"set": base["source"]["set"], "split": "val", "limit": 30, "attack": "pgd-2"}
    run = harden(parse_recipe({**bare, "validation": labelled}), tmp_path / "run")
    (row,) = run.read_log("validation")
    images, labels = held_out(parse_recipe(base))
    texts = ZeroShotClassifier.from_texts(load_clip(run.spec), NAMES)
    assert row["clean"] == pytest.approx(float((predicted(texts, images) == labels).float().mean()))
    # The classes that it was judged by count as seen.
    (tmp_path / "labelled").mkdir()
    seen = harden(parse_recipe({**base, "objective": KINDS["fare"], "epochs": 1}), tmp_path / "l")
    records = [json.loads((r.model / "adaptation.json").read_text()) for r in (run, seen)]
    assert records[0]["source"]["classes"] == records[1]["source"]["classes"]


def test_held_out_images_of_other_classes_are_refused(base, other_set_folder, tmp_path):
    """Before training, in one line that says what to do."""
    other = {"set": f"folder:{other_set_folder}", "split": "test", "limit": 5, "attack": "pgd-2"}
    with pytest.raises(
        UserError, match=r"must have the source's class names: name held-out images .* leave"
    ) as caught:
        harden(parse_recipe({**base, "validation": other}), tmp_path / "run")
    assert "\n" not in str(caught.value)


def test_the_first_loss_of_fare_is_the_formula(base, tmp_path):
    """One step in float64 from the original weights: |e(x') - e(x)|^2 at the recipe's own adversary, by hand."""
    from zsrobust.randomness import ball_start, sample_keys
    from zsrobust.threat import Threat

    recipe = parse_recipe(
        {
            **base,
            "source": {**base["source"], "limit": 10},
            "objective": KINDS["fare"],
            "validation": None,
            "precision": "fp64",
            "adversary": {"steps": 3, "step_size": "1/255", "momentum": 0.9},
            "optimiser": {"name": "sgd", "lr": 0.05, "momentum": 0.0},
            "schedule": {"warmup": 0, "kind": "constant"},
            "epochs": 1,
            "micro_batch": 4,
        }
    )
    run = harden(recipe, tmp_path / "run")
    clip, source = load_clip(recipe.model), loop.open_source(recipe)
    batch = next(data.batches(source.images, source.indices, clip.preprocess.geometry(), 10))
    clip.model.double()
    encode, x = clip.image_encoder(), to_unit(batch.images).double()
    with torch.no_grad():
        e0 = encode(x)

    def loss(images):
        return (encode(images) - e0).pow(2).sum(1)

    keys, eps = sample_keys(0, "train/0", batch.ids), 2 / 255
    noise = ball_start(keys, torch.zeros_like(keys), x, "linf", eps)
    moved, velocity = Threat("linf", eps).project(x + noise, x), torch.zeros_like(x)
    for _ in range(3):
        moved = moved.detach().requires_grad_()
        (g,) = torch.autograd.grad(loss(moved).sum(), moved)
        velocity = (0.9 * velocity + g.sign()).sign()
        moved = (moved.detach() + velocity / 255).clamp(x - eps, x + eps).clamp(0, 1)
    parameters = dict(clip.model.visual.named_parameters())
    for parameter in parameters.values():
        parameter.requires_grad_(True)
    mean = loss(moved).mean()
    (row,) = run.read_log("step")
    assert row["loss"] == pytest.approx(mean.item(), rel=1e-5)
    gradients = torch.autograd.grad(mean, list(parameters.values()))
    found = load_clip(run.spec).model.state_dict()
    for (name, parameter), gradient in zip(parameters.items(), gradients, strict=True):
        expected = (parameter - 0.05 * gradient).float()
        torch.testing.assert_close(found[f"visual.{name}"], expected, rtol=0, atol=1e-6)


def test_pseudo_labels_are_the_original_models_and_their_accuracy_is_said_first(base, tmp_path):
    """In the log's start line and in one line before the first step; where there are labels."""
    recipe = parse_recipe({**base, "objective": KINDS["tecoa-pseudo"]})
    said: list[str] = []
    run = harden(recipe, tmp_path / "run", notify=said.append)
    clip, source = load_clip(recipe.model), loop.open_source(recipe)
    batch = next(data.batches(source.images, source.indices, clip.preprocess.geometry(), 60))
    labels = predicted(ZeroShotClassifier.from_texts(clip, NAMES), to_unit(batch.images))
    right = float((labels == batch.labels).float().mean())
    (start,) = run.read_log("start")
    assert start["pseudo_labels"] == {
        "images": 60,
        "classes_used": len(set(labels.tolist())),
        "accuracy": pytest.approx(right),
    }
    assert 0 < right < 1
    assert len(said) == 1
    assert "pseudo-labels of 60 source images" in said[0]
    assert f"{100 * right:.1f}% of them are right" in said[0]

    images, _ = held_out(recipe)
    before = predicted(ZeroShotClassifier.from_texts(clip, NAMES), images)
    after = predicted(ZeroShotClassifier.from_texts(load_clip(run.spec), NAMES), images)
    (row,) = run.read_log("validation")
    assert row["scored_by"] == "pseudo-labels"
    assert row["clean"] == pytest.approx(float((before == after).float().mean()))


def test_pseudo_labels_need_class_names_and_no_labels(base, tmp_path, bare_folder):
    """Names in the recipe: the labels are those that the same images in class folders get."""
    (bare_folder / "val").mkdir()
    for image in list((bare_folder / "train").iterdir())[:6]:
        shutil.copy(image, bare_folder / "val")
    said: list[str] = []
    recipe = parse_recipe(
        {
            **base,
            "source": {"set": f"folder:{bare_folder}", "split": "train"},
            "objective": {"name": "tecoa-pseudo", "classnames": NAMES},
            "epochs": 1,
        }
    )
    run = harden(recipe, tmp_path / "run", notify=said.append)
    (start,) = run.read_log("start")
    assert start["pseudo_labels"]["accuracy"] is None
    assert "their accuracy is unknown, the source has no labels" in said[0]
    assert run.read_log("validation")[0]["samples"] == 6
    one = {**base, "objective": KINDS["tecoa-pseudo"], "validation": None, "epochs": 1}
    same = harden(parse_recipe(one), tmp_path / "same").read_log("start")[0]["pseudo_labels"]
    assert same["classes_used"] == start["pseudo_labels"]["classes_used"]
    records = [
        json.loads((tmp_path / r / "model" / "adaptation.json").read_text())
        for r in ("run", "same")
    ]
    assert records[0]["source"]["classes"] == records[1]["source"]["classes"]


@pytest.mark.parametrize("kind", ["coadv", "coadv-trained"])
def test_a_dictionary_is_kept_and_scores_held_out_images(base, tmp_path, kind):
    """As a HeadClassifier; fixed it is the seed's, trained it has moved; its rows are of unit length."""
    recipe = parse_recipe({**base, "objective": KINDS[kind], "epochs": 6})
    run = harden(recipe, tmp_path / "run")
    head = read_head(run)
    images, labels = held_out(recipe)
    (row,) = run.read_log("validation")
    assert row["scored_by"] == "dictionary"
    assert row["clean"] == pytest.approx(float((predicted(head, images) == labels).float().mean()))
    assert "text_clean" in row
    assert (head.kind, head.classnames) == ("dictionary", NAMES)
    start = random_dictionary(5, 16, seed=0)
    assert torch.equal(head.weight, start) == (kind == "coadv")
    torch.testing.assert_close(head.weight.norm(dim=1), torch.ones(5))
    record = json.loads((run.model / "adaptation.json").read_text())
    assert record["head"] == {"kind": "dictionary", "classes": 5, "sha256": head.content_hash}


def test_accumulation_equals_the_whole_batch(base, tmp_path):
    """fare and tecoa-pseudo in micro-batches of unequal sizes (16 = 6 + 6 + 4); one step of SGD in float64."""
    for kind in ("fare", "tecoa-pseudo"):
        one = {
            **base,
            "objective": KINDS[kind],
            "source": {**base["source"], "limit": 16},
            "validation": None,
            "precision": "fp64",
            "optimiser": {"name": "sgd", "lr": 1e-3},
            "schedule": {"warmup": 0, "kind": "constant"},
            "epochs": 1,
        }
        a = numbers(harden(parse_recipe(one), tmp_path / kind / "a"))
        b = numbers(harden(parse_recipe({**one, "micro_batch": 6}), tmp_path / kind / "b"))
        start = load_clip(base["model"]).model.state_dict()
        assert max(float((a[n] - start[n]).abs().max()) for n in a) > 1e-5
        assert max(float((a[n] - b[n]).abs().max()) for n in a) < 1e-7


def test_without_an_adversary_the_best_epoch_is_that_of_clean_accuracy(base, tmp_path, monkeypatch):
    """ce: the second epoch is most robust, the third most accurate; the third is kept."""
    from zsrobust.training.validation import Scores

    states, rows = [], iter([(5, 4), (6, 6), (8, 2)])

    def fake(recipe, clip, source, fabric, head):
        states.append({n: t.clone() for n, t in clip.model.state_dict().items()})
        clean, robust = next(rows)
        first = [i < clean for i in range(10)], [i < robust for i in range(10)]
        return Scores([str(i) for i in range(10)], *first, 0.5)

    monkeypatch.setattr(loop, "validate", fake)
    best = {"select": "best", "validation": {**base["validation"], "every": "epoch"}, "epochs": 3}
    run = harden(parse_recipe({**base, **best, "objective": KINDS["ce"]}), tmp_path / "run")
    found = load_clip(run.spec).model.state_dict()
    assert all(torch.equal(found[n], states[2][n]) for n in found)


def test_ce_trains_without_an_attack(base, tmp_path, monkeypatch):
    """No adversary is ever asked, so eps moves nothing."""
    from zsrobust.training import step

    monkeypatch.setattr(step, "maximise", lambda *_, **__: pytest.fail("attacked"))
    one = {**base, "objective": KINDS["ce"], "validation": None, "epochs": 1}
    a = numbers(harden(parse_recipe(one), tmp_path / "a"))
    b = numbers(harden(parse_recipe({**one, "threat": {"eps": "8/255"}}), tmp_path / "b"))
    assert all(torch.equal(a[n], b[n]) for n in a)


@pytest.mark.parametrize("adversary", ["none", "pgd"])
def test_a_linear_probe_moves_its_head_alone(base, tmp_path, monkeypatch, harden_until, adversary):
    """The model is the original bit for bit; a stopped run goes on to the same head; clean images unless said."""
    recipe = parse_recipe(
        {
            **base,
            "objective": {"name": "linear", "adversary": adversary},
            "adaptation": {"name": "linear"},
            "optimiser": {"name": "adamw", "lr": 1e-2},
            "epochs": 6,
        }
    )
    assert recipe.chosen_by == ("clean" if adversary == "none" else "robust")
    from zsrobust.training import step

    if adversary == "none":
        monkeypatch.setattr(step, "maximise", lambda *_, **__: pytest.fail("attacked"))
    run = harden(recipe, tmp_path / "run")
    before, after = load_clip(base["model"]), load_clip(run.spec)
    assert after.fingerprint == before.fingerprint
    losses = [row["loss"] for row in run.read_log("step")]
    assert sum(losses[-4:]) < 0.8 * sum(losses[:4])
    images, labels = held_out(recipe)
    (row,) = run.read_log("validation")
    head = read_head(run)
    assert row["scored_by"] == "head"
    assert row["clean"] == pytest.approx(float((predicted(head, images) == labels).float().mean()))
    harden_until(recipe, tmp_path / "cut", 5)
    resumed = harden(recipe, tmp_path / "cut")
    assert resumed.read_log("step") == run.read_log("step")
    assert torch.equal(read_head(resumed).weight, head.weight)
