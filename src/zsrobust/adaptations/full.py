"""Full fine-tuning: every parameter of the image tower moves, nothing else does."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from zsrobust.errors import UserError

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True, slots=True)
class Full:
    """The whole image tower, of any open_clip model; the text tower and the scale stay frozen.

    Source: Mao et al., ICLR 2023 (facts 3.2). Difference: batch norm's statistics do not move
    (traps 10); the TeCoA paper's towers have none.
    """

    name: ClassVar[str] = "full"

    def settings(self) -> dict[str, Any]:
        """Return the settings as JSON, for records."""
        return asdict(self)

    def apply(self, model: nn.Module) -> list[tuple[str, nn.Parameter]]:
        """Freeze `model`, then free its image tower; return what moves, as (name, parameter).

        Names are the model's own ("visual...."). The model is left in eval mode, so that batch norm
        keeps its statistics and dropout is off; who trains it must leave it so.

        Raises:
            UserError: if the model has no image tower, or one without parameters.
        """
        tower = getattr(model, "visual", None)
        moving = list(tower.named_parameters(prefix="visual")) if tower is not None else []
        if not moving:
            raise UserError(
                f"full fine-tuning: {type(model).__name__} has no image tower with parameters "
                "to move; it needs an open_clip model."
            )
        model.eval().requires_grad_(False)
        for _, parameter in moving:
            parameter.requires_grad_(True)
        return moving
