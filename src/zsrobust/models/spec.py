"""Model specs: the one string that names a model, taken apart.

    ARCH:TAG          open_clip's architecture and tag
    hf-hub:ORG/NAME   open_clip's hub form
    local-dir:PATH    a folder with open_clip_config.json and its weights
    FILE@BASE         an image tower's checkpoint laid over BASE, itself any spec
    run:DIR           what a hardening wrote (DIR/model)
    NAME              "tiny", or a folder under ZSROBUST_MODELS

Nothing is downloaded or opened here, but everything that can be refused from the string alone is.
"""

from __future__ import annotations

import difflib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from zsrobust.errors import UserError, nearest, unknown_name

Kind = Literal["builtin", "hub", "local_dir", "foreign", "run", "named"]

CONFIG_NAME = "open_clip_config.json"
_PREFIXES = ("hf-hub", "local-dir", "run")
_FORMS = (
    "ARCH:TAG, hf-hub:ORG/NAME, local-dir:PATH, FILE@BASE, run:DIR, "
    "tiny or a name under ZSROBUST_MODELS"
)


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """A spec, taken apart.

    Args:
        kind: which of the six forms.
        text: the spec as it was given.
        name: a short name for tables.
        arch: open_clip's architecture ("builtin").
        tag: open_clip's tag ("builtin").
        repo: ORG/NAME on the hub ("hub").
        folder: what is read ("local_dir", "named"), or the run's folder ("run").
        file: the foreign checkpoint ("foreign").
        base: what it is laid over ("foreign").
    """

    kind: Kind
    text: str
    name: str
    arch: str = ""
    tag: str = ""
    repo: str = ""
    folder: Path | None = None
    file: Path | None = None
    base: ModelSpec | None = None


def parse_spec(text: str) -> ModelSpec:
    """Return the parts of a model spec.

    Raises:
        UserError: for an unknown form, name, architecture or tag, with the nearest ones that exist;
            for a tag whose weights were trained with another activation than the architecture has
            (traps 9); for a folder or file that does not exist.
    """
    if not isinstance(text, str):
        raise UserError(f"a model spec is a text, got {text!r}; allowed: {_FORMS}.")
    text = text.strip()
    if not text:
        raise UserError(f"an empty model spec; allowed: {_FORMS}.")
    foreign = _foreign(text)
    if foreign is not None:
        return foreign
    prefix, _, rest = text.partition(":")
    if prefix in _PREFIXES and ":" in text:
        if not rest:
            raise UserError(f"nothing stands after {prefix}: in the model spec; allowed: {_FORMS}.")
        if prefix == "hf-hub":
            return _hub(text, rest)
        folder = Path(rest).expanduser()
        if not folder.is_dir():
            what = (
                "the folder of a hardening" if prefix == "run" else f"a folder with {CONFIG_NAME}"
            )
            raise UserError(f"{text}: {folder} is not a folder; {prefix}: takes {what}.")
        kind: Kind = "run" if prefix == "run" else "local_dir"
        return ModelSpec(kind, text, folder.resolve().name, folder=folder)
    if "@" in text:
        left = text.rpartition("@")[0]
        raise UserError(
            f"model spec {text!r}: no file {left!r}; FILE@BASE needs a file that exists, "
            "check the path."
        )
    if ":" in text:
        return _builtin(text, prefix, rest)
    return _named(text)


def named_folders() -> dict[str, Path]:
    """Return the models that go by a name here: "tiny" if installed, folders of ZSROBUST_MODELS."""
    folders = {}
    tiny = Path(__file__).with_name("tiny")
    if (tiny / CONFIG_NAME).is_file():
        folders["tiny"] = tiny
    root = os.environ.get("ZSROBUST_MODELS")
    if root and Path(root).is_dir():
        for folder in sorted(Path(root).iterdir()):
            if (folder / CONFIG_NAME).is_file():
                folders.setdefault(folder.name, folder)
    return folders


def _foreign(text: str) -> ModelSpec | None:
    """Split FILE@BASE at the last "@" whose left side is an existing file; None without one."""
    at = text.rfind("@")
    while at > 0:
        file = Path(text[:at]).expanduser()
        if file.is_file():
            base = parse_spec(text[at + 1 :])
            return ModelSpec("foreign", text, f"{file.name}@{base.name}", file=file, base=base)
        at = text.rfind("@", 0, at)
    return None


def _hub(text: str, repo: str) -> ModelSpec:
    parts = repo.split("/")
    if len(parts) != 2 or not all(parts):
        raise UserError(
            f"a hub model reads hf-hub:ORG/NAME, as in hf-hub:chs20/fare2-clip, not {text!r}."
        )
    return ModelSpec("hub", text, parts[1], repo=repo)


def _builtin(text: str, arch: str, tag: str) -> ModelSpec:
    import open_clip

    arch = arch.replace("/", "-")
    if arch not in open_clip.list_models():
        # "localdir:PATH" is a slip in the form, not an architecture.
        if difflib.get_close_matches(arch.lower(), _PREFIXES, cutoff=0.6):
            raise unknown_name("form of a model spec", arch, _PREFIXES)
        if not nearest(arch, open_clip.list_models()):
            raise UserError(
                f"model {text!r}: {arch!r} is neither an architecture of open_clip nor a form; "
                f"allowed: {_FORMS}."
            )
        raise unknown_name("architecture", arch, open_clip.list_models())
    cfg = open_clip.get_pretrained_cfg(arch, tag)
    if not cfg:
        tags = open_clip.list_pretrained_tags_by_model(arch)
        plain = arch.removesuffix("-quickgelu")
        hint = f"{plain} has it: {plain}:{tag}." if open_clip.get_pretrained_cfg(plain, tag) else ""
        raise unknown_name(f"tag of {arch}", tag, tags, hint)
    plain = arch.removesuffix("-quickgelu")
    needs = bool(cfg.get("quick_gelu", False))
    has = bool((open_clip.get_model_config(arch) or {}).get("quick_gelu", False))
    # One that has QuickGELU without saying so in its name was written for its own weights.
    if needs != has and (needs or plain != arch):
        other = f"{arch}-quickgelu" if needs else plain
        words = ("QuickGELU", "GELU") if needs else ("GELU", "QuickGELU")
        raise UserError(
            f"{arch}:{tag}: these weights were trained with {words[0]}, {arch} builds {words[1]} "
            f"and loses several points without an error; use {other}:{tag}."
        )
    return ModelSpec("builtin", text, f"{arch}:{tag}", arch=arch, tag=tag)


def _named(text: str) -> ModelSpec:
    folders = named_folders()
    if text in folders:
        return ModelSpec("named", text, text, folder=folders[text])
    if text == "tiny":
        raise UserError(
            "model 'tiny': this installation has no embedded model; name another one "
            "(zsrobust list models shows what there is)."
        )
    path = Path(text).expanduser()
    if (path / CONFIG_NAME).is_file():
        raise UserError(f"{text!r} is a folder; write local-dir:{text}.")
    if (path / "model" / CONFIG_NAME).is_file():
        raise UserError(f"{text!r} is the folder of a run; write run:{text}.")
    if path.is_file():
        raise UserError(
            f"{text!r} is a file; write {text}@BASE, BASE being the model that it belongs to."
        )
    import open_clip

    arch = text.replace("/", "-")
    if arch in open_clip.list_models():
        tags = open_clip.list_pretrained_tags_by_model(arch)
        if not tags:
            raise UserError(f"model {text!r}: open_clip has no weights for it; use local-dir:PATH.")
        raise UserError(f"model {text!r} needs a tag: {arch}:TAG, TAG one of {', '.join(tags)}.")
    unset = "; ZSROBUST_MODELS is not set" if os.environ.get("ZSROBUST_MODELS") is None else ""
    if "/" in text or os.sep in text or path.exists():
        what = f"no file and no folder with {CONFIG_NAME}"
        raise UserError(f"model {text!r}: {what} is there; check the path, or use {_FORMS}.")
    known = [*folders, *(f"{a}:{t}" for a, t in open_clip.list_pretrained())]
    if nearest(text, known):
        raise unknown_name("model", text, known, f"Forms: {_FORMS}{unset}.")
    here = f"known by name: {', '.join(folders)}" if folders else "no model is known by name"
    raise UserError(f"unknown model {text!r}: {here}{unset}; other forms: {_FORMS}.")
