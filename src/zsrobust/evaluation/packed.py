"""Cells, packed into a few small files: every published number can be recomputed from them without a model.

DIR/
    samples.jsonl.xz    a line a set and split: its name, and id, label and image hash of each sample once
    cells-N.jsonl.xz    a line a cell: key, starts and probe as in its folder, and a column a field; samples are
                        named by their row in samples.jsonl.xz

Margins have five significant digits and distances four; all else is as measured.
"""

from __future__ import annotations

import json
import lzma
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

from zsrobust.errors import EnvironmentFault, UserError
from zsrobust.evaluation.cells import Cell, CellKey, Record
from zsrobust.evaluation.probes import Probe
from zsrobust.files import remove_partials, write_atomically
from zsrobust.hashing import sha256_json

SAMPLES_NAME = "samples.jsonl.xz"
MOST_BYTES = 900_000
"""Of one file."""

_DIGITS = {"clean_margin": 5, "margin": 5, "distance": 4}
_FLAGS = ("clean", "broken")
_COLUMNS = ("clean_margin", "broken", "step", "step_within", "queries", "margin", "distance", "by")

Samples = dict[tuple[str, str], dict[tuple[str, int, str], int]]  # (set, split) -> sample -> row


def is_packed(folder: Path) -> bool:
    """Whether a folder holds packed cells."""
    return (folder / SAMPLES_NAME).is_file()


def write_packed(cells: Iterable[Cell], folder: Path) -> list[Path]:
    """Write cells into a folder and return the files; others of these names are removed.

    No file of cells is above `MOST_BYTES`, unless one cell alone is; that of the samples grows with the sets.

    Raises:
        UserError: if there are no cells with records, or the folder holds something else.
        EnvironmentFault: if it cannot be written.
    """
    ordered = sorted((cell for cell in cells if cell.records), key=_place)
    if not ordered:
        raise UserError("no cell holds a record: there is nothing to pack.")
    if folder.is_dir():
        remove_partials(folder)
    others = [f.name for f in folder.iterdir() if not _is_own(f)] if folder.is_dir() else []
    if others:
        raise UserError(
            f"{folder} holds something else than packed cells ({sorted(others)[0]}): name a new or empty folder."
        )
    samples: Samples = defaultdict(dict)
    margins: dict[str, dict[int, float]] = {}
    packed = [_line(cell, samples, margins) for cell in ordered]
    listed = {place: [list(sample) for sample in rows] for place, rows in samples.items()}
    for line in packed:  # only now are the tables whole
        place = line["content"]["set"], line["content"]["split"]
        line["samples"] = sha256_json(listed[place])[:16]
        line["digest"] = sha256_json(line)[:16]
    lines = [json.dumps(line, separators=(",", ":"), allow_nan=False) for line in packed]
    tables = [
        json.dumps({"set": name, "split": split, "samples": rows})
        for (name, split), rows in listed.items()
    ]
    parts = _parts(lines)
    files = [folder / SAMPLES_NAME, *(folder / _name(n) for n in range(len(parts)))]
    for file, content in zip(files, [_compress(tables), *parts], strict=True):
        write_atomically(file, partial(_put, content))
    for old in folder.iterdir():
        if old not in files:
            old.unlink()
    return files


def read_packed(folder: Path) -> list[Cell]:
    """Return the cells of a folder.

    Raises:
        UserError: if a file is damaged, or a key was changed after it was written.
        EnvironmentFault: if a file cannot be read.
    """
    tables: dict[tuple[str, str], list[tuple[str, int, str]]] = {}
    digests: dict[tuple[str, str], str] = {}
    cells = []
    margins: dict[str, dict[int, float]] = {}
    file = folder / SAMPLES_NAME
    try:
        for row in _read_lines(file):
            place = row["set"], row["split"]
            tables[place] = [(i, label, h) for i, label, h in row["samples"]]
            digests[place] = sha256_json(row["samples"])[:16]
        for file in sorted(folder.glob("cells-*.jsonl.xz")):
            for row in _read_lines(file):
                key = CellKey(row["content"])
                place = row["content"]["set"], row["content"]["split"]
                own = sha256_json({name: row[name] for name in row if name != "digest"})[:16]
                if (key.digest, own, digests[place]) != (row["key"], row["digest"], row["samples"]):
                    raise UserError(
                        f"{file}: cell {row['key'][:16]} was changed after it was written, or belongs to another "
                        f"{SAMPLES_NAME}; take the folder anew from where it came."
                    )
                cells.append(_cell(key, row, tables, margins))
    except (ValueError, KeyError, TypeError, IndexError, EOFError, lzma.LZMAError) as error:
        raise UserError(f"{file} is damaged ({error}): take it anew from where it came.") from error
    return cells


def _put(content: bytes, stream: BinaryIO) -> None:
    stream.write(content)


def _is_own(file: Path) -> bool:
    return file.name == SAMPLES_NAME or (
        file.name.startswith("cells-") and file.name.endswith(".jsonl.xz")
    )


def _name(number: int) -> str:
    return f"cells-{number:02d}.jsonl.xz"


def _place(cell: Cell) -> tuple[str, ...]:
    """Order: by model and set, the clean cell in front of the attacks on it."""
    content = cell.key.content
    attacked = "" if content["threat"] is None else json.dumps(content["threat"])
    return (
        str(content["weights"]),
        str(content["set"]),
        str(content["split"]),
        attacked,
        str(content["attack"]["name"]),
        cell.key.digest,
    )


def _line(cell: Cell, samples: Samples, margins: dict[str, dict[int, float]]) -> dict[str, Any]:
    content = cell.key.content
    table = samples[content["set"], content["split"]]
    records = list(cell.records.values())
    rows = [table.setdefault((r.id, r.label, r.image), len(table)) for r in records]
    # By row, not in the order in which outcomes were known: runs of equal values compress.
    by_row = sorted(range(len(rows)), key=lambda i: rows[i])
    records, rows = [records[i] for i in by_row], [rows[i] for i in by_row]
    line: dict[str, Any] = {
        "key": cell.key.digest,
        "content": content,
        "starts": cell.starts,
        "probe": None if cell.probe is None else cell.probe.to_json(),
        "rows": len(rows) if rows == list(range(len(rows))) else rows,
        "clean": "".join("01"[record.clean] for record in records),
    }
    defaults = Record("", 0, "", clean=False, clean_margin=0.0)
    for name in _COLUMNS:
        values = [getattr(record, name) for record in records]
        if name in _DIGITS:
            values = [_rounded(value, _DIGITS[name]) for value in values]
        if name == "clean_margin":
            known = margins.setdefault(_family(content), {})
            told = all(known.get(row) == value for row, value in zip(rows, values, strict=True))
            for row, value in zip(rows, values, strict=True):
                known.setdefault(row, value)
            if told:  # by the clean cell
                continue
        if all(value == getattr(defaults, name) for value in values):
            continue
        line[name] = "".join("01"[v] for v in values) if name in _FLAGS else values
    return line


def _cell(
    key: CellKey,
    line: Mapping[str, Any],
    tables: Mapping[tuple[str, str], Sequence[tuple[str, int, str]]],
    margins: dict[str, dict[int, float]],
) -> Cell:
    table = tables[key.content["set"], key.content["split"]]
    rows = list(range(line["rows"])) if isinstance(line["rows"], int) else line["rows"]
    columns = {name: line[name] for name in _COLUMNS if name in line}
    for name in _FLAGS:
        if name in line:
            columns[name] = [digit == "1" for digit in line[name]]
    known = margins.setdefault(_family(key.content), {})
    if "clean_margin" not in columns:
        columns["clean_margin"] = [known.get(row, 0.0) for row in rows]
    for row, value in zip(rows, columns["clean_margin"], strict=True):
        known.setdefault(row, value)
    cell = Cell(key, None)
    for place, row in enumerate(rows):
        name, label, image = table[row]
        own = {column: values[place] for column, values in columns.items()}
        record = replace(Record(name, label, image, clean=False, clean_margin=0.0), **own)
        record.check_types()
        cell.records[name] = record
    cell.starts = list(line["starts"])
    cell.probe = None if line["probe"] is None else Probe.from_json(line["probe"])
    return cell


def _family(content: Mapping[str, Any]) -> str:
    """Name what a clean cell and the attacks on the same model share."""
    same = ("weights", "preprocess", "texts", "duplicates", "set", "split", "precision")
    return json.dumps([content[name] for name in same], sort_keys=True)


def _rounded(value: float, digits: int) -> float:
    return float(f"{value:.{digits}g}") if math.isfinite(value) else 0.0


def _compress(lines: Iterable[str]) -> bytes:
    return lzma.compress("".join(line + "\n" for line in lines).encode(), preset=9)


def _parts(lines: Sequence[str]) -> list[bytes]:
    """Return the lines compressed, in as few parts as `MOST_BYTES` each allow by halving."""
    whole = _compress(lines)
    if len(whole) <= MOST_BYTES or len(lines) == 1:
        return [whole]
    half = len(lines) // 2
    return [*_parts(lines[:half]), *_parts(lines[half:])]


def _read_lines(file: Path) -> list[dict[str, Any]]:
    try:
        text = lzma.decompress(file.read_bytes()).decode()
    except OSError as error:
        raise EnvironmentFault(
            f"cannot read {file}: {error.strerror or error}; mend it and try again."
        ) from error
    return [json.loads(line) for line in text.splitlines()]
