"""`zsrobust attack`: what it prints, what it leaves behind, and its mistakes in one line."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from .conftest import run

NAMES = "fish\ncat\nsnail\nbird\ncrab\n"


@pytest.fixture
def names(tmp_path: Path) -> Path:
    """A file of five class names."""
    path = tmp_path / "names.txt"
    path.write_text(NAMES)
    return path


@pytest.fixture
def photo(tiny_set_folder: Path) -> Path:
    return tiny_set_folder / "val" / "red_ball" / "000.png"


def test_a_folder_line_by_line_and_summed_up(zs, model, names, tiny_set_folder):
    """A line an image, one with the counts and all that they depend on; the rest on standard error."""
    asked = ["attack", model, tiny_set_folder / "val", "--classes", names, "--attack", "pgd-5"]
    found = zs(*asked)
    assert found.code == 0
    *lines, summary = found.out.splitlines()
    records = [json.loads(p.read_text()) for p in sorted(Path("adversarial").rglob("*.json"))]
    assert len(lines) == len(records) == 30
    for line, record in zip(lines, records, strict=True):
        before, after = record["clean"]["top"][0], record["saved"]["top"][0]
        assert line.startswith(
            f"{record['image']['id']}: {before['class']} {100 * before['probability']:.1f}% -> "
            f"{after['class']} {100 * after['probability']:.1f}%"
        )
        assert f"linf distance {record['saved']['largest_change']}/255" in line
        fooled = record["status"] == "fooled"
        assert ("the saved file fools the model" in line) == fooled
        assert (f"broken by pgd-5 at query {record['outcome']['step']}" in line) == fooled
    count = sum(record["status"] == "fooled" for record in records)
    assert 0 < count < 30
    assert summary == (
        f"pgd-5 at linf 4/255, model resolution, 5 classes, 30 images: {count} fooled, {30 - count} held; in "
        "adversarial"
    )
    assert "no labels" in found.err
    again = zs(*asked)
    assert again.out == found.out
    assert "30 of 30 images are in adversarial already" in again.err


def test_what_rounding_lost_is_said_and_is_no_failure(zs, model, names, tiny_set_folder):
    """In the line, in the summary and in JSON; exit code 0."""
    asked = ["attack", model, tiny_set_folder / "val", "--classes", names, "--attack", "fab-t-10"]
    found = zs(*asked)
    assert found.code == 0
    lost = [line for line in found.out.splitlines() if "LOST in rounding to 8 bits" in line]
    assert lost
    assert f"{len(lost)} lost in rounding" in found.out.splitlines()[-1]
    parsed = json.loads(zs(*asked, "--json").out)
    assert parsed["counts"]["lost in rounding"] == len(lost)


def test_as_json(zs, model, names, photo):
    """One object with the counts and every record."""
    found = zs("attack", model, photo, "--classes", names, "--out", "here", "--json")
    assert found.code == 0
    parsed = json.loads(found.out)
    assert list(parsed) == ["out", "request", "counts", "unreadable", "images"]
    assert parsed["request"]["attack"]["name"] == "autoattack-fare"
    assert parsed["images"] == [json.loads(Path("here/000.json").read_text())]
    assert sorted(path.name for path in Path("here").iterdir()) == [
        ".lock",
        "000.json",
        "000.perturbation.png",
        "000.png",
    ]


def test_labels_l2_and_transfer(zs, model, photo, tiny_clip_folder, tmp_path):
    """All options at once; a clean mistake is said and left as it is."""
    shutil.copytree(tiny_clip_folder, tmp_path / "other")
    (tmp_path / "names.txt").write_text(NAMES)
    options = ["--norm", "l2", "--eps", "0.5", "--resolution", "native", "--magnify", "20"]
    options += ["--source", "local-dir:other", "--seed", "3", "--template", "my {}"]
    outputs = {}
    for label in NAMES.split():
        given = ["--label", label, "--out", label]
        found = zs("attack", model, photo, "--classes", "names.txt", *given, *options)
        assert found.code == 0
        outputs[label] = found.out
    wrong = [text for text in outputs.values() if "wrong without an attack" in text]
    assert len(wrong) == 4
    (attacked,) = set(outputs.values()) - set(wrong)
    assert "l2 distance 0." in attacked
    assert (
        "mi-fgsm on local-dir:other at l2 0.5, native resolution, 5 classes, 1 image: " in attacked
    )


def test_pictures_that_cannot_be_read_end_in_a_mistake(zs, model, names, tiny_set_folder, tmp_path):
    """After all others are done; each is named."""
    shutil.copytree(tiny_set_folder / "val" / "red_ball", tmp_path / "in")
    (tmp_path / "in" / "003.png").write_bytes(b"no picture")
    found = zs("attack", model, "in", "--classes", names, "--attack", "pgd-1")
    assert found.code == 2
    assert "5 images:" in found.out
    first, *_, last = found.err.splitlines()
    assert "003.png: not a picture" in found.err
    assert last.startswith("zsrobust: 1 of 6 pictures could not be read; mend or remove them")
    assert "Traceback" not in found.err
    assert first != last
    assert len(list(Path("adversarial").glob("*.json"))) == 5


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--eps", "4"], "did you mean 4/255?"),
        (["--eps", "0"], "less than one of the 255 levels"),
        (["--norm", "l2"], "for l2 give one, for instance 1.0"),
        (["--norm", "linff"], "unknown norm 'linff': did you mean 'linf'"),
        (["--resolution", "nativ"], "unknown resolution 'nativ': did you mean 'native'"),
        (["--attack", "autoatack"], "unknown attack 'autoatack': did you mean 'autoattack'"),
        (["--label", "fsh"], "unknown label 'fsh': did you mean 'fish'"),
        (["--label", "9"], "label 9: class numbers are 0 to 4"),
        (["--magnify", "0"], "magnify must be a finite number > 0"),
        (["--magnify", "much"], "--magnify 'much' is not a number"),
        (["--template", "photo"], "must hold {} exactly once"),
        (["--device", "gpu"], "device 'gpu' is unknown"),
        (["--source", "tinny"], "unknown model 'tinny': did you mean 'tiny'"),
        (["--clases", "x"], "unknown option of attack '--clases': did you mean '--classes'"),
    ],
)
def test_mistakes(zs, model, names, photo, options, words):
    assert words in zs("attack", model, photo, "--classes", names, *options).mistake()
    assert not Path("adversarial").exists()


def test_mistakes_in_what_is_attacked(zs, model, names, photo, tmp_path):
    """No picture, no classes, nothing given."""
    zs_attack = ["attack", model]
    assert (
        "nowhere: no such picture or folder"
        in zs(*zs_attack, "nowhere", "--classes", names).mistake()
    )
    (tmp_path / "empty").mkdir()
    assert "no picture in it" in zs(*zs_attack, "empty", "--classes", names).mistake()
    assert "not a picture" in zs(*zs_attack, names, "--classes", names).mistake()
    assert "no such file" in zs(*zs_attack, photo, "--classes", "nams.txt").mistake()
    (tmp_path / "gap.txt").write_text("fish\n\ncat\n")
    assert "gap.txt, line 2: empty" in zs(*zs_attack, photo, "--classes", "gap.txt").mistake()
    (tmp_path / "one.txt").write_text("fish\n")
    assert "at least 2 classes" in zs(*zs_attack, photo, "--classes", "one.txt").mistake()
    assert "the option '--classes' is missing" in zs(*zs_attack, photo).mistake()
    assert "unknown model 'tinny'" in zs("attack", "tinny", photo, "--classes", names).mistake()
    assert not Path("adversarial").exists()


def test_in_a_process_of_its_own(tmp_path, model, photo):
    """As a user types it, where nothing is a terminal: no bar, the result alone on standard output."""
    (tmp_path / "names.txt").write_text(NAMES)
    found = run(
        ["attack", model, str(photo), "--classes", "names.txt", "--attack", "pgd-2"], tmp_path
    )
    assert found.code == 0
    assert len(found.out.splitlines()) == 2
    assert found.err.splitlines() == [
        "no labels: the class of each image is what the model itself makes of it clean."
    ]
