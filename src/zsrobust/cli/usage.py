"""What typer refuses, in the words of all other mistakes: one line, exit code 2.

typer prints a usage error on several lines, and knows of it alone what it parses: the group below turns each
into a `UserError`, which `main` prints as it prints every other.
"""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator
from typing import Any

import typer
from typer.core import TyperGroup

from zsrobust.errors import UserError, unknown_name

# typer brings its own copy of click, or uses the one beside it: only BadParameter has a public name in both.
_UsageError: type[Exception] = typer.BadParameter.__bases__[0]

_KINDS = {"int": "a whole number", "float": "a number", "bool": "true or false"}


class Commands(TyperGroup):
    """A group of commands whose usage errors are mistakes like any other."""

    def make_context(self, info_name: str | None, args: list[str], *rest: Any, **more: Any) -> Any:
        """Read the options before the command.

        Raises:
            UserError: for an option or a value that does not exist.
        """
        with _in_one_line():
            return super().make_context(info_name, args, *rest, **more)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Return the command of that name.

        Raises:
            UserError: for an unknown name, with the nearest ones.
        """
        if args[0] not in self.commands:
            where = _path(ctx)
            hint = f"'{_spoken(where)} --help' lists the commands."
            raise unknown_name(f"command{_of(where)}", args[0], self.commands, hint)
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        """Read what stands behind the command, and run it.

        Raises:
            UserError: for an option, an argument or a value that does not exist, or one that is missing.
        """
        with _in_one_line(ctx):
            return super().invoke(ctx)


@contextlib.contextmanager
def _in_one_line(ctx: Any = None) -> Iterator[None]:
    """Raise a UserError for typer's usage errors, and for a text that is no path wherever it is tried as one.

    Args:
        ctx: of the group that runs the block.
    """
    try:
        yield
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            raise
        given = str(error.filename)[:60]
        raise UserError(
            f"the path {given}... is too long for a file; check what was given."
        ) from error
    except _UsageError as error:
        if (
            type(error).__name__ == "NoArgsIsHelpError"
        ):  # no mistake: the help is what was asked for
            raise
        own = getattr(error, "ctx", None)
        inner = getattr(ctx, "invoked_subcommand", None)  # some errors do not say where they arose
        where = (
            _path(own)
            if own is not None
            else [*(_path(ctx) if ctx else []), *filter(None, [inner])]
        )
        raise _words(error, own, where) from error


def _words(error: Any, ctx: Any, where: list[str]) -> UserError:
    """Return the mistake in our words, where typer's do not say what was given or what to do."""
    prefix = f"{' '.join(where)}: " if where else ""
    mend = f"'{_spoken(where)} --help' shows what it takes"
    kind = type(error).__name__
    parameter = getattr(error, "param", None)
    if kind == "NoSuchOption" and ctx is not None:
        known = [name for option in ctx.command.params for name in option.opts if name[:1] == "-"]
        takes_keys = any(option.name == "overrides" for option in ctx.command.params)
        hint = "A recipe's own keys are given as key=value." if takes_keys else ""
        return unknown_name(f"option{_of(where)}", error.option_name, known, hint)
    if kind == "MissingParameter" and parameter is not None:
        name = parameter.opts[0]
        noun = "option" if name.startswith("-") else "argument"
        about = f" ({parameter.help.rstrip('.')})" if getattr(parameter, "help", None) else ""
        return UserError(f"{prefix}the {noun} {name!r} is missing{about}; {mend}.")
    found = _refused_value(error)
    if parameter is not None and found is not None:
        given, wanted = found
        return UserError(f"{prefix}{parameter.opts[0]} {given!r} is not {wanted}; {mend}.")
    message = " ".join(error.format_message().split()).rstrip(".")
    return UserError(f"{prefix}{message[:1].lower()}{message[1:]}; {mend}.")


def _refused_value(error: Any) -> tuple[Any, str] | None:
    """Return a value that could not be read and what it should have been, where typer says both."""
    details = getattr(error.__cause__, "errors", None)
    if details is None:
        return None
    first = details()[0]
    wanted = _KINDS.get(str(first["type"]).split("_")[0])
    return (first["input"], wanted) if wanted else None


def _path(ctx: Any) -> list[str]:
    """Return the names of a command and of those above it, without the program's: ["data", "show"]."""
    names: list[str] = []
    while ctx.parent is not None:
        names.insert(0, str(ctx.info_name))
        ctx = ctx.parent
    return names


def _of(where: list[str]) -> str:
    return f" of {' '.join(where)}" if where else ""


def _spoken(where: list[str]) -> str:
    return " ".join(["zsrobust", *where])
