"""Pixel and token prompts: what they add, checked against a forward written out by hand; what they leave alone."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from zsrobust.adaptations import PROMPTING, build
from zsrobust.adaptations.adaptation import rehearse
from zsrobust.adaptations.prompts import prompt_facts, prompt_tensors, prompts_of, without_prompts
from zsrobust.errors import UserError

from . import conftest as by_hand

PIXEL = {"kind": "padding", "width": 3}
SETTINGS: dict[str, tuple[str, dict[str, Any]]] = {
    "padding": ("pixel", PIXEL),
    "padding-before": ("pixel", {**PIXEL, "added": "before"}),
    "fixed-patch": ("pixel", {"kind": "fixed-patch", "width": 5}),
    "random-patch": ("pixel", {"kind": "random-patch", "width": 5}),
    "token": ("token", {"tokens": 3}),
    "token-prepended": ("token", {"tokens": 3, "where": "prepend"}),
    "token-every-block": ("token", {"tokens": 2, "depth": "every-block"}),
    "token-every-block-prepended": (
        "token",
        {"tokens": 2, "depth": "every-block", "where": "prepend", "position": "trained"},
    ),
    "token-position": ("token", {"tokens": 3, "position": "trained"}),
    "both": ("pixel+token", {**PIXEL, "tokens": 2, "token_std": 0.5}),
}


def put(model: Any, case: str, seed: int = 3) -> dict[str, Tensor]:
    """Put a prompt in, move it off its start, and return its numbers."""
    name, settings = SETTINGS[case]
    moving = build(name, settings).apply(model, seed)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for _, parameter in moving:
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return {name: tensor.double() for name, tensor in prompt_tensors(model).items()}


def shown(images: Tensor, p: dict[str, Tensor], facts: dict[str, Any]) -> Tensor:
    """Images with the pixel prompt added, one number at a time."""
    if "pixel_prompt" not in facts:
        return images
    kind, width = facts["pixel_prompt"]["kind"], facts["pixel_prompt"]["width"]
    row0, column0 = facts["pixel_prompt"]["corner"]
    images = images.clone()
    _, _, height, wide = images.shape
    for c in range(3):
        unit = by_hand.STD[c] if facts["pixel_prompt"]["added"] == "before" else 1.0
        for i in range(height):
            for j in range(wide):
                value = 0.0
                if kind != "padding":
                    if 0 <= i - row0 < width and 0 <= j - column0 < width:
                        value = p["pixel_prompt.patch"][c, i - row0, j - column0]
                elif i < width:
                    value = p["pixel_prompt.top"][c, i, j]
                elif i >= height - width:
                    value = p["pixel_prompt.bottom"][c, i - height + width, j]
                elif j < width:
                    value = p["pixel_prompt.left"][c, i - width, j]
                elif j >= wide - width:
                    value = p["pixel_prompt.right"][c, i - width, j - wide + width]
                images[:, c, i, j] += value / unit
    return images


@pytest.mark.parametrize("case", SETTINGS)
def test_the_forward_is_the_one_written_out_by_hand(vit: Any, images: Tensor, case: str) -> None:
    """In float64, to 1e-10; and the prompt does something."""
    weights = by_hand.tower_weights(vit)
    plain = by_hand.reference(weights, images)
    torch.testing.assert_close(vit.double().encode_image(images), plain, rtol=0, atol=1e-10)
    vit.float()
    p = put(vit, case)
    facts = prompt_facts(vit)
    settings = SETTINGS[case][1]
    count = settings.get("tokens", 0)

    def enter(block: int, tokens: list[Tensor]) -> list[Tensor]:
        if not count or (block and settings.get("depth") != "every-block"):
            return tokens
        if block:  # those of the block before make place
            tokens = leave(tokens)
        own = [p["token_prompt.tokens"][block, k] for k in range(count)]
        if settings.get("position") == "trained":
            own = [t + p["token_prompt.position"][block, k] for k, t in enumerate(own)]
        if settings.get("where") == "prepend":
            return [tokens[0], *own, *tokens[1:]]
        return [*tokens, *own]

    def leave(tokens: list[Tensor]) -> list[Tensor]:
        if settings.get("where") == "prepend":
            return [tokens[0], *tokens[1 + count :]]
        return tokens[: len(tokens) - count]

    expected = by_hand.reference(weights, shown(images, p, facts), enter=enter, leave=leave)
    found = vit.double().encode_image(images)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)
    assert float((found - plain).detach().abs().max()) > 1e-2


@pytest.mark.parametrize("case", SETTINGS)
def test_prompts_leave_the_weights_alone_and_nothing_else_moves(vit: Any, case: str) -> None:
    before = {name: tensor.clone() for name, tensor in vit.state_dict().items()}
    name, settings = SETTINGS[case]
    moving = build(name, settings).apply(vit, 3)
    after = without_prompts(vit.state_dict())
    assert list(after) == list(before)
    assert all(torch.equal(after[key], before[key]) for key in before)
    moves = {key for key, parameter in vit.named_parameters() if parameter.requires_grad}
    assert moves == {key for key, _ in moving}
    assert moves
    assert all("prompt" in key for key in moves)
    assert not vit.training


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("pixel", {"width": 0}),
        ("pixel", {"kind": "random-patch", "width": 0}),
        ("token", {"tokens": 0}),
        ("token", {"tokens": 0, "depth": "every-block", "position": "trained"}),
        ("pixel+token", {"width": 0, "tokens": 0}),
    ],
)
def test_size_zero_is_the_plain_encoder_exactly(
    vit: Any, images: Tensor, name: str, settings: dict[str, Any]
) -> None:
    """Bit for bit (traps 20); a hardening with it is refused, since nothing would move."""
    plain = vit.encode_image(images.float())
    adaptation = build(name, settings)
    with pytest.raises(UserError, match="nothing would move; give it a size above 0"):
        rehearse(adaptation, vit)
    assert adaptation.apply(vit, 3) == []
    assert torch.equal(vit.encode_image(images.float()), plain)
    assert prompts_of(vit) == {}


@pytest.mark.parametrize("case", [case for case in SETTINGS if "before" not in case])
def test_prompts_of_zeros_at_the_image_are_the_plain_encoder(
    vit: Any, images: Tensor, case: str
) -> None:
    """A pixel prompt of zeros exactly; tokens of zeros are tokens, and change the features."""
    with (
        torch.no_grad()
    ):  # with a gradient torch's attention goes another way, which rounds otherwise
        plain = vit.encode_image(images.float())
    name, settings = SETTINGS[case]
    build(name, {**settings, "std": 0.0, **({"token_std": 0.0} if case == "both" else {})}).apply(
        vit
    )
    assert all(not tensor.any() for tensor in prompt_tensors(vit).values())
    with torch.no_grad():
        same = torch.equal(vit.encode_image(images.float()), plain)
    assert same == (name == "pixel")


@pytest.mark.parametrize("case", SETTINGS)
def test_gradients_of_prompt_and_image(vit: Any, images: Tensor, case: str) -> None:
    """gradcheck in float64: the adversary differentiates through the prompt (traps 19)."""
    put(vit, case)
    vit.double()
    x = images[:1].clone().requires_grad_()
    pieces = [p for _, p in sorted(vit.named_parameters()) if p.requires_grad]

    def features(*_: Tensor) -> Tensor:
        return vit.encode_image(x)

    assert torch.autograd.gradcheck(features, (x, *pieces), fast_mode=True)
    gradients = torch.autograd.grad(features().square().sum(), (x, *pieces))
    assert all(bool(g.abs().sum() > 0) for g in gradients)


def test_appended_and_prepended_tokens_are_one_function(vit: Any, images: Tensor) -> None:
    """Attention knows no order: the same tokens in another place, the same features but for rounding."""
    other = copy.deepcopy(vit)
    put(vit, "token")
    put(other, "token-prepended")
    a, b = vit.double().encode_image(images), other.double().encode_image(images)
    torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


@pytest.mark.parametrize("case", SETTINGS)
def test_a_copy_of_a_tower_goes_through_its_own_prompt(vit: Any, images: Tensor, case: str) -> None:
    """What a deep copy's prompt is set to reaches its features and not the original's."""
    put(vit, case)
    twin = copy.deepcopy(vit)
    before = vit.encode_image(images.float())
    assert torch.equal(twin.encode_image(images.float()), before)
    with torch.no_grad():
        for prompt in prompts_of(twin).values():
            for parameter in prompt.parameters():
                parameter.add_(1.0)
    assert not torch.equal(twin.encode_image(images.float()), before)
    assert torch.equal(vit.encode_image(images.float()), before)


def test_the_start_is_a_function_of_the_seed_alone(vit: Any) -> None:
    """Standard normal times std; the global stream is neither read nor moved; more tokens keep the first."""
    twins = [copy.deepcopy(vit) for _ in range(4)]
    state = torch.get_rng_state()
    for model, seed, n in zip(twins, (0, 0, 1, 0), (200, 200, 200, 50), strict=True):
        build("pixel+token", {"width": 4, "tokens": n, "std": 2.0, "token_std": 0.5}).apply(
            model, seed
        )
        torch.rand(1)
    torch.set_rng_state(state)
    starts = [prompt_tensors(model) for model in twins]
    assert all(torch.equal(starts[0][name], starts[1][name]) for name in starts[0])
    assert not any(torch.equal(starts[0][name], starts[2][name]) for name in starts[0])
    tokens = starts[0]["token_prompt.tokens"]
    assert torch.equal(tokens[:, :50], starts[3]["token_prompt.tokens"])
    assert float(tokens.std()) == pytest.approx(0.5, rel=0.05)
    assert float(tokens.mean()) == pytest.approx(0.0, abs=0.02)
    drawn = torch.cat([t.flatten() for n, t in starts[0].items() if n.startswith("pixel")])
    assert float(drawn.std()) == pytest.approx(2.0, rel=0.1)
    untouched = torch.get_rng_state()
    build("token", {"tokens": 2}).apply(copy.deepcopy(vit), 0)
    assert torch.equal(torch.get_rng_state(), untouched)


def test_a_random_patch_stands_elsewhere_at_each_step_and_still_in_evaluation(vit: Any) -> None:
    """Its place is a function of (seed, step); all places inside the image come up, the last ones too."""
    adaptation = build("pixel", {"kind": "random-patch", "width": 13})
    adaptation.apply(vit, 3)
    prompt = prompts_of(vit)["pixel_prompt"]
    standing = prompt.corner
    assert standing == prompt.drawn_corner(3, "evaluation")
    seen = set()
    for step in range(120):
        with adaptation.at_step(vit, 3, step):
            assert prompt.corner == prompt.drawn_corner(3, f"step/{step}")
            seen.add(prompt.corner)
            canvas = prompt.canvas()
            i, j = prompt.corner
            assert torch.equal(canvas[:, i : i + 13, j : j + 13], prompt.patch)
            assert int((canvas != 0).sum()) == 3 * 13 * 13
        assert prompt.corner == standing
    assert seen == {(i, j) for i in range(4) for j in range(4)}
    with pytest.raises(RuntimeError), adaptation.at_step(vit, 3, 0):
        raise RuntimeError
    assert prompt.corner == standing


def test_a_patch_that_does_not_move_knows_no_step(vit: Any) -> None:
    for case in ("padding", "fixed-patch", "token"):
        model = copy.deepcopy(vit)
        name, settings = SETTINGS[case]
        adaptation = build(name, settings)
        adaptation.apply(model, 3)
        before = prompt_facts(model)
        with adaptation.at_step(model, 3, 7):
            assert prompt_facts(model) == before


@pytest.mark.parametrize("vision", ["RESNET", "TIMM"])
def test_pixel_prompts_fit_any_tower_and_tokens_are_refused(vision: str) -> None:
    model = by_hand.make_clip(getattr(by_hand, vision))
    x = torch.rand(2, 3, 64, 64)
    plain = model.encode_image(x)
    for name in ("token", "pixel+token"):
        with pytest.raises(UserError, match=r"needs open_clip's VisionTransformer .*: use 'full'"):
            build(name, {}).apply(model)
        assert prompts_of(model) == {}
    build("pixel", {"width": 4}).apply(model)
    prompted = model.encode_image(x)
    canvas = prompts_of(model)["pixel_prompt"].canvas()
    assert not torch.allclose(prompted, plain, atol=1e-4)
    assert torch.equal(
        by_hand.make_clip(getattr(by_hand, vision)).encode_image(x + canvas), prompted
    )


def test_pools_beyond_the_class_token_see_patches_alone() -> None:
    """Average and attention pooling: as many tokens reach them as without a prompt."""
    for vision in ({**by_hand.VIT, "pool_type": "avg"}, by_hand.COCA):
        model = by_hand.make_clip(vision)
        seen: list[int] = []
        pool = model.visual.attn_pool or model.visual.ln_post
        pool.register_forward_pre_hook(lambda _, given, seen=seen: seen.append(given[0].shape[1]))
        x = torch.rand(2, 3, 16, 16)
        plain = model.encode_image(x)
        build("token", {"tokens": 7, "where": "prepend"}).apply(model)
        assert not torch.allclose(model.encode_image(x), plain, atol=1e-4)
        assert seen == [5, 5]


def test_images_that_are_not_square_get_a_frame_of_their_form() -> None:
    model = by_hand.make_clip({**by_hand.VIT, "image_size": (16, 24)})
    twin = copy.deepcopy(model)
    build("pixel", {"width": 8}).apply(model)  # at half the height nothing is left at the sides
    prompt = prompts_of(model)["pixel_prompt"]
    assert prompt.canvas().shape == (3, 16, 24)
    assert bool((prompt.canvas() != 0).all())
    assert sum(p.numel() for p in prompt.parameters()) == 3 * 16 * 24
    with pytest.raises(UserError, match=r"width is 9, a padding on images of 24 x 16 .* most 8"):
        build("pixel", {"width": 9}).apply(twin)


@pytest.mark.parametrize("name", ["full", "partial", "linear", "lora", "pixel", "token"])
def test_nothing_is_trained_on_top_of_prompts(vit: Any, name: str) -> None:
    put(vit, "both")
    settings = {"partial": {"blocks": 1}, "pixel": {"width": 2}}.get(name, {})
    with pytest.raises(UserError, match="carries a pixel prompt and token prompt already"):
        build(name, settings).apply(vit)


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("pixel", {"kind": "paddin"}, "kind 'paddin' is unknown: did you mean 'padding'"),
        ("pixel", {"width": -1}, "width must be a whole number, 0 or more, got -1"),
        ("pixel", {"width": 2.5}, "width must be a whole number"),
        ("pixel", {"width": True}, "width must be a whole number"),
        ("pixel", {"added": "within"}, "added 'within' is unknown: allowed: after, before"),
        ("pixel", {"std": -1.0}, "std must be a finite number >= 0"),
        ("pixel", {"std": float("nan")}, "std must be a finite number >= 0"),
        ("pixel", {"std": float("inf")}, "std must be a finite number >= 0"),
        ("token", {"tokens": "3"}, "tokens must be a whole number"),
        ("token", {"where": "appended"}, "did you mean 'append'"),
        ("token", {"depth": "each"}, "depth 'each' is unknown"),
        ("token", {"position": "yes"}, "position 'yes' is unknown"),
        ("pixel+token", {"token_std": -0.5}, "token_std must be"),
        ("pixel+token", {"tokens": -2}, "tokens must be"),
        ("token", {"width": 3}, "unknown setting of adaptation token 'width'"),
    ],
)
def test_values_out_of_range_are_one_line(name: str, settings: Any, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        build(name, settings)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["padding", "fixed-patch"])
def test_a_prompt_larger_than_the_image_is_refused(vit: Any, kind: str) -> None:
    most = 8 if kind == "padding" else 16
    build("pixel", {"kind": kind, "width": most}).apply(copy.deepcopy(vit))
    with pytest.raises(UserError, match=f"width is {most + 1}, .* has at most {most}"):
        build("pixel", {"kind": kind, "width": most + 1}).apply(vit)


def test_the_table_of_prompting_adaptations_is_that_of_their_class() -> None:
    from zsrobust.adaptations import ADAPTATIONS, adaptation_class
    from zsrobust.adaptations.prompts import Prompting

    found = [name for name in ADAPTATIONS if issubclass(adaptation_class(name), Prompting)]
    assert tuple(found) == PROMPTING
