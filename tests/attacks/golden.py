"""The golden outcomes: small networks, their images, and what the reference AutoAttack did to each image.

They lie in the folder named by ZSROBUST_GOLDEN; its README says how they were made.
`benchmarks/golden.py` prints the whole comparison.
"""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

from zsrobust import attacks
from zsrobust.threat import Threat

TIE = 1e-5
"""Margins below this are ties: two implementations may disagree on them."""

# The reference's name -> ours. Its PGD is an own loop: step 2.5 eps / steps, the last iterate counts.
ATTACKS = {
    "pgd10": "pgd-10:step={step}:judge=last",
    "pgd50": "pgd-50:step={step}:judge=last",
    "apgd-ce": "apgd-ce",
    "apgd-dlr": "apgd-dlr",
    "apgd-t": "apgd-t",
    "fab": "fab",
    "fab-t": "fab-t",
    "square": "square",
    "pair": "autoattack-fare",
    "standard": "autoattack",
}


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


@dataclass(frozen=True)
class Comparison:
    """One attack on one network: ours over some seeds against the reference's."""

    case: str
    attack: str
    images: int
    clean_correct: int
    reference: list[float]
    """Robust accuracy in per cent of all images, one a seed."""
    ours: list[float]
    differ: int
    """Samples on which the majorities over seeds differ, ties left out."""
    between_seeds: int
    """Most samples on which two seeds of the reference differ."""

    @property
    def too_weak(self) -> float:
        """Points by which ours lies above the reference's mean beyond what is allowed; 0 or less is good."""
        images = 2 if self.attack == "square" else 1
        allowed = max(1.0, 100 * images / self.images)
        return _mean(self.ours) - _mean(self.reference) - allowed

    @property
    def differ_allowed(self) -> float | None:
        """Samples that may differ: APGD's rule, FAB's 3%; None where draws decide (Square, PGD, ensembles)."""
        if self.attack.startswith("apgd"):
            return max(1.0, self.between_seeds, 0.03 * self.clean_correct)
        return 0.03 * self.clean_correct if self.attack.startswith("fab") else None


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _majority(runs: Sequence[Sequence[bool]]) -> list[bool]:
    return [2 * sum(column) > len(runs) for column in zip(*runs, strict=True)]


def kinds(label: str) -> list[str]:
    """Return the reference's attacks on a case, in the order of `ATTACKS`."""
    run = {kind for row in reference(CASES[label]) for kind in row["attacks"]}
    return [kind for kind in ATTACKS if kind in run]


def compare(label: str, kind: str, seeds: Sequence[int], count: int | None = None) -> Comparison:
    """Attack a golden network as the reference did, and set the outcomes side by side.

    Args:
        label: of `CASES`.
        kind: of `ATTACKS`.
        seeds: ours.
        count: the first so many images; None is all that the reference attacked.
    """
    case = CASES[label]
    pixels, labels, ids = images(case, count)
    rows = reference(case)[: len(ids)]
    net = network(case.network)
    name = ATTACKS[kind]
    if kind.startswith("pgd"):
        name = name.format(step=2.5 * case.threat.eps / int(kind[3:]))
    correct = [bool(row["clean_correct"]) for row in rows]
    missing = {"broken": False, "margin": 1.0}
    theirs, ties = [], set()
    for seed in sorted({seed for row in rows for seed in row["attacks"].get(kind, {})}):
        outcomes = [row["attacks"].get(kind, {}).get(seed, missing) for row in rows]
        theirs.append([bool(outcome["broken"]) for outcome in outcomes])
        ties |= {i for i, outcome in enumerate(outcomes) if abs(outcome["margin"]) < TIE}
    mine = []
    for seed in seeds:
        found = attacks.run(
            net,
            pixels,
            labels,
            attack=name,
            norm=case.threat.norm,
            eps=case.threat.eps,
            ids=ids,
            seed=seed,
        )
        assert [outcome.clean_correct for outcome in found] == correct
        mine.append([outcome.broken for outcome in found])
        ties |= {i for i, outcome in enumerate(found) if abs(outcome.margin) < TIE}

    def robust(run: Sequence[bool]) -> float:
        stayed = sum(c and not broken for c, broken in zip(correct, run, strict=True))
        return 100 * stayed / len(run)

    pairs = zip(_majority(mine), _majority(theirs), strict=True)
    between = [
        sum(a != b for a, b in zip(x, y, strict=True)) for x, y in itertools.combinations(theirs, 2)
    ]
    return Comparison(
        label,
        kind,
        len(ids),
        sum(correct),
        [robust(run) for run in theirs],
        [robust(run) for run in mine],
        sum(a != b and i not in ties for i, (a, b) in enumerate(pairs)),
        max(between, default=0),
    )
