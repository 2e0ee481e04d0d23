"""Write docs/results.md from the cells alone: every number of the page is computed here.

    ZSROBUST_DATA=... ZSROBUST_MODELS=... make results

Complete cells are read, missing ones are computed; hardenings that are finished are not run again.
"""

from __future__ import annotations

import json
from pathlib import Path

import strongest

from zsrobust.cli.output import markdown_table, percent, signed
from zsrobust.data import load_suite, open_set
from zsrobust.data.overlap import near_duplicates
from zsrobust.evaluation import EvaluationTable, evaluate
from zsrobust.files import write_text
from zsrobust.threat import format_eps
from zsrobust.training import Run, load_recipe

ROOT = Path(__file__).resolve().parents[2]
ATTACKS = ["clean", "pgd-20", "cw-margin-20"]
LIMIT = 200


def measure(names: list[str], eps: float) -> tuple[EvaluationTable, list[Run]]:
    """Return the table of mini-clip and the runs of `names` at eps, the held-out source beside it."""
    runs = [Run(Path("runs") / name, load_recipe(name)) for name in names]
    models = ["mini-clip", *(run.spec for run in runs)]
    table = evaluate(
        models, "mini", ATTACKS, eps, limit=LIMIT, out="results", with_source=True, device="cpu"
    )
    return table, runs


def each_attack(table: EvaluationTable) -> str:
    """Return the means under each attack and their union."""
    (eps,) = table.radii
    columns = table.columns
    lines = [f"| model | {' | '.join(columns)} |", f"|{'---|' * (len(columns) + 1)}"]
    for model in table.models:
        cells = [percent(table.mean(model, eps, column)) for column in columns]
        lines.append(f"| {model} | {' | '.join(cells)} |")
        if model != table.models[0]:
            cells = [
                signed(table.difference(table.models[0], model, eps, column)) for column in columns
            ]
            lines.append(f"| {model} minus {table.models[0]} | {' | '.join(cells)} |")
    return "\n".join(lines)


def source_column(table: EvaluationTable) -> str:
    """Return what the models do on held-out source images, outside every mean."""
    (eps,) = table.radii
    lines = ["| model | n | clean | robust |", "|---|---|---|---|"]
    for model in table.models:
        (row,) = table.of(model, eps, source=True)
        numbers = f"{percent(row.accuracy('clean'))} | {percent(row.accuracy('robust'))}"
        lines.append(f"| {model} | {len(row.ids)} | {numbers} |")
    return "\n".join(lines)


def hardening(run: Run) -> str:
    """Return one line on how a model was hardened."""
    recipe = run.recipe
    steps = run.read_log("step")
    start = run.read_log("start")[-1]
    validation = run.read_log("validation")[-1]
    return (
        f"| {recipe.name} | {format_eps(recipe.threat.eps)} | {recipe.optimiser.lr:g} | {recipe.epochs} | "
        f"{len(steps)} | {start['trained_numbers']:,} | {100 * validation['clean']:.1f} | "
        f"{100 * validation['robust']:.1f} |"
    )


def choices() -> str:
    """Return the grids and what was chosen."""
    lines = [
        "| grid | schedule | lr | clean % | robust % | probability of the true class | |",
        "|---|---|---|---|---|---|---|",
    ]
    reasons = []
    for file in sorted((ROOT / "results" / "mini" / "choices").glob("*.json")):
        choice = json.loads(file.read_text("utf-8"))
        schedule = file.stem.rsplit("-", 1)[1]
        for row in choice["grid"]:
            mark = "chosen of this grid" if row["lr"] == choice["chosen"] else ""
            lines.append(
                f"| {choice['recipe']} | {schedule} | {row['lr']:g} | {100 * row['clean']:.1f} | "
                f"{100 * row['robust']:.1f} | {row['true_probability']:.4f} | {mark} |"
            )
        reasons.append(f"- {choice['recipe']}, {schedule}: {choice['reason']}.")
    return "\n".join([*lines, "", *reasons])


def overlaps() -> str:
    """Return the near-duplicate class names between the source and the targets."""
    suite = load_suite("mini")
    source = open_set(suite.source or "", suite.source_split)
    lines = ["| set | target class | source class | why |", "|---|---|---|---|"]
    for spec in suite.sets:
        target = open_set(spec)
        for name, other, why in near_duplicates(source.classnames or [], target.classnames or []):
            lines.append(f"| {target.name} | {name} | {other} | {why} |")
    return "\n".join(lines)


def environment() -> str:
    """Return the versions under which the cells were measured, from their own records."""
    seen = set()
    for file in sorted(Path("results/cells").glob("*/environments.jsonl")):
        for line in file.read_text("utf-8").splitlines():
            row = json.loads(line)
            if "torch" not in row:  # a subset that was complete already: nothing was measured
                continue
            seen.add(
                f"zsrobust {row['zsrobust']}, torch {row['torch']}, open_clip {row['open_clip']}, "
                f"Python {row['python']}, {row['machine']}, {row['device']}, {row['threads']} thread(s), "
                f"{row['slots']} slots"
            )
    return "\n".join(f"- {line}" for line in sorted(seen))


def main() -> None:
    """Measure what is missing and write the page."""
    one, runs_one = measure(["mini/tecoa-ft-eps1"], 1 / 255)
    two, runs_two = measure(["mini/tecoa-ft-eps2", "mini/tecoa-ft-eps2-long"], 2 / 255)
    runs = [*runs_one, *runs_two]
    intro = (ROOT / "results" / "mini" / "intro.md").read_text("utf-8").strip()
    sections = [
        intro,
        "## How the models were hardened",
        "| recipe | eps | lr | epochs | steps | trained numbers | held-out source: clean % | robust % (PGD-10) |\n"
        "|---|---|---|---|---|---|---|---|\n" + "\n".join(hardening(run) for run in runs),
        "## Learning rate and schedule, chosen on held-out source images",
        (ROOT / "results" / "mini" / "choices" / "README.md").read_text("utf-8").strip(),
        choices(),
        "## Trained and attacked at 1/255",
        markdown_table(one),
        "Means over the nine sets under each attack, and paired differences:",
        each_attack(one),
        "## Trained and attacked at 2/255",
        markdown_table(two),
        "Means over the nine sets under each attack, and paired differences:",
        each_attack(two),
        strongest.section(),
        "## The source itself (held-out images, in no mean)",
        "These 200 images are among the 500 on which rate and schedule were chosen.",
        "At 1/255:",
        source_column(one),
        "At 2/255:",
        source_column(two),
        "## Near-duplicate class names between source and targets",
        "Two names are listed if they are equal, if the words of one all stand in the other, or if they end in "
        "the same word; the rule knows spelling, not meaning.",
        overlaps(),
        "## Machine and versions",
        environment(),
    ]
    write_text(ROOT / "docs" / "results.md", "\n\n".join(sections) + "\n")


if __name__ == "__main__":
    main()
