"""Fixtures that all tests share: tiny random CLIPs on disk, and the real folders where they exist."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

TINY_CONFIG = {
    "model_cfg": {
        "embed_dim": 16,
        "vision_cfg": {
            "image_size": 16,
            "layers": 2,
            "width": 32,
            "patch_size": 8,
            "head_width": 16,
        },
        "text_cfg": {
            "context_length": 16,
            "vocab_size": 49408,
            "width": 16,
            "heads": 2,
            "layers": 1,
        },
    },
    "preprocess_cfg": {
        "mean": [0.5, 0.5, 0.5],
        "std": [0.25, 0.25, 0.25],
        "interpolation": "bicubic",
        "resize_mode": "shortest",
    },
}


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip what needs the real folders where they are missing; fail instead where CI demands them."""
    there = all(os.environ.get(name) for name in ("ZSROBUST_DATA", "ZSROBUST_MODELS"))
    if there or os.environ.get("ZSROBUST_REQUIRE_DATA"):
        return
    skip = pytest.mark.skip(reason="ZSROBUST_DATA and ZSROBUST_MODELS are not set")
    for item in items:
        if "needs_data" in item.keywords:
            item.add_marker(skip)


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]):
    """Turn the skip of a test that needs data into a failure where CI says that the data is there."""
    outcome = yield
    report = outcome.get_result()
    if report.skipped and "needs_data" in item.keywords and os.environ.get("ZSROBUST_REQUIRE_DATA"):
        report.outcome = "failed"
        report.longrepr = (
            f"{item.nodeid} needs the data folders, they are there, yet it was skipped"
        )


@pytest.fixture(autouse=True, scope="session")
def _one_thread():
    """A fixed number of threads, so that a run on another machine differs by its rounding alone.

    One: a second thread only waits where the matrices are this small.
    """
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def _one_vocabulary():
    """CLIP's vocabulary, read once and not at each load: it is always the same, and most of a toy's loading."""
    from open_clip.tokenizer import SimpleTokenizer

    read: dict[str, dict[str, Any]] = {}
    reading = SimpleTokenizer.__init__

    def once(self: Any, **settings: Any) -> None:
        key = repr(settings)
        if key not in read:
            reading(self, **settings)
            read[key] = vars(self).copy()
        vars(self).update(read[key])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SimpleTokenizer, "__init__", once)
        yield


@pytest.fixture(scope="session")
def tiny_clip_folder(tmp_path_factory: pytest.TempPathFactory, _one_vocabulary: None) -> Path:
    """A random CLIP of 16x16 px in open_clip's own form."""
    folder = tmp_path_factory.mktemp("tiny-clip")
    write_tiny_clip(folder)
    return folder


def write_tiny_clip(folder: Path) -> None:
    """Write that CLIP into an empty folder."""
    import open_clip
    from safetensors.torch import save_file

    (folder / "open_clip_config.json").write_text(json.dumps(TINY_CONFIG))
    torch.manual_seed(0)
    model = open_clip.model.CLIP(**TINY_CONFIG["model_cfg"])
    with torch.no_grad():
        # Random towers give nearly equal features; larger weights spread them, so that attacks have work.
        for parameter in model.visual.parameters():
            parameter.mul_(2.0)
    save_file(
        {name: tensor.contiguous() for name, tensor in model.state_dict().items()},
        folder / "open_clip_model.safetensors",
    )


@pytest.fixture(scope="session")
def tiny_set_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A labelled set of 60 drawn pictures in 5 classes, as class folders: DIR/SPLIT/class/*.png."""
    root = tmp_path_factory.mktemp("tiny-set")
    write_tiny_set(root)
    return root


def write_tiny_set(root: Path) -> None:
    """Write that set, and its thirty held-out pictures as the split `val`."""
    import numpy as np
    from PIL import Image

    rng = np.random.default_rng(0)
    names = ["red ball", "green box", "blue star", "grey cat", "white dog"]
    for split, count in (("train", 12), ("val", 6)):
        for label, name in enumerate(names):
            folder = root / split / name.replace(" ", "_")
            folder.mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(0, 256, (20, 24, 3))
                pixels[..., label % 3] = 255 - 20 * label
                Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{i:03}.png")


@pytest.fixture(scope="session")
def other_set_folder(tiny_set_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The thirty held-out pictures under five other class names: DIR/class/*.png, unseen by any hardening."""
    import shutil

    root = tmp_path_factory.mktemp("others") / "other-set"
    names = ["apple", "bridge", "cloud", "drum", "engine"]
    for name, folder in zip(names, sorted((tiny_set_folder / "val").iterdir()), strict=True):
        shutil.copytree(folder, root / name)
    return root


@pytest.fixture
def toy_recipe(tiny_clip_folder: Path, tiny_set_folder: Path) -> dict[str, Any]:
    """A hardening of the tiny CLIP on the sixty pictures: four steps an epoch, two epochs."""
    return {
        "name": "test/toy",
        "model": f"local-dir:{tiny_clip_folder}",
        "source": {"set": f"folder:{tiny_set_folder}", "split": "train"},
        "threat": {"eps": "2/255"},
        "optimiser": {"name": "adamw", "lr": 1e-3, "weight_decay": 0.01},
        "schedule": {"warmup": 2},
        "epochs": 2,
        "batch": 16,
        "checkpoint_every": 1,
    }


@pytest.fixture(scope="session")
def harden_until() -> Callable[[Any, Path, int], None]:
    """Harden into a folder until so many steps are done, and be stopped there: (recipe, folder, steps)."""
    from zsrobust.training import loop

    def until(recipe: Any, folder: Path, steps: int) -> None:
        real, left = loop.training_step, steps

        def stopping(*args: Any, **kwargs: Any) -> float:
            nonlocal left
            if left == 0:
                raise KeyboardInterrupt
            left -= 1
            return real(*args, **kwargs)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(loop, "training_step", stopping)
            with pytest.raises(KeyboardInterrupt):
                loop.harden(recipe, folder)

    return until
