"""The command line: parse, call one function, print. One file a command.

Nothing that imports torch is imported here or at the top of a command's file, so that --help is fast.
"""

from __future__ import annotations

import contextlib
import errno
import os
import sys
from typing import Annotated, Any

import typer

from zsrobust.cli import (
    attack,
    convert,
    data,
    demo,
    evaluate,
    harden,
    listing,
    mix,
    pretrain,
    published,
    report,
    study,
    tune,
)
from zsrobust.cli.usage import Commands
from zsrobust.errors import ZsRobustError, one_line
from zsrobust.interrupt import Stopped, stoppable

app = typer.Typer(
    name="zsrobust",
    cls=Commands,
    help="Harden CLIP-like models against adversarial images, attack them, and measure robustness on "
    "classes that the hardening never saw.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.command(
    "demo", help="Harden the embedded CLIP, attack it, measure it, write a report; offline."
)(demo.command)
app.command("harden", help="Run one hardening; the same command resumes.")(harden.command)
app.command("eval", help="Measure clean and robust accuracy, resumably.")(evaluate.command)
app.command(
    "attack", help="Write adversarial images of pictures, and judge the saved files again."
)(attack.command)
app.command("tune", help="Choose a learning rate on held-out source images.")(tune.command)
app.command("study", help="Run a grid of hardenings, measure and draw it, resumably.")(
    study.command
)
app.command(
    "pretrain",
    help="Train a small CLIP from scratch on captioned images; the same command resumes.",
)(pretrain.command)
app.command("report", help="Write one HTML file over finished cells.")(report.command)
app.command("published", help="Print the ledger of published numbers.")(published.command)
app.command("convert", help="Write a model as an open_clip folder or a visual state dict.")(
    convert.command
)
app.command("mix", help="Interpolate the image towers of two models of one architecture.")(
    mix.command
)
app.command("list", help="List models, attacks, objectives, adaptations, recipes or sets.")(
    listing.command
)
app.add_typer(data.app, name="data", help="Image sets: list, show, pack, check, overlap.")


# Files of ours are written through zsrobust.files, which names them; what is left is standard output.
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def _version(value: bool) -> None:
    if value:
        from zsrobust import __version__

        typer.echo(f"zsrobust {__version__}")
        raise typer.Exit


@app.callback()
def options(
    _: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show the traceback of a mistake or a machine fault.")
    ] = False,
) -> None:
    """Options that come before the command."""
    if debug:
        os.environ["ZSROBUST_DEBUG"] = "1"


def main(arguments: list[str] | None = None) -> Any:
    """Run the command line and exit.

    0 done, 1 the machine failed, 2 the request was wrong, 130 stopped by Ctrl-C, 143 by SIGTERM.
    """
    try:
        with stoppable():
            app(args=arguments, standalone_mode=True)
    except Stopped as stop:
        sys.stderr.write(f"zsrobust: {stop}\n")
        sys.exit(128 + stop.signal)
    except ZsRobustError as error:
        if os.environ.get("ZSROBUST_DEBUG"):
            raise
        sys.stderr.write(f"zsrobust: {one_line(error)}\n")
        sys.exit(error.exit_code)
    except OSError as error:
        if error.errno not in _FULL or os.environ.get("ZSROBUST_DEBUG"):
            raise
        sys.stderr.write(
            f"zsrobust: cannot write the result: {error.strerror}; free some space and start the same "
            "command again.\n"
        )
        # What is still buffered would be tried again at the very end, and complained of.
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except FloatingPointError as error:
        if os.environ.get("ZSROBUST_DEBUG"):
            raise
        sys.stderr.write(f"zsrobust: {one_line(error)}\n")
        sys.exit(1)
    except SystemExit as stop:
        if stop.code == 130:  # typer has caught a KeyboardInterrupt that is not our handler's
            sys.stderr.write("zsrobust: stopped; the same command goes on from where it was.\n")
        raise
