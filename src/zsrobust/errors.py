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

# So many names a message lists; where none is near, more would hide what to do.
_LISTED = 12


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
    near = nearest(given, names)
    if near:
        rest = f"did you mean {' or '.join(repr(n) for n in near)}?"
    elif names:
        more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
        rest = f"allowed: {', '.join(names[:_LISTED])}{more}."
    else:
        rest = "none exists."
    return UserError(f"unknown {what} {given!r}: {rest}{' ' + hint if hint else ''}")


def nearest(given: str, names: Iterable[str]) -> list[str]:
    """Return up to three of `names` that `given` may have been meant for, upper and lower case alike.

    Args:
        given: what the user wrote.
        names: every name that exists; where two differ in case alone, both are returned.
    """
    by_folded: dict[str, list[str]] = {}
    for name in names:
        by_folded.setdefault(name.casefold(), []).append(name)
    near = difflib.get_close_matches(given.casefold(), by_folded, n=3, cutoff=0.5)
    return [name for folded in near for name in by_folded[folded]]


def one_line(error: BaseException) -> str:
    """Return an error's message on one line, for a terminal; without a message, its kind.

    Control characters, which a file's name or content may carry, are shown as escapes.
    """
    text = " ".join(str(error).split()) or type(error).__name__
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
