"""Foreign checkpoints of an image tower, laid over a base model.

Forms that are known:
    the TeCoA authors' dict        key "vision_encoder_state_dict", OpenAI's names, beside epoch,
                                   prompters and optimiser (facts 3.6); APT's and TGA-ZSR's alike
    RobustVLM's bare state dict    of `model.visual`
    a training loop's              key "state_dict"
each with or without "module." (DataParallel) and "visual." before the names, as a pickle or as
safetensors. For ViT and ModifiedResNet OpenAI's names are open_clip's.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, cast

from torch import Tensor, nn

from zsrobust.errors import UserError
from zsrobust.models.adapters import refuse_prompts
from zsrobust.models.load import check_quick_gelu
from zsrobust.models.public import public_file
from zsrobust.models.weights import few, fill, read_file, strip_prefix, tensor_table

if TYPE_CHECKING:
    from zsrobust.models.load import Clip

_AUTHORS_KEY = "vision_encoder_state_dict"
_OPENAI_BASES = {False: "ViT-B-32-quickgelu:openai", True: "RN50-quickgelu:openai"}


def read_tower(file: Path) -> dict[str, Tensor]:
    """Return an image tower's tensors under the names that open_clip's `model.visual` has.

    Raises:
        UserError: if the file is missing, damaged, executes code, or holds no image tower.
        EnvironmentFault: if it cannot be read.
    """
    return _read(file)[0]


def overlay(clip: Clip, tensors: Mapping[str, Tensor], file: Path) -> None:
    """Put a tower's tensors into `clip`: every one used, none missing, shapes equal.

    Raises:
        UserError: naming the first few that do not fit.
    """
    visual = cast(nn.Module, clip.model.visual)
    mend = "name the model that the prompts were trained on as base"
    refuse_prompts(clip.model, f"base {clip.spec}", mend)
    fill(
        visual,
        tensors,
        f"{file} over {clip.spec}",
        "name the base that this tower was trained from",
    )


def lay_over(clip: Clip, file: Path) -> None:
    """Read `file` and put it into `clip`, whose activation must be the one it was trained with.

    Raises:
        UserError: as `read_tower` and `overlay`, and if the activation differs (traps 9): the TeCoA
            authors' form and the known files of other authors start from OpenAI's weights.
    """
    tensors, authors = _read(file)
    known = public_file(file.name)
    expected = known.quick_gelu if known else None
    base = known.base if known else ""
    if authors:
        expected = True
        base = base or _OPENAI_BASES["attnpool.positional_embedding" in tensors]
    example = f"write {file}@{base}" if base else "name another base"
    check_quick_gelu(clip.config["model_cfg"], expected, f"{file} over {clip.spec}", example)
    overlay(clip, tensors, file)


def _read(file: Path) -> tuple[dict[str, Tensor], bool]:
    """Return the tensors, and whether they came in the TeCoA authors' dict."""
    found = read_file(file)
    authors = isinstance(found, Mapping) and _AUTHORS_KEY in found
    if isinstance(found, Mapping):
        for key in (_AUTHORS_KEY, "state_dict"):
            if isinstance(found.get(key), Mapping):
                found = found[key]
                break
    tensors = strip_prefix(tensor_table(found, file), "module.")
    if any(name.startswith("vision_model.") for name in tensors):
        raise UserError(
            f"{file}: names of the transformers library (vision_model...); convert it to "
            "open_clip's names first and load the folder as local-dir:PATH."
        )
    tensors = strip_prefix(tensors, "visual.")
    whole = [name for name in tensors if name.startswith("visual.")]
    if whole:
        others = [name for name in tensors if not name.startswith("visual.")]
        raise UserError(
            f"{file}: a whole CLIP ({len(others)} tensors beside the image tower: {few(others)}); "
            "put it into a folder as open_clip_pytorch_model.bin with its open_clip_config.json "
            "and use local-dir:PATH."
        )
    return tensors, authors
