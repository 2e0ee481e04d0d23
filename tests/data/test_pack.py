"""Facts of data/pack.py."""

import os

import numpy as np
import pytest
from PIL import Image

from zsrobust.data import open_set, pack
from zsrobust.data.sets import ImageSet
from zsrobust.data.storage import ArrayImages, Opened
from zsrobust.errors import EnvironmentFault, UserError


def test_a_packed_set_is_the_set(pets, tmp_path):
    """Bytes, labels, names and order come back; keys are the indices; the files are these."""
    out = pack(pets, tmp_path / "out", shard_size=3)
    again = open_set(f"wds:{out}")
    assert again.ids == [f"{index:06d}" for index in range(7)]
    assert again.labels == pets.labels
    assert again.classnames == pets.classnames
    assert [again.stored(i) for i in range(7)] == [pets.stored(i) for i in range(7)]
    files = sorted(p.relative_to(out).as_posix() for p in out.rglob("*") if p.is_file())
    assert files == [
        "classnames.txt",
        "test/0.tar",
        "test/1.tar",
        "test/2.tar",
        "test/nshards.txt",
    ]
    assert (out / "test/nshards.txt").read_text() == "3\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "pets"]


def test_the_same_set_gives_the_same_bytes(pets, tmp_path):
    """Nothing of the day or the machine enters a tar."""
    one, other = (pack(pets, tmp_path / name) for name in ("one", "other"))
    assert (one / "test/0.tar").read_bytes() == (other / "test/0.tar").read_bytes()


def test_a_subset_keeps_the_indices_as_keys(pets, tmp_path):
    """The key leads back to the sample; the order is the one given."""
    again = open_set(f"wds:{pack(pets, tmp_path / 'out', indices=[5, 0, 2])}")
    assert again.ids == ["000005", "000000", "000002"]
    assert again.labels == [1, 0, 0]
    assert again.stored(0) == pets.stored(5)


@pytest.mark.parametrize("ending", ["jpg", "png", "webp"])
def test_encoded_pictures_are_kept_verbatim(ending, wds, tmp_path):
    """No picture is decoded and encoded again."""
    of = open_set(f"wds:{wds(ending=ending)}")
    again = open_set(f"wds:{pack(of, tmp_path / 'out')}")
    assert [again.stored(i) for i in range(4)] == [of.stored(i) for i in range(4)]


def test_captions_and_templates_travel(write_tar, encoded, wds, tmp_path):
    """Captions stay lines of a .txt; a set of pairs is marked as CLIP benchmark marks it."""
    members = [("a.jpg", encoded(0, "jpg")), ("a.txt", "a cat\nein Kätzchen".encode())]
    write_tar(tmp_path / "pairs/train/0.tar", members)
    of = open_set(f"wds:{tmp_path / 'pairs'}", "train")
    out = pack(of, tmp_path / "out")
    again = open_set(f"wds:{out}", "train")
    assert again.captions(0) == ["a cat", "ein Kätzchen"]
    assert again.labels is None
    assert (out / "dataset_type.txt").read_text() == "retrieval\n"
    root = wds()
    (root / "zeroshot_classification_templates.txt").write_text("a {c}.\n")
    out = pack(open_set(f"wds:{root}"), tmp_path / "texts")
    assert (out / "zeroshot_classification_templates.txt").read_text() == "a {c}.\n"
    assert open_set(f"wds:{out}").templates == ["a {}."]


def test_arrays_and_other_formats_become_png(tmp_path):
    """Pixels come back exactly, also where bare pixels look like the beginning of a JPEG."""
    pixels = np.random.default_rng(0).integers(0, 256, (2, 5, 5, 3), dtype=np.uint8)
    pixels[0, 0, 0] = (0xFF, 0xD8, 0xFF)
    of = ImageSet(Opened("a", "test", ArrayImages(pixels, ["x", "y"], [0, 0]), ["cat"]))
    again = open_set(f"wds:{pack(of, tmp_path / 'out')}")
    assert again.stored(0).startswith(b"\x89PNG")
    assert np.array_equal(np.asarray(again.picture(0)), pixels[0])
    (tmp_path / "bmp").mkdir()
    Image.fromarray(pixels[1]).save(tmp_path / "bmp/a.bmp")
    bare = open_set(f"wds:{pack(open_set('folder:' + str(tmp_path / 'bmp')), tmp_path / 'out2')}")
    assert np.array_equal(np.asarray(bare.picture(0)), pixels[1])


def test_nothing_is_overwritten_and_nothing_half_written(pets, tmp_path, monkeypatch):
    """A full folder is refused, an empty one taken; an error in the middle leaves no trace."""
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine.txt").write_text("kept")
    with pytest.raises(UserError, match="exists and is not empty"):
        pack(pets, out)
    (out / "mine.txt").unlink()
    pack(pets, out)

    def full(*_):
        raise OSError(28, "No space left on device")

    before = sorted(tmp_path.iterdir())
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(EnvironmentFault, match="No space left on device; free some space"):
        pack(pets, tmp_path / "second")
    assert sorted(tmp_path.iterdir()) == before


def test_wrong_indices_are_refused(pets, tmp_path):
    """None at all, or one of them twice."""
    for indices in ([], [1, 1]):
        with pytest.raises(UserError, match="each one once"):
            pack(pets, tmp_path / "out", indices)
    with pytest.raises(UserError, match="shard size 0"):
        pack(pets, tmp_path / "out", shard_size=0)
