"""`zsrobust data list|show|pack|check|overlap`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from zsrobust.cli.output import print_json, say
from zsrobust.cli.usage import Commands

app = typer.Typer(cls=Commands, no_args_is_help=True, add_completion=False, rich_markup_mode=None)

SetArgument = Annotated[
    str, typer.Argument(help="A card's name, wds:DIR, folder:DIR, hf-hub:REPO.")
]
SplitOption = Annotated[str | None, typer.Option(help="Split. [the card's, else test]")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print as JSON.")]


@app.command("list")
def list_sets(
    as_json: JsonOption = False,
    as_markdown: Annotated[
        bool, typer.Option("--markdown", help="Print the cards of whole sets as a table.")
    ] = False,
) -> None:
    """List cards and suites."""
    if as_markdown:
        from zsrobust.data.listing import markdown_table

        typer.echo(markdown_table())
        return
    from zsrobust.cli.listing import command

    command("sets", as_json)


@app.command()
def show(image_set: SetArgument, split: SplitOption = None, as_json: JsonOption = False) -> None:
    """Show a card: source, split rule, counts, texts, how to bring what cannot be downloaded."""
    from zsrobust.data import card_names, load_card, open_set

    if image_set in card_names():
        card = load_card(image_set)
        described: dict[str, Any] = card.model_dump(mode="json")
    else:
        opened = open_set(image_set, split)
        described = {
            "name": opened.name,
            "split": opened.split,
            "images": len(opened),
            "classnames": opened.classnames,
            "templates": opened.templates,
            "resolution": opened.resolution,
        }
    if as_json:
        print_json(described)
        return
    import yaml

    typer.echo(yaml.safe_dump(described, sort_keys=False, allow_unicode=True, width=100).rstrip())


@app.command()
def sheet(
    image_set: SetArgument,
    out: Annotated[Path, typer.Option(help="Picture to write, .png.")],
    split: SplitOption = None,
    rows: Annotated[int, typer.Option(help="Rows of the sheet.")] = 4,
    side: Annotated[int, typer.Option(help="Side of a tile in pixels.")] = 96,
) -> None:
    """Write the first pictures of a set as one picture, a class a column."""
    from zsrobust.data import open_set
    from zsrobust.data.sheet import contact_sheet
    from zsrobust.errors import UserError
    from zsrobust.files import write_atomically

    if out.suffix.lower() != ".png":
        raise UserError(f"--out {out}: the sheet is a .png; name a file that ends so.")
    picture = contact_sheet(open_set(image_set, split), rows, side)
    write_atomically(out, lambda stream: picture.save(stream, "PNG", optimize=True))
    typer.echo(f"{picture.width} x {picture.height} pixels: {out}")


@app.command()
def pack(
    image_set: SetArgument,
    out: Annotated[Path, typer.Option(help="Folder to write; must not exist or be empty.")],
    split: SplitOption = None,
    limit: Annotated[int | None, typer.Option(help="First N of the fixed order.")] = None,
    download: Annotated[bool, typer.Option(help="Allow a download where a card has one.")] = False,
) -> None:
    """Write any set as a WebDataset folder, readable as wds:DIR."""
    from zsrobust.data import open_set
    from zsrobust.data import pack as write

    opened = open_set(image_set, split, download=download)
    indices = None if limit is None else opened.first(limit)
    folder = write(opened, out, indices)
    typer.echo(f"{len(opened) if indices is None else len(indices)} images: wds:{folder}")


@app.command()
def check(
    image_sets: Annotated[list[str] | None, typer.Argument(help="Sets. [all cards]")] = None,
    split: SplitOption = None,
) -> None:
    """Check cards and the sets that are here: counts, labels, names; tell classes with equal texts."""
    from zsrobust.data import SetMissing, card_names, load_card, open_set
    from zsrobust.errors import UserError, ZsRobustError, one_line

    problems = 0
    for name in image_sets or card_names():
        found, notes = load_card(name).check() if name in card_names() else ([], [])
        held = "ok"
        try:
            found += open_set(name, split).check()
        except ZsRobustError as error:
            if image_sets:
                raise
            if isinstance(error, SetMissing):
                held = f"card ok; images not here ({one_line(error)[:100]})"
            else:
                found.append(one_line(error))
        typer.echo(f"{name}: {'; '.join(found) if found else held}")
        for note in notes:
            typer.echo(f"  {note}")
        problems += bool(found)
    if problems:
        raise UserError(f"{problems} set(s) have problems, named above.")


@app.command()
def overlap(
    source: Annotated[str, typer.Argument(help="The set that hardening sees.")],
    sets: Annotated[str, typer.Argument(help="A suite, or sets with commas.")],
    as_json: JsonOption = False,
) -> None:
    """List near-duplicate class names between a source and target sets."""
    from zsrobust.data import load_suite, open_set
    from zsrobust.data.overlap import near_duplicates

    opened = open_set(source)
    rows = []
    for name in load_suite(sets).sets:
        target = open_set(name)
        for target_name, source_name, why in near_duplicates(
            opened.classnames or [], target.classnames or []
        ):
            rows.append(
                {"set": target.name, "target": target_name, "source": source_name, "why": why}
            )
    if as_json:
        print_json(rows)
        return
    for row in rows:
        typer.echo(f"{row['set']:<24} {row['target']:<28} {row['source']:<28} {row['why']}")
    say(f"{len(rows)} near-duplicate pairs of class names")
