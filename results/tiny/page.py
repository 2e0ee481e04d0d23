"""Fill the tables of docs/demo.md: every number of the page is computed here.

    python results/tiny/page.py

reads what these commands left:

    zsrobust eval tiny --sets demo --with-source --limit 200 --eps EPS --json > results/tiny/unhardened.json
    zsrobust tune tiny/tecoa-ft --lr RATES --json > results/tiny/choices/tecoa.json
    zsrobust tune tiny/adv-ft --lr RATES --json > results/tiny/choices/adv.json
    zsrobust demo --json > results/tiny/demo.json

The first three were run, and committed with the recipes, before any hardened model met a target.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from zsrobust.files import write_text
from zsrobust.threat import format_eps

HERE = Path(__file__).resolve().parent
PAGE = HERE.parents[1] / "docs" / "demo.md"


def read(name: str) -> Any:
    """Return a JSON file of this folder, None if it is not there yet."""
    path = HERE / name
    return json.loads(path.read_text("utf-8")) if path.is_file() else None


def percent(found: dict[str, float], sign: str = "") -> str:
    """Return "16.2 [14.9, 17.5]", in per cent; with a sign for differences."""
    value, low, high = (100 * found[key] for key in ("value", "low", "high"))
    return f"{value:{sign}.1f} [{low:{sign}.1f}, {high:{sign}.1f}]"


def unhardened(found: dict[str, Any]) -> str:
    """Return a row a set: clean, and robust at each eps."""
    radii = list(dict.fromkeys(row["eps"] for row in found["rows"]))
    head = " | ".join(f"robust at {format_eps(eps)}" for eps in radii)
    lines = [f"| set | n | classes | clean | {head} |", "|---" * (4 + len(radii)) + "|"]
    for name in dict.fromkeys(row["set"] for row in found["rows"]):
        rows = [row for row in found["rows"] if row["set"] == name]
        first = rows[0]
        shown = name + (" (held-out source)" if first["source"] else "")
        cells = [shown, str(first["accuracy"]["clean"]["samples"]), str(first["classes"])]
        cells.append(percent(first["accuracy"]["clean"]))
        cells += [percent(row["accuracy"]["robust"]) for row in rows]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def choices() -> str:
    """Return the grids on held-out source images, and why a rate was taken."""
    lines = [
        "| recipe | rate | scored by | clean | robust | probability of the true class, attacked | |",
        "|---|---|---|---|---|---|---|",
    ]
    reasons = []
    for name in ("tecoa", "adv"):
        found = read(f"choices/{name}.json")
        if found is None:
            continue
        for row in found["grid"]:
            mark = "chosen" if row["lr"] == found["chosen"] else ""
            by = row.get("scored_by", "texts")
            numbers = f"{100 * row['clean']:.1f} | {100 * row['robust']:.1f} | {row['true_probability']:.4f}"
            lines.append(f"| {found['recipe']} | {row['lr']:g} | {by} | {numbers} | {mark} |")
        reasons.append(f"{found['recipe']}: {found['reason']}.")
    return "\n".join([*lines, "", *reasons])


def outcome(found: dict[str, Any]) -> str:
    """Return the means of the three models, their paired differences, and a row a set and model."""
    labels = found["labels"]
    lines = [
        "| mean over the sets | clean | pgd-20 | cw-margin-20 | robust |",
        "|---|---|---|---|---|",
    ]
    for mean in found["means"]:
        cells = [percent(mean["mean"][c]) for c in ("clean", "pgd-20", "cw-margin-20", "robust")]
        lines.append(f"| {labels[mean['model']]} | {' | '.join(cells)} |")
    for pair in found["differences"]:
        name = f"{labels[pair['model']]} minus {labels[pair['minus']]}, paired"
        cells = [
            percent(pair["mean"][c], "+") for c in ("clean", "pgd-20", "cw-margin-20", "robust")
        ]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    sets = list(dict.fromkeys(row["set"] for row in found["rows"]))
    names = [f"{label}: clean | robust" for label in labels.values()]
    lines += ["", f"| set | n | {' | '.join(names)} |", "|---" * (2 + 2 * len(labels)) + "|"]
    for name in sets:
        rows = {row["model"]: row["accuracy"] for row in found["rows"] if row["set"] == name}
        cells = [name, str(next(iter(rows.values()))["clean"]["samples"])]
        for model in labels:
            cells += [percent(rows[model][column]) for column in ("clean", "robust")]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Fill each marked place whose records are there."""
    text = PAGE.read_text("utf-8")
    found = {
        "unhardened": unhardened(read("unhardened.json")) if read("unhardened.json") else "",
        "choices": choices(),
        "outcome": outcome(read("demo.json")) if read("demo.json") else "",
    }
    for place, table in found.items():
        pattern = rf"(<!-- {place} -->\n).*?(<!-- end -->)"
        text, count = re.subn(pattern, lambda m, t=table: f"{m[1]}{t}\n{m[2]}", text, flags=re.S)
        if count != 1:
            raise SystemExit(f"docs/demo.md: no place marked {place}")
    write_text(PAGE, text)


if __name__ == "__main__":
    main()
