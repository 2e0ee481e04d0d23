"""A linear head on image features: its start, its fit as a probe; and the adaptation that moves it alone.

The head of the paper's baselines Adv. and LP (facts 5): logits = W f + b, f the image features before
normalisation. It is trained on the source's classes and is no part of the zero-shot model.

Letters: N samples, K classes, D embedding; features (N, D), labels (N,) int64 in [0, K).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from zsrobust import randomness
from zsrobust.adaptations.adaptation import Adaptation, Moving, image_tower
from zsrobust.errors import UserError

PROBE_L2 = 3e-3
"""Weight of half the squared length of the probe's weights and biases, beside the mean cross-entropy.

It is laid on standardised features, so that it means the same for every model; scikit-learn's C would
be 1 / (PROBE_L2 N). Of 3e-4 to 3e-2 in half decades it gave the lowest cross-entropy on held-out source
images (mini-clip, 10,000 images of `mini/tiny_imagenet`); accuracy is flat around it.
"""
_TOLERANCE = 1e-6
_ITERATIONS = 1000
_ROWS = 8192
"""Samples whose logits are held at a time."""


@dataclass(frozen=True, slots=True)
class Linear(Adaptation):
    """Nothing of the model moves, of any open_clip model: what learns is the head of objective `linear`.

    Source: facts 5, LP: the encoder is frozen.
    """

    name: ClassVar[str] = "linear"

    def apply(self, model: nn.Module, seed: int = 0) -> Moving:
        """Freeze the whole model; see `Adaptation.apply`. Nothing is drawn."""
        del seed
        image_tower(model, self.name)
        return []


class LinearHead(nn.Module):
    """Image features -> logits of K classes, with a bias.

    Made by `random` or `probe`.

    Args:
        weight: (K, D).
        bias: (K,).

    Raises:
        UserError: for fewer than two classes: the cross-entropy of one is always 0.
    """

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        if len(weight) < 2:
            raise UserError(
                f"a linear head needs two classes or more, the source has {len(weight)}."
            )
        self.weight = nn.Parameter(weight)
        self.bias = nn.Parameter(bias)

    @classmethod
    def random(cls, classes: int, dimensions: int, seed: int) -> LinearHead:
        """Return a head as PyTorch starts its `nn.Linear`: weights and biases uniform in +-1 / sqrt(D).

        A function of (seed, K, D): the global random stream is neither read nor moved.

        Args:
            classes: K.
            dimensions: D.
            seed: the recipe's.

        Raises:
            UserError: for fewer than two classes.
        """
        keys = randomness.sample_keys(seed, "linear-head", [str(k) for k in range(classes)])
        drawn = randomness.uniform(keys, torch.zeros_like(keys), (dimensions + 1,))  # (K, D + 1)
        start = (2.0 * drawn - 1.0) * dimensions**-0.5
        return cls(start[:, :-1].contiguous(), start[:, -1].contiguous())

    @classmethod
    def probe(
        cls, features: Tensor, labels: Tensor, classes: int, l2: float = PROBE_L2
    ) -> LinearHead:
        """Return the head of multinomial logistic regression on `features`, in float32 on their device.

        Minimises, in float64, mean cross-entropy + l2 / 2 |theta|^2 over the weights and biases theta of
        the standardised features (mean 0, deviation 1), by L-BFGS with Wolfe's line search, from zero,
        to a gradient below 1e-6 or for 1000 iterations; then folds the standardisation in. There is
        one optimum, whether classes are separable or one has no sample: that is why biases are held
        too. Nothing is drawn.

        Args:
            features: (N, D) float, N >= 1.
            labels: (N,) int64 in [0, K).
            classes: K.
            l2: > 0.

        Raises:
            UserError: for fewer than two classes.
            FloatingPointError: if a feature is not finite.
        """
        if not bool(torch.isfinite(features).all()):
            raise FloatingPointError("a linear probe met image features that are not finite")
        standard = features.detach().double()
        mean, deviation = standard.mean(dim=0), standard.std(dim=0, correction=0)
        # A feature that only rounding moves would be blown up; divided by 1 it stays next to nothing.
        deviation[deviation <= 1e-6 * deviation.max()] = 1.0
        standard = (standard - mean) / deviation
        theta = _fit(standard, labels, classes, l2)  # (K, D + 1)
        weight = theta[:, :-1] / deviation
        bias = theta[:, -1] - weight @ mean
        return cls(weight.float(), bias.float())

    def forward(self, features: Tensor) -> Tensor:
        """Return logits (N, K) of features (N, D), not normalised."""
        return functional.linear(features, self.weight, self.bias)


def probe_loss(
    standard: Tensor, labels: Tensor, classes: int, l2: float
) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    """Return the function that a probe minimises: theta (K, D + 1) -> value (), gradient (K, D + 1).

    Args:
        standard: (N, D) float64, standardised features; the last column of theta is the bias.
        labels: (N,) int64 in [0, K).
        classes: K.
        l2: weight of |theta|^2 / 2.
    """

    def at(theta: Tensor) -> tuple[Tensor, Tensor]:
        value, gradient = theta.new_zeros(()), torch.zeros_like(theta)
        # In blocks, and the gradient in closed form: logits of all samples at once need not fit.
        for x, y in zip(standard.split(_ROWS), labels.split(_ROWS), strict=True):
            log_p = functional.linear(x, theta[:, :-1], theta[:, -1]).log_softmax(dim=1)  # (n, K)
            truth = functional.one_hot(y, classes).to(log_p)
            value -= (truth * log_p).sum()
            error = log_p.exp() - truth
            gradient[:, :-1] += error.T @ x
            gradient[:, -1] += error.sum(dim=0)
        count = len(standard)
        return value / count + l2 / 2 * theta.square().sum(), gradient / count + l2 * theta

    return at


def _fit(standard: Tensor, labels: Tensor, classes: int, l2: float) -> Tensor:
    """Return the theta (K, D + 1) that minimises `probe_loss`."""
    loss = probe_loss(standard, labels, classes, l2)
    theta = nn.Parameter(standard.new_zeros(classes, standard.shape[1] + 1))
    optimiser = torch.optim.LBFGS(
        [theta],
        max_iter=_ITERATIONS,
        tolerance_grad=_TOLERANCE,
        tolerance_change=0.0,
        history_size=20,
        line_search_fn="strong_wolfe",
    )

    def closure() -> float:
        value, theta.grad = loss(theta.detach())
        return float(value)

    optimiser.step(closure)
    return theta.detach()
