"""Signals become a note, an exception or nothing, as the block around them says."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from zsrobust.interrupt import SIGNALS, Stopped, deferred, shielded, stoppable

from .processes import hearing_ctrl_c


@pytest.fixture(autouse=True)
def _handlers_are_put_back() -> Iterator[None]:
    """Python's own handlers before each test, and after it."""
    with hearing_ctrl_c():
        before = [signal.getsignal(s) for s in SIGNALS]
        yield
        assert [signal.getsignal(s) for s in SIGNALS] == before


@pytest.mark.parametrize(
    ("signum", "where", "words"),
    [
        (signal.SIGINT, "", "stopped; the same command goes on from where it was."),
        (signal.SIGTERM, "after step 3 of 8", "stopped after step 3 of 8; the same command goes "),
    ],
)
def test_what_stopped_says(signum, where, words):
    """It is no Exception: nothing that mends errors may catch it."""
    stop = Stopped(signum, where)
    assert str(stop).startswith(words)
    assert stop.signal == signum
    assert not isinstance(stop, Exception | KeyboardInterrupt)


def stopped_by(work: Callable[[], object]) -> Stopped:
    """Call `work` as the command line would, and return what stopped it."""
    with pytest.raises(Stopped) as stopped, stoppable():
        work()
    return stopped.value


@pytest.mark.parametrize("signum", SIGNALS)
def test_the_command_line_is_stopped_wherever_it_stands(signum):
    """The exception knows its signal."""
    assert stopped_by(lambda: signal.raise_signal(signum)).signal == signum


def test_the_first_signal_is_noted_and_the_second_of_its_kind_stops():
    """One of the other kind is noted too; the first one is what was asked."""
    asked = []

    def work() -> None:
        with deferred() as request:
            asked.append(request.signal)
            for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGINT, signal.SIGINT):
                signal.raise_signal(signum)
                asked.append(request.signal)

    assert stopped_by(work).signal == signal.SIGINT
    assert asked == [0, signal.SIGTERM, signal.SIGTERM]


def test_what_the_loop_raises_comes_out_as_it_is():
    """With its words, under the command line."""

    def work() -> None:
        with deferred() as request:
            signal.raise_signal(signal.SIGTERM)
            raise Stopped(request.signal, "after step 3 of 8")

    stop = stopped_by(work)
    assert "after step 3 of 8; " in str(stop)
    assert stop.signal == signal.SIGTERM


def test_a_signal_after_the_last_look_is_not_lost():
    """It stops the program when the block is left; where none came, nothing does."""
    done = []

    def work() -> None:
        with deferred():
            done.append("first")
        with deferred():
            signal.raise_signal(signal.SIGINT)
            done.append("second")
        done.append("third")

    assert stopped_by(work).signal == signal.SIGINT
    assert done == ["first", "second"]


def test_an_error_goes_before_a_request():
    """What went wrong is what is said."""

    def work() -> None:
        with stoppable(), deferred():
            signal.raise_signal(signal.SIGINT)
            raise ValueError("wrong")

    with pytest.raises(ValueError, match="wrong"):
        work()


@pytest.mark.parametrize("before", [True, False])
def test_within_at_once_nothing_is_waited_for(before):
    """Neither for a signal that comes, nor for one that came before."""
    done = []

    def work() -> None:
        with deferred() as request:
            if before:
                signal.raise_signal(signal.SIGINT)
            with request.at_once("after step 1 of 2"):
                done.append("in")
                signal.raise_signal(signal.SIGINT)
                done.append("on")

    assert "after step 1 of 2; " in str(stopped_by(work))
    assert done == ([] if before else ["in"])


def test_after_at_once_signals_are_noted_again():
    """Until the block is left."""
    noted = []

    def work() -> None:
        with deferred() as request:
            with request.at_once("after step 1 of 2"):
                pass
            signal.raise_signal(signal.SIGINT)
            noted.append(request.signal)

    assert "after step" not in str(stopped_by(work))
    assert noted == [signal.SIGINT]


@pytest.mark.parametrize("looks", [True, False])
def test_from_python_ctrl_c_remains_a_keyboard_interrupt(looks):
    """After the block has done what it had to; why it stopped is the context."""
    done = []

    def work() -> None:
        with deferred() as request:
            signal.raise_signal(signal.SIGINT)
            done.append("checkpoint")
            if looks:
                raise Stopped(request.signal, "after step 1 of 2")

    with pytest.raises(KeyboardInterrupt) as interrupted:
        work()
    assert done == ["checkpoint"]
    if looks:
        assert "after step 1 of 2" in str(interrupted.value.__context__)


def test_from_python_a_handler_of_the_callers_own_is_called():
    """After the block; then `Stopped` comes out, for the work is not done."""
    called = []

    def work() -> None:
        with deferred():
            signal.raise_signal(signal.SIGTERM)
            called.append("still in the block")

    before = signal.signal(signal.SIGTERM, lambda signum, _: called.append(signum))
    try:
        with pytest.raises(Stopped):
            work()
    finally:
        signal.signal(signal.SIGTERM, before)
    assert called == ["still in the block", signal.SIGTERM]


def test_from_python_sigterm_ends_the_process_as_it_always_did():
    """By the signal itself, after the block."""
    code = (
        "import signal\n"
        "from zsrobust.interrupt import deferred\n"
        "with deferred():\n"
        "    signal.raise_signal(signal.SIGTERM)\n"
        "    print('checkpoint', flush=True)\n"
        "print('on', flush=True)\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (-signal.SIGTERM, "checkpoint\n", "")


def test_a_signal_that_is_ignored_stays_ignored():
    """A script's background job is started so."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with stoppable(), deferred() as request:
            signal.raise_signal(signal.SIGINT)
            assert request.signal == 0
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def test_another_thread_leaves_the_handlers_alone():
    """Python would refuse it."""
    seen: list[Any] = []

    def work() -> None:
        with stoppable(), deferred() as request:
            seen.append([signal.getsignal(s) for s in SIGNALS])
            seen.append(request.signal)

    before = [signal.getsignal(s) for s in SIGNALS]
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [before, 0]


CHILD = """
import sys
from zsrobust.interrupt import heed_parent
heed_parent()
for line in sys.stdin:
    print(line, end="", flush=True)
"""


@pytest.mark.skipif(not hasattr(signal, "sigwaitinfo"), reason="the parent cannot be told apart")
def test_a_shielded_child_heeds_its_parent_alone():
    """Ctrl-C and another process's SIGTERM pass it by; its parent's ends it, without an error."""
    with shielded():
        child = subprocess.Popen(
            [sys.executable, "-c", CHILD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def answers() -> bool:
        child.stdin.write("there\n")
        child.stdin.flush()
        return child.stdout.readline() == "there\n"

    with child:
        assert answers()
        child.send_signal(signal.SIGINT)
        code = f"import os, signal; os.kill({child.pid}, signal.SIGTERM)"
        subprocess.run([sys.executable, "-c", code], check=True)
        status = Path(f"/proc/{child.pid}/status")
        if status.is_file():  # Linux says when the second one has been looked at
            while int(_field(status, "ShdPnd"), 16) & 1 << signal.SIGTERM - 1:
                pass
        assert answers()
        assert answers()
        os.kill(child.pid, signal.SIGTERM)
        assert child.wait(60) == 0


def _field(status: Path, name: str) -> str:
    (line,) = [line for line in status.read_text().splitlines() if line.startswith(name)]
    return line.split()[1]


def test_a_shield_does_not_keep_signals_from_this_process():
    """What came meanwhile comes afterwards."""
    done = []

    def work() -> None:
        with shielded():
            os.kill(os.getpid(), signal.SIGINT)
            done.append("in")
        done.append("on")

    with pytest.raises(KeyboardInterrupt):
        work()
    assert done == ["in"]
