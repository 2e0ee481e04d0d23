"""What an adaptation is: which parameters of a model move, and what it adds to the image tower."""

from __future__ import annotations

import contextlib
import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from zsrobust.errors import UserError, nearest

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import Tensor, nn

Moving = list[tuple[str, "nn.Parameter"]]
"""What moves: names as the model has them ("visual...."), and the parameters themselves."""

PROMPTS = ("pixel_prompt", "token_prompt")
"""Names that prompts have as submodules of an image tower."""


@dataclass(frozen=True, slots=True)
class Adaptation(ABC):
    """Base of all adaptations: settings, and what they do to a model.

    An adaptation knows open_clip's modules. What it adds stands in the image tower itself, so that whoever
    calls `encode_image` goes through it: training, its adversary, evaluation and attacks alike (traps 39).
    """

    name: ClassVar[str]

    def settings(self) -> dict[str, Any]:
        """Return the settings as JSON, for records."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    @abstractmethod
    def apply(self, model: nn.Module, seed: int = 0) -> Moving:
        """Freeze `model`, then free or add what moves; return it.

        The model is left in eval mode, so that batch norm keeps its statistics and dropout is off; who
        trains it must leave it so.

        Args:
            model: open_clip's.
            seed: of what is drawn: the start of what is added, a function of (seed, its place) alone.

        Raises:
            UserError: if the model has no image tower of the kind that is needed, if the settings do not
                fit it, or if it carries prompts or unmerged factors already.
        """

    def sentence(self, moving: Moving) -> str | None:
        """Return one line worth saying of what moves; None where there is none."""
        del moving
        return None

    @contextlib.contextmanager
    def at_step(self, model: nn.Module, seed: int, step: int) -> Iterator[None]:
        """Let what is drawn anew in training stand where optimiser step `step` has it, while the block runs.

        Every forward of the step sees the same draw, the adversary's too: it attacks what is trained.
        Default: nothing is drawn anew.
        """
        del model, seed, step
        yield

    def finish(self, model: nn.Module) -> dict[str, Tensor]:
        """Bring a trained model into the form that is stored.

        Returns:
            What is kept beside it: low-rank factors that were merged into the weights. Default: nothing.
        """
        del model
        return {}


def image_tower(model: nn.Module, who: str) -> Any:
    """Freeze a model and put it into eval mode; return its image tower.

    Args:
        model: open_clip's.
        who: the adaptation's name, for messages.

    Raises:
        UserError: if it has none, or carries prompts or unmerged factors already.
    """
    tower: Any = getattr(model, "visual", None)
    if tower is None or next(tower.parameters(), None) is None:
        raise UserError(
            f"adaptation {who!r}: {type(model).__name__} has no image tower with parameters to move; "
            "it needs an open_clip model."
        )
    carried = [name for name in PROMPTS if getattr(tower, name, None) is not None]
    if carried:
        words = " and ".join(name.replace("_", " ") for name in carried)
        raise UserError(
            f"adaptation {who!r}: the model carries a {words} already, and nothing is trained on top of "
            "prompts; take the model that it started from."
        )
    if any(".parametrizations." in name for name, _ in tower.named_parameters()):
        raise UserError(
            f"adaptation {who!r}: the model carries low-rank factors that are not merged; merge them first."
        )
    model.eval().requires_grad_(False)
    return tower


def vision_transformer(model: nn.Module, who: str) -> Any:
    """Return the image tower as `image_tower` does, if it is open_clip's own `VisionTransformer`.

    Raises:
        UserError: if it is another, and as `image_tower`.
    """
    return check_transformer(image_tower(model, who), who)


def check_transformer(tower: Any, who: str) -> Any:
    """Return an image tower if it is open_clip's own `VisionTransformer`.

    Raises:
        UserError: if it is another.
    """
    from open_clip.transformer import VisionTransformer

    if not isinstance(tower, VisionTransformer):
        raise UserError(
            f"adaptation {who!r} needs open_clip's VisionTransformer as image tower, this model has a "
            f"{type(tower).__name__}: use 'full' or 'pixel'."
        )
    if not tower.transformer.batch_first:
        raise UserError(f"adaptation {who!r} needs a transformer whose first axis is the batch.")
    return tower


def rehearse(adaptation: Adaptation, model: nn.Module) -> Moving:
    """Apply an adaptation to a copy of a model's form without its numbers; return what would move.

    So what does not fit shows at once, where `apply` has to wait for what the untouched model is needed for.

    Raises:
        UserError: as `Adaptation.apply`, and if nothing would move though something should.
    """
    import torch

    bare: dict[int, Any] = {
        id(p): torch.nn.Parameter(p.detach().to("meta"), requires_grad=False)
        for p in model.parameters()
    }
    bare |= {id(b): b.detach().to("meta") for b in model.buffers()}
    # What the memo holds is taken for copied already.
    moving = adaptation.apply(copy.deepcopy(model, bare))
    if not moving and adaptation.name != "linear":
        raise UserError(
            f"adaptation {adaptation.name!r}: with these settings ("
            f"{', '.join(f'{k} {v}' for k, v in adaptation.settings().items())}) nothing would move; give "
            "it a size above 0."
        )
    return moving


def free(named: Iterable[tuple[str, nn.Parameter]]) -> Moving:
    """Let parameters move, and return those that hold a number at all."""
    moving = [(name, parameter) for name, parameter in named if parameter.numel()]
    for _, parameter in moving:
        parameter.requires_grad_(True)
    return moving


def check_whole(who: str, key: str, value: object, least: int) -> None:
    """Refuse a setting that is no whole number of at least `least`.

    Raises:
        UserError: then.
    """
    if type(value) is not int or value < least:
        raise UserError(
            f"adaptation {who!r}: {key} must be a whole number, {least} or more, got {value!r}."
        )


def check_number(who: str, key: str, value: object, *, above: bool) -> None:
    """Refuse a setting that is no finite number of at least 0, or, if `above`, greater than 0.

    Raises:
        UserError: then.
    """
    number = math.nan
    if isinstance(value, int | float) and not isinstance(value, bool):
        number = float(value)
    if not math.isfinite(number) or number < 0 or (above and number == 0):
        range_ = "> 0" if above else ">= 0"
        raise UserError(
            f"adaptation {who!r}: {key} must be a finite number {range_}, got {value!r}."
        )


def check_choice(who: str, key: str, value: object, allowed: tuple[str, ...]) -> None:
    """Refuse a setting that is none of the words allowed.

    Raises:
        UserError: then, with the nearest of them.
    """
    if value not in allowed:
        near = nearest(str(value), allowed)
        rest = f"did you mean {' or '.join(map(repr, near))}?" if near else ""
        raise UserError(
            f"adaptation {who!r}: {key} {value!r} is unknown: "
            f"{rest or 'allowed: ' + ', '.join(allowed) + '.'}"
        )
