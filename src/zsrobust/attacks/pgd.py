"""Projected gradient descent: the attack for the engine, and the adversary of training.

Source: Madry et al., "Towards deep learning models resistant to adversarial attacks", ICLR 2018;
settings as in facts 1.4. Differences from the TeCoA authors' code: float32 without autocast, one loss a
sample instead of a batch mean, every query judged instead of the last (unless asked for), the
gradient with respect to the image alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from zsrobust import randomness
from zsrobust.attacks import losses
from zsrobust.errors import UserError
from zsrobust.threat import Threat

if TYPE_CHECKING:
    from torch import Tensor, nn

State = dict[str, "Tensor"]
LossName = Literal["cross-entropy", "margin"]


def ascend(
    images: Tensor, gradient: Tensor, clean: Tensor, threat: Threat, step_size: float
) -> Tensor:
    """Return one step of steepest ascent from `images`, projected onto ball and box."""
    return threat.project(images + step_size * threat.steepest(gradient), clean)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pgd:
    """PGD as a state machine for the engine: steps + 1 queries a restart, the first is the start itself.

    Args:
        threat: norm and eps.
        steps: gradient steps of one restart, >= 1.
        step_size: in [0, 1]-pixel units; None is eps / 4.
        loss: "cross-entropy" or "margin".
        kappa: for the margin loss, the authors' constant: -relu(margin + kappa); None leaves the margin
            unclipped. Inert where logits cannot differ by kappa.
        restarts: independent starts, >= 1; the next one begins where the last one left the sample unbroken.
        name: what records and noise are filed under.
    """

    needs_grad: ClassVar[bool] = True
    minimal_norm: ClassVar[bool] = False
    version: ClassVar[int] = 1

    threat: Threat
    steps: int
    step_size: float | None = None
    loss_name: LossName = "cross-entropy"
    kappa: float | None = None
    restarts: int = 1
    name: str = "pgd"

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise UserError(f"attack {self.name!r}: steps must be >= 1, got {self.steps}.")
        if self.restarts < 1:
            raise UserError(f"attack {self.name!r}: restarts must be >= 1, got {self.restarts}.")
        if self.step_size is not None and not self.step_size > 0:
            raise UserError(
                f"attack {self.name!r}: the step size must be > 0, got {self.step_size}."
            )

    @property
    def step(self) -> float:
        """The step size in force, in [0, 1]-pixel units."""
        return self.threat.eps / 4 if self.step_size is None else self.step_size

    def settings(self) -> dict[str, Any]:
        """Return everything that determines the queries, for the key of a cell."""
        return {
            "name": self.name,
            "algorithm": "pgd",
            "version": self.version,
            "steps": self.steps,
            "step_size": self.step,
            "loss": self.loss_name,
            "kappa": self.kappa,
            "restarts": self.restarts,
            "start": "uniform",
        }

    def init(self, images: Tensor, labels: Tensor, clean_logits: Tensor, key: Tensor) -> State:
        """Return the state of fresh samples at their random starts. `clean_logits` are not used."""
        del clean_logits
        import torch

        zero = torch.zeros_like(key)
        state = {
            "clean": images,
            "label": labels,
            "key": key,
            "draw": zero,
            "step": zero,
            "images": images,
        }
        state["images"] = self._start(state)
        return state

    def _start(self, state: State) -> Tensor:
        clean = state["clean"]
        noise = randomness.ball_start(
            state["key"], state["draw"], clean, self.threat.norm, self.threat.eps
        )
        return self.threat.project(clean + noise, clean)

    def query(self, state: State) -> Tensor:
        """Return the images to look at next, (S, 3, H, W), always inside ball and box."""
        return state["images"]

    def loss(self, state: State, logits: Tensor) -> Tensor:
        """Return the loss to ascend, (S,)."""
        if self.loss_name == "cross-entropy":
            return losses.cross_entropy(logits, state["label"])
        if self.kappa is not None:
            return losses.carlini_wagner(logits, state["label"], self.kappa)
        return losses.negative_margin(logits, state["label"])

    def update(self, state: State, logits: Tensor, grad: Tensor | None) -> tuple[State, Tensor]:
        """Step, or start again, or be done: `done` (S,) is true after the last query of the last restart."""
        del logits
        import torch

        if grad is None:
            raise ValueError("PGD needs the gradient")
        spent = state["step"] >= self.steps
        done = spent & (state["draw"] >= self.restarts - 1)
        again = spent & ~done
        stepped = ascend(state["images"], grad, state["clean"], self.threat, self.step)
        # What has spent its steps keeps its last iterate: that is what `final` hands over.
        images = torch.where(spent[:, None, None, None], state["images"], stepped)
        state = {
            **state,
            "images": images,
            "step": torch.where(again, 0, torch.where(done, state["step"], state["step"] + 1)),
            "draw": state["draw"] + again,
        }
        if self.restarts > 1 and bool(again.any()):
            state["images"] = torch.where(again[:, None, None, None], self._start(state), images)
        return state, done

    def final(self, state: State) -> Tensor:
        """Return the last iterates, (S, 3, H, W)."""
        return state["images"]


@contextmanager
def frozen(module: nn.Module) -> Iterator[None]:
    """Take `requires_grad` from all parameters while the block runs.

    With it the backward of an attack step is input-only: no weight gradient is computed, no activation
    kept for one, and nothing is left behind for the optimiser (traps 11).
    """
    moving = [parameter for parameter in module.parameters() if parameter.requires_grad]
    for parameter in moving:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in moving:
            parameter.requires_grad_(True)


def maximise(
    loss_of: Callable[[Tensor], Tensor],
    images: Tensor,
    threat: Threat,
    *,
    steps: int,
    step_size: float,
    start: Tensor | None,
    momentum: float = 0.0,
) -> Tensor:
    """Return the adversarial images of a training batch: the last iterate of PGD.

    Args:
        loss_of: images (N, 3, H, W) in [0, 1] -> one loss a sample (N,), to ascend.
        images: (N, 3, H, W) in [0, 1], the clean images.
        threat: ball and box.
        steps: gradient steps, >= 0; 0 returns the projected start.
        step_size: in [0, 1]-pixel units.
        start: perturbation to start from, shape of `images` (see randomness.ball_start); None starts clean.
        momentum: of the direction, re-normalised after each accumulation (facts: successors 3.1); 0 is plain.

    Raises:
        FloatingPointError: if a gradient is not finite. A broken gradient must not pass for robustness.
    """
    import torch

    clean = images.detach()
    adversarial = clean if start is None else threat.project(clean + start, clean)
    direction = torch.zeros_like(clean)
    for _ in range(steps):
        adversarial = adversarial.detach().requires_grad_(True)
        (gradient,) = torch.autograd.grad(loss_of(adversarial).sum(), adversarial)
        # One number decides, so that a device is asked once a step and not once a pixel.
        if not bool(torch.isfinite(gradient.abs().sum())):
            raise FloatingPointError(
                "the training adversary met a gradient that is not finite: lower optimiser.lr, or see to "
                "the model's weights."
            )
        with torch.no_grad():
            if momentum:
                direction = threat.steepest(momentum * direction + threat.steepest(gradient))
                gradient = direction
            adversarial = ascend(adversarial.detach(), gradient, clean, threat, step_size)
    return adversarial.detach()
