"""A run: the folder of one hardening.

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
from typing import Any

from zsrobust.errors import UserError
from zsrobust.files import JsonLines, read_json_lines, write_json, write_text
from zsrobust.training.recipe import Recipe


@dataclass(frozen=True)
class Run:
    """One hardening's folder; `spec` names its model for everything that takes a model spec."""

    folder: Path
    recipe: Recipe

    @property
    def spec(self) -> str:
        """The model spec of what the run wrote."""
        return f"run:{self.folder}"

    @property
    def complete(self) -> bool:
        """Whether the hardened model is written."""
        # The config is written last (models/save.py).
        return (self.folder / "model" / "open_clip_config.json").is_file()

    @property
    def is_first_rank(self) -> bool:
        """Whether this process is the one that writes and prints."""
        return int(os.environ.get("RANK", os.environ.get("LOCAL_RANK", "0"))) == 0

    @property
    def checkpoint(self) -> Path:
        """The newest checkpoint."""
        return self.folder / "checkpoint.pt"

    @property
    def model(self) -> Path:
        """Where the hardened model is written."""
        return self.folder / "model"

    @property
    def log(self) -> Path:
        """The log."""
        return self.folder / "log.jsonl"

    @classmethod
    def open(cls, recipe: Recipe, folder: Path) -> Run:
        """Begin a run in an empty folder, or go on with one that has the same recipe.

        Raises:
            UserError: if the folder holds another recipe's run, or something that is no run.
            EnvironmentFault: if it cannot be written.
        """
        stored = folder / "recipe.json"
        if stored.is_file():
            _refuse_other_recipe(recipe, stored.read_text("utf-8"), folder)
        elif folder.is_dir() and any(not f.name.startswith(".") for f in folder.iterdir()):
            raise UserError(f"{folder} is not empty and holds no run: choose another --out.")
        else:
            write_json(stored, recipe.model_dump(mode="json"))
        return cls(folder, recipe)

    def read_log(self, event: str) -> list[dict[str, Any]]:
        """Return the log's lines of one kind: "step", "validation", "start" or "end"."""
        return [row for row in read_json_lines(self.log) if row.get("event") == event]

    def cut_log(self, steps: int) -> None:
        """Drop what was logged after `steps` optimiser steps: the run goes on from there."""
        rows = read_json_lines(self.log)
        kept = [row for row in rows if row.get("steps_done", 0) <= steps]
        if len(kept) < len(rows):
            write_text(self.log, "".join(json.dumps(row) + "\n" for row in kept))

    def append_log(self) -> JsonLines:
        """Return the log opened for appending."""
        return JsonLines(self.log)


def _refuse_other_recipe(recipe: Recipe, stored: str, folder: Path) -> None:
    try:
        before = Recipe.model_validate(json.loads(stored)).determining()
    except ValueError as error:
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
