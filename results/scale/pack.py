"""Keep what docs/results.md is made of: the packed cells of `mini/scale`, its models, and how each was hardened.

    python results/scale/pack.py [FOLDER of zsrobust study mini/scale]

Writes results/scale/records/ (`zsrobust report` reads it), results/scale/models.json (which model stands where in
which study) and results/scale/hardenings.json.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from zsrobust.cli.output import say
from zsrobust.evaluation.packed import write_packed
from zsrobust.evaluation.stored import read_cells
from zsrobust.files import write_json
from zsrobust.models import load_clip
from zsrobust.models.load import read_adaptation
from zsrobust.training.recipe import Recipe
from zsrobust.training.run import Run
from zsrobust.workflows.collection_recipe import load_collection

HERE = Path(__file__).resolve().parent
COLLECTION = "mini/scale"


def main() -> None:
    """Read a finished collection and write the three."""
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path("runs") / "studies" / COLLECTION
    collection = load_collection(COLLECTION)
    if collection is None:
        raise SystemExit(f"{COLLECTION} is no collection")
    cells = read_cells(folder / "results")
    models: dict[str, Any] = {}
    for member in collection.members:
        study = json.loads((folder / member.folder / "study.json").read_text("utf-8"))
        models[member.folder] = {
            "chosen": study["chosen"],
            "places": [
                {
                    "labels": place["labels"],
                    "hardened": place["hardened"],
                    "chosen": place["chosen"],
                    "eps": place["eps"],
                    "weights": place["weights"],
                }
                for place in study["places"]
            ],
        }
    for name, of in models.items():
        models[name] = _relative(of, folder)
    write_json(HERE / "models.json", models)
    write_json(HERE / "hardenings.json", hardenings(folder))
    for cell in cells:
        cell.starts = _relative(cell.starts, folder)
    for file in write_packed(cells, HERE / "records"):
        say(f"{file.name}: {file.stat().st_size:,} bytes")


def hardenings(folder: Path) -> list[dict[str, Any]]:
    """Return how each model was hardened, a row a run."""
    rows = []
    for place in sorted((folder / "runs").iterdir()):
        recipe = Recipe.model_validate_json((place / "recipe.json").read_text("utf-8"))
        run = Run(place, recipe)
        start, steps = run.read_log("start")[-1], run.read_log("step")
        rows.append(
            {
                "run": place.name,
                "weights": read_adaptation(run.model).get("fingerprint")
                or load_clip(run.spec).fingerprint,
                "recipe": recipe.model_dump(mode="json"),
                "steps": steps[-1]["steps_done"] if steps else 0,
                "trained_numbers": start.get("trained_numbers"),
                "pseudo_labels": start.get("pseudo_labels"),
                "held_out": run.read_log("validation")[-1:],
            }
        )
    return rows


def _relative(value: Any, folder: Path) -> Any:
    """Return JSON in which runs are named by their own folder: where they lay means nothing elsewhere."""
    text = json.dumps(value)
    for before in (folder.resolve().as_posix(), folder.as_posix()):
        text = text.replace(f"{before}/runs/", "runs/mini/")
    return json.loads(text)


if __name__ == "__main__":
    main()
