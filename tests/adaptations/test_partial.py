"""Partial fine-tuning: which tensors move, counted as the authors count them."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from zsrobust.adaptations import build
from zsrobust.adaptations.adaptation import rehearse
from zsrobust.adaptations.partial import authors_order
from zsrobust.errors import UserError

from . import conftest as by_hand

# Facts 3.3, from the end: ln_post, then a block's twelve tensors.
LAST_BLOCK_FROM_THE_END = [
    "ln_2.bias",
    "ln_2.weight",
    "mlp.c_proj.bias",
    "mlp.c_proj.weight",
    "mlp.c_fc.bias",
    "mlp.c_fc.weight",
    "ln_1.bias",
    "ln_1.weight",
    "attn.out_proj.bias",
    "attn.out_proj.weight",
    "attn.in_proj_bias",
    "attn.in_proj_weight",
]


def moved(model: Any, **settings: int) -> list[str]:
    moving = build("partial", settings).apply(model)
    names = [name for name, _ in moving]
    assert set(names) == {n for n, p in model.named_parameters() if p.requires_grad}
    return [name.removeprefix("visual.") for name in names]


def test_the_order_is_that_of_the_authors_list(vit: Any) -> None:
    """Facts 3.3: own tensors, patch convolution, ln_pre, blocks, ln_post; every parameter once."""
    names = [name for name, _ in authors_order(vit.visual)]
    assert sorted(names) == sorted(name for name, _ in vit.visual.named_parameters())
    assert names[:6] == [
        "class_embedding",
        "positional_embedding",
        "proj",
        "conv1.weight",
        "ln_pre.weight",
        "ln_pre.bias",
    ]
    expected = ["ln_post.bias", "ln_post.weight"]
    for block in (2, 1, 0):
        expected += [f"transformer.resblocks.{block}.{name}" for name in LAST_BLOCK_FROM_THE_END]
    assert names[::-1][: len(expected)] == expected


def test_custom_blocks_lose_no_parameter() -> None:
    """Layer scale and further norms are in the list as well."""
    model = by_hand.make_clip(
        {**by_hand.VIT, "ls_init_value": 0.1, "scale_attn": True, "scale_fc": True}
    )
    named = dict(model.visual.named_parameters())
    assert sorted(name for name, _ in authors_order(model.visual)) == sorted(named)
    assert any("ls_1" in name for name in named)
    assert any("ln_attn" in name for name in named)


@pytest.mark.parametrize("count", [1, 2, 3, 14, 38])
def test_the_last_n_tensors(vit: Any, count: int) -> None:
    names = [name for name, _ in authors_order(vit.visual)]
    assert moved(vit, tensors=count) == names[-count:]


def test_all_tensors_are_full_fine_tuning(vit: Any) -> None:
    full = {name.removeprefix("visual.") for name, _ in build("full").apply(vit)}
    assert set(moved(vit, tensors=-1)) == full


@pytest.mark.parametrize("blocks", [1, 2, 3])
def test_the_last_blocks_and_what_follows_them(vit: Any, blocks: int) -> None:
    """Facts 8: the last blocks, ln_post and the projection."""
    first = 3 - blocks
    expected = {
        name
        for name, _ in vit.visual.named_parameters()
        if name in ("proj", "ln_post.weight", "ln_post.bias")
        or (name.startswith("transformer") and int(name.split(".")[2]) >= first)
    }
    assert set(moved(vit, blocks=blocks)) == expected


def test_pools_behind_the_blocks_move_with_the_last_ones() -> None:
    names = moved(by_hand.make_clip(by_hand.COCA), blocks=1)
    assert any(name.startswith("attn_pool.") for name in names)


@pytest.mark.parametrize(
    ("budget", "count", "tensors"),
    [
        # Width 32: ln_post 32 + 32, then ln_2 32 + 32, c_proj 32, c_fc 128, ln_1 32 + 32, out 32, in 96.
        (1, 32, 1),
        (47, 32, 1),
        (48, 32, 1),
        (49, 64, 2),
        (160, 160, 5),
        (223, 160, 5),
        (225, 288, 6),
        (10**9, 64 + 3 * 416 + 64, 2 + 3 * 8 + 2),
    ],
)
def test_a_budget_is_met_by_whole_norms_and_biases_to_the_nearest(
    vit: Any, budget: int, count: int, tensors: int
) -> None:
    """Of two equally near, the smaller; all of them, but never the class embedding, where the budget is larger."""
    adaptation = build("partial", {"budget": budget})
    moving = adaptation.apply(vit)
    assert sum(p.numel() for _, p in moving) == count
    assert len(moving) == tensors
    assert all(p.ndim == 1 for _, p in moving)
    assert "visual.class_embedding" not in dict(moving)
    order = [f"visual.{name}" for name, p in authors_order(vit.visual) if p.ndim == 1]
    assert [name for name, _ in moving] == order[::-1][:tensors]
    said = adaptation.sentence(moving)
    assert said == (
        f"partial fine-tuning: {tensors} tensors, {count:,} numbers move (the budget is {budget:,})"
    )


def test_a_budget_at_vit_b_32_stands_beside_a_prompt_of_its_size() -> None:
    """The counts of prompts of facts 3.5, met to within the largest of the tensors, 3,072 numbers."""
    model = vit_b_32()
    for asked in (69_840, 73_680, 77_520):
        found = sum(p.numel() for _, p in build("partial", {"budget": asked}).apply(model))
        assert abs(found - asked) <= 3_072 / 2
    assert sum(p.numel() for _, p in build("partial", {"blocks": 1}).apply(model)) > 7_000_000


def vit_b_32() -> Any:
    """Its image tower without numbers."""
    from open_clip import CLIP

    with torch.device("meta"):
        model = CLIP(
            embed_dim=512,
            vision_cfg={"image_size": 224, "layers": 12, "width": 768, "patch_size": 32},
            text_cfg=dict(by_hand.TEXT),
            quick_gelu=True,
        )
    model.visual.preprocess_cfg = {"size": 224, "mean": (0.5,) * 3, "std": (0.25,) * 3}
    return model


@pytest.mark.parametrize(
    ("name", "settings", "count"),
    [
        ("pixel", {}, 69_840),
        ("pixel", {"width": 30}, 69_840),
        ("pixel", {"width": 40}, 88_320),
        ("pixel", {"kind": "fixed-patch", "width": 30}, 3 * 30 * 30),
        ("pixel", {"kind": "random-patch", "width": 30}, 3 * 30 * 30),
        ("token", {"tokens": 1}, 768),
        ("token", {"tokens": 200}, 768 * 200),
        ("token", {"tokens": 7, "position": "trained"}, 2 * 768 * 7),
        ("token", {"tokens": 7, "depth": "every-block"}, 12 * 768 * 7),
        ("pixel+token", {}, 73_680),
        ("pixel+token", {"tokens": 10}, 77_520),
        ("pixel+token", {"tokens": 100}, 146_640),
        ("pixel+token", {"tokens": 200, "width": 40}, 241_920),
        ("lora", {}, 12 * 8 * (4 * (768 + 768) + 2 * (768 + 3072))),
        ("lora", {"rank": 4, "targets": ["q"]}, 12 * 4 * (768 + 768)),
        ("full", {}, 87_849_216),
        ("linear", {}, 0),
    ],
)
def test_parameter_counts_at_vit_b_32(name: str, settings: dict[str, Any], count: int) -> None:
    """Facts 3.5, on the tower's form alone; and the model that is looked at is left alone."""
    model = vit_b_32()
    before = list(model.state_dict())
    moving = rehearse(build(name, settings), model)
    assert sum(parameter.numel() for _, parameter in moving) == count
    assert list(model.state_dict()) == before


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "exactly one of blocks, budget and tensors, got none"),
        ({"blocks": 1, "budget": 5}, "got blocks and budget"),
        ({"blocks": 0}, "blocks must be a whole number, 1 or more, got 0"),
        ({"budget": -1}, "budget must be"),
        ({"tensors": 0}, "tensors must be"),
        ({"tensors": -2}, "tensors must be"),
        ({"budget": 0.5}, "budget must be"),
    ],
)
def test_values_out_of_range_are_one_line(settings: Any, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        build("partial", settings)
    assert "\n" not in str(caught.value)


def test_more_than_the_tower_has_and_other_towers_are_refused(vit: Any) -> None:
    with pytest.raises(UserError, match="blocks is 4, the tower has 3; give 1 to 3, or use 'full'"):
        build("partial", {"blocks": 4}).apply(vit)
    with pytest.raises(UserError, match="tensors is 45, the tower has 44; give 1 to 44, or -1"):
        build("partial", {"tensors": 45}).apply(vit)
    with pytest.raises(UserError, match=r"needs open_clip's VisionTransformer .* ModifiedResNet"):
        build("partial", {"blocks": 1}).apply(by_hand.make_clip(by_hand.RESNET))


def test_settings_say_the_one_that_is_given() -> None:
    assert build("partial", {"budget": 5}).settings() == {"budget": 5}
