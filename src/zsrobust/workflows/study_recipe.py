"""A study's YAML file: one hardening recipe, one or two axes along which it varies, and what is drawn.

A key of a recipe is written as on the command line of `zsrobust harden`: "source.per_class=16".
"""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from zsrobust.errors import UserError, unknown_name
from zsrobust.threat import format_eps
from zsrobust.training.reading import put_override
from zsrobust.training.recipe import (
    EvaluatePart,
    Name,
    Part,
    Recipe,
    base_place,
    check_recipe,
    parse_recipe,
    put_overrides,
    read_mapping,
    read_recipe,
)

EPS_TESTED = "eps tested"
"""The name of the axis that a study has by itself where it is measured at several eps."""

TIMES_NAME = "times.jsonl"
SHARED_NAMES = {"runs", "results", "held-out", TIMES_NAME}
"""What a study's folder holds that several studies may share."""

RECIPE_KEY = "recipe."
"""Before a key that is overridden in every recipe."""


def _as_text(value: Any) -> Any:
    return str(value) if isinstance(value, int | float) and not isinstance(value, bool) else value


Label = Annotated[str, BeforeValidator(_as_text), Field(min_length=1, max_length=40)]


class Value(Part):
    """One place of an axis."""

    label: Label
    """Names it in folders, table and figure."""
    x: float | None = None
    """Where it stands on a numeric axis; null where the axis is of names."""
    base: str | None = None
    """A recipe of its own in place of the study's base."""
    set: list[str] = Field(default=[])
    """Overrides of the recipe, "key=value"."""


class Axis(Part):
    """What varies: either values, each a hardening, or the shares of an interpolation."""

    name: Annotated[str, Field(min_length=1, max_length=60)]
    values: list[Value] = Field(default=[])
    mix: list[Annotated[float, Field(ge=0, le=1)]] = Field(default=[])
    """Shares a of the hardened model in (1 - a) CLIP + a hardened; 0 and 1 are the two models."""

    @model_validator(mode="after")
    def _either(self) -> Axis:
        if bool(self.values) == bool(self.mix):
            raise UserError(
                f"axis {self.name!r} has either values or mix, not both and not neither."
            )
        if self.name == EPS_TESTED:
            raise UserError(f"{EPS_TESTED!r} is the name of the axis of evaluate.eps: use another.")
        labels = self.labels
        twice = next((label for label in labels if labels.count(label) > 1), None)
        if twice is not None:
            raise UserError(
                f"axis {self.name!r} has {twice!r} twice: each value needs its own label."
            )
        if len(labels) < 2 and self.values[0].x is not None:
            raise UserError(
                f"axis {self.name!r} has one value: nothing varies along it; give two, or leave its x out to "
                "compare one hardening with the model before it."
            )
        if self.mix and (self.mix != sorted(self.mix) or self.mix[0] != 0 or self.mix[-1] != 1):
            raise UserError(f"mix of axis {self.name!r} must ascend from 0 to 1, got {self.mix}.")
        if len({value.x is None for value in self.values}) > 1:
            raise UserError(f"axis {self.name!r}: give x to every value, or to none.")
        return self

    @property
    def labels(self) -> list[str]:
        """The labels of its places, in order."""
        return [v.label for v in self.values] or [f"{share:g}" for share in self.mix]

    @property
    def positions(self) -> list[float] | None:
        """Where the places stand on a numeric axis; None for an axis of names."""
        if self.mix:
            return list(self.mix)
        found = [value.x for value in self.values if value.x is not None]
        return found or None


class Choose(Part):
    """How a point of an interpolation is chosen, on held-out source images (docs/studies.md)."""

    by: Literal["robust", "sum"] = "robust"
    """The highest robust accuracy, or the largest sum of clean and robust accuracy."""
    clean_loss: float | None = Field(default=None, ge=0, le=1)
    """Clean accuracy that may be lost against CLIP, in [0, 1]: 0.05 is five points. Null is 0.05 by robust
    accuracy; a sum sets no limit."""

    @model_validator(mode="after")
    def _one_rule(self) -> Choose:
        if self.by == "sum" and self.clean_loss is not None:
            raise UserError("choose.clean_loss is of choose.by robust: leave it out.")
        return self

    @property
    def allowed_loss(self) -> float:
        """Clean accuracy that may be lost; 1 is any."""
        if self.by == "sum":
            return 1.0
        return 0.05 if self.clean_loss is None else self.clean_loss


class FigurePart(Part):
    """What is drawn."""

    x: str | None = None
    """An axis's name or "eps tested"; null is the first axis."""
    series: str | None = None
    """Likewise: a line each; null is the axis that x leaves, if any."""
    scale: Literal["linear", "log"] = "linear"
    """Of a numeric x."""
    kind: Literal["lines", "points"] = "lines"
    """points: clean against robust accuracy, a point a model; for an axis of names."""


class Study(Part):
    """A whole study."""

    name: Name
    title: str = ""
    base: str
    """The hardening: a recipe's name, or a YAML file, beside the study's own or in the current folder."""
    set: list[str] = Field(default=[])
    """Overrides of the recipe in every run."""
    axes: list[Axis] = Field(min_length=1, max_length=2)
    choose: Choose | None = None
    """Of a study with a mix axis; null is the default rule."""
    evaluate: EvaluatePart
    figure: FigurePart = FigurePart()

    @model_validator(mode="after")
    def _fits(self) -> Study:
        names = [axis.name for axis in self.axes]
        if len(names) > 1 and names[0] == names[1]:
            raise UserError(f"both axes are called {names[0]!r}: name them differently.")
        mixes = [axis for axis in self.axes if axis.mix]
        if len(mixes) > 1:
            raise UserError("both axes have mix: an interpolation is one of them.")
        if self.choose is not None and not mixes:
            raise UserError("choose is of a study with a mix axis: leave it out.")
        if self.evaluate.head and mixes:
            raise UserError("a mixed model has no head: leave evaluate.head out.")
        if not [name for name in self.evaluate.attacks if name != "clean"]:
            raise UserError(
                "evaluate.attacks holds no attack: a study draws clean and robust accuracy."
            )
        known = self.dimensions
        for key in ("x", "series"):
            name = getattr(self.figure, key)
            if name is not None and name not in known:
                raise unknown_name(f"axis for figure.{key}", name, known)
        if self.figure.x is not None and self.figure.x == self.figure.series:
            raise UserError(f"figure.x and figure.series are both {self.figure.x!r}.")
        drawn = self.figure.x or known[0]
        if self.figure.scale == "log" and min(self.positions_of(drawn) or [1.0]) <= 0:
            raise UserError(
                f"figure.scale is log, but axis {drawn!r} has a place at 0 or below: use linear."
            )
        if self.figure.kind == "points" and (
            mixes or len(known) > 1 or self.positions_of(known[0])
        ):
            raise UserError(
                "figure.kind points is for one axis of names and one eps: leave it out."
            )
        if mixes and (self.figure.x is not None or self.figure.series == mixes[0].name):
            raise UserError(
                "a study with a mix axis draws its curve of clean against robust: leave figure.x out."
            )
        return self

    @property
    def dimensions(self) -> list[str]:
        """Names of the axes, and "eps tested" where there are several."""
        several = [EPS_TESTED] if len(self.evaluate.eps) > 1 else []
        return [axis.name for axis in self.axes] + several

    @property
    def mix_axis(self) -> Axis | None:
        """The axis of an interpolation."""
        return next((axis for axis in self.axes if axis.mix), None)

    def labels_of(self, dimension: str) -> list[str]:
        """Return the labels along an axis, or the radii that are tested."""
        if dimension == EPS_TESTED:
            return [format_eps(eps) for eps in self.evaluate.eps]
        return next(axis.labels for axis in self.axes if axis.name == dimension)

    def positions_of(self, dimension: str) -> list[float] | None:
        """Return where they stand on a numeric axis; None for an axis of names."""
        if dimension == EPS_TESTED:
            return list(self.evaluate.eps)
        return next(axis.positions for axis in self.axes if axis.name == dimension)


@dataclass(frozen=True)
class Combination:
    """One hardening of a study: a place on each axis of values."""

    labels: dict[str, str]
    """Axis -> label."""
    recipe: Recipe
    folder: str
    """Its name below the study's runs/; two places whose recipes train the same weights share one."""
    recipe_name: str | None = None
    """The last part of its base's name, where nothing of the base is changed."""


def study_names() -> list[str]:
    """Return the studies that come with the package, "tiny/size" and so on."""
    return packaged_names("studies")


def packaged_names(kind: str) -> list[str]:
    """Return GROUP/NAME of every YAML file in a folder of this name beside the package's recipes, sorted."""
    root = resources.files("zsrobust") / "recipes"
    return sorted(
        f"{group.name}/{file.name.removesuffix('.yaml')}"
        for group in root.iterdir()
        if group.is_dir() and (group / kind).is_dir()
        for file in (group / kind).iterdir()
        if file.name.endswith(".yaml")
    )


def load_study(
    name_or_file: str, overrides: list[str] | None = None
) -> tuple[Study, list[Combination]]:
    """Read a study and the recipe of each of its hardenings.

    Args:
        name_or_file: a packaged name ("tiny/size") or a YAML file.
        overrides: "key=value" of the study ("evaluate.limit=20"), or of the recipe in every run, with
            "recipe." before it ("recipe.source.limit=64").

    Raises:
        UserError: for an unknown name, a file that is no YAML mapping, a wrong key, type or value, here or
            in a recipe that an axis makes.
        EnvironmentFault: if a file cannot be read.
    """
    own, everywhere = split_overrides(overrides)
    study = read_study(name_or_file, own)
    return study, combinations(study, everywhere, name_or_file)


def split_overrides(overrides: list[str] | None) -> tuple[list[str], list[str]]:
    """Return the overrides of the study, and those of every recipe in it, without their "recipe."."""
    given = overrides or []
    everywhere = [o.removeprefix(RECIPE_KEY) for o in given if o.startswith(RECIPE_KEY)]
    return [o for o in given if not o.startswith(RECIPE_KEY)], everywhere


def read_study(name_or_file: str, overrides: list[str] | None = None) -> Study:
    """Read a study alone: its recipes are not looked at, and torch is not imported.

    Args:
        name_or_file: as in `load_study`.
        overrides: "key=value" of the study.

    Raises:
        UserError: for an unknown name, a file that is no YAML mapping, a wrong key, type or value.
        EnvironmentFault: if the file cannot be read.
    """
    text = None
    if name_or_file in study_names():
        group, _, short = name_or_file.rpartition("/")
        place = resources.files("zsrobust") / "recipes" / group / "studies" / f"{short}.yaml"
        text = place.read_text("utf-8")
    elif not Path(name_or_file).is_file() and not name_or_file.endswith((".yaml", ".yml")):
        raise unknown_name("study", name_or_file, study_names(), "Or give a .yaml file.")
    data = put_overrides(read_mapping(name_or_file, text, kind="study"), overrides)
    return parse_study(data, name_or_file)


def parse_study(data: dict[str, Any], what: str = "study") -> Study:
    """Check a mapping against the schema; all mistakes are reported together, in one line.

    Raises:
        UserError: names each wrong key with what is allowed.
    """
    return check_recipe(Study, data, what, kind="study")


def combinations(study: Study, overrides: list[str], where: str = "") -> list[Combination]:
    """Return the hardenings of a study: the product of its axes of values, first axis slowest.

    Args:
        study: the study.
        overrides: of the recipe in every run, after all others.
        where: the study's file, beside which its base is looked for.

    Raises:
        UserError: if a recipe is wrong, in the words of the first.
    """
    axes = [axis for axis in study.axes if axis.values]
    found: list[Combination] = []
    folders: dict[str, str] = {}
    for places in itertools.product(*(axis.values for axis in axes)):
        named = [place.base for place in places if place.base is not None]
        if len(named) > 1:
            raise UserError(
                f"study {study.name}: {named[0]} and {named[1]} are both the base of one hardening; give base to "
                "the values of one axis."
            )
        data = read_recipe(base_place([*named, study.base][0], where))
        data["evaluate"] = None  # the study's own block says what is measured
        changes = [*study.set, *(o for place in places for o in place.set), *overrides]
        for override in changes:
            put_override(data, override)
        labels = {axis.name: place.label for axis, place in zip(axes, places, strict=True)}
        shown = ", ".join(f"{name} {label}" for name, label in labels.items()) or "its base"
        recipe = parse_recipe(data, f"of study {study.name} ({shown})")
        if study.mix_axis is not None and recipe.validation is None:
            raise UserError(
                f"study {study.name}: a point of an interpolation is chosen on held-out source images; give its "
                "recipe a validation block."
            )
        slug = "--".join(_slug(label) for label in labels.values()) or "base"
        while slug in folders.values():
            slug += "+"
        folder = folders.setdefault(str(recipe.determining()), slug)
        unchanged = None if changes else _slug(recipe.name.rpartition("/")[2])
        found.append(Combination(labels, recipe, folder, unchanged))
    return found


def _slug(label: str) -> str:
    """Return a label as part of a folder's name: "2/255" -> "2-255"."""
    return re.sub(r"[^A-Za-z0-9.+]+", "-", label).strip("-.") or "value"
