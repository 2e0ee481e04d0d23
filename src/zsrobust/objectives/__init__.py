"""Objectives: what hardening minimises and what its adversary maximises, one file each.

`OBJECTIVES` is written out by hand: name -> (module, class, what it is, for `zsrobust list objectives`).
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
    "adv": (
        "adversarial",
        "Adv",
        "the paper's baseline FT(Adv.): cross-entropy of a linear head, without text",
    ),
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
