"""`zsrobust harden` end to end, and what is done with its model: eval, convert, tune."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from zsrobust.models import load_clip


def test_a_hardening_is_run_and_measured(hardened, model):
    """Two steps: table before and after, held-out source, and where the model is."""
    found = hardened.printed
    assert found.code == 0, found.err
    assert "Traceback" not in found.err
    assert "linf, eps 1/255" in found.out
    words = [line.split() for line in found.out.splitlines()]
    assert ["model", "set", "n", "clean", "pgd-2", "robust"] in words
    assert "run:runs/two-steps" in found.out
    assert "held-out source (20 images): clean" in found.err
    assert "hardened model: run:runs/two-steps" in found.err
    assert "local-dir:runs/two-steps/model" in found.err
    steps = [
        json.loads(line)
        for line in (hardened.run / "log.jsonl").read_text().splitlines()
        if '"event": "step"' in line
    ]
    assert [step["steps_done"] for step in steps] == [1, 2]


def test_a_hardening_moves_the_image_tower_alone(hardened, model):
    """The text tower and the scale are the original's, bit for bit."""
    before = load_clip(model).model.state_dict()
    after = load_clip(f"run:{hardened.run}").model.state_dict()
    assert before.keys() == after.keys()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved
    assert all(name.startswith("visual.") for name in moved)


def test_the_same_command_again_computes_nothing(zs, hardened, recipe, tmp_path, monkeypatch):
    """The finished run and its cells are read: same table, no file changed but the lock."""
    place = Path(shutil.copytree(hardened.place, tmp_path / "again"))
    monkeypatch.chdir(place)
    before = {p: p.read_bytes() for p in place.rglob("*") if p.is_file() and p.name != ".lock"}
    found = zs("harden", recipe)
    assert found.code == 0
    assert found.out == hardened.printed.out
    assert found.err == hardened.printed.err
    assert {p: p.read_bytes() for p in before} == before
    parsed = json.loads(zs("harden", recipe, "--json").out)
    assert parsed["model"] == "run:runs/two-steps"
    assert parsed["validation"]["samples"] == 20
    assert [mean["sets"] for mean in parsed["table"]["means"]] == [1, 1]
    assert parsed["table"]["differences"][0]["model"] == "run:runs/two-steps"
    line = zs("harden", recipe, "epochs=2").mistake()
    assert "holds a run of another recipe (epochs was 1, is 2): choose another --out" in line


def test_what_scored_the_held_out_images_is_said(zs, recipe):
    """Of adv the head, and beside it what the class texts say; a head's start belongs to it alone."""
    adv = ("objective.name=adv", "source.limit=30", "--no-evaluate")
    found = zs("harden", recipe, *adv, "objective.head_start=probe", "--out", "adv")
    assert found.code == 0, found.err
    assert "held-out source (20 images, linear head): clean" in found.err
    assert "%; by class texts clean" in found.err
    line = zs("harden", recipe, "objective.head_start=probe").mistake()
    assert "objective 'tecoa' trains no linear head: leave it out, or use 'adv'" in line


def test_how_right_pseudo_labels_are_is_said_before_the_run(zs, recipe):
    """One line on standard error, and what scored the held-out images; of coadv its dictionary."""
    pseudo = ("objective.name=tecoa-pseudo", "source.limit=30", "--no-evaluate", "--out", "pseudo")
    found = zs("harden", recipe, *pseudo)
    assert found.code == 0, found.err
    assert "pseudo-labels of 30 source images" in found.err
    assert "% of them are right" in found.err
    assert found.err.index("pseudo-labels of") < found.err.index("held-out source")
    assert "held-out source (20 images, against pseudo-labels): clean" in found.err
    coadv = ("objective.name=coadv", "source.limit=30", "--no-evaluate", "--out", "coadv")
    assert "(20 images, dictionary): clean" in zs("harden", recipe, *coadv).err


def test_a_prompt_is_trained_measured_and_not_passed_off_as_weights(zs, recipe):
    """The table is of the model with its prompt; eval of run:DIR finds the same cells; convert says why not."""
    prompt = ("adaptation={name: pixel+token, width: 3, tokens: 2}", "--out", "prompted")
    found = zs("harden", recipe, *prompt)
    assert found.code == 0, found.err
    assert "run:prompted" in found.out
    assert "plain open_clip would load the model without them" in found.err
    assert "local-dir:prompted" not in found.err
    again = zs("harden", recipe, *prompt)
    assert (again.out, again.err) == (found.out, found.err)
    line = zs("convert", "run:prompted", "--out", "converted").mistake()
    assert "run:prompted carries prompts" in line
    assert "use run:prompted as it is, or convert the model that it started from" in line
    assert not Path("converted").exists()


def test_how_much_a_budget_moves_is_said(zs, recipe):
    """One line before the run; a setting of another adaptation, and a pair that is none, are mistakes."""
    budget = ("adaptation={name: partial, budget: 300}", "--no-evaluate", "--out", "partial")
    found = zs("harden", recipe, *budget)
    assert found.code == 0, found.err
    assert "numbers move (the budget is 300)" in found.err
    assert "local-dir:partial/model" in found.err
    line = zs("harden", recipe, "adaptation={name: token, rank: 2}").mistake()
    assert "rank is a setting of 'lora', adaptation 'token' has tokens, where" in line
    line = zs("harden", recipe, "adaptation.name=linear").mistake()
    assert "objective 'tecoa' with adaptation 'linear': this objective would move nothing" in line


def test_a_hardening_without_its_evaluation(zs, recipe, tmp_path):
    """--no-evaluate: no cells; overrides reach the run."""
    found = zs("harden", recipe, "seed=1", "--no-evaluate", "--out", "elsewhere", "--json")
    assert found.code == 0, found.err
    assert json.loads(found.out)["table"] is None
    assert not (tmp_path / "results").exists()
    assert json.loads((tmp_path / "elsewhere" / "recipe.json").read_text())["seed"] == 1


def test_a_run_is_measured_like_any_model(zs, hardened, strangers):
    """eval run:DIR gives the numbers that the hardening printed for it."""
    arguments = ["--sets", strangers, "--attacks", "clean,pgd-2", "--eps", "1/255", "--limit", "20"]
    found = json.loads(zs("eval", f"run:{hardened.run}", *arguments, "--json").out)
    cells = [
        path.parent / "outcomes.jsonl"
        for path in (hardened.place / "results").rglob("cell.json")
        if json.loads(path.read_text())["attack"]["name"] == "pgd-2"
        and json.loads(path.read_text())["weights"] == load_clip(f"run:{hardened.run}").fingerprint
    ]
    (cell,) = cells
    rows = [json.loads(line) for line in cell.read_text().splitlines()]
    right = sum(row["clean"] and not row.get("broken", False) for row in rows)
    assert found["means"][0]["mean"]["pgd-2"]["value"] == pytest.approx(right / 20)


def test_plain_open_clip_loads_a_converted_run(zs, hardened, strangers, tmp_path):
    """A folder that knows nothing of this package, with the same features; measured, it is the same cells."""
    import open_clip

    found = zs("convert", f"run:{hardened.run}", "--out", "converted")
    assert (found.code, found.out) == (0, "local-dir:converted\n")
    plain, _, transform = open_clip.create_model_and_transforms(f"local-dir:{tmp_path}/converted")
    clip = load_clip(f"run:{hardened.run}")
    images = torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        features = plain.eval().encode_image(clip.preprocess.normalise(images))
        assert torch.equal(features, clip.image_encoder()(images))
        tokens = open_clip.get_tokenizer(f"local-dir:{tmp_path}/converted")(["a cat"])
        assert torch.equal(plain.encode_text(tokens), clip.encode_texts(["a cat"]))
    assert transform is not None
    shutil.copytree(hardened.place / "results", tmp_path / "results")
    count = len(list((tmp_path / "results" / "cells").iterdir()))
    options = ["--sets", strangers, "--attacks", "pgd-2", "--limit", "20"]
    assert zs("eval", "local-dir:converted", *options).code == 0
    assert len(list((tmp_path / "results" / "cells").iterdir())) == count
    assert (
        "is there already" in zs("convert", f"run:{hardened.run}", "--out", "converted").mistake()
    )


def test_a_visual_state_dict_loads_over_its_base(zs, hardened, model, tmp_path):
    """--form visual: the form of RobustVLM's code, read back as FILE@BASE."""
    spec = f"run:{hardened.run}"
    found = zs("convert", spec, "--out", "tower.pt", "--form", "visual")
    assert (found.code, found.out) == (0, "tower.pt\n")
    state = torch.load(tmp_path / "tower.pt", weights_only=True)
    visual = load_clip(spec).model.visual.state_dict()
    assert state.keys() == visual.keys()
    assert all(torch.equal(state[name], visual[name]) for name in visual)
    assert load_clip(f"tower.pt@{model}").fingerprint == load_clip(spec).fingerprint


def test_tune_chooses_on_held_out_source_images(zs, recipe, tmp_path):
    """Two rates, and one beyond the end that won; grid and choice in choice.json; no target is opened."""
    arguments = ["tune", recipe, "batch=10", "--lr", "1e-3,1e-2", "--images", "20"]
    found = zs(*arguments, "--json")
    assert found.code == 0, found.err
    choice = json.loads(found.out)
    folder = tmp_path / "runs" / "tune" / "two-steps"
    assert json.loads((folder / "choice.json").read_text()) == choice
    rates = [row["lr"] for row in choice["grid"]]
    assert {1e-3, 1e-2} < set(rates)
    assert len(rates) == 3
    assert choice["chosen"] in rates
    assert all(row["samples"] == 20 for row in choice["grid"])
    assert not (tmp_path / "results").exists()
    logs = {path: path.read_bytes() for path in folder.rglob("log.jsonl")}
    assert len(logs) == 3
    again = zs(*arguments)
    assert again.code == 0
    assert "<- chosen" in again.out
    assert choice["reason"] in again.out
    assert f"optimiser.lr={choice['chosen']:.3g}" in again.err
    assert {path: path.read_bytes() for path in folder.rglob("log.jsonl")} == logs
