"""Recipes: read strictly, mistakes in one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from zsrobust.adaptations import build
from zsrobust.errors import UserError
from zsrobust.objectives import OBJECTIVES, SETTINGS
from zsrobust.training.recipe import ObjectivePart, load_recipe, parse_recipe, recipe_names
from zsrobust.training.schedule import learning_rate, warmup_steps

MINIMAL = {"name": "x", "model": "m", "source": {"set": "folder:a"}, "optimiser": {"lr": 0.1}}


@pytest.mark.parametrize("name", recipe_names())
def test_every_packaged_recipe_loads_under_its_name(name):
    """And is about source images alone: its validation is another split of its source."""
    recipe = load_recipe(name)
    assert recipe.name == name
    assert recipe.title
    assert recipe.validation is not None
    assert recipe.validation.split != recipe.source.split


def test_overrides_are_read_as_yaml_with_dotted_keys():
    """1e-4 is a number though YAML calls it a string; 2/255 is a fraction."""
    recipe = load_recipe(
        "mini/tecoa-ft-eps1",
        ["optimiser.lr=1e-4", "threat.eps=2/255", "source.limit=10", "epochs=3"],
    )
    assert recipe.optimiser.lr == 1e-4
    assert recipe.threat.eps == 2 / 255
    assert (recipe.source.limit, recipe.epochs) == (10, 3)


def test_the_step_size_is_eps_unless_given():
    """The training attack of the paper: step = eps."""
    assert parse_recipe({**MINIMAL, "threat": {"eps": "4/255"}}).step_size() == 4 / 255
    given = {**MINIMAL, "adversary": {"step_size": "1/255"}}
    assert parse_recipe(given).step_size() == 1 / 255


def test_machine_settings_do_not_determine_the_run():
    """A run may go on with other workers or another evaluation, not with another seed."""
    base = parse_recipe(MINIMAL).determining()
    assert parse_recipe({**MINIMAL, "workers": 3, "threads": 1}).determining() == base
    for change in ({"seed": 1}, {"batch": 32}, {"epochs": 2}, {"precision": "bf16"}):
        assert parse_recipe({**MINIMAL, **change}).determining() != base


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epoch": 3}, "unknown key 'epoch': did you mean 'epochs'"),
        ({"optimiser": {"lr": 0.1, "weightdecay": 0}}, "did you mean 'weight_decay'"),
        ({"optimiser": {}}, "key 'optimiser.lr' is missing"),
        ({"epochs": "three"}, "epochs: .*'three'"),
        ({"epochs": 0}, "epochs: .*greater than 0, got 0"),
        ({"optimiser": {"lr": -1}}, "optimiser.lr: .*greater than 0"),
        ({"threat": {"eps": 8}}, r"did you mean 8\.?0?/255"),
        ({"threat": {"norm": "l3"}}, "threat.norm"),
        ({"objective": {"name": "tecoa-pair"}}, "unknown objective 'tecoa-pair': did you mean"),
        ({"adaptation": {"name": "ful"}}, "unknown adaptation 'ful': did you mean 'full'"),
        ({"objective": {"name": "tecoa-pairs"}, "micro_batch": 8}, "cannot be accumulated"),
        ({"select": "best"}, "select: best needs validation"),
        ({"objective": {"head_start": "probe"}}, "'tecoa' trains no linear head: .*use 'adv'"),
        ({"objective": {"name": "adv", "head_start": "zero"}}, "objective.head_start: .*'probe'"),
        ({"objective": {"name": "adv", "temperature": 0.1}}, "'adv' has none: leave it out.$"),
        ({"objective": {"name": "fare", "temperature": 0.1}}, "'fare' has none: leave it out.$"),
        ({"objective": {"name": "tecoa", "adversary": "pgd"}}, "leave it out, or use 'linear'"),
        ({"objective": {"name": "tecoa", "dictionary": "fixed"}}, "or use 'coadv'"),
        ({"objective": {"name": "coadv", "dictionary": "none"}}, "objective.dictionary: .*'fixed'"),
        ({"objective": {"name": "fare", "classnames": ["a", "b"]}}, "or use 'tecoa-pseudo'"),
        ({"objective": {"name": "tecoa-pseudo", "classnames": ["a"]}}, "two different class names"),
        (
            {"objective": {"name": "fare"}, "adversary": {"start": "clean"}},
            "start is 'clean', but objective 'fare' has no gradient at the clean image",
        ),
        ({"objective": {"name": "fare"}, "adversary": {"start": "zero"}}, "adversary.start: "),
        ({"objective": {"name": "imgcoadv"}, "micro_batch": 8}, "cannot be accumulated"),
        ({"objective": {"name": "linear"}}, "'linear' goes with adaptation 'linear'"),
    ],
)
def test_a_wrong_key_type_or_value_is_one_line(change, message):
    """It names the key, what was given and what is allowed."""
    with pytest.raises(UserError, match=message) as caught:
        parse_recipe({**MINIMAL, **change})
    assert "\n" not in str(caught.value)


def test_what_chooses_is_clean_accuracy_where_there_is_no_adversary():
    """A probe that is attacked is chosen by robust accuracy like the rest."""
    found = {
        name: parse_recipe({**MINIMAL, "objective": {"name": name}}).chosen_by
        for name in OBJECTIVES
        if name != "linear"
    }
    assert found.pop("ce") == "clean"
    assert set(found.values()) == {"robust"}


def test_every_setting_of_the_block_belongs_to_an_objective():
    """And the table of settings names every objective, in no other."""
    assert set(SETTINGS) == set(OBJECTIVES)
    named = {key for keys in SETTINGS.values() for key in keys}
    assert named == set(ObjectivePart.model_fields) - {"name"}


def test_all_mistakes_are_reported_together():
    """Not one a run."""
    with pytest.raises(UserError) as caught:
        parse_recipe({**MINIMAL, "epochs": 0, "batch": 0})
    assert "epochs" in str(caught.value)
    assert "batch" in str(caught.value)


def test_unknown_recipes_and_files_that_are_none(tmp_path):
    """A name that does not exist, a file that does not, a file that is no mapping, an override that is none."""
    with pytest.raises(UserError, match="did you mean 'mini/tecoa-ft-eps1'"):
        load_recipe("mini/tecoa-eps1")
    with pytest.raises(UserError, match="does not exist"):
        load_recipe(str(tmp_path / "none.yaml"))
    (tmp_path / "list.yaml").write_text("- a\n")
    with pytest.raises(UserError, match="must be a mapping"):
        load_recipe(str(tmp_path / "list.yaml"))
    (tmp_path / "bad.yaml").write_text("a: [1\n")
    with pytest.raises(UserError, match="is not YAML"):
        load_recipe(str(tmp_path / "bad.yaml"))
    with pytest.raises(UserError, match="write key=value"):
        load_recipe("mini/tecoa-ft-eps1", ["epochs"])


def write(folder: Path, **recipes: dict[str, Any]) -> list[str]:
    """Write recipes into files of these names; return their paths."""
    for name, content in recipes.items():
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(content))
    return [str(folder / f"{name}.yaml") for name in recipes]


def test_a_recipe_is_laid_over_its_base_block_by_block(tmp_path):
    """The nearer one wins, keys that it does not name stay, null takes a block away, overrides come last."""
    first = {**MINIMAL, "title": "t", "batch": 8, "validation": {"limit": 9}, "epochs": 3}
    _, above, top = write(
        tmp_path,
        first=first,
        above={"name": "y", "base": "first.yaml", "batch": 4, "threat": {"eps": "4/255"}},
        top={"name": "z", "base": "above.yaml", "validation": None, "source": {"limit": 5}},
    )
    assert load_recipe(above).batch == 4
    recipe = load_recipe(top, ["epochs=2"])
    assert (recipe.name, recipe.title, recipe.batch, recipe.epochs) == ("z", "", 4, 2)
    assert (recipe.threat.eps, recipe.source.set, recipe.source.limit) == (4 / 255, "folder:a", 5)
    assert recipe.validation is None


def test_a_block_of_another_name_takes_nothing_of_its_base(tmp_path):
    """The settings of one adaptation or optimiser are not those of another; of the same they stay."""
    first = {
        **MINIMAL,
        "adaptation": {"name": "pixel", "width": 3, "std": 0.1},
        "optimiser": {"name": "sgd", "lr": 1, "momentum": 0.5},
    }
    _, other, same = write(
        tmp_path,
        first=first,
        other={
            "name": "y",
            "base": "first.yaml",
            "adaptation": {"name": "token"},
            "optimiser": {"name": "adamw", "lr": 0.1},
        },
        same={"name": "z", "base": "first.yaml", "adaptation": {"name": "pixel", "width": 4}},
    )
    recipe = load_recipe(other)
    assert recipe.adaptation.build() == build("token")
    assert recipe.optimiser.momentum == 0.9
    assert load_recipe(same).adaptation.build() == build("pixel", {"width": 4, "std": 0.1})


def test_a_base_may_be_a_packaged_recipe_or_a_file_elsewhere(tmp_path, monkeypatch):
    """A file beside the recipe is taken before one in the current folder."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "deep").mkdir()
    write(tmp_path, first={**MINIMAL, "batch": 1}, only={**MINIMAL, "batch": 3})
    write(
        tmp_path / "deep",
        first={**MINIMAL, "batch": 2},
        beside={"name": "y", "base": "first.yaml"},
        current={"name": "y", "base": "only.yaml"},
        packaged={"name": "y", "base": "mini/tecoa-ft-eps1", "batch": 5},
    )
    assert load_recipe("deep/beside.yaml").batch == 2
    assert load_recipe("deep/current.yaml").batch == 3
    assert load_recipe("deep/packaged.yaml").source == load_recipe("mini/tecoa-ft-eps1").source


def test_wrong_bases(tmp_path):
    """A circle, a base that is no name, one that does not exist, and a name that stays its own."""
    one, _, number, gone, nameless = write(
        tmp_path,
        one={"name": "a", "base": "two.yaml"},
        two={"name": "b", "base": "one.yaml"},
        number={"name": "c", "base": 3},
        gone={"name": "d", "base": "mini/tecoa-eps1"},
        nameless={"base": "mini/tecoa-ft-eps1"},
    )
    with pytest.raises(UserError, match=r"one.yaml is its own base \(.*one.yaml -> .*two.yaml -> "):
        load_recipe(one)
    with pytest.raises(UserError, match=r"base must be a recipe.s name or a \.yaml file, got 3"):
        load_recipe(number)
    with pytest.raises(UserError, match="unknown recipe 'mini/tecoa-eps1': did you mean"):
        load_recipe(gone)
    with pytest.raises(UserError, match="key 'name' is missing"):
        load_recipe(nameless)


def test_schedule_is_the_authors():
    """Values at t = 0, W - 1, W, M - 1 (facts 3.6)."""
    at = {"base": 1e-5, "warmup": 1000, "total": 50_050}
    assert learning_rate(0, **at) == pytest.approx(1e-8)
    assert learning_rate(999, **at) == pytest.approx(1e-5)
    assert learning_rate(1000, **at) == pytest.approx(1e-5)
    assert learning_rate(50_049, **at) == pytest.approx(0.0, abs=1e-13)
    assert learning_rate((1000 + 50_050) // 2, **at) == pytest.approx(0.5e-5)
    assert learning_rate(40_000, **at, kind="constant") == 1e-5


def test_warmup_is_a_count_a_fraction_or_the_default():
    """None: min(1000, 10%)."""
    assert warmup_steps(None, 50_050) == 1000
    assert warmup_steps(None, 100) == 10
    assert warmup_steps(0.2, 100) == 20
    assert warmup_steps(30, 100) == 30
    assert warmup_steps(0, 100) == 0
    assert warmup_steps(100, 100) == 100
    with pytest.raises(UserError, match="warmup is 101 steps, the whole run has 100: give fewer"):
        warmup_steps(101, 100)
    assert learning_rate(0, base=1.0, warmup=0, total=10) == 1.0
