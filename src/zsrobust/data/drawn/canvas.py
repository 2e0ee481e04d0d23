"""A small drawing board: shapes as signed distances, painted with clean edges at any size.

Pictures must be the same bytes on every machine, since a record names its image by a hash. So arrays
of pixels meet only operations that IEEE 754 rounds in one way (+ - * / sqrt, minimum, maximum, floor,
comparison), sines of an angle are rounded to six digits before they meet a pixel, and random numbers come
from Python's `random.Random(text).random()`, whose stream is promised.

Coordinates: x to the right, y upwards, both from -1 to 1 over the picture. A signed distance is
negative inside, in units of its pen.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

T = TypeVar("T")
Field = NDArray[Any]
"""(S, S) float32: one number a pixel."""
Point = tuple[float, float]
Colour = tuple[float, float, float]
Paint = Colour | tuple[Field, Field, Field]
"""Red, green and blue in [0, 1], each one number or one a pixel."""


class Dice:
    """Random choices of one picture, a function of a text alone."""

    def __init__(self, text: str) -> None:
        self._stream = random.Random(text)  # noqa: S311 - pictures, not secrets

    def number(self, low: float, high: float) -> float:
        """Return a number in [low, high)."""
        return low + (high - low) * self._stream.random()

    def whole(self, low: int, high: int) -> int:
        """Return an integer in [low, high], both ends possible."""
        return low + int(self._stream.random() * (high - low + 1))

    def chance(self, probability: float) -> bool:
        """Return True with this probability."""
        return self._stream.random() < probability

    def one(self, of: Sequence[T]) -> T:
        """Return one of several."""
        return of[int(self._stream.random() * len(of))]


def turn(degrees: float) -> Point:
    """Return cosine and sine, rounded so that all machines agree."""
    angle = math.radians(degrees)
    return round(math.cos(angle), 6), round(math.sin(angle), 6)


def around(cx: float, cy: float, radius: float, degrees: float) -> Point:
    """Return the point at an angle on a circle; 0 is to the right, 90 upwards."""
    c, s = turn(degrees)
    return cx + radius * c, cy + radius * s


def arc(
    cx: float, cy: float, radius: float, start: float, end: float, steps: int = 9
) -> list[Point]:
    """Return points along an arc, angles in degrees."""
    return [around(cx, cy, radius, start + (end - start) * i / (steps - 1)) for i in range(steps)]


def union(*fields: Field) -> Field:
    """Return the distance to whichever is nearest."""
    out = fields[0]
    for field in fields[1:]:
        out = np.minimum(out, field)
    return out


def cut(field: Field, *others: Field) -> Field:
    """Return the first without the others."""
    for other in others:
        field = np.maximum(field, -other)
    return field


def both(*fields: Field) -> Field:
    """Return what lies in all of them."""
    out = fields[0]
    for field in fields[1:]:
        out = np.maximum(out, field)
    return out


@lru_cache(maxsize=4)
def grid(size: int) -> tuple[Field, Field]:
    """Return x and y of the pixel centres of a picture of `size` pixels."""
    line = (np.arange(size, dtype=np.float32) + np.float32(0.5)) * np.float32(2 / size) - 1
    x = np.broadcast_to(line[None, :], (size, size))
    y = np.broadcast_to(-line[:, None], (size, size))
    return np.ascontiguousarray(x), np.ascontiguousarray(y)


def wave(t: Field) -> Field:
    """Return a smooth wave of period 1 between -1 and 1: parabolas in place of a sine."""
    phase = t - np.floor(t)
    half = phase * 2 - np.floor(phase * 2)
    hump = half * (1 - half) * 4
    out: Field = np.where(phase < 0.5, hump, -hump)
    return out


def ramp(field: Field, low: float, high: float) -> Field:
    """Return 0 below `low`, 1 above `high`, a straight line between."""
    return np.minimum(np.maximum((field - low) / (high - low), 0), 1)


@dataclass
class Layer:
    """What is painted, with its coverage, before it is laid on a background."""

    size: int

    def __post_init__(self) -> None:
        self.rgb: list[Field] = [np.zeros((self.size, self.size), np.float32) for _ in range(3)]
        self.cover: Field = np.zeros((self.size, self.size), np.float32)


@dataclass(frozen=True)
class Style:
    """How parts are painted: how much light falls from above, and how wide the outline is."""

    light: float = 0.0
    outline: float = 0.0
    ink: Colour = (0.08, 0.08, 0.1)


class Pen:
    """Local coordinates on a layer, and what can be drawn in them.

    Args:
        layer: painted on.
        x: (S, S) local coordinate of each pixel.
        y: as x.
        scale: length of one local unit on the picture, whose half side is 1.
        style: of all parts.
    """

    def __init__(self, layer: Layer, x: Field, y: Field, scale: float, style: Style) -> None:
        self.layer, self.x, self.y, self.scale, self.style = layer, x, y, scale, style

    @classmethod
    def on(cls, layer: Layer, style: Style) -> Pen:
        """Return the pen whose coordinates are the picture's own."""
        return cls(layer, *grid(layer.size), 1.0, style)

    def at(
        self,
        cx: float = 0.0,
        cy: float = 0.0,
        scale: float = 1.0,
        degrees: float = 0.0,
        mirror: bool = False,
    ) -> Pen:
        """Return a pen whose origin lies at (cx, cy), enlarged, then turned anti-clockwise."""
        c, s = turn(degrees)
        dx, dy = self.x - cx, self.y - cy
        x = (dx * c + dy * s) / scale
        y = (dy * c - dx * s) / scale
        return Pen(self.layer, -x if mirror else x, y, self.scale * scale, self.style)

    # Distances.

    def circle(self, cx: float, cy: float, radius: float) -> Field:
        """Return the distance to a disc."""
        dx, dy = self.x - cx, self.y - cy
        return np.sqrt(dx * dx + dy * dy) - radius

    def oval(self, cx: float, cy: float, rx: float, ry: float, degrees: float = 0.0) -> Field:
        """Return about the distance to an ellipse."""
        dx, dy = self.x - cx, self.y - cy
        if degrees:
            c, s = turn(degrees)
            dx, dy = dx * c + dy * s, dy * c - dx * s
        dx, dy = dx / rx, dy / ry
        return (np.sqrt(dx * dx + dy * dy) - 1) * min(rx, ry)

    def box(
        self, cx: float, cy: float, rx: float, ry: float, corner: float = 0.0, degrees: float = 0.0
    ) -> Field:
        """Return the distance to a rectangle of half sides rx, ry, with rounded corners."""
        dx, dy = self.x - cx, self.y - cy
        if degrees:
            c, s = turn(degrees)
            dx, dy = dx * c + dy * s, dy * c - dx * s
        dx, dy = np.abs(dx) - (rx - corner), np.abs(dy) - (ry - corner)
        ox, oy = np.maximum(dx, 0), np.maximum(dy, 0)
        out: Field = np.sqrt(ox * ox + oy * oy) + np.minimum(np.maximum(dx, dy), 0) - corner
        return out

    def below(self, x0: float, y0: float, x1: float, y1: float) -> Field:
        """Return the distance to the half plane to the right of the way from (x0, y0) to (x1, y1)."""
        length = round(math.hypot(x1 - x0, y1 - y0), 6)
        return (self.y - y0) * ((x1 - x0) / length) - (self.x - x0) * ((y1 - y0) / length)

    def polygon(self, points: Sequence[Point]) -> Field:
        """Return the distance to a simple polygon."""
        x, y = self.x, self.y
        nearest: Field = np.full_like(x, 1e6)
        inside = np.zeros(x.shape, bool)
        for (ax, ay), (bx, by) in zip(points, [*points[1:], points[0]], strict=True):
            ex, ey = bx - ax, by - ay
            wx, wy = x - ax, y - ay
            t = np.minimum(np.maximum((wx * ex + wy * ey) / (ex * ex + ey * ey), 0), 1)
            dx, dy = wx - t * ex, wy - t * ey
            nearest = np.minimum(nearest, dx * dx + dy * dy)
            if ay != by:
                crosses = ((y < ay) != (y < by)) & (wx < wy * (ex / ey))
                inside ^= crosses
        distance = np.sqrt(nearest)
        return np.where(inside, -distance, distance)

    def line(self, points: Sequence[Point], width: float) -> Field:
        """Return the distance to a stroke with round ends through the points."""
        nearest: Field = np.full_like(self.x, 1e6)
        for (ax, ay), (bx, by) in pairwise(points):
            ex, ey = bx - ax, by - ay
            wx, wy = self.x - ax, self.y - ay
            length = ex * ex + ey * ey
            if length > 0:
                t = np.minimum(np.maximum((wx * ex + wy * ey) / length, 0), 1)
                wx, wy = wx - t * ex, wy - t * ey
            nearest = np.minimum(nearest, wx * wx + wy * wy)
        return np.sqrt(nearest) - width / 2

    # Painting.

    def coverage(self, distance: Field) -> Field:
        """Return how much of each pixel lies inside, in [0, 1]."""
        per_pixel = self.scale * self.layer.size / 2
        return np.minimum(np.maximum(0.5 - distance * per_pixel, 0), 1)

    def fill(
        self, distance: Field, paint: Paint, *, plain: bool = False, opacity: float = 1.0
    ) -> None:
        """Paint what lies inside.

        Args:
            distance: signed, in this pen's units.
            paint: what with.
            plain: without light and outline, for small parts.
            opacity: 1 hides what is below.
        """
        cover = self.coverage(distance) * opacity if opacity < 1 else self.coverage(distance)
        light = None
        if self.style.light and not plain:
            light = 1 + self.style.light * np.minimum(
                np.maximum(self.y * 0.8 - self.x * 0.6, -1), 1
            )
        layer, rest = self.layer, 1 - cover
        for k in range(3):
            tone = paint[k] if light is None else np.minimum(paint[k] * light, 1)
            layer.rgb[k] = layer.rgb[k] * rest + cover * tone
        layer.cover = layer.cover * rest + cover
        if self.style.outline and not plain:
            width = self.style.outline / self.scale
            self.fill(np.abs(distance) - width / 2, self.style.ink, plain=True)


def lay(
    layer: Layer, background: tuple[Field, Field, Field], shadow: float
) -> tuple[Field, Field, Field]:
    """Return a layer laid on a background, with a soft shadow to the lower right.

    Args:
        layer: painted.
        background: (S, S) red, green, blue.
        shadow: its depth in [0, 1]; 0 is none.
    """
    rest = 1 - layer.cover
    if shadow:
        shift = max(layer.size // 24, 1)
        soft = layer.cover
        soft = np.pad(soft, ((shift, 0), (shift, 0)))[: layer.size, : layer.size]
        for axis in (0, 1, 0, 1):
            soft = _blur(soft, shift, axis)
        rest = rest * (1 - shadow * soft)
    red, green, blue = (b * rest + c for b, c in zip(background, layer.rgb, strict=True))
    return red, green, blue


def _blur(field: Field, reach: int, axis: int) -> Field:
    pads = [(0, 0), (0, 0)]
    pads[axis] = (reach, reach)
    wide, count = np.pad(field, pads), field.shape[axis]
    total: Field = np.zeros_like(field)
    for i in range(2 * reach + 1):
        total = total + (wide[i : i + count] if axis == 0 else wide[:, i : i + count])
    return total / np.float32(2 * reach + 1)


def cloud(dice: Dice, size: int, cells: int) -> Field:
    """Return soft noise in [0, 1]: random values on a grid of cells, joined smoothly."""
    values = np.array(
        [[dice.number(0, 1) for _ in range(cells + 1)] for _ in range(cells + 1)], np.float32
    )
    place = (np.arange(size, dtype=np.float32) + np.float32(0.5)) * np.float32(cells / size)
    low = np.floor(place)
    part = place - low
    part = part * part * (3 - 2 * part)
    i = low.astype(np.int64)
    rows = values[i] * (1 - part[:, None]) + values[i + 1] * part[:, None]
    field: Field = rows[:, i] * (1 - part) + rows[:, i + 1] * part
    return field


def to_pixels(rgb: tuple[Field, Field, Field]) -> NDArray[np.uint8]:
    """Return (S, S, 3) uint8 of values in [0, 1], rounded to the nearest."""
    stacked = np.stack(rgb, axis=-1)
    rounded: NDArray[np.uint8] = np.floor(
        np.minimum(np.maximum(stacked, 0), 1) * 255 + np.float32(0.5)
    ).astype(np.uint8)
    return rounded
