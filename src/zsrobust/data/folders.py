"""Folders of picture files: by class, by split and class, or bare; and ImageNet's own."""

from __future__ import annotations

import csv
import os
from pathlib import Path

from zsrobust.data.storage import PICTURE_ENDINGS, FileImages, Opened, read_classnames
from zsrobust.data.tars import CLASSNAMES
from zsrobust.errors import UserError, unknown_name

_USUAL_SPLITS = frozenset({"train", "training", "val", "valid", "validation", "test", "testing"})


def open_folder(folder: Path, split: str | None) -> Opened:
    """Open a folder of pictures.

    Labels are the sorted names of the class folders. Class names are those of a classnames.txt
    beside them or above, else the folder names in lower case with _ and - as spaces. A folder with
    pictures and no sub-folders has no labels. Ids are paths relative to the folder that holds the
    class folders (or the bare pictures), with / on every machine.

    Args:
        folder: DIR/SPLIT/class/*.jpg, DIR/class/*.jpg or DIR/*.jpg.
        split: None means DIR/test where it exists, else DIR itself.

    Raises:
        UserError: if there is no such folder or split, no picture, pictures beside class folders,
            or class names that do not fit the class folders.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; give a folder of pictures or of class folders.")
    folder = Path(os.path.abspath(folder))
    root = folder / (split or "test")
    if not root.is_dir():
        names = [path.name for path in folders_of(folder)]
        if names and _USUAL_SPLITS.issuperset(name.lower() for name in names):
            raise unknown_name(f"split of {folder}", split or "test", names)
        if split not in (None, "test", folder.name):
            raise UserError(
                f"{folder} has no splits, but split {split!r} was asked for; put its pictures into "
                f"{root}, or leave the split out."
            )
        root = folder
    name, split = folder.name, split or "test"
    classes = folders_of(root)
    beside = pictures_of(root, deep=False)
    if not classes:
        return Opened(name, split, _files(root, beside, None))
    if beside:
        raise UserError(
            f"{root}: {beside[0].name} lies beside class folders; "
            "move it into one, or out of the set."
        )
    files, labels = [], []
    for label, path in enumerate(classes):
        found = pictures_of(path, deep=True)
        files += found
        labels += [label] * len(found)
    listed = next((p / CLASSNAMES for p in (root, folder) if (p / CLASSNAMES).is_file()), None)
    names = [path.name.replace("_", " ").replace("-", " ").lower() for path in classes]
    if listed is not None:
        names = read_classnames(listed)
        if len(names) != len(classes):
            raise UserError(
                f"{listed} has {len(names)} names, but {root} has {len(classes)} class folders; "
                "line k + 1 names the k-th folder by sorted name, from 0."
            )
    return Opened(name, split, _files(root, files, labels), names)


def open_imagenet(root: Path, split: str, classnames: list[str], *, whole: bool = False) -> Opened:
    """Open ImageNet as its authors' tars unpack: SPLIT/WNID/*.JPEG, label i = i-th sorted wnid.

    Validation images that lie flat in val/ get their labels from LOC_val_solution.csv (in `root`,
    its split or the folders above), if it is there. An id is WNID/FILE either way, so that the
    order is one.

    Args:
        root: the folder that holds `split`.
        split: "train" or "val".
        classnames: one for each wnid, in their sorted order.
        whole: the WNID folders stand in `root` itself (ImageNet-R, ImageNet-Sketch).

    Raises:
        UserError: if the wnids are not as many as the names, or flat images have no labels.
    """
    folder = root if whole else root / split
    classes = folders_of(folder)
    if classes:
        by_wnid = {path.name: pictures_of(path, deep=True) for path in classes}
    elif whole:
        by_wnid = {}
    else:
        by_wnid = _sorted_by_solution(root, folder)
    wnids = sorted(by_wnid)
    if len(wnids) != len(classnames):
        raise UserError(
            f"{folder}: {len(wnids)} classes, expected {len(classnames)}; not the whole set "
            "(a part of ImageNet is opened with folder:DIR and a classnames.txt of its own)."
        )
    files = [file for wnid in wnids for file in by_wnid[wnid]]
    labels = [label for label, wnid in enumerate(wnids) for _ in by_wnid[wnid]]
    ids = [f"{wnid}/{file.name}" for wnid in wnids for file in by_wnid[wnid]]
    if not files:
        raise UserError(f"{folder}: no picture in it.")
    return Opened("imagenet", split, FileImages(files, ids, labels), classnames)


def _sorted_by_solution(root: Path, folder: Path) -> dict[str, list[Path]]:
    # The Kaggle archive has it three folders above Data/CLS-LOC/val.
    places = [root, folder, *root.parents[:3]]
    found = (place / "LOC_val_solution.csv" for place in places)
    solution = next((path for path in found if path.is_file()), None)
    if solution is None:
        raise UserError(
            f"{folder}: the images lie flat, their classes are unknown; put LOC_val_solution.csv "
            f"into {root}, or sort them into WNID folders (torchvision.datasets.ImageNet does it "
            "from the official tars)."
        )
    try:
        with solution.open(newline="", encoding="utf-8") as stream:
            wnid_of = {
                row["ImageId"]: row["PredictionString"].split()[0] for row in csv.DictReader(stream)
            }
    except (KeyError, IndexError, AttributeError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(
            f"{solution}: not a table with ImageId and PredictionString in each line; bring it anew."
        ) from error
    by_wnid: dict[str, list[Path]] = {wnid: [] for wnid in wnid_of.values()}
    for file in pictures_of(folder, deep=False):
        if file.stem not in wnid_of:
            raise UserError(
                f"{solution}: no line for {file.name}; bring the file that fits the images."
            )
        by_wnid[wnid_of[file.stem]].append(file)
    return by_wnid


def _files(root: Path, files: list[Path], labels: list[int] | None) -> FileImages:
    if not files:
        raise UserError(f"{root}: no picture in it; expected .jpg, .png, .webp or the like.")
    return FileImages(files, [file.relative_to(root).as_posix() for file in files], labels)


def folders_of(folder: Path) -> list[Path]:
    """Return the sub-folders by name; hidden ones and __MACOSX are no classes."""
    found = (path for path in folder.iterdir() if path.is_dir())
    return sorted(
        (p for p in found if not p.name.startswith((".", "__"))), key=lambda path: path.name
    )


def pictures_of(folder: Path, *, deep: bool) -> list[Path]:
    """Return the picture files by path; other files, and hidden ones, are passed over."""
    found = folder.rglob("*") if deep else folder.iterdir()
    return sorted(
        (
            path
            for path in found
            if path.suffix[1:].lower() in PICTURE_ENDINGS
            and not path.name.startswith(".")
            and path.is_file()
        ),
        key=lambda path: path.relative_to(folder).as_posix(),
    )
