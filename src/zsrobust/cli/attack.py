"""`zsrobust attack M IMAGE|DIR --classes FILE`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from zsrobust.cli.output import on_terminal, print_json, say

if TYPE_CHECKING:
    from zsrobust.workflows.attack_images import AttackedImage, AttackedImages


def command(
    model: Annotated[str, typer.Argument(metavar="M", help="The model to fool.")],
    images: Annotated[
        Path, typer.Argument(metavar="IMAGE|DIR", help="A picture, or a folder of them.")
    ],
    classes: Annotated[
        str,
        typer.Option(help="File with one class name a line, or a set: mini/imagenette."),
    ],
    label: Annotated[
        str | None,
        typer.Option(help="Class of the images, by name or number. [folder, else own prediction]"),
    ] = None,
    attack: Annotated[
        str | None,
        typer.Option(
            help="`zsrobust list attacks`. [autoattack-fare; with --source mi-fgsm]",
        ),
    ] = None,
    norm: Annotated[str, typer.Option(help="linf or l2.")] = "linf",
    eps: Annotated[
        str | None, typer.Option(help="Radius in [0, 1]-pixel units. [4/255 for linf]")
    ] = None,
    resolution: Annotated[
        str, typer.Option(help="Attack and write at the model's size, or native.")
    ] = "model",
    template: Annotated[
        list[str] | None,
        typer.Option(
            help="Class template with one {}, repeatable; or paper, openai, clip-benchmark."
        ),
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder of the results.")] = Path("adversarial"),
    magnify: Annotated[float, typer.Option(help="Factor of the perturbation's picture.")] = 10.0,
    source: Annotated[
        str | None, typer.Option(help="Make the images on this model, judge them on M.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the attack's noise.")] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, ...")] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Write adversarial images, judge the saved files again; what is in --out is not made again."""
    from zsrobust.errors import UserError
    from zsrobust.workflows.attack_images import attack_images

    result = attack_images(
        model,
        images,
        classes,
        label=label,
        attack=attack,
        norm=norm,  # type: ignore[arg-type]  # checked there
        eps=eps,
        resolution=resolution,  # type: ignore[arg-type]
        templates=template,
        out=out,
        magnify=magnify,
        source=source,
        seed=seed,
        device=device,
        notify=say,
        progress=on_terminal(),
    )
    if as_json:
        print_json(result.to_json())
    else:
        for image in result.images:
            typer.echo(_line(image))
        typer.echo(_summary(result))
    if result.unreadable:
        count = len(result.unreadable)
        raise UserError(
            f"{count} of {count + len(result.images)} pictures could not be read; mend or remove them and start "
            "the same command again: what is done stays."
        )


def _line(image: AttackedImage) -> str:
    """Return what became of one image."""
    record = image.record
    clean = f"{image.id}: {_top(record['clean'])}"
    if image.status == "already wrong":
        return f"{clean}, not {record['label']['class']}: wrong without an attack, left as it is"
    outcome, saved = record["outcome"], record["saved"]
    by = ""
    if outcome["broken"]:
        at = "" if outcome["step"] is None else f" at query {outcome['step']}"
        by = f", broken by {outcome['by']}{at}"
    distance = f"{record['threat']['norm']} distance {_distance(record)}"
    if image.status == "held":
        return f"{clean} -> {_top(saved)}: the model held, {distance}"
    if image.status == "lost in rounding":
        attacked = _top(record["adversarial"])
        lost = f"LOST in rounding to 8 bits: the saved file is {_top(saved)}"
        return f"{clean} -> {attacked}{by}; {lost}, {distance}"
    usual = saved.get("by_the_models_own_resize")
    unless = ", but not through its own resize and crop" if usual and usual["right"] else ""
    return f"{clean} -> {_top(saved)}: the saved file fools the model{unless}, {distance}{by}"


def _top(believed: dict[str, Any]) -> str:
    first = believed["top"][0]
    return f"{first['class']} {100 * first['probability']:.1f}%"


def _distance(record: dict[str, Any]) -> str:
    saved = record["saved"]
    linf = record["threat"]["norm"] == "linf"
    return f"{saved['largest_change']}/255" if linf else f"{saved['distance']:.4g}"


def _summary(result: AttackedImages) -> str:
    """Return the counts, with all that they depend on."""
    from zsrobust.threat import Threat

    asked = result.request
    threat = Threat(**asked["threat"])
    counts = ", ".join(f"{n} {status}" for status, n in result.counts.items() if n)
    on = f" on {asked['source']}" if asked["source"] else ""
    return (
        f"{asked['attack']['name']}{on} at {threat}, {threat.resolution} resolution, {asked['classes']} classes, "
        f"{len(result.images)} image{'' if len(result.images) == 1 else 's'}: {counts}; in {result.folder}"
    )
