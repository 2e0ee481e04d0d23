"""Facts of data/tars.py, on tars of the true form."""

import pytest

from zsrobust.data import open_set
from zsrobust.errors import UserError
from zsrobust.hashing import image_hash


def test_a_set_is_read_as_stored(wds, encoded):
    """Ids, labels, names and bytes are those written, over all shards in their order."""
    opened = open_set(f"wds:{wds()}")
    assert (opened.name, opened.split, opened.classnames) == ("pets", "test", ["cat", "dog"])
    assert opened.ids == [f"s{number:07d}" for number in range(4)]
    assert opened.labels == [0, 1, 0, 1]
    assert [opened.stored(number) for number in range(4)] == [encoded(n) for n in range(4)]
    assert opened.captions(0) is None
    assert opened.templates is None
    assert opened.native_size is None
    assert opened.resolution == "model"
    assert opened.check() == []


def test_shards_are_taken_by_number(wds):
    """10.tar comes after 9.tar, not after 1.tar."""
    labels = [0, 1] * 11
    opened = open_set(f"wds:{wds(labels=labels, shards=11)}")
    assert opened.ids == sorted(opened.ids)


def test_templates_of_clip_benchmark_are_read(wds):
    """The place {c} of CLIP benchmark becomes the {} of this package."""
    root = wds()
    (root / "zeroshot_classification_templates.txt").write_text("a photo of a {c}.\n\nart of {}.\n")
    assert open_set(f"wds:{root}").templates == ["a photo of a {}.", "art of {}."]
    (root / "zeroshot_classification_templates.txt").write_text("a photo.\n")
    with pytest.raises(UserError, match="no place for the class name"):
        open_set(f"wds:{root}")


def test_repeated_keys_get_their_shard_in_front(wds, write_tar, encoded):
    """Where a key repeats across shards, all ids are shard/key."""
    root = wds(shards=1)
    write_tar(root / "test/1.tar", [("s0000000.png", encoded(9)), ("s0000000.cls", b"1")])
    (root / "test/nshards.txt").write_text("2\n")
    opened = open_set(f"wds:{root}")
    assert opened.ids == ["0/s0000000", "0/s0000001", "0/s0000002", "0/s0000003", "1/s0000000"]


def test_a_folder_of_tars_is_opened_directly(wds, write_tar, encoded, tmp_path):
    """Class names may stand in the parent; then set and split are named by the folders."""
    root = wds()
    opened = open_set(f"wds:{root / 'test'}")
    assert (opened.name, opened.split, len(opened)) == ("pets", "test", 4)
    assert open_set(f"wds:{root / 'test'}", "test").ids == opened.ids
    with pytest.raises(UserError, match="no splits, but split 'val'"):
        open_set(f"wds:{root / 'test'}", "val")
    bare = tmp_path / "bare"
    write_tar(bare / "0.tar", [("a.jpg", encoded(0, "jpg")), ("a.cls", b"0")])
    (bare / "classnames.txt").write_text("cat\n")
    assert open_set(f"wds:{bare}").name == "bare"


def test_captions_make_a_set_without_labels(write_tar, encoded, tmp_path):
    """A .txt holds captions, one a line; no .cls means no labels and no class names."""
    members = [("x/1.jpg", encoded(0, "jpg")), ("x/1.txt", "a cat\r\n\n a dög \n".encode())]
    members += [("x/2.PNG", encoded(1)), ("README", b"passed over")]
    write_tar(tmp_path / "pairs/train/0.tar", members)
    opened = open_set(f"wds:{tmp_path / 'pairs'}", "train")
    assert opened.ids == ["x/1", "x/2"]
    assert opened.labels is None
    assert opened.classnames is None
    assert opened.captions(0) == ["a cat", "a dög"]
    assert opened.captions(1) is None


def test_the_key_ends_at_the_first_dot(write_tar, encoded, tmp_path):
    """a.seg.png is no picture of sample a, as webdataset has it; ./ in front does not matter."""
    members = [("./a.png", encoded(0)), ("./a.seg.png", encoded(1)), ("./._a.png", b"of a Mac")]
    write_tar(tmp_path / "s/test/0.tar", members)
    opened = open_set(f"wds:{tmp_path / 's'}")
    assert opened.ids == ["a"]
    assert opened.stored(0) == encoded(0)


CORRUPT = {
    "no image": ([("a.cls", b"0")], "0.tar: sample 'a' has no image"),
    "other kind": ([("a.npy", b"0"), ("a.cls", b"0")], r"sample 'a' has no image \(found: .npy\)"),
    "two images": ([("a.png", b""), ("a.jpg", b""), ("a.cls", b"0")], "'a' has two images"),
    "no label": ([("a.png", b""), ("a.cls", b"0"), ("b.png", b"")], "'b' has no label"),
    "never a label": ([("a.png", b"")], "'a' has no label"),
    "two labels": ([("a.png", b""), ("a.cls", b"0"), ("a.cls", b"1")], "'a' has two .cls"),
    "no number": ([("a.png", b""), ("a.cls", b"cat")], "'a': its .cls holds b'cat'"),
    "too large": ([("a.png", b""), ("a.cls", b"2")], "'a' has label 2, but there are 2 class"),
    "negative": ([("a.png", b""), ("a.cls", b"-1")], "'a' has label -1"),
    "nothing": ([], "hold no samples"),
}


@pytest.mark.parametrize("case", CORRUPT)
def test_a_sample_that_breaks_the_layout_is_named(case, write_tar, tmp_path):
    """Shard and key stand in one line."""
    members, message = CORRUPT[case]
    write_tar(tmp_path / "s/test/0.tar", members)
    (tmp_path / "s/classnames.txt").write_text("cat\ndog\n")
    with pytest.raises(UserError, match=message) as caught:
        open_set(f"wds:{tmp_path / 's'}")
    assert "\n" not in str(caught.value)


def test_every_cut_of_a_tar_is_seen(wds):
    """Wherever a tar is cut off before its end mark, it is refused: never is it a smaller set."""
    root = wds(shards=1)
    shard = root / "test/0.tar"
    whole = shard.read_bytes()
    end = len(whole.rstrip(b"\0")) // 512 * 512 + 512  # the last block with content
    for cut in range(0, end + 1, 256):
        shard.write_bytes(whole[:cut])
        with pytest.raises(UserError, match=r"0.tar: damaged or cut off"):
            open_set(f"wds:{root}")


def test_a_damaged_header_is_seen(wds):
    """Rubbish in place of a later header is not taken for the end of the tar."""
    root = wds(shards=1)
    shard = root / "test/0.tar"
    content = bytearray(shard.read_bytes())
    at = content.index(b"s0000002.png")
    content[at : at + 512] = b"\xa5" * 512
    shard.write_bytes(content)
    with pytest.raises(UserError, match="cut off after sample 's0000001'"):
        open_set(f"wds:{root}")


def test_a_file_that_shrinks_after_opening_is_an_error(wds):
    """A short read is never handed over as an image."""
    root = wds(shards=1)
    opened = open_set(f"wds:{root}")
    shard = root / "test/0.tar"
    shard.write_bytes(shard.read_bytes()[:700])
    with pytest.raises(UserError, match="cut off within sample 's0000003'"):
        opened.stored(3)


def test_missing_shards_and_splits_are_named(wds, tmp_path):
    """nshards.txt must agree; an unknown split names the ones that exist."""
    root = wds()
    with pytest.raises(UserError, match=r"unknown split of .*'tset': did you mean 'test'"):
        open_set(f"wds:{root}", "tset")
    (root / "test/1.tar").unlink()
    with pytest.raises(UserError, match="says '2', but 1 tars"):
        open_set(f"wds:{root}")
    with pytest.raises(UserError, match="no such folder"):
        open_set(f"wds:{tmp_path / 'nowhere'}")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no tar in it"):
        open_set(f"wds:{tmp_path / 'empty'}")


def test_labels_need_class_names(wds):
    """A labelled set without classnames.txt, or with a hole in it, is refused."""
    root = wds()
    (root / "classnames.txt").write_text("cat\n\ndog\n")
    with pytest.raises(UserError, match="line 2: empty"):
        open_set(f"wds:{root}")
    (root / "classnames.txt").unlink()
    with pytest.raises(UserError, match=r"no classnames.txt"):
        open_set(f"wds:{root}")


def test_a_corrupt_picture_is_named(write_tar, tmp_path):
    """The error names set and id; the stored bytes are still to be had."""
    write_tar(tmp_path / "s/test/0.tar", [("a.png", b"no picture"), ("a.txt", b"a cat")])
    opened = open_set(f"wds:{tmp_path / 's'}")
    assert image_hash(opened.stored(0))
    with pytest.raises(UserError, match=r"^s, a: not a picture that Pillow can read"):
        opened.picture(0)


def test_webdataset_reads_the_same(wds):
    """The reference reader finds the same keys, labels and bytes in the same order."""
    from webdataset import WebDataset

    root = wds(labels=(1, 0, 0, 1, 1), shards=2)
    opened = open_set(f"wds:{root}")
    urls = [str(root / "test" / f"{number}.tar") for number in range(2)]
    rows = list(WebDataset(urls, shardshuffle=False))
    assert [row["__key__"] for row in rows] == opened.ids
    assert [int(row["cls"]) for row in rows] == opened.labels
    assert [row["png"] for row in rows] == [opened.stored(i) for i in range(len(opened))]
