"""The ledger of published numbers: what others measured, under which conditions, and what is doubtful.

One YAML file a study stands beside this module. It holds the study's models and blocks: a block is a
table as it was published, its context written once. `published` takes the blocks apart into one
`Number` a cell. A condition that could not be read is None, which means "not known" and never
"as usual".
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import cache
from importlib import resources
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from zsrobust.errors import UserError, unknown_name
from zsrobust.threat import Norm, Resolution, format_eps, parse_eps

MEAN = "mean"
COST = "cost"
PERCENT = "%"

Metric = Literal["clean", "robust", "cost", "distance"]
Condition = Literal["samples", "preprocess"]

# A radius as it is written, "2/255", read once here.
Radius = Annotated[float, BeforeValidator(lambda text: parse_eps(str(text)))]


def _listed(value: Any) -> Any:
    return value if isinstance(value, list | tuple) else [value]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class PublishedModel(_Strict):
    """A model whose numbers were published.

    Args:
        name: for people.
        base: the spec that its training started from; None where it was not read.
        method: how it was hardened, the objective's name where it is one of ours; None for a model
            as its makers released it.
        adaptation: "full", or "prompt" for prompts of any kind.
        source: the set it was hardened on; None where there is none or it was not read.
        eps: linf radius of training in [0, 1]-pixel units.
        steps: of the training attack.
        weights: names under which anyone can load it: a row of the table of public weights
            (`models/public.yaml`), or a spec of open_clip.
        training: the rest of the recipe, in words.
    """

    name: str
    base: str | None = None
    method: str | None = None
    adaptation: Literal["full", "prompt"] | None = None
    source: str | None = None
    eps: Radius | None = None
    steps: int | None = None
    weights: tuple[str, ...] = ()
    training: str = ""


class Mean(_Strict):
    """What an average is over.

    Args:
        count: number of sets.
        sets: their names; None where they were not read.
        includes_source: whether the set that the models were trained on is among them.
        words: what is known besides.
    """

    count: int | None = None
    sets: tuple[str, ...] | None = None
    includes_source: bool | None = None
    words: str = ""

    @model_validator(mode="after")
    def _consistent(self) -> Mean:
        if self.sets is not None and len(set(self.sets)) != self.count:
            raise ValueError(f"{len(set(self.sets))} sets, but count: {self.count}")
        return self


class ImageSize(_Strict):
    """How images were brought to size, in the words of `Preprocess.settings`; size in pixels."""

    size: int
    interpolation: Literal["bicubic", "bilinear"]
    resize_mode: str


class Measure(_Strict):
    """One column of a published table: what was measured, and how.

    Args:
        metric: what the numbers are of.
        norm: of the threat.
        eps: radius in [0, 1]-pixel units; several where the numbers are means over them; none where
            it was not read, or nothing is attacked.
        attack: our name of the attack, where it is the same thing.
        attack_words: the attack in words, where it is not.
        samples: images of each set, "all" or a number; None where it was not read.
        unit: "%", "points" (a difference), or in words.
        against: what a difference is to.
    """

    metric: Metric
    norm: Norm = "linf"
    eps: Annotated[tuple[Radius, ...], BeforeValidator(_listed)] = ()
    attack: str | None = None
    attack_words: str = ""
    samples: Literal["all"] | int | None = None
    unit: str = PERCENT
    against: str | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Measure:
        if self.attack and self.attack_words:
            raise ValueError("give attack or attack_words, not both")
        if self.metric != "robust" and (self.eps or self.attack or self.attack_words):
            raise ValueError(f"eps and attack belong to robust, not to {self.metric}")
        if (self.against is None) != (self.unit != "points"):
            raise ValueError("points are against something, and nothing else is")
        if self.metric in ("clean", "robust") and self.unit not in (PERCENT, "points"):
            raise ValueError(f"accuracy is in {PERCENT} or points, got {self.unit!r}")
        return self


class Cell(_Strict):
    """A number with its standard deviation over training seeds."""

    value: float
    sd: float


class Doubt(_Strict):
    """What is doubtful, and of which cells: those that every list given names; no list is all.

    Args:
        says: the doubt.
        models: ids of the study.
        measures: names of the block.
        metrics: of the measures.
        columns: of the block.
        unknown: conditions of the block that are not known of these cells.
    """

    says: str
    models: tuple[str, ...] = ()
    measures: tuple[str, ...] = ()
    metrics: tuple[Metric, ...] = ()
    columns: tuple[str, ...] = ()
    unknown: tuple[Condition, ...] = ()

    def touches(self, model: str, measure: str, metric: str, column: str) -> bool:
        """Whether a cell is meant."""
        pairs = (
            (model, self.models),
            (measure, self.measures),
            (metric, self.metrics),
            (column, self.columns),
        )
        return all(not names or given in names for given, names in pairs)


class Block(_Strict):
    """A table as it was published.

    Args:
        title: what it is.
        read: where it was read: a table of the paper, a README, a thread, a third party.
        digits: decimals that were printed.
        columns: sets, or "mean", or "cost"; a row holds one number each.
        mean: what "mean" is over.
        native: the sets that were attacked at their own size, others at the model's; None where
            it was not read.
        texts: preset of class texts.
        templates: class templates, where they are no preset; class names were then not read.
        preprocess: how images were brought to size.
        precision: of the forward that was attacked.
        subset: how images were chosen, in words.
        measures: name -> what was measured.
        rows: model -> measure -> a number a column; null where none was published or read.
        doubtful: what to know before a number is used.
    """

    title: str
    read: str
    digits: int = Field(ge=0, le=2)
    columns: Annotated[tuple[str, ...], Field(min_length=1)]
    mean: Mean | None = None
    native: tuple[str, ...] | None = None
    texts: Literal["paper", "openai", "clip-benchmark"] | None = None
    templates: tuple[str, ...] | None = None
    preprocess: ImageSize | None = None
    precision: Literal["fp32"] | None = None
    subset: str = ""
    measures: Annotated[dict[str, Measure], Field(min_length=1)]
    rows: Annotated[
        dict[str, dict[str, tuple[float | Cell | None, ...]]],
        Field(min_length=1),
    ]
    doubtful: tuple[Doubt, ...] = ()

    @model_validator(mode="after")
    def _consistent(self) -> Block:
        if (MEAN in self.columns) != (self.mean is not None):
            raise ValueError("a column 'mean' and the key mean belong together")
        if self.texts and self.templates:
            raise ValueError("give texts or templates, not both")
        for model, row in self.rows.items():
            for measure, cells in row.items():
                if measure not in self.measures:
                    raise ValueError(f"row {model}: no measure {measure!r}")
                if len(cells) != len(self.columns):
                    raise ValueError(
                        f"row {model}, {measure}: {len(cells)} numbers for {len(self.columns)} columns"
                    )
                accuracy = self.measures[measure].unit == PERCENT
                for cell in cells:
                    value = cell.value if isinstance(cell, Cell) else cell
                    if accuracy and value is not None and not 0 <= value <= 100:
                        raise ValueError(f"row {model}, {measure}: {value} is no per cent")
        for doubt in self.doubtful:
            for names, known in (
                (doubt.models, self.rows),
                (doubt.measures, self.measures),
                (doubt.columns, self.columns),
            ):
                for name in names:
                    if name not in known:
                        raise ValueError(f"doubt {doubt.says!r} names {name!r}, which is not here")
        return self


class Study(_Strict):
    """One file of the ledger.

    Args:
        study: its short name.
        work: paper and code.
        models: id -> model.
        blocks: its tables.
    """

    study: str
    work: str
    models: dict[str, PublishedModel]
    blocks: Annotated[list[Block], Field(min_length=1)]

    @model_validator(mode="after")
    def _consistent(self) -> Study:
        used = {model for block in self.blocks for model in block.rows}
        if used != set(self.models):
            odd = ", ".join(sorted(used ^ set(self.models)))
            raise ValueError(f"models and rows differ in {odd}")
        return self


class Number(_Strict):
    """One published number, with everything that it is a number of. None means "not known".

    Args:
        value: as printed, in `unit`.
        digits: decimals that were printed.
        sd: standard deviation over training seeds.
        image_set: the set; None where it is a mean or a cost.
        mean: what a mean is over; None for one set.
        resolution: where the ball was drawn; None also for means, where it is `native`.
        native: the sets attacked at their own size.
        study: the file's.
        block: number of its table in the study, from 0.
        work: paper and code.
        title: of the table.
        doubts: sentences without a full stop.

    The others are as in `Measure` and `Block`.
    """

    value: float
    digits: int
    sd: float | None
    metric: Metric
    unit: str
    against: str | None
    measure: str
    image_set: str | None
    mean: Mean | None
    model: PublishedModel
    norm: Norm
    eps: tuple[float, ...]
    attack: str | None
    attack_words: str
    resolution: Resolution | None
    native: tuple[str, ...] | None
    texts: str | None
    templates: tuple[str, ...] | None
    preprocess: ImageSize | None
    precision: str | None
    samples: Literal["all"] | int | None
    subset: str
    study: str
    block: int
    work: str
    title: str
    read: str
    doubts: tuple[str, ...]

    @property
    def place(self) -> str:
        """The set's name, or "mean of 13 sets"."""
        if self.mean is not None:
            return f"mean of {self.mean.count} sets" if self.mean.count else "mean"
        return self.image_set or COST

    @property
    def text(self) -> str:
        """The value as it was printed, "44.87 ± 1.93"; a difference with its sign."""
        sign = "+" if self.unit == "points" else ""
        spread = "" if self.sd is None else f" ± {self.sd:.{self.digits}f}"
        return f"{self.value:{sign}.{self.digits}f}{spread}"

    @property
    def what(self) -> str:
        """What was measured, "robust, linf 1/255, pgd-paper"."""
        if self.metric != "robust":
            return self.measure if self.metric == "cost" else self.metric
        radii = ", ".join(format_eps(radius) for radius in self.eps) or "eps not known"
        over = "mean over " if len(self.eps) > 1 else ""
        attack = self.attack or self.attack_words or "attack not known"
        return f"robust, {self.norm} {over}{radii}, {attack}"

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON; null is "not known"."""
        content = self.model_dump(mode="json", exclude={"block", "digits"})
        content["set"] = content.pop("image_set")
        return content

    def resolution_of(self, image_set: str) -> Resolution | None:
        """Return where the ball was drawn on a set."""
        if self.native is None:
            return None
        return "native" if image_set in self.native else "model"


def published(
    *,
    image_set: str | None = None,
    model: str | None = None,
    method: str | None = None,
    source: str | None = None,
) -> list[Number]:
    """Return the published numbers, in the order of the ledger.

    Args:
        image_set: of this set alone, or "mean".
        model: of models whose name, base or weights hold this text, upper and lower case alike.
        method: of models hardened by this method.
        source: of models hardened on this set.

    Raises:
        UserError: if nothing bears such a name.
    """
    found = list(_all())
    for what, given in (
        ("set", image_set),
        ("model", model),
        ("method", method),
        ("source", source),
    ):
        if given is not None and not given.strip():
            raise UserError(f"an empty name of a {what}: write one, or leave it out.")
    if image_set is not None:
        known = {_column(number) for number in found} - {COST}
        found = _some(found, "set with published numbers", image_set, known, _is_on)
    if model is not None:
        known = {number.model.name for number in found}
        found = _some(found, "model with published numbers", model, known, _is_of)
    if method is not None:
        known = {number.model.method for number in found if number.model.method}
        found = _some(found, "method with published numbers", method, known, _is_by)
    if source is not None:
        known = {number.model.source for number in found if number.model.source}
        found = _some(found, "source set with published numbers", source, known, _is_from)
    return found


def _column(number: Number) -> str:
    return MEAN if number.mean is not None else number.image_set or COST


def _is_on(number: Number, name: str) -> bool:
    return _column(number) == name


def _is_of(number: Number, text: str) -> bool:
    model = number.model
    names = (model.name, model.base or "", *model.weights)
    # A spec may be given as it is loaded.
    wanted = text.casefold().removeprefix("hf-hub:")
    return any(wanted in name.casefold() for name in names)


def _is_by(number: Number, name: str) -> bool:
    return number.model.method == name


def _is_from(number: Number, name: str) -> bool:
    return number.model.source == name


def _some(numbers: list[Number], what: str, given: str, known: Iterable[str], keeps: Any) -> Any:
    kept = [number for number in numbers if keeps(number, given)]
    if not kept:
        raise unknown_name(what, given, known, "'zsrobust published' prints all.")
    return kept


@cache
def _all() -> tuple[Number, ...]:
    return tuple(number for name in study_names() for number in numbers(load_study(name)))


def study_names() -> list[str]:
    """Return the names of the ledger's files: the paper's own numbers first, then its successors'."""
    names = [
        entry.name.removesuffix(".yaml")
        for entry in resources.files("zsrobust.evaluation.published").iterdir()
        if entry.name.endswith(".yaml")
    ]
    return sorted(names, key=lambda name: (name != "tecoa", name == "others", name))


def load_study(name: str) -> Study:
    """Return a file of the ledger."""
    file = resources.files("zsrobust.evaluation.published") / f"{name}.yaml"
    return parse_study(yaml.safe_load(file.read_text("utf-8")), name)


def parse_study(content: Any, name: str) -> Study:
    """Return the study that a parsed YAML file holds.

    Raises:
        UserError: with every mistake in it, each with its field.
    """
    try:
        return Study.model_validate(content)
    except ValidationError as error:
        mistakes = "; ".join(
            f"{'.'.join(str(part) for part in mistake['loc']) or 'study'}: {mistake['msg']}"
            for mistake in error.errors()
        )
        raise UserError(f"published/{name}.yaml: {mistakes}.") from error


def numbers(study: Study) -> Iterator[Number]:
    """Yield every number of a study, with its context."""
    for place, block in enumerate(study.blocks):
        for model, row in block.rows.items():
            for name, cells in row.items():
                for column, cell in zip(block.columns, cells, strict=True):
                    if cell is not None:
                        yield _number(study, place, model, name, column, cell)


def _number(
    study: Study, place: int, model: str, name: str, column: str, cell: float | Cell
) -> Number:
    block = study.blocks[place]
    measure = block.measures[name]
    doubts = [d for d in block.doubtful if d.touches(model, name, measure.metric, column)]
    unknown = {condition for doubt in doubts for condition in doubt.unknown}
    one_set = column not in (MEAN, COST)
    resolution: Resolution | None = None
    if one_set and block.native is not None:
        resolution = "native" if column in block.native else "model"
    return Number(
        value=cell.value if isinstance(cell, Cell) else cell,
        digits=block.digits,
        sd=cell.sd if isinstance(cell, Cell) else None,
        metric=measure.metric,
        unit=measure.unit,
        against=measure.against,
        measure=name,
        image_set=column if one_set else None,
        mean=block.mean if column == MEAN else None,
        model=study.models[model],
        norm=measure.norm,
        eps=measure.eps,
        attack=measure.attack,
        attack_words=measure.attack_words,
        resolution=resolution,
        native=block.native,
        texts=block.texts,
        templates=block.templates,
        preprocess=None if "preprocess" in unknown else block.preprocess,
        precision=block.precision,
        samples=None if "samples" in unknown else measure.samples,
        subset=block.subset,
        study=study.study,
        block=place,
        work=study.work,
        title=block.title,
        read=block.read,
        doubts=tuple(doubt.says for doubt in doubts),
    )
