"""Write docs/results.md and its figures from the committed records alone: every number is computed here.

    python results/scale/page.py

Reads results/scale/records (packed cells), models.json, hardenings.json, checks.json, choices/ and findings.yaml.
No model is loaded, and no image opened.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from zsrobust.cli.output import flag_notes, percent, signed
from zsrobust.data import load_suite
from zsrobust.data.overlap import near_duplicates
from zsrobust.evaluation.cells import Cell
from zsrobust.evaluation.packed import read_packed
from zsrobust.evaluation.statistics import (
    Interval,
    Values,
    mean_over_sets,
    paired_difference,
    wilson,
)
from zsrobust.evaluation.stored import table_of
from zsrobust.evaluation.table import CLEAN, ROBUST, EvaluationTable, Row
from zsrobust.files import write_text
from zsrobust.report.curves import Curve, CurvePoint, Panel, draw_lines, save_figure
from zsrobust.threat import format_eps
from zsrobust.training.recipe import Recipe
from zsrobust.workflows.collection_recipe import Member, load_collection
from zsrobust.workflows.study import Place, draw, markdown
from zsrobust.workflows.study_recipe import EPS_TESTED, Study

HERE = Path(__file__).resolve().parent
DOCS = HERE.parents[1] / "docs"
COLLECTION = "mini/scale"
BEFORE = "before"
TECOA = "TeCoA, fine-tuning"
HOLDS, FAILS, UNDECIDED, NO_SIGN = "**holds**", "**fails**", "undecided", "no sign was known"
ONE_ANSWER = "one answer for every image"
CLOSE = 0.03
"""What "close to" allows, in [0, 1]."""


@cache
def _json(name: str) -> Any:
    return json.loads((HERE / name).read_text("utf-8"))


@cache
def _cells() -> list[Cell]:
    return read_packed(HERE / "records")


@cache
def _members() -> dict[str, Member]:
    """Return the collection's studies by their folders."""
    collection = load_collection(COLLECTION)
    if collection is None:
        raise SystemExit(f"{COLLECTION} is no collection")
    return {member.folder: member for member in collection.members}


@dataclass(frozen=True)
class Measured:
    """A study, and its numbers as the records give them."""

    study: Study
    table: EvaluationTable
    names: dict[str, str]
    """Fingerprint -> the model's name in the table."""
    placed: list[dict[str, Any]]
    """Labels, eps and fingerprint of each place."""

    @property
    def places(self) -> list[Place]:
        """As the study itself makes them."""
        return [
            Place(
                one["labels"],
                "mini-clip" if not one["hardened"] else self.names[one["weights"]],
                one["eps"],
                self.mean(self.rows(one), CLEAN),
                self.mean(self.rows(one), ROBUST),
                len(self.rows(one)),
                one["weights"],
                one["chosen"],
                one["hardened"],
            )
            for one in self.placed
        ]

    def rows(self, one: dict[str, Any], *, source: bool = False) -> list[Row]:
        """Return a place's rows: the targets, or the source."""
        return self.table.of(self.names[one["weights"]], one["eps"], source=source)

    @staticmethod
    def mean(rows: list[Row], column: str) -> Interval:
        """Return the mean over sets."""
        return mean_over_sets([row.values(column) for row in rows])

    def find(self, label: str, eps: float | None = None) -> list[dict[str, Any]]:
        """Return the places of a label; "before", "chosen", or labels joined with "|"; all seeds of a row."""
        radius = self.study.evaluate.eps[0] if eps is None else eps
        own = [one for one in self.placed if one["eps"] == radius]
        if label == BEFORE:
            return [one for one in own if not one["labels"].keys() - {EPS_TESTED}]
        if label == "chosen":
            return [one for one in own if one["chosen"]]
        wanted = label.split("|")
        shown = [
            ([v for name, v in one["labels"].items() if name != EPS_TESTED], one) for one in own
        ]
        return [one for labels, one in shown if labels and labels[: len(wanted)] == wanted]

    def values(self, label: str, column: str) -> list[Values]:
        """Return a column of each target set; of several seeds, the mean over them."""
        found = [[row.values(column) for row in self.rows(one)] for one in self.find(label)]
        if not found:
            raise SystemExit(f"study {self.study.name} has no row {label!r}")
        return [np.mean(sets, axis=0) for sets in zip(*found, strict=True)]


@cache
def measured(name: str) -> Measured:
    """Return a study of the collection with the numbers of the records."""
    member = _members()[name]
    placed = _json("models.json")[name]["places"]
    weights = list(dict.fromkeys(one["weights"] for one in placed))
    evaluate = member.study.evaluate
    stored = table_of(
        _cells(),
        models=weights,
        norm=evaluate.norm,
        eps=evaluate.eps,
        attacks=[attack for attack in evaluate.attacks if attack != CLEAN],
    )
    study = Measured(member.study, stored.table, stored.named, placed)
    wanted = {(title, evaluate.limit) for title in load_suite(evaluate.sets).sets}
    for one in placed:  # means over fewer sets or samples would go unseen
        found = {(row.image_set, len(row.ids)) for row in study.rows(one)}
        if found != wanted:
            raise SystemExit(f"{name}, {one['labels']}: {found ^ wanted}; {' '.join(stored.notes)}")
    return study


def difference(study: Measured, of: str, to: str, column: str) -> Interval:
    """Return "of minus to", mean over the target sets, paired."""
    return paired_difference(study.values(to, column), study.values(of, column))


def verdict(found: Interval, expect: str | None) -> str:
    """Return what an interval says of an expected sign, as findings.yaml defines it."""
    if expect is None:
        return NO_SIGN
    if expect == "close":
        if found.low >= -CLOSE and found.high <= CLOSE:
            return HOLDS
        return FAILS if found.low > CLOSE or found.high < -CLOSE else UNDECIDED
    low, high = (found.low, found.high) if expect == "above" else (-found.high, -found.low)
    return HOLDS if low > 0 else FAILS if high < 0 else UNDECIDED


def together(verdicts: Sequence[str]) -> str:
    """Return the verdict on a claim of several comparisons, as findings.yaml defines it."""
    told = set(verdicts)
    if len(told) == 1:
        return verdicts[0]
    return FAILS if FAILS in told else UNDECIDED


@dataclass(frozen=True)
class Comparison:
    """One line of findings.yaml, with its numbers."""

    shown: str
    metric: str
    found: Interval
    expected: str
    verdict: str


def compared() -> dict[str, list[Comparison]]:
    """Return every comparison of findings.yaml, by its claim and source."""
    claims = {}
    for one in yaml.safe_load((HERE / "findings.yaml").read_text("utf-8"))["findings"]:
        study = measured(one["study"])
        pairs = one.get("pairs")
        if pairs is None:
            of = [one["of"]] if isinstance(one["of"], str) else one["of"]
            pairs = [(a, b) for a in of for b in one["to"]]
        claims[f"{one['claim']} ({one['source']})"] = [
            Comparison(
                f"{_called(study, of)} minus {_called(study, to)}",
                one["metric"],
                found := difference(study, of, to, one["metric"]),
                one["expect"] or "not known",
                "vacuous: an end was chosen"
                if _chose_an_end(study, of)
                else verdict(found, one["expect"]),
            )
            for of, to in pairs
        ]
    return claims


def _chose_an_end(study: Measured, label: str) -> bool:
    if label != "chosen":
        return False
    (one,) = study.find(label)
    (axis,) = study.study.axes
    (at,) = one["labels"].values()
    return at in (axis.labels[0], axis.labels[-1])


def findings() -> tuple[str, str]:
    """Return the verdict on each claim, and every comparison behind it."""
    lines = ["| finding | comparisons | verdict |", "|---|---|---|"]
    detail = [
        "| finding | compared | measured on | difference, points | expected | verdict |",
        "|---|---|---|---|---|---|",
    ]
    for claim, comparisons in compared().items():
        told = [one.verdict for one in comparisons]
        count = Counter(told)
        counted = ", ".join(f"{count[name]} {name.strip('*')}" for name in dict.fromkeys(told))
        whole = together(told)
        if len(told) == 1 and whole in (HOLDS, FAILS, UNDECIDED, NO_SIGN):
            counted = (
                f"{comparisons[0].shown}: {signed(comparisons[0].found)} {comparisons[0].metric}"
            )
        lines.append(f"| {claim} | {counted} | {whole} |")
        for number, one in enumerate(comparisons):
            named = "" if number else claim
            detail.append(
                f"| {named} | {one.shown} | {one.metric} | {signed(one.found)} | {one.expected} | {one.verdict} |"
            )
    return "\n".join(lines), "\n".join(detail)


def _label(one: dict[str, Any]) -> str:
    """Return a place's labels; of the model before, its name."""
    return ", ".join(one["labels"].values()) or "mini-clip"


def _called(study: Measured, label: str) -> str:
    if label == BEFORE:
        return "mini-clip"
    if label == "chosen":
        (one,) = study.find(label)
        return f"chosen ({', '.join(one['labels'].values())})"
    axis = study.study.axes[0].name
    return label if axis in ("row", "adaptation", "prompt") else f"{axis} {label}"


def main_table() -> str:
    """Return the rows at 2/255: means, differences to CLIP and to fine-tuned TeCoA, AutoAttack, flags."""
    rows, strong = measured("rows"), measured("autoattack")
    head = [
        "row", "clean", "robust", "clean minus mini-clip", "robust minus mini-clip",
        "clean minus TeCoA", "robust minus TeCoA", "autoattack-fare, 50 a set", "flags",
    ]  # fmt: skip
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    for one in rows.placed:
        label = next(iter(one["labels"].values()), BEFORE)
        own = rows.rows(one)
        cells = ["mini-clip" if label == BEFORE else label]
        cells += [percent(rows.mean(own, column)) for column in (CLEAN, ROBUST)]
        for to in (BEFORE, TECOA):
            same = label == to
            for column in (CLEAN, ROBUST):
                cells.append("" if same else signed(difference(rows, label, to, column)))
        found = strong.find(label)
        cells.append(percent(strong.mean(strong.rows(found[0]), ROBUST)) if found else "")
        cells.append(_marks(rows, own))
        if found:
            more = _marks(strong, strong.rows(found[0]))
            cells[-1] += f"; autoattack-fare: {more}" if more else ""
        lines.append(f"| {' | '.join(cells)} |")
    told = f"{100 * _one_answer(rows).clean.value:.1f}"
    lines.append(f"| {ONE_ANSWER} | {told} | {told} |{' |' * (len(head) - 3)}")
    return "\n".join(
        [*lines, "", "Flags:", legend(rows), "", "Flags of autoattack-fare:", legend(strong)]
    )


def _one_answer(study: Measured) -> Place:
    """Return where that stands beside a study's models: robust is clean, and there is no other draw of it."""
    rows = study.rows(study.placed[0])
    mean = float(np.mean([row.most_frequent[1] for row in rows]))
    exact = Interval(mean, mean, mean, sum(len(row.ids) for row in rows))
    (axis,) = study.study.axes
    return Place(
        {axis.name: ONE_ANSWER}, "", rows[0].eps or 0.0, exact, exact, len(rows), "", hardened=False
    )


def _marks(study: Measured, rows: list[Row], column: str | None = None) -> str:
    """Return the footnotes of the flags that stand at some rows, or at one of their columns."""
    raised = study.table.raised
    named = {
        name
        for row in rows
        for name in (row.flags_at(column) if column else [flag.name for flag in row.flags])
    }
    return " ".join(f"[{raised[name]}]" for name in raised if name in named)


def legend(study: Measured) -> str:
    """Return what the footnotes mean; that no flag is raised where there is none."""
    return "\n".join(flag_notes(study.table)) or "No flag is raised."


def _sets_header(first: str, study: Measured) -> list[str]:
    """Return the head of a table with a column for each set."""
    sets = [row.image_set.removeprefix("mini/") for row in study.rows(study.placed[0])]
    return [f"| {first} | {' | '.join(sets)} |", f"|{'---|' * (len(sets) + 1)}"]


def per_set(name: str, column: str) -> str:
    """Return one column on each set, a row a model."""
    study = measured(name)
    lines = _sets_header("row", study)
    for one in study.placed:
        label = _label(one)
        cells = [
            f"{percent(row.accuracy(column))} {_marks(study, [row], column)}".strip()
            for row in study.rows(one)
        ]
        lines.append(f"| {label} | {' | '.join(cells)} |")
    shares = [f"{100 * row.most_frequent[1]:.1f}" for row in study.rows(study.placed[0])]
    lines.append(f"| {ONE_ANSWER} | {' | '.join(shares)} |")
    return "\n".join([*lines, "", legend(study)])


def per_set_difference(name: str, to: str, column: str) -> str:
    """Return each row minus one of them on each set, paired by sample."""
    study = measured(name)
    (reference,) = study.find(to)
    others = [one for one in study.placed if one is not reference]
    lines = _sets_header(f"row minus {_called(study, to)}", study)
    for one in others:
        cells = [
            signed(paired_difference([base.values(column)], [row.values(column)]))
            for base, row in zip(study.rows(reference), study.rows(one), strict=True)
        ]
        lines.append(f"| {_label(one)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _differences(name: str) -> list[str]:
    """Return the tables of each row minus mini-clip and minus TeCoA."""
    return [
        part
        for to in (BEFORE, TECOA)
        for column in (CLEAN, ROBUST)
        for part in (f"{column.capitalize()}, points:", per_set_difference(name, to, column))
    ]


def flattery(name: str, stronger: str = "", column: str = ROBUST) -> str:
    """Return by how much the attacks of a study flatter, paired by sample.

    Args:
        name: the study.
        stronger: another study of the same samples and radius whose `column` is what they are held against;
            empty is the study itself.
        column: of `stronger`.
    """
    study, strong = measured(name), measured(stronger or name)
    weaker = [
        c for c in study.table.columns if c not in (CLEAN, ROBUST) and (stronger or c != column)
    ]
    lines = []
    for one in study.placed:
        own = study.rows(one)
        found = next(
            x for x in strong.placed if (x["weights"], x["eps"]) == (one["weights"], one["eps"])
        )
        against = strong.rows(found)
        if [row.ids for row in own] != [row.ids for row in against]:
            raise SystemExit(f"{name} and {stronger} measured other samples")
        held = [row.values(column) for row in against]
        told = [
            f"by `{c}` {signed(paired_difference(held, [row.values(c) for row in own]))}"
            for c in weaker
        ]
        lines.append(f"- {_label(one)} is flattered {', '.join(told)} points.")
    return "\n".join(lines)


def broken_by(name: str, column: str) -> str:
    """Return how many samples each member of an ensemble broke."""
    study = measured(name)
    lines = []
    for one in study.placed:
        found = Counter(by for row in study.rows(one) for by in row.by[column] if by)
        told = ", ".join(f"{member} {count}" for member, count in found.most_common())
        lines.append(f"- {_label(one)}: broken by {told or 'nothing'}.")
    return "\n".join(lines)


def source_column(name: str) -> str:
    """Return what the rows do on source images that neither trained nor chose anything."""
    study = measured(name)
    lines = ["| row | n | clean | robust |", "|---|---|---|---|"]
    for one in study.placed:
        label = _label(one)
        for row in study.rows(one, source=True):
            lines.append(
                f"| {label} | {len(row.ids)} | {percent(row.accuracy(CLEAN))} | {percent(row.accuracy(ROBUST))} |"
            )
    return "\n".join(lines)


def heads() -> str:
    """Return what trained heads know of the source's classes: read off the cells, no zero-shot numbers."""
    placed = _json("models.json")["heads"]["places"]
    lines = ["| head | n | clean | robust |", "|---|---|---|---|"]
    for one in placed:
        own = [
            cell
            for cell in _cells()
            if "head" in cell.key.content["texts"] and cell.key.content["weights"] == one["weights"]
        ]
        (clean,) = (cell for cell in own if cell.key.content["threat"] is None)
        attacked = [cell for cell in own if cell.key.content["threat"] is not None]
        ids = clean.in_order()
        right = np.array([clean.records[i].clean for i in ids], float)
        robust = np.array([all(cell.records[i].robust for cell in attacked) for i in ids], float)
        label = _label(one)
        lines.append(
            f"| {label} | {len(ids)} | {percent(wilson(right))} | {percent(wilson(robust))} |"
        )
    return "\n".join(lines)


def seeds() -> str:
    """Return means over three training runs, outcomes averaged per sample, and the runs' spread."""
    study = measured("seeds")
    lines = [
        "| row | clean | runs: lowest, highest | robust | runs: lowest, highest |",
        "|---|---|---|---|---|",
    ]
    for label in study.study.axes[0].labels:
        cells = [label]
        for column in (CLEAN, ROBUST):
            each = [study.mean(study.rows(one), column).value for one in study.find(label)]
            cells.append(percent(mean_over_sets(study.values(label, column))))
            cells.append(f"{100 * min(each):.1f}, {100 * max(each):.1f}")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def each_attack(name: str) -> str:
    """Return the mean under each attack of a study, a row a model."""
    study = measured(name)
    several = len(study.study.evaluate.attacks) > 2  # clean and more than one
    columns = [column for column in study.table.columns if several or column != ROBUST]
    lines = [f"| row | n | {' | '.join(columns)} | flags |", f"|{'---|' * (len(columns) + 3)}"]
    for one in study.placed:
        own = study.rows(one)
        flagged = _marks(study, own)
        label = _label(one)
        cells = [percent(study.mean(own, column)) for column in columns]
        lines.append(
            f"| {label} | {sum(len(r.ids) for r in own)} | {' | '.join(cells)} | {flagged} |"
        )
    return "\n".join([*lines, "", legend(study)])


def of_study(name: str) -> str:
    """Return a study's table and figure."""
    study = measured(name)
    places = study.places
    flagged = [
        f"{_label(one)} {marks}"
        for one in study.placed
        if (marks := _marks(study, study.rows(one)))
    ]
    told = "\n".join([f"Flags: {'; '.join(flagged)}.", legend(study)]) if flagged else legend(study)
    return f"{markdown(study.study, places).strip()}\n\n{told}\n\n{_figure(draw(study.study, places), name)}"


def _figure(figure: Any, name: str) -> str:
    folder = DOCS / "results" / name
    save_figure(figure, folder)
    return f"![{name}](results/{name}/figure.png)"


def against_eps() -> str:
    """Return accuracy against eps, a line a model, of the study of radii."""
    study = measured("eps")
    radii = sorted(study.study.evaluate.eps)
    curves = []
    for colour, label in enumerate([BEFORE, *study.study.axes[0].labels]):
        points: list[CurvePoint] = []
        for eps in radii:
            (one,) = study.find(label, eps)
            clean, robust = (study.mean(study.rows(one), column) for column in (CLEAN, ROBUST))
            if not points:
                points.append(CurvePoint(0.0, "0", clean, clean))
            points.append(CurvePoint(255 * eps, format_eps(eps), clean, robust))
        named = "mini-clip" if label == BEFORE else f"trained at {label}"
        curves.append(Curve(named, points, colour))
    figure = draw_lines(
        [Panel("", curves, [])],
        title=f"accuracy against eps, mean of {len(study.rows(study.placed[0]))} sets",
        x_label="eps tested",
        log=False,
        named=False,
    )
    return _figure(figure, "against-eps")


def hardened() -> str:
    """Return one line on each hardening."""
    lines = [
        "| run | objective | adaptation | eps | steps x size | optimiser | lr | seed | source | images | passes | "
        "steps | numbers trained | held-out source: clean % | robust % | scored by |",
        f"|{'---|' * 16}",
    ]
    for row in _json("hardenings.json"):
        recipe = row["recipe"]
        scores = row["held_out"][0] if row["held_out"] else None
        said = ["", "", ""]
        if scores is not None:
            said = [f"{100 * scores['clean']:.1f}", f"{100 * scores['robust']:.1f}"]
            said.append(scores.get("scored_by", "texts"))
        eps, adversary = format_eps(recipe["threat"]["eps"]), recipe["adversary"]
        size = adversary["step_size"]
        attacked = Recipe.model_validate(recipe).chosen_by == "robust"
        step = f"{adversary['steps']} x {format_eps(size)}" if attacked else "none"
        images = recipe["source"]["limit"] or (
            f"{recipe['source']['per_class']} a class" if recipe["source"]["per_class"] else "all"
        )
        optimiser = recipe["optimiser"]
        cells = [
            row["run"], recipe["objective"]["name"], _adapted(recipe["adaptation"]), eps, step,
            optimiser["name"], f"{optimiser['lr']:g}", recipe["seed"],
            recipe["source"]["set"], images, f"{recipe['epochs']:g}", row["steps"],
            f"{row['trained_numbers']:,}", *said,
        ]  # fmt: skip
        lines.append(f"| {' | '.join(str(cell) for cell in cells)} |")
    told = []
    for row in _json("hardenings.json"):
        if row["pseudo_labels"]:
            facts = [
                f"{name} {_fact(value)}"
                for name, value in row["pseudo_labels"].items()
                if value is not None
            ]
            told.append(f"Pseudo-labels of {row['run']}: {', '.join(facts)}.")
    return "\n".join([*lines, "", *told])


def _fact(value: float) -> str:
    """Return a count as it is, a share in per cent."""
    return str(value) if isinstance(value, int) else f"{100 * value:.1f}%"


def _adapted(adaptation: dict[str, Any]) -> str:
    own = {k: v for k, v in adaptation.items() if k != "name" and v is not None}
    inside = ", ".join(f"{k} {v}" for k, v in own.items())
    return f"{adaptation['name']} ({inside})" if inside else str(adaptation["name"])


def checks() -> str:
    """Return how far the hardenings lie from slow references (checks.py)."""
    found = _json("checks.json")
    names = list(dict.fromkeys(name for one in found["runs"] for name in one if name != "run"))
    lines = [f"| run | {' | '.join(names)} |", f"|{'---|' * (len(names) + 1)}"]
    for one in found["runs"]:
        told = ["" if one[name] is None else f"{one[name]:.0e}" for name in names]
        lines.append(f"| {one['run']} | {' | '.join(told)} |")
    model = ", ".join(f"{name} {value:.0e}" for name, value in found["model"].items())
    return "\n".join([*lines, "", f"The model before hardening, against plain open_clip: {model}."])


def choices() -> str:
    """Return every grid and what was chosen."""
    lines = [
        "| grid | images | scored by | lr | clean % | robust % | probability of the true class | |",
        f"|{'---|' * 8}",
    ]
    reasons = []
    for file in sorted((HERE / "choices").glob("*.json")):
        choice = json.loads(file.read_text("utf-8"))
        for row in choice["grid"]:
            mark = "chosen" if row["lr"] == choice["chosen"] else ""
            probability = row["true_probability"]
            if choice.get("chosen_by") == "clean":
                probability = row.get("clean_probability", probability)
            accuracy = f"{100 * row['clean']:.1f} | {100 * row['robust']:.1f}"
            scorer = row.get("scored_by", "texts")
            lines.append(
                f"| {file.stem} | {choice['images']} | {scorer} | {row['lr']:g} | {accuracy} | "
                f"{probability:.4f} | {mark} |"
            )
        reasons.append(f"- {file.stem}: {choice['reason']}.")
    return "\n".join([*lines, "", *reasons])


def overlaps() -> str:
    """Return the near-duplicate class names between the source and the targets, from the cells' texts."""
    classes = {
        cell.key.content["set"]: cell.key.content["texts"].get("classnames")
        for cell in _cells()
        if "classnames" in cell.key.content["texts"]
    }
    suite = load_suite(measured("rows").study.evaluate.sets)
    if suite.source is None:
        return "No source set was measured."
    lines = ["| set | target class | source class | why |", "|---|---|---|---|"]
    for spec in suite.sets:
        for name, other, why in near_duplicates(classes[suite.source], classes[spec]):
            lines.append(f"| {spec} | {name} | {other} | {why} |")
    return "\n".join(lines)


def environments() -> str:
    """Return the versions under which the cells were measured."""
    seen = sorted(
        {
            ", ".join(f"{name} {value}" for name, value in here.items())
            for cell in _cells()
            for here in cell.environments
            if "torch" in here
        }
    )
    return "\n".join(f"- {line}" for line in seen)


def _section(title: str, *parts: str) -> Sequence[str]:
    return [f"## {title}", *parts]


def main() -> None:
    """Write the page."""
    rows = measured("rows")
    verdicts, comparisons = findings()
    strongest = measured("strongest").study.evaluate.attacks[-1]
    sections = [
        (HERE / "intro.md").read_text("utf-8").strip(),
        *_section(
            "Which findings hold at this scale",
            "Defined in `results/scale/findings.yaml` before the rows were measured on a target. "
            "A comparison holds (fails) where its paired 95% interval excludes 0 with (against) the expected "
            f"sign, and is undecided else; \"close\" allows {100 * CLOSE:.0f} points. "
            "A claim holds if all its comparisons do, fails if one fails, and is undecided else. "
            "Nothing is corrected for the number of comparisons.",
            verdicts,
            "Every comparison:",
            comparisons,
        ),
        *_section(
            "Every row at 2/255",
            "Means over the nine target sets, 200 samples a set; robust is the union of `pgd-20` and "
            "`cw-margin-20`.",
            main_table(),
            _figure(draw(rows.study, [*rows.places, _one_answer(rows)]), "rows"),
        ),
        *_section("On each set: clean", per_set("rows", CLEAN)),
        *_section("On each set: robust, 2/255", per_set("rows", ROBUST)),
        *_section(
            "On each set: paired differences, 2/255",
            *_differences("rows"),
        ),
        *_section(
            "The source, by class texts",
            "200 held-out images behind the 500 on which rates were chosen. They enter no mean. "
            "A probed head (one row) starts from a ridge whose strength was chosen once, on clean features, with "
            "these images among others.",
            source_column("rows"),
        ),
        *_section(
            "The source, by the heads that were trained: not zero-shot",
            "The same images. LP is the linear probe of the frozen model.",
            heads(),
        ),
        *_section(
            "Three training runs",
            "Outcomes averaged per sample over seeds 0, 1, 2, with the bootstrap over samples; beside it "
            "the runs' extremes.",
            seeds(),
        ),
        *_section(
            "Five passes instead of one",
            "Beyond the budget of the other rows, and published before them.",
            each_attack("long"),
            per_set("long", ROBUST),
        ),
        *_section(
            "Trained and attacked at 1/255",
            each_attack("rows-eps1"),
            "Clean, on each set:",
            per_set("rows-eps1", CLEAN),
            "Robust, on each set:",
            per_set("rows-eps1", ROBUST),
            *_differences("rows-eps1"),
            "The source, by class texts:",
            source_column("rows-eps1"),
        ),
        *_section(
            "The paper's own attack at 1/255",
            "`pgd-paper`: 100 steps of 1/255, the last query alone judged; beside the union above it shows how "
            "much it flatters, at the least: no stronger attack was run at this radius.",
            each_attack("paper-attack"),
            "Against the union of `pgd-20` and `cw-margin-20`, on the same samples:",
            flattery("paper-attack", "rows-eps1"),
        ),
        *_section(
            "The strongest attack at 2/255",
            "AutoAttack standard on the first 50 samples a set, and beside it PGD-100 with a step as long as the "
            "radius, every query judged, and `pgd-paper`, whose step of 1/255 is half the radius here; robust is "
            "the union of the three.",
            each_attack("strongest"),
            "Against AutoAttack, on the same samples:",
            flattery("strongest", column=strongest),
            broken_by("strongest", strongest),
            "AutoAttack, on each set:",
            per_set("strongest", strongest),
        ),
        *_section("Studies"),
        *(
            part
            for name in ("size", "steps", "eps", "prompts", "added-appended", "partial", "labels", "interpolation")
            for part in (f"### {name}", of_study(name))
        ),
        "### accuracy against eps",
        against_eps(),
        *_section("How the models were hardened", hardened()),
        *_section(
            "The hardenings against slow references",
            "On 16 source photographs, by `results/scale/checks.py`, for each model as its run left it: features "
            "against plain open_clip's where it loads the model, relative to the largest (prompts stand in no "
            "plain model); the objective's losses against the formula in float64, in nats; the derivative of the "
            "loss by what was trained, and by the image that the adversary moves, against central differences, "
            "relative.",
            checks(),
        ),
        *_section(
            "Learning rates, chosen on held-out source images",
            (HERE / "choices" / "README.md").read_text("utf-8").partition("\n")[2].strip(),
            choices(),
        ),
        *_section(
            "Near-duplicate class names between source and targets",
            "Two names are listed if they are equal, if the words of one all stand in the other, or if they "
            "end in the same word; the rule knows spelling, not meaning.",
            overlaps(),
        ),
        *_section("Machine and versions", environments()),
    ]  # fmt: skip
    write_text(DOCS / "results.md", "\n\n".join(sections) + "\n")


if __name__ == "__main__":
    main()
