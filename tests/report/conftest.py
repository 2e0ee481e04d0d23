"""A table and examples made by hand: six sets, three models, two attacks, one eps."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from zsrobust.attacks import plan
from zsrobust.evaluation.examples import AttackedExample, Example
from zsrobust.evaluation.table import EvaluationTable, Row
from zsrobust.threat import Threat

MODELS = ["mini-clip", "run:runs/tecoa", "run:runs/adv"]
LABELS = dict(zip(MODELS, ["CLIP", "TeCoA", "FT(Adv.)"], strict=True))
SETS = ["demo/shapes", "demo/patterns", "demo/animals", "demo/digits", "demo/flags", "demo/scenes"]
ATTACKS = ["pgd-20", "cw-margin-20"]
EPS = 4 / 255
RATES = {"mini-clip": (0.9, 0.05), "run:runs/tecoa": (0.8, 0.5), "run:runs/adv": (0.6, 0.3)}
HOSTILE = ["<script>alert(1)</script>", "a & b", '"quoted" $x$', "</style><b>'", "{{ 7 * 7 }}"]


def row(
    model: str,
    image_set: str,
    *,
    samples: int = 200,
    eps: float | None = EPS,
    is_source: bool = False,
    attacks: list[str] | None = None,
    classnames: list[str] | None = None,
    resolution: str = "model",
) -> Row:
    """Outcomes drawn at the model's rates, the same on every machine."""
    attacks = ATTACKS if attacks is None else attacks
    name = f"{model} {image_set} {eps}"
    rng = np.random.default_rng([ord(letter) for letter in name])
    clean_rate, robust_rate = RATES[model]
    clean = rng.random(samples) < clean_rate
    held = {attack: clean & (rng.random(samples) < robust_rate) for attack in attacks}
    plans = {attack: plan(attack, Threat("linf", eps or 0.0)).settings() for attack in attacks}
    classnames = classnames or ["circle", "square", "triangle"]
    return Row(
        model=model,
        image_set=image_set,
        is_source=is_source,
        eps=eps,
        resolution=resolution,
        classes=len(classnames),
        templates=["a photo of a {}."],
        ids=[f"{i:04}" for i in range(samples)],
        clean=clean.tolist(),
        robust={attack: stayed.tolist() for attack, stayed in held.items()},
        key={
            "weights": f"{abs(hash(model)):x}"[:8] + "0" * 56,
            "preprocess": {"size": [32, 32], "mean": [0.5] * 3, "resolution": resolution},
            "texts": {"classnames": classnames, "templates": ["a photo of a {}."], "scale": 25.0},
            "duplicates": "merge",
            "split": "test",
            "precision": "fp32",
        },
        plans=plans,
        steps={
            attack: [1 if c and not s else None for c, s in zip(clean, stayed, strict=True)]
            for attack, stayed in held.items()
        },
        environments=[{"zsrobust": "0.1.0", "torch": "2.0", "device": "cpu"}],
    )


def table(**settings: Any) -> EvaluationTable:
    """Six sets, three models."""
    request = {"attacks": ATTACKS, "norm": "linf", "eps": [EPS], "limit": 200, "seed": 0}
    rows = [row(model, name, **settings) for model in MODELS for name in SETS]
    return EvaluationTable("demo", request, rows)


def example(
    image_set: str, true_class: str = "circle", side: int = 32, norm: str = "linf"
) -> Example:
    """A random picture; the first model breaks, the second holds, the third was wrong unattacked."""
    rng = np.random.default_rng([ord(letter) for letter in image_set])
    clean = rng.integers(0, 256, (side, side, 3), dtype=np.uint8)
    near = np.clip(clean / 255 + EPS * rng.choice([-1, 1], clean.shape), 0, 1).astype(np.float32)
    says = [(true_class, "square", True, 3, "breaking query")]
    says += [(true_class, true_class, False, None, "last image")]
    says += [("square", "square", False, None, "clean image")]
    attacked = [
        AttackedExample(
            model=model,
            image=near if before == true_class else (clean / 255).astype(np.float32),
            shown=shown,
            said_clean=before,
            probability_clean=0.9,
            right_clean=before == true_class,
            said=after,
            probability=0.6,
            right=after == true_class,
            broken=broken,
            step=step,
        )
        for model, (before, after, broken, step, shown) in zip(MODELS, says, strict=True)
    ]
    return Example(
        image_set=image_set,
        id="0007",
        true_class=true_class,
        classes=3,
        clean=clean,
        attack="pgd-20",
        threat=Threat(norm, EPS),
        attacked=attacked,
    )


@pytest.fixture
def toy_table() -> EvaluationTable:
    return table()


@pytest.fixture
def toy_examples() -> list[Example]:
    return [example(name) for name in SETS]
