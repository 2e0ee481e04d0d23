"""Cells: model x set x texts x threat x attack x seed, with one record a sample.

A cell's key is the SHA-256 over canonical JSON of everything that determines its outcomes; the subset is not in
it, so that a larger `--limit` adds to what is there. On disk a cell is a folder

    cells/<first 16 digits of the key>/
        cell.json             the key's content, in words
        outcomes.jsonl        one line a sample, flushed as it is known; a torn last line is dropped
        environments.jsonl    one line a start: versions, device, threads (outside the key only rounding may
                              differ); the role: the model's spec and place, whether the set was the source;
                              and what was asked for: how many samples, and a digest of them
        probe.json            of the clean cell, once an attack was measured: what the first samples told of the
                              model (probes.py), for the flags

Outcomes are written as they are known, so what is broken early comes first: a cell that is not complete yet is
no sample of the set. What was asked for stands beside the key so that a reader knows what complete means.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from zsrobust.errors import UserError
from zsrobust.evaluation.probes import Probe
from zsrobust.files import JsonLines, read_json_lines, remove_partials, write_json
from zsrobust.hashing import sha256_json

if TYPE_CHECKING:
    from zsrobust.attacks.outcome import Outcome

# Changed whenever what a key stands for changes: thresholds, judging, the meaning of a field.
PROTOCOL = 1


@dataclass(frozen=True, slots=True)
class CellKey:
    """What determines the outcomes of a cell, as JSON."""

    content: Mapping[str, Any]

    @property
    def digest(self) -> str:
        """The hex SHA-256 of the content."""
        return sha256_json(self.content)


def cell_key(
    *,
    weights: str,
    preprocess: Mapping[str, Any],
    texts: Mapping[str, Any],
    duplicates: str,
    image_set: str,
    split: str,
    threat: Mapping[str, Any] | None,
    attack: Mapping[str, Any],
    seed: int | None,
    precision: str,
) -> CellKey:
    """Assemble a key; every argument moves outcomes (traps 47).

    Args:
        weights: fingerprint of the model.
        preprocess: size, mean, std, resize rule.
        texts: the rendered class texts in class order, or a head's hash.
        duplicates: "merge" or "keep".
        image_set: the set's name.
        split: the set's split.
        threat: norm, eps, resolution; null for the clean cell.
        attack: every setting of the attack, with its version; {"name": "clean"} for none.
        seed: of the noise; null for the clean cell.
        precision: of the forward that judges.
    """
    return CellKey(
        {
            "protocol": PROTOCOL,
            "weights": weights,
            "preprocess": dict(preprocess),
            "texts": dict(texts),
            "duplicates": duplicates,
            "set": image_set,
            "split": split,
            "threat": None if threat is None else dict(threat),
            "attack": dict(attack),
            "seed": seed,
            "precision": precision,
        }
    )


@dataclass(frozen=True, slots=True)
class Record:
    """One sample of a cell, as it stands in the file."""

    id: str
    label: int
    image: str
    """First 16 hex digits of the SHA-256 of the image's stored bytes."""
    clean: bool
    clean_margin: float
    broken: bool = False
    step: int | None = None
    step_within: int | None = None
    queries: int = 0
    margin: float = 0.0
    distance: float = 0.0
    by: str | None = None

    @property
    def robust(self) -> bool:
        """Right on the clean image and not broken."""
        return self.clean and not self.broken

    def as_known(self) -> Record:
        """Return this record for a larger eps, where it holds without a call: no query of it was made there."""
        return replace(self, step=None, step_within=None, queries=0)

    @property
    def query(self) -> int | None:
        """Number of the query that broke it, within its target or restart; None if none did."""
        return self.step if self.step_within is None else self.step_within

    @classmethod
    def of(cls, outcome: Outcome, image: str) -> Record:
        """Return the record of an outcome."""
        return cls(
            id=outcome.id,
            label=outcome.label,
            image=image,
            clean=outcome.clean_correct,
            clean_margin=_digits(outcome.clean_margin),
            broken=outcome.broken,
            step=outcome.step,
            step_within=outcome.step_within,
            queries=outcome.queries,
            margin=_digits(outcome.margin),
            distance=_digits(outcome.distance),
            by=outcome.by,
        )

    def check_types(self) -> None:
        """Refuse fields that a file changed by hand may hold: what is counted must be what it seems.

        Raises:
            TypeError: naming the first field of another type.
        """
        for name, kind in _RECORD_TYPES.items():
            value = getattr(self, name)
            if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
                raise TypeError(f"{name} is {value!r}")

    def row(self) -> dict[str, Any]:
        """Return the JSON line; fields at their default are left out."""
        # The default of a required field is a marker that no value equals.
        values = ((field, getattr(self, field.name)) for field in fields(self))
        return {field.name: value for field, value in values if value != field.default}


class Asked(NamedTuple):
    """A subset that a start asked for: a prefix of the set's fixed order."""

    samples: int
    digest: str
    """First 16 hex digits of the SHA-256 over id, label and image hash of each sample, in the fixed order."""

    @classmethod
    def of(cls, samples: Iterable[tuple[str, int, str]]) -> Asked:
        """Return what stands for these samples: (id, label, image hash) each, in the fixed order."""
        listed = [list(sample) for sample in samples]
        return cls(len(listed), sha256_json(listed)[:16])

    def row(self) -> dict[str, Any]:
        """Return it as JSON."""
        return {"samples": self.samples, "digest": self.digest}


_RECORD_TYPES: dict[str, Any] = {
    "id": str,
    "label": int,
    "image": str,
    "clean": bool,
    "clean_margin": (int, float),
    "broken": bool,
    "queries": int,
    "margin": (int, float),
    "distance": (int, float),
}


def _shards(folder: Path) -> list[Path]:
    """Return what processes other than the first have written and nobody brought into the cell yet."""
    return sorted(folder.glob("outcomes.*.jsonl"))


def _digits(value: float) -> float:
    """Seven significant digits: all that float32 has."""
    return float(f"{value:.7g}") if math.isfinite(value) else 0.0


class Cell:
    """A cell's records, in memory and, with a folder, on disk.

    Args:
        key: what the cell is.
        root: the folder of all results; None keeps the cell in memory.
        rank: of this process among those that measure together; all but the first write a shard each, which
            the first brings into the cell.

    Raises:
        UserError: if the folder holds a cell of another key under the same digits, or a damaged file.
    """

    def __init__(self, key: CellKey, root: Path | None, rank: int = 0) -> None:
        self.key = key
        self.rank = rank
        self.folder = None if root is None else root / "cells" / key.digest[:16]
        self.records: dict[str, Record] = {}
        self.starts: list[dict[str, Any]] = []
        """What was noted at each start: the machine; the role ("model", its "position" among those asked for,
        whether the set was "source"); what was asked for (`Asked`). Older cells lack role and asked."""
        self.probe: Probe | None = None
        """Of a clean cell, once an attack was measured."""
        self._lines: JsonLines | None = None
        if self.folder is not None and (self.folder / "cell.json").is_file():
            self._read(self.folder)

    def _read(self, folder: Path) -> None:
        import json

        try:
            stored = json.loads((folder / "cell.json").read_text("utf-8"))
        except (ValueError, RecursionError) as error:
            raise UserError(
                f"{folder}/cell.json is damaged: move the folder away, its samples are then measured again."
            ) from error
        if not isinstance(stored, dict) or stored.get("key") != self.key.digest:
            raise UserError(
                f"{folder}/cell.json does not belong to this cell: move the folder away, its samples are "
                "then measured again."
            )
        for file in [folder / "outcomes.jsonl", *_shards(folder)]:
            self._read_records(file)
        self.starts = read_json_lines(folder / "environments.jsonl")
        if (folder / "probe.json").is_file():
            try:
                self.probe = Probe.from_json(json.loads((folder / "probe.json").read_text("utf-8")))
            except (ValueError, RecursionError) as error:
                raise UserError(
                    f"{folder}/probe.json is damaged: remove it; the flags that it is for are then not judged, "
                    "until the next attack is measured."
                ) from error

    def _read_records(self, file: Path) -> None:
        for number, row in enumerate(read_json_lines(file), start=1):
            try:
                record = Record(**row)
                record.check_types()
            except TypeError as error:
                raise UserError(
                    f"{file}, line {number}: not a record as this version writes them ({error}); remove that "
                    "line, its sample is then measured again."
                ) from error
            self.records[record.id] = record  # the last one of an id holds

    def merge_shards(self) -> None:
        """Bring what other processes wrote into the cell; the first process alone does it, between two starts."""
        shards = [] if self.folder is None or self.rank else _shards(self.folder)
        for shard in shards:
            self._read_records(shard)
            with JsonLines(shard.with_name("outcomes.jsonl")) as lines:
                for row in read_json_lines(shard):
                    lines.append(row)
            shard.unlink()

    def read_again(self) -> None:
        """Take in what other processes have written meanwhile."""
        if self.folder is not None and (self.folder / "cell.json").is_file():
            self._read(self.folder)

    @property
    def roles(self) -> list[dict[str, Any]]:
        """What the cell was measured as; empty for older cells."""
        return [start["role"] for start in self.starts if isinstance(start.get("role"), dict)]

    @property
    def environments(self) -> list[dict[str, Any]]:
        """Versions, device and threads, each once."""
        found: list[dict[str, Any]] = []
        for start in self.starts:
            machine = {key: value for key, value in start.items() if key not in ("role", "asked")}
            if machine and machine not in found:
                found.append(machine)
        return found

    @property
    def asked(self) -> set[Asked]:
        """The subsets that starts asked for."""
        rows = [start["asked"] for start in self.starts if isinstance(start.get("asked"), dict)]
        pairs = [(row.get("samples"), row.get("digest")) for row in rows]
        # What was changed by hand stands for no subset.
        return {Asked(n, d) for n, d in pairs if isinstance(n, int) and isinstance(d, str)}

    @property
    def has_older_starts(self) -> bool:
        """Whether records may be from a start that noted no number asked for."""
        return not self.starts or any("asked" not in start for start in self.starts)

    def in_order(self) -> list[str]:
        """Return the ids of all records in the set's fixed order (`ImageSet.order`), as far as they tell it.

        Samples that are missing move those behind them. A prefix of the fixed order that is here whole stands
        in front as it is, whatever else is here: within its class each other record comes later.
        """
        by_hash = sorted(self.records, key=lambda name: hashlib.sha256(name.encode()).digest())
        taken: Counter[int] = Counter()
        turns = []
        for name in by_hash:
            label = self.records[name].label
            turns.append((taken[label], label, name))
            taken[label] += 1
        return [name for _, _, name in sorted(turns)]

    def holds(self, asked: Asked) -> bool:
        """Whether every sample of a subset has a record here, of that very label and image."""
        if len(self.records) < asked.samples:
            return False
        first = [self.records[name] for name in self.in_order()[: asked.samples]]
        return Asked.of((record.id, record.label, record.image) for record in first) == asked

    def valid(self, sample_id: str, label: int, image: str) -> bool:
        """Whether there is a record of this very sample: same id, label and image bytes."""
        record = self.records.get(sample_id)
        return record is not None and record.label == label and record.image == image

    def begin(self, start: Mapping[str, Any]) -> None:
        """Open the cell for new records, and note the machine and the role of this start."""
        self.starts.append(dict(start))
        if self.folder is None:
            return
        if self.rank:
            self._lines = JsonLines(self.folder / f"outcomes.{self.rank}.jsonl")
            return
        described = {"key": self.key.digest, **self.key.content}
        remove_partials(self.folder)
        if not (self.folder / "cell.json").is_file():
            write_json(self.folder / "cell.json", described)
        with JsonLines(self.folder / "environments.jsonl") as lines:
            lines.append(dict(start))
        self._lines = JsonLines(self.folder / "outcomes.jsonl")

    def note(self, asked: Asked) -> None:
        """Note a subset that was asked for and is complete already, unless a start has noted it."""
        if asked in self.asked:
            return
        self.starts.append({"asked": asked.row()})
        if self.folder is not None and not self.rank:
            with JsonLines(self.folder / "environments.jsonl") as lines:
                lines.append({"asked": asked.row()})

    def add(self, record: Record) -> None:
        """Keep a record, and flush its line."""
        self.records[record.id] = record
        if self._lines is not None:
            self._lines.append(record.row())

    def keep_probe(self, probe: Probe | None) -> None:
        """Keep what the first samples told of the model; the cell has been begun before."""
        if probe is None or probe == self.probe:
            return
        self.probe = probe
        if self.folder is not None:
            remove_partials(self.folder)
            write_json(self.folder / "probe.json", probe.to_json())

    def end(self) -> None:
        """Close the file."""
        if self._lines is not None:
            self._lines.close()
            self._lines = None


def attacked_columns(
    clean: Cell, attacked: Mapping[str, Cell], ids: Sequence[str]
) -> dict[str, Any]:
    """Return what a table's row takes from the attacks' cells, each of which holds every one of `ids`."""
    records = {name: [cell.records[i] for i in ids] for name, cell in attacked.items()}
    environments: list[dict[str, Any]] = []
    for cell in (clean, *attacked.values()):
        environments += [here for here in cell.environments if here not in environments]
    return {
        "labels": [clean.records[i].label for i in ids],
        "robust": {name: [record.robust for record in found] for name, found in records.items()},
        "steps": {name: [record.query for record in found] for name, found in records.items()},
        "by": {name: [record.by for record in found] for name, found in records.items()},
        "plans": {name: dict(cell.key.content["attack"]) for name, cell in attacked.items()},
        "environments": environments,
        "norm": next((cell.key.content["threat"]["norm"] for cell in attacked.values()), None),
        "probe": clean.probe,
    }
