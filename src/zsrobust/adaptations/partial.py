"""Partial fine-tuning: the end of the image tower moves, by blocks, by a budget, or by tensors."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, Any, ClassVar, cast

from zsrobust.adaptations.adaptation import (
    Adaptation,
    Moving,
    check_whole,
    free,
    vision_transformer,
)
from zsrobust.errors import UserError

if TYPE_CHECKING:
    from torch import nn

# A block's modules as OpenAI's CLIP has them, on which the authors counted; open_clip has ln_1 first. What
# OpenAI's blocks have not stands behind what it belongs to.
_IN_A_BLOCK = ("attn", "ln_attn", "ls_1", "ln_1", "mlp", "ls_2", "ln_2")
# One-dimensional, but neither a norm nor a bias.
_NO_NORM = "class_embedding"


@dataclass(frozen=True, slots=True)
class Partial(Adaptation):
    """The end of an open_clip VisionTransformer; exactly one of the settings is given.

    Args:
        blocks: the last so many blocks and all that follows them (final norm, projection); at least 1.
        budget: norms and biases (the one-dimensional tensors, but for the class embedding) from the end
            backwards, whole tensors, as many as come nearest to this count of numbers, at least one tensor;
            for comparison with a prompt, since even one block is far larger.
        tensors: the last so many tensors in the order of the authors' code (facts 3.3), where the
            projection is among the first; -1 is all of them.

    Raises:
        UserError: if not exactly one is given, or its value is out of range.

    Source: Mao et al., ICLR 2023 (facts 3.3 and 8). Differences: `blocks` and `budget` are ours; the
    authors' code knows `tensors` alone.
    """

    name: ClassVar[str] = "partial"

    blocks: int | None = None
    budget: int | None = None
    tensors: int | None = None

    def __post_init__(self) -> None:
        given = [key for key, value in self._given().items() if value is not None]
        if len(given) != 1:
            raise UserError(
                "adaptation 'partial' needs exactly one of blocks, budget and tensors, got "
                f"{' and '.join(given) or 'none'}: write for instance blocks: 1."
            )
        if self.tensors != -1:
            check_whole(self.name, given[0], self._given()[given[0]], 1)

    def _given(self) -> dict[str, int | None]:
        return {"blocks": self.blocks, "budget": self.budget, "tensors": self.tensors}

    def settings(self) -> dict[str, Any]:
        """Return the one setting that is given."""
        return {key: value for key, value in self._given().items() if value is not None}

    def apply(self, model: nn.Module, seed: int = 0) -> Moving:
        """Free the end of the tower; see `Adaptation.apply`. Nothing is drawn."""
        del seed
        tower = vision_transformer(model, self.name)
        if self.blocks is not None:
            count = len(tower.transformer.resblocks)
            if self.blocks > count:
                raise UserError(
                    f"adaptation 'partial': blocks is {self.blocks}, the tower has {count}; give 1 to "
                    f"{count}, or use 'full'."
                )
            chosen = _from_block(tower, count - self.blocks)
        elif self.budget is not None:
            chosen = _within(list(authors_order(tower)), self.budget)
        else:
            chosen = list(authors_order(tower))
            count = len(chosen) if self.tensors == -1 else cast(int, self.tensors)
            if count > len(chosen):
                raise UserError(
                    f"adaptation 'partial': tensors is {count}, the tower has {len(chosen)}; give 1 to "
                    f"{len(chosen)}, or -1 for all of them."
                )
            chosen = chosen[-count:]
        return free((f"visual.{name}", parameter) for name, parameter in chosen)

    def sentence(self, moving: Moving) -> str:
        """Return how much moves, which a budget meets only nearly."""
        count = sum(parameter.numel() for _, parameter in moving)
        asked = "" if self.budget is None else f" (the budget is {self.budget:,})"
        return f"partial fine-tuning: {len(moving)} tensors, {count:,} numbers move{asked}"


def authors_order(tower: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Yield the parameters of open_clip's VisionTransformer in the order that OpenAI's CLIP has them in.

    First the tower's own tensors (class embedding, positions, projection), then patch convolution, ln_pre,
    the blocks (each attention, ln_1, MLP, ln_2), ln_post (facts 3.3).
    """
    yield from tower.named_parameters(recurse=False)
    for name, child in tower.named_children():
        if name != "transformer":
            yield from child.named_parameters(prefix=name)
            continue
        blocks: Any = child.resblocks
        for number, block in enumerate(blocks):
            prefix = f"transformer.resblocks.{number}"
            parts = dict(block.named_children())
            ranked = [part for part in _IN_A_BLOCK if part in parts]
            for part in [*ranked, *(part for part in parts if part not in ranked)]:
                yield from parts[part].named_parameters(prefix=f"{prefix}.{part}")


def _from_block(tower: nn.Module, first: int) -> Moving:
    """Return the parameters of the blocks from number `first` on and of all that images meet after them."""
    before = ["class_embedding", "positional_embedding", "conv1.", "ln_pre."]
    before += [f"transformer.resblocks.{number}." for number in range(first)]
    return [
        (name, parameter)
        for name, parameter in authors_order(tower)
        if not name.startswith(tuple(before))
    ]


def _within(ordered: Moving, budget: int) -> Moving:
    """Return so many norms and biases from the end that their numbers come nearest to `budget`."""
    small = [(n, p) for n, p in reversed(ordered) if p.ndim == 1 and n != _NO_NORM]
    sums = list(accumulate(parameter.numel() for _, parameter in small))
    count = min(range(len(sums)), key=lambda i: abs(sums[i] - budget)) + 1
    return small[:count]
