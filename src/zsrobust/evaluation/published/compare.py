"""A published number beside a measured one: only where every condition agrees, else what differs.

Published numbers differ in attack, template and test split (traps 50). A condition that was not read
does not agree: nobody knows that it does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import PurePath
from typing import Any

from zsrobust import data
from zsrobust.adaptations import PROMPTING
from zsrobust.data.cards import STORED, Card
from zsrobust.data.texts import equal_texts
from zsrobust.errors import UserError
from zsrobust.evaluation.published.ledger import PERCENT, Number, PublishedModel, published
from zsrobust.evaluation.stored import bare_spec
from zsrobust.evaluation.table import CLEAN, ROBUST, Row
from zsrobust.models.public import public_file
from zsrobust.threat import format_eps

_LISTED = 3  # sets that are named where some of a mean's differ


@dataclass(frozen=True, slots=True)
class Hardening:
    """What made a measured model, as far as a published one can be like it.

    Args:
        base: the spec that it started from.
        method: the objective's name.
        adaptation: its name.
        source: the set it was hardened on.
        eps: radius of training in [0, 1]-pixel units; None for no adversary.
        steps: of the training attack; None for no adversary.
        norm: of training.
        part: whether it saw a part of the source alone.
    """

    base: str
    method: str
    adaptation: str
    source: str
    eps: float | None
    steps: int | None
    norm: str = "linf"
    part: bool = False

    def like(self, model: PublishedModel) -> bool:
        """Whether a published model was made in the same way, as far as is known of it."""
        # Prompts of any kind are one adaptation in the ledger.
        adaptation = "prompt" if self.adaptation in PROMPTING else self.adaptation
        eps = self.eps if self.norm == "linf" else None
        mine = (self.base, self.method, adaptation, self.source)
        theirs = (model.base, model.method, model.adaptation, model.source)
        return mine == theirs and None not in (eps, model.eps) and _equal(eps, model.eps)


@dataclass(frozen=True, slots=True)
class Comparison:
    """A published number of the same model, set and metric as a measured one.

    Args:
        number: what was published.
        column: of the measured table: "clean", an attack's name, or "robust".
        differs: what does not agree, a phrase each; empty where everything does.
        remarks: what stands beside the number in either case: doubts of the ledger, and what
            agreement does not cover.
    """

    number: Number
    column: str
    differs: tuple[str, ...]
    remarks: tuple[str, ...]

    @property
    def agrees(self) -> bool:
        """Whether the two may stand side by side as one number measured twice."""
        return not self.differs

    def same_threat(self, norm: str, eps: float | None) -> bool:
        """Whether the number is of this norm and eps; a clean one is of every threat."""
        number = self.number
        return self.column == CLEAN or (number.norm == norm and _same_eps(number, eps))

    @property
    def statement(self) -> str:
        """One line: that all conditions agree, or what differs."""
        if self.agrees:
            return "all stated conditions agree"
        return f"not the same: {'; '.join(self.differs)}"


def beside(
    row: Row, column: str, *, norm: str = "linf", hardening: Hardening | None = None
) -> list[Comparison]:
    """Return what was published of a row's model on its set, best agreement first.

    Args:
        row: one model on one set at one eps, as a table has it.
        column: "clean", an attack's name, or "robust", the union.
        norm: of the table.
        hardening: what made the model, where it is a run.

    Returns:
        A comparison a number; empty where none is of this set, model and metric.

    Raises:
        UserError: for a column that the row does not have.
    """
    _check_column(row, column)
    found: list[Comparison] = []
    if _set_name(row) not in data.card_names():
        return found
    for number in published():
        if number.image_set == _set_name(row) and number.metric == _metric(column):
            model = _model(number.model, row.model, hardening)
            if model is not None and number.unit == PERCENT:
                differs = [*model, *_differences(number, row, column, norm)]
                found.append(_comparison(number, column, differs, [row]))
    return _ordered(found)


def beside_mean(
    rows: Sequence[Row], column: str, *, norm: str = "linf", hardening: Hardening | None = None
) -> list[Comparison]:
    """Return what was published of a model's mean over exactly these sets, best agreement first.

    Args:
        rows: of one model at one eps, all that enter the mean.
        column: as in `beside`.
        norm: of the table.
        hardening: as in `beside`.

    Returns:
        A comparison a mean; empty where none is over these very sets.

    Raises:
        UserError: for a column that a row does not have, or rows of several models.
    """
    if len({(row.model, row.eps) for row in rows}) > 1:
        raise UserError("a mean is of one model at one eps: give the rows of one.")
    for row in rows:
        _check_column(row, column)
    names = [_set_name(row) for row in rows]
    found = []
    for number in published() if rows else []:
        if number.mean is None or number.metric != _metric(column) or number.unit != PERCENT:
            continue
        sets = number.mean.sets
        if sets is None or sorted(sets) != sorted(names):
            continue
        model = _model(number.model, rows[0].model, hardening)
        if model is not None:
            differs = [*model, *_of_each(number, rows, column, norm)]
            found.append(_comparison(number, column, differs, rows))
    return _ordered(found)


def _check_column(row: Row, column: str) -> None:
    if column not in (CLEAN, *row.robust) and not (column == ROBUST and row.robust):
        have = ", ".join([CLEAN, *row.robust, *([ROBUST] if row.robust else [])])
        raise UserError(f"this row has no column {column!r}: it has {have}.")


def _set_name(row: Row) -> str:
    """The set's own name; its title in a table may tell it from another one."""
    return str(row.key.get("set", row.image_set))


def _card(row: Row) -> Card:
    return _load_card(_set_name(row))


# A set is looked up for many numbers; cards and their presets are read from files.
@cache
def _load_card(name: str) -> Card:
    return data.load_card(name)


@cache
def _preset(
    name: str, preset: str, stored: tuple[str, ...] | None
) -> tuple[list[str] | None, list[str]]:
    return _load_card(name).preset(preset, None if stored is None else list(stored))


def _metric(column: str) -> str:
    return "clean" if column == CLEAN else "robust"


def _ordered(found: list[Comparison]) -> list[Comparison]:
    return sorted(found, key=lambda one: len(one.differs))


def _comparison(number: Number, column: str, differs: list[str], rows: Sequence[Row]) -> Comparison:
    remarks = list(number.doubts)
    if isinstance(number.samples, int):
        remarks.append(
            f"the {number.samples:,} images were chosen in another way; ours take every class in turn"
        )
    if number.texts and any(_names_are_stored(_card(row), number.texts) for row in rows):
        remarks.append("class names from a set's own files are taken as they are")
    if number.model.weights and "@" in rows[0].model:
        remarks.append("the weights are known by the name of their file alone")
    return Comparison(number, column, tuple(differs), tuple(remarks))


def _model(published: PublishedModel, spec: str, hardening: Hardening | None) -> list[str] | None:
    """Return what differs between two models: nothing for the same weights; None if all does."""
    weights = {name.casefold() for name in published.weights}
    if _public_name(spec).casefold() in weights:
        return []
    if hardening is None or not hardening.like(published):
        return None
    found = ["model: trained here, not the published weights"]
    if hardening.steps != published.steps:
        there = "not known" if published.steps is None else published.steps
        found.append(f"training steps: {hardening.steps or 'none'} here, {there} there")
    if hardening.part:
        found.append("source images: a part of the set here")
    return found


def _public_name(spec: str) -> str:
    """Return the name under which a spec's weights are public, as the ledger writes it.

    A file is taken for the one of its name only over the base that this one belongs to.
    """
    spec = bare_spec(spec)
    if spec.startswith("hf-hub:"):
        return spec.removeprefix("hf-hub:")
    file, at, base = spec.rpartition("@")
    if at:
        known = public_file(PurePath(file).name)
        return known.name if known is not None and known.base == base else ""
    return spec


def _of_each(number: Number, rows: Sequence[Row], column: str, norm: str) -> list[str]:
    """Return what differs on any set of a mean, each once, with the sets where it is not all."""
    places: dict[str, list[str]] = {}
    for row in rows:
        for phrase in _differences(number, row, column, norm):
            places.setdefault(phrase, []).append(_set_name(row))
    phrases = []
    for phrase, sets in places.items():
        more = f" and {len(sets) - _LISTED} more" if len(sets) > _LISTED else ""
        where = "" if len(sets) == len(rows) else f" (on {', '.join(sets[:_LISTED])}{more})"
        phrases.append(phrase + where)
    return phrases


def _differences(number: Number, row: Row, column: str, norm: str) -> list[str]:
    """Return every condition but the model that does not agree, a phrase each."""
    found = [
        *_threat(number, row, column, norm),
        *_resolution(number, row),
        *_texts(number, row),
        *_images(number, row),
    ]
    precision = row.key.get("precision", "fp32")
    if precision != number.precision:
        found.append(f"precision: {precision} here, {number.precision or 'not known'} there")
    return found


def _threat(number: Number, row: Row, column: str, norm: str) -> list[str]:
    if column == CLEAN:
        return []
    found = []
    if norm != number.norm:
        found.append(f"norm: {norm} here, {number.norm} there")
    if not _same_eps(number, row.eps):
        over = "a mean over " if len(number.eps) > 1 else ""
        there = over + ", ".join(map(format_eps, number.eps)) if number.eps else "not known"
        here = "none" if row.eps is None else format_eps(row.eps)
        found.append(f"eps: {here} here, {there} there")
    attacks = [column] if column != ROBUST else list(row.robust)
    if attacks != [number.attack]:
        here = " and ".join(attacks) + (" (worst case)" if len(attacks) > 1 else "")
        there = number.attack or number.attack_words or "not known"
        found.append(f"attack: {here} here, {there} there")
    return found


def _same_eps(number: Number, eps: float | None) -> bool:
    return len(number.eps) == 1 and _equal(eps, number.eps[0])


def _resolution(number: Number, row: Row) -> list[str]:
    """Compare where the ball lies, and how images were brought to size where that is done first."""
    name = _set_name(row)
    there = number.resolution if number.mean is None else number.resolution_of(name)
    if there != row.resolution:
        return [f"attack resolution: {row.resolution} here, {there or 'not known'} there"]
    if row.resolution == "native":
        return []
    mine = row.key.get("preprocess", {})
    theirs = number.preprocess
    if theirs is None:
        return ["image rule: not known there"]
    size = list(mine.get("size", []))
    here = (size, mine.get("interpolation"), mine.get("resize_mode"))
    if here == ([theirs.size, theirs.size], theirs.interpolation, theirs.resize_mode):
        return []
    return [
        f"image rule: {_rule(size, here[1], here[2])} here, "
        f"{_rule([theirs.size] * 2, theirs.interpolation, theirs.resize_mode)} there"
    ]


def _rule(size: Sequence[Any], interpolation: Any, resize_mode: Any) -> str:
    pixels = "x".join(map(str, size)) or "unknown size"
    return f"{pixels} px, {interpolation or 'unknown'}, {resize_mode or 'unknown'}"


def _texts(number: Number, row: Row) -> list[str]:
    """Compare templates and class names, and how classes with equal texts are scored."""
    names = list(row.key.get("texts", {}).get("classnames") or [])
    found = []
    if number.texts is not None:
        stored = tuple(names) if _names_are_stored(_card(row), number.texts) else None
        wanted, templates = _preset(_set_name(row), number.texts, stored)
        if list(row.templates) != templates:
            found.append(f"templates: {_templates(row.templates)} here, {number.texts} there")
        elif wanted is not None and names != wanted:
            found.append(f"class names: others here than those of {number.texts}")
    elif number.templates is not None:
        if list(row.templates) != list(number.templates):
            found.append(
                f"templates: {_templates(row.templates)} here, {_templates(number.templates)} there"
            )
        else:
            found.append("class names: not known there")
    else:
        found.append("templates: not known there")
    if row.key.get("duplicates") == "merge" and equal_texts(names):
        found.append("equal class texts: merged here, each scored for itself there")
    return found


def _names_are_stored(card: Card, texts: str) -> bool:
    """Whether class names come from the set's own files: they are not known without them."""
    own = card.texts.get("paper" if texts == "paper" else "clip-benchmark")
    return card.names_of == "source" or (own is not None and own.classnames == STORED)


def _templates(templates: Sequence[str]) -> str:
    return repr(templates[0]) if len(templates) == 1 else f"{len(templates)} others"


def _images(number: Number, row: Row) -> list[str]:
    """Compare the split and how many of its images were measured."""
    card = _card(row)
    found = []
    split = row.key.get("split", card.split)
    if split != card.split:
        found.append(f"split: {split} here, {card.split} there")
    here, whole = len(row.ids), card.splits[card.split]
    there = whole if number.samples == "all" else number.samples
    if here != there:
        words = "all" if number.samples == "all" else "not known" if there is None else f"{there:,}"
        found.append(f"images: {here:,} here, {words} there")
    return found


def _equal(a: float | None, b: float | None) -> bool:
    """Whether two radii are one: a fraction and its decimals differ in the last digit."""
    return a is not None and b is not None and abs(a - b) < 1e-9
