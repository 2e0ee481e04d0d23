"""Any open_clip tower loads, is measured, takes full fine-tuning steps, and loads again in plain open_clip."""

import pytest
import torch

from zsrobust.evaluation import evaluate
from zsrobust.models import load_clip
from zsrobust.training import harden
from zsrobust.training.recipe import parse_recipe


@pytest.mark.parametrize(
    "tower", ["vit", "vit-quickgelu", "modified-resnet", "timm", "coca", "siglip"]
)
def test_every_tower_is_hardened_and_measured(
    tower, folders, tiny_set_folder, other_set_folder, tmp_path
):
    """Two steps of TeCoA move the image tower and nothing else; buffers and text tower are bit-identical."""
    import open_clip

    model = f"local-dir:{folders[tower]}"
    recipe = parse_recipe(
        {
            "name": f"test/{tower}",
            "model": model,
            "source": {"set": f"folder:{tiny_set_folder}", "split": "train", "limit": 12},
            "validation": {"split": "val", "limit": 5, "attack": "pgd-1"},
            "threat": {"eps": "4/255"},
            "optimiser": {"lr": 1e-3},
            "batch": 6,
            "device": "cpu",
        }
    )
    run = harden(recipe, tmp_path / "run")
    before, after = load_clip(model).model.state_dict(), load_clip(run.spec).model.state_dict()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert len(moved) > 3
    assert all(name.startswith("visual.") for name in moved)
    assert not any("running" in name or "num_batches" in name for name in moved)

    sets = f"folder:{other_set_folder}"
    table = evaluate([model, run], sets, ["pgd-2", "cw-margin-2"], "4/255", limit=6, device="cpu")
    for given in table.models:
        (row,) = table.of(given, 4 / 255)
        assert len(row.ids) == 6
        assert row.values("robust").sum() <= row.values("clean").sum()

    plain, _, _ = open_clip.create_model_and_transforms(f"local-dir:{run.model}")
    ours = load_clip(run.spec)
    images = torch.rand(2, 3, *ours.preprocess.size)
    with torch.no_grad():
        theirs = plain.eval().encode_image(ours.preprocess.normalise(images), normalize=False)
        assert torch.allclose(theirs, ours.image_encoder()(images), atol=1e-5)


def test_bf16_autocasts_the_encoder_alone(folders, tiny_set_folder, tmp_path):
    """Features and losses stay float32, weights too; the run differs from fp32 by rounding, not in kind."""
    clip = load_clip(f"local-dir:{folders['vit']}")
    images = torch.rand(4, 3, 32, 32)
    exact, rounded = clip.image_encoder()(images), clip.image_encoder("bf16")(images)
    assert rounded.dtype == torch.float32
    assert not torch.equal(exact, rounded)
    assert torch.allclose(exact, rounded, rtol=0.1, atol=0.05)

    losses = {}
    for precision in ("fp32", "bf16"):
        recipe = parse_recipe(
            {
                "name": "test/bf16",
                "model": f"local-dir:{folders['vit']}",
                "source": {"set": f"folder:{tiny_set_folder}", "split": "train", "limit": 20},
                "threat": {"eps": "4/255"},
                "optimiser": {"lr": 1e-3},
                "batch": 10,
                "epochs": 2,
                "precision": precision,
                "device": "cpu",
            }
        )
        run = harden(recipe, tmp_path / precision)
        losses[precision] = [row["loss"] for row in run.read_log("step")]
        weights = load_clip(run.spec).model.state_dict()
        assert all(t.dtype == torch.float32 for t in weights.values() if t.is_floating_point())
    assert losses["bf16"] != losses["fp32"]
    assert losses["bf16"] == pytest.approx(losses["fp32"], rel=0.05)
