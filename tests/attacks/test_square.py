"""Square: closed forms, an oracle written as plain loops, and the reference's outcomes on the golden networks."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from zsrobust.attacks import robust_accuracy
from zsrobust.attacks.square import Square, _bumps
from zsrobust.errors import UserError
from zsrobust.randomness import sample_keys, uniform
from zsrobust.threat import Threat

from . import golden
from .toys import CPU, attacked, network, samples

LINF, L2 = Threat("linf", 6 / 255), Threat("l2", 0.4)
BOTH = pytest.mark.parametrize("threat", [LINF, L2], ids=lambda threat: threat.norm)


def driven(net: nn.Module, attack: Square, images, labels, count: int):
    """The first `count` queries of each sample, by hand, and the last state."""
    keys = sample_keys(0, attack.name, [str(i) for i in range(len(images))])
    queries = []
    with torch.no_grad():
        state = attack.init(images, labels, net(images), keys)
        for _ in range(count):
            queries.append(attack.query(state))
            state, _ = attack.update(state, net(queries[-1]), None)
    return torch.stack(queries), state


# The oracle: one sample, one query after the other, patches cut and pasted as the paper writes them.


def peak_by_loops(rows: int, columns: int) -> np.ndarray:
    peak = np.zeros((rows, columns))
    for k in range(max(rows // 2, columns // 2) + 1):
        for r in range(rows):
            for c in range(columns):
                if abs(r - rows // 2) <= k and abs(c - columns // 2) <= k:
                    peak[r, c] += 1 / (k + 1) ** 2
    return peak / np.sqrt((peak**2).sum())


def eta_by_loops(side: int) -> np.ndarray:
    eta = np.zeros((side, side))
    eta[: side // 2] = peak_by_loops(side // 2, side) if side > 1 else 0
    eta[side // 2 :] = -peak_by_loops(side - side // 2, side)
    return eta / np.sqrt((eta**2).sum())


def share(iteration: int, p: float) -> float:
    for after in (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000):
        p = p / 2 if iteration > after else p
    return p


def search(
    net: nn.Module, attack: Square, image, label: int, name: str
) -> tuple[int | None, float]:
    """Return the number of the query that breaks the sample, None for none, and its smallest margin."""
    key, eps = sample_keys(0, attack.name, [name]), attack.threat.eps
    clean = image.numpy()
    channels, height, width = clean.shape
    drawn = 0

    def draw(*shape: int) -> np.ndarray:
        nonlocal drawn
        drawn += 1
        return uniform(key, torch.tensor([drawn - 1]), shape)[0].double().numpy()

    def signs(noise: np.ndarray) -> np.ndarray:
        return np.where(noise < 0.5, -1.0, 1.0)

    def on_sphere(delta: np.ndarray) -> np.ndarray:
        return np.clip(clean + delta / np.sqrt((delta**2).sum()) * eps, 0, 1)

    def start() -> np.ndarray:
        if attack.threat.norm == "linf":
            return np.clip(clean + eps * signs(draw(channels, 1, width)), 0, 1)
        side = height // 5
        down, across = height // side, width // side
        noise = draw(channels + 1, down, across)
        delta = np.zeros_like(clean)
        for i in range(down):
            for j in range(across):
                eta = eta_by_loops(side)
                eta = eta.T if noise[channels, i, j] < 0.5 else eta
                r, c = (height % side) // 2 + i * side, (width % side) // 2 + j * side
                for channel in range(channels):
                    delta[channel, r : r + side, c : c + side] = signs(noise[channel, i, j]) * eta
        return on_sphere(delta)

    def proposal(best: np.ndarray, iteration: int) -> np.ndarray:
        stretched = iteration * 10_000 // attack.queries if attack.rescale else iteration
        side = round(math.sqrt(share(stretched, attack.p_init) * height * width))
        if attack.threat.norm == "linf":
            side = max(side, 1)
            noise = draw(2 + channels)
            r, c = (int(noise[0] * (height - side + 1)), int(noise[1] * (width - side + 1)))
            new = best.copy()
            for channel in range(channels):
                new[channel, r : r + side, c : c + side] += 2 * eps * signs(noise[2 + channel])
            return np.clip(np.clip(new, clean - eps, clean + eps), 0, 1)
        side = max(side, 3)
        side = min(side + 1 - side % 2, height)
        noise = draw(5 + channels)
        r, c, r2, c2 = (int(u * (height - side + 1)) for u in noise[:4])
        delta = best - clean
        windows = np.zeros((height, width), dtype=bool)
        windows[r : r + side, c : c + side] = True
        windows[r2 : r2 + side, c2 : c2 + side] = True
        unspent = eps**2 - (delta**2).sum()
        unspent = unspent / channels if unspent > 1e-6 * eps**2 else 0.0
        eta = eta_by_loops(side)
        eta = eta.T if noise[4] < 0.5 else eta
        patches = []
        for channel in range(channels):
            old = delta[channel, r : r + side, c : c + side]
            patch = signs(noise[5 + channel]) * eta + old / (1e-12 + np.sqrt((old**2).sum()))
            held = (delta[channel][windows] ** 2).sum()
            patches.append(patch / np.sqrt((patch**2).sum()) * np.sqrt(held + unspent))
        delta[:, r2 : r2 + side, c2 : c2 + side] = 0
        delta[:, r : r + side, c : c + side] = np.stack(patches)
        return on_sphere(delta)

    def look(query: np.ndarray) -> float:
        with torch.no_grad():
            z = net(torch.from_numpy(query)[None])[0]
        others = torch.cat([z[:label], z[label + 1 :]])
        return float(z[label] - others.max())

    smallest, number = math.inf, 0
    for _ in range(attack.restarts):
        best = start()
        lowest = look(best)
        smallest = min(smallest, lowest)
        if lowest < 0:
            return number, smallest
        number += 1
        for iteration in range(attack.queries):
            query = proposal(best, iteration)
            margin = look(query)
            smallest = min(smallest, margin)
            if margin < 0:
                return number, smallest
            if margin < lowest:
                best, lowest = query, margin
            number += 1
        drawn = number
    return None, smallest


@pytest.mark.parametrize(
    "options",
    [{"queries": 70}, {"queries": 12, "restarts": 3}, {"queries": 40, "rescale": True}],
    ids=["plain", "restarts", "rescaled"],
)
@BOTH
def test_it_equals_plain_loops(threat, options):
    """Broken or not, at which query, and the smallest margin of every sample, side by side at other steps."""
    net = network()
    attack = Square(threat=threat, **options)
    images, labels, ids = samples(net, 22)
    found = attacked(net, attack, images, labels, ids, slots=5)
    late = 0
    for image, label, name in zip(images, labels.tolist(), ids, strict=True):
        o = found[name]
        if not o.clean_correct:
            continue
        step, smallest = search(net, attack, image, label, name)
        assert o.step == step
        assert o.margin == pytest.approx(min(smallest, o.clean_margin), abs=1e-9)
        late += o.broken and step is not None and step > 2
    robust = sum(o.robust for o in found.values())
    assert late >= 1
    assert robust >= 2


@pytest.mark.parametrize("side", [1, 2, 3, 6, 7, 29])
def test_a_bump_is_what_the_paper_draws(side):
    """A positive peak over a negative one, of unit length, in the corner of the table."""
    table = _bumps((side, side + 2), torch.float64, CPU)
    assert table[0, :side, :side].numpy() == pytest.approx(eta_by_loops(side), abs=1e-12)
    assert float(table[0].norm()) == pytest.approx(1.0)
    assert float(table[0].abs().sum()) == pytest.approx(float(table[0, :side, :side].abs().sum()))


@pytest.mark.parametrize(
    ("p_init", "rescale", "iteration", "side"),
    [
        (0.8, False, 0, 29),  # sqrt(0.8 x 1024) = 28.6
        (0.8, False, 10, 29),
        (0.8, False, 11, 20),
        (0.8, False, 51, 14),
        (0.8, False, 201, 10),
        (0.8, False, 4001, 3),
        (0.8, False, 8001, 1),
        (0.05, False, 0, 7),
        (0.8, True, 5, 29),  # 10 of 10,000
        (0.8, True, 6, 20),
        (0.8, True, 4001, 1),
    ],
)
def test_windows_shrink_at_the_iterations_of_the_schedule(p_init, rescale, iteration, side):
    """The side of the square that differs from the best point; with 20 draws all of it is seen (linf)."""
    attack = Square(threat=Threat("linf", 0.1), p_init=p_init, rescale=rescale)
    images = torch.full((20, 3, 32, 32), 0.5)
    keys = sample_keys(0, "square", [str(i) for i in range(20)])
    labels = torch.zeros(20, dtype=torch.int64)
    state = attack.init(images, labels, torch.zeros(20, 4), keys)
    # The best point is the clean image here, so a window always shows.
    state |= {"images": images, "step": torch.full_like(keys, iteration)}
    state, _ = attack.update(state, torch.ones(20, 4), None)
    changed = attack.query(state) != images
    down, across = changed.any(1).any(2).sum(1), changed.any(1).any(1).sum(1)
    assert down.tolist() == across.tolist() == [side] * 20
    assert bool((changed.flatten(1).sum(1) == 3 * side**2).all())


def test_a_linear_model_is_broken_exactly_where_the_closed_form_says():
    """Two classes: w.x + b - eps |w|_1 < 0 away from the box; single pixels reach every corner in the end.

    The last row and column matter as all others do: windows must be able to stand there.
    """
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(3 * 4 * 4, 2)).double()
    images = 0.4 + 0.2 * torch.rand(60, 3, 4, 4, dtype=torch.float64)
    with torch.no_grad():
        labels = net(images).argmax(1)
        w = net[1].weight[1] - net[1].weight[0]
        b = net[1].bias[1] - net[1].bias[0]
        margins = (labels.double() * 2 - 1) * (images.flatten(1) @ w + b)
    eps = float((margins / w.abs().sum()).median())  # half of them can be broken
    attack = Square(threat=Threat("linf", eps), queries=1500)
    found = attacked(net, attack, images, labels, [str(i) for i in range(60)])
    outcomes = [found[str(i)] for i in range(60)]
    assert [o.broken for o in outcomes] == (margins - eps * w.abs().sum() < 0).tolist()
    for o, margin in zip(outcomes, margins.tolist(), strict=True):
        if not o.broken:
            assert o.margin == pytest.approx(margin - eps * float(w.abs().sum()), abs=1e-9)


def test_in_l2_a_linear_model_is_pushed_far_and_never_beyond():
    """The largest fall of the margin is eps |w|_2."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 2)).double()
    images = 0.4 + 0.2 * torch.rand(20, 3, 8, 8, dtype=torch.float64)
    with torch.no_grad():
        net[1].bias += 5 * torch.tensor([1.0, -1.0])  # out of reach
        length = float((net[1].weight[1] - net[1].weight[0]).norm())
    attack = Square(threat=Threat("l2", 0.5), queries=600)
    labels = torch.zeros(20, dtype=torch.int64)
    found = attacked(net, attack, images, labels, [str(i) for i in range(20)])
    falls = [(o.clean_margin - o.margin) / (0.5 * length) for o in found.values()]
    assert max(falls) <= 1 + 1e-6
    assert min(falls) > 0.3  # one random direction: about 0.07


@BOTH
@pytest.mark.parametrize("classes", [2, 3, 10])
def test_outcomes_do_not_depend_on_slots_or_order_in_float64(threat, classes):
    """Equal for 1, 7 and 64 slots and shuffled ids, also with few classes."""
    net = network(classes)
    attack = Square(threat=threat, queries=30, restarts=2)
    images, labels, ids = samples(net, 24)

    def outcomes(order: list[int], slots: int):
        index = torch.tensor(order)
        names = [ids[i] for i in order]
        found = attacked(net, attack, images[index], labels[index], names, slots=slots)
        return {
            o.id: (o.broken, o.step, o.step_within, o.queries, round(o.margin, 9))
            for o in found.values()
        }

    plain = list(range(24))
    expected = outcomes(plain, 64)
    assert 0 < sum(row[0] for row in expected.values()) < 20
    shuffled = np.random.default_rng(0).permutation(24).tolist()
    assert outcomes(plain, 1) == expected
    assert outcomes(plain, 7) == expected
    assert outcomes(shuffled, 7) == expected


def test_a_survivor_costs_one_start_and_the_budget():
    """1 + queries looks a restart, steps counted within each; a broken sample leaves at once."""
    net = network()
    images, labels, ids = samples(net, 24)
    found = attacked(net, Square(threat=LINF, queries=20, restarts=2), images, labels, ids)
    assert {o.queries for o in found.values() if o.robust} == {42}
    broken = [o for o in found.values() if o.broken]
    assert all(o.queries == o.step + 1 and o.step_within == o.step % 21 for o in broken)
    assert any(o.step > 21 for o in broken)
    assert Square(threat=LINF).queries + 1 == 5001


@pytest.mark.parametrize("value", [0.0, 1.0, 0.5])
@pytest.mark.parametrize("size", [(2, 2), (4, 9), (12, 12), (14, 14), (19, 19), (32, 32)])
@BOTH
def test_every_query_lies_in_ball_and_box(threat, size, value):
    """Black, white and grey images of every size, in float32."""
    images = torch.full((4, 3, *size), value)
    net = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 3))
    labels = torch.zeros(4, dtype=torch.int64)
    queries, state = driven(net, Square(threat=threat), images, labels, 40)
    for query in queries:
        assert bool(threat.contains(query, images).all())
    assert bool((queries[0] != images).flatten(1).any(1).all())
    assert bool(torch.isfinite(state["margin"]).all())


@BOTH
def test_a_model_that_does_not_look_keeps_the_start(threat):
    """Equal margins are no gain, and nothing becomes NaN; eps 0 never leaves the image."""
    images, labels, _ = samples(network(), 4)
    blind = nn.Sequential(nn.Flatten(), nn.Linear(432, 4)).double()
    nn.init.zeros_(blind[1].weight)
    queries, state = driven(blind, Square(threat=threat), images, labels % 4, 30)
    assert torch.equal(state["best"], queries[0])
    assert bool(torch.isfinite(queries).all())
    still, _ = driven(network(), Square(threat=Threat(threat.norm, 0.0)), images, labels, 30)
    assert torch.equal(still, images.expand_as(still))


@BOTH
def test_what_it_hands_over_is_the_best_point(threat):
    """Without early exit every query is spent, and `final` has the smallest margin of all."""
    net = network()
    images, labels, ids = samples(net, 24)
    attack = Square(threat=threat, queries=40)
    found = attacked(net, attack, images, labels, ids, early_exit=False, keep_images=True)
    for image, label, name in zip(images, labels.tolist(), ids, strict=True):
        o = found[name]
        if not o.clean_correct:
            continue
        assert o.queries == 41
        with torch.no_grad():
            z = net(o.image[None])[0]
        margin = float(z[label] - z[torch.arange(10) != label].max())
        if o.margin < o.clean_margin:
            assert margin == pytest.approx(o.margin, abs=1e-12)
        assert bool(threat.contains(o.image[None], image[None]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"queries": 0}, "queries must be >= 1, got 0"),
        ({"restarts": 0}, "restarts must be >= 1, got 0"),
        ({"p_init": 0.0}, r"in \(0, 1\], got 0.0"),
        ({"p_init": 1.5}, r"in \(0, 1\], got 1.5"),
        ({"p_init": math.nan}, r"in \(0, 1\], got nan"),
    ],
)
def test_mistakes_are_one_line(options, message):
    """They name what was given and what is allowed."""
    with pytest.raises(UserError, match=message) as caught:
        Square(threat=LINF, **options)
    assert "\n" not in str(caught.value)


def test_settings_differ_where_queries_differ():
    """Every option moves the key of a cell."""
    options = [{}, {"queries": 100}, {"p_init": 0.3}, {"restarts": 2}, {"rescale": True}]
    settings = [Square(threat=LINF, **given).settings() for given in options]
    assert all(a != b for i, a in enumerate(settings) for b in settings[:i])


@pytest.mark.skipif(golden.folder() is None, reason="ZSROBUST_GOLDEN names no folder")
@pytest.mark.parametrize("label", ["cnn-robust_Linf_8-255", "cnn-robust_L2_1.0"])
def test_it_breaks_what_the_reference_breaks_early(label):
    """30 images, 600 queries: as many survivors as the reference had after as many queries, give or take two."""
    case = golden.CASES[label]
    images, labels, ids = golden.images(case, 30)
    rows = golden.reference(case)[:30]
    attack = Square(threat=case.threat, queries=600)
    found = attacked(golden.network(case.network), attack, images, labels, ids)
    outcomes = [found[name] for name in ids]
    assert [o.clean_correct for o in outcomes] == [row["clean_correct"] for row in rows]
    runs = [row["attacks"]["square"]["0"] for row in rows if row["clean_correct"]]
    survived = sum(not run["broken"] or run["queries"] > 601 for run in runs)
    assert survived < len(runs)
    assert abs(robust_accuracy(outcomes) * 30 - survived) <= 2


@pytest.mark.slow
@pytest.mark.skipif(golden.folder() is None, reason="ZSROBUST_GOLDEN names no folder")
@pytest.mark.parametrize("label", list(golden.CASES))
def test_it_is_as_strong_as_the_reference(label):
    """The whole budget on every golden network: at most two images more survive than on the reference's mean."""
    case = golden.CASES[label]
    images, labels, ids = golden.images(case)
    rows = golden.reference(case)
    attack = Square(threat=case.threat)
    found = attacked(golden.network(case.network), attack, images, labels, ids)
    robust = sum(found[name].robust for name in ids)
    seeds = {seed for row in rows for seed in row["attacks"].get("square", {})}
    survived = [
        not row["attacks"]["square"][seed]["broken"]
        for row in rows
        if row["clean_correct"]
        for seed in seeds
    ]
    assert robust <= sum(survived) / len(seeds) + 2
