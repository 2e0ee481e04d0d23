"""zsrobust: harden a CLIP against adversarial images, attack it, measure it on classes it never saw.

The public names are brought in when they are first used: importing the package imports no torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

__all__ = [
    "Clip",
    "EnvironmentFault",
    "HeadClassifier",
    "Recipe",
    "Run",
    "Threat",
    "UserError",
    "ZeroShotClassifier",
    "ZsRobustError",
    "attack_images",
    "attacks",
    "evaluate",
    "harden",
    "interpolate",
    "load_clip",
    "load_recipe",
    "open_set",
]

_HOME = {
    "Clip": "models",
    "HeadClassifier": "models",
    "ZeroShotClassifier": "models",
    "interpolate": "models",
    "load_clip": "models",
    "open_set": "data",
    "Recipe": "training",
    "Run": "training",
    "harden": "training",
    "load_recipe": "training",
    "evaluate": "evaluation",
    "attack_images": "workflows.attack_images",
    "Threat": "threat",
    "EnvironmentFault": "errors",
    "UserError": "errors",
    "ZsRobustError": "errors",
}

if TYPE_CHECKING:
    from zsrobust import attacks
    from zsrobust.data import open_set
    from zsrobust.errors import EnvironmentFault, UserError, ZsRobustError
    from zsrobust.evaluation.evaluate import evaluate
    from zsrobust.models import Clip, HeadClassifier, ZeroShotClassifier, interpolate, load_clip
    from zsrobust.threat import Threat
    from zsrobust.training import Recipe, Run, harden, load_recipe
    from zsrobust.workflows.attack_images import attack_images


def __getattr__(name: str) -> Any:
    """Import a public name from its home at first use."""
    import importlib

    if name == "attacks":
        return importlib.import_module("zsrobust.attacks")
    if name in _HOME:
        return getattr(importlib.import_module(f"zsrobust.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
