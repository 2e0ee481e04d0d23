"""Collections: studies that share hardenings and cells, each measured as if alone."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from zsrobust.errors import UserError
from zsrobust.workflows.collection import plan_collection, run_collection
from zsrobust.workflows.collection_recipe import (
    Collection,
    collection_names,
    load_collection,
    read_collection,
)
from zsrobust.workflows.study import run_study

from .conftest import hardenings

Write = Callable[..., str]


@pytest.fixture
def write(short_recipe: dict[str, Any], tmp_path: Path, other_set: Path) -> Write:
    """Write a collection of two studies over one base; changes go into it."""

    def writing(**changes: Any) -> str:
        recipe = {**short_recipe, "name": "toys/plain"}
        fare = {**recipe, "name": "toys/fare", "objective": {"name": "fare"}}
        evaluate = {
            "sets": f"folder:{other_set}",
            "attacks": ["clean", "pgd-2"],
            "eps": ["4/255"],
            "limit": 12,
        }
        rows = {
            "name": "toys/rows",
            "base": "base.yaml",
            "axes": [
                {
                    "name": "row",
                    "values": [{"label": "TeCoA"}, {"label": "FARE", "base": "fare.yaml"}],
                }
            ],
            "evaluate": evaluate,
            "figure": {"kind": "points"},
        }
        size = {
            "name": "toys/size",
            "base": "base.yaml",
            "axes": [
                {
                    "name": "images",
                    "values": [
                        {"label": 2, "x": 2, "set": ["source.per_class=2", "source.limit=null"]},
                        {"label": "all", "x": 4},
                    ],
                }
            ],
            "evaluate": {**evaluate, "limit": 6},
        }
        collection = {"name": "toys/all", "studies": [rows, "size.yaml"]} | changes
        for name, content in (
            ("base", recipe),
            ("fare", fare),
            ("size", size),
            ("all", collection),
        ):
            (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(content))
        return str(tmp_path / "all.yaml")

    return writing


def load(file: str, overrides: list[str] | None = None) -> Collection:
    found = load_collection(file, overrides)
    assert found is not None
    return found


def test_hardenings_and_cells_are_shared(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Each hardening once, each study with its own table; a study alone gives the same numbers."""
    trained = hardenings(monkeypatch)
    collection = load(write())
    out = tmp_path / "out"
    names = [[one.folder for one in member.combinations] for member in collection.members]
    assert names == [["plain", "fare"], ["size--2", "plain"]]
    plans = plan_collection(collection, out)
    assert [[run.folder for run in plan.runs] for plan in plans] == [["plain", "fare"], ["size--2"]]
    outcomes = run_collection(collection, out)
    assert trained.count("plain") == 1
    assert {*trained} >= {"plain", "fare", "size--2"}
    assert {f.name for f in out.iterdir()} >= {"runs", "results", "rows", "size", "times.jsonl"}
    assert sorted(f.name for f in (out / "runs").iterdir()) == ["fare", "plain", "size--2"]
    rows, size = outcomes
    assert [(*p.labels.values(),) for p in rows.places] == [(), ("TeCoA",), ("FARE",)]
    assert rows.places[1].model == size.places[2].model
    assert {p.clean.samples for p in rows.places} == {12}
    assert {p.clean.samples for p in size.places} == {6}
    svg = (out / "rows" / "figure.svg").read_text()
    for text in ("TeCoA", "FARE", "before: "):
        assert text in svg
    member = collection.members[1]
    alone = run_study(member.study, member.combinations, tmp_path / "alone")
    assert [(p.clean, p.robust) for p in alone.places] == [(p.clean, p.robust) for p in size.places]
    before = (out / "size" / "study.json").read_text(), len(trained)
    run_collection(collection, out)
    assert ((out / "size" / "study.json").read_text(), len(trained)) == before
    assert [run.complete for plan in plan_collection(collection, out) for run in plan.runs] == [
        True
    ] * 3


def test_a_mistake_in_a_later_study_shows_before_the_first_hardening(write: Write, tmp_path: Path):
    """No hour of training goes before it."""
    file = Path(write())
    content = yaml.safe_load((tmp_path / "size.yaml").read_text())
    content["evaluate"]["sets"] = f"folder:{tmp_path / 'nowhere'}"
    (tmp_path / "size.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(UserError, match="nowhere"):
        run_collection(load(str(file)), tmp_path / "out")
    assert not (tmp_path / "out" / "runs").exists()


def test_overrides_are_of_every_study(write: Write):
    """Of the study and of the recipes; a changed recipe no longer has its base's name."""
    collection = load(write(), ["evaluate.limit=3", "recipe.seed=5"])
    assert [member.study.evaluate.limit for member in collection.members] == [3, 3]
    assert {one.recipe.seed for member in collection.members for one in member.combinations} == {5}
    names = [[one.folder for one in member.combinations] for member in collection.members]
    assert names == [["rows--TeCoA", "rows--FARE"], ["size--2", "rows--TeCoA"]]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"studies": []}, "studies: must not be empty"),
        ({"studies": ["size.yaml", "size.yaml"]}, "two studies are called 'size'"),
        ({"studies": ["tiny/sise"]}, "did you mean 'tiny/size'"),
        ({"title": 3}, "title"),
        ({"studies": [{"name": "toys/one"}]}, "base"),
    ],
)
def test_wrong_collections_are_refused_in_one_line(
    write: Write, changes: dict[str, Any], words: str
):
    """What is wrong and what is allowed."""
    with pytest.raises(UserError) as caught:
        load_collection(write(**changes))
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_names_that_the_folder_needs_are_refused(write: Write, tmp_path: Path):
    """A study called "runs" would lie among the hardenings; a folder with something else is left alone."""
    file = Path(write())
    content = yaml.safe_load(file.read_text())
    content["studies"][0]["name"] = "toys/runs"
    file.write_text(yaml.safe_dump(content))
    with pytest.raises(UserError, match="cannot be called 'runs'"):
        load_collection(str(file))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("")
    with pytest.raises(UserError, match="something else than an earlier collection"):
        run_collection(load(write()), tmp_path / "full")


def test_what_is_no_collection_is_none(tmp_path: Path):
    """Studies and recipes go their own way."""
    (tmp_path / "study.yaml").write_text(json.dumps({"name": "a/b", "axes": []}))
    assert read_collection(str(tmp_path / "study.yaml")) is None
    assert load_collection("tiny/size") is None
    assert load_collection("nonsense") is None


@pytest.mark.parametrize("name", collection_names())
def test_packaged_collections_load(name: str):
    """Every recipe in them is checked; their names are their places in the package."""
    collection = load(name)
    assert collection.name == name
    assert collection.title
    assert all(member.combinations for member in collection.members)
