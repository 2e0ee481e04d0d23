"""One self-contained HTML file over an evaluation: from the headline down to every setting.

The page loads nothing: style, plots and pictures stand in it, and there is no script. Whatever comes from
outside (class names, ids, specs) is escaped by the template.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from zsrobust import __version__, data
from zsrobust.data.overlap import near_duplicates
from zsrobust.errors import UserError
from zsrobust.evaluation.examples import AttackedExample, Example
from zsrobust.evaluation.statistics import Interval
from zsrobust.evaluation.table import CLEAN, ROBUST, EvaluationTable, Row
from zsrobust.evaluation.trust import ABOUT
from zsrobust.files import write_text
from zsrobust.objectives import SETTINGS, objective_class
from zsrobust.report import plots
from zsrobust.report.pictures import Picture, draw
from zsrobust.report.published import published_lines
from zsrobust.report.summary import (
    Pair,
    Summary,
    between,
    describe_plan,
    flag_places,
    label_models,
    percent,
    points,
    points_between,
    summarise,
)
from zsrobust.threat import format_eps
from zsrobust.training import Run
from zsrobust.training.recipe import Recipe
from zsrobust.training.schedule import warmup_steps

_LISTED = 60  # near-duplicate class names that are written out


def build_report(
    table: EvaluationTable,
    out: Path,
    *,
    title: str,
    about: str = "",
    labels: Mapping[str, str] | None = None,
    runs: Sequence[Run] = (),
    examples: Sequence[Example] = (),
    notes: Sequence[str] = (),
    commands: Sequence[str] = (),
) -> Path:
    """Write the report of a table and return its path.

    Args:
        table: as `evaluate` returns it; the first model is the one that others are compared with.
        out: the HTML file; replaced if it is there.
        title: of the page.
        about: what was done, in a sentence or two below the title.
        labels: spec -> a name for people, such as "CLIP"; default the spec's short name.
        runs: hardenings whose recipes are shown, in full; that they made the models is for the caller to know.
        examples: as `collect_examples` makes them, of the same models.
        notes: sentences that stand under the table, such as what was left out.
        commands: that made this, a line each.

    Raises:
        UserError: if the table has no rows, or a folder stands at `out`.
        EnvironmentFault: if the file cannot be written.
    """
    if not table.rows:
        raise UserError("the table has no rows: measure at least one model on one set first.")
    if out.is_dir():
        raise UserError(f"{out} is a folder: name a file, for instance {out / 'report.html'}.")
    table = _with_shown_sets(table, out.parent)
    names = _page_names(table, labels, out.parent)
    summaries = summarise(table, names)
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    filters: dict[str, Callable[..., str]] = {
        "percent": percent,
        "between": between,
        "points": points,
        "points_between": points_between,
        "eps": format_eps,
        "breakable": _breakable,
    }
    environment.filters.update(filters)
    template = (resources.files("zsrobust.report") / "template.html").read_text("utf-8")
    text = environment.from_string(template).render(
        title=title,
        about=about,
        version=__version__,
        table=table,
        labels=names,
        specs={spec: _shown_spec(spec, out.parent) for spec in table.models},
        colours={spec: f"m{i % plots.MODELS}" for i, spec in enumerate(table.models)},
        blocks=[_block(table, summary, names, i) for i, summary in enumerate(summaries)],
        curves=_curves(summaries),
        examples=[_shown(example, names, out.parent) for example in examples],
        published=published_lines(table, names, runs),
        protocol=_protocol(table, names, runs, out.parent),
        about_flags=ABOUT,
        notes=[_shown_note(note, table.models, out.parent) for note in notes],
        commands=commands,
    )
    write_text(out, text)
    return out


def _shown_path(path: Path, folder: Path) -> str:
    """Return a path as the page may show it: from the page's folder where it lies below, else its name.

    Where things lie on a machine is nobody's business, and means nothing on another one.
    """
    whole, around = path.expanduser().resolve(), folder.resolve()
    return whole.relative_to(around).as_posix() if around in whole.parents else whole.name


def _shown_spec(spec: str, folder: Path) -> str:
    """Return the spec of a model or a set with its folder or file as the page may show it."""
    kind, colon, path = spec.partition(":")
    if colon and path and kind in ("run", "local-dir", "folder", "wds"):
        return f"{kind}:{_shown_path(Path(path), folder)}"
    file, at, base = spec.rpartition("@")
    if at and file.startswith(("/", "~")):
        return f"{Path(file).name}@{_shown_spec(base, folder)}"
    return spec


def _page_names(
    table: EvaluationTable, labels: Mapping[str, str] | None, folder: Path
) -> dict[str, str]:
    """Return spec -> the model's name on the page; where that is the spec, as the page may show it."""
    names = {
        spec: _shown_spec(spec, folder) if name == spec else name
        for spec, name in label_models(table, labels).items()
    }
    return _told_apart(names)


def _told_apart(shown: Mapping[str, str]) -> dict[str, str]:
    """Return the same, the place behind each of several equal names: runs of one name in two folders outside."""
    found = list(shown.values())
    return {
        spec: f"{name} ({number})" if found.count(name) > 1 else name
        for number, (spec, name) in enumerate(shown.items(), start=1)
    }


def _with_shown_sets(table: EvaluationTable, folder: Path) -> EvaluationTable:
    """Return a table whose sets, where a spec is their title, have it as the page may show it."""
    titles = dict.fromkeys(row.image_set for row in table.rows)
    shown = _told_apart({title: _shown_spec(title, folder) for title in titles})
    rows = [replace(row, image_set=shown[row.image_set]) for row in table.rows]
    return EvaluationTable(table.suite, table.request, rows)


def _shown_note(note: str, specs: Sequence[str], folder: Path) -> str:
    """Return a note with its model specs as the page may show them."""
    for spec in sorted(specs, key=len, reverse=True):
        note = note.replace(spec, _shown_spec(spec, folder))
    return re.sub(
        r"\b(run|local-dir):(/[^\s,;:]*[^\s,;:.])",
        lambda found: f"{found[1]}:{_shown_path(Path(found[2]), folder)}",
        note,
    )


def _breakable(name: str) -> Markup:
    """Return a name, escaped, that may break after a slash or an underscore: set names are long words."""
    return Markup("<wbr>").join(re.split(r"(?<=[/_])", name))


@dataclass(frozen=True, slots=True)
class Number:
    """One cell of the table."""

    accuracy: Interval
    difference: Interval | None
    """To the first model, paired; None for the first model itself."""
    flags: list[str]
    """Names of the flags raised for this column."""


@dataclass(frozen=True, slots=True)
class Line:
    """One row of the table: a set, or the mean."""

    name: str
    samples: int
    classes: int | None
    clean: list[Number]
    robust: list[Number]
    role: str
    """"target", "mean" or "source"."""


@dataclass(frozen=True, slots=True)
class Block:
    """What the page holds for one eps."""

    summary: Summary
    specs: list[str]
    lines: list[Line]
    each_attack: list[tuple[str, list[list[Interval]]]]
    """(set or mean, a list a model of an accuracy an attack), where there are several attacks."""
    differences: list[Pair]
    """Of the means, every model to every other, where there is more to say than the differences to the first."""
    flags: dict[str, list[str]]
    resolution: str
    clean_plot: Markup | None
    robust_plot: Markup | None
    scatter: Markup | None


def _block(
    table: EvaluationTable, summary: Summary, labels: Mapping[str, str], number: int
) -> Block:
    eps = summary.eps
    specs = [
        spec for spec in table.models if any(r.eps == eps for r in table.rows if r.model == spec)
    ]
    lines = [*_lines(table, eps, specs, source=False)]
    if summary.models:
        lines.append(_mean_line(table, summary))
    lines += _lines(table, eps, specs, source=True)
    return Block(
        summary=summary,
        specs=specs,
        lines=lines,
        each_attack=_each_attack(table, summary),
        differences=_differences(summary),
        flags=flag_places(table, eps, labels),
        resolution=_resolution([row for row in table.rows if row.eps == eps]),
        clean_plot=_bars(lines, summary, CLEAN, f"c{number}"),
        robust_plot=_bars(lines, summary, ROBUST, f"r{number}") if summary.attacks else None,
        scatter=_scatter(table, summary, f"s{number}"),
    )


def _resolution(rows: list[Row]) -> str:
    """Return where the ball lies, in words."""
    found = []
    for row in rows:
        size = row.key.get("preprocess", {}).get("size")
        if row.resolution == "native":
            text = "each set's own size"
        elif size:
            text = f"{size[1]} × {size[0]} pixels"  # noqa: RUF001 - a times sign is meant
        else:
            text = "the model's size"
        found.append(text)
    return " or ".join(dict.fromkeys(found))


def _lines(
    table: EvaluationTable, eps: float | None, specs: list[str], *, source: bool
) -> list[Line]:
    base = table.models[0]
    lines = []
    for row in table.of(specs[0], eps, source=source):
        clean: list[Number] = []
        robust: list[Number] = []
        for spec in specs:
            own = next(
                r for r in table.of(spec, eps, source=source) if r.image_set == row.image_set
            )
            for column, numbers in ((CLEAN, clean), (ROBUST, robust)):
                if column == ROBUST and not own.robust:
                    continue
                difference = None
                if spec != base and base in specs:
                    difference = table.set_difference(base, spec, eps, row.image_set, column)
                numbers.append(Number(own.accuracy(column), difference, own.flags_at(column)))
        role = "source" if source else "target"
        lines.append(Line(row.image_set, len(row.ids), row.classes, clean, robust, role))
    return lines


def _mean_line(table: EvaluationTable, summary: Summary) -> Line:
    clean, robust = [], []
    for model in summary.models:
        difference = model.difference
        clean.append(Number(model.clean, difference.clean if difference else None, []))
        if model.robust is not None:
            robust.append(Number(model.robust, difference.robust if difference else None, []))
    name = f"mean of {summary.sets} sets" if summary.sets > 1 else "mean of the one set"
    return Line(name, summary.samples, None, clean, robust, "mean")


def _differences(summary: Summary) -> list[Pair]:
    if not summary.pairs:
        return []
    first = summary.models[0]
    to_first = [
        Pair(model.label, first.label, model.difference.clean, model.difference.robust)
        for model in summary.models
        if model.difference is not None
    ]
    return [*to_first, *summary.pairs]


def _each_attack(
    table: EvaluationTable, summary: Summary
) -> list[tuple[str, list[list[Interval]]]]:
    if len(summary.attacks) < 2 or not summary.models:
        return []
    eps = summary.eps
    columns = {model.spec: table.of(model.spec, eps) for model in summary.models}
    lines = []
    for i, row in enumerate(columns[summary.models[0].spec]):
        cells = [[rows[i].accuracy(a) for a in summary.attacks] for rows in columns.values()]
        lines.append((row.image_set, cells))
    means = [[table.mean(spec, eps, a) for a in summary.attacks] for spec in columns]
    return [*lines, (f"mean of {summary.sets} sets", means)]


def _bars(lines: list[Line], summary: Summary, column: str, prefix: str) -> Markup | None:
    if not summary.models:
        return None
    ordered = sorted(lines, key=lambda line: ("mean", "target", "source").index(line.role))
    groups = []
    for line in ordered:
        numbers = line.clean if column == CLEAN else line.robust
        name = f"{line.name} (source, in no mean)" if line.role == "source" else line.name
        values = [number.accuracy for number in numbers]
        groups.append(plots.BarGroup(name, values, line.role == "mean"))
    what = "Right on clean images" if column == CLEAN else f"Right under attack ({summary.threat})"
    means = "; ".join(
        f"{model.label} {percent(interval)}"
        for model in summary.models
        if (interval := model.clean if column == CLEAN else model.robust) is not None
    )
    alt = f"Bars of accuracy per set: {what.lower()}. Means: {means}. The table holds every number."
    colours = [model.number for model in summary.models]
    return Markup(plots.bars(groups, colours, what, alt, prefix))  # noqa: S704 - it escapes its texts


def _scatter(table: EvaluationTable, summary: Summary, prefix: str) -> Markup | None:
    found = []
    for model in summary.models:
        if model.robust is None:
            continue
        sets = [
            (row.accuracy(CLEAN).value, row.accuracy(ROBUST).value)
            for row in table.of(model.spec, summary.eps)
        ]
        found.append(plots.Point(model.label, model.number, model.clean, model.robust, sets))
    if not found:
        return None
    where = "; ".join(
        f"{p.name} at {percent(p.clean)} clean, {percent(p.robust)} robust" for p in found
    )
    alt = f"Clean accuracy against robust accuracy, a point a model: {where}."
    return Markup(plots.clean_against_robust(found, alt, prefix))  # noqa: S704 - as above


def _curves(summaries: list[Summary]) -> Markup | None:
    """Return mean accuracy against eps, where several radii of one norm were measured; else None."""
    attacked = [summary for summary in summaries if summary.eps is not None and summary.attacks]
    if len({summary.eps for summary in attacked}) < 2:
        return None
    means: dict[str, dict[float, Interval]] = {}
    models = {model.label: model for summary in attacked for model in summary.models}
    for summary in sorted(attacked, key=lambda summary: summary.eps or 0.0):
        for model in summary.models:
            if model.robust is not None and summary.eps is not None:
                own = means.setdefault(model.label, {0.0: model.clean})
                own[summary.eps] = model.robust
    curves = [
        plots.Curve(label, models[label].number, sorted(own.items()))
        for label, own in means.items()
    ]
    told = "; ".join(
        f"{curve.name}: "
        + ", ".join(f"{percent(mean)} at {format_eps(eps)}" for eps, mean in curve.means)
        for curve in curves
    )
    alt = f"Mean accuracy against eps, the clean one at 0. {told}."
    return Markup(plots.against_eps(curves, alt, "e"))  # noqa: S704 - it escapes its texts


@dataclass(frozen=True, slots=True)
class ShownAnswer:
    """One model's part of an example."""

    label: str
    spec: str
    grey: Picture | None
    adversarial: Picture
    example: AttackedExample


@dataclass(frozen=True, slots=True)
class ShownExample:
    """One example as the page shows it."""

    example: Example
    clean: Picture
    answers: list[ShownAnswer]
    magnified: str
    shrunk_from: str


def _shown(example: Example, labels: Mapping[str, str], folder: Path) -> ShownExample:
    drawn = draw(example)
    answers = [
        ShownAnswer(
            label=labels.get(one.model) or _shown_spec(one.model, folder),
            spec=one.model,
            grey=grey,
            adversarial=adversarial,
            example=one,
        )
        for one, (grey, adversarial) in zip(example.attacked, drawn.attacked, strict=True)
    ]
    size = drawn.shrunk_from
    return ShownExample(
        example=example,
        clean=drawn.clean,
        answers=answers,
        magnified=f"{drawn.magnified:.4g}",
        shrunk_from="" if size is None else f"{size[1]} × {size[0]}",  # noqa: RUF001
    )


@dataclass(frozen=True, slots=True)
class Protocol:
    """Every setting, as lists of (name, value)."""

    request: list[tuple[str, str]]
    attacks: list[tuple[str, list[tuple[str, str]]]]
    models: list[tuple[str, str, list[tuple[str, str]]]]
    """(label, spec, settings)."""
    sets: list[Row]
    runs: list[tuple[str, str, str]]
    """(name, what came of it, recipe as YAML)."""
    overlaps: list[tuple[str, str, str, str]]
    """(set, target class, source class, why)."""
    overlaps_more: int
    overlap_source: str
    """The source set that was compared with; empty where none is known."""
    environments: list[str] = field(default_factory=list)


def _protocol(
    table: EvaluationTable, labels: Mapping[str, str], runs: Sequence[Run], folder: Path
) -> Protocol:
    # What has no value says nothing: cells know no limit, the number of images stands at each set.
    request = [(name, _words(v)) for name, v in table.request.items() if v is not None]
    request = [(n, format_radii(table)) if n == "eps" else (n, v) for n, v in request]
    attacks: dict[str, list[tuple[str, str]]] = {}
    for row in table.rows:
        for name, plan in row.plans.items():
            said = [("in words", describe_plan(plan, row.eps))]
            said += [(key, _words(value)) for key, value in plan.items() if key != "name"]
            label = (
                name
                if len(table.radii) == 1 or row.eps is None
                else f"{name} at {format_eps(row.eps)}"
            )
            attacks.setdefault(label, said)
    sets = {row.image_set: row for row in table.rows}
    environments = [_machine(here) for row in table.rows for here in row.environments]
    source, pairs = _overlaps(table, runs, folder)
    return Protocol(
        request=request,
        attacks=list(attacks.items()),
        models=[(labels[spec], spec, _model_settings(table, spec)) for spec in table.models],
        sets=list(sets.values()),
        runs=[_run(run, folder) for run in runs],
        overlaps=pairs[:_LISTED],
        overlaps_more=max(0, len(pairs) - _LISTED),
        overlap_source=source,
        environments=list(dict.fromkeys(environments)),
    )


def format_radii(table: EvaluationTable) -> str:
    """Return the radii of a table as people write them."""
    return ", ".join(format_eps(eps) for eps in table.radii if eps is not None) or "none"


def _words(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.7g}"
    if isinstance(value, list | tuple):
        return ", ".join(_words(one) for one in value)
    return "none" if value is None else str(value)


def _model_settings(table: EvaluationTable, spec: str) -> list[tuple[str, str]]:
    row = next(row for row in table.rows if row.model == spec)
    if not row.key:
        return []
    preprocess = {k: v for k, v in row.key["preprocess"].items() if k != "resolution"}
    scale = row.key["texts"].get("scale")
    return [
        ("fingerprint", str(row.key["weights"])),
        *((f"image {name}", _words(value)) for name, value in preprocess.items()),
        *([("logit scale", _words(scale))] if scale is not None else []),
    ]


def _machine(here: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in here.items())


def _run(run: Run, folder: Path) -> tuple[str, str, str]:
    """Return a run's name, what is to be said of it, and its recipe as resolved."""
    said = [f"written to {_shown_path(run.folder, folder)}"]
    started = run.read_log("start")
    start = started[-1] if started else {}
    if "trained_numbers" in start:
        said.append(f"{start['trained_numbers']:,} trained numbers")
    objective = run.recipe.objective
    if objective_class(objective.name).trains_head:
        begins = "as a probe of clean features" if objective.head_start == "probe" else "at random"
        said.append(
            f"its linear head starts {begins}, is trained along, and is no part of the model measured here"
        )
    for row in run.read_log("validation")[-1:]:
        said.append(
            f"on {row['samples']} held-out source images {100 * row['clean']:.1f}% clean and "
            f"{100 * row['robust']:.1f}% robust"
        )
    return run.recipe.name, "; ".join(said), _recipe_text(run.recipe, start, folder)


def _recipe_text(recipe: Recipe, start: Mapping[str, Any], folder: Path) -> str:
    """Return a recipe as YAML: what null stood for, as a value where it has one, else beside it.

    Args:
        recipe: as the run has it.
        start: the last start line of the run's log; what it does not say stays in words.
        folder: of the page.
    """
    own = SETTINGS[recipe.objective.name]
    trains_head = "head_start" in own
    steps = start.get("steps")
    stands_for: dict[str, Any] = {
        "validation.set": recipe.source.set,
        "source.templates": start.get("templates"),
        "adversary.step_size": recipe.step_size(),
        "objective.head_start": "random" if trains_head else None,
        "objective.adversary": "none" if "adversary" in own else None,
        "objective.dictionary": "fixed" if "dictionary" in own else None,
        "schedule.warmup": warmup_steps(None, steps) if isinstance(steps, int) else None,
        "threads": start.get("threads"),
    }
    no_tau = "none, the logits are those of a linear head" if trains_head else "none"
    own_tau = "the model's own, 1 / exp(logit scale)"
    in_words = {
        "source.limit": "all",
        "source.per_class": "all",
        "evaluate.resolution": "each set's own",
        "source.templates": "the set's own, else 'a photo of a {}.'",
        "validation": "none",
        "objective.temperature": own_tau if "temperature" in own else no_tau,
        "objective.head_start": "no head",
        "objective.adversary": "as the objective has it",
        "objective.dictionary": "none",
        "objective.classnames": "the source's own, if any",
        "threat.resolution": "the source set's own",
        "schedule.warmup": "min(1000, 10% of the steps)",
        "micro_batch": "no gradient accumulation",
        "threads": "as they were",
        "evaluate": "not with the hardening",
        "evaluate.limit": "all",
        "evaluate.templates": "each set's own",
    }

    def resolve(value: Any, path: str) -> Any:
        if isinstance(value, dict):
            return {k: resolve(v, f"{path}.{k}" if path else k) for k, v in value.items()}
        if value is None:
            value = stands_for.get(path)
        return f"__{path}__" if value is None and path in in_words else value

    content = resolve(recipe.model_dump(mode="json"), "")
    content["model"] = _shown_spec(recipe.model, folder)
    for part, key in (("source", "set"), ("validation", "set"), ("evaluate", "sets")):
        if isinstance(content[part], dict):
            given = str(content[part][key]).split(",")
            content[part][key] = ",".join(_shown_spec(spec, folder) for spec in given)
    text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
    for path, words in in_words.items():
        text = text.replace(f": __{path}__\n", f": null  # {words}\n")
    return text


def _overlaps(
    table: EvaluationTable, runs: Sequence[Run], folder: Path
) -> tuple[str, list[tuple[str, str, str, str]]]:
    """Return the source sets, and their near-duplicate class names among the targets (traps 45)."""
    sources: dict[str, list[str]] = {}
    for row in table.rows:
        if row.is_source and row.key:
            sources[row.image_set] = list(row.key["texts"].get("classnames") or [])
    for run in runs:
        name = run.recipe.source.set
        if name not in sources:
            try:
                sources[name] = data.open_set(name, run.recipe.source.split).classnames or []
            except UserError:  # not on this machine: a report is of cells, it needs no images
                continue
    sources = {name: classes for name, classes in sources.items() if classes}
    targets = {row.image_set: row for row in table.rows if not row.is_source and row.key}
    pairs = []
    for row in targets.values():
        names = list(row.key["texts"].get("classnames") or [])
        for classes in sources.values():
            for target, source, why in near_duplicates(classes, names):
                pairs.append((row.image_set, target, source, why))
    shown = ", ".join(_shown_spec(name, folder) for name in sources)
    return shown, list(dict.fromkeys(pairs))
