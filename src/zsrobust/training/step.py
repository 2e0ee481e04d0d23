"""The training step, read from top to bottom.

    batch (clean images, their labels or captions)
    -> the adversary maximises the objective within the threat, on the bare encoder, parameters frozen
    -> the learner's loss on the adversarial images, through the wrapper that synchronises ranks
    -> optimiser step

Letters: N samples of a micro-batch; images (N, 3, H, W) in [0, 1]; losses (N,).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from zsrobust import randomness
from zsrobust.attacks.pgd import frozen, maximise
from zsrobust.errors import UserError
from zsrobust.objectives.objective import Objective, TrainingBatch
from zsrobust.threat import Threat

if TYPE_CHECKING:
    from lightning_fabric import Fabric


class Learner(nn.Module):
    """Encoder and objective as one module: what the data-parallel wrapper wraps."""

    def __init__(self, encoder: nn.Module, objective: Objective) -> None:
        super().__init__()
        self.encoder = encoder
        self.objective = objective

    def forward(self, images: Tensor, batch: TrainingBatch) -> Tensor:
        """Return the learner's losses (N,) at `images`."""
        return self.objective.losses(self.encoder, images, batch)

    def attack_losses(self, images: Tensor, batch: TrainingBatch) -> Tensor:
        """Return what the adversary maximises, (N,)."""
        return self.objective.attack_losses(self.encoder, images, batch)


@dataclass(frozen=True, kw_only=True)
class StepSettings:
    """What a step needs beside model and batch."""

    threat: Threat
    steps: int
    step_size: float
    start: str
    momentum: float
    seed: int
    micro_batch: int | None


def training_step(
    fabric: Fabric,
    learner: Learner,
    wrapped: nn.Module,
    optimiser: torch.optim.Optimizer,
    batch: TrainingBatch,
    *,
    epoch: int,
    rate: float,
    global_size: int,
    settings: StepSettings,
    counted: bool = True,
) -> float:
    """Take one optimiser step and return the mean loss over the global batch, in nats.

    Args:
        fabric: device, precision and processes.
        learner: the bare module, for the attack: a wrapper's hooks may fire once a backward (traps 12).
        wrapped: the same module as Fabric wraps it, for the learner's forward.
        optimiser: over the adapted parameters.
        batch: this rank's samples of the global batch.
        epoch: noise is a function of (seed, epoch, sample id).
        rate: the learning rate of this step.
        global_size: samples of the global batch over all ranks.
        settings: the adversary.
        counted: False where a rank has no sample of a small last batch and stands in with another's: it
            takes part in the synchronisation with weight 0.

    Raises:
        FloatingPointError: if the loss or a gradient is not finite, on all ranks together; no weight
            has been touched then.
    """
    for group in optimiser.param_groups:
        group["lr"] = rate
    optimiser.zero_grad(set_to_none=True)
    # In eval mode throughout: the attack must see the network that is evaluated, batch-norm statistics
    # never move, and no CLIP is fine-tuned with dropout here (traps 10).
    learner.eval()

    total = torch.zeros((), device=batch.images.device, dtype=batch.images.dtype)
    micro_batches = list(_micro_batches(batch, settings.micro_batch))
    for number, micro in enumerate(micro_batches):
        micro = learner.objective.prepare(micro, learner.encoder)  # noqa: PLW2901 - the batch with its targets
        images = micro.images
        if learner.objective.adversarial:
            images = _adversarial(learner, micro, epoch, settings)

        last = number == len(micro_batches) - 1
        with fabric.no_backward_sync(wrapped, enabled=not last):
            losses = wrapped(images, micro)  # (N,)
            # Data parallelism averages gradients over ranks; this weight makes that the mean over the
            # global batch whatever each rank holds of it (traps 40).
            weight = fabric.world_size / global_size if counted else 0.0
            loss = losses.sum() * weight
            fabric.backward(loss)
        total += losses.detach().sum() * float(counted)

    # Gradients are those of all ranks by now, so one rank's NaN would be everybody's: all look at the sum.
    gradients = [p.grad for p in learner.parameters() if p.grad is not None]
    norm = torch.nn.utils.get_total_norm(gradients)
    summed = fabric.all_reduce(total, reduce_op="sum")
    mean, length = (
        torch.stack([summed / global_size, norm.to(summed)])
    ).tolist()  # one sync a step
    if not (mean < float("inf") and length < float("inf")):
        raise FloatingPointError(
            f"loss {mean:.4g}, gradient norm {length:.4g} at learning rate {rate:.3g}: lower optimiser.lr, "
            "or the precision is too low"
        )
    optimiser.step()
    return float(mean)


def _adversarial(
    learner: Learner, batch: TrainingBatch, epoch: int, settings: StepSettings
) -> Tensor:
    start = None
    if settings.start == "uniform":
        keys = randomness.sample_keys(settings.seed, f"train/{epoch}", batch.ids)
        keys = keys.to(batch.images.device)
        start = randomness.ball_start(
            keys, torch.zeros_like(keys), batch.images, settings.threat.norm, settings.threat.eps
        )
    with frozen(learner):
        return maximise(
            lambda images: learner.attack_losses(images, batch),
            batch.images,
            settings.threat,
            steps=settings.steps,
            step_size=settings.step_size,
            start=start,
            momentum=settings.momentum,
        )


def _micro_batches(batch: TrainingBatch, size: int | None) -> Iterator[TrainingBatch]:
    count = len(batch.ids)
    if size is None or size >= count:
        yield batch
        return
    if batch.targets:
        raise UserError("a batch is split before its targets are made")
    for i in range(0, count, size):
        part = slice(i, i + size)
        yield TrainingBatch(
            ids=batch.ids[part],
            images=batch.images[part],
            labels=None if batch.labels is None else batch.labels[part],
            captions=None if batch.captions is None else batch.captions[part],
        )


def parameter_groups(
    named: list[tuple[str, nn.Parameter]], weight_decay: float
) -> list[dict[str, Any]]:
    """Split parameters into those that decay and those that do not.

    Biases, norms, class and position embeddings, prompts and the logit scale do not (traps 44): all
    tensors of one dimension or less, and those named so.
    """
    exempt = ("class_embedding", "positional_embedding", "pos_embed", "cls_token", "prompt")
    decays: list[nn.Parameter] = []
    rests: list[nn.Parameter] = []
    for name, parameter in named:
        free = parameter.ndim <= 1 or any(part in name for part in exempt)
        (rests if free else decays).append(parameter)
    return [
        {"params": group, "weight_decay": decay}
        for group, decay in ((decays, weight_decay), (rests, 0.0))
        if group
    ]
