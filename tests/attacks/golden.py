"""The golden outcomes: small networks, their images, and what the reference AutoAttack did to each image.

They lie in the folder named by ZSROBUST_GOLDEN; its README says how they were made.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

from zsrobust.threat import Threat

TIE = 1e-5
"""Margins below this are ties: two implementations may disagree on them."""


@dataclass(frozen=True)
class Case:
    """One network under one threat."""

    network: str
    threat: Threat
    images: str
    """Stem of the images file."""

    @property
    def label(self) -> str:
        """As the results file is named."""
        norm = {"linf": "Linf", "l2": "L2"}[self.threat.norm]
        eps = self.threat.eps
        text = f"{round(eps * 255)}-255" if self.threat.norm == "linf" else str(eps)
        return f"{self.network}_{norm}_{text}"


CASES = {
    case.label: case
    for case in (
        Case("cnn-robust", Threat("linf", 8 / 255), "cifar10-300"),
        Case("cnn-robust", Threat("l2", 1.0), "cifar10-300"),
        Case("cnn-plain", Threat("linf", 2 / 255), "cifar10-300"),
        Case("cnn-plain", Threat("l2", 0.3), "cifar10-300"),
        Case("vit-robust", Threat("linf", 2 / 255), "cifar10-300"),
        Case("cnn-2class", Threat("linf", 4 / 255), "cat-dog-150"),
        Case("cnn-3class", Threat("linf", 8 / 255), "cat-dog-frog-150"),
    )
}


def folder() -> Path | None:
    """Return the folder of the golden outcomes, None where it is not named."""
    named = os.environ.get("ZSROBUST_GOLDEN")
    return Path(named) if named else None


def _read(*parts: str) -> Path:
    root = folder()
    if root is None:
        raise RuntimeError("ZSROBUST_GOLDEN names no folder")
    return root.joinpath(*parts)


def network(name: str) -> nn.Module:
    """Return a golden network, float32, in eval mode: images (N, 3, 32, 32) in [0, 1] -> logits (N, K)."""
    weights = load_file(_read("weights", f"{name}.safetensors"))
    model = _Vit(weights) if name.startswith("vit") else _Cnn(weights)
    return model.eval()


def images(case: Case, count: int | None = None) -> tuple[Tensor, Tensor, list[str]]:
    """Return images (N, 3, 32, 32) float32 in [0, 1], labels (N,) and ids of those that the reference attacked."""
    count = len(reference(case)) if count is None else count
    with np.load(_read("images", f"{case.images}.npz")) as stored:
        pixels = torch.from_numpy(stored["images"][:count]).permute(0, 3, 1, 2).float() / 255
        return pixels, torch.from_numpy(stored["labels"][:count]), list(stored["ids"][:count])


def reference(case: Case) -> list[dict[str, Any]]:
    """Return the reference's outcomes, one an image, in the order of the images."""
    text = _read("results", f"{case.label}.jsonl").read_text("utf-8")
    return [json.loads(line) for line in text.splitlines()]


class _Normalised(nn.Module):
    mean: Tensor
    std: Tensor

    def __init__(self, weights: dict[str, Tensor]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor([0.4914, 0.4822, 0.4465]).reshape(3, 1, 1))
        self.register_buffer("std", torch.tensor([0.2470, 0.2435, 0.2616]).reshape(3, 1, 1))
        for name, tensor in weights.items():
            self.register_buffer(name.replace(".", "_"), tensor)

    def of(self, name: str) -> tuple[Tensor, Tensor]:
        """Return weight and bias of a layer."""
        stem = name.replace(".", "_")
        return getattr(self, f"{stem}_weight"), getattr(self, f"{stem}_bias")


class _Cnn(_Normalised):
    def forward(self, x: Tensor) -> Tensor:
        x = (x - self.mean) / self.std
        for name, stride in (("conv1", 2), ("conv2", 2), ("conv3", 2), ("conv4", 1)):
            x = functional.conv2d(x, *self.of(name), stride=stride, padding=1).relu()
        return functional.linear(x.flatten(1), *self.of("fc"))


class _Vit(_Normalised):
    def norm(self, x: Tensor, name: str) -> Tensor:
        return functional.layer_norm(x, (64,), *self.of(name), eps=1e-5)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.conv2d((x - self.mean) / self.std, *self.of("patch"), stride=4)
        x = x.flatten(2).transpose(1, 2) + self.pos  # (N, 64, 64)
        for n in range(3):
            heads = functional.linear(self.norm(x, f"blocks.{n}.ln1"), *self.of(f"blocks.{n}.qkv"))
            q, k, v = heads.reshape(*x.shape[:2], 3, 4, 16).permute(2, 0, 3, 1, 4)
            mixed = (q @ k.transpose(-2, -1) / 4).softmax(-1) @ v
            x = x + functional.linear(
                mixed.transpose(1, 2).flatten(2), *self.of(f"blocks.{n}.proj")
            )
            hidden = functional.gelu(
                functional.linear(self.norm(x, f"blocks.{n}.ln2"), *self.of(f"blocks.{n}.fc1"))
            )
            x = x + functional.linear(hidden, *self.of(f"blocks.{n}.fc2"))
        return functional.linear(self.norm(x, "ln").mean(1), *self.of("fc"))
