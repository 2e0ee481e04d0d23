"""A study: its hardenings run, measured and drawn; the same command again goes on.

OUT/runs/NAME/         a hardening each, as zsrobust harden writes it
OUT/results/           the cells of all models, shared
OUT/held-out/          what each point of an interpolation does on held-out source images
OUT/choices.json       the points chosen by it, written before a target is opened
OUT/times.jsonl        how long finished hardenings took here
OUT/study.json  table.md  figure.svg  figure.png
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from zsrobust.errors import UserError
from zsrobust.evaluation.measure import Notify
from zsrobust.evaluation.statistics import Interval, mean_over_sets
from zsrobust.evaluation.table import CLEAN, ROBUST, EvaluationTable
from zsrobust.files import JsonLines, folder_lock, refuse_others, write_json, write_text
from zsrobust.machine import training_device
from zsrobust.models import Clip, interpolate, load_clip
from zsrobust.report.curves import (
    FIGURE_NAMES,
    Curve,
    CurvePoint,
    Panel,
    draw_lines,
    draw_points,
    draw_trade_off,
    save_figure,
)
from zsrobust.threat import format_eps
from zsrobust.training.loop import SourceData, harden, open_source
from zsrobust.training.recipe import Recipe
from zsrobust.training.run import Run
from zsrobust.training.validation import Scores, kept_scores, open_held_out, validate
from zsrobust.workflows.harden_and_evaluate import check_evaluation, check_head, measure
from zsrobust.workflows.study_recipe import (
    EPS_TESTED,
    SHARED_NAMES,
    TIMES_NAME,
    Choose,
    Combination,
    Study,
)
from zsrobust.workflows.tune import is_tied

_OWN = SHARED_NAMES | {"choices.json", "study.json", "table.md", *FIGURE_NAMES}


@dataclass(frozen=True)
class Place:
    """One measured model at one eps."""

    labels: dict[str, str]
    """Axis -> label, "eps tested" among them where there are several; empty but for it: a model before
    hardening."""
    model: str
    """Its spec."""
    eps: float
    clean: Interval
    """Mean over the sets, in [0, 1]."""
    robust: Interval
    """Of the union of the attacks."""
    sets: int
    weights: str
    """The model's fingerprint, as cells have it."""
    chosen: bool = False
    hardened: bool = True

    def row(self) -> dict[str, Any]:
        """Return it as JSON."""
        return {
            "labels": self.labels,
            "model": self.model,
            "weights": self.weights,
            "hardened": self.hardened,
            "eps": self.eps,
            "sets": self.sets,
            "clean": self.clean.row(),
            "robust": self.robust.row(),
            "chosen": self.chosen,
        }


@dataclass(frozen=True)
class Outcome:
    """What a study came to."""

    folder: Path
    places: list[Place]
    table: EvaluationTable
    figures: list[Path]
    json: dict[str, Any]
    """What study.json holds."""


@dataclass(frozen=True)
class Chosen:
    """A point of one interpolation."""

    share: float
    reason: str
    scores: dict[float, Scores]

    def to_json(self, command: str) -> dict[str, Any]:
        """Return curve and choice on held-out source images."""
        return {
            "at": self.share,
            "reason": self.reason,
            "held_out": [{"at": a, **self.scores[a].row()} for a in sorted(self.scores)],
            "command": command,
        }


def run_study(
    study: Study,
    combinations: Sequence[Combination],
    out: str | Path,
    *,
    progress: bool = False,
    notify: Notify | None = None,
) -> Outcome:
    """Harden, choose, measure and draw; what is there already is not done again.

    Args:
        study: see `load_study`.
        combinations: its hardenings.
        out: the study's folder.
        progress: draw progress bars on the terminal.
        notify: called with one line where something deserves saying.

    Raises:
        UserError: as `harden` and `evaluate`; a mistake in the sets shows before the first hardening.
        EnvironmentFault: if the folder cannot be written or another process works in it.
    """
    folder = Path(out)
    refuse_other_study(study, folder)
    check_study(study, combinations)
    return run_checked_study(study, combinations, folder, folder, progress=progress, notify=notify)


def run_checked_study(
    study: Study,
    combinations: Sequence[Combination],
    folder: Path,
    shared: Path,
    *,
    progress: bool = False,
    notify: Notify | None = None,
) -> Outcome:
    """Do what `run_study` does, of a study that `refuse_other_study` and `check_study` let pass.

    Args:
        study: as in `run_study`.
        combinations: as in `run_study`.
        folder: the study's own.
        shared: where runs, cells, held-out scores and times lie. Several studies may share them, one after
            the other.
        progress: as in `run_study`.
        notify: as in `run_study`.
    """
    with folder_lock(folder):
        runs = {
            one.folder: _harden(one, shared, progress, notify) for one in _each_run(combinations)
        }
        rule = study.choose or Choose()
        chosen: dict[str, Chosen] = {}
        if study.mix_axis is not None:
            _refuse_other_rule(folder, rule)
            chosen = {
                one.folder: _choose(study, one, runs[one.folder], rule, shared)
                for one in _each_run(combinations)
            }
        choices = {
            name: found.to_json(_mix_command(runs[name], found.share))
            for name, found in chosen.items()
        }
        if chosen:
            write_json(folder / "choices.json", {"rule": asdict_rule(rule), "runs": choices})
        table, places = _measure(study, combinations, runs, chosen, shared, progress, notify)
        figures = save_figure(draw(study, places), folder)
        write_text(folder / "table.md", markdown(study, places))
        record = {
            "study": study.model_dump(mode="json"),
            "measured_on": "targets" if _has_targets(table) else "held-out source images",
            "runs": {
                one.folder: {"labels": one.labels, "recipe": one.recipe.model_dump(mode="json")}
                for one in _each_run(combinations)
            },
            "chosen": choices,
            "places": [place.row() for place in places],
            "table": table.to_json(),
        }
        write_json(folder / "study.json", record)
    return Outcome(folder, places, table, figures, record)


def check_study(study: Study, combinations: Sequence[Combination]) -> None:
    """Open every set, so that no hour of training goes before a mistake shows.

    Raises:
        UserError: as `harden` and `evaluate` would.
    """
    check_evaluation(study.evaluate)
    for one in _each_run(combinations):
        check_head(one.recipe, study.evaluate)
        source = open_source(one.recipe)
        if study.mix_axis is not None:
            open_held_out(one.recipe, source)


def refuse_other_study(study: Study, folder: Path) -> None:
    """Refuse a folder that holds another study, or something that is none.

    Raises:
        UserError: then.
    """
    refuse_others(folder, _OWN, "an earlier study")
    record = folder / "study.json"
    if record.is_file():
        try:
            before = json.loads(record.read_text("utf-8"))["study"]["name"]
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{record} is damaged: delete it, it is then written anew from runs and cells."
            ) from error
        if before != study.name:
            raise UserError(f"{folder} holds study {before!r}: name another --out.")


def _refuse_other_rule(folder: Path, rule: Choose) -> None:
    """Refuse a rule that was set after the targets could be looked at (traps 36).

    Raises:
        UserError: if points were chosen here by another one.
    """
    record = folder / "choices.json"
    if not record.is_file():
        return
    try:
        stored = json.loads(record.read_text("utf-8"))["rule"]
        before = (stored.get("by", "robust"), float(stored["clean_loss"]))
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{record} is damaged: delete it, it is then written anew.") from error
    if before != (rule.by, rule.allowed_loss):
        raise UserError(
            f"{folder} holds points chosen with choose.by {before[0]}, clean_loss {before[1]:g}, got {rule.by}, "
            f"{rule.allowed_loss:g}: the targets may have been seen since; keep the rule, or name another --out."
        )


def asdict_rule(rule: Choose) -> dict[str, Any]:
    """Return the rule of choice in numbers and words."""
    if rule.by == "sum":
        words = (
            "on held-out source images: the largest sum of clean and robust accuracy; of equal ones the "
            "nearest to the model before hardening"
        )
        return {"by": rule.by, "clean_loss": rule.allowed_loss, "in_words": words}
    return {
        "by": rule.by,
        "clean_loss": rule.allowed_loss,
        "in_words": "on held-out source images: of the points whose clean accuracy is at most "
        f"{100 * rule.allowed_loss:g} points below the model before hardening, those tied with the highest "
        "robust accuracy within two standard errors of the paired difference; of these the nearest to the "
        "model before hardening",
    }


def choose_share(scores: dict[float, Scores], rule: Choose) -> tuple[float, str]:
    """Return the share that the rule chooses, and why.

    Args:
        scores: share -> scores on the same held-out source images; 0 is the model before hardening.
        rule: how much clean accuracy may be lost.
    """
    if rule.by == "sum":
        best = max(sorted(scores), key=lambda a: (scores[a].clean + scores[a].robust, -a))
        total = f"{100 * scores[best].clean:.1f}% + {100 * scores[best].robust:.1f}%"
        return best, f"the largest sum of clean and robust accuracy, {total}"
    least = scores[0.0].clean - rule.allowed_loss - 1e-12
    allowed = [a for a in sorted(scores) if scores[a].clean >= least]
    best = max(allowed, key=lambda a: (scores[a].robust, -a))
    tied = [a for a in allowed if a == best or is_tied(scores[best], scores[a], "robust")]
    share = min(tied)
    kept = f"{len(allowed)} of {len(scores)} points lose at most {100 * rule.allowed_loss:g} points of clean"
    if share == best:
        return (
            share,
            f"{kept}; the highest robust accuracy of them, {100 * scores[best].robust:.1f}%",
        )
    return share, (
        f"{kept}; {best:g} has the highest robust accuracy of them, {100 * scores[best].robust:.1f}%, and "
        f"{share:g} is tied with it and nearest to the model before hardening"
    )


def _each_run(combinations: Sequence[Combination]) -> list[Combination]:
    """Return one combination of each folder: two places may share a hardening."""
    return list({one.folder: one for one in reversed(combinations)}.values())[::-1]


def _harden(one: Combination, folder: Path, progress: bool, notify: Notify | None) -> Run:
    place = folder / "runs" / one.folder
    before = Run(place, one.recipe)
    if before.complete:
        return harden(one.recipe, place)
    whole = not before.checkpoint.is_file()
    started = time.perf_counter()
    run = harden(one.recipe, place, progress=progress, notify=notify)
    seconds = time.perf_counter() - started
    steps = run.read_log("step")
    if whole and steps:  # of one that went on, the time before is not known
        with JsonLines(folder / TIMES_NAME) as log:
            log.append(
                {
                    "run": one.folder,
                    "steps": steps[-1]["steps_done"],
                    "seconds": round(seconds, 3),
                    "cost": cost_of(one.recipe),
                }
            )
    return run


def cost_of(recipe: Recipe) -> dict[str, Any]:
    """Return what the time of one step depends on, as JSON."""
    return recipe.model_dump(
        mode="json",
        include={"model", "adaptation", "batch", "micro_batch", "precision", "device", "devices"}
        | {"threads", "workers"},
    ) | {"objective": recipe.objective.name, "adversary_steps": recipe.adversary.steps}


def _choose(study: Study, one: Combination, run: Run, rule: Choose, folder: Path) -> Chosen:
    """Score each point on held-out source images, as the recipe's validation block says."""
    axis, recipe = study.mix_axis, one.recipe
    if axis is None or recipe.validation is None:
        raise UserError(f"study {study.name} has no interpolation with a validation block.")
    source = open_source(recipe)
    device = training_device(recipe.device, "a study")
    before, after = load_clip(recipe.model, device), load_clip(run.spec, device)
    scores: dict[float, Scores] = {}
    for share in axis.mix:
        mixed = interpolate(before, after, share)
        asked = recipe.determining() | {
            "validation": recipe.validation.model_dump(mode="json"),
            "fingerprint": mixed.fingerprint,
        }
        file = folder / "held-out" / one.folder / f"at-{share:g}.json"
        scores[share] = kept_scores(file, asked, partial(_score, recipe, mixed, source))
    return Chosen(*choose_share(scores, rule), scores)


def _score(recipe: Recipe, mixed: Clip, source: SourceData) -> Scores:
    found = validate(recipe, mixed, source, None)
    if found.scored_by in ("head", "dictionary"):  # none is mixed: the class texts scored
        return replace(found, scored_by="texts")
    return found


def _mix_command(run: Run, share: float) -> str:
    return f"zsrobust mix {run.recipe.model} {run.spec} --at {share:g} --out DIR"


def _measure(
    study: Study,
    combinations: Sequence[Combination],
    runs: dict[str, Run],
    chosen: dict[str, Chosen],
    folder: Path,
    progress: bool,
    notify: Notify | None,
) -> tuple[EvaluationTable, list[Place]]:
    """Measure every model of the study, each once, and put them in their places."""
    device = combinations[0].recipe.device
    axis = study.mix_axis

    def measured(models: Sequence[str | Run | Clip]) -> EvaluationTable:
        return measure(
            models, study.evaluate, folder / "results", device, notify=notify, progress=progress
        )

    names: list[tuple[dict[str, str], str, bool, bool]] = []  # labels, model, chosen, hardened
    if axis is None:
        # Before hardening there is no head.
        unhardened = [] if study.evaluate.head else [one.recipe.model for one in combinations]
        bases = list(dict.fromkeys(unhardened))
        table = measured([*bases, *(runs[one.folder] for one in _each_run(combinations))])
        names += [({}, base, False, False) for base in bases]
        names += [(one.labels, runs[one.folder].spec, False, True) for one in combinations]
    else:
        table = EvaluationTable(suite="", request={})
        for one in _each_run(combinations):
            before, after = load_clip(one.recipe.model), load_clip(runs[one.folder].spec)
            for share in axis.mix:
                mixed = interpolate(before, after, share)  # one at a time: each is a whole model
                part = measured([mixed])
                table = replace(part, rows=[*table.rows, *part.rows])
                for same in combinations:
                    if same.folder == one.folder:
                        labels = {**same.labels, axis.name: f"{share:g}"}
                        picked = chosen[one.folder].share == share
                        names.append((labels, mixed.spec, picked, share > 0))
    several = len(study.evaluate.eps) > 1
    places = []
    for eps in study.evaluate.eps:
        for labels, model, picked, hardened in names:
            rows = table.of(model, eps) or table.of(model, eps, source=True)
            clean, robust = (
                mean_over_sets([row.values(c) for row in rows]) for c in (CLEAN, ROBUST)
            )
            weights = str(rows[0].key["weights"])
            tested = {EPS_TESTED: format_eps(eps)} if several else {}
            own = {**labels, **tested}
            places.append(
                Place(own, model, eps, clean, robust, len(rows), weights, picked, hardened)
            )
    return table, places


def _has_targets(table: EvaluationTable) -> bool:
    return any(not row.is_source for row in table.rows)


def draw(study: Study, places: list[Place]) -> Any:
    """Return the figure: which dimension is x, which makes lines, which makes panels."""
    sets = places[0].sets
    threat = f"{study.evaluate.norm}, {', '.join(format_eps(e) for e in study.evaluate.eps)}"
    several = f"mean of {sets} sets" if sets > 1 else "1 set"
    title = f"{study.title or study.name}\n{study.evaluate.sets}, {several}, {threat}"
    if study.figure.kind == "points":
        unhardened, hardened = (
            [CurvePoint(0, _name(p), p.clean, p.robust) for p in places if p.hardened == kind]
            for kind in (False, True)
        )
        return draw_points(hardened, unhardened, title=title)
    dimensions = study.dimensions
    axis = study.mix_axis
    x = axis.name if axis is not None else study.figure.x or dimensions[0]
    rest = [name for name in dimensions if name != x]
    series = study.figure.series or (rest[0] if rest else None)
    by = next((name for name in rest if name != series), None)
    positions = study.positions_of(x)
    labels = study.labels_of(x)
    stands = {
        label: float(position)
        for label, position in zip(labels, positions or range(len(labels)), strict=True)
    }
    panels = []
    for panel in study.labels_of(by) if by else [""]:
        inside = [p for p in places if by is None or p.labels.get(by) == panel]
        curves = []
        for colour, name in enumerate(study.labels_of(series) if series else [""]):
            own = [p for p in inside if x in p.labels]
            own = [p for p in own if series is None or p.labels.get(series) == name]
            points = [
                CurvePoint(stands[p.labels[x]], p.labels[x], p.clean, p.robust, p.chosen)
                for p in own
            ]
            curves.append(Curve(f"{series} {name}" if series else "", points, colour))
        before = [p for p in inside if x not in p.labels]
        reference = []
        for p in before:
            tested = p.labels.get(EPS_TESTED)
            shown = f", {EPS_TESTED} {tested}" if tested and series == EPS_TESTED else ""
            colour_of = study.labels_of(EPS_TESTED).index(tested) if tested and shown else None
            name = f"before: {p.model}{shown}"
            reference.append(CurvePoint(0, name, p.clean, p.robust, colour=colour_of))
        title_of = f"{by} {panel}" if by else ""
        panels.append(Panel(title_of, curves, reference, one_clean=series == EPS_TESTED))
    if axis is not None:
        return draw_trade_off(panels, title=title)
    log = study.figure.scale == "log" and positions is not None
    return draw_lines(panels, title=title, x_label=x, log=log, named=positions is None)


def _name(place: Place) -> str:
    return ", ".join(place.labels.values()) or f"before: {place.model}"


def markdown(study: Study, places: list[Place]) -> str:
    """Return the study's numbers as a Markdown table, a row a model and eps."""
    axes = [axis.name for axis in study.axes]
    sets = places[0].sets
    several = f"mean of {sets} sets" if sets > 1 else "1 set"
    attacks = ", ".join(name for name in study.evaluate.attacks if name != CLEAN)
    lines = [
        f"**{study.title or study.name}**: accuracy in %, {several} "
        f"({study.evaluate.sets}), 95% interval; robust is the union of {attacks}, "
        f"{study.evaluate.norm}.",
        "",
        f"| {' | '.join([*axes, 'eps tested', 'n', 'clean', 'robust'])} |",
        f"|{'---|' * (len(axes) + 4)}",
    ]
    for place in places:
        cells = [place.labels.get(name, "") for name in axes]
        if not any(cells):
            cells[0] = f"before: {place.model}"
        cells += [format_eps(place.eps), str(place.clean.samples)]
        cells += [_percent(place.clean), _percent(place.robust)]
        if place.chosen:
            cells[-1] += " (chosen)"
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _percent(interval: Interval) -> str:
    return f"{100 * interval.value:.1f} [{100 * interval.low:.1f}, {100 * interval.high:.1f}]"
