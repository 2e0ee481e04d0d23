"""Plots: SVG that takes the page's font and colours, and draws what it is given."""

from __future__ import annotations

import re
import warnings
from xml.etree import ElementTree

import pytest

from zsrobust.evaluation.statistics import Interval
from zsrobust.report.plots import (
    BarGroup,
    Curve,
    Point,
    against_eps,
    bars,
    clean_against_robust,
)


def interval(value: float, half: float = 0.03) -> Interval:
    return Interval(value, max(0, value - half), min(1, value + half), 100)


GROUPS = [
    BarGroup("mean", [interval(0.667), interval(0.34)], strong=True),
    BarGroup("a set", [interval(0.98), interval(0.0)]),
]


def parse(svg: str) -> ElementTree.Element:
    """As XML; in a page the prefix of links needs no declaration."""
    declared = svg.replace("<svg ", '<svg xmlns:xlink="http://www.w3.org/1999/xlink" ', 1)
    return ElementTree.fromstring(declared)  # noqa: S314 - our own


def texts(svg: str) -> list[str]:
    return [element.text or "" for element in parse(svg).iter("text")]


def test_bars_hold_every_number_and_name():
    """Text stays text: it can be read, searched and enlarged."""
    svg = bars(GROUPS, [0, 2], "Right", "what it shows", "p")
    found = texts(svg)
    assert {"mean", "a set", "Right", "66.7", "34.0", "98.0", "0.0", "100%"} <= set(found)


def test_a_bar_is_as_long_as_its_value():
    """Measured against the axis, in the drawing's own units."""
    svg = bars(GROUPS, [0, 2], "Right", "alt", "p")
    lengths = {}
    for element in parse(svg).iter("path"):
        colour = re.search(r"fill: var\(--(m\d)\)", element.get("style", ""))
        if colour:
            numbers = re.findall(r"[-\d.]+ [-\d.]+", element.get("d", ""))
            across = [float(pair.split()[0]) for pair in numbers]
            lengths.setdefault(colour[1], []).append(max(across) - min(across))
    full = 0.9 * 4.5 * 72
    assert lengths["m0"] == pytest.approx([0.667 * full, 0.98 * full], abs=0.01)
    assert lengths["m2"] == pytest.approx([0.34 * full, 0.0], abs=0.01)


def test_colours_and_font_are_the_pages():
    """No colour and no font family of its own: light and dark are the page's affair."""
    svg = bars(GROUPS, [0, 1], "Right", "alt", "p")
    svg += clean_against_robust(
        [Point("a", 0, interval(0.9), interval(0.1), [(0.9, 0.1)])], "x", "q"
    )
    assert not re.search(r"(?:fill|stroke): #", svg)
    assert "font-family" not in svg
    assert "DejaVu" not in svg
    assert {"var(--ink)", "var(--muted)", "var(--line)", "var(--m0)", "var(--m1)"} <= set(
        re.findall(r"var\(--\w+\)", svg)
    )


def test_nothing_points_outside():
    """Neither a document type nor a date nor a link."""
    svg = bars(GROUPS, [0, 1], "Right", "alt", "p")
    assert "://" not in svg
    assert svg.startswith("<svg viewBox=")
    assert "metadata" not in svg
    ids = re.findall(r'\bid="([^"]+)"', svg)
    assert ids
    assert all(one.startswith("p-") for one in ids)


def test_points_stand_where_their_numbers_are():
    """The mean of each model, its sets, and its name; the axis ends where nothing is above it."""
    given = [
        Point("CLIP", 0, interval(0.7), interval(0.05), [(0.6, 0.1), (0.8, 0.0)]),
        Point("TeCoA", 1, interval(0.6), interval(0.35), [(0.5, 0.3), (0.7, 0.4)]),
    ]
    svg = clean_against_robust(given, "alt", "p")
    assert {"CLIP", "TeCoA", "right under attack", "60%"} <= set(texts(svg))
    assert "80%" in texts(svg)  # of clean accuracy
    assert texts(svg).count("80%") == 1
    marks = [
        (float(use.get("x", "nan")), use.get("style", ""))
        for use in parse(svg).iter("use")
        if "var(--m1)" in use.get("style", "") and "var(--paper)" in use.get("style", "")
    ]
    left, across = 0.15 * 4.5 * 72, 0.79 * 4.5 * 72
    assert [x for x, _ in marks] == pytest.approx([left + 0.6 * across], abs=0.01)


@pytest.mark.parametrize("name", ["$x_1$", "a & <b>", "犬", "a\nb", "x" * 200])
def test_any_name_is_drawn(name):
    """Dollars are no formula, tags are escaped, letters that matplotlib lacks are the reader's, long ones cut."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        svg = bars([BarGroup(name, [interval(0.5)])], [0], "t", "alt", "p")
        point = Point(name, 0, interval(0.5), interval(0.2), [(0.5, 0.2)])
        other = clean_against_robust([point, point], 'al"t', "q")
    wanted = "x" * 43 + "…" if len(name) > 44 else name.replace("\n", " ")
    assert wanted in texts(svg)
    assert wanted in texts(other)
    assert parse(other).get("aria-label") == 'al"t'


def test_a_curve_falls_where_its_numbers_do():
    """Radii are named on the axis, and lower accuracy stands lower on the page."""
    means = [(0.0, interval(0.9)), (1 / 255, interval(0.5)), (4 / 255, interval(0.1))]
    svg = against_eps([Curve("hardened", 1, means)], "what it shows", "p")
    assert {"0", "1/255", "4/255", "100%"} <= set(texts(svg))
    assert "what it shows" in svg
    lines = re.findall(r'd="M ([\d. ]+) \nL ([\d. ]+) \nL ([\d. ]+) \n"', svg)
    falling = [
        [tuple(map(float, point.split())) for point in line]
        for line in lines
        if len({point.split()[1] for point in line}) == 3
    ]
    assert falling
    for line in falling:
        assert [x for x, _ in line] == sorted(x for x, _ in line)
        assert [y for _, y in line] == sorted(y for _, y in line)


def test_more_models_than_colours_are_drawn_all_the_same():
    """The ninth takes the first colour again."""
    many = [interval(0.1 * i) for i in range(10)]
    svg = bars([BarGroup("s", many)], list(range(10)), "t", "alt", "p")
    assert svg.count("var(--m0)") == svg.count("var(--m1)") == 2
    points = [Point(str(i), i, interval(0.9), interval(0.09 * i), []) for i in range(10)]
    assert {str(i) for i in range(10)} <= set(texts(clean_against_robust(points, "alt", "q")))
