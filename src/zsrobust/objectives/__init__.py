"""Objectives: what hardening minimises and what its adversary maximises, one file each.

`OBJECTIVES` is written out by hand: name -> (module, class, what it is, for `zsrobust list objectives`);
so is `SETTINGS`, what of a recipe's objective block each of them reads beside its name.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from zsrobust.errors import unknown_name

if TYPE_CHECKING:
    from zsrobust.objectives.objective import Objective

OBJECTIVES: dict[str, tuple[str, str, str]] = {
    "tecoa": (
        "tecoa",
        "Tecoa",
        "cross-entropy of the adversarial image towards its own class text",
    ),
    "tecoa-pairs": (
        "tecoa",
        "TecoaPairs",
        "the same towards its own caption among the batch's captions",
    ),
    "tecoa-pseudo": (
        "pseudo",
        "TecoaPseudo",
        "the same towards the class text that the original model predicts; needs no labels",
    ),
    "ce": (
        "clean",
        "Ce",
        "cross-entropy of the clean image towards its own class text, no adversary",
    ),
    "linear": (
        "linear",
        "Linear",
        "linear probe: cross-entropy of a linear head on frozen features",
    ),
    "adv": (
        "adversarial",
        "Adv",
        "the paper's baseline FT(Adv.): cross-entropy of a linear head, without text",
    ),
    "coadv": (
        "coadv",
        "CoAdv",
        "the paper's baseline CoAdv.: tecoa with random class vectors in place of texts",
    ),
    "imgcoadv": (
        "imgcoadv",
        "ImgCoAdv",
        "the paper's baseline ImgCoAdv.: towards the clean image's feature among the batch's",
    ),
    "fare": (
        "fare",
        "Fare",
        "squared distance to the original model's clean feature; needs neither labels nor names",
    ),
}

SETTINGS: dict[str, tuple[str, ...]] = {
    "tecoa": ("temperature",),
    "tecoa-pairs": ("temperature",),
    "tecoa-pseudo": ("temperature", "classnames"),
    "ce": ("temperature",),
    "adv": ("head_start",),
    "linear": ("head_start", "adversary"),
    "coadv": ("temperature", "dictionary"),
    "imgcoadv": ("temperature",),
    "fare": (),
}


def objective_class(name: str) -> type[Objective]:
    """Return the class of a name in `OBJECTIVES`.

    Raises:
        UserError: for an unknown name, with the nearest ones.
    """
    if name not in OBJECTIVES:
        raise unknown_name("objective", name, OBJECTIVES)
    module, kind, _ = OBJECTIVES[name]
    # Only when asked for: the modules need torch.
    found: type[Objective] = getattr(import_module(f"{__name__}.{module}"), kind)
    return found
