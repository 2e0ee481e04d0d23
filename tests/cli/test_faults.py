"""Faults of the machine: exit code 1, one line, and what was finished stays usable."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ..processes import Ended, run
from .conftest import Hardened


@contextlib.contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Let no file grow beyond `size` bytes, as on a full disk: the write fails (Python ignores SIGXFSZ)."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.fixture
def heeding_modes() -> Iterator[None]:
    """Let a folder's mode hold for root too: this thread gives up CAP_DAC_OVERRIDE for a while."""
    if os.geteuid() != 0:
        yield
        return
    if not sys.platform.startswith("linux"):
        pytest.skip("root may write everywhere")
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)  # version 3, this thread
    sets = (ctypes.c_uint32 * 6)()  # effective, permitted, inheritable; then those beyond 32
    if libc.capget(header, sets) != 0:
        pytest.skip("capabilities cannot be read")
    effective = sets[0]
    sets[0] = effective & ~(1 << 1)
    if libc.capset(header, sets) != 0:
        pytest.skip("capabilities cannot be changed")
    yield
    sets[0] = effective
    assert libc.capset(header, sets) == 0


def read_only(*folders: Path) -> None:
    for folder in folders:
        folder.chmod(0o555)


def writable(*folders: Path) -> None:
    for folder in folders:
        folder.chmod(0o755)


def partials(folder: Path) -> list[Path]:
    return list(folder.rglob("*.partial"))


def records(place: Path) -> dict[str, list[dict]]:
    """The outcomes of every cell, sorted by id: each sample stands there once."""
    found = {}
    for file in place.glob("results/cells/*/outcomes.jsonl"):
        rows = [json.loads(line) for line in file.read_text().splitlines()]
        found[file.parent.name] = sorted(rows, key=lambda row: row["id"])
    return found


def assert_equals_the_undisturbed(place: Path, hardened: Hardened) -> None:
    """Weights and log as in a run under no limit; its cells with the same outcomes."""
    folder = place / "runs" / "two-steps"
    for file in (hardened.run / "model").iterdir():
        assert (folder / "model" / file.name).read_bytes() == file.read_bytes()
    logs = []
    for log in (folder / "log.jsonl", hardened.run / "log.jsonl"):
        rows = [json.loads(line) for line in log.read_text().splitlines()]
        logs.append([row for row in rows if row["event"] != "start"])
    assert logs[0] == logs[1]
    found, expected = records(place), records(hardened.place)
    assert len(found) == 4
    assert found.keys() == expected.keys()
    for key, rows in found.items():
        assert len(rows) == len({row["id"] for row in rows}) == 20
        what = [(row["id"], row["clean"], row.get("step"), row.get("queries")) for row in rows]
        assert what == [
            (row["id"], row["clean"], row.get("step"), row.get("queries")) for row in expected[key]
        ]


def test_a_full_disk_at_each_write_of_a_hardening(zs, recipe, hardened, tmp_path):
    """Recipe, checkpoint, log, model, cells, one after the other; then the same command completes."""
    folder = tmp_path / "runs" / "two-steps"
    words = "File too large; raise the file size limit and start the same command again"
    for size, file in ((100, "recipe.json"), (4096, "checkpoint.pt"), (600, "log.jsonl")):
        with largest_file(size):
            line = zs("harden", recipe).fault()
        assert f"cannot write runs/two-steps/{file}: {words}" in line
        assert partials(tmp_path) == []
    assert not (folder / "checkpoint.pt").exists()

    # In a process of its own: the weights alone are above a megabyte, all else is below.
    line = run(["harden", recipe], tmp_path, largest_file=1_000_000).line(1)
    assert f"cannot write runs/two-steps/model/open_clip_model.safetensors: {words}" in line
    assert (folder / "checkpoint.pt").is_file()
    assert partials(tmp_path) == []

    assert zs("harden", recipe, "--no-evaluate").code == 0
    with largest_file(2500):
        line = zs("harden", recipe).fault()
    assert "outcomes.jsonl: File too large" in line
    done = zs("harden", recipe, "--json")
    assert (done.code, done.err) == (0, "")
    assert_equals_the_undisturbed(tmp_path, hardened)


def test_a_full_disk_in_an_evaluation_loses_no_outcome(zs, model, pets, tmp_path):
    """At a cell's description nothing is there; at its outcomes those before; then each sample once."""
    command = ["eval", model, "--sets", pets, "--attacks", "pgd-2", "--json"]
    whole = json.loads(zs(*command, "--out", "whole").out)
    with largest_file(100):
        line = zs(*command).fault()
    assert "cell.json: File too large" in line
    with largest_file(2500):
        line = zs(*command).fault()
    assert "outcomes.jsonl: File too large" in line
    (file,) = tmp_path.glob("results/cells/*/outcomes.jsonl")
    known = file.read_bytes()
    assert len(known) == 2500  # up to the limit, the last line torn
    known = known[: known.rfind(b"\n") + 1]
    assert 0 < known.count(b"\n") < 30

    done = zs(*command)
    assert (done.code, done.err) == (0, "")
    assert json.loads(done.out) == whole
    assert file.read_bytes().startswith(known)
    for cell in tmp_path.glob("results/cells/*/outcomes.jsonl"):
        ids = [json.loads(line)["id"] for line in cell.read_text().splitlines()]
        assert len(ids) == len(set(ids)) == 30
    assert partials(tmp_path) == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
@pytest.mark.parametrize("buffered", [True, False])
def test_a_full_disk_under_the_result(buffered):
    """Standard output goes to a file that cannot grow: one line as well, also at the very end."""
    command = [sys.executable, *([] if buffered else ["-u"]), "-m", "zsrobust", "list", "sets"]
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONUNBUFFERED"}
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            command, env=environment, stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    line = Ended(done.returncode, "", done.stderr).line(1)
    assert "cannot write the result: No space left on device; free some space" in line


@pytest.mark.usefixtures("heeding_modes")
def test_a_read_only_folder(zs, recipe, model, pets, tmp_path):
    """Below it, nothing can be begun."""
    place = tmp_path / "read-only"
    place.mkdir()
    read_only(place)
    words = "Permission denied; choose a folder you may write to"
    line = zs("harden", recipe, "--out", "read-only/run").fault()
    assert f"cannot write read-only/run: {words}" in line
    command = ["eval", model, "--sets", pets, "--attacks", "clean", "--out", "read-only/results"]
    assert f"cannot write read-only/results: {words}" in zs(*command).fault()
    writable(place)
    assert list(place.iterdir()) == []
    assert zs(*command).code == 0


@pytest.mark.usefixtures("heeding_modes")
def test_a_run_whose_folder_became_read_only(zs, recipe, hardened, tmp_path):
    """It stops at the first file that it cannot write; with the right back, it completes."""
    folder = tmp_path / "runs" / "two-steps"
    with largest_file(4096):
        assert "checkpoint.pt" in zs("harden", recipe).fault()
    read_only(folder)
    line = zs("harden", recipe).fault()
    assert "cannot write runs/two-steps/" in line
    assert "Permission denied" in line
    writable(folder)
    done = zs("harden", recipe, "--json")
    assert (done.code, done.err) == (0, "")
    assert_equals_the_undisturbed(tmp_path, hardened)


@pytest.mark.usefixtures("heeding_modes")
def test_results_in_a_read_only_folder_are_still_read(zs, model, pets, tmp_path):
    """What is there is printed; what is missing is a fault that names its place."""
    command = ["eval", model, "--sets", pets, "--json"]
    before = zs(*command, "--attacks", "clean").out
    cells = tmp_path / "results" / "cells"
    read_only(tmp_path / "results", cells)
    assert zs(*command, "--attacks", "clean").out == before
    line = zs(*command, "--attacks", "pgd-2").fault()
    assert "cannot write results/cells/" in line
    writable(tmp_path / "results", cells)
    assert zs(*command, "--attacks", "pgd-2").code == 0
