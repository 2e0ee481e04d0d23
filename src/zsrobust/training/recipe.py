"""A recipe: the YAML file that fixes a whole hardening.

Defaults are written here once; a recipe file and `key=value` on the command line override them. Every
key that moves a weight is part of what a run must agree with to be resumed.
"""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)

from zsrobust.adaptations import ADAPTATIONS
from zsrobust.errors import UserError, unknown_name
from zsrobust.objectives import OBJECTIVES, objective_class
from zsrobust.threat import Norm, Resolution, Threat, parse_eps


def _read_eps(value: Any) -> Any:
    # linf's upper bound is checked where the norm is known.
    if isinstance(value, bool):
        raise UserError(f"eps must be a number such as 2/255, got {value}.")
    return parse_eps(value, "any") if isinstance(value, str | int | float) else value


def _read_templates(value: list[str] | None) -> list[str] | None:
    for template in value or []:
        if template.count("{}") != 1:
            raise UserError(
                f"template {template!r} must hold {{}} exactly once, where the name goes."
            )
    return value


Templates = Annotated[list[str] | None, AfterValidator(_read_templates)]


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str | int | float) else value


Eps = Annotated[float, BeforeValidator(_read_eps)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Source(_Part):
    """The images the hardening sees."""

    set: str
    """A set's spec: a card's name, wds:DIR, folder:DIR, hf-hub:REPO."""
    split: str = "train"
    limit: int | None = Field(default=None, ge=1)
    """Use the first N of the set's fixed order; null is all."""
    templates: Templates = None
    """Class templates with one {}; null takes the set's own, else "a photo of a {}."."""


class Validation(_Part):
    """Held-out source images, the only ones on which anything may be chosen (traps 36)."""

    set: str | None = None
    """Null: the source set."""
    split: str = "val"
    limit: int = Field(default=500, ge=1)
    attack: str = "pgd-10"
    every: Literal["epoch", "end", "never"] = "end"


class ThreatPart(_Part):
    """The training threat."""

    norm: Norm = "linf"
    eps: Eps = 1 / 255
    """Radius in [0, 1]-pixel units, 2/255."""
    resolution: Resolution | None = None
    """Where the ball lies, "model" or "native"; null takes the source set's own."""


class Adversary(_Part):
    """The training adversary: PGD, last iterate."""

    steps: int = Field(default=2, ge=0)
    step_size: Eps | None = None
    """In [0, 1]-pixel units; null is eps."""
    start: Literal["uniform", "clean"] = "uniform"
    momentum: float = Field(default=0.0, ge=0.0, lt=1.0)


class ObjectivePart(_Part):
    """What is minimised."""

    name: str = "tecoa"
    temperature: float | None = Field(default=None, gt=0)
    """tau of the loss; null takes the model's own 1 / exp(logit_scale)."""


class AdaptationPart(_Part):
    """Which parameters move."""

    name: str = "full"


class Optimiser(_Part):
    """SGD or AdamW; the rate's default has no meaning, so it must be given."""

    name: Literal["sgd", "adamw"] = "adamw"
    lr: float = Field(gt=0)
    momentum: float = Field(default=0.9, ge=0, lt=1)
    """Of SGD."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Of AdamW."""
    weight_decay: float = Field(default=0.0, ge=0)
    """Not applied to biases, norms, class and position embeddings, prompts (traps 44)."""


class Schedule(_Part):
    """Warm-up, then cosine to zero or constant; counted in optimiser steps."""

    kind: Literal["cosine", "constant"] = "cosine"
    warmup: float | int | None = Field(default=None, ge=0)
    """Steps, a fraction of all steps if below 1, null is min(1000, 10%)."""


class EvaluatePart(_Part):
    """What `zsrobust harden` measures before and after."""

    sets: str
    attacks: list[str] = ["clean", "pgd-20", "cw-margin-20"]
    norm: Norm = "linf"
    eps: Annotated[list[Eps], BeforeValidator(_as_list)]
    limit: int | None = Field(default=None, ge=1)
    templates: Templates = None


class Recipe(_Part):
    """A whole hardening."""

    name: str
    title: str = ""
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
    epochs: int = Field(default=1, ge=1)
    batch: int = Field(default=64, ge=1)
    """Samples of one optimiser step, over all ranks."""
    micro_batch: int | None = Field(default=None, ge=1)
    """Samples of one backward, on one rank; null is no gradient accumulation."""
    precision: Literal["fp32", "bf16", "fp64"] = "fp32"
    """bf16 autocasts the encoder alone; fp64 is for checks."""
    seed: int = 0
    select: Literal["last", "best"] = "last"
    """best: the epoch with the highest robust accuracy on held-out source images."""

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
    def _names_and_contradictions(self) -> Recipe:
        self.attack_threat()
        Threat(
            self.threat.norm, self.step_size()
        )  # a step beyond the whole range was meant in /255
        warmup = self.schedule.warmup
        if warmup is not None and warmup >= 1 and warmup != int(warmup):
            raise UserError(
                f"schedule.warmup is a number of steps, or a fraction below 1; got {warmup}."
            )
        if self.objective.name not in OBJECTIVES:
            raise unknown_name("objective", self.objective.name, OBJECTIVES)
        if self.adaptation.name not in ADAPTATIONS:
            raise unknown_name("adaptation", self.adaptation.name, ADAPTATIONS)
        accumulates = self.micro_batch is not None and self.micro_batch < self.batch
        if accumulates and objective_class(self.objective.name).couples_batch:
            raise UserError(
                f"objective {self.objective.name!r} couples the samples of a batch: it cannot be "
                "accumulated; leave micro_batch out, or lower batch."
            )
        if self.select == "best" and (self.validation is None or self.validation.every != "epoch"):
            raise UserError("select: best needs validation with every: epoch.")
        return self

    def attack_threat(self) -> Threat:
        """Return norm and eps of training; the resolution shows in the images themselves."""
        return Threat(self.threat.norm, self.threat.eps, self.threat.resolution or "model")

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
    """Return the names of the recipes that come with the package, "mini/tecoa-ft-eps1" and so on."""
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


def load_recipe(name_or_file: str, overrides: list[str] | None = None) -> Recipe:
    """Read a recipe.

    Args:
        name_or_file: a packaged name ("mini/tecoa-ft-eps1") or a YAML file.
        overrides: "key=value" with dotted keys, values as YAML: "optimiser.lr=1e-4".

    Raises:
        UserError: for an unknown name, a file that is no YAML mapping, or a wrong key, type or value.
    """
    path = Path(name_or_file)
    if path.suffix in (".yaml", ".yml") or path.is_file():
        if not path.is_file():
            raise UserError(f"recipe file {name_or_file} does not exist.")
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise UserError(f"recipe file {name_or_file} is not UTF-8 text.") from error
    elif name_or_file in recipe_names():
        text = (resources.files("zsrobust") / "recipes" / f"{name_or_file}.yaml").read_text("utf-8")
    else:
        raise unknown_name("recipe", name_or_file, recipe_names(), "Or give a .yaml file.")
    try:
        data = yaml.safe_load(text)
    except yaml.YAMLError as error:
        where = " ".join(str(error).split())
        raise UserError(f"recipe {name_or_file} is not YAML: {where}.") from error
    if not isinstance(data, dict):
        raise UserError(f"recipe {name_or_file} must be a mapping of keys to values.")
    for override in overrides or []:
        _override(data, override)
    return parse_recipe(data, name_or_file)


def parse_recipe(data: dict[str, Any], what: str = "recipe") -> Recipe:
    """Check a mapping against the schema; all mistakes are reported together, in one line.

    Raises:
        UserError: names each wrong key with what is allowed.
    """
    try:
        return Recipe.model_validate(data)
    except ValidationError as error:
        raise UserError(
            f"recipe {what}: {'; '.join(_words(e) for e in error.errors())}."
        ) from error


def _words(error: Any) -> str:
    key = ".".join(str(part) for part in error["loc"])
    if error["type"] == "extra_forbidden":
        part: Any = Recipe
        for name in error["loc"][:-1]:
            annotation = part.model_fields[name].annotation
            arguments = [a for a in getattr(annotation, "__args__", ()) if a is not type(None)]
            part = arguments[0] if arguments else annotation
        return str(unknown_name("key", key, part.model_fields)).rstrip(".")
    if error["type"] == "missing":
        return f"key {key!r} is missing"
    message = str(error["msg"]).removeprefix("Value error, ").rstrip(".")
    given = error.get("input")
    shown = f", got {given!r}" if isinstance(given, str | int | float | bool | type(None)) else ""
    return f"{key}: {message}{shown}" if key else message


def _override(data: dict[str, Any], override: str) -> None:
    key, equals, value = override.partition("=")
    if not equals or not key:
        raise UserError(
            f"{override!r} is no override; write key=value, for instance optimiser.lr=1e-4."
        )
    *path, last = key.split(".")
    part = data
    for name in path:
        part = part.setdefault(name, {})
        if not isinstance(part, dict):
            raise UserError(f"{override!r}: {name!r} is a value, it has no keys under it.")
    try:
        part[last] = yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise UserError(f"{override!r}: the value is not YAML.") from error
