"""`zsrobust mix` and `zsrobust study` as commands: output, and mistakes in one line."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from zsrobust.cli import main


def ended(arguments: list[Any]) -> int:
    with pytest.raises(SystemExit) as stopped:
        main([str(a) for a in arguments])
    return int(stopped.value.code or 0)


def test_mix_writes_a_model(
    tiny_clip_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    """It prints the spec of what it wrote, and refuses to write it twice."""
    spec, out = f"local-dir:{tiny_clip_folder}", tmp_path / "mixed"
    assert ended(["mix", spec, spec, "--at", "0.3", "--out", out]) == 0
    assert capsys.readouterr().out == f"local-dir:{out}\n"
    assert (out / "open_clip_model.safetensors").is_file()
    assert ended(["mix", spec, spec, "--at", "0.3", "--out", out]) == 2
    assert "is there already" in capsys.readouterr().err
    assert ended(["mix", spec, spec, "--at", "3", "--out", tmp_path / "more"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_study_plans_and_runs(
    toy_recipe: dict[str, Any],
    tiny_set_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
):
    """The plan as text and JSON, then the table; the source's own images are measured as such."""
    source = {**toy_recipe["source"], "limit": 8}
    recipe = {**toy_recipe, "source": source, "schedule": {"warmup": 0}, "epochs": 1}
    (tmp_path / "base.yaml").write_text(yaml.safe_dump(recipe))
    study = {
        "name": "toy-seeds",
        "base": "base.yaml",
        "axes": [{"name": "seed", "values": [{"label": s, "set": [f"seed={s}"]} for s in (0, 1)]}],
        "evaluate": {
            "sets": f"folder:{tiny_set_folder}#val",
            "attacks": ["pgd-1"],
            "eps": "4/255",
            "limit": 6,
        },
    }
    file, out = tmp_path / "study.yaml", tmp_path / "out"
    file.write_text(yaml.safe_dump(study))
    assert ended(["study", file, "--plan", "--out", out]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"0  1 steps, about \S+ (s|min|h) \(by real steps\)", lines[0])
    assert lines[-1].startswith("2 hardenings, 0 done")
    assert ended(["study", file, "--out", out]) == 0
    shown = capsys.readouterr()
    assert "| 1 | 4/255 | 6 |" in shown.out
    assert "figure.svg" in shown.err
    assert ended(["study", file, "--out", out, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["measured_on"] == "held-out source images"
    assert ended(["study", file, "--plan", "--out", out, "--json"]) == 0
    assert [r["complete"] for r in json.loads(capsys.readouterr().out)["runs"]] == [True, True]
    assert ended(["study", file, "--out", out, "recipe.optimiser.rate=1"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_lists_tell_studies(capsys: pytest.CaptureFixture[str]):
    """Beside the recipes, with their kind."""
    assert ended(["list", "recipes"]) == 0
    shown = capsys.readouterr().out
    assert "tiny/interpolation" in shown
    assert "(study)" in shown
