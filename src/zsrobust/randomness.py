"""Noise that is a function of (seed, purpose, stable id, draw), and of nothing else.

There is no generator and no state. A 64-bit integer hash (SplitMix64's finaliser) is evaluated with
tensor operations on the device where the noise is needed, so that what a sample draws depends
neither on its batch, nor on the order of samples, nor on the number of workers or processes.
Uniforms are multiples of 2^-24 in [0, 1), bit-equal on every device and in every float type;
normals are made from them in float64 and agree between devices to about 1e-6.

Source: Steele, Lea and Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014,
with Stafford's variant 13 of the finaliser. Difference: a counter takes the place of the state.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

_GOLDEN = 0x9E3779B97F4A7C15
_MULTIPLIER_1 = 0xBF58476D1CE4E5B9
_MULTIPLIER_2 = 0x94D049BB133111EB


def _signed(value: int) -> int:
    """Return the int64 that has the same 64 bits; tensors know no unsigned 64-bit arithmetic."""
    value &= (1 << 64) - 1
    return value - (1 << 64) if value >= 1 << 63 else value


def sample_key(seed: int, purpose: str, sample_id: str) -> int:
    """Return the int64 key of one sample: the first 8 bytes of SHA-256(seed, purpose, id).

    Args:
        seed: the user's seed, any integer.
        purpose: what the draws are for ("pgd-20", "train/3"): two purposes share no noise.
        sample_id: the sample's stable id.
    """
    digest = hashlib.sha256(f"{seed}\0{purpose}\0{sample_id}".encode()).digest()
    return int.from_bytes(digest[:8], "little", signed=True)


def sample_keys(seed: int, purpose: str, sample_ids: Sequence[str]) -> Tensor:
    """Return `sample_key` of each id as an int64 tensor (S,) on the CPU."""
    import torch

    keys = [sample_key(seed, purpose, sample_id) for sample_id in sample_ids]
    return torch.tensor(keys, dtype=torch.int64)


def _mix(bits: Tensor) -> Tensor:
    """Apply SplitMix64's finaliser to int64 bits; products wrap, shifts are logical."""
    bits = bits ^ ((bits >> 30) & ((1 << 34) - 1))
    bits = bits * _signed(_MULTIPLIER_1)
    bits = bits ^ ((bits >> 27) & ((1 << 37) - 1))
    bits = bits * _signed(_MULTIPLIER_2)
    return bits ^ ((bits >> 31) & ((1 << 33) - 1))


def uniform(key: Tensor, draw: Tensor, shape: Sequence[int]) -> Tensor:
    """Return uniforms in [0, 1), float32, of shape (S, *shape).

    Args:
        key: (S,) int64, one a sample.
        draw: (S,) int64, the number of the draw; a sample's draws are independent of each other.
        shape: of one sample's draw.
    """
    import torch

    stream = _mix(key ^ _mix(draw * _signed(_GOLDEN) + 1))  # (S,)
    count = math.prod(shape)
    index = torch.arange(1, count + 1, dtype=torch.int64, device=key.device)
    bits = _mix(stream[:, None] + index * _signed(_GOLDEN))  # (S, count)
    mantissa = (bits >> 40) & ((1 << 24) - 1)
    return (mantissa.to(torch.float32) * 2.0**-24).reshape(len(key), *shape)


def normal(key: Tensor, draw: Tensor, shape: Sequence[int]) -> Tensor:
    """Return standard normals, float32, of shape (S, *shape); arguments as in `uniform`.

    Box and Muller's transform of two uniforms, in float64.
    """
    import torch

    pairs = uniform(key, draw, (2, *shape)).double()
    radius = torch.sqrt(-2.0 * torch.log1p(-pairs[:, 0]))  # 1 - u lies in (0, 1]
    return (radius * torch.cos(2.0 * math.pi * pairs[:, 1])).float()


def ordered(seed: int, purpose: str, sample_ids: Sequence[str]) -> list[int]:
    """Return the indices of `sample_ids` in an order that depends on (seed, purpose, ids) alone.

    Sorting by key gives a uniform permutation; ties of the 64-bit key fall back on the id.
    """
    keyed = [(sample_key(seed, purpose, sample_id), sample_id) for sample_id in sample_ids]
    return sorted(range(len(keyed)), key=keyed.__getitem__)


def ball_start(key: Tensor, draw: Tensor, images: Tensor, norm: str, eps: float) -> Tensor:
    """Return a random perturbation of the eps-ball, shape and dtype of `images`, box not applied.

    linf: every pixel uniform in [-eps, eps]. l2: a random direction with a radius uniform in
    [0, eps] (traps 21), so that small perturbations are drawn as often as large ones.
    """
    import torch

    shape = images.shape[1:]
    if norm == "linf":
        return ((2.0 * uniform(key, draw, shape) - 1.0) * eps).to(images.dtype)
    direction = normal(key, draw, shape).to(images.dtype)
    length = torch.linalg.vector_norm(direction.flatten(1), dim=1).clamp_min(1e-30)
    # A draw number of its own: the direction used up this one.
    radius = uniform(key ^ 1, draw, (1,)).to(images.dtype)[:, 0] * eps
    start: Tensor = direction * (radius / length).reshape(-1, *[1] * len(shape))
    return start
