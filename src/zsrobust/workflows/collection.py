"""A collection: several studies that share their hardenings and their cells.

OUT/runs/NAME/       a hardening each, whichever studies it is in
OUT/results/         the cells of all models
OUT/held-out/        scores on held-out source images
OUT/times.jsonl      how long finished hardenings took here
OUT/STUDY/           study.json, table.md and figure of each study
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from zsrobust.evaluation.measure import Notify
from zsrobust.files import folder_lock, refuse_others
from zsrobust.workflows.collection_recipe import Collection
from zsrobust.workflows.study import Outcome, check_study, refuse_other_study, run_checked_study
from zsrobust.workflows.study_plan import Cost, StudyPlan, plan_study
from zsrobust.workflows.study_recipe import SHARED_NAMES


def run_collection(
    collection: Collection,
    out: str | Path,
    *,
    progress: bool = False,
    notify: Notify | None = None,
) -> list[Outcome]:
    """Run each study in turn; what is there already is not done again.

    Raises:
        UserError: as `run_study`, for any of them before the first begins.
        EnvironmentFault: as `run_study`.
    """
    folder = Path(out)
    _refuse_other(collection, folder)
    for member in collection.members:
        check_study(member.study, member.combinations)
    with folder_lock(folder):
        return [
            run_checked_study(
                member.study,
                member.combinations,
                folder / member.folder,
                folder,
                progress=progress,
                notify=notify,
            )
            for member in collection.members
        ]


def plan_collection(
    collection: Collection, out: str | Path, *, notify: Notify | None = None
) -> list[StudyPlan]:
    """Return a plan a study; a hardening that an earlier study brings is left out of the later ones.

    Args:
        collection: see `load_collection`.
        out: its folder; nothing is written into it.
        notify: as in `plan_study`.

    Raises:
        UserError: as `run_collection`.
    """
    folder = Path(out)
    _refuse_other(collection, folder)
    costs: dict[str, Cost] = {}
    seen: set[str] = set()
    plans = []
    for member in collection.members:
        plan = plan_study(
            member.study,
            member.combinations,
            folder / member.folder,
            shared=folder,
            costs=costs,
            notify=notify,
        )
        plans.append(replace(plan, runs=[run for run in plan.runs if run.folder not in seen]))
        seen |= {run.folder for run in plan.runs}
    return plans


def _refuse_other(collection: Collection, folder: Path) -> None:
    """Refuse a folder that holds something else.

    Raises:
        UserError: then.
    """
    own = {*SHARED_NAMES, *(member.folder for member in collection.members)}
    refuse_others(folder, own, f"an earlier collection {collection.name}")
    for member in collection.members:
        refuse_other_study(member.study, folder / member.folder)
