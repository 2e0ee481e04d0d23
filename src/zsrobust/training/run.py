"""A run: the folder of one training.

recipe.json      the recipe as resolved; a run resumes only under the same determining keys
log.jsonl        one line a step (loss, rate), an epoch (validation), a start (machine)
checkpoint.pt    the newest checkpoint, removed when the run is complete
model/           what run:DIR reads; exists exactly if the run is complete
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Self, TypeVar

from zsrobust.errors import UserError
from zsrobust.files import (
    JsonLines,
    machine_faults,
    read_json_lines,
    write_json,
    write_text,
)
from zsrobust.training.recipe import Recipe, RunRecipe

AnyRecipe = TypeVar("AnyRecipe", bound=RunRecipe)


@dataclass(frozen=True)
class RunFolder(Generic[AnyRecipe]):
    """The folder of a training of any kind."""

    folder: Path
    recipe: AnyRecipe

    @property
    def complete(self) -> bool:
        """Whether the model is written."""
        # The config is written last (models/save.py).
        return (self.folder / "model" / "open_clip_config.json").is_file()

    @property
    def checkpoint(self) -> Path:
        """The newest checkpoint."""
        return self.folder / "checkpoint.pt"

    @property
    def model(self) -> Path:
        """Where the model is written."""
        return self.folder / "model"

    @property
    def log(self) -> Path:
        """The log."""
        return self.folder / "log.jsonl"

    @classmethod
    def open(cls, recipe: AnyRecipe, folder: Path) -> Self:
        """Begin a run in an empty folder, or go on with one that has the same recipe.

        A run that has neither checkpoint nor model takes another recipe as well: a name mistyped in the
        first one shows only when the model is loaded, and nothing is lost.

        Raises:
            UserError: if the folder holds another recipe's run, or something that is no run.
            EnvironmentFault: if it cannot be written.
        """
        stored = folder / "recipe.json"
        run = cls(folder, recipe)
        if stored.is_file():
            try:
                _refuse_other_recipe(recipe, stored, folder)
            except UserError:
                if run.checkpoint.exists() or run.complete:
                    raise
                write_json(stored, recipe.model_dump(mode="json"))
        elif folder.is_dir() and any(not f.name.startswith(".") for f in folder.iterdir()):
            raise UserError(f"{folder} is not empty and holds no run: choose another --out.")
        else:
            write_json(stored, recipe.model_dump(mode="json"))
        return run

    def read_log(self, event: str) -> list[dict[str, Any]]:
        """Return the log's lines of one kind: "step", "validation", "start" or "end"."""
        return [row for row in read_json_lines(self.log) if row.get("event") == event]

    def cut_log(self, steps: int) -> None:
        """Drop what was logged after `steps` optimiser steps: the run goes on from there."""
        rows = read_json_lines(self.log)
        for number, row in enumerate(rows, start=1):
            if not isinstance(row.get("steps_done", 0), int):
                raise UserError(
                    f"{self.log}, line {number}: steps_done is {row['steps_done']!r}, no whole number; the "
                    "file was changed by hand or damaged: remove that line."
                )
        kept = [row for row in rows if row.get("steps_done", 0) <= steps]
        if len(kept) < len(rows):
            write_text(self.log, "".join(json.dumps(row) + "\n" for row in kept))

    def append_log(self) -> JsonLines:
        """Return the log opened for appending."""
        return JsonLines(self.log)

    def finish(self) -> None:
        """Close a run whose model is written: no checkpoint, and an end line; again after a kill in between."""
        if self.checkpoint.is_file():
            with machine_faults(self.checkpoint):
                self.checkpoint.unlink()
        steps = self.read_log("step")
        if steps and not self.read_log("end"):
            with self.append_log() as log:
                log.append({"event": "end", "steps_done": steps[-1]["steps_done"]})


@dataclass(frozen=True)
class Run(RunFolder[Recipe]):
    """One hardening's folder; `spec` names its model for everything that takes a model spec."""

    @property
    def spec(self) -> str:
        """The model spec of what the run wrote."""
        return f"run:{self.folder}"

    @property
    def is_first_rank(self) -> bool:
        """Whether this process is the one that writes and prints."""
        return int(os.environ.get("RANK", os.environ.get("LOCAL_RANK", "0"))) == 0


def _refuse_other_recipe(recipe: RunRecipe, stored: Path, folder: Path) -> None:
    try:
        before = type(recipe).model_validate(json.loads(stored.read_text("utf-8"))).determining()
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"{folder}/recipe.json is damaged or was written by another version: choose another --out."
        ) from error
    now = recipe.determining()
    changed = [
        f"{key} was {before.get(key)!r}, is {now.get(key)!r}"
        for key in sorted(now.keys() | before.keys())
        if now.get(key) != before.get(key)
    ]
    if changed:
        raise UserError(
            f"{folder} holds a run of another recipe ({'; '.join(changed)}): choose another --out."
        )
