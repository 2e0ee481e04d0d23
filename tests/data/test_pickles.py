"""Facts of data/pickles.py, on small batches of CIFAR-10's true form."""

import errno
import hashlib
import io
import os
import pickle
import struct

import numpy as np
import pytest
import torchvision

from zsrobust.data import batches, open_set
from zsrobust.errors import EnvironmentFault, UserError
from zsrobust.hashing import image_hash

NAMES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


class _Python2Pickler(pickle._Pickler):
    """Writes byte strings as Python 2 did, the form in which CIFAR's batches are published."""

    dispatch = pickle._Pickler.dispatch.copy()

    def save_bytes(self, value):
        self.write(pickle.BINSTRING + struct.pack("<i", len(value)) + value)
        self.memoize(value)

    dispatch[bytes] = save_bytes


@pytest.fixture
def cifar(tmp_path, monkeypatch):
    """Write batches of ten images, and make their checksums the published ones."""
    folder = tmp_path / "cifar10/cifar-10-batches-py"
    folder.mkdir(parents=True)

    def write(name, content):
        buffer = io.BytesIO()
        _Python2Pickler(buffer, protocol=2).dump(content)
        data = buffer.getvalue()
        (folder / name).write_bytes(data)
        return hashlib.md5(data, usedforsecurity=False).hexdigest()

    lists = {"train_list": [], "test_list": []}
    for number, name in enumerate([*(f"data_batch_{k}" for k in range(1, 6)), "test_batch"]):
        rows = np.random.default_rng(number).integers(0, 256, (10, 3072), dtype=np.uint8)
        content = {
            b"batch_label": name.encode(),
            b"labels": [(3 * k + number) % 10 for k in range(10)],
            b"data": rows,
            b"filenames": [f"{k}.png".encode() for k in range(10)],
        }
        which = "test_list" if name == "test_batch" else "train_list"
        lists[which].append([name, write(name, content)])
    meta = {b"num_cases_per_batch": 10, b"label_names": [n.encode() for n in NAMES]}
    checksum = write("batches.meta", meta)
    for which, value in lists.items():
        monkeypatch.setattr(torchvision.datasets.CIFAR10, which, value)
    monkeypatch.setattr(
        torchvision.datasets.CIFAR10,
        "meta",
        {"filename": "batches.meta", "key": "label_names", "md5": checksum},
    )
    monkeypatch.setenv("ZSROBUST_DATA", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return folder


def test_cifar_is_read_from_its_batches(cifar):
    """Ids count within the split; stored bytes are RGB row by row; labels are the batch's."""
    opened = open_set("cifar10")
    assert (opened.name, opened.split, opened.resolution) == ("cifar10", "test", "native")
    assert opened.native_size == 32
    assert opened.ids[:2] == ["test/00000", "test/00001"]
    assert opened.labels == [(3 * k + 5) % 10 for k in range(10)]
    assert opened.classnames == NAMES
    rows = np.random.default_rng(5).integers(0, 256, (10, 3072), dtype=np.uint8)
    pixels = rows[3].reshape(3, 32, 32)
    assert opened.stored(3) == pixels.transpose(1, 2, 0).tobytes()
    batch = next(batches(opened, [3], None, 1))
    assert np.array_equal(batch.images[0].numpy(), pixels)
    assert batch.hashes == [image_hash(opened.stored(3))]
    train = open_set("cifar10", "train")
    assert len(train) == 50
    assert train.ids[-1] == "train/00049"
    assert opened.check() == ["10 images, the card says 10000 for split 'test'."]


def test_cifar_in_the_cache_is_found(cifar, tmp_path):
    """Without a data folder the user's cache is looked into."""
    cifar.parent.rename(tmp_path / "moved")
    (tmp_path / "cache/zsrobust").mkdir(parents=True)
    (tmp_path / "moved").rename(tmp_path / "cache/zsrobust/cifar10")
    assert len(open_set("cifar10")) == 10


def test_changed_batches_are_refused(cifar):
    """A batch with another checksum is not unpickled."""
    (cifar / "test_batch").write_bytes(b"other")
    with pytest.raises(UserError, match="not the published batches") as caught:
        open_set("cifar10")
    assert "\n" not in str(caught.value)


def test_a_batch_that_cannot_be_read_is_a_fault_of_the_machine(cifar, monkeypatch):
    """The file is named, and no network is spoken of."""

    def fail(fpath, chunk_size=0):
        raise OSError(errno.EIO, os.strerror(errno.EIO), fpath)

    monkeypatch.setattr("torchvision.datasets.utils.calculate_md5", fail)
    with pytest.raises(
        EnvironmentFault, match=r"cannot read .*data_batch_1: Input/output error"
    ) as e:
        open_set("cifar10")
    assert "network" not in str(e.value)


@pytest.mark.parametrize(
    ("error", "kind", "words"),
    [
        (
            OSError(101, "Network is unreachable"),
            EnvironmentFault,
            "Network is unreachable; see to",
        ),
        (OSError("a proxy\nsaid no"), EnvironmentFault, "a proxy said no; see to the network"),
        (RuntimeError("corrupted"), UserError, "not the published archive of CIFAR10 .corrupted"),
    ],
)
def test_a_download_that_fails_is_worded(tmp_path, monkeypatch, error, kind, words):
    """The network and the disk are faults, an archive with another checksum is not."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))

    def fail(*_, **__):
        raise error

    monkeypatch.setattr(torchvision.datasets.CIFAR10, "download", fail)
    with pytest.raises(kind, match=words) as caught:
        open_set("cifar10", download=True)
    assert "\n" not in str(caught.value)
    assert str(tmp_path / "zsrobust" / "cifar10") in str(caught.value)


def test_a_missing_set_says_how_to_bring_it(tmp_path, monkeypatch):
    """No source found: the card's own words, in one line."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(UserError, match=r"DATA is not set.*cifar-10-python.tar.gz") as caught:
        open_set("cifar10")
    assert "\n" not in str(caught.value)
