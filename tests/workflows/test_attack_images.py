"""Pictures attacked and written: what the files say is true of the files."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import zsrobust as zr
from zsrobust.attacks import Plan, plan
from zsrobust.attacks.engine import Chunk, attack_chunks
from zsrobust.errors import UserError
from zsrobust.threat import Threat
from zsrobust.workflows import attack_images as module
from zsrobust.workflows.attack_images import AttackedImages, attack_images
from zsrobust.workflows.rounding import round_within

ANIMALS = ["fish", "cat", "snail", "bird", "crab"]
COLOURS = ["blue star", "green box", "grey cat", "red ball", "white dog"]


@pytest.fixture(scope="module")
def clip(tiny_clip_folder: Path) -> zr.Clip:
    return zr.load_clip(f"local-dir:{tiny_clip_folder}")


@pytest.fixture(scope="module")
def other(tiny_clip_folder: Path) -> zr.Clip:
    """The same model, its image tower moved a little: images of one move to the other."""
    moved = zr.load_clip(f"local-dir:{tiny_clip_folder}")
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in moved.model.visual.parameters():
            parameter.add_(0.03 * parameter.std(correction=0) * torch.randn_like(parameter))
    return moved


@pytest.fixture
def photos(tiny_set_folder: Path) -> Path:
    """Thirty pictures of 24 x 20 in five class folders."""
    return tiny_set_folder / "val"


@pytest.fixture
def attack(clip: zr.Clip, photos: Path, tmp_path: Path) -> Callable[..., AttackedImages]:
    """Attack the thirty pictures by the model's own predictions, or what is given in their place."""

    def call(images: Any = photos, classes: Any = ANIMALS, **options: Any) -> AttackedImages:
        given = {"model": clip, "attack": "pgd-5", "out": tmp_path / "out", **options}
        return attack_images(given.pop("model"), images, classes, **given)

    return call


def levels(path: Path) -> np.ndarray[Any, Any]:
    """The numbers of an RGB file, (H, W, 3) in whole levels."""
    with Image.open(path) as opened:
        assert opened.mode == "RGB"
        return np.asarray(opened).astype(int)


def judged(
    clip: zr.Clip,
    pixels: np.ndarray[Any, Any],
    names: list[str],
    template: str = "a photo of a {}.",
) -> torch.Tensor:
    """The probabilities that a model of open_clip's own gives an image of its size, (K,)."""
    images = torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 255
    mean, std = (
        torch.tensor(v).reshape(1, 3, 1, 1) for v in (clip.preprocess.mean, clip.preprocess.std)
    )
    texts = clip.tokenizer([template.format(name) for name in names])
    with torch.no_grad():
        image = clip.model.encode_image((images - mean) / std, normalize=True)
        text = clip.model.encode_text(texts, normalize=True)
        return (clip.logit_scale * image @ text.T)[0].double().softmax(0)


def clean_levels(clip: zr.Clip, path: Path) -> np.ndarray[Any, Any]:
    with Image.open(path) as opened:
        return np.asarray(clip.preprocess.geometry()(opened.convert("RGB"))).astype(int)


@pytest.mark.parametrize(
    ("options", "distance"),
    [
        ({}, lambda d: np.abs(d).max()),
        ({"eps": "2/255"}, lambda d: np.abs(d).max()),
        ({"attack": "fab-t-10"}, lambda d: np.abs(d).max()),
        ({"norm": "l2", "eps": 0.05, "attack": "pgd-10"}, np.linalg.norm),
    ],
    ids=["linf", "two levels", "smallest norm", "l2"],
)
def test_every_word_of_a_record_holds_for_the_file(attack, clip, photos, options, distance):
    """Each file opened anew and judged by open_clip's own calls: probabilities, verdict, distance, hashes."""
    found = attack(**options)
    assert [image.id for image in found.images] == sorted(image.id for image in found.images)
    assert len(found.images) == 30
    files = {path.relative_to(found.folder).as_posix() for path in found.folder.rglob("*.*")}
    stems = [image.id.removesuffix(".png") for image in found.images]
    endings = (".png", ".perturbation.png", ".json")
    assert files - {".lock"} == {stem + ending for stem in stems for ending in endings}
    for image in found.images:
        record = json.loads((found.folder / image.id).with_suffix(".json").read_text())
        assert record == image.record
        clean, saved = (
            clean_levels(clip, photos / image.id),
            levels(found.folder / record["saved"]["file"]),
        )
        label = record["label"]["number"]
        for part, pixels in (("clean", clean), ("saved", saved)):
            wanted = judged(clip, pixels, ANIMALS)
            said = record[part]
            assert [row["label"] for row in said["top"]] == wanted.argsort(descending=True).tolist()
            assert [row["class"] for row in said["top"]] == [
                ANIMALS[r["label"]] for r in said["top"]
            ]
            shares = [row["probability"] for row in said["top"]]
            assert shares == pytest.approx(wanted.sort(descending=True).values.tolist(), abs=1e-4)
            assert said["own_probability"] == pytest.approx(float(wanted[label]), abs=1e-4)
            assert said["right"] == (int(wanted.argmax()) == label)
        assert record["clean"]["right"]  # its own prediction was taken for the class
        assert record["label"]["from"] == "the model's own clean prediction"
        far = distance(saved - clean) / 255
        assert record["saved"]["distance"] == pytest.approx(float(far), abs=1e-12)
        assert far <= record["threat"]["eps"] + 1e-9
        assert record["saved"]["largest_change"] == np.abs(saved - clean).max()
        shown = levels(found.folder / record["perturbation"]["file"])
        assert (shown == np.clip(128 + 10 * (saved - clean), 0, 255)).all()
        for part in ("saved", "perturbation"):
            stored = (found.folder / record[part]["file"]).read_bytes()
            assert record[part]["sha256"] == hashlib.sha256(stored).hexdigest()
        # The verdict follows from these.
        fools, broken = not record["saved"]["right"], record["outcome"]["broken"]
        assert image.status == ("fooled" if fools else "lost in rounding" if broken else "held")
        assert (record["outcome"]["by"] is not None) == broken
        assert (record["outcome"]["step"] is not None) == broken
        if image.status == "lost in rounding":
            assert not record["adversarial"]["right"]
            assert record["adversarial"]["distance"] <= record["threat"]["eps"] * (1 + 1e-6) + 1e-6
    assert found.count("fooled") > 3
    assert found.count("held") > 3
    assert sum(found.counts.values()) == 30


def test_a_break_that_rounding_undoes_is_tried_again_with_every_step(attack, clip, photos):
    """Rounded, the query that broke the model first does not fool it; the file holds the attack's last word."""
    found = attack(norm="l2", eps=0.05, attack="pgd-10")
    spent = [i for i in found.images if i.record["outcome"]["every_step_spent"]]
    gained = [i for i in spent if i.status == "fooled"]
    assert gained
    threat = Threat("l2", 0.05)
    classifier = zr.ZeroShotClassifier.from_texts(clip, ANIMALS)
    read = plan("pgd-10", threat)
    whole = Plan(read.members, "every", early_exit=False, eot=1)
    for image in gained:
        pixels = torch.from_numpy(clean_levels(clip, photos / image.id)).permute(2, 0, 1)[None]
        clean = pixels.to(torch.uint8)
        chunk = Chunk([image.id], clean / 255, torch.tensor([image.record["label"]["number"]]))
        files = []
        for one in (read, whole):
            (outcome,) = attack_chunks(
                classifier, [chunk], one, device=torch.device("cpu"), keep_images=True
            )
            assert (outcome.broken, outcome.step) == (True, image.record["outcome"]["step"])
            files.append(round_within(outcome.image[None], clean, threat)[0].permute(1, 2, 0))
        first, last = (file.numpy().astype(int) for file in files)
        label = image.record["label"]["number"]
        assert int(judged(clip, first, ANIMALS).argmax()) == label
        assert int(judged(clip, last, ANIMALS).argmax()) != label
        assert (levels(found.folder / image.id) == last).all()


def test_class_folders_are_labels(attack, photos):
    """As folder: sets read them, - and _ and capitals alike; what is wrong at once is left as it is."""
    found = attack(classes=COLOURS, attack="autoattack-fare")
    for image in found.images:
        folder = image.id.partition("/")[0].replace("_", " ")
        assert image.record["label"] == {
            "number": COLOURS.index(folder),
            "class": folder,
            "from": "its folder",
        }
        wrong = image.status == "already wrong"
        assert wrong == (not image.record["clean"]["right"])
        if wrong:
            assert image.record["saved"]["distance"] == 0
            assert image.record["outcome"]["queries"] == 0
            assert not image.record["outcome"]["attacked"]
    assert 0 < found.count("fooled") < 30
    assert found.count("already wrong") > 3
    (by,) = {i.record["outcome"]["by"] for i in found.images if i.status == "fooled"} - {"apgd-t"}
    assert by == "apgd-ce"
    assert photos.is_dir()


def test_a_split_above_the_class_folders_is_no_matter(attack, tiny_set_folder):
    """The nearest folder with a class's name counts."""
    found = attack(tiny_set_folder, classes=[name.upper() for name in COLOURS], attack="pgd-1")
    assert len(found.images) == 90
    assert {i.record["label"]["from"] for i in found.images} == {"its folder"}
    assert {i.id.split("/")[0] for i in found.images} == {"train", "val"}


@pytest.mark.parametrize("label", ["grey cat", "Grey-cat", 2, "2"])
def test_a_label_is_a_name_or_a_number(attack, photos, label):
    found = attack(photos / "red_ball" / "000.png", classes=COLOURS, label=label)
    assert found.images[0].record["label"] == {"number": 2, "class": "grey cat", "from": "--label"}


def test_a_name_goes_before_a_number(attack, photos):
    """Digits are classes too."""
    found = attack(photos / "red_ball" / "000.png", classes=["7", "3", "0", "1"], label="3")
    assert found.images[0].record["label"]["number"] == 1


@pytest.mark.parametrize(
    ("label", "message"),
    [
        ("gray cat", "unknown label 'gray cat': did you mean 'grey cat'"),
        ("5", "label 5: class numbers are 0 to 4"),
        (-1, "label -1: class numbers are 0 to 4"),
    ],
)
def test_a_wrong_label_is_a_mistake(attack, label, message):
    with pytest.raises(UserError, match=message):
        attack(classes=COLOURS, label=label)


def test_pictures_outside_the_class_folders_are_a_mistake(attack, photos, tmp_path):
    """A misspelt folder must not become a prediction in silence."""
    shutil.copytree(photos, tmp_path / "in")
    (tmp_path / "in" / "red_ball").rename(tmp_path / "in" / "red_bal")
    with pytest.raises(
        UserError, match=r"red_bal/000.png lies in no class folder, 24 other .* mean 'red ball'\?"
    ):
        attack(tmp_path / "in", classes=COLOURS)


@pytest.mark.parametrize("size", ["16 x 16", "24 x 20", "both"])
def test_native_keeps_the_pictures_own_pixels(attack, clip, photos, tmp_path, size):
    """Several sizes in one folder; the file has the picture's size, upsampling is the classifier's."""
    source = tmp_path / "in"
    source.mkdir()
    for number, path in enumerate(sorted(photos.rglob("*.png"))[::5]):
        with Image.open(path) as opened:
            small = size == "16 x 16" or (size == "both" and number % 2)
            (opened.resize((16, 16)) if small else opened).save(source / f"{number}.png")
    found = attack(source, resolution="native")
    classifier = zr.ZeroShotClassifier.from_texts(clip, ANIMALS)
    for image in found.images:
        with Image.open(source / image.id) as opened:
            clean = np.asarray(opened.convert("RGB")).astype(int)
        saved = levels(found.folder / image.id)
        assert saved.shape == clean.shape
        assert np.abs(saved - clean).max() <= 4
        for part, pixels in (("clean", clean), ("saved", saved)):
            tensor = torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 255
            with torch.no_grad():
                said = classifier(tensor)[0].argmax()
            assert image.record[part]["top"][0]["label"] == int(said)
        with Image.open(found.folder / image.id) as opened:
            usual = np.asarray(clip.preprocess.geometry()(opened)).astype(int)
        through = image.record["saved"]["by_the_models_own_resize"]
        assert through["top"][0]["label"] == int(judged(clip, usual, ANIMALS).argmax())
    sizes = {
        (i.record["image"]["attacked_at"]["width"], i.record["image"]["attacked_at"]["height"])
        for i in found.images
    }
    assert len(sizes) == (2 if size == "both" else 1)
    assert found.count("fooled") > 0


def test_outcomes_do_not_depend_on_the_company(attack, photos):
    """A picture of a folder, whatever else is attacked beside it: the same files."""
    found = attack()
    few = [image.id for image in found.images[::7]]
    alone = found.folder.parent / "few"
    for name in few:
        (alone / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(photos / name, alone / name)
    again = attack(alone, out=found.folder.parent / "out2")
    for image in again.images:
        first = next(i for i in found.images if i.id == image.id)
        assert first.record["key"] == image.record["key"]
        assert first.status == image.status


def test_modes_of_pictures(attack, tmp_path):
    """Grey, palette, CMYK, 16-bit, transparent, turned by EXIF: converted first; the file is RGB."""
    source = tmp_path / "in"
    source.mkdir()
    rng = np.random.default_rng(0)
    colour = Image.fromarray(rng.integers(0, 256, (20, 24, 3)).astype(np.uint8))
    colour.convert("L").save(source / "grey.png")
    colour.convert("P").save(source / "palette.gif")
    colour.convert("CMYK").save(source / "print.jpg", quality=95)
    colour.convert("RGBA").save(source / "alpha.png")
    Image.fromarray(rng.integers(0, 65536, (20, 24)).astype(np.uint16)).save(source / "deep.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    colour.save(source / "turned.jpg", exif=exif, quality=95)
    found = attack(source, resolution="native", attack="pgd-1")
    assert [i.id for i in found.images] == sorted(p.name for p in source.iterdir())
    for image in found.images:
        saved = levels(found.folder / f"{image.id.partition('.')[0]}.png")
        assert saved.shape == ((24, 20, 3) if image.id == "turned.jpg" else (20, 24, 3))
    found = attack(source, attack="pgd-1")
    assert {levels(p).shape for p in found.folder.glob("*.png")} == {(16, 16, 3)}


def test_pictures_that_share_a_name_keep_their_endings(attack, photos, tmp_path):
    """a.jpg beside a.png, and a picture that is called as another's perturbation."""
    source = tmp_path / "in"
    source.mkdir()
    with Image.open(photos / "red_ball" / "000.png") as opened:
        for name in ("a.png", "a.jpg", "b.png", "b.perturbation.png", "c.png"):
            opened.save(source / name)
    found = attack(source, attack="pgd-1")
    names = {path.name for path in found.folder.glob("*.json")}
    assert names == {
        "a.png.json",
        "a.jpg.json",
        "b.png.json",
        "b.perturbation.png.json",
        "c.json",
    }
    for image in found.images:
        assert (found.folder / image.record["saved"]["file"]).is_file()
        assert (found.folder / image.record["perturbation"]["file"]).is_file()


def stamps(folder: Path) -> dict[str, int]:
    return {str(p): p.stat().st_mtime_ns for p in sorted(folder.rglob("*.*")) if p.name != ".lock"}


def test_what_is_there_under_the_same_settings_is_not_made_again(attack, photos):
    """Nothing is written, the same is returned, and it is said."""
    said: list[str] = []
    first = attack()
    before = stamps(first.folder)
    second = attack(notify=said.append)
    assert stamps(first.folder) == before
    assert second.to_json() == first.to_json()
    assert any("30 of 30 images are in" in line for line in said)


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 1},
        {"eps": "3/255"},
        {"attack": "pgd-6"},
        {"templates": ["a {}."]},
        {"classes": [*ANIMALS, "turtle"]},
        {"magnify": 5},
        {"resolution": "native"},
        {"label": 0},
        {"norm": "l2", "eps": 0.5},
        {"source": "other"},
        {"model": "other"},
    ],
    ids=",".join,
)
def test_whatever_moves_the_result_makes_it_again(attack, clip, other, photos, change):
    """Each setting alone; and what is there then is of the new settings."""
    image = photos / "red_ball" / "000.png"
    first = attack(image)
    named = {k: other if v == "other" else v for k, v in change.items()}
    second = attack(image, **named)
    assert first.images[0].record["key"] != second.images[0].record["key"]
    assert json.loads((first.folder / "000.json").read_text()) == second.images[0].record


def test_a_changed_picture_or_a_damaged_result_is_made_again(attack, photos, tmp_path):
    """Only that one."""
    source = tmp_path / "in"
    shutil.copytree(photos / "red_ball", source)
    first = attack(source)
    before = stamps(first.folder)
    shutil.copy(photos / "blue_star" / "003.png", source / "001.png")
    (first.folder / "002.png").write_bytes(b"not what it was")
    (first.folder / "003.perturbation.png").unlink()
    (first.folder / "004.json").write_text("{")
    second = attack(source)
    after = stamps(first.folder)
    made = {Path(p).name.partition(".")[0] for p in after if after[p] != before.get(p)}
    assert made == {"001", "002", "003", "004"}
    for old, new in zip(first.images, second.images, strict=True):
        assert (old.record == new.record) == (old.id != "001.png")


def test_what_was_finished_before_a_stop_stays(attack, monkeypatch):
    """Stopped after eleven images; the same call makes the others, and all are what one call makes."""
    whole = attack(out=Path(attack().folder.parent / "whole"))
    real, left = module._write_record, 11

    def stopping(*arguments: Any) -> Any:
        nonlocal left
        if left == 0:
            raise KeyboardInterrupt
        left -= 1
        return real(*arguments)

    place = whole.folder.parent / "stopped"
    with monkeypatch.context() as patch:
        patch.setattr(module, "_write_record", stopping)
        with pytest.raises(KeyboardInterrupt):
            attack(out=place)
    before = {p: s for p, s in stamps(place).items() if p.endswith(".json")}
    assert len(before) == 11
    again = attack(out=place)
    assert {p: s for p, s in stamps(place).items() if p in before} == before
    assert [i.record["saved"]["sha256"] for i in again.images] == [
        i.record["saved"]["sha256"] for i in whole.images
    ]


def test_unreadable_pictures_are_told_and_left_out(attack, photos, tmp_path):
    """The others are done; a single one that cannot be read is a mistake."""
    source = tmp_path / "in"
    shutil.copytree(photos / "red_ball", source)
    (source / "002.png").write_bytes((source / "002.png").read_bytes()[:200])
    (source / "004.png").write_bytes(b"")
    said: list[str] = []
    found = attack(source, notify=said.append)
    assert [i.id for i in found.images] == ["000.png", "001.png", "003.png", "005.png"]
    assert len(found.unreadable) == 2
    assert "002.png: a damaged picture" in found.unreadable[0]
    assert "004.png: an empty file" in found.unreadable[1]
    assert set(found.unreadable) <= set(said)
    assert found.to_json()["unreadable"] == found.unreadable
    with pytest.raises(UserError, match=r"002\.png: a damaged picture"):
        attack(source / "002.png")
    for path in source.iterdir():
        path.write_bytes(b"no picture")
    with pytest.raises(
        UserError, match=r"none of the 6 pictures can be read, the first: .*000\.png"
    ):
        attack(source)


def test_transfer_is_made_on_the_source_and_judged_on_the_model(attack, clip, other, photos):
    """Not the images of a white box; by and settings say so; the probabilities are the model's own."""
    options = {"attack": "mi-fgsm-5", "eps": "8/255"}
    moved = attack(source=other, **options)
    white = attack(**options, out=moved.folder / "white")
    assert 0 < moved.count("fooled") <= white.count("fooled")
    for image, direct in zip(moved.images, white.images, strict=True):
        record = image.record
        assert record["source"] == other.spec
        assert (record["attack"]["judge"], record["attack"]["early_exit"]) == ("none", False)
        assert record["outcome"]["by"] in (None, "transfer:mi-fgsm-5")
        assert record["outcome"]["queries"] == 6
        assert record["label"] == direct.record["label"]  # the model's own, not the source's
        wanted = judged(clip, levels(moved.folder / image.id), ANIMALS)
        assert record["saved"]["top"][0]["label"] == int(wanted.argmax())
        assert record["saved"]["sha256"] != direct.record["saved"]["sha256"]
    default = attack(photos / "red_ball" / "000.png", attack=None, source=other)
    assert default.request["attack"]["name"] == "mi-fgsm"


def test_the_parts_of_autoattack_that_stand_in_are_said(attack, photos):
    """Three classes: the margin loss in place of targeted DLR."""
    said: list[str] = []
    found = attack(
        photos / "red_ball" / "000.png", classes=ANIMALS[:3], attack=None, notify=said.append
    )
    assert found.request["attack"]["name"] == "autoattack-fare"
    assert any("margin loss in place of DLR" in line for line in said)


def test_classes_come_from_a_file_a_card_a_set_or_a_list(attack, photos, tmp_path):
    """A card brings its templates, unless others are given."""
    one = {"images": photos / "red_ball" / "000.png", "attack": "pgd-1"}
    names = tmp_path / "names.txt"
    names.write_text("fish\ncat\n\n")
    found = attack(classes=names, **one)
    assert (found.request["classes"], found.request["templates"]) == (2, ["a photo of a {}."])
    found = attack(classes="demo/animals", **one)
    assert (found.request["classes"], found.request["templates"]) == (8, ["a drawing of a {}."])
    found = attack(classes="demo/animals", templates=["my {}"], **one)
    assert found.request["templates"] == ["my {}"]
    found = attack(classes="demo/animals", templates=["openai"], **one)
    assert len(found.request["templates"]) == 80
    found = attack(classes=names, templates=["paper"], **one)
    assert found.request["templates"] == ["This is a photo of a {}"]
    found = attack(classes=f"folder:{photos}", **one)
    assert found.request["classes"] == 5
    with pytest.raises(UserError, match="only sets with a card have them"):
        attack(classes=names, templates=["clip-benchmark"], **one)
    with pytest.raises(UserError, match=r"'demo/animls': no such file; .* the set 'demo/animals'"):
        attack(classes="demo/animls", **one)
    with pytest.raises(UserError, match="has no class names"):
        attack(classes=f"folder:{photos / 'red_ball'}", **one)
    with pytest.raises(UserError, match="got 7"):
        attack(classes=7, **one)


def test_equal_class_texts_are_one_class(attack, photos):
    """The twin of the true class is no success."""
    found = attack(classes=["cat", "Cat", "fish"], attack="pgd-3", label=None)
    for image in found.images:
        top = image.record["saved"]["top"]
        assert len(top) == 2
        if image.status == "fooled":
            assert {image.record["label"]["class"], top[0]["class"]} != {"cat", "Cat"}
    assert found.count("fooled") > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"eps": 0.5 / 255}, "less than one of the 255 levels"),
        ({"eps": "8"}, "did you mean 8/255"),
        ({"norm": "l2"}, "no eps given: 4/255 is meant for linf; for l2 give one"),
        ({"norm": "l1"}, "unknown norm 'l1'"),
        ({"resolution": "own"}, "unknown resolution 'own'"),
        ({"attack": "pdg-5"}, "unknown attack 'pdg-5': did you mean 'pgd-20'"),
        ({"attack": "pgd-5:judge=none"}, "judges no query: nothing could break"),
        ({"attack": "clean"}, "'clean' is no attack"),
        ({"magnify": 0}, "magnify must be a finite number > 0"),
        ({"magnify": float("nan")}, "magnify must be a finite number > 0"),
        ({"seed": 1.5}, "seed must be a whole number"),
        ({"images": "nowhere"}, "nowhere: no such picture or folder"),
        ({"classes": ["cat"]}, "needs at least 2 classes"),
        ({"classes": []}, "no class names"),
        ({"templates": ["a photo"]}, "must hold {} exactly once"),
        ({"device": "gpu"}, "device 'gpu' is unknown"),
    ],
)
def test_mistakes(attack, tmp_path, options, message):
    """Nothing is written."""
    with pytest.raises(UserError, match=message):
        attack(**options)
    assert not (tmp_path / "out").exists()


def test_no_file_of_others_is_written_over(attack, photos, tmp_path):
    """The images themselves, and what lies in a folder that was never one of results."""
    source = tmp_path / "in"
    shutil.copytree(photos / "red_ball", source)
    kept = {path: path.read_bytes() for path in source.iterdir()}
    with pytest.raises(UserError, match="is the folder of the images themselves"):
        attack(source, out=source)
    with pytest.raises(UserError, match=r"000\.png is one of the images to attack"):
        attack(source / "000.png", out=source)
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "000.png").write_bytes(b"a photograph")
    with pytest.raises(UserError, match="was not written by this command"):
        attack(source, out=mine)
    assert {path: path.read_bytes() for path in source.iterdir()} == kept
    assert [p.name for p in mine.iterdir()] == ["000.png"]


def test_results_below_the_folder_are_not_attacked_in_their_turn(attack, photos, tmp_path):
    """--out within DIR: a second call finds the same images."""
    source = tmp_path / "in"
    shutil.copytree(photos / "red_ball", source)
    first = attack(source, out=source / "adversarial")
    second = attack(source, out=source / "adversarial")
    assert len(first.images) == len(second.images) == 6


def test_it_is_a_public_name():
    """zr.attack_images."""
    assert zr.attack_images is attack_images
