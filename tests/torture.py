"""Kill a training and an evaluation again and again, at moments drawn from a seed; compare with runs never killed.

    python tests/torture.py [--kills 20] [--seed 0]

Toy model and toy pictures, made here; real processes of the command line, SIGKILL. A round starts in an empty
folder, is killed one to four times, is started once more and must end as if nothing had happened: the same
weights bit by bit, every line of the log once, every outcome once and none measured twice. Exit code 1 if
one does not.

Moments are of four kinds:

    start   a delay from the start of the process, within the time that it needs to begin
    named   before a file operation that matters: the first checkpoint is put in place, it is removed, ...
    file    before one of its file operations on the folder, by its number (kill_hook/sitecustomize.py)
    line    when a number of lines is there (log, outcomes), and up to 30 ms later
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import sys
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import yaml

from conftest import write_tiny_clip, write_tiny_set
from processes import count_lines, end, start


class Subject(ABC):
    """What is killed: a command, and what it must leave."""

    name: str
    named: tuple[str, ...]
    """File operations that matter, as kill_hook/sitecustomize.py reads them."""
    lines: int
    """How many lines a whole run writes."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.whole = place / f"whole-{self.name}"
        self.whole.mkdir()
        began = time.monotonic()
        process = start(self.command(), self.whole, kill_at="* out/ 1000000", count_to=self.count)
        while not count_lines(*self.files(self.whole)) and process.poll() is None:
            time.sleep(0.005)
        self.startup = time.monotonic() - began
        ended = end(process)
        if ended.code != 0:
            raise SystemExit(f"the {self.name} that nobody killed failed: {ended.err}")
        self.operations = int(self.count.read_text())
        self.lines = count_lines(*self.files(self.whole))

    @property
    def count(self) -> Path:
        """Where the whole run writes how many file operations it made."""
        return self.place / f"{self.name}.count"

    @abstractmethod
    def command(self) -> list[str]:
        """Arguments of the command line; it works in the folder `out`."""

    @abstractmethod
    def files(self, place: Path) -> list[Path]:
        """The files that grow line by line."""

    @abstractmethod
    def state(self, place: Path) -> str:
        """What a kill left, in words."""

    @abstractmethod
    def differences(self, place: Path) -> Iterator[str]:
        """In what a finished round differs from the run that nobody killed."""


class Training(Subject):
    """Two epochs of four steps, a checkpoint each step, held-out images after each epoch."""

    named = (
        "os.rename recipe.json 1",
        "os.rename log.jsonl 1",
        "os.rename checkpoint.pt 1",
        "open checkpoint.pt 4",
        "open /val/ 5",
        "open /val/ 15",
        "os.rename open_clip_model.safetensors 1",
        "os.rename open_clip_config.json 1",
        "os.remove checkpoint.pt 1",
    )

    def __init__(self, place: Path, select: str) -> None:
        self.select = select
        self.name = f"training, select {select}"
        super().__init__(place)

    def command(self) -> list[str]:
        """Harden."""
        recipe = self.place / f"{self.select}.yaml"
        content = {
            "name": "torture",
            "model": f"local-dir:{self.place / 'clip'}",
            "source": {"set": f"folder:{self.place / 'pictures'}", "split": "train"},
            "validation": {"split": "val", "limit": 10, "attack": "pgd-2", "every": "epoch"},
            "threat": {"eps": "4/255"},
            "optimiser": {"name": "adamw", "lr": 1e-3, "weight_decay": 0.01},
            "epochs": 2,
            "batch": 16,
            "threads": 1,
            "checkpoint_every": 1,
            "device": "cpu",
            "select": self.select,
        }
        recipe.write_text(yaml.safe_dump(content))
        return ["harden", str(recipe), "--out", "out"]

    def files(self, place: Path) -> list[Path]:
        """The log."""
        return [place / "out" / "log.jsonl"]

    def state(self, place: Path) -> str:
        """Recipe, log, checkpoint, model, partial files."""
        out = place / "out"
        if not (out / "recipe.json").is_file():
            words = ["no recipe"]
        else:
            rows = self.rows(place)
            kinds = [row["event"] for row in rows]
            words = [f"{kinds.count('step')} steps", f"{kinds.count('validation')} validations"]
            words += ["end"] * ("end" in kinds)
            if (out / "checkpoint.pt").is_file():
                found = torch.load(out / "checkpoint.pt", weights_only=True)
                words.append(f"checkpoint {found['epoch']}.{found['step']}")
            else:
                words.append("no checkpoint")
            files = sorted(p.name for p in (out / "model").glob("[!.]*"))
            whole = "open_clip_config.json" in files
            words.append("model whole" if whole else f"model {len(files)} files" if files else "")
        words += [f"left {p.name.split('.')[1]}" for p in out.rglob("*.partial")]
        return ", ".join(word for word in words if word)

    def rows(self, place: Path) -> list[dict[str, Any]]:
        """The log's whole lines, starts left out."""
        text = (place / "out" / "log.jsonl").read_text() if self.files(place)[0].is_file() else ""
        rows = [json.loads(line) for line in text.split("\n")[:-1]]
        return [row for row in rows if row["event"] != "start"]

    def differences(self, place: Path) -> Iterator[str]:
        """Files, the model's bytes, the log."""
        names = [
            sorted(str(p.relative_to(of)) for p in (of / "out").rglob("*") if p.is_file())
            for of in (place, self.whole)
        ]
        if names[0] != names[1]:
            yield f"files {set(names[0]) ^ set(names[1])}"
        for file in (self.whole / "out" / "model").iterdir():
            mine = place / "out" / "model" / file.name
            if not mine.is_file() or mine.read_bytes() != file.read_bytes():
                yield f"model/{file.name}"
        if self.rows(place) != self.rows(self.whole):
            yield "log"


class Evaluation(Subject):
    """Sixty pictures, eight side by side, a clean pass and two attacks."""

    name = "evaluation"
    named = (
        "os.rename cell.json 1",
        "os.rename cell.json 2",
        "open environments.jsonl 1",
        "open outcomes.jsonl 2",
        "open /sorted/ 90",
        "open /sorted/ 150",
        "open /sorted/ 210",
    )

    def command(self) -> list[str]:
        """Eval."""
        model, pictures = f"local-dir:{self.place / 'clip'}", f"folder:{self.place / 'sorted'}"
        attacks = ["--attacks", "clean,pgd-20,cw-margin-20", "--eps", "1/255", "--slots", "8"]
        return ["eval", model, "--sets", pictures, *attacks, "--device", "cpu", "--out", "out"]

    def files(self, place: Path) -> list[Path]:
        """The outcomes of each cell."""
        return list((place / "out").glob("cells/*/outcomes.jsonl"))

    def cells(self, place: Path) -> dict[str, list[str]]:
        """Whole lines by attack; a torn one is no line."""
        found = {}
        for file in (place / "out").glob("cells/*/cell.json"):
            lines = file.with_name("outcomes.jsonl")
            text = lines.read_text() if lines.is_file() else ""
            found[json.loads(file.read_text())["attack"]["name"]] = text.split("\n")[:-1]
        return found

    def state(self, place: Path) -> str:
        """Outcomes of each attack."""
        cells = self.cells(place)
        words = [f"{name} {len(lines)}" for name, lines in sorted(cells.items())] or ["no cell"]
        words += [f"left {p.name.split('.')[1]}" for p in (place / "out").rglob("*.partial")]
        return ", ".join(words)

    def differences(self, place: Path) -> Iterator[str]:
        """Cells, ids that stand twice, records; margins may differ by their rounding, nothing else."""
        found, expected = self.cells(place), self.cells(self.whole)
        if found.keys() != expected.keys():
            yield f"cells {set(found) ^ set(expected)}"
            return
        for name, lines in found.items():
            mine = {row["id"]: row for row in map(json.loads, lines)}
            if len(mine) != len(lines):
                yield f"{name}: {len(lines) - len(mine)} measured twice"
            theirs = {row["id"]: row for row in map(json.loads, expected[name])}
            wrong = [
                i for i in mine.keys() | theirs.keys() if not _same(mine.get(i), theirs.get(i))
            ]
            if wrong:
                yield f"{name}: {len(wrong)} records"
        if any((place / "out").rglob("*.partial")):
            yield "partial files"


def _same(mine: dict[str, Any] | None, theirs: dict[str, Any] | None) -> bool:
    """Whether two records agree; other companions in a batch may move a margin by its rounding (traps 33)."""
    if mine is None or theirs is None or mine.keys() != theirs.keys():
        return False
    return all(
        abs(mine[key] - theirs[key]) < 1e-4
        if isinstance(theirs[key], float)
        else mine[key] == theirs[key]
        for key in theirs
    )


def kill_once(subject: Subject, place: Path, draw: random.Random) -> str | None:
    """Start the command and kill it at a drawn moment; return the moment, None if it ended before."""
    kind = draw.choice(["start", "named", "file", "line", "line"])
    if kind == "file":
        number = draw.randint(1, subject.operations)
        process = start(subject.command(), place, kill_at=f"* out/ {number}")
        moment = f"file operation {number}"
    elif kind == "named":
        moment = draw.choice(subject.named)
        process = start(subject.command(), place, kill_at=moment)
    elif kind == "start":
        delay = draw.uniform(0, subject.startup)
        process = start(subject.command(), place)
        time.sleep(delay)
        process.kill()
        moment = f"{delay:.2f} s after the start"
    else:
        there = count_lines(*subject.files(place))
        wanted = draw.randint(1, max(subject.lines - there, 1))
        delay = draw.uniform(0, 0.03)
        process = start(subject.command(), place)
        while count_lines(*subject.files(place)) < there + wanted and process.poll() is None:
            time.sleep(0.001)
        time.sleep(delay)
        process.kill()
        moment = f"{wanted} lines more, {1000 * delay:.0f} ms later"
    ended = end(process)
    if ended.code == -signal.SIGKILL:
        return moment
    if ended.code != 0:
        raise SystemExit(f"{subject.name} failed instead of being killed: {ended.err}")
    return None


def torture(subjects: list[Subject], kills: int, place: Path, draw: random.Random) -> bool:
    """Kill `kills` times, in rounds; print a line a kill. Return whether every round ended well."""
    done, number, fine = 0, 0, True
    while done < kills:
        number += 1
        subject = subjects[number % len(subjects)]
        folder = place / f"round-{number}-{subject.name}"
        folder.mkdir()
        rows: list[tuple[str, str]] = []
        kept: dict[str, list[str]] = {}
        lost: list[str] = []
        for _ in range(min(draw.randint(1, 4), kills - done)):
            moment = kill_once(subject, folder, draw)
            if moment is None:
                break
            rows.append((moment, subject.state(folder)))
            if isinstance(subject, Evaluation):
                now = subject.cells(folder)
                lost += [name for name, old in kept.items() if now[name][: len(old)] != old]
                kept = now
        last = end(start(subject.command(), folder))
        found = [f"exit code {last.code}"] if last.code else list(subject.differences(folder))
        found += [f"{name}: outcomes that were there are gone" for name in lost]
        result = "DIFFERS: " + "; ".join(found) if found else "equal"
        fine = fine and not found
        for moment, state in rows:
            done += 1
            _print(f"| {done} | {number}, {subject.name} | {moment} | {state} | {result} |")
    return fine


def _print(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def main() -> None:
    """Make the toys, torture both commands, and say how it went."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--kills", type=int, default=20, help="of each command")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    draw = random.Random(given.seed)  # noqa: S311 - moments, no secrets
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        (place / "clip").mkdir()
        write_tiny_clip(place / "clip")
        write_tiny_set(place / "pictures")
        _sort_by_prediction(place)
        fine = []
        for title, subjects in (
            ("training", [Training(place, "last"), Training(place, "best")]),
            ("evaluation", [Evaluation(place)]),
        ):
            _print(f"\n{title}, seed {given.seed}")
            _print(
                "| kill | round | moment | state found | after the restart |\n|---|---|---|---|---|"
            )
            fine.append(torture(subjects, given.kills, place, draw))
    minutes = (time.monotonic() - began) / 60
    verdict = "all ended as if never killed" if all(fine) else "SOME DIFFER"
    _print(f"\n{given.kills} kills of each in {minutes:.1f} minutes: {verdict}.")
    sys.exit(0 if all(fine) else 1)


def _sort_by_prediction(place: Path) -> None:
    """Put each picture into the class that the toy CLIP takes it for, so that attacks have something to do."""
    import shutil

    from zsrobust import data
    from zsrobust.models import ZeroShotClassifier, load_clip
    from zsrobust.preprocess import to_unit

    clip = load_clip(f"local-dir:{place / 'clip'}")
    opened = data.open_set(f"folder:{place / 'pictures'}/train")
    names = opened.classnames or []
    batch = next(data.batches(opened, range(60), clip.preprocess.geometry(), 60))
    with torch.no_grad():
        found = ZeroShotClassifier.from_texts(clip, names)(to_unit(batch.images)).argmax(1)
    for name, label in zip(batch.ids, found.tolist(), strict=True):
        to = place / "sorted" / names[label] / name.replace("/", "-")
        to.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(place / "pictures" / "train" / name, to)


if __name__ == "__main__":
    main()
