"""An image set opened: its samples, the fixed order in which they are taken, and suites of sets.

A set is named by a spec:

    wds:DIR          a folder of tars in the layout of CLIP benchmark; tried as it stands, then
                     below the folder named by ZSROBUST_DATA
    folder:DIR       picture files by class, by split and class, or bare
    hf-hub:ORG/REPO  a data set repository with such tars, from the cache or the network
    NAME             a card: cifar10, imagenet, mini/cifar10, ...

and any of them with #SPLIT behind it: mini/tiny_imagenet#val. A split may be a part of one, by the places of
the fixed order: val[500:] is val without its first 500 images, val[:500] those alone.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Literal, assert_never

import yaml

from zsrobust.data.cards import Card, Source, card_names, load_card, paper_names
from zsrobust.data.downloads import download_folder
from zsrobust.data.folders import open_folder, open_imagenet
from zsrobust.data.pickles import open_cifar
from zsrobust.data.storage import Opened, SelectedImages
from zsrobust.data.tars import CLASSNAMES, open_tars, split_names
from zsrobust.data.texts import OPENAI, PAPER_TEMPLATE, openai_templates, preset_of
from zsrobust.data.trees import download_tree, open_tree
from zsrobust.errors import EnvironmentFault, UserError, unknown_name
from zsrobust.hashing import image_hash

if TYPE_CHECKING:
    from PIL.Image import Image

_SHOWN = 5  # of a long list of ids or names, in a problem's line


class SetMissing(UserError):
    """A card's images are not on this machine."""


@dataclass(frozen=True, slots=True)
class Sample:
    """What is known of a sample without its pixels.

    Attributes:
        id: unique in its set, the same on every machine.
        label: the class number, None in a set without labels.
    """

    id: str
    label: int | None


class ImageSet:
    """One split of an image set. It can be pickled and sent to worker processes.

    Args:
        opened: storage and texts.
        card: whose name, class names, templates and resolution go before those of the source.

    Attributes:
        name: the same on every machine: the card's, the folder's, or ORG/REPO.
        split: of the set.
        classnames: by label; None for a set without labels (image-text pairs, a bare folder).
        templates: of the set itself, with `{}` for the class name, or None.
        native_size: side of the stored images in pixels where the card states it, or None.
        resolution: where the ball is drawn unless the user says: "model" or "native".
        paper_resize: of the paper's image rule, "crop" or "squash".
        ids: N of them, unique, in stored order.
        labels: N of them, each the number of a class name; or None.
        captioned: whether any sample has captions.
        encoded: whether stored bytes are picture files; False for bare pixels (arrays).
    """

    def __init__(self, opened: Opened, card: Card | None = None) -> None:
        self.name = card.name if card else opened.name
        self.split = opened.split
        self.classnames = card.names(opened.classnames) if card else opened.classnames
        self.templates = (card.templates if card else None) or opened.templates
        self.native_size = card.native_size if card else None
        self.resolution: Literal["model", "native"] = card.resolution if card else "model"
        self.paper_resize: Literal["crop", "squash"] = card.paper_resize if card else "crop"
        self.ids = opened.storage.ids
        self.labels = opened.storage.labels
        self.captioned = opened.storage.captioned
        self.encoded = opened.storage.encoded
        self._storage = opened.storage
        self._stored_names = opened.classnames
        self._card = card
        self._order: list[int] | None = None

    def __len__(self) -> int:
        return len(self.ids)

    def __repr__(self) -> str:
        return f"ImageSet({self.name!r}, split={self.split!r}, {len(self)} images)"

    def sample(self, index: int) -> Sample:
        """Return id and label of one sample."""
        return Sample(self.ids[index], self.labels[index] if self.labels is not None else None)

    def __iter__(self) -> Iterator[Sample]:
        return (self.sample(index) for index in range(len(self)))

    def stored(self, index: int) -> bytes:
        """Return a sample's bytes as stored: what `hashing.image_hash` is taken of.

        Of sets stored as arrays (CIFAR's batches): the H * W * 3 bytes of its RGB pixels.

        Raises:
            EnvironmentFault: if the file cannot be read any more.
        """
        return self._storage.stored(index)

    def picture(self, index: int, stored: bytes | None = None) -> Image:
        """Return a sample as an RGB picture, turned by its EXIF orientation.

        Args:
            index: of the sample.
            stored: its bytes, if they were read already.

        Raises:
            UserError: if it is no readable picture; set and id are named.
        """
        data = self.stored(index) if stored is None else stored
        return self._storage.picture(index, data, f"{self.name}, {self.ids[index]}")

    def redrawn(self, side: int) -> ImageSet:
        """Return the set with pictures of `side` pixels if the package draws it, else the set itself."""
        from zsrobust.data.drawn.sections import DrawnImages

        storage = self._storage
        if not isinstance(storage, DrawnImages):
            return self
        other = DrawnImages(storage.section, storage.split, storage.seed, storage.count, side)
        opened = Opened(self.name, self.split, other, self._stored_names, self.templates)
        return ImageSet(opened, self._card)

    def captions(self, index: int) -> list[str] | None:
        """Return a sample's captions, None if it has none."""
        return self._storage.captions(index)

    def texts(self, templates: Sequence[str] | None) -> tuple[list[str] | None, list[str] | None]:
        """Return class names by label and templates, as they are asked for.

        Args:
            templates: texts with one {} each (several are an ensemble), one preset of
                `texts.PRESETS`, or None for the set's own. "paper" and "clip-benchmark" bring the
                class names that belong to them.

        Returns:
            The names, None for a set without labels; the templates, None if none were asked for and
            the set has none.

        Raises:
            UserError: for no template, one without {}, or a preset that the set does not have.
        """
        if templates is None:
            return self.classnames, None if self.templates is None else list(self.templates)
        preset = preset_of(templates)
        if preset is None:
            return self.classnames, list(templates)
        if self._card is not None:
            return self._card.preset(preset, self._stored_names)
        if preset == OPENAI:
            return self.classnames, openai_templates()
        if preset == "paper":
            return paper_names(self.classnames), [PAPER_TEMPLATE]
        raise UserError(
            f"templates {preset!r}: only sets with a card have them, {self.name!r} has none; give "
            "templates of your own, or leave the set out."
        )

    def order(self) -> list[int]:
        """Return the one fixed order: every "first N" is a prefix of it.

        Within a class by the SHA-256 of the id; classes in turn by label, an exhausted one skipped.
        Without labels by the SHA-256 of the id. Neither the stored order nor the machine matters.
        """
        if self._order is None:
            by_hash = sorted(
                range(len(self)), key=lambda i: hashlib.sha256(self.ids[i].encode()).digest()
            )
            if self.labels is not None:
                taken: Counter[int] = Counter()
                turn = []  # how many of its class went before
                for index in by_hash:
                    turn.append((taken[self.labels[index]], self.labels[index], index))
                    taken[self.labels[index]] += 1
                by_hash = [index for _, _, index in sorted(turn)]
            self._order = by_hash
        return list(self._order)

    def first(self, limit: int | None) -> list[int]:
        """Return the first `limit` indices of the fixed order, all for None or if there are fewer.

        Raises:
            UserError: if `limit` is below 1.
        """
        if limit is not None and limit < 1:
            raise UserError(f"limit {limit}: must be at least 1; leave it out for the whole set.")
        return self.order()[:limit]

    def part(self, first: int | None, last: int | None) -> ImageSet:
        """Return the images at the places `first` to before `last` of the fixed order, as a split of its own.

        Args:
            first: None is 0.
            last: None is all that follow.

        Raises:
            UserError: if there are none.
        """
        chosen = self.order()[first:last]
        split = f"{self.split}[{'' if first is None else first}:{'' if last is None else last}]"
        if not chosen:
            raise UserError(
                f"image set {self.name}#{split}: no image there, split {self.split!r} has {len(self)}."
            )
        storage = SelectedImages(self._storage, sorted(chosen))
        opened = Opened(self.name, split, storage, self._stored_names, self.templates)
        return ImageSet(opened, self._card)

    def check(self, *, pictures: bool = False) -> list[str]:
        """Return what is wrong with the set, a line each; an empty list if nothing is.

        Compared are counts with the card, labels with class names, and class names with each other.

        Args:
            pictures: also read every image: unreadable ones and byte-equal ones are named.
        """
        problems = []
        if self._card is not None:
            stated = self._card.splits.get(self.split)  # of a part of a split nothing is stated
            if stated not in (None, len(self)):
                problems.append(
                    f"{len(self)} images, the card says {stated} for split {self.split!r}."
                )
            classes = len(self.classnames) if self.classnames is not None else None
            if classes != self._card.classes:
                problems.append(f"{classes} classes, the card says {self._card.classes}.")
            elif self._card.names_of == "source":
                problems += _renamed(self._card.names() or [], self.classnames or [])
        if self.classnames is not None and self.labels is not None:
            problems += self._check_classes(self.classnames, self.labels)
        if pictures:
            problems += self._check_pictures()
        return problems

    def _check_classes(self, names: list[str], labels: list[int]) -> list[str]:
        problems = []
        outside = [i for i, label in enumerate(labels) if not 0 <= label < len(names)]
        if outside:
            problems.append(
                f"{len(outside)} labels outside 0 to {len(names) - 1}: {self._some(outside)}."
            )
        listed = Counter((self._card.names() if self._card else None) or [])
        for name, count in Counter(names).items():
            if count > 1 and listed[name] != count:  # what a card's own list holds is told with it
                which = ", ".join(str(k) for k, other in enumerate(names) if other == name)
                problems.append(f"class name {name!r} stands for {count} labels: {which}.")
        present = set(labels)
        empty = [name for label, name in enumerate(names) if label not in present]
        if empty:
            shown = ", ".join(empty[:_SHOWN]) + (", ..." if len(empty) > _SHOWN else "")
            problems.append(f"{len(empty)} classes without an image: {shown}.")
        return problems

    def _check_pictures(self) -> list[str]:
        problems = []
        by_hash: dict[str, list[int]] = {}
        for index in range(len(self)):
            stored = self.stored(index)
            by_hash.setdefault(image_hash(stored), []).append(index)
            try:
                self.picture(index, stored)
            except UserError as error:
                problems.append(str(error))
        for equal in by_hash.values():
            if len(equal) > 1:
                problems.append(f"{len(equal)} byte-equal images: {self._some(equal)}.")
        return problems

    def _some(self, indices: list[int]) -> str:
        shown = ", ".join(self.ids[index] for index in indices[:_SHOWN])
        return shown + (", ..." if len(indices) > _SHOWN else "")


def _renamed(listed: list[str], found: list[str]) -> list[str]:
    other = [
        f"{k} is {name!r}, not {known!r}"
        for k, (known, name) in enumerate(zip(listed, found, strict=True))
        if name != known
    ]
    if not other:
        return []
    shown = "; ".join(other[:_SHOWN]) + ("; ..." if len(other) > _SHOWN else "")
    return [f"{len(other)} class names of the files are not those of the card: {shown}."]


@dataclass(frozen=True, slots=True)
class Suite:
    """A named list of sets to measure on, the set that hardening may see kept apart.

    Attributes:
        name: of the suite, or the list as it was given.
        source: spec of the source set; None for a list given ad hoc.
        source_split: its held-out split, which `--with-source` measures; or None.
        sets: specs of the targets, each once.
        optional: those of them that are left out, and said, where their images are not here.
    """

    name: str
    source: str | None
    source_split: str | None
    sets: list[str]
    optional: list[str] = field(default_factory=list)


def open_set(spec: str, split: str | None = None, *, download: bool = False) -> ImageSet:
    """Open an image set.

    Args:
        spec: see the top of this module.
        split: None means the spec's own (#SPLIT), the card's default, else "test"; with [FROM:TO] behind it
            the part of it at these places of the fixed order.
        download: let a card fetch what is not there. hf-hub:ORG/REPO always may.

    Raises:
        UserError: if the spec, the split or the content is wrong, or no source of a card is found;
            the message then says how to bring the set (`SetMissing`).
        EnvironmentFault: if the hub cannot be reached, or a file not be read.
    """
    if not isinstance(spec, str):
        raise UserError(
            f"an image set is named by a text, got {spec!r}: a card's name or folder:DIR."
        )
    spec, named = _split_off(spec)
    if named is not None and split not in (None, named):
        raise UserError(
            f"image set {spec}#{named}: split {split!r} is asked for beside it; give one."
        )
    whole, part = _part_off(split or named)
    opened = _open_split(spec, whole, download=download)
    return opened if part is None else opened.part(*part)


def _open_split(spec: str, split: str | None, *, download: bool) -> ImageSet:
    kind, _, rest = spec.partition(":")
    _known(spec)
    if kind == "wds":
        return ImageSet(open_tars(_below_data(rest), split))
    if kind == "folder":
        return ImageSet(open_folder(Path(rest).expanduser(), split))
    if kind == "hf-hub":
        return ImageSet(_open_hub(rest, split or "test", None, local=False))
    card = load_card(spec)
    split = split or card.split
    if split not in card.splits:
        raise unknown_name(f"split of {card.name}", split, card.splits)
    names = card.names() if card.names_of == "card" else None
    for source in card.sources:
        opened = _open_source(source, card, split, names, download=download)
        if opened is not None:
            return ImageSet(opened, card)
    data = os.environ.get("ZSROBUST_DATA")
    where = f"ZSROBUST_DATA is {data}" if data else "ZSROBUST_DATA is not set"
    raise SetMissing(
        f"{card.name}, split {split!r}, is not on this machine ({where}). {card.bring.strip()}"
    )


def load_suite(name_or_list: str) -> Suite:
    """Return a suite by name, or one made of a set spec or of specs with commas between.

    Raises:
        UserError: if a name is neither a suite's nor a set's, or the list is empty.
    """
    if not isinstance(name_or_list, str):
        raise UserError(
            f"sets are named by a text, got {name_or_list!r}: a suite, or sets with commas."
        )
    suites = _suites()
    if name_or_list in suites:
        return suites[name_or_list]
    specs = [spec.strip() for spec in name_or_list.split(",") if spec.strip()]
    if not specs:
        raise UserError(
            f"sets {name_or_list!r}: empty; give a suite ({', '.join(suites)}), or sets with "
            "commas between."
        )
    sets: list[str] = []
    optional: list[str] = []
    for spec in specs:
        if spec in suites:
            sets += suites[spec].sets
            optional += suites[spec].optional
        else:
            _known(_split_off(spec)[0], list(suites))
            sets.append(spec)
    # A set named twice would count twice in a mean.
    optional = [spec for spec in dict.fromkeys(optional) if spec not in specs]
    return Suite(name_or_list, None, None, list(dict.fromkeys(sets)), optional)


def suite_names() -> list[str]:
    """Return the names of all suites, sorted."""
    return sorted(_suites())


def _suites() -> dict[str, Suite]:
    text = (resources.files("zsrobust.data") / "suites.yaml").read_text("utf-8")
    return {name: Suite(name, **content) for name, content in yaml.safe_load(text).items()}


def _split_off(spec: str) -> tuple[str, str | None]:
    """Return a spec without its #SPLIT, and the split or None."""
    found = re.fullmatch(r"(.+)#([A-Za-z0-9_.-]+(?:\[[^\[\]]*\])?)", spec)
    return (found[1], found[2]) if found else (spec, None)


def _part_off(split: str | None) -> tuple[str | None, tuple[int | None, int | None] | None]:
    """Return a split without its [FROM:TO], and these two or None.

    Raises:
        UserError: if what stands in the brackets is no such part.
    """
    if split is None or not split.endswith("]"):
        return split, None
    name, _, inside = split[:-1].partition("[")
    found = re.fullmatch(r"(\d*):(\d*)", inside)
    first, last = (int(n) if n else None for n in found.groups()) if found else (None, None)
    if not name or (first, last) == (None, None) or (last is not None and last <= (first or 0)):
        raise UserError(
            f"split {split!r}: a part is written [FROM:TO] by the places of the fixed order, TO after FROM: "
            "val[500:], val[:500]."
        )
    return name, (first, last)


def _known(spec: str, suites: list[str] | None = None) -> None:
    """Refuse a spec of no known form, or the name of no card."""
    kind, colon, rest = spec.partition(":")
    kinds = ("wds", "folder", "hf-hub")
    if colon and kind in kinds:
        if not rest:
            raise UserError(
                f"image set {spec!r}: nothing after the colon; give a folder or repository."
            )
        if kind == "hf-hub" and not re.fullmatch(r"[\w.-]+/[\w.-]+", rest):
            raise UserError(f"image set {spec!r}: not of the form ORG/REPO; write hf-hub:ORG/REPO.")
        return
    cards = card_names()
    if spec in cards:
        return
    if colon:
        raise unknown_name("kind of image set", kind, kinds, "A card is given by its name alone.")
    path = Path(spec).expanduser()
    if spec and path.is_dir():  # Path("") is the current folder
        raise UserError(
            f"image set {spec!r} is a folder: write folder:{spec} for pictures, wds:{spec} for tars."
        )
    if path.is_file():
        mend = (
            f"write wds:{path.parent}" if path.suffix == ".tar" else "give the folder that holds it"
        )
        raise UserError(f"image set {spec!r} is a file: {mend}.")
    hint = "A folder is given as wds:DIR or folder:DIR, a repository as hf-hub:ORG/REPO."
    raise unknown_name("image set", spec, [*cards, *(suites or [])], hint)


def _below_data(given: str) -> Path:
    """Return the folder as given if it exists, else the one below ZSROBUST_DATA if that does."""
    path = Path(given).expanduser()
    if not path.is_dir() and not path.is_absolute() and (data := _data_folder()) is not None:
        return data / given if (data / given).is_dir() else path
    return path


def _data_folder() -> Path | None:
    data = os.environ.get("ZSROBUST_DATA")
    return Path(data).expanduser() if data else None


def _open_source(
    source: Source, card: Card, split: str, classnames: list[str] | None, *, download: bool
) -> Opened | None:
    """Open one source of a card; None if it is not on this machine."""
    data = _data_folder()
    if source.kind == "wds":
        there = source.splits.get(split, split)
        if data is None or there not in split_names(data / source.wds):
            return None
        if classnames is None and not (data / source.wds / CLASSNAMES).is_file():
            classnames = card.names()
        return replace(open_tars(data / source.wds, there, classnames), split=split)
    if source.kind == "hf-hub":
        there = source.splits.get(split, split)
        try:
            opened = _open_hub(source.repo, there, classnames, local=not download)
        except EnvironmentFault:
            if download:
                raise
            return None
        return replace(opened, split=split)
    if source.kind == "torchvision":
        roots = [data / source.folder, data] if data is not None else []
        roots.append(download_folder(source.folder))
        if source.dataset in {"CIFAR10", "CIFAR100"}:
            return open_cifar(roots, source.dataset, split, download=download)
        found = open_tree(source.dataset, roots, split)
        if found is None and download:
            found = download_tree(source.dataset, roots[-1], split)
        return None if found is None else _whole(found, card)
    if source.kind == "unpacked":
        roots = [data / source.folder, data] if data is not None else []
        found = open_tree(source.layout, roots, split)
        return None if found is None else _whole(found, card)
    if source.kind == "imagenet-folders":
        for folder in source.folders:
            held = None if data is None else data / folder
            if held is not None and (held if source.whole else held / split).is_dir():
                return open_imagenet(held, split, classnames or [], whole=source.whole)
        return None
    if source.kind == "drawn":
        from zsrobust.data.drawn.sections import open_drawn  # brings numpy and Pillow

        return open_drawn(source.section, split, source.seed, card.splits[split])
    assert_never(source)


def _whole(found: Opened, card: Card) -> Opened:
    """Refuse a folder with too few or too many classes: all labels behind the missing one were wrong."""
    if found.classnames is not None and len(found.classnames) != card.classes:
        raise UserError(
            f"{card.name}: {len(found.classnames)} classes in its files, the card says {card.classes}; "
            "unpack the whole set anew (a part of it is opened with folder:DIR)."
        )
    if not found.storage.ids:
        raise UserError(f"{card.name}: no picture in its folders; unpack the set anew.")
    return found


def _open_hub(repo: str, split: str, classnames: list[str] | None, *, local: bool) -> Opened:
    """Open a repository of the hub, from its cache alone if `local`."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    try:
        folder = snapshot_download(
            repo,
            repo_type="dataset",
            allow_patterns=[f"{split}/*.tar", f"{split}/nshards.txt", "*.txt"],
            local_files_only=local,
        )
    except HFValidationError as error:
        raise UserError(f"hf-hub:{repo}: not of the form ORG/REPO.") from error
    except Exception as error:  # its errors come from three libraries, without a common base
        cause = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise EnvironmentFault(
            f"hf-hub:{repo}: not in the cache, and not to be had from the hub ({cause}); check the "
            "name and the network, or bring the cache folder (HF_HOME) from a machine that has it."
        ) from error
    if local and split not in split_names(Path(folder)):
        raise EnvironmentFault(f"hf-hub:{repo}: the cache does not hold split {split!r}.")
    opened = open_tars(Path(folder), split, classnames)
    return replace(opened, name=repo)
