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

from zsrobust.data.texts import (
    OPENAI,
    PAPER_TEMPLATE,
    NameRule,
    benchmark_keys,
    benchmark_templates,
    by_rule,
    equal_texts,
    openai_templates,
)
from zsrobust.errors import UserError, unknown_name

FROM_SOURCE = "from-source"
OPEN_CLIP_IMAGENET = "open_clip:imagenet"
STORED = "stored"
HASH_RULE = "sha256 of stored bytes, first 16 hex digits"
_SHOWN = 4  # of equal texts, in a line


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
    """The files of one of torchvision's sets, in the form that its download unpacks to.

    They are looked for in `folder` below ZSROBUST_DATA, in ZSROBUST_DATA itself (a root that
    torchvision filled), and in the user's cache, where a download goes.
    """

    kind: Literal["torchvision"]
    dataset: Literal[
        "CIFAR10",
        "CIFAR100",
        "STL10",
        "Caltech101",
        "Caltech256",
        "SUN397",
        "StanfordCars",
        "Food101",
        "OxfordIIITPet",
        "Flowers102",
        "DTD",
        "EuroSAT",
        "FGVCAircraft",
        "Country211",
    ]
    folder: Place


class UnpackedSource(_Strict):
    """The files of a set that torchvision does not have, as its archive unpacks (`trees.py`)."""

    kind: Literal["unpacked"]
    layout: Literal["tiny-imagenet", "hateful-memes"]
    folder: Place


class ImagenetSource(_Strict):
    """ImageNet as it unpacks, SPLIT/WNID/*.JPEG, in one of some folders below ZSROBUST_DATA.

    `whole`: a set of one split, its WNID folders in the folder itself.
    """

    kind: Literal["imagenet-folders"]
    folders: Annotated[list[Place], Field(min_length=1)]
    whole: bool = False


class DrawnSource(_Strict):
    """Pictures that the package draws itself, a function of the seed (`data/drawn`)."""

    kind: Literal["drawn"]
    section: str
    seed: int


Source = Annotated[
    WdsSource | HubSource | TorchvisionSource | UnpackedSource | ImagenetSource | DrawnSource,
    Field(discriminator="kind"),
]


class CardTexts(_Strict):
    """The texts of a card under a preset (`texts.py`).

    Args:
        templates: with `{}`; a key of clip_benchmark.yaml, or "openai"; None for the card's own.
        classnames: by label; "stored" (as the set's own files name them), or "file:NAME"; None for
            the card's own.
        name_rule: applied to these names.
    """

    templates: list[str] | str | None = None
    classnames: list[str] | str | None = None
    name_rule: NameRule | None = None


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
            (the list curated by CLIP's authors); "file:NAME" (lines of a file below cards/).
            None for a set without labels.
        name_rule: what is done to each of these names (`texts.by_rule`); None leaves them.
        names_of: "source" takes names and their order from the set's own files where they have
            them; the list serves to check them, and where no image is here.
        templates: texts with `{}` for the class name; None where the set has none.
        texts: what presets of templates mean for this set, where it is not the general rule.
        native_size: side of the stored images in pixels; None where they differ.
        resolution: where the ball is drawn if the user does not say, "native" or "model".
        paper_resize: how the paper's image rule brings this set to size: "crop" (short side, then
            centre crop) or "squash" (both sides at once).
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
    name_rule: NameRule | None = None
    names_of: Literal["card", "source"] = "card"
    templates: Annotated[list[str], Field(min_length=1)] | None = None
    texts: dict[Literal["paper", "clip-benchmark"], CardTexts] = {}
    native_size: PositiveInt | None = None
    resolution: Literal["model", "native"] = "model"
    paper_resize: Literal["crop", "squash"] = "crop"
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
        for preset, texts in self.texts.items():
            if isinstance(texts.templates, str) and texts.templates not in (
                OPENAI,
                *benchmark_keys(),
            ):
                raise ValueError(f"texts.{preset}: no templates {texts.templates!r} are known")
        return self

    def names(self, stored: list[str] | None = None) -> list[str] | None:
        """Return the class names by label; None where they come from the source, or there are none.

        Args:
            stored: the names that the set's own files have, where it is open.

        Raises:
            UserError: if the list does not have `classes` names.
        """
        names = self.stored_names(stored)
        return None if names is None else [by_rule(self.name_rule, name) for name in names]

    def stored_names(self, stored: list[str] | None = None) -> list[str] | None:
        """Return what `names` makes its names of: those in the source's files, or the card's list."""
        if self.classnames is None:
            return None
        if self.classnames == FROM_SOURCE or (self.names_of == "source" and stored is not None):
            return stored
        return self._listed(self.classnames)

    def preset(
        self, name: str, stored: list[str] | None = None
    ) -> tuple[list[str] | None, list[str]]:
        """Return class names and templates under a preset of `texts.PRESETS`.

        Args:
            name: "paper", "openai" or "clip-benchmark".
            stored: as in `names`.

        Raises:
            UserError: if CLIP benchmark is asked for and does not have this set.
        """
        own = self.names(stored)
        if name == OPENAI:
            return own, openai_templates()
        texts = self.texts.get("paper" if name == "paper" else "clip-benchmark")
        if texts is None:
            if name == "paper":
                return paper_names(own), [PAPER_TEMPLATE]
            raise UserError(
                f"templates 'clip-benchmark': CLIP benchmark has no texts for {self.name}; leave this "
                "set out, or measure it with other templates."
            )
        if texts.classnames == STORED:
            names = self.stored_names(stored)
        elif texts.classnames is not None:
            names = [by_rule(texts.name_rule, line) for line in self._listed(texts.classnames)]
        else:
            names = own
        templates = texts.templates or self.templates or [PAPER_TEMPLATE]
        return names, (
            benchmark_templates(templates) if isinstance(templates, str) else list(templates)
        )

    def check(self) -> tuple[list[str], list[str]]:
        """Return what is wrong with the card, and what is worth knowing, a line each.

        Counts and lists are compared; classes with equal texts are told, by default and under the
        presets that differ. No image and no network is needed.
        """
        problems: list[str] = []
        notes: list[str] = []
        known: list[list[str]] = []
        for what in ("", "paper", "clip-benchmark"):
            try:
                if what and what not in self.texts:
                    continue
                names = self.preset(what)[0] if what else self.names()
            except UserError as error:
                problems.append(str(error))
                continue
            if names is None or names in known:
                continue
            known.append(names)
            equal = equal_texts(names)
            if equal:
                where = f" under {what}" if what else ""
                shown = ", ".join(
                    f"{name!r} ({', '.join(map(str, labels))})" for name, labels in equal[:_SHOWN]
                )
                more = ", ..." if len(equal) > _SHOWN else ""
                notes.append(f"{len(equal)} equal class texts{where}: {shown}{more}")
        return problems, notes

    def _listed(self, classnames: list[str] | str) -> list[str]:
        if isinstance(classnames, list):
            names = list(classnames)
        elif classnames == OPEN_CLIP_IMAGENET:
            from open_clip.zero_shot_metadata import IMAGENET_CLASSNAMES

            names = [str(name) for name in IMAGENET_CLASSNAMES]
        else:
            place = classnames.removeprefix("file:").split("/")
            # Not stripped: some lists are kept to the letter.
            names = _folder().joinpath(*place).read_text("utf-8").splitlines()
        if len(names) != self.classes:
            raise UserError(
                f"card {self.name}: {len(names)} class names, but classes: {self.classes}."
            )
        return names


def paper_names(names: list[str] | None) -> list[str] | None:
    """Return class names as TeCoA's code treats those of a set that it has no texts for."""
    return None if names is None else [by_rule("paper", name) for name in names]


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
