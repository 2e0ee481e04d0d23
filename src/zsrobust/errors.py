"""The error tree, and the words of its messages.

    ZsRobustError
    |-- UserError          the request was wrong; exit code 2
    `-- EnvironmentFault   the machine failed (disk, permission, lock, network); exit code 1

A message is one line: what was given, what is allowed, what to do. The command line prints it
without a traceback. Any other exception is a bug of ours and shows its own traceback.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class ZsRobustError(Exception):
    """Base of all errors that a user can meet by using the package as documented."""

    exit_code = 1


class UserError(ZsRobustError, ValueError):
    """The request was wrong: an unknown name, a value out of range, a file of the wrong form."""

    exit_code = 2


class EnvironmentFault(ZsRobustError, RuntimeError):
    """The machine failed: full disk, missing permission, a lock held by another process."""

    exit_code = 1


def unknown_name(what: str, given: str, allowed: Iterable[str], hint: str = "") -> UserError:
    """Return the error for a name that does not exist, with the nearest ones that do.

    Args:
        what: the noun, for instance "attack".
        given: what the user wrote.
        allowed: every name that would have been accepted.
        hint: a sentence on what else to do, appended as it is.
    """
    names = sorted(allowed)
    near = difflib.get_close_matches(given, names, n=3, cutoff=0.5)
    if near:
        rest = f"did you mean {' or '.join(repr(n) for n in near)}?"
    elif names:
        shown = ", ".join(names[:12]) + (", ..." if len(names) > 12 else "")
        rest = f"allowed: {shown}."
    else:
        rest = "none exists."
    return UserError(f"unknown {what} {given!r}: {rest}{' ' + hint if hint else ''}")
