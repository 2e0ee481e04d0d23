"""Harden on part of the source's classes and measure the rest: a rehearsal without any target.

    cd SOMEWHERE; python .../results/tiny/rehearsal/run.py

writes the source's pictures there as folders, twice: once eight of its things are kept apart (they are near the
classes that harden), once all its patterns (they are far from them). What a recipe does to classes that the
hardening never saw is so asked of source pictures alone (traps 36). Every setting of `SETTINGS` hardens
`recipe.yaml` on what is left, and is measured on what was kept apart: `rehearsal.json`. Resumes.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from zsrobust import data
from zsrobust.evaluation.evaluate import evaluate
from zsrobust.files import write_text
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
MOST = "source.limit=15500"
ONE_STEP = [MOST, "adversary.steps=1"]
SMALL = [*ONE_STEP, "batch=16"]
SETTINGS: dict[str, list[str]] = {
    "6,400 pictures, 2 steps, batch 32, 1e-3": [],
    "15,500 pictures, 1 step, batch 32, 2e-3": [*ONE_STEP, "optimiser.lr=0.002"],
    "15,500 pictures, 1 step, batch 32, 1e-3": ONE_STEP,
    "15,500 pictures, 1 step, batch 32, 3e-4": [*ONE_STEP, "optimiser.lr=0.0003"],
    "15,500 pictures, 1 step, batch 32, SGD 0.03": [
        *ONE_STEP,
        "optimiser.name=sgd",
        "optimiser.lr=0.03",
    ],
    "15,500 pictures, 1 step, batch 16, 1e-3": SMALL,
    "15,500 pictures, 1 step, batch 16, 5e-4": [*SMALL, "optimiser.lr=0.0005"],
    "15,500 pictures, 1 step, batch 16, 3e-4": [*SMALL, "optimiser.lr=0.0003"],
    "15,500 pictures, 1 step, batch 16, 1.5e-4": [*SMALL, "optimiser.lr=0.00015"],
}


def within(eps: str, rate: float) -> list[str]:
    """Return a hardening within another ball than the one that is measured."""
    return [*SMALL, f"threat.eps={eps}", f"adversary.step_size={eps}", f"optimiser.lr={rate}"]


for _eps, _rate in (
    ("2/255", 0.0005),
    ("2/255", 0.0003),
    ("2/255", 0.00015),
    ("1.5/255", 0.0003),
):
    SETTINGS[f"the same, hardened within {_eps}, {_rate:g}"] = within(_eps, _rate)
for _rate in (0.001, 0.0003, 0.0001):
    SETTINGS[f"the same, hardened within 2/255, {_rate:g}, FT(Adv.)"] = [
        *within("2/255", _rate),
        "objective.name=adv",
    ]


def write_pictures(way: str) -> None:
    """Write src/train and src/val (what hardens) and apart/test (what is measured) below a folder."""
    for split in ("train", "val"):
        images = data.open_set("demo/source", split)
        for index in images.first(None):
            name = images.classnames[images.labels[index]]
            apart = APART[way](name)
            if split == "train" and apart:
                continue
            folder = Path(way) / ("apart/test" if apart else f"src/{split}") / name
            folder.mkdir(parents=True, exist_ok=True)
            number = images.ids[index].rpartition("/")[2]
            images.picture(index).save(folder / f"{number}.png", compress_level=1)


def rows(way: str) -> Iterator[dict[str, Any]]:
    """Harden by every setting; yield what came out, the unhardened model first."""
    yield {"way": way, "setting": "unhardened", **measured("tiny", way)}
    for setting, overrides in SETTINGS.items():
        recipe = load_recipe(
            str(HERE / "recipe.yaml"), [*overrides, f"source.set=folder:{way}/src"]
        )
        name = "".join(c if c.isalnum() else "-" for c in setting)
        run = harden(recipe, Path(way) / "runs" / name)
        yield {"way": way, "setting": setting, "overrides": overrides, **measured(run, way)}


def measured(model: str | Run, way: str) -> dict[str, Any]:
    """Return clean and robust accuracy on the classes kept apart."""
    table = evaluate(
        [model],
        [f"folder:{way}/apart"],
        ["clean", "pgd-20", "cw-margin-20"],
        ["3/255"],
        limit=240,
        templates=["a drawing of a {}."],
        out=f"{way}/results",
    )
    accuracy = table.to_json()["rows"][0]["accuracy"]
    return {column: accuracy[column] for column in ("clean", "robust")}


def main() -> None:
    """Run both ways; the records are written anew after each row."""
    found: list[dict[str, Any]] = []
    for way in APART:
        if not Path(way).is_dir():
            write_pictures(way)
        for row in rows(way):
            found.append(row)
            write_text(HERE / "rehearsal.json", json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
