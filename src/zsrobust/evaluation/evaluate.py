"""Measure models on sets under attacks: cells that are missing are computed, all are put in one table.

M, suite, attacks -> for each model and set `measure.py` completes the cells -> table.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Sequence
from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import torch

from zsrobust import data
from zsrobust.attacks.engine import (
    Duplicates,
)
from zsrobust.data import SetMissing
from zsrobust.data.texts import preset_of
from zsrobust.errors import UserError, unknown_name
from zsrobust.evaluation.measure import Case, Notify, Request, head_file, measure, plan_to_measure
from zsrobust.evaluation.shards import Ranks
from zsrobust.evaluation.table import EvaluationTable, Row
from zsrobust.files import folder_lock
from zsrobust.hashing import sha256_json
from zsrobust.models import (
    Clip,
    HeadClassifier,
    load_clip,
    parse_spec,
)
from zsrobust.models.classifier import PRECISIONS
from zsrobust.models.interpolation import MixedClip, hardened_sources
from zsrobust.models.load import no_model_because
from zsrobust.models.spec import CONFIG_NAME
from zsrobust.preprocess import ImageRule
from zsrobust.progress import titled_progress
from zsrobust.threat import Norm, Resolution, Threat, parse_eps

if TYPE_CHECKING:
    from zsrobust.data import ImageSet, Suite


def evaluate(
    models: Sequence[Any],
    sets: str | Sequence[str] = "mini",
    attacks: Sequence[str] = ("clean", "pgd-20", "cw-margin-20"),
    eps: float | str | Sequence[float | str] = "1/255",
    *,
    norm: Norm = "linf",
    limit: int | None = None,
    out: str | Path | None = None,
    seed: int = 0,
    templates: Sequence[str] | None = None,
    duplicates: Duplicates = "merge",
    precision: str = "fp32",
    resolution: Resolution | None = None,
    preprocess: ImageRule = "model",
    head: bool = False,
    with_source: bool = False,
    curve: bool = False,
    screen: bool = False,
    compile: bool = False,
    source: str | Clip | None = None,
    device: str = "auto",
    slots: int = 64,
    workers: int = 0,
    notify: Notify | None = None,
    progress: bool = False,
) -> EvaluationTable:
    """Return clean and robust accuracy of each model on each set, with intervals and paired differences.

    Args:
        models: spec strings, Clips, or anything with `.spec` (a Run).
        sets: a suite's name, a set's spec, or several.
        attacks: names as `attacks.plan` reads them; "clean" is the clean accuracy, always measured.
        eps: one or several radii in [0, 1]-pixel units.
        norm: "linf" or "l2".
        limit: the first N samples of each set's fixed order; None is all.
        out: folder of the cells; what is there is not computed again. None keeps nothing.
        seed: of the attacks' noise.
        templates: class templates for every set, or one preset ("paper", "openai", "clip-benchmark":
            `ImageSet.texts`); None takes each set's own, else "a photo of a {}.".
        duplicates: how classes with equal texts are scored.
        precision: "fp32", or "bf16" for the encoder's autocast.
        resolution: of the attack, "model" or "native"; None takes each set's own.
        preprocess: how images are brought to size where the ball is drawn at the model's: by its
            own rule, or "paper", short side 256 and crop 224.
        head: measure each model, a run, by the head or dictionary that it trained, on sets of the very
            classes that it was trained on; such rows are source, and enter no zero-shot mean.
        with_source: measure the suite's held-out source set too; it never enters the mean.
        curve: take the radii in ascending order: what a smaller one broke is broken at the larger ones, and
            costs no call there; it is part of the key.
        screen: attack with the encoder in bf16 first, judge again in full precision, and attack in full what
            survives (`attacks.engine.attack_chunks`).
        compile: torch.compile the classifier; moves rounding alone.
        source: transfer: make the images on this model, judge them on `models` (`attacks.transfer`); both get
            the same class texts.
        device: "auto", "cpu", "cuda", ...
        slots: samples attacked side by side.
        workers: loading processes.
        notify: called with one line where something deserves saying (records set aside).
        progress: draw a progress bar on the terminal.

    Raises:
        UserError: for unknown names, an eps out of range, an empty request.
        EnvironmentFault: if `out` cannot be written or another process works in it.
        FloatingPointError: if a model's logits are not finite.
    """
    lists: dict[str, Any] = {"models": models, "attacks": attacks, "templates": templates or []}
    for what, given in lists.items():
        if isinstance(given, str):
            raise UserError(f"{what} must be a list, got {given!r}: write [{given!r}].")
        if not isinstance(given, Sequence):
            raise UserError(f"{what} must be a list, got {given!r}: put it into [...].")
    specs: list[Any] = [sets] if isinstance(sets, str) else list(sets)
    odd = [spec for spec in specs if not isinstance(spec, str)]
    if odd:
        raise UserError(
            f"sets are named by texts, got {odd[0]!r}: a suite, a card's name, folder:DIR."
        )
    suite = data.load_suite(",".join(specs))
    radii = list(eps) if isinstance(eps, Sequence) and not isinstance(eps, str) else [eps]
    chosen = read_device(device)
    for what, given, allowed in (
        ("duplicates rule", duplicates, get_args(Duplicates)),
        ("resolution", resolution or "model", get_args(Resolution)),
        ("precision", precision, PRECISIONS),
        ("preprocess", preprocess, get_args(ImageRule)),
        ("norm", norm, get_args(Norm)),
    ):
        if given not in allowed:
            raise unknown_name(what, str(given), allowed)
    numbers: dict[str, Any] = {"slots": slots, "workers": workers, "seed": seed}
    if limit is not None:
        numbers["limit"] = limit
    for what, number in numbers.items():
        if isinstance(number, bool) or not isinstance(number, Integral):
            raise UserError(f"{what} must be a whole number, got {number!r}.")
        least = {"limit": 1, "slots": 1, "workers": 0}.get(what)
        if least is not None and int(number) < least:
            raise UserError(f"{what} must be >= {least}, got {number}.")
    if templates is not None:
        preset_of(templates)
        if head:
            raise UserError("a head has no class texts: leave the templates out, or head.")
    if screen and precision == "bf16":
        raise UserError(
            "a screen is the encoder in bf16, which precision asks for already: leave one out."
        )
    if source is not None and (screen or head):
        raise UserError(
            f"source {spec_of(source)}: a transfer is judged once, by class texts: leave screen and head out."
        )
    ranks = Ranks.here()
    told = notify if notify is not None and ranks.is_first else _silent
    if ranks.count > 1 and out is None:
        raise UserError("several processes meet in the folder of the cells: name --out.")
    if ranks.count > 1 and str(chosen) == "cuda":
        chosen = torch.device("cuda", ranks.local)
    request = Request(
        attacks=[name for name in dict.fromkeys(attacks) if name != "clean"],
        norm=norm,
        eps=list(dict.fromkeys(parse_eps(radius, norm) for radius in radii)),
        limit=limit,
        seed=seed,
        duplicates=duplicates,
        precision=precision,
        resolution=resolution,
        templates=None if templates is None else list(templates),
        preprocess=preprocess,
        head=head,
        curve=curve,
        screen=screen,
        compiled=compile,
        source=None if source is None else spec_of(source),
        slots=slots,
        workers=workers,
        device=chosen,
    )
    if not models:
        raise UserError("no model given: name at least one, for instance mini-clip.")
    if not attacks:
        raise UserError("no attacks given: name at least one; clean alone is the clean accuracy.")
    if request.attacks and not request.eps:
        raise UserError("no eps given: an attack needs at least one, for instance 1/255.")
    for name in request.attacks:  # a mistake in the last name must not show after an hour
        plan_to_measure(name, Threat(norm, request.eps[0]))
    _check_models(models)
    targets = open_suite(suite, told)
    opened = [(image_set, False) for _, image_set in targets]
    if with_source:
        if suite.source is None:
            raise UserError(f"sets {suite.name!r} name no source set: leave --with-source out.")
        opened.append((open_to_measure(suite.source, suite.source_split), True))
    sources = [source for given in models for source in _hardened_on(given)]
    opened = [(image_set, kept or _is_source(image_set, sources)) for image_set, kept in opened]
    if head:
        for given in models:
            _check_head(given, [image_set for image_set, _ in opened])
        opened = [(image_set, True) for image_set, _ in opened]  # a head knows no unseen class
    for image_set, _ in opened:  # a preset that a set does not have
        image_set.texts(request.templates)
    # Two folders may have one name (folder:pets/val, folder:cars/val): then their specs tell them apart.
    named = Counter(image_set.name for _, image_set in targets)
    titles = [
        spec if named[image_set.name] > 1 else image_set.name
        for (image_set, _), spec in zip(
            opened, [*(spec for spec, _ in targets), suite.source or ""], strict=False
        )
    ]

    table = EvaluationTable(suite=suite.name, request=_describe(request))
    root = None if out is None else Path(out)
    with contextlib.ExitStack() as stack:
        if root is not None and ranks.is_first:
            stack.enter_context(folder_lock(root))
        ranks.wait()  # the folder is ours
        bar = stack.enter_context(titled_progress(progress and ranks.is_first))
        made_on = None if source is None else clip_of(source).to(chosen)
        hashes: list[dict[str, str]] = [{} for _ in opened]
        for position, given in enumerate(models):
            clip = clip_of(given).to(chosen)
            for (image_set, is_source), title, stored in zip(opened, titles, hashes, strict=True):
                case = Case(
                    clip, image_set, request, root, stored, told, source=made_on, ranks=ranks
                )
                role = {"model": spec_of(given), "position": position, "source": is_source}
                table.rows.extend(
                    Row(model=spec_of(given), image_set=title, is_source=is_source, **row)
                    for row in measure(case, bar, role)
                )
    return table


def open_to_measure(spec: str, split: str | None = None) -> ImageSet:
    """Open a set that can be measured: one with labels and class names.

    Raises:
        UserError: as `data.open_set`, and if the set has no labels.
    """
    image_set = data.open_set(spec, split)
    if image_set.labels is None or image_set.classnames is None:
        raise UserError(f"set {image_set.name!r} has no labels: it cannot be measured.")
    if len(image_set.classnames) < 2:
        raise UserError(
            f"set {image_set.name!r} has one class ({image_set.classnames[0]!r}): nothing could be "
            "misclassified; measure on a set of two classes or more."
        )
    return image_set


def open_suite(suite: Suite, notify: Notify | None = None) -> list[tuple[str, ImageSet]]:
    """Open a suite's targets, with their specs; optional ones that are not here are said and left out.

    Raises:
        UserError: as `open_to_measure`, and if none is left.
    """
    opened, missing = [], []
    for spec in suite.sets:
        try:
            opened.append((spec, open_to_measure(spec)))
        except SetMissing as error:
            if spec not in suite.optional:
                raise
            missing.append(error)
            (notify or _silent)(f"{spec} is left out of the means: {error}")
    if missing and not opened:
        raise missing[0]
    return opened


def _check_models(models: Sequence[Any]) -> None:
    """Refuse what is no model, a wrong spec, and two models that no table could tell apart."""
    for given in models:
        if not isinstance(given, Clip):
            parse_spec(spec_of(given))
    for label, count in Counter(spec_of(given) for given in models).items():
        if count > 1:
            raise UserError(f"model {label!r} is given {count} times: name each one once.")


def _hardened_on(given: Any) -> list[dict[str, Any]]:
    """Return the sets that a model was hardened on, as its folder says; of a mixed one, both models' sets."""
    if isinstance(given, MixedClip):
        return [source for part in given.parts for source in hardened_sources(part)]
    spec = parse_spec(spec_of(given))
    folder = spec.folder
    if spec.kind == "run" and folder is not None and not (folder / "model" / CONFIG_NAME).is_file():
        raise UserError(f"{spec.text}: no model in {folder / 'model'}: {no_model_because(spec)}.")
    return hardened_sources(spec.text)


def _check_head(given: Any, image_sets: list[ImageSet]) -> None:
    """Refuse sets of other classes than a head's.

    Raises:
        UserError: for the first one, and as `head_file`.
    """
    spec = spec_of(given)
    known = HeadClassifier.from_file(torch.nn.Identity(), head_file(spec)).classnames
    for image_set in image_sets:
        if known is None or image_set.classnames != known:
            raise UserError(
                f"set {image_set.name!r} has other classes than the head of {spec} was trained on: measure "
                "it on images of its source's classes, or leave head out."
            )


def _is_source(image_set: ImageSet, sources: list[dict[str, Any]]) -> bool:
    """Whether the hardening saw the set's classes: then it is no unseen set for any model (traps 45).

    By the class names; where the source had none (captions), by the set's name.
    """
    classes = sha256_json(image_set.classnames)
    nameless = sha256_json(None)
    return any(
        source.get("classes") == classes
        or (source.get("classes", nameless) == nameless and source.get("set") == image_set.name)
        for source in sources
    )


def read_device(text: str) -> torch.device:
    """Return the device of a name; "auto" is a GPU where there is one.

    Raises:
        UserError: for an unknown one.
    """
    try:
        device = torch.device(
            ("cuda" if torch.cuda.is_available() else "cpu") if text == "auto" else text
        )
    except (RuntimeError, TypeError) as error:
        raise UserError(f"device {text!r} is unknown: give auto, cpu, cuda or cuda:N.") from error
    if device.type == "meta":
        raise UserError(f"device {text!r} computes nothing: give auto, cpu, cuda or cuda:N.")
    return device


def clip_of(given: Any) -> Clip:
    """Return the model of a spec, of a Clip, or of anything with `.spec`."""
    return given if isinstance(given, Clip) else load_clip(spec_of(given))


def spec_of(given: Any) -> str:
    """Return the spec under which a model stands in the table.

    Raises:
        UserError: if it is no model.
    """
    spec = given if isinstance(given, str) else getattr(given, "spec", None)
    if not isinstance(spec, str):
        raise UserError(f"{given!r} is no model: give a spec string, a Clip or a Run.")
    return spec


def _silent(_: str) -> None:
    return


def _describe(request: Request) -> dict[str, Any]:
    return {
        "attacks": request.attacks,
        "norm": request.norm,
        "eps": request.eps,
        "limit": request.limit,
        "seed": request.seed,
        "duplicates": request.duplicates,
        "precision": request.precision,
        "resolution": request.resolution or "each set's own",
        "templates": request.templates or "each set's own",
        # Said only where it is not the rule, as in the cells' keys.
        **({} if request.preprocess == "model" else {"preprocess": request.preprocess}),
        **({"head": True} if request.head else {}),
        **({"curve": True} if request.curve else {}),
        **({"screen": "bf16"} if request.screen else {}),
        **({"source": request.source} if request.source else {}),
    }
