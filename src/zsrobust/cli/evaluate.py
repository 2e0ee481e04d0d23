"""`zsrobust eval M... --sets SUITE --attacks clean,pgd-20 --eps 1/255,2/255`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from zsrobust.cli.output import markdown_table, on_terminal, print_json, print_table, say


def command(
    models: Annotated[list[str], typer.Argument(help="Model specs; the first is compared with.")],
    sets: Annotated[str, typer.Option(help="A suite, a set, or several with commas.")] = "mini",
    attacks: Annotated[
        str, typer.Option(help="Names with commas; `zsrobust list attacks`.")
    ] = "clean,pgd-20,cw-margin-20",
    eps: Annotated[str, typer.Option(help="Radii in [0, 1]-pixel units: 1/255,2/255.")] = "1/255",
    norm: Annotated[str, typer.Option(help="linf or l2.")] = "linf",
    limit: Annotated[
        int | None, typer.Option(help="First N samples of each set's fixed order.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder of the cells.")] = Path("results"),
    seed: Annotated[int, typer.Option(help="Seed of the attacks' noise.")] = 0,
    template: Annotated[
        list[str] | None,
        typer.Option(
            help="Class template with one {}, repeatable; or paper, openai, clip-benchmark."
        ),
    ] = None,
    duplicates: Annotated[
        str, typer.Option(help="Classes with equal texts: merge or keep.")
    ] = "merge",
    resolution: Annotated[
        str | None, typer.Option(help="Attack at model or native size. [each set's own]")
    ] = None,
    preprocess: Annotated[
        str, typer.Option(help="Bring images to size as the model does, or as the paper.")
    ] = "model",
    precision: Annotated[str, typer.Option(help="fp32 or bf16.")] = "fp32",
    head: Annotated[
        bool, typer.Option("--head", help="Runs by the head they trained, on its classes alone.")
    ] = False,
    with_source: Annotated[
        bool, typer.Option("--with-source", help="The suite's source set too, outside the mean.")
    ] = False,
    curve: Annotated[
        bool, typer.Option("--curve", help="What a smaller eps broke is broken at the larger ones.")
    ] = False,
    screen: Annotated[
        bool, typer.Option("--screen", help="Attack in bf16 first, judge again in full precision.")
    ] = False,
    compiled: Annotated[
        bool, typer.Option("--compile", help="Run the classifier through torch.compile.")
    ] = False,
    source: Annotated[
        str | None, typer.Option(help="Transfer: make the images on this model instead.")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, ...")] = "auto",
    slots: Annotated[int, typer.Option(help="Samples attacked side by side.")] = 64,
    workers: Annotated[int, typer.Option(help="Loading processes.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
    as_markdown: Annotated[
        bool, typer.Option("--markdown", help="Print the tables as Markdown.")
    ] = False,
) -> None:
    """Measure clean and robust accuracy; what is in --out already is not computed again."""
    from zsrobust.errors import unknown_name
    from zsrobust.threat import parse_eps

    radii = [parse_eps(part, norm) for part in eps.split(",") if part.strip()]
    choices: list[tuple[str, Any, tuple[str, ...]]] = [
        ("duplicates rule", duplicates, ("merge", "keep")),
        ("resolution", resolution, ("model", "native")),
        ("precision", precision, ("fp32", "bf16")),
        ("preprocess", preprocess, ("model", "paper")),
        ("norm", norm, ("linf", "l2")),
    ]
    for what, given, allowed in choices:
        if given is not None and given not in allowed:
            raise unknown_name(what, given, allowed)
    from zsrobust.evaluation.evaluate import evaluate
    from zsrobust.evaluation.shards import Ranks

    table = evaluate(
        models,
        sets,
        [name.strip() for name in attacks.split(",") if name.strip()],
        radii,
        norm=norm,  # type: ignore[arg-type]  # checked above
        limit=limit,
        out=out,
        seed=seed,
        templates=template,
        duplicates=duplicates,  # type: ignore[arg-type]
        precision=precision,
        resolution=resolution,  # type: ignore[arg-type]
        preprocess=preprocess,  # type: ignore[arg-type]
        head=head,
        with_source=with_source,
        curve=curve,
        screen=screen,
        compile=compiled,
        source=source,
        device=device,
        slots=slots,
        workers=workers,
        notify=say,
        progress=on_terminal(),
    )
    if not Ranks.here().is_first:
        return
    if as_json:
        print_json(table.to_json())
    elif as_markdown:
        typer.echo(markdown_table(table))
    else:
        print_table(table)
