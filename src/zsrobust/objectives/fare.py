"""FARE: the adversarial image's feature stays where the original model has the clean one's.

Source: Schlarmann, Singh, Croce and Hein, "Robust CLIP", ICML 2024, arXiv:2402.12336, code chs20/RobustVLM
(successors 3.1):

    L = (1/B) sum_i | e(x_i') - e0(x_i) |^2

e is the encoder that is trained, e0 the original one, frozen; features are not normalised, the square is
summed over the D dimensions, not averaged (traps 18). There is no text in it and no label. The
adversary maximises the same loss. It must start at random: at x' = x and e = e0 the gradient is zero, so
that a start at the clean image would never move. e0(x) is computed once a batch, without gradient.
Difference from the authors' code: the tower is in eval mode throughout, in the update as well (traps 10).
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from zsrobust.objectives.objective import Encode, Needs, Objective, TrainingBatch

if TYPE_CHECKING:
    from zsrobust.models import Clip
    from zsrobust.models.classifier import ImageEncoder


def squared_distances(features: Tensor, original: Tensor) -> Tensor:
    """Return the squared L2 distance of each row, (N,), summed over D.

    Args:
        features: (N, D), not normalised.
        original: (N, D), those of the original model; no gradient goes there.
    """
    return (features - original.detach()).square().sum(dim=1)


def original_encoder(clip: Clip, precision: str = "fp32") -> ImageEncoder:
    """Return the encoder of a frozen copy of the model's image tower, as it stands now.

    The copy shares text tower and scale with the model: beside the one that is trained there is one
    more image tower in memory (ViT-B/32: 88 million numbers, 351 MB in float32) and nothing else.

    Args:
        clip: before anything of it moves.
        precision: as in `Clip.image_encoder`; the one that training has.
    """
    from zsrobust.models.classifier import ImageEncoder

    model = clip.model
    shared: list[Any] = [child for name, child in model.named_children() if name != "visual"]
    shared += [*model.parameters(recurse=False), *model.buffers(recurse=False)]
    # What the memo holds is taken for copied already.
    twin = copy.deepcopy(model, {id(one): one for one in shared})
    return ImageEncoder(twin.eval().requires_grad_(False), clip.preprocess, precision)


class Fare(Objective):
    """Squared distance to the original model's feature of the clean image.

    Args:
        original: images (N, 3, H, W) in [0, 1] -> features (N, D); frozen, as `original_encoder` makes it.
    """

    name: ClassVar[str] = "fare"
    needs: ClassVar[Needs] = "images"

    def __init__(self, original: torch.nn.Module) -> None:
        super().__init__()
        self.original = original

    def prepare(self, batch: TrainingBatch, encode: Encode) -> TrainingBatch:
        """Compute target "original" (N, D), the original features of the clean images."""
        with torch.no_grad():
            batch.targets = {"original": self.original(batch.images)}
        return batch

    def losses(self, encode: Encode, images: Tensor, batch: TrainingBatch) -> Tensor:
        """Return |e(x') - e0(x)|^2 of each sample, (N,), >= 0, in the features' unit squared."""
        return squared_distances(encode(images), batch.targets["original"])

    def settings(self) -> dict[str, Any]:
        """Return the name; there is nothing to set."""
        return {"name": self.name}
