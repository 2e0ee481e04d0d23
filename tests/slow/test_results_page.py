"""The page of results, rehearsed: the collection's studies and labels on the embedded model and drawn sets."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

from zsrobust.training.reading import read_yaml
from zsrobust.workflows.collection import run_collection
from zsrobust.workflows.collection_recipe import load_collection

ROOT = Path(__file__).resolve().parents[2]
RECIPES = ROOT / "src" / "zsrobust" / "recipes" / "mini"

QUICK = {
    "pgd-20": "pgd-2",
    "cw-margin-20": "cw-margin-2",
    "pgd-paper": "pgd-1",
    "pgd-100:step=2/255": "pgd-2:step=2/255",
    "autoattack": "apgd-ce-2",
    "autoattack-fare": "apgd-t-2",
}


HARDENED = ["rows--CE-fine-tuning", "heads--LP"]
"""Two runs of the rehearsal, by their folders: of TeCoA and of a linear head."""


def script(name: str) -> ModuleType:
    """Import results/scale/NAME.py."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "results" / "scale" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def rehearsed(study: dict[str, Any]) -> dict[str, Any]:
    """Return a study with its labels and shape, but with few short hardenings of the embedded model."""
    headed = study["evaluate"].get("head", False)
    short = ["source.limit=16", "epochs=1", "schedule.warmup=0", "validation.limit=8"]
    axes = []
    for position, axis in enumerate(study["axes"]):
        values = [
            {
                "label": value["label"],
                **({"x": value["x"]} if "x" in value else {}),
                "set": [f"seed={number % 3}"] if position == 0 else [],
            }
            for number, value in enumerate(axis.get("values", []))
        ]
        axes.append({**axis, "values": values} if values else axis)
    evaluate = {**study["evaluate"], "sets": "demo/shapes,demo/animals", "limit": 2}
    evaluate["attacks"] = [QUICK.get(name, name) for name in evaluate["attacks"]]
    evaluate.pop("with_source", None)  # a list of sets has none
    if headed:
        evaluate["sets"] = "demo/source#val"
    return {
        **study,
        "base": "tiny/adv-ft" if headed else "tiny/tecoa-ft",
        "set": short,
        "axes": axes,
        "evaluate": evaluate,
    }


@pytest.mark.slow
def test_the_page_is_made_of_a_finished_collection(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Every section, finding and figure; and the page again, byte for byte, from the packed records alone."""
    whole = read_yaml((RECIPES / "collections" / "scale.yaml").read_text("utf-8"), "scale")
    studies = [
        one
        if isinstance(one, dict)
        else read_yaml(
            (RECIPES / "studies" / f"{one.partition('/')[2]}.yaml").read_text("utf-8"), one
        )
        for one in whole["studies"]
    ]
    file = tmp_path / "scale.yaml"
    content = {"name": "mini/scale", "studies": [rehearsed(study) for study in studies]}
    file.write_text(yaml.safe_dump(content))
    collection = load_collection(str(file))
    assert collection is not None
    folder = tmp_path / "runs"
    run_collection(collection, folder)

    pack, page, checks = script("pack"), script("page"), script("checks")
    here = tmp_path / "here"
    here.mkdir()
    for name in ("findings.yaml", "intro.md"):
        (here / name).write_text((ROOT / "results" / "scale" / name).read_text("utf-8"))
    (here / "choices").symlink_to(ROOT / "results" / "scale" / "choices")
    for module in (pack, page):
        monkeypatch.setattr(module, "HERE", here)
        monkeypatch.setattr(module, "COLLECTION", str(file))
    monkeypatch.setattr(page, "DOCS", tmp_path / "docs")
    monkeypatch.setattr(sys, "argv", ["pack.py", str(folder)])
    pack.main()
    runs = [{"run": name, **checks.check_run(folder / "runs" / name)} for name in HARDENED]
    for one in runs:
        assert one["features"] < 1e-5
        assert one["losses"] < 1e-10
        assert max(value for name, value in one.items() if name.startswith("gradient")) < 1e-4
    content = {"model": {"anchors": 0.0, "scale": 0.0}, "runs": runs}
    (here / "checks.json").write_text(json.dumps(content))
    page.main()
    text = (tmp_path / "docs" / "results.md").read_text("utf-8")
    findings = yaml.safe_load((here / "findings.yaml").read_text("utf-8"))["findings"]
    for finding in findings:
        assert finding["claim"] in text
    for label in ("TeCoA, prompts", "LP", "pseudo-labels", "before: mini-clip"):
        assert label in text
    assert str(tmp_path) not in text
    assert str(tmp_path) not in json.dumps(page._json("models.json"))
    pictures = [
        line.partition("](")[2].rstrip(")") for line in text.splitlines() if "](results/" in line
    ]
    assert len(pictures) == 10
    assert all((tmp_path / "docs" / name).is_file() for name in pictures)
    page._json.cache_clear()
    page._cells.cache_clear()
    page.measured.cache_clear()
    page.main()
    assert (tmp_path / "docs" / "results.md").read_text("utf-8") == text
