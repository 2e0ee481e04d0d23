"""`zsrobust convert M --out DIR [--form visual]`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def command(
    model: Annotated[str, typer.Argument(help="A model spec.")],
    out: Annotated[Path, typer.Option(help="Folder, or file for --form visual.")],
    form: Annotated[
        str, typer.Option(help="open_clip (a folder for local-dir:) or visual (a state dict).")
    ] = "open_clip",
) -> None:
    """Write a model in a form that other software loads."""
    from zsrobust.errors import unknown_name

    if form not in ("open_clip", "visual"):
        raise unknown_name("form", form, ["open_clip", "visual"])
    from zsrobust.models import convert

    convert(model, out, form=form)  # type: ignore[arg-type]  # checked above
    typer.echo(f"local-dir:{out}" if form == "open_clip" else str(out))
