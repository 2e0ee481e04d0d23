"""Two ranks (gloo) equal one with the same global batch, within rounding (design 7)."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from zsrobust.adaptations import build
from zsrobust.models import load_clip
from zsrobust.training.loop import harden
from zsrobust.training.recipe import parse_recipe


def harden_on_two_ranks(recipe: dict[str, Any], folder: Path) -> None:
    """As a user would: torchrun and the command line."""
    file = folder / "recipe.yaml"
    file.write_text(yaml.safe_dump(recipe))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command += ["-m", "zsrobust", "--debug", "harden", str(file), "--out", str(folder / "run")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        command,
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stderr.count("hardened model:") == 1  # one rank speaks


@pytest.mark.parametrize(
    "case",
    ["sgd-fp32-one-step", "adamw-fp64-five-steps", "pairs", "adv", "imgcoadv", "prompts", "lora"],
)
def test_two_ranks_equal_one(case, tiny_clip_folder, tiny_set_folder, tmp_path):
    """SGD in fp32 after one step to 1e-6, AdamW in float64 after five; pairs gather their texts over ranks.

    So does the head of adv, which each rank starts for itself. imgcoadv gathers clean features, and their
    gradients: each image is another rank's negative.
    A random patch stands in one place on all ranks, and LoRA's parametrised weights are synchronised.
    The last global batch is uneven (8 samples of 13), so that a wrong weight of ranks would show.
    """
    prompts = {"kind": "random-patch", "width": 9, "depth": "every-block"}
    recipe: dict[str, Any] = {
        "name": "test/ranks",
        "model": f"local-dir:{tiny_clip_folder}",
        "source": {"set": f"folder:{tiny_set_folder}", "split": "train"},
        "threat": {"eps": "4/255"},
        "schedule": {"warmup": 0, "kind": "constant"},
        "batch": 13,
        "device": "cpu",
    }
    if case == "sgd-fp32-one-step":
        recipe["optimiser"] = {"name": "sgd", "lr": 0.01}
        recipe["source"] |= {"limit": 13}
    elif case == "adamw-fp64-five-steps":
        recipe["optimiser"] = {"name": "adamw", "lr": 1e-4}
        recipe["precision"] = "fp64"
    elif case == "adv":
        recipe["optimiser"] = {"name": "sgd", "lr": 0.01}
        recipe["objective"] = {"name": "adv", "head_start": "probe"}
        recipe["source"] |= {"limit": 13}
    elif case == "imgcoadv":
        recipe["optimiser"] = {"name": "sgd", "lr": 0.01}
        recipe["objective"] = {"name": "imgcoadv"}
        recipe["source"] |= {"limit": 13}
    elif case in ("prompts", "lora"):
        recipe["optimiser"] = {"name": "sgd", "lr": 0.1}
        adaptation = {"name": "pixel+token", **prompts} if case == "prompts" else {"name": "lora"}
        recipe |= {"adaptation": adaptation}
        recipe["source"] |= {"limit": 13}
    else:
        recipe["optimiser"] = {"name": "sgd", "lr": 0.01}
        recipe["objective"] = {"name": "tecoa-pairs"}
        pairs = tmp_path / "pairs"
        pairs.mkdir()
        for number, image in enumerate(sorted((tiny_set_folder / "train").rglob("*.png"))[::5]):
            (pairs / f"{number}.png").write_bytes(image.read_bytes())
            (pairs / f"{number}.txt").write_text(f"a {image.parent.name}, number {number // 2}\n")
        recipe["source"] = {"set": f"folder:{pairs}", "split": "test"}
    one = harden(parse_recipe(recipe), tmp_path / "one")
    harden_on_two_ranks(recipe, tmp_path)
    assert len(one.read_log("step")) == (5 if case == "adamw-fp64-five-steps" else 1)

    original = load_clip(recipe["model"]).model
    if case == "prompts":
        build("pixel+token", prompts).apply(original, 0)
    start = original.state_dict()
    a = load_clip(one.spec).model.state_dict()
    b = load_clip(f"run:{tmp_path / 'run'}").model.state_dict()
    moved = max(float((a[n] - start[n]).abs().max()) for n in a)
    if case == "adv":
        folders = (one.model, tmp_path / "run" / "model")
        heads = [load_file(folder / "head.safetensors") for folder in folders]
        a, b = a | heads[0], b | heads[1]
    apart = max(float((a[n] - b[n]).abs().max()) for n in a)
    assert moved > 1e-4
    assert apart < 1e-6
    assert torch.equal(a["logit_scale"], start["logit_scale"])
