"""A collection's YAML file: studies that share their hardenings and cells, by name or written out."""

from __future__ import annotations

from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Any

from pydantic import Field

from zsrobust.errors import UserError, unknown_name
from zsrobust.training.recipe import (
    Name,
    Part,
    base_place,
    check_recipe,
    put_overrides,
    read_mapping,
)
from zsrobust.workflows.study_recipe import (
    SHARED_NAMES,
    Combination,
    Study,
    combinations,
    load_study,
    packaged_names,
    parse_study,
    split_overrides,
    study_names,
)


class CollectionFile(Part):
    """A collection as its YAML file has it."""

    name: Name
    title: str = ""
    studies: list[str | dict[str, Any]] = Field(min_length=1)
    """Each a study's name or file, or a study written out."""


@dataclass(frozen=True)
class Member:
    """One study of a collection."""

    study: Study
    combinations: list[Combination]
    """Their folders are the collection's: equal hardenings of two studies have one."""

    @property
    def folder(self) -> str:
        """Its name below the collection's folder."""
        return folder_of(self.study)


@dataclass(frozen=True)
class Collection:
    """A collection, read."""

    name: str
    title: str
    members: list[Member]


def folder_of(study: Study) -> str:
    """Return the last part of a study's name."""
    return study.name.rpartition("/")[2]


def collection_names() -> list[str]:
    """Return the collections that come with the package, "mini/scale" and so on."""
    return packaged_names("collections")


def read_collection(name_or_file: str) -> CollectionFile | None:
    """Read a collection alone; None if what is named is none.

    Raises:
        UserError: if a file is no YAML mapping, or a collection with a wrong key, type or value.
        EnvironmentFault: if it cannot be read.
    """
    text = None
    if name_or_file in collection_names():
        group, _, short = name_or_file.rpartition("/")
        place = resources.files("zsrobust") / "recipes" / group / "collections" / f"{short}.yaml"
        text = place.read_text("utf-8")
    elif not name_or_file.endswith((".yaml", ".yml")) or not Path(name_or_file).is_file():
        return None
    data = read_mapping(name_or_file, text, kind="collection")
    if "studies" not in data:
        return None
    return check_recipe(CollectionFile, data, name_or_file, kind="collection")


def load_collection(name_or_file: str, overrides: list[str] | None = None) -> Collection | None:
    """Read a collection and the recipe of each hardening of its studies; None if what is named is none.

    Args:
        name_or_file: a packaged name ("mini/scale") or a YAML file.
        overrides: "key=value" of every study ("evaluate.limit=20"); "recipe.key=value" of every recipe.

    Raises:
        UserError: as `load_study`; if two studies have one name, or one that the collection's folder needs.
        EnvironmentFault: if a file cannot be read.
    """
    file = read_collection(name_or_file)
    if file is None:
        return None
    members = []
    for one in file.studies:
        if isinstance(one, str):
            place = base_place(one, name_or_file)
            if place not in study_names() and not place.endswith((".yaml", ".yml")):
                raise unknown_name("study", one, study_names(), "Or give a .yaml file.")
            members.append(Member(*load_study(place, overrides)))
        else:
            members.append(Member(*_written_out(one, name_or_file, overrides)))
    folders = [member.folder for member in members]
    for name in folders:
        if folders.count(name) > 1:
            raise UserError(
                f"collection {file.name}: two studies are called {name!r}; name them differently."
            )
        if name in SHARED_NAMES:
            raise UserError(
                f"collection {file.name}: a study cannot be called {name!r}, the collection needs that name."
            )
    return Collection(file.name, file.title, _with_shared_runs(members))


def _written_out(
    data: dict[str, Any], where: str, overrides: list[str] | None
) -> tuple[Study, list[Combination]]:
    own, everywhere = split_overrides(overrides)
    study = parse_study(put_overrides(dict(data), own), f"{data.get('name', '?')} of {where}")
    return study, combinations(study, everywhere, where)


def _with_shared_runs(members: list[Member]) -> list[Member]:
    """Return the members with one folder a hardening, over all of them."""
    folders: dict[str, str] = {}
    found = []
    for member in members:
        renamed = []
        for one in member.combinations:
            # A recipe as it comes has a name; else the first study that needs it and its place there.
            wanted = one.recipe_name or f"{member.folder}--{one.folder}"
            while wanted in folders.values():
                wanted += "+"
            folder = folders.setdefault(str(one.recipe.determining()), wanted)
            renamed.append(replace(one, folder=folder))
        found.append(Member(member.study, renamed))
    return found
