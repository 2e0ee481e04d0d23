"""Models on disk: open_clip's folder, a hardening's model, and the bare visual state dict.

A folder is written in this order: the old config is removed, then weights, then the config. Loading
asks for the config first, so a folder that was left half written is never taken for a whole one.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast, get_args

import torch
from torch import Tensor, nn

from zsrobust.adaptations.prompts import prompt_facts, prompt_tensors, without_prompts
from zsrobust.errors import UserError, unknown_name
from zsrobust.files import machine_faults, refuse_file, write_atomically, write_json
from zsrobust.models.adapters import (
    LORA_NAME,
    PROMPTS_NAME,
    carries_prompts,
    noted,
    refuse_prompts,
)
from zsrobust.models.load import (
    ADAPTATION_FORMAT,
    ADAPTATION_NAME,
    HEAD_NAME,
    WEIGHT_NAMES,
    Clip,
    load_clip,
    read_adaptation,
)
from zsrobust.models.spec import CONFIG_NAME, ModelSpec, parse_spec
from zsrobust.models.weights import write_bytes

if TYPE_CHECKING:
    from zsrobust.models.classifier import HeadClassifier

Form = Literal["open_clip", "visual"]
Stored = Literal["fp32", "fp16"]


def save_open_clip(
    model: nn.Module,
    config: Mapping[str, Any],
    out: Path,
    tokenizer: Callable[..., Any] | None = None,
    stored: Stored = "fp32",
    adaptation: Mapping[str, Any] | None = None,
) -> None:
    """Write a folder that plain open_clip loads as `local-dir:`, with equal float32 weights.

    Args:
        model: open_clip's model, of any dtype.
        config: {"model_cfg": ..., "preprocess_cfg": ...}, as `Clip.config`.
        out: made if missing; a model that was there is replaced, other files stay.
        tokenizer: the model's; files of its own (`save_pretrained`) are written too.
        stored: "fp16" halves the file; the weights are then those rounded to float16 (but for the logit
            scale), and what loads them (here and in open_clip) computes in float32 as ever.
        adaptation: of a model that was made of hardened ones, for its `adaptation.json`; "format" is added.

    Raises:
        UserError: if a weight lies beyond float16's range and "fp16" is asked for, or the model carries
            prompts.
        EnvironmentFault: if the disk is full or the folder cannot be written.
    """
    refuse_prompts(model, "the model", "write it with save_hardened, and load it as run:DIR")
    record = None if adaptation is None else {**adaptation, "format": ADAPTATION_FORMAT}
    _save_folder(model, config, out, tokenizer, record, stored)


def save_hardened(
    model: nn.Module,
    config: Mapping[str, Any],
    out: Path,
    adaptation: Mapping[str, Any],
    tokenizer: Callable[..., Any] | None = None,
    head: HeadClassifier | None = None,
    factors: Mapping[str, Tensor] | None = None,
) -> None:
    """Write what `run:OUT` reads: OUT/model with config, weights and adaptation.json.

    Prompts in the image tower are kept as OUT/model/prompts.safetensors, beside the weights that they were
    trained on; `run:OUT` puts them back.

    Args:
        model: open_clip's model with its trained parameters; low-rank factors are merged.
        config: as in `save_open_clip`.
        out: the run's folder.
        adaptation: at least {"adaptation": name, "base": spec}, and of prompts and factors "settings";
            "format" is added, of a head "head" (its kind, class count and hash), and of prompts and factors
            "prompts" and "lora" (their hash).
        tokenizer: as in `save_open_clip`.
        head: trained along; kept as OUT/model/head.safetensors, which `run:OUT` does not read.
        factors: low-rank ones that are merged into the weights; kept as OUT/model/lora.safetensors, which
            `run:OUT` does not read.

    Raises:
        UserError: if the adaptation is unknown, has prompts where the model has none, or the other way
            round, or no base is named.
        EnvironmentFault: if the disk is full or the folder cannot be written.
    """
    from zsrobust.adaptations import ADAPTATIONS, PROMPTING

    if adaptation.get("adaptation") not in ADAPTATIONS:
        raise unknown_name("adaptation", str(adaptation.get("adaptation")), ADAPTATIONS)
    if not adaptation.get("base"):
        raise UserError("a hardened model is saved with its 'base', the spec that it started from.")
    record = {**adaptation, "format": ADAPTATION_FORMAT}
    facts = prompt_facts(model)
    if bool(facts) != (adaptation["adaptation"] in PROMPTING):
        raise UserError(
            f"adaptation {adaptation['adaptation']!r} is noted for a model with "
            f"{' and '.join(facts) or 'no prompts'}; note what was trained."
        )
    beside: dict[str, dict[str, Tensor]] = {}
    if facts:
        beside[PROMPTS_NAME] = _plain(prompt_tensors(model))
        record["prompts"] = noted(beside[PROMPTS_NAME], facts)
    if factors:
        beside[LORA_NAME] = _plain(factors)
        record["lora"] = noted(beside[LORA_NAME], {})
    if head is not None:
        record["head"] = {
            "kind": head.kind,
            "classes": len(head.weight),
            "sha256": head.content_hash,
        }
    _save_folder(model, config, out / "model", tokenizer, record, head=head, beside=beside)


def save_visual(clip: Clip, path: Path) -> None:
    """Write the image tower's bare state dict as a pickle of tensors, the form of RobustVLM's code.

    It loads with `model.visual.load_state_dict(torch.load(path, weights_only=True))`, and here as
    PATH@BASE.

    Raises:
        UserError: if the model carries prompts.
        EnvironmentFault: if the disk is full or the folder cannot be written.
    """
    refuse_prompts(clip.model, clip.spec, "use it as it is")
    visual: nn.Module = clip.model.visual  # type: ignore[assignment]
    write_atomically(path, lambda stream: torch.save(_plain(visual.state_dict()), stream))


def convert(spec: str | ModelSpec, out: Path, form: Form = "open_clip") -> None:
    """Write any model spec as an open_clip folder, or its image tower as a visual state dict.

    Low-rank factors of a run are in its weights already. Prompts are in no weights, and are refused.

    Args:
        spec: what to load.
        out: the folder ("open_clip"; it may be there if it is empty) or the file ("visual").
        form: which.

    Raises:
        UserError: if the spec cannot be loaded or carries prompts, the form is unknown, or something is at
            `out`.
        EnvironmentFault: if it cannot be fetched or written.
    """
    if form not in get_args(Form):
        raise unknown_name("form", str(form), get_args(Form))
    # Before loading: a model of some gigabytes is not read to be refused.
    empty = form != "visual" and out.is_dir() and not any(out.iterdir())
    if out.exists() and not empty:
        raise UserError(f"{out} is there already; name another place, or remove it first.")
    refuse_file(out.parent)
    parsed = spec if isinstance(spec, ModelSpec) else parse_spec(spec)
    if parsed.kind == "run" and (cast(Path, parsed.folder) / "model" / PROMPTS_NAME).is_file():
        base = read_adaptation(cast(Path, parsed.folder) / "model").get("base")
        mend = f"use {parsed.text} as it is, or convert the model that it started from ({base})"
        raise UserError(carries_prompts(parsed.text, mend))
    clip = load_clip(parsed)
    if form == "visual":
        save_visual(clip, out)
    else:
        save_open_clip(clip.model, clip.config, out, clip.tokenizer)


def _save_folder(
    model: nn.Module,
    config: Mapping[str, Any],
    out: Path,
    tokenizer: Callable[..., Any] | None,
    adaptation: Mapping[str, Any] | None,
    stored: Stored = "fp32",
    head: HeadClassifier | None = None,
    beside: Mapping[str, Mapping[str, Tensor]] | None = None,
) -> None:
    from safetensors.torch import save

    tensors = _plain(without_prompts(model.state_dict()))
    if stored == "fp16":
        tensors = {name: _half(name, tensor) for name, tensor in tensors.items()}

    with machine_faults(out):
        (out / CONFIG_NAME).unlink(missing_ok=True)
        # Weights of another name would be passed over, what stood beside older ones misread.
        for name in (*WEIGHT_NAMES[1:], ADAPTATION_NAME, HEAD_NAME, PROMPTS_NAME, LORA_NAME):
            (out / name).unlink(missing_ok=True)
    content = save(tensors, {"format": "pt"})
    write_bytes(out / WEIGHT_NAMES[0], content)
    save_tokenizer = getattr(tokenizer, "save_pretrained", None)
    if save_tokenizer is not None:
        with machine_faults(out):
            save_tokenizer(str(out))
    for name, added in (beside or {}).items():
        write_bytes(out / name, save(dict(added), {"format": "pt"}))
    if head is not None:
        head.save(out / HEAD_NAME)
    if adaptation is not None:
        write_json(out / ADAPTATION_NAME, dict(adaptation))
    # Through JSON and back: a value that JSON does not know fails before the file is there.
    write_json(out / CONFIG_NAME, json.loads(json.dumps(dict(config))))


def _plain(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return float32 copies on the CPU, no two of them in one memory (safetensors refuses that)."""
    plain, seen = {}, set()
    for name, tensor in state.items():
        copy = tensor.detach().cpu().contiguous()
        copy = copy.float() if copy.is_floating_point() else copy
        if copy.data_ptr() in seen:
            copy = copy.clone()
        seen.add(copy.data_ptr())
        plain[name] = copy
    return plain


def _half(name: str, tensor: Tensor) -> Tensor:
    """Return a tensor in float16; a scale or bias of one number stays as it is, for it costs nothing."""
    if not tensor.is_floating_point() or tensor.numel() == 1:
        return tensor
    rounded = tensor.half()
    if bool((rounded.isinf() & ~tensor.isinf()).any()):
        raise UserError(f"{name} holds values beyond float16's range (65504): save it as fp32.")
    return rounded
