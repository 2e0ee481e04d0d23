"""Public sets as their archives unpack, each in the form that its authors (and torchvision) give it.

One function a set: a folder and a split -> its pictures, in stored order, with labels and the class
names that stand in the set's own files; None if the folder does not hold the set. Nothing is read
but names and labels. Labels and their order are torchvision's, ids are paths that no machine changes.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from zsrobust.data.binaries import open_stl10
from zsrobust.data.downloads import downloading
from zsrobust.data.folders import folders_of, pictures_of
from zsrobust.data.storage import FileImages, Opened, cannot_read
from zsrobust.errors import UserError, one_line

Labelled = tuple[Path, str, int]  # file, id, label


def _caltech101(root: Path, split: str) -> Opened | None:
    """101_ObjectCategories/CLASS/*.jpg; the folder of background pictures is no class."""
    return _by_folder(
        "caltech101",
        split,
        _first(root / "101_ObjectCategories", root / "caltech101" / "101_ObjectCategories"),
        leave_out=("BACKGROUND_Google",),
    )


def _caltech256(root: Path, split: str) -> Opened | None:
    """256_ObjectCategories/001.ak47/*.jpg; a folder within a class folder is not read."""
    return _by_folder(
        "caltech256",
        split,
        _first(root / "256_ObjectCategories", root / "caltech256" / "256_ObjectCategories"),
    )


def _sun397(root: Path, split: str) -> Opened | None:
    """SUN397/ClassName.txt, its line k + 1 the folder of class k (/a/abbey), with sun_*.jpg in it."""
    base = root / "SUN397"
    if not (base / "ClassName.txt").is_file():
        return None
    names = [line.strip() for line in _lines(base / "ClassName.txt")]
    samples = []
    for label, name in enumerate(names):
        folder = _class_folder(base, name.strip("/"))
        samples += _in(base, pictures_of(folder, deep=False), label)
    # "/a/abbey" -> "abbey", as torchvision names it.
    return _opened("sun397", split, samples, [name[3:] for name in names])


def _cars(root: Path, split: str) -> Opened | None:
    """stanford_cars: cars_train and cars_test, their annotations and names as MATLAB files."""
    base = root / "stanford_cars"
    if not (base / "devkit" / "cars_meta.mat").is_file():
        return None
    annotations = {
        "train": base / "devkit" / "cars_train_annos.mat",
        "test": base / "cars_test_annos_withlabels.mat",
    }[split]
    rows = _matlab(annotations, "annotations")
    names = [str(name) for name in _matlab(base / "devkit" / "cars_meta.mat", "class_names")]
    folder = base / f"cars_{split}"
    samples = [
        (folder / str(row["fname"]), f"cars_{split}/{row['fname']}", int(row["class"]) - 1)
        for row in rows
    ]
    return _opened("cars", split, samples, names)


def _food101(root: Path, split: str) -> Opened | None:
    """food-101: meta/SPLIT.json lists the pictures of each class below images/."""
    base = root / "food-101"
    listed = base / "meta" / f"{split}.json"
    if not listed.is_file():
        return None
    content = _json(listed.read_text(encoding="utf-8"), listed)
    names = sorted(content)
    samples = [
        (base / "images" / f"{path}.jpg", f"{path}.jpg", label)
        for label, name in enumerate(names)
        for path in content[name]
    ]
    return _opened("food101", split, samples, names)


def _pets(root: Path, split: str) -> Opened | None:
    """oxford-iiit-pet: annotations/SPLIT.txt has lines "NAME LABEL ...", labels from 1."""
    base = root / "oxford-iiit-pet"
    listed = base / "annotations" / f"{split}.txt"
    if not listed.is_file():
        return None
    samples, names = [], {}
    for line in _lines(listed):
        name, label = line.split()[:2]
        samples.append((base / "images" / f"{name}.jpg", f"{name}.jpg", int(label) - 1))
        names[int(label) - 1] = " ".join(part.title() for part in name.split("_")[:-1])
    return _opened("pets", split, samples, [names[label] for label in sorted(names)])


def _flowers102(root: Path, split: str) -> Opened | None:
    """flowers-102: jpg/image_00001.jpg ..., imagelabels.mat from 1, setid.mat; no class names."""
    base = root / "flowers-102"
    if not (base / "setid.mat").is_file():
        return None
    key = {"train": "trnid", "val": "valid", "test": "tstid"}[split]
    labels = [int(label) for label in _matlab(base / "imagelabels.mat", "labels")]
    files = [
        (int(number), f"image_{number:05d}.jpg") for number in _matlab(base / "setid.mat", key)
    ]
    samples = [(base / "jpg" / file, file, labels[number - 1] - 1) for number, file in files]
    return _opened("flowers102", split, samples, None)


def _dtd(root: Path, split: str) -> Opened | None:
    """dtd: labels/SPLIT1.txt (the first of ten partitions) has lines CLASS/FILE, below images/."""
    base = _first(root / "dtd" / "dtd", root / "dtd", root)
    listed = None if base is None else base / "labels" / f"{split}1.txt"
    if base is None or listed is None or not listed.is_file():
        return None
    paths = _lines(listed)
    names = sorted({path.split("/")[0] for path in paths})
    samples = [(base / "images" / path, path, names.index(path.split("/")[0])) for path in paths]
    return _opened("dtd", split, samples, names)


def _eurosat(root: Path, split: str) -> Opened | None:
    """2750/CLASS/*.jpg, the RGB form."""
    return _by_folder("eurosat", split, _first(root / "2750", root / "eurosat" / "2750"))


def _aircraft(root: Path, split: str) -> Opened | None:
    """fgvc-aircraft-2013b/data: variants.txt, images_variant_SPLIT.txt ("NUMBER NAME"), images/."""
    base = root / "fgvc-aircraft-2013b" / "data"
    listed = base / f"images_variant_{split}.txt"
    if not listed.is_file():
        return None
    names = [line.strip() for line in _lines(base / "variants.txt")]
    samples = []
    for line in _lines(listed):
        number, name = line.strip().split(" ", 1)
        if name not in names:
            raise UserError(f"{listed}: {name!r} is none of the names in {base / 'variants.txt'}.")
        samples.append((base / "images" / f"{number}.jpg", f"{number}.jpg", names.index(name)))
    return _opened("fgvc_aircraft", split, samples, names)


def _country211(root: Path, split: str) -> Opened | None:
    """country211/SPLIT/AD/*.jpg: two-letter codes."""
    return _by_folder("country211", split, _first(root / "country211" / split, root / split))


def _tiny_imagenet(root: Path, split: str) -> Opened | None:
    """tiny-imagenet-200: train/WNID/images/*.JPEG, val/images/*.JPEG and val/val_annotations.txt.

    Also with val sorted into WNID folders. Labels are the wnids by name, names the first synonym in
    words.txt.
    """
    base = root / "tiny-imagenet-200"
    if not (base / "wnids.txt").is_file():
        return None
    wnids = sorted(line.strip() for line in _lines(base / "wnids.txt"))
    words = dict(line.strip().split("\t", 1) for line in _lines(base / "words.txt") if "\t" in line)
    missing = [wnid for wnid in wnids if wnid not in words]
    if missing:
        raise UserError(f"{base / 'words.txt'}: no line for {missing[0]}; bring the file anew.")
    annotations = base / "val" / "val_annotations.txt"
    samples: list[Labelled] = []
    if split == "val" and annotations.is_file() and (base / "val" / "images").is_dir():
        for line in _lines(annotations):
            file, wnid = line.split("\t")[:2]
            samples.append((base / "val" / "images" / file, f"{wnid}/{file}", wnids.index(wnid)))
    else:
        for label, wnid in enumerate(wnids):
            folder = _class_folder(base, f"{split}/{wnid}")
            samples += [
                (file, f"{wnid}/{file.name}", label) for file in pictures_of(folder, deep=True)
            ]
    names = [words[wnid].split(",")[0] for wnid in wnids]
    return _opened("tiny_imagenet", split, samples, names)


def _hateful_memes(root: Path, split: str) -> Opened | None:
    """img/*.png and SPLIT.jsonl with "img" and "label"; test is test_seen and test_unseen."""
    parts = ["test_seen", "test_unseen"] if split == "test" else [split]
    listed = [root / f"{part}.jsonl" for part in parts]
    if not (root / "img").is_dir() or not all(file.is_file() for file in listed):
        return None
    samples = []
    for file in listed:
        for number, line in enumerate(_lines(file), start=1):
            row = _json(line, f"{file}, line {number}")
            if row.get("label") not in (0, 1) or not isinstance(row.get("img"), str):
                raise UserError(
                    f"{file}, line {number}: no img, or no label 0 or 1; bring the files with labels."
                )
            samples.append((root / row["img"], str(row["img"]), int(row["label"])))
    return _opened("hateful_memes", split, samples, None)


# By torchvision's class, or by the layout's name where torchvision has none.
TREES: dict[str, Callable[[Path, str], Opened | None]] = {
    "STL10": open_stl10,
    "Caltech101": _caltech101,
    "Caltech256": _caltech256,
    "SUN397": _sun397,
    "StanfordCars": _cars,
    "Food101": _food101,
    "OxfordIIITPet": _pets,
    "Flowers102": _flowers102,
    "DTD": _dtd,
    "EuroSAT": _eurosat,
    "FGVCAircraft": _aircraft,
    "Country211": _country211,
    "tiny-imagenet": _tiny_imagenet,
    "hateful-memes": _hateful_memes,
}


def open_tree(layout: str, roots: list[Path], split: str) -> Opened | None:
    """Open the first of `roots` that holds a set; None if none does.

    Args:
        layout: a key of `TREES`.
        roots: folders that may hold what the set's archive unpacks to.
        split: a split that the set has.

    Raises:
        UserError: if the set is there, but not whole, or a file of it is damaged.
        EnvironmentFault: if a file cannot be read.
    """
    for root in roots:
        try:
            opened = TREES[layout](root, split)
        except OSError as error:
            raise cannot_read(Path(error.filename or root), error) from error
        except (ValueError, KeyError, IndexError, TypeError) as error:
            raise UserError(
                f"{root}: the lists of {layout} are damaged ({one_line(error)}); unpack the set anew."
            ) from error
        if opened is not None:
            return opened
    return None


# What torchvision downloads and compares with a published MD5, and whether it asks for a split.
_DOWNLOADS = {
    "STL10": True,
    "Caltech101": False,
    "Caltech256": False,
    "SUN397": False,
    "Food101": True,
    "OxfordIIITPet": True,
    "Flowers102": True,
    "DTD": True,
    "EuroSAT": False,
    "Country211": True,
}


def download_tree(dataset: str, root: Path, split: str) -> Opened | None:
    """Let torchvision fetch and check a set's archive, and open it; None where it does neither.

    Args:
        dataset: torchvision's class.
        root: the folder to unpack into; it is made.
        split: a split that the set has.

    Raises:
        UserError: if what came is not the published archive.
        EnvironmentFault: if the download fails.
    """
    if dataset not in _DOWNLOADS:
        return None
    import torchvision

    loader: Any = getattr(torchvision.datasets, dataset)
    with downloading(dataset, root):
        loader(str(root), download=True, **({"split": split} if _DOWNLOADS[dataset] else {}))
    return open_tree(dataset, [root], split)


def _first(*folders: Path) -> Path | None:
    return next((folder for folder in folders if folder.is_dir()), None)


def _by_folder(
    name: str, split: str, base: Path | None, leave_out: tuple[str, ...] = ()
) -> Opened | None:
    if base is None:
        return None
    classes = [folder for folder in folders_of(base) if folder.name not in leave_out]
    samples = []
    for label, folder in enumerate(classes):
        samples += _in(base, pictures_of(folder, deep=False), label)
    return _opened(name, split, samples, [folder.name for folder in classes])


def _class_folder(base: Path, name: str) -> Path:
    folder = base / name
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; {base} is not the whole set.")
    return folder


def _in(base: Path, files: list[Path], label: int) -> list[Labelled]:
    return [(file, file.relative_to(base).as_posix(), label) for file in files]


def _opened(name: str, split: str, samples: list[Labelled], names: list[str] | None) -> Opened:
    storage = FileImages(
        [Path(os.path.abspath(file)) for file, _, _ in samples],
        [sample_id for _, sample_id, _ in samples],
        [label for _, _, label in samples],
    )
    return Opened(name, split, storage, names)


def _lines(file: Path) -> list[str]:
    return [line for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]


def _json(text: str, where: object) -> dict[str, Any]:
    try:
        content = json.loads(text)
    except ValueError as error:
        raise UserError(f"{where}: damaged ({one_line(error)}); bring the file anew.") from error
    if not isinstance(content, dict):
        raise UserError(f"{where}: not a table of names and values; bring the file anew.")
    return content


def _matlab(file: Path, key: str) -> Any:
    """Return one array of a MATLAB file, its single dimensions dropped."""
    import numpy as np
    from scipy.io import loadmat

    return np.atleast_1d(loadmat(str(file), squeeze_me=True)[key])
