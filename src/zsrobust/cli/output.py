"""What commands share in printing: JSON, tables, and whether a terminal is there."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from zsrobust.evaluation.statistics import Interval
    from zsrobust.evaluation.table import EvaluationTable, Row


def print_json(value: Any) -> None:
    """Print a result as JSON on standard output."""
    typer.echo(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False))


def on_terminal() -> bool:
    """Whether a progress bar has somebody to look at it."""
    return sys.stderr.isatty()


def say(line: str) -> None:
    """Print one line beside the result, on standard error."""
    typer.echo(line, err=True)


def percent(interval: Interval) -> str:
    """Return "16.2 [14.9, 17.5]", in per cent."""
    return f"{100 * interval.value:.1f} [{100 * interval.low:.1f}, {100 * interval.high:.1f}]"


def signed(interval: Interval) -> str:
    """Return "+13.8 [+12.5, +15.1]", in points."""
    return f"{100 * interval.value:+.1f} [{100 * interval.low:+.1f}, {100 * interval.high:+.1f}]"


def print_table(table: EvaluationTable) -> None:
    """Print one table an eps: a row a model and set, the mean, and the difference to the first model.

    Of up to four models the differences of the others' means to each other follow.
    """
    from rich import box
    from rich.console import Console
    from rich.table import Table

    from zsrobust.threat import format_eps

    # Wider than any table: a narrow terminal may break a line in two, but no number is cut short.
    console = Console(width=1000, markup=False, emoji=False)
    raised = table.raised
    for eps in table.radii:
        norm = table.request["norm"]
        threat = "clean only" if eps is None else f"{norm}, eps {format_eps(eps)}"
        shown = Table(
            title=f"{table.suite}: {threat}; accuracy in %, 95% interval in brackets",
            box=box.SIMPLE_HEAD,
            title_justify="left",
        )
        shown.add_column("model", overflow="fold", max_width=32)
        shown.add_column("set", no_wrap=True)
        shown.add_column("n", justify="right")
        columns = [c for c in table.columns if c == "clean" or eps is not None]
        for column in columns:
            shown.add_column(column, justify="right", no_wrap=True)
        for model in table.models:
            for source in (True, False):
                for row in table.of(model, eps, source=source):
                    name = row.image_set + (" (source)" if source else "")
                    name += " @native" if row.resolution == "native" else ""
                    flagged = {flag.name for flag in row.flags}
                    name += "".join(f" [{raised[flag]}]" for flag in raised if flag in flagged)
                    shown.add_row(
                        model,
                        name,
                        str(len(row.ids)),
                        *(percent(row.accuracy(c)) for c in columns),
                    )
                    if source and model != table.models[0]:
                        base = table.models[0]
                        shown.add_row(
                            f"{model} minus {base}",
                            name,
                            "paired",
                            *(
                                signed(table.set_difference(base, model, eps, row.image_set, c))
                                for c in columns
                            ),
                        )
            rows = table.of(model, eps)
            if rows:
                shown.add_row(
                    model,
                    _mean_of(len(rows)),
                    str(sum(len(r.ids) for r in rows)),
                    *(percent(table.mean(model, eps, c)) for c in columns),
                    style="bold",
                    end_section=model == table.models[-1],
                )
            if rows and model != table.models[0]:
                shown.add_row(
                    f"{model} minus {table.models[0]}",
                    _mean_of(len(rows)),
                    "paired",
                    *(signed(table.difference(table.models[0], model, eps, c)) for c in columns),
                    style="bold",
                )
            shown.add_section()
        for first, second in table.shown_pairs(eps):
            rows = table.of(first, eps)
            shown.add_row(
                f"{first} minus {second}",
                _mean_of(len(rows)),
                "paired",
                *(signed(table.difference(second, first, eps, c)) for c in columns),
                style="bold",
            )
        console.print(shown)
    attacks = ", ".join(table.request["attacks"])
    if attacks:
        typer.echo(
            f"robust: right under each of {attacks}; clean mistakes count as broken. Intervals are "
            "conditional on these sets and, for one seed, on that training run."
        )
    for line in flag_notes(table):
        typer.echo(line)


def flag_notes(table: EvaluationTable) -> list[str]:
    """Return a footnote for each flag that is raised: what it is raised for, and where to read on."""
    from zsrobust.evaluation.trust import ABOUT

    return [
        f"[{number}] {name}: {ABOUT[name].raised_if}; see docs/trust.md."
        for name, number in table.raised.items()
    ]


def markdown_table(table: EvaluationTable) -> str:
    """Return the table as Markdown: a row a set, the models side by side, with paired differences.

    One table an eps for clean accuracy and one for the union; the first model is compared with. Of up to four
    models the differences of the others' means to each other stand below the mean, each in the column of
    its later model.
    """
    from zsrobust.threat import format_eps

    base, *others = table.models
    raised = table.raised

    def accuracy(row: Row, column: str) -> str:
        """The number, with the footnotes of its flags."""
        marks = [f" [{raised[flag]}]" for flag in row.flags_at(column)]
        return percent(row.accuracy(column)) + "".join(marks)

    parts = []
    for eps in table.radii:
        for column in ("clean", "robust") if eps is not None else ("clean",):
            attacks = ", ".join(table.request["attacks"])
            what = f"robust (union of {attacks})" if column == "robust" else "clean"
            threat = "" if eps is None else f", {table.request['norm']} {format_eps(eps)}"
            head = ["set", "n", "classes", base]
            for model in others:
                head += [model, "difference, paired"]
            lines = [
                f"**{what}{threat}**, accuracy in %, 95% interval",
                "",
                f"| {' | '.join(head)} |",
                f"|{'---|' * len(head)}",
            ]
            for source in (True, False):
                for row in table.of(base, eps, source=source):
                    name = row.image_set + (" (source)" if source else "")
                    cells = [name, str(len(row.ids)), str(row.classes)]
                    cells.append(accuracy(row, column))
                    for model in others:
                        (other,) = (
                            r
                            for r in table.of(model, eps, source=source)
                            if r.image_set == row.image_set
                        )
                        difference = table.set_difference(base, model, eps, row.image_set, column)
                        cells += [accuracy(other, column), signed(difference)]
                    lines.append(f"| {' | '.join(cells)} |")
            rows = table.of(base, eps)
            if rows:
                cells = [f"**{_mean_of(len(rows))}**", str(sum(len(r.ids) for r in rows)), ""]
                cells.append(f"**{percent(table.mean(base, eps, column))}**")
                for model in others:
                    cells.append(f"**{percent(table.mean(model, eps, column))}**")
                    cells.append(f"**{signed(table.difference(base, model, eps, column))}**")
                lines.append(f"| {' | '.join(cells)} |")
            for first, second in table.shown_pairs(eps):
                own = table.of(first, eps)
                cells = [""] * len(head)
                cells[0] = f"{first} minus {second}, {_mean_of(len(own))}"
                cells[1] = str(sum(len(r.ids) for r in own))
                cells[3 + 2 * table.models.index(second)] = signed(
                    table.difference(second, first, eps, column)
                )
                lines.append(f"| {' | '.join(cells)} |")
            parts.append("\n".join(lines))
    return "\n\n".join([*parts, *flag_notes(table)])


def _mean_of(sets: int) -> str:
    return f"mean of {sets} set{'' if sets == 1 else 's'}"
