"""Harden, then measure before and after, where the recipe says how."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from zsrobust import data
from zsrobust.errors import UserError
from zsrobust.evaluation.evaluate import evaluate, open_suite, open_to_measure
from zsrobust.evaluation.measure import Notify, plan_to_measure
from zsrobust.evaluation.table import EvaluationTable
from zsrobust.files import refuse_file
from zsrobust.models import Clip
from zsrobust.objectives import objective_class
from zsrobust.threat import Threat
from zsrobust.training.loop import harden, open_source
from zsrobust.training.recipe import EvaluatePart, Recipe
from zsrobust.training.run import Run


def harden_and_evaluate(
    recipe: Recipe,
    out: str | Path | None = None,
    *,
    results: str | Path | None = None,
    notify: Notify | None = None,
    progress: bool = False,
) -> tuple[Run, EvaluationTable | None]:
    """Run the hardening; with an `evaluate:` block measure the model before and after it.

    Args:
        recipe: see `load_recipe`.
        out: the run's folder; default `runs/` and the recipe's name.
        results: folder of the cells; default `results`, shared by all runs, so that the model before
            hardening is measured once.
        notify: called with one line where hardening or evaluation has something to say.
        progress: draw progress bars on the terminal.

    Raises:
        UserError: as `harden` and `evaluate`; a mistake in the block shows before the hardening.
    """
    wanted = recipe.evaluate
    if wanted is not None:
        check_evaluation(wanted)
        check_head(recipe, wanted)
        refuse_file(Path("results") if results is None else Path(results))
    run = harden(recipe, out, progress=progress, notify=notify)
    if wanted is None or not run.is_first_rank:
        return run, None
    out = "results" if results is None else results
    models: list[str | Run | Clip] = (
        [run] if wanted.head else [recipe.model, run]
    )  # before hardening there is no head
    return run, measure(models, wanted, out, recipe.device, notify=notify, progress=progress)


def measure(
    models: Sequence[str | Run | Clip],
    wanted: EvaluatePart,
    out: str | Path,
    device: str,
    *,
    notify: Notify | None = None,
    progress: bool = False,
) -> EvaluationTable:
    """Evaluate models as a recipe's `evaluate:` block says.

    Args:
        models: specs, runs and loaded models.
        wanted: the block.
        out: folder of the cells.
        device: the recipe's.
        notify: as in `evaluate`.
        progress: draw progress bars on the terminal.
    """
    return evaluate(
        models,
        sets=wanted.sets,
        attacks=wanted.attacks,
        eps=wanted.eps,
        norm=wanted.norm,
        limit=wanted.limit,
        templates=wanted.templates,
        preprocess=wanted.preprocess,
        resolution=wanted.resolution,
        duplicates=wanted.duplicates,
        with_source=wanted.with_source,
        head=wanted.head,
        out=out,
        device=device,
        notify=notify,
        progress=progress,
    )


def check_evaluation(wanted: EvaluatePart) -> None:
    """Refuse what `evaluate` would refuse, so that no hours of training go before it.

    Raises:
        UserError: as `evaluate`.
    """
    for radius in wanted.eps:
        for name in wanted.attacks:
            if name != "clean":
                plan_to_measure(name, Threat(wanted.norm, radius))
    suite = data.load_suite(wanted.sets)
    if wanted.with_source and suite.source is None:
        raise UserError(f"sets {suite.name!r} name no source set: leave with_source out.")
    if wanted.with_source and suite.source is not None:
        open_to_measure(suite.source, suite.source_split).texts(wanted.templates)
    for _, image_set in open_suite(suite):
        image_set.texts(wanted.templates)


def check_head(recipe: Recipe, wanted: EvaluatePart) -> None:
    """Refuse to measure by a head that the recipe trains none of, or on sets of other classes than its own.

    Raises:
        UserError: then.
    """
    if not wanted.head:
        return
    objective = recipe.objective.name
    if objective_class(objective).scored_by not in ("head", "dictionary"):
        raise UserError(
            f"evaluate.head: objective {objective!r} trains no head; leave it out to measure by class texts."
        )
    classes = open_source(recipe).classes
    for spec, image_set in open_suite(data.load_suite(wanted.sets)):
        if image_set.classnames != classes:
            raise UserError(
                f"evaluate.head: set {spec!r} has other classes than {recipe.source.set!r}, on which the head is "
                "trained; name held-out images of the source, or leave head out."
            )
