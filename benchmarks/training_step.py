"""The training step against its floor, side by side in one run.

The step: `zsrobust.training.step.training_step` (TeCoA, PGD-2, AdamW) on mini-clip, batch 64, loader excluded.
Its floor: 3 forwards, 2 input-only backwards and 1 full backward of the plain open_clip module on the same
images, and the optimiser. The two are interleaved; the ratio is the median of the pairs' ratios.

    ZSROBUST_MODELS=... python benchmarks/training_step.py [--pairs 20] [--threads 2] [--batch 64]
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable

import open_clip
import torch
from lightning_fabric import Fabric

from zsrobust.models import load_clip
from zsrobust.models.classifier import text_anchors
from zsrobust.models.spec import named_folders
from zsrobust.objectives.objective import TrainingBatch
from zsrobust.objectives.tecoa import Tecoa
from zsrobust.threat import Threat
from zsrobust.training.step import Learner, StepSettings, training_step

EPS = 2 / 255


def ours(images: torch.Tensor, labels: torch.Tensor) -> Callable[[], None]:
    """Return one training step as the loop takes it."""
    from zsrobust.adaptations import build

    fabric = Fabric(accelerator="cpu", devices=1)
    clip = load_clip("mini-clip")
    names = [f"class {i}" for i in range(200)]
    objective = Tecoa(text_anchors(clip, names, ["a photo of a {}."]).anchors, clip.logit_scale)
    adapted = build("full", {}).apply(clip.model)
    learner = Learner(clip.image_encoder(), objective)
    optimiser = torch.optim.AdamW([p for _, p in adapted], lr=1e-5)
    wrapped, fabric_optimiser = fabric.setup(learner, optimiser)
    settings = StepSettings(
        threat=Threat("linf", EPS),
        steps=2,
        step_size=EPS,
        start="uniform",
        momentum=0.0,
        seed=0,
        micro_batch=None,
    )
    ids = [str(i) for i in range(len(images))]

    def step() -> None:
        batch = TrainingBatch(ids=ids, images=images, labels=labels)
        training_step(
            fabric,
            learner,
            wrapped,
            fabric_optimiser,
            batch,
            epoch=0,
            rate=1e-5,
            global_size=len(ids),
            settings=settings,
        )

    return step


def floor(images: torch.Tensor) -> Callable[[], None]:
    """Return what no step can do without, on the plain open_clip module."""
    folder = named_folders()["mini-clip"]
    model, _, _ = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    model.eval()
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    tower = list(model.visual.parameters())
    optimiser = torch.optim.AdamW(tower, lr=1e-5)

    def step() -> None:
        for _ in range(2):
            x = images.detach().requires_grad_()
            torch.autograd.grad(model.encode_image(x).sum(), x)
        for parameter in tower:
            parameter.requires_grad_(True)
        optimiser.zero_grad(set_to_none=True)
        model.encode_image(images).sum().backward()
        optimiser.step()
        for parameter in tower:
            parameter.requires_grad_(False)

    return step


def main() -> None:
    """Measure, and print the figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=20)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batch", type=int, default=64)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    images = torch.rand(options.batch, 3, 64, 64)
    labels = torch.arange(options.batch) % 200
    step, bare = ours(images, labels), floor(images)
    for _ in range(3):
        step()
        bare()
    pairs = []
    for number in range(options.pairs):
        times = {}
        # Who goes first alternates, so that a drift of the clock rate favours neither.
        for name in ("ours", "floor") if number % 2 else ("floor", "ours"):
            begin = time.perf_counter()
            (step if name == "ours" else bare)()
            times[name] = time.perf_counter() - begin
        pairs.append((times["ours"], times["floor"]))
    ratios = [a / b for a, b in pairs]
    quartiles = statistics.quantiles(ratios, n=4)
    print(
        json.dumps(
            {
                "benchmark": "training step / floor",
                "ratio_median": round(statistics.median(ratios), 3),
                "ratio_quartiles": [round(quartiles[0], 3), round(quartiles[2], 3)],
                "ours_s": round(statistics.median(a for a, _ in pairs), 3),
                "floor_s": round(statistics.median(b for _, b in pairs), 3),
                "pairs": options.pairs,
                "batch": options.batch,
                "threads": torch.get_num_threads(),
                "torch": torch.__version__,
                "open_clip": open_clip.__version__,
                "machine": platform.processor() or platform.machine(),
            }
        )
    )


if __name__ == "__main__":
    main()
