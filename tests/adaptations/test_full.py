"""Full fine-tuning frees the image tower and nothing else, of any open_clip model."""

import logging
from typing import Any

import pytest
import torch
from torch import nn

from zsrobust.adaptations import ADAPTATIONS, Full, adaptation_class, build
from zsrobust.errors import UserError

TEXT = {"context_length": 12, "vocab_size": 100, "width": 16, "heads": 2, "layers": 1}
VISIONS: dict[str, dict[str, Any]] = {
    "vit": {"image_size": 32, "layers": 1, "width": 32, "patch_size": 16, "head_width": 16},
    "modified-resnet": {"image_size": 64, "layers": [1, 1, 1, 1], "width": 8, "head_width": 64},
    "timm": {
        "timm_model_name": "resnet10t",
        "timm_pool": "avg",
        "timm_proj": "linear",
        "image_size": 64,
    },
}


def open_clip_model(vision: str) -> Any:
    from open_clip import CLIP

    torch.set_num_threads(1)
    logging.disable(logging.CRITICAL)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = CLIP(embed_dim=16, vision_cfg=dict(VISIONS[vision]), text_cfg=dict(TEXT))
    logging.disable(logging.NOTSET)
    return model


@pytest.mark.parametrize("vision", VISIONS)
def test_the_whole_image_tower_moves_and_nothing_else(vision: str) -> None:
    model = open_clip_model(vision).train()
    moving = build("full").apply(model)
    assert dict(moving) == {
        name: p for name, p in model.named_parameters() if name.startswith("visual.")
    }
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad == name.startswith("visual."), name


@pytest.mark.parametrize("vision", ["modified-resnet", "timm"])
def test_batch_norm_statistics_stay(vision: str) -> None:
    model = open_clip_model(vision).train()
    moving = Full().apply(model)
    before = {name: buffer.clone() for name, buffer in model.visual.named_buffers()}
    assert any(name.endswith("running_mean") for name in before)
    optimiser = torch.optim.SGD([p for _, p in moving], lr=0.1)
    model.encode_image(torch.rand(2, 3, 64, 64), normalize=False).square().sum().backward()
    optimiser.step()
    for name, buffer in model.visual.named_buffers():
        assert torch.equal(buffer, before[name]), name


def test_applying_twice_is_applying_once() -> None:
    model = open_clip_model("vit")
    first = Full().apply(model)
    assert [name for name, _ in Full().apply(model)] == [name for name, _ in first]


def test_models_without_an_image_tower_are_refused() -> None:
    with pytest.raises(UserError, match="Linear has no image tower"):
        Full().apply(nn.Linear(2, 2))
    empty = nn.Module()
    empty.visual = nn.Identity()
    with pytest.raises(UserError, match="no image tower with parameters"):
        Full().apply(empty)


def test_table_and_build() -> None:
    assert adaptation_class("full") is Full
    assert all(adaptation_class(name).name == name for name in ADAPTATIONS)
    assert build("full").settings() == {}
    with pytest.raises(UserError, match="unknown adaptation 'ful': did you mean 'full'"):
        build("ful")
    with pytest.raises(UserError, match="unknown setting of adaptation full 'rank'"):
        build("full", {"rank": 4})
