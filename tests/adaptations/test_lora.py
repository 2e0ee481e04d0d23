"""LoRA: W + (alpha / rank) B A on each target, checked by hand; merged, taken out again, and of rank 0."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from zsrobust.adaptations import build
from zsrobust.adaptations.lora import TARGETS, factors, merge
from zsrobust.errors import UserError

from . import conftest as by_hand

THIRDS = {"q": 0, "k": 1, "v": 2}
NAMES = {"out": "attn.out_proj.weight", "fc": "mlp.c_fc.weight", "proj": "mlp.c_proj.weight"}


def put(model: Any, targets: tuple[str, ...] = TARGETS, rank: int = 4, alpha: float = 6.0) -> Any:
    """Put LoRA on a model and move it off its start; return the adaptation and what moves."""
    adaptation = build("lora", {"rank": rank, "alpha": alpha, "targets": targets})
    moving = adaptation.apply(model, 3)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for _, parameter in moving:
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return adaptation, moving


def added_by_hand(
    weights: dict[str, Tensor], found: dict[str, Tensor], scale: float
) -> dict[str, Tensor]:
    """The tower's tensors with every B A added, one entry of the product at a time summed in float64."""
    weights = {name: tensor.double() for name, tensor in weights.items()}
    for name in {name.rpartition(".")[0] for name in found}:
        _, block, target = name.split(".")
        a, b = found[f"{name}.a"].double(), found[f"{name}.b"].double()
        product = scale * torch.stack(
            [torch.stack([(row * column).sum() for column in a.T]) for row in b]
        )
        place = f"transformer.resblocks.{block}.{NAMES.get(target, 'attn.in_proj_weight')}"
        if target in THIRDS:
            rows = len(weights[place]) // 3
            start = THIRDS[target] * rows
            weights[place] = weights[place].clone()
            weights[place][start : start + rows] += product
        else:
            weights[place] = weights[place] + product
    return weights


@pytest.mark.parametrize(
    "targets", [TARGETS, ("q", "v"), ("k",), ("out", "fc"), *((t,) for t in TARGETS)]
)
def test_the_forward_is_the_one_written_out_by_hand(
    vit: Any, images: Tensor, targets: tuple[str, ...]
) -> None:
    """In float64, to 1e-10, each target alone too; features change, and each factor has a gradient (traps 59)."""
    weights = by_hand.tower_weights(vit)
    plain = by_hand.reference(weights, images)
    _, moving = put(vit, targets)
    found = factors(vit)
    assert set(found) == {
        f"blocks.{block}.{target}.{factor}"
        for block in range(3)
        for target in targets
        for factor in "ab"
    }
    expected = by_hand.reference(added_by_hand(weights, found, 6.0 / 4), images)
    features = vit.double().encode_image(images)
    torch.testing.assert_close(features, expected, rtol=0, atol=1e-10)
    assert float((features - plain).detach().abs().max()) > 1e-3
    gradients = torch.autograd.grad(features.square().sum(), [p for _, p in moving])
    assert len(gradients) == 2 * 3 * len(targets)
    assert all(bool(g.abs().max() > 0) for g in gradients)


def test_it_starts_as_the_plain_model_and_learns_from_there(vit: Any, images: Tensor) -> None:
    """B = 0: exactly the plain features; the first gradient is B's alone; A is uniform in +-1 / sqrt(columns)."""
    with torch.no_grad():
        plain = vit.encode_image(images.float())
    moving = build("lora").apply(vit, 3)
    with torch.no_grad():
        assert torch.equal(vit.encode_image(images.float()), plain)
    found = factors(vit)
    assert all(tensor.any() == name.endswith(".a") for name, tensor in found.items())
    for name, tensor in found.items():
        if name.endswith(".a"):
            bound = tensor.shape[1] ** -0.5
            assert 0.9 * bound < float(tensor.abs().max()) <= bound
    loss = vit.encode_image(images.float()).square().sum()
    for (name, _), gradient in zip(
        moving, torch.autograd.grad(loss, [p for _, p in moving]), strict=True
    ):
        assert bool(gradient.any()) == (".b." in name)


def test_the_start_is_a_function_of_the_seed_alone(vit: Any) -> None:
    """The first rows of A do not depend on the rank; the global stream is neither read nor moved."""
    twins = [copy.deepcopy(vit) for _ in range(3)]
    state = torch.get_rng_state()
    for model, seed, rank in zip(twins, (0, 1, 0), (4, 4, 2), strict=True):
        build("lora", {"rank": rank}).apply(model, seed)
    assert torch.equal(torch.get_rng_state(), state)
    one, other, small = (factors(model) for model in twins)
    for name in one:
        if name.endswith(".a"):
            assert not torch.equal(one[name], other[name])
            assert torch.equal(one[name][:2], small[name])
    assert len({float(t.sum()) for n, t in one.items() if n.endswith(".a")}) == 18


def test_only_factors_move_and_rank_zero_adds_nothing(vit: Any, images: Tensor) -> None:
    """Rank 0: not even a module, so that features are exact (traps 20)."""
    plain = by_hand.tower_weights(vit)
    features = vit.encode_image(images.float())
    assert build("lora", {"rank": 0}).apply(vit) == []
    assert list(vit.visual.state_dict()) == list(plain)
    assert torch.equal(vit.encode_image(images.float()), features)
    _, moving = put(vit)
    assert {n for n, p in vit.named_parameters() if p.requires_grad} == {n for n, _ in moving}
    assert all(n.startswith("visual.") and n.endswith(TARGETS) for n, _ in moving)
    assert not vit.training


@pytest.mark.parametrize("targets", [TARGETS, ("k", "proj")])
def test_merged_is_unmerged(vit: Any, images: Tensor, targets: tuple[str, ...]) -> None:
    """Within 1e-5; the merged model has the plain one's names and modules, and its weights are the sums."""
    plain = by_hand.tower_weights(vit)
    adaptation, _ = put(vit, targets)
    before = vit.encode_image(images.float())
    expected = added_by_hand(plain, factors(vit), 1.5)
    kept = adaptation.finish(vit)
    torch.testing.assert_close(vit.encode_image(images.float()), before, rtol=0, atol=1e-5)
    state = vit.visual.state_dict()
    assert set(state) == set(plain)
    for name, tensor in state.items():
        torch.testing.assert_close(tensor.double(), expected[name], rtol=0, atol=1e-6)
    assert type(vit.visual.transformer.resblocks[0].attn) is nn.MultiheadAttention
    assert factors(vit) == {}

    # And out again: the weights that it started from, the factors that were kept.
    moving = adaptation.unmerge(vit, kept)
    assert all(torch.equal(tensor, kept[name]) for name, tensor in factors(vit).items())
    assert all(p.requires_grad for _, p in moving)
    torch.testing.assert_close(vit.encode_image(images.float()), before, rtol=0, atol=1e-5)
    for name, p in vit.visual.named_parameters():
        if name.endswith(".original"):
            whole = name.replace(".parametrizations", "").removesuffix(".original")
            torch.testing.assert_close(p, plain[whole], rtol=0, atol=1e-6)


def test_a_copy_has_factors_of_its_own(vit: Any, images: Tensor) -> None:
    put(vit)
    twin = copy.deepcopy(vit)
    before = vit.encode_image(images.float())
    merge(twin)
    assert factors(vit)
    torch.testing.assert_close(twin.encode_image(images.float()), before, rtol=0, atol=1e-5)
    assert torch.equal(vit.encode_image(images.float()), before)


def test_gradients_of_factors_and_image(vit: Any, images: Tensor) -> None:
    """gradcheck in float64."""
    put(vit, rank=2)
    vit.double()
    x = images[:1].clone().requires_grad_()
    pieces = [p for _, p in sorted(vit.named_parameters()) if p.requires_grad]
    assert torch.autograd.gradcheck(
        lambda *_: vit.encode_image(x), (x, *pieces), fast_mode=True, atol=1e-6
    )


def test_additions_keep_their_precision_under_autocast(vit: Any) -> None:
    """The weight itself is float32, whatever precision the tower runs in."""
    put(vit)
    block = vit.visual.transformer.resblocks[1]
    exact = block.mlp.c_fc.weight.detach().clone()
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(block.mlp.c_fc.weight, exact)


def test_custom_blocks_take_it_too(images: Tensor) -> None:
    model = by_hand.make_clip({**by_hand.VIT, "scale_attn": True, "qk_norm": True})
    plain = model.encode_image(images.float())
    for target in TARGETS:
        twin = copy.deepcopy(model)
        put(twin, (target,))
        assert not torch.allclose(twin.encode_image(images.float()), plain, atol=1e-4), target


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rank": -1}, "rank must be a whole number, 0 or more, got -1"),
        ({"alpha": 0}, "alpha must be a finite number > 0, got 0"),
        ({"targets": ["mlp"]}, "target 'mlp' is unknown"),
        ({"targets": ["pro"]}, "did you mean 'proj'"),
        ({"targets": []}, "each once, got none"),
        ({"targets": ["q", "q"]}, "each once, got q, q"),
        ({"targets": 5}, "target 5 is unknown"),
    ],
)
def test_values_out_of_range_are_one_line(settings: Any, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        build("lora", settings)
    assert "\n" not in str(caught.value)


def test_what_it_does_not_fit_is_refused(vit: Any) -> None:
    """Other towers, factors that are there already, and factors of another model."""
    with pytest.raises(UserError, match=r"needs open_clip's VisionTransformer .* TimmModel"):
        build("lora").apply(by_hand.make_clip(by_hand.TIMM))
    adaptation, _ = put(vit)
    with pytest.raises(UserError, match="low-rank factors that are not merged"):
        build("full").apply(vit)
    kept = adaptation.finish(vit)
    fewer = {name: tensor for name, tensor in kept.items() if name != "blocks.0.q.a"}
    other = {name: tensor[:1] for name, tensor in kept.items()}
    for wrong in (fewer, other, {**kept, "blocks.9.q.a": kept["blocks.0.q.a"]}):
        with pytest.raises(UserError, match=r"factors do not fit the model \("):
            adaptation.unmerge(copy.deepcopy(vit), wrong)


def test_settings_are_json_in_one_order() -> None:
    """Whatever the order in a recipe."""
    assert build("lora", {"targets": ["v", "q"]}).settings() == {
        "rank": 8,
        "alpha": 16.0,
        "targets": ["q", "v"],
    }
