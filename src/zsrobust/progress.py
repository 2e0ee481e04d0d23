"""The progress bar: one look for everything that takes longer than two seconds."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
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


@contextlib.contextmanager
def titled_progress(show: bool) -> Iterator[Callable[..., None]]:
    """Yield a function: with a title and a total it starts a bar, without it advances by one."""
    if not show:
        yield lambda *_: None
        return
    with progress_bar() as bars:
        task = bars.add_task("", total=None)

        def tick(title: str | None = None, total: int | None = None) -> None:
            if title is None:
                bars.advance(task)
            else:
                bars.reset(task, description=title, total=total)

        yield tick
