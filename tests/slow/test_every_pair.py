"""Every pair of objective and adaptation that the table allows, trained on real photographs of the source."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from zsrobust import data
from zsrobust.models import load_clip
from zsrobust.training import harden
from zsrobust.training.recipe import GOES_WITH, parse_recipe

pytestmark = [pytest.mark.slow, pytest.mark.needs_data]

STEPS = 20
BATCH = 8
# Small settings for images of 64 pixels; rates as far apart as weights and prompts want them (traps 38).
ADAPTATIONS: dict[str, tuple[dict[str, Any], float]] = {
    "full": ({}, 1e-4),
    "partial": ({"blocks": 1}, 3e-4),
    "linear": ({}, 1e-2),
    "lora": ({}, 1e-3),
    "pixel": ({"width": 9, "std": 0.1}, 1e-1),
    "token": ({"std": 0.1}, 1e-1),
    "pixel+token": ({"width": 9, "std": 0.1}, 1e-1),
}
PAIRS = [(objective, name) for objective, names in GOES_WITH.items() for name in names]


@pytest.fixture(scope="module")
def captioned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The batch's photographs with a caption each, made of their class's name: DIR/train/*.png and *.txt."""
    root = tmp_path_factory.mktemp("captioned")
    folder = root / "train"
    folder.mkdir()
    source = data.open_set("mini/tiny_imagenet", "train")
    assert source.classnames is not None
    geometry = load_clip("mini-clip").preprocess.geometry()
    batch = next(data.batches(source, source.first(BATCH), geometry, BATCH))
    for number, (image, label) in enumerate(zip(batch.images, batch.labels, strict=True)):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(f"a photo of a {source.classnames[int(label)]}")
    return root


@pytest.mark.parametrize(("objective", "adaptation"), PAIRS)
def test_a_pair_lowers_its_own_loss_on_a_fixed_batch(
    tmp_path: Path, captioned: Path, objective: str, adaptation: str
) -> None:
    """Twenty steps on eight photographs: the mean of the last five losses lies below that of the first five."""
    torch.set_num_threads(1)
    settings, rate = ADAPTATIONS[adaptation]
    spec = "mini/tiny_imagenet" if objective != "tecoa-pairs" else f"folder:{captioned}"
    recipe = parse_recipe(
        {
            "name": "test/pair",
            "model": "mini-clip",
            "source": {"set": spec, "split": "train", "limit": BATCH},
            "objective": {"name": objective},
            "adaptation": {"name": adaptation, **settings},
            "threat": {"eps": "1/255"},
            "optimiser": {"name": "adamw", "lr": rate},
            "schedule": {"kind": "constant", "warmup": 0},
            # An epoch is one step on the same images; only the adversary's start differs.
            "epochs": STEPS,
            "batch": BATCH,
            "checkpoint_every": STEPS,
        }
    )
    losses = [row["loss"] for row in harden(recipe, tmp_path / "run").read_log("step")]
    assert len(losses) == STEPS
    assert sum(losses[-5:]) < sum(losses[:5])
