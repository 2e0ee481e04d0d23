"""Pretraining recipes: told from hardening recipes, read strictly, mistakes in one line."""

from __future__ import annotations

from importlib import resources
from typing import Any

import pytest
import yaml

from zsrobust.errors import UserError
from zsrobust.training import recipe as recipes
from zsrobust.training.recipe import load_recipe, parse_recipe, recipe_names
from zsrobust.workflows.pretrain_recipe import (
    load_pretrain_recipe,
    parse_pretrain_recipe,
    pretrain_recipe_names,
)

MINIMAL: dict[str, Any] = {
    "name": "x",
    "architecture": {"embed_dim": 8, "vision_cfg": {}, "text_cfg": {}},
    "source": {"set": "folder:a"},
    "optimiser": {"lr": 0.1},
}
HARDENING = {"name": "y", "model": "m", "source": {"set": "folder:a"}, "optimiser": {"lr": 0.1}}


def test_the_defaults_are_clips_own():
    """Of AdamW, and the clipped gradient; the rate has none."""
    recipe = parse_pretrain_recipe(MINIMAL)
    assert recipe.optimiser.betas == (0.9, 0.98)
    assert recipe.optimiser.weight_decay == 0.2
    assert (recipe.gradient_clip, recipe.patch_dropout, recipe.full_patches) == (1.0, 0.0, 0.15)


def test_machine_settings_do_not_determine_the_run():
    """A run may go on with other workers or another validation, not with another architecture."""
    base = parse_pretrain_recipe(MINIMAL).determining()
    free = {"validation": [{"set": "folder:b"}], "validate_every": 5, "workers": 3, "threads": 1}
    free |= {"keep_pixels": False, "checkpoint_every": 7, "device": "cpu", "title": "t"}
    assert parse_pretrain_recipe({**MINIMAL, **free}).determining() == base
    wider = {**MINIMAL["architecture"], "embed_dim": 16}
    for change in (
        {"seed": 1},
        {"batch": 32},
        {"architecture": wider},
        {"preprocess": {"mean": [0.5] * 3}},
        {"patch_dropout": 0.5},
        {"full_patches": 0.5},
        {"gradient_clip": None},
    ):
        assert parse_pretrain_recipe({**MINIMAL, **change}).determining() != base


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epoch": 3}, "unknown key 'epoch': did you mean 'epochs'"),
        ({"optimiser": {"lr": 0.1, "momentum": 0}}, "unknown key 'optimiser.momentum'"),
        ({"validation": [{"set": "a", "limt": 3}]}, "'validation.0.limt': did you mean 'limit'"),
        ({"optimiser": {}}, "key 'optimiser.lr' is missing"),
        ({"optimiser": {"lr": 0.1, "betas": [0.9, 1.0]}}, "optimiser.betas.1: must be less than 1"),
        ({"batch": 1}, "batch: .*greater than or equal to 2, got 1"),
        ({"patch_dropout": 1}, "patch_dropout: .*less than 1, got 1"),
        ({"precision": "bf16"}, "precision: .*'fp32'"),
        ({"architecture": 3}, "architecture: must be a block of keys"),
        ({"architecture": {"embed_dim": 8}}, "vision_cfg, text_cfg is missing"),
        (
            {"architecture": {"embed_dim": 8, "vision_cfg": 1, "text_cfg": {}}},
            "vision_cfg is a mapping, got 1",
        ),
        (
            {
                "architecture": {
                    "embed_dim": 8,
                    "vision_cfg": {"patch_dropout": 0.5},
                    "text_cfg": {},
                }
            },
            "patch dropout is given by the recipe's own key patch_dropout",
        ),
        ({"validate_every": 10}, "validate_every needs validation"),
        (
            {"schedule": {"warmup": 1.5}},
            "schedule.warmup: it is a number of steps, or a fraction below 1, got 1.5",
        ),
    ],
)
def test_a_wrong_key_type_or_value_is_one_line(change, message):
    """It names the key, what was given and what is allowed."""
    with pytest.raises(UserError, match=message) as caught:
        parse_pretrain_recipe({**MINIMAL, **change})
    assert "\n" not in str(caught.value)


def test_overrides_reach_into_the_architecture(tmp_path):
    """With dotted keys, as everywhere."""
    path = tmp_path / "r.yaml"
    path.write_text(yaml.safe_dump(MINIMAL))
    recipe = load_pretrain_recipe(
        str(path), ["architecture.vision_cfg.width=64", "optimiser.lr=1e-3"]
    )
    assert recipe.architecture["vision_cfg"] == {"width": 64}
    assert recipe.optimiser.lr == 1e-3


def test_each_kind_sends_the_other_to_its_command(tmp_path):
    """From a file, and from Python."""
    made, hardening = tmp_path / "made.yaml", tmp_path / "hardening.yaml"
    made.write_text(yaml.safe_dump(MINIMAL))
    hardening.write_text(yaml.safe_dump(HARDENING))
    with pytest.raises(
        UserError, match=r"made\.yaml trains a model from scratch .*zsrobust pretrain"
    ):
        load_recipe(str(made))
    with pytest.raises(UserError, match=r"hardening\.yaml hardens a model .*zsrobust harden"):
        load_pretrain_recipe(str(hardening))
    with pytest.raises(UserError, match="zsrobust pretrain"):
        parse_recipe(MINIMAL)
    with pytest.raises(UserError, match="zsrobust harden"):
        parse_pretrain_recipe(HARDENING)
    with pytest.raises(UserError, match="key 'architecture' is missing"):
        parse_pretrain_recipe({k: v for k, v in MINIMAL.items() if k != "architecture"})


def test_packaged_recipes_are_named_by_kind(monkeypatch, tmp_path):
    """And one of the other kind is found by its name all the same, to be told what it is."""
    (tmp_path / "recipes" / "some").mkdir(parents=True)
    for name, content in (("made", MINIMAL), ("hardening", HARDENING)):
        (tmp_path / "recipes" / "some" / f"{name}.yaml").write_text(yaml.safe_dump(content))
    real = resources.files
    monkeypatch.setattr(
        recipes.resources, "files", lambda of: tmp_path if of == "zsrobust" else real(of)
    )
    assert recipe_names() == ["some/hardening"]
    assert pretrain_recipe_names() == ["some/made"]
    with pytest.raises(UserError, match="some/made trains a model"):
        load_recipe("some/made")
    with pytest.raises(UserError, match="some/hardening hardens a model"):
        load_pretrain_recipe("some/hardening")
    with pytest.raises(UserError, match="unknown recipe 'some/mode': did you mean 'some/made'"):
        load_pretrain_recipe("some/mode")


@pytest.mark.parametrize("name", pretrain_recipe_names())
def test_every_packaged_recipe_loads_under_its_name(name):
    """And says in its title what it makes."""
    recipe = load_pretrain_recipe(name)
    assert recipe.name == name
    assert recipe.title
