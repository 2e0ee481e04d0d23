"""Packed cells: every number again, in files of a bounded size, and nothing that was changed goes unseen."""

from __future__ import annotations

import json
import lzma
import shutil
from pathlib import Path
from typing import Any

import pytest

from zsrobust.errors import UserError
from zsrobust.evaluation import evaluate, packed
from zsrobust.evaluation.packed import read_packed, write_packed
from zsrobust.evaluation.stored import read_cells, read_table
from zsrobust.workflows.report_cells import report_cells


@pytest.fixture(scope="module")
def results(
    tiny_clip_folder: Path,
    cousin_folder: Path,
    sorted_set: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """Two models, three attacks, two radii; of one attack fewer samples, and one model's cells alone under it."""
    out = tmp_path_factory.mktemp("results")
    specs = [f"local-dir:{tiny_clip_folder}", f"local-dir:{cousin_folder}"]
    settings: dict[str, Any] = {"out": out, "device": "cpu"}
    where = f"folder:{sorted_set}"
    evaluate(specs, where, ["pgd-3", "cw-margin-2"], ["1/255", "4/255"], limit=20, **settings)
    evaluate(specs[:1], where, ["apgd-ce-3"], ["4/255"], limit=8, **settings)
    return out


@pytest.fixture(scope="module")
def of_two_sets(
    tiny_clip_folder: Path, sorted_set: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """An ensemble on a set of five classes and on one of two, where it has other members."""
    two = tmp_path_factory.mktemp("two") / "two"
    for name in sorted(folder.name for folder in sorted_set.iterdir())[:2]:
        shutil.copytree(sorted_set / name, two / name)
    out = tmp_path_factory.mktemp("ensembles")
    spec = f"local-dir:{tiny_clip_folder}"
    sets = [f"folder:{sorted_set}", f"folder:{two}"]
    evaluate([spec], sets, ["autoattack-fare"], ["4/255"], limit=4, out=out, device="cpu")
    return out


def numbers(folder: Path, **chosen: Any) -> dict[str, Any]:
    stored = read_table([folder], **chosen)
    return {**stored.table.to_json(), "notes": stored.notes}


def test_every_number_again(results: Path, tmp_path: Path):
    """Tables, notes, flags, probes, steps and environments; margins to five digits."""
    write_packed(read_cells(results), tmp_path / "records")
    for chosen in ({}, {"eps": [4 / 255]}, {"attacks": ["pgd-3"]}):
        assert numbers(tmp_path / "records", **chosen) == numbers(results, **chosen)
    before = {cell.key.digest: cell for cell in read_cells(results)}
    after = {cell.key.digest: cell for cell in read_packed(tmp_path / "records")}
    assert before.keys() == after.keys()
    moved = 0
    for digest, cell in before.items():
        again = after[digest]
        assert (again.starts, again.probe) == (cell.starts, cell.probe)
        assert again.records.keys() == cell.records.keys()
        for name, record in cell.records.items():
            kept = again.records[name]
            for field in ("id", "label", "image", "clean", "broken", "step", "step_within", "by"):
                assert getattr(kept, field) == getattr(record, field)
            assert kept.queries == record.queries
            for field, digits in (("margin", 5), ("clean_margin", 5), ("distance", 4)):
                whole = getattr(record, field)
                assert getattr(kept, field) == float(f"{whole:.{digits}g}")
                moved += getattr(kept, field) != whole
    assert moved > 0  # else nothing was rounded, and the test would not see it


def test_files_are_small_and_written_anew(
    results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """No file above the bound; what an earlier writing left is gone; the same cells give the same bytes."""
    cells = read_cells(results)
    once = write_packed(cells, tmp_path / "records")
    assert [file.name for file in once] == ["samples.jsonl.xz", "cells-00.jsonl.xz"]
    bytes_before = [file.read_bytes() for file in once]
    monkeypatch.setattr(packed, "MOST_BYTES", len(bytes_before[1]) * 2 // 3)
    several = write_packed(cells, tmp_path / "records")
    assert len(several) > 2
    assert all(file.stat().st_size <= packed.MOST_BYTES for file in several[1:])
    assert numbers(tmp_path / "records") == numbers(results)
    monkeypatch.undo()
    again = write_packed(read_packed(tmp_path / "records"), tmp_path / "records")
    assert sorted(file.name for file in (tmp_path / "records").iterdir()) == sorted(
        file.name for file in again
    )
    assert [file.read_bytes() for file in again] == bytes_before


def test_the_report_writes_and_reads_them(results: Path, tmp_path: Path):
    """`--records` keeps all cells; a report over them says the same."""
    first = report_cells(
        [results], out=tmp_path / "a.html", title="t", records=tmp_path / "records"
    )
    second = report_cells([tmp_path / "records"], out=tmp_path / "b.html", title="t")
    assert second.to_json()["table"] == first.to_json()["table"]


def test_an_ensemble_may_have_other_members_on_another_set(of_two_sets: Path, tmp_path: Path):
    """Targets and members depend on the number of classes; the report holds both sets, from either form."""
    write_packed(read_cells(of_two_sets), tmp_path / "records")
    for folder in (of_two_sets, tmp_path / "records"):
        table = read_table([folder]).table
        members = {row.classes: len(row.plans["autoattack-fare"]["members"]) for row in table.rows}
        assert members == {5: 2, 2: 1}


def test_clean_alone(results: Path):
    """`attacks=["clean"]` asks for no attack."""
    table = read_table([results], attacks=["clean"]).table
    assert table.columns == ["clean"]
    assert table.radii == [None]


def test_a_torn_writing_is_seen(results: Path, tmp_path: Path):
    """What a kill left goes; samples of another writing do not pass for these."""
    folder = tmp_path / "records"
    write_packed(read_cells(results), folder)
    (folder / ".cells-00.jsonl.xz.123.partial").write_bytes(b"")
    write_packed(read_cells(results), folder)
    assert not list(folder.glob(".*"))
    file = folder / "samples.jsonl.xz"
    rows = [json.loads(line) for line in lzma.decompress(file.read_bytes()).decode().splitlines()]
    rows[0]["samples"].reverse()
    file.write_bytes(lzma.compress("".join(json.dumps(row) + "\n" for row in rows).encode()))
    with pytest.raises(UserError, match=r"belongs to another samples\.jsonl\.xz"):
        read_packed(folder)


def test_what_was_changed_is_refused(results: Path, tmp_path: Path):
    """A key, a torn file, a row that no sample has; and a folder with something else is not written into."""
    folder = tmp_path / "records"
    _, file = write_packed(read_cells(results), folder)
    whole = file.read_bytes()
    lines = lzma.decompress(whole).decode().splitlines()
    first = json.loads(lines[0])
    first["content"]["weights"] = "0" * 64
    file.write_bytes(lzma.compress("\n".join([json.dumps(first), *lines[1:]]).encode()))
    with pytest.raises(UserError, match="was changed after it was written"):
        read_packed(folder)
    first = json.loads(lines[0])
    first["clean"] = "1" * len(first["clean"])
    file.write_bytes(lzma.compress("\n".join([json.dumps(first), *lines[1:]]).encode()))
    with pytest.raises(UserError, match="was changed after it was written"):
        read_packed(folder)
    del first["digest"]
    file.write_bytes(lzma.compress("\n".join([json.dumps(first), *lines[1:]]).encode()))
    with pytest.raises(UserError, match=r"cells-00\.jsonl\.xz is damaged"):
        read_packed(folder)
    file.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"cells-00\.jsonl\.xz is damaged"):
        read_packed(folder)
    (folder / "thesis.txt").write_text("")
    with pytest.raises(UserError, match=r"something else than packed cells \(thesis\.txt\)"):
        write_packed(read_cells(results), folder)
    with pytest.raises(UserError, match="nothing to pack"):
        write_packed([], tmp_path / "empty")


def test_attacks_are_chosen(results: Path):
    """Those alone; an unknown one is named with what is there."""
    only = read_table([results], attacks=["cw-margin-2"]).table
    assert only.columns == ["clean", "cw-margin-2", "robust"]
    one = read_table([results], attacks=["apgd-ce-3"])
    assert {len(row.ids) for row in one.table.rows} == {8}
    with pytest.raises(UserError, match="unknown attack in these cells 'pgd-5'"):
        read_table([results], attacks=["pgd-5"])
