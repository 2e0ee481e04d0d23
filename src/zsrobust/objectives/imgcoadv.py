"""ImgCoAdv.: the adversarial image towards its own clean image, a baseline of the paper without text or labels.

Source: facts 5 (Mao et al., ICLR 2023, arXiv:2212.07016, rebuilt; the released code has no such loss):

    L = -(1/B) sum_i log( exp(s cos(f(x_i'), f(x_i))) / sum_k exp(s cos(f(x_i'), f(x_k))) )

k runs over the clean images of the global batch, f is the encoder as it stands. Open in the paper and decided
here (facts 8): one direction, adversarial -> clean; no stop-gradient, so the learner moves both sides; the
model's own temperature, exposed. The adversary maximises the same loss; the clean features do not
depend on its images, and are computed once a batch for it. Learning takes a forward and backward of both
views: twice the activations of TeCoA.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from zsrobust.errors import UserError
from zsrobust.objectives.objective import Encode, Needs, Objective, TrainingBatch
from zsrobust.objectives.tecoa import resolve_scale


def info_nce(adversarial: Tensor, clean: Tensor, own: Tensor, scale: float) -> Tensor:
    """Return the contrastive loss of each adversarial image, (N,), in nats, >= 0.

    Args:
        adversarial: (N, D) features, not normalised.
        clean: (G, D) features of the clean images, not normalised.
        own: (N,) int64 in [0, G), the row of each image's clean view.
        scale: 1 / tau, > 0.
    """
    cosines = functional.normalize(adversarial, dim=1) @ functional.normalize(clean, dim=1).T
    return functional.cross_entropy(scale * cosines, own, reduction="none")


def _as_they_are(rows: Tensor) -> Tensor:
    return rows


class ImgCoAdv(Objective):
    """Image against image: the positive is the clean view, the other clean images are negatives.

    Args:
        logit_scale: the model's exp(logit_scale).
        temperature: tau; None takes 1 / logit_scale.
        gather: this rank's sample ids -> those of all ranks, in rank order. Default: one rank.
        add_up: a tensor -> its sum over ranks, equal on all; its backward adds the ranks' gradients up,
            so that a clean image learns from the adversarial ones of every rank. Default: one rank.
    """

    name: ClassVar[str] = "imgcoadv"
    needs: ClassVar[Needs] = "images"
    couples_batch: ClassVar[bool] = True

    def __init__(
        self,
        logit_scale: float,
        temperature: float | None = None,
        gather: Callable[[list[str]], list[str]] = list,
        add_up: Callable[[Tensor], Tensor] = _as_they_are,
    ) -> None:
        super().__init__()
        self.scale = resolve_scale(temperature, logit_scale)
        self._gather, self._add_up = gather, add_up

    def prepare(self, batch: TrainingBatch, encode: Encode) -> TrainingBatch:
        """Find each image's place in the global batch, and encode the clean images for the adversary.

        Targets: "own" (N,) int64, the row of each sample in the global batch; "share" (N,), 1 over the
        number of its copies (a rank without a sample of its own stands in with another's, uncounted);
        "size" (), G, the samples of the global batch; "clean" (G, D), what the adversary is compared with.

        Raises:
            UserError: if the global batch is one image.
        """
        ids = self._gather(batch.ids)
        row_of = {name: row for row, name in enumerate(dict.fromkeys(ids))}
        if len(row_of) < 2:
            raise UserError("objective 'imgcoadv' contrasts images: a batch needs two or more.")
        mine, device = [row_of[name] for name in batch.ids], batch.images.device
        copies = Counter(ids)
        batch.targets = {
            "own": torch.tensor(mine, device=device),
            "share": torch.tensor(
                [1.0 / copies[name] for name in batch.ids], device=device, dtype=batch.images.dtype
            ),
            "size": torch.tensor(len(row_of)),
        }
        with torch.no_grad():
            batch.targets["clean"] = self._all_rows(encode(batch.images), batch.targets)
        return batch

    def _all_rows(self, features: Tensor, targets: dict[str, Tensor]) -> Tensor:
        """Return the features of the global batch (G, D) from this rank's (N, D)."""
        rows = features.new_zeros(int(targets["size"]), features.shape[1])
        shares = features * targets["share"].to(features)[:, None]
        return self._add_up(rows.index_add(0, targets["own"], shares))

    def losses(self, encode: Encode, images: Tensor, batch: TrainingBatch) -> Tensor:
        """Return the loss of each sample, (N,); the gradient goes through both views."""
        targets = batch.targets
        adversarial, clean = encode(torch.cat([images, batch.images])).chunk(2)
        return info_nce(adversarial, self._all_rows(clean, targets), targets["own"], self.scale)

    def attack_losses(self, encode: Encode, images: Tensor, batch: TrainingBatch) -> Tensor:
        """Return the same loss, (N,), to the clean features of `prepare`: they do not move with `images`."""
        targets = batch.targets
        return info_nce(encode(images), targets["clean"], targets["own"], self.scale)

    def settings(self) -> dict[str, Any]:
        """Return name and scale."""
        return {"name": self.name, "scale": self.scale}
