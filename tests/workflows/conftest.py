"""What tests of studies and collections share: a set of unseen classes, and which hardenings train."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from zsrobust.training import loop


@pytest.fixture
def short_recipe(toy_recipe: dict[str, Any]) -> dict[str, Any]:
    """Return a hardening of the tiny model in a few small steps, with held-out images."""
    return {
        **toy_recipe,
        "validation": {"split": "val", "limit": 20, "attack": "pgd-2", "every": "never"},
        "threat": {"eps": "4/255"},
        "epochs": 1,
        "batch": 8,
        "device": "cpu",
        "threads": 1,
    }


@pytest.fixture(scope="module")
def other_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve plain pictures of three classes that the source does not have."""
    root = tmp_path_factory.mktemp("other-set")
    for i, name in enumerate(["cyan cup", "pink tie", "black hat"]):
        (root / name).mkdir()
        for j in range(4):
            Image.new("RGB", (16, 16), (80 * i, 60 * j, 255 - 80 * i)).save(
                root / name / f"{j}.png"
            )
    return root


def hardenings(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return a list that names each hardening that trains from here on."""
    trained: list[str] = []
    train = loop._train

    def noting(recipe: Any, run: Any, *rest: Any) -> None:
        trained.append(run.folder.name)
        train(recipe, run, *rest)

    monkeypatch.setattr(loop, "_train", noting)
    return trained
