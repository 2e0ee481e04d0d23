"""Interpolation of two models: (1 - a) A + a B of their image towers, tensor by tensor.

The curve from a model to its hardened form trades clean for robust accuracy without training (facts 3.6).
Every parameter and buffer of the tower is mixed, a batch norm's statistics too, which are not measured anew;
all else is A's, and B has to agree in it.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from zsrobust.adaptations.prompts import prompt_facts
from zsrobust.errors import UserError
from zsrobust.files import refuse_file
from zsrobust.models.load import ADAPTATION_NAME, Clip, essential_config, load_clip, read_adaptation
from zsrobust.models.save import save_open_clip
from zsrobust.models.spec import ModelSpec, parse_spec
from zsrobust.models.weights import few

# Batch norm's counter moves nothing here: A's is kept, and B's at the end where the tower is B's.
_COUNTER = "num_batches_tracked"


@dataclass(eq=False)
class MixedClip(Clip):
    """A `Clip` that was made of two.

    Args:
        parts: the specs of A and B, so that what either was hardened on counts as seen.
        at: a, the share of B.
    """

    parts: tuple[str, ...] = ()
    at: float = 0.0


def interpolate(first: str | Clip, second: str | Clip, at: float) -> MixedClip:
    """Return the model between two of one architecture, on the CPU or where A is.

    At 0 and at 1 the image tower is bit for bit A's or B's, and a tensor that is equal in both stays as it
    is: sums are made in float64 and rounded once.

    Args:
        first: A, a spec or a Clip; it is not changed.
        second: B. Its text tower and logit scale must be A's, as they are where only an image tower was
            trained. A LoRA run takes part with its merged weights.
        at: a in [0, 1].

    Raises:
        UserError: if `at` lies elsewhere; if architecture, activation, preprocessing, text tower or logit
            scale differ; if a model holds prompts, which stand in no weight; and as `load_clip`.
    """
    share = check_share(at)
    a = load_clip(first) if isinstance(first, str) else first
    b = load_clip(second) if isinstance(second, str) else second
    for clip in (a, b):
        _refuse_prompts(clip)
    _check_alike(a, b)
    model = copy.deepcopy(a.model)
    visual = cast(nn.Module, model.visual)
    here, there = _tower(a), _tower(b)
    visual.load_state_dict(
        {name: _between(tensor, there[name], share, name) for name, tensor in here.items()}
    )
    parts = tuple(part for clip in (a, b) for part in getattr(clip, "parts", (clip.spec,)))
    return MixedClip(
        spec=f"mix({a.spec}, {b.spec}, {share:g})",
        name=f"{share:g} of {b.name} in {a.name}",
        model=model,
        tokenizer=a.tokenizer,
        preprocess=a.preprocess,
        logit_scale=a.logit_scale,
        config=copy.deepcopy(a.config),
        parts=parts,
        at=share,
    )


def mix(first: str, second: str, at: float, out: Path) -> MixedClip:
    """Write `interpolate(first, second, at)` as an open_clip folder; return what was written.

    Beside the model stands `adaptation.json` where A or B was hardened, so that the sets of their hardening
    count as seen in evaluations of `local-dir:OUT` too.

    Args:
        first: A's spec.
        second: B's spec.
        at: a in [0, 1].
        out: the folder; it may be there if it is empty.

    Raises:
        UserError: as `interpolate`, and if something is at `out`.
        EnvironmentFault: if it cannot be written.
    """
    check_share(at)
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise UserError(f"{out} is there already; name another place, or remove it first.")
    refuse_file(out.parent)
    mixed = interpolate(first, second, at)
    save_mixed(mixed, first, second, out)
    return mixed


def save_mixed(mixed: MixedClip, first: str, second: str, out: Path) -> None:
    """Write a mixed model's folder, a model that was there is replaced.

    Args:
        mixed: what `interpolate` made.
        first: A's spec.
        second: B's spec.
        out: the folder.

    Raises:
        EnvironmentFault: if it cannot be written.
    """
    sources: list[dict[str, Any]] = []
    for part in mixed.parts:
        sources += [s for s in hardened_sources(part) if s not in sources]
    record = None
    if sources:
        record = {
            "adaptation": "full",
            "base": first,
            "mixed": {"with": second, "at": mixed.at},
            "source": sources[0],
            "sources": sources,
        }
    save_open_clip(mixed.model, mixed.config, out, mixed.tokenizer, adaptation=record)


def hardened_sources(spec: str) -> list[dict[str, Any]]:
    """Return the sets that a model was hardened on, as its folder says; of other models none.

    Raises:
        UserError: if the spec is wrong, or its `adaptation.json` is damaged.
    """
    record = _record(parse_spec(spec))
    if record is None:
        return []
    several = record.get("sources")
    found = several if isinstance(several, list) else [record.get("source")]
    return [source for source in found if isinstance(source, dict)]


def check_share(at: Any) -> float:
    """Return a as a float.

    Raises:
        UserError: if it is no number in [0, 1].
    """
    if isinstance(at, bool) or not isinstance(at, int | float) or not 0.0 <= at <= 1.0:
        raise UserError(f"at is the share of the second model, from 0 to 1, got {at!r}.")
    return float(at)


def _between(a: Tensor, b: Tensor, share: float, name: str) -> Tensor:
    if share in {0.0, 1.0}:
        return (b if share else a).detach().to(a.device).clone()
    if not a.is_floating_point():
        if name.rpartition(".")[2] != _COUNTER and not torch.equal(a.cpu(), b.cpu()):
            raise UserError(
                f"{name} holds whole numbers that differ between the two towers: nothing lies between; "
                "interpolate two models of one training."
            )
        return a.detach().clone()
    wide = (1.0 - share) * a.detach().double().cpu() + share * b.detach().double().cpu()
    return wide.to(a.dtype).to(a.device)


def _check_alike(a: Clip, b: Clip) -> None:
    """Refuse two models that differ in anything but the weights of the image tower."""
    names = f"{a.spec} and {b.spec}"
    # Before the rest of the config: towers of one shape that compute another function (traps 9).
    gelu = [bool(clip.config["model_cfg"].get("quick_gelu", False)) for clip in (a, b)]
    if gelu[0] != gelu[1]:
        words = ["QuickGELU" if quick else "GELU" for quick in gelu]
        raise UserError(
            f"{a.spec} computes with {words[0]}, {b.spec} with {words[1]}: nothing lies between two "
            "activations; interpolate two models of one architecture."
        )
    differ = _differing(
        essential_config(a.config["model_cfg"]), essential_config(b.config["model_cfg"])
    )
    if differ:
        raise UserError(
            f"{names} differ in architecture ({'; '.join(differ[:3])}): interpolate two models of one."
        )
    here, there = _tower(a), _tower(b)
    shapes = [n for n in here if n not in there or here[n].shape != there[n].shape]
    shapes += [n for n in there if n not in here]
    if shapes:
        raise UserError(
            f"{names} have other tensors in their image towers ({few(shapes)}): interpolate two models of one "
            "architecture."
        )
    if a.preprocess != b.preprocess:
        rules = _differing(a.config["preprocess_cfg"], b.config["preprocess_cfg"])
        raise UserError(
            f"{names} differ in preprocessing ({'; '.join(rules[:3])}): what lies between would fit "
            "neither; interpolate two models that see images alike."
        )
    texts, others = _beside(a), _beside(b)
    moved = [
        name
        for name in sorted(texts.keys() | others.keys())
        if name not in texts or name not in others or not _equal(texts[name], others[name])
    ]
    if moved:
        raise UserError(
            f"{names} differ beside the image tower, in {len(moved)} tensors ({few(moved)}): towers that were "
            "not trained for one text tower have no common text anchors; interpolate a model with what was "
            "hardened from it."
        )


def _differing(a: Mapping[str, Any], b: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Return "key: one against other" for each leaf in which two tables differ."""
    found: list[str] = []
    for key in sorted(a.keys() | b.keys()):
        one, other = a.get(key), b.get(key)
        if isinstance(one, Mapping) and isinstance(other, Mapping):
            found += _differing(one, other, f"{prefix}{key}.")
        elif one != other:
            found.append(f"{prefix}{key}: {one!r} against {other!r}")
    return found


def _tower(clip: Clip) -> dict[str, Tensor]:
    return dict(cast(nn.Module, clip.model.visual).state_dict())


def _beside(clip: Clip) -> dict[str, Tensor]:
    """Return all tensors but the image tower's."""
    state = clip.model.state_dict()
    return {name: tensor for name, tensor in state.items() if not name.startswith("visual.")}


def _equal(a: Tensor, b: Tensor) -> bool:
    # One number may be stored as () or as (1,).
    return a.numel() == b.numel() and torch.equal(a.cpu().flatten(), b.cpu().flatten())


def _record(spec: ModelSpec) -> dict[str, Any] | None:
    """Return what stands in the model's `adaptation.json`; None without one."""
    if spec.folder is None or spec.kind not in ("run", "local_dir"):
        return None
    folder = spec.folder / "model" if spec.kind == "run" else spec.folder
    return read_adaptation(folder) if (folder / ADAPTATION_NAME).is_file() else None


def _refuse_prompts(clip: Clip) -> None:
    """Refuse a model with trained prompts."""
    if prompt_facts(clip.model):
        raise UserError(
            f"{clip.spec} holds prompts, which stand beside the weights: nothing lies between a model with "
            "them and another; interpolate models without prompts."
        )
