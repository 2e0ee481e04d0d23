"""Models: specs, loading, classifiers, saving. Importing this package imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from zsrobust.models.classifier import (
        HeadClassifier,
        ImageEncoder,
        TextAnchors,
        ZeroShotClassifier,
        text_anchors,
        text_record,
    )
    from zsrobust.models.foreign import overlay, read_tower
    from zsrobust.models.interpolation import MixedClip, interpolate, mix
    from zsrobust.models.load import Clip, load_clip, load_unmerged, new_clip
    from zsrobust.models.public import PublicWeights, public_weights
    from zsrobust.models.save import convert, save_hardened, save_open_clip, save_visual
    from zsrobust.models.spec import ModelSpec, parse_spec

_HOMES = {
    "Clip": "load",
    "HeadClassifier": "classifier",
    "ImageEncoder": "classifier",
    "MixedClip": "interpolation",
    "ModelSpec": "spec",
    "PublicWeights": "public",
    "TextAnchors": "classifier",
    "ZeroShotClassifier": "classifier",
    "convert": "save",
    "interpolate": "interpolation",
    "load_clip": "load",
    "load_unmerged": "load",
    "mix": "interpolation",
    "new_clip": "load",
    "overlay": "foreign",
    "parse_spec": "spec",
    "public_weights": "public",
    "read_tower": "foreign",
    "save_hardened": "save",
    "save_open_clip": "save",
    "save_visual": "save",
    "text_anchors": "classifier",
    "text_record": "classifier",
}

__all__ = [
    "Clip",
    "HeadClassifier",
    "ImageEncoder",
    "MixedClip",
    "ModelEntry",
    "ModelSpec",
    "PublicWeights",
    "TextAnchors",
    "ZeroShotClassifier",
    "convert",
    "interpolate",
    "load_clip",
    "load_unmerged",
    "mix",
    "model_names",
    "new_clip",
    "overlay",
    "parse_spec",
    "public_weights",
    "read_tower",
    "save_hardened",
    "save_open_clip",
    "save_visual",
    "text_anchors",
    "text_record",
]


@dataclass(frozen=True, slots=True)
class ModelEntry:
    """A line of `zsrobust list models`.

    Args:
        spec: what to write to load it.
        where: "here" (the files are on this machine) or "public".
        about: one line.
    """

    spec: str
    where: str
    about: str


def model_names() -> list[ModelEntry]:
    """Return the models that go by a name here, then the public robust weights."""
    from zsrobust.models.public import public_weights
    from zsrobust.models.spec import named_folders

    here = [ModelEntry(name, "here", str(folder)) for name, folder in named_folders().items()]
    public = []
    for row in public_weights():
        radius = f" at {row.eps}" if row.eps else ""
        about = [f"{row.method}{radius}, {row.backbone}.", row.note]
        if row.refused:
            about.append(f"Not loaded as it is: {row.refused}.")
        public.append(ModelEntry(row.spec, "public", " ".join(part for part in about if part)))
    return here + public


def __getattr__(name: str) -> Any:
    """Import a public name when it is first asked for."""
    if name in _HOMES:
        return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
