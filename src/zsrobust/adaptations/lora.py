"""LoRA: low-rank additions to the weights of a transformer's blocks, merged into them at the end."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from zsrobust import randomness
from zsrobust.adaptations.adaptation import (
    Adaptation,
    Moving,
    check_choice,
    check_number,
    check_whole,
    free,
    vision_transformer,
)
from zsrobust.errors import UserError

if TYPE_CHECKING:
    from typing import Self

# Target -> where its weight stands in a block. q, k and v are the thirds of one tensor.
_PLACES = {
    "q": ("attn", "in_proj_weight"),
    "k": ("attn", "in_proj_weight"),
    "v": ("attn", "in_proj_weight"),
    "out": ("attn.out_proj", "weight"),
    "fc": ("mlp.c_fc", "weight"),
    "proj": ("mlp.c_proj", "weight"),
}
TARGETS = tuple(_PLACES)
"""Matrices that can be added to: queries, keys, values, attention's output, the MLP's two."""


@dataclass(frozen=True, slots=True)
class Lora(Adaptation):
    """W -> W + (alpha / rank) B A on chosen matrices of every block; W is frozen, A and B move.

    A starts uniform in +-1 / sqrt(columns of W), B at zero, so that the model starts as it was. The addition
    is a parametrisation of the weight itself: `nn.MultiheadAttention` reads its weights and never calls
    `out_proj`, so that a layer around it would do nothing (traps 59). Rank 0 adds nothing at all.

    Args:
        rank: r, columns of B and rows of A, >= 0.
        alpha: of the scale alpha / rank, > 0.
        targets: some of q, k, v, out, fc, proj.

    Raises:
        UserError: if a value is out of range, or a target is unknown, twice there, or none is.

    Source: Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", ICLR 2022, arXiv:2106.09685,
    section 4.1, with the start of A from their code. Difference: no dropout. It is not in the TeCoA paper.
    """

    name: ClassVar[str] = "lora"

    rank: int = 8
    alpha: float = 16.0
    targets: tuple[str, ...] = TARGETS

    def __post_init__(self) -> None:
        check_whole(self.name, "rank", self.rank, 0)
        check_number(self.name, "alpha", self.alpha, above=True)
        named: Any = self.targets
        given = tuple(named) if isinstance(named, list | tuple) else (named,)
        for target in given:
            check_choice(self.name, "target", target, TARGETS)
        if not given or len(set(given)) < len(given):
            raise UserError(
                f"adaptation 'lora': targets must be some of {', '.join(TARGETS)}, each once, got "
                f"{', '.join(given) or 'none'}."
            )
        # In one order, whatever the order in the recipe: nothing depends on it.
        object.__setattr__(self, "targets", tuple(t for t in TARGETS if t in given))

    def apply(self, model: nn.Module, seed: int = 0) -> Moving:
        """Put A and B onto the targets' weights; see `Adaptation.apply`."""
        tower = vision_transformer(model, self.name)
        if not self.rank:
            return []
        blocks = list(enumerate(tower.transformer.resblocks))
        for number, block in blocks:
            for (path, weight), thirds in self._by_place().items():
                module = block.get_submodule(path)
                parts = TARGETS[:3] if weight == "in_proj_weight" else tuple(thirds)
                addition = LowRank(parts, self.alpha / self.rank)
                matrix: Tensor = getattr(module, weight)
                rows = len(matrix) // len(parts)
                for target in thirds:
                    keys = randomness.sample_keys(
                        seed, "lora", [f"{number}/{target}/{r}" for r in range(self.rank)]
                    )
                    drawn = randomness.uniform(keys, torch.zeros_like(keys), matrix.shape[1:])
                    a = (2.0 * drawn - 1.0) * matrix.shape[1] ** -0.5  # (rank, columns)
                    addition.add(target, a.to(matrix), matrix.new_zeros(rows, self.rank))
                parametrize.register_parametrization(module, weight, addition)
        return free(
            (name, parameter)
            for name, parameter in model.named_parameters()
            if ".parametrizations." in name and not name.endswith(".original")
        )

    def _by_place(self) -> dict[tuple[str, str], list[str]]:
        places: dict[tuple[str, str], list[str]] = {}
        for target in self.targets:
            places.setdefault(_PLACES[target], []).append(target)
        return places

    def finish(self, model: nn.Module) -> dict[str, Tensor]:
        """Merge the additions into the weights; return the factors, as `factors` names them."""
        found = factors(model)
        merge(model)
        return found

    def unmerge(self, model: nn.Module, stored: Mapping[str, Tensor]) -> Moving:
        """Take merged factors out of a model's weights and put them beside, as they were in training.

        Features stay as they are, but for rounding: the weights are those before merging to 1e-6 or so.

        Args:
            model: open_clip's, with merged weights.
            stored: what `finish` returned.

        Raises:
            UserError: if the factors are not those of these settings and this model, and as `apply`.
        """
        moving = self.apply(model)
        places = {f"{where}.{factor}": p for where, factor, p in _factors(model)}
        wrong = sorted(places.keys() ^ stored.keys()) or [
            name for name, place in places.items() if stored[name].shape != place.shape
        ]
        if wrong:
            raise UserError(
                f"adaptation 'lora': {len(wrong)} factors do not fit the model ({', '.join(wrong[:3])}): they "
                "belong to another one."
            )
        with torch.no_grad():
            for name, place in places.items():
                place.copy_(stored[name])
            for parent, weight in _parametrised(model):
                found: Any = parent.parametrizations[weight]  # type: ignore[index]
                original = found.original
                original.copy_(original.double() - found[0].added(original, torch.float64))
        return moving


class LowRank(nn.Module):
    """The parametrisation: a weight of one or more equal parts, some with a low-rank addition.

    Args:
        parts: names of the parts of the weight's rows, in order.
        scale: of the addition, alpha / rank.
    """

    def __init__(self, parts: tuple[str, ...], scale: float) -> None:
        super().__init__()
        self.parts = parts
        self.scale = scale
        self.a = nn.ParameterDict()
        self.b = nn.ParameterDict()

    def add(self, part: str, a: Tensor, b: Tensor) -> Self:
        """Put factors on a part: a (rank, columns), b (rows of the part, rank)."""
        self.a[part], self.b[part] = nn.Parameter(a), nn.Parameter(b)
        return self

    def added(self, weight: Tensor, dtype: torch.dtype) -> Tensor:
        """Return what is added to a weight (rows, columns), in `dtype`."""
        rows = len(weight) // len(self.parts)
        products = [
            self.b[part].to(dtype) @ self.a[part].to(dtype)
            if part in self.a
            else weight.new_zeros((rows, weight.shape[1]), dtype=dtype)
            for part in self.parts
        ]
        return self.scale * torch.cat(products)

    def forward(self, weight: Tensor) -> Tensor:
        """Return the weight with its additions, in its own precision also where a tower is autocast."""
        device = "cpu" if weight.is_meta else weight.device.type  # autocast knows no meta device
        with torch.autocast(device, enabled=False):
            return weight + self.added(weight, weight.dtype)


def factors(model: nn.Module) -> dict[str, Tensor]:
    """Return copies of a model's factors: "blocks.3.q.a" is A (rank, columns) of block 3's queries."""
    return {f"{where}.{factor}": p.detach().clone() for where, factor, p in _factors(model)}


def merge(model: nn.Module) -> None:
    """Write the additions into the weights, in place; plain open_clip has nothing to know of them then."""
    for parent, weight in list(_parametrised(model)):
        # A deep copy shares the class that torch made for its original, and removal would change it there too.
        kind = type(parent)
        own = {k: v for k, v in vars(kind).items() if k not in ("__dict__", "__weakref__")}
        parent.__class__ = type(kind.__name__, kind.__bases__, own)
        parametrize.remove_parametrizations(parent, weight, leave_parametrized=True)


def _parametrised(model: nn.Module) -> Iterator[tuple[nn.Module, str]]:
    for module in model.modules():
        found = getattr(module, "parametrizations", None)
        if not isinstance(found, nn.ModuleDict):
            continue
        for weight in list(found):
            if isinstance(found[weight][0], LowRank):  # type: ignore[index]
                yield module, weight


def _factors(model: nn.Module) -> Iterator[tuple[str, str, nn.Parameter]]:
    """Yield where a factor stands ("blocks.3.q"), which of the two it is ("a", "b"), and itself."""
    tower: Any = model.visual
    for number, block in enumerate(tower.transformer.resblocks):
        for parent, weight in _parametrised(block):
            addition: Any = parent.parametrizations[weight][0]  # type: ignore[index]
            for target in addition.a:
                yield f"blocks.{number}.{target}", "a", addition.a[target]
                yield f"blocks.{number}.{target}", "b", addition.b[target]
