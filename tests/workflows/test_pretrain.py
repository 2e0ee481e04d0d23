"""Pretraining: the loss, what a run learns and leaves, stopping and going on, mistakes."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional

from zsrobust.errors import EnvironmentFault, UserError
from zsrobust.files import folder_lock, read_json_lines
from zsrobust.models import load_clip, new_clip
from zsrobust.workflows import pretrain as module
from zsrobust.workflows.pretrain import contrastive_loss, open_source, pretrain
from zsrobust.workflows.pretrain_recipe import parse_pretrain_recipe

COLOURS = {"red": (230, 30, 30), "green": (30, 200, 40), "blue": (40, 50, 230), "white": (250,) * 3}
LONG: dict[str, Any] = {
    "epochs": 40,
    "optimiser": {"lr": 1e-3, "weight_decay": 0.0},
    "patch_dropout": 0.25,
    "validate_every": None,
    "checkpoint_every": 100,
}
CORNERS = {"top left": (0, 0), "top right": (0, 8), "bottom left": (8, 0), "bottom right": (8, 8)}


def draw(path: Path, colour: str, corner: str, rng: np.random.Generator) -> None:
    """A square of one colour in one corner of a dark, noisy picture of 16 x 16 pixels."""
    pixels = rng.integers(0, 60, (16, 16, 3)).astype(np.uint8)
    y, x = CORNERS[corner]
    pixels[y + 1 : y + 7, x + 1 : x + 7] = COLOURS[colour]
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


@pytest.fixture(scope="module")
def web(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """64 pictures, each with a caption of its colour and one of its corner."""
    root = tmp_path_factory.mktemp("web") / "web"
    rng = np.random.default_rng(0)
    for i in range(64):
        colour, corner = list(COLOURS)[i % 4], list(CORNERS)[i // 4 % 4]
        draw(root / f"{i:02}.png", colour, corner, rng)
        captions = f"a photo of a {colour} square.\na square at the {corner}\n"
        (root / f"{i:02}.txt").write_text(captions)
    return root


@pytest.fixture(scope="module")
def squares(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 other pictures, labelled by colour: DIR/class/*.png."""
    root = tmp_path_factory.mktemp("labelled") / "squares"
    rng = np.random.default_rng(1)
    for i in range(40):
        colour, corner = list(COLOURS)[i % 4], list(CORNERS)[i // 4 % 4]
        draw(root / f"{colour}_square" / f"{i:02}.png", colour, corner, rng)
    return root


@pytest.fixture(scope="module")
def base(web: Path, squares: Path) -> dict[str, Any]:
    """Three epochs of four steps, half of the patches dropped in the first six."""
    return {
        "name": "test/pretrain",
        "architecture": {
            "embed_dim": 16,
            "vision_cfg": {
                "image_size": 16,
                "layers": 2,
                "width": 32,
                "patch_size": 4,
                "head_width": 16,
            },
            "text_cfg": {
                "context_length": 12,
                "vocab_size": 49408,
                "width": 16,
                "heads": 2,
                "layers": 1,
            },
        },
        "preprocess": {"mean": [0.5] * 3, "std": [0.25] * 3},
        "source": {"set": f"folder:{web}", "split": "web"},
        "validation": [{"set": f"folder:{squares}", "limit": 20}],
        "validate_every": 6,
        "optimiser": {"lr": 3e-3},
        "epochs": 3,
        "batch": 16,
        "patch_dropout": 0.5,
        "full_patches": 0.5,
        "checkpoint_every": 5,
        "workers": 0,
    }


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_clip(f"local-dir:{folder / 'model'}").model.state_dict()


def log(folder: Path, event: str) -> list[dict[str, Any]]:
    return [row for row in read_json_lines(folder / "log.jsonl") if row["event"] == event]


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(a[name], b[name]) for name in a)


# ---- the loss


def slow_loss(images: np.ndarray, texts: np.ndarray, text_of: list[int], scale: float) -> float:
    """The two means of the docstring, sample by sample in float64."""
    count, different = len(images), len(texts)
    similar = [
        [scale * float(images[i] @ texts[t]) for t in range(different)] for i in range(count)
    ]
    to_text = 0.0
    for i in range(count):
        total = sum(np.exp(value) for value in similar[i])
        to_text -= np.log(np.exp(similar[i][text_of[i]]) / total) / count
    to_image = 0.0
    for t in range(different):
        own = [i for i in range(count) if text_of[i] == t]
        total = sum(np.exp(similar[i][t]) for i in range(count))
        to_image -= np.mean([np.log(np.exp(similar[i][t]) / total) for i in own]) / different
    return (to_text + to_image) / 2


@pytest.mark.parametrize("text_of", [[0, 1, 2, 3, 4], [0, 1, 1, 2, 0], [0, 0, 0, 0, 0]])
@pytest.mark.parametrize("scale", [1.0, 14.3])
def test_the_loss_is_the_slow_formula(text_of, scale):
    """Images with texts of their own, with shared ones, and all with one."""
    rng = torch.Generator().manual_seed(3)
    images = functional.normalize(torch.randn(5, 7, generator=rng, dtype=torch.float64), dim=1)
    texts = torch.randn(max(text_of) + 1, 7, generator=rng, dtype=torch.float64)
    texts = functional.normalize(texts, dim=1)
    found = contrastive_loss(
        images, texts, torch.tensor(text_of), torch.tensor(scale, dtype=torch.float64)
    )
    wanted = slow_loss(images.numpy(), texts.numpy(), text_of, scale)
    assert found.item() == pytest.approx(wanted, rel=1e-12)


def test_with_different_texts_it_is_clips_own_loss():
    """Figure 3 of the paper: the mean of two cross-entropies to the diagonal."""
    rng = torch.Generator().manual_seed(4)
    images, texts = (functional.normalize(torch.randn(6, 5, generator=rng), dim=1) for _ in "it")
    logits, diagonal = 10.0 * images @ texts.T, torch.arange(6)
    clips = (
        functional.cross_entropy(logits, diagonal) + functional.cross_entropy(logits.T, diagonal)
    ) / 2
    found = contrastive_loss(images, texts, diagonal, torch.tensor(10.0))
    assert found.item() == pytest.approx(clips.item(), rel=1e-6)


# ---- a run


@pytest.fixture(scope="module")
def learned(base: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty epochs; to be read only."""
    recipe = parse_pretrain_recipe({**base, **LONG})
    return pretrain(recipe, tmp_path_factory.mktemp("runs") / "learned")


def test_a_small_clip_learns_to_tell_colours_apart(learned):
    """Four colours, chance is 25%; the loss falls, the scale moves and stays below 100."""
    (measured,) = log(learned, "validation")
    assert measured["accuracy"] == {"squares#test": measured["mean"]}
    assert measured["mean"] >= 0.75
    steps = log(learned, "step")
    assert [row["steps_done"] for row in steps] == list(range(1, 161))
    assert sum(r["loss"] for r in steps[-8:]) < 0.9 * sum(r["loss"] for r in steps[:8])
    assert steps[0]["scale"] == pytest.approx(1 / 0.07, rel=0.01)
    assert steps[0]["scale"] != steps[-1]["scale"] <= 100
    assert all(2 <= row["texts"] <= 8 for row in steps)  # eight different captions exist


def test_what_a_run_leaves(learned, base):
    """Recipe, log and a model: half precision in the file, no patch dropout in its config."""
    from safetensors.torch import load_file

    names = {p.name for p in learned.iterdir() if not p.name.startswith(".")}
    assert names == {"recipe.json", "log.jsonl", "model"}
    model = learned / "model"
    assert {p.name for p in model.iterdir()} == {
        "open_clip_config.json",
        "open_clip_model.safetensors",
    }
    stored = load_file(model / "open_clip_model.safetensors")
    assert stored.pop("logit_scale").dtype == torch.float32
    assert {tensor.dtype for tensor in stored.values()} == {torch.float16}
    config = json.loads((model / "open_clip_config.json").read_text())
    assert config["model_cfg"] == base["architecture"]
    assert config["preprocess_cfg"]["mean"] == [0.5] * 3
    (start,), (end,) = log(learned, "start"), log(learned, "end")
    assert (start["steps"], start["images"], start["texts"]) == (160, 64, 8)
    assert end["steps_done"] == 160


def test_plain_open_clip_loads_the_same_weights(learned):
    """In float32, those of the file."""
    import open_clip
    from safetensors.torch import load_file

    plain, _, _ = open_clip.create_model_and_transforms(f"local-dir:{learned / 'model'}")
    stored = load_file(learned / "model" / "open_clip_model.safetensors")
    ours = weights(learned)
    for name, tensor in plain.state_dict().items():
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, stored[name].float())
        assert torch.equal(tensor, ours[name])


def test_a_finished_run_is_not_trained_again(learned, base):
    """The same command returns at once, and leaves every file as it was."""
    recipe = parse_pretrain_recipe({**base, **LONG})
    before = {p: p.stat().st_mtime_ns for p in learned.rglob("*") if p.name != ".lock"}
    assert pretrain(recipe, learned) == learned
    assert {p: p.stat().st_mtime_ns for p in learned.rglob("*") if p.name != ".lock"} == before


# ---- stopping and going on


@pytest.fixture(scope="module")
def whole(base: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve steps in one go; to be read only."""
    return pretrain(parse_pretrain_recipe(base), tmp_path_factory.mktemp("runs") / "whole")


def same_run(whole: Path, other: Path) -> None:
    assert equal(weights(whole), weights(other))
    assert log(whole, "step") == log(other, "step")
    assert log(whole, "validation") == log(other, "validation")
    assert len(log(other, "end")) == 1


@pytest.mark.parametrize("stop_at", [0, 4, 5, 8, 11])
def test_a_killed_run_goes_on_to_bit_identical_weights(base, whole, tmp_path, monkeypatch, stop_at):
    """Before the first checkpoint, between two, right behind one: weights, losses and validations are equal."""
    recipe, calls = parse_pretrain_recipe(base), 0

    def killed(*args: Any) -> torch.Tensor:
        nonlocal calls
        if calls == stop_at:
            raise SystemExit("killed")
        calls += 1
        return contrastive_loss(*args)

    monkeypatch.setattr(module, "contrastive_loss", killed)
    with pytest.raises(SystemExit):
        pretrain(recipe, tmp_path / "run")
    monkeypatch.undo()
    torch.rand(3)  # what happens between the two must not matter
    same_run(whole, pretrain(recipe, tmp_path / "run"))


@pytest.mark.parametrize("at", [6, 12])
def test_a_run_killed_while_it_measures_has_its_validation_in_the_end(
    base, whole, tmp_path, monkeypatch, at
):
    """Also where the checkpoint of that step was written before, as it is at the end."""
    recipe, real, calls = parse_pretrain_recipe(base), module.zero_shot_accuracy, 0

    def killed(*args: Any) -> float:
        nonlocal calls
        calls += 1
        if calls == at // 6:
            raise SystemExit("killed")
        return real(*args)

    monkeypatch.setattr(module, "zero_shot_accuracy", killed)
    with pytest.raises(SystemExit):
        pretrain(recipe, tmp_path / "run")
    assert len(log(tmp_path / "run", "step")) == at
    monkeypatch.undo()
    same_run(whole, pretrain(recipe, tmp_path / "run"))


def test_ctrl_c_ends_the_step_and_writes_a_checkpoint(base, whole, tmp_path, monkeypatch):
    """From Python it is a KeyboardInterrupt; the run goes on from the very step."""
    recipe, calls = parse_pretrain_recipe(base), 0

    def interrupted(*args: Any) -> torch.Tensor:
        nonlocal calls
        calls += 1
        if calls == 3:
            signal.raise_signal(signal.SIGINT)
        return contrastive_loss(*args)

    monkeypatch.setattr(module, "contrastive_loss", interrupted)
    with pytest.raises(KeyboardInterrupt):
        pretrain(recipe, tmp_path / "run")
    assert len(log(tmp_path / "run", "step")) == 3
    state = torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)
    assert (state["epoch"], state["step"]) == (0, 3)
    monkeypatch.setattr(module, "contrastive_loss", contrastive_loss)
    same_run(whole, pretrain(recipe, tmp_path / "run"))


@pytest.mark.parametrize(
    "change",
    [{"keep_pixels": False}, {"workers": 1}, {"validation": [], "validate_every": None}],
    ids=lambda change: next(iter(change)),
)
def test_loading_and_measuring_move_no_weight(base, whole, tmp_path, change):
    """Neither a loading process nor pixels kept in memory, nor looking at the accuracy."""
    other = pretrain(parse_pretrain_recipe({**base, **change}), tmp_path / "run")
    assert equal(weights(whole), weights(other))


def test_the_seed_does_and_the_global_stream_is_left_alone(base, whole, tmp_path):
    """Weights, order, captions and dropped patches are functions of the recipe's seed."""
    before = torch.get_rng_state()
    other = pretrain(parse_pretrain_recipe({**base, "seed": 1}), tmp_path / "run")
    assert torch.equal(torch.get_rng_state(), before)
    assert not torch.are_deterministic_algorithms_enabled()
    assert not equal(weights(whole), weights(other))


def test_the_first_weights_are_a_function_of_the_seed(base):
    """Whatever was drawn before; another seed gives others."""
    config = parse_pretrain_recipe(base).config()
    torch.rand(3)
    a, b, c = (new_clip(config, seed, "m").model.state_dict() for seed in (5, 5, 6))
    assert equal(a, b)
    assert not equal(a, c)


def test_no_picture_is_loaded_twice_where_pixels_are_kept(base, tmp_path, monkeypatch):
    """Three epochs of 60 pictures in batches of 16: the twelve that an epoch leaves out come in a later one."""
    loaded: list[int] = []
    real = module.data.batches_of

    def counting(images: Any, lists: Any, *rest: Any) -> Any:
        for batch in real(images, lists, *rest):
            loaded.extend(batch.indices)
            yield batch

    monkeypatch.setattr(module.data, "batches_of", counting)
    changes = {"source": {**base["source"], "limit": 60}, "validation": [], "validate_every": None}
    pretrain(parse_pretrain_recipe({**base, **changes}), tmp_path / "run")
    assert len(loaded) == len(set(loaded)) > 48


# ---- parts


def test_captions_with_equal_token_ids_are_one_text(base, tmp_path):
    """The tokenizer lower-cases: two captions, one text; the third is another."""
    rng = np.random.default_rng(0)
    texts = ["A Red Square", "a red square", "a blue square"]
    for i, text in enumerate(texts):
        draw(tmp_path / "web" / f"{i}.png", "red", "top left", rng)
        (tmp_path / "web" / f"{i}.txt").write_text(text)
    recipe = parse_pretrain_recipe(
        {**base, "batch": 3, "source": {"set": f"folder:{tmp_path}/web", "split": "web"}}
    )
    clip = new_clip(recipe.config(), 0, "m")
    source = open_source(recipe, clip)
    at = {name: position for position, name in enumerate(source.ids)}
    tokens, text_of = source.texts_of([at["0.png"], at["1.png"], at["2.png"]], 0, 0)
    assert tokens.shape == (2, 12)
    assert text_of[0] == text_of[1] != text_of[2]
    assert torch.equal(tokens[text_of], clip.tokenizer(texts))


def test_batches_and_captions_are_drawn_anew_each_epoch(base):
    """Full batches, no picture twice; the same epoch gives the same, another one others."""
    recipe = parse_pretrain_recipe({**base, "batch": 15})
    source = open_source(recipe, new_clip(recipe.config(), 0, "m"))
    first, second = source.batches(recipe, 0), source.batches(recipe, 1)
    assert [len(batch) for batch in first] == [15] * 4  # 4 of 64 are left out
    assert len({p for batch in first for p in batch}) == 60
    assert first == source.batches(recipe, 0) != second
    batch = list(range(64))
    tokens, text_of = source.texts_of(batch, 0, 0)
    again, of_again = source.texts_of(batch, 0, 0)
    other, of_other = source.texts_of(batch, 0, 1)
    assert torch.equal(tokens[text_of], again[of_again])
    assert not torch.equal(tokens[text_of], other[of_other])


def test_patch_dropout_is_a_function_of_seed_and_step(base):
    """Half of 16 patches and the class token in training, all of them where nothing is dropped."""
    recipe = parse_pretrain_recipe(base)
    model: Any = new_clip(recipe.config(), 0, "m").model.train()
    dropping = module._patch_dropout(model, recipe)
    seen: list[int] = []
    model.visual.ln_pre.register_forward_hook(lambda _, given, __: seen.append(given[0].shape[1]))
    images = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))

    def features(step: int, *, drop: bool = True) -> torch.Tensor:
        with dropping(step, drop=drop):
            return model.encode_image(images)

    before = torch.get_rng_state()
    a, b, c = features(3), features(3), features(4)
    assert torch.equal(a, b)
    assert not torch.equal(a, c)
    assert torch.equal(features(3, drop=False), features(4, drop=False))
    assert seen == [9, 9, 9, 17, 17]
    assert torch.equal(torch.get_rng_state(), before)


def test_all_patches_are_looked_at_in_the_last_steps(base, tmp_path, monkeypatch):
    """full_patches 0.25 of twelve steps are three."""
    real, dropped = module._patch_dropout, []

    def watching(model: Any, recipe: Any) -> Any:
        dropping = real(model, recipe)

        def of(step: int, *, drop: bool) -> Any:
            dropped.append(drop)
            return dropping(step, drop=drop)

        return of

    monkeypatch.setattr(module, "_patch_dropout", watching)
    pretrain(parse_pretrain_recipe({**base, "full_patches": 0.25}), tmp_path / "run")
    assert dropped == [True] * 9 + [False] * 3


def test_the_scale_never_exceeds_a_hundred(base, tmp_path):
    """It starts above and is clamped after the first step."""
    architecture = {**base["architecture"], "init_logit_scale": 6.0}
    recipe = parse_pretrain_recipe({**base, "architecture": architecture, "epochs": 1})
    folder = pretrain(recipe, tmp_path / "run")
    assert all(row["scale"] <= 100.0001 for row in log(folder, "step"))
    assert load_clip(f"local-dir:{folder / 'model'}").logit_scale == pytest.approx(100, rel=0.01)


# ---- mistakes


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"source": {"limit": 65}}, "source.limit is 65, set 'folder:.*' holds 64 images"),
        ({"batch": 65}, "batch is 65, the source has 64 images: lower batch"),
        ({"device": "tpu"}, "device 'tpu': pretraining runs on auto, cpu, cuda or cuda:N"),
        ({"preprocess": {"meen": [0.5]}}, "unknown key of test/pretrain's preprocess_cfg 'meen'"),
        ({"architecture": {"vision_cfg": {"layers": "x"}}}, "open_clip cannot build this config"),
        (
            {"architecture": {"text_cfg": {"vocab_size": 100}}},
            r"a caption has token \d+, the text tower knows 100: raise architecture",
        ),
        (
            {"architecture": {"vision_cfg": {"layers": [1, 1, 1, 1], "width": 8}}},
            "patch_dropout 0.5: only open_clip's ViT can drop patches",
        ),
    ],
)
def test_a_mistake_is_one_line(base, tmp_path, change, message):
    """It names what was given and what to do."""
    with pytest.raises(UserError, match=message) as caught:
        pretrain(parse_pretrain_recipe(merged(base, change)), tmp_path / "run")
    assert "\n" not in str(caught.value)


def merged(a: dict[str, Any], b: dict[str, Any]) -> dict[str, Any]:
    both = {k: merged(a[k], v) for k, v in b.items() if isinstance(a.get(k), dict)}
    return {**a, **b, **both}


def test_sets_that_do_not_serve(base, squares, web, tmp_path):
    """A source without captions, a validation set without labels."""
    recipe = merged(base, {"source": {"set": f"folder:{squares}", "split": "squares"}})
    with pytest.raises(UserError, match=r"40 of 40 images of set .* have no caption"):
        pretrain(parse_pretrain_recipe(recipe), tmp_path / "a")
    recipe = {**base, "validation": [{"set": f"folder:{web}"}]}
    with pytest.raises(UserError, match="has no labels and class names"):
        pretrain(parse_pretrain_recipe(recipe), tmp_path / "b")


def test_another_recipes_folder_is_refused_and_a_taken_one_too(base, learned, tmp_path):
    """What differs is named; nothing is written."""
    with pytest.raises(UserError, match=r"another recipe .*seed was 0, is 7.*choose another --out"):
        pretrain(parse_pretrain_recipe({**base, **LONG, "seed": 7}), learned)
    with folder_lock(tmp_path), pytest.raises(EnvironmentFault, match="another process is working"):
        pretrain(parse_pretrain_recipe(base), tmp_path)


def test_a_loss_that_is_not_finite_stops_the_run_before_a_weight_is_touched(
    base, tmp_path, monkeypatch
):
    """One line with the rate and the step; the checkpoint before it stays as it was."""
    recipe, calls = parse_pretrain_recipe(base), 0

    def broken(*args: Any) -> torch.Tensor:
        nonlocal calls
        calls += 1
        loss = contrastive_loss(*args)
        return loss * float("nan") if calls == 6 else loss

    monkeypatch.setattr(module, "contrastive_loss", broken)
    with pytest.raises(FloatingPointError, match=r"loss nan.*step 5: lower optimiser\.lr"):
        pretrain(recipe, tmp_path / "run")
    state = torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)
    assert (state["epoch"], state["step"]) == (1, 1)
    assert all(tensor.isfinite().all() for tensor in state["parameters"].values())
