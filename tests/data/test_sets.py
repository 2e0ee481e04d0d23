"""Facts of data/sets.py: the fixed order, checks, specs, the hub's cache, suites."""

import hashlib
import os
import pickle
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from zsrobust.data import Sample, load_card, load_suite, open_set, suite_names
from zsrobust.data.sets import ImageSet
from zsrobust.data.storage import ArrayImages, Opened
from zsrobust.errors import EnvironmentFault, UserError


def _set(ids, labels, classes=4):
    storage = ArrayImages(np.zeros((len(ids), 1, 1, 3), np.uint8), ids, labels)
    names = [f"class {k}" for k in range(classes)] if labels is not None else None
    return ImageSet(Opened("made", "test", storage, names))


def _digest(name):
    return hashlib.sha256(name.encode()).hexdigest()


samples = st.dictionaries(
    st.text(st.characters(codec="utf-8"), min_size=1),
    st.integers(0, 3),
    min_size=1,
    max_size=30,
)


@given(samples)
def test_the_fixed_order_takes_classes_in_turn(labels):
    """Round r takes each class's r-th id by hash, in turn by label, exhausted ones skipped."""
    made = _set(list(labels), list(labels.values()))
    queues = [sorted((i for i in labels if labels[i] == k), key=_digest) for k in range(4)]
    expected = []
    while any(queues):
        expected += [queue.pop(0) for queue in queues if queue]
    assert [made.ids[index] for index in made.order()] == expected


@given(samples, st.randoms(use_true_random=False))
def test_the_fixed_order_is_of_the_ids_alone(labels, random):
    """The stored order does not matter, with labels and without."""
    ids = list(labels)
    shuffled = random.sample(ids, len(ids))
    for of in (labels.get, None):
        one, other = (
            _set(list(order), [of(i) for i in order] if of else None) for order in (ids, shuffled)
        )
        assert [one.ids[i] for i in one.order()] == [other.ids[i] for i in other.order()]
    unlabelled = _set(ids, None)
    assert [unlabelled.ids[i] for i in unlabelled.order()] == sorted(ids, key=_digest)


@given(samples, st.integers(1, 40), st.integers(1, 40))
def test_subsets_are_nested(labels, one, other):
    """first(n) is a prefix of first(m) for n <= m, and as even over classes as it can be."""
    made = _set(list(labels), list(labels.values()))
    small, large = sorted((one, other))
    assert made.first(large)[:small] == made.first(small)
    assert made.first(None) == made.order()
    assert sorted(made.order()) == list(range(len(made)))


def test_a_limit_below_one_is_refused(pets):
    """Zero samples are no subset; more than there are give all."""
    with pytest.raises(UserError, match="limit 0: must be at least 1"):
        pets.first(0)
    assert len(pets.first(50)) == 7


def test_a_set_can_be_sent_to_a_worker(pets):
    """Pickling keeps ids, order and bytes."""
    copy = pickle.loads(pickle.dumps(pets))  # noqa: S301 - our own bytes
    assert copy.order() == pets.order()
    assert copy.stored(3) == pets.stored(3)
    assert list(copy)[1] == Sample("s0000001", 1)
    assert repr(pets) == "ImageSet('pets', split='test', 7 images)"


def test_check_names_what_is_wrong(wds, write_tar, encoded):
    """Twice the same name, classes without an image, unreadable and byte-equal images."""
    root = wds(labels=(0, 0))
    (root / "classnames.txt").write_text("cat\ncat\ndog\n")
    members = [("x.png", encoded(0)), ("x.cls", b"0"), ("y.png", b"none"), ("y.cls", b"0")]
    write_tar(root / "test/2.tar", members)
    (root / "test/nshards.txt").write_text("3")
    opened = open_set(f"wds:{root}")
    texts = ["class name 'cat' stands for 2 labels: 0, 1.", "2 classes without an image: cat, dog."]
    assert opened.check() == texts
    more = opened.check(pictures=True)[2:]
    assert more[0].startswith("pets, y: not a picture that Pillow can read")
    assert more[1] == "2 byte-equal images: s0000000, x."
    assert _set(["a", "b"], [0, 7]).check()[0] == "1 labels outside 0 to 3: b."


def test_a_card_is_opened_below_the_data_folder(wds, tmp_path, monkeypatch):
    """Its name and templates go before the folder's; counts that differ are a problem, no error."""
    wds(name="cats_vs_dogs")
    monkeypatch.setenv("ZSROBUST_DATA", str(tmp_path))
    opened = open_set("mini/cats_vs_dogs")
    assert (opened.name, opened.split, opened.native_size) == ("mini/cats_vs_dogs", "test", 64)
    assert opened.templates == ["a photo of a {}."]
    assert opened.classnames == ["cat", "dog"]
    assert opened.check() == ["4 images, the card says 400 for split 'test'."]
    with pytest.raises(UserError, match="unknown split of mini/cats_vs_dogs 'train'"):
        open_set("mini/cats_vs_dogs", "train")


def test_the_data_folder_is_the_second_place_for_a_relative_path(wds, tmp_path, monkeypatch):
    """wds:NAME is tried from the working folder, then below ZSROBUST_DATA."""
    wds(name="inner")
    monkeypatch.setenv("ZSROBUST_DATA", str(tmp_path))
    assert open_set("wds:inner").name == "inner"


def test_a_source_may_call_a_split_otherwise(wds, tmp_path, monkeypatch):
    """CLIP benchmark's ImageNet has its val as test; the set keeps the card's name for it."""
    root = wds(name="wds_imagenet1k", labels=(0, 999))
    monkeypatch.setenv("ZSROBUST_DATA", str(tmp_path))
    opened = open_set("imagenet")
    assert (opened.name, opened.split, opened.labels) == ("imagenet", "val", [0, 999])
    assert len(opened.classnames) == 1000  # the curated ones, not those of the folder
    assert root.is_dir()


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("cifar1", "unknown image set 'cifar1': did you mean 'cifar10'"),
        ("wsd:x", "unknown kind of image set 'wsd': did you mean 'wds'"),
        ("wds:", "nothing after the colon"),
        ("", "unknown image set ''"),
    ],
)
def test_a_wrong_spec_is_answered_with_the_nearest(spec, message):
    """One line: what was given, what would have been taken."""
    with pytest.raises(UserError, match=message) as caught:
        open_set(spec)
    assert "\n" not in str(caught.value)


@pytest.fixture
def hub_cache(wds, tmp_path, monkeypatch):
    """A cache of the hub in its true form, with the network switched off."""
    root = wds(name="upload")
    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = tmp_path / "hub/datasets--org--wds_pets"
    (repository / "blobs").mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs/main").write_text(commit)
    snapshot = repository / "snapshots" / commit
    for path in sorted(root.rglob("*")):
        if path.is_file():
            data = path.read_bytes()
            blob = repository / "blobs" / hashlib.sha256(data).hexdigest()
            blob.write_bytes(data)
            link = snapshot / path.relative_to(root)
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(os.path.relpath(blob, link.parent))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    return tmp_path / "hub"


def test_a_repository_is_opened_from_the_cache(hub_cache, encoded):
    """Offline, blobs behind links; named by the repository."""
    opened = open_set("hf-hub:org/wds_pets")
    assert (opened.name, opened.split, opened.labels) == ("org/wds_pets", "test", [0, 1, 0, 1])
    assert opened.stored(2) == encoded(2)


def test_a_card_looks_into_the_cache_of_the_hub(hub_cache):
    """Its repository is taken from there without a network, with the card's class names."""
    (hub_cache / "datasets--org--wds_pets").rename(
        hub_cache / "datasets--clip-benchmark--wds_cifar10"
    )
    opened = open_set("cifar10")
    assert (opened.name, len(opened), opened.labels) == ("cifar10", 4, [0, 1, 0, 1])
    assert len(opened.classnames) == 10
    with pytest.raises(UserError, match="cifar10, split 'train', is not on this machine"):
        open_set("cifar10", "train")


def test_a_repository_that_is_not_there_is_a_fault_of_the_machine(hub_cache):
    """One line with what to do; a wrong form is the user's."""
    with pytest.raises(EnvironmentFault, match="hf-hub:org/other: not in the cache") as caught:
        open_set("hf-hub:org/other")
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="not of the form ORG/REPO"):
        open_set("hf-hub:a/b/c")


def test_suites():
    """mini keeps its source apart; a list is a suite without one; a set counts once."""
    mini = load_suite("mini")
    assert suite_names() == ["demo", "mini", "paper16", "robustvlm13"]
    assert (mini.source, mini.source_split, len(mini.sets)) == (
        "mini/tiny_imagenet",
        "val[500:]",
        9,
    )
    assert mini.source not in mini.sets
    for name in [mini.source, *mini.sets]:
        load_card(name)
    made = load_suite("cifar10, wds:x ,cifar10")
    assert (made.name, made.source, made.sets) == (
        "cifar10, wds:x ,cifar10",
        None,
        ["cifar10", "wds:x"],
    )
    assert load_suite("imagenet").sets == ["imagenet"]
    assert load_suite("mini,cifar10").sets == [*mini.sets, "cifar10"]
    with pytest.raises(UserError, match="did you mean 'mini/gtsrb'"):
        load_suite("mini/gtsrp")
    with pytest.raises(UserError, match="empty; give a suite"):
        load_suite(" , ")


@pytest.fixture
def mixed(wds):
    """Return the spec of seven images of two classes, unequal in number, and the set."""
    spec = f"wds:{wds(labels=(0, 1, 0, 0, 0, 1, 0))}"
    return spec, open_set(spec)


def test_a_part_of_a_split(mixed):
    """Places of the fixed order make it: two parts share nothing and are the whole; it has its own fixed order."""
    spec, whole = mixed
    ids = [whole.ids[i] for i in whole.order()]
    front, rest = open_set(f"{spec}#test[:3]"), open_set(spec, "test[3:]")
    assert (front.split, rest.split, front.name) == ("test[:3]", "test[3:]", whole.name)
    assert set(front.ids) == set(ids[:3])
    assert set(rest.ids) == set(ids[3:])
    assert (front.classnames, front.templates) == (whole.classnames, whole.templates)
    assert [front.ids[i] for i in front.order()] == ids[:3]
    for index, name in enumerate(rest.ids):
        at = whole.ids.index(name)
        assert rest.stored(index) == whole.stored(at)
        assert rest.labels[index] == whole.labels[at]
        assert rest.captions(index) == whole.captions(at)
        assert rest.picture(index).tobytes() == whole.picture(at).tobytes()
    assert front.check() == open_set(spec, "test[:3]").check()
    assert load_suite(f"{spec}#test[3:]").sets == [f"{spec}#test[3:]"]


@pytest.mark.parametrize(
    ("split", "words"),
    [
        ("test[]", "a part is written"),
        ("test[:]", "a part is written"),
        ("test[-3:]", "a part is written"),
        ("test[3:2]", "TO after FROM"),
        ("[3:]", "a part is written"),
        ("test[400:]", "no image there, split 'test' has"),
    ],
)
def test_what_is_no_part_is_refused(mixed, split, words):
    """One line, with how a part is written."""
    with pytest.raises(UserError, match=re.escape(words)):
        open_set(mixed[0], split)


needs_data = [
    pytest.mark.needs_data,
    pytest.mark.skipif("ZSROBUST_DATA" not in os.environ, reason="ZSROBUST_DATA is not set"),
]


@pytest.mark.parametrize(
    ("name", "split"),
    [
        pytest.param(name, split, marks=needs_data)
        for name in ("tiny_imagenet", "flickr_captions", *load_suite("mini").sets)
        for split in load_card(name if "/" in name else f"mini/{name}").splits
    ],
)
def test_the_real_folders_are_as_their_cards_say(name, split):
    """Counts, classes and labels; the first round of the fixed order has every class once."""
    opened = open_set(name if "/" in name else f"mini/{name}", split)
    assert opened.check() == []
    if opened.labels is not None:
        first = opened.first(len(opened.classnames))
        assert [opened.labels[index] for index in first] == list(range(len(opened.classnames)))
    assert opened.picture(opened.first(1)[0]).mode == "RGB"


def test_a_spec_may_name_its_split(tmp_path):
    """NAME#SPLIT for every form, in suites of one's own too; two different splits are refused."""
    for split, colour in (("train", 10), ("val", 200)):
        folder = tmp_path / "set" / split / "cat"
        folder.mkdir(parents=True)
        (folder.parent / "dog").mkdir()
        for name in ("cat", "dog"):
            Image.new("RGB", (4, 4), (colour, 0, 0)).save(folder.parent / name / f"{split}.png")
    spec = f"folder:{tmp_path}/set"
    assert (
        open_set(f"{spec}#val").ids == open_set(spec, "val").ids == ["cat/val.png", "dog/val.png"]
    )
    assert open_set(f"{spec}#train").split == "train"
    assert load_suite(f"{spec}#val,{spec}#train").sets == [f"{spec}#val", f"{spec}#train"]
    with pytest.raises(UserError, match="give one"):
        open_set(f"{spec}#val", "train")
    with pytest.raises(UserError, match="did you mean"):
        open_set("mini/cifar1#test")
