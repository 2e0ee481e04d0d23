"""Recipes: read strictly, mistakes in one line."""

from __future__ import annotations

import pytest

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
        ({"epochs": 0}, "epochs: .*greater than or equal to 1, got 0"),
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
