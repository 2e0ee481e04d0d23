"""Harden, then measure before and after, where the recipe says how."""

from __future__ import annotations

from pathlib import Path

from zsrobust.evaluation.evaluate import evaluate
from zsrobust.evaluation.table import EvaluationTable
from zsrobust.training.loop import harden
from zsrobust.training.recipe import Recipe
from zsrobust.training.run import Run


def harden_and_evaluate(
    recipe: Recipe,
    out: str | Path | None = None,
    *,
    results: str | Path | None = None,
    progress: bool = False,
) -> tuple[Run, EvaluationTable | None]:
    """Run the hardening; with an `evaluate:` block measure the model before and after it.

    Args:
        recipe: see `load_recipe`.
        out: the run's folder; default `runs/` and the recipe's name.
        results: folder of the cells; default `cells` beside the runs, shared by all of them, so that
            the model before hardening is measured once.
        progress: draw progress bars on the terminal.
    """
    run = harden(recipe, out, progress=progress)
    wanted = recipe.evaluate
    if wanted is None or not run.is_first_rank:
        return run, None
    table = evaluate(
        [recipe.model, run],
        sets=wanted.sets,
        attacks=wanted.attacks,
        eps=wanted.eps,
        norm=wanted.norm,
        limit=wanted.limit,
        templates=wanted.templates,
        out=Path("results") if results is None else results,
        device=recipe.device,
        progress=progress,
    )
    return run, table
