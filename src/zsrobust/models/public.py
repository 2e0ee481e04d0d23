"""The table of public robust weights: names, forms, the base and the activation each needs."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import yaml


@dataclass(frozen=True, slots=True)
class PublicWeights:
    """One public checkpoint.

    Args:
        name: ORG/NAME on the hub, or the file's name.
        form: "hub" (an open_clip folder there), "visual" (bare visual state dict), "authors" (the
            TeCoA authors' dict), "transformers", "fork" (a config of another open_clip).
        backbone: open_clip's architecture.
        start: the tag its training started from.
        method: how it was hardened.
        eps: linf radius of training, "n/255"; "" where it is not known.
        quick_gelu: whether its weights need QuickGELU; None where nobody has verified it.
        source: where it is described.
        note: what to know.
        refused: why it cannot be loaded as it is; "" where it can.
    """

    name: str
    form: str
    backbone: str
    start: str
    method: str
    eps: str
    quick_gelu: bool | None
    source: str
    note: str = ""
    refused: str = ""

    @property
    def base(self) -> str:
        """The spec that a file of this kind is laid over."""
        return f"{self.backbone}:{self.start}"

    @property
    def spec(self) -> str:
        """What to write to load it."""
        if self.form in ("visual", "authors"):
            return f"{self.name}@{self.base}"
        return f"hf-hub:{self.name}"


@cache
def public_weights() -> tuple[PublicWeights, ...]:
    """Return the table, in its own order."""
    table = yaml.safe_load(Path(__file__).with_name("public.yaml").read_text(encoding="utf-8"))
    return tuple(PublicWeights(**row) for row in table["weights"])


def public_hub(repo: str) -> PublicWeights | None:
    """Return the row of a hub repository, if it is in the table."""
    rows = (row for row in public_weights() if "/" in row.name and row.name.lower() == repo.lower())
    return next(rows, None)


def public_file(name: str) -> PublicWeights | None:
    """Return the row of a file by its name, if it is in the table."""
    return next((row for row in public_weights() if row.name == name and "/" not in name), None)
