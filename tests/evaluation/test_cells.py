"""Cells: the key covers everything that moves an outcome; records survive the file and a kill."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable
from dataclasses import asdict, fields, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from zsrobust import attacks, data
from zsrobust.attacks.outcome import Outcome
from zsrobust.errors import UserError
from zsrobust.evaluation import cells
from zsrobust.evaluation.cells import Asked, Cell, Record, cell_key
from zsrobust.models import text_record
from zsrobust.threat import Threat

NAMES = ["cat", "dog"]


def threat_row(threat: Threat) -> dict[str, Any]:
    return {"norm": threat.norm, "eps": threat.eps, "resolution": threat.resolution}


def arguments(attack: str = "cw-margin-20", threat: Threat | None = None) -> dict[str, Any]:
    """The arguments of an ordinary key, as evaluate makes them."""
    threat = threat or Threat("linf", 1 / 255)
    return {
        "weights": "ab" * 32,
        "preprocess": {"size": [16, 16], "mean": [0.5] * 3, "std": [0.25] * 3, "mode": "shortest"},
        "texts": text_record(NAMES, ["a photo of a {}."]),
        "duplicates": "merge",
        "image_set": "pets",
        "split": "test",
        "threat": threat_row(threat),
        "attack": attacks.plan(attack, threat).settings(),
        "seed": 0,
        "precision": "fp32",
    }


def put(*path: str, value: Any) -> Callable[[dict[str, Any]], None]:
    """Return a change of one entry, however deep."""

    def change(given: dict[str, Any]) -> None:
        *folders, last = path
        for name in folders:
            given = given[name]
        assert given[last] != value
        given[last] = value

    return change


def another_attack(text: str) -> Callable[[dict[str, Any]], None]:
    """Return a change of the attack to what `text` is planned as; the threat stays."""
    return lambda given: given.update(attack=attacks.plan(text, Threat("linf", 1 / 255)).settings())


def other_texts(names: list[str], templates: list[str]) -> Callable[[dict[str, Any]], None]:
    return lambda given: given.update(texts=text_record(names, templates))


CHANGES: dict[str, Callable[[dict[str, Any]], None]] = {
    "weights": put("weights", value="cd" * 32),
    "preprocess: mean": put("preprocess", "mean", value=[0.5, 0.5, 0.4]),
    "preprocess: size": put("preprocess", "size", value=[32, 32]),
    "preprocess: resize rule": put("preprocess", "mode", value="squash"),
    "class name": other_texts(["cat", "hound"], ["a photo of a {}."]),
    "class order": other_texts(["dog", "cat"], ["a photo of a {}."]),
    "template": other_texts(NAMES, ["a picture of a {}."]),
    "a full stop in the template": other_texts(NAMES, ["a photo of a {}"]),
    "one more template": other_texts(NAMES, ["a photo of a {}.", "a {}."]),
    "a head in place of texts": put("texts", value={"head": "ef" * 32}),
    "duplicates": put("duplicates", value="keep"),
    "set": put("image_set", value="cars"),
    "split": put("split", value="val"),
    "no threat": put("threat", value=None),
    "norm": put("threat", "norm", value="l2"),
    "eps": put("threat", "eps", value=1.0001 / 255),
    "resolution": put("threat", "resolution", value="native"),
    "attack": another_attack("pgd-20"),
    "attack: steps": another_attack("cw-margin-21"),
    "attack: step size": another_attack("cw-margin-20:step=1/255"),
    "attack: restarts": another_attack("cw-margin-20:restarts=2"),
    "attack: kappa": another_attack("cw-margin-20:kappa=50"),
    "attack: judge": another_attack("cw-margin-20:judge=last"),
    "attack: early exit": another_attack("cw-margin-20:early_exit=false"),
    "attack: eot": another_attack("cw-margin-20:eot=2"),
    "attack: step size alone": put("attack", "step_size", value=1 / 255),
    "attack: judge alone": put("attack", "judge", value="last"),
    "attack: early exit alone": put("attack", "early_exit", value=False),
    "attack: version": put("attack", "version", value=2),
    "seed": put("seed", value=1),
    "no seed": put("seed", value=None),
    "precision": put("precision", value="bf16"),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_whatever_moves_an_outcome_changes_the_key(change):
    """A cached result under a changed template or step would be the worst bug there could be (traps 47)."""
    given = arguments()
    before = cell_key(**given).digest
    changed = copy.deepcopy(given)
    change(changed)
    assert cell_key(**changed).digest != before
    assert cell_key(**given).digest == before  # the key took no part of what it was given


def test_all_keys_differ_from_each_other():
    """No change undoes another one."""
    digests = set()
    for change in CHANGES.values():
        given = arguments()
        change(given)
        digests.add(cell_key(**given).digest)
    assert len(digests) == len(CHANGES)


def test_another_protocol_is_another_cell(monkeypatch):
    """What a key stands for changes with the protocol's number."""
    before = cell_key(**arguments()).digest
    monkeypatch.setattr(cells, "PROTOCOL", cells.PROTOCOL + 1)
    assert cell_key(**arguments()).digest != before


def test_equal_content_is_an_equal_key_whatever_the_order():
    """Canonical JSON: sorted at every depth, so that the order of building does not matter."""

    def backwards(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: backwards(v) for k, v in reversed(list(value.items()))}
        return value

    given = arguments()
    assert cell_key(**backwards(given)).digest == cell_key(**given).digest
    assert len(cell_key(**given).digest) == 64


def test_a_step_left_out_is_the_step_spelled_out():
    """step=None is eps / 4: the settings say what is run, not how it was asked for, but for the name."""
    threat = Threat("linf", 4 / 255)
    short = attacks.plan("pgd-20", threat).settings()
    long = attacks.plan("pgd-20:step=1/255", threat).settings()
    assert {**short, "name": None} == {**long, "name": None}


finite = st.floats(allow_nan=False, allow_infinity=False)
records = st.builds(
    Record,
    id=st.text(min_size=1),
    label=st.integers(0, 10_000),
    image=st.text("0123456789abcdef", min_size=16, max_size=16),
    clean=st.booleans(),
    clean_margin=finite,
    broken=st.booleans(),
    step=st.none() | st.integers(0, 10_000),
    step_within=st.none() | st.integers(0, 10_000),
    queries=st.integers(0, 10**6),
    margin=finite,
    distance=finite,
    by=st.none() | st.text(),
)


@given(records)
def test_a_record_comes_back_from_its_line_as_it_was(record):
    """Record -> row -> JSON -> Record is the identity, whatever stands in it."""
    line = json.dumps(record.row(), ensure_ascii=False, allow_nan=False)
    assert Record(**json.loads(line)) == record


def test_a_row_leaves_out_what_is_at_its_default():
    """Outcomes are a few bytes a sample (traps 56): a clean mistake has five fields and its margin."""
    plain = Record("a.png", 3, "0" * 16, False, -1.5)
    assert set(plain.row()) == {"id", "label", "image", "clean", "clean_margin"}
    full = Record("a.png", 3, "0" * 16, True, 1.5, True, 0, 0, 1, -0.5, 0.004, "pgd-20")
    assert full.row() == asdict(full)
    assert list(full.row()) == [field.name for field in fields(Record)]


def test_floats_keep_seven_digits():
    """What float32 has, and what is not finite is 0: JSON has no infinity."""
    outcome = Outcome(
        "a", 1, True, 1.23456789012, margin=math.inf, distance=0.00392156862745, queries=3
    )
    record = Record.of(outcome, "f" * 16)
    assert (record.clean_margin, record.margin) == (1.234568, 0.0)
    assert record.distance == 0.003921569
    assert record.queries == 3
    assert json.loads(json.dumps(record.row()))["clean_margin"] == 1.234568
    assert Record.of(Outcome("a", 1, True, 123456789.0), "f" * 16).clean_margin == 123456800.0


def test_a_record_of_an_outcome_says_the_same():
    """Robust = right on the clean image and not broken, in both."""
    for correct in (True, False):
        for broken in (True, False):
            outcome = Outcome("a", 1, correct, 1.0, broken, "pgd-1", 0, 0, 1, 1.0, 0.5)
            record = Record.of(outcome, "f" * 16)
            assert record.robust is outcome.robust is (correct and not broken)
            assert (record.by, record.step, record.label) == ("pgd-1", 0, 1)


def written(root, *rows: Record) -> Cell:
    """A cell on disk with these records."""
    cell = Cell(cell_key(**arguments()), root)
    cell.begin({"threads": 1})
    for row in rows:
        cell.add(row)
    cell.end()
    return cell


A = Record("a.png", 0, "a" * 16, True, 0.5, queries=21, margin=0.25, distance=0.004)
B = Record("b.png", 1, "b" * 16, True, 0.5, True, 3, 3, 4, -0.1, 0.004, "cw-margin-20")


def test_what_was_added_is_there_again(tmp_path):
    """Opened anew, a cell holds its records; the folder is named by the key and says what it is."""
    cell = written(tmp_path, A, B)
    again = Cell(cell.key, tmp_path)
    assert again.records == {"a.png": A, "b.png": B}
    folder = tmp_path / "cells" / cell.key.digest[:16]
    assert again.folder == folder
    described = json.loads((folder / "cell.json").read_text())
    assert described == {"key": cell.key.digest, **json.loads(json.dumps(cell.key.content))}
    assert [json.loads(line) for line in (folder / "environments.jsonl").open()] == [{"threads": 1}]


def test_each_record_is_in_the_file_at_once(tmp_path):
    """A kill at any moment loses no finished sample: the line is flushed as it is added."""
    cell = Cell(cell_key(**arguments()), tmp_path)
    cell.begin({})
    cell.add(A)
    assert Cell(cell.key, tmp_path).records == {"a.png": A}  # the first one is still open
    cell.end()


def test_a_torn_last_line_is_dropped_and_overwritten(tmp_path):
    """Half a line is no record; the next one begins on a line of its own."""
    cell = written(tmp_path, A, B)
    path = cell.folder / "outcomes.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole[:-7])
    torn = Cell(cell.key, tmp_path)
    assert torn.records == {"a.png": A}
    torn.begin({})
    torn.add(B)
    torn.end()
    assert path.read_bytes() == whole
    assert Cell(cell.key, tmp_path).records == {"a.png": A, "b.png": B}


def test_the_last_record_of_an_id_holds(tmp_path):
    """A changed image is measured again: the newer line stands behind the older one."""
    newer = Record("a.png", 0, "c" * 16, False, -0.5)
    cell = written(tmp_path, A, B, newer)
    again = Cell(cell.key, tmp_path)
    assert again.records == {"a.png": newer, "b.png": B}
    assert again.valid("a.png", 0, "c" * 16)
    assert not again.valid("a.png", 0, "a" * 16)


def test_a_record_fits_its_id_label_and_image_alone():
    """Anything else is another sample."""
    cell = Cell(cell_key(**arguments()), None)
    cell.add(A)
    assert cell.valid("a.png", 0, "a" * 16)
    assert not cell.valid("b.png", 0, "a" * 16)
    assert not cell.valid("a.png", 1, "a" * 16)
    assert not cell.valid("a.png", 0, "b" * 16)


def test_without_a_folder_nothing_is_written(tmp_path, monkeypatch):
    """out=None keeps the cell in memory."""
    monkeypatch.chdir(tmp_path)
    cell = written(None, A)
    assert cell.folder is None
    assert cell.records == {"a.png": A}
    assert not list(tmp_path.iterdir())


def test_a_cell_of_another_key_is_refused(tmp_path):
    """Sixteen digits name the folder, the whole key is compared."""
    cell = written(tmp_path, A)
    path = cell.folder / "cell.json"
    described = json.loads(path.read_text())
    described["key"] = described["key"][:16] + "0" * 48
    path.write_text(json.dumps(described))
    with pytest.raises(UserError, match="does not belong to this cell"):
        Cell(cell.key, tmp_path)


@pytest.mark.parametrize("content", ['{"key": ', "[]", "", "\x00\x00"])
def test_a_damaged_description_is_one_line(tmp_path, content):
    """A file mended by hand, or lost by the disk, is said, not shown as a traceback."""
    cell = written(tmp_path, A)
    (cell.folder / "cell.json").write_text(content)
    with pytest.raises(UserError, match=r"cell\.json"):
        Cell(cell.key, tmp_path)


@pytest.mark.parametrize("line", ['{"id": "x"}', '{"id": "x", "colour": 1}', "5", "no json"])
def test_a_damaged_record_is_one_line(tmp_path, line):
    """A whole line that is no record is an error, never passed over."""
    cell = written(tmp_path, A)
    with (cell.folder / "outcomes.jsonl").open("a") as stream:
        stream.write(line + "\n")
    with pytest.raises(UserError, match=r"outcomes\.jsonl"):
        Cell(cell.key, tmp_path)


def test_a_subset_is_held_if_every_sample_of_it_is_there(sorted_set):
    """A prefix of a set's own fixed order, among whatever else; one sample less, or another picture, is not it."""
    opened = data.open_set(f"folder:{sorted_set}")
    order = [Record(opened.ids[i], opened.labels[i], f"{i:016}", True, 0.5) for i in opened.order()]
    rng = np.random.default_rng(3)
    for count in (1, 7, 23, 50, len(order)):
        asked = Asked.of((r.id, r.label, r.image) for r in order[:count])
        assert asked.samples == count
        for _ in range(5):
            behind = [r for r in order[count:] if rng.random() < 0.4]
            there = [*order[:count], *behind]
            cell = Cell(cell_key(**arguments()), None)
            for i in rng.permutation(len(there)):
                cell.add(there[i])
            assert cell.holds(asked)
            assert cell.in_order()[:count] == [r.id for r in order[:count]]
            lost = order[rng.integers(count)]
            del cell.records[lost.id]
            assert not cell.holds(asked)
            cell.add(replace(lost, image="0" * 15 + "x"))
            assert not cell.holds(asked)


def test_what_was_asked_for_is_noted_once(tmp_path):
    """By a start, or where nothing was missing by a line of its own, which is no machine."""
    asked, less = Asked.of([("a.png", 0, "a" * 16)]), Asked(1, "b" * 16)
    cell = Cell(cell_key(**arguments()), tmp_path)
    cell.begin({"threads": 1, "role": {"model": "m"}, "asked": asked.row()})
    cell.end()
    assert not cell.has_older_starts
    for one in (asked, less, less):
        cell.note(one)
    again = Cell(cell.key, tmp_path)
    assert again.asked == cell.asked == {asked, less}
    assert len(again.starts) == 2
    assert again.environments == [{"threads": 1}]
    assert again.roles == [{"model": "m"}]
    assert written(tmp_path / "older", A).has_older_starts
    odd = Cell(cell.key, None)
    odd.starts = [{"asked": {"samples": "many"}}, {"asked": 5}]
    assert odd.asked == set()
