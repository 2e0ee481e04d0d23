"""One picture of a class, or of two: background, figure, light, and the captions that are true of it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from zsrobust.data.drawn import patterns, views
from zsrobust.data.drawn.canvas import (
    Colour,
    Dice,
    Field,
    Layer,
    Paint,
    Pen,
    Style,
    cloud,
    grid,
    lay,
    to_pixels,
)
from zsrobust.data.drawn.colours import (
    COLOURS,
    darker,
    distance,
    lighter,
    mixed,
    pair,
    shade,
    unlike,
)
from zsrobust.data.drawn.figures import (
    ANIMALS,
    DIGITS,
    LETTERS,
    SHAPES_SOURCE,
    SHAPES_TARGET,
    THINGS,
    VEHICLES,
    Inks,
)
from zsrobust.data.drawn.patterns import ORNAMENTS, Ornaments

FIGURES = {**SHAPES_SOURCE, **SHAPES_TARGET, **THINGS, **ANIMALS, **VEHICLES, **LETTERS, **DIGITS}
PATTERNS = {**patterns.SOURCE, **patterns.TARGET}
OUTLINES = {**SHAPES_SOURCE, **SHAPES_TARGET, **LETTERS, **DIGITS}
"""Figures of one paint, which can be filled with a pattern."""

# How upright a figure stands: an arrow or a letter may not be turned upside down.
_TILT = 18.0


@dataclass(frozen=True)
class Picture:
    """A drawn picture.

    Args:
        pixels: (S, S, 3) uint8.
        captions: texts that are true of it, from short to long.
    """

    pixels: NDArray[np.uint8]
    captions: list[str]


def _background(
    dice: Dice, size: int, colour: Colour, ornaments: Ornaments
) -> tuple[Field, Field, Field]:
    """Return a calm background around one colour: plain, shaded, cloudy, or faintly patterned."""
    x, y = grid(size)
    other = (
        darker(colour, dice.number(0.1, 0.3))
        if dice.chance(0.5)
        else lighter(colour, dice.number(0.15, 0.4))
    )
    kind = dice.whole(0, 3)
    if kind == 0:
        part: Field = (x * dice.number(-0.5, 0.5) + y * dice.number(-0.5, 0.5) + 1) * np.float32(
            0.5
        )
    elif kind == 1:
        dx, dy = x - dice.number(-0.6, 0.6), y - dice.number(-0.6, 0.6)
        part = np.minimum(np.sqrt(dx * dx + dy * dy) * np.float32(0.6), 1)
    elif kind == 2:
        part = cloud(dice, size, dice.whole(3, 7))
    else:
        pen = Pen.on(Layer(size), Style()).at(
            scale=dice.number(0.22, 0.4), degrees=dice.number(0, 180)
        )
        pattern = PATTERNS[f"{dice.one(ornaments.behind)} pattern"]
        part = pattern(pen, dice) * np.float32(dice.number(0.3, 0.6))
    red, green, blue = (a + (b - a) * part for a, b in zip(colour, other, strict=True))
    return red, green, blue


def _patterned(pen: Pen, dice: Dice, pattern: str, first: Colour, second: Colour) -> Paint:
    fine = pen.at(scale=dice.number(0.32, 0.45), degrees=dice.number(0, 180))
    part = PATTERNS[f"{pattern} pattern"](fine, dice)
    red, green, blue = (a + (b - a) * part for a, b in zip(first, second, strict=True))
    return red, green, blue


def _style(dice: Dice) -> Style:
    return Style(
        light=dice.number(0.1, 0.35) if dice.chance(0.6) else 0.0,
        outline=dice.number(0.03, 0.06) if dice.chance(0.35) else 0.0,
    )


@dataclass(frozen=True)
class _Placed:
    """A figure's name, and what is said of it."""

    name: str
    colour: str
    fill: str | None


def _place(
    layer: Layer,
    dice: Dice,
    name: str,
    colour: str,
    where: tuple[float, float, float],
    behind: Colour,
    ornaments: Ornaments,
) -> _Placed:
    cx, cy, scale = where
    base = shade(dice, colour)
    # Mirrored figures are the same figure; letters, digits and arrows are not turned round.
    mirror = name not in LETTERS and name not in DIGITS and name != "arrow" and dice.chance(0.5)
    spin = name in SHAPES_SOURCE or name in SHAPES_TARGET
    degrees = dice.number(-_TILT, _TILT) if not spin or dice.chance(0.5) else dice.number(-60, 60)
    pen = Pen.on(layer, _style(dice)).at(cx, cy, scale, degrees, mirror)
    second = shade(dice, dice.one(unlike(base, apart=0.15)))
    # Small parts must stand out from the main colour, whatever it is.
    light = 0.3 * base[0] + 0.5 * base[1] + 0.2 * base[2] > 0.45
    dark = darker(base, 0.75) if light else lighter(base, 0.65)
    inks_main: Paint = base
    fill = None
    if name in OUTLINES and dice.chance(0.3):
        fill = dice.one(ornaments.fills)
        far = unlike(base, behind, apart=0.2)
        inks_main = _patterned(pen, dice, fill, base, shade(dice, dice.one(far or ["white"])))
    elif dice.chance(0.35):
        y = np.minimum(np.maximum(pen.y * 0.5 + 0.5, 0), 1)
        end = lighter(base, 0.4) if dice.chance(0.5) else darker(base, 0.35)
        red, green, blue = (a + (b - a) * y for a, b in zip(end, base, strict=True))
        inks_main = (red, green, blue)
    FIGURES[name](pen, dice, Inks(inks_main, base, second, dark, lighter(base, 0.75)))
    return _Placed(name, colour, fill)


def _article(words: str) -> str:
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def _class_texts(name: str) -> list[str]:
    """Return the captions that say the class alone."""
    return [
        f"a drawing of {_article(name)}.",
        f"a picture of {_article(name)}.",
        f"{_article(name)}.",
    ]


def _soften(rgb: tuple[Field, Field, Field], dice: Dice) -> NDArray[np.uint8]:
    """Return pixels after the exposure of one picture: contrast and brightness differ."""
    contrast, middle = dice.number(0.55, 1.0), dice.number(0.42, 0.58)
    red, green, blue = ((v - 0.5) * contrast + middle for v in rgb)
    return to_pixels((red, green, blue))


def draw(name: str, dice: Dice, size: int, ornaments: Ornaments = ORNAMENTS) -> Picture:
    """Return a picture of one class.

    Args:
        name: a class of `FIGURES`, `PATTERNS`, `views.FLAGS` or `views.SCENES`.
        dice: all that varies.
        size: S, side in pixels.
        ornaments: the patterns that may stand in and behind it.
    """
    if name in PATTERNS:
        return _pattern(name, dice, size, ornaments)
    if name in views.SCENES or name in views.FLAGS:
        return _view(name, dice, size, ornaments)
    colour, ground = pair(dice)
    layer = Layer(size)
    scale = dice.number(0.55, 0.88)
    free = max(0.95 - scale, 0.06)
    where = (dice.number(-free, free), dice.number(-free, free), scale)
    behind = shade(dice, ground)
    background = _background(dice, size, behind, ornaments)
    placed = _place(layer, dice, name, colour, where, behind, ornaments)
    shadow = dice.number(0.25, 0.5) if dice.chance(0.6) else 0.0
    pixels = _soften(lay(layer, background, shadow), dice)
    size_word = "small" if scale < 0.63 else "big" if scale > 0.8 else ""
    described = " ".join(filter(None, (size_word, placed.colour, placed.fill, name)))
    return Picture(
        pixels,
        [
            *_class_texts(name),
            f"a drawing of {_article(f'{colour} {name}')}.",
            f"{_article(described)} on {_article(ground)} background.",
        ],
    )


def draw_two(names: tuple[str, str], dice: Dice, size: int) -> Picture:
    """Return a picture of two figures side by side, the first to the left."""
    first, ground = pair(dice)
    second = dice.one([n for n in COLOURS if distance(COLOURS[n], COLOURS[ground]) >= 0.22])
    layer = Layer(size)
    behind = shade(dice, ground)
    background = _background(dice, size, behind, ORNAMENTS)
    for x, name, colour in ((-0.47, names[0], first), (0.47, names[1], second)):
        where = (x + dice.number(-0.05, 0.05), dice.number(-0.4, 0.4), dice.number(0.42, 0.5))
        _place(layer, dice, name, colour, where, behind, ORNAMENTS)
    pixels = _soften(lay(layer, background, dice.number(0, 0.4)), dice)
    left, right = (_article(f"{c} {n}") for c, n in zip((first, second), names, strict=True))
    return Picture(
        pixels,
        [
            f"a drawing of {_article(names[0])} and {_article(names[1])}.",
            f"{_article(names[0])} and {_article(names[1])}.",
            f"{left} beside {right}.",
            f"{right} to the right of {left}.",
        ],
    )


def _pattern(name: str, dice: Dice, size: int, ornaments: Ornaments) -> Picture:
    first, second = pair(dice, 0.12)
    page = Pen.on(Layer(size), Style())
    pen = page.at(
        dice.number(-0.5, 0.5), dice.number(-0.5, 0.5), dice.number(0.26, 0.5), dice.number(0, 180)
    )
    part = PATTERNS[name](pen, dice)
    one, two = _background(dice, size, shade(dice, first), ornaments), shade(dice, second)
    red, green, blue = (a + (b - a) * part for a, b in zip(one, two, strict=True))
    pixels = _soften((red, green, blue), dice)
    return Picture(
        pixels,
        [
            *_class_texts(name),
            f"{_article(name)} in {first} and {second}.",
        ],
    )


def _view(name: str, dice: Dice, size: int, ornaments: Ornaments) -> Picture:
    layer = Layer(size)
    if name in views.SCENES:
        page = Pen.on(layer, Style())
        views.SCENES[name](page.at(mirror=dice.chance(0.5)), dice)
        # In any light: scenes are not to be told by their colours alone.
        tint, part = shade(dice, dice.one(list(COLOURS))), dice.number(0.0, 0.5)
        red, green, blue = (v + (t - v) * part for v, t in zip(layer.rgb, tint, strict=True))
        pixels = _soften((red, green, blue), dice)
        texts = [
            f"a drawing of {_article(name)}.",
            f"{_article(name)}.",
            f"a view of {_article(name)}.",
        ]
        return Picture(pixels, texts)
    names = _three(dice)
    colours = (shade(dice, names[0]), shade(dice, names[1]), shade(dice, names[2]))
    ground = dice.one([n for n in COLOURS if n not in names])
    background = _background(
        dice, size, mixed(shade(dice, ground), (0.75, 0.85, 0.95), 0.4), ornaments
    )
    views.flag(layer, dice, views.FLAGS[name], colours)
    pixels = _soften(lay(layer, background, dice.number(0, 0.4)), dice)
    return Picture(
        pixels,
        [
            *_class_texts(name),
            f"{_article(name)} in {names[0]}, {names[1]} and {names[2]}.",
        ],
    )


def _three(dice: Dice) -> tuple[str, str, str]:
    """Return three colour names, any two of which can be told apart."""
    first, second = pair(dice)
    return first, second, dice.one(unlike(COLOURS[first], COLOURS[second], apart=0.15))
