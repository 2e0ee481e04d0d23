"""Stopping on request: Ctrl-C (SIGINT) and SIGTERM, at a moment when nothing is lost.

The command line enters `stoppable`: either signal then raises `Stopped` wherever the program stands, which
`main` turns into one line and exit code 128 + signal. What keeps its results as it goes, such as an
evaluation, needs no more. A loop that has a step to finish and a checkpoint to write enters `deferred`:

    with deferred() as request:
        for step, batch in enumerate(batches):
            ...
            if request.signal:
                save(...)
                raise Stopped(request.signal, f"after step {step + 1} of {total}")

The first signal of a kind is only noted then; a second one of the same kind raises at once.
Without a command line around it the signal is sent once more when the block is left, under the handlers that
were there before: in Python, Ctrl-C remains a KeyboardInterrupt.

A signal that is ignored when the program starts (a background job of a script) stays ignored. Python
runs handlers in the main thread alone: in any other, all this does nothing.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)

_Handler = Callable[[int, FrameType | None], Any]


class Stopped(BaseException):
    """A signal asked the program to stop; no Exception, so that nothing takes it for an error.

    Attributes:
        signal: its number; the exit code is 128 more.
    """

    def __init__(self, signum: int, where: str = "") -> None:
        self.signal = signum
        at, there = (f" {where}", "there") if where else ("", "where it was")
        super().__init__(f"stopped{at}; the same command goes on from {there}.")


class Request:
    """What was asked of a loop that stops where it is safe.

    Attributes:
        signal: number of the first signal that came; 0 for none.
    """

    def __init__(self) -> None:
        self.signal = 0
        self._seen: set[int] = set()
        self._where: str | None = None  # a text within `at_once`

    def receive(self, signum: int, _: FrameType | None) -> None:
        """Note a signal; raise `Stopped` for a second one of its kind, and within `at_once`."""
        again = signum in self._seen
        self._seen.add(signum)
        self.signal = self.signal or signum
        if again or self._where is not None:
            raise Stopped(signum, self._where or "")

    @contextlib.contextmanager
    def at_once(self, where: str) -> Iterator[None]:
        """While the block runs, stop without delay: for long work that changes nothing on disk.

        Args:
            where: words for the line that is printed, "after step 3 of 8".
        """
        self._where = where
        try:
            if self.signal:
                raise Stopped(self.signal, where)
            yield
        finally:
            self._where = None


@contextlib.contextmanager
def stoppable() -> Iterator[None]:
    """Raise `Stopped` wherever the block stands when a signal comes: for the command line."""
    before = _install(_raise)
    try:
        yield
    finally:
        _restore(before)


@contextlib.contextmanager
def deferred() -> Iterator[Request]:
    """Note signals while the block runs, so that it stops where it is safe; yield what was asked.

    A signal that came after the last look at the request stops the program when the block is left.
    """
    request = Request()
    before = _install(request.receive)
    stopped: Stopped | None = None
    try:
        yield request
    except Stopped as stop:
        stopped = stop
    finally:
        _restore(before)
    if stopped is None and request.signal:
        stopped = Stopped(request.signal)
    if stopped is None:
        return
    if stopped.signal in before and not _is_ours(before[stopped.signal]):
        signal.raise_signal(stopped.signal)
    raise stopped


@contextlib.contextmanager
def shielded() -> Iterator[None]:
    """Start child processes that leave both signals to their parent.

    Ctrl-C reaches the whole process group, and a launcher's SIGTERM as well: a loading process that
    died of it would be missed by the step that its parent is about to finish. The mask is inherited
    and holds from the child's first moment; what comes for this process meanwhile comes afterwards.
    A child that its parent may have to terminate calls `heed_parent`.
    """
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    from multiprocessing import resource_tracker

    # Its start takes both signals out of the mask; started once, it leaves the mask alone.
    resource_tracker.ensure_running()
    held = SIGNALS if hasattr(signal, "sigwaitinfo") else (signal.SIGINT,)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, held)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def heed_parent() -> None:
    """In a child that was started `shielded`: end on SIGTERM from the parent, and from nobody else."""
    if not hasattr(signal, "sigwaitinfo"):
        return
    parent = os.getppid()

    def wait() -> None:
        while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
            pass
        os._exit(0)

    threading.Thread(target=wait, daemon=True, name="heed-parent").start()


def _raise(signum: int, _: FrameType | None) -> None:
    raise Stopped(signum)


def _is_ours(handler: Any) -> bool:
    return handler is _raise or getattr(handler, "__func__", None) is Request.receive


def _install(handler: _Handler) -> dict[int, Any]:
    """Set the handler of both signals and return those before; of what is left alone, nothing."""
    before: dict[int, Any] = {}
    if threading.current_thread() is not threading.main_thread():
        return before
    for signum in SIGNALS:
        old = signal.getsignal(signum)
        if old is None or old is signal.SIG_IGN:  # not set from Python; ignored on purpose
            continue
        before[signum] = old
        signal.signal(signum, handler)
    return before


def _restore(before: dict[int, Any]) -> None:
    for signum, handler in before.items():
        signal.signal(signum, handler)
