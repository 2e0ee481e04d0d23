"""Transfer: images made on one model, judged once on another.

The samples that the target gets right are attacked, whatever the source says of them. The source is attacked with
every step spent and no query judged: an early exit would leave images of minimal confidence (traps 34). What
counts is the attack's `final` image: the last iterate of MI-FGSM and PGD, the point of largest loss of APGD. It
is judged once, on the target, at the one attack resolution that both share; each model resizes inside.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from zsrobust.attacks.engine import (
    Attack,
    Chunk,
    Duplicates,
    Groups,
    attack_chunks,
    check_finite,
    evaluating,
    full_precision,
    judge_logits,
    unattacked,
)
from zsrobust.attacks.names import Plan
from zsrobust.attacks.outcome import Outcome
from zsrobust.errors import UserError

if TYPE_CHECKING:
    from torch import nn

BY = "transfer:"
"""What `Outcome.by` begins with; the name of the attack on the source follows."""


def transferred(plan: Plan) -> Plan:
    """Return a plan as `transfer` runs it on the source: no query judged, every step spent."""
    return Plan(
        plan.members,
        "none",
        early_exit=False,
        eot=plan.eot,
        name=plan.name,
        fallbacks=plan.fallbacks,
    )


class _Item(NamedTuple):
    outcome: Outcome
    image: Tensor
    label: Tensor


@dataclass(frozen=True, slots=True)
class _Transfer:
    """What is the same for every sample."""

    source: nn.Module
    target: nn.Module
    plan: Plan
    device: torch.device
    seed: int
    slots: int
    source_groups: Tensor | Sequence[int] | None
    duplicates: Duplicates
    keep_images: bool


def transfer(
    source: nn.Module,
    target: nn.Module,
    chunks: Iterable[Chunk],
    plan: Plan,
    *,
    device: torch.device,
    seed: int = 0,
    slots: int = 64,
    groups: Tensor | Sequence[int] | None = None,
    source_groups: Tensor | Sequence[int] | None = None,
    duplicates: Duplicates = "merge",
    keep_images: bool = False,
) -> Iterator[Outcome]:
    """Attack `source` on a stream of samples, judge the images on `target`, and yield the outcomes.

    Of several attacks in sequence each gets the samples that stood the images of the one before.

    Args:
        source: images (N, 3, H, W) in [0, 1] -> logits (N, K); attacked as it stands, in eval mode.
        target: the same of the model that is judged, over the same K classes in the same order.
        chunks: the samples, at the attack resolution that both models share; `clean_logits` and `so_far`, where
            they are given, are the target's.
        plan: the attacks on the source. How they would be judged there does not matter: see `transferred`.
            With `eot` the target is judged on mean logits too.
        device: where both models are.
        seed: of the noise.
        slots: samples attacked side by side; outcomes do not depend on it.
        groups: text group of each class for the target; None: its `groups` attribute, else each its own.
        source_groups: the same for the source: two tokenizers may take different texts for equal.
        duplicates: how classes with one text are scored.
        keep_images: fill `Outcome.image` with the image that was judged last.

    Yields:
        One outcome a sample, of the target, in no promised order. `broken`: wrong on the final image, which
        lies in the threat set. `by`: "transfer:" and the attack's name. `step` is None, since the image as
        a whole is judged and no query of it. `margin` and `distance`: of the target, of a final image in the
        threat set where that lowers the clean margin. `queries`: spent on the source.

    Raises:
        UserError: if the models have different numbers of classes, or fewer than two different ones, or samples
            are of different sizes.
        FloatingPointError: if logits or gradients are not finite.
    """
    if slots < 1:
        raise UserError(f"slots must be >= 1, got {slots}.")
    job = _Transfer(
        source, target, plan, device, seed, slots, source_groups, duplicates, keep_images
    )
    given = groups if groups is not None else getattr(target, "groups", None)
    known: Groups | None = None
    waiting: list[_Item] = []
    for chunk in chunks:
        images, labels = chunk.images.to(device), chunk.labels.to(device)
        logits = chunk.clean_logits
        logits = _logits(target, images) if logits is None else logits.to(device)
        check_finite(logits, chunk.ids, "on the clean image")
        known = known or Groups.of(given, logits.shape[1], device)
        outcomes = chunk.so_far or unattacked(chunk.ids, labels, logits, known, duplicates)
        for outcome, image, label in zip(outcomes, images, labels, strict=True):
            if outcome.robust:
                waiting.append(_Item(outcome, image, label))
            else:
                yield outcome
        while len(waiting) >= slots:
            group, waiting = waiting[:slots], waiting[slots:]
            yield from _attacked(job, group, known)
    if waiting and known is not None:
        yield from _attacked(job, waiting, known)


def _logits(model: nn.Module, images: Tensor, draws: int = 1) -> Tensor:
    with torch.no_grad(), evaluating(model), full_precision():
        total: Tensor = model(images)
        for _ in range(draws - 1):
            total = total + model(images)
    return total / draws


def _attacked(job: _Transfer, items: list[_Item], groups: Groups) -> list[Outcome]:
    """Attack samples that the target gets right, by each member of the plan in turn."""
    left = items
    for member in job.plan.members:
        if not left:
            break
        _attack(job, member, left, groups)
        left = [item for item in left if item.outcome.robust]
    for item in items:
        if not job.keep_images:
            item.outcome.image = None
    return [item.outcome for item in items]


def _attack(job: _Transfer, member: Attack, items: list[_Item], groups: Groups) -> None:
    """Complete the outcomes of some samples after one attack."""
    shapes = {tuple(item.image.shape) for item in items}
    if len(shapes) > 1:
        raise UserError(
            f"samples of one attack share a size, got {len(shapes)} sizes: use resolution 'model'."
        )
    clean = torch.stack([item.image for item in items])
    labels = torch.stack([item.label for item in items])
    outcomes = [item.outcome for item in items]
    ids = [outcome.id for outcome in outcomes]
    nearest = [outcome.smallest for outcome in outcomes]
    logits = _logits(job.source, clean)
    if logits.shape[1] != len(groups.of_class):
        raise UserError(
            f"the source has {logits.shape[1]} classes, the target {len(groups.of_class)}: give both the "
            "same class names in the same order."
        )
    alone = Plan(member, "none", early_exit=False, eot=job.plan.eot)
    # Every sample takes all its steps, so nothing is gained by a longer queue.
    for _ in attack_chunks(
        job.source,
        [Chunk(ids, clean, labels, logits, outcomes)],
        alone,
        device=job.device,
        seed=job.seed,
        slots=job.slots,
        groups=job.source_groups,
        duplicates=job.duplicates,
        keep_images=True,
    ):
        pass

    finals = torch.stack([_image(outcome) for outcome in outcomes])
    distances = member.threat.distance(finals, clean)
    inside = member.threat.contains(finals, clean, distances)
    logits = _logits(job.target, finals, job.plan.eot)
    check_finite(logits, ids, f"under {BY}{member.name}")
    right, margins = judge_logits(logits, labels, groups, job.duplicates)
    columns = zip(
        outcomes,
        nearest,
        inside.tolist(),
        right.tolist(),
        margins.tolist(),
        distances.tolist(),
        strict=True,
    )
    for outcome, smallest, is_inside, is_right, margin, distance in columns:
        outcome.smallest = smallest  # what the attack found was wrong for the source alone
        if not is_inside:
            continue
        if margin < outcome.margin:
            outcome.margin, outcome.distance = margin, distance
        if not is_right:
            outcome.broken = True
            outcome.by = f"{BY}{member.name}"


def _image(outcome: Outcome) -> Tensor:
    if outcome.image is None:
        raise RuntimeError(f"the attack handed over no image of {outcome.id}")
    return outcome.image
