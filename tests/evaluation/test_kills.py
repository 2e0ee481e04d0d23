"""An evaluation that is killed or stopped ends with the same cells, and attacks no sample twice."""

from __future__ import annotations

import importlib
import json
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest

from zsrobust.cli import main

from ..processes import hearing_ctrl_c, run

module = importlib.import_module("zsrobust.evaluation.measure")

NAMES = ("clean", "pgd-5", "cw-margin-5")


@pytest.fixture(scope="module")
def command(tiny_clip_folder: Path, sorted_set: Path) -> list[str]:
    """Sixty pictures, eight side by side, under two attacks; each starts by opening all of them once."""
    model, pictures = f"local-dir:{tiny_clip_folder}", f"folder:{sorted_set}"
    attacks = ["--attacks", ",".join(NAMES), "--eps", "1/255"]
    return [
        "eval",
        model,
        "--sets",
        pictures,
        *attacks,
        "--slots",
        "8",
        "--device",
        "cpu",
        "--json",
    ]


@pytest.fixture(scope="module")
def whole(command: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an evaluation that nobody disturbed; to be read only."""
    place = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        finish(command, place, patch)
    return place


def finish(command: list[str], place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Give the same command in this process."""
    monkeypatch.chdir(place)
    with pytest.raises(SystemExit) as stopped:
        main(command)
    assert not stopped.value.code


def outcomes(place: Path) -> dict[str, list[str]]:
    """The lines of each attack's cell, in the order in which they were written."""
    found: dict[str, list[str]] = {name: [] for name in NAMES}
    for description in (place / "results" / "cells").glob("*/cell.json"):
        name = json.loads(description.read_text())["attack"]["name"]
        file = description.with_name("outcomes.jsonl")
        found[name] = file.read_text().splitlines() if file.is_file() else []
    return found


def counts(place: Path) -> list[int]:
    return [len(lines) for lines in outcomes(place).values()]


def assert_as_if_never_stopped(place: Path, whole: Path) -> None:
    """The same cells, every id in them once, and records that agree in all but the rounding of margins."""
    assert counts(place) == [60, 60, 60]
    folders = [sorted(p.name for p in (of / "results/cells").iterdir()) for of in (place, whole)]
    assert folders[0] == folders[1]
    assert list((place / "results").rglob("*.partial")) == []
    expected = outcomes(whole)
    for name, lines in outcomes(place).items():
        found = {row["id"]: row for row in map(json.loads, lines)}
        assert len(found) == 60
        for row in map(json.loads, expected[name]):
            mine = found[row["id"]]
            for margin in ("clean_margin", "margin", "distance"):
                assert mine.pop(margin, 0) == pytest.approx(row.pop(margin, 0), abs=1e-4)
            assert mine == row  # label, image, broken, by whom, step, queries


def test_three_kills_of_one_evaluation(command, whole, tmp_path, monkeypatch):
    """In the clean pass, in the first attack, in the second; what was known stays, line by line."""
    known: dict[str, list[str]] = {name: [] for name in NAMES}
    for opened, inside in ((90, 0), (130, 1), (150, 2)):
        killed = run(command, tmp_path, kill_at=f"open /pets/ {opened}")
        assert (killed.code, killed.err) == (-signal.SIGKILL, "")
        found = outcomes(tmp_path)
        for name, before in known.items():
            assert found[name][: len(before)] == before
        known = found
        assert [len(lines) for lines in known.values()][:inside] == [60] * inside
        assert 0 < len(known[NAMES[inside]]) < 60
        assert [len(lines) for lines in known.values()][inside + 1 :] == [0] * (2 - inside)
    finish(command, tmp_path, monkeypatch)
    assert all(outcomes(tmp_path)[name][: len(lines)] == lines for name, lines in known.items())
    assert_as_if_never_stopped(tmp_path, whole)


def test_what_a_killed_write_left_is_taken_away(command, whole, tmp_path, monkeypatch):
    """A cell whose description was never put in place is begun again; a torn line is cut."""
    shutil.copytree(whole / "results", tmp_path / "results")
    for description in (tmp_path / "results" / "cells").glob("*/cell.json"):
        name = json.loads(description.read_text())["attack"]["name"]
        if name == "cw-margin-5":
            shutil.rmtree(description.parent)
            description.parent.mkdir()
            description.with_name(".cell.json.123.partial").write_bytes(b"half")
        if name == "pgd-5":
            file = description.with_name("outcomes.jsonl")
            file.write_bytes(file.read_bytes()[:-9])
    finish(command, tmp_path, monkeypatch)
    assert_as_if_never_stopped(tmp_path, whole)


def test_ctrl_c_is_one_line_and_keeps_what_is_known(command, whole, tmp_path, monkeypatch):
    """Exit code 130; the same command does the rest."""
    stopped = run(command, tmp_path, kill_at="open /pets/ 150", kill_with="SIGINT")
    assert stopped.line(130) == ("zsrobust: stopped; the same command goes on from where it was.\n")
    assert counts(tmp_path)[0] == 60
    assert 0 < counts(tmp_path)[1] < 60
    finish(command, tmp_path, monkeypatch)
    assert_as_if_never_stopped(tmp_path, whole)


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_a_signal_stops_at_once(command, tmp_path, monkeypatch, capsys, name):
    """After thirty outcomes of an attack: they are there, no other is; exit code 128 + signal, one line."""
    attack = module.attack_chunks

    def signalled(*arguments: Any, **options: Any) -> Any:
        for count, outcome in enumerate(attack(*arguments, **options)):
            if count == 30:
                signal.raise_signal(signal.Signals[name])
            yield outcome

    monkeypatch.setattr(module, "attack_chunks", signalled)
    monkeypatch.chdir(tmp_path)
    before = signal.getsignal(signal.SIGTERM)
    with hearing_ctrl_c(), pytest.raises(SystemExit) as stopped:
        main(command)
    assert stopped.value.code == 128 + signal.Signals[name]
    assert capsys.readouterr() == (
        "",
        "zsrobust: stopped; the same command goes on from where it was.\n",
    )
    assert counts(tmp_path) == [60, 30, 0]
    assert signal.getsignal(signal.SIGTERM) == before
