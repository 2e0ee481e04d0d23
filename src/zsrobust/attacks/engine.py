"""The engine: runs attacks over samples, judges every query itself, and keeps the records.

An attack knows nothing of batches or order. The engine owns S slots; one iteration is one forward (and
the input-only backward where the attack asks for it) on all slots' queries. The forward that attacks
also judges: a query that the engine finds in the threat set and that is misclassified breaks its
sample. Broken or finished samples leave, their slots are refilled from the queue at once, so samples
stand at different steps side by side. When the queue is empty the batch shrinks. Clean mistakes never
enter, and of several attacks in sequence each gets the survivors of the one before. What a sample draws
depends on (seed, attack, id) alone (randomness.py), so that outcomes depend neither on the batch nor on
the order, but for the rounding of matrix products (traps 32, 33).
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import (
    TYPE_CHECKING,
    Any,
    ClassVar,
    Literal,
    NamedTuple,
    Protocol,
    get_args,
    runtime_checkable,
)

import torch
from torch import Tensor

from zsrobust import randomness
from zsrobust.attacks import losses
from zsrobust.attacks.outcome import Outcome
from zsrobust.attacks.pgd import State, frozen
from zsrobust.errors import UserError, unknown_name
from zsrobust.threat import Norm, Resolution, Threat

if TYPE_CHECKING:
    from zsrobust.attacks.names import Plan

Judge = Literal["every", "last", "none"]
Duplicates = Literal["merge", "keep"]
Forward = Callable[[Tensor], Tensor]
"""Images (N, 3, H, W) in [0, 1] -> logits (N, K)."""


@runtime_checkable
class Attack(Protocol):
    """A state machine for a batch of slots.

    The state is a flat dict of tensors with the slot as leading dimension: the engine gathers,
    overwrites and concatenates them. Two keys have a meaning to the engine: "step" (S,) int64, the
    number of the query within its target or restart, is copied into the record.
    Logits that an attack sees have one column a text group, labels are group numbers.
    """

    needs_grad: ClassVar[bool]
    minimal_norm: ClassVar[bool]
    version: ClassVar[int]

    @property
    def name(self) -> str:
        """What records and noise are filed under."""

    @property
    def threat(self) -> Threat:
        """Norm and eps."""

    def settings(self) -> dict[str, Any]:
        """Everything that determines the queries."""

    def init(self, images: Tensor, labels: Tensor, clean_logits: Tensor, key: Tensor) -> State:
        """Return fresh states for images (S, 3, H, W), labels (S,), clean_logits (S, K), key (S,) int64."""

    def query(self, state: State) -> Tensor:
        """Return the images to look at next, (S, 3, H, W) in [0, 1]; they may leave the ball."""

    def loss(self, state: State, logits: Tensor) -> Tensor:
        """Return what to ascend: (S,), or (S, G) for G gradients through one graph."""

    def update(self, state: State, logits: Tensor, grad: Tensor | None) -> tuple[State, Tensor]:
        """Return the next state and `done` (S,) bool; grad is (S, 3, H, W), (S, G, 3, H, W) or None."""

    def final(self, state: State) -> Tensor:
        """Return what is handed over at the end, (S, 3, H, W)."""


class Chunk(NamedTuple):
    """Some samples as they come from a loader."""

    ids: Sequence[str]
    images: Tensor
    """(N, 3, H, W) float in [0, 1], on any device."""
    labels: Tensor
    """(N,) int64, class indices."""
    clean_logits: Tensor | None = None
    """(N, K) of the attacked model over all classes, where they are known already."""
    so_far: Sequence[Outcome] | None = None
    """What is known of the samples already: they enter if these say clean-correct and not broken, whatever
    the attacked model says of them (survivors of an attack before; transfer, where the target decides)."""


@dataclass(frozen=True, slots=True)
class Groups:
    """Classes that share one text have one logit and count as one class for every attack (traps 57)."""

    of_class: Tensor
    """(K,) int64, the group of each class."""
    representative: Tensor
    """(G,) int64, the first class of each group."""

    @classmethod
    def of(
        cls, groups: Tensor | Sequence[int] | None, classes: int, device: torch.device
    ) -> Groups:
        """Number the groups 0..G-1 by first appearance; None makes each class its own group.

        Raises:
            UserError: if `groups` has another length than `classes`, or fewer than two groups.
        """
        given = groups.tolist() if isinstance(groups, Tensor) else groups
        raw = list(range(classes)) if given is None else [int(group) for group in given]
        if len(raw) != classes:
            raise UserError(f"groups name {len(raw)} classes, the model has {classes} logits.")
        number: dict[int, int] = {}
        first: list[int] = []
        for k, group in enumerate(raw):
            if group not in number:
                number[group] = len(number)
                first.append(k)
        if len(number) < 2:
            raise UserError(
                f"an attack needs at least 2 classes with different texts, got {len(number)}: "
                "nothing could be misclassified."
            )
        return cls(
            torch.tensor([number[g] for g in raw], device=device),
            torch.tensor(first, device=device),
        )

    def reduce(self, logits: Tensor) -> Tensor:
        """Return one column a group, (N, G)."""
        if len(self.representative) == len(self.of_class):
            return logits
        return logits[:, self.representative]


class Judgement(NamedTuple):
    """How a batch of logits looks to the engine."""

    right: Tensor
    """(N,) bool, under the duplicates rule."""
    margin: Tensor
    """(N,) group margin, true minus largest other."""


def judge_logits(
    logits: Tensor, labels: Tensor, groups: Groups, duplicates: Duplicates
) -> Judgement:
    """Score full logits (N, K) against class labels (N,).

    merge: any class of the true text group is right. keep: the argmax over all K logits must be the label
    itself, as published numbers have it; of two equal texts the first one then always wins.
    """
    group = groups.of_class[labels]
    reduced = groups.reduce(logits)
    right = reduced.argmax(1) == group if duplicates == "merge" else logits.argmax(1) == labels
    return Judgement(right, losses.margin(reduced, group))


def unattacked(
    ids: Sequence[str], labels: Tensor, logits: Tensor, groups: Groups, duplicates: Duplicates
) -> list[Outcome]:
    """Return what is known of samples from their clean logits (N, K) and labels (N,) alone."""
    right, margins = judge_logits(logits, labels, groups, duplicates)
    columns = zip(ids, labels.tolist(), right.tolist(), margins.tolist(), strict=True)
    return [
        Outcome(str(name), label, correct, margin, margin=margin)
        for name, label, correct, margin in columns
    ]


def check_finite(logits: Tensor, ids: Sequence[str], when: str) -> None:
    """Raise FloatingPointError naming the samples whose logits are NaN or infinite (traps 31)."""
    if bool(torch.isfinite(logits).all()):
        return
    bad = (~torch.isfinite(logits).all(1)).nonzero()[:, 0].tolist()
    named = ", ".join(str(ids[i]) for i in bad[:5])
    raise FloatingPointError(
        f"the model's logits are not finite {when} for {len(bad)} sample(s): {named}"
    )


class _Item(NamedTuple):
    """A sample on its way through the attacks of a plan."""

    outcome: Outcome
    image: Tensor
    label: Tensor
    logits: Tensor
    """(K,) of the attacked model on the clean image, over all classes."""


class _Entrance:
    """The samples as they come from a loader, judged unattacked; the classes are known from the first on."""

    def __init__(
        self,
        forward: Forward,
        chunks: Iterable[Chunk],
        device: torch.device,
        groups: Tensor | Sequence[int] | None,
        duplicates: Duplicates,
    ) -> None:
        self._forward, self._chunks, self._device = forward, chunks, device
        self._given_groups, self._duplicates = groups, duplicates
        self._groups: Groups | None = None

    @property
    def groups(self) -> Groups:
        """The text groups of the classes."""
        if self._groups is None:
            raise RuntimeError("an attack began before the classes were known")
        return self._groups

    def __iter__(self) -> Iterator[_Item]:
        shape: torch.Size | None = None
        for chunk in self._chunks:
            images = chunk.images.to(self._device)
            labels = chunk.labels.to(self._device)
            if chunk.clean_logits is None:
                with torch.no_grad():
                    logits = self._forward(images)
            else:
                logits = chunk.clean_logits.to(self._device)
            check_finite(logits, chunk.ids, "on the clean image")
            if shape is None:
                shape = images.shape[1:]
                self._groups = Groups.of(self._given_groups, logits.shape[1], self._device)
            elif images.shape[1:] != shape:
                raise UserError(
                    f"sample {chunk.ids[0]!r} is {tuple(images.shape[2:])} px, others are "
                    f"{tuple(shape[1:])}: samples of one attack share a size; use resolution 'model'."
                )
            outcomes = chunk.so_far or unattacked(
                chunk.ids, labels, logits, self.groups, self._duplicates
            )
            for i, outcome in enumerate(outcomes):
                yield _Item(outcome, images[i], labels[i], logits[i])


@dataclass(frozen=True, slots=True)
class _Engine:
    """What all attacks of a plan share."""

    forward: Forward
    entrance: _Entrance
    plan: Plan
    device: torch.device
    seed: int
    slots: int
    duplicates: Duplicates
    keep_images: bool


def _padded(model: torch.nn.Module, least: int, images: Tensor) -> Tensor:
    """Return the logits (N, K) of images (N, 3, H, W); the model gets `least` images, the last one repeated."""
    lacking = least - len(images)
    if lacking <= 0:
        return model(images)  # type: ignore[no-any-return]
    whole = torch.cat([images, images[-1:].expand(lacking, -1, -1, -1)])
    return model(whole)[: len(images)]  # type: ignore[no-any-return]


def attack_chunks(
    model: torch.nn.Module,
    chunks: Iterable[Chunk],
    plan: Plan,
    *,
    device: torch.device,
    seed: int = 0,
    slots: int = 64,
    groups: Tensor | Sequence[int] | None = None,
    duplicates: Duplicates = "merge",
    keep_images: bool = False,
    screen: torch.nn.Module | None = None,
    pad: bool = False,
) -> Iterator[Outcome]:
    """Attack a stream of samples and yield their outcomes as they are known, in no promised order.

    Args:
        model: images (N, 3, H, W) in [0, 1] -> logits (N, K); attacked as it stands, in eval mode.
        chunks: the samples; read only as fast as slots become free, so memory does not grow with them.
        plan: the attacks, each given the survivors of the one before, and how they are judged.
        device: where the model is.
        seed: of the noise.
        slots: samples attacked side by side.
        groups: text group of each class; None: the model's `groups` attribute, else each its own.
        duplicates: how classes with one text are scored.
        keep_images: hand over images with the outcomes.
        screen: a cheaper copy of the model (its encoder in bf16). The whole plan runs on it first; an image
            that it finds is judged again by the model itself, and what survives gets the whole plan on the
            model, from its beginning, with the same noise. So a screen can only add to what is broken; step
            and attribution may differ.
        pad: give the model always `slots` images, the last one repeated, so that a compiled model is not
            compiled anew as the batch shrinks (traps 55).

    Raises:
        UserError: if the model has fewer than two different classes, or a screen comes with a plan that
            has no early exit: what it finds leaves at once.
        FloatingPointError: if logits or gradients are not finite.
    """
    if screen is not None and not plan.early_exit:
        raise UserError(
            f"attack {plan.name!r} has no early exit, a screen goes with one: leave one of the two out."
        )
    given = groups if groups is not None else getattr(model, "groups", None)
    least = slots if pad else 0
    forward = partial(_padded, model, least)
    entrance = _Entrance(forward, chunks, device, given, duplicates)
    engine = _Engine(forward, entrance, plan, device, seed, slots, duplicates, keep_images)
    items: Iterator[_Item] = iter(entrance)
    with contextlib.ExitStack() as stack:
        stack.enter_context(full_precision())
        for module in (model,) if screen is None else (model, screen):
            stack.enter_context(evaluating(module))
            stack.enter_context(frozen(module))
        if screen is not None:
            rough = replace(engine, forward=partial(_padded, screen, least), keep_images=True)
            items = _screened(engine, rough, items)
        for attack in plan.members:
            items = _attacked(engine, attack, items)
        for item in items:
            yield item.outcome


def _screened(engine: _Engine, rough: _Engine, items: Iterator[_Item]) -> Iterator[_Item]:
    """Run the whole plan on the rough engine; yield hits that stand on the model, the others untouched."""
    waiting: dict[str, _Item] = {}

    def copies() -> Iterator[_Item]:
        for item in items:
            waiting[item.outcome.id] = item
            yield item._replace(outcome=replace(item.outcome))

    found: Iterator[_Item] = copies()
    for attack in engine.plan.members:
        found = _attacked(rough, attack, found)
    for item in found:
        given = waiting.pop(item.outcome.id)
        if not given.outcome.robust:
            yield given
        elif item.outcome.broken and _stands(engine, item):
            if not engine.keep_images:
                item.outcome.image = None
            yield item
        else:
            given.outcome.queries = item.outcome.queries
            yield given


def _stands(engine: _Engine, item: _Item) -> bool:
    """Whether the image that a screen found is misclassified by the model itself, inside the threat set."""
    image = item.outcome.image
    if image is None:
        return False
    query, clean = image[None], item.image[None]
    with torch.no_grad():
        logits = torch.stack([engine.forward(query) for _ in range(engine.plan.eot)]).mean(0)
    check_finite(logits, [item.outcome.id], "on an image that the screen found")
    judged = judge_logits(logits, item.label[None], engine.entrance.groups, engine.duplicates)
    if bool(judged.right[0]) or not bool(engine.plan.threat.contains(query, clean)[0]):
        return False
    # What the record says of the image is what the model itself makes of it.
    item.outcome.margin = float(judged.margin[0])
    item.outcome.distance = float(engine.plan.threat.distance(query, clean)[0])
    return True


def _attacked(engine: _Engine, attack: Attack, items: Iterator[_Item]) -> Iterator[_Item]:
    """Attack the samples that are still right; the others pass at once. In no promised order."""
    inside: list[_Item] = []  # of the occupied slots, in slot order
    state: State = {}
    own: State = {}  # what the engine itself keeps a slot: image, label, worst margin, its distance
    while True:
        fresh: list[_Item] = []
        while len(inside) + len(fresh) < engine.slots:
            item = next(items, None)
            if item is None:
                break
            if item.outcome.robust:
                fresh.append(item)
            else:
                yield item
        if fresh:
            state, own = _enter(engine, attack, fresh, state, own)
            inside.extend(fresh)
        if not inside:
            return
        finished, state, own = _iterate(engine, attack, inside, state, own)
        # One transfer of S booleans an iteration; everything else stays on the device.
        leaving = finished.tolist()
        if not any(leaving):
            continue
        _complete(engine, attack, inside, state, own, leaving)
        yield from (item for item, left in zip(inside, leaving, strict=True) if left)
        stay = (~finished).nonzero()[:, 0]
        inside = [item for item, left in zip(inside, leaving, strict=True) if not left]
        state = {name: tensor[stay] for name, tensor in state.items()}
        own = {name: tensor[stay] for name, tensor in own.items()}


@contextlib.contextmanager
def evaluating(model: torch.nn.Module) -> Iterator[None]:
    """Put every module in eval mode while the block runs, and give each its own mode back.

    Each its own: a wrapper is in train mode when it is made, also around a model in eval mode, and
    `train(True)` on the wrapper would move the batch norms inside (traps 10).
    """
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


@contextlib.contextmanager
def full_precision() -> Iterator[None]:
    """Let convolutions on a GPU be float32 where float32 is said; cuDNN's default is TF32."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before


def _enter(
    engine: _Engine, attack: Attack, fresh: list[_Item], state: State, own: State
) -> tuple[State, State]:
    """Give fresh samples their slots, behind the occupied ones."""
    groups, device = engine.entrance.groups, engine.device
    outcomes = [item.outcome for item in fresh]
    images = torch.stack([item.image for item in fresh])
    labels = torch.stack([item.label for item in fresh])
    logits = groups.reduce(torch.stack([item.logits for item in fresh]))
    keys = randomness.sample_keys(engine.seed, attack.name, [outcome.id for outcome in outcomes])
    entering = attack.init(images, groups.of_class[labels], logits, keys.to(device))
    margins = logits.new_tensor([outcome.margin for outcome in outcomes])
    mine = {
        "clean": images,
        "label": labels,
        "step": torch.zeros(len(fresh), dtype=torch.int64, device=device),
        "broken_at": torch.full((len(fresh),), -1, dtype=torch.int64, device=device),
        "broken_within": torch.full((len(fresh),), -1, dtype=torch.int64, device=device),
        "margin": margins,
        "distance": torch.tensor(
            [outcome.distance for outcome in outcomes], dtype=torch.float64, device=device
        ),
        "smallest": torch.full((len(fresh),), torch.inf, dtype=torch.float64, device=device),
    }
    if engine.keep_images:
        mine["query"] = images
    if not state:
        return entering, mine
    return (
        {name: torch.cat([tensor, entering[name]]) for name, tensor in state.items()},
        {name: torch.cat([tensor, mine[name]]) for name, tensor in own.items()},
    )


def _iterate(
    engine: _Engine, attack: Attack, inside: list[_Item], state: State, own: State
) -> tuple[Tensor, State, State]:
    """One forward (and backward) on all slots, judged; returns who leaves, and the next states."""
    plan, groups = engine.plan, engine.entrance.groups
    query = attack.query(state).detach()
    logits, grad = _look(engine, attack, state, query)
    ids = [item.outcome.id for item in inside]
    check_finite(logits, ids, f"under {attack.name}")
    if grad is not None and not bool(torch.isfinite(grad.abs().sum())):
        bad = ~torch.isfinite(grad.flatten(1)).all(1)
        named = [name for name, is_bad in zip(ids, bad.tolist(), strict=True) if is_bad]
        raise FloatingPointError(
            f"the gradient under {attack.name} is not finite for sample(s): {', '.join(named[:5])}"
        )
    right, margins = judge_logits(logits, own["label"], groups, engine.duplicates)
    before = state
    state, done = attack.update(state, groups.reduce(logits), grad)

    distances = attack.threat.distance(query, own["clean"])
    if plan.judge == "none":
        judged = torch.zeros_like(done)
    else:
        judged = attack.threat.contains(query, own["clean"], distances)
        if plan.judge == "last":
            judged = judged & done
    hit = judged & ~right
    first = hit & (own["broken_at"] < 0)
    within = before.get("step", own["step"])
    worse = judged & (margins < own["margin"])
    # Of every misclassified query, inside the ball or not: what minimum-norm attacks are after.
    nearer = ~right & (distances < own["smallest"])
    own = {
        **own,
        "step": own["step"] + 1,
        "broken_at": torch.where(first, own["step"], own["broken_at"]),
        "broken_within": torch.where(first, within, own["broken_within"]),
        "margin": torch.where(worse, margins, own["margin"]),
        "distance": torch.where(worse, distances, own["distance"]),
        "smallest": torch.where(nearer, distances, own["smallest"]),
    }
    if engine.keep_images:
        own["query"] = query
    # A minimum-norm attack goes on after a hit only if it was asked for distances (no early exit).
    finished = done | hit if plan.early_exit else done
    return finished, state, own


def _look(
    engine: _Engine, attack: Attack, state: State, query: Tensor
) -> tuple[Tensor, Tensor | None]:
    """Return full logits (S, K) and the gradient at `query`, both means over `eot` passes."""
    groups, eot = engine.entrance.groups, engine.plan.eot
    total_logits: Tensor | None = None
    total_grad: Tensor | None = None
    for _ in range(eot):
        images = query.requires_grad_(attack.needs_grad)
        with torch.set_grad_enabled(attack.needs_grad):
            logits = engine.forward(images)
            loss = attack.loss(state, groups.reduce(logits)) if attack.needs_grad else None
        if loss is not None:
            grad = _gradient(loss, images)
            total_grad = grad if total_grad is None else total_grad + grad
        logits = logits.detach()
        total_logits = logits if total_logits is None else total_logits + logits
    query.requires_grad_(False)
    if total_logits is None:
        raise UserError(f"eot must be >= 1, got {eot}.")
    return total_logits / eot, None if total_grad is None else total_grad / eot


def _gradient(loss: Tensor, images: Tensor) -> Tensor:
    """Return the gradient (S, 3, H, W) of a loss (S,), or (S, G, 3, H, W) of a loss (S, G).

    Where the loss does not reach the images it is zero: the attack goes on, and the flag `no-gradient` says so.
    """
    columns = loss[:, None] if loss.dim() == 1 else loss
    grads = []
    for g in range(columns.shape[1]):
        found = None
        if loss.requires_grad:
            keep = g < columns.shape[1] - 1
            (found,) = torch.autograd.grad(
                columns[:, g].sum(), images, retain_graph=keep, allow_unused=True
            )
        grads.append(torch.zeros_like(images) if found is None else found)
    return grads[0] if loss.dim() == 1 else torch.stack(grads, dim=1)


def _complete(
    engine: _Engine,
    attack: Attack,
    inside: list[_Item],
    state: State,
    own: State,
    leaving: list[bool],
) -> None:
    """Complete the outcomes of the slots that leave."""
    columns = {
        name: own[name].tolist()
        for name in ("step", "broken_at", "broken_within", "margin", "distance", "smallest")
    }
    final = attack.final(state) if engine.keep_images else None
    for i, (outcome, *_) in enumerate(inside):
        if not leaving[i]:
            continue
        outcome.queries += columns["step"][i]
        outcome.margin = columns["margin"][i]
        outcome.distance = columns["distance"][i]
        if attack.minimal_norm and columns["smallest"][i] < float("inf"):
            outcome.smallest = columns["smallest"][i]
        if columns["broken_at"][i] >= 0:
            outcome.broken = True
            outcome.by = attack.name
            outcome.step = columns["broken_at"][i]
            outcome.step_within = columns["broken_within"][i]
        if final is not None:
            just_hit = engine.plan.early_exit and columns["broken_at"][i] == columns["step"][i] - 1
            outcome.image = (own["query"] if just_hit else final)[i].clone()


def run(
    model: torch.nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    attack: str = "pgd-20",
    norm: Norm = "linf",
    eps: float | str,
    ids: Sequence[str] | None = None,
    resolution: Resolution = "model",
    seed: int = 0,
    slots: int = 64,
    groups: Tensor | Sequence[int] | None = None,
    duplicates: Duplicates = "merge",
    keep_images: bool = False,
) -> list[Outcome]:
    """Attack any PyTorch classifier and return one outcome a sample, in the order given.

    Args:
        model: a module, images (N, 3, H, W) in [0, 1] -> logits (N, K); normalisation belongs inside it.
        images: (N, 3, H, W) floats in [0, 1].
        labels: (N,) int64, class indices.
        attack: a name with options, as `attacks.plan` reads it: "pgd-20", "cw-margin-50:step=1/255".
        norm: "linf" or "l2".
        eps: radius in [0, 1]-pixel units, 8/255 or "8/255".
        ids: stable ids; noise is a function of them. Default: the row numbers.
        resolution: recorded with the threat; images are attacked at the size they have.
        seed: of the noise.
        slots: samples attacked side by side; outcomes do not depend on it.
        groups: text group of each class; default: the model's `groups` attribute, else each its own.
        duplicates: how classes with one text are scored, "merge" or "keep".
        keep_images: fill `Outcome.image`.

    Raises:
        UserError: if an argument does not fit (images outside [0, 1], labels outside the classes, ...).
        FloatingPointError: if the model's logits are not finite.
    """
    from zsrobust.attacks.names import plan as read_plan

    names = check_arguments(images, labels, ids, slots)
    labels = labels.to(torch.int64)  # uint8 would index as a mask
    if duplicates not in get_args(Duplicates):
        raise unknown_name("duplicates rule", str(duplicates), get_args(Duplicates))
    if not isinstance(model, torch.nn.Module):
        raise UserError(
            f"the model is a {type(model).__name__}; give a torch.nn.Module that maps images in [0, 1] "
            "to logits, for a CLIP ZeroShotClassifier.from_texts(clip, classnames)."
        )
    parameters = [*model.parameters(), *model.buffers()]
    device = parameters[0].device if parameters else images.device
    with torch.no_grad(), evaluating(model):
        logits = model(images[:1].to(device))
    if not isinstance(logits, Tensor) or logits.dim() != 2 or len(logits) != 1:
        shape = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise UserError(f"the model must return logits (N, K), for one image it returned {shape}.")
    classes = logits.shape[1]
    if int(labels.min()) < 0 or int(labels.max()) >= classes:
        raise UserError(
            f"labels must lie in [0, {classes}), the model has {classes} logits; got "
            f"{int(labels.min())}..{int(labels.max())}."
        )
    given = groups if groups is not None else getattr(model, "groups", None)
    texts = len(Groups.of(given, classes, device).representative)
    chunks = (
        Chunk(names[i : i + slots], images[i : i + slots], labels[i : i + slots])
        for i in range(0, len(images), slots)
    )
    found = attack_chunks(
        model,
        chunks,
        read_plan(attack, Threat(norm, eps, resolution), texts),  # type: ignore[arg-type]  # Threat parses text
        device=device,
        seed=seed,
        slots=slots,
        groups=groups,
        duplicates=duplicates,
        keep_images=keep_images,
    )
    by_id = {outcome.id: outcome for outcome in found}
    return [by_id[name] for name in names]


def check_arguments(
    images: Tensor, labels: Tensor, ids: Sequence[str] | None, slots: int
) -> list[str]:
    """Return the samples' ids; arguments as `run` takes them.

    Raises:
        UserError: if one does not fit.
    """
    for what, given in (("images", images), ("labels", labels)):
        if not isinstance(given, Tensor):
            raise UserError(f"{what} must be a torch tensor, got {type(given).__name__}.")
    _check_images(images)
    if labels.shape != images.shape[:1]:
        raise UserError(
            f"labels must have shape ({len(images)},), one number an image, got {tuple(labels.shape)}."
        )
    if labels.dtype not in (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64):
        raise UserError(f"labels must be class numbers of an integer type, got {labels.dtype}.")
    if slots < 1:
        raise UserError(f"slots must be >= 1, got {slots}.")
    if isinstance(ids, str):
        raise UserError(f"ids must be a list of texts, one an image, got the text {ids!r}.")
    names = [str(i) for i in range(len(images))] if ids is None else [str(i) for i in ids]
    if len(names) != len(images):
        raise UserError(f"ids name {len(names)} samples, there are {len(images)} images.")
    if len(set(names)) != len(names):
        twice = next(name for name, count in Counter(names).items() if count > 1)
        raise UserError(
            "ids must be different from each other, noise and records go by them; "
            f"got {twice!r} more than once."
        )
    return names


def _check_images(images: Tensor) -> None:
    """Refuse what is no batch of images in [0, 1], with a guess at what it is instead."""
    shape = tuple(images.shape)
    if images.dim() != 4 or len(images) == 0:
        one = "; one image goes in as images[None]" if images.dim() == 3 else ""
        raise UserError(f"images must be (N, 3, H, W) with N >= 1, got shape {shape}{one}.")
    if shape[1] != 3:
        last = "; images.permute(0, 3, 1, 2) brings the channels forward" if shape[3] == 3 else ""
        raise UserError(f"images must be (N, 3, H, W), got shape {shape}{last}.")
    if not images.is_floating_point():
        raise UserError(f"images must be floats in [0, 1], got {images.dtype}: divide by 255.")
    if not bool(torch.isfinite(images).all()):
        bad = (~torch.isfinite(images.flatten(1)).all(1)).nonzero()[:, 0].tolist()
        raise UserError(
            f"images must lie in [0, 1], got NaN or infinity in {len(bad)} of {len(images)}, "
            f"first in number {bad[0]}: mend or leave them out."
        )
    low, high = float(images.min()), float(images.max())
    if not (low >= 0.0 and high <= 1.0):
        if low >= 0.0 and 2.0 < high <= 255.0:
            mend = "divide by 255"
        else:
            mend = "pass them before normalisation, and normalise inside the model"
        raise UserError(f"images must lie in [0, 1], got [{low:.3g}, {high:.3g}]: {mend}.")
