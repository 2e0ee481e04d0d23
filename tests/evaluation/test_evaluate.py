"""evaluate: the same numbers however they came about, nothing twice, and no number of something else."""

from __future__ import annotations

import copy
import importlib
import io
import json
import shutil
import tarfile
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from zsrobust import attacks, data
from zsrobust.data import Suite
from zsrobust.errors import EnvironmentFault, UserError
from zsrobust.evaluation import EvaluationTable, evaluate
from zsrobust.evaluation.cells import Record
from zsrobust.files import folder_lock
from zsrobust.hashing import image_hash, sha256_json
from zsrobust.models import Clip, ZeroShotClassifier, load_clip
from zsrobust.preprocess import to_unit

# The module: its name in the package stands for the function.
module = importlib.import_module("zsrobust.evaluation.evaluate")
measuring = importlib.import_module("zsrobust.evaluation.measure")

ATTACKS = ["clean", "pgd-2", "cw-margin-2"]
EPS = "2/255"


def folders(out: Path) -> dict[str, Path]:
    """The cells of a results folder by the name of their attack."""
    found = {}
    for folder in sorted((out / "cells").iterdir()):
        found[json.loads((folder / "cell.json").read_text())["attack"]["name"]] = folder
    return found


def lines(folder: Path, name: str = "outcomes.jsonl") -> list[str]:
    return (folder / name).read_text().splitlines()


def rows(folder: Path) -> dict[str, dict[str, Any]]:
    """The records of a cell by id, the last one holding, as they stand in the file."""
    return {row["id"]: row for row in map(json.loads, lines(folder))}


def same(a: dict[str, Any], b: dict[str, Any]) -> bool:
    """Equal but for rounding, which is all that may differ between batches."""
    return a.keys() == b.keys() and all(
        a[k] == pytest.approx(b[k], abs=1e-4) if isinstance(a[k], float) else a[k] == b[k]
        for k in a
    )


def forbid(*_: Any, **__: Any) -> Any:
    raise AssertionError("this must not be called")


@pytest.fixture
def spy(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Count what is computed: samples that enter each attack, and shapes that the classifier sees."""
    seen = SimpleNamespace(attacked=Counter(), clean=0, shapes=Counter())
    attack, clean, forward = (
        measuring.attack_chunks,
        measuring.Case.unattacked,
        ZeroShotClassifier.forward,
    )

    def attack_chunks(model, chunks, plan, **options):
        for outcome in attack(model, chunks, plan, **options):
            seen.attacked[plan.name] += 1
            yield outcome

    def clean_pass(*arguments):
        for pair in clean(*arguments):
            seen.clean += 1
            yield pair

    def look(self, images):
        seen.shapes[tuple(images.shape[1:])] += 1
        return forward(self, images)

    monkeypatch.setattr(measuring, "attack_chunks", attack_chunks)
    monkeypatch.setattr(measuring.Case, "unattacked", clean_pass)
    monkeypatch.setattr(ZeroShotClassifier, "forward", look)
    return seen


@pytest.fixture(scope="module")
def measured(
    tiny_clip: Clip, sorted_set: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[EvaluationTable, Path]:
    """The whole set measured without interruption: table and folder, to be read only."""
    out = tmp_path_factory.mktemp("measured")
    return evaluate([tiny_clip], f"folder:{sorted_set}", ATTACKS, EPS, out=out), out


@pytest.fixture
def results(measured: tuple[EvaluationTable, Path], tmp_path: Path) -> Path:
    """A copy of those results that a test may change."""
    return Path(shutil.copytree(measured[1], tmp_path / "results"))


def test_the_numbers_are_those_of_the_records(measured, sorted_set):
    """Accuracy = share of samples right and not broken; ids are the set's fixed order; labels their own."""
    table, out = measured
    (row,) = table.rows
    opened = data.open_set(f"folder:{sorted_set}")
    assert row.ids == [opened.ids[i] for i in opened.order()]
    assert (row.image_set, row.classes, row.resolution) == ("pets", 5, "model")
    for name, folder in folders(out).items():
        records = rows(folder)
        assert set(records) == set(opened.ids)
        right = [records[i]["clean"] and not records[i].get("broken", False) for i in row.ids]
        assert row.values(name).tolist() == right
        for i, sample in enumerate(opened.ids):
            assert records[sample]["label"] == opened.labels[i]
            assert records[sample]["image"] == image_hash((sorted_set / sample).read_bytes())
    # the fixture gives something to measure
    clean, robust = row.accuracy("clean").value, row.accuracy("robust").value
    assert clean == 0.9
    assert 0.2 < robust < 0.8


def test_a_cell_is_what_the_engine_says_of_the_same_images(tiny_clip, sorted_set, measured):
    """evaluate adds loading, texts and files to `attacks.run`, and changes no outcome."""
    opened = data.open_set(f"folder:{sorted_set}")
    order = opened.order()
    batch = next(data.batches(opened, order, tiny_clip.preprocess.geometry(), 60))
    classifier = ZeroShotClassifier.from_texts(tiny_clip, opened.classnames, ["a photo of a {}."])
    found = attacks.run(
        classifier, to_unit(batch.images), batch.labels, ids=batch.ids, attack="pgd-2", eps=EPS
    )
    stored = rows(folders(measured[1])["pgd-2"])
    for outcome in found:
        assert same(Record.of(outcome, stored[outcome.id]["image"]).row(), stored[outcome.id])


def test_a_progress_bar_changes_no_number_and_prints_no_result(
    tiny_clip, sorted_set, measured, capsys
):
    """It is drawn on standard error, and only there."""
    table = evaluate([tiny_clip], f"folder:{sorted_set}", ATTACKS, EPS, progress=True)
    assert table.to_json() == measured[0].to_json()
    assert capsys.readouterr().out == ""


def test_robust_is_the_union_of_the_attacks(measured):
    """A sample is broken if any attack broke it (traps 29), so the union is below each of them."""
    table, _ = measured
    (row,) = table.rows
    first, second = row.values("pgd-2"), row.values("cw-margin-2")
    assert row.values("robust").tolist() == (first * second).tolist()
    assert (first != second).any()
    assert (row.values("robust") <= row.values("clean")).all()


def test_a_larger_limit_only_adds(tiny_clip, sorted_set, tmp_path, spy):
    """Ten, then twenty: ten new samples are attacked, the lines that stood there stay, ten is a prefix."""
    settings: dict[str, Any] = {"sets": f"folder:{sorted_set}", "attacks": ATTACKS, "eps": EPS}
    ten = evaluate([tiny_clip], **settings, limit=10, out=tmp_path)
    before = {name: lines(folder) for name, folder in folders(tmp_path).items()}
    assert spy.attacked == {"pgd-2": 10, "cw-margin-2": 10}
    twenty = evaluate([tiny_clip], **settings, limit=20, out=tmp_path)
    assert spy.attacked == {"pgd-2": 20, "cw-margin-2": 20}
    assert spy.clean == 20
    for name, folder in folders(tmp_path).items():
        assert len(lines(folder)) == 20
        assert lines(folder)[:10] == before[name]
    again = evaluate([tiny_clip], **settings, limit=10, out=tmp_path)
    assert spy.clean == 20
    # A number uses exactly the subset asked for, however many records the cell holds.
    assert again.to_json() == ten.to_json()
    small, large = ten.rows[0], twenty.rows[0]
    assert len(large.ids) == 20
    assert small.ids == large.ids[:10]
    for column in ten.columns:
        assert small.values(column).tolist() == large.values(column)[:10].tolist()


def test_a_prefix_equals_the_whole(tiny_clip, sorted_set, measured):
    """Measured alone, the first 25 samples come out as they do among sixty."""
    few = evaluate([tiny_clip], f"folder:{sorted_set}", ATTACKS, EPS, limit=25).rows[0]
    for column in ("clean", "pgd-2", "cw-margin-2", "robust"):
        whole = measured[0].rows[0].values(column)
        assert few.values(column).tolist() == whole[:25].tolist()


def test_what_is_there_is_not_computed_again(
    tiny_clip, sorted_set, measured, results, monkeypatch, spy
):
    """No attack, no clean pass, no model call, no new line: the second call only reads."""
    before = {path: path.read_bytes() for path in results.rglob("*") if path.is_file()}
    monkeypatch.setattr(measuring, "attack_chunks", forbid)
    monkeypatch.setattr(measuring.Case, "unattacked", forbid)
    table = evaluate([tiny_clip], f"folder:{sorted_set}", ATTACKS, EPS, out=results)
    assert table.to_json() == measured[0].to_json()
    assert not spy.shapes
    assert {path: path.read_bytes() for path in before} == before


def test_what_was_asked_for_is_noted_beside_the_key(tiny_clip, sorted_set, tmp_path, spy):
    """How many samples, and which: at a start, and where another number turns out to be there already."""
    opened = data.open_set(f"folder:{sorted_set}")
    settings = {"attacks": ["pgd-2"], "eps": EPS, "out": tmp_path}
    for limit, known in ((30, 1), (10, 2), (30, 2), (10, 2), (40, 3)):
        table = evaluate([tiny_clip], f"folder:{sorted_set}", limit=limit, **settings)
        for folder in folders(tmp_path).values():
            noted = [json.loads(line) for line in lines(folder, "environments.jsonl")]
            assert len(noted) == known
        assert len(table.rows[0].environments) == 1  # a note alone is no machine
    assert [one["asked"]["samples"] for one in noted] == [30, 10, 40]
    assert spy.attacked == {"pgd-2": 40}
    listed = [
        [opened.ids[i], opened.labels[i], image_hash(opened.stored(i))] for i in opened.first(10)
    ]
    assert noted[1] == {"asked": {"samples": 10, "digest": sha256_json(listed)[:16]}}


def test_one_attack_more_computes_that_attack(tiny_clip, sorted_set, results, spy):
    """Cells are apart: what another attack needs of the clean pass is not written again."""
    evaluate([tiny_clip], f"folder:{sorted_set}", [*ATTACKS, "pgd-1"], EPS, out=results)
    assert spy.attacked == {"pgd-1": 60}
    assert spy.clean == 0
    assert len(lines(folders(results)["clean"], "environments.jsonl")) == 1
    assert len(lines(folders(results)["pgd-1"], "environments.jsonl")) == 1


def test_a_torn_file_is_completed_to_the_same_records(
    tiny_clip, sorted_set, measured, results, spy
):
    """Killed in the middle of a line: what is missing is measured, as if nothing had happened."""
    kept = {"clean": 60, "pgd-2": 23, "cw-margin-2": 0}
    for name, folder in folders(results).items():
        whole = (folder / "outcomes.jsonl").read_text().splitlines(keepends=True)
        torn = "".join(whole[: kept[name]]) + ("" if kept[name] == 60 else whole[kept[name]][:9])
        (folder / "outcomes.jsonl").write_text(torn)
    table = evaluate([tiny_clip], f"folder:{sorted_set}", ATTACKS, EPS, out=results)
    assert spy.clean == 0
    assert spy.attacked == {"pgd-2": 37, "cw-margin-2": 60}
    assert table.to_json() == measured[0].to_json()
    uninterrupted = folders(measured[1])
    for name, folder in folders(results).items():
        found, expected = rows(folder), rows(uninterrupted[name])
        assert found.keys() == expected.keys()
        assert len(lines(folder)) == 60
        assert all(same(found[i], expected[i]) for i in expected)
    assert len(lines(folders(results)["pgd-2"], "environments.jsonl")) == 2


def test_an_interrupt_keeps_what_was_finished(tiny_clip, sorted_set, tmp_path, monkeypatch, spy):
    """Ctrl-C after 30 outcomes: they are in the file, and the next call does the other 30."""
    attack = measuring.attack_chunks

    def interrupted(*arguments: Any, **options: Any) -> Any:
        for count, outcome in enumerate(attack(*arguments, **options)):
            if count == 30:
                raise KeyboardInterrupt
            yield outcome

    with monkeypatch.context() as patch:
        patch.setattr(measuring, "attack_chunks", interrupted)
        with pytest.raises(KeyboardInterrupt):
            evaluate([tiny_clip], f"folder:{sorted_set}", ["pgd-2"], EPS, out=tmp_path)
    assert len(lines(folders(tmp_path)["pgd-2"])) == 30
    spy.attacked.clear()
    evaluate([tiny_clip], f"folder:{sorted_set}", ["pgd-2"], EPS, out=tmp_path)
    assert spy.attacked == {"pgd-2": 30}


def test_a_changed_image_is_set_aside_said_and_measured_again(
    tiny_clip, sorted_set, results, tmp_path, spy
):
    """The record no longer fits the bytes: that sample alone is measured again, and it is said."""
    root = Path(shutil.copytree(sorted_set, tmp_path / "pets"))
    said: list[str] = []
    settings: dict[str, Any] = {
        "attacks": ATTACKS,
        "eps": EPS,
        "out": results,
        "notify": said.append,
    }
    evaluate([tiny_clip], f"folder:{root}", **settings)  # another place, the same set
    assert not said
    assert not spy.attacked
    changed = data.open_set(f"folder:{root}").ids[17]
    pixels = np.random.default_rng(1).integers(0, 256, (20, 24, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(root / changed)
    evaluate([tiny_clip], f"folder:{root}", **settings)
    assert len(said) == 3  # one a cell: clean and two attacks
    assert all("1 record(s) set aside" in line and line.startswith("pets:") for line in said)
    assert spy.clean == 1
    assert spy.attacked == {"pgd-2": 1, "cw-margin-2": 1}
    for folder in folders(results).values():
        assert len(lines(folder)) == 61
        assert rows(folder)[changed]["image"] == image_hash((root / changed).read_bytes())
    evaluate([tiny_clip], f"folder:{root}", **settings)
    assert len(said) == 3
    assert spy.clean == 1


def test_an_image_under_another_label_is_measured_again(tiny_clip, sorted_set, tmp_path, spy):
    """Same id and bytes in a corrected set: the record of the old label does not stand for the new one."""
    files = sorted(sorted_set.rglob("*.png"))[:8]

    def write(labels: list[int]) -> None:
        with tarfile.open(tmp_path / "set" / "test" / "0.tar", "w") as tar:
            for i, (file, label) in enumerate(zip(files, labels, strict=True)):
                for name, content in ((f"{i}.png", file.read_bytes()), (f"{i}.cls", b"%d" % label)):
                    info = tarfile.TarInfo(name)
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))

    (tmp_path / "set" / "test").mkdir(parents=True)
    (tmp_path / "set" / "test" / "nshards.txt").write_text("1\n")
    (tmp_path / "set" / "classnames.txt").write_text("blue star\ngreen box\n")
    said: list[str] = []
    settings: dict[str, Any] = {"out": tmp_path / "out", "notify": said.append}
    write([0, 1, 0, 1, 0, 1, 0, 1])
    before = evaluate([tiny_clip], f"wds:{tmp_path}/set", ["clean"], **settings).rows[0]
    write([0, 1, 0, 1, 0, 0, 0, 1])
    after = evaluate([tiny_clip], f"wds:{tmp_path}/set", ["clean"], **settings).rows[0]
    assert spy.clean == 9
    assert len(said) == 1
    right = [dict(zip(row.ids, row.clean, strict=True)) for row in (before, after)]
    assert [name for name in sorted(before.ids) if right[0][name] != right[1][name]] == ["5"]


def test_requests_that_move_outcomes_have_cells_of_their_own(tiny_clip, sorted_set, tmp_path):
    """Changed templates, duplicates rule, seed, norm, ... give another cell; slots and limit do not."""
    base: dict[str, Any] = {
        "sets": f"folder:{sorted_set}",
        "attacks": ["pgd-1"],
        "eps": EPS,
        "limit": 4,
        "out": tmp_path,
    }

    def cells() -> set[str]:
        return {path.name for path in (tmp_path / "cells").iterdir()}

    evaluate([tiny_clip], **base)
    seen = cells()
    assert len(seen) == 2  # clean and pgd-1
    changes: list[tuple[dict[str, Any], int]] = [
        ({"templates": ["a picture of a {}."]}, 2),
        ({"templates": ["a photo of a {}.", "a picture of a {}."]}, 2),
        ({"templates": ["paper"]}, 2),
        ({"templates": ["This is a photo of a {}"]}, 0),  # the same words by another name
        ({"preprocess": "paper"}, 2),
        ({"preprocess": "model"}, 0),  # a key says nothing of the default
        ({"preprocess": "paper", "resolution": "native"}, 2),
        ({"resolution": "native"}, 0),  # nothing is brought to size: one cell for both rules
        ({"duplicates": "keep"}, 2),
        ({"precision": "bf16"}, 2),
        ({"seed": 1}, 1),
        ({"eps": "1/255"}, 1),
        ({"norm": "l2"}, 1),
        ({"attacks": ["pgd-1:step=1/255"]}, 1),
        ({"attacks": ["pgd-1:step=1/255"], "eps": "3/255"}, 1),  # eps alone, not by way of the step
        ({"attacks": ["pgd-1:judge=last"]}, 1),
        ({"slots": 3}, 0),
        ({"limit": 6}, 0),
        ({"templates": ["a photo of a {}."]}, 0),  # what a set without templates of its own takes
        ({"attacks": ["clean", "pgd-1"]}, 0),
    ]
    for change, new in changes:
        evaluate([tiny_clip], **{**base, **change})
        assert len(cells() - seen) == new, change
        seen = cells()


def test_the_seed_moves_the_noise_and_nothing_else(tiny_clip, sorted_set, tmp_path):
    """Another seed: the same clean records, other starts of the attack; the same seed: the same records."""
    for seed in (0, 1):
        for name in ("a", "b"):
            settings: dict[str, Any] = {
                "limit": 20,
                "seed": seed,
                "out": tmp_path / f"{name}{seed}",
            }
            evaluate([tiny_clip], f"folder:{sorted_set}", ["pgd-2"], EPS, **settings)
    one, again, other = (folders(tmp_path / name) for name in ("a0", "b0", "a1"))
    assert lines(one["pgd-2"]) == lines(again["pgd-2"])
    assert lines(one["clean"]) == lines(other["clean"])
    a, b = rows(one["pgd-2"]), rows(other["pgd-2"])
    attacked = [i for i in a if a[i]["clean"]]
    assert sum(a[i]["margin"] != b[i]["margin"] for i in attacked) > 0.9 * len(attacked)


def test_each_eps_is_a_row(tiny_clip, sorted_set):
    """Two radii: two rows in the order asked for, one clean accuracy, each with its own threat."""
    table = evaluate(
        [tiny_clip], f"folder:{sorted_set}", ["pgd-2"], ["4/255", 1 / 255, 0], limit=30
    )
    assert table.radii == [4 / 255, 1 / 255, 0.0]
    four, one, none = table.rows
    assert four.clean == one.clean == none.clean
    assert four.values("pgd-2").sum() < one.values("pgd-2").sum()
    assert none.values("pgd-2").tolist() == none.values("clean").tolist()
    assert [row["eps"] for row in table.to_json()["rows"]] == table.radii


def test_the_same_eps_twice_is_one_row(tiny_clip, sorted_set):
    """1/255 as text and as a number is one radius; an attack named twice is one column."""
    table = evaluate(
        [tiny_clip], f"folder:{sorted_set}", ["pgd-1", "pgd-1"], ["1/255", 1 / 255], limit=3
    )
    assert len(table.rows) == 1
    assert table.columns == ["clean", "pgd-1", "robust"]


@pytest.mark.parametrize("slots", [1, 7])
def test_the_number_of_slots_changes_rounding_alone(
    tiny_clip, sorted_set, measured, tmp_path, slots
):
    """One by one, seven or sixty-four side by side: the same samples fall at the same query."""
    evaluate([tiny_clip], f"folder:{sorted_set}", ATTACKS, EPS, out=tmp_path, slots=slots, limit=30)
    whole = folders(measured[1])
    for name, folder in folders(tmp_path).items():
        expected = rows(whole[name])
        assert len(rows(folder)) == 30
        assert all(same(row, expected[i]) for i, row in rows(folder).items())


def test_clean_alone_needs_no_attack_and_no_eps(tiny_clip, sorted_set, tmp_path, monkeypatch):
    """One row without a threat, one cell, no attack run."""
    monkeypatch.setattr(measuring, "attack_chunks", forbid)
    settings: dict[str, Any] = {"sets": f"folder:{sorted_set}", "out": tmp_path}
    table = evaluate([tiny_clip], attacks=["clean"], eps=["1/255", "2/255"], **settings)
    (row,) = table.rows
    assert row.eps is None
    assert table.columns == ["clean"]
    assert list(folders(tmp_path)) == ["clean"]
    described = json.loads((folders(tmp_path)["clean"] / "cell.json").read_text())
    assert described["threat"] is None
    assert described["seed"] is None
    out = table.to_json()
    assert list(out["means"][0]["mean"]) == ["clean"]
    assert evaluate([tiny_clip], attacks=["clean"], eps=[], **settings).rows[0].clean == row.clean


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"attacks": ["pgd-20", "pdg-20"]}, "unknown attack 'pdg-20': did you mean 'pgd-20'"),
        ({"attacks": ["pgd"]}, "number of steps"),
        ({"eps": 8}, "did you mean 8/255"),
        ({"eps": ["1/255", "-1"]}, ">= 0"),
        ({"eps": "eight"}, "not a number"),
        ({"eps": []}, "no eps"),
        ({"norm": "l1"}, "unknown norm 'l1'"),
        ({"limit": 0}, "limit must be >= 1"),
        ({"duplicates": "drop"}, "unknown duplicates rule 'drop'"),
        ({"resolution": "full"}, "unknown resolution 'full'"),
        ({"preprocess": "papers"}, "unknown preprocess 'papers': did you mean 'paper'"),
        ({"templates": ["clip-bench"]}, "did you mean 'clip-benchmark'"),
        ({"templates": ["clip-benchmark"]}, "only sets with a card have them"),
        ({"templates": ["openai", "a {}."]}, "is a preset and stands alone"),
        ({"templates": []}, "no templates given"),
        ({"device": "gpu"}, "unknown device 'gpu'|device 'gpu' is unknown"),
        ({"sets": "mimi"}, "unknown image set 'mimi': did you mean 'mini'"),
        ({"sets": []}, "empty"),
        ({"models": []}, "no model given"),
        ({"models": [3]}, "3 is no model"),
        ({"models": ["tiny-clip-that-is-nowhere"]}, "unknown model"),
        ({"with_source": True}, "name no source set"),
    ],
)
def test_a_mistake_shows_before_any_model_is_loaded(
    sorted_set, tiny_clip_folder, tmp_path, monkeypatch, change, words
):
    """Also one in the last name of several: it must not show after an hour."""
    monkeypatch.setattr(module, "load_clip", forbid)
    request: dict[str, Any] = {
        "models": [f"local-dir:{tiny_clip_folder}"],
        "sets": f"folder:{sorted_set}",
        "attacks": ["pgd-2"],
        "out": tmp_path / "out",
        **change,
    }
    with pytest.raises(UserError, match=words):
        evaluate(**request)
    assert not (tmp_path / "out").exists()


def test_a_wrong_second_model_or_set_shows_before_the_first_is_measured(
    sorted_set, tiny_clip_folder, monkeypatch
):
    """Names are read before anything is computed."""
    monkeypatch.setattr(module, "load_clip", forbid)
    good = f"local-dir:{tiny_clip_folder}"
    with pytest.raises(UserError, match="not a folder"):
        evaluate([good, "local-dir:/nowhere/at/all"], f"folder:{sorted_set}")
    with pytest.raises(UserError, match="no such folder"):
        evaluate([good], [f"folder:{sorted_set}", "folder:/nowhere/at/all"])


def test_one_model_given_twice_is_refused(tiny_clip, sorted_set):
    """Its samples would count twice in its mean and make the interval too narrow."""
    with pytest.raises(UserError, match="given 2 times"):
        evaluate([tiny_clip, tiny_clip], f"folder:{sorted_set}", limit=2)


def test_a_set_without_labels_is_refused(tiny_clip, sorted_set):
    """A bare folder of pictures has no classes to be right about."""
    with pytest.raises(UserError, match="no labels"):
        evaluate([tiny_clip], f"folder:{next(sorted_set.iterdir())}")


def test_another_process_in_the_folder_is_a_machine_fault(tiny_clip, sorted_set, tmp_path):
    """Two that append to one file would tear each other's lines."""
    with folder_lock(tmp_path), pytest.raises(EnvironmentFault, match="another process"):
        evaluate([tiny_clip], f"folder:{sorted_set}", ["clean"], out=tmp_path)


def test_logits_that_are_no_numbers_are_an_error(tiny_clip, sorted_set):
    """Never a wrong or a robust sample (traps 31); the sample is named."""
    broken = copy.deepcopy(tiny_clip)
    with torch.no_grad():
        broken.model.visual.proj.fill_(torch.nan)
    with pytest.raises(FloatingPointError, match=r"on the clean image.*\.png"):
        evaluate([broken], f"folder:{sorted_set}", ["clean"], limit=3)


@pytest.fixture
def encoded_cifar(tmp_path: Path) -> Path:
    """Two pictures of CIFAR-100 as CLIP benchmark stores them, below a data folder."""
    folder = tmp_path / "data/wds_vtab-cifar100/test"
    folder.mkdir(parents=True)
    with tarfile.open(folder / "0.tar", "w") as tar:
        for i in range(2):
            buffer = io.BytesIO()
            Image.new("RGB", (32, 32), (90 * i, 80, 70)).save(buffer, "PNG")
            for name, content in ((f"s{i}.png", buffer.getvalue()), (f"s{i}.cls", b"1")):
                info = tarfile.TarInfo(name)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    return tmp_path / "data"


@pytest.fixture
def with_source(monkeypatch: pytest.MonkeyPatch, sorted_set: Path, tiny_set_folder: Path) -> None:
    """A suite whose source is the validation part of the tiny set, and whose one target is sorted."""
    suite = Suite("two", f"folder:{tiny_set_folder}/val", None, [f"folder:{sorted_set}"])
    monkeypatch.setattr(data, "load_suite", lambda _: suite)


@pytest.mark.usefixtures("with_source")
def test_the_source_set_never_enters_the_mean(tiny_clip):
    """Measured beside the targets and marked; means and differences are those without it (traps 45)."""
    settings: dict[str, Any] = {"attacks": ["pgd-1"], "eps": EPS, "limit": 20}
    plain = evaluate([tiny_clip], "two", **settings)
    both = evaluate([tiny_clip], "two", with_source=True, **settings)
    assert [(row.image_set, row.is_source) for row in both.rows] == [("pets", False), ("val", True)]
    source = both.of(tiny_clip.spec, 2 / 255, source=True)[0]
    assert source.accuracy("clean").value != plain.rows[0].accuracy("clean").value
    for column in plain.columns:
        with_it = both.mean(tiny_clip.spec, 2 / 255, column)
        assert with_it == plain.mean(tiny_clip.spec, 2 / 255, column)
    out = both.to_json()
    assert [row["source"] for row in out["rows"]] == [False, True]
    assert out["means"] == plain.to_json()["means"]
    assert out["means"][0]["sets"] == 1


def test_an_optional_set_that_is_not_here_is_said_and_left_out(tiny_clip, sorted_set, monkeypatch):
    """The mean says how many sets it is of; a set that is not optional is still missed."""
    monkeypatch.delenv("ZSROBUST_DATA", raising=False)
    target = f"folder:{sorted_set}"
    suite = Suite("two", None, None, ["hateful_memes", target], ["hateful_memes"])
    monkeypatch.setattr(data, "load_suite", lambda _: suite)
    said: list[str] = []
    settings: dict[str, Any] = {"attacks": ["clean"], "limit": 4}
    table = evaluate([tiny_clip], "two", notify=said.append, **settings)
    assert [row.image_set for row in table.rows] == ["pets"]
    assert table.to_json()["means"][0]["sets"] == 1
    assert len(said) == 1
    assert said[0].startswith("hateful_memes is left out of the means: hateful_memes, split 'test'")
    for missed in (
        Suite("two", None, None, ["hateful_memes", target]),
        Suite("one", None, None, ["hateful_memes"], ["hateful_memes"]),
    ):
        monkeypatch.setattr(data, "load_suite", lambda _, missed=missed: missed)
        with pytest.raises(UserError, match="hateful_memes, split 'test', is not on this machine"):
            evaluate([tiny_clip], "two", **settings)


def test_a_preset_measures_its_own_class_names(tiny_clip, tmp_path, monkeypatch, encoded_cifar):
    """Names of CLIP benchmark keep the underscore that the card's own lose."""
    monkeypatch.setenv("ZSROBUST_DATA", str(encoded_cifar))
    settings: dict[str, Any] = {"sets": "cifar100", "attacks": ["clean"], "out": tmp_path}
    names = []
    for templates in (None, ["clip-benchmark"]):
        table = evaluate([tiny_clip], templates=templates, **settings)
        texts = table.rows[0].key["texts"]
        names.append(texts["classnames"][1])
    assert names == ["aquarium fish", "aquarium_fish"]
    assert len(texts["templates"]) == 18


def test_the_ball_lies_at_the_resolution_asked_for(tiny_clip, tmp_path, spy):
    """native: queries have the set's 8x8 px and are upsampled inside; model: resized to 16x16 first."""
    root = tmp_path / "small"
    rng = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (root / name).mkdir(parents=True)
        for i in range(4):
            pixels = rng.integers(0, 256, (8, 8, 3)).astype(np.uint8)
            Image.fromarray(pixels).save(root / name / f"{i}.png")
    out = tmp_path / "out"
    settings: dict[str, Any] = {"sets": f"folder:{root}", "attacks": ["pgd-2"], "out": out}
    native = evaluate([tiny_clip], eps=EPS, resolution="native", **settings)
    assert set(spy.shapes) == {(3, 8, 8)}
    assert spy.attacked == {"pgd-2": 8}
    assert native.rows[0].resolution == "native"
    assert native.to_json()["rows"][0]["resolution"] == "native"
    spy.shapes.clear()
    ordinary = evaluate([tiny_clip], eps=EPS, **settings)
    assert set(spy.shapes) == {(3, 16, 16)}
    assert ordinary.rows[0].resolution == "model"
    stated = Counter(
        json.loads(path.read_text())["preprocess"]["resolution"] for path in out.rglob("cell.json")
    )
    assert stated == {"native": 2, "model": 2}


def test_images_of_unequal_size_have_no_native_resolution(tiny_clip, tmp_path):
    """They cannot stand side by side in one batch: said, with what to do."""
    for i, size in enumerate([(8, 8), (9, 8)]):
        folder = tmp_path / "uneven" / f"class{i}"
        folder.mkdir(parents=True)
        Image.fromarray(np.zeros((*size, 3), np.uint8)).save(folder / "0.png")
    with pytest.raises(UserError, match="use the resolution 'model'"):
        evaluate([tiny_clip], f"folder:{tmp_path}/uneven", ["clean"], resolution="native")


def test_two_classes_of_one_name_merge_or_compete(tiny_clip, predicted, tmp_path):
    """merge: either of the two is right. keep: the argmax of equal logits is the first, as published."""
    root = tmp_path / "twins"
    most = Counter(name for _, name in predicted).most_common(1)[0][0]
    other = next(name for _, name in predicted if name != most)
    chosen = [file for file, name in predicted if name == most][:12]
    for k, files in (
        ("0", chosen[:6]),
        ("1", chosen[6:]),
        ("2", [f for f, n in predicted if n == other][:2]),
    ):
        (root / k).mkdir(parents=True)
        for i, file in enumerate(files):
            shutil.copy(file, root / k / f"{i}.png")
    name = most.replace("_", " ")
    (root / "classnames.txt").write_text(f"{name}\n{name.upper()}\n{other.replace('_', ' ')}\n")
    settings: dict[str, Any] = {"sets": f"folder:{root}", "attacks": ["cw-margin-3"], "eps": EPS}
    merge = evaluate([tiny_clip], duplicates="merge", **settings).rows[0]
    keep = evaluate([tiny_clip], duplicates="keep", **settings).rows[0]
    second = np.array([sample.startswith("1/") for sample in merge.ids])
    assert merge.values("clean").all()
    assert keep.values("clean")[~second].all()
    assert not keep.values("clean")[second].any()
    assert not keep.values("cw-margin-3")[second].any()
    # Among twins alone the margin would be 0 for ever; as one class they are attacked like any other.
    assert 0 < merge.values("cw-margin-3").sum() < len(merge.ids)
    assert (
        merge.values("cw-margin-3")[~second].tolist()
        == keep.values("cw-margin-3")[~second].tolist()
    )


@pytest.fixture(scope="module")
def two_models(tiny_clip: Clip, cousin_folder: Path, sorted_set: Path, tiny_set_folder: Path):
    """Two models on two sets at two radii."""
    sets = [f"folder:{sorted_set}", f"folder:{tiny_set_folder}/val"]
    models = [tiny_clip, SimpleNamespace(spec=f"local-dir:{cousin_folder}")]
    return evaluate(models, sets, ["pgd-2", "cw-margin-2"], ["1/255", "4/255"], limit=30)


def test_a_difference_is_paired_on_the_same_samples(two_models):
    """Second minus first: mean over sets of the mean difference a sample, by hand."""
    first, second = two_models.models
    for eps in (1 / 255, 4 / 255):
        for column in ("clean", "pgd-2", "cw-margin-2", "robust"):
            by_set = []
            for a, b in zip(two_models.of(first, eps), two_models.of(second, eps), strict=True):
                assert a.ids == b.ids
                by_set.append(np.mean(b.values(column) - a.values(column)))
                one = two_models.set_difference(first, second, eps, a.image_set, column)
                assert one.value == pytest.approx(by_set[-1])
                assert one.low <= one.value <= one.high
            found = two_models.difference(first, second, eps, column)
            assert found.value == pytest.approx(np.mean(by_set))
            assert found.samples == 60
            means = [two_models.mean(model, eps, column).value for model in (first, second)]
            assert found.value == pytest.approx(means[1] - means[0])
    assert (
        two_models.difference(first, second, 1 / 255, "clean").value < -0.02
    )  # sorted by the first


def test_json_states_threat_and_count_beside_every_number(two_models):
    """No number without its attack, norm, eps, resolution and samples (traps 48); no NaN, nothing odd."""
    out = two_models.to_json()
    assert json.loads(json.dumps(out, allow_nan=False)) == out
    assert len(out["rows"]) == 8  # two models, two sets, two radii
    for row in out["rows"]:
        assert row["norm"] == "linf"
        assert row["eps"] in (1 / 255, 4 / 255)
        assert row["resolution"] == "model"
        assert row["templates"] == ["a photo of a {}."]
        assert list(row["accuracy"]) == ["clean", "pgd-2", "cw-margin-2", "robust"]
        for number in row["accuracy"].values():
            assert number["samples"] == 30
            assert 0 <= number["low"] <= number["value"] <= number["high"] <= 1
    assert len(out["means"]) == 4
    for mean in out["means"]:
        assert mean["sets"] == 2
        assert mean["eps"] in (1 / 255, 4 / 255)
        assert all(number["samples"] == 60 for number in mean["mean"].values())
    assert [(d["eps"], d["sets"]) for d in out["differences"]] == [(1 / 255, 2), (4 / 255, 2)]
    for difference in out["differences"]:
        assert (difference["model"], difference["minus"]) == tuple(reversed(two_models.models))
        assert set(difference["per_set"]) == {"pets", "val"}
    assert out["request"]["norm"] == "linf"
    assert out["request"]["limit"] == 30
    assert "conditional" in out["intervals"]


def test_equal_weights_share_their_cells(
    tiny_clip, tiny_clip_folder, sorted_set, results, tmp_path, spy
):
    """A cell belongs to weights, not to a name: a copy of the folder computes nothing."""
    copied = shutil.copytree(tiny_clip_folder, tmp_path / "copy")
    evaluate([f"local-dir:{copied}"], f"folder:{sorted_set}", ATTACKS, EPS, out=results)
    assert not spy.attacked
    assert spy.clean == 0


def test_two_folders_of_one_name_stay_apart(tiny_clip, sorted_set, tmp_path):
    """.../a/pets and .../b/pets: other images under the same ids are not taken for each other."""
    other = tmp_path / "other" / "pets"
    shutil.copytree(sorted_set, other)
    for path in sorted(other.rglob("*.png")):
        pixels = np.asarray(Image.open(path))
        Image.fromarray(255 - pixels).save(path)
    specs = [f"folder:{sorted_set}", f"folder:{other}"]
    together = evaluate([tiny_clip], specs, ["clean"], out=tmp_path / "out")
    assert [row.image_set for row in together.rows] == specs
    alone = [evaluate([tiny_clip], spec, ["clean"]).rows[0].clean for spec in specs]
    assert [row.clean for row in together.rows] == alone
    assert alone[0] != alone[1]
    (cell,) = folders(tmp_path / "out").values()
    newest = rows(cell)
    assert all(newest[i]["image"] == image_hash((other / i).read_bytes()) for i in newest)


def test_an_attack_that_judges_nothing_is_refused(tiny_clip, sorted_set):
    """Its robust accuracy would be the clean one."""
    with pytest.raises(UserError, match="judges no query"):
        evaluate([tiny_clip], f"folder:{sorted_set}", ["pgd-2:judge=none"], "4/255", device="cpu")


def test_the_scale_in_force_is_part_of_the_key(tiny_clip_folder, sorted_set, tmp_path):
    """It stands beside the weights: a changed one must not find the old cells (traps 47)."""
    for scale in (None, 3.0):
        clip = load_clip(f"local-dir:{tiny_clip_folder}")
        if scale is not None:
            clip.logit_scale = scale
        evaluate([clip], f"folder:{sorted_set}", ["clean"], limit=5, out=tmp_path, device="cpu")
    assert len(list((tmp_path / "cells").iterdir())) == 2


def test_what_a_run_was_hardened_on_never_enters_the_mean(
    tiny_clip_folder, tiny_set_folder, other_set_folder, tmp_path
):
    """Not for the run, and not for the model it is compared with (traps 45)."""
    from zsrobust.training.loop import harden
    from zsrobust.training.recipe import parse_recipe

    source = f"folder:{tiny_set_folder}/train"
    model = f"local-dir:{tiny_clip_folder}"
    recipe = parse_recipe(
        {
            "name": "test/source",
            "model": model,
            "source": {"set": source, "split": "test", "limit": 8},
            "optimiser": {"lr": 1e-4},
            "device": "cpu",
        }
    )
    run = harden(recipe, tmp_path / "run")
    # Held-out pictures of the same classes are source too, under whatever name and form of the model.
    sets = [source, f"folder:{tiny_set_folder}/val", f"folder:{other_set_folder}"]
    for given in (run.spec, f"local-dir:{run.model}"):
        table = evaluate([model, given], sets, ["pgd-1"], "4/255", limit=5, device="cpu")
        marked = {row.image_set: row.is_source for row in table.rows}
        assert marked == {"train": True, "val": True, "other-set": False}
        for one in (model, given):
            assert [row.image_set for row in table.of(one, 4 / 255)] == ["other-set"]
            assert table.mean(one, 4 / 255, "clean").samples == 5
    alone = evaluate([model, run], sets[:2], ["pgd-1"], "4/255", limit=5, device="cpu").to_json()
    assert alone["means"] == []
    (difference,) = alone["differences"]
    assert difference["mean"] is None
    assert set(difference["per_set"]) == {"train", "val"}


def test_a_string_is_no_list(tiny_clip, sorted_set):
    """It would be read letter by letter."""
    with pytest.raises(UserError, match=r"write \['mini-clip'\]"):
        evaluate("mini-clip", f"folder:{sorted_set}")
    with pytest.raises(UserError, match="attacks must be a list"):
        evaluate([tiny_clip], f"folder:{sorted_set}", "pgd-20")
