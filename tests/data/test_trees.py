"""Facts of data/trees.py and data/binaries.py: each public set from a small folder of its true form."""

import hashlib
import json
import pickle
from typing import get_args

import numpy as np
import pytest
import torchvision
from PIL import Image
from scipy.io import savemat

from zsrobust.data import load_card, open_set
from zsrobust.data.cards import TorchvisionSource
from zsrobust.data.trees import TREES, download_tree
from zsrobust.errors import EnvironmentFault, UserError


@pytest.fixture
def place(tmp_path, monkeypatch, encoded):
    """Return a function that writes picture number n to a path below ZSROBUST_DATA."""
    monkeypatch.setenv("ZSROBUST_DATA", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def write(path, number=0):
        file = tmp_path / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(encoded(number, "png" if file.suffix == ".png" else "jpg"))
        return file

    return write


def _text(folder, path, lines):
    file = folder / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(f"{line}\n" for line in lines))


def _stored(name):
    """Return the names that a card's list has, as the set's own files have them."""
    return load_card(name).stored_names()


def _check(opened, count, **names):
    """Every picture is read, ids are unique and sorted nowhere by the machine, labels have names."""
    assert len(opened) == count == len(set(opened.ids))
    assert {opened.picture(i).mode for i in range(min(count, 3))} == {"RGB"}
    assert all(0 <= label < len(opened.classnames) for label in opened.labels)
    for label, name in names.items():
        assert opened.classnames[int(label[1:])] == name
    problems = opened.check()
    assert len([p for p in problems if "images, the card says" in p]) == 1
    assert not any("class names of the files" in p for p in problems)


def test_caltech101_leaves_the_background_out(tmp_path, place):
    """Capitals come first in the order of the classes; names are folder names by the paper's rule."""
    for k, name in enumerate([*_stored("caltech101"), "BACKGROUND_Google"]):
        place(f"caltech101/101_ObjectCategories/{name}/image_0001.jpg", k)
    opened = open_set("caltech101")
    _check(opened, 101, k0="faces", k1="faces easy", k2="leopards", k4="accordion", k100="yin yang")
    assert opened.ids[0] == "Faces/image_0001.jpg"


def test_caltech256_keeps_the_clutter(tmp_path, place):
    """A stray file and a folder within a class are no pictures of it."""
    for k, name in enumerate(_stored("caltech256")):
        place(f"caltech256/256_ObjectCategories/{name}/{k + 1:03d}_0001.jpg", k)
    place("caltech256/256_ObjectCategories/056.dog/greg/vision309/056_0002.jpg")
    (tmp_path / "caltech256/256_ObjectCategories/198.spider/RENAME2").write_text("")
    opened = open_set("caltech256")
    _check(opened, 257, k0="ak47", k14="bonsai", k250="airplanes", k231="t shirt", k256="clutter")


def test_sun397_takes_names_and_order_from_its_own_list(tmp_path, place):
    """/b/balcony/exterior is "balcony exterior"; the order is that of the lines."""
    lines = []
    for k, name in enumerate(_stored("sun397")):
        folder = f"/{name[0]}/{name.replace(' ', '_')}"
        if name == "balcony exterior":
            folder = "/b/balcony/exterior"
        lines.append(folder)
        place(f"SUN397{folder}/sun_a{k:05d}.jpg", k)
    _text(tmp_path, "SUN397/ClassName.txt", lines)
    opened = open_set("sun397")
    _check(opened, 397, k0="abbey", k28="balcony exterior", k396="youth hostel")
    assert opened.ids[28] == "b/balcony/exterior/sun_a00028.jpg"
    lines[0], lines[1] = lines[1], lines[0]
    _text(tmp_path, "SUN397/ClassName.txt", lines)
    other = open_set("sun397")
    assert other.classnames[:2] == ["airplane cabin", "abbey"]
    assert any("2 class names of the files are not those of the card" in p for p in other.check())
    _text(tmp_path, "SUN397/ClassName.txt", [*lines, "/z/zoo"])
    with pytest.raises(UserError, match=r"zoo: no such folder; .* is not the whole set"):
        open_set("sun397")


def test_cars_are_read_from_matlab_files(tmp_path, place):
    """Labels count from 1 there; the year is cut off the names, and equal ones are told with the card."""
    base = tmp_path / "cars/stanford_cars"
    (base / "devkit").mkdir(parents=True)
    names = np.array(_stored("cars"), dtype=object)
    savemat(base / "devkit/cars_meta.mat", {"class_names": names})
    kinds = [("fname", object), ("class", np.int64)]
    for split, at in (("test", "cars_test_annos_withlabels"), ("train", "devkit/cars_train_annos")):
        rows = np.array([("00001.jpg", 196), ("00002.jpg", 1)], dtype=kinds)
        savemat(base / f"{at}.mat", {"annotations": rows})
        for k in (1, 2):
            place(f"cars/stanford_cars/cars_{split}/0000{k}.jpg", k)
    opened = open_set("cars")
    assert opened.labels == [195, 0]
    assert opened.ids == ["cars_test/00001.jpg", "cars_test/00002.jpg"]
    _check(opened, 2, k0="am general hummer suv", k195="smart fortwo convertible")
    assert open_set("cars", "train").ids[0] == "cars_train/00001.jpg"
    assert not any("stands for" in p for p in opened.check())


def test_food101_is_read_from_its_lists(tmp_path, place):
    """Classes are the sorted keys of the split's list."""
    listed = {}
    for k, name in enumerate(reversed(_stored("food101"))):
        listed[name] = [f"{name}/{k}"]
        place(f"food101/food-101/images/{name}/{k}.jpg", k)
    _text(tmp_path, "food101/food-101/meta/test.json", [json.dumps(listed)])
    opened = open_set("food101")
    _check(opened, 101, k0="apple pie", k16="cheese plate", k17="cheesecake")
    assert opened.ids[0] == "apple_pie/100.jpg"
    _text(tmp_path, "food101/food-101/meta/test.json", ["[1"])
    with pytest.raises(UserError, match=r"test\.json: damaged"):
        open_set("food101")


def test_pets_are_read_from_their_lists(tmp_path, place):
    """A line is NAME LABEL SPECIES BREED, labels from 1; the part behind the last _ is a number."""
    lines = []
    for k, name in enumerate(_stored("pets")):
        file = f"{name.replace(' ', '_')}_7"
        lines.append(f"{file} {k + 1} 1 1")
        place(f"pets/oxford-iiit-pet/images/{file}.jpg", k)
    _text(tmp_path, "pets/oxford-iiit-pet/annotations/test.txt", lines)
    opened = open_set("pets")
    _check(opened, 37, k0="abyssinian", k36="yorkshire terrier")
    assert opened.ids[1] == "American_Bulldog_7.jpg"
    _text(tmp_path, "pets/oxford-iiit-pet/annotations/test.txt", lines[:-1])
    with pytest.raises(UserError, match="pets: 36 classes in its files, the card says 37"):
        open_set("pets")


def test_flowers_are_read_from_matlab_files(tmp_path, place):
    """setid names the pictures of a split, imagelabels all labels, from 1."""
    base = tmp_path / "flowers102/flowers-102"
    base.mkdir(parents=True)
    savemat(base / "imagelabels.mat", {"labels": np.array([[77, 1, 102]])})
    savemat(base / "setid.mat", {"tstid": [[3, 2]], "trnid": [[1]], "valid": [[1]]})
    for k in (1, 2, 3):
        place(f"flowers102/flowers-102/jpg/image_{k:05d}.jpg", k)
    opened = open_set("flowers102")
    assert opened.ids == ["image_00003.jpg", "image_00002.jpg"]
    assert opened.labels == [101, 0]
    _check(opened, 2, k0="pink primrose", k76="passion flower", k101="blackberry lily")
    assert open_set("flowers102", "train").labels == [76]


@pytest.mark.parametrize("inside", ["dtd/dtd", "dtd"])
def test_dtd_is_partition_one(tmp_path, place, inside):
    """labels/test1.txt, below torchvision's double folder or as the archive unpacks."""
    names = _stored("dtd")
    for k, name in enumerate(names):
        place(f"{inside}/images/{name}/{name}_0001.jpg", k)
    _text(tmp_path, f"{inside}/labels/test1.txt", [f"{n}/{n}_0001.jpg" for n in names])
    _text(tmp_path, f"{inside}/labels/test2.txt", ["banded/other.jpg"])
    opened = open_set("dtd")
    _check(opened, 47, k0="banded", k30="polka dotted")


def test_eurosat_has_the_names_of_the_card(tmp_path, place):
    """Label i is the i-th folder by name; with one missing all labels behind it were wrong."""
    folders = [
        "AnnualCrop",
        "Forest",
        "HerbaceousVegetation",
        "Highway",
        "Industrial",
        "Pasture",
        "PermanentCrop",
        "Residential",
        "River",
        "SeaLake",
    ]
    for k, name in enumerate(folders):
        place(f"eurosat/2750/{name}/{name}_1.jpg", k)
    opened = open_set("eurosat")
    _check(opened, 10, k0="annual crop land", k9="a sea or a lake")
    for file in (tmp_path / "eurosat/2750/Forest").iterdir():
        file.unlink()
    (tmp_path / "eurosat/2750/Forest").rmdir()
    with pytest.raises(UserError, match="9 classes in its files, the card says 10"):
        open_set("eurosat")


def test_aircraft_names_may_hold_spaces_and_slashes(tmp_path, place):
    """A line is NUMBER NAME; hyphens and slashes stay, Boeing is put before a 7."""
    names = _stored("fgvc_aircraft")
    data = "fgvc_aircraft/fgvc-aircraft-2013b/data"
    _text(tmp_path, f"{data}/variants.txt", names)
    lines = [f"{k:07d} {name}" for k, name in enumerate(names)]
    _text(tmp_path, f"{data}/images_variant_test.txt", lines)
    for k in range(100):
        place(f"{data}/images/{k:07d}.jpg", k)
    opened = open_set("fgvc_aircraft")
    _check(opened, 100, k0="boeing 707-320", k37="bae 146-200", k72="f-16a/b", k99="yak-42")


def test_country211_has_a_folder_a_country(tmp_path, place):
    """Names are the card's, by the order of the two-letter codes."""
    for k in range(211):
        place(f"country211/test/{chr(65 + k // 26)}{chr(65 + k % 26)}/1.jpg", k)
    _check(open_set("country211"), 211, k0="Andorra", k210="Zimbabwe")


def test_stl10_is_read_by_seeking(tmp_path, monkeypatch):
    """The file holds planes, column by column; the stored bytes are rows of RGB pixels."""
    pixels = np.random.default_rng(0).integers(0, 256, (3, 96, 96, 3), dtype=np.uint8)
    base = tmp_path / "stl10/stl10_binary"
    base.mkdir(parents=True)
    files = {
        "test_X.bin": pixels.transpose(0, 3, 2, 1).tobytes(),
        "test_y.bin": bytes([10, 1, 3]),
    }
    published = []
    for name, content in files.items():
        (base / name).write_bytes(content)
        published.append([name, hashlib.md5(content, usedforsecurity=False).hexdigest()])
    names = _stored("stl10")
    _text(base, "class_names.txt", names)
    monkeypatch.setenv("ZSROBUST_DATA", str(tmp_path))
    monkeypatch.setattr(torchvision.datasets.STL10, "test_list", published)
    opened = open_set("stl10")
    assert (opened.ids, opened.labels) == (["test/00000", "test/00001", "test/00002"], [9, 0, 2])
    for k in range(3):
        assert np.array_equal(np.asarray(opened.picture(k)), pixels[k])
        assert opened.stored(k) == pixels[k].tobytes()
    assert (opened.resolution, opened.native_size) == ("native", 96)
    published[0][1] = "0" * 32
    with pytest.raises(UserError, match=r"test_X\.bin: not the published file"):
        open_set("stl10")


def test_cifar100_is_read_from_its_pickles(tmp_path, monkeypatch):
    """Fine labels, from ZSROBUST_DATA itself as torchvision's root; underscores become spaces."""
    base = tmp_path / "cifar-100-python"
    base.mkdir()
    rows = np.random.default_rng(1).integers(0, 256, (3, 3072), dtype=np.uint8)

    def write(name, content):
        data = pickle.dumps(content, protocol=2)
        (base / name).write_bytes(data)
        return [name, hashlib.md5(data, usedforsecurity=False).hexdigest()]

    batch = {"data": rows, "fine_labels": [1, 99, 0], "coarse_labels": [0, 0, 0]}
    published = torchvision.datasets.CIFAR100
    monkeypatch.setattr(published, "train_list", [write("train", batch)])
    monkeypatch.setattr(published, "test_list", [write("test", batch)])
    name, md5 = write("meta", {"fine_label_names": _stored("cifar100")})
    meta = {"filename": name, "key": "fine_label_names", "md5": md5}
    monkeypatch.setattr(published, "meta", meta)
    monkeypatch.setenv("ZSROBUST_DATA", str(tmp_path))
    opened = open_set("cifar100")
    assert [opened.classnames[label] for label in opened.labels] == [
        "aquarium fish",
        "worm",
        "apple",
    ]
    assert opened.texts(["clip-benchmark"])[0][1] == "aquarium_fish"
    assert np.array_equal(np.asarray(opened.picture(1)).transpose(2, 0, 1).ravel(), rows[1])


@pytest.mark.parametrize("form", ["official", "sorted"])
def test_tiny_imagenet_in_both_forms(tmp_path, place, form):
    """Labels are the wnids by name, though wnids.txt is not sorted; the official val is one folder."""
    base = tmp_path / "tiny_imagenet/tiny-imagenet-200"
    wnids = [f"n{k:08d}" for k in range(200)]
    _text(base, "wnids.txt", reversed(wnids))
    _text(base, "words.txt", [f"{w}\tRed_Thing {k}, other" for k, w in enumerate(wnids)])
    for k, wnid in enumerate(wnids):
        place(f"tiny_imagenet/tiny-imagenet-200/train/{wnid}/images/{wnid}_0.JPEG", k)
        at = f"{wnid}/images" if form == "sorted" else "images"
        place(f"tiny_imagenet/tiny-imagenet-200/val/{at}/val_{k}.JPEG", k)
    if form == "official":
        lines = [f"val_{k}.JPEG\t{wnid}\t0\t0\t1\t1" for k, wnid in enumerate(wnids)]
        _text(base, "val/val_annotations.txt", lines)
    opened = open_set("tiny_imagenet")
    _check(opened, 200, k0="red thing 0", k199="red thing 199")
    assert opened.labels == list(range(200))
    assert opened.ids[7] == "n00000007/val_7.JPEG"
    assert open_set("tiny_imagenet", "train").ids[7] == "n00000007/n00000007_0.JPEG"


def test_hateful_memes_joins_both_test_parts(tmp_path, place):
    """A line without a label, as before the end of the challenge, is refused with its number."""
    for number in (101, 102, 103):
        place(f"hateful_memes/img/{number}.png", number)
    rows = [{"id": n, "img": f"img/{n}.png", "label": n % 2, "text": "x"} for n in (101, 102, 103)]
    _text(tmp_path, "hateful_memes/test_seen.jsonl", map(json.dumps, rows[:1]))
    _text(tmp_path, "hateful_memes/test_unseen.jsonl", map(json.dumps, rows[1:]))
    opened = open_set("hateful_memes")
    assert opened.labels == [1, 0, 1]
    assert opened.paper_resize == "squash"
    _check(opened, 3, k0="meme", k1="hatespeech meme")
    assert len(open_set("hateful_memes", "test_unseen")) == 2
    del rows[2]["label"]
    _text(tmp_path, "hateful_memes/test_unseen.jsonl", map(json.dumps, rows[1:]))
    with pytest.raises(UserError, match=r"test_unseen\.jsonl, line 2: no img, or no label 0 or 1"):
        open_set("hateful_memes")


@pytest.mark.parametrize(
    ("card", "folder", "classes"),
    [("imagenet_r", "imagenet-r", 200), ("imagenet_sketch", "sketch", 1000)],
)
def test_sets_of_wnid_folders_without_a_split(tmp_path, place, card, folder, classes):
    """ImageNet-R and ImageNet-Sketch unpack to WNID folders; one missing is refused."""
    for k in range(classes):
        file = tmp_path / folder / f"n{k:08d}" / "a_0.jpg"
        file.parent.mkdir(parents=True)
        file.write_bytes(b"")
    opened = open_set(card)
    assert len(opened) == classes
    assert opened.labels == list(range(classes))
    assert opened.classnames[0] == {"imagenet_r": "goldfish", "imagenet_sketch": "tench"}[card]
    (tmp_path / folder / "n00000000" / "a_0.jpg").unlink()
    (tmp_path / folder / "n00000000").rmdir()
    with pytest.raises(UserError, match=f"{classes - 1} classes, expected {classes}"):
        open_set(card)


@pytest.mark.parametrize("name", ["pcam", "vtab/eurosat", "cars", "sun397"])
def test_the_layout_of_clip_benchmark_serves_too(tmp_path, monkeypatch, write_tar, encoded, name):
    """A card's split is called test there; names come from its own list only where the card says so."""
    card = load_card(name)
    (source,) = (s for s in card.sources if s.kind == "wds")
    root = tmp_path / source.wds
    write_tar(root / "test/0.tar", [("s0.png", encoded(0)), ("s0.cls", b"1")])
    raw = card.stored_names()
    _text(root, "classnames.txt", raw if card.names_of == "source" else ["x"] * card.classes)
    monkeypatch.setenv("ZSROBUST_DATA", str(tmp_path))
    opened = open_set(name)
    assert opened.classnames == card.names()
    assert opened.split == card.split
    assert opened.texts(["clip-benchmark"])[0] == card.preset("clip-benchmark")[0]


def test_a_damaged_list_is_one_line(tmp_path, place):
    """The set and what to do stand in it."""
    _text(tmp_path, "pets/oxford-iiit-pet/annotations/test.txt", ["only_a_name"])
    with pytest.raises(UserError, match="the lists of OxfordIIITPet are damaged") as caught:
        open_set("pets")
    assert "\n" not in str(caught.value)


def test_every_card_of_a_layout_has_an_opener():
    """What a card may say is what can be opened."""
    kinds = get_args(TorchvisionSource.model_fields["dataset"].annotation)
    assert set(kinds) - {"CIFAR10", "CIFAR100"} <= set(TREES)


def test_a_download_is_left_to_torchvision(tmp_path, monkeypatch, place):
    """Its class fetches and checks; what it unpacked is opened; faults are worded."""
    calls = []

    class Fetching:
        def __init__(self, root, split, download):
            calls.append((split, download))
            if not list(tmp_path.glob("cache/zsrobust/dtd/dtd/dtd/images/*")):
                raise OSError(101, "Network is unreachable")

    monkeypatch.setattr(torchvision.datasets, "DTD", Fetching)
    with pytest.raises(EnvironmentFault, match=r"cannot bring DTD to .*: Network is unreachable"):
        open_set("dtd", download=True)
    for name in _stored("dtd"):
        place(f"cache/zsrobust/dtd/dtd/dtd/images/{name}/{name}_0.jpg")
    root = tmp_path / "cache/zsrobust/dtd"
    lines = [f"{name}/{name}_0.jpg" for name in _stored("dtd")]
    _text(root, "dtd/dtd/labels/test1.txt", lines)
    assert len(download_tree("DTD", root, "test").storage.ids) == 47
    assert calls == [("test", True)] * 2
    assert download_tree("StanfordCars", root, "test") is None
    Fetching.__init__ = lambda *_, **__: (_ for _ in ()).throw(RuntimeError("File not found"))
    with pytest.raises(UserError, match="not the published archive of DTD"):
        download_tree("DTD", root, "test")


def test_grey_pictures_become_rgb(tmp_path, place):
    """Caltech-101 has some."""
    for name in _stored("caltech101"):
        file = place(f"caltech101/101_ObjectCategories/{name}/image_0001.jpg")
        Image.new("L", (8, 8), 99).save(file)
    assert open_set("caltech101").picture(0).getpixel((0, 0)) == (99, 99, 99)
