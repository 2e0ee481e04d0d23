"""`zsrobust pretrain RECIPE [key=value ...]`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from zsrobust.cli.output import on_terminal, print_json, say


def command(
    recipe: Annotated[str, typer.Argument(help="A recipe's name or a YAML file.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="key=value with dotted keys: optimiser.lr=1e-3.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the run. [runs/RECIPE]")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Train a small CLIP from scratch on captioned images; the same command resumes."""
    from zsrobust.training.run import RunFolder
    from zsrobust.workflows.pretrain_recipe import load_pretrain_recipe

    loaded = load_pretrain_recipe(recipe, overrides)
    from zsrobust.workflows.pretrain import pretrain

    run = RunFolder(pretrain(loaded, out, progress=on_terminal()), loaded)
    validations = run.read_log("validation")
    measured = validations[-1] if validations else None
    if as_json:
        result = {"run": str(run.folder), "model": f"local-dir:{run.model}", "validation": measured}
        print_json(result)
        return
    if measured is not None:
        for name, accuracy in measured["accuracy"].items():
            say(f"{name}: zero-shot accuracy {100 * accuracy:.1f}%")
    say(f"model: local-dir:{run.model}")
