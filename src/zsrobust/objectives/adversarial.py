"""Adv.: ordinary adversarial training with a linear head, the paper's baseline without text.

Source: Mao et al., ICLR 2023, arXiv:2212.07016, contrasts one-hot supervision with its own (facts 5). The
formula is ours, rebuilt: the released code has no such loss.

    L = (1/B) sum_i CE( W e(x_i') + b, y_i )

e(x') are the features of the adversarial image before normalisation, W and b the head, new, trained along
in the same optimiser and thrown away for zero-shot use. The adversary maximises the same loss through
the same encoder and the head as it stands. Nothing holds the image space to the text space.
"""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor
from torch.nn import functional

from zsrobust.adaptations.linear import LinearHead
from zsrobust.errors import UserError
from zsrobust.objectives.objective import Encode, Needs, Objective, ScoredBy, TrainingBatch


class Adv(Objective):
    """Cross-entropy of a linear head on adversarial images.

    Args:
        head: the head, at its start; K rows, one a source class.
        head_start: how it was made, for records: "random" or "probe".
    """

    name: ClassVar[str] = "adv"
    needs: ClassVar[Needs] = "labels"
    trains_head: ClassVar[bool] = True
    scored_by: ClassVar[ScoredBy] = "head"

    def __init__(self, head: LinearHead, head_start: str = "random") -> None:
        super().__init__()
        self.head = head
        self.head_start = head_start

    def losses(self, encode: Encode, images: Tensor, batch: TrainingBatch) -> Tensor:
        """Return CE(W e(x') + b, y) of each sample, (N,), in nats.

        Raises:
            UserError: if the samples carry no labels.
        """
        if batch.labels is None:
            raise UserError(
                f"objective {self.name!r} needs labels; for captions use 'tecoa-pairs'."
            )
        return functional.cross_entropy(self.head(encode(images)), batch.labels, reduction="none")

    def settings(self) -> dict[str, Any]:
        """Return name, and kind and start of the head."""
        return {"name": self.name, "head": "linear", "head_start": self.head_start}
