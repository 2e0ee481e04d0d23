"""CoAdv.: TeCoA with random class vectors in place of the texts, a baseline of the paper.

Source: facts 5 (Mao et al., ICLR 2023, arXiv:2212.07016, rebuilt; the released code has no such loss):

    L = (1/B) sum_i CE( s cos(f(x_i'), e_1..K), y_i )

e_k is one random vector a class. It asks whether the texts matter, or only that every class has a
direction. Open in the paper and decided here (facts 8): rows are standard normal, normalised, drawn from the
recipe's seed, and fixed; "trained" moves them with the tower, in the same optimiser, and the cosine takes
their direction alone. The adversary maximises the same loss. The dictionary is no part of the zero-shot
model.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from zsrobust import randomness
from zsrobust.errors import UserError
from zsrobust.objectives.objective import Encode, Needs, Objective, ScoredBy, TrainingBatch
from zsrobust.objectives.tecoa import resolve_scale, tecoa_losses


def random_dictionary(classes: int, dimensions: int, seed: int) -> Tensor:
    """Return K random unit vectors (K, D), float32: standard normal rows, normalised.

    A function of (seed, K, D): the global random stream is neither read nor moved.

    Args:
        classes: K.
        dimensions: D.
        seed: the recipe's.

    Raises:
        UserError: for fewer than two classes: the cross-entropy of one is always 0.
    """
    if classes < 2:
        raise UserError(f"a dictionary needs two classes or more, the source has {classes}.")
    keys = randomness.sample_keys(seed, "dictionary", [str(k) for k in range(classes)])
    return functional.normalize(
        randomness.normal(keys, torch.zeros_like(keys), (dimensions,)), dim=1
    )


class CoAdv(Objective):
    """Cross-entropy towards a random vector of each class, on adversarial images.

    Args:
        vectors: (K, D), the dictionary at its start, unit rows, as `random_dictionary` makes it.
        logit_scale: the model's exp(logit_scale).
        temperature: tau; None takes 1 / logit_scale, as TeCoA's.
        dictionary: "fixed", or "trained" with the tower.
    """

    name: ClassVar[str] = "coadv"
    needs: ClassVar[Needs] = "labels"
    scored_by: ClassVar[ScoredBy] = "dictionary"
    vectors: Tensor

    def __init__(
        self,
        vectors: Tensor,
        logit_scale: float,
        temperature: float | None = None,
        dictionary: Literal["fixed", "trained"] = "fixed",
    ) -> None:
        super().__init__()
        self.scale = resolve_scale(temperature, logit_scale)
        self._trained = dictionary == "trained"
        start = vectors.detach().clone()
        if self._trained:
            self.vectors = nn.Parameter(start)
        else:
            self.register_buffer("vectors", start, persistent=False)

    def unit_vectors(self) -> Tensor:
        """Return the dictionary as it stands, (K, D), rows of unit length."""
        return functional.normalize(self.vectors, dim=1) if self._trained else self.vectors

    def losses(self, encode: Encode, images: Tensor, batch: TrainingBatch) -> Tensor:
        """Return CE(scale * cos(f(x'), E), y) of each sample, (N,), in nats.

        Raises:
            UserError: if the samples carry no labels.
        """
        if batch.labels is None:
            raise UserError(
                "objective 'coadv' needs labels; without them use 'imgcoadv' or 'fare'."
            )
        return tecoa_losses(encode(images), self.unit_vectors(), batch.labels, self.scale)

    def settings(self) -> dict[str, Any]:
        """Return name, scale, and whether the dictionary is trained."""
        kind = "trained" if self._trained else "fixed"
        return {"name": self.name, "scale": self.scale, "dictionary": kind}
