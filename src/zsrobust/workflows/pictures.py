"""What is attacked as which class, and under which names the results go: the files before any model is asked."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal

from zsrobust import data
from zsrobust.data.cards import card_names, load_card, paper_names
from zsrobust.data.folders import pictures_of
from zsrobust.data.storage import FileImages, read_classnames
from zsrobust.data.texts import OPENAI, PAPER_TEMPLATE, openai_templates, preset_of
from zsrobust.errors import UserError, nearest, unknown_name
from zsrobust.models.classifier import DEFAULT_TEMPLATES

LabelFrom = Literal["--label", "its folder", "the model's own clean prediction"]

ENDINGS = ("png", "perturbation.png", "json")
"""Of what is written for each picture."""


@dataclass(slots=True)
class Picture:
    """One picture on its way; what is not known from its name is filled in when it is first read."""

    index: int
    """In the storage."""
    id: str
    """Its path below the folder that was given, with /; of a single picture the file's name."""
    name: str
    """Of the files to write, below the folder of the results, without ending."""
    label: int | None
    """Number of its class; None where the model's own clean prediction takes its place."""
    label_from: LabelFrom
    sha256: str = ""
    """Of its stored bytes."""
    size: tuple[int, int] = (0, 0)
    """(height, width) at the attack resolution."""
    key: str = ""
    """Hash of everything that determines its result."""


def read_classes(
    classes: str | Path | Sequence[str], templates: Sequence[str] | None
) -> tuple[list[str], list[str]]:
    """Return class names and templates.

    Raises:
        UserError: for a file or a set that is not there, or a preset that does not fit.
    """
    preset = None if templates is None else preset_of(templates)
    if not isinstance(classes, (str, Path)):
        if not isinstance(classes, Sequence):
            raise UserError(f"classes are a file, a set or a list of names, got {classes!r}.")
        names = list(classes)
    elif Path(classes).expanduser().is_file():
        names = read_classnames(Path(classes).expanduser())
    elif str(classes) in card_names():
        card = load_card(str(classes))
        own, words = card.preset(preset) if preset else (card.names(), card.templates)
        if own is None:  # they stand in the set's own files, or it has none
            return _of_set(str(classes), templates)
        return own, list((words if preset else templates or words) or DEFAULT_TEMPLATES)
    elif str(classes).startswith(("folder:", "wds:", "hf-hub:")):
        return _of_set(str(classes), templates)
    else:
        near = nearest(str(classes), card_names())
        hint = f"did you mean the set {near[0]!r}?" if near else "or name an image set."
        raise UserError(
            f"classes {str(classes)!r}: no such file; give a text file with one class name a line, {hint}"
        )
    if preset == OPENAI:
        return names, openai_templates()
    if preset == "paper":
        return paper_names(names) or [], [PAPER_TEMPLATE]
    if preset is not None:
        raise UserError(f"templates {preset!r}: only sets with a card have them; give your own.")
    return names, list(templates or DEFAULT_TEMPLATES)


def _of_set(spec: str, templates: Sequence[str] | None) -> tuple[list[str], list[str]]:
    names, words = data.open_set(spec).texts(templates)
    if names is None:
        raise UserError(
            f"classes {spec!r}: that set has no class names; give a set or a file that has."
        )
    return names, list(words or DEFAULT_TEMPLATES)


def find(images: Path, out: Path) -> FileImages:
    """Return the picture, or those below the folder, with their ids."""
    images = images.expanduser()
    if images.is_file():
        return FileImages([images], [images.name], None)
    if not images.is_dir():
        raise UserError(f"{images}: no such picture or folder.")
    root, own = images.resolve(), out.expanduser().resolve()
    if own == root:
        raise UserError(f"--out {out} is the folder of the images themselves: name another.")
    # What an earlier call wrote below the folder is no picture to attack.
    files = [file for file in pictures_of(root, deep=True) if own not in file.parents]
    if not files:
        raise UserError(f"{images}: no picture in it; expected .jpg, .png, .webp or the like.")
    return FileImages(files, [file.relative_to(root).as_posix() for file in files], None)


def labelled(storage: FileImages, names: list[str], label: str | int | None) -> list[Picture]:
    """Return the pictures with the classes that are known for them.

    Raises:
        UserError: for an unknown label, or if some pictures lie in class folders and others do not.
    """
    if label is not None:
        number = _label(label, names)
        return [Picture(i, name, "", number, "--label") for i, name in enumerate(storage.ids)]
    by_name: dict[str, list[int]] = {}
    for k, name in enumerate(names):
        by_name.setdefault(_plain(name), []).append(k)
    found: list[int | None] = []
    for name in storage.ids:
        folders = [_plain(part) for part in PurePosixPath(name).parts[:-1]]
        known = next((by_name[part] for part in reversed(folders) if part in by_name), None)
        if known is not None and len({names[k] for k in known}) > 1:
            raise UserError(
                f"{name}: its folder may be class {names[known[0]]!r} or {names[known[1]]!r}; rename one class."
            )
        found.append(None if known is None else known[0])
    outside = [name for name, k in zip(storage.ids, found, strict=True) if k is None]
    if outside and len(outside) < len(found):
        folder = PurePosixPath(outside[0]).parent.name
        near = nearest(_plain(folder), by_name) if folder else []
        mend = f"did you mean {near[0]!r}? Rename it" if near else "name the class"
        raise UserError(
            f"{outside[0]} lies in no class folder, {len(found) - len(outside)} other images do: {mend}, or "
            "move it out of the folder."
        )
    return [
        Picture(i, name, "", k, "the model's own clean prediction" if k is None else "its folder")
        for i, (name, k) in enumerate(zip(storage.ids, found, strict=True))
    ]


def _plain(name: str) -> str:
    """Return a name as class folders are read: lower case, _ and - as spaces."""
    return " ".join(re.sub("[_-]", " ", name).lower().split())


def _label(given: str | int, names: list[str]) -> int:
    """Return the number of the class that is meant; a name goes before a number."""
    text = str(given).strip()
    if isinstance(given, str):
        found = [k for k, name in enumerate(names) if name == text]
        found = found or [k for k, name in enumerate(names) if _plain(name) == _plain(text)]
        if len({names[k] for k in found}) > 1:
            raise UserError(
                f"label {given!r} may be class {found[0]} or {found[1]}: give the number."
            )
        if found:
            return found[0]
    if re.fullmatch(r"-?\d+", text) and not isinstance(given, bool):
        if 0 <= int(text) < len(names):
            return int(text)
        raise UserError(f"label {given}: class numbers are 0 to {len(names) - 1}.")
    raise unknown_name("label", text, names, "A class is given by its name or its number.")


def name_files(pictures: list[Picture], out: Path, storage: FileImages) -> None:
    """Give every picture a name for its files: its own without ending, or with it where two would share one.

    Raises:
        UserError: if names cannot be told apart, or a picture or a file of another kind would be written over.
    """
    for picture in pictures:
        picture.name = PurePosixPath(picture.id).with_suffix("").as_posix()
    for attempt in (1, 2):
        owners: dict[str, list[Picture]] = {}
        for picture in pictures:
            for ending in ENDINGS:
                owners.setdefault(f"{picture.name}.{ending}".casefold(), []).append(picture)
        shared = [picture for owning in owners.values() if len(owning) > 1 for picture in owning]
        if not shared:
            break
        if attempt == 2:
            raise UserError(
                f"{shared[0].id} and {shared[1].id} would be written to one file: rename one."
            )
        for picture in shared:
            picture.name = picture.id
    originals = {file.resolve() for file in storage.files}
    ours = (out / ".lock").exists()
    for picture in pictures:
        for ending in ENDINGS:
            place = out / f"{picture.name}.{ending}"
            if place.resolve() in originals:
                raise UserError(f"{place} is one of the images to attack: name another --out.")
            if not ours and place.exists():
                raise UserError(
                    f"{place} is there and was not written by this command: name another --out, or move it."
                )
