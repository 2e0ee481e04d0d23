"""Toys that the objectives' tests share: a linear encoder in float64, six images, slow formulas."""

from __future__ import annotations

import math

import pytest
import torch

from zsrobust.objectives.objective import TrainingBatch


class Encoder(torch.nn.Module):
    """Images (N, 3, 2, 2) -> features (N, 5)."""

    def __init__(self, seed: int = 0):
        super().__init__()
        draw = torch.Generator().manual_seed(seed)
        self.weights = torch.nn.Parameter(torch.randn(12, 5, generator=draw, dtype=torch.float64))

    def forward(self, images):
        return images.flatten(1) @ self.weights


@pytest.fixture
def encode() -> Encoder:
    return Encoder()


@pytest.fixture
def batch() -> TrainingBatch:
    """Six clean images with labels of four classes."""
    draw = torch.Generator().manual_seed(1)
    images = torch.rand(6, 3, 2, 2, generator=draw, dtype=torch.float64)
    labels = torch.tensor([0, 3, 2, 2, 1, 3])
    return TrainingBatch(ids=list("abcdef"), images=images, labels=labels)


@pytest.fixture
def moved(batch) -> torch.Tensor:
    """Other images, as an adversary might leave them."""
    draw = torch.Generator().manual_seed(2)
    noise = torch.rand(batch.images.shape, generator=draw, dtype=torch.float64)
    return (batch.images + 0.2 * noise - 0.1).clamp(0, 1)


def slow_contrast(features, others, positive, scale):
    """-log of the softmax over `others` of one feature's cosines, sum by sum; lists or (N, D) tensors."""
    losses = []
    for f, row in zip(features.tolist(), positive, strict=True):
        cosines = [
            sum(a * b for a, b in zip(f, t, strict=True)) / math.hypot(*f) / math.hypot(*t)
            for t in others.tolist()
        ]
        denominator = sum(math.exp(scale * c) for c in cosines)
        losses.append(-math.log(math.exp(scale * cosines[row]) / denominator))
    return losses


@pytest.fixture
def slow():
    return slow_contrast
