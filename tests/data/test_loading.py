"""Facts of data/loading.py."""

import io
import re
import tracemalloc

import numpy as np
import pytest
import torch
from PIL import Image

from zsrobust.data import batches, batches_of, open_set
from zsrobust.errors import UserError
from zsrobust.hashing import image_hash
from zsrobust.preprocess import Preprocess


def _rows(found):
    return [(b.ids, b.images, b.labels, b.captions, b.hashes, b.indices) for b in found]


def _equal(one, other):
    return all(
        torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b
        for x, y in zip(one, other, strict=True)
        for a, b in zip(x, y, strict=True)
    )


def _geometry(size=4):
    half = (0.5, 0.5, 0.5)
    return Preprocess(size=(size, size), mean=half, std=half).geometry()


def test_batches_hold_what_was_asked_for(pets):
    """Order, ids, labels, hashes and pixels are those of the indices; the last batch is smaller."""
    indices = [5, 0, 3, 1, 6]
    found = list(batches(pets, indices, None, 2))
    assert [batch.indices for batch in found] == [[5, 0], [3, 1], [6]]
    assert [len(batch) for batch in found] == [2, 2, 1]
    for batch in found:
        assert batch.images.dtype == torch.uint8
        assert batch.images.shape[1:] == (3, 8, 8)
        assert batch.labels.dtype == torch.int64
        assert batch.captions is None
        for row, index in enumerate(batch.indices):
            assert batch.ids[row] == pets.ids[index]
            assert batch.labels[row] == pets.labels[index]
            assert batch.hashes[row] == image_hash(pets.stored(index))
            pixels = np.asarray(pets.picture(index))
            assert np.array_equal(batch.images[row].permute(1, 2, 0).numpy(), pixels)
    assert list(batches(pets, [], None, 2)) == []
    with pytest.raises(UserError, match="batch size 0"):
        batches(pets, indices, None, 0)


def test_workers_change_nothing(pets):
    """Two workers give the batches that none gives, in their order, through a model's geometry."""
    lists = [[6, 2], [0], [5, 1, 3], [2, 4]]
    alone, helped = (_rows(batches_of(pets, lists, _geometry(), n)) for n in (0, 2))
    assert [row[5] for row in alone] == lists
    assert alone[0][1].shape == (2, 3, 4, 4)
    assert _equal(alone, helped)


def test_an_error_in_a_worker_is_one_line(write_tar, encoded, tmp_path):
    """The same error as without workers, and the worker's traceback is not its message."""
    members = [("a.png", encoded(0)), ("a.txt", b"x"), ("b.png", b"broken"), ("b.txt", b"y")]
    write_tar(tmp_path / "s/test/0.tar", members)
    opened = open_set(f"wds:{tmp_path / 's'}")
    texts = []
    for workers in (0, 1):
        with pytest.raises(UserError, match=r"^s, b: not a picture that Pillow can read") as caught:
            list(batches(opened, [0, 1], None, 1, workers))
        texts.append(str(caught.value))
    # Pillow's own words hold the address of a buffer.
    assert len({re.sub("0x[0-9a-f]+", "", text) for text in texts}) == 1
    assert not any("\n" in text for text in texts)


def test_index_lists_are_taken_as_they_are_needed(pets):
    """A generator that never ends is no obstacle: a run can stop and go on in mid-epoch."""

    def endless():
        while True:
            yield [1, 0]

    stream = batches_of(pets, endless(), None)
    assert next(stream).indices == [1, 0]
    assert next(stream).indices == [1, 0]


def test_the_global_random_stream_is_untouched(pets):
    """Loading draws nothing from it."""
    before = torch.get_rng_state()
    list(batches(pets, range(7), None, 3))
    assert torch.equal(torch.get_rng_state(), before)


def test_native_pixels_must_share_a_size(write_tar, encoded, tmp_path):
    """Different sizes are refused at native resolution and fine through a geometry."""
    members = [("a.png", encoded(0)), ("a.txt", b"x"), ("b.png", encoded(1, size=(6, 9)))]
    write_tar(tmp_path / "s/test/0.tar", members)
    opened = open_set(f"wds:{tmp_path / 's'}")
    with pytest.raises(UserError, match="s, b: 9 x 6 pixels in a batch of 8 x 8"):
        list(batches(opened, [0, 1], None, 2))
    batch = next(batches(opened, [0, 1], _geometry(), 2))
    assert batch.labels is None
    assert batch.captions == [["x"], []]


def test_memory_stays_flat_over_ten_thousand_samples(wds):
    """A pass over 10,000 samples holds a few batches at a time, not the pictures seen."""
    opened = open_set(f"wds:{wds()}")
    pictures = batches(opened, [0, 1, 2, 3] * 2500, _geometry(32), 50)  # 30 MB of pixels in all
    next(pictures)
    tracemalloc.start()
    count = sum(len(batch) for batch in pictures)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert count == 9950
    assert peak < 4e6


def _turned():
    """A 4 x 2 picture, red on the left, to be turned by a quarter as its EXIF says."""
    pixels = np.zeros((2, 4, 3), np.uint8)
    pixels[:, :2] = (255, 0, 0)
    exif = Image.Exif()
    exif[0x0112] = 6
    return Image.fromarray(pixels), {"format": "PNG", "exif": exif}


def _alpha():
    return Image.new("RGBA", (2, 2), (10, 20, 30, 0)), {"format": "PNG"}


def _palette():
    picture = Image.new("P", (2, 2), 1)
    picture.putpalette([0, 0, 0, 10, 20, 30])
    return picture, {"format": "PNG"}


def _deep():
    return Image.fromarray(np.full((2, 2), 100 * 257, np.uint16)), {"format": "PNG"}


KINDS = {
    "grey": (lambda: (Image.new("L", (2, 2), 7), {"format": "PNG"}), (7, 7, 7)),
    "palette": (_palette, (10, 20, 30)),
    "alpha": (_alpha, (10, 20, 30)),
    "16 bit": (_deep, (100, 100, 100)),
    "cmyk": (
        lambda: (Image.new("CMYK", (8, 8), (255, 255, 255, 255)), {"format": "JPEG"}),
        (0, 0, 0),
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_pictures_of_any_kind_become_rgb(kind, write_tar, tmp_path):
    """Grey, palette, transparent, 16-bit and CMYK pictures arrive as the RGB they show."""
    make, colour = KINDS[kind]
    picture, how = make()
    buffer = io.BytesIO()
    picture.save(buffer, **how)
    ending = how["format"].lower()
    write_tar(tmp_path / "s/test/0.tar", [(f"a.{ending}", buffer.getvalue()), ("a.txt", b"x")])
    batch = next(batches(open_set(f"wds:{tmp_path / 's'}"), [0], None, 1))
    assert batch.images.shape[1] == 3
    assert batch.images[0, :, 0, 0].tolist() == pytest.approx(colour, abs=1)


def test_a_picture_is_turned_by_its_exif_orientation(tmp_path):
    """What was stored lying is handed over standing."""
    picture, how = _turned()
    (tmp_path / "s").mkdir()
    picture.save(tmp_path / "s/a.png", **how)
    batch = next(batches(open_set(f"folder:{tmp_path / 's'}"), [0], None, 1))
    assert batch.images.shape == (1, 3, 4, 2)
    assert batch.images[0, 0, :2].eq(255).all()
    assert batch.images[0, 0, 2:].eq(0).all()
