"""Fill the tables of docs/demo.md: every number of the page is computed here.

    python results/tiny/page.py

reads what these commands left:

    zsrobust eval tiny --sets demo --with-source --limit 200 --eps EPS --json > results/tiny/unhardened.json
    python results/tiny/rehearsal/run.py      (results/tiny/rehearsal/rehearsal.json)
    zsrobust tune tiny/adv-ft --lr RATES --json > results/tiny/choices/adv.json
    zsrobust demo --json > results/tiny/demo.json

    zsrobust harden tiny/adv-ft optimiser.lr=RATE --no-evaluate; zsrobust eval run:... --sets demo --eps 3/255
        --limit 168 --json > results/tiny/adv-rates.json      (afterwards)

The first three were run, and committed with the recipes, before these recipes' models met a target.
"""

from __future__ import annotations

import json
import re
import statistics
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


def rehearsal(found: list[dict[str, Any]]) -> str:
    """Return a row a setting: accuracy on the classes kept apart, and which setting of TeCoA is chosen."""
    settings: dict[str, list[dict[str, Any]]] = {}
    for row in found:
        settings.setdefault(row["name"], []).append(row)
    ways = list(dict.fromkeys(row["way"] for row in found))
    tecoa = {n: rows for n, rows in settings.items() if rows[0].get("objective") == "tecoa"}
    chosen = choose(tecoa)
    heads = "".join(f" | {way}: clean | robust" for way in [*ways, "mean"])
    lines = [
        f"| objective | pictures | steps | batch | hardened within | optimiser, rate{heads} | |",
        "|---" * (7 + 2 * len(ways) + 2) + "|",
    ]
    for name, rows in settings.items():
        first = rows[0]
        cells = [name, "", "", "", "", ""]
        if "objective" in first:
            cells = [str(first[key]) for key in ("objective", "images", "steps", "batch", "eps")]
            cells.append(f"{first['optimiser']}, {first['lr']:g}")
        for row in rows:
            cells += [f"{100 * row[column]:.1f}" for column in ("clean", "robust")]
        cells += [f"{100 * mean(rows, column):.1f}" for column in ("clean", "robust")]
        lines.append(f"| {' | '.join([*cells, 'chosen' if name == chosen else ''])} |")
    return "\n".join(lines)


def rates(found: dict[str, Any]) -> str:
    """Return the grid of FT(Adv.) on held-out source images, and why a rate was taken."""
    lines = [
        "| rate | clean | robust at 2/255 | probability of the true class, attacked | by class texts, clean | |",
        "|---|---|---|---|---|---|",
    ]
    for row in found["grid"]:
        numbers = (
            f"{100 * row['clean']:.1f} | {100 * row['robust']:.1f} | {row['true_probability']:.4f}"
        )
        mark = "chosen" if row["lr"] == found["chosen"] else ""
        lines.append(f"| {row['lr']:g} | {numbers} | {100 * row['text_clean']:.1f} | {mark} |")
    return "\n".join([*lines, "", f"{found['reason'][0].upper()}{found['reason'][1:]}."])


def adv_rates(found: dict[str, Any], demo: dict[str, Any]) -> str:
    """Return the means of TeCoA, of FT(Adv.) as the demo has it, and of FT(Adv.) at other rates."""
    lines = ["| mean over the sets | clean | robust |", "|---|---|---|"]
    shown = {"TeCoA": "TeCoA", "FT(Adv.)": "FT(Adv.), 0.001 (the demo's)"}
    means = [(shown.get(demo["labels"][m["model"]]), m["mean"]) for m in demo["means"]]
    means += [
        (f"FT(Adv.), {float(m['model'].rpartition('adv-')[2]):g}", m["mean"])
        for m in found["means"]
        if "adv-" in m["model"]
    ]
    for name, of in means:
        if name is not None:
            lines.append(f"| {name} | {percent(of['clean'])} | {percent(of['robust'])} |")
    return "\n".join(lines)


def mean(rows: list[dict[str, Any]], column: str) -> float:
    """Return the mean of a setting over the ways."""
    return sum(row[column] for row in rows) / len(rows)


def choose(settings: dict[str, list[dict[str, Any]]]) -> str:
    """Return the setting with the highest robust accuracy; of those tied with it, the highest clean one."""
    best = max(settings, key=lambda name: mean(settings[name], "robust"))
    tied = [name for name in settings if tie(settings[best], settings[name])]
    return max(tied, key=lambda name: mean(settings[name], "clean"))


def tie(best: list[dict[str, Any]], other: list[dict[str, Any]]) -> bool:
    """Return whether the paired difference of the means is within two standard errors."""
    variance = 0.0
    for a, b in zip(best, other, strict=True):
        pairs = zip(a["robust_of_each"], b["robust_of_each"], strict=True)
        differences = [int(x) - int(y) for x, y in pairs]
        variance += statistics.variance(differences) / len(differences)
    error = variance**0.5 / len(best)
    return mean(best, "robust") - mean(other, "robust") <= 2 * error


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
        "rehearsal": rehearsal(read("rehearsal/rehearsal.json")),
        "rates": rates(read("choices/adv.json")),
        "adv-rates": adv_rates(read("adv-rates.json"), read("demo.json")),
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
