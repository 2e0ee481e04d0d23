"""What an evaluation may be asked for besides: curves, a screen, a compiled model, transfer, processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from zsrobust.errors import UserError
from zsrobust.evaluation import evaluate
from zsrobust.threat import parse_eps

EPS = ["1/255", "4/255", "16/255"]


@pytest.fixture
def model(tiny_clip_folder: Path) -> str:
    return f"local-dir:{tiny_clip_folder}"


@pytest.fixture
def pets(tiny_set_folder: Path) -> str:
    return f"folder:{tiny_set_folder}#train"


def records(folder: Path) -> dict[tuple[str, float | None], dict[str, dict]]:
    """(attack, eps) -> id -> record, of all cells."""
    found = {}
    for file in folder.glob("cells/*/cell.json"):
        cell = json.loads(file.read_text())
        eps = None if cell["threat"] is None else cell["threat"]["eps"]
        lines = (file.parent / "outcomes.jsonl").read_text().splitlines()
        rows = [json.loads(line) for line in lines]
        assert len({row["id"] for row in rows}) == len(rows)
        found[cell["attack"]["name"], eps] = {row["id"]: row for row in rows}
    return found


def test_a_curve_spends_no_call_on_what_a_smaller_eps_broke(model, pets, tmp_path):
    """Whatever the order asked for; each cell's key says which radii went before."""
    plain = evaluate([model], pets, ["pgd-4"], EPS, out=tmp_path / "plain")
    curve = evaluate([model], pets, ["pgd-4"], EPS[::-1], out=tmp_path / "curve", curve=True)
    assert curve.request["curve"] is True
    assert [row.eps for row in curve.rows] == [row.eps for row in plain.rows][::-1]
    found = records(tmp_path / "curve")
    small, middle, large = (found["pgd-4", parse_eps(eps)] for eps in EPS)
    broken = [{i for i, r in cell.items() if r.get("broken")} for cell in (small, middle, large)]
    assert set() < broken[0] < broken[1] <= broken[2]
    for before, cell in ((broken[0], middle), (broken[1], large)):
        for i in before:
            assert cell[i].get("queries", 0) == 0
            assert cell[i].get("step") is None
    keys = [
        json.loads(f.read_text())["attack"] for f in (tmp_path / "curve").glob("cells/*/cell.json")
    ]
    after = sorted(len(key.get("after", [])) for key in keys if key["name"] == "pgd-4")
    assert after == [0, 1, 2]
    # What survived at the smaller eps starts as usual: the first cell is the plain one.
    assert small == records(tmp_path / "plain")["pgd-4", parse_eps(EPS[0])]


def test_a_curve_goes_on_with_more_samples(model, pets, tmp_path):
    """Ten samples, then thirty: nothing is measured twice."""
    evaluate([model], pets, ["pgd-2"], EPS[:2], out=tmp_path, curve=True, limit=10)
    evaluate([model], pets, ["pgd-2"], EPS[:2], out=tmp_path, curve=True, limit=30)
    assert {len(cell) for cell in records(tmp_path).values()} == {30}


def test_a_screen_is_part_of_the_key_and_only_adds(model, pets, tmp_path):
    """Broken without it is broken with it."""
    evaluate([model], pets, ["pgd-4"], "4/255", out=tmp_path)
    without = records(tmp_path)["pgd-4", 4 / 255]
    evaluate([model], pets, ["pgd-4"], "4/255", out=tmp_path / "screen", screen=True)
    screened = records(tmp_path / "screen")["pgd-4", 4 / 255]
    assert all(screened[i].get("broken", False) for i, r in without.items() if r.get("broken"))
    (file,) = [
        f
        for f in (tmp_path / "screen").glob("cells/*/cell.json")
        if json.loads(f.read_text())["attack"].get("screen") == "bf16"
    ]
    assert (file.parent / "outcomes.jsonl").is_file()


def test_a_compiled_model_gets_batches_of_one_size_and_shares_the_cells(
    model, pets, tmp_path, monkeypatch
):
    """The key is the same: compiling moves rounding alone; the environment says so."""
    sizes = []

    def compiled(module, *, dynamic):
        assert dynamic is False

        class Counting(torch.nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.inside, self.groups = module, module.groups

            def forward(self, images):
                sizes.append(len(images))
                return self.inside(images)

        return Counting()

    monkeypatch.setattr(torch, "compile", compiled)
    evaluate([model], pets, ["pgd-4"], "4/255", out=tmp_path, compile=True, slots=16)
    assert set(sizes) == {16}
    sizes.clear()
    evaluate([model], pets, ["pgd-4"], "4/255", out=tmp_path, slots=16)
    assert not sizes
    starts = [line for f in tmp_path.glob("cells/*/environments.jsonl") for line in f.open()]
    assert any(json.loads(line).get("compiled") for line in starts)


def test_transfer_is_judged_on_the_model_and_keyed_by_the_source(model, pets, tmp_path):
    """From itself it breaks samples; the column names the source, and the key holds its weights."""
    table = evaluate([model], pets, ["mi-fgsm"], "16/255", out=tmp_path, source=model)
    (name,) = [name for row in table.rows for name in row.robust]
    assert name == f"mi-fgsm from {model}"
    found = records(tmp_path)[name, 16 / 255]
    broken = [row for row in found.values() if row.get("broken")]
    assert broken
    assert {row["by"] for row in broken} == {"transfer:mi-fgsm"}
    (key,) = [
        cell["attack"]
        for f in tmp_path.glob("cells/*/cell.json")
        if (cell := json.loads(f.read_text()))["attack"]["name"] == name
    ]
    assert key["source"]["weights"]
    assert key["judge"] == "none"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"screen": True, "precision": "bf16"}, "leave one out"),
        ({"source": "tiny", "screen": True}, "source tiny: a transfer is judged once"),
    ],
)
def test_what_excludes_each_other(model, pets, options, message):
    with pytest.raises(UserError, match=message):
        evaluate([model], pets, ["pgd-4"], "4/255", **options)


def test_two_processes_measure_what_one_does(model, pets, tmp_path):
    """torchrun: same outcomes, every sample once, one table printed, no shard left."""
    arguments = ["eval", model, "--sets", pets, "--attacks", "clean,pgd-4,square-30"]
    arguments += ["--eps", "4/255", "--json", "--out"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}

    def run(*launcher: str, out: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", *launcher, "zsrobust", *arguments, out],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout

    one = run(out="one")
    two = run("torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", out="two")
    assert not list(tmp_path.glob("two/cells/*/outcomes.*.jsonl"))
    first, second = records(tmp_path / "one"), records(tmp_path / "two")
    assert first.keys() == second.keys()
    for key, cell in first.items():
        assert cell.keys() == second[key].keys()
        for i, row in cell.items():
            for field in ("clean", "broken", "step", "by"):
                assert second[key][i].get(field) == row.get(field), (key, i)
    assert json.loads(one).keys() == json.loads(two).keys()  # one table is printed


def test_a_shard_of_a_killed_process_is_brought_in(model, pets, tmp_path):
    """What another process had written before it was killed is not measured again."""
    evaluate([model], pets, ["pgd-2"], "4/255", out=tmp_path)
    (folder,) = [
        f.parent
        for f in tmp_path.glob("cells/*/cell.json")
        if json.loads(f.read_text())["attack"]["name"] == "pgd-2"
    ]
    whole = (folder / "outcomes.jsonl").read_text().splitlines(keepends=True)
    (folder / "outcomes.jsonl").write_text("".join(whole[:20]))
    (folder / "outcomes.1.jsonl").write_text("".join(whole[20:]))
    evaluate([model], pets, ["pgd-2"], "4/255", out=tmp_path)
    assert (folder / "outcomes.jsonl").read_text() == "".join(whole)
    assert not (folder / "outcomes.1.jsonl").exists()
