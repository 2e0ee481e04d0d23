"""Losses of attacks: one number a sample, to ascend. Per-sample sums, never a batch mean (traps 23).

Letters: N samples, K classes (text groups); logits (N, K), labels (N,) int64 in [0, K).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the cross-entropy of each sample (N,), in nats, >= 0."""
    from torch.nn import functional

    return functional.cross_entropy(logits, labels, reduction="none")


def largest_other(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the largest logit of another class than the true one, (N,)."""
    return logits.scatter(1, labels[:, None], float("-inf")).amax(1)


def margin(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the classification margin (N,): true logit minus the largest other; < 0 is misclassified."""
    return logits.gather(1, labels[:, None])[:, 0] - largest_other(logits, labels)


def negative_margin(logits: Tensor, labels: Tensor) -> Tensor:
    """Return max_{k != y} z_k - z_y, (N,). It does not saturate where cross-entropy does (traps 27)."""
    return -margin(logits, labels)


def carlini_wagner(logits: Tensor, labels: Tensor, kappa: float) -> Tensor:
    """Return -relu(z_y - max_{k != y} z_k + kappa), (N,).

    Source: what the TeCoA authors' code calls CW (facts 1.4), there with kappa = 50 on scaled logits.
    Difference: the true class is excluded exactly, not by subtracting 10000 from its logit.
    Once a sample is misclassified by kappa its gradient is zero.
    """
    return -(margin(logits, labels) + kappa).relu()


def dlr(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the difference of logits ratio -(z_y - max_{k != y} z_k) / (z_(1) - z_(3)), (N,).

    z_(1) >= z_(2) >= ... are the sorted logits; K >= 3. In [-1, 0] where right, positive where misclassified.
    Blind to shift and scale of the logits, so it does not saturate where cross-entropy does (traps 27). It is
    1, and flat, wherever the true class stands third.
    Source: Croce and Hein, ICML 2020, equation 6. 1e-12 is added to the denominator as in the reference.
    Difference: where logits tie, the gradient is shared among the equal ones; the reference's falls on one.
    """
    largest = logits.topk(3, dim=1).values
    return negative_margin(logits, labels) / (largest[:, 0] - largest[:, 2] + 1e-12)


def targeted_dlr(logits: Tensor, labels: Tensor, targets: Tensor) -> Tensor:
    """Return -(z_y - z_t) / (z_(1) - (z_(3) + z_(4)) / 2), (N,), for the targets t (N,) int64; K >= 4.

    Positive where the target stands above the true class, whichever class stands highest.
    Source: Croce and Hein, ICML 2020, equation 7. 1e-12 is added to the denominator as in the reference.
    Difference: none.
    """
    largest = logits.topk(4, dim=1).values
    spread = largest[:, 0] - 0.5 * (largest[:, 2] + largest[:, 3]) + 1e-12
    return targeted_margin(logits, labels, targets) / spread


def targeted_margin(logits: Tensor, labels: Tensor, targets: Tensor) -> Tensor:
    """Return z_t - z_y for the targets t, (N,): what stands in for targeted DLR with few classes (traps 25)."""
    return (logits.gather(1, targets[:, None]) - logits.gather(1, labels[:, None]))[:, 0]
