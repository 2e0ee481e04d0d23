"""`zsrobust harden RECIPE [key=value ...]`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from zsrobust.cli.output import on_terminal, print_json, print_table, say

_SCORED_BY = {
    "head": ", linear head",
    "dictionary": ", dictionary",
    "pseudo-labels": ", against pseudo-labels",
}


def command(
    recipe: Annotated[str, typer.Argument(help="A recipe's name or a YAML file.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="key=value with dotted keys: optimiser.lr=1e-4.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the run. [runs/RECIPE]")] = None,
    results: Annotated[Path, typer.Option(help="Folder of the evaluation's cells.")] = Path(
        "results"
    ),
    evaluate: Annotated[
        bool, typer.Option(help="Measure before and after, where the recipe says how.")
    ] = True,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Run one hardening; the same command resumes."""
    from zsrobust.adaptations import PROMPTING
    from zsrobust.training.recipe import load_recipe

    loaded = load_recipe(recipe, overrides)
    from zsrobust.training.loop import harden
    from zsrobust.workflows.harden_and_evaluate import harden_and_evaluate

    if not evaluate:
        run, table = harden(loaded, out, progress=on_terminal(), notify=say), None
    else:
        run, table = harden_and_evaluate(
            loaded, out, results=results, notify=say, progress=on_terminal()
        )
    if not run.is_first_rank:
        return
    validations = run.read_log("validation")
    if as_json:
        print_json(
            {
                "run": str(run.folder),
                "model": run.spec,
                "validation": validations[-1] if validations else None,
                "table": None if table is None else table.to_json(),
            }
        )
        return
    if table is not None:
        print_table(table)
    for row in validations[-1:]:
        by_texts = ""
        if row.get("text_clean") is not None:
            by_texts = f"; by class texts clean {100 * row['text_clean']:.1f}%"
        scored_by = _SCORED_BY.get(row.get("scored_by", "texts"), "")
        say(
            f"held-out source ({row['samples']} images{scored_by}): "
            f"clean {100 * row['clean']:.1f}%, robust {100 * row['robust']:.1f}%{by_texts}"
        )
    elsewhere = f"plain open_clip: local-dir:{run.model}"
    if loaded.adaptation.name in PROMPTING:
        elsewhere = "its prompts are no weights: plain open_clip would load the model without them"
    say(f"hardened model: {run.spec} ({elsewhere})")
