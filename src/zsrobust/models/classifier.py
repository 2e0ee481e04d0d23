"""Images in [0, 1] to logits: the encoder, zero-shot anchors, and heads.

Upsampling and normalisation are inside, so that gradients flow through them and eps keeps its
meaning (traps 2). Features, anchors and logits are float32 whatever the precision of the tower
(traps 13).
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from zsrobust.errors import UserError, unknown_name
from zsrobust.hashing import sha256_json, sha256_tensors
from zsrobust.models.weights import read_file, tensor_table, write_bytes
from zsrobust.preprocess import Preprocess

if TYPE_CHECKING:
    from zsrobust.models.load import Clip

PRECISIONS = ("fp32", "bf16")
DEFAULT_TEMPLATES = ("a photo of a {}.",)


class ImageEncoder(nn.Module):
    """Images in [0, 1] -> image features before normalisation.

    Args:
        model: open_clip's model; shared, not copied.
        preprocess: its image rule.
        precision: "fp32", or "bf16" for autocast of the tower; it holds whatever autocast the
            caller is in.

    Raises:
        UserError: for an unknown precision.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, model: nn.Module, preprocess: Preprocess, precision: str = "fp32") -> None:
        super().__init__()
        if precision not in PRECISIONS:
            raise unknown_name("precision", precision, PRECISIONS)
        self.model = model
        self.preprocess = preprocess
        self.precision = precision
        # As buffers they wait on the device; made anew from numbers they would stall every call.
        device = next(model.parameters()).device
        for name in ("mean", "std"):
            values = torch.tensor(getattr(preprocess, name), device=device).reshape(1, -1, 1, 1)
            self.register_buffer(name, values, persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Return features (N, D), not normalised: float32, or float64 after `.double()`.

        Args:
            images: (N, 3, H, W) in [0, 1]; upsampled to the model's size where they are of another.

        Raises:
            UserError: if they have another shape, or are no floats. That they lie in [0, 1] is not
                checked here: on a GPU every call would have to wait for it.
        """
        if images.dim() != 4 or images.shape[1] != 3 or not images.is_floating_point():
            raise UserError(
                "images must be (N, 3, H, W) floats in [0, 1], got "
                f"{tuple(images.shape)} of {images.dtype}: bring the channels forward, divide by 255."
            )
        model = cast(Any, self.model)
        images = self.preprocess.upsample(images.to(model.logit_scale.dtype))
        if images.dtype == torch.float64:
            images = self.preprocess.normalise(
                images
            )  # constants not rounded to float32 on their way
        else:
            images = (images - self.mean) / self.std
        with torch.autocast(images.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            # CoCa normalises by default.
            features: Tensor = model.encode_image(images, normalize=False)
        return features if features.dtype == torch.float64 else features.float()


@dataclass(frozen=True, eq=False, slots=True)
class TextAnchors:
    """Unit text features of classes, and which classes have equal texts.

    Args:
        anchors: (K, D) float32, unit rows; bit-equal within a group.
        groups: (K,) int64, the number of each class's text group, in order of first appearance.
        representatives: (G,) int64, the first class of each group.
    """

    anchors: Tensor
    groups: Tensor
    representatives: Tensor


def text_anchors(
    clip: Clip, classnames: Sequence[str], templates: Sequence[str] = DEFAULT_TEMPLATES
) -> TextAnchors:
    """Encode class texts: mean over templates of unit features, normalised again (traps 14).

    Classes form a text group if their token ids are equal under every template (the tokenizer
    lower-cases and cuts); each group is encoded once and copied (traps 57).

    Args:
        clip: the model.
        classnames: K names.
        templates: T sentences with exactly one "{}" each.

    Raises:
        UserError: for no or blank class names, no templates, or a template that does not hold
            "{}" exactly once.
    """
    rendered = render(classnames, templates)
    tokens = torch.stack(
        [clip.tokenizer([texts[t] for texts in rendered]) for t in range(len(templates))], dim=1
    )  # (K, T, context)
    numbers: dict[bytes, int] = {}
    groups, representatives = [], []
    for k, ids in enumerate(tokens):
        key = ids.numpy().tobytes()
        if key not in numbers:
            numbers[key] = len(numbers)
            representatives.append(k)
        groups.append(numbers[key])
    flat = [text for k in representatives for text in rendered[k]]
    features = functional.normalize(clip.encode_texts(flat), dim=-1)  # (G * T, D)
    means = features.reshape(len(representatives), len(templates), -1).mean(dim=1)
    number = torch.tensor(groups, device=means.device)
    anchors = functional.normalize(means, dim=-1)[number]
    return TextAnchors(anchors, number, torch.tensor(representatives, device=means.device))


def render(classnames: Sequence[str], templates: Sequence[str]) -> list[list[str]]:
    """Return the texts, one list of T for each of K classes.

    Raises:
        UserError: as in `text_anchors`.
    """
    if isinstance(classnames, str) or isinstance(templates, str):
        raise UserError("class names and templates are lists of texts, not one text.")
    if not len(classnames):
        raise UserError("no class names; give at least one.")
    given: list[object] = [*classnames, *templates]
    odd = [value for value in given if not isinstance(value, str)]
    if odd:
        raise UserError(f"class names and templates are texts, got {odd[0]!r} among them.")
    blank = [str(k) for k, name in enumerate(classnames) if not name.strip()]
    if blank:
        raise UserError(f"class name number {', '.join(blank[:3])} (counted from 0) is blank.")
    if not len(templates):
        raise UserError("no templates; give at least one, for instance 'a photo of a {}.'.")
    for template in templates:
        if template.count("{}") != 1:
            raise UserError(
                f"template {template!r} must hold {{}} exactly once, where the class name goes, "
                "as in 'a photo of a {}.'."
            )
    return [[template.replace("{}", name) for template in templates] for name in classnames]


def text_record(classnames: Sequence[str], templates: Sequence[str]) -> dict[str, Any]:
    """Return what of the texts enters a cell's key: names, templates, the rendered texts' hash."""
    return {
        "classnames": list(classnames),
        "templates": list(templates),
        "rendered": sha256_json(render(classnames, templates)),
    }


class ZeroShotClassifier(nn.Module):
    """Images in [0, 1] -> scale x cosine to K frozen anchors.

    Args:
        encoder: images -> features (N, D).
        anchors: (K, D) float32, unit rows; receive no gradient.
        scale: exp of the model's logit scale (traps 15).
        groups: (K,) int64, text groups; None: every class its own.
        classnames: K names, for records.
        templates: for records.

    Raises:
        UserError: if shapes differ, anchors are not of unit length, or the scale is not > 0.
    """

    anchors: Tensor
    groups: Tensor

    def __init__(
        self,
        encoder: nn.Module,
        anchors: Tensor,
        scale: float,
        groups: Tensor | None = None,
        classnames: Sequence[str] | None = None,
        templates: Sequence[str] | None = None,
    ) -> None:
        super().__init__()
        _check_unit_rows(anchors, "anchors")
        count = len(anchors)
        for what, given in (("groups", groups), ("class names", classnames)):
            if given is not None and len(given) != count:
                raise UserError(f"{len(given)} {what} for {count} anchors; one each is needed.")
        if not (math.isfinite(scale) and scale > 0):
            raise UserError(
                f"the scale must be a finite number > 0 (CLIP's is about 100), got {scale}."
            )
        self.encoder = encoder
        self.scale = float(scale)
        self.classnames = None if classnames is None else list(classnames)
        self.templates = None if templates is None else list(templates)
        if groups is None:
            groups = torch.arange(count)
        self.register_buffer("anchors", anchors.detach())
        self.register_buffer("groups", groups.detach().to(anchors.device, torch.int64))

    @classmethod
    def from_texts(
        cls,
        clip: Clip,
        classnames: Sequence[str],
        templates: Sequence[str] = DEFAULT_TEMPLATES,
        precision: str = "fp32",
    ) -> ZeroShotClassifier:
        """Build the classifier of a model for class names; arguments as in `text_anchors`."""
        texts = text_anchors(clip, classnames, templates)
        encoder = clip.image_encoder(precision)
        return cls(encoder, texts.anchors, clip.logit_scale, texts.groups, classnames, templates)

    def text_record(self) -> dict[str, Any]:
        """Return what enters a cell's key: the texts, or the anchors' hash where none are known."""
        if self.classnames is None or self.templates is None:
            return {"anchors": sha256_tensors({"anchors": self.anchors})}
        return text_record(self.classnames, self.templates)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (N, K), in the features' dtype.

        Args:
            images: (N, 3, H, W) in [0, 1].
        """
        return _cosines(self.encoder(images), self.anchors, self.scale)


class HeadClassifier(nn.Module):
    """Images in [0, 1] -> logits of a trained linear head, or of a dictionary of unit vectors.

    For scoring and linear probes only; it never enters a zero-shot mean. Made by `linear`,
    `dictionary` or `from_file`. A linear head sees features before normalisation.
    """

    weight: Tensor
    bias: Tensor
    groups: Tensor

    def __init__(
        self,
        encoder: nn.Module,
        *,
        kind: Literal["linear", "dictionary"],
        weight: Tensor,
        bias: Tensor,
        scale: float,
        classnames: Sequence[str] | None,
    ) -> None:
        super().__init__()
        count = len(weight)
        if bias.shape != (count,):
            raise UserError(f"a head of {count} classes with a bias of shape {tuple(bias.shape)}.")
        if classnames is not None and len(classnames) != count:
            raise UserError(f"{len(classnames)} class names for a head of {count} classes.")
        self.encoder = encoder
        self.kind: Literal["linear", "dictionary"] = kind
        self.scale = float(scale)
        self.classnames = None if classnames is None else list(classnames)
        self.register_buffer("weight", weight.detach().float())
        self.register_buffer("bias", bias.detach().float().to(weight.device))
        self.register_buffer("groups", torch.arange(count, device=weight.device))

    @classmethod
    def linear(
        cls,
        encoder: nn.Module,
        weight: Tensor,
        bias: Tensor,
        classnames: Sequence[str] | None = None,
    ) -> HeadClassifier:
        """Build from a weight (K, D) and a bias (K,).

        Raises:
            UserError: if the shapes do not fit.
        """
        if weight.ndim != 2:
            raise UserError(f"a head's weight is (K, D), not {tuple(weight.shape)}.")
        return cls(
            encoder, kind="linear", weight=weight, bias=bias, scale=1.0, classnames=classnames
        )

    @classmethod
    def dictionary(
        cls,
        encoder: nn.Module,
        vectors: Tensor,
        scale: float,
        classnames: Sequence[str] | None = None,
    ) -> HeadClassifier:
        """Build from unit vectors (K, D): logits = scale x cosine.

        Raises:
            UserError: if the rows are not of unit length.
        """
        _check_unit_rows(vectors, "dictionary")
        none = torch.zeros(len(vectors))
        return cls(
            encoder,
            kind="dictionary",
            weight=vectors,
            bias=none,
            scale=scale,
            classnames=classnames,
        )

    @classmethod
    def from_file(cls, encoder: nn.Module, path: Path) -> HeadClassifier:
        """Read what `save` wrote.

        Raises:
            UserError: if the file is missing, damaged or holds no head.
        """
        from safetensors import safe_open

        tensors = tensor_table(read_file(path), path)
        with safe_open(str(path), "pt") as opened:
            metadata = opened.metadata() or {}
        kind = metadata.get("kind")
        wanted = {"linear": {"weight", "bias"}, "dictionary": {"vectors", "scale"}}
        if kind not in wanted or set(tensors) != wanted[kind]:
            raise UserError(
                f"{path}: not a head (kind {kind!r}, tensors {', '.join(sorted(tensors))})."
            )
        try:
            names = json.loads(metadata.get("classnames", "null"))
        except ValueError as error:
            raise UserError(
                f"{path}: its class names are not JSON; write the head again."
            ) from error
        device = next((p.device for p in encoder.parameters()), torch.device("cpu"))
        tensors = {name: tensor.to(device) for name, tensor in tensors.items()}
        if kind == "linear":
            return cls.linear(encoder, tensors["weight"], tensors["bias"], names)
        return cls.dictionary(encoder, tensors["vectors"], tensors["scale"].item(), names)

    def _tensors(self) -> dict[str, Tensor]:
        if self.kind == "linear":
            table = {"weight": self.weight.float(), "bias": self.bias.float()}
        else:
            scale = torch.tensor(self.scale, dtype=torch.float64)
            table = {"vectors": self.weight.float(), "scale": scale}
        return {name: tensor.detach().cpu().contiguous() for name, tensor in table.items()}

    @property
    def content_hash(self) -> str:
        """Hex SHA-256 of the head: kind and tensors."""
        return sha256_json({"kind": self.kind, "tensors": sha256_tensors(self._tensors())})

    def text_record(self) -> dict[str, Any]:
        """Return what stands for the texts in a cell's key: the head's hash."""
        return {"head": self.content_hash}

    def save(self, path: Path) -> None:
        """Write the head, not the encoder, as safetensors; atomically.

        A run keeps it as `model/head.safetensors`.
        """
        from safetensors.torch import save

        metadata: dict[str, str] = {"kind": self.kind}
        if self.classnames is not None:
            metadata["classnames"] = json.dumps(self.classnames, ensure_ascii=False)
        content = save(self._tensors(), metadata)
        write_bytes(path, content)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (N, K), in the features' dtype; `images` (N, 3, H, W) in [0, 1]."""
        features = self.encoder(images)
        if self.kind == "dictionary":
            return _cosines(features, self.weight, self.scale)
        with torch.autocast(features.device.type, enabled=False):
            return functional.linear(
                features, self.weight.to(features.dtype), self.bias.to(features.dtype)
            )


def _cosines(features: Tensor, anchors: Tensor, scale: float) -> Tensor:
    # An autocast around the call must not round the logits.
    with torch.autocast(features.device.type, enabled=False):
        return scale * functional.normalize(features, dim=-1) @ anchors.to(features.dtype).T


def _check_unit_rows(rows: Tensor, what: str) -> None:
    if rows.ndim != 2 or not len(rows):
        raise UserError(f"{what} must be (K, D) with K >= 1, got {tuple(rows.shape)}.")
    length = rows.detach().double().norm(dim=-1)
    if not bool(((length - 1.0).abs() < 1e-3).all()):
        raise UserError(
            f"{what} must have rows of unit length, "
            f"got lengths from {length.min():.4g} to {length.max():.4g}."
        )
