"""`zsrobust published [--set S] [--model M]`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from zsrobust.cli.output import print_json

if TYPE_CHECKING:
    from zsrobust.evaluation.published import Number


def command(
    image_set: Annotated[
        str | None, typer.Option("--set", help="Of this set alone, or of means: mean.")
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(help="Of models whose name, base or public weights hold this text."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print as JSON.")] = False,
) -> None:
    """Print what others published, where it was read, and what is doubtful about it."""
    from zsrobust.evaluation.published import published

    found = published(image_set=image_set, model=model)
    if as_json:
        print_json([number.to_json() for number in found])
        return
    blocks: dict[tuple[str, int], list[Number]] = {}
    for number in found:
        blocks.setdefault((number.study, number.block), []).append(number)
    for place, block in enumerate(blocks.values()):
        if place:
            typer.echo("")
        _print_block(block)


def _print_block(numbers: list[Number]) -> None:
    """Print a published table: a line a set and model, a column a measure, then what is doubtful."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    first = numbers[0]
    typer.echo(f"{first.study}: {first.title}")
    typer.echo(f"  {first.work}; {first.read}")
    for line in _conditions(numbers):
        typer.echo(f"  {line}")
    doubts = list(dict.fromkeys(doubt for number in numbers for doubt in number.doubts))
    # What is doubtful of every number here needs no mark.
    marked = [doubt for doubt in doubts if not all(doubt in n.doubts for n in numbers)]
    marks = {doubt: place for place, doubt in enumerate(marked, start=1)}
    measures = list(dict.fromkeys(number.measure for number in numbers))
    lines: dict[tuple[str, str], dict[str, str]] = {}
    for number in numbers:
        own = "".join(f" [{i}]" for i in sorted(marks[d] for d in number.doubts if d in marks))
        row = lines.setdefault((number.place, number.model.name), {})
        row[number.measure] = number.text + own
    # Wider than any table: a narrow terminal may break a line in two, but no number is cut short.
    console = Console(width=1000, markup=False, emoji=False)
    shown = Table(box=box.SIMPLE_HEAD)
    shown.add_column("set", no_wrap=True)
    shown.add_column("model", no_wrap=True)
    for measure in measures:
        shown.add_column(measure, justify="right", no_wrap=True)
    for (place, model), row in lines.items():
        shown.add_row(place, model, *(row.get(measure, "") for measure in measures))
    console.print(shown)
    for doubt in doubts:
        typer.echo(f"  {f'[{marks[doubt]}]' if doubt in marks else 'doubtful:'} {doubt}.")


def _conditions(numbers: list[Number]) -> list[str]:
    """Return under which conditions the numbers of one table were measured, in lines."""
    first = numbers[0]
    lines = []
    for name in dict.fromkeys(number.measure for number in numbers):
        of_it = [number for number in numbers if number.measure == name]
        number = of_it[0]
        unit = f"points against {number.against}" if number.against else number.unit
        what = "" if number.what == name else f" {number.what};"
        # Of single cells it may not be known, which their doubts say.
        samples = next((n.samples for n in of_it if n.samples is not None), None)
        images = "" if samples is None else "; all images"
        if isinstance(samples, int):
            images = f"; {samples:,} images a set"
        lines.append(f"{name}:{what} in {unit}{images}")
    mean = next((number.mean for number in numbers if number.mean is not None), None)
    if mean is not None:
        source = "whether the source is in it is not known"
        if mean.includes_source is not None:
            source = f"the source set is {'one of them' if mean.includes_source else 'not in it'}"
        parts = [
            f"{mean.count} sets" if mean.count else "number of sets not known",
            source,
            ", ".join(mean.sets) if mean.sets else mean.words or "sets not known",
        ]
        lines.append(f"mean: {'; '.join(parts)}")
    if all(number.metric in ("cost", "distance") for number in numbers):
        return lines
    native = "not known"
    if first.native is not None:
        native = f"{', '.join(first.native)} at native size, others" if first.native else "all sets"
        native += " at the model's"
    texts = first.texts or " | ".join(first.templates or ()) or "not known"
    lines.append(f"attack resolution: {native}; class texts: {texts}")
    if first.preprocess is not None:
        rule = first.preprocess
        lines.append(f"image rule: {rule.size} px, {rule.interpolation}, {rule.resize_mode}")
    if first.subset:
        lines.append(f"images: {first.subset}")
    for name in dict.fromkeys(number.model.name for number in numbers):
        model = next(number.model for number in numbers if number.model.name == name)
        made = [model.method or "not hardened"]
        made += [f"on {model.source}"] if model.source else []
        made += [model.training] if model.training else []
        made += [f"weights: {' or '.join(model.weights)}"] if model.weights else []
        lines.append(f"{name}: {'; '.join(made)}")
    return lines
