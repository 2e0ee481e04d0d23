"""The rates of mini/ recipes are those that held-out source images chose, as the committed choices say."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from zsrobust.training.recipe import load_recipe, recipe_names
from zsrobust.workflows.study_recipe import load_study

CHOICES = sorted((Path(__file__).parents[2] / "results" / "scale" / "choices").glob("*.json"))
BY_TEXTS = "-by-texts"


@pytest.mark.parametrize("file", CHOICES, ids=lambda file: file.stem)
def test_a_rate_is_the_one_that_was_chosen(file: Path):
    """Of a recipe's own name; scored by class texts, of its twin at that rate; other grids fix none."""
    choice = json.loads(file.read_text("utf-8"))
    assert choice["chosen"] in [row["lr"] for row in choice["grid"]]
    assert choice["held_out"]["split"] == "val"
    assert choice["held_out"]["limit"] == 500
    if file.stem.startswith(("prompts-start", "schedule")):
        return
    if file.stem == "tecoa-budget-eps2":
        runs = {one.labels["adaptation"]: one.recipe for one in load_study("mini/partial")[1]}
        assert runs["budget 6900"].optimiser.lr == choice["chosen"]
        return
    name = f"mini/{file.stem}"
    if file.stem.endswith(BY_TEXTS):
        name = name.removesuffix(BY_TEXTS).replace("-eps2", "-texts-eps2")
        assert {row["scored_by"] for row in choice["grid"]} == {"texts"}
    else:
        assert choice["recipe"] == name
    assert name in recipe_names()
    assert load_recipe(name).optimiser.lr == pytest.approx(choice["chosen"])
