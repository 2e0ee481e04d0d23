"""FAB: projections against slow solvers, closed forms, a plain loop, and the reference's golden outcomes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis
from hypothesis import strategies as st
from scipy.optimize import linprog
from torch import nn

from zsrobust.attacks import Plan
from zsrobust.attacks.engine import Attack, Chunk, attack_chunks
from zsrobust.attacks.fab import Fab, to_hyperplane
from zsrobust.attacks.outcome import Outcome
from zsrobust.errors import UserError
from zsrobust.randomness import normal, sample_keys, uniform
from zsrobust.threat import Threat

from . import golden
from .toys import CPU, network

LINF, L2 = Threat("linf", 4 / 255), Threat("l2", 0.25)
BOTH = pytest.mark.parametrize("threat", [LINF, L2], ids=lambda threat: threat.norm)
KINDS = pytest.mark.parametrize("targeted", [False, True], ids=["untargeted", "targeted"])


def samples(net: nn.Module, count: int):
    """Random images with the network's own labels, every seventh one wrong."""
    torch.manual_seed(1)
    images = torch.rand(count, 3, 12, 12, dtype=torch.float64)
    with torch.no_grad():
        labels = net(images).argmax(1)
    labels[::7] = (labels[::7] + 1) % net[-1].out_features
    return images, labels


def linear(classes: int, seed: int = 0) -> nn.Module:
    """Logits that are linear in 3x4x4 images: the nearest boundary is known."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(48, classes)).double()


def attacked(
    net: nn.Module,
    images: torch.Tensor,
    labels: torch.Tensor,
    attack: Attack,
    *,
    early_exit: bool = True,
    slots: int = 64,
    ids: list[str] | None = None,
    **options: Any,
) -> list[Outcome]:
    """The outcomes in the order of the images."""
    ids = [str(i) for i in range(len(images))] if ids is None else ids
    plan = Plan(attack, "every", early_exit, 1)
    found = attack_chunks(
        net, [Chunk(ids, images, labels)], plan, device=CPU, slots=slots, **options
    )
    by_id = {outcome.id: outcome for outcome in found}
    return [by_id[name] for name in ids]


# The projections.


def by_linprog(x: np.ndarray, w: np.ndarray, value: float) -> float | None:
    """The least |d|_inf with value + w.d = 0 and x + d in [0, 1]; None where there is none."""
    n = len(x)
    eye, one = np.eye(n), np.ones((n, 1))
    solved = linprog(
        np.r_[np.zeros(n), 1.0],  # unknowns: d and its length
        A_ub=np.block([[eye, -one], [-eye, -one]]),
        b_ub=np.zeros(2 * n),
        A_eq=np.r_[w, 0.0][None],
        b_eq=[-value],
        bounds=[*zip(-x, 1 - x, strict=True), (0, None)],
    )
    return float(solved.fun) if solved.success else None


def by_bisection(x: np.ndarray, w: np.ndarray, value: float, norm: str) -> np.ndarray | None:
    """The same d for either norm: clip -m w (l2) or -m sign(w) (linf) to the box, m found by halving."""
    speed = -np.sign(value) * (np.sign(w) if norm == "linf" else w)
    rest = lambda m: abs(value) + np.sign(value) * w @ np.clip(m * speed, -x, 1 - x)  # noqa: E731
    low, high = 0.0, 1.0
    while rest(high) > 0:
        if high > 1e12:
            return None
        high *= 2
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if rest(middle) > 0 else (low, middle)
    return np.clip(high * speed, -x, 1 - x)


@st.composite
def planes(draw):
    """Points of the box (often on its walls), normals of many scales and with zeros, values near and far."""
    rng = np.random.default_rng(draw(st.integers(0, 2**31)))
    n = draw(st.integers(1, 30))
    kind = draw(st.sampled_from(["random", "zeros", "ones", "walls"]))
    x = {
        "random": rng.random(n),
        "zeros": np.zeros(n),
        "ones": np.ones(n),
        "walls": rng.integers(0, 2, n).astype(float),
    }[kind]
    w = rng.standard_normal(n) * 10.0 ** rng.uniform(-3, 0, n)
    w[rng.random(n) < draw(st.sampled_from([0.0, 0.5]))] = 0.0
    reach = np.abs(w).sum()
    value = draw(st.sampled_from([-1.0, 1.0])) * rng.random() * reach
    return x, w, value * draw(st.sampled_from([0.0, 0.01, 1.0, 3.0]))


def project(x: np.ndarray, w: np.ndarray, value: float, norm: Any) -> np.ndarray:
    row = [torch.from_numpy(np.atleast_1d(a)[None]) for a in (x, w)]
    return to_hyperplane(*row, torch.tensor([value]).double(), norm)[0].numpy()


@given(planes(), st.sampled_from(["linf", "l2"]))
@hypothesis(max_examples=200, deadline=None)
def test_the_projection_is_the_shortest_way_to_the_plane_within_the_box(plane, norm):
    """Against a linear program (linf) and bisection on the multiplier (l2); what misses goes to the corner."""
    x, w, value = plane
    d = project(x, w, value, norm)
    assert (x + d).min() >= -1e-12
    assert (x + d).max() <= 1 + 1e-12
    downhill = -np.sign(w * value)
    corner = np.where(downhill > 0, 1 - x, np.where(downhill < 0, -x, 0.0))
    if abs(w @ corner) < abs(value) * (1 - 1e-9):  # the plane misses the box
        np.testing.assert_allclose(d, corner, atol=1e-12)
        return
    assert value + w @ d == pytest.approx(0, abs=1e-9 * max(np.abs(w).sum(), 1e-9))
    if abs(w @ corner) < abs(value) * (1 + 1e-9) or value == 0:
        return  # touched in a corner: the solvers' tolerances decide whether it is there
    if norm == "linf":
        shortest = by_linprog(x, w, value)
        assert shortest is not None
        assert np.abs(d).max() == pytest.approx(shortest, rel=1e-6, abs=1e-9)
    else:
        other = by_bisection(x, w, value, norm)
        assert other is not None
        np.testing.assert_allclose(d, other, atol=1e-9)


@given(planes(), st.sampled_from(["linf", "l2"]))
@hypothesis(max_examples=100, deadline=None)
def test_a_projected_point_needs_no_second_projection(plane, norm):
    """On the plane nothing is left to do: idempotent to 1e-9."""
    x, w, value = plane
    d = project(x, w, value, norm)
    again = project(np.clip(x + d, 0, 1), w, value + w @ d, norm)
    assert np.abs(w @ again) <= np.abs(value + w @ d) + 1e-12
    if abs(value + w @ d) < 1e-12 * np.abs(w).sum():
        # A last rounding error is worth a way of its own size, but for weights that are nearly nothing.
        assert np.abs(again * np.abs(w)).max() <= 1e-9


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_projections_of_hostile_rows_are_finite_and_do_not_meet(norm, dtype):
    """Zero and tiny gradients, zero and huge values; a row's answer is the one that it gets alone."""
    x = torch.rand(6, 20, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(dtype)
    w = torch.randn(6, 20, generator=torch.Generator().manual_seed(1)).to(dtype)
    w[1] = 0
    w[2] *= 1e-30  # its squares underflow in float32
    w[3] *= 1e-40
    value = torch.tensor([0.5, 0.5, 1e-31, 1.0, 0.0, 1e30], dtype=dtype)
    together = to_hyperplane(x, w, value, norm)
    assert together.dtype == dtype
    assert bool(together.isfinite().all())
    assert not together[[1, 4]].any()
    assert float(((w[2] * 1e30) * together[2]).sum()) == pytest.approx(-0.1, rel=1e-4)
    alone = torch.cat(
        [to_hyperplane(x[i : i + 1], w[i : i + 1], value[i : i + 1], norm) for i in range(6)]
    )
    torch.testing.assert_close(together, alone, rtol=1e-6, atol=0)


# Closed forms.


@BOTH
@KINDS
@pytest.mark.parametrize("classes", [2, 3, 5])
def test_on_a_linear_model_it_finds_the_nearest_boundary(threat, targeted, classes):
    """Never nearer than the closed form, box included, and within 1% of it, for few classes too."""
    net = linear(classes)
    images = torch.rand(
        20, 3, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(3)
    )
    images[0], images[1] = 0.0, 1.0
    with torch.no_grad():
        logits = net(images)
    labels = logits.argmax(1)
    attack = Fab(threat=threat, steps=30, targeted=targeted)
    found = attacked(net, images, labels, attack, early_exit=False)
    weight = net[1].weight.detach().numpy()
    for x, z, y, o in zip(
        images.flatten(1).numpy(), logits.numpy(), labels.tolist(), found, strict=True
    ):
        ways = []
        for k in set(range(classes)) - {y}:
            way = by_bisection(x, weight[k] - weight[y], z[k] - z[y], threat.norm)
            if way is not None:
                ways.append(np.abs(way).max() if threat.norm == "linf" else np.linalg.norm(way))
        if ways:
            assert o.smallest is not None
            assert min(ways) * (1 - 1e-9) <= o.smallest <= min(ways) * 1.01
        else:
            assert o.smallest is None
    assert sum(o.smallest is not None for o in found) >= 15


@BOTH
@KINDS
def test_a_linear_model_is_broken_exactly_where_the_boundary_is_in_the_ball(threat, targeted):
    """Half of the samples have their boundary nearer than eps; those next to eps are left out."""
    net = linear(4)
    images = 0.4 + 0.2 * torch.rand(60, 3, 4, 4, dtype=torch.float64)
    with torch.no_grad():
        logits = net(images)
    labels = logits.argmax(1)
    weight = net[1].weight.detach()
    gaps = logits.gather(1, labels[:, None]) - logits
    normals = weight[None] - weight[labels][:, None]
    dual = normals.abs().sum(2) if threat.norm == "linf" else normals.norm(dim=2)
    distances = (gaps / dual).nan_to_num(torch.inf).scatter(1, labels[:, None], torch.inf).amin(1)
    eps = float(distances.median())
    attack = Fab(threat=Threat(threat.norm, eps), steps=30, targeted=targeted)
    found = attacked(net, images, labels, attack)
    clear = ((distances / eps - 1).abs() > 0.01).tolist()
    for sure, near, o in zip(clear, (distances < eps).tolist(), found, strict=True):
        if sure:
            assert o.broken == near
    assert sum(clear) > 50
    assert 20 < sum(o.broken for o in found) < 40


@BOTH
def test_untargeted_it_steps_to_the_boundary_that_is_nearest_in_its_norm(threat):
    """One step overshoots that boundary by eta; a sparse and a dense rival are nearest in one norm each."""
    net = nn.Sequential(nn.Flatten(), nn.Linear(48, 3)).double()
    with torch.no_grad():
        net[1].weight.zero_()
        net[1].weight[1, 0] = 3.0  # 1/3 away in either norm
        net[1].weight[2] = 0.2  # 1/9.6 away in linf, 1/1.39 in l2
        net[1].bias.copy_(torch.tensor([1.0, 0.0, 0.0]) - net[1].weight.sum(1) / 2)
    images = torch.full((1, 3, 4, 4), 0.5, dtype=torch.float64)
    attack = Fab(threat=threat, steps=1, targeted=False, eta=1.2)
    (found,) = attacked(net, images, torch.tensor([0]), attack, early_exit=False)
    assert found.queries == 2
    assert found.smallest == pytest.approx(1.2 / (9.6 if threat.norm == "linf" else 3))


# Against a plain loop.


def plain_fab(
    net: nn.Module, x0: torch.Tensor, label: int, key: torch.Tensor, attack: Fab
) -> tuple[float, int]:
    """Algorithm 1 for one image: the smallest distance of any misclassified point, and points looked at."""
    norm = attack.threat.norm
    length = (lambda d: float(d.abs().max())) if norm == "linf" else (lambda d: float(d.norm()))
    with torch.no_grad():
        order = [k for k in net(x0[None])[0].argsort(descending=True).tolist() if k != label]
    targets = [[k] for k in order[: attack.targets]] if attack.targeted else [sorted(order)]
    smallest, looks, run = float("inf"), 0, 0
    for classes in targets:
        for restart in range(attack.restarts):
            x = x0.clone()
            if restart:
                draw = torch.tensor([run])
                noise = (
                    2 * uniform(key, draw, x.shape) - 1
                    if norm == "linf"
                    else normal(key, draw, x.shape)
                )
                noise = noise[0].double()
                x = (x0 + attack.threat.eps / 2 * noise / length(noise)).clamp(0, 1)
            run += 1
            checked = False
            for iteration in range(attack.steps + 1):
                while True:
                    point = x.clone().requires_grad_()
                    z = net(point[None])[0]
                    looks += 1
                    hit = int(z.argmax()) != label
                    if hit:
                        smallest = min(smallest, length(x - x0))
                    if not (hit and checked) or iteration == attack.steps:
                        break
                    x, checked = x0 + attack.beta * (x - x0), False
                if iteration == attack.steps:
                    break
                nearest = None
                for k in classes:
                    gap = z[k] - z[label]
                    (w,) = torch.autograd.grad(gap, point, retain_graph=True)
                    d = float(gap.detach().abs() / (w.abs().sum() if norm == "linf" else w.norm()))
                    if nearest is None or d < nearest[0]:
                        nearest = d, gap.detach(), w
                _, gap, w = nearest
                ways = []
                for base in (x, x0):
                    value = float(gap + (w * (base - x)).sum())
                    args = base.flatten().numpy(), w.flatten().numpy(), value, norm
                    ways.append(torch.from_numpy(by_bisection(*args)).reshape(x.shape))
                a, b = (max(length(way), 1e-8) for way in ways)
                alpha = min(a / (a + b), attack.alpha_max)
                x = (
                    (x + attack.eta * ways[0]) * (1 - alpha) + (x0 + attack.eta * ways[1]) * alpha
                ).clamp(0, 1)
                checked = True
    return smallest, looks


@BOTH
@pytest.mark.parametrize(
    "options",
    [
        {"targeted": False},
        {"targeted": True, "targets": 2},
        {"targeted": True, "targets": 2, "restarts": 2},
        {"targeted": False, "restarts": 3, "alpha_max": 0.3, "eta": 1.2, "beta": 0.7},
    ],
)
def test_it_looks_at_the_points_of_a_plain_loop(threat, options):
    """Same number of queries and the same smallest distance as algorithm 1 written image by image."""
    net = network(5)
    images, labels = samples(net, 7)
    attack = Fab(threat=threat, steps=8, **options)
    found = attacked(net, images, labels, attack, early_exit=False)
    keys = sample_keys(0, attack.name, [o.id for o in found])
    for i, o in enumerate(found):
        if not o.clean_correct:
            continue
        smallest, looks = plain_fab(net, images[i], int(labels[i]), keys[i : i + 1], attack)
        assert o.smallest == pytest.approx(smallest, rel=1e-7)
        assert o.queries == looks
    # Hits cost a second query, but for those of the last iteration.
    runs = options.get("restarts", 1) * options.get("targets", 1)
    most = runs * 2 * attack.steps
    assert all(runs * 9 <= o.queries <= most for o in found if o.clean_correct)
    assert any(runs * 9 < o.queries for o in found)


# What outcomes may not depend on.


@BOTH
@pytest.mark.parametrize(
    "options",
    [{"targeted": False}, {"targeted": True, "targets": 3, "restarts": 2}],
    ids=["untargeted", "targeted"],
)
def test_outcomes_do_not_depend_on_slots_or_order_in_float64(threat, options):
    """Broken or not, at which step, after how many queries: equal for 1, 7 and 64 slots and shuffled."""
    net = network()
    images, labels = samples(net, 30)
    attack = Fab(threat=threat, steps=8, **options)

    def outcomes(order: list[int], slots: int):
        index = torch.tensor(order)
        ids = [f"image {i}" for i in order]
        found = attacked(net, images[index], labels[index], attack, slots=slots, ids=ids)
        return {
            o.id: (o.clean_correct, o.broken, o.step, o.step_within, o.queries, round(o.margin, 9))
            for o in found
        }

    plain = list(range(30))
    expected = outcomes(plain, 64)
    assert 3 < sum(row[1] for row in expected.values()) < 24  # there is something to compare
    shuffled = np.random.default_rng(0).permutation(30).tolist()
    assert outcomes(plain, 1) == expected
    assert outcomes(plain, 7) == expected
    assert outcomes(shuffled, 7) == expected


def test_other_targets_and_restarts_only_add():
    """A sample that the first run leaves is attacked on: more targets and starts never break fewer."""
    net = network()
    images, labels = samples(net, 40)
    broken = []
    for targets, restarts in [(1, 1), (9, 1), (9, 3)]:
        attack = Fab(threat=LINF, steps=4, targets=targets, restarts=restarts)
        broken.append({o.id: o for o in attacked(net, images, labels, attack) if o.broken})
    assert broken[0].keys() < broken[1].keys()
    assert broken[1].keys() <= broken[2].keys()
    # Steps are counted over all runs, and within one, of which the last is number 2 * steps - 1.
    late = [o for o in broken[2].values() if o.step is not None and o.step > 7]
    assert late
    assert all(o.step_within is not None and 1 <= o.step_within <= 7 for o in late)


def test_more_targets_than_classes_are_all_the_other_classes():
    """Nine targets of a three-class model are two."""
    net = network(3)
    images, labels = samples(net, 20)
    nine, two = (
        attacked(net, images, labels, Fab(threat=L2, steps=5, targets=targets))
        for targets in (9, 2)
    )
    assert [(o.broken, o.queries, o.smallest) for o in nine] == [
        (o.broken, o.queries, o.smallest) for o in two
    ]
    assert any(o.broken for o in nine)


# Extremes.


@BOTH
@KINDS
def test_zero_eps_breaks_nothing(threat, targeted):
    """Distances are found all the same; random starts at eps / 2 = 0 are the clean image."""
    net = network()
    images, labels = samples(net, 10)
    attack = Fab(threat=Threat(threat.norm, 0.0), steps=5, targeted=targeted, targets=2, restarts=2)
    found = attacked(net, images, labels, attack)
    assert not any(o.broken for o in found)
    assert all(o.smallest is not None and o.smallest > 1e-6 for o in found if o.clean_correct)


@BOTH
@KINDS
@pytest.mark.parametrize("value", [0.0, 1.0])
def test_black_and_white_images_stay_in_the_box(threat, targeted, value):
    """Half of the directions lead out of the box; the boundary is reached by the other half."""
    net = network()
    images = torch.full((2, 3, 12, 12), value, dtype=torch.float64)
    images[1, :, :6] = 0.5
    with torch.no_grad():
        labels = net(images).argmax(1)
    seen = []
    handle = net.register_forward_pre_hook(lambda _, args: seen.append(args[0].detach()))
    attack = Fab(threat=threat, steps=20, targeted=targeted, restarts=2)
    found = attacked(net, images, labels, attack, early_exit=False)
    handle.remove()
    assert all(bool(((x >= 0) & (x <= 1)).all()) for x in seen)
    assert all(o.smallest is not None for o in found)


@BOTH
@KINDS
def test_a_zero_gradient_stands_still(threat, targeted):
    """No NaN: the point stays on the clean image through all iterations."""

    class Constant(nn.Module):
        def forward(self, images):
            return 0 * images.flatten(1)[:, :3] + torch.tensor([2.0, 1.0, 0.0])

    images = torch.rand(4, 3, 4, 4, dtype=torch.float64)
    attack = Fab(threat=threat, steps=6, targeted=targeted, targets=1)
    found = attacked(
        Constant(), images, torch.zeros(4, dtype=torch.int64), attack, keep_images=True
    )
    for image, o in zip(images, found, strict=True):
        assert (o.broken, o.smallest, o.queries, o.margin) == (False, None, 7, 1.0)
        assert o.image is not None
        torch.testing.assert_close(o.image, image)


@BOTH
def test_what_is_handed_over_lies_in_the_ball(threat):
    """A broken sample's image breaks it, with or without early exit; a survivor's is projected."""
    net = network()
    images, labels = samples(net, 20)
    for early_exit in (True, False):
        attack = Fab(threat=threat, steps=15, targeted=False)
        found = attacked(net, images, labels, attack, early_exit=early_exit, keep_images=True)
        for image, label, o in zip(images, labels, found, strict=True):
            if not o.clean_correct:
                continue
            assert o.image is not None
            assert bool(threat.contains(o.image[None], image[None]))
            assert o.smallest is not None
            if o.broken:
                with torch.no_grad():
                    assert int(net(o.image[None]).argmax(1)) != int(label)
                length = float(threat.distance(o.image[None], image[None]))
                assert length == pytest.approx(o.smallest, rel=1e-12)
            else:
                assert o.smallest > threat.eps
        assert 0 < sum(o.broken for o in found) < 17


def test_float32_images_stay_float32_where_logits_do_not():
    """Anchors in another precision change no image."""

    class Double(nn.Module):
        def __init__(self, net: nn.Module) -> None:
            super().__init__()
            self.net = net.float()

        def forward(self, images):
            assert images.dtype == torch.float32
            return self.net(images).double()

    net = Double(network())
    images, labels = samples(network(), 6)
    found = attacked(net, images.float(), labels, Fab(threat=L2, steps=5, targets=2))
    assert any(o.smallest is not None for o in found)


def test_many_classes_are_attacked_by_the_targeted_attack_alone():
    """Untargeted FAB takes a gradient a class: above ten it says what to use instead."""
    net = linear(1000)
    images = torch.rand(4, 3, 4, 4, dtype=torch.float64)
    with torch.no_grad():
        labels = net(images).argmax(1)
    found = attacked(net, images, labels, Fab(threat=Threat("l2", 2.0), steps=10))
    assert all(o.broken for o in found)
    with pytest.raises(UserError, match="at most 10 classes, the model has 1000: use the targeted"):
        attacked(net, images, labels, Fab(threat=L2, steps=10, targeted=False))


def test_equal_texts_count_as_one_class():
    """Twelve classes of which ten share one text are three: untargeted FAB takes them, no twin is a rival."""
    net = linear(12)
    groups = [0, 1, *[2] * 10]
    with torch.no_grad():
        net[1].weight[3:] = net[1].weight[2]
        net[1].bias[3:] = net[1].bias[2]
    images = torch.rand(30, 3, 4, 4, dtype=torch.float64)
    with torch.no_grad():
        labels = net(images).argmax(1)
    labels[labels >= 2] = 11  # the last twin
    assert 0 < int((labels == 11).sum()) < 30
    untargeted, targeted = (
        attacked(
            net,
            images,
            labels,
            Fab(threat=L2, steps=10, targeted=targeted),
            groups=groups,
            early_exit=False,
        )
        for targeted in (False, True)
    )
    assert all(o.clean_correct and o.smallest is not None for o in untargeted)
    assert [o.broken for o in untargeted] == [o.broken for o in targeted]
    assert 0 < sum(o.broken for o in untargeted) < 30


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "steps must be >= 1, got 0"),
        ({"targets": 0}, "targets must be >= 1, got 0"),
        ({"restarts": -1}, "restarts must be >= 1, got -1"),
        ({"alpha_max": 1.5}, r"alpha_max must lie in \[0, 1\], got 1.5"),
        ({"eta": 0.9}, "eta must be finite and >= 1, got 0.9"),
        ({"eta": float("nan")}, "eta must be finite and >= 1, got nan"),
        ({"beta": 1.0}, r"beta must lie in \(0, 1\), ends excluded, got 1.0"),
    ],
)
def test_mistakes_are_one_line(options, message):
    """They name what was given and what is allowed."""
    with pytest.raises(UserError, match=message) as caught:
        Fab(threat=LINF, **options)
    assert "\n" not in str(caught.value)


def test_settings_tell_apart_what_queries_differently():
    """Every argument that moves a query is in the settings; targets are not where they move none."""
    variants = [
        {},
        {"steps": 50},
        {"targeted": False},
        {"targets": 4},
        {"restarts": 5},
        {"alpha_max": 0.2},
        {"eta": 1.1},
        {"beta": 0.8},
        {"name": "other"},
    ]
    settings = [Fab(threat=LINF, **variant).settings() for variant in variants]
    assert all(a != b for i, a in enumerate(settings) for b in settings[i + 1 :])
    assert all(s["algorithm"] == "fab" and s["version"] == Fab.version for s in settings)
    untargeted = [Fab(threat=LINF, targeted=False, targets=n).settings() for n in (4, 9)]
    assert untargeted[0] == untargeted[1]


# The reference.


@pytest.mark.skipif(golden.folder() is None, reason="ZSROBUST_GOLDEN names no folder")
@pytest.mark.parametrize("kind", ["fab", "fab-t"])
@pytest.mark.parametrize(
    ("label", "count"),
    [("cnn-robust_Linf_8-255", 12), ("cnn-plain_L2_0.3", 12), ("cnn-2class_Linf_4-255", 30)],
)
def test_agrees_with_the_reference_sample_by_sample(label, count, kind):
    """Broken or not, and the smallest distance of survivors within 3%: both are deterministic."""
    case = golden.CASES[label]
    images, labels, ids = golden.images(case, count)
    attack = Fab(threat=case.threat, targeted=kind == "fab-t")
    found = attacked(golden.network(case.network), images, labels, attack, ids=ids)
    differ, compared, ratios = 0, 0, []
    for row, o in zip(golden.reference(case), found, strict=False):
        assert o.clean_correct == row["clean_correct"]
        if not o.clean_correct:
            continue
        (theirs,) = row["attacks"][kind].values()
        compared += 1
        tie = abs(theirs["margin"]) < golden.TIE or abs(o.margin) < golden.TIE
        differ += o.broken != theirs["broken"] and not tie
        if not o.broken and not theirs["broken"]:
            assert o.smallest is not None
            ratios.append(o.smallest / theirs["min_norm"])
    assert differ <= 0.03 * compared
    assert len(ratios) >= 3
    assert np.median(ratios) == pytest.approx(1, abs=1e-3)
    assert max(ratios) < 1.03
    assert min(ratios) > 0.97
