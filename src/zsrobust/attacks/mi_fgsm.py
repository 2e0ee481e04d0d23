"""MI-FGSM: the iterated fast gradient step with momentum, whose images transfer well to other models."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from zsrobust.attacks import losses
from zsrobust.attacks.pgd import ascend
from zsrobust.errors import UserError
from zsrobust.threat import Threat, per_sample

if TYPE_CHECKING:
    from torch import Tensor

State = dict[str, "Tensor"]


@dataclass(frozen=True, slots=True, kw_only=True)
class MiFgsm:
    """MI-FGSM as a state machine for the engine: steps + 1 queries, the first is the clean image.

    With g_0 = 0 and x_0 the clean image: g_{t+1} = decay g_t + grad J(x_t) / |grad J(x_t)|_1, and x_{t+1} =
    x_t + step sign(g_{t+1}) for linf, x_t + step g_{t+1} / |g_{t+1}|_2 for l2. J is the cross-entropy.

    Source: Dong et al., "Boosting adversarial attacks with momentum", CVPR 2018, arXiv:1710.06081,
    algorithm 1; l2 as in its section on extensions.

    Differences from the paper: each point is projected onto ball and [0, 1]. With the default step the linf
    iterates stay in the ball by themselves. The engine judges every query unless asked otherwise, the paper
    the last one. A zero gradient adds nothing, where the paper's quotient is undefined.
    Differences from the authors' code: it divides by the mean of |grad|, not by its sum. That scales g and
    changes no step.
    Differences from foolbox's LinfMomentumIterativeFastGradientMethod: it adds up raw gradients, so that the
    longest ones rule; its step is 0.2 eps unless given.

    Args:
        threat: norm and eps.
        steps: gradient steps, >= 1.
        step_size: in [0, 1]-pixel units, > 0; None is eps / steps, the paper's.
        decay: mu, what is kept of the accumulated gradient, >= 0; 0 is the iterated fast gradient method.
        name: what records and noise are filed under.

    Raises:
        UserError: for a value out of range.
    """

    needs_grad: ClassVar[bool] = True
    minimal_norm: ClassVar[bool] = False
    version: ClassVar[int] = 1

    threat: Threat
    steps: int = 10
    step_size: float | None = None
    decay: float = 1.0
    name: str = "mi-fgsm"

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise UserError(f"attack {self.name!r}: steps must be >= 1, got {self.steps}.")
        if self.step_size is not None and not self.step_size > 0:
            raise UserError(
                f"attack {self.name!r}: the step size must be > 0, got {self.step_size}."
            )
        if not (self.decay >= 0 and math.isfinite(self.decay)):
            raise UserError(
                f"attack {self.name!r}: decay must be a finite number >= 0, got {self.decay}."
            )

    @property
    def step(self) -> float:
        """The step size in force, in [0, 1]-pixel units."""
        return self.threat.eps / self.steps if self.step_size is None else self.step_size

    def settings(self) -> dict[str, Any]:
        """Return everything that determines the queries, for the key of a cell."""
        return {
            "name": self.name,
            "algorithm": "mi-fgsm",
            "version": self.version,
            "steps": self.steps,
            "step_size": self.step,
            "decay": self.decay,
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
            "momentum": torch.zeros_like(images),
        }

    def query(self, state: State) -> Tensor:
        """Return the images to look at next, (S, C, H, W), always inside ball and box."""
        return state["images"]

    def loss(self, state: State, logits: Tensor) -> Tensor:
        """Return the cross-entropy to ascend, (S,)."""
        return losses.cross_entropy(logits, state["label"])

    def update(self, state: State, logits: Tensor, grad: Tensor | None) -> tuple[State, Tensor]:
        """Accumulate the gradient and step; `done` (S,) is true after the last query."""
        del logits
        import torch

        if grad is None:
            raise ValueError("MI-FGSM needs the gradient")
        done = state["step"] >= self.steps
        length = grad.flatten(1).abs().sum(1, dtype=torch.float64).clamp_min(1e-30)
        unit = grad * per_sample((1.0 / length).to(grad.dtype), grad)
        momentum = self.decay * state["momentum"] + unit
        stepped = ascend(state["images"], momentum, state["clean"], self.threat, self.step)
        state = {
            **state,
            "momentum": momentum,
            # What has spent its steps keeps its last iterate: that is what `final` hands over.
            "images": torch.where(per_sample(done, stepped), state["images"], stepped),
            "step": torch.where(done, state["step"], state["step"] + 1),
        }
        return state, done

    def final(self, state: State) -> Tensor:
        """Return the last iterates, (S, C, H, W)."""
        return state["images"]
