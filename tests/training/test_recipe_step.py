"""Every packaged recipe takes a step, on the embedded model and drawn pictures in the place of what it needs."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from zsrobust import data
from zsrobust.data.cards import card_names
from zsrobust.evaluation.measure import plan_to_measure
from zsrobust.models import load_clip
from zsrobust.threat import Threat
from zsrobust.training import harden, recipe_names
from zsrobust.training.recipe import parse_recipe, read_recipe
from zsrobust.workflows.study_recipe import load_study, study_names

pytestmark = pytest.mark.usefixtures("_one_vocabulary")

BATCH = 4


@pytest.fixture(scope="module")
def captioned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Drawn pictures with a caption each: DIR/train/*.png and *.txt."""
    root = tmp_path_factory.mktemp("captioned")
    (root / "train").mkdir()
    source = data.open_set("demo/source", "train")
    geometry = load_clip("tiny").preprocess.geometry()
    batch = next(data.batches(source, source.first(BATCH), geometry, BATCH))
    for number, image in enumerate(batch.images):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(root / "train" / f"{number}.png")
        (root / "train" / f"{number}.txt").write_text(f"picture number {number}")
    return root


def shrunk(recipe: dict[str, Any], captioned: Path) -> dict[str, Any]:
    """Return a recipe of one batch of four; what it minimises, moves and attacks with stays."""
    pairs = recipe["objective"]["name"] == "tecoa-pairs"
    recipe["source"] |= {
        "set": f"folder:{captioned}" if pairs else "demo/source",
        "limit": BATCH,
        "per_class": None,
        "templates": None,
    }
    recipe |= {"model": "tiny", "batch": BATCH, "epochs": 1, "validation": None, "evaluate": None}
    recipe["schedule"] |= {"warmup": 0}  # the one step has the whole rate
    if "width" in recipe["adaptation"]:  # pictures of 60 pixels have no room for a frame of 40
        recipe["adaptation"]["width"] = 8
    return recipe


@pytest.mark.parametrize("name", recipe_names())
def test_a_step_of_it_moves_the_model(tmp_path: Path, captioned: Path, name: str) -> None:
    """The loss is a number, and the hardened model is another one; a probe moves its head alone."""
    recipe = parse_recipe(shrunk(read_recipe(name), captioned))
    run = harden(recipe, tmp_path / "run")
    (step,) = run.read_log("step")
    assert math.isfinite(step["loss"])
    moved = load_clip(run.spec).fingerprint != load_clip("tiny").fingerprint
    assert moved == (recipe.adaptation.name != "linear")


@pytest.mark.parametrize("name", [*recipe_names(), *study_names()])
def test_what_it_measures_exists(name: str) -> None:
    """Its attacks are known under its radius; its sets have cards, or are a suite."""
    study = name in study_names()
    wanted = load_study(name)[0].evaluate if study else parse_recipe(read_recipe(name)).evaluate
    if wanted is None:
        return
    for attack in wanted.attacks:
        if attack != "clean":
            plan_to_measure(attack, Threat(wanted.norm, wanted.eps[0]))
    for spec in data.load_suite(wanted.sets).sets:
        assert spec in card_names()


@pytest.mark.slow
@pytest.mark.parametrize("name", study_names())
def test_a_step_of_each_of_a_studys_hardenings_moves_the_model(
    tmp_path: Path, captioned: Path, name: str
) -> None:
    """Every place of every axis, as one step of its recipe."""
    _, runs = load_study(name)
    for number, one in enumerate(runs):
        recipe = parse_recipe(shrunk(one.recipe.model_dump(mode="json"), captioned))
        run = harden(recipe, tmp_path / str(number))
        assert load_clip(run.spec).fingerprint != load_clip("tiny").fingerprint
