"""The report's plots: SVG that stands in the page itself.

Text stays text and colours become the page's own variables, so that a plot follows the page's font and its light
or dark scheme. Each plot is as wide as a phone; a wide page puts two side by side.
"""

from __future__ import annotations

import html
import io
import math
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib import rc_context
from matplotlib.figure import Figure

from zsrobust.evaluation.statistics import Interval
from zsrobust.threat import format_eps

WIDTH = 4.5  # inches: 432 units of the SVG, about a phone's width
MODELS = 8  # colours; a ninth model gets the first one again
_LONGEST = 44  # characters of a name in a plot

# What is drawn in these colours takes the page's variable: var(--ink), ..., var(--m0), ...
_INK, _MUTED, _LINE, _PAPER = "#010101", "#010102", "#010103", "#010104"
_MODEL = [f"#0102{i:02x}" for i in range(MODELS)]
_VARIABLES = {_INK: "ink", _MUTED: "muted", _LINE: "line", _PAPER: "paper"} | {
    colour: f"m{i}" for i, colour in enumerate(_MODEL)
}
MARKERS = "osD^vPX*"  # one a colour

# What every figure has, in a page or alone; the same numbers give the same file.
STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "zsrobust",
    "font.size": 9,
    "text.parse_math": False,  # a name may hold dollars
}
NO_METADATA = {"Date": None, "Creator": None, "Format": None, "Type": None}

_STYLE = STYLE | {
    "text.color": _INK,
    "axes.edgecolor": _LINE,
    "axes.labelcolor": _MUTED,
    "xtick.color": _LINE,
    "ytick.color": _LINE,
    "xtick.labelcolor": _MUTED,
    "ytick.labelcolor": _MUTED,
}


@dataclass(frozen=True, slots=True)
class BarGroup:
    """One group of bars: a set, or the mean."""

    name: str
    bars: list[Interval]
    """One a model, in [0, 1]."""
    strong: bool = False
    """Whether the name is set in bold."""


@dataclass(frozen=True, slots=True)
class Point:
    """One model in the plot of clean against robust, all in [0, 1]."""

    name: str
    colour: int
    clean: Interval
    robust: Interval
    sets: list[tuple[float, float]]
    """(clean, robust) of each set."""


@dataclass(frozen=True, slots=True)
class Curve:
    """One model in the plot against eps: accuracies in [0, 1], the clean one at eps 0."""

    name: str
    colour: int
    means: list[tuple[float, Interval]]
    """(eps in [0, 1]-pixel units, mean), eps ascending."""


def bars(
    groups: Sequence[BarGroup], colours: Sequence[int], title: str, alt: str, prefix: str
) -> str:
    """Return horizontal bars with their 95% intervals, a group a set, a bar a model.

    Args:
        groups: from the top.
        colours: number of each model's colour.
        title: above the plot.
        alt: what the plot shows, for those who cannot see it.
        prefix: of the ids inside, different for each plot of a page.
    """
    thick, gap, head = 0.145, 0.13, 0.2  # inches
    models = len(groups[0].bars)
    each = head + models * thick + gap
    height = len(groups) * each + 0.75
    with rc_context(_STYLE):  # type: ignore[arg-type]  # its keys are literals to the stubs
        figure = Figure(figsize=(WIDTH, height))
        axes = figure.add_axes((0.03, 0.42 / height, 0.9, 1 - 0.75 / height))
        y = 0.0
        for group in groups:
            weight = "bold" if group.strong else "normal"
            axes.text(0, y + head / 2 + 0.02, _short(group.name), va="center", weight=weight)
            y += head
            for colour, bar in zip(colours, group.bars, strict=True):
                _bar(axes, bar, y + thick / 2, thick, _MODEL[colour % MODELS])
                y += thick
            y += gap
        axes.set_ylim(y, 0)
        axes.set_xlim(0, 100)
        axes.set_yticks([])
        axes.set_xticks(range(0, 101, 20), [f"{tick}%" for tick in range(0, 101, 20)])
        axes.grid(axis="x", color=_LINE, linewidth=0.6)
        axes.set_axisbelow(True)
        axes.tick_params(length=0)
        for side in ("top", "right", "bottom"):
            axes.spines[side].set_visible(False)
        figure.text(0.03, 1 - 0.14 / height, title, weight="bold", va="center", size=10)
        return _inline(figure, alt, prefix)


def _bar(axes: Any, bar: Interval, y: float, thick: float, colour: str) -> None:
    value, low, high = 100 * bar.value, 100 * bar.low, 100 * bar.high
    axes.barh(y, value, height=0.86 * thick, color=colour, linewidth=0)
    axes.plot([low, high], [y, y], color=_INK, linewidth=0.9, solid_capstyle="butt")
    # The number stands right of the interval, or, where there is no room, inside the bar.
    inside = high > 92
    axes.text(
        (low if inside else high) + (-1.2 if inside else 1.2),
        y,
        f"{value:.1f}",
        va="center_baseline",
        ha="right" if inside else "left",
        size=7.5,
        color=_PAPER if inside else _MUTED,
    )


def clean_against_robust(points: Sequence[Point], alt: str, prefix: str) -> str:
    """Return the mean of each model with its intervals, its sets as small points; one scale on both axes.

    Args:
        points: one a model, the one that the others are compared with first.
        alt: what the plot shows, for those who cannot see it.
        prefix: of the ids inside, different for each plot of a page.
    """
    with rc_context(_STYLE):  # type: ignore[arg-type]  # its keys are literals to the stubs
        across = 0.79 * WIDTH  # inches for 100 points
        highest = max(
            y for point in points for y in (point.robust.high, *(r for _, r in point.sets))
        )
        top = min(100, max(40, 20 * math.ceil((100 * highest + 8) / 20)))
        height = across * top / 100 + 0.7
        figure = Figure(figsize=(WIDTH, height))
        axes = figure.add_axes((0.15, 0.55 / height, 0.79, across * top / 100 / height))
        axes.plot([0, 100], [0, 100], color=_MUTED, linewidth=0.8, linestyle=(0, (3, 3)))
        middle = 0.68 * top
        axes.text(
            middle - 2,
            middle + 2,
            "no image lost to the attack",
            rotation=45,
            color=_MUTED,
            size=7.5,
            ha="center",
            va="center",
            rotation_mode="anchor",
        )
        first = points[0]
        for i, point in enumerate(points):
            colour, marker = _MODEL[point.colour % MODELS], MARKERS[point.colour % MODELS]
            for clean, robust in point.sets:
                axes.plot(
                    100 * clean, 100 * robust, marker, color=colour, alpha=0.4, markersize=3.5
                )
            if i:
                axes.annotate(
                    "",
                    (100 * point.clean.value, 100 * point.robust.value),
                    (100 * first.clean.value, 100 * first.robust.value),
                    arrowprops={
                        "arrowstyle": "->",
                        "color": colour,
                        "linewidth": 1.1,
                        "shrinkA": 7,
                        "shrinkB": 7,
                        "alpha": 0.7,
                    },
                )
        for point in points:
            _mean_point(axes, point)
        _name_points(axes, points)
        axes.set_xlim(0, 100)
        axes.set_ylim(0, top)
        axes.set_xticks(range(0, 101, 20), [f"{tick}%" for tick in range(0, 101, 20)])
        axes.set_yticks(range(0, top + 1, 20), [f"{tick}%" for tick in range(0, top + 1, 20)])
        axes.set_xlabel("right on clean images")
        axes.set_ylabel("right under attack")
        axes.grid(color=_LINE, linewidth=0.6)
        axes.set_axisbelow(True)
        axes.tick_params(length=0)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
        return _inline(figure, alt, prefix)


def against_eps(curves: Sequence[Curve], alt: str, prefix: str) -> str:
    """Return the mean accuracy of each model against eps, with intervals.

    Args:
        curves: one a model.
        alt: what the plot shows, for those who cannot see it.
        prefix: of the ids inside, different for each plot of a page.
    """
    with rc_context(_STYLE):  # type: ignore[arg-type]  # its keys are literals to the stubs
        figure = Figure(figsize=(WIDTH, 0.75 * WIDTH))
        axes = figure.add_axes((0.13, 0.16, 0.82, 0.8))
        for curve in curves:
            colour, marker = _MODEL[curve.colour % MODELS], MARKERS[curve.colour % MODELS]
            eps = [radius for radius, _ in curve.means]
            found = [mean for _, mean in curve.means]
            values = [100 * mean.value for mean in found]
            axes.plot(eps, values, color=colour, linewidth=1.4)
            axes.vlines(
                eps,
                [100 * m.low for m in found],
                [100 * m.high for m in found],
                colour,
                linewidth=1.4,
            )
            axes.plot(
                eps, values, marker, color=colour, markeredgecolor=_PAPER, label=_short(curve.name)
            )
        radii = sorted({radius for curve in curves for radius, _ in curve.means})
        axes.set_xticks(radii, [format_eps(radius) for radius in radii])
        axes.set_ylim(0, 102)
        axes.set_yticks(range(0, 101, 20), [f"{tick}%" for tick in range(0, 101, 20)])
        axes.set_xlabel("eps of the attack; 0 is the clean image")
        axes.grid(color=_LINE, linewidth=0.6, axis="y")
        axes.set_axisbelow(True)
        axes.tick_params(length=0)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
        return _inline(figure, alt, prefix)


def _mean_point(axes: Any, point: Point) -> None:
    x, y = 100 * point.clean.value, 100 * point.robust.value
    colour, marker = _MODEL[point.colour % MODELS], MARKERS[point.colour % MODELS]
    ends = [100 * point.clean.low, 100 * point.clean.high]
    axes.plot(ends, [y, y], color=colour, linewidth=1.6, solid_capstyle="butt")
    ends = [100 * point.robust.low, 100 * point.robust.high]
    axes.plot([x, x], ends, color=colour, linewidth=1.6, solid_capstyle="butt")
    axes.plot(x, y, marker, color=colour, markersize=7.5, markeredgecolor=_PAPER, markeredgewidth=1)


def _name_points(axes: Any, points: Sequence[Point]) -> None:
    """Write the models' names beside their points, pushed apart where they would meet."""
    apart, below = 5.5, -20.0
    letter = 2.2  # points of the axis, about, that a letter is wide
    for point in sorted(points, key=lambda point: point.robust.value):
        x, y = 100 * point.clean.value, 100 * point.robust.value
        below = max(y, below + apart)
        name = _short(point.name)
        wide = 3 + letter * len(name)

        def met(start: float, end: float, y: float = below, own: Point = point) -> int:
            """How much a name there would cover: means of other models, and what lies outside."""
            others = [(100 * p.clean.value, 100 * p.robust.value) for p in points if p is not own]
            covered = sum(start - 3 < a < end + 3 and y - 2 < b < y + 6 for a, b in others)
            return covered + 2 * (start < 0 or end > 100)

        left = met(x - wide, x) < met(x, x + wide)
        axes.text(
            x - 3 if left else x + 3,
            below + 2.4,
            name,
            ha="right" if left else "left",
            va="center",
            weight="bold",
            color=_MODEL[point.colour % MODELS],
        )


def _short(name: str) -> str:
    line = " ".join(name.split())
    return line if len(line) <= _LONGEST else line[: _LONGEST - 1] + "…"


def _inline(figure: Figure, alt: str, prefix: str) -> str:
    """Return the figure as an `<svg>` element that can stand in a page beside others."""
    stream = io.StringIO()
    with warnings.catch_warnings():
        # Only measured with matplotlib's font, shown with the reader's: which may have the letter.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure.savefig(
            stream,
            format="svg",
            transparent=True,
            metadata=NO_METADATA,
        )
    svg = stream.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", svg, flags=re.DOTALL)
    svg = re.sub(r"<defs>\s*</defs>", "", svg)
    svg = re.sub(r'\bid="', f'id="{prefix}-', svg)
    svg = re.sub(r'(href="#|url\(#)', rf"\g<1>{prefix}-", svg)
    # Some versions of matplotlib write `font: 9px 'DejaVu Sans', ...`, others name the family apart.
    svg = re.sub(r"font-family: [^;\"]*;? ?", "", svg)
    svg = re.sub(r"font: ([^;\"]*?[\d.]+px)[^;\"]*", r"font: \1 var(--font)", svg)
    for colour, variable in _VARIABLES.items():
        svg = svg.replace(colour, f"var(--{variable})")
    box = re.search(r'viewBox="([^"]+)"', svg)
    if box is None:
        raise ValueError("matplotlib wrote an SVG without a viewBox")
    opening = f'<svg viewBox="{box[1]}" role="img" aria-label="{html.escape(alt)}">'
    return re.sub(r"\n\s*", "\n", opening + svg[svg.index(">") + 1 :])
