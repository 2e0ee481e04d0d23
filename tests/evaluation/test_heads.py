"""Measuring a run by the head that it trained: on its own classes alone, and in no zero-shot mean."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import pytest
import torch

from zsrobust import data
from zsrobust.errors import UserError
from zsrobust.evaluation.evaluate import evaluate
from zsrobust.evaluation.stored import read_table
from zsrobust.models import HeadClassifier, load_clip
from zsrobust.preprocess import to_unit
from zsrobust.training.loop import harden
from zsrobust.training.recipe import parse_recipe
from zsrobust.training.run import Run


@pytest.fixture(scope="module", params=["adv", "coadv"])
def run(request, tiny_clip_folder, tiny_set_folder, tmp_path_factory) -> Run:
    """A short hardening with a linear head, and one with a dictionary."""
    recipe = parse_recipe(
        {
            "name": "test/heads",
            "model": f"local-dir:{tiny_clip_folder}",
            "source": {"set": f"folder:{tiny_set_folder}", "split": "train"},
            "objective": {"name": request.param},
            "threat": {"eps": "2/255"},
            "optimiser": {"lr": 1e-3},
            "epochs": 5,
            "batch": 16,
            "device": "cpu",
        }
    )
    return harden(recipe, tmp_path_factory.mktemp("heads") / "run")


def measured(run: Run, sets: str | list[str], out: Path | None = None, **options):
    return evaluate([run], sets, ["pgd-2"], "2/255", out=out, device="cpu", **options)


def test_the_accuracy_is_the_heads_own(run, tiny_set_folder, tmp_path):
    """Another number than the texts give, in a cell of its own; the set counts as source, so there is no mean."""
    val = f"folder:{tiny_set_folder}/val"
    table = measured(run, val, tmp_path, head=True)
    (row,) = table.rows
    images = data.open_set(val)
    clip = load_clip(run.spec)
    classifier = HeadClassifier.from_file(clip.image_encoder(), run.model / "head.safetensors")
    batch = next(data.batches(images, images.first(None), clip.preprocess.geometry(), 30))
    with torch.no_grad():
        right = classifier(to_unit(batch.images)).argmax(1) == batch.labels
    assert row.ids == batch.ids
    assert row.clean == right.tolist()
    assert (row.is_source, row.classes, row.templates) == (True, 5, [])
    assert row.key["texts"] == {"head": classifier.content_hash}
    assert table.to_json()["means"] == []
    assert table.request["head"] is True

    texts = measured(run, val, tmp_path)
    assert texts.rows[0].clean != row.clean
    assert "head" not in texts.request
    assert len(list((tmp_path / "cells").iterdir())) == 4
    again = measured(run, val, tmp_path, head=True)
    assert again.rows[0].robust == row.robust


def test_a_report_of_cells_leaves_heads_out_and_says_so(
    run, tiny_set_folder, other_set_folder, tmp_path
):
    measured(run, f"folder:{tiny_set_folder}/val", tmp_path, head=True)
    with pytest.raises(UserError, match=r"nothing to report: 2 cell\(s\) of trained heads"):
        read_table([tmp_path])
    measured(run, f"folder:{other_set_folder}", tmp_path)
    stored = read_table([tmp_path])
    assert [row.image_set for row in stored.table.rows] == ["other-set"]
    assert any("2 cell(s) of trained heads are left out" in note for note in stored.notes)


def test_what_a_head_cannot_be_measured_on_is_refused_first(
    run, tiny_clip_folder, tiny_set_folder, other_set_folder, monkeypatch
):
    """Other classes, a model without a head, templates; before anything is measured."""
    module = importlib.import_module("zsrobust.evaluation.evaluate")
    monkeypatch.setattr(module, "measure", lambda *_, **__: pytest.fail("measured"))
    val = f"folder:{tiny_set_folder}/val"
    with pytest.raises(UserError, match="'other-set' has other classes than the head of run:"):
        measured(run, [val, f"folder:{other_set_folder}"], head=True)
    with pytest.raises(UserError, match="has no head: only run:DIR of 'adv', 'linear' or 'coadv'"):
        evaluate([f"local-dir:{tiny_clip_folder}"], val, head=True, device="cpu")
    with pytest.raises(UserError, match="a head has no class texts"):
        measured(run, val, head=True, templates=["a {}"])


def test_the_command_line_takes_it(run, tiny_set_folder, tmp_path, capsys, monkeypatch):
    """--head, as JSON and as the table for people."""
    from zsrobust.cli import main

    monkeypatch.chdir(tmp_path)
    command = ["eval", run.spec, "--sets", f"folder:{tiny_set_folder}/val", "--head"]
    command += ["--attacks", "clean,pgd-2", "--eps", "2/255", "--device", "cpu"]
    for more in ([], ["--json"]):
        with pytest.raises(SystemExit) as stopped:
            main([*command, *more])
        assert not stopped.value.code
        shown = capsys.readouterr().out
    (row,) = json.loads(shown)["rows"]
    assert row["source"] is True
    assert row["templates"] == []
