"""A recipe's `evaluate:` block: what it says is what is measured, and its mistakes show before the hardening."""

from __future__ import annotations

import pytest

from zsrobust.errors import UserError
from zsrobust.training.recipe import parse_recipe
from zsrobust.workflows.harden_and_evaluate import harden_and_evaluate


@pytest.fixture
def wanted(toy_recipe, other_set_folder):
    """A hardening of one step, and two sets to measure it on."""
    block = {"sets": f"folder:{other_set_folder}", "attacks": ["clean", "pgd-2"], "eps": "4/255"}
    return {
        **toy_recipe,
        "source": toy_recipe["source"] | {"limit": 4},
        "schedule": {"warmup": 0},
        "epochs": 1,
        "evaluate": {**block, "limit": 6},
    }


def test_what_the_block_says_is_measured(wanted, tmp_path):
    """Resolution and duplicates stand in the cells of both models."""
    wanted["evaluate"] |= {"resolution": "native", "duplicates": "keep"}
    run, table = harden_and_evaluate(
        parse_recipe(wanted), tmp_path / "run", results=tmp_path / "results"
    )
    assert table is not None
    assert list(dict.fromkeys(row.model for row in table.rows)) == [wanted["model"], run.spec]
    assert table.request["resolution"] == "native"
    assert table.request["duplicates"] == "keep"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"attacks": ["pdg-2"]}, "unknown attack 'pdg-2': did you mean 'pgd-"),
        ({"with_source": True}, "name no source set: leave with_source out"),
        ({"head": True}, "objective 'tecoa' trains no head"),
    ],
)
def test_a_mistake_in_the_block_shows_before_the_hardening(wanted, tmp_path, change, message):
    """And nothing is written."""
    wanted["evaluate"] |= change
    with pytest.raises(UserError, match=message):
        harden_and_evaluate(parse_recipe(wanted), tmp_path / "run", results=tmp_path / "results")
    assert not list(tmp_path.iterdir())


def test_a_head_is_measured_without_the_model_before(wanted, tmp_path, tiny_set_folder):
    """It has none; sets of other classes than the source's are refused before the hardening."""
    wanted |= {"objective": {"name": "adv"}}
    wanted["evaluate"] |= {"head": True}
    with pytest.raises(UserError, match="has other classes than"):
        harden_and_evaluate(parse_recipe(wanted), tmp_path / "run", results=tmp_path / "results")
    assert not list(tmp_path.iterdir())
    wanted["evaluate"] |= {"sets": f"folder:{tiny_set_folder}#val"}
    run, table = harden_and_evaluate(
        parse_recipe(wanted), tmp_path / "run", results=tmp_path / "results"
    )
    assert table is not None
    assert table.models == [run.spec]
    assert "head" in table.rows[0].key["texts"]
