r"""Write the section "The strongest attack" of docs/results.md from the packed records in results/mini/strongest.

    zsrobust eval mini-clip run:runs/mini/tecoa-ft-eps2 --sets mini --eps 2/255 --limit 50 \
        --attacks clean,pgd-paper,pgd-100:step=2/255,autoattack --out results/strongest
    zsrobust report results/strongest --records results/mini/strongest
    python results/mini/strongest.py

No model is loaded: every number is computed from the records.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from zsrobust.cli.output import flag_notes, percent, signed
from zsrobust.evaluation.statistics import paired_difference
from zsrobust.evaluation.stored import read_table
from zsrobust.evaluation.table import EvaluationTable, Row
from zsrobust.files import write_text

HERE = Path(__file__).resolve().parent
PAGE = HERE.parents[1] / "docs" / "results.md"
TITLE = "## The strongest attack at 2/255"
COLUMNS = ["clean", "pgd-paper", "pgd-100:step=2/255", "autoattack"]
COMMANDS = "\n".join(
    line.strip() for line in (__doc__ or "").splitlines() if line.startswith("    ")
)


def section() -> str:
    """Return the section: means, sets, who broke what, and flags."""
    table = read_table([HERE / "strongest"]).table
    (eps,) = table.radii
    return "\n\n".join(
        [
            TITLE,
            f"```\n{COMMANDS}\n```",
            "The first 50 samples of each set. `pgd-paper` takes 100 steps of 1/255 and judges the last image "
            "alone; `pgd-100:step=2/255` takes steps as long as the radius, as the paper does at 1/255, and "
            "judges every query; `autoattack` is AutoAttack standard: `apgd-ce`, `apgd-t`, `fab-t`, `square`, "
            "each on the survivors of the one before.",
            _means(table, eps),
            _flattery(table, eps),
            "By set:",
            _sets(table, eps),
            _broken_by(table, eps),
            "\n".join(flag_notes(table)) or "No flag is raised.",
        ]
    )


def _means(table: EvaluationTable, eps: float | None) -> str:
    base, *others = table.models
    lines = [f"| model | n | {' | '.join(COLUMNS)} |", f"|{'---|' * (len(COLUMNS) + 2)}"]
    for model in table.models:
        rows = table.of(model, eps)
        cells = [percent(table.mean(model, eps, column)) for column in COLUMNS]
        lines.append(f"| {model} | {sum(len(r.ids) for r in rows)} | {' | '.join(cells)} |")
    for model in others:
        cells = [signed(table.difference(base, model, eps, column)) for column in COLUMNS]
        lines.append(f"| {model} minus {base} | paired | {' | '.join(cells)} |")
    return "\n".join(lines)


def _flattery(table: EvaluationTable, eps: float | None) -> str:
    """Return by how much each weaker attack flatters, paired on the same samples."""
    lines = []
    for model in table.models:
        rows = table.of(model, eps)
        strong = [row.values("autoattack") for row in rows]
        told = [
            f"by `{name}` {signed(paired_difference(strong, [row.values(name) for row in rows]))} points"
            for name in COLUMNS[1:-1]
        ]
        lines.append(f"- {model}, flattered against AutoAttack: {', '.join(told)}.")
    return "\n".join(lines)


def _sets(table: EvaluationTable, eps: float | None) -> str:
    lines = [f"| model | set | {' | '.join(COLUMNS)} |", f"|{'---|' * (len(COLUMNS) + 2)}"]
    raised = table.raised
    for model in table.models:
        for row in table.of(model, eps):
            marks = " ".join(
                f"[{raised[n]}]" for n in raised if n in {flag.name for flag in row.flags}
            )
            cells = [percent(row.accuracy(column)) for column in COLUMNS]
            lines.append(f"| {model} | {row.image_set} {marks} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _broken_by(table: EvaluationTable, eps: float | None) -> str:
    """Return how many samples each member of AutoAttack broke."""
    lines = []
    for model in table.models:
        found: Counter[str] = Counter()
        for row in table.of(model, eps):
            found.update(name for name in _breakers(row) if name)
        told = ", ".join(f"{name} {count}" for name, count in found.most_common())
        lines.append(f"- {model}: broken by {told}.")
    return "\n".join(lines)


def _breakers(row: Row) -> list[str | None]:
    return row.by["autoattack"]


def main() -> None:
    """Put the section in place of the one that is there, else behind the tables at 2/255."""
    text = PAGE.read_text("utf-8")
    behind = "## The source itself"
    start = text.find(TITLE)
    end = text.find(behind)
    start = end if start < 0 else start
    write_text(PAGE, f"{text[:start]}{section()}\n\n{text[end:]}")


if __name__ == "__main__":
    main()
