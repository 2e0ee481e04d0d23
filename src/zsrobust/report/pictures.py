"""Pictures of the examples: clean, perturbation magnified, adversarial; as PNGs that stand in the page."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zsrobust.evaluation.examples import Example

SHOWN = 128  # px on the page, about: a whole number of times the picture's own pixels
LARGEST = 96  # px of a stored picture; larger ones are shrunk, so that the page stays small


@dataclass(frozen=True, slots=True)
class Picture:
    """A PNG with the size at which it is shown."""

    uri: str
    width: int
    height: int


@dataclass(frozen=True, slots=True)
class Pictures:
    """The pictures of one example."""

    clean: Picture
    attacked: list[tuple[Picture | None, Picture]]
    """(perturbation, adversarial) a model; no perturbation where the model was not attacked."""
    magnified: float
    """How many times the perturbations are magnified around mid grey, the same for all models."""
    shrunk_from: tuple[int, int] | None
    """(height, width) of the pictures before they were shrunk; None if they were not."""


def draw(example: Example) -> Pictures:
    """Return an example's pictures.

    A linf perturbation is magnified by 1 / (2 eps): -eps is black, 0 mid grey, +eps white. An l2 one by half
    the inverse of the largest change of any pixel.
    """
    clean = example.clean.astype(np.float64) / 255
    images = [_unit(one.image) for one in example.attacked]
    changes = [image - clean for image in images]
    if example.threat.norm == "linf":
        reach = example.threat.eps
    else:
        reach = max((float(np.abs(change).max()) for change in changes), default=0.0)
    factor = 0.5 / reach if reach > 0 else 1.0
    stride = max(1, -(-max(clean.shape[:2]) // LARGEST))
    attacked = []
    for image, change in zip(images, changes, strict=True):
        grey = None
        if np.abs(change).max() > 1e-6:  # below is the rounding of float32
            # Every stride-th pixel as it is: a mean over pixels would show a weaker perturbation than there is.
            grey = _png(np.clip(0.5 + factor * change[::stride, ::stride], 0, 1))
        attacked.append((grey, _png(_shrink(image, stride))))
    height, width = clean.shape[:2]
    return Pictures(
        clean=_png(_shrink(clean, stride)),
        attacked=attacked,
        magnified=factor,
        shrunk_from=(height, width) if stride > 1 else None,
    )


def _unit(image: NDArray[Any]) -> NDArray[np.float64]:
    scale = 255 if image.dtype == np.uint8 else 1
    return np.asarray(image, dtype=np.float64) / scale


def _shrink(image: NDArray[np.float64], stride: int) -> NDArray[np.float64]:
    """Return means over squares of stride x stride pixels; what is left over at the edges is cut."""
    if stride == 1:
        return image
    height, width = (side // stride * stride for side in image.shape[:2])
    squares = image[:height, :width].reshape(height // stride, stride, width // stride, stride, 3)
    return np.asarray(squares.mean(axis=(1, 3)))


def _png(image: NDArray[np.float64]) -> Picture:
    """Return (H, W, 3) in [0, 1] as a PNG of 8 bits."""
    from PIL import Image

    stream = io.BytesIO()
    pixels = np.rint(255 * image).astype(np.uint8)
    Image.fromarray(pixels).save(stream, format="PNG", optimize=True)
    height, width = pixels.shape[:2]
    times = max(1, round(SHOWN / max(height, width)))
    uri = "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode("ascii")
    return Picture(uri, times * width, times * height)
