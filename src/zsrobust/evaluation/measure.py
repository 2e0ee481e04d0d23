"""One model on one set: the cells that are missing are computed, top to bottom.

Anchors from the class texts -> clean pass over what is missing -> probes for the flags -> the engine on each
cell's missing samples, outcomes appended as they are known -> a row an eps.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from zsrobust import attacks as attack_table
from zsrobust import data
from zsrobust.attacks.engine import (
    Chunk,
    Duplicates,
    Groups,
    attack_chunks,
    check_finite,
    evaluating,
    full_precision,
    unattacked,
)
from zsrobust.attacks.outcome import Outcome
from zsrobust.attacks.transfer import transfer, transferred
from zsrobust.errors import UserError
from zsrobust.evaluation import probes
from zsrobust.evaluation.cells import Asked, Cell, Record, attacked_columns, cell_key
from zsrobust.evaluation.shards import Ranks
from zsrobust.evaluation.trust import PROBES
from zsrobust.hashing import image_hash, sha256_json
from zsrobust.machine import versions
from zsrobust.models import Clip, HeadClassifier, ZeroShotClassifier, parse_spec, text_record
from zsrobust.models.classifier import DEFAULT_TEMPLATES, render
from zsrobust.models.load import HEAD_NAME
from zsrobust.preprocess import ImageRule, to_unit
from zsrobust.threat import Norm, Resolution, Threat

if TYPE_CHECKING:
    from zsrobust.attacks import Plan
    from zsrobust.data import ImageSet

# Clean logits are kept for the attacks that follow while they fit in this many bytes; else they are made again.
_LOGITS_KEPT = 64 * 2**20

Notify = Callable[[str], None]
Classifier = ZeroShotClassifier | HeadClassifier


@dataclass(frozen=True, kw_only=True)
class Request:
    """What `evaluate` was asked for, checked."""

    attacks: list[str]
    norm: Norm
    eps: list[float]
    limit: int | None
    seed: int
    duplicates: Duplicates
    precision: str
    resolution: Resolution | None
    templates: list[str] | None
    preprocess: ImageRule
    head: bool
    curve: bool
    screen: bool
    compiled: bool
    source: str | None
    """Spec of the model on which a transfer's images are made."""
    slots: int
    workers: int
    device: torch.device


def plan_to_measure(name: str, threat: Threat, classes: int | None = None) -> Plan:
    """Read an attack as `attacks.plan` does; one that judges no query is refused, nothing could break."""
    plan = attack_table.plan(name, threat, classes)
    if plan.judge == "none":
        raise UserError(f"attack {name!r} judges no query: nothing could break; leave judge out.")
    return plan


def environment(request: Request) -> dict[str, Any]:
    """Return what only rounding may depend on: versions, device, threads, batch."""
    return {
        **versions(),
        "device": str(request.device),
        "machine": platform.machine(),
        "threads": torch.get_num_threads(),
        "slots": request.slots,
        **({"compiled": True} if request.compiled else {}),
    }


def head_file(spec: str) -> Path:
    """Return the file of a run's head.

    Raises:
        UserError: if the model is no run, or its objective trained no head.
    """
    parsed = parse_spec(spec)
    file = None if parsed.folder is None else parsed.folder / "model" / HEAD_NAME
    if parsed.kind != "run" or file is None or not file.is_file():
        raise UserError(
            f"{spec} has no head: only run:DIR of 'adv', 'linear' or 'coadv' keeps one; leave head out to "
            "measure it by class texts."
        )
    return file


@dataclass(frozen=True, slots=True)
class Wanted:
    """One attack at one eps: how it runs, and its cell."""

    eps: float
    name: str
    """Its column: the attack's name, of a transfer with the source behind it."""
    plan: Plan
    cell: Cell
    smaller: Cell | None
    """Of a curve: the cell of the next smaller eps. What is broken there is broken here."""


class Case:
    """What the cells of one model on one set share.

    Args:
        clip: the model, on the request's device.
        image_set: the set.
        request: what was asked for.
        root: the folder of all results; None keeps the cells in memory.
        hashes: id -> image hash, filled here, so that the models of one evaluation hash an image once.
        notify: called with one line where something deserves saying.
        source: the model on which a transfer's images are made.
        ranks: the processes that measure together.

    Raises:
        UserError: if the set has no samples, or fewer than two different class texts.
    """

    def __init__(
        self,
        clip: Clip,
        image_set: ImageSet,
        request: Request,
        root: Path | None,
        hashes: dict[str, str],
        notify: Notify,
        *,
        source: Clip | None = None,
        ranks: Ranks | None = None,
    ) -> None:
        self.clip, self.image_set, self.request, self.root = clip, image_set, request, root
        self.hashes, self.notify, self.ranks = hashes, notify, ranks or Ranks()
        self.indices = image_set.first(request.limit)
        if not self.indices:
            raise UserError(f"set {image_set.name!r} has no samples.")
        self.ids = [image_set.ids[i] for i in self.indices]
        self.labels = image_set.labels or []
        for i in self.indices:
            if image_set.ids[i] not in hashes:
                hashes[image_set.ids[i]] = image_hash(image_set.stored(i))

        self.resolution: Resolution = request.resolution or image_set.resolution
        # At native resolution nothing is brought to size: one cell for both rules.
        rule = "model" if self.resolution == "native" else request.preprocess
        self.sized = clip.preprocess.under(rule, image_set.paper_resize)
        self.geometry = None if self.resolution == "native" else self.sized.geometry()

        self.templates: list[str] = []
        self.classifier = self._classifier(clip, request.precision)
        self.texts = self.classifier.text_record() if request.head else self._texts(clip)
        self.screen = self._classifier(clip, "bf16") if request.screen else None
        self.source_clip = source
        self.source = None if source is None else self._classifier(source, request.precision)
        self.source_texts = None if source is None else self._texts(source)
        self.forward: torch.nn.Module = self.classifier
        if request.compiled:
            self.forward = torch.compile(self.classifier, dynamic=False)  # type: ignore[assignment]
        self.classes = len(self.classifier.groups)
        try:
            self.groups = Groups.of(self.classifier.groups, self.classes, request.device)
        except UserError as error:
            raise UserError(f"set {image_set.name!r}: {error}") from error

    def _classifier(self, clip: Clip, precision: str) -> Classifier:
        found: Classifier
        if self.request.head:
            encoder = clip.image_encoder(precision)
            found = HeadClassifier.from_file(encoder, head_file(clip.spec))
        else:
            names, templates = self.image_set.texts(self.request.templates)
            self.templates = templates or list(DEFAULT_TEMPLATES)
            found = ZeroShotClassifier.from_texts(
                clip, names or [], self.templates, precision=precision
            )
        return found.to(self.request.device)

    def _texts(self, clip: Clip) -> dict[str, Any]:
        """Return what a key says of the class texts: also what the weights' fingerprint does not cover."""
        names, _ = self.image_set.texts(self.request.templates)
        tokens = [clip.tokenizer(texts).tolist() for texts in render(names or [], self.templates)]
        # The scale in force, and what the tokenizer made of the texts.
        seen = {"scale": float(clip.logit_scale), "tokens": sha256_json(tokens)}
        return text_record(names or [], self.templates) | seen

    def wanted(self) -> list[Wanted]:
        """Return the attacks at their radii, smaller ones first where they make a curve."""
        request = self.request
        found: list[Wanted] = []
        radii = sorted(request.eps) if request.curve else request.eps
        for number, radius in enumerate(radii if request.attacks else []):
            threat = Threat(request.norm, radius, self.resolution)
            for name in request.attacks:
                plan = plan_to_measure(name, threat, len(self.groups.representative))
                before = radii[:number] if request.curve else []
                smaller = next(
                    (
                        w.cell
                        for w in found
                        if before and (w.eps, w.plan.name) == (before[-1], plan.name)
                    ),
                    None,
                )
                settings = self._settings(plan, before)
                found.append(
                    Wanted(radius, settings["name"], plan, self.cell(plan, settings), smaller)
                )
        return found

    def _settings(self, plan: Plan, before: Sequence[float]) -> dict[str, Any]:
        """Return what a key says of an attack: everything that determines outcomes."""
        if self.source_clip is None:
            settings = plan.settings()
        else:
            # As it runs there, of which only the last image counts here.
            settings = transferred(plan).settings() | {
                "name": f"{plan.name} from {self.source_clip.spec}",
                "source": {
                    "weights": self.source_clip.fingerprint,
                    "preprocess": self.source_clip.preprocess.settings(),
                    "texts": self.source_texts,
                },
            }
        if self.request.screen:
            settings["screen"] = "bf16"
        if before:
            settings["after"] = list(before)
        return settings

    def cell(self, plan: Plan | None, settings: dict[str, Any]) -> Cell:
        """Return the cell of an attack, or the clean one, with the records that are there."""
        threat = None
        if plan is not None:
            t = plan.threat
            threat = {"norm": t.norm, "eps": t.eps, "resolution": t.resolution}
        key = cell_key(
            weights=self.clip.fingerprint,
            # The clean cell has no ball, yet its pixels depend on where they are resized.
            preprocess={**self.sized.settings(), "resolution": self.resolution},
            texts=self.texts,
            duplicates=self.request.duplicates,
            image_set=self.image_set.name,
            split=self.image_set.split,
            threat=threat,
            attack=settings,
            seed=None if plan is None else self.request.seed,
            precision=self.request.precision,
        )
        return Cell(key, self.root, self.ranks.number)

    def missing(self, cell: Cell) -> list[int]:
        """Return the samples that have no valid record in a cell; the first process says what it set aside."""
        found, aside = [], 0
        for i in self.indices:
            sample = self.image_set.ids[i]
            if not cell.valid(sample, self.labels[i], self.hashes[sample]):
                found.append(i)
                aside += sample in cell.records
        if aside:
            self.notify(
                f"{self.image_set.name}: {aside} record(s) set aside, their image or label has changed; "
                "these samples are measured again."
            )
        return found

    def load(self, which: list[int]) -> Iterator[tuple[list[str], Tensor, Tensor]]:
        """Yield ids, images (N, 3, H, W) in [0, 1] and labels (N,) of samples, batch by batch, on the device."""
        request = self.request
        for batch in data.batches(
            self.image_set, which, self.geometry, request.slots, request.workers
        ):
            if batch.labels is None:
                raise UserError(f"set {self.image_set.name!r} has no labels.")
            images = to_unit(batch.images.to(request.device))
            yield batch.ids, images, batch.labels.to(request.device)

    def unattacked(
        self, names: list[str], images: Tensor, labels: Tensor
    ) -> Iterator[tuple[Outcome, Tensor]]:
        """Yield outcome and clean logits (K,) of each image of a batch."""
        with torch.no_grad(), evaluating(self.classifier), full_precision():
            logits = self.classifier(images)
        check_finite(logits, names, "on the clean image")
        found = unattacked(names, labels, logits, self.groups, self.request.duplicates)
        for outcome, row in zip(found, logits, strict=True):
            yield outcome, row.clone()

    def attacked(self, plan: Plan, chunks: Iterator[Chunk]) -> Iterator[Outcome]:
        """Yield the outcomes of an attack, by the engine; of a transfer, made on the source."""
        request = self.request
        common: dict[str, Any] = {
            "device": request.device,
            "seed": request.seed,
            "slots": request.slots,
            "duplicates": request.duplicates,
        }
        if self.source is not None:
            return transfer(self.source, self.forward, chunks, plan, **common)
        return attack_chunks(
            self.forward, chunks, plan, screen=self.screen, pad=request.compiled, **common
        )


def measure(case: Case, bar: Callable[..., None], role: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Complete all cells of one model on one set, then yield a row an eps (one without, for clean alone).

    Args:
        case: the model and the set.
        bar: with a title and a total it starts a progress bar, without it advances by one.
        role: the model's spec and place, and whether the set is the source's; noted beside the cells.
    """
    clean, wanted = case.cell(None, {"name": "clean"}), case.wanted()
    cells = [clean, *(one.cell for one in wanted)]
    _gather(case, cells)  # what processes left that were killed
    # The key knows a model by its weights alone; a report wants its name, its place, and the set's role.
    # Nor does it know the subset, and records alone do not tell a whole subset from one on its way.
    asked = Asked.of(
        (case.image_set.ids[i], case.labels[i], case.hashes[case.image_set.ids[i]])
        for i in case.indices
    )
    start = {**environment(case.request), "role": role, "asked": asked.row()}

    logits_of, held = _clean_pass(case, clean, bar, start, asked, bool(wanted))
    missing = [case.missing(one.cell) for one in wanted]
    if any(missing):
        needed = [one.plan for one, left in zip(wanted, missing, strict=True) if left]
        _probe(case, clean, needed, held, bar)
    del held
    for one, left in zip(wanted, missing, strict=True):
        if not left:
            one.cell.note(asked)
            continue
        one.cell.begin(start)
        mine = case.ranks.share(left)
        bar(f"{case.image_set.name} {one.name} at {one.plan.threat}", len(mine))
        fresh = _already_broken(case, one, mine)
        for outcome in case.attacked(one.plan, _chunks(case, fresh, logits_of)):
            one.cell.add(Record.of(outcome, case.hashes[outcome.id]))
            bar()
        one.cell.end()
        _gather(case, [one.cell])

    common = {
        "resolution": case.resolution,
        "classes": case.classes,
        "templates": list(case.templates),
        "ids": case.ids,
        "clean": [clean.records[i].clean for i in case.ids],
        "key": clean.key.content,
    }
    if not wanted:
        yield {**common, "eps": None, **attacked_columns(clean, {}, case.ids)}
    for radius in case.request.eps if wanted else []:
        attacked = {one.name: one.cell for one in wanted if one.eps == radius}
        yield {**common, "eps": radius, **attacked_columns(clean, attacked, case.ids)}


def _gather(case: Case, cells: list[Cell]) -> None:
    """Let every process know the records of all."""
    case.ranks.wait()
    for cell in cells:
        cell.merge_shards()
    case.ranks.wait()
    if not case.ranks.is_first:
        for cell in cells:
            cell.read_again()


def _clean_pass(
    case: Case,
    clean: Cell,
    bar: Callable[..., None],
    start: dict[str, Any],
    asked: Asked,
    attacked: bool,
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Complete the clean cell; return clean logits for the attacks, and images for the probes, by id."""
    logits_of: dict[str, Tensor] = {}
    held: dict[str, Tensor] = {}
    left = case.missing(clean)
    if not left:
        clean.note(asked)
        return logits_of, held
    keep = len(left) * case.classes * 4 <= _LOGITS_KEPT
    clean.begin(start)
    mine = case.ranks.share(left)
    bar(f"{case.image_set.name} clean", len(mine))
    for names, images, labels in case.load(mine):
        passed = case.unattacked(names, images, labels)
        for image, (outcome, row) in zip(images, passed, strict=True):
            record = Record.of(outcome, case.hashes[outcome.id])
            clean.add(record)
            if record.clean and attacked and len(held) < PROBES:
                held[record.id] = image.clone()
            if keep:
                logits_of[record.id] = row
            bar()
    clean.end()
    _gather(case, [clean])
    return logits_of, held


def _probe(
    case: Case, clean: Cell, plans: list[Plan], held: dict[str, Tensor], bar: Callable[..., None]
) -> None:
    """Look at the first clean-correct samples, for the flags that records alone cannot raise."""
    if not case.ranks.is_first:
        return
    ids = case.image_set.ids
    right = [i for i in case.indices if clean.records[ids[i]].clean][:PROBES]

    def images() -> list[Tensor]:
        for names, loaded, _ in case.load([i for i in right if ids[i] not in held]):
            held.update(zip(names, loaded, strict=True))
        return [held[ids[i]] for i in right]

    bar(f"{case.image_set.name} probes", 1)
    scale = case.classifier.scale if isinstance(case.classifier, ZeroShotClassifier) else None
    probe = probes.complete(
        clean.probe,
        [(ids[i], case.labels[i], case.hashes[ids[i]]) for i in right],
        case.classifier,
        plans,
        images,
        device=case.request.device,
        groups=case.groups,
        scale=scale,
        duplicates=case.request.duplicates,
        slots=case.request.slots,
    )
    clean.keep_probe(probe)
    bar()


def _already_broken(case: Case, one: Wanted, which: list[int]) -> list[int]:
    """Record samples that a smaller eps broke, at no call of the model; return the others."""
    if one.smaller is None:
        return which
    fresh = []
    for i in which:
        before = one.smaller.records[case.image_set.ids[i]]
        if before.broken:
            one.cell.add(before.as_known())
        else:
            fresh.append(i)
    return fresh


def _chunks(case: Case, which: list[int], logits_of: dict[str, Tensor]) -> Iterator[Chunk]:
    for names, images, labels in case.load(which):
        known = [logits_of.get(name) for name in names]
        rows = [row for row in known if row is not None]
        logits = torch.stack(rows) if len(rows) == len(known) else None
        yield Chunk(names, images, labels, logits)
