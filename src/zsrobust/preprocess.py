"""From a picture of any kind to the uint8 tensor that is attacked, by the model's own rule.

Resize and crop come before the attack and are part of the threat (traps 3); mean and standard
deviation come after it, inside the classifier (traps 2). Both are read from the model's config.
"""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from zsrobust.errors import UserError, one_line, unknown_name

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor


ImageRule = Literal["model", "paper"]
# Short side 256, centre crop 224 (facts 4.2); of another size, in the same proportion.
_PAPER_MODE = "shortest of 256, crop 224"


@dataclass(frozen=True, slots=True)
class Preprocess:
    """A model's image rule.

    Args:
        size: (height, width) in pixels of what the model sees.
        mean: per channel, of images in [0, 1].
        std: per channel.
        interpolation: "bicubic" or "bilinear", on PIL images (antialiased).
        resize_mode: "shortest" (side to size, centre crop), "longest" (with padding) or "squash".
        fill_color: of the padding, 0..255.
    """

    size: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str = "bicubic"
    resize_mode: str = "shortest"
    fill_color: int = 0

    @classmethod
    def from_config(cls, config: Mapping[str, Any], what: str = "model") -> Preprocess:
        """Read open_clip's `visual.preprocess_cfg`; `what` names the model in messages.

        Raises:
            UserError: if a value is of the wrong type, or out of its range.
        """
        size = config["size"]
        rule = cls(
            size=(size, size) if isinstance(size, int) else (int(size[0]), int(size[1])),
            mean=_channels(config["mean"]),
            std=_channels(config["std"]),
            interpolation=str(config.get("interpolation", "bicubic")),
            resize_mode=str(config.get("resize_mode", "shortest")),
            fill_color=config.get("fill_color", 0),
        )
        mend = "mend preprocess_cfg in the model's config"
        fill = rule.fill_color
        for name, allowed, right in (
            ("mean", "three finite numbers", len(rule.mean) == 3),
            ("std", "three finite numbers > 0", len(rule.std) == 3 and min(rule.std) > 0),
            ("fill_color", "a whole number, 0 to 255", type(fill) is int and 0 <= fill <= 255),
        ):
            if not right:
                given = config.get(name)
                raise UserError(f"{what}: {name} must be {allowed}, got {given!r}; {mend}.")
        for name, given, known in (
            ("interpolation", rule.interpolation, ("bicubic", "bilinear")),
            ("resize_mode", rule.resize_mode, ("shortest", "longest", "squash")),
        ):
            if given not in known:
                raise unknown_name(
                    f"{name} of {what}", given, known, "It stands in preprocess_cfg of its config."
                )
        return rule

    def under(self, rule: ImageRule, resize: Literal["crop", "squash"] = "crop") -> Preprocess:
        """Return the rule by which images are brought to size: the model's own, or TeCoA's.

        "paper" resizes the short side to 8/7 of the model's size (256 for 224) and cuts out the
        centre, bilinear and antialiased on PIL images; mean and standard deviation stay the model's.
        Where the ball lies at native resolution neither applies.

        Args:
            rule: "model" or "paper".
            resize: of the set, under "paper": "squash" brings both sides to size without a crop.

        Raises:
            UserError: for "paper" and a model whose images are not square, or an unknown rule.
        """
        if rule == "model":
            return self
        if rule != "paper":
            raise unknown_name("image rule", rule, ("model", "paper"))
        if self.size[0] != self.size[1]:
            raise UserError(
                f"preprocess 'paper' makes square images, this model sees {self.size[1]} x "
                f"{self.size[0]} pixels: use 'model'."
            )
        mode = "squash" if resize == "squash" else _PAPER_MODE
        return replace(self, interpolation="bilinear", resize_mode=mode)

    def settings(self) -> dict[str, Any]:
        """Return what determines the pixels, as JSON, for keys and records."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    def geometry(self) -> Callable[[Image], Image]:
        """Return resize and crop on a PIL image, exactly open_clip's own evaluation transform.

        Or the paper's, for a rule made by `under`.
        """
        from open_clip.transform import image_transform
        from torchvision.transforms import CenterCrop, Compose, InterpolationMode, Resize

        if self.resize_mode == _PAPER_MODE:
            side = self.size[0]
            short = Resize(round(side * 256 / 224), InterpolationMode.BILINEAR, antialias=True)
            cut: Callable[[Image], Image] = Compose([short, CenterCrop(side)])
            return cut

        square = self.size[0] if self.size[0] == self.size[1] else self.size
        whole = image_transform(
            square,
            is_train=False,
            mean=self.mean,
            std=self.std,
            interpolation=self.interpolation,
            resize_mode=self.resize_mode,
            fill_color=self.fill_color,
        )
        # What follows the crop (conversion, tensor, normalisation) belongs to other places here.
        after = {"MaybeConvertMode", "MaybeToTensor", "Normalize"}
        kept: Callable[[Image], Image] = Compose(
            [step for step in whole.transforms if type(step).__name__ not in after]
        )
        return kept

    def normalise(self, images: Tensor) -> Tensor:
        """Return (images - mean) / std for images (N, 3, H, W) in [0, 1]."""
        mean = images.new_tensor(self.mean).reshape(1, -1, 1, 1)
        std = images.new_tensor(self.std).reshape(1, -1, 1, 1)
        return (images - mean) / std

    def upsample(self, images: Tensor) -> Tensor:
        """Return images at the model's size: bicubic, no antialiasing, not clamped; differentiable.

        Used where the ball lies at native resolution (facts 4.2). Images that have the size already
        are returned as they are.
        """
        if tuple(images.shape[-2:]) == self.size:
            return images
        from torch.nn.functional import interpolate

        return interpolate(images, size=self.size, mode="bicubic", align_corners=False)


def _channels(values: Any) -> tuple[float, ...]:
    """Return one finite number a channel; nothing where the values are something else."""
    try:
        numbers = tuple(float(value) for value in values)
    except (TypeError, ValueError):
        return ()
    return numbers if all(math.isfinite(number) for number in numbers) else ()


def decode(stored: bytes, what: str = "image") -> Image:
    """Return stored bytes as an RGB picture: turned by its EXIF orientation, then converted.

    Grey, palette, CMYK, 16-bit and transparent pictures are taken (traps 5): 16-bit grey is scaled by
    1/257, an alpha channel is dropped, as open_clip's own transform does.

    Raises:
        UserError: if the bytes are no picture, or a truncated one; `what` names it.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    mend = "replace the file or take it out of the set"
    if not stored:
        raise UserError(f"{what}: an empty file, no picture; {mend}.")
    try:
        # Pillow warns of large and of damaged pictures; what must be said is said below.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(stored)) as opened:
                opened.load()
                picture = ImageOps.exif_transpose(opened)
    except UnidentifiedImageError as error:  # its own text names an address in memory
        raise UserError(f"{what}: not a picture that Pillow can read; {mend}.") from error
    except Image.DecompressionBombError as error:
        limit = 2 * (Image.MAX_IMAGE_PIXELS or 0)
        raise UserError(f"{what}: a picture of more than {limit} pixels; {mend}.") from error
    except MemoryError:
        raise
    except Exception as error:  # a damaged file can break a decoder anywhere
        raise UserError(f"{what}: a damaged picture ({one_line(error)}); {mend}.") from error
    if picture.mode in ("I;16", "I;16B", "I;16L", "I"):
        levels = np.asarray(picture).astype(np.float64) / 257.0
        picture = Image.fromarray(np.clip(np.rint(levels), 0, 255).astype(np.uint8))
    if "transparency" in picture.info:
        picture = picture.convert("RGBA")
    return picture.convert("RGB")


def to_uint8(picture: Image) -> Tensor:
    """Return an RGB picture as a (3, H, W) uint8 tensor."""
    import torch

    return (
        torch.from_numpy(np.asarray(picture, dtype=np.uint8).copy()).permute(2, 0, 1).contiguous()
    )


def to_unit(pixels: Tensor) -> Tensor:
    """Return uint8 pixels as float32 in [0, 1]; levels are exactly k / 255 as torchvision makes them."""
    return pixels.float().div(255.0)
