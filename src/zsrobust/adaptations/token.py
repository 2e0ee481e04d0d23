"""Token prompts: trained tokens beside those of the patches, the same for all images."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from zsrobust import randomness
from zsrobust.adaptations.adaptation import (
    check_choice,
    check_number,
    check_transformer,
    check_whole,
)
from zsrobust.adaptations.prompts import Prompting


@dataclass(frozen=True, slots=True)
class Token(Prompting):
    """n tokens in the sequence of an open_clip VisionTransformer, whose own weights stay frozen.

    At the input they join [class, patches] after position embeddings and before ln_pre, so that they go
    through it and all blocks. At every block there are n of their own: those of the block before are dropped
    (their outputs reach nothing else than the next block), and those beyond the first enter without ln_pre,
    of which a tower has one. After the last block they are dropped, so that a pool that averages tokens, or
    attends to them, sees patches alone, as without a prompt.

    Args:
        tokens: n, >= 0; 0 adds nothing at all.
        where: "append" puts them behind the patches, "prepend" between class token and patches. Attention
            knows no order, so that the two differ by rounding alone.
        depth: "input", or "every-block".
        position: "none", or "trained": a position embedding of their own, from zero, added to them. It only
            lets their sum move at twice the rate.
        std: standard deviation of the normal start, >= 0.

    Raises:
        UserError: if a value is out of range.

    Source: Mao et al., ICLR 2023, as in the authors' code (facts 3.5): appended, at the input, without position
    embedding, standard normal; n times the tower's width numbers. "every-block" is VPT-deep: Jia et al., "Visual
    Prompt Tuning", ECCV 2022, arXiv:2203.12119.
    """

    name: ClassVar[str] = "token"

    tokens: int = 5
    where: str = "append"
    depth: str = "input"
    position: str = "none"
    std: float = 1.0

    def __post_init__(self) -> None:
        check_whole(self.name, "tokens", self.tokens, 0)
        check_choice(self.name, "where", self.where, ("append", "prepend"))
        check_choice(self.name, "depth", self.depth, ("input", "every-block"))
        check_choice(self.name, "position", self.position, ("none", "trained"))
        check_number(self.name, "std", self.std, above=False)

    def attach(self, model: nn.Module, seed: int) -> None:
        """Put the tokens into the tower; see `Prompting.attach`."""
        tower = check_transformer(model.visual, self.name)
        if not self.tokens:
            return
        blocks = tower.transformer.resblocks
        layers = len(blocks) if self.depth == "every-block" else 1
        prompt = TokenPrompt(
            (layers, self.tokens, tower.transformer.width), self.where, self.position == "trained"
        )
        prompt.start(self.std, seed)
        like = tower.class_embedding
        tower.token_prompt = prompt.to(like.device, like.dtype).eval()
        # Bound methods of the submodule: a deep copy of the tower calls its own copy.
        tower.ln_pre.register_forward_pre_hook(prompt.into_input)
        for number in range(1, layers):
            blocks[number].register_forward_pre_hook(partial(prompt.into_block, number))
        tower.transformer.register_forward_hook(prompt.out_of_sequence)


class TokenPrompt(nn.Module):
    """The numbers of a token prompt, and how they enter a sequence.

    Letters: N images, P patches, n tokens, L blocks that tokens enter at, D width.

    Args:
        shape: (L, n, D).
        where: see `Token`.
        positioned: whether they have a position embedding of their own.
    """

    def __init__(self, shape: tuple[int, int, int], where: str, positioned: bool) -> None:
        super().__init__()
        self.where = where
        self.tokens = nn.Parameter(torch.zeros(shape))
        self.position = nn.Parameter(torch.zeros(shape)) if positioned else None

    def start(self, std: float, seed: int) -> None:
        """Set all tokens to normal ones, functions of (seed, block, number of the token)."""
        layers, count, width = self.tokens.shape
        ids = [f"{layer}/{number}" for layer in range(layers) for number in range(count)]
        keys = randomness.sample_keys(seed, "token-prompt", ids)
        drawn = randomness.normal(keys, torch.zeros_like(keys), (width,))
        with torch.no_grad():
            self.tokens.copy_((std * drawn).reshape(layers, count, width))

    def facts(self) -> dict[str, Any]:
        """Return what shapes the features beside the numbers, as JSON."""
        return {"where": self.where}

    def restore(self, facts: dict[str, Any]) -> None:
        """Compare with `facts`: all of them follow from the settings.

        Raises:
            ValueError: if they differ.
        """
        if facts != self.facts():
            raise ValueError("the prompt is another one than the settings describe")

    def into_input(self, norm: nn.Module, given: tuple[Any, ...]) -> tuple[Any, ...]:
        """Put the first tokens into (N, 1 + P, D), what ln_pre is called with. A hook."""
        del norm
        return (self._with(given[0], 0), *given[1:])

    def into_block(self, number: int, block: nn.Module, given: tuple[Any, ...]) -> tuple[Any, ...]:
        """Put block `number`'s tokens in the place of those before, (N, 1 + P + n, D). A hook."""
        del block
        return (self._with(self._without(given[0]), number), *given[1:])

    def out_of_sequence(self, transformer: nn.Module, given: Any, tokens: Tensor) -> Tensor:
        """Drop the prompt's outputs behind the last block: (N, 1 + P + n, D) -> (N, 1 + P, D). A hook."""
        del transformer, given
        return self._without(tokens)

    def _with(self, sequence: Tensor, layer: int) -> Tensor:
        added = self.tokens[layer]
        if self.position is not None:
            added = added + self.position[layer]
        added = added.to(sequence.dtype).expand(len(sequence), -1, -1)  # (N, n, D)
        if self.where == "append":
            return torch.cat([sequence, added], dim=1)
        return torch.cat([sequence[:, :1], added, sequence[:, 1:]], dim=1)

    def _without(self, sequence: Tensor) -> Tensor:
        count = self.tokens.shape[1]
        if self.where == "append":
            return sequence[:, :-count]
        return torch.cat([sequence[:, :1], sequence[:, 1 + count :]], dim=1)
