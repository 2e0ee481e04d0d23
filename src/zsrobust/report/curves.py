"""A study's figure: lines along an axis, or curves of clean against robust; as SVG and PNG files.

They stand alone, in a paper or a page: their colours are their own, text stays text in the SVG, and the same
numbers give the same SVG.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, cycle, repeat
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.figure import Figure

from zsrobust.evaluation.statistics import Interval
from zsrobust.files import write_atomically
from zsrobust.report.plots import MARKERS, NO_METADATA, STYLE

FIGURE_NAMES = ("figure.svg", "figure.png")

_COLOURS = ("#1f5fa8", "#c2570c", "#2c7a4b", "#8a3fa0", "#a8243a", "#5b6472", "#937200", "#0a7f8c")
_MUTED, _GRID = "#5b6472", "#dfe3e8"
_PANEL = (3.6, 2.9)  # inches
_STYLE = STYLE | {
    "axes.edgecolor": _MUTED,
    "axes.labelcolor": _MUTED,
    "xtick.color": _MUTED,
    "ytick.color": _MUTED,
}


@dataclass(frozen=True, slots=True)
class CurvePoint:
    """One measured model, accuracies in [0, 1]."""

    x: float
    label: str
    """Beside the tick, or at the point of a curve."""
    clean: Interval
    robust: Interval
    chosen: bool = False
    colour: int | None = None
    """Of a reference that belongs to one series; None is grey."""


@dataclass(frozen=True, slots=True)
class Curve:
    """One series."""

    name: str
    points: list[CurvePoint]
    colour: int


@dataclass(frozen=True, slots=True)
class Panel:
    """One row of the figure."""

    title: str
    curves: list[Curve]
    reference: list[CurvePoint]
    """Models before hardening: a dashed line across."""
    one_clean: bool = False
    """Whether the series are radii: clean accuracy is then the same in all, and one stands for them."""


def draw_lines(
    panels: Sequence[Panel], *, title: str, x_label: str, log: bool, named: bool
) -> Figure:
    """Return clean accuracy on the left and robust on the right, a row a panel, a line a series.

    Args:
        panels: rows, from the top.
        title: above the figure.
        x_label: the axis.
        log: a logarithmic x.
        named: x counts names: ticks are the points' labels alone.
    """
    with rc_context(_STYLE):  # type: ignore[arg-type]  # its keys are literals to the stubs
        rows = len(panels)
        figure = Figure(figsize=(2 * _PANEL[0], rows * _PANEL[1] + 0.7), layout="constrained")
        figure.suptitle(title, weight="bold", size=10)
        grid = figure.subplots(rows, 2, squeeze=False)
        for panel, line in zip(panels, grid, strict=True):
            for column, axes in zip(("clean", "robust"), line, strict=True):
                _line_panel(axes, panel, column, log=log, joined=not named)
                axes.set_xlabel(x_label)
                axes.set_ylabel(
                    "right on clean images" if column == "clean" else "right under attack"
                )
                if panel.title:
                    axes.set_title(panel.title, size=9, loc="left")
                _ticks(axes, panel, named=named, log=log)
        _legend(figure, grid[0][1], panels)
        return figure


def _line_panel(axes: Any, panel: Panel, column: str, *, log: bool, joined: bool) -> None:
    if log:
        axes.set_xscale("log")
    one = panel.one_clean and column == "clean"
    for before in panel.reference[:1] if one else panel.reference:
        level = 100 * getattr(before, column).value
        grey = one or before.colour is None
        colour = _MUTED if grey else _COLOURS[(before.colour or 0) % 8]
        name = "" if one else before.label
        axes.axhline(level, color=colour, linestyle=(0, (4, 3)), linewidth=1, label=name)
    for curve in panel.curves[:1] if one else panel.curves:
        colour, marker = _COLOURS[curve.colour % 8], MARKERS[curve.colour % 8]
        if one:
            colour = _MUTED
        found: list[Interval] = [getattr(point, column) for point in curve.points]
        value = [100 * i.value for i in found]
        axes.errorbar(
            [point.x for point in curve.points],
            value,
            yerr=_reach(found),
            color=colour,
            marker=marker,
            markersize=5,
            linewidth=1.5,
            linestyle="-" if joined else "none",  # nothing lies between two names
            elinewidth=0.9,
            capsize=2,
            label=curve.name,
        )
    axes.set_ylim(0, 100)
    _plain(axes)


def _ticks(axes: Any, panel: Panel, *, named: bool, log: bool) -> None:
    places = {point.x: point.label for curve in panel.curves for point in curve.points}
    axes.set_xticks(list(places), list(places.values()))
    if log:
        axes.minorticks_off()
    if named and max(len(label) for label in places.values()) > 8:
        axes.tick_params(axis="x", rotation=25)


def draw_trade_off(panels: Sequence[Panel], *, title: str) -> Figure:
    """Return curves of clean against robust accuracy, a panel each, side by side; chosen points ringed.

    Args:
        panels: one an eps, for instance.
        title: above the figure.
    """
    with rc_context(_STYLE):  # type: ignore[arg-type]
        count = len(panels)
        figure = Figure(figsize=(max(5.0, 4.2 * count), 4.2), layout="constrained")
        figure.suptitle(title, weight="bold", size=10)
        grid = figure.subplots(1, count, squeeze=False)
        for panel, axes in zip(panels, grid[0], strict=True):
            for curve in panel.curves:
                colour, marker = _COLOURS[curve.colour % 8], MARKERS[curve.colour % 8]
                xs = [100 * point.clean.value for point in curve.points]
                ys = [100 * point.robust.value for point in curve.points]
                axes.plot(
                    xs,
                    ys,
                    color=colour,
                    marker=marker,
                    markersize=4,
                    linewidth=1.4,
                    label=curve.name,
                )
                last = len(curve.points) - 1
                for i, point in enumerate(curve.points):
                    if point.chosen:
                        _ring(axes, point, colour)
                    if i in (0, last) or point.chosen:
                        axes.annotate(
                            point.label,
                            (xs[i], ys[i]),
                            xytext=(6, 6),
                            textcoords="offset points",
                            color=colour,
                            size=8,
                        )
            axes.set_xlabel("right on clean images")
            axes.set_ylabel("right under attack")
            axes.margins(0.12)
            axes.set_xlim(left=max(0, axes.get_xlim()[0]), right=min(102, axes.get_xlim()[1]))
            axes.set_ylim(bottom=max(0, axes.get_ylim()[0]))
            if panel.title:
                axes.set_title(panel.title, size=9, loc="left")
            _plain(axes, both=True)
        _legend(figure, grid[0][0], panels)
        return figure


def draw_points(
    points: Sequence[CurvePoint], reference: Sequence[CurvePoint], *, title: str
) -> Figure:
    """Return clean against robust accuracy, a point a model with its intervals, the names in a legend beside it.

    Args:
        points: one a model.
        reference: what they are set against, models before hardening for one; first in the legend, in grey.
        title: above the figure.
    """
    with rc_context(_STYLE):  # type: ignore[arg-type]
        height = max(4.2, 0.19 * (len(reference) + len(points)) + 1.2)
        figure = Figure(figsize=(7.6, height), layout="constrained")
        figure.suptitle(title, weight="bold", size=10)
        axes = figure.subplots()
        # Seven colours beside eight markers: no pair twice among 56 models.
        colours = cycle([colour for colour in _COLOURS if colour != _MUTED])
        looks = chain(
            zip(repeat(_MUTED, len(reference)), cycle("XDP"), strict=False),
            zip(colours, cycle(MARKERS), strict=False),
        )
        for point, (colour, marker) in zip([*reference, *points], looks, strict=False):
            axes.errorbar(
                100 * point.clean.value,
                100 * point.robust.value,
                xerr=_reach([point.clean]),
                yerr=_reach([point.robust]),
                color=colour,
                marker=marker,
                markersize=6,
                linestyle="none",
                elinewidth=0.7,
                alpha=0.9,
                label=point.label,
            )
        axes.set_xlabel("right on clean images")
        axes.set_ylabel("right under attack")
        axes.margins(0.06)
        axes.set_ylim(bottom=max(0, axes.get_ylim()[0]))
        _plain(axes, both=True)
        handles, labels = axes.get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside right center", frameon=False, fontsize=8)
        return figure


def _reach(intervals: Sequence[Interval]) -> list[list[float]]:
    """Return how far intervals reach below and above their values, in per cent, as error bars take it."""
    # A bootstrap's interval need not hold the value to the last digit.
    return [
        [max(0.0, 100 * (i.value - i.low)) for i in intervals],
        [max(0.0, 100 * (i.high - i.value)) for i in intervals],
    ]


def _ring(axes: Any, point: CurvePoint, colour: str) -> None:
    x, y = 100 * point.clean.value, 100 * point.robust.value
    across, up = _reach([point.clean]), _reach([point.robust])
    axes.errorbar(x, y, xerr=across, yerr=up, color=colour, elinewidth=0.9, capsize=2)
    axes.plot(
        x,
        y,
        "o",
        markersize=12,
        markerfacecolor="none",
        markeredgecolor=colour,
        markeredgewidth=1.6,
        label="chosen on held-out source images",
    )


def _plain(axes: Any, *, both: bool = False) -> None:
    axes.yaxis.set_major_formatter("{x:g}%")
    if both:
        axes.xaxis.set_major_formatter("{x:g}%")
    axes.grid(axis="both" if both else "y", color=_GRID, linewidth=0.7)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def _legend(figure: Figure, axes: Any, panels: Sequence[Panel]) -> None:
    """Put one legend below, each name once; a single nameless series needs none."""
    handles, labels = axes.get_legend_handles_labels()
    once = {label: handle for handle, label in zip(handles, labels, strict=True) if label}
    before = any(panel.reference for panel in panels)
    chosen = any(p.chosen for panel in panels for curve in panel.curves for p in curve.points)
    if len(once) > 1 or before or chosen:
        figure.legend(
            list(once.values()),
            list(once),
            loc="outside lower center",
            ncols=min(3, len(once)),
            frameon=False,
            fontsize=8,
        )


def save_figure(figure: Figure, folder: Path) -> list[Path]:
    """Write `figure.svg` and `figure.png` (200 dots an inch) into a folder; return both.

    Raises:
        EnvironmentFault: if the disk is full or the folder cannot be written.
    """
    files = [folder / name for name in FIGURE_NAMES]
    with rc_context(_STYLE):  # type: ignore[arg-type]
        write_atomically(
            files[0], lambda stream: figure.savefig(stream, format="svg", metadata=NO_METADATA)
        )
        write_atomically(files[1], lambda stream: figure.savefig(stream, format="png", dpi=200))
    return files
