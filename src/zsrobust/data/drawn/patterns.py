"""Patterns: which of two colours stands where, over a whole picture or inside a shape.

Each takes a pen whose unit is one cell of the pattern and returns the coverage of the second colour.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from zsrobust.data.drawn.canvas import Dice, Field, Pen, union, wave

Pattern = Callable[[Pen, Dice], Field]


def _saw(t: Field) -> Field:
    """Return the distance to the nearest whole number, at most 0.5."""
    out: Field = np.abs(t - np.floor(t + 0.5))
    return out


def _cell(t: Field) -> Field:
    """Return the place within a cell, from -0.5 to 0.5."""
    return t - np.floor(t) - 0.5


def _odd(t: Field) -> Field:
    """Return 1 in every second cell, 0 in the others."""
    half = np.floor(t) * 0.5
    return (half - np.floor(half)) * 2


def striped(p: Pen, dice: Dice) -> Field:
    """Return bars of one width."""
    return p.coverage(_saw(p.x) - dice.number(0.18, 0.3))


def dotted(p: Pen, dice: Dice) -> Field:
    """Return discs in rows, every second row shifted."""
    x = p.x + _odd(p.y) * 0.5
    dx, dy = _cell(x), _cell(p.y)
    return p.coverage(np.sqrt(dx * dx + dy * dy) - dice.number(0.24, 0.36))


def grid_lines(p: Pen, dice: Dice) -> Field:
    """Return thin lines both ways."""
    return p.coverage(np.minimum(_saw(p.x), _saw(p.y)) - dice.number(0.07, 0.12))


def plaid(p: Pen, dice: Dice) -> Field:
    """Return broad bars both ways that add up where they cross."""
    broad = dice.number(0.2, 0.28)
    across, along = p.coverage(_saw(p.x) - broad), p.coverage(_saw(p.y) - broad)
    thin = p.coverage(np.minimum(_saw(p.x + 0.5), _saw(p.y + 0.5)) - 0.04)
    return np.minimum((across + along) * 0.5 + thin * 0.5, 1)


def speckled(p: Pen, dice: Dice) -> Field:
    """Return specks of several sizes without any order."""
    specks = []
    for _ in range(26):
        reach = 1 / p.scale
        cx, cy = dice.number(-reach, reach), dice.number(-reach, reach)
        c = (p.x - cx) * (p.x - cx) + (p.y - cy) * (p.y - cy)
        specks.append(np.sqrt(c) - dice.number(0.12, 0.34))
    return p.coverage(union(*specks))


def bullseye(p: Pen, dice: Dice) -> Field:
    """Return circles around one middle."""
    cx, cy = dice.number(-0.8, 0.8), dice.number(-0.8, 0.8)
    dx, dy = p.x - cx, p.y - cy
    return p.coverage(_saw(np.sqrt(dx * dx + dy * dy)) - 0.25)


def checkered(p: Pen, dice: Dice) -> Field:
    """Return squares of two colours in turn."""
    del dice
    sides = np.minimum(0.5 - np.abs(_cell(p.x)), 0.5 - np.abs(_cell(p.y)))
    other = np.abs(_odd(p.x) - _odd(p.y))
    return p.coverage(np.where(other > 0.5, -sides, sides))


def zigzag(p: Pen, dice: Dice) -> Field:
    """Return bars that turn sharply to and fro."""
    return p.coverage((_saw(p.y + _saw(p.x * 0.8) * 1.25) - dice.number(0.2, 0.28)) * 0.75)


def wavy(p: Pen, dice: Dice) -> Field:
    """Return bars that swing softly to and fro."""
    return p.coverage((_saw(p.y + wave(p.x * 0.5) * 0.38) - dice.number(0.2, 0.28)) * 0.85)


def brick(p: Pen, dice: Dice) -> Field:
    """Return oblong stones in rows with joints between; the joints are the second colour."""
    joint = dice.number(0.06, 0.1)
    row = _odd(p.y)
    across = 0.5 - np.abs(_cell(p.x * 0.5 + row * 0.5))
    along = 0.5 - np.abs(_cell(p.y))
    return p.coverage(np.minimum(across * 2, along) - joint)


def honeycomb(p: Pen, dice: Dice) -> Field:
    """Return six-sided cells with walls between; the walls are the second colour."""
    wall = dice.number(0.07, 0.11)
    high = 1.7320508

    def hexagon(x: Field, y: Field) -> Field:
        ax, ay = np.abs(x), np.abs(y)
        return 0.5 - np.maximum(ax, ax * 0.5 + ay * 0.8660254)

    first = hexagon(_cell(p.x), _cell(p.y / high) * high)
    second = hexagon(_cell(p.x + 0.5), _cell(p.y / high + 0.5) * high)
    return p.coverage(np.maximum(first, second) - wall)


def scaly(p: Pen, dice: Dice) -> Field:
    """Return rows of round scales that lie over each other, edges in the second colour."""
    edge = dice.number(0.08, 0.12)
    best: Field = np.full_like(p.x, 1.0)
    taken = np.zeros(p.x.shape, bool)
    for k in (0, 1, 2):  # the scale in front first
        row = np.floor(p.y * 2) + 1 - k
        half = row * 0.5
        x = _cell(p.x + (half - np.floor(half)))
        y = p.y * 2 - row
        y = y * 0.5 - 0.0
        radius = np.sqrt(x * x + y * y)
        inside = (radius < 0.56) & (y < 0.5) & ~taken
        best = np.where(inside, np.abs(radius - 0.52) - edge, best)
        taken |= inside
    return p.coverage(best)


def woven(p: Pen, dice: Dice) -> Field:
    """Return bands that go over and under each other; the gaps and edges are the second colour."""
    gap = dice.number(0.1, 0.15)
    over = np.abs(_odd(p.x) - _odd(p.y)) > 0.5
    x, y = np.abs(_cell(p.x)), np.abs(_cell(p.y))
    across = np.where(over, x, y)  # of the band on top
    fold = np.where(over, y, x)
    edges = np.minimum(0.5 - gap - across, 1.0)
    middle = np.abs(across) - 0.05
    return p.coverage(np.minimum(np.minimum(edges, middle), 0.52 - fold))


def marbled(p: Pen, dice: Dice) -> Field:
    """Return veins that wander."""
    bend = p.x * 0
    for _ in range(4):
        a, b = dice.number(-0.45, 0.45), dice.number(-0.45, 0.45)
        bend = bend + wave(p.x * a + p.y * b + dice.number(0, 1)) * dice.number(0.35, 0.7)
    vein = _saw(p.x * 0.25 + p.y * 0.18 + bend) * 2
    return np.minimum(np.maximum(1.15 - vein * 2.6, 0), 1)


SOURCE: dict[str, Pattern] = {
    "striped pattern": striped,
    "dotted pattern": dotted,
    "grid pattern": grid_lines,
    "plaid pattern": plaid,
    "speckled pattern": speckled,
    "bullseye pattern": bullseye,
}
TARGET: dict[str, Pattern] = {
    "checkered pattern": checkered,
    "zigzag pattern": zigzag,
    "wavy pattern": wavy,
    "brick pattern": brick,
    "honeycomb pattern": honeycomb,
    "scaly pattern": scaly,
    "woven pattern": woven,
    "marbled pattern": marbled,
}


@dataclass(frozen=True)
class Ornaments:
    """Patterns that may stand inside a shape, and faintly behind it, by their first word."""

    fills: tuple[str, ...]
    behind: tuple[str, ...]


ORNAMENTS = Ornaments(
    ("striped", "dotted", "checkered", "zigzag", "wavy", "grid"), ("striped", "dotted", "checkered")
)
SOURCE_ORNAMENTS = Ornaments(("striped", "dotted", "grid", "plaid"), ("striped", "dotted", "grid"))
"""Without the patterns that are classes of a target: the hardening must not see them even as a fill."""
