"""Objectives: what hardening minimises and what its adversary maximises, one file each.

`OBJECTIVES` is written out by hand: name -> (class, what it is, for `zsrobust list objectives`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from zsrobust.errors import unknown_name

if TYPE_CHECKING:
    from zsrobust.objectives.objective import Objective

OBJECTIVES: dict[str, tuple[str, str]] = {
    "tecoa": ("Tecoa", "cross-entropy of the adversarial image towards its own class text"),
    "tecoa-pairs": ("TecoaPairs", "the same towards its own caption among the batch's captions"),
}


def objective_class(name: str) -> type[Objective]:
    """Return the class of a name in `OBJECTIVES`.

    Raises:
        UserError: for an unknown name, with the nearest ones.
    """
    if name not in OBJECTIVES:
        raise unknown_name("objective", name, OBJECTIVES)
    from zsrobust.objectives import tecoa

    found: type[Objective] = getattr(tecoa, OBJECTIVES[name][0])
    return found
