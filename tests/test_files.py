"""Whole files or none; appended lines that survive a kill; one owner a folder."""

from __future__ import annotations

import subprocess
import sys

import pytest

from zsrobust.errors import UserError
from zsrobust.files import JsonLines, folder_lock, read_json_lines, write_atomically, write_json


def test_a_failed_write_leaves_the_old_file(tmp_path):
    """And nothing beside it."""
    path = tmp_path / "a.json"
    write_json(path, {"old": 1})

    def fail(stream):
        stream.write(b"half")
        raise RuntimeError("stopped")

    with pytest.raises(RuntimeError, match="stopped"):
        write_atomically(path, fail)
    assert path.read_text() == '{\n  "old": 1\n}\n'
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_a_full_disk_is_one_line_and_keeps_the_old_file(tmp_path):
    """RLIMIT_FSIZE stands for a full disk: EFBIG at write or flush."""
    code = f"""
import resource, signal
from pathlib import Path
from zsrobust.errors import EnvironmentFault
from zsrobust.files import write_atomically
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
path = Path({str(tmp_path / "w.bin")!r})
write_atomically(path, lambda s: s.write(b"old"))
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    write_atomically(path, lambda s: s.write(b"x" * 100000))
except EnvironmentFault as error:
    print(error)
assert path.read_bytes() == b"old"
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "cannot write" in done.stdout
    assert done.stdout.count("\n") == 1
    assert [p.name for p in tmp_path.iterdir()] == ["w.bin"]


def test_a_torn_last_line_is_dropped_on_reading_and_cut_on_appending(tmp_path):
    """A kill in the middle of a line costs that line alone."""
    path = tmp_path / "rows.jsonl"
    with JsonLines(path) as lines:
        lines.append({"a": 1})
        lines.append({"a": 2})
    with path.open("ab") as stream:
        stream.write(b'{"a": 3')
    assert read_json_lines(path) == [{"a": 1}, {"a": 2}]
    with JsonLines(path) as lines:
        lines.append({"a": 4})
    assert read_json_lines(path) == [{"a": 1}, {"a": 2}, {"a": 4}]


def test_a_damaged_line_in_the_middle_is_an_error_that_names_it(tmp_path):
    """It is not passed over: somebody changed the file."""
    path = tmp_path / "rows.jsonl"
    path.write_text('{"a": 1}\nnonsense\n{"a": 2}\n')
    with pytest.raises(UserError, match="line 2"):
        read_json_lines(path)


def test_a_folder_has_one_owner(tmp_path):
    """A second process is told so; after the first has gone the folder is free."""
    code = (
        "from zsrobust.files import folder_lock\n"
        f"with folder_lock(__import__('pathlib').Path({str(tmp_path)!r})): pass\n"
    )
    with folder_lock(tmp_path):
        other = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=False
        )
        assert other.returncode != 0
        assert "another process is working in" in other.stderr
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_file_where_a_folder_should_be_is_a_wrong_request(tmp_path):
    """And a folder where a file should be: the machine is well, another name helps."""
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot write .*file is a file; name another folder"):
        write_json(tmp_path / "file" / "a.json", {})
    with (
        pytest.raises(UserError, match="is a file; name another folder"),
        folder_lock(tmp_path / "file"),
    ):
        pass
    with pytest.raises(UserError, match="Is a directory; name another place"):
        write_json(tmp_path, {})
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("nonsense", "line 2: not JSON"),
        ("[1]", "line 2: not a table"),
        ("[" * 100_000, "nested too"),
    ],
)
def test_a_line_that_is_no_record_is_named(tmp_path, line, words):
    """With its number, and what to do."""
    path = tmp_path / "rows.jsonl"
    path.write_text(f'{{"a": 1}}\n{line}\n')
    with pytest.raises(UserError, match=rf"{words}.*remove that line"):
        read_json_lines(path)


def test_a_folder_in_the_place_of_records_is_refused(tmp_path):
    with pytest.raises(UserError, match="is a folder where a file of records is needed"):
        read_json_lines(tmp_path)
