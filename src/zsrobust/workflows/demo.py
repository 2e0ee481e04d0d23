"""The first ten minutes: harden the embedded model in two ways, measure all three, write the report.

tiny -> TeCoA                     recipes/tiny/tecoa-ft.yaml
     -> the paper's FT(Adv.)      recipes/tiny/adv-ft.yaml, the same images, steps and eps
     -> all three on the suite `demo`, with the same attacks -> report.html

Offline, on a CPU, with nothing but the package. Every part resumes; a second run only writes the report.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from zsrobust.errors import UserError
from zsrobust.evaluation.examples import collect_examples
from zsrobust.evaluation.table import EvaluationTable
from zsrobust.files import refuse_others
from zsrobust.report.build import build_report
from zsrobust.threat import format_eps
from zsrobust.training.loop import harden
from zsrobust.training.recipe import Recipe, load_recipe
from zsrobust.training.run import Run
from zsrobust.workflows.harden_and_evaluate import check_evaluation, measure

RECIPES = {"TeCoA": "tiny/tecoa-ft", "FT(Adv.)": "tiny/adv-ft"}
"""Human name -> recipe."""
FOLDER = "zsrobust-demo"
_EXAMPLE_ATTACK = "pgd-20"


@dataclass(frozen=True)
class Demo:
    """What a demo wrote.

    Args:
        table: the original model first, then one model a recipe.
        labels: model spec -> human name.
        report: the HTML file.
        runs: the hardenings.
    """

    table: EvaluationTable
    labels: dict[str, str]
    report: Path
    runs: list[Run]


def demo(
    out: str | Path = FOLDER, overrides: Sequence[str] = (), *, progress: bool = False
) -> Demo:
    """Harden, measure and report; everything goes below `out`.

    Args:
        out: the folder; the same one again goes on, or only writes the report anew.
        overrides: "key=value" for both recipes, as in `load_recipe`: "evaluate.limit=20".
        progress: draw progress bars on the terminal.

    Raises:
        UserError: if `out` holds something else, or an override is wrong.
        EnvironmentFault: if it cannot be written or another process works in it.
    """
    folder = Path(out)
    recipes = {label: load_recipe(name, list(overrides)) for label, name in RECIPES.items()}
    first = recipes["TeCoA"]
    wanted = first.evaluate
    if wanted is None:
        raise UserError("the demo measures what it hardened: leave the recipes' evaluate block in.")
    check_evaluation(wanted)
    refuse_others(folder, {"runs", "results", "report.html"}, "an earlier demo")
    runs = {
        label: harden(
            recipe, folder / "runs" / RECIPES[label].rpartition("/")[2], progress=progress
        )
        for label, recipe in recipes.items()
    }
    models: list[str | Run] = [first.model, *runs.values()]
    table = measure(models, wanted, folder / "results", first.device, progress=progress)
    examples = collect_examples(
        models,
        wanted.sets,
        _EXAMPLE_ATTACK,
        wanted.eps[0],
        norm=wanted.norm,
        templates=wanted.templates,
        preprocess=wanted.preprocess,
        resolution=wanted.resolution,
        duplicates=wanted.duplicates,
        device=first.device,
    )
    labels = {first.model: "CLIP", **{run.spec: label for label, run in runs.items()}}
    elsewhere = [] if folder == Path(FOLDER) else ["--out", folder.name]
    report = build_report(
        table,
        folder / "report.html",
        title="Zero-shot adversarial robustness of a small CLIP",
        about=_about(first),
        labels=labels,
        runs=list(runs.values()),
        examples=examples,
        notes=[
            "The model and all pictures come with the package. In its pre-training the model saw drawn pictures "
            "of all kinds, those of the sets above included; its hardening saw the source's classes alone.",
            "How the two recipes were chosen, and what was seen before, stands in docs/demo.md; each is one "
            "training run.",
        ],
        commands=[shlex.join(["zsrobust", "demo", *overrides, *elsewhere])],
    )
    return Demo(table, labels, report, list(runs.values()))


def _about(recipe: Recipe) -> str:
    """Return what the page is about, for someone who has read nothing else."""
    return (
        "A small CLIP, made of drawn pictures, is hardened twice on pictures of some classes and measured on "
        "other classes. TeCoA holds the attacked images to their class texts; FT(Adv.), the baseline of its "
        "paper (Mao et al., ICLR 2023), trains a linear layer without texts, on the same images. Both harden "
        f"within {format_eps(recipe.threat.eps)}."
    )
