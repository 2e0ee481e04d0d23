"""A recipe: the YAML file that fixes a whole hardening.

Defaults are written here once; a recipe's `base`, its own file and `key=value` on the command line
override them, in this order. Every key that moves a weight is part of what a run must agree with to be
resumed.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    model_serializer,
    model_validator,
)

from zsrobust.adaptations import ADAPTATIONS, Adaptation, setting_names
from zsrobust.adaptations import build as build_adaptation
from zsrobust.data.texts import preset_of
from zsrobust.errors import EnvironmentFault, UserError, unknown_name
from zsrobust.objectives import OBJECTIVES, SETTINGS, objective_class
from zsrobust.preprocess import ImageRule
from zsrobust.threat import Norm, Resolution, Threat, parse_eps, parse_step
from zsrobust.training.reading import has_numbers, in_words, put_override, read_yaml


def _read_eps(value: Any) -> Any:
    # linf's upper bound is checked where the norm is known.
    return parse_eps(value, "any") if isinstance(value, str | int | float) else value


def _read_templates(value: list[str] | None) -> list[str] | None:
    if value == []:
        raise UserError("give at least one template, or leave the key out.")
    if value is not None:
        preset_of(value)
    return value


def _read_classnames(value: list[str] | None) -> list[str] | None:
    if value is not None and len(set(value)) < 2:
        raise UserError("give two different class names or more, or leave the key out.")
    return value


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str | int | float) else value


Templates = Annotated[list[str] | None, BeforeValidator(_as_list), AfterValidator(_read_templates)]


def _read_warmup(value: float | int | None) -> float | int | None:
    if value is not None and value >= 1 and value != int(value):
        raise UserError(f"it is a number of steps, or a fraction below 1, got {value}.")
    return value


def _known(what: str, names: Iterable[str]) -> Callable[[str], str]:
    def read(value: str) -> str:
        if value not in names:
            raise unknown_name(what, value, names)
        return value

    return read


def _read_name(value: str) -> str:
    # A run's folder is named after it, below runs/.
    if not value or any(part in ("", ".", "..") for part in value.split("/")):
        raise UserError(f"a recipe's name is a name such as mine/first-try, got {value!r}.")
    return value


Eps = Annotated[float, BeforeValidator(_read_eps)]
Beta = Annotated[float, Field(ge=0, lt=1)]
Betas = tuple[Beta, Beta]
Name = Annotated[str, AfterValidator(_read_name)]


class Part(BaseModel):
    """A block of a recipe: no unknown key, nothing changed once it is read."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _no_truth_for_a_number(cls, data: Any) -> Any:
        # Python counts true as 1; as a text it is refused where a number is wanted.
        if not isinstance(data, dict):
            return data
        fields = cls.model_fields
        return {
            name: str(value).lower()
            if isinstance(value, bool) and name in fields and has_numbers(fields[name].annotation)
            else value
            for name, value in data.items()
        }


class Source(Part):
    """The images the hardening sees."""

    set: str
    """A set's spec: a card's name, wds:DIR, folder:DIR, hf-hub:REPO."""
    split: str = "train"
    limit: int | None = Field(default=None, ge=1)
    """Use the first N of the set's fixed order; null is all."""
    per_class: int | None = Field(default=None, ge=1)
    """Use the first N of each class in the fixed order, in place of a limit; null is all."""
    templates: Templates = None
    """Class templates with one {}, or a preset: paper, openai, clip-benchmark; null takes the set's
    own, else "a photo of a {}."."""
    preprocess: ImageRule = "model"
    """How images are brought to size: the model's own rule, or paper (short side 256, crop 224)."""

    @model_validator(mode="after")
    def _one_size(self) -> Source:
        if self.limit is not None and self.per_class is not None:
            raise UserError(
                f"limit is {self.limit} and per_class {self.per_class}: give one of them, the other as null."
            )
        return self


class Validation(Part):
    """Held-out source images, the only ones on which anything may be chosen (traps 36)."""

    set: str | None = None
    """Null: the source set."""
    split: str = "val"
    limit: int = Field(default=500, ge=1)
    attack: str = "pgd-10"
    every: Literal["epoch", "end", "never"] = "end"


class ThreatPart(Part):
    """The training threat."""

    norm: Norm = "linf"
    eps: Eps = 1 / 255
    """Radius in [0, 1]-pixel units, 2/255."""
    resolution: Resolution | None = None
    """Where the ball lies, "model" or "native"; null takes the source set's own."""

    @model_validator(mode="after")
    def _eps_fits_the_norm(self) -> ThreatPart:
        parse_eps(self.eps, self.norm)
        return self


class Adversary(Part):
    """The training adversary: PGD, last iterate."""

    steps: int = Field(default=2, ge=0)
    step_size: Eps | None = None
    """In [0, 1]-pixel units; null is eps."""
    start: Literal["uniform", "clean"] = "uniform"
    momentum: float = Field(default=0.0, ge=0.0, lt=1.0)

    @model_validator(mode="after")
    def _moves(self) -> Adversary:
        if self.step_size == 0 and self.steps:
            raise UserError(
                f"step_size is 0, so that none of the {self.steps} steps moves: give a size such as 1/255, "
                "or steps: 0."
            )
        return self


_LACKS = {
    "temperature": "has none",
    "head_start": "trains no linear head",
    "adversary": "has no choice of it",
    "dictionary": "has none",
    "classnames": "takes the source's own, if any",
}
"""What an objective lacks that has not the setting, for the message."""


class ObjectivePart(Part):
    """What is minimised."""

    name: Annotated[str, AfterValidator(_known("objective", OBJECTIVES))] = "tecoa"
    temperature: float | None = Field(default=None, gt=0)
    """tau of the loss; null takes the model's own 1 / exp(logit_scale)."""
    head_start: Literal["random", "probe"] | None = None
    """Where a linear head starts: random, or fitted on the source's clean features; null is random."""
    adversary: Literal["none", "pgd"] | None = None
    """Of `linear`: what its images go through, nothing, or the recipe's adversary; null is none."""
    dictionary: Literal["fixed", "trained"] | None = None
    """Of `coadv`: whether its random class vectors stay or move with the tower; null is fixed."""
    classnames: Annotated[list[str] | None, AfterValidator(_read_classnames)] = None
    """Of `tecoa-pseudo`: the names to choose among, for a source without its own; null takes the set's."""

    @model_validator(mode="after")
    def _only_its_own(self) -> ObjectivePart:
        """Refuse a setting that only other objectives have."""
        for key in type(self).model_fields:
            value = getattr(self, key)
            if key == "name" or value is None or key in SETTINGS[self.name]:
                continue
            having = [repr(name) for name in SETTINGS if key in SETTINGS[name]]
            others = f", or use {' or '.join(having)}" if len(having) < 3 else ""
            raise UserError(
                f"{key} is {value!r}, but objective {self.name!r} {_LACKS[key]}: leave it out{others}."
            )
        return self


class AdaptationPart(Part):
    """Which parameters move. Settings are of some adaptations; null, or left out, is the adaptation's own default.

    What each means, and its default, stands in the adaptation's class.
    """

    name: Annotated[str, AfterValidator(_known("adaptation", ADAPTATIONS))] = "full"
    blocks: int | None = None
    budget: int | None = None
    tensors: int | None = None
    rank: int | None = None
    alpha: float | None = None
    targets: Annotated[list[str] | None, BeforeValidator(_as_list)] = None
    kind: str | None = None
    width: int | None = None
    added: str | None = None
    tokens: int | None = None
    where: str | None = None
    depth: str | None = None
    position: str | None = None
    std: float | None = None
    token_std: float | None = None

    @model_validator(mode="after")
    def _only_its_own(self) -> AdaptationPart:
        """Refuse a setting that only other adaptations have, and values out of range."""
        for key in self._given():
            if key in setting_names(self.name):
                continue
            having = [repr(name) for name in ADAPTATIONS if key in setting_names(name)]
            raise UserError(
                f"{key} is a setting of {' and '.join(having)}, adaptation {self.name!r} has "
                f"{', '.join(setting_names(self.name)) or 'none'}: leave it out, or use another adaptation."
            )
        self.build()
        return self

    @model_serializer
    def _resolved(self) -> dict[str, Any]:
        """Write the settings in force, defaults too, and no others."""
        return {"name": self.name, **self.build().settings()}

    def _given(self) -> dict[str, Any]:
        names = [key for key in type(self).model_fields if key != "name"]
        return {key: value for key in names if (value := getattr(self, key)) is not None}

    def build(self) -> Adaptation:
        """Return the adaptation.

        Raises:
            UserError: if a value is out of its range.
        """
        return build_adaptation(self.name, self._given())


_TOWER = ("full", "partial", "lora", "pixel", "token", "pixel+token")
"""Adaptations of which something moves in the image tower, or before it."""

GOES_WITH: dict[str, tuple[str, ...]] = {
    "tecoa": _TOWER,
    "tecoa-pairs": _TOWER,
    "tecoa-pseudo": _TOWER,
    "ce": _TOWER,
    "linear": ("linear",),
    "adv": _TOWER,
    "coadv": _TOWER,
    "imgcoadv": _TOWER,
    "fare": _TOWER,
}
"""Objective -> the adaptations that it is trained with; every other pair is refused."""


def _no_pair(objective: str, adaptation: str) -> str:
    """Return why an objective is not trained with an adaptation, and what goes instead."""
    allowed = [repr(name) for name in GOES_WITH[objective]]
    if objective == "linear":
        why = "a linear probe moves its head alone"
    elif adaptation == "linear":
        why = "this objective would move nothing, its features are frozen"
    else:
        why = "nobody has defined what that means"
    others = f"{', '.join(allowed[:-1])} or {allowed[-1]}" if len(allowed) > 1 else allowed[0]
    return (
        f"objective {objective!r} with adaptation {adaptation!r}: {why}; objective {objective!r} goes with "
        f"adaptation {others}."
    )


class Optimiser(Part):
    """SGD or AdamW; the rate's default has no meaning, so it must be given."""

    name: Literal["sgd", "adamw"] = "adamw"
    lr: float = Field(gt=0)
    momentum: float = Field(default=0.9, ge=0, lt=1)
    """Of SGD."""
    betas: Betas = (0.9, 0.999)
    """Of AdamW."""
    weight_decay: float = Field(default=0.0, ge=0)
    """Not applied to biases, norms, class and position embeddings, prompts (traps 44)."""


class Schedule(Part):
    """Warm-up, then cosine to zero or constant; counted in optimiser steps."""

    kind: Literal["cosine", "constant"] = "cosine"
    warmup: Annotated[float | int | None, AfterValidator(_read_warmup)] = Field(default=None, ge=0)
    """Steps, a fraction of all steps if below 1, null is min(1000, 10%)."""


class EvaluatePart(Part):
    """What `zsrobust harden` measures before and after."""

    sets: str
    attacks: list[str] = Field(default=["clean", "pgd-20", "cw-margin-20"], min_length=1)
    norm: Norm = "linf"
    eps: Annotated[list[Eps], BeforeValidator(_as_list)] = Field(min_length=1)
    limit: int | None = Field(default=None, ge=1)
    templates: Templates = None
    """As the source's, for all sets."""
    preprocess: ImageRule = "model"
    """As the source's."""
    resolution: Resolution | None = None
    """Attack at the "model" size or the "native" one; null is each set's own."""
    duplicates: Literal["merge", "keep"] = "merge"
    """How classes with equal texts are scored; "keep" as published numbers have it."""
    with_source: bool = False
    """Measure the suite's source set too, outside the mean."""
    head: bool = False
    """Measure by the head or dictionary that the hardening trained, on sets of its source's classes."""

    @model_validator(mode="after")
    def _fits(self) -> EvaluatePart:
        for radius in self.eps:
            parse_eps(radius, self.norm)
        if self.head and self.templates is not None:
            raise UserError("a head has no class texts: leave evaluate.templates out, or head.")
        return self


class RunRecipe(Part, ABC):
    """What a run of any kind needs of its recipe."""

    name: Name
    title: str = ""

    @abstractmethod
    def determining(self) -> dict[str, Any]:
        """Return what determines the weights, as JSON: a run resumes only under the same."""


class Recipe(RunRecipe):
    """A whole hardening."""

    model: str
    """Spec of the model to harden."""
    source: Source
    validation: Validation | None = None
    objective: ObjectivePart = ObjectivePart()
    adaptation: AdaptationPart = AdaptationPart()
    threat: ThreatPart = ThreatPart()
    adversary: Adversary = Adversary()
    optimiser: Optimiser
    schedule: Schedule = Schedule()
    epochs: Annotated[int | float, Field(gt=0)] = 1
    """Passes over the source; of 2.5 the last pass sees the first half of its order."""
    batch: int = Field(default=64, ge=1)
    """Samples of one optimiser step, over all ranks."""
    micro_batch: int | None = Field(default=None, ge=1)
    """Samples of one backward, on one rank; null is no gradient accumulation."""
    precision: Literal["fp32", "bf16", "fp64"] = "fp32"
    """bf16 autocasts the encoder alone; fp64 is for checks."""
    seed: int = 0
    select: Literal["last", "best"] = "last"
    """best: the epoch with the highest accuracy on held-out source images, as `chosen_by` says which."""

    # What follows moves no weight beyond rounding: a run may be resumed with other values.
    device: str = "auto"
    devices: int = Field(default=1, ge=1)
    workers: Annotated[int, Field(ge=0)] | Literal["auto"] = "auto"
    """Loading processes; auto is 0 on a CPU, else 8."""
    threads: int | None = Field(default=None, ge=1)
    """CPU threads of torch; null leaves them. Bit-identical resumption needs the same number."""
    checkpoint_every: int = Field(default=100, ge=1)
    """Optimiser steps between checkpoints."""
    evaluate: EvaluatePart | None = None

    @model_validator(mode="after")
    def _contradictions(self) -> Recipe:
        if self.adversary.step_size:  # beyond the whole range it was meant in /255
            try:
                parse_step(self.adversary.step_size, self.threat.norm)
            except UserError as error:
                raise UserError(f"adversary.step_size: {error}") from error
        accumulates = self.micro_batch is not None and self.micro_batch < self.batch
        if accumulates and objective_class(self.objective.name).couples_batch:
            raise UserError(
                f"objective {self.objective.name!r} couples the samples of a batch: it cannot be "
                "accumulated; leave micro_batch out, or lower batch."
            )
        if self.adaptation.name not in GOES_WITH[self.objective.name]:
            raise UserError(_no_pair(self.objective.name, self.adaptation.name))
        if self.objective.name == "fare" and self.adversary.start != "uniform":
            raise UserError(
                f"adversary.start is {self.adversary.start!r}, but objective 'fare' has no gradient at the "
                "clean image, so that its adversary would never move: leave it out, or write uniform."
            )
        if self.select == "best" and (self.validation is None or self.validation.every != "epoch"):
            raise UserError("select: best needs validation with every: epoch.")
        return self

    def attack_threat(self) -> Threat:
        """Return norm and eps of training; the resolution shows in the images themselves."""
        return Threat(self.threat.norm, self.threat.eps, self.threat.resolution or "model")

    @property
    def chosen_by(self) -> Literal["robust", "clean"]:
        """The accuracy on held-out source images that chooses a rate or an epoch: clean without an adversary."""
        chosen = self.objective.adversary
        kind = objective_class(self.objective.name)
        attacked = kind.adversarial if chosen is None else chosen == "pgd"
        return "robust" if attacked else "clean"

    def step_size(self) -> float:
        """Return the adversary's step size in [0, 1]-pixel units."""
        given = self.adversary.step_size
        return self.threat.eps if given is None else given

    def determining(self) -> dict[str, Any]:
        """Return what moves the weights, as JSON: a run resumes only under the same."""
        volatile = {
            "title",
            "device",
            "devices",
            "workers",
            "threads",
            "checkpoint_every",
            "evaluate",
        }
        if self.select == "last":
            volatile.add("validation")  # then it measures and chooses nothing
        return self.model_dump(mode="json", exclude=volatile)


def recipe_names() -> list[str]:
    """Return the hardening recipes that come with the package, "mini/tecoa-ft-eps1" and so on."""
    return packaged_recipes(pretraining=False)


def packaged_recipes(*, pretraining: bool) -> list[str]:
    """Return the names of the packaged recipes of one kind, sorted."""
    return [n for n in _packaged() if is_pretraining(read_recipe(n)) == pretraining]


def _packaged() -> list[str]:
    root = resources.files("zsrobust") / "recipes"
    names = []
    for folder in root.iterdir():
        if folder.is_dir():
            names += [
                f"{folder.name}/{file.name.removesuffix('.yaml')}"
                for file in folder.iterdir()
                if file.name.endswith(".yaml")
            ]
    return sorted(names)


def is_pretraining(data: dict[str, Any]) -> bool:
    """Whether a recipe trains a model from scratch: it alone says how the model is built."""
    return "architecture" in data


def load_recipe(name_or_file: str, overrides: list[str] | None = None) -> Recipe:
    """Read a recipe of a hardening.

    Args:
        name_or_file: a packaged name ("mini/tecoa-ft-eps1") or a YAML file.
        overrides: "key=value" with dotted keys, values as YAML: "optimiser.lr=1e-4".

    Raises:
        UserError: for an unknown name, a file that is no YAML mapping, a wrong key, type or value, or
            a pretraining recipe.
    """
    return parse_recipe(read_recipe(name_or_file, overrides), name_or_file)


def read_recipe(
    name_or_file: str, overrides: list[str] | None = None, *, pretraining: bool = False
) -> dict[str, Any]:
    """Return a recipe of any kind as the mapping that it is, unchecked: over its base, with the overrides in it.

    Args:
        name_or_file: a packaged name or a YAML file.
        overrides: as in `load_recipe`.
        pretraining: the kind whose names are shown where the name is unknown.

    Raises:
        UserError: for an unknown name, or a file that is no YAML mapping.
    """
    return put_overrides(_read_with_base(name_or_file, pretraining, ()), overrides)


def _read_with_base(name_or_file: str, pretraining: bool, above: tuple[str, ...]) -> dict[str, Any]:
    """Return a recipe laid over its base, and that over its own, down to one without; `above` led to it."""
    if name_or_file in above:
        circle = " -> ".join([*above[above.index(name_or_file) :], name_or_file])
        raise UserError(f"recipe {name_or_file} is its own base ({circle}): leave one `base` out.")
    path = Path(name_or_file)
    is_file = (
        path.suffix in (".yaml", ".yml") or path.is_file() or bool(name_or_file and path.is_dir())
    )
    text = None
    if not is_file and name_or_file in _packaged():
        text = (resources.files("zsrobust") / "recipes" / f"{name_or_file}.yaml").read_text("utf-8")
    elif not is_file:
        names = packaged_recipes(pretraining=pretraining)
        raise unknown_name("recipe", name_or_file, names, "Or give a .yaml file.")
    data = read_mapping(name_or_file, text)
    base = data.pop("base", None)
    if base is None:
        return data
    if not isinstance(base, str):
        raise UserError(
            f"recipe {name_or_file}: base must be a recipe's name or a .yaml file, got {base!r}."
        )
    under = _read_with_base(base_place(base, name_or_file), pretraining, (*above, name_or_file))
    # Two recipes of one name would share a folder of runs, and a title says what only its own does.
    return laid_over({k: v for k, v in under.items() if k not in ("name", "title")}, data)


def base_place(base: str, above: str) -> str:
    """Return where a base lies: a file beside the one that names it, else what it says.

    Args:
        base: a packaged name or a YAML file.
        above: the file or packaged name that names it.
    """
    beside = Path(above).parent / base
    return str(beside) if base.endswith((".yaml", ".yml")) and beside.is_file() else base


def laid_over(base: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
    """Return `base` with the keys of `own` in it, block by block.

    A block that names another objective, adaptation or optimiser than its base's takes nothing of it: the
    settings of the one are not those of the other.
    """
    merged = dict(base)
    for key, value in own.items():
        under = base.get(key)
        merged[key] = value
        if isinstance(value, dict) and isinstance(under, dict):
            named = under.get("name")
            if value.get("name", named) == named:
                merged[key] = laid_over(under, value)
    return merged


def put_overrides(data: dict[str, Any], overrides: list[str] | None) -> dict[str, Any]:
    """Put "key=value" overrides into a mapping, and return it.

    Raises:
        UserError: if one has not this form, or a key is given twice.
    """
    given: list[str] = []
    for override in overrides or []:
        given.append(put_override(data, override))
        if given.count(given[-1]) > 1:
            raise UserError(f"{override!r}: {given[-1]} is given twice; leave one of them out.")
    return data


def read_mapping(name_or_file: str, text: str | None, kind: str = "recipe") -> dict[str, Any]:
    """Return a YAML file as the mapping that it is, unchecked.

    Args:
        name_or_file: names it in messages.
        text: what it holds; None reads the file.
        kind: "recipe", or what else it is.

    Raises:
        UserError: if the file does not exist, or is no YAML mapping.
        EnvironmentFault: if it cannot be read.
    """
    path = Path(name_or_file)
    if text is None:
        if path.is_dir():
            raise UserError(
                f"{kind} {name_or_file} is a folder; give a {kind}'s name or a YAML file."
            )
        if not path.is_file():
            raise UserError(f"{kind} file {name_or_file} does not exist; check the path.")
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise UserError(
                f"{kind} file {name_or_file} is not UTF-8 text; give a YAML file, saved as UTF-8."
            ) from error
        except OSError as error:
            raise EnvironmentFault(
                f"cannot read {name_or_file}: {error.strerror or error}; mend it and try again."
            ) from error
    data = read_yaml(text, f"{kind} {name_or_file}")
    if not isinstance(data, dict):
        found = (
            "is empty"
            if data is None
            else "holds a list"
            if isinstance(data, list)
            else f"is no {kind}"
        )
        raise UserError(
            f"{kind} {name_or_file} {found}; it must be a mapping of keys to values, one 'key: value' a line."
        )
    return data


def parse_recipe(data: dict[str, Any], what: str = "recipe") -> Recipe:
    """Check a mapping against the schema; all mistakes are reported together, in one line.

    Raises:
        UserError: names each wrong key with what is allowed; or says that it is a pretraining recipe.
    """
    if is_pretraining(data):
        raise UserError(
            f"recipe {what} trains a model from scratch (it has the key 'architecture'): run it with "
            "zsrobust pretrain."
        )
    return check_recipe(Recipe, data, what)


Schema = TypeVar("Schema", bound=Part)


def check_recipe(
    schema: type[Schema], data: dict[str, Any], what: str, kind: str = "recipe"
) -> Schema:
    """Check a mapping against a schema; all mistakes are reported together, in one line.

    Raises:
        UserError: names each wrong key with what is allowed.
    """
    try:
        return schema.model_validate(data)
    except ValidationError as error:
        mistakes = in_words(error.errors(), schema)
        end = "" if mistakes.endswith("?") else "."
        raise UserError(f"{_called(what, kind)}: {mistakes}{end}") from error


def _called(what: str, kind: str) -> str:
    return kind if what == kind else f"{kind} {what}"
