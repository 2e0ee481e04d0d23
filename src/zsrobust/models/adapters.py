"""What stands beside a hardened model's weights: prompts, and the low-rank factors that were merged.

    prompts.safetensors   part of the model: `run:DIR` puts them into the tower, and without them it is another
    lora.safetensors      merged into the weights already; kept so that they can be taken out again

Each is noted in `adaptation.json` with its hash, so that a file of another run is never taken for its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from zsrobust.adaptations import PROMPTING, build
from zsrobust.adaptations.prompts import Prompting, prompt_facts, prompts_of
from zsrobust.errors import UserError, one_line
from zsrobust.hashing import sha256_json, sha256_tensors
from zsrobust.models.weights import fill, read_file, tensor_table

PROMPTS_NAME = "prompts.safetensors"
LORA_NAME = "lora.safetensors"
_AGAIN = "fetch or write the folder again"


def noted(tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return what `adaptation.json` says of such a file.

    Args:
        tensors: as stored, float32.
        facts: what belongs to them and is no tensor, as JSON.
    """
    content = {"tensors": sha256_tensors(tensors), "facts": dict(facts)}
    return {"facts": dict(facts), "sha256": sha256_json(content)}


def put_prompts(model: nn.Module, record: Mapping[str, Any], folder: Path) -> None:
    """Put the prompts of a hardened model's folder into its tower; nothing where its adaptation has none.

    Args:
        model: with its weights; left in eval mode and frozen.
        record: what stands in the folder's `adaptation.json`.
        folder: of the model.

    Raises:
        UserError: if prompts are missing, damaged, of another run, or beside an adaptation without any.
        EnvironmentFault: if they cannot be read.
    """
    path, name = folder / PROMPTS_NAME, str(record["adaptation"])
    if name not in PROMPTING:
        if path.exists():
            raise UserError(
                f"{path} stands beside adaptation {name!r}, which has no prompts; {_AGAIN}."
            )
        return
    tensors, facts = _read(path, record, "prompts")
    adaptation = _adaptation(record, folder)
    if not isinstance(adaptation, Prompting):
        raise TypeError(f"{name} is no prompt")
    adaptation.attach(model, seed=0)
    prompts = prompts_of(model)
    try:
        for key, prompt in prompts.items():
            prompt.restore(facts[key])
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path}: {one_line(error)}; {_AGAIN}.") from error
    fill(nn.ModuleDict(prompts), tensors, str(path), _AGAIN)
    model.eval().requires_grad_(False)


def take_out_factors(model: nn.Module, record: Mapping[str, Any], folder: Path) -> None:
    """Take the merged low-rank factors of a hardened model's folder out of its weights again.

    Args:
        model: with its merged weights.
        record: what stands in the folder's `adaptation.json`.
        folder: of the model.

    Raises:
        UserError: if the adaptation is not `lora`, or its factors are missing, damaged or of another run.
        EnvironmentFault: if they cannot be read.
    """
    from zsrobust.adaptations.lora import Lora

    tensors, _ = _read(folder / LORA_NAME, record, "lora")
    adaptation = _adaptation(record, folder)
    if not isinstance(adaptation, Lora):
        raise UserError(
            f"{folder}: its adaptation is {adaptation.name!r}; only 'lora' has factors to take out."
        )
    adaptation.unmerge(model, tensors)


def refuse_prompts(model: nn.Module, what: str, mend: str) -> None:
    """Refuse a model that carries prompts where only weights can go.

    Args:
        model: open_clip's.
        what: names it.
        mend: what to do instead.

    Raises:
        UserError: then.
    """
    if prompt_facts(model):
        raise UserError(carries_prompts(what, mend))


def carries_prompts(what: str, mend: str) -> str:
    """Return why a model with prompts cannot be written as weights."""
    return (
        f"{what} carries prompts, which are added to every image or to its tokens: no weights of a plain "
        f"model say that, so that it cannot be written as such; {mend}."
    )


def _read(
    path: Path, record: Mapping[str, Any], key: str
) -> tuple[dict[str, Tensor], Mapping[str, Any]]:
    note = record.get(key)
    facts = note.get("facts") if isinstance(note, Mapping) else None
    if not isinstance(note, Mapping) or not isinstance(facts, Mapping):
        raise UserError(
            f"{path.parent}: adaptation.json says nothing of {path.name}; it is damaged or of another "
            f"model: {_AGAIN}."
        )
    tensors = tensor_table(read_file(path), path)
    if noted(tensors, facts) != note:
        raise UserError(
            f"{path} is not the file that adaptation.json beside it was written with: it belongs to another "
            f"run, or was changed; {_AGAIN}."
        )
    return tensors, facts


def _adaptation(record: Mapping[str, Any], folder: Path) -> Any:
    settings = record.get("settings")
    if not isinstance(settings, Mapping):
        raise UserError(f"{folder}: adaptation.json has no table 'settings'; {_AGAIN}.")
    try:
        return build(str(record["adaptation"]), settings)
    except UserError as error:
        raise UserError(f"{folder}/adaptation.json: {error}") from error
