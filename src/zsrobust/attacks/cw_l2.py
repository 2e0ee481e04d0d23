"""CW-L2: Carlini and Wagner's attack for the smallest l2 perturbation."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from zsrobust.attacks import losses
from zsrobust.errors import UserError
from zsrobust.threat import Threat, per_sample

if TYPE_CHECKING:
    from torch import Tensor

State = dict[str, "Tensor"]

# Keeps arctanh finite for pixels of 0 and 1; the authors' number.
_INSIDE = 0.999999
# Kingma and Ba's defaults, which the authors use.
_BETA_1, _BETA_2, _ADAM_EPS = 0.9, 0.999, 1e-8
# The authors' "infinite" constant: no search goes beyond it.
_LARGEST_C = 1e10


@dataclass(frozen=True, slots=True, kw_only=True)
class CwL2:
    """CW-L2 as a state machine for the engine: search_steps runs of Adam, `steps` queries each at most.

    In the variable w of x' = (tanh(w) + 1) / 2, Adam minimises |x' - x|^2 + c f(x') with
    f = max(z_y - max_{k != y} z_k, -kappa), from the clean image anew for each c. The constant c is
    multiplied by 10 until a run finds a misclassified point, then found by bisection.
    Untargeted. Queries leave the ball; whether a sample is broken (smallest norm <= eps) the engine says.

    Source: Carlini and Wagner, "Towards evaluating the robustness of neural networks", S&P 2017,
    arXiv:1608.04644, section VI-A with f6 of section V-A; details as in the authors' code (l2_attack.py of
    carlini/nn_robust_attacks), which foolbox's L2CarliniWagnerAttack follows.

    Differences from the authors' code:
    - 1,000 steps instead of 10,000 unless asked for: 9,000 queries a surviving sample instead of 90,000.
    - Giving up early is decided for each sample by its own objective; there by the sum over the batch, so that
      outcomes depend on the batch. Its tenth of the steps is at least one step.
    - The record's distance is from the clean image; there from the clean image taken through tanh and back,
      which is moved by up to 5e-7 a pixel. The objective uses the latter, as there.
    - The true class is excluded exactly, not by subtracting 10000 from its logit.
    - With kappa > 0 the record's smallest norm is still that of any misclassified query; there only what is
      misclassified by kappa counts. Whether a run succeeded, and `final`, go by kappa in both.
    - Adam divides by sqrt(v_hat) + 1e-8, as its paper and PyTorch do; TensorFlow's adds 1e-8 before the
      correction of the bias.
    - c stays below 1e10 in every search step, not in the last one alone.
    Kept: the query at which a run gives up is not counted as its success (the engine judges it all the same);
    with 10 or more search steps the last one repeats the smallest c that succeeded; a run's last Adam step is
    never looked at.

    Args:
        threat: l2 and eps.
        steps: queries of one run at most, >= 1.
        search_steps: values of c tried, >= 1.
        step_size: of Adam, in w (no pixel unit), > 0.
        initial_c: the first c, > 0.
        kappa: margin asked of a success, in logits, >= 0.
        abort_early: end a run when its objective fell by less than 0.01 % over a tenth of the steps.
        name: what records and noise are filed under.

    Raises:
        UserError: for another norm than l2, or a value out of range.
    """

    needs_grad: ClassVar[bool] = True
    minimal_norm: ClassVar[bool] = True
    version: ClassVar[int] = 1

    threat: Threat
    steps: int = 1000
    search_steps: int = 9
    step_size: float = 0.01
    initial_c: float = 1e-3
    kappa: float = 0.0
    abort_early: bool = True
    name: str = "cw-l2"

    def __post_init__(self) -> None:
        if self.threat.norm != "l2":
            raise UserError(
                f"attack {self.name!r} is defined for l2 alone, got {self.threat.norm}: use norm l2, "
                "or cw-margin-N for the margin loss within linf."
            )
        for what, count in (("steps", self.steps), ("search_steps", self.search_steps)):
            if count < 1:
                raise UserError(f"attack {self.name!r}: {what} must be >= 1, got {count}.")
        for what, value in (("step_size", self.step_size), ("initial_c", self.initial_c)):
            if not (value > 0 and math.isfinite(value)):
                raise UserError(
                    f"attack {self.name!r}: {what} must be a finite number > 0, got {value}."
                )
        if not (self.kappa >= 0 and math.isfinite(self.kappa)):
            raise UserError(
                f"attack {self.name!r}: kappa must be a finite number >= 0, got {self.kappa}."
            )

    def settings(self) -> dict[str, Any]:
        """Return everything that determines the queries, for the key of a cell."""
        return {
            "name": self.name,
            "algorithm": "cw-l2",
            "version": self.version,
            "steps": self.steps,
            "search_steps": self.search_steps,
            "step_size": self.step_size,
            "initial_c": self.initial_c,
            "kappa": self.kappa,
            "abort_early": self.abort_early,
            "targeted": False,
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

        zero = torch.zeros_like(key)
        nought = torch.zeros_like(images)
        number = torch.zeros_like(images[:, 0, 0, 0])
        centre = torch.atanh((2.0 * images - 1.0) * _INSIDE)
        return {
            "label": labels,
            "step": zero,
            "search": zero,
            "centre": centre,  # the clean image in w
            "moved": nought,  # w minus centre
            "mean": nought,  # Adam's two moments
            "square": nought,
            "c": number + self._c(number + self.initial_c, number + torch.inf, zero),
            "lower": number,
            "upper": number + torch.inf,
            "found": torch.zeros_like(zero, dtype=torch.bool),
            "objective": number + torch.inf,  # at the last check of progress
            "nearest": nought + torch.nan,
            "distance": number + torch.inf,
        }

    def query(self, state: State) -> Tensor:
        """Return the images to look at next, (S, C, H, W) in [0, 1], inside the ball or not."""
        return _image(state["centre"] + state["moved"])

    def loss(self, state: State, logits: Tensor) -> Tensor:
        """Return -f + const = -relu(margin + kappa), (S,), to ascend."""
        return losses.carlini_wagner(logits, state["label"], self.kappa)

    def update(self, state: State, logits: Tensor, grad: Tensor | None) -> tuple[State, Tensor]:
        """Take one step of Adam, or begin with the next c; `done` (S,) after the last c."""
        import torch

        if grad is None:
            raise ValueError("CW-L2 needs the gradient")
        images, clean = self.query(state), _image(state["centre"])
        delta = images - clean
        squared = delta.square().flatten(1).sum(1)  # (S,)
        objective = squared - state["c"] * self.loss(state, logits)

        # A tenth of the steps apart, the first time at the start, where nothing can be given up yet.
        checked = state["step"] % max(self.steps // 10, 1) == 0
        stuck = checked & (objective > 0.9999 * state["objective"])
        stuck = stuck & self.abort_early
        hit = self._succeeds(state, logits) & ~stuck
        nearer = hit & (squared < state["distance"])
        state = {
            **state,
            **self._adam(state, images, delta, grad),
            "found": state["found"] | hit,
            "objective": torch.where(checked, objective, state["objective"]),
            "nearest": torch.where(per_sample(nearer, images), images, state["nearest"]),
            "distance": torch.where(nearer, squared, state["distance"]),
        }
        ended = stuck | (state["step"] >= self.steps - 1)
        done = ended & (state["search"] >= self.search_steps - 1)
        state["step"] = torch.where(done, state["step"], state["step"] + 1)
        again = ended & ~done
        if bool(again.any()):
            state = self._next_search(state, again)
        return state, done

    def final(self, state: State) -> Tensor:
        """Return the nearest successes, (S, C, H, W); where there is none, the last points."""
        import torch

        found = torch.isfinite(state["distance"])
        return torch.where(per_sample(found, state["nearest"]), state["nearest"], self.query(state))

    def _succeeds(self, state: State, logits: Tensor) -> Tensor:
        """Return which logits are misclassified by at least kappa, (S,) bool."""
        label = state["label"]
        raised = logits.scatter_add(1, label[:, None], logits.new_full((len(label), 1), self.kappa))
        return raised.argmax(1) != label

    def _adam(self, state: State, images: Tensor, delta: Tensor, grad: Tensor) -> State:
        """Return the perturbation in w and Adam's moments after one step against the objective's gradient."""
        # dx'/dw = (1 - tanh(w)^2) / 2 = 2 x' (1 - x'); `grad` is that of -f.
        slope = 2.0 * images * (1.0 - images)
        gradient = (2.0 * delta - per_sample(state["c"], grad) * grad) * slope
        mean = _BETA_1 * state["mean"] + (1.0 - _BETA_1) * gradient
        square = _BETA_2 * state["square"] + (1.0 - _BETA_2) * gradient.square()
        count = (state["step"] + 1).double()  # powers of 0.999 in float32 would lose digits
        mean_hat = mean / per_sample((1.0 - _BETA_1**count).to(mean.dtype), mean)
        square_hat = square / per_sample((1.0 - _BETA_2**count).to(mean.dtype), square)
        return {
            "mean": mean,
            "square": square,
            "moved": state["moved"] - self.step_size * mean_hat / (square_hat.sqrt() + _ADAM_EPS),
        }

    def _next_search(self, state: State, again: Tensor) -> State:
        """Return the state with the next c for the slots `again` (S,), at the clean image once more."""
        import torch

        succeeded, failed = again & state["found"], again & ~state["found"]
        lower = torch.where(failed, state["c"], state["lower"])
        upper = torch.where(succeeded, state["c"], state["upper"])
        middle = torch.where(torch.isinf(upper), 10.0 * state["c"], (lower + upper) / 2.0)
        search = state["search"] + again
        wide = per_sample(again, state["moved"])
        return {
            **state,
            "lower": lower,
            "upper": upper,
            "c": torch.where(again, self._c(middle, upper, search), state["c"]),
            "search": search,
            "step": torch.where(again, 0, state["step"]),
            "moved": torch.where(wide, 0.0, state["moved"]),
            "mean": torch.where(wide, 0.0, state["mean"]),
            "square": torch.where(wide, 0.0, state["square"]),
            "found": state["found"] & ~again,
            "objective": torch.where(again, torch.inf, state["objective"]),
        }

    def _c(self, c: Tensor, upper: Tensor, search: Tensor) -> Tensor:
        """Return the constant of a search step, (S,): `c`, or the last of ten or more repeats `upper`."""
        import torch

        if self.search_steps >= 10:
            c = torch.where(search == self.search_steps - 1, upper, c)
        return c.clamp(max=_LARGEST_C)


def _image(w: Tensor) -> Tensor:
    """Return (tanh(w) + 1) / 2, in [0, 1]."""
    return (w.tanh() + 1.0) / 2.0
