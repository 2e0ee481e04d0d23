"""What stands beside the weights: prompts come back with the model, factors can be taken out again."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from zsrobust.adaptations import build
from zsrobust.adaptations.prompts import prompt_facts, prompt_tensors, without_prompts
from zsrobust.errors import UserError
from zsrobust.models import (
    convert,
    load_clip,
    load_unmerged,
    save_hardened,
    save_open_clip,
    save_visual,
)

PROMPTS: dict[str, tuple[str, dict[str, Any]]] = {
    "padding": ("pixel", {"width": 3}),
    "before": ("pixel", {"width": 3, "added": "before"}),
    "random-patch": ("pixel", {"kind": "random-patch", "width": 5}),
    "token": ("token", {"tokens": 3}),
    "deep": ("token", {"tokens": 2, "where": "prepend", "depth": "every-block"}),
    "both": ("pixel+token", {"width": 2, "tokens": 2, "position": "trained"}),
}


def saved(folder: Path, out: Path, name: str, settings: dict[str, Any]) -> Any:
    """Adapt the tiny model of `folder`, move what moves, write it as run:OUT; return the Clip in memory."""
    clip = load_clip(f"local-dir:{folder}")
    adaptation = build(name, settings)
    moving = adaptation.apply(clip.model, seed=4)
    generator = torch.Generator().manual_seed(6)
    with torch.no_grad():
        for _, parameter in moving:
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    factors = adaptation.finish(clip.model)
    record = {
        "adaptation": name,
        "base": f"local-dir:{folder}",
        "settings": adaptation.settings(),
        "fingerprint": clip.fingerprint,
    }
    save_hardened(clip.model, clip.config, out, record, clip.tokenizer, factors=factors)
    clip.model.requires_grad_(False)
    return clip


def features(clip: Any) -> torch.Tensor:
    images = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return clip.image_encoder()(images)


@pytest.mark.parametrize("case", PROMPTS)
def test_a_run_comes_back_with_its_prompt(
    tiny_clip_folder: Path, tmp_path: Path, case: str
) -> None:
    """Features, numbers and fingerprint are equal; the weights beside them are the base's, bit for bit."""
    name, settings = PROMPTS[case]
    first = saved(tiny_clip_folder, tmp_path / "run", name, settings)
    again, base = load_clip(f"run:{tmp_path}/run"), load_clip(f"local-dir:{tiny_clip_folder}")
    assert torch.equal(features(again), features(first))
    assert not torch.allclose(features(again), features(base), atol=1e-3)
    assert again.fingerprint == first.fingerprint != base.fingerprint
    assert prompt_facts(again.model) == prompt_facts(first.model)
    plain = load_file(tmp_path / "run" / "model" / "open_clip_model.safetensors")
    assert set(plain) == set(base.model.state_dict())
    assert all(torch.equal(plain[n], t) for n, t in base.model.state_dict().items())
    assert not any(p.requires_grad for p in again.model.parameters())


def test_the_fingerprint_knows_what_no_tensor_says(tiny_clip_folder: Path) -> None:
    """The same numbers, added before or after normalisation, appended or elsewhere placed, are other models."""
    seen = set()
    for settings in (
        {"width": 3},
        {"width": 3, "added": "before"},
    ):
        clip = load_clip(f"local-dir:{tiny_clip_folder}")
        build("pixel", settings).apply(clip.model, seed=4)
        seen.add(clip.fingerprint)
    for where in ("append", "prepend"):
        clip = load_clip(f"local-dir:{tiny_clip_folder}")
        build("token", {"tokens": 2, "where": where}).apply(clip.model, seed=4)
        seen.add(clip.fingerprint)
    clip = load_clip(f"local-dir:{tiny_clip_folder}")
    build("pixel", {"kind": "random-patch", "width": 5}).apply(clip.model, seed=4)
    before = clip.fingerprint
    corner = clip.model.visual.pixel_prompt.corner
    clip.model.visual.pixel_prompt.corner = ((corner[0] + 1) % 12, corner[1])
    assert clip.fingerprint != before
    with torch.no_grad():
        clip.model.visual.pixel_prompt.patch[0, 0, 0] += 1
    seen |= {before, clip.fingerprint}
    assert len(seen) == 6


def test_a_plain_models_fingerprint_is_that_of_before_there_were_prompts(
    tiny_clip_folder: Path,
) -> None:
    """Cells that were measured stay those of their model."""
    from zsrobust.hashing import sha256_json, sha256_tensors
    from zsrobust.models.load import essential_config

    clip = load_clip(f"local-dir:{tiny_clip_folder}")
    content = {
        "tensors": sha256_tensors(clip.model.state_dict()),
        "architecture": essential_config(clip.config["model_cfg"]),
    }
    assert clip.fingerprint == sha256_json(content)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def change(path: Path) -> None:
    tensors = load_file(path)
    name = sorted(tensors)[0]
    tensors[name] = tensors[name] + 1
    save_file(tensors, path)


def not_finite(path: Path) -> None:
    tensors = load_file(path)
    save_file({name: torch.full_like(t, float("nan")) for name, t in tensors.items()}, path)


def lose_one(path: Path) -> None:
    tensors = load_file(path)
    tensors.pop(sorted(tensors)[0])
    save_file(tensors, path)


def add_one(path: Path) -> None:
    save_file({**load_file(path), "more": torch.zeros(2)}, path)


DAMAGES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "gone": (Path.unlink, "no such file"),
    "cut": (cut, "not a whole safetensors file"),
    "empty": (lambda path: path.write_bytes(b""), "an empty file"),
    "text": (lambda path: path.write_text("prompt"), "safetensors"),
    "changed": (change, "belongs to another run, or was changed"),
    "nan": (not_finite, "belongs to another run, or was changed"),
    "less": (lose_one, "belongs to another run, or was changed"),
    "more": (add_one, "belongs to another run, or was changed"),
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("case", ["both", "lora"])
def test_damaged_files_are_refused_in_one_line(
    tiny_clip_folder: Path, tmp_path: Path, damage: str, case: str
) -> None:
    """The file is named, and what to do; a run of LoRA still loads, for its weights are whole."""
    name, settings = PROMPTS.get(case, (case, {"rank": 2}))
    saved(tiny_clip_folder, tmp_path / "run", name, settings)
    file = "lora.safetensors" if case == "lora" else "prompts.safetensors"
    act, message = DAMAGES[damage]
    act(tmp_path / "run" / "model" / file)
    load: Callable[[str], Any] = load_unmerged if case == "lora" else load_clip
    with pytest.raises(UserError, match=message) as caught:
        load(f"run:{tmp_path}/run")
    assert file in str(caught.value)
    assert "\n" not in str(caught.value)
    if case == "lora":
        load_clip(f"run:{tmp_path}/run")


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda record: record.pop("prompts"), "says nothing of prompts.safetensors"),
        (lambda record: record.update(prompts=5), "says nothing of prompts.safetensors"),
        (lambda record: record.pop("settings"), "no table 'settings'"),
        (lambda record: record["settings"].update(width=4), "do not fit|is another one"),
        (
            lambda record: record["settings"].update(widht=2),
            "unknown setting .* did you mean 'width'",
        ),
        (lambda record: record["settings"].update(tokens=-1), "tokens must be a whole number"),
        (lambda record: record["prompts"]["facts"].update(pixel_prompt=1), "was changed"),
        (lambda record: record.update(adaptation="full"), "stands beside adaptation 'full'"),
        (lambda record: record.update(adaptation="token"), "unknown setting of adaptation token"),
    ],
)
def test_a_record_that_does_not_belong_to_the_prompt_is_refused(
    tiny_clip_folder: Path, tmp_path: Path, edit: Callable[[Any], Any], message: str
) -> None:
    saved(tiny_clip_folder, tmp_path / "run", *PROMPTS["both"])
    path = tmp_path / "run" / "model" / "adaptation.json"
    record = json.loads(path.read_text())
    edit(record)
    path.write_text(json.dumps(record))
    with pytest.raises(UserError, match=message) as caught:
        load_clip(f"run:{tmp_path}/run")
    assert "\n" not in str(caught.value)


def test_a_prompt_of_another_run_is_refused(tiny_clip_folder: Path, tmp_path: Path) -> None:
    """Of the same form, but other numbers: the hash in adaptation.json says so."""
    saved(tiny_clip_folder, tmp_path / "a", "token", {"tokens": 3})
    saved(tiny_clip_folder, tmp_path / "b", "token", {"tokens": 3, "std": 0.5})
    shutil.copy(tmp_path / "a/model/prompts.safetensors", tmp_path / "b/model/prompts.safetensors")
    with pytest.raises(UserError, match="belongs to another run"):
        load_clip(f"run:{tmp_path}/b")


def test_a_patch_outside_the_image_is_refused(tiny_clip_folder: Path, tmp_path: Path) -> None:
    """Also where its hash was made to fit: it would be cut off."""
    from zsrobust.models.adapters import noted

    saved(tiny_clip_folder, tmp_path / "run", *PROMPTS["random-patch"])
    path = tmp_path / "run" / "model" / "adaptation.json"
    record = json.loads(path.read_text())
    facts = record["prompts"]["facts"]
    facts["pixel_prompt"]["corner"] = [12, 0]
    record["prompts"] = noted(load_file(path.parent / "prompts.safetensors"), facts)
    path.write_text(json.dumps(record))
    with pytest.raises(UserError, match="another one than the settings describe"):
        load_clip(f"run:{tmp_path}/run")


def test_the_folder_of_a_prompted_model_is_no_model_by_itself(
    tiny_clip_folder: Path, tmp_path: Path
) -> None:
    """Plain open_clip loads the base from it; here local-dir: says what it would miss."""
    import open_clip

    clip = saved(tiny_clip_folder, tmp_path / "run", *PROMPTS["both"])
    with pytest.raises(UserError, match=r"beside the weights stand prompts .* write run:"):
        load_clip(f"local-dir:{tmp_path}/run/model")
    plain = open_clip.create_model(f"local-dir:{tmp_path}/run/model")
    base = without_prompts(clip.model.state_dict())
    assert all(torch.equal(tensor, base[name]) for name, tensor in plain.state_dict().items())
    for write in (
        lambda: convert(f"run:{tmp_path}/run", tmp_path / "out"),
        lambda: convert(f"run:{tmp_path}/run", tmp_path / "out", "visual"),
        lambda: save_open_clip(clip.model, clip.config, tmp_path / "out"),
        lambda: save_visual(clip, tmp_path / "out"),
    ):
        with pytest.raises(UserError, match="carries prompts, which are added to every image"):
            write()
        assert not (tmp_path / "out").exists()


def test_a_foreign_tower_is_not_laid_over_a_prompted_base(
    tiny_clip_folder: Path, tmp_path: Path
) -> None:
    saved(tiny_clip_folder, tmp_path / "run", *PROMPTS["token"])
    save_visual(load_clip(f"local-dir:{tiny_clip_folder}"), tmp_path / "tower.pt")
    with pytest.raises(UserError, match="carries prompts"):
        load_clip(f"{tmp_path}/tower.pt@run:{tmp_path}/run")


def test_lora_is_merged_and_can_be_taken_out_again(tiny_clip_folder: Path, tmp_path: Path) -> None:
    """Merged and unmerged features agree to 1e-5; without the factors the weights are the base's."""
    import open_clip

    merged = saved(tiny_clip_folder, tmp_path / "run", "lora", {"rank": 2})
    base = load_clip(f"local-dir:{tiny_clip_folder}")
    assert torch.equal(features(load_clip(f"run:{tmp_path}/run")), features(merged))
    apart = load_unmerged(f"run:{tmp_path}/run")
    assert float((features(apart) - features(merged)).abs().max()) < 1e-5
    assert not torch.allclose(features(apart), features(base), atol=1e-3)
    tensors = apart.model.state_dict()
    for name, tensor in base.model.state_dict().items():
        head, _, weight = name.rpartition(".")
        under = f"{head}.parametrizations.{weight}.original"
        found = tensors.get(under, tensors.get(name))
        torch.testing.assert_close(found, tensor, rtol=0, atol=1e-5)
    moving = {name for name, p in apart.model.named_parameters() if p.requires_grad}
    assert moving
    assert all(".parametrizations." in name and not name.endswith("original") for name in moving)
    plain = open_clip.create_model(f"local-dir:{tmp_path}/run/model")
    assert all(torch.equal(t, merged.model.state_dict()[n]) for n, t in plain.state_dict().items())
    for spec in (f"local-dir:{tiny_clip_folder}", "tiny"):
        with pytest.raises(UserError, match="only what a hardening wrote has factors"):
            load_unmerged(spec)


def test_a_model_saved_over_another_leaves_nothing_of_it(
    tiny_clip_folder: Path, tmp_path: Path
) -> None:
    """Prompts and factors of what stood there before are gone."""
    out = tmp_path / "run"
    for name, settings, beside in (
        *((*PROMPTS["both"], "prompts.safetensors"),),
        ("lora", {"rank": 2}, "lora.safetensors"),
        ("full", {}, None),
    ):
        saved(tiny_clip_folder, out, name, settings)
        found = {file.name for file in (out / "model").iterdir()}
        assert found - {
            "open_clip_config.json",
            "open_clip_model.safetensors",
            "adaptation.json",
        } == ({beside} if beside else set())
        load_clip(f"run:{out}")


def test_what_is_noted_must_be_what_the_model_carries(
    tiny_clip_folder: Path, tmp_path: Path
) -> None:
    clip = load_clip(f"local-dir:{tiny_clip_folder}")
    with pytest.raises(UserError, match="noted for a model with no prompts"):
        save_hardened(clip.model, clip.config, tmp_path, {"adaptation": "token", "base": "a"})
    build("token", {"tokens": 1}).apply(clip.model)
    assert prompt_tensors(clip.model)
    with pytest.raises(UserError, match="noted for a model with token_prompt"):
        save_hardened(clip.model, clip.config, tmp_path, {"adaptation": "full", "base": "a"})
    assert not (tmp_path / "model").exists()
