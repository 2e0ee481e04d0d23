"""`zsrobust tune RECIPE --lr 3e-5,1e-4,3e-4 [--images 2500]`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from zsrobust.cli.output import on_terminal, print_json, say


def command(
    recipe: Annotated[str, typer.Argument(help="A recipe's name or a YAML file.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="key=value, dotted keys.")] = None,
    lr: Annotated[str, typer.Option(help="The grid, with commas.")] = "3e-5,1e-4,3e-4",
    images: Annotated[
        int | None, typer.Option(help="First N source images. [the recipe's limit]")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the grid. [runs/tune/RECIPE]")] = None,
    by_texts: Annotated[
        bool, typer.Option("--by-texts", help="Score by class texts, not by a trained head.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Choose a learning rate by robust accuracy on held-out source images; no target is opened."""
    from zsrobust.errors import UserError
    from zsrobust.training.recipe import load_recipe

    try:
        rates = [float(part) for part in lr.split(",")]
    except ValueError as error:
        raise UserError(f"--lr {lr!r} is no list of numbers: write 3e-5,1e-4,3e-4.") from error
    loaded = load_recipe(recipe, overrides)
    from zsrobust.workflows.tune import tune

    folder = Path("runs") / "tune" / loaded.name if out is None else out
    choice = tune(
        loaded, rates, images=images, out=folder, by_texts=by_texts, progress=on_terminal()
    )
    result = choice.to_json(loaded)
    if as_json:
        print_json(result)
        return
    typer.echo("learning rate   clean %   robust %   probability of the true class, attacked")
    for row in result["grid"]:
        mark = "  <- chosen" if row["lr"] == choice.rate else ""
        typer.echo(
            f"{row['lr']:<13.3g} {100 * row['clean']:9.1f} {100 * row['robust']:10.1f} "
            f"{row['true_probability']:12.4f}{mark}"
        )
    typer.echo(choice.reason)
    say(f"kept in {choice.file}; use it as optimiser.lr={choice.rate:.3g}")
