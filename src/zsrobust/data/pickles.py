"""CIFAR as its authors give it: python pickles of rows, read and checked by torchvision."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Literal

from zsrobust.data.storage import ArrayImages, Opened
from zsrobust.errors import EnvironmentFault, UserError

Dataset = Literal["CIFAR10", "CIFAR100"]


def download_folder(name: str) -> Path:
    """Return the folder below the user's cache where a download of `name` is kept."""
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(cache).expanduser() / "zsrobust" / name


def open_cifar(roots: list[Path], dataset: Dataset, split: str, *, download: bool) -> Opened | None:
    """Open the first of `roots` that holds the batches; None if none does and no download is asked.

    torchvision compares the MD5 of every batch with the published one before it unpickles it. An id
    is SPLIT/NUMBER in the order of the batches; the stored bytes are a row's 32 * 32 * 3 RGB bytes.

    Args:
        roots: folders that may hold cifar-10-batches-py; a download goes into the last.
        dataset: torchvision's class.
        split: "train" or "test".
        download: fetch the archive if it is in none of them.

    Raises:
        UserError: if batches are there but are not the published ones.
        EnvironmentFault: if the download fails.
    """
    import torchvision

    loader: Any = getattr(torchvision.datasets, dataset)
    root = next((root for root in roots if (root / loader.base_folder).is_dir()), None)
    try:
        if root is None:
            if not download:
                return None
            root = roots[-1]
            root.mkdir(parents=True, exist_ok=True)
            batches = loader(root, train=split == "train", download=True)
        else:
            batches = loader(root, train=split == "train")
    except OSError as error:
        raise EnvironmentFault(
            f"cannot bring {dataset} to {root}: {error.strerror or error}; see to the network and "
            "the folder, and start the same command again."
        ) from error
    except RuntimeError as error:
        raise UserError(
            f"{(root or roots[-1]) / loader.base_folder}: not the published batches (their MD5 "
            f"differs); unpack {loader.filename} there anew."
        ) from error
    ids = [f"{split}/{number:05d}" for number in range(len(batches.data))]
    labels = [int(label) for label in batches.targets]
    return Opened(
        dataset.lower(), split, ArrayImages(batches.data, ids, labels), list(batches.classes)
    )
