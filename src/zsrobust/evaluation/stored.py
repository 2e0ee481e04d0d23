"""Tables from cells on disk: no model is loaded and no image opened.

A table compares like with like: one norm, one way to measure each set, and at each eps the attacks, sets and
samples that all its models have. What is left out for that is said in the notes, never dropped in silence.

Samples are a subset that an evaluation asked for and that every cell compared holds whole. A cell of an
evaluation that was stopped or still runs holds what was known first, and that is what broke first: neither its
records nor what it shares with other cells is a sample of the set.
"""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from zsrobust import data
from zsrobust.errors import UserError, unknown_name
from zsrobust.evaluation.cells import PROTOCOL, Asked, Cell, CellKey, attacked_columns
from zsrobust.evaluation.packed import is_packed, read_packed
from zsrobust.evaluation.table import CLEAN, EvaluationTable, Row
from zsrobust.hashing import sha256_json
from zsrobust.threat import format_eps

_DIGITS = 8  # of a fingerprint, where it stands for a name
_BEHIND = re.compile(rf" \([0-9a-f]{{{_DIGITS}}}\)$")
_FEWEST_DIGITS = 6


@dataclass(frozen=True, slots=True)
class Stored:
    """What folders of results hold."""

    table: EvaluationTable
    notes: list[str]
    """What was left out, and why, a sentence each."""
    named: dict[str, str]
    """Each of `models` as it was given -> the name under which the table has it."""


def read_table(
    folders: Iterable[str | Path],
    *,
    models: Sequence[str] = (),
    norm: str | None = None,
    eps: Sequence[float] = (),
    attacks: Sequence[str] = (),
    sources: Sequence[str] = (),
) -> Stored:
    """Return the table of the cells in `folders`.

    Args:
        folders: each holds `cells/`, or packed cells (`packed.py`).
        models: only these, in this order, the first compared with: the spec that a model was measured
            under, or at least six digits of its fingerprint. Default: all, in the order in which they were
            measured.
        norm: only this one; needed where the cells hold both.
        eps: only these radii; default all.
        attacks: only these, by the names that the cells have; default all that the models share.
        sources: names of sets that count as source whatever the cells say; they enter no mean.

    Raises:
        UserError: if a folder holds no cells, a cell is damaged, a name is unknown, a set was measured in
            several ways (templates, resolution, seed, ...), an attack was run in several, or nothing is left.
    """
    cells = [cell for folder in map(Path, folders) for cell in read_cells(folder)]
    return table_of(cells, models=models, norm=norm, eps=eps, attacks=attacks, sources=sources)


def table_of(
    cells: Iterable[Cell],
    *,
    models: Sequence[str] = (),
    norm: str | None = None,
    eps: Sequence[float] = (),
    attacks: Sequence[str] = (),
    sources: Sequence[str] = (),
) -> Stored:
    """Return the table of cells that were read already; they are not changed. All else as `read_table`."""
    notes: list[str] = []
    cells = _usable(cells, notes)
    names = _model_names(cells)
    chosen = _choose_models(cells, names, models)
    cells = [cell for cell in cells if cell.key.content["weights"] in chosen]
    found = {threat["norm"] for cell in cells if (threat := cell.key.content["threat"])}
    if norm is not None and norm not in found:
        raise unknown_name("norm in these cells", norm, found)
    if norm is None and len(found) > 1:
        raise UserError("these cells hold linf and l2, two threats: choose one with norm.")
    cells = [cell for cell in cells if norm in (None, _norm(cell)) or _eps(cell) is None]
    cells = _under(cells, attacks)
    held = {radius for cell in cells if (radius := _eps(cell)) is not None}
    for wanted in eps:
        if wanted not in held:
            there = ", ".join(format_eps(r) for r in sorted(held)) or "none"
            raise UserError(f"no cell at eps {format_eps(wanted)}; there: {there}.")
    cells = [cell for cell in cells if not eps or _eps(cell) in (None, *eps)]
    titles = _set_titles(cells)
    _refuse_mixed(cells, titles)
    clean, attacked = _index(cells, titles)
    radii: list[float | None] = [*(eps or sorted(held))] or [None]
    order = _set_order(titles.values())
    is_source = _sources(cells, titles, sources)

    suite = _suite_of([title for title in order if title not in is_source])
    table = EvaluationTable(suite, _request(cells, radii, norm or next(iter(found), None)))
    older: list[str] = []
    for radius in radii:
        table.rows += _rows(radius, order, chosen, names, clean, attacked, is_source, notes, older)
    if older:
        notes.append(
            f"Measured before evaluations noted how many samples they asked for: "
            f"{', '.join(dict.fromkeys(older))}. There all cells hold the same samples, in the fixed order; "
            "they are taken for all that was asked for."
        )
    models_in_order = [names[weights] for weights in chosen]
    table.rows.sort(key=lambda row: (models_in_order.index(row.model), order.index(row.image_set)))
    if not table.rows:
        raise UserError("nothing to report: " + (" ".join(notes) or "no sample was measured."))
    table.request["attacks"] = list(dict.fromkeys(a for row in table.rows for a in row.robust))
    given = {name: names[weights] for name, weights in zip(models, chosen, strict=False)}
    return Stored(table, notes, given)


def _under(cells: list[Cell], attacks: Sequence[str]) -> list[Cell]:
    """Return the clean cells and those of some attacks; all for none.

    Raises:
        UserError: if there is no cell of one.
    """
    if not attacks:
        return cells
    named = {str(cell.key.content["attack"]["name"]) for cell in cells if _eps(cell) is not None}
    for wanted in attacks:
        if wanted not in named and wanted != CLEAN:
            raise unknown_name("attack in these cells", wanted, named)
    return [
        cell
        for cell in cells
        if _eps(cell) is None or cell.key.content["attack"]["name"] in attacks
    ]


def _norm(cell: Cell) -> str | None:
    threat = cell.key.content["threat"]
    return None if threat is None else str(threat["norm"])


def _eps(cell: Cell) -> float | None:
    threat = cell.key.content["threat"]
    return None if threat is None else float(threat["eps"])


def _usable(cells: Iterable[Cell], notes: list[str]) -> list[Cell]:
    """Return all cells with records; the same cell from two folders becomes one."""
    found: dict[str, Cell] = {}
    old = heads = 0
    for cell in cells:
        if cell.key.content.get("protocol") != PROTOCOL:
            old += 1
        elif "head" in cell.key.content["texts"]:
            heads += 1
        elif cell.key.digest in found:
            found[cell.key.digest] = _joined(found[cell.key.digest], cell)
        elif cell.records:
            found[cell.key.digest] = cell
    if old:
        notes.append(f"{old} cell(s) of another protocol version are left out.")
    if heads:
        notes.append(
            f"{heads} cell(s) of trained heads are left out: they are no zero-shot numbers."
        )
    return list(found.values())


def _joined(first: Cell, second: Cell) -> Cell:
    """Return a cell with what two of one key hold."""
    joined = Cell(first.key, None)
    joined.records = first.records | second.records
    joined.starts = [*first.starts, *second.starts]
    joined.probe = first.probe or second.probe
    return joined


def read_cells(folder: Path) -> list[Cell]:
    """Return every cell of a folder of results, or of one of packed cells.

    Raises:
        UserError: if there is none, or one is damaged.
    """
    if is_packed(folder):
        return read_packed(folder)
    files = sorted(folder.glob("cells/*/cell.json"))
    if not files:
        raise UserError(
            f"{folder} holds no cells: give the folder that --out of `zsrobust eval` named."
        )
    return [_read_cell(file, folder) for file in files]


def _read_cell(file: Path, root: Path) -> Cell:
    try:
        content = json.loads(file.read_text("utf-8"))
        key = CellKey({name: value for name, value in content.items() if name != "key"})
    except (ValueError, AttributeError) as error:
        raise UserError(f"{file} is damaged: move the folder away.") from error
    if content.get("key") != key.digest or file.parent.name != key.digest[:16]:
        raise UserError(f"{file} was changed after it was written: move the folder away.")
    return Cell(key, root)


def bare_spec(name: str) -> str:
    """Return a model's spec without the digits that a table writes behind one that several models share."""
    return _BEHIND.sub("", name)


def _model_names(cells: list[Cell]) -> dict[str, str]:
    """Return fingerprint -> the spec noted most often; the fingerprint's first digits where none was."""
    noted: dict[str, Counter[str]] = defaultdict(Counter)
    for cell in cells:
        noted[cell.key.content["weights"]].update(role["model"] for role in cell.roles)
    names = {}
    for weights, specs in noted.items():
        best = sorted(specs, key=lambda spec: (-specs[spec], spec))
        names[weights] = best[0] if best else f"weights {weights[:_DIGITS]}"
    shared = Counter(names.values())
    # A run that was trained again in its folder has left cells of other weights under the same spec.
    return {
        weights: f"{name} ({weights[:_DIGITS]})" if shared[name] > 1 else name
        for weights, name in names.items()
    }


def _choose_models(cells: list[Cell], names: dict[str, str], wanted: Sequence[str]) -> list[str]:
    """Return the fingerprints to report, in order."""
    if wanted:
        chosen = [_find_model(name, names) for name in wanted]
        twice = [n for n, w in zip(wanted, chosen, strict=True) if chosen.count(w) > 1]
        if twice:
            raise UserError(f"models {', '.join(twice)} are one: name each once.")
        return chosen
    count = Counter(cell.key.content["weights"] for cell in cells)
    place = dict.fromkeys(count, len(count))
    for cell in cells:
        weights = cell.key.content["weights"]
        place[weights] = min([place[weights], *(role["position"] for role in cell.roles)])
    # Older cells noted no place: what no hardening wrote stands first, then what was measured most.
    return sorted(count, key=lambda w: (place[w], names[w].startswith("run:"), -count[w], names[w]))


def _find_model(name: str, names: dict[str, str]) -> str:
    for weights, known in names.items():
        if known == name:
            return weights
    digits = name.removeprefix("weights ")
    close = [weights for weights in names if weights.startswith(digits)]
    if len(digits) >= _FEWEST_DIGITS and len(close) == 1:
        return close[0]
    raise unknown_name("model in these cells", name, names.values())


def _identity(cell: Cell) -> str:
    """Name a set by its name, split and classes: two folders may share a name."""
    content = cell.key.content
    classes = content["texts"].get("classnames")
    return sha256_json([content["set"], content["split"], classes])


def _set_titles(cells: list[Cell]) -> dict[str, str]:
    """Return identity -> title: the set's name, with what tells it apart where another set has the same."""
    contents = {_identity(cell): cell.key.content for cell in cells}
    same_name = Counter(content["set"] for content in contents.values())
    same_split = Counter((content["set"], content["split"]) for content in contents.values())
    titles = {}
    for identity, content in contents.items():
        name, split = content["set"], content["split"]
        title = name if same_name[name] == 1 else f"{name}#{split}"
        if same_split[name, split] > 1:
            title += f" ({', '.join((content['texts'].get('classnames') or [])[:2])}, ...)"
        titles[identity] = title
    return titles


def _refuse_mixed(cells: list[Cell], titles: dict[str, str]) -> None:
    """Refuse a set that was measured in several ways: they are numbers of several questions."""
    ways: dict[str, set[str]] = defaultdict(set)
    what = {
        "templates": lambda content: content["texts"].get("templates"),
        "resolution": lambda content: content["preprocess"].get("resolution"),
        "duplicates": lambda content: content["duplicates"],
        "precision": lambda content: content["precision"],
        "seed": lambda content: content["seed"],
    }
    for name, read in what.items():
        ways.clear()
        for cell in cells:
            if name == "seed" and _eps(cell) is None:  # clean cells have none
                continue
            ways[_identity(cell)].add(json.dumps(read(cell.key.content)))
        for identity, values in ways.items():
            if len(values) > 1:
                raise UserError(
                    f"{titles[identity]} was measured with {name} {' and '.join(sorted(values))}: "
                    "a report is of one; measure each into a folder of its own."
                )


Clean = dict[tuple[str, str], Cell]  # (weights, set)
Attacked = dict[tuple[str, str, float, str], Cell]  # (weights, set, eps, attack)


def _index(cells: list[Cell], titles: dict[str, str]) -> tuple[Clean, Attacked]:
    """Return the cells by what they are; what two cells of one place differ in is refused.

    An attack must be the same for all models and for all sets of as many classes, its version included; and
    what is attacked must be the model that the clean cell is of, image rule and texts included.
    """
    clean: Clean = {}
    attacked: Attacked = {}
    plans: dict[tuple[str, float, int], Mapping[str, Any]] = {}
    for cell in cells:
        content = cell.key.content
        weights, title, eps = content["weights"], titles[_identity(cell)], _eps(cell)
        attack = str(content["attack"]["name"])
        if eps is None:
            _refuse_second(clean.get((weights, title)), cell, f"{title} holds two clean cells")
            clean[weights, title] = cell
            continue
        where = f"{attack} at eps {format_eps(eps)}"
        # With few classes an ensemble has other members and fewer targets.
        classes = len(set(content["texts"].get("classnames") or []))
        plan = plans.setdefault((attack, eps, classes), content["attack"])
        if plan != content["attack"]:
            raise UserError(
                f"{where} was run with {_differences(plan, content['attack'])}: a report is of one; measure "
                "each into a folder of its own."
            )
        key = (weights, title, eps, attack)
        _refuse_second(attacked.get(key), cell, f"{title} holds two cells of {where}")
        attacked[key] = cell
    for (weights, title, eps, attack), cell in attacked.items():
        base = clean.get((weights, title))
        if base is not None and _measured_as(base) != _measured_as(cell):
            what = _differences(_measured_as(base), _measured_as(cell))
            raise UserError(
                f"{title}: {attack} at eps {format_eps(eps)} and the clean cell differ in {what}; measure each "
                "into a folder of its own."
            )
    return clean, attacked


def _refuse_second(first: Cell | None, second: Cell, what: str) -> None:
    if first is not None:
        differing = _differences(first.key.content, second.key.content)
        raise UserError(
            f"{what} of one model, with {differing}: a report is of one; measure each into a folder of its own."
        )


def _measured_as(cell: Cell) -> dict[str, Any]:
    """Return what a clean cell and the attacks on the same model share."""
    return {name: cell.key.content[name] for name in ("preprocess", "texts")}


def _differences(a: Mapping[str, Any], b: Mapping[str, Any]) -> str:
    """Return what differs, "step_size 0.1 and 0.2, version 1 and 2"; of tables what differs in them."""
    found = []
    for name in sorted(a.keys() | b.keys()):
        one, other = a.get(name), b.get(name)
        if isinstance(one, Mapping) and isinstance(other, Mapping) and one != other:
            found.append(f"{name}: {_differences(one, other)}")
        elif one != other:
            found.append(f"{name} {json.dumps(one)} and {json.dumps(other)}")
    return ", ".join(found)


def _set_order(titles: Iterable[str]) -> list[str]:
    """Return titles in the order of the suite that has most of them, the others behind by name."""
    there = sorted(set(titles))
    suites = [data.load_suite(name) for name in data.suite_names()]
    best = max(suites, key=lambda suite: len(set(suite.sets) & set(there)), default=None)
    known = [title for title in (best.sets if best else []) if title in there]
    return [*known, *(title for title in there if title not in known)]


def _suite_of(targets: list[str]) -> str:
    for name in data.suite_names():
        suite = data.load_suite(name)
        if set(suite.sets) - set(suite.optional) <= set(targets) <= set(suite.sets):
            return name
    return "results"


def _sources(cells: list[Cell], titles: dict[str, str], given: Sequence[str]) -> set[str]:
    """Return the titles that enter no mean: given, noted when measured, or, unnoted, a suite's source."""
    for name in given:
        if name not in titles.values():
            raise unknown_name("set in these cells", name, titles.values())
    suites = [data.load_suite(name) for name in data.suite_names()]
    by_suite = {suite.source for suite in suites}
    roles: dict[str, list[bool]] = defaultdict(list)
    found = set(given)
    for cell in cells:
        roles[_identity(cell)] += [bool(role["source"]) for role in cell.roles]
    for cell in cells:
        noted = roles[_identity(cell)]
        if any(noted) or (not noted and cell.key.content["set"] in by_suite):
            found.add(titles[_identity(cell)])
    return found


def _request(cells: list[Cell], radii: Sequence[float | None], norm: str | None) -> dict[str, Any]:
    """Return what `evaluate` would say that it was asked for."""
    contents = [cell.key.content for cell in cells]

    def one(values: Iterable[Any], else_: Any) -> Any:
        different = {json.dumps(value): value for value in values}
        return next(iter(different.values())) if len(different) == 1 else else_

    return {
        "attacks": [],
        "norm": norm,
        "eps": [radius for radius in radii if radius is not None],
        "limit": None,
        "seed": one((c["seed"] for c in contents if c["threat"] is not None), None),
        "duplicates": one((c["duplicates"] for c in contents), "each set's own"),
        "precision": one((c["precision"] for c in contents), "each set's own"),
        "resolution": one((c["preprocess"].get("resolution") for c in contents), "each set's own"),
        "templates": one((c["texts"].get("templates") for c in contents), "each set's own"),
    }


def _rows(
    radius: float | None,
    sets: list[str],
    chosen: list[str],
    names: dict[str, str],
    clean: Clean,
    attacked: Attacked,
    is_source: set[str],
    notes: list[str],
    older: list[str],
) -> list[Row]:
    """Return the rows at one eps: the attacks, sets and samples that all models there have."""
    where = "" if radius is None else f" at eps {format_eps(radius)}"
    attacks_of: dict[str, list[str]] = {weights: [] for weights in chosen}
    for weights, _, eps, attack in attacked:
        if eps == radius and weights in attacks_of and attack not in attacks_of[weights]:
            attacks_of[weights].append(attack)
    models = chosen if radius is None else [w for w in chosen if attacks_of[w]]
    if not models:
        return []
    if models[0] != chosen[0]:
        notes.append(f"{names[chosen[0]]} was not measured{where}: there is no difference to it.")
    seen = list(dict.fromkeys(a for weights in models for a in attacks_of[weights]))
    attacks = sorted(a for a in seen if all(a in attacks_of[weights] for weights in models))
    for attack in sorted(set(seen) - set(attacks)):
        notes.append(f"{attack}{where} is left out: not all models were measured under it.")
    if radius is not None and not attacks:
        notes.append(f"eps {format_eps(radius)} is left out: its models share no attack.")
        return []
    by_model: dict[str, list[Row]] = {weights: [] for weights in models}
    for title in sets:
        here = {}
        for weights in models:
            own = {a: attacked.get((weights, title, radius or 0.0, a)) for a in attacks}
            whole = {name: cell for name, cell in own.items() if cell is not None}
            base = clean.get((weights, title))
            if base is not None and len(whole) == len(attacks):
                here[weights] = base, whole
        if len(here) < len(models):
            missing = ", ".join(names[weights] for weights in models if weights not in here)
            notes.append(f"{title}{where} is left out: not measured yet for {missing}.")
            continue
        found = _subset([[base, *whole.values()] for base, whole in here.values()])
        if found is None:
            counts = [
                len(c.records) for base, whole in here.values() for c in (base, *whole.values())
            ]
            notes.append(
                f"{title}{where} is left out: not every cell ({min(counts)} to {max(counts)} samples) holds all "
                "that an evaluation asked for, and what is known first is no fair sample; start the evaluation "
                "again, it goes on with what is missing."
            )
            continue
        ids = found.ids
        if len(ids) < found.most:
            notes.append(
                f"{title}{where}: the first {len(ids)} samples, not the {found.most} asked for, which not "
                "every cell holds; start the evaluation again for all."
            )
        if found.older:
            older.append(title)
        for weights, (base, whole) in here.items():
            key = base.key.content
            by_model[weights].append(
                Row(
                    model=names[weights],
                    image_set=title,
                    is_source=title in is_source,
                    eps=radius,
                    resolution=key["preprocess"].get("resolution", "model"),
                    classes=len(key["texts"].get("classnames", [])),
                    templates=list(key["texts"].get("templates", [])),
                    ids=ids,
                    clean=[base.records[i].clean for i in ids],
                    key=key,
                    **attacked_columns(base, whole, ids),
                )
            )
    return [row for rows in by_model.values() for row in rows]


class _Subset(NamedTuple):
    """The samples that are compared."""

    ids: list[str]
    """In the fixed order."""
    most: int
    """The largest number that any start asked for."""
    older: bool
    """Whether no start of theirs noted what it asked for."""


def _subset(columns: list[list[Cell]]) -> _Subset | None:
    """Return the largest subset asked for that every cell holds whole; None if there is none.

    A smaller number that all cells hold from an earlier evaluation stands in for a larger one on its way; the
    records that they happen to share do not, for these are the ones that broke first.

    Args:
        columns: the cells of each model, its clean cell in front.
    """
    cells = [cell for column in columns for cell in column]
    asked = {one for cell in cells for one in cell.asked}
    whole = [one for one in asked if all(cell.holds(one) for cell in cells)]
    best = max(whole, default=None)
    most = max((one.samples for one in asked), default=0)
    first = _older_subset(columns)
    if first is not None and (best is None or len(first) > best.samples):
        return _Subset(first, max(most, len(first)), older=True)
    return None if best is None else _Subset(cells[0].in_order()[: best.samples], most, older=False)


def _older_subset(columns: list[list[Cell]]) -> list[str] | None:
    """Return the samples of cells that starts without a number asked for left, if they can be trusted.

    All cells must hold the same samples, and the clean ones in the fixed order, in which the clean pass writes:
    an attack that was stopped lacks some, and a missing sample moves those behind it.
    """
    cells = [cell for column in columns for cell in column]
    if not all(cell.has_older_starts for cell in cells):
        return None
    held = {Asked.of(_samples(cell)) for cell in cells}
    if len(held) > 1 or any(list(base.records) != base.in_order() for base, *_ in columns):
        return None
    return cells[0].in_order()


def _samples(cell: Cell) -> list[tuple[str, int, str]]:
    """Return (id, label, image) of every record, in the fixed order."""
    records = (cell.records[name] for name in cell.in_order())
    return [(record.id, record.label, record.image) for record in records]
