"""Write a report over finished cells: read them, find the runs that they name, build the page."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zsrobust.errors import EnvironmentFault, UserError
from zsrobust.evaluation.packed import write_packed
from zsrobust.evaluation.stored import bare_spec, read_cells, table_of
from zsrobust.evaluation.table import EvaluationTable
from zsrobust.models import load_clip
from zsrobust.models.load import read_adaptation
from zsrobust.report import build_report
from zsrobust.report.summary import Summary, label_models, summarise, summary_json
from zsrobust.threat import format_eps, parse_eps
from zsrobust.training.recipe import Recipe
from zsrobust.training.run import Run


@dataclass(frozen=True, slots=True)
class Report:
    """A report that was written, and what it says."""

    path: Path
    table: EvaluationTable
    summaries: list[Summary]
    notes: list[str]

    def to_json(self) -> dict[str, Any]:
        """Return the file, the headlines and remarks, what was left out, and every number."""
        content = summary_json(self.table, self.summaries)
        return {"report": str(self.path), "notes": self.notes, **content}


def report_cells(
    folders: Sequence[Path],
    *,
    out: Path | None = None,
    title: str,
    models: Sequence[str] = (),
    norm: str | None = None,
    eps: Sequence[float] = (),
    attacks: Sequence[str] = (),
    sources: Sequence[str] = (),
    records: Path | None = None,
) -> Report:
    """Write the report of the cells in `folders`. Nothing is measured.

    No model is loaded either, but for a run from before a run's model noted its fingerprint.

    Args:
        folders: results (they hold `cells/`), and runs (they hold `recipe.json`) whose recipes are shown.
            A run that a cell names is found by itself where its folder is still there. A run whose model is
            not one of those measured is not shown, and that is said.
        out: the HTML file; default report.html in the first folder of results.
        title: heading of the page.
        models: SPEC or SPEC=NAME: these alone, in this order, the first compared with; default all.
        norm: as in `read_table`.
        eps: as in `read_table`.
        attacks: as in `read_table`.
        sources: as in `read_table`.
        records: folder for all cells of `folders`, packed; None writes none.

    Raises:
        UserError: as `read_table`, and if a folder is neither results nor a run.
        EnvironmentFault: if the file cannot be written.
    """
    results = [folder for folder in folders if not (folder / "recipe.json").is_file()]
    given_runs = [folder for folder in folders if (folder / "recipe.json").is_file()]
    for folder in results:
        if not folder.is_dir():
            raise UserError(
                f"{folder} is no folder: give the one that --out of `zsrobust eval` named."
            )
    if not results:
        raise UserError("no folder of results given: runs alone hold no cells.")
    specs, names = _split_names(models)
    cells = [cell for folder in results for cell in read_cells(folder)]
    stored = table_of(cells, models=specs, norm=norm, eps=eps, attacks=attacks, sources=sources)
    table = stored.table
    # A model may be given by its fingerprint: its name then belongs to the spec that the table has.
    labels = {stored.named[spec]: name for spec, name in names.items()}
    path = out or results[0] / "report.html"
    runs, unlike = _runs(given_runs, table)
    notes = [*stored.notes, *unlike]
    build_report(
        table,
        path,
        title=title,
        labels=labels,
        runs=runs,
        notes=notes,
        commands=[_command(folders, path, title, models, norm, eps, attacks, sources)],
    )
    if records is not None:
        write_packed(cells, records)
    return Report(path, table, summarise(table, label_models(table, labels)), notes)


def _split_names(models: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """Return the specs, and the names of those that have one. A spec itself may hold "="."""
    specs, names = [], {}
    for given in models:
        spec, equals, name = given.rpartition("=")
        if equals and spec and name:
            names[spec] = name
            specs.append(spec)
        else:
            specs.append(given.rstrip("="))
    return specs, names


def _runs(folders: Sequence[Path], table: EvaluationTable) -> tuple[list[Run], list[str]]:
    """Return the runs that made the models measured, and notes on those that did not.

    Looked at are the folders given and those that specs of the form run:DIR name. A folder of that name may
    by now hold another run: the model's fingerprint decides.
    """
    measured = {str(row.key["weights"]) for row in table.rows}
    specs = [bare_spec(name) for name in table.models]
    named = [Path(spec.removeprefix("run:")) for spec in specs if spec.startswith("run:")]
    looked_at: set[Path] = set()
    found: dict[str, Run] = {}
    notes = []
    for folder in [*folders, *named]:
        stored = folder / "recipe.json"
        if folder.resolve() in looked_at or not stored.is_file():
            continue
        looked_at.add(folder.resolve())
        try:
            recipe = Recipe.model_validate_json(stored.read_text("utf-8"))
        except ValueError as error:
            if folder in named:
                continue
            raise UserError(
                f"{stored} is damaged or was written by another version: leave {folder} out."
            ) from error
        run = Run(folder, recipe)
        weights = _fingerprint(run)
        if weights in measured:
            found.setdefault(weights, run)
        else:
            why = (
                "its model cannot be read, so that nothing says whether it was measured"
                if weights is None
                else "its model is none of those measured"
            )
            notes.append(f"The recipe of run {folder.resolve().name} is not shown: {why}.")
    return list(found.values()), notes


def _fingerprint(run: Run) -> str | None:
    """Return the fingerprint of a run's model, as cells have it; None if there is no model to be read."""
    if not run.complete:
        return None
    try:
        noted = read_adaptation(run.model).get("fingerprint")
        return noted if isinstance(noted, str) else load_clip(run.spec).fingerprint
    except (UserError, EnvironmentFault):
        return None


def _command(
    folders: Sequence[Path],
    out: Path,
    title: str,
    models: Sequence[str],
    norm: str | None,
    eps: Sequence[float],
    attacks: Sequence[str],
    sources: Sequence[str],
) -> str:
    """Return the command that writes this report again."""
    words = ["zsrobust", "report", *map(str, folders), "--out", str(out), "--title", title]
    for model in models:
        words += ["--model", model]
    if norm is not None:
        words += ["--norm", norm]
    if eps:
        shown = [format_eps(r) if parse_eps(format_eps(r), "any") == r else repr(r) for r in eps]
        words += ["--eps", ",".join(shown)]
    if attacks:
        words += ["--attacks", ",".join(attacks)]
    for source in sources:
        words += ["--source", source]
    return shlex.join(words)
