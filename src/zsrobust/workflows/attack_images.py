"""Attack pictures of one's own, and write the adversarial ones as files that are judged again.

IMAGE or DIR -> 8 bits at the attack resolution, the centre of the ball -> the attack -> rounded to 8 bits within
eps -> NAME.png, loaded again and judged -> NAME.perturbation.png and, last, NAME.json with what was believed
before and after. The JSON says that an image is done: what has one under the same settings is not computed again.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from torch import Tensor

from zsrobust import attacks as attack_table
from zsrobust.attacks.engine import (
    Chunk,
    Groups,
    attack_chunks,
    check_finite,
    evaluating,
    full_precision,
    judge_logits,
)
from zsrobust.attacks.names import Plan
from zsrobust.attacks.transfer import transfer, transferred
from zsrobust.data.storage import FileImages
from zsrobust.errors import EnvironmentFault, UserError, unknown_name
from zsrobust.evaluation.evaluate import clip_of, read_device, spec_of
from zsrobust.evaluation.measure import plan_to_measure
from zsrobust.files import folder_lock, machine_faults, write_json
from zsrobust.hashing import sha256_file, sha256_json
from zsrobust.machine import versions
from zsrobust.models import Clip, ZeroShotClassifier
from zsrobust.models.classifier import render
from zsrobust.models.weights import write_bytes
from zsrobust.preprocess import decode, to_uint8, to_unit
from zsrobust.progress import titled_progress
from zsrobust.threat import Norm, Resolution, Threat, parse_eps
from zsrobust.workflows.pictures import Picture, find, labelled, name_files, read_classes
from zsrobust.workflows.rounding import check_levels, round_within

if TYPE_CHECKING:
    from PIL.Image import Image

    from zsrobust.attacks.outcome import Outcome

Notify = Callable[[str], None]
Status = Literal["fooled", "lost in rounding", "held", "already wrong"]

ATTACK, TRANSFER_ATTACK, EPS = "autoattack-fare", "mi-fgsm", "4/255"
"""What is taken where nothing is said; the second with a source, the third for linf alone."""

_FORMAT = 1
_TOP = 5
_SLOTS = 64
# Images of their own size may be of any: so many pixels at a time at most, 64 of 224 x 224.
_PIXELS_AT_ONCE = 64 * 224 * 224
_READ_AT_ONCE = 16


@dataclass(frozen=True)
class AttackedImage:
    """One picture that was attacked."""

    id: str
    """Its path below the folder that was given, with /; of a single picture the file's name."""
    status: Status
    """Of the saved file: it fools the model; the attack broke the model but the rounded file does not; the model
    held; or it was wrong before any attack, and such images are not attacked."""
    record: dict[str, Any]
    """What NAME.json holds."""


@dataclass
class AttackedImages:
    """What `attack_images` wrote."""

    folder: Path
    request: dict[str, Any]
    images: list[AttackedImage] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)
    """A line for each picture that could not be read."""

    def count(self, status: Status) -> int:
        """Return how many images ended so."""
        return sum(image.status == status for image in self.images)

    @property
    def counts(self) -> dict[str, int]:
        """How many images ended how."""
        return {status: self.count(status) for status in get_args(Status)}

    def to_json(self) -> dict[str, Any]:
        """Return counts and every image's record."""
        return {
            "out": str(self.folder),
            "request": self.request,
            "counts": self.counts,
            "unreadable": self.unreadable,
            "images": [image.record for image in self.images],
        }


@dataclass(frozen=True, slots=True)
class _Classifier:
    """A model on the class texts."""

    spec: str
    clip: Clip
    module: ZeroShotClassifier
    groups: Groups
    names: list[str]
    templates: list[str]

    @classmethod
    def of(
        cls, given: Any, names: list[str], templates: list[str], device: torch.device
    ) -> _Classifier:
        clip = clip_of(given).to(device)
        module = ZeroShotClassifier.from_texts(clip, names, templates)
        groups = Groups.of(module.groups, len(names), device)
        return cls(spec_of(given), clip, module, groups, names, templates)

    def logits(self, images: Tensor, ids: Sequence[str]) -> Tensor:
        """Return (N, K) for images (N, 3, H, W) in [0, 1]."""
        with torch.no_grad(), evaluating(self.module), full_precision():
            logits: Tensor = self.module(images.to(self.module.anchors.device))
        check_finite(logits, ids, "on an image")
        return logits

    def predicted(self, logits: Tensor) -> Tensor:
        """Return the class that each row of logits names; of classes with one text the first."""
        return self.groups.representative[self.groups.reduce(logits).argmax(1)]

    def believed(self, image: Tensor, label: int, what: str) -> dict[str, Any]:
        """Return what the model makes of one image (3, H, W) in [0, 1]: the five likeliest classes.

        Probabilities are over text groups; the group of `label` goes by the name of `label`.
        """
        logits = self.logits(image[None], [what])
        own = torch.tensor([label], device=logits.device)
        right, margin = judge_logits(logits, own, self.groups, "merge")
        shares = self.groups.reduce(logits)[0].double().softmax(0)
        group = int(self.groups.of_class[label])
        best = shares.topk(min(_TOP, len(shares)))
        top = []
        for share, number in zip(best.values.tolist(), best.indices.tolist(), strict=True):
            k = label if number == group else int(self.groups.representative[number])
            top.append({"label": k, "class": self.names[k], "probability": share})
        return {
            "right": bool(right),
            "margin": float(margin),
            "own_probability": float(shares[group]),
            "top": top,
        }

    def key(self) -> dict[str, Any]:
        """Return what of the model and its texts determines the result."""
        texts = render(self.names, self.templates)
        return {
            "model": self.clip.fingerprint,
            "preprocess": self.clip.preprocess.settings(),
            "texts": self.module.text_record(),
            "tokens": sha256_json([self.clip.tokenizer(row).tolist() for row in texts]),
            "scale": self.clip.logit_scale,
        }


@dataclass(frozen=True, slots=True)
class _Job:
    """What is the same for every picture."""

    target: _Classifier
    source: _Classifier | None
    plan: Plan
    seed: int
    magnify: float
    out: Path
    device: torch.device
    storage: FileImages
    geometry: Callable[[Image], Image] | None

    @property
    def threat(self) -> Threat:
        return self.plan.threat

    @property
    def settings(self) -> dict[str, Any]:
        """Return the attack as it runs."""
        return (self.plan if self.source is None else transferred(self.plan)).settings()

    def pixels(self, picture: Picture, stored: bytes | None = None) -> Tensor:
        """Return a picture (3, H, W) uint8 at the attack resolution: the centre of the ball (traps 6)."""
        stored = self.storage.stored(picture.index) if stored is None else stored
        what = str(self.storage.files[picture.index])
        opened = self.storage.picture(picture.index, stored, what)
        return to_uint8(opened if self.geometry is None else self.geometry(opened))

    def file(self, picture: Picture, ending: str) -> Path:
        return self.out / f"{picture.name}.{ending}"


def attack_images(
    model: Any,
    images: str | Path,
    classes: str | Path | Sequence[str],
    *,
    label: str | int | None = None,
    attack: str | None = None,
    norm: Norm = "linf",
    eps: float | str | None = None,
    resolution: Resolution = "model",
    templates: Sequence[str] | None = None,
    out: str | Path = "adversarial",
    magnify: float = 10.0,
    source: Any = None,
    seed: int = 0,
    device: str = "auto",
    notify: Notify | None = None,
    progress: bool = False,
) -> AttackedImages:
    """Write adversarial images of a picture, or of all pictures below a folder, and judge the files again.

    Args:
        model: a spec string, a Clip, or anything with `.spec`: who is to be fooled.
        images: a picture, or a folder that is searched to its depth. There, a picture below a folder that has the
            name of a class belongs to it; if there is no such folder, the class is what the model itself
            makes of the clean picture.
        classes: a file with one class name a line, the name of a card or another set spec (its names and
            templates are taken), or the names.
        label: the class of every picture, by name or number.
        attack: a name as `attacks.plan` reads it; None is "autoattack-fare", with a source "mi-fgsm".
        norm: "linf" or "l2".
        eps: radius in [0, 1]-pixel units, at least one level of 255; None is 4/255, for linf alone.
        resolution: where the ball is: "model" writes images of the model's size, made by its own resize and
            crop; "native" keeps the picture's own pixels, brought to the model's size inside the
            classifier (bicubic, both sides at once).
        templates: class templates, or one preset ("paper", "openai", "clip-benchmark"); None takes those of
            the card, else "a photo of a {}.".
        out: folder of the results. What is there under the same settings is not computed again.
        magnify: factor of the perturbation in its picture, > 0; no change is grey, 128.
        source: another model, of the same kinds as `model`: attacked in its place, every step spent, and the
            final image is judged on `model` (transfer).
        seed: of the noise.
        device: "auto", "cpu", "cuda", ...
        notify: called with one line where something deserves saying.
        progress: draw a progress bar on the terminal.

    Returns:
        Every image's record, those that were there already included.

    Raises:
        UserError: for a mistake in an argument, no picture, or a single picture that cannot be read; of a folder
            such pictures are told, left out and listed in `unreadable`.
        EnvironmentFault: if a file cannot be read or written, or another process works in `out`.
        FloatingPointError: if a model's logits are not finite.
    """
    say = notify or _silent
    threat = _threat(norm, eps, resolution)
    name = attack or (ATTACK if source is None else TRANSFER_ATTACK)
    read_plan = plan_to_measure if source is None else attack_table.plan
    read_plan(name, threat)  # a mistake in it must not show after the model was loaded
    if isinstance(magnify, bool) or not (math.isfinite(magnify) and magnify > 0):
        raise UserError(f"magnify must be a finite number > 0, got {magnify!r}.")
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise UserError(f"seed must be a whole number, got {seed!r}.")
    folder = Path(out)
    names, words = read_classes(classes, templates)
    storage = find(Path(images), folder)
    pictures = labelled(storage, names, label)
    name_files(pictures, folder, storage)
    chosen = read_device(device)

    target = _Classifier.of(model, names, words, chosen)
    other = None if source is None else _Classifier.of(source, names, words, chosen)
    attacked = other or target
    plan = read_plan(name, threat, len(attacked.groups.representative))
    geometry = None if resolution == "native" else target.clip.preprocess.geometry()
    job = _Job(target, other, plan, seed, magnify, folder, chosen, storage, geometry)
    result = AttackedImages(folder, _describe(job))
    done: dict[str, AttackedImage] = {}
    with titled_progress(progress) as bar:
        bar("reading", len(pictures))
        readable = []
        for picture in pictures:
            mistake = _survey(job, picture)
            bar()
            if mistake is None:
                readable.append(picture)
                continue
            if len(pictures) == 1:
                raise mistake
            result.unreadable.append(str(mistake))
        if not readable:
            raise UserError(
                f"none of the {len(pictures)} pictures can be read, the first: {result.unreadable[0]}"
            )
        for line in result.unreadable:
            say(line)
        for clause in plan.fallbacks:
            say(f"{plan.name}: {clause}.")
        if all(picture.label is None for picture in readable):
            where = "" if len(readable) == 1 else " (no folder has the name of a class)"
            say(
                f"no labels{where}: the class of each image is what the model itself makes of it clean."
            )
        with folder_lock(folder):
            left = []
            for picture in readable:
                found = _finished(job, picture)
                if found is None:
                    left.append(picture)
                else:
                    done[picture.id] = found
            if done:
                say(f"{len(done)} of {len(readable)} images are in {folder} already.")
            bar("attacking", len(left))
            for image in _attacked(job, left):
                done[image.id] = image
                bar()
    result.images = [done[picture.id] for picture in readable]
    return result


def _silent(_: str) -> None:
    return


def _threat(norm: Norm, eps: float | str | None, resolution: Resolution) -> Threat:
    for what, given, allowed in (
        ("norm", norm, get_args(Norm)),
        ("resolution", resolution, get_args(Resolution)),
    ):
        if given not in allowed:
            raise unknown_name(what, str(given), allowed)
    if eps is None and norm != "linf":
        raise UserError(
            f"no eps given: {EPS} is meant for linf; for {norm} give one, for instance 1.0."
        )
    threat = Threat(norm, parse_eps(EPS if eps is None else eps, norm), resolution)
    check_levels(threat)
    return threat


def _survey(job: _Job, picture: Picture) -> UserError | None:
    """Read a picture once: its hash, its size and the key of its result; or what is wrong with it."""
    stored = job.storage.stored(picture.index)
    try:
        pixels = job.pixels(picture, stored)
    except UserError as error:
        return error
    picture.sha256 = hashlib.sha256(stored).hexdigest()
    picture.size = (pixels.shape[1], pixels.shape[2])
    picture.key = sha256_json(
        {
            "format": _FORMAT,
            "id": picture.id,  # the noise is a function of it
            "image": picture.sha256,
            "label": picture.label,
            "label_from": picture.label_from,
            "target": job.target.key(),
            "source": None if job.source is None else job.source.key(),
            "norm": job.threat.norm,
            "eps": job.threat.eps,
            "resolution": job.threat.resolution,
            "attack": job.settings,
            "seed": job.seed,
            "magnify": job.magnify,
        }
    )
    return None


def _finished(job: _Job, picture: Picture) -> AttackedImage | None:
    """Return the result that is there under the same key, with its files whole; else None."""
    try:
        record = json.loads(job.file(picture, "json").read_text("utf-8"))
        if record["key"] != picture.key:
            return None
        for part, ending in (("saved", "png"), ("perturbation", "perturbation.png")):
            if sha256_file(job.file(picture, ending)) != record[part]["sha256"]:
                return None
        return AttackedImage(picture.id, record["status"], record)
    except (OSError, ValueError, KeyError, TypeError):
        return None


@dataclass(frozen=True, slots=True)
class _Made:
    """One result before it is written."""

    picture: Picture
    status: Status
    record: dict[str, Any]
    png: bytes
    perturbation: bytes


def _attacked(job: _Job, pictures: list[Picture]) -> Iterator[AttackedImage]:
    """Attack pictures, write each result as soon as it is known, and yield it.

    With early exit a sample leaves at its first break, with an image of least confidence that rounding may undo.
    Such a one is attacked once more with every step spent: the point of largest loss, or the last one, lies
    deeper. It takes the place of the first where its file fools the model.
    """
    held: dict[str, _Made] = {}
    again: list[Picture] = []
    for made in _made(job, pictures, job.plan):
        if made.status == "lost in rounding" and job.plan.early_exit and job.source is None:
            _write_pictures(job, made)
            held[made.picture.id] = replace(made, png=b"", perturbation=b"")
            again.append(made.picture)
        else:
            _write_pictures(job, made)
            yield _write_record(job, made)
    members, eot = job.plan.members, job.plan.eot
    spent = Plan(members, "every", early_exit=False, eot=eot, name=job.plan.name)
    for made in _made(job, again, spent):
        if made.status == "fooled":
            _write_pictures(job, made)
            yield _write_record(job, made)
        else:
            yield _write_record(job, held[made.picture.id])


def _made(job: _Job, pictures: list[Picture], plan: Plan) -> Iterator[_Made]:
    """Attack pictures, those of one size side by side, and yield the results in no promised order."""
    by_size: dict[tuple[int, int], list[Picture]] = {}
    for picture in pictures:
        by_size.setdefault(picture.size, []).append(picture)
    for (height, width), alike in by_size.items():
        slots = min(_SLOTS, max(1, _PIXELS_AT_ONCE // (height * width)))
        by_id = {picture.id: picture for picture in alike}
        centres: dict[str, Tensor] = {}
        chunks = _chunks(job, alike, slots, centres)
        common: dict[str, Any] = {"device": job.device, "seed": job.seed, "slots": slots}
        if job.source is None:
            outcomes = attack_chunks(job.target.module, chunks, plan, keep_images=True, **common)
        else:
            source, target = job.source.module, job.target.module
            outcomes = transfer(source, target, chunks, plan, keep_images=True, **common)
        for outcome in outcomes:
            yield _result(job, by_id[outcome.id], outcome, centres.pop(outcome.id), plan)


def _chunks(
    job: _Job, pictures: list[Picture], slots: int, centres: dict[str, Tensor]
) -> Iterator[Chunk]:
    """Yield pictures with the model's clean logits and their classes; their pixels are put into `centres`."""
    size = min(slots, _READ_AT_ONCE)
    for at in range(0, len(pictures), size):
        some = pictures[at : at + size]
        pixels = torch.stack([job.pixels(picture) for picture in some])
        ids = [picture.id for picture in some]
        images = to_unit(pixels).to(job.device)
        logits = job.target.logits(images, ids)
        own = job.target.predicted(logits).tolist()
        labels = [k if one.label is None else one.label for one, k in zip(some, own, strict=True)]
        centres.update(zip(ids, pixels, strict=True))
        yield Chunk(ids, images, torch.tensor(labels), logits)


def _result(job: _Job, picture: Picture, outcome: Outcome, clean: Tensor, plan: Plan) -> _Made:
    """Round an attacked image, judge the file that it makes, and write down what was believed of all three."""
    target, threat, label = job.target, job.threat, outcome.label
    centre = to_unit(clean)
    attacked = centre if outcome.image is None else outcome.image.cpu()
    rounded = round_within(attacked[None], clean[None], threat)[0]
    png = _png(rounded)
    loaded = to_uint8(decode(png, picture.id))
    before, after, saved = (
        target.believed(image, label, picture.id) for image in (centre, attacked, to_unit(loaded))
    )
    # In float64 from the levels themselves: k/255 in float32 is not quite that.
    exact, middle = loaded[None].double() / 255, clean[None].double() / 255
    distance = float(threat.distance(exact, middle))
    if not bool(threat.contains(exact, middle)):
        raise RuntimeError(
            f"{picture.id}: the rounded image lies {distance} away, outside {threat}"
        )
    change = loaded.int() - clean.int()
    magnified = (128 + job.magnify * change.double()).round().clamp(0, 255).to(torch.uint8)
    perturbation = _png(magnified)

    status: Status = "held"
    if not outcome.clean_correct:
        status = "already wrong"
    elif not saved["right"]:
        status = "fooled"
    elif outcome.broken:
        status = "lost in rounding"
    seen: dict[str, Any] = {}
    if (
        job.geometry is None
    ):  # at its own size: what the model's own resize and crop make of the file
        usual = to_uint8(target.clip.preprocess.geometry()(decode(png, picture.id)))
        seen = {"by_the_models_own_resize": target.believed(to_unit(usual), label, picture.id)}
    record = {
        "format": _FORMAT,
        "key": picture.key,
        "status": status,
        "image": {
            "id": picture.id,
            "sha256": picture.sha256,
            "attacked_at": {"width": picture.size[1], "height": picture.size[0]},
        },
        **_describe(job),
        "label": {
            "number": label,
            "class": target.names[label],
            "from": picture.label_from,
        },
        "outcome": {
            "attacked": outcome.clean_correct,
            "broken": outcome.broken,
            "by": outcome.by,
            "step": outcome.step,
            "step_within": outcome.step_within,
            "queries": outcome.queries,
            "every_step_spent": outcome.clean_correct and not plan.early_exit,
            "clean_margin": outcome.clean_margin,
            "margin": outcome.margin,
        },
        "clean": before,
        "adversarial": {
            **after,
            "distance": float(threat.distance(attacked[None], centre[None])),
        },
        "saved": {
            "file": f"{picture.name}.png",
            "sha256": hashlib.sha256(png).hexdigest(),
            **saved,
            **seen,
            "distance": distance,
            "largest_change": int(change.abs().max()),
        },
        "perturbation": {
            "file": f"{picture.name}.perturbation.png",
            "sha256": hashlib.sha256(perturbation).hexdigest(),
            "magnified": job.magnify,
        },
        "environment": {**versions(), "device": str(job.device)},
    }
    return _Made(picture, status, record, png, perturbation)


def _describe(job: _Job) -> dict[str, Any]:
    """Return what was asked for, as records and the result say it."""
    return {
        "model": job.target.spec,
        "source": None if job.source is None else job.source.spec,
        "classes": len(job.target.names),
        "templates": job.target.templates,
        "threat": {
            "norm": job.threat.norm,
            "eps": job.threat.eps,
            "resolution": job.threat.resolution,
        },
        "attack": job.settings,
        "seed": job.seed,
    }


def _write_pictures(job: _Job, made: _Made) -> None:
    """Write the two pictures; what the adversarial one holds on disk is what was judged."""
    for ending, content in (("png", made.png), ("perturbation.png", made.perturbation)):
        place = job.file(made.picture, ending)
        write_bytes(place, content)
        with machine_faults(place):
            if place.read_bytes() != content:
                raise EnvironmentFault(f"{place} does not hold what was written; check the disk.")


def _write_record(job: _Job, made: _Made) -> AttackedImage:
    """Write the record, last: with it the image is done."""
    write_json(job.file(made.picture, "json"), made.record)
    return AttackedImage(made.picture.id, made.status, made.record)


def _png(pixels: Tensor) -> bytes:
    """Return (3, H, W) uint8 as a PNG, which loses nothing."""
    from PIL import Image

    stream = io.BytesIO()
    Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy()).save(stream, format="PNG")
    return stream.getvalue()
