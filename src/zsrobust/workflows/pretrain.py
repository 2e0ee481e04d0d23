"""Train a small CLIP from scratch on captioned images: the recipe from top to bottom.

recipe -> run folder -> captioned set -> pixels and texts of a batch -> contrastive step -> checkpoint -> model/

Letters: N images of a batch, U different texts of it, D embedding; images (N, 3, H, W) in [0, 1].
Order, captions, dropped patches and the first weights are functions of (seed, step or epoch, sample id),
so that a run that was stopped goes on bit by bit, on a CPU with the same number of threads.
"""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from zsrobust import data, randomness
from zsrobust.attacks.engine import full_precision
from zsrobust.errors import UserError
from zsrobust.files import folder_lock, remove_partials
from zsrobust.interrupt import Stopped, deferred
from zsrobust.machine import training_device, versions
from zsrobust.models import ZeroShotClassifier, new_clip, save_open_clip
from zsrobust.models.classifier import DEFAULT_TEMPLATES
from zsrobust.preprocess import to_unit
from zsrobust.training.checkpoint import (
    Position,
    check_position,
    load_checkpoint,
    save_checkpoint,
)
from zsrobust.training.loop import determinism, step_progress
from zsrobust.training.run import RunFolder
from zsrobust.training.schedule import learning_rate, warmup_steps
from zsrobust.training.step import parameter_groups

if TYPE_CHECKING:
    from PIL.Image import Image

    from zsrobust.data import ImageSet
    from zsrobust.models import Clip
    from zsrobust.workflows.pretrain_recipe import PretrainRecipe, ZeroShotSet

_LARGEST_SCALE = math.log(100.0)  # of CLIP, as logit_scale keeps it
_EPS = 1e-6  # of AdamW, CLIP's
_VALIDATION_BATCH = 256


def pretrain(
    recipe: PretrainRecipe, out: str | Path | None = None, *, progress: bool = False
) -> Path:
    """Train a CLIP to the recipe's end, or go on with a run that was stopped; return the run's folder.

    Its `model/` is an open_clip folder (`local-dir:`) with float16 weights.

    Args:
        recipe: see `load_pretrain_recipe`.
        out: the run's folder; default `runs/` and the recipe's name.
        progress: draw a progress bar on the terminal.

    Raises:
        UserError: if the recipe and the data do not fit together, open_clip cannot build the
            architecture, or the folder holds another recipe's run.
        EnvironmentFault: if the folder cannot be written or another process works in it.
        FloatingPointError: if loss or gradient are not finite; no weight has been touched then.
        KeyboardInterrupt: on Ctrl-C, after the step and its checkpoint; `Stopped` under the command
            line. SIGTERM likewise.
    """
    folder = Path(out) if out is not None else Path("runs") / recipe.name
    device = training_device(recipe.device, "pretraining")
    with folder_lock(folder):
        run = RunFolder.open(recipe, folder)
        remove_partials(run.model)
        if not run.complete:
            with determinism(device, recipe.threads), full_precision():
                _train(recipe, run, device, progress)
        run.finish()
    return folder


def contrastive_loss(images: Tensor, texts: Tensor, text_of: Tensor, scale: Tensor) -> Tensor:
    """Return CLIP's symmetric contrastive loss, where images may share a text; a scalar in nats.

    Image -> text: cross-entropy over the U texts, mean over images. Text -> image: -log softmax over the
    N images, mean over a text's own images, then over texts. The loss is the mean of the two.

    Args:
        images: (N, D) unit rows.
        texts: (U, D) unit rows, all different texts.
        text_of: (N,) int64 in [0, U), the number of each image's text; every text has an image.
        scale: scalar > 0, the inverse temperature.

    Source: Radford et al., ICML 2021, arXiv:2103.00020, figure 3. Difference: equal captions are one
        text; with all captions different the two are the same.
    """
    logits = scale * images @ texts.T  # (N, U)
    to_text = functional.cross_entropy(logits, text_of)
    own = logits.log_softmax(dim=0).gather(1, text_of[:, None])[:, 0]  # (N,)
    counts = torch.bincount(text_of, minlength=len(texts)).to(own.dtype)  # (U,)
    to_image = -(own / counts[text_of]).sum() / len(texts)
    return (to_text + to_image) / 2


@dataclass(frozen=True)
class Source:
    """The captioned images of a run. A position is a sample's number in the set's fixed order.

    Attributes:
        images: the set.
        indices: of the used samples in the set, by position.
        tokens: (T, L) int64, all different texts of the source; equal token ids are one text.
        texts: by position, the row of each of its captions in `tokens`.
    """

    images: ImageSet
    indices: list[int]
    tokens: Tensor
    texts: list[list[int]]
    ids: list[str] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "ids", [self.images.ids[i] for i in self.indices])

    def batches(self, recipe: PretrainRecipe, epoch: int) -> list[list[int]]:
        """Return the epoch's batches of positions: a function of (seed, epoch, ids) alone.

        An incomplete last batch would contrast fewer images: it is left out (traps 40), each epoch
        another one.
        """
        order = randomness.ordered(recipe.seed, f"order/{epoch}", self.ids)
        full = len(order) - len(order) % recipe.batch
        return [order[at : at + recipe.batch] for at in range(0, full, recipe.batch)]

    def texts_of(self, batch: list[int], seed: int, epoch: int) -> tuple[Tensor, Tensor]:
        """Return the batch's different texts (U, L) and the number of each image's among them (N,).

        Of several captions of an image one is drawn, by (seed, epoch, id).
        """
        rows = []
        for position in batch:
            own = self.texts[position]
            draw = randomness.sample_key(seed, f"caption/{epoch}", self.ids[position])
            rows.append(own[draw % len(own)])
        different, text_of = torch.unique(torch.tensor(rows), return_inverse=True)
        return self.tokens[different], text_of


def open_source(recipe: PretrainRecipe, clip: Clip) -> Source:
    """Open the source set and tokenise its captions.

    Raises:
        UserError: if an image has no caption, there are fewer images than `source.limit` or than one
            batch, or a token lies beyond the text tower's vocabulary.
    """
    wanted = recipe.source
    images = data.open_set(wanted.set, wanted.split)
    if wanted.limit is not None and wanted.limit > len(images):
        raise UserError(
            f"source.limit is {wanted.limit}, set {wanted.set!r} holds {len(images)} images."
        )
    indices = images.first(wanted.limit)
    if len(indices) < recipe.batch:
        raise UserError(
            f"batch is {recipe.batch}, the source has {len(indices)} images: lower batch, or raise "
            "source.limit."
        )
    captions = [images.captions(i) or [] for i in indices]
    bare = [images.ids[i] for i, texts in zip(indices, captions, strict=True) if not texts]
    if bare:
        raise UserError(
            f"{len(bare)} of {len(indices)} images of set {wanted.set!r} have no caption ({bare[0]}): "
            "put a .txt beside each image."
        )
    tokens, row_of = _tokenise(clip, [text for texts in captions for text in texts])
    return Source(images, indices, tokens, [[row_of[text] for text in texts] for texts in captions])


def _tokenise(clip: Clip, captions: list[str]) -> tuple[Tensor, dict[str, int]]:
    """Return the different rows of token ids (T, L), and the row of each caption."""
    different = list(dict.fromkeys(captions))
    encoded = torch.cat(
        [clip.tokenizer(different[at : at + 1024]) for at in range(0, len(different), 1024)]
    )
    # The tokenizer lower-cases and cuts: different captions may have equal ids.
    tokens, row_of = torch.unique(encoded, dim=0, return_inverse=True)
    model = cast(Any, clip.model)
    table = getattr(getattr(model, "text", model), "token_embedding", None)
    if isinstance(table, nn.Embedding) and int(tokens.max()) >= table.num_embeddings:
        raise UserError(
            f"a caption has token {int(tokens.max())}, the text tower knows {table.num_embeddings}: "
            "raise architecture.text_cfg.vocab_size."
        )
    return tokens, dict(zip(different, row_of.tolist(), strict=True))


def load_pixels(
    source: Source,
    batches: Iterable[list[int]],
    geometry: Callable[[Image], Image],
    *,
    workers: int,
    keep: bool,
) -> Iterator[Tensor]:
    """Return the pixels of each batch of positions, (N, 3, H, W) uint8, in order.

    Args:
        source: read by position.
        batches: taken as they are needed, some ahead of what is returned.
        geometry: resize and crop; all pictures get one size.
        workers: processes that load.
        keep: hold everything that was loaded, and load no picture twice.
    """
    if not keep:
        lists = ([source.indices[p] for p in batch] for batch in batches)
        for loaded in data.batches_of(source.images, lists, geometry, workers):
            yield loaded.images
        return
    ahead, here = itertools.tee(batches)

    def missing() -> Iterator[list[int]]:
        asked: set[int] = set()
        for batch in ahead:
            new = [p for p in batch if p not in asked]
            asked.update(new)
            if new:
                yield [source.indices[p] for p in new]
            if len(asked) == len(source.indices):
                return

    loader = data.batches_of(source.images, missing(), geometry, workers)
    pixels: Tensor | None = None
    there = [False] * len(source.indices)
    for batch in here:
        # Everything that was asked for before this batch has come, so both sides see the same as new.
        new = [p for p in batch if not there[p]]
        if new:
            loaded = next(loader)
            if pixels is None:
                pixels = loaded.images.new_empty((len(there), *loaded.images.shape[1:]))
            pixels[torch.tensor(new)] = loaded.images
            for p in new:
                there[p] = True
        yield cast(Tensor, pixels)[torch.tensor(batch)]


def _train(
    recipe: PretrainRecipe, run: RunFolder[PretrainRecipe], device: torch.device, progress: bool
) -> None:
    clip = new_clip(recipe.config(), recipe.seed, recipe.name)
    source = open_source(recipe, clip)
    validations = [open_validation(wanted, clip) for wanted in recipe.validation]
    model = cast(Any, clip.to(device).model)
    dropping = _patch_dropout(model, recipe)
    encoder = clip.image_encoder()

    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    parameters = [p for _, p in named]
    groups = parameter_groups(named, recipe.optimiser.weight_decay)
    # One pass over memory instead of a dozen: the token table alone is millions of numbers.
    optimiser = torch.optim.AdamW(
        groups, lr=0.0, betas=recipe.optimiser.betas, eps=_EPS, fused=True
    )

    per_epoch = len(source.ids) // recipe.batch
    total = per_epoch * recipe.epochs
    warmup = warmup_steps(recipe.schedule.warmup, total)
    full_from = total - round(recipe.full_patches * total)

    tensors: dict[str, Tensor] = model.state_dict()  # with batch norm's statistics, which move here
    done = 0
    if run.checkpoint.is_file():
        at, _ = load_checkpoint(run.checkpoint, parameters=tensors, optimiser=optimiser)
        check_position(run.checkpoint, at, recipe.epochs, per_epoch)
        done = at.epoch * per_epoch + at.step
    run.cut_log(done)

    first = done
    plan, ahead = itertools.tee(_batches(recipe, source, per_epoch, first))
    pixels = load_pixels(
        source,
        (batch for _, batch in ahead),
        clip.preprocess.geometry(),
        workers=recipe.workers,
        keep=recipe.keep_pixels,
    )
    measured = {row["steps_done"] for row in run.read_log("validation")}
    with (
        deferred() as request,
        run.append_log() as log,
        step_progress(progress, recipe.name, total, done) as bar,
    ):

        def measure() -> None:
            every = recipe.validate_every
            due = done == total or (every is not None and done > 0 and done % every == 0)
            if validations and due and done not in measured:
                with request.at_once(f"after step {done} of {total}"):
                    found = _validate(clip, validations)
                log.append({"event": "validation", "steps_done": done, **found})
            model.train()

        log.append(_start_line(source, parameters, done, total))
        measure()  # which a run that was killed after its checkpoint had still to do
        for (epoch, batch), loaded in zip(plan, pixels, strict=True):
            rate = learning_rate(
                done,
                base=recipe.optimiser.lr,
                warmup=warmup,
                total=total,
                kind=recipe.schedule.kind,
            )
            for group in optimiser.param_groups:
                group["lr"] = rate
            optimiser.zero_grad(set_to_none=True)

            tokens, text_of = source.texts_of(batch, recipe.seed, epoch)
            with dropping(done, drop=done < full_from):
                features = encoder(to_unit(loaded.to(device)))  # (N, D)
            texts = model.encode_text(tokens.to(device), normalize=False)  # (U, D)
            loss = contrastive_loss(
                functional.normalize(features, dim=-1),
                functional.normalize(texts.float(), dim=-1),
                text_of.to(device),
                model.logit_scale.exp(),
            )
            loss.backward()

            norm = _clip_gradient(parameters, recipe.gradient_clip)
            # One wait for the device a step.
            value, length = torch.stack([loss.detach(), norm]).tolist()
            if not (value < float("inf") and length < float("inf")):
                raise FloatingPointError(
                    f"loss {value:.4g}, gradient norm {length:.4g} at learning rate {rate:.3g}, step "
                    f"{done}: lower optimiser.lr"
                )
            optimiser.step()
            with torch.no_grad():
                model.logit_scale.clamp_(0.0, _LARGEST_SCALE)
            done += 1
            log.append(
                {
                    "event": "step",
                    "steps_done": done,
                    "epoch": epoch,
                    "loss": round(value, 6),
                    "lr": rate,
                    "scale": round(float(model.logit_scale.detach().exp()), 4),
                    "texts": len(tokens),
                }
            )
            bar(done, value)

            stop = request.signal
            if stop or done == total or done % recipe.checkpoint_every == 0:
                log.sync()  # a checkpoint never knows of steps that the log lost
                save_checkpoint(
                    run.checkpoint,
                    parameters=tensors,
                    optimiser=optimiser,
                    position=Position(*divmod(done, per_epoch)),
                    best=None,
                )
            if stop:
                raise Stopped(stop, f"after step {done} of {total}")
            measure()
        save_open_clip(model, clip.config, run.model, clip.tokenizer, stored="fp16")


def _batches(
    recipe: PretrainRecipe, source: Source, per_epoch: int, first: int
) -> Iterator[tuple[int, list[int]]]:
    """Yield (epoch, batch) of every step from `first` on."""
    for epoch in range(first // per_epoch, recipe.epochs):
        start = max(first - epoch * per_epoch, 0)
        yield from ((epoch, batch) for batch in source.batches(recipe, epoch)[start:])


def _clip_gradient(parameters: list[nn.Parameter], largest: float | None) -> Tensor:
    """Shrink the gradient to norm `largest` if it is longer; return the norm it had."""
    if largest is not None:
        return nn.utils.clip_grad_norm_(parameters, largest)
    return nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])


def _patch_dropout(model: Any, recipe: PretrainRecipe) -> Any:
    """Put open_clip's patch dropout into the image tower; return the context of a step's forward.

    It draws from torch's global stream, which is seeded by (seed, step) inside and left as it was.
    """
    from open_clip.transformer import PatchDropout, VisionTransformer

    if recipe.patch_dropout == 0:
        return lambda *_, **__: contextlib.nullcontext()
    if not isinstance(model.visual, VisionTransformer):
        raise UserError(
            f"patch_dropout {recipe.patch_dropout}: only open_clip's ViT can drop patches; leave it out "
            "for this architecture."
        )
    layer = PatchDropout(recipe.patch_dropout)
    model.visual.patch_dropout = layer

    @contextlib.contextmanager
    def dropping(step: int, *, drop: bool) -> Iterator[None]:
        layer.prob = recipe.patch_dropout if drop else 0.0
        with torch.random.fork_rng(devices=[]):
            key = randomness.sample_key(recipe.seed, "patches", str(step))
            torch.manual_seed(key)  # noqa: TID251 - the layer draws from the global stream, forked here
            yield

    return dropping


@dataclass(frozen=True)
class Validation:
    """A labelled set, opened."""

    name: str
    images: ImageSet
    batches: list[tuple[Tensor, Tensor]]
    """Pixels (N, 3, H, W) uint8 and labels (N,)."""


def open_validation(wanted: ZeroShotSet, clip: Clip) -> Validation:
    """Open a set of the recipe's validation and load its pixels.

    Raises:
        UserError: if it has no labels or no class names.
    """
    images = data.open_set(wanted.set, wanted.split)
    if images.labels is None or images.classnames is None:
        raise UserError(
            f"validation set {wanted.set!r} has no labels and class names: it needs both."
        )
    indices = images.first(wanted.limit)
    loaded = data.batches(images, indices, clip.preprocess.geometry(), _VALIDATION_BATCH)
    batches = [(batch.images, cast(Tensor, batch.labels)) for batch in loaded]
    return Validation(f"{images.name}#{images.split}", images, batches)


def _validate(clip: Clip, validations: list[Validation]) -> dict[str, Any]:
    """Return the log's entries: zero-shot clean accuracy in [0, 1] a set, and their mean."""
    clip.model.eval()
    found = {v.name: zero_shot_accuracy(clip, v) for v in validations}
    return {"accuracy": found, "mean": sum(found.values()) / len(found)}


@torch.no_grad()
def zero_shot_accuracy(clip: Clip, validation: Validation) -> float:
    """Return the fraction of images whose class, or one with the same text, has the largest logit."""
    images = validation.images
    names = cast(list[str], images.classnames)
    classifier = ZeroShotClassifier.from_texts(clip, names, images.templates or DEFAULT_TEMPLATES)
    right = count = 0
    for pixels, labels in validation.batches:
        said = classifier(to_unit(pixels.to(clip.device))).argmax(dim=1)
        same = classifier.groups[said] == classifier.groups[labels.to(clip.device)]
        right += int(same.sum())
        count += len(labels)
    return right / count


def _start_line(
    source: Source, parameters: list[nn.Parameter], done: int, total: int
) -> dict[str, Any]:
    return {
        "event": "start",
        "steps_done": done,
        "steps": total,
        "images": len(source.ids),
        "texts": len(source.tokens),
        "trained_numbers": sum(p.numel() for p in parameters),
        "versions": versions(),
        "threads": torch.get_num_threads(),
    }
