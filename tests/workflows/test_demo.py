"""The first command that a newcomer types, for real: no network, no data, nothing but the package."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from zsrobust.cli import main
from zsrobust.evaluation.evaluate import evaluate
from zsrobust.training.recipe import load_recipe
from zsrobust.workflows.demo import RECIPES

CLIP = "tiny"


def run_demo(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    names = ("ZSROBUST_DATA", "ZSROBUST_MODELS", "ZSROBUST_DEBUG", "OMP_NUM_THREADS")
    environment = {k: v for k, v in os.environ.items() if k not in names}
    command = [sys.executable, "-m", "zsrobust", "demo", *arguments]
    return subprocess.run(
        command,
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=1800,
    )


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """The whole demo, as README.md has it."""
    folder = tmp_path_factory.mktemp("newcomer")
    return folder, run_demo(folder)


def test_the_two_recipes_differ_in_the_objective_alone():
    """The same images, steps and eps; the rate of each was chosen for it."""
    tecoa, adv = (load_recipe(name).model_dump(mode="json") for name in RECIPES.values())
    differing = {key for key in tecoa if tecoa[key] != adv[key]}
    assert differing <= {"name", "title", "objective", "optimiser"}
    rates = [recipe["optimiser"].pop("lr") for recipe in (tecoa, adv)]
    assert tecoa["optimiser"] == adv["optimiser"]
    assert all(rate > 0 for rate in rates)
    assert (tecoa["objective"]["name"], adv["objective"]["name"]) == ("tecoa", "adv")


def test_examples_are_attacked_as_the_table_is(tmp_path, monkeypatch):
    """Whatever the recipes' evaluate block is changed to."""
    from zsrobust.workflows import demo as module

    asked: dict[str, object] = {}
    for name in ("harden", "measure", "build_report"):
        monkeypatch.setattr(module, name, lambda *_, **__: SimpleNamespace(spec="run:a"))
    monkeypatch.setattr(module, "collect_examples", lambda *_, **settings: asked.update(settings))
    changes = {"resolution": "native", "duplicates": "keep", "preprocess": "paper"}
    module.demo(tmp_path / "demo", [f"evaluate.{key}={value}" for key, value in changes.items()])
    assert {key: asked[key] for key in changes} == changes


def test_it_ends_well_and_says_where_the_report_is(demo):
    folder, ended = demo
    assert ended.returncode == 0, ended.stderr
    assert "zsrobust-demo/report.html" in ended.stdout.replace(os.sep, "/")
    page = (folder / "zsrobust-demo" / "report.html").read_text("utf-8")
    assert not re.search(r"""(?:src|href)=["'](?!data:|#)""", page)
    for label in ("CLIP", *RECIPES):
        assert label in page


def test_its_numbers_are_those_of_the_cells_and_point_the_right_way(demo, monkeypatch):
    """Hardening by texts gains robustness on unseen classes, and keeps more clean accuracy than without texts."""
    folder, ended = demo
    monkeypatch.chdir(folder)
    wanted = load_recipe(RECIPES["TeCoA"]).evaluate
    runs = [f"run:zsrobust-demo/runs/{n.rpartition('/')[2]}" for n in RECIPES.values()]
    before = {f: f.stat().st_mtime_ns for f in Path("zsrobust-demo").rglob("outcomes.jsonl")}
    table = evaluate(
        [CLIP, *runs],
        wanted.sets,
        wanted.attacks,
        wanted.eps,
        limit=wanted.limit,
        out="zsrobust-demo/results",
    )
    assert {f: f.stat().st_mtime_ns for f in before} == before  # nothing was attacked again
    eps = table.radii[0]
    gained = table.difference(CLIP, runs[0], eps, "robust")
    kept = table.difference(runs[1], runs[0], eps, "clean")
    assert gained.low > 0
    assert kept.low > 0
    shown = f"{100 * table.mean(runs[0], eps, 'robust').value:.1f}"
    assert shown in ended.stdout
    assert len(table.of(CLIP, eps)) >= 5
    assert not any(row.is_source for row in table.rows)


def test_a_second_time_it_only_writes_the_report(demo):
    folder, _ = demo
    report = folder / "zsrobust-demo" / "report.html"
    report.unlink()
    models = [*folder.rglob("open_clip_model.safetensors")]
    before = [f.stat().st_mtime_ns for f in models]
    again = run_demo(folder, "--json")
    assert again.returncode == 0, again.stderr
    assert '"report"' in again.stdout
    assert report.is_file()
    assert [f.stat().st_mtime_ns for f in models] == before


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("evaluate.limt=3", "limit"),
        ("evaluate.sets=demoo", "demo"),
        ("evaluate.attacks=[clean, pdg-20]", "pgd-20"),
        ("evaluate=null", "leave the recipes' evaluate block in"),
    ],
)
def test_a_wrong_override_is_one_line_before_anything_is_trained(
    override, said, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        main(["demo", override])
    assert stop.value.code == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert said in err
    assert not [*tmp_path.iterdir()]


def test_another_folder_is_left_alone(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").write_text("words")
    with pytest.raises(SystemExit) as stop:
        main(["demo", "--out", "thesis"])
    assert stop.value.code == 2
    assert "chapter.tex" in capsys.readouterr().err
    assert [f.name for f in (tmp_path / "thesis").iterdir()] == ["chapter.tex"]
