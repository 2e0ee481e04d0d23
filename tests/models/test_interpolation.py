"""Between two models: exact ends, what is refused, and files of other authors as one of the two."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image

import zsrobust as zr
from zsrobust.errors import UserError
from zsrobust.models import Clip, load_clip, mix, save_hardened, save_open_clip


def tower(clip: Clip) -> dict[str, torch.Tensor]:
    visual: Any = clip.model.visual
    return dict(visual.state_dict())


def shaken(spec: str, seed: int = 3) -> Clip:
    """Return a model whose image tower alone has moved."""
    clip = load_clip(spec)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in tower(clip).values():
            if tensor.is_floating_point():
                tensor.add_(torch.rand(tensor.shape, generator=generator))
    return clip


def beside(clip: Clip) -> dict[str, torch.Tensor]:
    return {k: v for k, v in clip.model.state_dict().items() if not k.startswith("visual.")}


@pytest.mark.parametrize("kind", ["vit", "modified-resnet", "siglip"])
def test_ends_are_the_two_towers_and_the_middle_lies_between(kind: str, folders: dict[str, Path]):
    """Bit for bit; every parameter and buffer moves, text tower and scale are A's."""
    spec = f"local-dir:{folders[kind]}"
    a, b = load_clip(spec), shaken(spec)
    was = {name: tensor.clone() for name, tensor in tower(a).items()}
    assert zr.interpolate(a, b, 0).fingerprint == a.fingerprint
    assert zr.interpolate(a, b, 1).fingerprint == b.fingerprint
    mixed = zr.interpolate(a, b, 0.3)
    for name, tensor in tower(mixed).items():
        if tensor.is_floating_point():
            expected = 0.7 * was[name].double() + 0.3 * tower(b)[name].double()
            assert torch.equal(tensor, expected.float()), name
            assert not torch.equal(tensor, was[name]), name
    assert all(torch.equal(v, beside(a)[k]) for k, v in beside(mixed).items())
    assert all(torch.equal(tensor, was[name]) for name, tensor in tower(a).items())
    assert not any(p.requires_grad for p in mixed.model.parameters())
    assert not mixed.model.training


@pytest.mark.parametrize("share", [0.1, 0.3, 0.7])
def test_a_model_with_itself_is_itself(share: float, folders: dict[str, Path]):
    """A tensor that is equal in both stays as it is at any share."""
    spec = f"local-dir:{folders['vit']}"
    assert zr.interpolate(spec, spec, share).fingerprint == load_clip(spec).fingerprint


def refused(a: str | Clip, b: str | Clip, at: Any = 0.5) -> str:
    with pytest.raises(UserError) as caught:
        zr.interpolate(a, b, at)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_what_lies_between_nothing_is_refused(folders: dict[str, Path], tmp_path: Path):
    """Architecture, activation, preprocessing, text tower, share."""
    vit = f"local-dir:{folders['vit']}"
    assert "GELU" in refused(vit, f"local-dir:{folders['vit-quickgelu']}")
    assert "differ in architecture" in refused(vit, f"local-dir:{folders['modified-resnet']}")
    clip = load_clip(vit)
    rule = {**clip.config, "preprocess_cfg": {**clip.config["preprocess_cfg"], "std": [1, 1, 1]}}
    save_open_clip(clip.model, rule, tmp_path / "rule")
    assert "differ in preprocessing (std" in refused(vit, f"local-dir:{tmp_path / 'rule'}")
    other = load_clip(vit)
    with torch.no_grad():
        next(p for n, p in other.model.named_parameters() if not n.startswith("visual.")).add_(1)
    assert "beside the image tower, in 1 tensors" in refused(vit, other)
    for share in (-0.1, 1.1, float("nan"), True, "half"):
        assert "from 0 to 1" in refused(vit, vit, share)


def test_prompts_are_refused(toy_recipe: dict[str, Any], tmp_path: Path):
    """They stand beside the weights; LoRA is merged and takes part."""
    from zsrobust.training.recipe import parse_recipe

    for name, settings in (("token", {"tokens": 2}), ("lora", {"rank": 2})):
        recipe = parse_recipe({**toy_recipe, "adaptation": {"name": name, **settings}})
        zr.harden(recipe, tmp_path / name)
    base = toy_recipe["model"]
    assert "holds prompts" in refused(base, f"run:{tmp_path / 'token'}")
    assert "holds prompts" in refused(f"run:{tmp_path / 'token'}", base)
    lora = f"run:{tmp_path / 'lora'}"
    assert zr.interpolate(base, lora, 1.0).fingerprint == load_clip(lora).fingerprint
    mixed = zr.interpolate(base, lora, 0.5).fingerprint
    assert mixed not in (load_clip(base).fingerprint, load_clip(lora).fingerprint)


def test_mix_writes_a_folder_that_knows_its_sources(
    tiny_clip_folder: Path, tiny_set_folder: Path, tmp_path: Path
):
    """Plain open_clip loads it; a set that B was hardened on enters no mean, from disk or from memory."""
    base = f"local-dir:{tiny_clip_folder}"
    clip = shaken(base)
    images = zr.open_set(f"folder:{tiny_set_folder}", "val")
    from zsrobust.hashing import sha256_json

    source = {"set": "somewhere", "split": "train", "classes": sha256_json(images.classnames)}
    record = {"adaptation": "full", "base": base, "source": source}
    save_hardened(clip.model, clip.config, tmp_path / "hard", record)
    hard = f"run:{tmp_path / 'hard'}"
    written = mix(base, hard, 0.25, tmp_path / "mixed")
    plain, _, _ = open_clip.create_model_and_transforms(f"local-dir:{tmp_path / 'mixed'}")
    expected = written.model.state_dict()
    assert all(torch.equal(v, expected[k]) for k, v in plain.state_dict().items())
    again = f"local-dir:{tmp_path / 'mixed'}"
    assert json.loads((tmp_path / "mixed" / "adaptation.json").read_text())["mixed"]["at"] == 0.25
    twice = zr.interpolate(again, base, 0.5)
    for model in (again, written, twice):
        table = zr.evaluate([model], f"folder:{tiny_set_folder}#val", ["clean"], limit=4)
        assert [row.is_source for row in table.rows] == [True], model
    with pytest.raises(UserError, match="is there already"):
        mix(base, hard, 0.25, tmp_path / "mixed")


@pytest.fixture(scope="module")
def vit_b_32(tmp_path_factory: pytest.TempPathFactory) -> str:
    """open_clip's ViT-B-32-quickgelu with random weights, as a folder; its text tower has one thin layer."""
    model_cfg = open_clip.get_model_config("ViT-B-32-quickgelu")
    model_cfg["text_cfg"] |= {"width": 16, "heads": 2, "layers": 1}
    torch.manual_seed(0)
    model = open_clip.model.CLIP(**model_cfg)
    config = {
        "model_cfg": model_cfg,
        "preprocess_cfg": {"mean": [0.48, 0.46, 0.41], "std": [0.27, 0.26, 0.28]},
    }
    folder = tmp_path_factory.mktemp("b32")
    save_open_clip(model, config, folder)
    return f"local-dir:{folder}"


def test_published_forms_at_full_size_load_evaluate_and_interpolate(vit_b_32: str, tmp_path: Path):
    """The TeCoA authors' dict, half precision as theirs, and RobustVLM's visual state dict."""
    moved = {k: (v * 1.1).half() for k, v in tower(load_clip(vit_b_32)).items()}
    assert {"class_embedding", "transformer.resblocks.11.mlp.c_fc.weight", "proj"} <= set(moved)
    parallel = {f"module.{name}": tensor for name, tensor in moved.items()}
    authors = {
        "epoch": 10,
        "state_dict": {"module.pad_up": torch.zeros(1, 3, 30, 224)},
        "best_acc1": np.float64(36.3),
        "optimizer": {"state": {}, "param_groups": [{"lr": 1e-5}]},
        "vision_encoder_state_dict": parallel,
    }
    torch.save(authors, tmp_path / "model_best.pth.tar")
    torch.save({k: v.float() for k, v in moved.items()}, tmp_path / "visual.pt")
    for i, name in enumerate(["red", "green"]):
        (tmp_path / "pictures" / name).mkdir(parents=True)
        Image.new("RGB", (240, 230), (200 * (1 - i), 200 * i, 9)).save(
            tmp_path / "pictures" / name / "one.png"
        )
    base = load_clip(vit_b_32)
    specs = [f"{tmp_path / file}@{vit_b_32}" for file in ("model_best.pth.tar", "visual.pt")]
    first, second = (load_clip(spec) for spec in specs)
    assert first.fingerprint == second.fingerprint != base.fingerprint
    table = zr.evaluate([first], f"folder:{tmp_path / 'pictures'}", ["clean", "pgd-1"], "1/255")
    assert len(table.rows[0].ids) == 2
    between = zr.interpolate(base, specs[0], 0.5)
    assert zr.interpolate(base, second, 1).fingerprint == first.fingerprint
    name = "transformer.resblocks.0.attn.in_proj_weight"
    expected = (0.5 * tower(base)[name].double() + 0.5 * moved[name].double()).float()
    assert torch.equal(tower(between)[name], expected)

    del parallel["module.proj"]
    torch.save(authors, tmp_path / "lacks.pth.tar")
    assert "1 missing (proj)" in refused(base, f"{tmp_path / 'lacks.pth.tar'}@{vit_b_32}")
    torch.save(moved | {"head": torch.zeros(2)}, tmp_path / "more.pt")
    assert "1 left over (head)" in refused(base, f"{tmp_path / 'more.pt'}@{vit_b_32}")
