"""`zsrobust study STUDY [--plan] [key=value ...]`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from zsrobust.cli.output import on_terminal, print_json, say

if TYPE_CHECKING:
    from zsrobust.workflows.study_plan import StudyPlan


def command(
    study: Annotated[str, typer.Argument(help="A study's name or a YAML file.")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(help="key=value of the study; recipe.KEY=value of every recipe in it."),
    ] = None,
    plan: Annotated[
        bool, typer.Option("--plan", help="Only say what is to be done, and how long it takes.")
    ] = False,
    out: Annotated[Path | None, typer.Option(help="Folder. [runs/studies/STUDY]")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Run a grid of hardenings, measure them, draw the figure; the same command resumes."""
    from zsrobust.workflows.study_recipe import load_study

    loaded, combinations = load_study(study, overrides)
    folder = Path("runs") / "studies" / loaded.name if out is None else out
    if plan:
        from zsrobust.workflows.study_plan import plan_study

        found = plan_study(loaded, combinations, folder)
        if as_json:
            print_json(found.to_json())
        else:
            _print_plan(found)
        return
    from zsrobust.workflows.study import markdown, run_study

    outcome = run_study(loaded, combinations, folder, progress=on_terminal(), notify=say)
    if as_json:
        print_json(outcome.json)
        return
    typer.echo(markdown(loaded, outcome.places))
    for name, chosen in outcome.json["chosen"].items():
        typer.echo(f"{name}: {chosen['at']:g} chosen: {chosen['reason']}. {chosen['command']}")
    say(f"figure: {outcome.figures[0]}; numbers: {folder / 'study.json'}, {folder / 'table.md'}")


def _print_plan(found: StudyPlan) -> None:
    from zsrobust.workflows.study_plan import in_words

    width = max(len(run.folder) for run in found.runs)
    for run in found.runs:
        state = f"{run.steps_done} of {run.steps} steps" if run.steps_done else f"{run.steps} steps"
        if run.complete:
            state = "done"
        left = "" if run.complete else f", about {in_words(run.seconds)} (by {run.timed_by})"
        typer.echo(f"{run.folder:<{width}}  {state}{left}")
    done = sum(run.complete for run in found.runs)
    seconds = sum(run.seconds for run in found.runs)
    typer.echo(
        f"{len(found.runs)} hardenings, {done} done, about {in_words(seconds)} for the rest; then "
        f"{found.models} models on {found.samples} images, at most about "
        f"{in_words(found.measuring_seconds)}, less what is measured already"
    )
