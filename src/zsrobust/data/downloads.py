"""Where torchvision's downloads go, and the words of one that fails."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from zsrobust.errors import EnvironmentFault, UserError, one_line


def download_folder(name: str) -> Path:
    """Return the folder below the user's cache where a download of `name` is kept."""
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(cache).expanduser() / "zsrobust" / name


@contextmanager
def downloading(dataset: str, root: Path) -> Iterator[None]:
    """Make `root`, and word what stops torchvision from bringing a set there.

    Args:
        dataset: torchvision's class.
        root: the folder to unpack into.

    Raises:
        UserError: if what came is not the published archive.
        EnvironmentFault: if the network or the disk fails.
    """
    try:
        root.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        raise EnvironmentFault(
            f"cannot bring {dataset} to {root}: {error.strerror or one_line(error)}; see to the "
            "network and the folder, and start the same command again."
        ) from error
    except RuntimeError as error:  # torchvision's, where a checksum differs
        raise UserError(
            f"{root}: what was downloaded is not the published archive of {dataset} "
            f"({one_line(error)}); remove it and start the same command again."
        ) from error
