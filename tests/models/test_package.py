"""The package's face: what it exports, and that asking for nothing costs nothing."""

import subprocess
import sys
from pathlib import Path

import pytest

import zsrobust.models
from zsrobust.models import model_names


def test_importing_imports_neither_torch_nor_open_clip() -> None:
    code = (
        "import sys, zsrobust.models, zsrobust.adaptations\n"
        "zsrobust.models.model_names()\n"
        "zsrobust.adaptations.build('full').settings()\n"
        "assert not {'torch', 'open_clip', 'timm', 'numpy'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_every_public_name_is_there() -> None:
    assert zsrobust.models.__all__ == sorted(zsrobust.models.__all__)
    for name in zsrobust.models.__all__:
        assert getattr(zsrobust.models, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        zsrobust.models.nothing  # noqa: B018


def test_model_names_lists_what_is_here_and_what_is_public(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ZSROBUST_MODELS", str(folders["vit"].parent))
    entries = {entry.spec: entry for entry in model_names()}
    assert entries["vit"].where == "here"
    assert entries["hf-hub:chs20/fare2-clip"].where == "public"
    assert "FARE at 2/255" in entries["hf-hub:chs20/fare2-clip"].about
    assert "Not loaded as it is" in entries["hf-hub:zw123/delta_clip_l14_224"].about
    monkeypatch.delenv("ZSROBUST_MODELS")
    assert "vit" not in {entry.spec for entry in model_names()}
