"""FGSM: one gradient step of length eps from the clean image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from zsrobust.attacks import losses
from zsrobust.attacks.pgd import ascend
from zsrobust.threat import Threat, per_sample

if TYPE_CHECKING:
    from torch import Tensor

State = dict[str, "Tensor"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Fgsm:
    """FGSM as a state machine for the engine: two queries, the clean image (for its gradient) and the step.

    linf: clean + eps sign(grad J); l2: clean + eps grad J / |grad J|_2. J is the cross-entropy.
    Cheap and weak: it says whether a gradient points anywhere, not whether a model is robust.

    Source: Goodfellow, Shlens and Szegedy, "Explaining and harnessing adversarial examples", ICLR 2015,
    arXiv:1412.6572, section 4.
    Differences: the image is clipped to [0, 1]; the l2 form is the usual one, not in the paper. A zero
    gradient leaves the image as it is.

    Args:
        threat: norm and eps.
        name: what records and noise are filed under.
    """

    needs_grad: ClassVar[bool] = True
    minimal_norm: ClassVar[bool] = False
    version: ClassVar[int] = 1

    threat: Threat
    name: str = "fgsm"

    def settings(self) -> dict[str, Any]:
        """Return everything that determines the queries, for the key of a cell."""
        return {
            "name": self.name,
            "algorithm": "fgsm",
            "version": self.version,
            "loss": "cross-entropy",
            "start": "clean",
        }

    def init(self, images: Tensor, labels: Tensor, clean_logits: Tensor, key: Tensor) -> State:
        """Return the state of fresh samples at the clean image.

        Args:
            images: (S, C, H, W) in [0, 1], the clean images.
            labels: (S,) int64.
            clean_logits: (S, K), not used.
            key: (S,) int64; nothing is drawn.
        """
        del clean_logits
        import torch

        return {
            "clean": images,
            "label": labels,
            "step": torch.zeros_like(key),
            "images": images,
        }

    def query(self, state: State) -> Tensor:
        """Return the images to look at next, (S, C, H, W), always inside ball and box."""
        return state["images"]

    def loss(self, state: State, logits: Tensor) -> Tensor:
        """Return the cross-entropy to ascend, (S,)."""
        return losses.cross_entropy(logits, state["label"])

    def update(self, state: State, logits: Tensor, grad: Tensor | None) -> tuple[State, Tensor]:
        """Take the one step; `done` (S,) is true once it has been looked at."""
        del logits
        import torch

        if grad is None:
            raise ValueError("FGSM needs the gradient")
        done = state["step"] >= 1
        stepped = ascend(state["clean"], grad, state["clean"], self.threat, self.threat.eps)
        images = torch.where(per_sample(done, stepped), state["images"], stepped)
        step = torch.where(done, state["step"], state["step"] + 1)
        return {**state, "images": images, "step": step}, done

    def final(self, state: State) -> Tensor:
        """Return the stepped images, (S, C, H, W)."""
        return state["images"]
