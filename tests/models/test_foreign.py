"""Checkpoints of other authors: each form loads over its base, or is refused with the reason."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from zsrobust.errors import UserError
from zsrobust.models import Clip, load_clip, overlay, read_tower

Tensors = dict[str, Tensor]


@pytest.fixture
def base(folders: dict[str, Path]) -> str:
    return f"local-dir:{folders['vit-quickgelu']}"


@pytest.fixture
def tower(base: str) -> Tensors:
    """Another tower than the base's, under OpenAI's names, half precision as theirs."""
    generator = torch.Generator().manual_seed(11)
    visual: Any = load_clip(base).model.visual
    tensors = {
        name: torch.randn(tensor.shape, generator=generator).half()
        for name, tensor in visual.state_dict().items()
    }
    assert {"conv1.weight", "class_embedding", "proj", "ln_pre.weight"} <= set(tensors)
    assert "transformer.resblocks.1.attn.in_proj_weight" in tensors
    return tensors


def prefixed(tensors: Tensors, prefix: str) -> Tensors:
    return {prefix + name: tensor for name, tensor in tensors.items()}


def authors(tensors: Tensors) -> dict[str, Any]:
    """What the TeCoA authors' script saves (facts 3.6)."""
    return {
        "epoch": 10,
        "state_dict": {"module.pad_up": torch.zeros(1, 3, 30, 224)},
        "add_prompter": {"module.add_prompt": torch.zeros(0)},
        "best_acc1": np.float64(36.3),
        "optimizer": {"state": {}, "param_groups": [{"lr": 1e-5, "params": [0, 1]}]},
        "vision_encoder_state_dict": tensors,
    }


FORMS: dict[str, Callable[[Tensors], Any]] = {
    "bare": lambda t: t,
    "visual.": lambda t: prefixed(t, "visual."),
    "module.": lambda t: prefixed(t, "module."),
    "module.visual.": lambda t: prefixed(t, "module.visual."),
    "state_dict": lambda t: {"epoch": 1, "state_dict": prefixed(t, "module.")},
    "authors": authors,
    "authors, parallel": lambda t: authors(prefixed(t, "module.")),
}


def is_tower_over_base(clip: Clip, tower: Tensors, base: str) -> bool:
    """Image tower from the file, everything else from the base."""
    expected = load_clip(base).model.state_dict()
    expected |= {f"visual.{name}": tensor.float() for name, tensor in tower.items()}
    found = clip.model.state_dict()
    return set(found) == set(expected) and all(
        torch.equal(tensor, expected[name].to(tensor.dtype)) for name, tensor in found.items()
    )


@pytest.mark.parametrize("form", FORMS)
def test_every_form_loads(form: str, tower: Tensors, base: str, tmp_path: Path) -> None:
    file = tmp_path / "model.pth.tar"
    torch.save(FORMS[form](tower), file)
    clip = load_clip(f"{file}@{base}")
    assert clip.spec == f"{file}@{base}"
    assert not any(p.requires_grad for p in clip.model.parameters())
    assert is_tower_over_base(clip, tower, base)
    assert clip.fingerprint != load_clip(base).fingerprint


def test_safetensors_load(tower: Tensors, base: str, tmp_path: Path) -> None:
    file = tmp_path / "tower.safetensors"
    save_file(prefixed(tower, "visual."), file)
    assert is_tower_over_base(load_clip(f"{file}@{base}"), tower, base)


def test_tower_of_a_modified_resnet_loads(folders: dict[str, Path], tmp_path: Path) -> None:
    base = f"local-dir:{folders['modified-resnet']}"
    visual: Any = load_clip(base).model.visual
    tower = {k: v + 1 for k, v in visual.state_dict().items()}
    torch.save(tower, tmp_path / "rn.pt")
    assert is_tower_over_base(load_clip(f"{tmp_path / 'rn.pt'}@{base}"), tower, base)


def refused(spec: str) -> str:
    with pytest.raises(UserError) as caught:
        load_clip(spec)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_authors_form_over_plain_gelu_is_refused(
    tower: Tensors, folders: dict[str, Path], tmp_path: Path
) -> None:
    torch.save(authors(tower), tmp_path / "mine.pth.tar")
    message = refused(f"{tmp_path / 'mine.pth.tar'}@local-dir:{folders['vit']}")
    assert "trained with QuickGELU, the model builds GELU" in message
    assert "ViT-B-32-quickgelu:openai" in message


@pytest.mark.parametrize(
    ("name", "right"),
    [
        ("tecoa_eps_2.pt", "ViT-L-14-quickgelu:openai"),
        ("vitb32_fare_eps_1.pt", "ViT-B-32-quickgelu:openai"),
        ("simclip4.pt", "ViT-L-14-quickgelu:openai"),
    ],
)
def test_known_files_over_plain_gelu_are_refused(
    name: str, right: str, tower: Tensors, folders: dict[str, Path], tmp_path: Path
) -> None:
    """Only the name tells: the same tensors under another name load."""
    torch.save(tower, tmp_path / name)
    assert right in refused(f"{tmp_path / name}@local-dir:{folders['vit']}")
    (tmp_path / name).rename(tmp_path / "mine.pt")
    load_clip(f"{tmp_path / 'mine.pt'}@local-dir:{folders['vit']}")


def test_tensors_that_do_not_fit_are_named(tower: Tensors, base: str, tmp_path: Path) -> None:
    file = tmp_path / "tower.pt"
    del tower["proj"]
    tower["prompt"] = torch.zeros(3)
    tower["conv1.weight"] = torch.zeros(32, 3, 14, 14)
    torch.save(tower, file)
    message = refused(f"{file}@{base}")
    assert "1 missing (proj)" in message
    assert "1 left over (prompt)" in message
    assert "conv1.weight is (32, 3, 14, 14) for (32, 3, 16, 16)" in message


def test_overlay_is_all_or_nothing(tower: Tensors, base: str, tmp_path: Path) -> None:
    clip = load_clip(base)
    before = clip.fingerprint
    with pytest.raises(UserError, match="missing"):
        overlay(clip, {k: v for k, v in tower.items() if k != "proj"}, tmp_path / "tower.pt")
    assert clip.fingerprint == before


def test_other_forms_are_refused_with_the_reason(base: str, tmp_path: Path) -> None:
    file = tmp_path / "other.pt"
    whole = load_clip(base).model.state_dict()
    for content, words in (
        (whole, "a whole CLIP"),
        ({"vision_model.embeddings.class_embedding": torch.zeros(2)}, "transformers"),
        ({"conv1.weight": torch.zeros(2), "note": "text"}, "no tensors: note"),
        ([torch.zeros(2)], "type list, not a table"),
        ({}, "an empty table"),
    ):
        torch.save(content, file)
        assert words in refused(f"{file}@{base}")


def test_read_tower_gives_bare_names(tower: Tensors, tmp_path: Path) -> None:
    torch.save(authors(prefixed(tower, "module.visual.")), tmp_path / "t.pt")
    found = read_tower(tmp_path / "t.pt")
    assert list(found) == list(tower)
