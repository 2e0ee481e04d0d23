"""`zsrobust study STUDY [--plan] [key=value ...]`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from zsrobust.cli.output import on_terminal, print_json, say

if TYPE_CHECKING:
    from zsrobust.workflows.collection_recipe import Collection
    from zsrobust.workflows.study import Outcome
    from zsrobust.workflows.study_plan import PlannedRun, StudyPlan
    from zsrobust.workflows.study_recipe import Study


def command(
    study: Annotated[str, typer.Argument(help="A study's or a collection's name, or a YAML file.")],
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
    from zsrobust.workflows.collection_recipe import load_collection
    from zsrobust.workflows.study_recipe import load_study

    collection = load_collection(study, overrides)
    if collection is not None:
        _run_collection(collection, plan=plan, out=out, as_json=as_json)
        return
    loaded, combinations = load_study(study, overrides)
    folder = Path("runs") / "studies" / loaded.name if out is None else out
    if plan:
        from zsrobust.workflows.study_plan import plan_study

        found = plan_study(loaded, combinations, folder, notify=say)
        if as_json:
            print_json(found.to_json())
        else:
            _print_plan(found.runs)
            _print_sum([found])
        return
    from zsrobust.workflows.study import run_study

    outcome = run_study(loaded, combinations, folder, progress=on_terminal(), notify=say)
    if as_json:
        print_json(outcome.json)
    else:
        _print_outcome(loaded, outcome)


def _run_collection(collection: Collection, *, plan: bool, out: Path | None, as_json: bool) -> None:
    from zsrobust.workflows.collection import plan_collection, run_collection

    folder = Path("runs") / "studies" / collection.name if out is None else out
    if plan:
        plans = plan_collection(collection, folder, notify=say)
        if as_json:
            named = zip(collection.members, plans, strict=True)
            print_json({member.folder: found.to_json() for member, found in named})
            return
        for member, found in zip(collection.members, plans, strict=True):
            typer.echo(f"{member.folder}: {found.models} models on {found.samples} images")
            _print_plan(found.runs)
        _print_sum(plans)
        return
    outcomes = run_collection(collection, folder, progress=on_terminal(), notify=say)
    if as_json:
        named_outcomes = zip(collection.members, outcomes, strict=True)
        print_json({member.folder: outcome.json for member, outcome in named_outcomes})
        return
    for member, outcome in zip(collection.members, outcomes, strict=True):
        _print_outcome(member.study, outcome)


def _print_outcome(study: Study, outcome: Outcome) -> None:
    from zsrobust.workflows.study import markdown

    typer.echo(markdown(study, outcome.places))
    for name, chosen in outcome.json["chosen"].items():
        typer.echo(f"{name}: {chosen['at']:g} chosen: {chosen['reason']}. {chosen['command']}")
    folder = outcome.folder
    say(f"figure: {outcome.figures[0]}; numbers: {folder / 'study.json'}, {folder / 'table.md'}")


def _print_plan(runs: list[PlannedRun]) -> None:
    from zsrobust.workflows.study_plan import in_words

    width = max((len(run.folder) for run in runs), default=0)
    for run in runs:
        state = f"{run.steps_done} of {run.steps} steps" if run.steps_done else f"{run.steps} steps"
        if run.complete:
            state = "done"
        left = "" if run.complete else f", about {in_words(run.seconds)} (by {run.timed_by})"
        typer.echo(f"{run.folder:<{width}}  {state}{left}")


def _print_sum(plans: list[StudyPlan]) -> None:
    from zsrobust.workflows.study_plan import in_words

    runs = [run for found in plans for run in found.runs]
    done, seconds = sum(run.complete for run in runs), sum(run.seconds for run in runs)
    measuring = sum(found.measuring_seconds for found in plans)
    models = "; ".join(f"{found.models} models on {found.samples} images" for found in plans)
    if len(plans) > 1:
        models = f"{len(plans)} studies are measured"
    typer.echo(
        f"{len(runs)} hardenings, {done} done, about {in_words(seconds)} for the rest; then {models}, at most "
        f"about {in_words(measuring)}, less what is measured already"
    )
