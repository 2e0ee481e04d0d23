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
