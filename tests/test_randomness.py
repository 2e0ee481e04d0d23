"""Stateless noise: a function of (seed, purpose, id, draw) and of nothing else."""

from __future__ import annotations

import numpy as np
import torch
from scipy import stats

from zsrobust import randomness


def keys(count: int, seed: int = 0) -> torch.Tensor:
    return randomness.sample_keys(seed, "test", [f"sample {i}" for i in range(count)])


def test_a_sample_draws_the_same_in_any_company():
    """Neither batch nor order matters."""
    key = keys(50)
    draw = torch.arange(50)
    together = randomness.uniform(key, draw, (3, 8, 8))
    alone = torch.cat(
        [randomness.uniform(key[i : i + 1], draw[i : i + 1], (3, 8, 8)) for i in range(50)]
    )
    shuffled = torch.tensor(np.random.default_rng(0).permutation(50))
    assert torch.equal(together, alone)
    assert torch.equal(
        together[shuffled], randomness.uniform(key[shuffled], draw[shuffled], (3, 8, 8))
    )


def test_the_first_values_are_those_of_the_written_down_hash():
    """The hash in plain Python integers gives the same bits: the definition cannot drift unseen."""
    mask = (1 << 64) - 1

    def mix(z: int) -> int:
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
        return z ^ (z >> 31)

    key, draw = keys(1), torch.tensor([5])
    golden = 0x9E3779B97F4A7C15
    stream = mix((int(key[0]) & mask) ^ mix((5 * golden + 1) & mask))
    expected = [(mix((stream + i * golden) & mask) >> 40) * 2.0**-24 for i in range(1, 9)]
    assert randomness.uniform(key, draw, (8,))[0].tolist() == expected


def test_uniforms_are_uniform_and_independent_of_neighbours():
    """Kolmogorov-Smirnov on 300,000 values; no correlation between draws, keys or neighbouring pixels."""
    u = randomness.uniform(keys(100), torch.zeros(100, dtype=torch.int64), (3000,)).double().numpy()
    assert stats.kstest(u.ravel(), "uniform").pvalue > 1e-3
    other = (
        randomness.uniform(keys(100), torch.ones(100, dtype=torch.int64), (3000,)).double().numpy()
    )
    for a, b in [(u, other), (u[:-1], u[1:]), (u[:, :-1], u[:, 1:])]:
        assert abs(np.corrcoef(a.ravel(), b.ravel())[0, 1]) < 0.01
    assert u.min() >= 0
    assert u.max() < 1


def test_normals_are_normal():
    """Mean 0, variance 1, normal shape; no infinities."""
    z = randomness.normal(keys(100), torch.zeros(100, dtype=torch.int64), (3000,)).double().numpy()
    assert np.isfinite(z).all()
    assert stats.kstest(z.ravel(), "norm").pvalue > 1e-3


def test_ball_start_fills_the_ball():
    """linf: uniform in each pixel. l2: radius uniform in [0, eps], whatever the dimension (traps 21)."""
    images = torch.zeros(2000, 3, 4, 4)
    zero = torch.zeros(2000, dtype=torch.int64)
    linf = randomness.ball_start(keys(2000), zero, images, "linf", 0.1)
    assert linf.abs().max() <= 0.1
    assert stats.kstest(((linf.flatten() + 0.1) / 0.2).double().numpy(), "uniform").pvalue > 1e-3
    l2 = randomness.ball_start(keys(2000), zero, images, "l2", 0.5).flatten(1).norm(dim=1)
    assert stats.kstest((l2 / 0.5).double().numpy(), "uniform").pvalue > 1e-3


def test_seed_purpose_and_id_each_change_the_key():
    """And no two of them run into each other."""
    found = {
        randomness.sample_key(seed, purpose, name)
        for seed in (0, 1, 10)
        for purpose in ("a", "b", "0a")
        for name in ("x", "y", "0x")
    }
    assert len(found) == 27


def test_order_is_a_permutation_that_depends_on_seed_and_ids_alone():
    """The same ids in another listing come out in the same sequence of ids."""
    ids = [f"id{i}" for i in range(200)]
    order = randomness.ordered(3, "order/0", ids)
    assert sorted(order) == list(range(200))
    assert order != list(range(200))
    backwards = ids[::-1]
    again = [backwards[i] for i in randomness.ordered(3, "order/0", backwards)]
    assert again == [ids[i] for i in order]
    assert randomness.ordered(4, "order/0", ids) != order
