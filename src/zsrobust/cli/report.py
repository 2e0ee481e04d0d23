"""`zsrobust report DIR... [--out FILE]`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from zsrobust.cli.output import print_json, say


def command(
    folders: Annotated[
        list[Path],
        typer.Argument(
            help="Folders of results (with cells/, or packed), and of runs whose recipes to show."
        ),
    ],
    out: Annotated[
        Path | None, typer.Option(help="The HTML file. [report.html in the first folder]")
    ] = None,
    title: Annotated[str, typer.Option(help="Heading of the page.")] = "Zero-shot robustness",
    model: Annotated[
        list[str] | None,
        typer.Option(
            help="SPEC or SPEC=NAME; repeated: these models alone, in this order, the first compared with."
        ),
    ] = None,
    eps: Annotated[str, typer.Option(help="These radii alone, with commas. [all]")] = "",
    attacks: Annotated[
        str, typer.Option(help="These attacks alone, with commas. [all that the models share]")
    ] = "",
    norm: Annotated[str | None, typer.Option(help="linf or l2, where the cells hold both.")] = None,
    source: Annotated[
        list[str] | None,
        typer.Option(help="A set that counts as source and enters no mean; may be repeated."),
    ] = None,
    records: Annotated[
        Path | None,
        typer.Option(help="Also write all cells, packed into a few small files, into this folder."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON.")] = False,
) -> None:
    """Write one HTML file over finished cells; nothing is measured."""
    from zsrobust.threat import parse_eps

    radii = [parse_eps(part, norm or "any") for part in eps.split(",") if part.strip()]
    from zsrobust.workflows.report_cells import report_cells

    found = report_cells(
        folders,
        out=out,
        title=title,
        models=model or (),
        norm=norm,
        eps=radii,
        attacks=[name.strip() for name in attacks.split(",") if name.strip()],
        sources=source or (),
        records=records,
    )
    if as_json:
        print_json(found.to_json())
        return
    for summary in found.summaries:
        for line in summary.headlines:
            typer.echo(f"{summary.threat}: {line}.")
    for note in found.notes:
        say(note)
    if records is not None:
        say(f"records: {records}")
    say(f"report: {found.path}")
