"""Small sets of the true on-disk forms, made anew for each test."""

import io
import tarfile

import numpy as np
import pytest
from PIL import Image

from zsrobust.data import open_set


def _encoded(number, ending="png", size=(8, 8)):
    pixels = np.random.default_rng(number).integers(0, 256, (*size, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format={"jpg": "JPEG"}.get(ending, ending.upper()))
    return buffer.getvalue()


def _write_tar(path, members):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


@pytest.fixture
def encoded():
    """Return the bytes of a random picture, the same for the same number."""
    return _encoded


@pytest.fixture
def write_tar():
    """Write (name, bytes) members into a tar, as any tool would."""
    return _write_tar


@pytest.fixture
def wds(tmp_path):
    """Return a function that writes a set in the layout of CLIP benchmark and gives its root."""

    def make(labels=(0, 1, 0, 1), *, shards=2, name="pets", ending="png"):
        root = tmp_path / name
        bounds = np.array_split(np.arange(len(labels)), shards)
        for shard, numbers in enumerate(bounds):
            members = []
            for number in numbers:
                stem = f"s{number:07d}"
                members.append((f"{stem}.{ending}", _encoded(number, ending)))
                members.append((f"{stem}.cls", str(labels[number]).encode()))
            _write_tar(root / "test" / f"{shard}.tar", members)
        (root / "test" / "nshards.txt").write_text(str(shards))
        (root / "classnames.txt").write_text("cat\ndog\n")
        return root

    return make


@pytest.fixture
def pets(wds):
    """Seven images of two classes, unequal in number, in two shards."""
    return open_set(f"wds:{wds(labels=(0, 1, 0, 0, 0, 1, 0))}")


@pytest.fixture(autouse=True)
def _no_data_folder(request, monkeypatch):
    if request.node.get_closest_marker("needs_data") is None:
        monkeypatch.delenv("ZSROBUST_DATA", raising=False)
