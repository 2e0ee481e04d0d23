"""The section of published numbers: beside what was measured where all agrees, else what differs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from zsrobust.evaluation.published import Comparison, Hardening, beside, beside_mean
from zsrobust.evaluation.statistics import Interval
from zsrobust.evaluation.stored import bare_spec
from zsrobust.evaluation.table import CLEAN, ROBUST, EvaluationTable, Row
from zsrobust.threat import format_eps
from zsrobust.training import Run


@dataclass(frozen=True, slots=True)
class PublishedLine:
    """A number that was published of a model and set of the table."""

    place: str
    """The set, or the mean."""
    spec: str
    label: str
    what: str
    """What was measured here: "clean", or attack and threat."""
    measured: Interval | None
    """The number here; None unless all conditions agree."""
    value: str
    published: str
    """Of what the value was published: model, and what was measured there."""
    read: str
    statement: str
    """What differs."""
    remarks: tuple[str, ...]

    @property
    def source(self) -> str:
        """Where it was read, and what is doubtful about it."""
        doubtful = f" Doubtful: {'; '.join(self.remarks)}." if self.remarks else ""
        return f"{self.read}.{doubtful}"


def published_lines(
    table: EvaluationTable, labels: Mapping[str, str], runs: Sequence[Run]
) -> list[PublishedLine]:
    """Return what was published of a table's models on its sets, and of their means over these very sets.

    Of each published table and model stand the numbers that differ least: one that was published at
    the radius measured leaves out those at other radii.

    Args:
        table: what was measured.
        labels: spec -> the model's name on the page.
        runs: that made models of the table.
    """
    norm = str(table.request.get("norm") or "linf")
    lines: list[PublishedLine] = []
    # All radii share the clean numbers.
    clean_done: set[tuple[str, str]] = set()
    for eps in table.radii:
        for spec in table.models:
            hardening = _hardening(spec, runs)
            targets = table.of(spec, eps)
            for row in [*targets, *table.of(spec, eps, source=True)]:
                place = f"{row.image_set} (source)" if row.is_source else row.image_set
                found = [
                    one
                    for column in _columns(row, place, clean_done)
                    for one in beside(row, column, norm=norm, hardening=hardening)
                ]
                for one in _nearest(found):
                    what = (place, spec, labels[spec], _what(one.column, norm, eps))
                    lines.append(_line(what, row.accuracy(one.column), one))
            # A mean of one set is that set.
            if len(targets) > 1:
                place = f"mean of {len(targets)} sets"
                found = [
                    one
                    for column in _columns(targets[0], place, clean_done)
                    for one in beside_mean(targets, column, norm=norm, hardening=hardening)
                ]
                for one in _nearest(found):
                    what = (place, spec, labels[spec], _what(one.column, norm, eps))
                    lines.append(_line(what, table.mean(spec, eps, one.column), one))
    return lines


def _line(what: tuple[str, str, str, str], measured: Interval, one: Comparison) -> PublishedLine:
    number = one.number
    return PublishedLine(
        *what,
        measured=measured if one.agrees else None,
        value=number.text,
        published=f"{number.model.name}, {number.what}",
        read=f"{number.study}: {number.title}; {number.read}",
        statement=one.statement,
        remarks=one.remarks,
    )


def _nearest(found: Sequence[Comparison]) -> list[Comparison]:
    """Return, of each published table, model and metric, what differs in the fewest conditions.

    Each number once, in the column that is most like it.
    """
    fewest: dict[tuple[object, ...], int] = {}
    for one in found:
        key = _table_of(one)
        fewest[key] = min(fewest.get(key, len(one.differs)), len(one.differs))
    kept: list[Comparison] = []
    for one in found:
        again = any(one.number == other.number for other in kept)
        if len(one.differs) == fewest[_table_of(one)] and not again:
            kept.append(one)
    return kept


def _table_of(one: Comparison) -> tuple[object, ...]:
    number = one.number
    return number.study, number.block, number.model.name, number.metric


def _columns(row: Row, place: str, clean_done: set[tuple[str, str]]) -> list[str]:
    """Return the columns to look up: clean once, each attack, and the union of several."""
    clean = [] if (row.model, place) in clean_done else [CLEAN]
    clean_done.add((row.model, place))
    return [*clean, *row.robust, *([ROBUST] if len(row.robust) > 1 else [])]


def _what(column: str, norm: str, eps: float | None) -> str:
    return column if column == CLEAN or eps is None else f"{column}, {norm} {format_eps(eps)}"


def _hardening(spec: str, runs: Sequence[Run]) -> Hardening | None:
    """Return what made a model that is a run's."""
    bare = bare_spec(spec)
    if not bare.startswith("run:"):
        return None
    folder = Path(bare.removeprefix("run:")).expanduser().resolve()
    run = next((run for run in runs if run.folder.expanduser().resolve() == folder), None)
    if run is None:
        return None
    recipe = run.recipe
    return Hardening(
        base=recipe.model,
        method=recipe.objective.name,
        adaptation=recipe.adaptation.name,
        source=recipe.source.set,
        eps=recipe.threat.eps,
        steps=recipe.adversary.steps,
        norm=recipe.threat.norm,
        part=recipe.source.limit is not None or recipe.source.per_class is not None,
    )
