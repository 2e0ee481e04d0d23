"""What all prompts share: they stand in the image tower as submodules, and leave its weights alone."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from zsrobust.adaptations.adaptation import PROMPTS, Adaptation, Moving, free, image_tower

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True, slots=True)
class Prompting(Adaptation):
    """Base of the adaptations that put a prompt into a frozen image tower."""

    @abstractmethod
    def attach(self, model: nn.Module, seed: int) -> None:
        """Put the prompt at its start into the image tower; a prompt of size 0 puts nothing there.

        Args:
            model: open_clip's.
            seed: of the start.

        Raises:
            UserError: if the prompt does not fit the model.
        """

    def apply(self, model: nn.Module, seed: int = 0) -> Moving:
        """Freeze the model and put the prompt in; see `Adaptation.apply`."""
        image_tower(model, self.name)
        self.attach(model, seed)
        return free(
            (f"visual.{name}.{key}", parameter)
            for name, prompt in prompts_of(model).items()
            for key, parameter in prompt.named_parameters()
        )


def prompts_of(model: nn.Module) -> dict[str, Any]:
    """Return the prompts in a model's image tower by the names of `PROMPTS`; none for a plain model."""
    tower = getattr(model, "visual", None)
    found = {name: getattr(tower, name, None) for name in PROMPTS}
    return {name: prompt for name, prompt in found.items() if prompt is not None}


def prompt_facts(model: nn.Module) -> dict[str, Any]:
    """Return, as JSON, what of a model's prompts shapes the features beside their numbers; {} without any."""
    return {name: prompt.facts() for name, prompt in prompts_of(model).items()}


def prompt_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Return the numbers of a model's prompts: "pixel_prompt.top" and so on; {} without any."""
    return {
        f"{name}.{key}": tensor
        for name, prompt in prompts_of(model).items()
        for key, tensor in prompt.state_dict().items()
    }


def without_prompts(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a whole model's state dict without its prompts: what the plain model has."""
    prefixes = tuple(f"visual.{name}." for name in PROMPTS)
    return {name: tensor for name, tensor in state.items() if not name.startswith(prefixes)}
