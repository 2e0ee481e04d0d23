"""Harden a model: the recipe from top to bottom.

recipe -> Run -> source set -> loader -> step (step.py) -> checkpoint -> model/
"""

from __future__ import annotations

import contextlib
import math
import os
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from zsrobust import data, randomness
from zsrobust.adaptations.adaptation import rehearse
from zsrobust.attacks.engine import full_precision
from zsrobust.errors import UserError, ZsRobustError
from zsrobust.files import folder_lock, remove_partials
from zsrobust.hashing import sha256_json
from zsrobust.interrupt import Stopped, deferred
from zsrobust.machine import UNITS, training_device, versions
from zsrobust.models import load_clip, save_hardened, text_anchors
from zsrobust.models.classifier import DEFAULT_TEMPLATES
from zsrobust.objectives import objective_class
from zsrobust.objectives.coadv import random_dictionary
from zsrobust.objectives.fare import original_encoder
from zsrobust.objectives.objective import Objective, TrainingBatch
from zsrobust.preprocess import to_unit
from zsrobust.progress import progress_bar
from zsrobust.training.checkpoint import (
    Position,
    check_position,
    load_checkpoint,
    save_checkpoint,
)
from zsrobust.training.head import start_head, trained_head
from zsrobust.training.pseudo import pseudo_labels
from zsrobust.training.recipe import Recipe
from zsrobust.training.run import Run
from zsrobust.training.schedule import learning_rate, warmup_steps
from zsrobust.training.step import Learner, StepSettings, parameter_groups, training_step
from zsrobust.training.validation import open_held_out, recipe_geometry, validate

if TYPE_CHECKING:
    from lightning_fabric import Fabric

    from zsrobust.data import ImageSet
    from zsrobust.models import Clip


def harden(
    recipe: Recipe,
    out: str | Path | None = None,
    *,
    progress: bool = False,
    notify: Callable[[str], None] | None = None,
) -> Run:
    """Run a hardening to its end, or go on with one; return the run.

    Args:
        recipe: see `load_recipe`.
        out: the run's folder; default `runs/` and the recipe's name.
        progress: draw a progress bar on the terminal.
        notify: called on the first rank with one line where something deserves saying before the first
            step: how right pseudo-labels are.

    Raises:
        UserError: if the recipe, the model or the data do not fit together.
        EnvironmentFault: if the folder cannot be written or another process works in it.
        FloatingPointError: if loss or gradient are not finite.
        KeyboardInterrupt: on Ctrl-C, after the step and its checkpoint; `Stopped` under the command
            line. SIGTERM likewise. Several ranks stop after the same step, also if only one was asked.
    """
    if not isinstance(recipe, Recipe):
        raise UserError(f"harden takes a Recipe, got {recipe!r}: read one with load_recipe(name).")
    folder = Path(out) if out is not None else Path("runs") / recipe.name
    with contextlib.ExitStack() as stack:
        stack.enter_context(_own_processes())
        fabric = _launch(recipe)
        error: ZsRobustError | None = None
        if fabric.global_rank == 0:
            try:
                stack.enter_context(folder_lock(folder))
                remove_partials(Run.open(recipe, folder).model)
            except ZsRobustError as caught:
                error = caught
        # The first rank alone owns the folder; what it finds wrong ends all ranks, in order.
        error = fabric.broadcast(error)
        if error is not None:
            raise error
        run = Run.open(recipe, folder)
        complete = fabric.broadcast(run.complete)
        if not complete:
            stack.enter_context(determinism(fabric.device, recipe.threads))
            stack.enter_context(full_precision())
            _train(recipe, run, fabric, progress, notify)
        if fabric.global_rank == 0:
            run.finish()
    return run


@contextlib.contextmanager
def _own_processes() -> Iterator[None]:
    """Leave no process group and no launcher's variables behind, so that the next run may be of one process."""
    names = (
        "WORLD_SIZE RANK LOCAL_RANK NODE_RANK GROUP_RANK LOCAL_WORLD_SIZE MASTER_ADDR MASTER_PORT"
    )
    before = {name: os.environ.get(name) for name in names.split()}
    try:
        yield
    finally:
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _launch(recipe: Recipe) -> Fabric:
    from lightning_fabric import Fabric

    device = training_device(recipe.device, "hardening")
    devices = int(os.environ.get("LOCAL_WORLD_SIZE", recipe.devices))
    # A slip of the keyboard would start that many processes, each with the model in memory.
    there = torch.cuda.device_count() if device.type == "cuda" else max(os.cpu_count() or 1, 2)
    if devices > there and "LOCAL_WORLD_SIZE" not in os.environ:
        raise UserError(
            f"device={device} with devices={devices}: {there} {UNITS[device.type]} are here; "
            "ask for no more."
        )
    many = devices > 1 or int(os.environ.get("WORLD_SIZE", "1")) > 1
    fabric = Fabric(
        accelerator=device.type,
        devices=[device.index] if str(device) != device.type and not many else devices,
        num_nodes=int(os.environ.get("WORLD_SIZE", devices)) // devices,
        strategy="ddp" if many else "auto",
        # The encoder autocasts itself (bf16), so that features and losses stay float32.
        precision="64-true" if recipe.precision == "fp64" else "32-true",
    )
    fabric.launch()
    return fabric


@contextlib.contextmanager
def determinism(device: torch.device, threads: int | None) -> Iterator[None]:
    """Bit-identical repetition on a CPU; on a GPU what torch can promise, without refusing the rest."""
    deterministic: Any = torch.utils.deterministic
    before = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        torch.get_num_threads(),
        deterministic.fill_uninitialized_memory,
    )
    torch.use_deterministic_algorithms(True, warn_only=device.type != "cpu")
    # It fills every new tensor with NaN, to show reads of what was never written, and costs time in each step.
    deterministic.fill_uninitialized_memory = False
    if threads is not None:
        torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        torch.set_num_threads(before[2])
        deterministic.fill_uninitialized_memory = before[3]


@dataclass(frozen=True)
class SourceData:
    """The source set as a run uses it."""

    images: ImageSet
    indices: list[int]
    templates: list[str]
    classnames: list[str] | None
    """What stands in the templates: a preset of templates may bring names of its own, and a recipe names
    them for a set that has none."""

    @property
    def classes(self) -> list[str] | None:
        """The names that tell the classes apart, whatever stands in the templates."""
        return self.images.classnames or self.classnames

    @property
    def ids(self) -> list[str]:
        """Ids of the used samples, in the set's fixed order."""
        return [self.images.ids[i] for i in self.indices]


def open_source(recipe: Recipe) -> SourceData:
    """Open the source set, take its first `limit` samples, and settle class names and templates.

    Raises:
        UserError: if the set lacks what the objective needs, or has fewer images than `limit`.
    """
    images = data.open_set(recipe.source.set, recipe.source.split)
    objective = f"objective {recipe.objective.name!r}"
    needs = objective_class(recipe.objective.name).needs
    if needs == "labels" and (images.labels is None or images.classnames is None):
        raise UserError(
            f"{objective} needs labels and class names, set {recipe.source.set!r} has none: use 'tecoa-pairs' "
            "with captions, 'tecoa-pseudo' with class names, 'fare' with images alone, or a labelled set."
        )
    named = recipe.objective.classnames
    if needs == "names":
        if images.classnames is not None and named is not None:
            raise UserError(
                f"set {recipe.source.set!r} has class names of its own: leave objective.classnames out."
            )
        if images.classnames is None and named is None:
            raise UserError(
                f"{objective} needs class names, set {recipe.source.set!r} has none: list them as "
                "objective.classnames, or use 'fare', which needs none."
            )
    indices = images.first(recipe.source.limit)
    if recipe.source.per_class is not None:
        indices = _first_of_each_class(images, recipe.source.per_class, recipe.source.set)
    if needs == "captions":
        bare = [images.ids[i] for i in indices if not images.captions(i)]
        if bare:
            raise UserError(
                f"{objective} needs captions, {len(bare)} of {len(indices)} images "
                f"of set {recipe.source.set!r} have none ({bare[0]}): put a .txt beside each image, or "
                "use 'tecoa' with labels."
            )
    if recipe.source.limit is not None and recipe.source.limit > len(images):
        raise UserError(
            f"source.limit is {recipe.source.limit}, set {recipe.source.set!r} holds {len(images)} images."
        )
    names, templates = images.texts(recipe.source.templates)
    return SourceData(images, indices, templates or list(DEFAULT_TEMPLATES), names or named)


def _first_of_each_class(images: ImageSet, count: int, named: str) -> list[int]:
    """Return the first `count` indices of each class, all in the set's fixed order.

    Raises:
        UserError: if the set has no labels, or a class has fewer images.
    """
    if images.labels is None:
        raise UserError(
            f"source.per_class is {count}, but set {named!r} has no labels: use source.limit."
        )
    kept: list[int] = []
    taken: Counter[int] = Counter()
    for index in images.order():
        label = int(images.labels[index])
        if taken[label] < count:
            taken[label] += 1
            kept.append(index)
    few = [label for label in range(len(images.classnames or ())) if taken[label] < count]
    if few:
        name = (images.classnames or [])[few[0]]
        raise UserError(
            f"source.per_class is {count}, set {named!r} holds {taken[few[0]]} images of class {name!r}; lower it "
            "to what every class has."
        )
    return kept


def build_objective(
    recipe: Recipe,
    clip: Clip,
    source: SourceData,
    fabric: Fabric,
    *,
    resumes: bool = False,
    progress: bool = False,
    notify: Callable[[str], None] | None = None,
) -> tuple[Objective, dict[str, Any]]:
    """Make the objective, and what the log's start line says of it.

    What it needs of the model before hardening is taken here, once: the anchors of all source classes, a
    head's start, the dictionary's width, pseudo-labels, or a frozen copy of the image tower.

    Args:
        recipe: names it, with its settings.
        clip: the model before hardening, on its device.
        source: what is trained on.
        fabric: objectives that couple the batch gather over its ranks.
        resumes: whether a checkpoint will put in what the objective trains along.
        progress: draw a progress bar where that takes long.
        notify: see `harden`.
    """
    part = recipe.objective
    kind: Any = objective_class(part.name)
    names = source.classnames or []
    if kind.trains_head:
        options: dict[str, Any] = {
            "head": start_head(recipe, clip, source, fit=not resumes, progress=progress),
            "head_start": part.head_start or "random",
        }
        if part.adversary is not None:
            options["adversary"] = part.adversary
        return kind(**options), {}
    if part.name == "fare":
        precision = "bf16" if recipe.precision == "bf16" else "fp32"
        return kind(original_encoder(clip, precision)), {}
    scales = {"logit_scale": clip.logit_scale, "temperature": part.temperature}
    if part.name == "imgcoadv":
        return kind(**scales, gather=_gather_over_ranks(fabric), add_up=_add_up_ranks(fabric)), {}
    if part.name == "coadv":
        dimensions = int(clip.config["model_cfg"]["embed_dim"])
        vectors = random_dictionary(len(names), dimensions, recipe.seed).to(clip.device)
        return kind(vectors, **scales, dictionary=part.dictionary or "fixed"), {}
    if kind.needs == "captions":
        gather = _gather_over_ranks(fabric)
        return kind(clip.tokenizer, clip.encode_texts, **scales, gather=gather), {}
    texts = text_anchors(clip, names, source.templates)
    if kind.needs == "names":
        workers = _workers(recipe, fabric.device)
        found = pseudo_labels(recipe, clip, source, texts, fabric, workers, progress=progress)
        if notify is not None and fabric.global_rank == 0:
            notify(found.sentence())
        return kind(texts.anchors, labels=found.labels, **scales), {"pseudo_labels": found.row()}
    return kind(texts.anchors, **scales), {}


def _gather_over_ranks(fabric: Fabric) -> Callable[[list[str]], list[str]]:
    def gather(texts: list[str]) -> list[str]:
        if fabric.world_size == 1:
            return texts
        parts: list[list[str]] = [[] for _ in range(fabric.world_size)]
        torch.distributed.all_gather_object(parts, texts)
        return [text for part in parts for text in part]

    return gather


def _add_up_ranks(fabric: Fabric) -> Callable[[Tensor], Tensor]:
    def add_up(rows: Tensor) -> Tensor:
        if fabric.world_size == 1:
            return rows
        from torch.distributed.nn import functional

        # Its backward adds the ranks' gradients up likewise.
        summed: Tensor = functional.all_reduce(rows)
        return summed

    return add_up


def global_batches(recipe: Recipe, ids: list[str], epoch: int) -> list[list[int]]:
    """Return the epoch's global batches as positions in `ids`: a function of (seed, epoch, ids) alone.

    The last batch may be smaller and weighs by its samples (traps 40): every sample is seen once an epoch.
    Only where the samples of a batch are contrasted with each other, a last batch of one is dropped.
    """
    order = randomness.ordered(recipe.seed, f"order/{epoch}", ids)
    batches = [order[i : i + recipe.batch] for i in range(0, len(order), recipe.batch)]
    least = 2 if objective_class(recipe.objective.name).couples_batch else 1
    return [batch for batch in batches if len(batch) >= least]


def total_steps(recipe: Recipe, per_epoch: int) -> int:
    """Return the optimiser steps of a whole run, at least one; `per_epoch` are those of one pass."""
    return max(1, round(per_epoch * recipe.epochs))


def _train(
    recipe: Recipe,
    run: Run,
    fabric: Fabric,
    progress: bool,
    notify: Callable[[str], None] | None,
) -> None:
    source = open_source(recipe)
    classes = source.classes
    if recipe.validation is not None and recipe.validation.every != "never":
        # A mistake in it must not show after the training. What chooses is no unseen class either.
        classes = open_held_out(recipe, source).classes
    clip = load_clip(recipe.model)
    device = fabric.device
    original_fingerprint = clip.fingerprint
    adaptation = recipe.adaptation.build()
    moving = rehearse(adaptation, clip.model)
    said = adaptation.sentence(moving)
    if said and notify is not None and fabric.global_rank == 0:
        notify(said)
    clip.to(device)

    objective, about = build_objective(
        recipe,
        clip,
        source,
        fabric,
        resumes=run.checkpoint.is_file(),
        progress=progress and fabric.global_rank == 0,
        notify=notify,
    )
    # Only now: probe, pseudo-labels and targets are the original model's.
    adapted = adaptation.apply(clip.model, recipe.seed)
    encoder = clip.image_encoder(precision="bf16" if recipe.precision == "bf16" else "fp32")
    learner = Learner(encoder, objective).to(device)
    if recipe.precision == "fp64":
        learner.double()

    trained = dict(adapted) | {
        # What it only keeps (an original tower) follows from the recipe.
        f"objective.{n}": p
        for n, p in objective.named_parameters()
        if p.requires_grad
    }
    groups = parameter_groups(list(trained.items()), recipe.optimiser.weight_decay)
    optimiser = _optimiser(recipe, groups)
    # Two modules that share parameters would be one too many for the wrapper's hooks: Learner is the one.
    wrapped, fabric_optimiser = fabric.setup(learner, optimiser)

    per_epoch = len(global_batches(recipe, source.ids, 0))
    if per_epoch == 0:
        raise UserError(
            f"objective {recipe.objective.name!r} needs batches of 2 images or more; the source has "
            f"{len(source.ids)}, batch is {recipe.batch}."
        )
    total = total_steps(recipe, per_epoch)
    epochs = math.ceil(total / per_epoch)
    warmup = warmup_steps(recipe.schedule.warmup, total)
    settings = StepSettings(
        threat=recipe.attack_threat(),
        steps=recipe.adversary.steps,
        step_size=recipe.step_size(),
        start=recipe.adversary.start,
        momentum=recipe.adversary.momentum,
        seed=recipe.seed,
        micro_batch=recipe.micro_batch,
    )

    tensors: dict[str, Tensor] = {name: p.data for name, p in trained.items()}
    position, best = Position(0, 0), None
    if run.checkpoint.is_file():
        position, best = load_checkpoint(run.checkpoint, parameters=tensors, optimiser=optimiser)
        check_position(run.checkpoint, position, epochs, per_epoch)

    def save(at: Position) -> None:
        if log:
            log.sync()  # a checkpoint never knows of steps that the log lost
            save_checkpoint(
                run.checkpoint, parameters=tensors, optimiser=optimiser, position=at, best=best
            )

    is_first = fabric.global_rank == 0
    done = position.epoch * per_epoch + position.step
    if is_first:
        run.cut_log(done)
    logged = run.read_log("validation") if is_first else []
    validated = fabric.broadcast({row["epoch"]: row for row in logged})
    with contextlib.ExitStack() as stack:
        request = stack.enter_context(deferred())
        log = stack.enter_context(run.append_log()) if is_first else None
        bar = stack.enter_context(step_progress(progress and is_first, recipe.name, total, done))
        if log:
            log.append(_start_line(recipe, source, trained, done, total) | about)
        for epoch in range(position.epoch, epochs):
            # The last one is cut where `epochs` is no whole number.
            batches = global_batches(recipe, source.ids, epoch)[: total - epoch * per_epoch]
            first = position.step if epoch == position.epoch else 0
            # A rank without a sample of a small last batch stands in with the first one, uncounted.
            rank, ranks = fabric.global_rank, fabric.world_size
            mine = [batch[rank::ranks] or batch[:1] for batch in batches[first:]]
            loader = data.batches_of(
                source.images,
                [[source.indices[i] for i in batch] for batch in mine],
                recipe_geometry(recipe, clip, source),
                _workers(recipe, device),
            )
            for step, loaded in enumerate(loader, start=first):
                rate = learning_rate(
                    done,
                    base=recipe.optimiser.lr,
                    warmup=warmup,
                    total=total,
                    kind=recipe.schedule.kind,
                )
                with adaptation.at_step(clip.model, recipe.seed, done):
                    loss = training_step(
                        fabric,
                        learner,
                        wrapped,
                        fabric_optimiser,
                        _training_batch(recipe, loaded, epoch, device),
                        epoch=epoch,
                        rate=rate,
                        global_size=len(batches[step]),
                        settings=settings,
                        counted=rank < len(batches[step]),
                    )
                done += 1
                if log:
                    log.append(
                        {
                            "event": "step",
                            "steps_done": done,
                            "epoch": epoch,
                            "loss": round(loss, 6),
                            "lr": rate,
                        }
                    )
                bar(done, loss)
                stop = _asked_of_any_rank(fabric, request.signal)
                ends = step + 1 == len(batches)
                if stop or ends or done % recipe.checkpoint_every == 0:
                    save(Position(epoch, step + 1))
                if stop:
                    fabric.barrier()  # no rank leaves before the checkpoint is written
                    raise Stopped(stop, f"after step {done} of {total}")

            last = epoch + 1 == epochs
            validation = recipe.validation
            if validation and (validation.every == "epoch" or (last and validation.every == "end")):
                # A run that was killed after it has its line, and does not measure twice.
                scores = validated.get(epoch)
                if scores is None:
                    # Ranks would not leave it together: several of them stop after the next step.
                    alone = fabric.world_size == 1
                    where = f"after step {done} of {total}"
                    with request.at_once(where) if alone else contextlib.nullcontext():
                        scores = validate(
                            recipe, clip, source, fabric, trained_head(objective, clip, source)
                        ).row()
                    if log:
                        log.append(
                            {"event": "validation", "steps_done": done, "epoch": epoch, **scores}
                        )
                if recipe.select == "best":
                    score = scores[recipe.chosen_by]
                    if best is None or score > best["score"]:
                        kept = {name: tensor.cpu().clone() for name, tensor in tensors.items()}
                        best = {"score": score, "epoch": epoch, "parameters": kept}
                    save(Position(epoch + 1, 0))

        if best is not None:
            with torch.no_grad():
                for name, tensor in best["parameters"].items():
                    tensors[name].copy_(tensor)
        if is_first:
            record = {
                "adaptation": adaptation.name,
                "settings": adaptation.settings(),
                "base": recipe.model,
                "base_fingerprint": original_fingerprint,
                "objective": objective.settings(),
                "recipe": recipe.name,
                # So that nobody counts it among unseen sets (traps 45).
                "source": {
                    "set": source.images.name,
                    "split": source.images.split,
                    "classes": sha256_json(classes),
                },
                "epoch": epochs - 1 if best is None else best["epoch"],
            }
            if recipe.precision == "fp64":
                learner.float()
            factors = adaptation.finish(clip.model)
            # Which cells are of this model. Anew: a checkpoint is laid in without a trace for the one kept.
            record["fingerprint"] = replace(clip).fingerprint
            head = trained_head(objective, clip, source)
            save_hardened(
                clip.model, clip.config, run.folder, record, clip.tokenizer, head, factors
            )
        fabric.barrier()


def _asked_of_any_rank(fabric: Fabric, signum: int) -> int:
    """Return the signal that this rank or another was sent, 0 for none: all stop after the same step."""
    if fabric.world_size == 1:
        return signum
    asked = torch.tensor(signum, device=fabric.device)
    return int(fabric.all_reduce(asked, reduce_op="max"))


def _optimiser(recipe: Recipe, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    settings = recipe.optimiser
    if settings.name == "sgd":
        return torch.optim.SGD(groups, lr=settings.lr, momentum=settings.momentum)
    return torch.optim.AdamW(groups, lr=settings.lr, betas=settings.betas)


def _workers(recipe: Recipe, device: torch.device) -> int:
    if recipe.workers == "auto":
        return 0 if device.type == "cpu" else min(8, os.cpu_count() or 1)
    return recipe.workers


def _training_batch(
    recipe: Recipe, loaded: data.Batch, epoch: int, device: torch.device
) -> TrainingBatch:
    images = to_unit(loaded.images.to(device, non_blocking=True))
    if recipe.precision == "fp64":
        images = images.double()
    captions = None
    if loaded.captions is not None:
        captions = [
            # One of an image's captions, drawn anew each epoch.
            texts[randomness.sample_key(recipe.seed, f"caption/{epoch}", sample) % len(texts)]
            for sample, texts in zip(loaded.ids, loaded.captions, strict=True)
        ]
    labels = None if loaded.labels is None else loaded.labels.to(device)
    return TrainingBatch(ids=loaded.ids, images=images, labels=labels, captions=captions)


def _start_line(
    recipe: Recipe, source: SourceData, trained: dict[str, Any], done: int, total: int
) -> dict[str, Any]:
    return {
        "event": "start",
        "steps_done": done,
        "steps": total,
        "images": len(source.indices),
        "trained_numbers": sum(p.numel() for p in trained.values()),
        "adapted_numbers": sum(
            p.numel() for name, p in trained.items() if name.startswith("visual.")
        ),
        "templates": source.templates,
        "versions": versions(),
        "threads": torch.get_num_threads(),
        "precision": recipe.precision,
    }


@contextlib.contextmanager
def step_progress(show: bool, name: str, total: int, done: int) -> Iterator[Any]:
    """Draw a bar of optimiser steps; what is given is called with (steps done, loss), if `show`."""
    if not show:
        yield lambda *_: None
        return
    with progress_bar("steps, loss {task.fields[loss]}") as bar:
        task = bar.add_task(name, total=total, completed=done, loss="-")
        yield lambda at, loss: bar.update(task, completed=at, loss=f"{loss:.3f}")
