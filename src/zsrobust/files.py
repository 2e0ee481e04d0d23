"""Files that are never half written, appended lines that survive a kill, folders with one owner.

The pattern for a whole file: write beside it, flush, fsync, rename over it, fsync the folder. A full
disk shows up at fsync or close, before the rename, so the old file stays as it was.
Appended JSON lines are flushed one by one; a torn last line (no newline) is dropped on reading.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
from collections.abc import Callable, Container, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from zsrobust.errors import EnvironmentFault, UserError


@contextlib.contextmanager
def machine_faults(path: Path) -> Iterator[None]:
    """Turn an OSError on `path` into one line that names the path and the cause.

    Raises:
        UserError: if a file stands where a folder is needed, or a folder where a file is.
        EnvironmentFault: for anything else: a full disk, a missing permission.
    """
    try:
        yield
    except (FileExistsError, NotADirectoryError, IsADirectoryError) as error:
        refuse_file(path.parent)
        raise UserError(
            f"cannot write {path}: {error.strerror}; name another place, or move away what is there."
        ) from error
    except OSError as error:
        # torch and safetensors wrap the errno away now and then; strerror is what is left to show.
        cause = error.strerror or str(error)
        mend = {
            errno.ENOSPC: "free some space and start the same command again",
            errno.EFBIG: "raise the file size limit and start the same command again",
            errno.EACCES: "choose a folder you may write to",
            errno.EROFS: "choose a folder you may write to",
        }.get(error.errno or 0, "mend it and start the same command again")
        raise EnvironmentFault(f"cannot write {path}: {cause}; {mend}.") from error


def refuse_file(folder: Path) -> None:
    """Refuse a place for a folder at which, or above which, a file stands.

    Raises:
        UserError: naming the file.
    """
    for place in (folder, *folder.parents):
        if place.exists():
            if not place.is_dir():
                raise UserError(f"cannot write {folder}: {place} is a file; name another folder.")
            return


def refuse_others(folder: Path, own: Container[str], what: str) -> None:
    """Refuse a folder that holds anything but what a command writes there; hidden files do not count.

    Args:
        folder: there or not.
        own: the names that the command writes.
        what: in words, "an earlier study".

    Raises:
        UserError: naming the first other one.
    """
    found = folder.iterdir() if folder.is_dir() else ()
    others = sorted(f.name for f in found if f.name not in own and not f.name.startswith("."))
    if others:
        raise UserError(
            f"{folder} holds something else than {what} ({others[0]}): name a new or empty --out."
        )


def write_atomically(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Write a whole file at `path`, or leave what was there.

    Args:
        path: its folder is made if missing.
        write: called once with a binary stream.

    Raises:
        EnvironmentFault: if the disk is full or the folder cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    with machine_faults(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open("wb") as stream:
                write(stream)
                stream.flush()
                os.fsync(stream.fileno())
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def remove_partials(folder: Path) -> None:
    """Remove what killed writes of `write_atomically` left in `folder`; for its only owner.

    Raises:
        EnvironmentFault: if the folder cannot be written.
    """
    for left in folder.glob(".*.partial"):
        with machine_faults(left):
            left.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text atomically."""
    write_atomically(path, lambda stream: stream.write(text.encode("utf-8")))


def write_json(path: Path, value: Any) -> None:
    """Write indented JSON atomically; NaN is refused (ValueError)."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """Return the whole lines of a JSON-lines file; a torn last line is dropped, not believed.

    Raises:
        UserError: if a line other than the last is not a JSON table, or a folder stands there.
    """
    if not path.exists():
        return []
    if path.is_dir():
        raise UserError(f"{path} is a folder where a file of records is needed: move it away.")
    text = path.read_text(encoding="utf-8", errors="replace")
    lines = text.split("\n")[:-1]  # what follows the last newline is torn, or empty
    rows = []
    for number, line in enumerate(lines, start=1):
        cause = "not a table"
        try:
            row = json.loads(line)
        except (json.JSONDecodeError, RecursionError) as error:
            row, cause = None, f"not JSON ({getattr(error, 'msg', 'nested too deeply')})"
        if not isinstance(row, dict):
            raise UserError(
                f"{path}, line {number}: {cause}; the file was changed by hand or damaged: remove that "
                "line and start the same command again."
            )
        rows.append(row)
    return rows


class JsonLines:
    """Append JSON lines to a file, each flushed as it is written; a torn last line is cut first.

    Raises:
        EnvironmentFault: if the file cannot be opened or a line cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with machine_faults(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.exists():
                _cut_torn_line(path)
            # Unbuffered: a line that failed must not come again from a buffer when the file is closed.
            self._stream = path.open("ab", buffering=0)

    def append(self, row: dict[str, Any]) -> None:
        """Write one line to the operating system: from then on a kill does not lose it."""
        line = json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n"
        left = memoryview(line.encode("utf-8"))
        with machine_faults(self.path):
            while left:
                left = left[self._stream.write(left) :]

    def sync(self) -> None:
        """Bring what was written to the disk."""
        with machine_faults(self.path):
            os.fsync(self._stream.fileno())

    def close(self) -> None:
        """Bring what was written to the disk, and close."""
        self.sync()
        self._stream.close()

    def __enter__(self) -> JsonLines:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _cut_torn_line(path: Path) -> None:
    with path.open("rb+") as stream:
        data = stream.read()
        whole = data.rfind(b"\n") + 1
        if whole < len(data):
            stream.truncate(whole)


@contextlib.contextmanager
def folder_lock(folder: Path) -> Iterator[None]:
    """Own `folder` for as long as the block runs; what killed writes left in it is removed.

    Raises:
        UserError: if a file stands there.
        EnvironmentFault: if another process owns it, or the folder cannot be written.
    """
    from filelock import FileLock, Timeout

    refuse_file(folder)
    with machine_faults(folder):
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / ".lock")
        try:
            lock.acquire(timeout=0)
        except Timeout as error:
            raise EnvironmentFault(
                f"another process is working in {folder}; wait for it, or choose another folder."
            ) from error
    try:
        remove_partials(folder)
        yield
    finally:
        lock.release()
