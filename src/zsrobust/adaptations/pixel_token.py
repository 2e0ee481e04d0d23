"""Pixel and token prompts trained together, with one optimiser and one rate."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from zsrobust.adaptations.adaptation import check_number, check_transformer
from zsrobust.adaptations.pixel import Pixel
from zsrobust.adaptations.prompts import Prompting
from zsrobust.adaptations.token import Token

if TYPE_CHECKING:
    from torch import nn


_PIXEL, _TOKEN = Pixel(), Token()  # their defaults stand there alone


@dataclass(frozen=True, slots=True)
class PixelToken(Prompting):
    """Both prompts in an open_clip VisionTransformer; size 0 leaves one of them out.

    Args:
        kind: as all up to `std`, of the pixel prompt; see `Pixel`.
        width: see `Pixel`.
        added: see `Pixel`.
        std: of the start of both prompts.
        tokens: as all that follow, of the token prompt; see `Token`.
        where: see `Token`.
        depth: see `Token`.
        position: see `Token`.
        token_std: of the start of the tokens; None is `std`.

    Raises:
        UserError: if a value is out of range.

    Source: the TeCoA authors' prompt script (facts 3.5).
    """

    name: ClassVar[str] = "pixel+token"

    kind: str = _PIXEL.kind
    width: int = _PIXEL.width
    added: str = _PIXEL.added
    std: float = _PIXEL.std
    tokens: int = _TOKEN.tokens
    where: str = _TOKEN.where
    depth: str = _TOKEN.depth
    position: str = _TOKEN.position
    token_std: float | None = None

    def __post_init__(self) -> None:
        if self.token_std is not None:
            check_number(self.name, "token_std", self.token_std, above=False)
        # They check the rest.
        self.pixel()
        self.token()

    def pixel(self) -> Pixel:
        """Return the pixel part."""
        return Pixel(self.kind, self.width, self.added, self.std)

    def token(self) -> Token:
        """Return the token part."""
        std = self.std if self.token_std is None else self.token_std
        return Token(self.tokens, self.where, self.depth, self.position, std)

    def attach(self, model: nn.Module, seed: int) -> None:
        """Put both prompts in; see `Prompting.attach`."""
        check_transformer(model.visual, self.name)
        self.pixel().attach(model, seed)
        self.token().attach(model, seed)

    @contextmanager
    def at_step(self, model: nn.Module, seed: int, step: int) -> Iterator[None]:
        """Let a random patch stand where this step has it; see `Adaptation.at_step`."""
        with self.pixel().at_step(model, seed, step):
            yield
