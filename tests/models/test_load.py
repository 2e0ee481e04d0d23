"""Every kind of open_clip tower loads, strictly; what does not fit is refused in one line."""

import json
import logging
import math
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from zsrobust.errors import EnvironmentFault, UserError
from zsrobust.models import load_clip

Change = Callable[[Path, Callable[[dict[str, Any]], None]], None]
TOWERS = ["vit", "vit-quickgelu", "modified-resnet", "timm", "coca", "siglip"]
WEIGHTS = "open_clip_model.safetensors"


def plain(folder: Path) -> Any:
    import open_clip

    return open_clip.create_model(f"local-dir:{folder}").eval()


def refused(spec: str, kind: type[Exception] = UserError) -> str:
    with pytest.raises(kind) as caught:
        load_clip(spec)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("tower", TOWERS)
def test_tower_loads_frozen_in_float32_and_eval_mode(tower: str, folders: dict[str, Path]) -> None:
    clip = load_clip(f"local-dir:{folders[tower]}")
    assert not any(module.training for module in clip.model.modules())
    assert not any(p.requires_grad for p in clip.model.parameters())
    assert {p.dtype for p in clip.model.parameters()} == {torch.float32}
    reference = plain(folders[tower])
    for name, tensor in reference.state_dict().items():
        assert torch.equal(clip.model.state_dict()[name], tensor), name
    assert clip.logit_scale == pytest.approx(math.exp(reference.logit_scale.item()))


@pytest.mark.parametrize("tower", TOWERS)
def test_features_are_open_clips_and_have_a_gradient(
    tower: str, folders: dict[str, Path], images: torch.Tensor
) -> None:
    """The encoder equals resize, (x - mean) / std, encode_image(normalize=False) of plain open_clip."""
    clip = load_clip(f"local-dir:{folders[tower]}")
    size = clip.preprocess.size
    resized = torch.nn.functional.interpolate(images, size=size, mode="bicubic")
    if size == (32, 32):
        assert torch.equal(resized, images)
    mean, std = torch.tensor([0.5, 0.4, 0.3]), torch.tensor([0.25, 0.3, 0.2])
    normalised = (resized - mean[:, None, None]) / std[:, None, None]
    reference = plain(folders[tower])
    expected = reference.encode_image(normalised, normalize=False)
    assert not torch.allclose(expected.norm(dim=-1), torch.ones(2), atol=1e-2)

    x = images.clone().requires_grad_()
    features = clip.image_encoder()(x)
    torch.testing.assert_close(features, expected, rtol=1e-5, atol=1e-5)
    assert features.dtype == torch.float32
    (gradient,) = torch.autograd.grad(features.square().sum(), x)
    assert (gradient.flatten(1).abs().amax(1) > 0).all()

    texts = ["a photo of a cat.", "a photo of a dog."]
    tokens = clip.tokenizer(texts)
    assert tokens.shape == (2, 12)
    torch.testing.assert_close(
        clip.encode_texts(texts), reference.encode_text(tokens, normalize=False).detach()
    )


def test_weights_of_half_precision_and_of_older_names_load(vit: Path) -> None:
    tensors = load_file(vit / WEIGHTS)
    (vit / WEIGHTS).unlink()
    half = {f"module.{name}": tensor.half() for name, tensor in tensors.items()}
    torch.save({"epoch": 3, "state_dict": half}, vit / "open_clip_pytorch_model.bin")
    clip = load_clip(f"local-dir:{vit}")
    for name, tensor in tensors.items():
        assert torch.equal(clip.model.state_dict()[name], tensor.half().float()), name


def test_texts_are_encoded_alike_in_one_chunk_or_many(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    clip = load_clip(f"local-dir:{folders['vit']}")
    texts = [f"number {i}" for i in range(7)]
    whole = clip.encode_texts(texts)
    monkeypatch.setattr("zsrobust.models.load._TEXT_CHUNK", 3)
    torch.testing.assert_close(clip.encode_texts(texts), whole)
    assert not whole.requires_grad
    with pytest.raises(UserError, match="no texts"):
        clip.encode_texts([])


def test_loading_leaves_log_warnings_and_random_state_alone(
    folders: dict[str, Path], capfd: pytest.CaptureFixture[str]
) -> None:
    before = torch.random.get_rng_state()
    handlers = list(logging.getLogger().handlers)
    load_clip(f"local-dir:{folders['vit']}")
    assert torch.equal(torch.random.get_rng_state(), before)
    assert logging.getLogger().handlers == handlers
    assert logging.root.manager.disable == logging.NOTSET
    assert capfd.readouterr() == ("", "")


def test_fingerprint_is_of_tensors_and_activation(vit: Path, change_config: Change) -> None:
    spec = f"local-dir:{vit}"
    first = load_clip(spec)
    fingerprint = first.fingerprint
    assert load_clip(spec).fingerprint == fingerprint
    # A default that is written out is the same model.
    change_config(vit, lambda c: c["model_cfg"]["vision_cfg"].update(mlp_ratio=4.0))
    change_config(vit, lambda c: c["model_cfg"].update(quick_gelu=False))
    assert load_clip(spec).fingerprint == fingerprint
    change_config(vit, lambda c: c["model_cfg"].update(quick_gelu=True))
    assert load_clip(spec).fingerprint != fingerprint
    # The cached one is not believed after training.
    with torch.no_grad():
        next(first.model.visual.parameters()).add_(1e-3)
    assert first.fingerprint != fingerprint


def test_missing_config_or_weights_are_refused(vit: Path) -> None:
    (vit / WEIGHTS).rename(vit / "other.safetensors")
    assert WEIGHTS in refused(f"local-dir:{vit}")
    (vit / "open_clip_config.json").unlink()
    assert "no open_clip_config.json" in refused(f"local-dir:{vit}")


@pytest.mark.parametrize("length", [5, 8, 200, -100])
def test_truncated_weights_are_refused(vit: Path, length: int) -> None:
    content = (vit / WEIGHTS).read_bytes()
    (vit / WEIGHTS).write_bytes(content[:length])
    assert "not a whole safetensors file" in refused(f"local-dir:{vit}")


def test_file_that_is_no_safetensors_is_refused(vit: Path) -> None:
    (vit / WEIGHTS).write_bytes(b"<html>not found</html>" * 20)
    assert "not a whole safetensors file" in refused(f"local-dir:{vit}")
    (vit / WEIGHTS).write_bytes(b"")
    assert "an empty file" in refused(f"local-dir:{vit}")


def test_missing_left_over_and_misshaped_tensors_are_named(vit: Path) -> None:
    tensors = load_file(vit / WEIGHTS)
    del tensors["visual.conv1.weight"]
    tensors["visual.extra"] = torch.zeros(2)
    tensors["visual.proj"] = torch.zeros(3, 3)
    save_file(tensors, vit / WEIGHTS)
    message = refused(f"local-dir:{vit}")
    assert "1 missing (visual.conv1.weight)" in message
    assert "1 left over (visual.extra)" in message
    assert "visual.proj is (3, 3) for (32, 16)" in message


def test_named_buffers_may_be_left_over(vit: Path) -> None:
    tensors = load_file(vit / WEIGHTS)
    save_file({**tensors, "attn_mask": torch.zeros(12, 12)}, vit / WEIGHTS)
    load_clip(f"local-dir:{vit}")


@pytest.mark.parametrize(
    ("part", "entry"),
    [
        ("vision_cfg", {"image_size": 64}),  # open_clip would resize the position embedding
        ("vision_cfg", {"width": 64}),
        ("vision_cfg", {"layers": 3}),
        ("text_cfg", {"context_length": 20}),
    ],
)
def test_config_of_other_dimensions_is_refused(
    vit: Path, change_config: Change, part: str, entry: dict[str, int]
) -> None:
    change_config(vit, lambda c: c["model_cfg"][part].update(entry))
    assert "do not fit" in refused(f"local-dir:{vit}")


def test_broken_configs_are_refused(vit: Path, change_config: Change) -> None:
    """An unknown field is what Delta-CLIP's config brings."""
    change_config(vit, lambda c: c["model_cfg"]["text_cfg"].update(vocab_path="vocab.txt"))
    assert "vocab_path" in refused(f"local-dir:{vit}")
    (vit / "open_clip_config.json").write_text('{"model_cfg": {"embed_dim": 3}}')
    assert "lacks vision_cfg, text_cfg" in refused(f"local-dir:{vit}")
    (vit / "open_clip_config.json").write_text('{"model_cfg"')
    assert "not JSON" in refused(f"local-dir:{vit}")
    (vit / "open_clip_config.json").write_text("{}")
    assert "no table 'model_cfg'" in refused(f"local-dir:{vit}")


@pytest.mark.parametrize(
    ("part", "entry", "words"),
    [
        ("model_cfg", {"vision_cfg": [1]}, r"vision_cfg must be a table, got \[1\]"),
        ("model_cfg", {"text_cfg": None}, "text_cfg must be a table, got None"),
        ("model_cfg", {"quick_gelu": "no"}, "quick_gelu must be true or false, got 'no'"),
        ("model_cfg", {"embed_dim": "16"}, "embed_dim '16': must be a valid integer"),
        ("vision_cfg", {"layers": "two"}, "vision_cfg.layers 'two': must be"),
        ("vision_cfg", {"nonsense": 1}, "unexpected keyword argument 'nonsense'"),
        ("preprocess_cfg", {"mean": "x"}, "mean must be three finite numbers, got 'x'"),
        ("preprocess_cfg", {"mean": [0.5]}, r"mean must be three finite numbers, got \[0.5\]"),
        ("preprocess_cfg", {"std": [0.2, 0, 0.2]}, "std must be three finite numbers > 0"),
        ("preprocess_cfg", {"std": [float("nan")] * 3}, "std must be three finite numbers > 0"),
        ("preprocess_cfg", {"fill_color": "red"}, "fill_color must be a whole number, 0 to 255"),
        ("preprocess_cfg", {"interpolation": "cubic"}, "unknown interpolation.*'bicubic'"),
        ("preprocess_cfg", {"resize_mode": "longer"}, "unknown resize_mode.*'longest'"),
    ],
)
def test_values_of_a_config_that_are_none_are_named(
    vit: Path, change_config: Change, part: str, entry: dict[str, Any], words: str
) -> None:
    def change(config: dict[str, Any]) -> None:
        (config if part in config else config["model_cfg"])[part].update(entry)

    change_config(vit, change)
    assert re.search(words, refused(f"local-dir:{vit}"))


def test_every_config_of_open_clip_has_the_types_it_is_checked_against() -> None:
    """A config that cannot be built for another reason is not blamed for its values."""
    import open_clip

    from zsrobust.models.load import _wrong_values

    wrong = {
        name: _wrong_values(open_clip.get_model_config(name)) for name in open_clip.list_models()
    }
    assert {name: words for name, words in wrong.items() if words} == {}


def test_a_json_file_nested_beyond_reading_is_refused(vit: Path) -> None:
    (vit / "open_clip_config.json").write_text("[" * 100_000)
    assert "not JSON" in refused(f"local-dir:{vit}")


@pytest.mark.parametrize("learned", [float("nan"), 1e5, -1e5])
def test_a_logit_scale_of_damaged_weights_is_refused(vit: Path, learned: float) -> None:
    tensors = load_file(vit / WEIGHTS)
    save_file({**tensors, "logit_scale": torch.tensor(learned)}, vit / WEIGHTS)
    assert re.search("logit scale|NaN or infinity", refused(f"local-dir:{vit}"))


def test_tokens_beyond_the_vocabulary_are_refused(vit: Path, change_config: Change) -> None:
    tensors = load_file(vit / WEIGHTS)
    tensors["token_embedding.weight"] = tensors["token_embedding.weight"][:500].contiguous()
    save_file(tensors, vit / WEIGHTS)
    change_config(vit, lambda c: c["model_cfg"]["text_cfg"].update(vocab_size=500))
    clip = load_clip(f"local-dir:{vit}")
    with pytest.raises(UserError, match="lies beyond the text tower's 500"):
        clip.encode_texts(["a cat"])


def test_towers_and_tokenizers_that_need_a_download_are_refused(
    vit: Path, change_config: Change, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    change_config(vit, lambda c: c["model_cfg"]["text_cfg"].update(hf_tokenizer_name="a/b"))
    assert "tokenizer" in refused(f"local-dir:{vit}", EnvironmentFault)
    monkeypatch.setattr("open_clip.hf_model.transformers", None)
    change_config(vit, lambda c: c["model_cfg"]["text_cfg"].update(hf_model_name="a/b"))
    assert "text tower 'a/b'" in refused(f"local-dir:{vit}", EnvironmentFault)


@pytest.mark.parametrize("spec", ["ViT-B-32-quickgelu:openai", "hf-hub:chs20/fare2-clip"])
def test_failed_download_says_how_to_bring_the_files(
    spec: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_network(**_: Any) -> str:
        raise OSError("Name or service not known\nsecond line")

    monkeypatch.setattr("open_clip.pretrained.hf_hub_download", no_network)
    message = refused(spec, EnvironmentFault)
    assert "Name or service not known" in message
    assert "local-dir:" in message


def serve(monkeypatch: pytest.MonkeyPatch, folder: Path) -> list[str]:
    """Let the hub consist of one folder; return what is asked for."""
    asked: list[str] = []

    def download(repo_id: str, filename: str, **_: Any) -> str:
        asked.append(filename)
        if not (folder / filename).is_file():
            raise FileNotFoundError(filename)
        return str(folder / filename)

    monkeypatch.setattr("open_clip.pretrained.hf_hub_download", download)
    return asked


def test_hub_model_loads_like_its_folder(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = serve(monkeypatch, folders["vit"])
    clip = load_clip("hf-hub:some/model")
    assert clip.name == "model"
    assert clip.fingerprint == load_clip(f"local-dir:{folders['vit']}").fingerprint
    assert asked == ["open_clip_config.json", WEIGHTS]


def test_known_hub_model_with_the_wrong_activation_is_refused_before_its_weights(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = serve(monkeypatch, folders["vit"])
    message = refused("hf-hub:chs20/fare2-clip")
    assert "trained with QuickGELU" in message
    assert asked == ["open_clip_config.json"]
    serve(monkeypatch, folders["vit-quickgelu"])
    assert load_clip("hf-hub:chs20/fare2-clip").config["model_cfg"]["quick_gelu"] is True


def test_known_hub_model_of_another_form_is_refused_before_any_download(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked = serve(monkeypatch, tmp_path)
    assert "transformers" in refused("hf-hub:LEAF-CLIP/CLIP-ViT-L-FARE2")
    assert "vocab_path" in refused("hf-hub:zw123/delta_clip_l14_224")
    assert asked == []


def test_builtin_model_takes_its_tags_image_rule(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Built with a small architecture under open_clip's own tables, so that nothing is fetched."""
    import open_clip
    from open_clip import factory, pretrained

    cfg = {
        "embed_dim": 16,
        "vision_cfg": {
            "image_size": 32,
            "layers": 1,
            "width": 32,
            "patch_size": 16,
            "head_width": 16,
        },
        "text_cfg": {"context_length": 12, "width": 16, "heads": 2, "layers": 1},
    }
    tag = {"url": "", "hf_hub": "x/y/", "mean": (0.1, 0.2, 0.3), "std": (0.5, 0.6, 0.7)}
    tag |= {"interpolation": "bilinear", "resize_mode": "squash"}
    monkeypatch.setitem(factory._MODEL_CONFIGS, "Small", cfg)
    monkeypatch.setitem(pretrained._PRETRAINED, "Small", {"here": tag})
    logging.disable(logging.CRITICAL)
    model = open_clip.create_model("Small")
    logging.disable(logging.NOTSET)

    def download(repo_id: str, filename: str, **_: Any) -> str:
        assert repo_id == "x/y"
        save_file(model.state_dict(), tmp_path / filename)
        return str(tmp_path / filename)

    monkeypatch.setattr("open_clip.pretrained.hf_hub_download", download)
    clip = load_clip("Small:here")
    assert clip.preprocess.mean == (0.1, 0.2, 0.3)
    assert (clip.preprocess.interpolation, clip.preprocess.resize_mode) == ("bilinear", "squash")
    assert torch.equal(clip.model.visual.conv1.weight, model.visual.conv1.weight)
    assert clip.tokenizer(["a"]).shape == (1, 12)
    assert json.dumps(clip.config)


def test_unknown_device_is_refused(folders: dict[str, Path]) -> None:
    for device in ("cuda:99", "gpu"):
        with pytest.raises(UserError, match="no device"):
            load_clip(f"local-dir:{folders['vit']}", device)


@pytest.mark.needs_data
def test_mini_clip_is_what_its_card_says(mini_clip: Any) -> None:
    assert mini_clip.name == "mini-clip"
    assert mini_clip.logit_scale == pytest.approx(24.7, abs=0.05)
    assert mini_clip.preprocess.size == (64, 64)
    assert mini_clip.tokenizer(["a photo of a cat."]).shape == (1, 16)
    assert {p.dtype for p in mini_clip.model.parameters()} == {torch.float32}
    assert mini_clip.encode_texts(["a", "b"]).shape == (2, 192)


@pytest.mark.needs_data
@pytest.mark.parametrize("size", [(64, 64), (100, 80), (37, 211)])
def test_pixels_are_those_of_open_clips_own_preprocessing(
    mini_clip: Any, size: tuple[int, int]
) -> None:
    import numpy as np
    import open_clip
    from PIL import Image

    from zsrobust.preprocess import to_uint8, to_unit

    levels = np.random.default_rng(3).integers(0, 256, (*size, 3), dtype=np.uint8)
    picture = Image.fromarray(levels).resize((size[1], size[0]), Image.Resampling.BOX)
    folder = Path(os.environ["ZSROBUST_MODELS"]) / "mini-clip"
    _, _, transform = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    pixels = to_unit(to_uint8(mini_clip.preprocess.geometry()(picture)))
    assert torch.equal(mini_clip.preprocess.normalise(pixels[None])[0], transform(picture))
