"""Harden on part of the source's classes and measure the rest: a rehearsal without any target.

    cd SOMEWHERE; python .../results/tiny/rehearsal/run.py

writes the source's pictures there as folders, in two ways: once eight of its things are kept apart (near the
classes that harden), once all its patterns (far from them). What a recipe does to classes that the hardening
never saw is so asked of source pictures alone (traps 36). Every setting of `SETTINGS` hardens `recipe.yaml` on
what is left, and is measured on what was kept apart: `rehearsal.json`. Resumes.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from zsrobust import data
from zsrobust.evaluation.evaluate import evaluate
from zsrobust.files import write_text
from zsrobust.threat import format_eps
from zsrobust.training.loop import harden
from zsrobust.training.recipe import load_recipe
from zsrobust.training.run import Run

HERE = Path(__file__).resolve().parent
THINGS = ("house", "cup", "key", "umbrella", "lamp", "bell", "hat", "bottle")
APART = {
    "things": lambda name: name in THINGS,
    "patterns": lambda name: name.endswith("pattern"),
}
# Both ways leave this many pictures to harden on.
ONE_STEP = ["source.limit=15500", "adversary.steps=1"]
SMALL = [*ONE_STEP, "batch=16"]


def within(eps: str) -> list[str]:
    """Return a hardening within another ball than the one that is measured."""
    return [*SMALL, f"threat.eps={eps}", f"adversary.step_size={eps}"]


SETTINGS: dict[str, list[str]] = {
    "base": [],
    "s1_b32_2e-3": [*ONE_STEP, "optimiser.lr=0.002"],
    "s1_b32": ONE_STEP,
    "s1_b32_3e-4": [*ONE_STEP, "optimiser.lr=0.0003"],
    "s1_b32_sgd0.03": [*ONE_STEP, "optimiser.name=sgd", "optimiser.lr=0.03"],
    "s1_b16": SMALL,
    "s1_b16_5e-4": [*SMALL, "optimiser.lr=0.0005"],
    "s1_b16_3e-4": [*SMALL, "optimiser.lr=0.0003"],
    "s1_b16_1.5e-4": [*SMALL, "optimiser.lr=0.00015"],
    "s1_b16_eps1_3e-4": [*within("1/255"), "optimiser.lr=0.0003"],
    "s1_b16_eps2_5e-4": [*within("2/255"), "optimiser.lr=0.0005"],
    "s1_b16_eps2_3e-4": [*within("2/255"), "optimiser.lr=0.0003"],
    "s1_b16_eps2_1.5e-4": [*within("2/255"), "optimiser.lr=0.00015"],
    "adv_eps2_1e-3": [*within("2/255"), "objective.name=adv", "optimiser.lr=0.001"],
    "adv_eps2_5e-4": [*within("2/255"), "objective.name=adv", "optimiser.lr=0.0005"],
    "adv_eps2_3e-4": [*within("2/255"), "objective.name=adv", "optimiser.lr=0.0003"],
    "adv_eps2_1e-4": [*within("2/255"), "objective.name=adv", "optimiser.lr=0.0001"],
    "adv_eps2_3e-5": [*within("2/255"), "objective.name=adv", "optimiser.lr=0.00003"],
}


def write_pictures(way: str) -> None:
    """Write src/train and src/val (what hardens) and apart/test (what is measured) below the current folder."""
    for split in ("train", "val"):
        images = data.open_set("demo/source", split)
        for index in images.first(None):
            name = images.classnames[images.labels[index]]
            apart = APART[way](name)
            if split == "train" and apart:
                continue
            folder = Path("apart/test" if apart else f"src/{split}") / name
            folder.mkdir(parents=True, exist_ok=True)
            number = images.ids[index].rpartition("/")[2]
            images.picture(index).save(folder / f"{number}.png", compress_level=1)


def rows(way: str) -> Iterator[dict[str, Any]]:
    """Harden by every setting in the current folder; yield what came out, the unhardened model first."""
    yield {"way": way, "name": "unhardened", **measured("tiny")}
    for name, overrides in SETTINGS.items():
        recipe = load_recipe(str(HERE / "recipe.yaml"), [*overrides, f"name={name}"])
        run = harden(recipe, Path("runs") / name)
        yield {
            "way": way,
            "name": name,
            "objective": recipe.objective.name,
            "images": recipe.source.limit,
            "steps": recipe.adversary.steps,
            "batch": recipe.batch,
            "eps": format_eps(recipe.threat.eps),
            "optimiser": recipe.optimiser.name,
            "lr": recipe.optimiser.lr,
            **measured(run),
        }


def measured(model: str | Run) -> dict[str, Any]:
    """Return clean and robust accuracy on the classes kept apart, and which samples stay right."""
    table = evaluate(
        [model],
        ["folder:apart"],
        ["clean", "pgd-20", "cw-margin-20"],
        ["3/255"],
        limit=240,
        templates=["a drawing of a {}."],
        out="results",
    )
    row = table.rows[0]
    return {
        "clean": row.accuracy("clean").value,
        "robust": row.accuracy("robust").value,
        "robust_of_each": "".join(str(int(right)) for right in row.values("robust")),
    }


def main() -> None:
    """Run both ways, each in a folder of its name."""
    found: list[dict[str, Any]] = []
    for way in APART:
        folder = Path(way)
        folder.mkdir(exist_ok=True)
        with contextlib.chdir(folder):
            if not Path("apart").is_dir():
                write_pictures(way)
            found += rows(way)
    write_text(HERE / "rehearsal.json", json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
