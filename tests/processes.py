"""The command line in a process of its own: killed, signalled, or short of disk space."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HOOK = Path(__file__).parent / "kill_hook"

# A shell's background job starts with SIGINT ignored, and so would everything that it starts.
_LAUNCH = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.SIG_DFL)
size = int(sys.argv[1])
if size >= 0:
    import resource
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
os.execv(sys.executable, [sys.executable, "-m", "zsrobust", *sys.argv[2:]])
"""


@dataclass(frozen=True)
class Ended:
    """What a process left behind; a negative code is the signal that killed it."""

    code: int
    out: str
    err: str

    def line(self, code: int) -> str:
        """Return its one line on standard error; it printed nothing else and ended with `code`."""
        assert (self.code, self.out) == (code, ""), self.err
        assert self.err.startswith("zsrobust: "), self.err
        assert self.err.endswith("\n")
        assert self.err.count("\n") == 1, self.err
        return self.err


def start(
    arguments: list[Any],
    cwd: Path,
    *,
    kill_at: str = "",
    kill_with: str = "SIGKILL",
    count_to: Path | None = None,
    largest_file: int = -1,
) -> subprocess.Popen[str]:
    """Start `python -m zsrobust ARGUMENTS` in `cwd`, in a process group of its own.

    Args:
        arguments: of the command line.
        cwd: the current folder.
        kill_at: a file operation, as kill_hook/sitecustomize.py reads it.
        kill_with: the signal's name; other than SIGKILL it goes to the group.
        count_to: a file for the number of such operations.
        largest_file: RLIMIT_FSIZE in bytes, which stands for a full disk; negative is none.
    """
    clean = {k: v for k, v in os.environ.items() if not k.startswith("ZSROBUST_")}
    environment = {**clean, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    if kill_at:
        path = os.pathsep.join(filter(None, [str(HOOK), clean.get("PYTHONPATH")]))
        environment |= {"KILL_AT": kill_at, "KILL_WITH": kill_with, "PYTHONPATH": path}
    if count_to is not None:
        environment["KILL_COUNT"] = str(count_to)
    return subprocess.Popen(
        # Isolated: the launcher is no process to kill.
        [sys.executable, "-IS", "-c", _LAUNCH, str(largest_file), *map(str, arguments)],
        cwd=cwd,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def end(process: subprocess.Popen[str]) -> Ended:
    """Wait for a process."""
    out, err = process.communicate(timeout=300)
    return Ended(process.returncode, out, err)


def run(arguments: list[Any], cwd: Path, **options: Any) -> Ended:
    """Start and wait."""
    return end(start(arguments, cwd, **options))


def wait_until(there: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    """Look until something is there; an error if the process ends before that."""
    while not there():
        if process.poll() is not None and not there():
            raise AssertionError(f"it ended before: {end(process)}")
        time.sleep(0.002)


def count_lines(*files: Path) -> int:
    """Return how many whole lines these files hold; a file that is not there holds none."""
    return sum(file.read_bytes().count(b"\n") for file in files if file.is_file())


@contextlib.contextmanager
def hearing_ctrl_c() -> Iterator[None]:
    """Let SIGINT be a KeyboardInterrupt in this process, also where it was started as a background job."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
