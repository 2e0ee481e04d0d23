"""APGD: projected gradient ascent with momentum, whose step size follows from the progress it makes.

Source: Croce and Hein, "Reliable evaluation of adversarial robustness with an ensemble of diverse
parameter-free attacks", ICML 2020 (arXiv:2003.01690), algorithm 1; reference implementation:
github.com/fra31/auto-attack, commit a392200. Differences are listed at `Apgd`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, get_args

from zsrobust import randomness
from zsrobust.attacks import losses
from zsrobust.errors import UserError, unknown_name
from zsrobust.threat import Threat, per_sample, vector_length

if TYPE_CHECKING:
    from torch import Tensor

State = dict[str, "Tensor"]
LossName = Literal["cross-entropy", "dlr", "margin"]

# Weight of the new step against the momentum, from the second step on.
_STEP_WEIGHT = 0.75


@dataclass(frozen=True, slots=True, kw_only=True)
class Apgd:
    """APGD as a state machine for the engine: steps + 1 queries a run, the first is the start itself.

    One run: x_0 random on the boundary of the ball, step size 2 eps. A step goes along the steepest ascent,
    is projected, mixed with the step before (weights 0.75 and 0.25; the first step stands alone) and
    projected again. At checkpoints the step size is halved, and the run goes on from its best point with the
    gradient there, if at most rho of the steps since the last checkpoint raised the loss over the step
    before, or if neither step size nor best loss changed since then (not at the first checkpoint). The first
    checkpoint is after max(int(0.22 n), 1) of n steps, each gap is shorter than the last by
    max(int(0.03 n), 1), and at least max(int(0.06 n), 1).

    Targeted: one run after the other for each target, in the order of the clean logits, the second largest
    first, each from a start of its own. Restarts are runs of one target; the next target follows them. With
    early exit a sample leaves at its first break, so a target is tried on unbroken samples alone; without it
    all targets are run.

    Args:
        threat: norm and eps.
        steps: gradient steps of one run, >= 1.
        loss_name: "cross-entropy", "dlr" (3 classes at least, targeted 4) or "margin" (any number of classes).
        targeted: ascend the targeted DLR loss or the targeted margin z_t - z_y, target by target.
        targets: number of targets, >= 1; with K classes at most K - 1 are run. No meaning if not targeted.
        restarts: runs (of each target), >= 1.
        rho: share of steps, in [0, 1], that must be exceeded by those that raise the loss.
        name: what records and noise are filed under.

    Raises:
        UserError: if a setting is out of range, or cross-entropy is to be targeted.

    Like the reference, unlike algorithm 1 of the paper: the checkpoint gaps are whole numbers as above; a share
    of exactly rho halves the step; in the first window the first step's loss is compared with 0 in place of the
    start's loss; the step size is never halved for lack of progress at the first checkpoint.

    Differences from the reference:
        - The start is a function of (seed, name, id, run), not of a generator that the batch shares.
        - The margin and the targeted margin can be ascended, where DLR has too few classes.
        - Targets are the other classes than the label: the same for clean-correct samples, and still defined
          where a transfer source is wrong on the clean image. Ties go to the lower class number. Their order
          comes from the clean logits at hand; the reference spends a forward a target to learn it anew.
        - At most K - 1 targets; the reference raises IndexError.
        - Every query is judged by the engine and, with early exit, the first break ends the attack. The
          reference spends all steps and returns the last misclassified iterate. The same samples break.
        - Lengths are taken in float64 and guarded by 1e-30. The reference adds 1e-12 to them, which shrinks the
          L2 step of a gradient shorter than that.
        - The start is projected onto the ball, not only clipped to the box: a matter of rounding.
        - Losses are compared in float32 also where images and logits are float64.
        - With `eot` the loss that steers the step size is that of the mean logits. The reference takes that
          of the last draw.
        - `final` is the point of largest loss of all runs. The reference returns the clean image for what it did
          not break.
        - Not here: L1, the schedule with larger radii, a start that is given.
    """

    needs_grad: ClassVar[bool] = True
    minimal_norm: ClassVar[bool] = False
    version: ClassVar[int] = 1

    threat: Threat
    steps: int = 100
    loss_name: LossName = "cross-entropy"
    targeted: bool = False
    targets: int = 9
    restarts: int = 1
    rho: float = 0.75
    name: str = "apgd"

    def __post_init__(self) -> None:
        for what in ("steps", "targets", "restarts"):
            if getattr(self, what) < 1:
                raise UserError(
                    f"attack {self.name!r}: {what} must be >= 1, got {getattr(self, what)}."
                )
        if self.loss_name not in get_args(LossName):
            raise unknown_name(
                f"loss of attack {self.name!r}", str(self.loss_name), get_args(LossName)
            )
        if self.targeted and self.loss_name == "cross-entropy":
            raise UserError(
                f"attack {self.name!r}: targeted APGD takes the loss 'dlr' or 'margin', got "
                "'cross-entropy'; choose one of them or leave targeted out."
            )
        if not 0 <= self.rho <= 1:
            raise UserError(f"attack {self.name!r}: rho must lie in [0, 1], got {self.rho}.")

    def settings(self) -> dict[str, Any]:
        """Return everything that determines the queries, for the key of a cell."""
        return {
            "name": self.name,
            "algorithm": "apgd",
            "version": self.version,
            "steps": self.steps,
            "loss": self.loss_name,
            "targeted": self.targeted,
            "targets": self.targets if self.targeted else None,
            "restarts": self.restarts,
            "rho": self.rho,
            "start": "boundary",
        }

    def init(self, images: Tensor, labels: Tensor, clean_logits: Tensor, key: Tensor) -> State:
        """Return the state of fresh samples at their random starts.

        Raises:
            UserError: if the model has too few classes for the loss.
        """
        import torch

        classes = clean_logits.shape[1]
        self._check_classes(classes)
        state: State = {
            "clean": images,
            "label": labels,
            "key": key,
            "draw": torch.zeros_like(key),  # number of the run: target * restarts + restart
            # The best point of the run with its gradient; the first query overwrites both.
            "best": images,
            "best_grad": torch.zeros_like(images),
        }
        if self.targeted:
            others = clean_logits.scatter(1, labels[:, None], float("-inf"))
            order = others.sort(dim=1, descending=True, stable=True).indices
            state["targets"] = order[:, : min(self.targets, classes - 1)]
        if self._runs(state) > 1:
            state["overall"] = images
            state["overall_loss"] = torch.full_like(key, -torch.inf, dtype=torch.float32)
        return {**state, **self._fresh(state)}

    def _check_classes(self, classes: int) -> None:
        needed = {"cross-entropy": 2, "margin": 2, "dlr": 4 if self.targeted else 3}[self.loss_name]
        if classes < needed:
            loss = "the targeted DLR loss" if self.targeted else "the DLR loss"
            raise UserError(
                f"attack {self.name!r}: {loss} needs at least {needed} classes with different texts, the "
                f"model has {classes}; use loss_name 'margin'."
            )

    def _runs(self, state: State) -> int:
        return self.restarts * (state["targets"].shape[1] if self.targeted else 1)

    def _gap(self, share: float) -> int:
        return max(int(share * self.steps), 1)

    def _fresh(self, state: State) -> State:
        """Return what a run begins with, at its random start on the boundary of the ball."""
        import torch

        clean, key, draw = state["clean"], state["key"], state["draw"]
        shape = clean.shape[1:]
        if self.threat.norm == "linf":
            noise = (2.0 * randomness.uniform(key, draw, shape) - 1.0).to(clean.dtype)
            length = noise.flatten(1).abs().amax(1)
        else:
            noise = randomness.normal(key, draw, shape).to(clean.dtype)
            length = vector_length(noise)
        outward = (self.threat.eps / length.clamp_min(1e-30)).to(clean.dtype)
        start = self.threat.project(clean + noise * per_sample(outward, noise), clean)
        zero = torch.zeros_like(key)
        loss = torch.zeros_like(key, dtype=torch.float32)
        return {
            "images": start,
            "previous": start,
            "step": zero,
            "size": clean.new_full((len(key),), 2.0 * self.threat.eps),
            "best_loss": torch.full_like(loss, -torch.inf),
            # Zero, not the start's loss: the quirk of the first window.
            "last_loss": loss,
            "gap": torch.full_like(key, self._gap(0.22)),
            "since": zero,  # steps since the last checkpoint
            "rises": zero,  # how many of them raised the loss
            # What the last checkpoint saw. True at first, so that the first one cannot find a standstill.
            "halved": torch.ones_like(key, dtype=torch.bool),
            "checked_loss": loss,
        }

    def query(self, state: State) -> Tensor:
        """Return the images to look at next, (S, 3, H, W), always inside ball and box."""
        return state["images"]

    def loss(self, state: State, logits: Tensor) -> Tensor:
        """Return the loss to ascend, (S,)."""
        label = state["label"]
        if self.targeted:
            number = (state["draw"] // self.restarts)[:, None]
            target = state["targets"].gather(1, number)[:, 0]
            if self.loss_name == "dlr":
                return losses.targeted_dlr(logits, label, target)
            return losses.targeted_margin(logits, label, target)
        if self.loss_name == "cross-entropy":
            return losses.cross_entropy(logits, label)
        if self.loss_name == "dlr":
            return losses.dlr(logits, label)
        return losses.negative_margin(logits, label)

    def update(self, state: State, logits: Tensor, grad: Tensor | None) -> tuple[State, Tensor]:
        """Step, begin the next run, or be done: `done` (S,) is true after the last query of the last run."""
        import torch

        if grad is None:
            raise ValueError("APGD needs the gradient")
        # A linf run often comes back to a point where it was. In float64 rounding, which depends on the batch,
        # would decide whether its loss is larger the second time; in float32 the two are equal.
        loss = self.loss(state, logits).float()
        state = _remember_best(state, loss, grad)
        state, halve = self._check(state, loss)

        point = torch.where(_wide(halve), state["best"], state["images"])
        gradient = torch.where(_wide(halve), state["best_grad"], grad)
        clean, previous = state["clean"], state["previous"]
        ahead = per_sample(state["size"], point) * self.threat.steepest(gradient)
        stepped = self.threat.project(point + ahead, clean)
        # After a halving the momentum leads from the query before the last to the best point, as it comes.
        weight = torch.where(state["step"] > 0, _STEP_WEIGHT, 1.0).to(point.dtype)
        weight = per_sample(weight, point)
        mixed = point + (stepped - point) * weight + (point - previous) * (1.0 - weight)
        moved = self.threat.project(mixed, clean)

        runs = self._runs(state)
        spent = state["step"] >= self.steps
        done = spent & (state["draw"] >= runs - 1)
        again = spent & ~done
        state = {
            **state,
            # What has spent its steps stays where it is.
            "images": torch.where(_wide(spent), state["images"], moved),
            "previous": point,
            "step": torch.where(spent, state["step"], state["step"] + 1),
            "draw": state["draw"] + again,
        }
        return (self._begin_again(state, again) if runs > 1 else state), done

    def _check(self, state: State, loss: Tensor) -> tuple[State, Tensor]:
        """Count this step; at a checkpoint decide whether the step size is halved: `halve` (S,) bool."""
        import torch

        stepped = state["step"] > 0
        since = state["since"] + stepped
        rises = state["rises"] + (stepped & (loss > state["last_loss"]))
        here = since == state["gap"]
        oscillates = rises.double() <= self.rho * state["gap"].double()
        stands_still = ~state["halved"] & (state["checked_loss"] >= state["best_loss"])
        halve = here & (oscillates | stands_still)
        shorter = (state["gap"] - self._gap(0.03)).clamp_min(self._gap(0.06))
        state = {
            **state,
            "size": torch.where(halve, state["size"] / 2, state["size"]),
            "last_loss": torch.where(stepped, loss, state["last_loss"]),
            "gap": torch.where(here, shorter, state["gap"]),
            "since": torch.where(here, 0, since),
            "rises": torch.where(here, 0, rises),
            "halved": torch.where(here, halve, state["halved"]),
            "checked_loss": torch.where(here, state["best_loss"], state["checked_loss"]),
        }
        return state, halve

    def _begin_again(self, state: State, again: Tensor) -> State:
        """Give the slots that have spent a run, but not their last, the next one's start."""
        # Only their rows, since noise costs more than a step; none is the common case.
        rows = again.nonzero()[:, 0]
        if len(rows) == 0:
            return state
        mine = {name: tensor[rows] for name, tensor in state.items()}
        best, best_loss = _best_of_all_runs(mine)
        begun = {**self._fresh(mine), "overall": best, "overall_loss": best_loss}
        return state | {name: state[name].index_copy(0, rows, begun[name]) for name in begun}

    def final(self, state: State) -> Tensor:
        """Return the points of largest loss over all targets and restarts so far, (S, 3, H, W)."""
        return _best_of_all_runs(state)[0]


def _wide(mask: Tensor) -> Tensor:
    return mask[:, None, None, None]


def _remember_best(state: State, loss: Tensor, grad: Tensor) -> State:
    """Keep this query and its gradient where its loss is the largest of the run."""
    import torch

    better = loss > state["best_loss"]
    return {
        **state,
        "best": torch.where(_wide(better), state["images"], state["best"]),
        "best_grad": torch.where(_wide(better), grad, state["best_grad"]),
        "best_loss": torch.where(better, loss, state["best_loss"]),
    }


def _best_of_all_runs(state: State) -> tuple[Tensor, Tensor]:
    """Return the points (S, 3, H, W) of largest loss of any run, and their losses (S,)."""
    import torch

    if "overall" not in state:
        return state["best"], state["best_loss"]
    now = state["best_loss"] > state["overall_loss"]
    best = torch.where(_wide(now), state["best"], state["overall"])
    return best, torch.where(now, state["best_loss"], state["overall_loss"])
