"""`zsrobust pretrain` as a user meets it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from .conftest import run


@pytest.fixture
def place(tmp_path: Path, tiny_set_folder: Path) -> Path:
    """A folder with captioned pictures and a recipe of two steps, small.yaml."""
    rng = np.random.default_rng(0)
    (tmp_path / "web").mkdir()
    for i in range(8):
        pixels = rng.integers(0, 256, (16, 16, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(tmp_path / "web" / f"{i}.png")
        (tmp_path / "web" / f"{i}.txt").write_text(f"picture number {i}\n")
    recipe: dict[str, Any] = {
        "name": "small",
        "architecture": {
            "embed_dim": 8,
            "vision_cfg": {
                "image_size": 16,
                "layers": 1,
                "width": 16,
                "patch_size": 8,
                "head_width": 8,
            },
            "text_cfg": {
                "context_length": 8,
                "vocab_size": 49408,
                "width": 8,
                "heads": 1,
                "layers": 1,
            },
        },
        "source": {"set": "folder:web", "split": "web"},
        "validation": [{"set": f"folder:{tiny_set_folder}", "split": "val", "limit": 10}],
        "optimiser": {"lr": 1e-3},
        "batch": 4,
        "workers": 0,
        "threads": 1,
    }
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(recipe))
    return tmp_path


def test_a_recipe_ends_in_a_model_that_other_commands_take(zs, place):
    """Accuracy and the model's spec are printed; the same command finds it done; eval measures it."""
    found = zs("pretrain", "small.yaml", "--out", "run")
    assert (found.code, found.out) == (0, "")
    accuracy, model = found.err.splitlines()
    assert accuracy.startswith("tiny-set")
    assert "zero-shot accuracy" in accuracy
    assert model == "model: local-dir:run/model"
    again = json.loads(zs("pretrain", "small.yaml", "--out", "run", "--json").out)
    assert again["model"] == "local-dir:run/model"
    assert again["validation"]["steps_done"] == 2
    assert zs("convert", "local-dir:run/model", "--out", "copy").code == 0


def test_without_out_the_run_lies_under_its_name(zs, place):
    """And key=value overrides the recipe."""
    assert zs("pretrain", "small.yaml", "epochs=2", "validation=[]").code == 0
    stored = json.loads((place / "runs" / "small" / "recipe.json").read_text())
    assert (stored["epochs"], stored["validation"]) == (2, [])


def test_mistakes_are_one_line(zs, place, recipe):
    """A wrong key, a hardening's recipe, a pretraining recipe given to harden, another run's folder."""
    assert "did you mean 'batch'" in zs("pretrain", "small.yaml", "bach=3").mistake()
    assert "zsrobust harden" in zs("pretrain", recipe).mistake()
    assert "zsrobust pretrain" in zs("harden", "small.yaml").mistake()
    assert zs("pretrain", "small.yaml", "--out", "run").code == 0
    assert (
        "choose another --out" in zs("pretrain", "small.yaml", "seed=1", "--out", "run").mistake()
    )
    assert "holds 8 images" in zs("pretrain", "small.yaml", "source.limit=9").mistake()


def test_it_runs_as_a_program_with_a_loading_process(place):
    """In a process of its own."""
    found = run(["pretrain", "small.yaml", "workers=1"], place)
    assert found.code == 0, found.err
    assert (place / "runs" / "small" / "model" / "open_clip_config.json").is_file()
