"""Colours with names, and paints made of them."""

from __future__ import annotations

from zsrobust.data.drawn.canvas import Colour, Dice

COLOURS: dict[str, Colour] = {
    "red": (0.85, 0.16, 0.15),
    "orange": (0.95, 0.52, 0.12),
    "yellow": (0.96, 0.83, 0.22),
    "green": (0.22, 0.62, 0.27),
    "turquoise": (0.16, 0.68, 0.68),
    "blue": (0.17, 0.36, 0.82),
    "purple": (0.50, 0.25, 0.68),
    "pink": (0.95, 0.55, 0.72),
    "brown": (0.48, 0.30, 0.17),
    "black": (0.10, 0.10, 0.12),
    "white": (0.96, 0.95, 0.93),
    "grey": (0.55, 0.56, 0.58),
}


def shade(dice: Dice, name: str, spread: float = 0.07) -> Colour:
    """Return a colour that still goes by its name."""
    red, green, blue = (min(max(v + dice.number(-spread, spread), 0), 1) for v in COLOURS[name])
    return red, green, blue


def mixed(a: Colour, b: Colour, part: float) -> Colour:
    """Return a with a part of b in it."""
    red, green, blue = (x + (y - x) * part for x, y in zip(a, b, strict=True))
    return red, green, blue


def darker(colour: Colour, part: float = 0.4) -> Colour:
    """Return a colour nearer to black."""
    return mixed(colour, (0.03, 0.03, 0.06), part)


def lighter(colour: Colour, part: float = 0.5) -> Colour:
    """Return a colour nearer to white."""
    return mixed(colour, (1.0, 1.0, 1.0), part)


def distance(a: Colour, b: Colour) -> float:
    """Return how far apart two colours look, green weighing most; black and white are 1 apart."""
    weights = (0.3, 0.5, 0.2)
    return sum(w * abs(x - y) for w, x, y in zip(weights, a, b, strict=True))


def unlike(*colours: Colour, apart: float) -> list[str]:
    """Return the names whose colours are farther than `apart` from each of the given ones."""
    return [n for n, c in COLOURS.items() if all(distance(c, other) > apart for other in colours)]


def pair(dice: Dice, apart: float = 0.22) -> tuple[str, str]:
    """Return two names whose colours can be told apart, an object's and its background's."""
    names = list(COLOURS)
    while True:
        first, second = dice.one(names), dice.one(names)
        if distance(COLOURS[first], COLOURS[second]) >= apart:
            return first, second
