"""LP: a linear probe, a head on frozen image features.

Source: facts 5, where the paper's place for it is open. The formula is ours:

    L = (1/B) sum_i CE( W e(x_i) + b, y_i )

e(x) are the features of the frozen tower before normalisation; W and b alone are trained (the
adaptation `linear`). x_i is the clean image, or, where the recipe says `objective.adversary: pgd`, the
adversarial one: then the adversary maximises the same loss through tower and head.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from zsrobust.adaptations.linear import LinearHead
from zsrobust.objectives.adversarial import Adv


class Linear(Adv):
    """Cross-entropy of a linear head, on clean images unless an adversary is asked for.

    Args:
        head: the head, at its start; K rows, one a source class.
        head_start: how it was made, for records: "random" or "probe".
        adversary: "none" or "pgd".
    """

    name: ClassVar[str] = "linear"
    adversarial: bool = False

    def __init__(
        self,
        head: LinearHead,
        head_start: str = "random",
        adversary: Literal["none", "pgd"] = "none",
    ) -> None:
        super().__init__(head, head_start)
        self.adversarial = adversary == "pgd"

    def settings(self) -> dict[str, Any]:
        """Return name, kind and start of the head, and the adversary."""
        return {**super().settings(), "adversary": "pgd" if self.adversarial else "none"}
