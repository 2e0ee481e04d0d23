"""What a study would do: its hardenings, what of them is done, and the time that the rest will take.

Times come from hardenings of the study that were finished here, or else from a few real steps, each kind of
step once: a recipe's first batch, trained on for one and for four steps in a folder that is removed. On a
busy machine either is a rough guess.
"""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zsrobust import data
from zsrobust.attacks import plan as read_attack
from zsrobust.attacks.names import queries
from zsrobust.evaluation.evaluate import open_suite, open_to_measure
from zsrobust.evaluation.measure import Notify
from zsrobust.files import read_json_lines
from zsrobust.hashing import sha256_json
from zsrobust.threat import Threat
from zsrobust.training.loop import global_batches, harden, open_source, total_steps
from zsrobust.training.recipe import Recipe, parse_recipe
from zsrobust.training.run import Run
from zsrobust.workflows.study import cost_of, refuse_other_study
from zsrobust.workflows.study_recipe import TIMES_NAME, Combination, Study

_PROBED = 4  # steps of the longer probe


@dataclass(frozen=True)
class PlannedRun:
    """One hardening of a study."""

    folder: str
    places: list[dict[str, str]]
    """Axis -> label, of each place that shares it."""
    steps: int
    steps_done: int
    complete: bool
    seconds: float
    """Expected for what is left."""
    timed_by: str
    """"finished runs", "real steps", or "" where nothing is left."""


@dataclass(frozen=True)
class StudyPlan:
    """What is left of a study."""

    runs: list[PlannedRun]
    models: int
    """How many are measured, those before hardening among them."""
    samples: int
    """Of all sets together."""
    measuring_seconds: float
    """For all cells and no early exit: an upper bound, from the time of a training step."""

    def to_json(self) -> dict[str, Any]:
        """Return the plan as JSON."""
        return {
            "runs": [
                {
                    "run": run.folder,
                    "places": run.places,
                    "steps": run.steps,
                    "steps_done": run.steps_done,
                    "complete": run.complete,
                    "seconds": round(run.seconds, 1),
                    "timed_by": run.timed_by or None,
                }
                for run in self.runs
            ],
            "seconds": round(sum(run.seconds for run in self.runs), 1),
            "models_measured": self.models,
            "samples_each": self.samples,
            "measuring_seconds_at_most": round(self.measuring_seconds, 1),
        }


@dataclass(frozen=True)
class Cost:
    """Seconds of one kind of step, and of a hardening's start."""

    start: float
    step: float
    timed_by: str


def plan_study(
    study: Study,
    combinations: Sequence[Combination],
    out: str | Path,
    *,
    shared: str | Path | None = None,
    costs: dict[str, Cost] | None = None,
    notify: Notify | None = None,
) -> StudyPlan:
    """Return what is done, and the expected time of the rest; no set is measured.

    Args:
        study: see `load_study`.
        combinations: its hardenings.
        out: the study's folder, there or not; nothing is written into it.
        shared: as in `run_checked_study`; None is `out`.
        costs: of kinds of steps that were timed already; what is timed here is put in.
        notify: called with one line before steps are timed, which takes seconds.

    Raises:
        UserError: as `run_study`.
    """
    refuse_other_study(study, Path(out))
    folder = Path(out if shared is None else shared)
    sets = open_suite(data.load_suite(study.evaluate.sets))
    finished = read_json_lines(folder / TIMES_NAME) if (folder / TIMES_NAME).is_file() else []
    timed = {} if costs is None else costs

    def cost(recipe: Recipe) -> Cost:
        key = sha256_json(cost_of(recipe))
        if key not in timed:
            known = _from_finished(finished, recipe)
            if known is None and notify is not None:
                notify(f"timing steps of {recipe.name} ...")
            timed[key] = known or _from_steps(recipe)
        return timed[key]

    runs: list[PlannedRun] = []
    for name in dict.fromkeys(one.folder for one in combinations):
        same = [one for one in combinations if one.folder == name]
        recipe = same[0].recipe
        source = open_source(recipe)
        steps = total_steps(recipe, len(global_batches(recipe, source.ids, 0)))
        run = Run(folder / "runs" / name, recipe)
        if (run.folder / "recipe.json").is_file():
            run = Run.open(recipe, run.folder)  # refuses another recipe's run
        logged = run.read_log("step") if run.log.is_file() else []
        done = logged[-1]["steps_done"] if logged else 0
        seconds, timed_by = 0.0, ""
        if not run.complete:
            found = cost(recipe)
            seconds, timed_by = found.start + (steps - done) * found.step, found.timed_by
        places = [one.labels for one in same]
        runs.append(PlannedRun(name, places, steps, done, run.complete, seconds, timed_by))

    first = combinations[0].recipe
    measured = [image_set for _, image_set in sets]
    suite = data.load_suite(study.evaluate.sets)
    if study.evaluate.with_source and suite.source is not None:
        measured.append(open_to_measure(suite.source, suite.source_split))
    samples = sum(min(len(s), study.evaluate.limit or len(s)) for s in measured)
    bases = len({one.recipe.model for one in combinations})
    axis = study.mix_axis
    if study.evaluate.head:
        bases = 0
    models = len(runs) * len(axis.mix) if axis is not None else bases + len(runs)
    # A query costs what a step's forward and backward cost an image; so does, nearly, the clean pass.
    known = cost(first)
    passes = 1 + (first.adversary.steps if first.chosen_by == "robust" else 0)
    each = known.step / (passes * first.batch)
    looks = 1 + sum(
        queries(read_attack(name, Threat(study.evaluate.norm, eps)).settings())
        for eps in study.evaluate.eps
        for name in study.evaluate.attacks
        if name != "clean"
    )
    return StudyPlan(runs, models, samples, models * samples * looks * each)


def _from_finished(finished: list[dict[str, Any]], recipe: Recipe) -> Cost | None:
    wanted = cost_of(recipe)
    rows = [row for row in finished if row.get("cost") == wanted and row.get("steps")]
    if not rows:
        return None
    steps, seconds = sum(row["steps"] for row in rows), sum(row["seconds"] for row in rows)
    return Cost(0.0, seconds / steps, "finished runs")


def _from_steps(recipe: Recipe) -> Cost:
    """Time one step and four on the recipe's first images; again if the four seem to cost no more."""
    short, long = _probe(recipe, 1), _probe(recipe, _PROBED)
    if long <= short:  # something else disturbed one of them
        short, long = min(short, _probe(recipe, 1)), max(long, _probe(recipe, _PROBED))
    if long <= short:
        return Cost(0.0, long / _PROBED, "real steps")
    step = (long - short) / (_PROBED - 1)
    return Cost(max(short - step, 0.0), step, "real steps")


def _probe(recipe: Recipe, steps: int) -> float:
    """Return the seconds of a hardening of so many steps, each an epoch of one batch."""
    source = open_source(recipe)
    content = recipe.model_dump(mode="json")
    content["source"] |= {"limit": min(recipe.batch, len(source.indices)), "per_class": None}
    content |= {
        "epochs": steps,
        # A warm-up of more steps than these would be refused.
        "schedule": content["schedule"] | {"warmup": 0},
        "validation": None,
        "select": "last",
        "checkpoint_every": 10**9,
        "evaluate": None,
    }
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        harden(parse_recipe(content), Path(folder) / "run")
        return time.perf_counter() - started


def in_words(seconds: float) -> str:
    """Return a time as people say it: "12 s", "4 min", "2.5 h"."""
    if seconds < 100:
        return f"{math.ceil(seconds)} s"
    if seconds < 100 * 60:
        return f"{math.ceil(seconds / 60)} min"
    return f"{seconds / 3600:.1f} h"
