"""`zsrobust demo`: the embedded model hardened, attacked, measured and reported."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from zsrobust.cli.output import on_terminal, print_json, print_table


def command(
    overrides: Annotated[
        list[str] | None,
        typer.Argument(help="key=value for both recipes: evaluate.limit=20."),
    ] = None,
    *,
    out: Annotated[Path, typer.Option(help="Folder of runs, results and report.")] = Path(
        "zsrobust-demo"
    ),
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Harden the embedded CLIP with TeCoA and with FT(Adv.), measure all three, write report.html."""
    from zsrobust.workflows.demo import demo

    result = demo(out, overrides or [], progress=on_terminal())
    if as_json:
        print_json(
            {**result.table.to_json(), "labels": result.labels, "report": str(result.report)}
        )
        return
    print_table(result.table)
    typer.echo(f"report: {result.report}")
