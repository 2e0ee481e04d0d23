"""The progress bar: one look for everything that takes longer than two seconds."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress


def progress_bar(beside: str = "") -> Progress:
    """Return a rich progress bar on standard error that vanishes when it is done.

    Args:
        beside: text after the count, with `{task.fields[...]}` for what changes.
    """
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(beside),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
    )
