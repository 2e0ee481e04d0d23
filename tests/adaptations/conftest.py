"""A small vision transformer, and a forward of it written out step by step, in float64."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

TEXT = {"context_length": 12, "vocab_size": 100, "width": 16, "heads": 2, "layers": 1}
VIT = {"image_size": 16, "layers": 3, "width": 32, "patch_size": 8, "head_width": 16}
RESNET = {"image_size": 64, "layers": [1, 1, 1, 1], "width": 8, "head_width": 64}
TIMM = {"timm_model_name": "resnet10t", "timm_pool": "avg", "timm_proj": "linear", "image_size": 64}
COCA = {**VIT, "attentional_pool": True, "attn_pooler_heads": 2, "attn_pooler_queries": 4}
STD = (0.25, 0.5, 0.2)


def make_clip(vision: dict[str, Any], **settings: Any) -> Any:
    """A random open_clip model, frozen and in eval mode; its image rule has the deviations `STD`."""
    from open_clip import CLIP

    logging.disable(logging.CRITICAL)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = CLIP(embed_dim=16, vision_cfg=dict(vision), text_cfg=dict(TEXT), **settings)
        # Away from the zeros and ones of initialisation, where a wrong use of norms and biases would not show.
        with torch.no_grad():
            for parameter in model.visual.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
    logging.disable(logging.NOTSET)
    model.visual.preprocess_cfg = {
        "size": vision["image_size"],
        "mean": (0.5, 0.4, 0.3),
        "std": STD,
    }
    return model.eval().requires_grad_(False)


@pytest.fixture
def vit() -> Any:
    """Three blocks of width 32, four patches."""
    return make_clip(VIT)


@pytest.fixture
def images() -> Tensor:
    """(3, 3, 16, 16) float64, as if normalised."""
    return torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(1)).double()


def gelu(x: Tensor) -> Tensor:
    return x * 0.5 * (1 + torch.erf(x / 2**0.5))


def norm(x: Tensor, w: dict[str, Tensor], name: str) -> Tensor:
    centred = x - x.mean()
    return (
        centred / (centred.square().mean() + 1e-5).sqrt() * w[f"{name}.weight"] + w[f"{name}.bias"]
    )


def reference(
    weights: dict[str, Tensor],
    images: Tensor,
    *,
    patch: int = 8,
    head_width: int = 16,
    enter: Callable[[int, list[Tensor]], list[Tensor]] = lambda block, tokens: tokens,
    leave: Callable[[list[Tensor]], list[Tensor]] = lambda tokens: tokens,
) -> Tensor:
    """Features (N, D) of OpenAI's ViT, one image, token, head and pair of tokens at a time.

    Args:
        weights: the image tower's state dict.
        images: (N, 3, H, W) float64, normalised.
        patch: side of a patch.
        head_width: of attention.
        enter: (block, tokens) -> tokens as they come before ln_pre (block 0) or before a later block.
        leave: tokens behind the last block -> what is pooled; the first is the class token.
    """
    w = {name: tensor.double() for name, tensor in weights.items()}
    features = []
    for image in images:
        rows, columns = image.shape[1] // patch, image.shape[2] // patch
        tokens = [w["class_embedding"]]
        for i in range(rows):
            for j in range(columns):
                cut = image[:, i * patch : (i + 1) * patch, j * patch : (j + 1) * patch]
                tokens.append((w["conv1.weight"] * cut).sum(dim=(1, 2, 3)))
        tokens = [t + w["positional_embedding"][k] for k, t in enumerate(tokens)]
        tokens = [norm(t, w, "ln_pre") for t in enter(0, tokens)]
        layers = 1 + max(int(n.split(".")[2]) for n in w if n.startswith("transformer"))
        for block in range(layers):
            if block:
                tokens = enter(block, tokens)
            b = {
                n.removeprefix(f"transformer.resblocks.{block}."): t
                for n, t in w.items()
                if n.startswith(f"transformer.resblocks.{block}.")
            }
            tokens = [t + a for t, a in zip(tokens, attention(b, tokens, head_width), strict=True)]
            after = []
            for t in tokens:
                hidden = gelu(b["mlp.c_fc.weight"] @ norm(t, b, "ln_2") + b["mlp.c_fc.bias"])
                after.append(t + b["mlp.c_proj.weight"] @ hidden + b["mlp.c_proj.bias"])
            tokens = after
        pooled = leave(tokens)[0]
        features.append(norm(pooled, w, "ln_post") @ w["proj"])
    return torch.stack(features)


def attention(b: dict[str, Tensor], tokens: list[Tensor], head_width: int) -> list[Tensor]:
    width = len(tokens[0])
    projected = [
        b["attn.in_proj_weight"] @ norm(t, b, "ln_1") + b["attn.in_proj_bias"] for t in tokens
    ]
    found = []
    for p in projected:
        mixed = []
        for start in range(0, width, head_width):
            part = slice(start, start + head_width)
            q = p[:width][part]
            scores = torch.stack(
                [q @ o[width : 2 * width][part] / head_width**0.5 for o in projected]
            )
            shares = scores.exp() / scores.exp().sum()
            values = [o[2 * width :][part] for o in projected]
            mixed.append(sum(s * v for s, v in zip(shares, values, strict=True)))
        found.append(b["attn.out_proj.weight"] @ torch.cat(mixed) + b["attn.out_proj.bias"])
    return found


def tower_weights(model: Any) -> dict[str, Tensor]:
    """Copies of the plain image tower's tensors."""
    return {name: tensor.clone() for name, tensor in model.visual.state_dict().items()}
