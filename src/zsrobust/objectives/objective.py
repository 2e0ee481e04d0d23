"""What an objective is: the loss that hardening minimises, and the loss its adversary maximises."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from torch import Tensor, nn

if TYPE_CHECKING:
    from zsrobust.adaptations.linear import LinearHead

Encode = Callable[[Tensor], Tensor]
"""images (N, 3, H, W) in [0, 1] -> image features (N, D), not normalised, float32."""


Needs = Literal["labels", "captions", "names", "images"]
ScoredBy = Literal["texts", "head", "dictionary", "pseudo-labels"]


@dataclass
class TrainingBatch:
    """The samples of one optimiser step (or of one micro-batch of it) on one rank."""

    ids: list[str]
    images: Tensor
    """(N, 3, H, W) float in [0, 1], the clean images."""
    labels: Tensor | None = None
    """(N,) int64, class indices of the source; null where it has none."""
    captions: list[str] | None = None
    """One text an image, for image-text pairs."""
    targets: dict[str, Tensor] = field(default_factory=dict)
    """What `Objective.prepare` computed once for the batch and both losses read."""


class Objective(nn.Module):
    """Base of all objectives; each is one file with one class.

    An objective is a module, so that what it trains along (a linear head) and what it keeps (anchors) move
    with it. Of its parameters those that require a gradient are trained and stand in checkpoints; the rest
    follows from recipe and data, and is made again. Losses are one number a sample: the training step takes
    the mean over the global batch, the adversary their sum.
    """

    name: ClassVar[str]
    needs: ClassVar[Needs]
    """What the source must have: labels (and class names), captions, class names alone, or images alone."""
    couples_batch: ClassVar[bool] = False
    """Whether a sample's loss depends on the others: then no gradient accumulation."""
    adversarial: bool = True
    """Whether the learner sees adversarial images."""
    trains_head: ClassVar[bool] = False
    """Whether a linear head is trained along, `head`."""
    scored_by: ClassVar[ScoredBy] = "texts"
    """What gives held-out images their score: class texts, the linear head, the dictionary, or class texts
    against the labels that the original model predicts."""
    head: LinearHead

    def prepare(self, batch: TrainingBatch, encode: Encode) -> TrainingBatch:
        """Compute, without gradient, what stays fixed while the adversary moves. Default: nothing.

        Args:
            batch: one micro-batch; what is computed is put into its `targets`.
            encode: the current encoder.
        """
        return batch

    def losses(self, encode: Encode, images: Tensor, batch: TrainingBatch) -> Tensor:
        """Return the learner's loss of each sample (N,) at `images`, the adversarial ones."""
        raise NotImplementedError

    def attack_losses(self, encode: Encode, images: Tensor, batch: TrainingBatch) -> Tensor:
        """Return what the adversary maximises, (N,). Default: the learner's own loss."""
        return self.losses(encode, images, batch)

    def settings(self) -> dict[str, Any]:
        """Return what determines the loss, for the record of a run."""
        raise NotImplementedError
