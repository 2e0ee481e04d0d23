"""A tiny CLIP loaded once, a relative of it, and a set on which it is mostly right."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from zsrobust import data
from zsrobust.models import Clip, ZeroShotClassifier, load_clip
from zsrobust.preprocess import to_unit


@pytest.fixture(scope="session")
def tiny_clip(tiny_clip_folder: Path) -> Clip:
    """The random CLIP of 16x16 px; no test may change it."""
    return load_clip(f"local-dir:{tiny_clip_folder}")


@pytest.fixture(scope="session")
def cousin_folder(tiny_clip_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same CLIP with its image tower moved a little: right and wrong in other places."""
    from safetensors.torch import load_file, save_file

    folder = tmp_path_factory.mktemp("cousin")
    shutil.copy(tiny_clip_folder / "open_clip_config.json", folder)
    state = load_file(tiny_clip_folder / "open_clip_model.safetensors")
    generator = torch.Generator().manual_seed(5)
    for name, tensor in state.items():
        if name.startswith("visual.") and tensor.ndim > 1:
            noise = torch.randn(tensor.shape, generator=generator)
            state[name] = tensor + 0.1 * tensor.std() * noise
    save_file(state, folder / "open_clip_model.safetensors")
    return folder


@pytest.fixture(scope="session")
def predicted(tiny_clip: Clip, tiny_set_folder: Path) -> list[tuple[Path, str]]:
    """Sixty pictures, each with the folder name of the class that the tiny CLIP takes it for."""
    opened = data.open_set(f"folder:{tiny_set_folder}/train")
    whole = list(range(len(opened)))
    batch = next(data.batches(opened, whole, tiny_clip.preprocess.geometry(), len(whole)))
    classifier = ZeroShotClassifier.from_texts(tiny_clip, opened.classnames)
    with torch.no_grad():
        found = classifier(to_unit(batch.images)).argmax(1).tolist()
    folders = [name.replace(" ", "_") for name in opened.classnames]
    files = [tiny_set_folder / "train" / name for name in opened.ids]
    return [(file, folders[label]) for file, label in zip(files, found, strict=True)]


@pytest.fixture(scope="session")
def sorted_set(predicted: list[tuple[Path, str]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Those pictures sorted by what the tiny CLIP takes them for, every tenth one put into another class."""
    root = tmp_path_factory.mktemp("sorted") / "pets"
    names = sorted({name for _, name in predicted})
    assert len(names) == 5
    for i, (file, name) in enumerate(predicted):
        label = names.index(name) + (i % 10 == 9)
        folder = root / names[label % len(names)]
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, folder / f"{i:03}.png")
    return root
