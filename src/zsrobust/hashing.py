"""Hashes that name things: canonical JSON, tensors, files.

A key is only as good as the hash under it, so each function says exactly what enters.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor


def canonical_json(value: Any) -> str:
    """Return `value` as JSON with sorted keys, no spaces, and no NaN (ValueError)."""
    return json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    )


def sha256_text(text: str) -> str:
    """Return the hex SHA-256 of the UTF-8 bytes of `text`."""
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def sha256_json(value: Any) -> str:
    """Return the hex SHA-256 of `canonical_json(value)`."""
    return sha256_text(canonical_json(value))


def image_hash(stored: bytes) -> str:
    """Return the first 16 hex digits of the SHA-256 of an image's stored bytes."""
    return hashlib.sha256(stored).hexdigest()[:16]


def sha256_file(path: Path) -> str:
    """Return the hex SHA-256 of a file's bytes."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def sha256_tensors(tensors: Mapping[str, Tensor]) -> str:
    """Return the hex SHA-256 of named tensors: names, dtypes, shapes and bytes, in name order.

    Two models hash alike exactly if every named tensor is bit-equal; the device does not matter.
    """
    import torch

    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        # The bytes, whatever the dtype: numpy knows no bfloat16. A scalar has no last dimension to view.
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
