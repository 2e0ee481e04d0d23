"""Figures: things, animals, vehicles, shapes, letters and digits, each drawn within -1 to 1 by a pen.

A figure takes a pen, the dice, and three paints: its main colour, a second one, and a dark one for details.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from zsrobust.data.drawn.canvas import (
    Colour,
    Dice,
    Field,
    Paint,
    Pen,
    Point,
    arc,
    around,
    both,
    cut,
    union,
)


@dataclass(frozen=True)
class Inks:
    """The paints of one figure."""

    main: Paint
    base: Colour
    """What `main` is by name, where it is patterned."""
    second: Colour
    dark: Colour
    pale: Colour


Figure = Callable[[Pen, Dice, Inks], None]


def _shape(distance: Callable[[Pen, Dice], Field]) -> Figure:
    """Return the figure that fills one outline with the main paint."""

    def draw(p: Pen, dice: Dice, ink: Inks) -> None:
        p.fill(distance(p, dice), ink.main)

    return draw


def _regular(p: Pen, corners: int, radius: float = 0.9, start: float = 90.0) -> Field:
    return p.polygon([around(0, 0, radius, start + 360 * i / corners) for i in range(corners)])


def _star(p: Pen, points: int, inner: float, radius: float = 0.95) -> Field:
    return p.polygon(
        [
            around(0, 0, radius if i % 2 == 0 else inner, 90 + 180 * i / points)
            for i in range(2 * points)
        ]
    )


def _heart(p: Pen) -> Field:
    lobes = union(p.circle(-0.42, 0.32, 0.46), p.circle(0.42, 0.32, 0.46))
    return union(lobes, p.polygon([(-0.8, 0.06), (0, 0.55), (0.8, 0.06), (0, -0.85)]))


def _drop(p: Pen) -> Field:
    return union(
        p.circle(0, -0.28, 0.6), p.polygon([(-0.53, 0.0), (0, 0.95), (0.53, 0.0), (0, -0.4)])
    )


def _arrow(p: Pen, dice: Dice) -> Field:
    width, neck = dice.number(0.16, 0.28), dice.number(-0.1, 0.15)
    head = p.polygon([(0.95, 0), (neck, 0.68), (neck, -0.68)])
    return union(head, p.box((neck - 0.9) / 2, 0, (neck + 0.9) / 2 + 0.02, width))


def _cross(p: Pen, dice: Dice) -> Field:
    width = dice.number(0.2, 0.32)
    return union(p.box(0, 0, 0.9, width), p.box(0, 0, width, 0.9))


SHAPES_SOURCE: dict[str, Figure] = {
    "circle": _shape(lambda p, _: p.circle(0, 0, 0.85)),
    "square": _shape(lambda p, _: p.box(0, 0, 0.72, 0.72)),
    "triangle": _shape(lambda p, _: _regular(p, 3, 0.98)),
    "pentagon": _shape(lambda p, _: _regular(p, 5, 0.92)),
    "oval": _shape(lambda p, d: p.oval(0, 0, 0.95, d.number(0.45, 0.58))),
    "semicircle": _shape(lambda p, _: both(p.circle(0, -0.4, 0.92), -p.y - 0.35)),
    "trapezoid": _shape(
        lambda p, d: p.polygon(
            [(-0.95, -0.5), (0.95, -0.5), (d.number(0.3, 0.5), 0.5), (-0.4, 0.5)]
        )
    ),
}
SHAPES_TARGET: dict[str, Figure] = {
    "star": _shape(lambda p, d: _star(p, 5, d.number(0.36, 0.46))),
    "heart": _shape(lambda p, _: _heart(p)),
    "cross": _shape(_cross),
    "crescent": _shape(
        lambda p, d: cut(p.circle(0, 0, 0.88), p.circle(d.number(0.32, 0.42), 0.1, 0.74))
    ),
    "arrow": _shape(_arrow),
    "diamond": _shape(
        lambda p, d: p.polygon([(0, 0.95), (d.number(0.55, 0.7), 0), (0, -0.95), (-0.62, 0)])
    ),
    "ring": _shape(lambda p, d: cut(p.circle(0, 0, 0.88), p.circle(0, 0, d.number(0.42, 0.58)))),
    "drop": _shape(lambda p, _: _drop(p)),
}


# Things of the hardening source.


def _house(p: Pen, d: Dice, k: Inks) -> None:
    p.fill(p.box(0.42, 0.55, 0.11, 0.3), k.dark)
    p.fill(p.box(0, -0.3, 0.66, 0.55), k.main)
    p.fill(p.polygon([(-0.9, 0.2), (0, 0.95), (0.9, 0.2)]), k.second)
    p.fill(p.box(d.one((-0.3, 0.3)), -0.55, 0.16, 0.3), k.dark, plain=True)
    for x in (-0.32, 0.32):
        p.fill(p.box(x, -0.02, 0.14, 0.13), k.pale, plain=True)


def _cup(p: Pen, d: Dice, k: Inks) -> None:
    handle = cut(p.circle(0.55, 0.0, 0.4), p.circle(0.55, 0.0, 0.24))
    p.fill(handle, k.main)
    p.fill(p.polygon([(-0.7, 0.55), (0.6, 0.55), (0.42, -0.7), (-0.52, -0.7)]), k.main)
    p.fill(p.oval(-0.05, 0.55, 0.65, 0.16), k.dark, plain=True)
    for x in (-0.3, 0.0, 0.3)[: d.whole(1, 3)]:
        p.fill(p.line([(x - 0.1, 0.72), (x, 0.82), (x - 0.1, 0.95)], 0.07), k.second, plain=True)


def _key(p: Pen, d: Dice, k: Inks) -> None:
    bow = cut(p.circle(-0.55, 0, 0.42), p.circle(-0.55, 0, 0.2))
    teeth = [p.box(x, -0.2, 0.08, 0.2) for x in (*(0.5, 0.78)[: d.whole(1, 2)], 0.86)]
    p.fill(union(bow, p.box(0.35, 0, 0.6, 0.1), *teeth), k.main)


def _umbrella(p: Pen, d: Dice, k: Inks) -> None:
    p.fill(p.line([(0, 0.2), (0, -0.7), *arc(-0.15, -0.7, 0.15, 0, -180, 6)], 0.1), k.dark)
    dome = both(p.circle(0, 0.0, 0.9), -p.y)
    dome = cut(dome, *(p.oval(x, 0, 0.28, 0.14) for x in (-0.62, 0, 0.62)))
    p.fill(dome, k.main)
    p.fill(both(dome, p.oval(0, 0, 0.3, 0.9)), k.second, plain=True)
    p.fill(p.box(0, 0.93, 0.05, 0.08), k.dark, plain=True)


def _lamp(p: Pen, d: Dice, k: Inks) -> None:
    p.fill(p.oval(0, -0.82, 0.45, 0.12), k.dark)
    p.fill(p.box(0, -0.3, 0.07, 0.5), k.dark)
    p.fill(p.polygon([(-0.35, 0.85), (0.35, 0.85), (0.72, 0.05), (-0.72, 0.05)]), k.main)
    p.fill(p.oval(0, 0.05, 0.7, 0.1), k.pale, plain=True)


def _bell(p: Pen, d: Dice, k: Inks) -> None:
    p.fill(p.circle(0, -0.72, 0.16), k.dark)
    dome = union(
        p.oval(0, 0.25, 0.5, 0.6), p.polygon([(-0.5, 0.3), (0.5, 0.3), (0.78, -0.6), (-0.78, -0.6)])
    )
    p.fill(dome, k.main)
    p.fill(p.box(0, -0.58, 0.82, 0.09, 0.08), k.second, plain=True)
    p.fill(cut(p.circle(0, 0.88, 0.13), p.circle(0, 0.88, 0.06)), k.dark, plain=True)


def _hat(p: Pen, d: Dice, k: Inks) -> None:
    p.fill(p.oval(0, -0.45, 0.95, 0.2), k.main)
    p.fill(p.box(0, 0.1, 0.5, 0.55, 0.12), k.main)
    p.fill(p.box(0, -0.28, 0.5, 0.13), k.second, plain=True)


def _bottle(p: Pen, d: Dice, k: Inks) -> None:
    body = union(
        p.box(0, -0.35, 0.36, 0.58, 0.12), p.box(0, 0.4, 0.14, 0.42), p.oval(0, 0.2, 0.34, 0.22)
    )
    p.fill(body, k.main)
    p.fill(p.box(0, 0.85, 0.17, 0.1), k.dark, plain=True)
    p.fill(p.box(0, -0.4, 0.36, d.number(0.16, 0.28)), k.pale, plain=True)


def _chair(p: Pen, d: Dice, k: Inks) -> None:
    for x0, x1 in ((-0.5, -0.6), (0.42, 0.55)):
        p.fill(p.line([(x0, -0.1), (x1, -0.9)], 0.14), k.dark)
    p.fill(p.line([(-0.48, 0.0), (-0.6, 0.9)], 0.2), k.main)
    p.fill(p.box(0.0, -0.08, 0.58, 0.13, 0.05), k.main)
    p.fill(p.line([(-0.1, -0.15), (-0.15, -0.75)], 0.1), k.dark, plain=True)


def _hammer(p: Pen, d: Dice, k: Inks) -> None:
    p.fill(p.box(0, -0.2, 0.1, 0.75, 0.06), k.second)
    p.fill(
        union(
            p.box(0.08, 0.6, 0.5, 0.2, 0.04), p.polygon([(-0.35, 0.8), (-0.35, 0.42), (-0.8, 0.5)])
        ),
        k.main,
    )


def _book(p: Pen, d: Dice, k: Inks) -> None:
    p.fill(p.polygon([(0, -0.55), (-0.95, -0.4), (-0.95, 0.6), (0, 0.45)]), k.main)
    p.fill(p.polygon([(0, -0.55), (0.95, -0.4), (0.95, 0.6), (0, 0.45)]), k.main)
    for s in (-1, 1):
        p.fill(
            p.polygon([(0.03 * s, -0.42), (0.83 * s, -0.28), (0.83 * s, 0.62), (0.03 * s, 0.48)]),
            k.pale,
            plain=True,
        )
        for y in (0.3, 0.1, -0.1):
            p.fill(p.line([(0.15 * s, y), (0.7 * s, y + 0.11)], 0.05), k.dark, plain=True)


def _clock(p: Pen, d: Dice, k: Inks) -> None:
    p.fill(p.circle(0, 0, 0.9), k.main)
    p.fill(p.circle(0, 0, 0.7), k.pale, plain=True)
    for i in range(0, 12, d.one((1, 3))):
        p.fill(
            p.line([around(0, 0, 0.55, 30 * i), around(0, 0, 0.64, 30 * i)], 0.06),
            k.dark,
            plain=True,
        )
    hours = [(0.0, 0.0), around(0, 0, 0.32, d.number(0, 360))]
    minutes = [(0.0, 0.0), around(0, 0, 0.52, d.number(0, 360))]
    p.fill(union(p.line(hours, 0.1), p.line(minutes, 0.07)), k.dark, plain=True)


def _apple(p: Pen, d: Dice, k: Inks) -> None:
    p.fill(p.line([(0, 0.45), (0.08, 0.85)], 0.1), k.dark)
    p.fill(p.oval(0.32, 0.72, 0.26, 0.12, 30), k.second)
    body = union(
        p.circle(-0.28, -0.1, 0.58), p.circle(0.28, -0.1, 0.58), p.oval(0, -0.4, 0.5, 0.45)
    )
    p.fill(cut(body, p.circle(0, 0.62, 0.2)), k.main)


def _banana(p: Pen, d: Dice, k: Inks) -> None:
    body = both(cut(p.circle(0, 0.55, 1.15), p.oval(0, 0.9, 1.05, 1.12)), p.y - 0.35)
    p.fill(body, k.main)
    p.fill(p.line([(0.9, 0.22), (0.96, 0.48)], 0.14), k.dark)


def _cherry(p: Pen, d: Dice, k: Inks) -> None:
    p.fill(p.line([(-0.42, -0.2), (-0.15, 0.4), (0.25, 0.88)], 0.08), k.dark)
    p.fill(p.line([(0.45, -0.3), (0.42, 0.3), (0.25, 0.88)], 0.08), k.dark)
    p.fill(p.oval(0.5, 0.75, 0.3, 0.14, -25), k.second)
    for x, y in ((-0.45, -0.42), (0.45, -0.5)):
        p.fill(p.circle(x, y, 0.4), k.main)
        p.fill(p.circle(x - 0.12, y + 0.14, 0.1), k.pale, plain=True)


def _pear(p: Pen, d: Dice, k: Inks) -> None:
    p.fill(p.line([(0, 0.6), (0.1, 0.95)], 0.1), k.dark)
    p.fill(p.oval(0.28, 0.85, 0.2, 0.09, 20), k.second)
    p.fill(
        union(
            p.circle(0, -0.38, 0.56),
            p.circle(0, 0.35, 0.34),
            p.polygon([(-0.5, -0.12), (-0.32, 0.45), (0.32, 0.45), (0.5, -0.12)]),
        ),
        k.main,
    )


THINGS: dict[str, Figure] = {
    "house": _house,
    "cup": _cup,
    "key": _key,
    "umbrella": _umbrella,
    "lamp": _lamp,
    "bell": _bell,
    "hat": _hat,
    "bottle": _bottle,
    "chair": _chair,
    "hammer": _hammer,
    "book": _book,
    "clock": _clock,
    "apple": _apple,
    "banana": _banana,
    "cherry": _cherry,
    "pear": _pear,
}


# Animals.


def _eye(p: Pen, x: float, y: float, size: float, k: Inks) -> None:
    p.fill(p.circle(x, y, size), (0.98, 0.98, 0.98), plain=True)
    p.fill(p.circle(x + size * 0.2, y, size * 0.55), (0.05, 0.05, 0.08), plain=True)


def _fish(p: Pen, d: Dice, k: Inks) -> None:
    p.fill(p.polygon([(-0.45, 0), (-0.95, 0.5), (-0.8, 0), (-0.95, -0.5)]), k.second)
    p.fill(p.polygon([(-0.15, 0.35), (0.15, 0.75), (0.4, 0.3)]), k.second)
    p.fill(p.oval(0.15, 0, 0.78, 0.48), k.main)
    for x in (-0.1, 0.15)[: d.whole(0, 2)]:
        p.fill(both(p.box(x, 0, 0.06, 0.5), p.oval(0.15, 0, 0.74, 0.44)), k.second, plain=True)
    _eye(p, 0.55, 0.12, 0.13, k)


def _cat(p: Pen, d: Dice, k: Inks) -> None:
    for s in (-1, 1):
        p.fill(p.polygon([(0.75 * s, 0.2), (0.72 * s, 0.95), (0.15 * s, 0.55)]), k.main)
        p.fill(
            p.polygon([(0.62 * s, 0.4), (0.62 * s, 0.75), (0.33 * s, 0.55)]), k.second, plain=True
        )
    p.fill(p.oval(0, -0.08, 0.8, 0.68), k.main)
    for s in (-1, 1):
        p.fill(p.oval(0.32 * s, 0.08, 0.13, 0.17), k.pale, plain=True)
        p.fill(p.oval(0.32 * s, 0.08, 0.05, 0.15), (0.05, 0.05, 0.08), plain=True)
        for y in (-0.12, -0.28):
            p.fill(p.line([(0.25 * s, -0.22), (0.9 * s, y)], 0.04), k.dark, plain=True)
    p.fill(p.polygon([(-0.1, -0.12), (0.1, -0.12), (0, -0.26)]), k.second, plain=True)
    p.fill(p.line([(-0.18, -0.4), (0, -0.32), (0.18, -0.4)], 0.05), k.dark, plain=True)


def _snail(p: Pen, d: Dice, k: Inks) -> None:
    body = union(p.line([(-0.9, -0.72), (0.55, -0.68), (0.72, -0.3), (0.75, -0.05)], 0.26))
    p.fill(body, k.second)
    for x in (0.62, 0.9):
        p.fill(p.line([(0.75, 0.0), (x, 0.4)], 0.06), k.second, plain=True)
        p.fill(p.circle(x, 0.42, 0.08), k.dark, plain=True)
    p.fill(p.circle(-0.15, 0.0, 0.62), k.main)
    spiral: list[Point] = []
    for i in range(19):
        spiral.append(around(-0.15, 0.0, 0.5 - 0.024 * i, 200 - 42 * i))
    p.fill(p.line(spiral, 0.07), k.dark, plain=True)


def _butterfly(p: Pen, d: Dice, k: Inks) -> None:
    for s in (-1, 1):
        p.fill(p.oval(0.48 * s, 0.35, 0.5, 0.36, 35 * s), k.main)
        p.fill(p.oval(0.4 * s, -0.4, 0.38, 0.3, -35 * s), k.second)
        p.fill(p.circle(0.55 * s, 0.4, 0.14), k.pale, plain=True)
        p.fill(p.line([(0, 0.4), (0.12 * s, 0.7), (0.25 * s, 0.85)], 0.05), k.dark, plain=True)
    p.fill(p.oval(0, 0, 0.1, 0.6), k.dark, plain=True)


def _bird(p: Pen, d: Dice, k: Inks) -> None:
    for x in (-0.12, 0.12):
        p.fill(p.line([(x, -0.5), (x + 0.03, -0.92), (x + 0.2, -0.92)], 0.06), k.dark, plain=True)
    p.fill(p.polygon([(-0.4, 0.0), (-0.98, 0.2), (-0.98, -0.15), (-0.4, -0.35)]), k.second)
    p.fill(p.oval(-0.05, -0.18, 0.58, 0.45, 15), k.main)
    p.fill(p.circle(0.4, 0.35, 0.33), k.main)
    p.fill(p.polygon([(0.68, 0.45), (0.98, 0.32), (0.68, 0.22)]), (0.95, 0.6, 0.15), plain=True)
    p.fill(p.oval(-0.15, -0.15, 0.38, 0.22, -20), k.second, plain=True)
    _eye(p, 0.48, 0.42, 0.1, k)


def _turtle(p: Pen, d: Dice, k: Inks) -> None:
    p.fill(p.circle(0.78, -0.12, 0.22), k.second)
    for x in (-0.5, 0.4):
        p.fill(p.box(x, -0.5, 0.14, 0.24, 0.1), k.second)
    p.fill(p.polygon([(-0.7, -0.3), (-0.98, -0.42), (-0.65, -0.42)]), k.second)
    dome = both(p.oval(-0.05, -0.35, 0.78, 0.85), -p.y - 0.35)
    p.fill(dome, k.main)
    for x, y in ((-0.4, -0.1), (0.0, 0.1), (0.35, -0.12)):
        p.fill(p.circle(x, y, 0.15), k.dark, plain=True)
    p.fill(p.circle(0.86, -0.06, 0.05), (0.05, 0.05, 0.08), plain=True)


def _rabbit(p: Pen, d: Dice, k: Inks) -> None:
    for s in (-1, 1):
        p.fill(p.oval(0.26 * s, 0.58, 0.17, 0.42, -8 * s), k.main)
        p.fill(p.oval(0.26 * s, 0.58, 0.08, 0.3, -8 * s), k.second, plain=True)
    p.fill(p.oval(0, -0.3, 0.6, 0.55), k.main)
    for s in (-1, 1):
        p.fill(p.circle(0.24 * s, -0.18, 0.09), (0.05, 0.05, 0.08), plain=True)
    p.fill(p.circle(0, -0.4, 0.09), k.second, plain=True)
    p.fill(p.box(0, -0.63, 0.12, 0.12), (0.98, 0.98, 0.98), plain=True)


def _crab(p: Pen, d: Dice, k: Inks) -> None:
    for s in (-1, 1):
        for y in (-0.2, -0.42, -0.62):
            p.fill(
                p.line([(0.35 * s, y + 0.1), (0.75 * s, y + 0.05), (0.88 * s, y - 0.22)], 0.09),
                k.main,
                plain=True,
            )
        p.fill(p.line([(0.5 * s, 0.0), (0.75 * s, 0.25)], 0.13), k.main, plain=True)
        claw = cut(
            p.circle(0.74 * s, 0.55, 0.27),
            p.polygon([(0.74 * s, 0.5), (0.55 * s, 0.95), (0.9 * s, 0.95)]),
        )
        p.fill(claw, k.main)
    p.fill(p.oval(0, -0.2, 0.6, 0.42), k.main)
    for s in (-1, 1):
        p.fill(p.line([(0.18 * s, 0.1), (0.18 * s, 0.38)], 0.06), k.dark, plain=True)
        _eye(p, 0.18 * s, 0.4, 0.12, k)


ANIMALS: dict[str, Figure] = {
    "fish": _fish,
    "cat": _cat,
    "snail": _snail,
    "butterfly": _butterfly,
    "bird": _bird,
    "turtle": _turtle,
    "rabbit": _rabbit,
    "crab": _crab,
}


# Vehicles.


def _wheel(p: Pen, x: float, y: float, radius: float, k: Inks) -> None:
    p.fill(p.circle(x, y, radius), (0.1, 0.1, 0.12), plain=True)
    p.fill(p.circle(x, y, radius * 0.45), (0.75, 0.75, 0.78), plain=True)


def _car(p: Pen, d: Dice, k: Inks) -> None:
    p.fill(p.polygon([(-0.55, 0.05), (-0.35, 0.52), (0.3, 0.52), (0.6, 0.05)]), k.main)
    p.fill(p.polygon([(-0.4, 0.08), (-0.27, 0.4), (-0.05, 0.4), (-0.05, 0.08)]), k.pale, plain=True)
    p.fill(p.polygon([(0.05, 0.08), (0.05, 0.4), (0.24, 0.4), (0.43, 0.08)]), k.pale, plain=True)
    p.fill(p.box(0, -0.15, 0.95, 0.24, 0.12), k.main)
    p.fill(p.circle(0.86, -0.1, 0.08), (1.0, 0.95, 0.6), plain=True)
    for x in (-0.5, 0.5):
        _wheel(p, x, -0.4, 0.23, k)


def _boat(p: Pen, d: Dice, k: Inks) -> None:
    p.fill(p.box(0, 0.2, 0.05, 0.72), k.dark, plain=True)
    p.fill(p.polygon([(0.1, 0.9), (0.1, -0.2), (0.78, -0.2)]), k.pale)
    p.fill(p.polygon([(-0.1, 0.75), (-0.1, -0.2), (-0.6, -0.2)]), k.second)
    p.fill(p.polygon([(-0.95, -0.35), (0.95, -0.35), (0.6, -0.85), (-0.6, -0.85)]), k.main)


def _rocket(p: Pen, d: Dice, k: Inks) -> None:
    p.fill(p.polygon([(-0.22, -0.55), (0, -1.0), (0.22, -0.55)]), (0.98, 0.65, 0.15), plain=True)
    for s in (-1, 1):
        p.fill(p.polygon([(0.25 * s, -0.05), (0.68 * s, -0.65), (0.2 * s, -0.5)]), k.second)
    p.fill(both(p.oval(0, 0.1, 0.38, 0.9), -p.y - 0.58), k.main)
    p.fill(both(p.oval(0, 0.1, 0.38, 0.9), 0.55 - p.y), k.second, plain=True)
    p.fill(p.circle(0, 0.2, 0.17), k.pale, plain=True)


def _plane(p: Pen, d: Dice, k: Inks) -> None:
    p.fill(p.polygon([(0.15, 0.05), (-0.45, 0.85), (-0.15, 0.85), (0.45, 0.05)]), k.second)
    p.fill(p.polygon([(-0.65, 0.0), (-0.98, 0.5), (-0.75, 0.5), (-0.4, 0.05)]), k.second)
    p.fill(union(p.oval(0.0, 0, 0.95, 0.2)), k.main)
    p.fill(p.polygon([(0.2, -0.05), (-0.35, -0.85), (-0.05, -0.85), (0.5, -0.05)]), k.second)
    for x in (-0.3, -0.05, 0.2, 0.45):
        p.fill(p.circle(x, 0.05, 0.06), k.pale, plain=True)


def _train(p: Pen, d: Dice, k: Inks) -> None:
    p.fill(p.box(-0.5, 0.15, 0.36, 0.55, 0.04), k.main)
    p.fill(p.box(-0.5, 0.35, 0.2, 0.18), k.pale, plain=True)
    p.fill(p.box(0.3, -0.08, 0.55, 0.32, 0.1), k.main)
    p.fill(p.polygon([(0.48, 0.2), (0.42, 0.72), (0.8, 0.72), (0.74, 0.2)]), k.dark)
    p.fill(p.polygon([(0.8, -0.35), (0.98, -0.62), (0.8, -0.62)]), k.second, plain=True)
    p.fill(p.box(0, -0.4, 0.85, 0.07), k.second, plain=True)
    for x in (-0.6, -0.1, 0.35, 0.72):
        _wheel(p, x, -0.58, 0.2, k)


def _balloon(p: Pen, d: Dice, k: Inks) -> None:
    for x in (-0.2, 0.2):
        p.fill(p.line([(x * 1.8, -0.05), (x, -0.68)], 0.04), k.dark, plain=True)
    hull = union(
        p.circle(0, 0.32, 0.62), p.polygon([(-0.5, 0.0), (0.5, 0.0), (0.2, -0.45), (-0.2, -0.45)])
    )
    p.fill(hull, k.main)
    p.fill(both(hull, p.oval(0, 0.2, 0.22, 0.8)), k.second, plain=True)
    p.fill(p.box(0, -0.8, 0.24, 0.17, 0.05), (0.55, 0.36, 0.2))


def _bicycle(p: Pen, d: Dice, k: Inks) -> None:
    for x in (-0.55, 0.55):
        p.fill(cut(p.circle(x, -0.3, 0.42), p.circle(x, -0.3, 0.31)), k.dark, plain=True)
    frame = [(-0.55, -0.3), (-0.2, 0.25), (0.35, 0.25), (0.0, -0.3), (-0.55, -0.3)]
    p.fill(p.line(frame, 0.1), k.main, plain=True)
    p.fill(p.line([(0.0, -0.3), (-0.27, 0.42)], 0.1), k.main, plain=True)
    p.fill(p.line([(0.55, -0.3), (0.32, 0.5), (0.55, 0.58)], 0.1), k.main, plain=True)
    p.fill(p.box(-0.28, 0.46, 0.18, 0.07, 0.05), k.dark, plain=True)


def _tractor(p: Pen, d: Dice, k: Inks) -> None:
    p.fill(p.box(-0.35, 0.42, 0.36, 0.4, 0.05), k.main)
    p.fill(p.box(-0.35, 0.48, 0.24, 0.22), k.pale, plain=True)
    p.fill(p.box(0.38, -0.05, 0.5, 0.24, 0.05), k.main)
    p.fill(p.box(0.55, 0.38, 0.06, 0.24), k.dark, plain=True)
    _wheel(p, -0.4, -0.35, 0.5, k)
    _wheel(p, 0.65, -0.55, 0.28, k)


VEHICLES: dict[str, Figure] = {
    "car": _car,
    "boat": _boat,
    "rocket": _rocket,
    "plane": _plane,
    "train": _train,
    "balloon": _balloon,
    "bicycle": _bicycle,
    "tractor": _tractor,
}


# Letters and digits, strokes on a box from (-0.55, -0.85) to (0.55, 0.85).

_BOWL = arc(-0.05, 0.42, 0.42, 90, -90, 8)
STROKES: dict[str, list[list[Point]]] = {
    "A": [[(-0.6, -0.85), (0, 0.85), (0.6, -0.85)], [(-0.36, -0.2), (0.36, -0.2)]],
    "E": [
        [(0.5, 0.85), (-0.45, 0.85), (-0.45, -0.85), (0.5, -0.85)],
        [(-0.45, 0.05), (0.35, 0.05)],
    ],
    "H": [[(-0.5, 0.85), (-0.5, -0.85)], [(0.5, 0.85), (0.5, -0.85)], [(-0.5, 0), (0.5, 0)]],
    "K": [[(-0.45, 0.85), (-0.45, -0.85)], [(0.5, 0.85), (-0.45, -0.05), (0.55, -0.85)]],
    "M": [[(-0.65, -0.85), (-0.6, 0.85), (0, -0.2), (0.6, 0.85), (0.65, -0.85)]],
    "P": [[(-0.4, -0.85), (-0.4, 0.85), (-0.05, 0.84), *_BOWL, (-0.4, 0.0)]],
    "T": [[(-0.65, 0.85), (0.65, 0.85)], [(0, 0.85), (0, -0.85)]],
    "X": [[(-0.55, 0.85), (0.55, -0.85)], [(0.55, 0.85), (-0.55, -0.85)]],
    "zero": [[around(0, 0, 1, 90 + 24 * i) for i in range(16)]],
    "one": [[(-0.32, 0.5), (0.08, 0.85), (0.08, -0.85)], [(-0.3, -0.85), (0.42, -0.85)]],
    "two": [[*arc(0, 0.4, 0.45, 165, -35, 9), (-0.5, -0.85), (0.55, -0.85)]],
    "three": [[*arc(-0.02, 0.42, 0.42, 150, -80, 8), *arc(-0.02, -0.42, 0.45, 80, -150, 8)]],
    "four": [[(0.25, -0.85), (0.25, 0.85), (-0.58, -0.3), (0.6, -0.3)]],
    "five": [[(0.48, 0.85), (-0.38, 0.85), (-0.42, 0.12), *arc(0, -0.3, 0.5, 100, -140, 10)]],
    "six": [[(0.3, 0.85), (-0.2, 0.4), *arc(0, -0.36, 0.48, 160, 520, 14)]],
    "seven": [[(-0.52, 0.85), (0.54, 0.85), (-0.12, -0.85)]],
    "eight": [
        [around(0, 0.43, 0.38, 270 + 30 * i) for i in range(13)],
        [around(0, -0.42, 0.44, 90 + 30 * i) for i in range(13)],
    ],
    "nine": [[*arc(0, 0.36, 0.46, -20, 340, 14), (0.42, 0.1), (0.12, -0.85)]],
}
STROKES["zero"] = [[(0.5 * x, 0.85 * y) for x, y in STROKES["zero"][0]]]


def _glyph(name: str) -> Figure:
    """Return the figure of a letter or digit in one of many hands."""

    def draw(p: Pen, dice: Dice, ink: Inks) -> None:
        lean, wide, width = (
            dice.number(-0.25, 0.25),
            dice.number(0.75, 1.15),
            dice.number(0.15, 0.32),
        )
        shake = dice.number(0, 0.06)
        strokes = []
        for stroke in STROKES[name]:
            points = [
                (
                    (x + lean * y) * wide + dice.number(-shake, shake),
                    y + dice.number(-shake, shake),
                )
                for x, y in stroke
            ]
            strokes.append(p.line(points, width))
        p.fill(union(*strokes), ink.main)

    return draw


LETTERS: dict[str, Figure] = {f"letter {name}": _glyph(name) for name in "AEHKMPTX"}
DIGITS: dict[str, Figure] = {
    f"digit {name}": _glyph(name)
    for name in ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
}
