"""FAB: the fast adaptive boundary attack, which looks for the nearest misclassified image.

Source: Croce and Hein, "Minimally distorted adversarial examples with a fast adaptive boundary
attack", ICML 2020, arXiv 1907.02044: algorithm 1, and its projection on a hyperplane with box constraints;
the targeted version is that of "Reliable evaluation of adversarial robustness with an ensemble of diverse
parameter-free attacks", ICML 2020, arXiv 2003.01690.

Letters: S slots, T targets, K classes (text groups), D = 3 H W pixel values; x1 the current point, x0 the
clean image.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from zsrobust import randomness
from zsrobust.errors import UserError
from zsrobust.threat import Norm, Threat, per_sample

if TYPE_CHECKING:
    from torch import Tensor

    from zsrobust.attacks.pgd import State

MOST_CLASSES = 10
"""The untargeted attack costs one backward a class: above this it is refused."""

_SHORTEST = 1e-8
"""Floor of the two projections' lengths, so that their ratio is defined where both are zero."""


def to_hyperplane(points: Tensor, normal: Tensor, value: Tensor, norm: Norm) -> Tensor:
    """Return the smallest displacements that bring points in the box onto hyperplanes, without leaving it.

    Row by row: the d of least norm with value + normal . d = 0 and points + d in [0, 1]. Where the
    hyperplane misses the box: the d that comes nearest to it, a corner of the box in all coordinates
    with normal != 0. A zero normal, or a zero value, gives d = 0.

    The solution is d_i = -sign(normal_i value) min(m v_i, room_i), where room_i is the way to the box's
    wall, v is 1 (linf) or |normal| (l2), and the multiplier m >= 0 solves
    sum_i |normal_i| min(m v_i, room_i) = |value|. The left side is concave, piecewise linear and rising, so
    Newton's method from m = 0 never passes the root and ends on it after finitely many pieces, in practice
    a handful. The reference sorts the pieces and bisects; the result is the same but for rounding.

    Args:
        points: (N, D) in [0, 1].
        normal: (N, D), the gradient of the linear function.
        value: (N,), the linear function at `points`, any sign.
        norm: the norm of d to minimise.

    Returns:
        (N, D), of the dtype of `points`.
    """
    import torch

    limits = torch.finfo(points.dtype)
    weight = normal.abs()
    # In units of the largest weight, squares of small gradients do not underflow.
    largest = weight.amax(1).clamp_min(limits.tiny)
    weight = weight / largest[:, None]
    need = (value.abs() / largest).clamp(max=limits.max)
    direction = -normal.sign() * value.sign()[:, None]
    room = torch.where(direction > 0, 1.0 - points, points)
    speed = torch.ones_like(weight) if norm == "linf" else weight
    rise, most = weight * speed, weight * room
    multiplier = torch.zeros_like(value)
    while True:
        walled = room <= multiplier[:, None] * speed
        slope = rise.masked_fill(walled, 0.0).sum(1)
        rest = need - most.masked_fill(~walled, 0.0).sum(1)
        # Without slope every coordinate that matters stands at its wall: the corner, nothing to add.
        new = (rest / slope.clamp_min(limits.tiny)).clamp(max=limits.max)
        new = torch.where(slope > 0, new, multiplier)
        # A row that has its root computes the same number again: rows do not depend on each other.
        if not bool((new > multiplier).any()):
            return direction * torch.minimum(multiplier[:, None] * speed, room)
        multiplier = torch.maximum(multiplier, new)


@dataclass(frozen=True, slots=True, kw_only=True)
class Fab:
    """FAB as a state machine for the engine; targeted, or untargeted for up to 10 classes.

    One iteration linearises the decision boundary at x1 (untargeted: that of the class whose linearised
    boundary is nearest), projects x1 and x0 onto it within the box, overshoots by eta, and mixes the two
    with a bias towards x0. Where the new point is misclassified, the next iteration starts from a point on
    the way back, x0 + beta (x1 - x0).

    Queries: the start, then one a new point, and one more for the point on the way back after each hit but
    that of the last iteration: 1 + steps to 2 steps a run, a run being one restart on one target. Where
    the new point is no hit, the forward that looks at it also gives the gradient of the next iteration.
    They leave the ball; the engine counts those inside it.

    Source: as at the top of this file; reference implementation fra31/auto-attack at a392200.
    Differences from it:

    - It checks new points alone. Here the engine judges every query, thus also points on the way back and
      random starts: it can only break more, and find smaller distances.
    - It spends all iterations on a sample; here a sample leaves at its first hit inside the ball unless
      distances were asked for.
    - It makes two forwards an iteration; here an iteration that is no hit makes one. The gradient
      that the engine takes at a hit is not used.
    - It discards distances above eps strictly, computed in float32. Here the engine's membership rule holds.
    - The projections solve for the multiplier by Newton's method, not by sorting, and take the value of the
      linear function at x0 as value(x1) + normal . (x0 - x1), not as a difference of two large products.
      For l2 its projection leaves out coordinates with a gradient below 1e-8; here none.
    - Untargeted, it takes K gradients and subtracts that of the true class; here K - 1 gradients of
      differences. More than 10 classes are refused.
    - A target is an index among the clean logits without the true class, at most K - 1 of them. It raises for
      more; and where the clean image is misclassified (transfer) its first target could be the true class.
    - Random starts are drawn for each sample from (seed, name, id, run) instead of one generator.
    - It knows l1 too.

    Args:
        threat: norm and eps. Eps sets the random starts alone: the path of the first restart knows no eps.
        steps: iterations of one run, >= 1.
        targeted: attack one class at a time, in the order of the clean logits, instead of the nearest.
        targets: how many classes, >= 1; at most K - 1 are there. Without effect when untargeted.
        restarts: runs on each target, >= 1. The first starts at the clean image; later ones at distance
            eps / 2 from it in a random direction (linf: uniform noise divided by its maximum).
        alpha_max: largest bias towards the clean image, in [0, 1].
        eta: overshoot, >= 1.
        beta: what a hit keeps of its displacement, in (0, 1).
        name: what records and noise are filed under.

    Raises:
        UserError: if an argument is out of range; when it starts, if untargeted with more than 10 classes.
    """

    needs_grad: ClassVar[bool] = True
    minimal_norm: ClassVar[bool] = True
    version: ClassVar[int] = 1

    threat: Threat
    steps: int = 100
    targeted: bool = True
    targets: int = 9
    restarts: int = 1
    alpha_max: float = 0.1
    eta: float = 1.05
    beta: float = 0.9
    name: str = "fab"

    def __post_init__(self) -> None:
        for what, count in (
            ("steps", self.steps),
            ("targets", self.targets),
            ("restarts", self.restarts),
        ):
            if count < 1:
                raise UserError(f"attack {self.name!r}: {what} must be >= 1, got {count}.")
        # Written so that NaN fails too.
        for what, given, fits, allowed in (
            ("alpha_max", self.alpha_max, 0 <= self.alpha_max <= 1, "lie in [0, 1]"),
            ("eta", self.eta, 1 <= self.eta < float("inf"), "be finite and >= 1"),
            ("beta", self.beta, 0 < self.beta < 1, "lie in (0, 1), ends excluded"),
        ):
            if not fits:
                raise UserError(f"attack {self.name!r}: {what} must {allowed}, got {given}.")

    def settings(self) -> dict[str, Any]:
        """Return everything that determines the queries, for the key of a cell."""
        return {
            "name": self.name,
            "algorithm": "fab",
            "version": self.version,
            "steps": self.steps,
            "targeted": self.targeted,
            "targets": self.targets if self.targeted else None,
            "restarts": self.restarts,
            "alpha_max": self.alpha_max,
            "eta": self.eta,
            "beta": self.beta,
            "start": "clean, then random at eps / 2",
        }

    def init(self, images: Tensor, labels: Tensor, clean_logits: Tensor, key: Tensor) -> State:
        """Return the state of fresh samples, standing on their clean images.

        Raises:
            UserError: if the attack is untargeted and there are more than 10 classes.
        """
        import torch

        classes = clean_logits.shape[1]
        if not self.targeted and classes > MOST_CLASSES:
            raise UserError(
                f"attack {self.name!r}: untargeted FAB takes one backward a class and at most "
                f"{MOST_CLASSES} classes, the model has {classes}: use the targeted one."
            )
        zero = torch.zeros_like(key)
        state = {
            "clean": images,
            "label": labels,
            "key": key,
            "run": zero,  # of all restarts on all targets
            "iteration": zero,
            "step": zero,
            "fresh": torch.zeros_like(key, dtype=torch.bool),  # a new point, to be checked
            "images": images,
            "nearest": images,  # misclassified one found so far
            "distance": torch.full_like(key, torch.inf, dtype=torch.float64),
        }
        if self.targeted:
            others = clean_logits.scatter(1, labels[:, None], float("-inf"))
            order = others.argsort(dim=1, descending=True, stable=True)
            state["order"] = order[:, : min(self.targets, classes - 1)]  # (S, T)
        return state

    def query(self, state: State) -> Tensor:
        """Return the images to look at next, (S, 3, H, W) in [0, 1], inside the ball or not."""
        return state["images"]

    def loss(self, state: State, logits: Tensor) -> Tensor:
        """Return logits less the true one: of the target (S,), or of every other class (S, K - 1)."""
        others = self._rivals(state, logits.shape[1])
        gap = logits.gather(1, others) - logits.gather(1, state["label"][:, None])
        return gap[:, 0] if self.targeted else gap

    def _rivals(self, state: State, classes: int) -> Tensor:
        """Return the classes whose boundaries count: (S, 1) targeted, else (S, K - 1)."""
        import torch

        if self.targeted:
            return state["order"].gather(1, (state["run"] // self.restarts)[:, None])
        column = torch.arange(classes - 1, device=state["label"].device)[None]
        return column + (column >= state["label"][:, None])

    def update(self, state: State, logits: Tensor, grad: Tensor | None) -> tuple[State, Tensor]:
        """Step, or go back after a hit, or begin the next run; `done` (S,) is true after the last run."""
        import torch

        if grad is None:
            raise ValueError("FAB needs the gradient")
        clean, images = state["clean"], state["images"]
        wrong = logits.argmax(1) != state["label"]
        distance = self.threat.distance(images, clean)
        nearer = wrong & (distance < state["distance"])
        over = state["fresh"] & (state["iteration"] >= self.steps)
        back = state["fresh"] & wrong & ~over
        runs = self.restarts * (state["order"].shape[1] if self.targeted else 1)
        done = over & (state["run"] >= runs - 1)
        again = over & ~done
        forward = ~(over | back)

        kept = torch.where(_wide(over), images, clean + self.beta * (images - clean))
        rows = forward.nonzero()[
            :, 0
        ]  # the projections are most of an update: for those who step alone
        moved = kept
        if len(rows) > 0:
            gap = self.loss(state, logits)
            stepped = self._step(images[rows], clean[rows], gap[rows], grad[rows])
            moved = kept.index_copy(0, rows, stepped)
        state = {
            **state,
            "images": moved,
            "nearest": torch.where(_wide(nearer), images, state["nearest"]),
            "distance": torch.where(nearer, distance, state["distance"]),
            "iteration": torch.where(again, 0, state["iteration"] + forward),
            "step": torch.where(again, 0, state["step"] + ~done),
            "run": state["run"] + again,
            "fresh": forward,
        }
        if bool(again.any()):
            state["images"] = torch.where(_wide(again), self._start(state), moved)
        return state, done

    def _step(self, images: Tensor, clean: Tensor, gap: Tensor, grad: Tensor) -> Tensor:
        """Return the new points of one iteration, (S, 3, H, W), algorithm 1 of the paper.

        Args:
            images: (S, 3, H, W), x1.
            clean: (S, 3, H, W), x0.
            gap: (S,) or (S, K - 1), what is zero on the boundary.
            grad: its gradients, (S, 3, H, W) or (S, K - 1, 3, H, W).
        """
        import torch

        norm = self.threat.norm
        gap = gap.to(images.dtype)  # logits may come in another float type than images
        if not self.targeted:
            dual = grad.flatten(2).abs().sum(2) if norm == "linf" else grad.flatten(2).norm(dim=2)
            column = (gap.abs() / (dual + 1e-12)).argmin(1)
            row = torch.arange(len(column), device=column.device)
            gap, grad = gap[row, column], grad[row, column]
        x1, x0, normal = images.flatten(1), clean.flatten(1), grad.flatten(1)
        at_clean = gap + (normal * (x0 - x1)).sum(1)
        d1, d0 = to_hyperplane(
            torch.cat([x1, x0]),
            torch.cat([normal, normal]),
            torch.cat([gap, at_clean]),
            norm,
        ).chunk(2)
        a1, a0 = (
            (d.abs().amax(1) if norm == "linf" else d.norm(dim=1)).clamp_min(_SHORTEST)
            for d in (d1, d0)
        )
        alpha = (a1 / (a1 + a0)).clamp(max=self.alpha_max)[:, None]
        mixed = (x1 + self.eta * d1) * (1.0 - alpha) + (x0 + self.eta * d0) * alpha
        return mixed.clamp(0.0, 1.0).reshape(images.shape)

    def _start(self, state: State) -> Tensor:
        """Return where the runs of a state begin, (S, 3, H, W): the clean image, or half of eps from it."""
        import torch

        clean = state["clean"]
        draw, shape = state["run"], clean.shape[1:]
        if self.threat.norm == "linf":
            noise = 2.0 * randomness.uniform(state["key"], draw, shape) - 1.0
            length = noise.flatten(1).abs().amax(1)
        else:
            noise = randomness.normal(state["key"], draw, shape)
            length = noise.flatten(1).norm(dim=1)
        half = 0.5 * self.threat.eps / length.clamp_min(1e-30)
        start = (clean + (noise * per_sample(half, noise)).to(clean.dtype)).clamp(0.0, 1.0)
        return torch.where(_wide(draw % self.restarts > 0), start, clean)

    def final(self, state: State) -> Tensor:
        """Return the nearest misclassified points found, else the last ones; projected onto the ball.

        What lies in the ball stays as it is; what lies outside it is no result under the threat.
        """
        import torch

        found = _wide(state["distance"].isfinite())
        point = torch.where(found, state["nearest"], state["images"])
        return self.threat.project(point, state["clean"])


def _wide(mask: Tensor) -> Tensor:
    """Return a mask (S,) shaped to choose among images."""
    return mask[:, None, None, None]
