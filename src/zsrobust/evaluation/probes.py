"""Probes: what the first samples of a set tell of a model, for the flags that records alone cannot raise.

The probes are the first 64 clean-correct samples of the fixed order, fewer where fewer are asked for. They are
looked at once per model and set (texts, preprocessing, resolution and precision included), when an attack is
measured. What is found are plain numbers; trust.py judges them. They stand beside the clean cell in

    cells/<first 16 digits of the clean cell's key>/probe.json

so that a report on finished cells raises the same flags without a model. What depends on the attacks, zero
gradients a loss and logits times 100 a norm and eps, is added when an attack first needs it.

Cost, for each of P <= 64 probes: 3 forwards and a backward a loss, of which two at least are looked at; for
survives-all a forward, and at most 21 forwards and backwards more, most of which an honest model spares, since
what is broken leaves at once. Only where the softmax is nearly uniform, a norm and eps takes 22 to 66 more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any, get_args

import torch
from torch import Tensor, nn

from zsrobust import attacks as attack_table
from zsrobust.attacks import losses
from zsrobust.attacks.engine import (
    Chunk,
    Duplicates,
    Groups,
    attack_chunks,
    check_arguments,
    check_finite,
    evaluating,
    full_precision,
    judge_logits,
)
from zsrobust.attacks.pgd import frozen
from zsrobust.errors import UserError, unknown_name
from zsrobust.evaluation.table import Row
from zsrobust.evaluation.trust import (
    FLAT_BREAKS,
    FLAT_CLASSES,
    FLAT_FACTOR,
    FLAT_SPREAD,
    PROBE_STEPS,
    PROBES,
    SURVIVAL_EPS,
    ball,
    loss_of,
)
from zsrobust.models import ZeroShotClassifier
from zsrobust.threat import Norm, Threat, parse_eps

if TYPE_CHECKING:
    from zsrobust.attacks import Plan
    from zsrobust.attacks.outcome import Outcome

# Changed whenever a number below comes to mean something else; a file of another version counts as none.
VERSION = 1

Sample = tuple[str, int, str]
"""Id, label, and the first 16 hex digits of the SHA-256 of the image's stored bytes."""

# Rows of a softmax over K classes sum to 1 within K float32 roundings; logits that do so by chance are none.
_SUM_SLACK = 1e-4


@dataclass(frozen=True, slots=True)
class Gradient:
    """What comes back from a loss at the clean images."""

    missing: bool
    """The loss does not depend on the images, as far as autograd knows."""
    zero: int
    """Probes whose gradient is exactly zero; all of them where it is missing."""
    of: int
    """How many were looked at: a later request for fewer samples has fewer probes."""


@dataclass(frozen=True, slots=True)
class Scaled:
    """Cross-entropy PGD-20 on the logits as they are, and on the logits times 100."""

    broken: int
    """Probes that the attack breaks on the logits as they are."""
    gained: int
    """Of the others, those that it breaks on the logits times 100."""
    lost: int | None
    """Of the broken ones, those that it leaves on the logits times 100; None where so few were gained that
    it was not asked."""
    of: int
    """How many were looked at."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """What was found, as plain numbers."""

    samples: tuple[Sample, ...]
    """The probes, in the fixed order."""
    device: str
    """Type of the device: "cpu", "cuda"."""
    classes: int
    """Text groups."""
    scale: float | None
    """The logit scale of a zero-shot classifier; None for any other."""
    certain: int
    """Probes whose largest softmax is exactly 1.0 in float32."""
    probabilities: int
    """Probes whose outputs are probabilities already: none negative, sum 1."""
    largest: float
    """The largest |logit|."""
    spread: float
    """How evenly the softmax spreads over the wrong classes: exp(entropy) over their number, in (0, 1], the mean
    over the probes. Near 1 cross-entropy pulls at all of them alike."""
    difference: float
    """The largest difference of a logit between two passes over the same batches, as a share of `largest`."""
    survivors: int | None
    """Probes that the grey image and margin PGD-20 at linf 0.5 leave; None where the attack could not run."""
    gradients: Mapping[str, Gradient] = field(default_factory=dict)
    """Loss, as `trust.loss_of` names it -> its gradient."""
    scaled: Mapping[str, Scaled | None] = field(default_factory=dict)
    """Norm and eps, as `trust.ball` names them -> PGD with and without the factor, looked at where the softmax is
    nearly uniform; None where it could not run."""

    def covers(self, samples: Sequence[Sample]) -> bool:
        """Whether these are the probes, or the first of them."""
        return self.samples[: len(samples)] == tuple(samples)

    def to_json(self) -> dict[str, Any]:
        """Return the content of the file."""
        return {"version": VERSION, **asdict(self)}

    @classmethod
    def from_json(cls, content: Any) -> Probe | None:
        """Read the content of the file; None if another version wrote it.

        Raises:
            ValueError: if it is damaged.
        """
        try:
            if content["version"] != VERSION:
                return None
            found = {name: value for name, value in content.items() if name != "version"}
            found["device"] = str(found["device"])
            found["samples"] = tuple((str(i), int(n), str(h)) for i, n, h in found["samples"])
            found["gradients"] = {n: Gradient(**g) for n, g in found["gradients"].items()}
            found["scaled"] = {n: s and Scaled(**s) for n, s in found["scaled"].items()}
            probe = cls(**found)
            probe._check()
        except (TypeError, KeyError, ValueError, AttributeError) as error:
            raise ValueError(f"no probe ({error})") from error
        return probe

    def _check(self) -> None:
        """Refuse numbers that are none: what a file changed by hand may hold."""
        counts: list[object] = [self.classes, self.certain, self.probabilities]
        counts += [] if self.survivors is None else [self.survivors]
        parts = [part for part in (*self.gradients.values(), *self.scaled.values()) if part]
        for part in parts:
            counts += [value for value in asdict(part).values() if value is not None]
        numbers: list[object] = [self.largest, self.spread, self.difference]
        numbers += [] if self.scale is None else [self.scale]
        for value in counts:
            # `missing` is a truth value, which Python counts as 0 or 1.
            if not isinstance(value, int) or value < 0:
                raise ValueError(f"{value!r} is no count")
        for value in numbers:
            if not isinstance(value, int | float) or isinstance(value, bool):
                raise ValueError(f"{value!r} is no number")
        if not (self.samples and all(part.of for part in parts)):
            raise ValueError("no samples")


def complete(
    known: Probe | None,
    samples: Sequence[Sample],
    model: nn.Module,
    plans: Sequence[Plan],
    images: Callable[[], Sequence[Tensor]],
    *,
    device: torch.device,
    groups: Groups,
    scale: float | None,
    duplicates: Duplicates = "merge",
    slots: int = 64,
) -> Probe | None:
    """Return what the probes tell, `known` where nothing is missing; the model is asked for the rest alone.

    Args:
        known: what was found before, of these probes or of more; that of others is dropped.
        samples: the probes, P of them; with none nothing is looked at.
        model: images (N, 3, H, W) in [0, 1] -> logits (N, K); looked at in eval mode.
        plans: attacks that are about to be measured.
        images: returns the probes' images, P of (3, H, W) in [0, 1]; called only if the model is asked. With
            images of several sizes nothing is looked at: the engine refuses them in words of its own.
        device: where the model is.
        groups: text groups of its classes.
        scale: logit scale of a zero-shot classifier; None for any other.
        duplicates: how classes with one text are scored.
        slots: images that go through the model at once.

    Raises:
        FloatingPointError: if a logit is not finite on a clean image.
    """
    if not samples:
        return known
    if known is not None and not known.covers(samples):
        known = None
    used = {loss_of(member.settings()) for plan in plans for member in plan.members}
    wanted = {"cross-entropy", "margin"} | {loss for loss in used if loss is not None}
    threats = [plan.threat for plan in plans if plan.threat.eps]
    balls = {ball(threat.norm, threat.eps): threat for threat in threats}
    if not _may_be_flat(known):
        balls = {}
    if known is not None:
        count = len(samples)
        wanted -= {name for name, found in known.gradients.items() if found.of >= count}
        held = [name for name, found in known.scaled.items() if found is None or found.of >= count]
        balls = {name: threat for name, threat in balls.items() if name not in held}
    if known is not None and not wanted and not balls:
        return known

    found = images()
    if len({image.shape for image in found}) > 1:
        return known
    looked = _Looked(model, samples, torch.stack(list(found)), device, groups, duplicates, slots)
    with evaluating(model), frozen(model), full_precision():
        probe = known or _unattacked(looked, scale)
        if wanted:
            gradients = _gradients(looked, sorted(wanted))
            probe = replace(probe, gradients={**probe.gradients, **gradients})
        if probe.gradients["margin"].missing:
            return probe  # no attack below could take a step
        if known is None:
            probe = replace(probe, survivors=_survivors(looked))
        if not _may_be_flat(probe):
            return probe
        scaled = {name: _scaled(looked, threat) for name, threat in balls.items()}
        return replace(probe, scaled={**probe.scaled, **scaled})


def _may_be_flat(known: Probe | None) -> bool:
    """Whether it is to be asked what a factor on the logits would change."""
    return known is None or (known.classes > FLAT_CLASSES and known.spread >= FLAT_SPREAD)


@dataclass(frozen=True, slots=True)
class _Looked:
    """The probes and the model that looks at them."""

    model: nn.Module
    samples: Sequence[Sample]
    images: Tensor
    device: torch.device
    groups: Groups
    duplicates: Duplicates
    slots: int

    @property
    def labels(self) -> Tensor:
        """Class indices (P,)."""
        return torch.tensor([label for _, label, _ in self.samples], device=self.device)

    def batches(self) -> Iterator[Tensor]:
        """Yield the images, at most `slots` at a time."""
        for batch in self.images.split(self.slots):
            yield batch.to(self.device)

    def attacked(
        self, name: str, threat: Threat, which: Sequence[int], factor: float = 1.0
    ) -> list[Outcome]:
        """Attack the probes `which`, their logits times a factor; the outcomes in that order."""
        model = self.model if factor == 1.0 else _Times(self.model, factor)
        parts = [which[i : i + self.slots] for i in range(0, len(which), self.slots)]
        chunks = (
            Chunk([self.samples[i][0] for i in part], self.images[part], self.labels[part])
            for part in parts
        )
        found = attack_chunks(
            model,
            chunks,
            attack_table.plan(name, threat, len(self.groups.representative)),
            device=self.device,
            slots=self.slots,
            groups=self.groups.of_class,
            duplicates=self.duplicates,
        )
        by_id = {outcome.id: outcome for outcome in found}
        return [by_id[self.samples[i][0]] for i in which]


class _Times(nn.Module):
    """A classifier whose logits are multiplied."""

    def __init__(self, model: nn.Module, factor: float) -> None:
        super().__init__()
        self.model, self.factor = model, factor

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.model(images)
        return logits * self.factor


def _unattacked(looked: _Looked, scale: float | None) -> Probe:
    """Look twice at the clean images."""
    passes = []
    with torch.no_grad():
        for _ in range(2):
            passes.append(torch.cat([looked.model(batch) for batch in looked.batches()]))
    ids = [name for name, _, _ in looked.samples]
    for logits in passes:
        check_finite(logits, ids, "on the clean image")
    first, second = passes
    reduced = looked.groups.reduce(first)
    largest = float(first.abs().max())
    difference = float((first - second).abs().max())
    sums = (first.sum(1) - 1.0).abs() <= _SUM_SLACK
    return Probe(
        samples=tuple(looked.samples),
        device=looked.device.type,
        classes=reduced.shape[1],
        scale=scale,
        certain=int((reduced.float().softmax(1).amax(1) == 1.0).sum()),
        probabilities=int(((first >= 0.0).all(1) & sums).sum()),
        largest=largest,
        spread=_spread(reduced.double(), looked.groups.of_class[looked.labels]),
        difference=difference / largest if largest else difference,
        survivors=None,
    )


def _spread(logits: Tensor, labels: Tensor) -> float:
    wrong = logits.scatter(1, labels[:, None], float("-inf")).softmax(1)
    entropy = torch.special.entr(wrong).sum(1)
    return float((entropy.exp() / (logits.shape[1] - 1)).mean())


def _gradients(looked: _Looked, names: Sequence[str]) -> dict[str, Gradient]:
    """Take the gradient of each loss at the clean images, all through one forward."""
    zero, missing = dict.fromkeys(names, 0), dict.fromkeys(names, False)
    groups, labels = looked.groups, looked.groups.of_class[looked.labels]
    for batch, mine in zip(looked.batches(), labels.split(looked.slots), strict=True):
        images = batch.detach().clone().requires_grad_(True)
        with torch.enable_grad():
            logits = groups.reduce(looked.model(images))
            found = {name: _loss(name, logits, mine) for name in names}
        for name, loss in found.items():
            grad = None
            if loss.requires_grad:
                last = name == names[-1]
                (grad,) = torch.autograd.grad(
                    loss.sum(), images, allow_unused=True, retain_graph=not last
                )
            missing[name] |= grad is None
            zero[name] += len(images) if grad is None else _zero_rows(grad)
    count = len(looked.samples)
    return {name: Gradient(missing[name], zero[name], of=count) for name in names}


def _zero_rows(grad: Tensor) -> int:
    return int((grad == 0).flatten(1).all(1).sum())


def _loss(name: str, logits: Tensor, labels: Tensor) -> Tensor:
    """Return a loss (N,) of `trust.loss_of`; what is targeted has the runner-up as its target, as at its start."""
    if name == "cross-entropy":
        return losses.cross_entropy(logits, labels)
    if name == "dlr":
        return losses.dlr(logits, labels)
    if name == "targeted dlr":
        others = logits.detach().scatter(1, labels[:, None], float("-inf"))
        return losses.targeted_dlr(logits, labels, others.argmax(1))
    if name == "margin":
        return losses.negative_margin(logits, labels)
    raise ValueError(f"no loss {name!r}")


def _survivors(looked: _Looked) -> int | None:
    """Count the probes that the grey image and margin PGD leave at linf 0.5: hardly any model reads those."""
    grey = torch.full_like(looked.images[:1], 0.5).to(looked.device)
    with torch.no_grad():
        logits = looked.model(grey)
    if not bool(torch.isfinite(logits).all()):
        return None
    labels = looked.labels
    judged = judge_logits(logits.expand(len(labels), -1), labels, looked.groups, looked.duplicates)
    left = judged.right.nonzero()[:, 0].tolist()
    try:
        outcomes = looked.attacked(f"cw-margin-{PROBE_STEPS}", Threat("linf", SURVIVAL_EPS), left)
    except FloatingPointError:
        # Far from the image that is measured a model may fail; the attack that is measured says so itself.
        return None
    return sum(outcome.robust for outcome in outcomes)


def _scaled(looked: _Looked, threat: Threat) -> Scaled | None:
    """Run cross-entropy PGD with and without the factor."""
    name = f"pgd-{PROBE_STEPS}"
    count = len(looked.samples)
    try:
        plain = looked.attacked(name, threat, range(count))
        broken = [i for i in range(count) if plain[i].broken]
        left = [i for i in range(count) if plain[i].robust]
        gained = sum(o.broken for o in looked.attacked(name, threat, left, FLAT_FACTOR))
        lost = None
        if gained >= FLAT_BREAKS:  # fewer raise no flag, whatever is lost
            lost = sum(o.robust for o in looked.attacked(name, threat, broken, FLAT_FACTOR))
    except FloatingPointError:
        return None
    return Scaled(len(broken), gained, lost, count)


def probe_images(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    eps: float | str,
    norm: Norm,
    attacks: Sequence[str],
    outcomes: Mapping[str, Sequence[Outcome]] | None,
    ids: Sequence[str] | None,
    groups: Tensor | Sequence[int] | None,
    duplicates: Duplicates,
    slots: int,
) -> Row:
    """Return a row of any PyTorch classifier with its probes; arguments and errors as `trust.probe`."""
    names = check_arguments(images, labels, ids, slots)
    if not isinstance(model, nn.Module):
        raise UserError(
            f"the model is a {type(model).__name__}; give a torch.nn.Module that maps images in [0, 1] to logits."
        )
    if duplicates not in get_args(Duplicates):
        raise unknown_name("duplicates rule", str(duplicates), get_args(Duplicates))
    labels = labels.to(torch.int64)
    tensors = [*model.parameters(), *model.buffers()]
    device = tensors[0].device if tensors else images.device
    right: list[int] = []
    grouped: Groups | None = None
    classes = 0
    with torch.no_grad(), evaluating(model), full_precision():
        for start in range(0, len(images), slots):
            part = slice(start, start + slots)
            logits = model(images[part].to(device))
            if grouped is None:
                classes = logits.shape[1]
                given = groups if groups is not None else getattr(model, "groups", None)
                grouped = Groups.of(given, classes, device)
                if int(labels.min()) < 0 or int(labels.max()) >= classes:
                    raise UserError(
                        f"labels must lie in [0, {classes}), the model has {classes} logits; got "
                        f"{int(labels.min())}..{int(labels.max())}."
                    )
            check_finite(logits, names[part], "on the clean image")
            judged = judge_logits(logits, labels[part].to(device), grouped, duplicates)
            right += [start + i for i in judged.right.nonzero()[:, 0].tolist()]
            if len(right) >= PROBES:
                break
    if grouped is None:
        raise ValueError("no images")  # refused above
    threat = Threat(norm, parse_eps(eps, norm))
    texts = len(grouped.representative)
    given_names = list(attacks) if outcomes is None else list(outcomes)
    plans = {name: attack_table.plan(name, threat, texts) for name in given_names}
    right = right[:PROBES]
    found = complete(
        None,
        [(names[i], int(labels[i]), "") for i in right],
        model,
        list(plans.values()),
        lambda: list(images[right]),
        device=device,
        groups=grouped,
        scale=model.scale if isinstance(model, ZeroShotClassifier) else None,
        duplicates=duplicates,
        slots=slots,
    )
    known = {name: _of_images(name, list(given), names) for name, given in (outcomes or {}).items()}
    first = next(iter(known.values()), [])
    return Row(
        model=type(model).__name__,
        image_set="images",
        is_source=False,
        eps=threat.eps,
        norm=threat.norm,
        resolution=threat.resolution,
        classes=classes,
        templates=[],
        ids=[outcome.id for outcome in first],
        clean=[outcome.clean_correct for outcome in first],
        labels=[outcome.label for outcome in first],
        robust={name: [outcome.robust for outcome in given] for name, given in known.items()},
        plans={name: plan.settings() for name, plan in plans.items()},
        steps={
            name: [o.step if o.step_within is None else o.step_within for o in given]
            for name, given in known.items()
        },
        by={name: [outcome.by for outcome in given] for name, given in known.items()},
        probe=found,
    )


def _of_images(attack: str, given: list[Outcome], ids: list[str]) -> list[Outcome]:
    """Refuse outcomes of other images."""
    if [outcome.id for outcome in given] != ids:
        raise UserError(
            f"the outcomes of {attack!r} are not of these images: give what attacks.run returned for them, all "
            "and in their order, and the same ids."
        )
    return given
