"""Facts of data/folders.py."""

import pytest

from zsrobust.data import load_card, open_set
from zsrobust.data.folders import open_imagenet
from zsrobust.errors import UserError


def _write(root, names, encoded):
    for number, name in enumerate(names):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(number, "jpg"))


def test_class_folders_give_labels_by_sorted_name(tmp_path, encoded):
    """Names become lower case with spaces; ids are relative paths; other files do not count."""
    _write(tmp_path / "zoo", ["Sea_lion/b.JPG", "Sea_lion/a.jpg", "ant-eater/deep/c.jpg"], encoded)
    (tmp_path / "zoo/Sea_lion/notes.md").write_text("no image")
    (tmp_path / "zoo/.cache").mkdir()
    opened = open_set(f"folder:{tmp_path / 'zoo'}")
    assert (opened.name, opened.split) == ("zoo", "test")
    assert opened.classnames == ["sea lion", "ant eater"]
    assert opened.ids == ["Sea_lion/a.jpg", "Sea_lion/b.JPG", "ant-eater/deep/c.jpg"]
    assert opened.labels == [0, 0, 1]
    assert opened.stored(1) == encoded(0, "jpg")
    (tmp_path / "zoo/classnames.txt").write_text("seal\nanteater\n")
    assert open_set(f"folder:{tmp_path / 'zoo'}").classnames == ["seal", "anteater"]
    (tmp_path / "zoo/classnames.txt").write_text("seal\n")
    with pytest.raises(UserError, match=r"has 1 names, but .* has 2 class folders"):
        open_set(f"folder:{tmp_path / 'zoo'}")


def test_split_folders(tmp_path, encoded):
    """DIR/SPLIT/class is taken where it exists; a split is never taken for a class."""
    root = tmp_path / "zoo"
    _write(root, ["train/cat/1.jpg", "train/dog/2.jpg", "val/dog/3.jpg"], encoded)
    (root / "classnames.txt").write_text("a cat\na dog\n")
    opened = open_set(f"folder:{root}", "train")
    assert (opened.name, opened.split, opened.ids) == ("zoo", "train", ["cat/1.jpg", "dog/2.jpg"])
    assert opened.classnames == ["a cat", "a dog"]
    with pytest.raises(UserError, match=r"unknown split of .*'test'.*allowed: train, val"):
        open_set(f"folder:{root}")
    _write(tmp_path / "plain", ["cat/1.jpg", "dog/2.jpg"], encoded)
    with pytest.raises(UserError, match="has no splits, but split 'train'"):
        open_set(f"folder:{tmp_path / 'plain'}", "train")


def test_a_bare_folder_has_no_labels(tmp_path, encoded):
    """Captions stand in a .txt beside an image."""
    _write(tmp_path / "mine", ["b.jpg", "a.jpg"], encoded)
    (tmp_path / "mine/a.txt").write_text("a cat\nan animal\n")
    opened = open_set(f"folder:{tmp_path / 'mine'}")
    assert opened.ids == ["a.jpg", "b.jpg"]
    assert opened.labels is None
    assert opened.classnames is None
    assert opened.captions(0) == ["a cat", "an animal"]
    assert opened.captions(1) is None


def test_folders_that_are_no_set_are_refused(tmp_path, encoded):
    """Nothing, no picture, and pictures beside class folders: each in one line."""
    with pytest.raises(UserError, match="no such folder"):
        open_set(f"folder:{tmp_path / 'nowhere'}")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no picture in it"):
        open_set(f"folder:{tmp_path / 'empty'}")
    _write(tmp_path / "both", ["1.jpg", "cat/2.jpg"], encoded)
    with pytest.raises(UserError, match=r"1.jpg lies beside class folders"):
        open_set(f"folder:{tmp_path / 'both'}")


def test_imagenet_labels_are_sorted_wnids_sorted_or_flat(tmp_path, encoded):
    """The official flat images with LOC_val_solution.csv give the same set as wnid folders."""
    wnid_of = {1: "n02", 2: "n01", 3: "n03", 4: "n01"}
    names = {number: f"ILSVRC2012_val_{number:08d}.JPEG" for number in wnid_of}
    files = [f"{wnid_of[number]}/{names[number]}" for number in wnid_of]
    _write(tmp_path / "sorted/val", files, encoded)
    _write(tmp_path / "flat/val", names.values(), encoded)
    texts = ["tench", "goldfish", "shark"]
    by_folder = open_imagenet(tmp_path / "sorted", "val", texts)
    assert by_folder.storage.labels == [0, 0, 1, 2]
    assert by_folder.storage.ids[0] == "n01/ILSVRC2012_val_00000002.JPEG"
    with pytest.raises(UserError, match=r"put LOC_val_solution.csv into"):
        open_imagenet(tmp_path / "flat", "val", texts)
    rows = [f"ILSVRC2012_val_{n:08d},{w} 1 2 3 4 {w} 5 6 7 8 " for n, w in wnid_of.items()]
    solution = "\n".join(["ImageId,PredictionString", *rows])
    (tmp_path / "flat/LOC_val_solution.csv").write_text(solution)
    flat = open_imagenet(tmp_path / "flat", "val", texts)
    assert flat.storage.ids == by_folder.storage.ids
    assert flat.storage.labels == by_folder.storage.labels
    for index in range(4):
        assert flat.storage.stored(index) == by_folder.storage.stored(index)
    with pytest.raises(UserError, match="3 classes, expected 2"):
        open_imagenet(tmp_path / "sorted", "val", texts[:2])


def test_the_imagenet_card_opens_a_folder_of_a_thousand_classes(tmp_path, encoded, monkeypatch):
    """Label i is the i-th wnid, and its name the i-th of the curated list."""
    for number in range(1000):
        folder = tmp_path / f"imagenet/val/n{number:08d}"
        folder.mkdir(parents=True)
        (folder / "ILSVRC2012_val_1.JPEG").write_bytes(b"")
    monkeypatch.setenv("ZSROBUST_DATA", str(tmp_path))
    opened = open_set("imagenet")
    assert (opened.name, opened.split, len(opened)) == ("imagenet", "val", 1000)
    assert opened.labels == list(range(1000))
    assert [opened.classnames[k] for k in (0, 1, 134, 517)] == [
        "tench",
        "goldfish",
        "crane bird",
        "construction crane",
    ]
    problems = opened.check()
    assert problems[0] == "1000 images, the card says 50000 for split 'val'."
    assert not any("stands for 2 labels" in line for line in problems)  # told with the card
    assert "'missile' (657, 744)" in load_card("imagenet").check()[1][0]
