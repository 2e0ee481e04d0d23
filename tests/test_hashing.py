"""Hashes: of what, and of nothing else."""

from __future__ import annotations

import pytest
import torch

from zsrobust.hashing import canonical_json, sha256_tensors


def test_tensors_hash_by_name_dtype_shape_and_bits():
    """Each of them changes the hash; the order of the dict does not."""
    a, b = torch.arange(6.0), torch.ones(2)
    base = sha256_tensors({"a": a, "b": b})
    assert base == sha256_tensors({"b": b.clone(), "a": a.clone()})
    changed = [
        {"a": a, "c": b},
        {"a": a.double(), "b": b},
        {"a": a.reshape(2, 3), "b": b},
        {"a": a + torch.eye(6)[0] * 1e-7, "b": b},
        {"a": a * 1.0, "b": b + 0.0},
    ]
    assert [sha256_tensors(c) == base for c in changed] == [False] * 4 + [True]


def test_any_dtype_and_a_scalar_can_be_hashed():
    """bfloat16 has no numpy form; a logit scale has no dimension."""
    for dtype in (torch.bfloat16, torch.float16, torch.int64, torch.bool):
        assert len(sha256_tensors({"x": torch.zeros((), dtype=dtype)})) == 64


def test_canonical_json_is_one_text_a_value():
    """Keys are sorted; NaN is refused instead of written."""
    assert canonical_json({"b": 1, "a": [1, "ü"]}) == '{"a":[1,"ü"],"b":1}'
    with pytest.raises(ValueError, match="JSON"):
        canonical_json(float("nan"))
