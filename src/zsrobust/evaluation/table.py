"""The table of an evaluation: per set, averaged, and as paired differences between models."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np

from zsrobust.errors import UserError
from zsrobust.evaluation.statistics import (
    Interval,
    Values,
    mean_over_sets,
    paired_difference,
    wilson,
)
from zsrobust.evaluation.trust import ABOUT, Flag, flags

if TYPE_CHECKING:
    from zsrobust.evaluation.probes import Probe

# The columns that every table has beside one an attack.
CLEAN = "clean"
ROBUST = "robust"

# Up to so many models, tables for people compare the models other than the first with each other too.
MODELS_IN_PAIRS = 4


@dataclass(frozen=True, kw_only=True)
class Row:
    """One model on one set at one eps: outcomes of the same samples under each attack."""

    model: str
    image_set: str
    is_source: bool
    eps: float | None
    """None where only clean accuracy was asked for."""
    resolution: str
    classes: int
    templates: list[str]
    ids: list[str]
    clean: list[bool]
    robust: dict[str, list[bool]]
    """Attack -> whether each sample stayed right."""
    labels: list[int] = field(default_factory=list)
    """Class number of each sample; empty where they are not known."""
    key: Mapping[str, Any] = field(default_factory=dict)
    """The clean cell's key: weights, preprocessing, texts, split, duplicates rule, precision."""
    plans: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Attack -> its settings, as in the cell's key."""
    steps: Mapping[str, list[int | None]] = field(default_factory=dict)
    """Attack -> the query, counted within its target or restart, that broke each sample; None if none did."""
    by: Mapping[str, list[str | None]] = field(default_factory=dict)
    """Attack -> which of an ensemble's members broke each sample; of one attack its own name."""
    norm: str | None = None
    """Of the threat; None where nothing was attacked, or it is not known."""
    probe: Probe | None = None
    """What the first samples told of the model (probes.py); None where they were not looked at."""
    environments: list[dict[str, Any]] = field(default_factory=list)
    """Versions, device and threads under which the outcomes were found, each once."""

    def values(self, column: str) -> Values:
        """Return 1 (right) or 0 a sample: "clean", an attack's name, or "robust", the union of the attacks.

        Union: a sample is broken if any attack broke it (traps 29).
        """
        if column == CLEAN:
            return np.asarray(self.clean, dtype=np.float64)
        if column == ROBUST:
            stayed = np.asarray(list(self.robust.values()), dtype=bool).all(axis=0)
            return np.asarray(stayed, dtype=np.float64)
        return np.asarray(self.robust[column], dtype=np.float64)

    def accuracy(self, column: str) -> Interval:
        """Return the accuracy with its Wilson interval."""
        return wilson(self.values(column))

    @property
    def most_frequent(self) -> tuple[int, float]:
        """The class of most samples, and its share in [0, 1]: what one answer for every image scores.

        Where labels are known.
        """
        ((label, count),) = Counter(self.labels).most_common(1)
        return label, count / len(self.labels)

    @property
    def flags(self) -> list[Flag]:
        """Reasons to distrust these numbers (trust.py); they change none."""
        return flags(self)

    def flags_at(self, column: str) -> list[str]:
        """Return the names of the flags that stand at "clean" or "robust"; an attack's stand at the union."""
        found = [flag.name for flag in self.flags if (flag.column == CLEAN) == (column == CLEAN)]
        return list(dict.fromkeys(found))


@dataclass
class EvaluationTable:
    """All rows of an evaluation, and the numbers made of them."""

    suite: str
    request: dict[str, Any]
    rows: list[Row] = field(default_factory=list)

    @property
    def models(self) -> list[str]:
        """Models in the order given."""
        return list(dict.fromkeys(row.model for row in self.rows))

    @property
    def radii(self) -> list[float | None]:
        """Values of eps in the order given."""
        return list(dict.fromkeys(row.eps for row in self.rows))

    @property
    def columns(self) -> list[str]:
        """clean, each attack, and robust (their union) where there is any attack."""
        attacks = list(dict.fromkeys(name for row in self.rows for name in row.robust))
        return [CLEAN, *attacks, *([ROBUST] if attacks else [])]

    @property
    def raised(self) -> dict[str, int]:
        """Flag -> the number of its footnote, in the order of trust.ABOUT; those that are raised alone."""
        found = {flag.name for row in self.rows for flag in row.flags}
        return {name: i for i, name in enumerate((n for n in ABOUT if n in found), start=1)}

    def of(self, model: str, eps: float | None, *, source: bool = False) -> list[Row]:
        """Return the rows of a model at an eps: the targets, or the source set alone."""
        return [
            row
            for row in self.rows
            if row.model == model and row.eps == eps and row.is_source == source
        ]

    def mean(self, model: str, eps: float | None, column: str) -> Interval:
        """Return the unweighted mean over the target sets; the source set never enters (traps 45)."""
        return mean_over_sets([row.values(column) for row in self.of(model, eps)])

    def difference(self, first: str, second: str, eps: float | None, column: str) -> Interval:
        """Return the mean over sets of second minus first, paired on the same samples.

        Raises:
            UserError: if the two were not measured on the same samples.
        """
        a, b = self.of(first, eps), self.of(second, eps)
        self._check_pairs(a, b)
        return paired_difference(
            [row.values(column) for row in a], [row.values(column) for row in b]
        )

    def set_difference(
        self, first: str, second: str, eps: float | None, image_set: str, column: str
    ) -> Interval:
        """Return second minus first on one set, paired on the same samples."""
        a = [r for r in self.rows if (r.model, r.eps, r.image_set) == (first, eps, image_set)]
        b = [r for r in self.rows if (r.model, r.eps, r.image_set) == (second, eps, image_set)]
        self._check_pairs(a, b)
        return paired_difference([a[0].values(column)], [b[0].values(column)])

    def other_pairs(self, eps: float | None) -> list[tuple[str, str]]:
        """Return every two models but the first that were measured at an eps, the earlier one in front.

        Each pair stands for "first of the pair minus second"; differences to the first model are apart.
        """
        there = [
            model
            for model in self.models[1:]
            if self.of(model, eps) or self.of(model, eps, source=True)
        ]
        return list(combinations(there, 2))

    def shown_pairs(self, eps: float | None) -> list[tuple[str, str]]:
        """Return `other_pairs` that have a mean, for people to read: none where the models are too many."""
        if len(self.models) > MODELS_IN_PAIRS:
            return []
        return [pair for pair in self.other_pairs(eps) if all(self.of(m, eps) for m in pair)]

    @staticmethod
    def _check_pairs(a: list[Row], b: list[Row]) -> None:
        if not a or [(r.image_set, r.ids) for r in a] != [(r.image_set, r.ids) for r in b]:
            raise UserError("a difference needs two models measured on the same samples.")

    def to_json(self) -> dict[str, Any]:
        """Return every number of the table with its threat, samples and interval; no sample-wise data."""
        sets = []
        for row in self.rows:
            sets.append(
                {
                    "model": row.model,
                    "set": row.image_set,
                    "source": row.is_source,
                    "norm": self.request.get("norm"),
                    "eps": row.eps,
                    "resolution": row.resolution,
                    "classes": row.classes,
                    "templates": row.templates,
                    "accuracy": {c: row.accuracy(c).row() for c in self._columns_of(row)},
                    "flags": [flag.row() for flag in row.flags],
                }
            )
        means, differences = [], []
        base = self.models[0] if self.models else ""
        for eps in self.radii:
            for model in self.models:
                rows, sources = self.of(model, eps), self.of(model, eps, source=True)
                if not [*rows, *sources]:  # cells on disk need not hold every model at every eps
                    continue
                columns = self._columns_of([*rows, *sources][0])
                common = {"model": model, "eps": eps, "sets": len(rows)}
                if rows:
                    mean = {c: self.mean(model, eps, c).row() for c in columns}
                    means.append({**common, "mean": mean})
                if model != base and (self.of(base, eps) or self.of(base, eps, source=True)):
                    differences.append(self._difference_row(model, base, eps))
            differences += [self._difference_row(a, b, eps) for a, b in self.other_pairs(eps)]
        return {
            "suite": self.suite,
            "request": self.request,
            "rows": sets,
            "means": means,
            "differences": differences,
            "intervals": "95%: Wilson a set; bootstrap over samples within sets for means and paired "
            "differences, or where no set has two different values, a bound as Wilson's of 0 of all samples; "
            "conditional on these sets and, for one seed, on that training run",
        }

    def _difference_row(self, model: str, minus: str, eps: float | None) -> dict[str, Any]:
        """Return `model` minus `minus` at an eps as JSON: the mean's, and each set's."""
        rows, sources = self.of(model, eps), self.of(model, eps, source=True)
        columns = self._columns_of([*rows, *sources][0])
        per_set = {
            row.image_set: {
                c: self.set_difference(minus, model, eps, row.image_set, c).row() for c in columns
            }
            for row in [*sources, *rows]
        }
        whole = {c: self.difference(minus, model, eps, c).row() for c in columns if rows}
        return {
            "model": model,
            "eps": eps,
            "sets": len(rows),
            "minus": minus,
            "mean": whole or None,
            "per_set": per_set,
        }

    @staticmethod
    def _columns_of(row: Row) -> list[str]:
        return [CLEAN, *row.robust, *([ROBUST] if row.robust else [])]
