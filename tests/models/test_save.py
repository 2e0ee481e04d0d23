"""What is written loads again with equal weights, in open_clip and here."""

import errno
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from zsrobust.adaptations import build
from zsrobust.errors import EnvironmentFault, UserError
from zsrobust.models import (
    HeadClassifier,
    convert,
    load_clip,
    save_hardened,
    save_open_clip,
    save_visual,
)

TOWERS = ["vit", "vit-quickgelu", "modified-resnet", "timm", "coca", "siglip"]


def plain(folder: Path) -> Any:
    import open_clip

    return open_clip.create_model(f"local-dir:{folder}").eval()


@pytest.mark.parametrize("tower", TOWERS)
def test_plain_open_clip_loads_what_was_saved(
    tower: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    import open_clip

    clip = load_clip(f"local-dir:{folders[tower]}")
    model: Any = clip.model
    with torch.no_grad():
        for parameter in model.visual.parameters():
            parameter.add_(0.01)
    save_open_clip(clip.model, clip.config, tmp_path / "out")
    assert {file.name for file in (tmp_path / "out").iterdir()} == {
        "open_clip_config.json",
        "open_clip_model.safetensors",
    }
    again = plain(tmp_path / "out")
    for name, tensor in clip.model.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name
    size = clip.preprocess.size
    images = torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(0))
    normalised = clip.preprocess.normalise(images)
    # Without gradients on both sides: attention takes another kernel where a parameter needs one.
    with torch.no_grad():
        expected = model.encode_image(normalised, normalize=False)
        assert torch.equal(again.encode_image(normalised, normalize=False), expected)
    tokenizer = open_clip.get_tokenizer(f"local-dir:{tmp_path / 'out'}")
    assert torch.equal(tokenizer(["a cat"]), clip.tokenizer(["a cat"]))
    ours = load_clip(f"local-dir:{tmp_path / 'out'}")
    assert ours.fingerprint == clip.fingerprint
    assert ours.preprocess == clip.preprocess


def test_half_and_double_models_are_saved_in_float32(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    from safetensors.torch import load_file

    clip = load_clip(f"local-dir:{folders['vit']}")
    expected = clip.fingerprint
    clip.model.double()
    save_open_clip(clip.model, clip.config, tmp_path)
    tensors = load_file(tmp_path / "open_clip_model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float32}
    assert load_clip(f"local-dir:{tmp_path}").fingerprint == expected


def test_saving_again_replaces_the_model(folders: dict[str, Path], tmp_path: Path) -> None:
    first = load_clip(f"local-dir:{folders['vit']}")
    second = load_clip(f"local-dir:{folders['timm']}")
    save_hardened(first.model, first.config, tmp_path, {"adaptation": "full", "base": "a"})
    save_open_clip(second.model, second.config, tmp_path / "model")
    assert load_clip(f"local-dir:{tmp_path / 'model'}").fingerprint == second.fingerprint
    assert not (tmp_path / "model" / "adaptation.json").exists()


def test_a_head_is_kept_beside_the_model_and_goes_with_it(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    """Loading passes over it; its hash stands in adaptation.json; a model saved over it takes it away."""
    clip = load_clip(f"local-dir:{folders['vit']}")
    weight = torch.rand(3, 16, generator=torch.Generator().manual_seed(0))
    head = HeadClassifier.linear(clip.image_encoder(), weight, torch.zeros(3), ["a", "b", "c"])
    record = {"adaptation": "full", "base": "a"}
    save_hardened(clip.model, clip.config, tmp_path, record, head=head)
    stored = tmp_path / "model" / "head.safetensors"
    assert HeadClassifier.from_file(clip.image_encoder(), stored).content_hash == head.content_hash
    assert load_clip(f"run:{tmp_path}").fingerprint == clip.fingerprint
    assert plain(tmp_path / "model").state_dict().keys() == clip.model.state_dict().keys()
    written = json.loads((tmp_path / "model" / "adaptation.json").read_text())
    assert written["head"] == {"kind": "linear", "classes": 3, "sha256": head.content_hash}
    save_hardened(clip.model, clip.config, tmp_path, record)
    assert not stored.exists()


def test_full_disk_leaves_no_folder_that_loads(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clip = load_clip(f"local-dir:{folders['vit']}")
    save_open_clip(clip.model, clip.config, tmp_path)

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", full)
        with pytest.raises(EnvironmentFault, match="No space left"):
            save_open_clip(clip.model, clip.config, tmp_path)
    assert not list(tmp_path.glob("*.partial"))
    with pytest.raises(UserError, match="not a whole one"):
        load_clip(f"local-dir:{tmp_path}")


def test_tokenizer_with_files_of_its_own_is_saved_too(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    class Own:
        def __call__(self, texts: list[str]) -> Tensor:
            return torch.zeros(len(texts), 12, dtype=torch.long)

        def save_pretrained(self, destination: str) -> None:
            (Path(destination) / "tokenizer.json").write_text("{}")

    clip = load_clip(f"local-dir:{folders['vit']}")
    save_open_clip(clip.model, clip.config, tmp_path / "out", Own())
    assert (tmp_path / "out" / "tokenizer.json").is_file()


@pytest.mark.parametrize("tower", TOWERS)
def test_run_reads_what_a_hardening_saved(
    tower: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    clip = load_clip(f"local-dir:{folders[tower]}")
    for _, parameter in build("full").apply(clip.model):
        with torch.no_grad():
            parameter.mul_(1.01)
    record = {"adaptation": "full", "base": clip.spec, "settings": {}}
    save_hardened(clip.model, clip.config, tmp_path / "run", record)
    assert json.loads((tmp_path / "run" / "model" / "adaptation.json").read_text()) == {
        **record,
        "format": 1,
    }
    again = load_clip(f"run:{tmp_path / 'run'}")
    assert again.fingerprint == clip.fingerprint
    assert again.name == "run"
    assert not any(p.requires_grad for p in again.model.parameters())
    assert torch.equal(
        next(plain(tmp_path / "run" / "model").parameters()), next(clip.model.parameters())
    )


@pytest.mark.parametrize(
    ("record", "words"),
    [
        ({"format": 2, "adaptation": "full", "base": "a"}, "format 2 is unknown"),
        ({"adaptation": "full", "base": "a"}, "format None is unknown"),
        ({"format": 1, "adaptation": "fall", "base": "a"}, "did you mean 'full'"),
    ],
)
def test_unknown_adaptations_are_refused(
    record: dict[str, Any], words: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    (tmp_path / "model").mkdir()
    for file in folders["vit"].iterdir():
        (tmp_path / "model" / file.name).symlink_to(file)
    (tmp_path / "model" / "adaptation.json").write_text(json.dumps(record))
    with pytest.raises(UserError, match=words) as caught:
        load_clip(f"run:{tmp_path}")
    assert "\n" not in str(caught.value)


def test_run_without_a_model_is_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="the folder is no hardening's"):
        load_clip(f"run:{tmp_path}")
    (tmp_path / "recipe.json").write_text("{}")
    with pytest.raises(UserError, match="has not finished; start its command again"):
        load_clip(f"run:{tmp_path}")
    clip = load_clip(f"local-dir:{folders['vit']}")
    save_open_clip(clip.model, clip.config, tmp_path / "model")
    with pytest.raises(UserError, match=r"no adaptation\.json"):
        load_clip(f"run:{tmp_path}")


def test_hardened_model_needs_a_known_adaptation_and_a_base(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    clip = load_clip(f"local-dir:{folders['vit']}")
    with pytest.raises(UserError, match="unknown adaptation 'none'"):
        save_hardened(clip.model, clip.config, tmp_path, {"adaptation": "none", "base": "a"})
    with pytest.raises(UserError, match="base"):
        save_hardened(clip.model, clip.config, tmp_path, {"adaptation": "full"})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("tower", ["vit", "modified-resnet", "timm"])
def test_visual_state_dict_over_its_base_is_the_model(
    tower: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    spec = f"local-dir:{folders[tower]}"
    clip = load_clip(spec)
    model: Any = clip.model
    with torch.no_grad():
        for parameter in model.visual.parameters():
            parameter.add_(0.01)
    save_visual(clip, tmp_path / "visual.pt")
    # As RobustVLM's code loads it.
    other = plain(folders[tower])
    other.visual.load_state_dict(torch.load(tmp_path / "visual.pt", weights_only=True))
    assert torch.equal(next(other.visual.parameters()), next(model.visual.parameters()))
    assert load_clip(f"{tmp_path / 'visual.pt'}@{spec}").fingerprint == clip.fingerprint


def test_convert_round_trip(folders: dict[str, Path], tmp_path: Path) -> None:
    spec = f"local-dir:{folders['vit']}"
    fingerprint = load_clip(spec).fingerprint
    convert(spec, tmp_path / "visual.pt", "visual")
    convert(f"{tmp_path / 'visual.pt'}@{spec}", tmp_path / "folder")
    assert load_clip(f"local-dir:{tmp_path / 'folder'}").fingerprint == fingerprint


def test_convert_overwrites_nothing(folders: dict[str, Path], tmp_path: Path) -> None:
    spec = f"local-dir:{folders['vit']}"
    file = tmp_path / "file"
    file.write_text("mine")
    for out, form in ((folders["vit"], "open_clip"), (file, "open_clip"), (file, "visual")):
        with pytest.raises(UserError, match="there already"):
            convert(spec, out, form)  # type: ignore[arg-type]
    assert file.read_text() == "mine"
    with pytest.raises(UserError, match="unknown form 'visaul': did you mean 'visual'"):
        convert(spec, tmp_path / "x", "visaul")  # type: ignore[arg-type]


@pytest.mark.needs_data
def test_mini_clip_is_converted_to_float32_and_back(mini_clip: Any, tmp_path: Path) -> None:
    convert("mini-clip", tmp_path / "folder")
    again = load_clip(f"local-dir:{tmp_path / 'folder'}")
    assert again.fingerprint == mini_clip.fingerprint
    assert again.logit_scale == mini_clip.logit_scale
    convert("mini-clip", tmp_path / "visual.pt", "visual")
    over = load_clip(f"{tmp_path / 'visual.pt'}@mini-clip")
    assert over.fingerprint == mini_clip.fingerprint


def test_fp16_halves_the_file_and_loads_in_float32(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    """The weights are those rounded to float16, the logit scale is untouched; whole numbers stay whole."""
    clip = load_clip(f"local-dir:{folders['modified-resnet']}")
    save_open_clip(clip.model, clip.config, tmp_path / "full")
    save_open_clip(clip.model, clip.config, tmp_path / "half", stored="fp16")
    name = "open_clip_model.safetensors"
    full, half = ((tmp_path / kind / name).stat().st_size for kind in ("full", "half"))
    assert half < 0.55 * full
    again, ours = plain(tmp_path / "half"), load_clip(f"local-dir:{tmp_path / 'half'}")
    for key, tensor in clip.model.state_dict().items():
        kept = not tensor.is_floating_point() or key == "logit_scale"
        expected = tensor if kept else tensor.half().float()
        assert torch.equal(again.state_dict()[key], expected), key
        assert torch.equal(ours.model.state_dict()[key], expected), key
    assert ours.logit_scale == clip.logit_scale


def test_weights_beyond_the_range_of_fp16_are_refused(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    """Before anything is written: an infinite weight would give NaN much later."""
    clip = load_clip(f"local-dir:{folders['vit']}")
    model: Any = clip.model
    with torch.no_grad():
        model.visual.proj[0, 0] = 7e4
    with pytest.raises(UserError, match=r"visual\.proj holds values beyond float16's range"):
        save_open_clip(clip.model, clip.config, tmp_path / "out", stored="fp16")
    assert not (tmp_path / "out").exists()
