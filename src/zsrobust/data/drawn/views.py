"""Pictures that fill the frame: flags and landscapes."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from zsrobust.data.drawn.canvas import Colour, Dice, Layer, Pen, Style, around, union, wave
from zsrobust.data.drawn.colours import darker, lighter, mixed, shade

View = Callable[[Pen, Dice], None]
FlagView = Callable[[Pen, Dice, tuple[Colour, Colour, Colour]], None]


def _tricolour(p: Pen, d: Dice, c: tuple[Colour, Colour, Colour]) -> None:
    for x, colour in zip((-0.67, 0.0, 0.67), c, strict=True):
        p.fill(p.box(x, 0, 0.336, 0.7), colour)


def _banded(p: Pen, d: Dice, c: tuple[Colour, Colour, Colour]) -> None:
    for y, colour in zip((0.44, 0.0, -0.44), c, strict=True):
        p.fill(p.box(0, y, 1, 0.222), colour)


def _saltire(p: Pen, d: Dice, c: tuple[Colour, Colour, Colour]) -> None:
    width = d.number(0.18, 0.3)
    p.fill(p.box(0, 0, 1, 0.66), c[0])
    bars = union(
        p.line([(-1.1, -0.73), (1.1, 0.73)], width), p.line([(-1.1, 0.73), (1.1, -0.73)], width)
    )
    p.fill(bars, c[1])


def _nordic(p: Pen, d: Dice, c: tuple[Colour, Colour, Colour]) -> None:
    width, x = d.number(0.12, 0.18), d.number(-0.4, -0.25)
    p.fill(p.box(0, 0, 1, 0.66), c[0])
    p.fill(union(p.box(x, 0, width, 0.8), p.box(0, 0, 1.1, width)), c[1])
    if d.chance(0.5):
        p.fill(union(p.box(x, 0, width / 2, 0.8), p.box(0, 0, 1.1, width / 2)), c[2])


def _quartered(p: Pen, d: Dice, c: tuple[Colour, Colour, Colour]) -> None:
    p.fill(p.box(0, 0, 1, 0.66), c[0])
    p.fill(union(p.box(-0.5, 0.33, 0.5, 0.33), p.box(0.5, -0.33, 0.5, 0.33)), c[1])


def _disc(p: Pen, d: Dice, c: tuple[Colour, Colour, Colour]) -> None:
    p.fill(p.box(0, 0, 1, 0.66), c[0])
    p.fill(p.circle(d.number(-0.15, 0.15), 0, d.number(0.3, 0.42)), c[1])


def _chevron(p: Pen, d: Dice, c: tuple[Colour, Colour, Colour]) -> None:
    p.fill(p.box(0, 0.33, 1, 0.33), c[0])
    p.fill(p.box(0, -0.33, 1, 0.33), c[1])
    p.fill(p.polygon([(-1.05, 0.72), (d.number(-0.3, 0.0), 0), (-1.05, -0.72)]), c[2])


def _canton(p: Pen, d: Dice, c: tuple[Colour, Colour, Colour]) -> None:
    bars = d.whole(3, 4)
    high = 1.32 / (2 * bars - 1)
    p.fill(p.box(0, 0, 1, 0.66), c[0])
    for i in range(bars):
        p.fill(p.box(0, 0.66 - high * (2 * i + 0.5), 1, high / 2), c[1])
    p.fill(p.box(-0.55, 0.3, 0.45, 0.36), c[2])


FLAGS: dict[str, FlagView] = {
    "tricolour flag": _tricolour,
    "banded flag": _banded,
    "saltire flag": _saltire,
    "nordic flag": _nordic,
    "quartered flag": _quartered,
    "disc flag": _disc,
    "chevron flag": _chevron,
    "canton flag": _canton,
}


def flag(layer: Layer, dice: Dice, view: FlagView, colours: tuple[Colour, Colour, Colour]) -> None:
    """Paint a flag that waves, on its pole."""
    page = Pen.on(layer, Style())
    size, cx, cy = dice.number(0.62, 0.82), dice.number(-0.08, 0.12), dice.number(-0.1, 0.2)
    lean = dice.number(-8, 8)
    p = page.at(cx, cy, size, lean)
    p.fill(p.line([(-1.03, 0.82), (-1.03, -1.6)], 0.09), (0.45, 0.33, 0.22), plain=True)
    folds, depth, phase = dice.number(0.35, 0.7), dice.number(0.02, 0.09), dice.number(0, 1)
    swing = wave(p.x * folds + phase) * ((p.x + 1) * (depth / 1.2))
    cloth = Pen(Layer(layer.size), p.x, p.y + swing, p.scale, Style())
    view(cloth, dice, colours)
    # Cloth ends at its hem, and folds catch the light.
    hem = p.coverage(cloth.box(0, 0, 1, 0.66))
    light = 1 + wave(p.x * folds + phase + 0.2) * 0.16
    rest = 1 - hem
    for k in range(3):
        layer.rgb[k] = layer.rgb[k] * rest + np.minimum(cloth.layer.rgb[k] * light, 1) * hem
    layer.cover = layer.cover * rest + hem


def _sky(p: Pen, d: Dice, top: Colour, bottom: Colour) -> None:
    part = np.minimum(np.maximum((p.y + 0.3) / 1.3, 0), 1)
    paint = tuple(b + (a - b) * part for a, b in zip(top, bottom, strict=True))
    p.fill(p.y * 0 - 1, (paint[0], paint[1], paint[2]))


def _hills(p: Pen, d: Dice, base: float, rise: float, colour: Colour) -> None:
    a, b = d.number(0.3, 0.6), d.number(0.7, 1.2)
    line = wave(p.x * a + d.number(0, 1)) * rise + wave(p.x * b + d.number(0, 1)) * (rise * 0.4)
    p.fill(p.y - base - line, colour)


def _beach(p: Pen, d: Dice) -> None:
    _sky(p, d, shade(d, "blue"), lighter(shade(d, "turquoise"), 0.5))
    p.fill(
        p.circle(d.number(-0.7, 0.7), d.number(0.45, 0.75), d.number(0.13, 0.2)), (1.0, 0.9, 0.45)
    )
    p.fill(p.y - d.number(0.0, 0.2), shade(d, "turquoise"))
    shore = d.number(-0.5, -0.3)
    edge = wave(p.x * d.number(0.25, 0.5) + d.number(0, 1)) * 0.08
    p.fill(p.y - shore - edge - 0.06, (0.95, 0.97, 0.97))
    p.fill(p.y - shore - edge, (0.93, 0.82, 0.56))
    x, lean = d.number(-0.6, 0.6), d.number(-0.3, 0.3)
    top = (x + lean, d.number(0.15, 0.4))
    p.fill(p.line([(x, -0.75), (x + lean * 0.35, -0.3), top], 0.09), (0.45, 0.3, 0.18))
    for angle in (-25, 15, 60, 120, 165, 205):
        side, y = around(top[0], top[1], 0.42, angle + d.number(-10, 10))
        bend = y - 0.08
        p.fill(p.line([top, (side, bend), (side, bend - 0.12)], 0.09), (0.13, 0.5, 0.22))


def _mountain(p: Pen, d: Dice) -> None:
    _sky(p, d, shade(d, "blue"), lighter(shade(d, "blue"), 0.7))
    for far in (True, False):
        x, top, half = d.number(-0.6, 0.6), d.number(0.35, 0.75), d.number(0.7, 1.0)
        rock = mixed(shade(d, "grey"), shade(d, "blue"), 0.35 if far else 0.1)
        p.fill(p.polygon([(x - half, -0.6), (x, top), (x + half, -0.6)]), rock)
        cap = 0.3
        w = half * cap * 0.9 / (top + 0.6)
        p.fill(
            p.polygon(
                [
                    (x - w, top - cap * 0.9),
                    (x, top),
                    (x + w, top - cap * 0.9),
                    (x + w * 0.4, top - cap * 0.6),
                    (x, top - cap),
                    (x - w * 0.4, top - cap * 0.6),
                ]
            ),
            (0.97, 0.98, 1.0),
        )
    _hills(p, d, -0.5, 0.08, darker(shade(d, "green"), 0.2))


def _city(p: Pen, d: Dice) -> None:
    _sky(
        p,
        d,
        mixed(shade(d, "purple"), shade(d, "blue"), d.number(0, 1)),
        lighter(shade(d, "orange"), 0.3),
    )
    x = -1.05
    while x < 1:
        half, top = d.number(0.11, 0.2), d.number(-0.15, 0.7)
        wall = darker(shade(d, d.one(("grey", "blue", "brown", "purple"))), d.number(0.3, 0.6))
        p.fill(p.box(x + half, (top - 1.1) / 2, half, (top + 1.1) / 2), wall)
        lit = p.x * 0 + 1.0
        columns, y = max(int(half * 14), 1), top - 0.12
        while y > -0.85:
            for c in range(columns):
                if d.chance(0.55):
                    cx = x + half * (2 * c + 1) / columns
                    lit = np.minimum(lit, p.box(cx, y, half * 0.5 / columns, 0.035))
            y -= 0.16
        p.fill(lit, (1.0, 0.87, 0.5))
        x += 2 * half + 0.01
    p.fill(p.y + 0.9, (0.15, 0.15, 0.18))


def _forest(p: Pen, d: Dice) -> None:
    _sky(p, d, lighter(shade(d, "blue"), 0.3), lighter(shade(d, "yellow"), 0.6))
    for row, (foot, size) in enumerate(((-0.25, 0.34), (-0.5, 0.44), (-0.85, 0.56))):
        green = darker(shade(d, "green"), 0.1 + 0.17 * row)
        p.fill(p.y - foot + 0.02, darker(green, 0.15))
        x = d.number(-1.2, -0.9)
        while x < 1.1:
            tall = size * d.number(0.85, 1.25)
            p.fill(p.box(x, foot, 0.035, 0.1), (0.35, 0.23, 0.14))
            for level in range(3):
                y, half = foot + 0.08 + level * tall * 0.42, tall * (0.42 - 0.1 * level)
                p.fill(p.polygon([(x - half, y), (x, y + tall * 0.62), (x + half, y)]), green)
            x += tall * d.number(0.6, 1.0)


def _desert(p: Pen, d: Dice) -> None:
    _sky(p, d, lighter(shade(d, "blue"), 0.35), lighter(shade(d, "orange"), 0.65))
    p.fill(
        p.circle(d.number(-0.6, 0.6), d.number(0.4, 0.7), d.number(0.16, 0.25)), (1.0, 0.93, 0.7)
    )
    sand = (0.9, 0.68, 0.36)
    _hills(p, d, d.number(0.0, 0.12), 0.16, lighter(sand, 0.25))
    _hills(p, d, -0.25, 0.18, sand)
    x, foot, tall = d.number(-0.6, 0.6), d.number(-0.6, -0.45), d.number(0.6, 0.85)
    green = darker(shade(d, "green"), 0.15)
    p.fill(p.line([(x, foot), (x, foot + tall)], 0.17), green)
    for s in (-1, 1)[: d.whole(1, 2)]:
        y = foot + tall * d.number(0.3, 0.5)
        p.fill(p.line([(x, y), (x + 0.26 * s, y), (x + 0.26 * s, y + 0.28)], 0.12), green)
    _hills(p, d, -0.68, 0.1, darker(sand, 0.15))


def _night(p: Pen, d: Dice) -> None:
    _sky(p, d, (0.03, 0.04, 0.14), darker(shade(d, "purple"), 0.45))
    lit = p.x * 0 + 1.0
    for _ in range(d.whole(16, 30)):
        lit = np.minimum(lit, p.circle(d.number(-1, 1), d.number(-0.4, 1), d.number(0.012, 0.035)))
    p.fill(lit, (1.0, 0.98, 0.85))
    x, y, r = d.number(-0.6, 0.6), d.number(0.25, 0.65), d.number(0.2, 0.3)
    p.fill(
        np.maximum(p.circle(x, y, r), -p.circle(x + r * 0.5, y + r * 0.15, r * 0.85)),
        (0.98, 0.95, 0.75),
    )
    _hills(p, d, d.number(-0.65, -0.5), 0.14, (0.04, 0.06, 0.1))


SCENES: dict[str, View] = {
    "beach": _beach,
    "mountain": _mountain,
    "city": _city,
    "forest": _forest,
    "desert": _desert,
    "night sky": _night,
}
