"""Cards: one YAML file for one image set: what it is, what its classes are, where it may lie.

A card holds no path of any machine: a place is relative to the folder that ZSROBUST_DATA names, or
is a repository of the Hugging Face hub. `open_set` in `sets.py` tries a card's sources in turn.
"""

from __future__ import annotations

from importlib import resources
from importlib.resources.abc import Traversable
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, PositiveInt, ValidationError, model_validator

from zsrobust.errors import UserError, unknown_name

FROM_SOURCE = "from-source"
OPEN_CLIP_IMAGENET = "open_clip:imagenet"
HASH_RULE = "sha256 of stored bytes, first 16 hex digits"


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


# A place inside the data folder: no absolute path, no way out of it.
Place = Annotated[str, Field(pattern=r"^\w[\w-]*(/\w[\w.-]*)*$")]


class WdsSource(_Strict):
    """Tars in the layout of CLIP benchmark, in a folder below ZSROBUST_DATA.

    `splits` says what a split of the card is called there, where the names differ.
    """

    kind: Literal["wds"]
    wds: Place
    splits: dict[str, str] = {}


class HubSource(_Strict):
    """The same layout as a data set repository of the Hugging Face hub."""

    kind: Literal["hf-hub"]
    repo: Annotated[str, Field(pattern=r"^[\w.-]+/[\w.-]+$")]
    splits: dict[str, str] = {}


class TorchvisionSource(_Strict):
    """Files that torchvision reads and checks, below ZSROBUST_DATA or the user's cache."""

    kind: Literal["torchvision"]
    dataset: Literal["CIFAR10", "CIFAR100"]
    folder: Place


class ImagenetSource(_Strict):
    """ImageNet as it unpacks, SPLIT/WNID/*.JPEG, in one of some folders below ZSROBUST_DATA."""

    kind: Literal["imagenet-folders"]
    folders: Annotated[list[Place], Field(min_length=1)]


class DrawnSource(_Strict):
    """Pictures that the package draws itself, a function of the seed (`data/drawn`)."""

    kind: Literal["drawn"]
    section: str
    seed: int


Source = Annotated[
    WdsSource | HubSource | TorchvisionSource | ImagenetSource | DrawnSource,
    Field(discriminator="kind"),
]


class Card(_Strict):
    """One image set.

    Args:
        name: the card's, equal to its place: cards/mini/cifar10.yaml is "mini/cifar10".
        version: raised whenever class names, templates or the split rule change.
        title: the set's own name.
        split: the split that is meant if none is named.
        splits: number of images of each split.
        classes: number of classes; None for a set without labels.
        classnames: the names by label; "from-source" (its classnames.txt); "open_clip:imagenet"
            (the list curated by CLIP's authors); "file:NAME" (a list of lines beside the card).
            None for a set without labels.
        templates: texts with `{}` for the class name; None where the set has none.
        native_size: side of the stored images in pixels; None where they differ.
        resolution: where the ball is drawn if the user does not say, "native" or "model".
        hash_rule: how a record names an image's content; one rule for all sets.
        split_rule: where the split comes from.
        licence: as its source states it.
        citation: of the set.
        sources: tried in turn.
        bring: how to bring the set, shown when no source is found.
    """

    name: str
    version: PositiveInt
    title: str
    split: str
    splits: Annotated[dict[str, PositiveInt], Field(min_length=1)]
    classes: PositiveInt | None = None
    classnames: list[str] | str | None = None
    templates: Annotated[list[str], Field(min_length=1)] | None = None
    native_size: PositiveInt | None = None
    resolution: Literal["model", "native"] = "model"
    hash_rule: Literal["sha256 of stored bytes, first 16 hex digits"]
    split_rule: str
    licence: str
    citation: str
    sources: Annotated[list[Source], Field(min_length=1)]
    bring: str

    @model_validator(mode="after")
    def _consistent(self) -> Card:
        if self.split not in self.splits:
            raise ValueError(f"split {self.split!r} is none of splits: {', '.join(self.splits)}")
        if (self.classes is None) != (self.classnames is None):
            raise ValueError("classes and classnames must both be given, or neither")
        if isinstance(self.classnames, list) and len(self.classnames) != self.classes:
            raise ValueError(f"{len(self.classnames)} classnames, but classes: {self.classes}")
        named = (FROM_SOURCE, OPEN_CLIP_IMAGENET)
        if isinstance(self.classnames, str) and not (
            self.classnames in named or self.classnames.startswith("file:")
        ):
            raise ValueError(
                f"classnames {self.classnames!r}: a list, {', '.join(named)} or file:NAME"
            )
        for template in self.templates or []:
            if template.count("{}") != 1:
                raise ValueError(f"template {template!r} must hold {{}} once")
        return self

    def names(self) -> list[str] | None:
        """Return the class names by label; None where they come from the source, or there are none.

        Raises:
            UserError: if the list does not have `classes` names.
        """
        if self.classnames is None or self.classnames == FROM_SOURCE:
            return None
        if isinstance(self.classnames, list):
            return list(self.classnames)
        if self.classnames == OPEN_CLIP_IMAGENET:
            from open_clip.zero_shot_metadata import IMAGENET_CLASSNAMES

            names = [str(name) for name in IMAGENET_CLASSNAMES]
        else:
            beside = _folder().joinpath(*self.name.split("/")[:-1])
            lines = beside.joinpath(self.classnames.removeprefix("file:")).read_text("utf-8")
            names = [line.strip() for line in lines.splitlines()]
        if len(names) != self.classes:
            raise UserError(
                f"card {self.name}: {len(names)} class names, but classes: {self.classes}."
            )
        return names


def _folder() -> Traversable:
    return resources.files("zsrobust.data") / "cards"


def card_names() -> list[str]:
    """Return the names of all cards, sorted; those in a folder as FOLDER/NAME."""
    return sorted(_names(_folder(), ""))


def _names(folder: Traversable, prefix: str) -> list[str]:
    names = []
    for entry in folder.iterdir():
        if entry.is_dir():
            names += _names(entry, f"{prefix}{entry.name}/")
        elif entry.name.endswith(".yaml"):
            names.append(prefix + entry.name.removesuffix(".yaml"))
    return names


def load_card(name: str) -> Card:
    """Return a card by name.

    Raises:
        UserError: if there is none of that name; the nearest ones are named.
    """
    names = card_names()
    if name not in names:
        raise unknown_name(
            "image set", name, names, "A path is given as wds:DIR, folder:DIR or hf-hub:ORG/REPO."
        )
    *folders, leaf = name.split("/")
    text = _folder().joinpath(*folders, f"{leaf}.yaml").read_text("utf-8")
    return parse_card(yaml.safe_load(text), name)


def parse_card(content: Any, name: str) -> Card:
    """Return the card that a parsed YAML file holds.

    Raises:
        UserError: with every mistake in it, each with its field.
    """
    try:
        card = Card.model_validate(content)
    except ValidationError as error:
        mistakes = "; ".join(
            f"{'.'.join(str(part) for part in mistake['loc']) or 'card'}: {mistake['msg']}"
            for mistake in error.errors()
        )
        raise UserError(f"card {name}: {mistakes}.") from error
    if card.name != name:
        raise UserError(f"card {name}: its name says {card.name!r}; name and place must agree.")
    return card
