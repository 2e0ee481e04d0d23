"""`zsrobust mix A B --at 0.3 --out DIR`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def command(
    first: Annotated[str, typer.Argument(metavar="A", help="A model spec.")],
    second: Annotated[
        str, typer.Argument(metavar="B", help="Another of the same architecture and text tower.")
    ],
    out: Annotated[Path, typer.Option(help="Folder of the model, new or empty.")],
    at: Annotated[float, typer.Option(help="Share of B's image tower, from 0 (A) to 1 (B).")],
) -> None:
    """Write (1 - a) A + a B of two image towers as an open_clip folder."""
    from zsrobust.models import mix

    mix(first, second, at, out)
    typer.echo(f"local-dir:{out}")
