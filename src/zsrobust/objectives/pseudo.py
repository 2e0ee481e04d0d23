"""TeCoA without labels: the class text that the original model predicts is the positive.

Source: Mao et al., ICLR 2023, arXiv:2212.07016, as restated in facts 2.6:

    L = (1/B) sum_i CE( s cos(f(x_i'), T), argmax_k cos(f0(x_i), t_k) )

f0 is the original encoder, x_i the clean image as training sees it. Open in the paper and decided here
(facts 8): no threshold of confidence, and computed once, before the first step; the original model is not
kept beside the trained one. The adversary maximises the same loss.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from zsrobust.objectives.objective import Encode, Needs, ScoredBy, TrainingBatch
from zsrobust.objectives.tecoa import Tecoa


class TecoaPseudo(Tecoa):
    """TeCoA towards pseudo-labels.

    Args:
        anchors: (K, D) unit text features of all class names.
        logit_scale: the model's exp(logit_scale).
        labels: sample id -> pseudo-label in [0, K).
        temperature: tau; None takes 1 / logit_scale.
    """

    name: ClassVar[str] = "tecoa-pseudo"
    needs: ClassVar[Needs] = "names"
    scored_by: ClassVar[ScoredBy] = "pseudo-labels"

    def __init__(
        self,
        anchors: Tensor,
        logit_scale: float,
        labels: Mapping[str, int],
        temperature: float | None = None,
    ) -> None:
        super().__init__(anchors, logit_scale, temperature)
        self._labels = labels

    def prepare(self, batch: TrainingBatch, encode: Encode) -> TrainingBatch:
        """Put the pseudo-labels of the samples into `labels`, in place of the set's own where it has any."""
        found = [self._labels[name] for name in batch.ids]
        batch.labels = torch.tensor(found, device=batch.images.device)
        return batch
