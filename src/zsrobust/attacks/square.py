"""Square: random search with square patches, a black-box attack that needs no gradient."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from zsrobust import randomness
from zsrobust.attacks import losses
from zsrobust.errors import UserError
from zsrobust.threat import Threat, per_sample, vector_length

if TYPE_CHECKING:
    import torch
    from torch import Tensor

State = dict[str, "Tensor"]

# The share p of the image that a patch covers is halved after each of these iterations (traps 35).
_HALVED_AFTER = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
# The budget that schedule was written for; `rescale` stretches it to another one.
_SCHEDULE_LENGTH = 10_000
# As in the reference: keeps an empty window from dividing by zero.
_TINY = 1e-12
# A share of eps^2 that is rounding. A window's old content is scaled to unit length however short it is, so
# that rounding, which differs between batches, would grow into another perturbation.
_ROUNDING = 1e-6


@dataclass(frozen=True, slots=True, kw_only=True)
class Square:
    """Square as a state machine for the engine: queries + 1 looks a restart, the first is the start itself.

    linf: the start is vertical stripes one pixel wide, +eps or -eps in each channel; an iteration sets a
    square window to clean + eps or clean - eps, one sign a channel. l2: the start is a grid of bumps; an
    iteration moves the perturbation's mass from a second window into the first and reshapes it there.
    A proposal is kept if it lowers the margin (true logit minus the largest other one).

    Source: Andriushchenko et al., "Square Attack: a query-efficient black-box adversarial attack via random
    search", ECCV 2020, arXiv:1912.00049, algorithms 1 to 3, as AutoAttack runs it (fra31/auto-attack at
    a392200: margin loss, the schedule of p not rescaled to the budget).

    Differences from that implementation:
    - Windows, signs and orientations are drawn for each sample; there a batch shares all of them for linf, all
      but the signs for l2.
    - A window may stand at every position, as in the paper. There the last one is never drawn, so that
      the bottom row and the rightmost column keep what the start gave them.
    - A sample stops when the engine finds it misclassified. There it stops at a margin <= 0, so that a tie
      counts as an end, broken or not.
    - Where the engine has no early exit, a broken sample goes on to lower margins.
    - linf: the window is set to clean +- eps, clipped to [0, 1]. There +-2 eps is added to the best point
      and clipped to the ball, the same up to rounding.
    - l2: lengths of whole perturbations are computed in float64, and an unspent rest of less than a millionth
      of eps^2 counts as none. There that is rounding, which may fill empty windows.
    - l2: the start's grid is centred and never leaves the image. There sizes such as 14 or 19 raise. Square images
      from 25 pixels on have the same grid.
    - A sign is never 0.
    - `rescale` stretches the schedule by exact division of whole numbers.
    Kept from it: a linf window may propose what is there already (the paper's code draws again); windows are
    cut to the shorter side of the image; all channels share a window.

    Args:
        threat: norm, linf or l2, and eps.
        queries: iterations of one restart, >= 1.
        p_init: share of the image's pixels that the first windows cover, in (0, 1].
        restarts: independent starts, >= 1; the next one begins where the last one left the sample unbroken.
        rescale: stretch the schedule of p, written for 10,000 iterations, to `queries`. AutoAttack does not.
        name: what records and noise are filed under.

    Raises:
        UserError: for a value out of range.
    """

    needs_grad: ClassVar[bool] = False
    minimal_norm: ClassVar[bool] = False
    version: ClassVar[int] = 1

    threat: Threat
    queries: int = 5000
    p_init: float = 0.8
    restarts: int = 1
    rescale: bool = False
    name: str = "square"

    def __post_init__(self) -> None:
        if self.queries < 1:
            raise UserError(f"attack {self.name!r}: queries must be >= 1, got {self.queries}.")
        if not 0 < self.p_init <= 1:
            raise UserError(
                f"attack {self.name!r}: p_init is a share of the image, in (0, 1], got {self.p_init}."
            )
        if self.restarts < 1:
            raise UserError(f"attack {self.name!r}: restarts must be >= 1, got {self.restarts}.")

    def settings(self) -> dict[str, Any]:
        """Return everything that determines the queries, for the key of a cell."""
        return {
            "name": self.name,
            "algorithm": "square",
            "version": self.version,
            "queries": self.queries,
            "p_init": self.p_init,
            "restarts": self.restarts,
            "rescale": self.rescale,
            "loss": "margin",
        }

    def init(self, images: Tensor, labels: Tensor, clean_logits: Tensor, key: Tensor) -> State:
        """Return the state of fresh samples at their random starts.

        Args:
            images: (S, C, H, W) in [0, 1], the clean images.
            labels: (S,) int64.
            clean_logits: (S, K), for their dtype.
            key: (S,) int64, of the noise.
        """
        import torch

        zero = torch.zeros_like(key)
        state = {
            "clean": images,
            "label": labels,
            "key": key,
            "draw": zero,
            "step": zero,
            "restart": zero,
            "best": images,
            # Above every margin: the start is always kept.
            "margin": torch.full_like(clean_logits[:, 0], torch.inf),
        }
        return {**state, "images": self._start(state)}

    def query(self, state: State) -> Tensor:
        """Return the images to look at next, (S, C, H, W), always inside ball and box."""
        return state["images"]

    def loss(self, state: State, logits: Tensor) -> Tensor:
        """Return the negative margin (S,), which the search raises; no gradient is asked for."""
        return losses.negative_margin(logits, state["label"])

    def update(self, state: State, logits: Tensor, grad: Tensor | None) -> tuple[State, Tensor]:
        """Keep the query where it lowers the margin, and propose the next; `done` (S,) at the end of the budget.

        `grad` is not used.
        """
        del grad
        import torch

        margin = losses.margin(logits, state["label"])
        better = margin < state["margin"]
        spent = state["step"] >= self.queries
        done = spent & (state["restart"] >= self.restarts - 1)
        again = spent & ~done
        state = {
            **state,
            "best": torch.where(per_sample(better, state["best"]), state["images"], state["best"]),
            "margin": torch.where(better, margin, state["margin"]),
            "draw": state["draw"] + 1,
        }
        images = self._propose(state)
        if self.restarts > 1 and bool(again.any()):
            images = torch.where(per_sample(again, images), self._start(state), images)
        state |= {
            "images": images,
            "margin": torch.where(again, torch.inf, state["margin"]),
            "restart": state["restart"] + again,
            "step": torch.where(again, 0, torch.where(done, state["step"], state["step"] + 1)),
        }
        return state, done

    def final(self, state: State) -> Tensor:
        """Return the best points of the last restart, (S, C, H, W)."""
        return state["best"]

    def _start(self, state: State) -> Tensor:
        clean = state["clean"]
        channels, height, width = clean.shape[1:]
        if self.threat.norm == "linf":
            stripes = _signs(state, (channels, 1, width))
            return self.threat.project(clean + self.threat.eps * stripes, clean)
        side = max(min(height, width) // 5, 1)
        down, across = height // side, width // side
        noise = randomness.uniform(state["key"], state["draw"], (channels + 1, down, across))
        sign = _sign(noise[:, :channels]).to(clean.dtype)
        turned = noise[:, channels:] < 0.5
        bump = _bumps((side,), clean.dtype, clean.device)[0]
        import torch

        # (S, C, down, across, side, side): a bump in each cell of the grid, laid out as one picture.
        cells = torch.where(turned[..., None, None], bump.T, bump) * sign[..., None, None]
        grid = cells.transpose(3, 4).reshape(*sign.shape[:2], down * side, across * side)
        top, left = (height - down * side) // 2, (width - across * side) // 2
        delta = torch.zeros_like(clean)
        delta[:, :, top : top + down * side, left : left + across * side] = grid
        return self._on_sphere(delta, clean)

    def _propose(self, state: State) -> Tensor:
        """Return the next query from the best point; the query of number `step` was the last one."""
        import torch

        channels, height, width = state["clean"].shape[1:]
        iteration = state["step"]
        if self.rescale:
            iteration = iteration * _SCHEDULE_LENGTH // self.queries
        sides = self._sides(height, width)
        halved = iteration.new_tensor(_HALVED_AFTER)
        stage = (iteration[:, None] > halved).sum(1)  # (S,)
        side = iteration.new_tensor(sides)[stage]  # (S,)
        if self.threat.norm == "l2":
            return self._propose_l2(state, stage, side, sides)
        noise = randomness.uniform(state["key"], state["draw"], (2 + channels,))
        rows = _offsets(noise[:, 0], side, height)
        columns = _offsets(noise[:, 1], side, width)
        window = _window(rows, columns, side)
        sign = _per_channel(_sign(noise[:, 2:])).to(state["clean"].dtype)
        ends = (state["clean"] + self.threat.eps * sign).clamp(0.0, 1.0)
        return torch.where(window, ends, state["best"])

    def _propose_l2(
        self, state: State, stage: Tensor, side: Tensor, sides: tuple[int, ...]
    ) -> Tensor:
        import torch

        clean = state["clean"]
        channels, height, width = clean.shape[1:]
        noise = randomness.uniform(state["key"], state["draw"], (5 + channels,))
        rows = _offsets(noise[:, 0], side, height)
        columns = _offsets(noise[:, 1], side, width)
        first = _window(rows, columns, side)
        second = _window(
            _offsets(noise[:, 2], side, height), _offsets(noise[:, 3], side, width), side
        )
        both = first | second
        sign = _per_channel(_sign(noise[:, 5:])).to(clean.dtype)

        bumps = _bumps(sides, clean.dtype, clean.device)
        bump = _look_up(bumps, stage, rows, columns, turned=noise[:, 4] < 0.5) * first

        delta = state["best"] - clean
        inside = delta * first
        # What a channel of the new window may hold: what both windows hold, and its part of what is unspent.
        whole = self.threat.eps**2
        unspent = whole - vector_length(delta) ** 2
        unspent = torch.where(unspent > _ROUNDING * whole, unspent, 0.0).to(clean.dtype)
        budget = (per_sample(unspent, delta) / channels + _channel_length(delta * both) ** 2).sqrt()
        shape = bump * sign + inside / (_TINY + _channel_length(inside))
        moved = shape / (_TINY + _channel_length(shape)) * budget
        # `moved` is zero outside the first window: what stands in the second alone goes.
        return self._on_sphere(torch.where(both, moved, delta), clean)

    def _on_sphere(self, delta: Tensor, clean: Tensor) -> Tensor:
        """Return clean + delta scaled to length eps, clipped to the box; a zero delta stays zero."""
        factor = (self.threat.eps / vector_length(delta).clamp_min(_TINY)).to(delta.dtype)
        return (clean + delta * per_sample(factor, delta)).clamp(0.0, 1.0)

    def _sides(self, height: int, width: int) -> tuple[int, ...]:
        """Return the side of the windows, in pixels, before the first halving of p, after it, and so on."""
        sides = []
        for halvings in range(len(_HALVED_AFTER) + 1):
            side = round(math.sqrt(self.p_init / 2**halvings * height * width))
            if self.threat.norm == "l2":
                side = max(side, 3)
                side += side % 2 == 0  # an odd side has a middle
            sides.append(min(max(side, 1), height, width))
        return tuple(sides)


def _per_channel(values: Tensor) -> Tensor:
    """Return `values` (S, C) shaped to multiply images (S, C, H, W)."""
    return values[:, :, None, None]


def _sign(noise: Tensor) -> Tensor:
    """Return -1 or 1 for uniforms in [0, 1), each with probability one half."""
    return 1.0 - 2.0 * (noise < 0.5)


def _signs(state: State, shape: tuple[int, ...]) -> Tensor:
    signs = _sign(randomness.uniform(state["key"], state["draw"], shape))
    return signs.to(state["clean"].dtype)


def _offsets(noise: Tensor, side: Tensor, size: int) -> Tensor:
    """Return, for each pixel of an axis, its place counted from a random window's first pixel, (S, size).

    The window's first pixel is uniform over the size - side + 1 positions where it fits.
    """
    import torch

    first = (noise.double() * (size - side + 1)).long()
    return torch.arange(size, device=noise.device) - first[:, None]


def _window(rows: Tensor, columns: Tensor, side: Tensor) -> Tensor:
    """Return which pixels lie in a window, (S, 1, H, W) bool, from places (S, H) and (S, W)."""
    down = (rows >= 0) & (rows < side[:, None])
    across = (columns >= 0) & (columns < side[:, None])
    return (down[:, :, None] & across[:, None, :])[:, None]


def _look_up(
    bumps: Tensor, stage: Tensor, rows: Tensor, columns: Tensor, *, turned: Tensor
) -> Tensor:
    """Return each slot's own bump laid over the image, (S, 1, H, W); outside of its window it is arbitrary.

    Slots stand at different sizes, so the bumps (P, M, M) of all sizes lie in one table.
    """
    import torch

    largest = bumps.shape[1]
    rows, columns = rows.clamp(0, largest - 1), columns.clamp(0, largest - 1)
    down = torch.where(turned, 1, largest)[:, None]
    across = torch.where(turned, largest, 1)[:, None]
    start = stage * largest**2
    index = (start[:, None] + rows * down)[:, :, None] + (columns * across)[:, None, :]
    return bumps.flatten()[index][:, None]


def _channel_length(images: Tensor) -> Tensor:
    """Return the Euclidean length of each channel, (S, C, 1, 1)."""
    import torch

    length: Tensor = torch.linalg.vector_norm(images, dim=(2, 3), keepdim=True)
    return length


@functools.lru_cache(maxsize=16)
def _bumps(sides: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return the l2 shapes eta of all sides in one table (P, M, M), each in its upper left corner, unit length.

    Eta is a positive peak over a negative one (section 3.3 of the paper); the other orientation is its transpose.
    Cached, since it depends on the image size alone and is asked for at every query.
    """
    import torch

    table = torch.zeros(len(sides), max(sides), max(sides), dtype=torch.float64)
    for bump, side in zip(table, sides, strict=True):
        eta = torch.cat([_peak(side // 2, side), -_peak(side - side // 2, side)])
        bump[:side, :side] = eta / torch.linalg.vector_norm(eta)
    return table.to(device=device, dtype=dtype)


def _peak(rows: int, columns: int) -> Tensor:
    """Return the peak (rows, columns), of unit length: nested rectangles of height 1/k^2 around the middle."""
    import torch

    middle, centre = rows // 2, columns // 2
    down = (torch.arange(rows) - middle).abs()
    across = (torch.arange(columns) - centre).abs()
    ring = torch.maximum(down[:, None], across[None, :])  # the first rectangle that covers a pixel
    heights = 1.0 / torch.arange(1, max(middle, centre) + 2, dtype=torch.float64) ** 2
    peak = (
        heights.flip(0).cumsum(0).flip(0)[ring]
    )  # a pixel lies in its rectangle and in all larger ones
    peak /= torch.linalg.vector_norm(peak)
    return peak
