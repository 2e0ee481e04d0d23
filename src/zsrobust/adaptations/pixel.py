"""Pixel prompts: numbers added to the image, the same for all images."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from zsrobust import randomness
from zsrobust.adaptations.adaptation import check_choice, check_number, check_whole
from zsrobust.adaptations.prompts import Prompting, prompts_of
from zsrobust.errors import UserError

KINDS = ("padding", "fixed-patch", "random-patch")


@dataclass(frozen=True, slots=True)
class Pixel(Prompting):
    """A prompt added to the image at the model's size, of any open_clip tower, which stays frozen.

    Args:
        kind: "padding" is a frame around the border, "fixed-patch" a square in the top left corner,
            "random-patch" a square whose place is drawn anew for each optimiser step, the same for its
            whole batch and all its forwards, and which stands at one place, drawn from the seed, in evaluation.
        width: p, of the frame or the square, in pixels, >= 0; 0 adds nothing at all.
        added: "after" normalisation, or "before" it, in [0, 1]-pixel units (traps 19). Nothing is clamped,
            so that "before" is "after" with a prompt divided by the model's standard deviation.
        std: standard deviation of the normal start, >= 0, in the unit that `added` gives.

    Raises:
        UserError: if a value is out of range.

    Source: Mao et al., ICLR 2023, as in the authors' code (facts 3.5): 3 p H + ... numbers, 69,840 for a frame
    of 30 at 224 x 224. Differences: the random place is a function of (seed, optimiser step), where theirs is
    drawn from an unseeded generator at each forward, those of the attack's steps too; it may touch the lower
    and right border; in evaluation it stands still (traps 58).
    """

    name: ClassVar[str] = "pixel"

    kind: str = "padding"
    width: int = 30
    added: str = "after"
    std: float = 1.0

    def __post_init__(self) -> None:
        check_choice(self.name, "kind", self.kind, KINDS)
        check_whole(self.name, "width", self.width, 0)
        check_choice(self.name, "added", self.added, ("after", "before"))
        check_number(self.name, "std", self.std, above=False)

    def attach(self, model: nn.Module, seed: int) -> None:
        """Put the prompt before the image tower; see `Prompting.attach`."""
        if not self.width:
            return
        tower: Any = model.visual
        rule = tower.preprocess_cfg
        size = rule["size"]
        height, wide = (size, size) if isinstance(size, int) else size
        most = min(height, wide) // (2 if self.kind == "padding" else 1)
        if self.width > most:
            raise UserError(
                f"adaptation {self.name!r}: width is {self.width}, a {self.kind} on images of {wide} x "
                f"{height} pixels has at most {most}."
            )
        stds = rule["std"] if self.added == "before" else None
        prompt = PixelPrompt(self.kind, (height, wide), self.width, stds)
        prompt.start(self.std, seed)
        like = next(tower.parameters())
        tower.pixel_prompt = prompt.to(like.device, like.dtype).eval()
        # Bound methods of the submodule: a deep copy of the tower calls its own copy.
        tower.register_forward_pre_hook(prompt.into_images)

    @contextlib.contextmanager
    def at_step(self, model: nn.Module, seed: int, step: int) -> Iterator[None]:
        """Let a random patch stand where this step has it; see `Adaptation.at_step`."""
        prompt: PixelPrompt | None = prompts_of(model).get("pixel_prompt")
        if prompt is None or self.kind != "random-patch":
            yield
            return
        standing = prompt.corner
        prompt.corner = prompt.drawn_corner(seed, f"step/{step}")
        try:
            yield
        finally:
            prompt.corner = standing


class PixelPrompt(nn.Module):
    """The numbers of a pixel prompt, and where they are added.

    Args:
        kind: see `Pixel`.
        size: (H, W) of the images.
        width: p, 1 to half the smaller side for a padding frame, to the smaller side for a patch.
        stds: of normalisation, one a channel, if it is added before it; None after it.
    """

    scale: Tensor

    def __init__(
        self, kind: str, size: tuple[int, int], width: int, stds: Sequence[float] | None
    ) -> None:
        super().__init__()
        self.kind = kind
        self.size = size
        self.width = width
        self.before = stds is not None
        self.corner = (0, 0)
        """(row, column) of a patch's top left pixel; of a random patch outside a training step, its place in
        evaluation."""
        shapes = {"patch": (3, width, width)}
        if kind == "padding":
            across, down = (3, width, size[1]), (3, size[0] - 2 * width, width)
            shapes = {"top": across, "bottom": across, "left": down, "right": down}
        for name, shape in shapes.items():
            self.register_parameter(name, nn.Parameter(torch.zeros(shape)))
        inverse = [1.0] * 3 if stds is None else [1.0 / value for value in stds]
        self.register_buffer("scale", torch.tensor(inverse).reshape(3, 1, 1), persistent=False)

    def start(self, std: float, seed: int) -> None:
        """Set all numbers to normal ones, functions of (seed, part, index); and a random patch's place."""
        with torch.no_grad():
            for name, parameter in self.named_parameters():
                key = randomness.sample_keys(seed, "pixel-prompt", [name])
                drawn = randomness.normal(key, torch.zeros_like(key), parameter.shape)[0]
                parameter.copy_(std * drawn)
        if self.kind == "random-patch":
            self.corner = self.drawn_corner(seed, "evaluation")

    def drawn_corner(self, seed: int, stable_id: str) -> tuple[int, int]:
        """Return a place for a patch, uniform over all at which it lies in the image."""
        key = randomness.sample_keys(seed, "random-patch", [stable_id])
        row, column = randomness.uniform(key, torch.zeros_like(key), (2,))[0].tolist()
        return (
            int(row * (self.size[0] - self.width + 1)),
            int(column * (self.size[1] - self.width + 1)),
        )

    def facts(self) -> dict[str, Any]:
        """Return what shapes the features beside the numbers, as JSON."""
        return {
            "kind": self.kind,
            "width": self.width,
            "added": "before" if self.before else "after",
            "corner": list(self.corner),
        }

    def restore(self, facts: dict[str, Any]) -> None:
        """Take from `facts` what no setting says: the place of a patch.

        Raises:
            ValueError: if it lies outside the image.
        """
        row, column = (int(value) for value in facts["corner"])
        room = [side - self.width for side in self.size]
        if self.kind == "random-patch" and 0 <= row <= room[0] and 0 <= column <= room[1]:
            self.corner = (row, column)
        if facts != self.facts():
            raise ValueError("the prompt is another one than the settings describe")

    def canvas(self) -> Tensor:
        """Return what is added to a normalised image, (3, H, W): the prompt in its place, zero elsewhere."""
        width, (height, wide) = self.width, self.size
        parts: Any = self
        if self.kind == "padding":
            inside = parts.top.new_zeros(3, height - 2 * width, wide - 2 * width)
            middle = torch.cat([parts.left, inside, parts.right], dim=2)
            whole = torch.cat([parts.top, middle, parts.bottom], dim=1)
        else:
            row, column = self.corner
            around = (column, wide - width - column, row, height - width - row)
            whole = functional.pad(parts.patch, around)
        return whole * self.scale if self.before else whole

    def into_images(self, tower: nn.Module, given: tuple[Any, ...]) -> tuple[Any, ...]:
        """Add the prompt to what the tower is called with: normalised images (N, 3, H, W). A hook."""
        del tower
        images, *rest = given
        return (images + self.canvas().to(images.dtype), *rest)
