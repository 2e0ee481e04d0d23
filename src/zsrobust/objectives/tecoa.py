"""TeCoA: text-guided contrastive adversarial training, from labels and from image-text pairs.

Source: Mao et al., "Understanding zero-shot adversarial robustness for large-scale models", ICLR 2023,
arXiv:2212.07016, the loss of its method section as restated in facts 2.1:

    L = - E_ij [ y_ij log( exp(cos(z_i, t_j) / tau) / sum_k exp(cos(z_i, t_k) / tau) ) ]

z_i is the image feature of the adversarial image, t_k the frozen text features, the softmax runs over
texts for one image (image -> text only). With labels the texts are all K class texts of the source,
whatever classes the batch holds (traps 37); with pairs they are the unique texts of the global batch.
The adversary maximises the same loss on the same encoder.
Difference from the authors' code: the text features are computed once, without gradient; the result
is the same, since nothing that makes them is trained.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from zsrobust.errors import UserError
from zsrobust.objectives.objective import Encode, Needs, Objective, TrainingBatch


def tecoa_losses(features: Tensor, anchors: Tensor, labels: Tensor, scale: float) -> Tensor:
    """Return the TeCoA loss of each image, in nats, >= 0.

    Args:
        features: (N, D) image features, not normalised.
        anchors: (K, D) unit text features; they receive no gradient.
        labels: (N,) int64 in [0, K), the row of each image's own text.
        scale: 1 / tau, dimensionless, > 0; CLIP's exp(logit_scale).
    """
    cosines = functional.normalize(features, dim=1) @ anchors.T  # (N, K)
    return functional.cross_entropy(scale * cosines, labels, reduction="none")


def resolve_scale(temperature: float | None, logit_scale: float) -> float:
    """Return the loss's scale: 1 / temperature, or the model's own exp(logit_scale) if it is None.

    Raises:
        UserError: if the temperature is not > 0.
    """
    if temperature is None:
        return logit_scale
    if not temperature > 0:
        raise UserError(
            f"temperature must be > 0 (CLIP's is {1 / logit_scale:.4g}), got {temperature}."
        )
    return 1.0 / temperature


class Tecoa(Objective):
    """TeCoA from labels.

    Args:
        anchors: (K, D) unit text features of all source classes.
        logit_scale: the model's exp(logit_scale).
        temperature: tau; None takes 1 / logit_scale.
    """

    name: ClassVar[str] = "tecoa"
    needs: ClassVar[Needs] = "labels"
    anchors: Tensor

    def __init__(
        self, anchors: Tensor, logit_scale: float, temperature: float | None = None
    ) -> None:
        super().__init__()
        self.scale = resolve_scale(temperature, logit_scale)
        # Not persistent: anchors follow from the texts, a checkpoint need not carry them.
        self.register_buffer("anchors", anchors.detach().clone(), persistent=False)

    def losses(self, encode: Encode, images: Tensor, batch: TrainingBatch) -> Tensor:
        """Return CE(scale * cos(f(x'), T), y) of each sample (N,)."""
        if batch.labels is None:
            raise UserError(
                f"objective {self.name!r} needs labels; for captions use 'tecoa-pairs'."
            )
        return tecoa_losses(encode(images), self.anchors, batch.labels, self.scale)

    def settings(self) -> dict[str, Any]:
        """Return name and scale."""
        return {"name": self.name, "scale": self.scale}


class TecoaPairs(Objective):
    """TeCoA from image-text pairs: the texts are those of the global batch, equal ones counted once.

    Args:
        tokenise: texts -> token ids (N, L) int64; texts with equal ids are one text.
        encode_texts: texts -> features (N, D), not normalised, without gradient (the frozen text tower).
        logit_scale: the model's exp(logit_scale).
        temperature: tau; None takes 1 / logit_scale.
        gather: this rank's texts -> the texts of all ranks, in rank order. Default: one rank.
    """

    name: ClassVar[str] = "tecoa-pairs"
    needs: ClassVar[Needs] = "captions"
    couples_batch: ClassVar[bool] = True

    def __init__(
        self,
        tokenise: Callable[[list[str]], Tensor],
        encode_texts: Callable[[list[str]], Tensor],
        logit_scale: float,
        temperature: float | None = None,
        gather: Callable[[list[str]], list[str]] = list,
    ) -> None:
        super().__init__()
        self.scale = resolve_scale(temperature, logit_scale)
        self._tokenise, self._encode_texts, self._gather = tokenise, encode_texts, gather

    def prepare(self, batch: TrainingBatch, encode: Encode) -> TrainingBatch:
        """Encode the unique texts of the global batch; targets "anchors" (U, D) and "own" (N,).

        Raises:
            UserError: if samples carry no captions, or all texts of the batch are the same.
        """
        if batch.captions is None:
            raise UserError("objective 'tecoa-pairs' needs captions; for class labels use 'tecoa'.")
        texts = self._gather(batch.captions)
        tokens = self._tokenise(texts)
        row_of: dict[tuple[int, ...], int] = {}
        unique: list[str] = []
        for text, ids in zip(texts, tokens.tolist(), strict=True):
            if row_of.setdefault(tuple(ids), len(unique)) == len(unique):
                unique.append(text)
        if len(unique) < 2:
            raise UserError(
                f"all {len(texts)} captions of a batch are one text ({texts[0]!r}): nothing to contrast; "
                "use a larger batch."
            )
        with torch.no_grad():
            anchors = functional.normalize(self._encode_texts(unique), dim=1)
        mine = self._tokenise(batch.captions).tolist()
        own = [row_of[tuple(ids)] for ids in mine]
        device = batch.images.device
        batch.targets = {
            "anchors": anchors.to(device=device, dtype=batch.images.dtype),
            "own": torch.tensor(own, device=device),
        }
        return batch

    def losses(self, encode: Encode, images: Tensor, batch: TrainingBatch) -> Tensor:
        """Return the cross-entropy of each image over the batch's unique texts, (N,)."""
        targets = batch.targets
        return tecoa_losses(encode(images), targets["anchors"], targets["own"], self.scale)

    def settings(self) -> dict[str, Any]:
        """Return name and scale."""
        return {"name": self.name, "scale": self.scale}
