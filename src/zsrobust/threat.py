"""The threat: a norm, an eps in [0, 1]-pixel units, and the resolution at which the ball is drawn."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Literal, get_args

from zsrobust.errors import UserError, unknown_name

if TYPE_CHECKING:
    from torch import Tensor

Norm = Literal["linf", "l2"]
Resolution = Literal["model", "native"]

# x + eps in float32 may exceed eps by an ulp; membership forgives that and no more (traps 7).
SLACK = 1e-6


def parse_eps(text: str | float, norm: str = "linf") -> float:
    """Return eps as a float in [0, 1]-pixel units; "8/255" is read as a fraction.

    Raises:
        UserError: if it is no finite number >= 0, or a linf eps above 1 (most likely meant in /255).
    """
    return _parse_pixels("eps", text, norm)


def parse_step(text: str | float, norm: str = "linf") -> float:
    """Return an attack's step size in [0, 1]-pixel units, read as `parse_eps` reads eps.

    Raises:
        UserError: as `parse_eps`, and for a step of 0.
    """
    step = _parse_pixels("step size", text, norm)
    if step == 0:
        raise UserError(f"a step size must be > 0 in [0, 1]-pixel units, got {text!r}.")
    return step


def _parse_pixels(what: str, text: str | float, norm: str) -> float:
    try:
        if isinstance(text, bool):
            raise ValueError("a truth value is no radius")
        # "8 / 255" is one number, "1/255 2/255" is none.
        bare = re.sub(r"\s*/\s*", "/", text.strip()) if isinstance(text, str) else text
        value = float(Fraction(bare)) if isinstance(bare, str) else float(bare)
    except (ValueError, TypeError, ZeroDivisionError, OverflowError) as error:
        raise UserError(
            f"{what} {text!r} is not a number; write it in [0, 1]-pixel units, "
            "for instance 8/255 or 0.0314."
        ) from error
    if not math.isfinite(value) or value < 0:
        raise UserError(f"{what} must be a finite number >= 0 in [0, 1]-pixel units, got {text!r}.")
    if norm == "linf" and value > 1:
        given = text.strip() if isinstance(text, str) else f"{value:g}"
        # What is a fraction already was not meant in levels.
        mend = f"did you mean {given}/255?" if value <= 255 and "/" not in given else "write 8/255."
        raise UserError(
            f"a linf {what} lies in [0, 1] (pixel units, 1.0 = full range), got {text!r}; {mend}"
        )
    return value


def format_eps(eps: float) -> str:
    """Return eps as people write it: "2/255" where it is a whole number of levels, else 4 digits."""
    levels = eps * 255
    if eps <= 1 and abs(levels - round(levels)) < 1e-9:
        return f"{round(levels)}/255" if round(levels) else "0"
    return f"{eps:.4g}"


@dataclass(frozen=True, slots=True)
class Threat:
    """What the attacker may do to an image.

    Args:
        norm: "linf" or "l2".
        eps: radius in [0, 1]-pixel units, before normalisation.
        resolution: "model" (the image is resized to the model's size first, the ball is around that)
            or "native" (the ball is around the set's own pixels, upsampled inside the classifier).
            Same eps, another threat.

    Raises:
        UserError: for an unknown norm or resolution, or an eps out of range.
    """

    norm: Norm = "linf"
    eps: float = 0.0
    resolution: Resolution = "model"

    def __post_init__(self) -> None:
        if self.norm not in get_args(Norm):
            raise unknown_name("norm", str(self.norm), get_args(Norm))
        if self.resolution not in get_args(Resolution):
            raise unknown_name("attack resolution", str(self.resolution), get_args(Resolution))
        object.__setattr__(self, "eps", parse_eps(self.eps, self.norm))

    def __str__(self) -> str:
        return f"{self.norm} {format_eps(self.eps)}"

    def project(self, images: Tensor, clean: Tensor) -> Tensor:
        """Return the points of ball and box nearest to `images`, sample by sample.

        Args:
            images: (N, 3, H, W), anywhere.
            clean: (N, 3, H, W) in [0, 1], the centres.

        The box [0, 1] is applied last. For l2 that is a projection onto the ball first and then onto the
        box, which stays in the ball because the centre lies in the box (traps 7).
        """
        if self.norm == "linf":
            return images.clamp(clean - self.eps, clean + self.eps).clamp(0.0, 1.0)
        delta = images - clean
        # The length in float64: over 150,000 float32 numbers it errs by more than membership forgives.
        length = vector_length(delta)
        factor = (self.eps / length.clamp_min(1e-30)).clamp(max=1.0).to(delta.dtype)
        return (clean + delta * per_sample(factor, delta)).clamp(0.0, 1.0)

    def distance(self, images: Tensor, clean: Tensor) -> Tensor:
        """Return the distances (N,) in float64, computed from the tensors as they are."""
        delta = images.double() - clean.double()
        return delta.flatten(1).abs().amax(1) if self.norm == "linf" else vector_length(delta)

    def contains(self, images: Tensor, clean: Tensor, distance: Tensor | None = None) -> Tensor:
        """Return which images (N,) bool lie in ball and box.

        linf: |d| <= eps + 1e-6; l2: |d| <= eps (1 + 1e-6) + 1e-6; every pixel in [0, 1].
        `distance` (N,) float64 is measured here unless it is given.
        """
        relative = SLACK if self.norm == "l2" else 0.0
        measured = self.distance(images, clean) if distance is None else distance
        near = measured <= self.eps * (1.0 + relative) + SLACK
        flat = images.flatten(1)
        return near & (flat.amin(1) >= 0.0) & (flat.amax(1) <= 1.0)

    def steepest(self, gradient: Tensor) -> Tensor:
        """Return the direction of steepest ascent of unit length in this norm.

        linf: sign, with sign(0) = 0. l2: gradient / |gradient| per sample; a zero gradient gives a zero
        step, not NaN (traps 22).
        """
        if self.norm == "linf":
            return gradient.sign()
        inverse = (1.0 / vector_length(gradient).clamp_min(1e-30)).to(gradient.dtype)
        return gradient * per_sample(inverse, gradient)


def vector_length(images: Tensor) -> Tensor:
    """Return the Euclidean length of each sample (N,), accumulated in float64."""
    import torch

    length: Tensor = torch.linalg.vector_norm(images.flatten(1), dim=1, dtype=torch.float64)
    return length


def per_sample(values: Tensor, like: Tensor) -> Tensor:
    """Return `values` (N,) shaped to multiply `like` (N, ...)."""
    return values.reshape(-1, *[1] * (like.dim() - 1))
