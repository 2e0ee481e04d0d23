"""What a table says, in sentences: the headline, and what to know before believing it."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any, Literal

from zsrobust.errors import UserError
from zsrobust.evaluation.statistics import Interval
from zsrobust.evaluation.table import CLEAN, ROBUST, EvaluationTable, Row
from zsrobust.evaluation.trust import ABOUT, FROM_PROBES
from zsrobust.models import parse_spec
from zsrobust.threat import format_eps


def percent(interval: Interval) -> str:
    """Return "34.0%"."""
    return f"{100 * interval.value:.1f}%"


def between(interval: Interval) -> str:
    """Return "[31.9, 36.1]", in per cent."""
    return f"[{100 * interval.low:.1f}, {100 * interval.high:.1f}]"


def points(value: float) -> str:
    """Return a difference in points with its sign, "+19.8"; what rounds to nothing is "0.0"."""
    text = f"{100 * value:+.1f}".replace("-", "\N{MINUS SIGN}")
    return "0.0" if text[1:] == "0.0" else text


def points_between(interval: Interval) -> str:
    """Return "[+17.9, +21.8]", in points."""
    return f"[{points(interval.low)}, {points(interval.high)}]"


@dataclass(frozen=True, slots=True)
class Difference:
    """A model minus the first one, mean over the target sets, paired."""

    clean: Interval
    robust: Interval | None
    better: int
    """On how many sets the robust accuracy is higher with an interval above 0."""
    worse: int
    """On how many it is lower with an interval below 0."""


@dataclass(frozen=True, slots=True)
class ModelSummary:
    """One model at one eps: means over the target sets."""

    spec: str
    label: str
    number: int
    """Its place among all models of the table, which is its colour."""
    clean: Interval
    robust: Interval | None
    """None where nothing was attacked."""
    difference: Difference | None
    """None for the first model."""

    def headline(self, first: ModelSummary) -> str:
        """Return the model's numbers beside the first one's, a clause without a full stop."""
        difference = self.difference
        if difference is None:
            under = ""
            if self.robust is not None:
                under = (
                    f"{percent(self.robust)} {between(self.robust)} of the images stay right under "
                    "attack; "
                )
            return f"{under}clean accuracy {percent(self.clean)} {between(self.clean)}"
        under = ""
        if self.robust is not None and first.robust is not None and difference.robust is not None:
            under = (
                f"{percent(first.robust)} → {percent(self.robust)} of the images stay right under attack "
                f"({points(difference.robust.value)} points {points_between(difference.robust)}); "
            )
        return (
            f"{under}clean accuracy {percent(first.clean)} → {percent(self.clean)} "
            f"({points(difference.clean.value)} points {points_between(difference.clean)})"
        )


@dataclass(frozen=True, slots=True)
class Pair:
    """Two models of which neither is the first: one minus the other, mean over the target sets, paired."""

    label: str
    other: str
    clean: Interval
    robust: Interval | None

    @property
    def sentence(self) -> str:
        """The differences, without a full stop."""
        robust = ""
        if self.robust is not None:
            robust = f", robust {points(self.robust.value)} {points_between(self.robust)}"
        return (
            f"{self.label} against {self.other}: clean {points(self.clean.value)} "
            f"{points_between(self.clean)}{robust} points"
        )


@dataclass(frozen=True, slots=True)
class Remark:
    """One thing to know before believing a number."""

    kind: Literal["good", "plain", "care"]
    title: str
    text: str


@dataclass(frozen=True, slots=True)
class Summary:
    """What a table says at one eps."""

    eps: float | None
    threat: str
    """"linf, eps 1/255", or "clean images only"."""
    attacks: list[str]
    sets: int
    samples: int
    models: list[ModelSummary]
    """Empty where no target set was measured."""
    pairs: list[Pair]
    """Every two models but the first, the earlier minus the later; empty where the models are too many."""
    remarks: list[Remark]

    @property
    def headlined(self) -> list[ModelSummary]:
        """The models that a headline is written for: all but the one that they are compared with."""
        return self.models[1:] or self.models

    @property
    def headlines(self) -> list[str]:
        """A line each of `headlined`, then one a pair."""
        lines = [f"{model.label}: {model.headline(self.models[0])}" for model in self.headlined]
        return [*lines, *(pair.sentence for pair in self.pairs)]


def label_models(table: EvaluationTable, labels: Mapping[str, str] | None) -> dict[str, str]:
    """Return spec -> name for people: as given, else the spec's short name; never one name for two models."""
    found = {}
    for spec in table.models:
        found[spec] = (labels or {}).get(spec) or _short_name(spec)
    shared = Counter(found.values())
    return {spec: spec if shared[label] > 1 else label for spec, label in found.items()}


def _short_name(spec: str) -> str:
    try:
        return parse_spec(spec).name
    except UserError:  # the run is on another machine; or older cells, which noted no spec
        kind, _, path = spec.partition(":")
        return PurePath(path).name if kind in ("run", "local-dir") else spec


def summarise(table: EvaluationTable, labels: Mapping[str, str]) -> list[Summary]:
    """Return one summary an eps.

    Args:
        table: as `evaluate` returns it.
        labels: spec -> name, of every model (`label_models`).
    """
    return [_summary(table, eps, labels) for eps in table.radii]


def _summary(table: EvaluationTable, eps: float | None, labels: Mapping[str, str]) -> Summary:
    models = [
        _model(table, spec, number, eps, labels[spec])
        for number, spec in enumerate(table.models)
        if table.of(spec, eps)
    ]
    norm = table.request.get("norm")
    threat = "clean images only" if eps is None else f"{norm}, eps {format_eps(eps)}"
    rows = table.of(models[0].spec, eps) if models else []
    attacks = list(dict.fromkeys(name for row in rows for name in row.robust))
    return Summary(
        eps=eps,
        threat=threat,
        attacks=attacks,
        sets=len(rows),
        samples=sum(len(row.ids) for row in rows),
        models=models,
        pairs=_pairs(table, eps, labels),
        remarks=_remarks(table, eps, models, rows, labels) if models else [],
    )


def _model(
    table: EvaluationTable, spec: str, number: int, eps: float | None, label: str
) -> ModelSummary:
    attacked = any(row.robust for row in table.of(spec, eps))
    base = table.models[0]
    difference = None
    if spec != base and table.of(base, eps):
        signs = []
        for row in table.of(spec, eps) if attacked else []:
            one = table.set_difference(base, spec, eps, row.image_set, ROBUST)
            signs.append((one.low > 0) - (one.high < 0))
        difference = Difference(
            clean=table.difference(base, spec, eps, CLEAN),
            robust=table.difference(base, spec, eps, ROBUST) if attacked else None,
            better=signs.count(1),
            worse=signs.count(-1),
        )
    return ModelSummary(
        spec=spec,
        label=label,
        number=number,
        clean=table.mean(spec, eps, CLEAN),
        robust=table.mean(spec, eps, ROBUST) if attacked else None,
        difference=difference,
    )


def _pairs(table: EvaluationTable, eps: float | None, labels: Mapping[str, str]) -> list[Pair]:
    return [
        Pair(
            label=labels[first],
            other=labels[second],
            clean=table.difference(second, first, eps, CLEAN),
            robust=(
                table.difference(second, first, eps, ROBUST)
                if all(row.robust for row in table.of(first, eps))
                else None
            ),
        )
        for first, second in table.shown_pairs(eps)
    ]


def _remarks(
    table: EvaluationTable,
    eps: float | None,
    models: list[ModelSummary],
    rows: list[Row],
    labels: Mapping[str, str],
) -> list[Remark]:
    """Return what the reader should know, the differences first, then the attack, then the limits."""
    found = []
    for model in models:
        if model.difference is not None and model.difference.robust is not None:
            found.append(_difference_remark(model, models[0], len(rows)))
    if rows[0].robust:
        found += _attack_remarks(rows)
    found.append(_flag_remark(table, eps, labels))
    sizes = sorted({len(row.ids) for row in rows})
    each = f"{sizes[0]}" if len(sizes) == 1 else f"{sizes[0]} to {sizes[-1]}"
    found.append(
        Remark(
            "plain",
            "How many images",
            f"{sum(len(row.ids) for row in rows):,} in {len(rows)} sets ({each} of each), the same for every "
            "model. The brackets are 95% intervals: how far another draw of images from these sets would move "
            "a number. They say nothing about other sets or, for one seed, another training run.",
        )
    )
    if rows[0].robust:
        strongest = ", ".join(rows[0].robust)
        found.append(
            Remark(
                "plain",
                "An upper bound",
                f"No stronger attack than these ({strongest}) was run. A stronger one can only lower the "
                "robust numbers.",
            )
        )
    return found


def _difference_remark(model: ModelSummary, first: ModelSummary, sets: int) -> Remark:
    difference = model.difference
    if difference is None or difference.robust is None:
        raise ValueError("a remark on a difference needs one")
    robust = difference.robust
    span = f"{points(robust.value)} points {points_between(robust)}"
    counts = f"On {difference.better or 'none'} of {sets} sets the interval lies above zero"
    counts += f", on {difference.worse} below it." if difference.worse else "."
    title = f"{model.label} against {first.label}"
    if robust.low > 0:
        text = f"The gain under attack, {span}, excludes zero: more than the luck of the images. "
        return Remark("good", title, text + counts)
    if robust.high < 0:
        text = f"The loss under attack, {span}, excludes zero: more than the luck of the images. "
        return Remark("care", title, text + counts)
    text = f"The difference under attack, {span}, includes zero: none is shown. "
    return Remark("care", title, text + counts)


def _attack_remarks(rows: list[Row]) -> list[Remark]:
    plans: dict[str, Mapping[str, Any]] = {}
    for row in rows:
        plans |= row.plans
    names = list(rows[0].robust)
    several = len(names) > 1
    union = (
        f"An image counts only if it is right unattacked and under every attack ({', '.join(names)}), each "
        "aimed at the model itself."
        if several
        else f"An image counts only if it is right unattacked and under {names[0]}, aimed at the model itself."
    )
    found = [Remark("good" if several else "plain", "The worst case counts", union)]
    if plans:
        every = all(plan.get("judge") == "every" for plan in plans.values())
        judged = (
            "Every query in the ball is judged: one wrong answer on the way breaks the image."
            if every
            else "Not every query is judged: "
            + "; ".join(f"{name}: {plan.get('judge')}" for name, plan in plans.items())
            + "."
        )
        steps = "; ".join(
            f"{name}: {describe_plan(plan, rows[0].eps)}" for name, plan in plans.items()
        )
        found.append(Remark("good" if every else "care", "How it was judged", f"{judged} {steps}."))
    return found


def describe_plan(plan: Mapping[str, Any], eps: float | None) -> str:
    """Return an attack's settings in words: "20 steps of eps/4 on the cross-entropy loss"."""
    parts = []
    if "steps" in plan:
        parts.append(f"{plan['steps']} steps")
    if plan.get("step_size") is not None:
        parts.append(f"of {_step(plan['step_size'], eps)}")
    if "loss" in plan:
        parts.append(f"on the {plan['loss']} loss")
    if plan.get("start"):
        start = "random" if plan["start"] == "uniform" else plan["start"]
        parts.append(f"from a {start} start")
    if plan.get("restarts", 1) > 1:
        parts.append(f"with {plan['restarts']} starts")
    return " ".join(parts) or str(plan.get("algorithm", "settings unknown"))


def _step(size: float, eps: float | None) -> str:
    if eps and size > 0:
        ratio = eps / size
        if abs(ratio - round(ratio)) < 1e-9 and round(ratio) >= 1:
            return "eps" if round(ratio) == 1 else f"eps/{round(ratio)}"
    return format_eps(size)


def _flag_remark(table: EvaluationTable, eps: float | None, labels: Mapping[str, str]) -> Remark:
    raised = flag_places(table, eps, labels)
    if not raised:
        probed = all(row.probe is not None for row in table.rows if row.eps == eps)
        judged = ", ".join(name for name in ABOUT if probed or name not in FROM_PROBES)
        left_out = "" if probed else " Those that need the model at hand were not made everywhere."
        return Remark(
            "good",
            "No flag is raised",
            f"The checks made ({judged}) found nothing.{left_out}",
        )
    said = " ".join(
        f"{name} on {len(places)} number{'' if len(places) == 1 else 's'}: {_lower(ABOUT[name].means)}"
        for name, places in raised.items()
    )
    title = "A flag is raised" if len(raised) == 1 else f"{len(raised)} kinds of flag are raised"
    return Remark("care", title, f"{said} Where, and what to do, stands under the table.")


def _lower(sentence: str) -> str:
    return sentence[0].lower() + sentence[1:]


def flag_places(
    table: EvaluationTable, eps: float | None, labels: Mapping[str, str]
) -> dict[str, list[str]]:
    """Return flag -> the numbers it marks at an eps, a clause each, in the order of the flags' table.

    A number is "clean" or "robust": what is raised at single attacks marks their union once, the reasons of
    all of them in its clause.
    """
    raised: dict[str, list[str]] = defaultdict(list)
    for row in table.rows:
        if row.eps != eps:
            continue
        reasons: dict[tuple[str, str], list[str]] = defaultdict(list)
        for flag in row.flags:
            column = CLEAN if flag.column == CLEAN else ROBUST
            of_attack = "" if flag.column in (CLEAN, ROBUST) else f"{flag.column}: "
            reasons[flag.name, column].append(of_attack + flag.why)
        for (name, column), why in reasons.items():
            place = f"{labels[row.model]} on {row.image_set}, {column}"
            raised[name].append(f"{place}: {'; '.join(why)}")
    return {name: raised[name] for name in ABOUT if name in raised}


def summary_json(table: EvaluationTable, summaries: Sequence[Summary]) -> dict[str, Any]:
    """Return headlines and remarks as JSON, beside the table's own numbers."""
    return {
        "summary": [
            {
                "threat": s.threat,
                "attacks": s.attacks,
                "sets": s.sets,
                "samples": s.samples,
                "headlines": s.headlines,
                "remarks": [{"title": r.title, "text": r.text} for r in s.remarks],
            }
            for s in summaries
        ],
        "table": table.to_json(),
    }
