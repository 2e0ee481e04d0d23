"""A pretraining recipe: the YAML file that fixes how a small CLIP is made.

It is told from a hardening's recipe (training/recipe.py) by the key `architecture`.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_validator

from zsrobust.errors import UserError
from zsrobust.training.recipe import (
    Betas,
    Part,
    RunRecipe,
    Schedule,
    check_recipe,
    is_pretraining,
    packaged_recipes,
    read_recipe,
)


def _read_architecture(value: dict[str, Any]) -> dict[str, Any]:
    absent = [key for key in ("embed_dim", "vision_cfg", "text_cfg") if key not in value]
    if absent:
        raise UserError(
            f"open_clip's model_cfg has embed_dim, vision_cfg and text_cfg; {', '.join(absent)} is missing."
        )
    for key in ("vision_cfg", "text_cfg"):
        if not isinstance(value[key], dict):
            raise UserError(f"{key} is a mapping, got {value[key]!r}.")
    if value["vision_cfg"].get("patch_dropout"):
        raise UserError("patch dropout is given by the recipe's own key patch_dropout.")
    return value


class CaptionedSource(Part):
    """The images that the model is made of, each with captions."""

    set: str
    """A set's spec: a card's name, wds:DIR, folder:DIR, hf-hub:REPO."""
    split: str = "train"
    limit: int | None = Field(default=None, ge=1)
    """Use the first N of the set's fixed order; null is all."""


class ZeroShotSet(Part):
    """A labelled set on which the model is measured on the way, clean, with its own texts."""

    set: str
    split: str | None = None
    """Null: the set's own."""
    limit: int | None = Field(default=500, ge=1)
    """Use the first N of the set's fixed order; null is all. Their pixels stay in memory."""


class AdamW(Part):
    """AdamW with eps 1e-6; the defaults are CLIP's, the rate must be given."""

    lr: float = Field(gt=0)
    betas: Betas = (0.9, 0.98)
    weight_decay: float = Field(default=0.2, ge=0)
    """Not applied to biases, norms, class and position embeddings, the logit scale (traps 44)."""


class PretrainRecipe(RunRecipe):
    """A whole pretraining."""

    architecture: Annotated[dict[str, Any], AfterValidator(_read_architecture)]
    """open_clip's model_cfg: embed_dim, vision_cfg, text_cfg."""
    preprocess: dict[str, Any] = Field(default_factory=dict)
    """open_clip's preprocess_cfg: mean, std, interpolation, resize_mode."""
    source: CaptionedSource
    optimiser: AdamW
    schedule: Schedule = Schedule()
    epochs: int = Field(default=1, ge=1)
    batch: int = Field(default=256, ge=2)
    """Images that are contrasted with each other; an epoch's incomplete last batch is left out."""
    gradient_clip: float | None = Field(default=1.0, gt=0)
    """Largest L2 norm of the whole gradient; null does not clip."""
    patch_dropout: float = Field(default=0.0, ge=0, lt=1)
    """Fraction of an image's patches that a step does not look at; ViTs only."""
    full_patches: float = Field(default=0.15, ge=0, le=1)
    """The last fraction of the steps, which look at all patches."""
    precision: Literal["fp32"] = "fp32"
    seed: int = 0
    """Of weights, order, captions and dropped patches."""

    # What follows moves no weight beyond rounding: a run may be resumed with other values.
    validation: list[ZeroShotSet] = Field(default_factory=list)
    validate_every: int | None = Field(default=None, ge=1)
    """Steps between validations; null is at the end alone."""
    device: str = "auto"
    workers: int = Field(default=1, ge=0)
    """Loading processes; 0 loads between the steps."""
    keep_pixels: bool = True
    """Keep what was loaded in memory (images x 3 x height x width bytes), so that it is loaded once."""
    threads: int | None = Field(default=None, ge=1)
    """CPU threads of torch; null leaves them. Bit-identical resumption needs the same number."""
    checkpoint_every: int = Field(default=100, ge=1)
    """Optimiser steps between checkpoints."""

    @model_validator(mode="after")
    def _contradictions(self) -> PretrainRecipe:
        if self.validate_every is not None and not self.validation:
            raise UserError("validate_every needs validation, a list of sets.")
        return self

    def config(self) -> dict[str, Any]:
        """Return what open_clip_config.json holds."""
        return {"model_cfg": self.architecture, "preprocess_cfg": self.preprocess}

    def determining(self) -> dict[str, Any]:
        """Return what determines the weights, as JSON: a run resumes only under the same."""
        volatile = {
            "title",
            "validation",
            "validate_every",
            "device",
            "workers",
            "keep_pixels",
            "threads",
            "checkpoint_every",
        }
        return self.model_dump(mode="json", exclude=volatile)


def pretrain_recipe_names() -> list[str]:
    """Return the pretraining recipes that come with the package."""
    return packaged_recipes(pretraining=True)


def load_pretrain_recipe(name_or_file: str, overrides: list[str] | None = None) -> PretrainRecipe:
    """Read a pretraining recipe; arguments as in `load_recipe`.

    Raises:
        UserError: for an unknown name, a file that is no YAML mapping, a wrong key, type or value, or
            a hardening's recipe.
    """
    data = read_recipe(name_or_file, overrides, pretraining=True)
    return parse_pretrain_recipe(data, name_or_file)


def parse_pretrain_recipe(data: dict[str, Any], what: str = "recipe") -> PretrainRecipe:
    """Check a mapping against the schema; all mistakes are reported together, in one line.

    Raises:
        UserError: names each wrong key with what is allowed; or says that it is a hardening's recipe.
    """
    if not is_pretraining(data) and "model" in data:
        raise UserError(
            f"recipe {what} hardens a model (it has the key 'model', not 'architecture'): run it with "
            "zsrobust harden."
        )
    return check_recipe(PretrainRecipe, data, what)
