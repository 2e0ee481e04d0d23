"""The drawn sets: the same bytes everywhere, disjoint, and captioned with what is true."""

from __future__ import annotations

import copy
import hashlib
import re

import numpy as np
import pytest

from zsrobust import data
from zsrobust.data.drawn import canvas, pictures
from zsrobust.data.drawn.canvas import Dice, Layer, Pen, Style
from zsrobust.data.drawn.pictures import FIGURES, draw
from zsrobust.data.drawn.sections import EVERY_CLASS, SECTIONS, DrawnImages
from zsrobust.hashing import image_hash

TARGETS = [f"demo/{name}" for name in SECTIONS if name != "source"]

# Renew by printing what `drawn_hashes()` returns, if a drawing changes on purpose: every number measured on
# the set is another one then, and the card's version is raised.
GOLDEN = {
    "source": "f53754454b84cd3b",
    "shapes": "3ad9a8b2b5dcc8f4",
    "patterns": "bd727a6e73330745",
    "animals": "bfc34829676ca12a",
    "vehicles": "839f579065ee3576",
    "digits": "3435f437bc2c1d66",
    "flags": "58ca8ac5596c5721",
    "scenes": "b25056ceb5524d10",
    "web": "47047197f57ea69d",
}


def drawn_hashes() -> dict[str, str]:
    """One hash a section, over its first 24 pictures."""
    out = {}
    for section in (*SECTIONS, "web"):
        images = DrawnImages(section, "test", 0, 24)
        content = b"".join(images.stored(i) for i in range(24))
        out[section] = hashlib.sha256(content).hexdigest()[:16]
    return out


def test_the_pictures_are_the_same_bytes_on_every_machine():
    assert drawn_hashes() == GOLDEN


def test_pixels_meet_float32_only(monkeypatch):
    """Another width would round otherwise on its way to 8 bits."""
    seen = set()

    def spy(rgb):
        seen.update(v.dtype for v in rgb)
        return canvas.to_pixels(rgb)

    monkeypatch.setattr(pictures, "to_pixels", spy)
    for name in EVERY_CLASS:
        draw(name, Dice(name), 32)
    assert seen == {np.dtype(np.float32)}


def test_a_picture_depends_on_its_number_alone():
    some, more = DrawnImages("animals", "test", 0, 8), DrawnImages("animals", "test", 0, 800)
    backwards = [more.stored(i) for i in reversed(range(8))][::-1]
    assert [some.stored(i) for i in range(8)] == backwards
    copied = copy.deepcopy(some)
    assert copied.stored(5) == some.stored(5)
    assert DrawnImages("animals", "test", 1, 8).stored(0) != some.stored(0)
    assert DrawnImages("animals", "val", 0, 8).stored(0) != some.stored(0)


@pytest.mark.parametrize("name", TARGETS)
def test_targets_are_unseen_by_the_source(name):
    """No image, no class name, and no word that tells classes apart is in both (traps 45)."""
    target, source = data.open_set(name), data.open_set("demo/source", "train")
    assert len(target.classnames) >= 5
    assert not set(target.classnames) & set(source.classnames)
    kinds = {"pattern", "letter", "digit", "flag"}  # of class, not of a class
    words = {w for c in source.classnames for w in c.split()} - kinds
    for classname in target.classnames:
        assert not set(classname.split()) & words
        assert not any(
            re.search(rf"\b{re.escape(classname)}\b", other) for other in source.classnames
        )
    seen = {image_hash(source.stored(i)) for i in range(300)}
    assert not seen & {image_hash(target.stored(i)) for i in range(100)}


def test_the_source_shows_no_pattern_of_a_target_not_even_inside_a_shape(monkeypatch):
    """Fills and backgrounds are drawn from the source's own patterns; the web uses others too."""
    drawn = set()
    for name, pattern in pictures.PATTERNS.items():

        def spy(pen, dice, name=name, pattern=pattern):
            drawn.add(name)
            return pattern(pen, dice)

        monkeypatch.setitem(pictures.PATTERNS, name, spy)
    source = DrawnImages("source", "train", 0, 1200)
    for i in range(1200):
        source.stored(i)
    assert drawn == set(SECTIONS["source"]) & set(pictures.PATTERNS)
    web = DrawnImages("web", "train", 0, 600)
    for i in range(600):
        web.stored(i)
    assert drawn == set(pictures.PATTERNS)


def test_all_draws_are_disjoint():
    sets = [data.open_set("demo/source", s) for s in ("train", "val")]
    sets += [data.open_set("demo/web", s) for s in ("train", "val")]
    sets += [data.open_set(name) for name in TARGETS]
    hashes = [image_hash(s.stored(i)) for s in sets for i in range(60)]
    assert len(set(hashes)) == len(hashes)
    ids = [sample_id for s in sets for sample_id in s.ids[:100]]
    assert len(set(ids)) == len(ids)


@pytest.mark.parametrize("section", list(SECTIONS))
def test_card_and_drawing_agree(section):
    images = data.open_set(f"demo/{section}")
    assert images.classnames == SECTIONS[section]
    assert images.check() == []
    picture = images.picture(0)
    assert picture.size == (60, 60)
    assert picture.mode == "RGB"


def test_classes_of_a_set_are_balanced_and_their_pictures_differ():
    images = data.open_set("demo/vehicles")
    first = [images.labels[i] for i in images.first(80)]
    assert {first.count(k) for k in range(8)} == {10}
    means = [np.frombuffer(images.stored(i), np.uint8).std() for i in images.first(40)]
    assert min(means) > 4  # no blank picture


def test_the_web_uses_every_class_and_says_what_is_true():
    web = data.open_set("demo/web", "train")
    assert web.labels is None
    assert web.captioned
    told = [web.captions(i) for i in range(1500)]
    text = "\n".join(c for captions in told for c in captions)
    unsaid = [name for name in EVERY_CLASS if not re.search(rf"\b{re.escape(name)}\b", text)]
    assert unsaid == []
    twos = [c for c in told if " beside " in c[2]]
    assert 0.1 < len(twos) / len(told) < 0.2
    assert not re.search(r"\ba [aeiou]|\ban [^aeiou]", text)


def test_captions_name_the_colour_that_was_painted():
    """A big plain figure's middle has the colour that the caption says, up to light and contrast."""
    right = total = 0
    for i in range(40):
        picture = draw("circle", Dice(f"colour/{i}"), 64)
        if len(picture.captions[4].split()) > 8:
            continue  # filled with a pattern
        said = re.search(r"an? (\w+) circle", picture.captions[3])[1]
        background = re.search(r"on an? (\w+) background", picture.captions[4])[1]
        pixels = picture.pixels.astype(float) / 255
        spread = pixels.reshape(-1, 3) - np.array(pictures.COLOURS[said])
        behind = pixels.reshape(-1, 3) - np.array(pictures.COLOURS[background])
        nearer = (np.abs(spread).sum(1) < np.abs(behind).sum(1)).mean()
        total += 1
        right += 0.1 < nearer < 0.9
    assert total > 15
    assert right / total > 0.8


def test_large_drawings_are_the_same_picture():
    """Pictures for the docs are drawn at any size; shrunk, they are about what the model sees."""
    small = draw("snail", Dice("snail"), 64).pixels.astype(float)
    large = draw("snail", Dice("snail"), 256).pixels.astype(float)
    shrunk = large.reshape(64, 4, 64, 4, 3).mean((1, 3))
    assert np.abs(small - shrunk).mean() < 8


def test_distances():
    """Signed distances in closed form: negative inside, exact for polygon and box."""
    pen = Pen.on(Layer(32), Style())
    x, y = canvas.grid(32)
    square = [(-0.5, -0.5), (0.5, -0.5), (0.5, 0.5), (-0.5, 0.5)]
    assert np.allclose(pen.polygon(square), pen.box(0, 0, 0.5, 0.5), atol=1e-5)
    assert np.allclose(pen.circle(0.1, -0.2, 0.3), np.hypot(x - 0.1, y + 0.2) - 0.3, atol=1e-5)
    turned = pen.at(0.2, 0.1, 0.5, 90)
    assert np.allclose(turned.x, (y - 0.1) / 0.5, atol=1e-5)
    assert np.allclose(turned.y, -(x - 0.2) / 0.5, atol=1e-5)
    assert np.all(
        (pen.coverage(pen.circle(0, 0, 0.5)) >= 0) & (pen.coverage(pen.circle(0, 0, 0.5)) <= 1)
    )
    area = pen.coverage(pen.circle(0, 0, 0.5)).mean() * 4
    assert abs(area - np.pi / 4) < 0.01


def test_unknown_section_names_the_near_ones():
    with pytest.raises(Exception, match="animals"):
        DrawnImages("animal", "test", 0, 3)


def test_every_figure_shows():
    """No figure is so faint that its picture equals the one of an empty board."""
    for name in FIGURES:
        layer = Layer(48)
        ink = pictures.Inks(
            (1.0, 0.0, 0.0), (1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
        )
        FIGURES[name](Pen.on(layer, Style()), Dice(name), ink)
        assert 0.04 < layer.cover.mean() < 0.9, name
        assert layer.cover.max() <= 1 + 1e-6
