"""Full fine-tuning: every parameter of the image tower moves, nothing else does."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from zsrobust.adaptations.adaptation import Adaptation, Moving, free, image_tower

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True, slots=True)
class Full(Adaptation):
    """The whole image tower, of any open_clip model; the text tower and the scale stay frozen.

    Source: Mao et al., ICLR 2023 (facts 3.2). Difference: batch norm's statistics do not move
    (traps 10); the TeCoA paper's towers have none.
    """

    name: ClassVar[str] = "full"

    def apply(self, model: nn.Module, seed: int = 0) -> Moving:
        """Free every parameter of the image tower; see `Adaptation.apply`. Nothing is drawn."""
        del seed
        return free(image_tower(model, self.name).named_parameters(prefix="visual"))
