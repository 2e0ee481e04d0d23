"""Kill or signal this process at one of its file operations: a moment that can be named and repeated.

Python imports a module of this name when it starts; tests put this folder on PYTHONPATH and name the moment:

    KILL_AT="os.rename checkpoint.pt 2"    before the second rename of, or onto, a path that holds the text
    KILL_AT="* run-1 17"                   before the 17th operation of any kind on such a path

The operations are audit events of Python itself, so the package knows nothing of it. The signal is SIGKILL, or
the one that KILL_WITH names, which goes to the whole process group as Ctrl-C does. KILL_COUNT names a
file into which a process that reaches its end writes how many such operations there were.
"""

import atexit
import os
import signal
import sys
from pathlib import Path

FILE_EVENTS = ("open", "os.mkdir", "os.remove", "os.rename", "os.truncate")


def _install(event: str, text: str, number: int) -> None:
    count_to = os.environ.get("KILL_COUNT")
    wanted = signal.Signals[os.environ.get("KILL_WITH", "SIGKILL")]
    seen = 0

    def look(name: str, arguments: tuple) -> None:
        nonlocal seen
        if name != event and not (event == "*" and name in FILE_EVENTS):
            return
        if any(text in str(a) for a in arguments[:2]):
            seen += 1
            if seen == number and wanted is signal.SIGKILL:
                os.kill(os.getpid(), wanted)
            elif seen == number:
                os.killpg(os.getpgid(0), wanted)

    sys.addaudithook(look)
    if count_to:
        atexit.register(lambda: Path(count_to).write_text(str(seen)))


# Processes that this one starts are no part of it.
if _moment := os.environ.pop("KILL_AT", ""):
    _event, _text, _number = _moment.split(" ")
    _install(_event, _text, int(_number))
