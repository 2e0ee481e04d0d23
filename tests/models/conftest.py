"""Tiny random models of every kind of tower, written as open_clip folders without this package's help."""

import copy
import json
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

torch.set_num_threads(1)

TEXT = {"context_length": 12, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}
VIT = {"image_size": 32, "layers": 2, "width": 32, "patch_size": 16, "head_width": 16}
COCA_TEXT = {"embed_cls": True, "output_tokens": True}
COCA_VISION = {
    "attentional_pool": True,
    "attn_pooler_heads": 2,
    "attn_pooler_queries": 4,
    "output_tokens": True,
}
TOWERS: dict[str, dict[str, Any]] = {
    "vit": {"embed_dim": 16, "vision_cfg": VIT, "text_cfg": TEXT},
    "vit-quickgelu": {"embed_dim": 16, "quick_gelu": True, "vision_cfg": VIT, "text_cfg": TEXT},
    "modified-resnet": {
        "embed_dim": 16,
        "vision_cfg": {"image_size": 64, "layers": [1, 1, 1, 1], "width": 8, "head_width": 64},
        "text_cfg": TEXT,
    },
    "timm": {
        "embed_dim": 16,
        "vision_cfg": {
            "timm_model_name": "resnet10t",
            "timm_model_pretrained": False,
            "timm_pool": "avg",
            "timm_proj": "linear",
            "image_size": 64,
        },
        "text_cfg": TEXT,
    },
    "coca": {
        "embed_dim": 16,
        "custom_text": True,
        "vision_cfg": {**VIT, **COCA_VISION},
        "text_cfg": {**TEXT, **COCA_TEXT},
        "multimodal_cfg": {
            "context_length": 12,
            "vocab_size": 49408,
            "width": 16,
            "heads": 2,
            "layers": 1,
            "attn_pooler_heads": 2,
        },
    },
    "siglip": {
        "embed_dim": 16,
        "custom_text": True,
        "init_logit_bias": -10,
        "vision_cfg": VIT,
        "text_cfg": {**TEXT, "no_causal_mask": True, "proj_bias": True, "pool_type": "last"},
    },
}


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A folder of each tower, to be read only."""
    root = tmp_path_factory.mktemp("towers")
    return {name: write_folder(root / name, model_cfg) for name, model_cfg in TOWERS.items()}


def write_folder(folder: Path, model_cfg: dict[str, Any]) -> Path:
    import open_clip

    folder.mkdir(parents=True)
    config = {
        "model_cfg": copy.deepcopy(model_cfg),
        "preprocess_cfg": {
            "mean": [0.5, 0.4, 0.3],
            "std": [0.25, 0.3, 0.2],
            "interpolation": "bicubic",
            "resize_mode": "shortest",
        },
    }
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    logging.disable(logging.CRITICAL)
    with torch.random.fork_rng():
        torch.manual_seed(len(folder.name))
        model = open_clip.create_model(f"local-dir:{folder}", load_weights=False)
        # Away from the zeros and ones of initialisation, where wrong weights would look right.
        for tensor in model.state_dict().values():
            if tensor.is_floating_point():
                tensor.add_(0.02 * torch.randn_like(tensor))
        for name, buffer in model.named_buffers():
            if name.endswith("running_var"):
                buffer.abs_().add_(0.1)
    logging.disable(logging.NOTSET)
    save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    return folder


@pytest.fixture
def vit(folders: dict[str, Path], tmp_path: Path) -> Path:
    """A copy of the ViT's folder that a test may change."""
    folder = tmp_path / "vit"
    folder.mkdir()
    for file in folders["vit"].iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    return folder


@pytest.fixture(scope="session")
def mini_clip() -> Any:
    """The scale model, loaded once; tests that change a model load their own."""
    if not (Path(os.environ.get("ZSROBUST_MODELS", "/nowhere")) / "mini-clip").is_dir():
        pytest.skip("ZSROBUST_MODELS does not name a folder with mini-clip")
    from zsrobust.models import load_clip

    return load_clip("mini-clip")


@pytest.fixture
def images() -> torch.Tensor:
    generator = torch.Generator().manual_seed(5)
    return torch.rand(2, 3, 32, 32, generator=generator)


@pytest.fixture
def change_config() -> Callable[[Path, Callable[[dict[str, Any]], None]], None]:
    """Change a folder's config in place."""

    def change(folder: Path, how: Callable[[dict[str, Any]], None]) -> None:
        config = json.loads((folder / "open_clip_config.json").read_text())
        how(config)
        (folder / "open_clip_config.json").write_text(json.dumps(config))

    return change
