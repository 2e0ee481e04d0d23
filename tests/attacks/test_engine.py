"""The engine: outcomes do not depend on batch, order or slots; it judges by itself."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import nn

from zsrobust import attacks
from zsrobust.attacks import Plan
from zsrobust.attacks.engine import Chunk, attack_chunks
from zsrobust.attacks.losses import cross_entropy
from zsrobust.attacks.pgd import Pgd
from zsrobust.errors import UserError
from zsrobust.randomness import ball_start, sample_keys
from zsrobust.threat import Threat

CPU = torch.device("cpu")


def network(classes: int = 10, dtype: torch.dtype = torch.float64) -> nn.Module:
    """A small seeded CNN on 12x12 images, with logits spread enough to be worth attacking."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 5 * 5, classes)
    ).to(dtype)
    with torch.no_grad():
        net[-1].weight.mul_(4)
    return net


def samples(net: nn.Module, count: int, dtype: torch.dtype = torch.float64):
    """Random images with the network's own labels, every seventh one wrong."""
    torch.manual_seed(1)
    images = torch.rand(count, 3, 12, 12, dtype=dtype)
    with torch.no_grad():
        labels = net(images).argmax(1)
    labels[::7] = (labels[::7] + 1) % net[-1].out_features
    return images, labels


@pytest.mark.parametrize(
    "attack", ["pgd-10", "cw-margin-10", "pgd-4:restarts=3", "pgd-20:judge=last"]
)
@pytest.mark.parametrize(("norm", "eps"), [("linf", 4 / 255), ("l2", 0.25)])
def test_outcomes_do_not_depend_on_slots_or_order_in_float64(attack, norm, eps):
    """Broken or not, at which step, after how many queries: equal for 1, 7 and 64 slots and shuffled."""
    net = network()
    images, labels = samples(net, 40)
    ids = [f"image {i}" for i in range(40)]
    settings: dict[str, Any] = {"attack": attack, "norm": norm, "eps": eps}

    def outcomes(order: list[int], slots: int):
        index = torch.tensor(order)
        found = attacks.run(
            net, images[index], labels[index], ids=[ids[i] for i in order], slots=slots, **settings
        )
        return {
            o.id: (o.clean_correct, o.broken, o.step, o.step_within, o.queries, round(o.margin, 9))
            for o in found
        }

    plain = list(range(40))
    expected = outcomes(plain, 64)
    assert (
        0.1 < sum(row[1] for row in expected.values()) / 40 < 0.85
    )  # there is something to compare
    shuffled = np.random.default_rng(0).permutation(40).tolist()
    assert outcomes(plain, 1) == expected
    assert outcomes(plain, 7) == expected
    assert outcomes(shuffled, 7) == expected


@pytest.mark.parametrize(("norm", "eps"), [("linf", 4 / 255), ("l2", 0.5)])
@pytest.mark.parametrize("loss", ["pgd", "cw-margin"])
def test_judging_the_last_iterate_equals_a_plain_loop_exactly(norm, eps, loss):
    """PGD without early exit, last query judged: bit-equal images to ten lines of a reference loop."""
    net = network(dtype=torch.float32)
    images, labels = samples(net, 40, torch.float32)
    correct = net(images).argmax(1) == labels
    images, labels = images[correct], labels[correct]
    ids = [str(i) for i in range(len(images))]
    name = f"{loss}-10:judge=last"
    found = attacks.run(
        net, images, labels, ids=ids, attack=name, norm=norm, eps=eps, keep_images=True, slots=64
    )

    keys = sample_keys(0, name, ids)
    x = images + ball_start(keys, torch.zeros_like(keys), images, norm, eps)
    x = Threat(norm, eps).project(x, images)
    for _ in range(10):
        x = x.detach().requires_grad_()
        z = net(x)
        true = z.gather(1, labels[:, None])[:, 0]
        other = z.scatter(1, labels[:, None], -torch.inf).amax(1)
        value = (
            nn.functional.cross_entropy(z, labels, reduction="sum")
            if loss == "pgd"
            else (other - true).sum()
        )
        (g,) = torch.autograd.grad(value, x)
        if norm == "linf":
            x = (x + eps / 4 * g.sign()).clamp(images - eps, images + eps).clamp(0, 1)
        else:
            length = g.double().flatten(1).norm(dim=1)[:, None, None, None]
            d = x + eps / 4 * (g * (1 / length).float()) - images
            n = d.double().flatten(1).norm(dim=1)[:, None, None, None]
            x = (images + d * (eps / n).clamp(max=1).float()).clamp(0, 1)
    reference = net(x).argmax(1) != labels

    assert torch.equal(torch.stack([o.image for o in found]), x.detach())
    assert [o.broken for o in found] == reference.tolist()
    assert all(o.step == 10 and o.queries == 11 for o in found if o.broken)


def test_linear_model_is_broken_exactly_where_the_closed_form_says():
    """Two classes, w.x + b - eps |w|_1 < 0 is the whole truth away from the box: PGD must find it."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(3 * 4 * 4, 2)).double()
    images = 0.4 + 0.2 * torch.rand(200, 3, 4, 4, dtype=torch.float64)
    with torch.no_grad():
        labels = net(images).argmax(1)
        w = net[1].weight[1] - net[1].weight[0]
        b = net[1].bias[1] - net[1].bias[0]
        sign = labels.double() * 2 - 1
        margins = sign * (images.flatten(1) @ w + b)
    eps = float((margins / w.abs().sum()).median())  # half of them can be broken
    found = attacks.run(net, images, labels, attack="cw-margin-20", eps=eps)
    assert [o.broken for o in found] == (margins - eps * w.abs().sum() < 0).tolist()
    assert 80 < sum(o.broken for o in found) < 120


def test_clean_mistakes_are_never_attacked():
    """They spend no query, keep their clean margin, and are neither broken nor robust."""
    net = network()
    images, labels = samples(net, 21)
    found = attacks.run(net, images, labels, attack="pgd-5", eps="4/255")
    wrong = [o for o in found if not o.clean_correct]
    assert len(wrong) == 3
    assert all(o.queries == 0 and not o.broken and not o.robust and o.margin < 0 for o in wrong)


def test_zero_eps_breaks_nothing():
    """eps 0 gives clean accuracy."""
    net = network()
    images, labels = samples(net, 30)
    found = attacks.run(net, images, labels, attack="pgd-3", eps=0.0)
    assert [o.robust for o in found] == [o.clean_correct for o in found]


@dataclass(frozen=True)
class Cheat:
    """An attack that leaves the ball: queries the negative image."""

    needs_grad: ClassVar[bool] = False
    minimal_norm: ClassVar[bool] = False
    version: ClassVar[int] = 1
    threat: Threat = field(default_factory=lambda: Threat("linf", 1 / 255))
    name: str = "cheat"

    def settings(self) -> dict[str, Any]:
        return {"name": self.name}

    def init(self, images, labels, clean_logits, key):
        return {"images": images, "step": torch.zeros_like(key)}

    def query(self, state):
        return 1 - state["images"]

    def loss(self, state, logits):
        raise AssertionError("not asked for")

    def update(self, state, logits, grad):
        assert grad is None
        state = {**state, "step": state["step"] + 1}
        return state, state["step"] >= 3

    def final(self, state):
        return state["images"]


def test_a_query_outside_the_ball_breaks_nothing():
    """The engine judges, not the attack."""
    net = network()
    images, labels = samples(net, 30)
    plan = Plan(Cheat(), "every", early_exit=True, eot=1)
    ids = [str(i) for i in range(30)]
    found = list(attack_chunks(net, [Chunk(ids, images, labels)], plan, device=CPU, slots=4))
    assert not any(o.broken for o in found)
    assert {o.queries for o in found if o.clean_correct} == {3}
    with torch.no_grad():
        assert (net(1 - images).argmax(1) != labels).sum() > 5  # it would have broken some


class Noisy(nn.Module):
    """Answers at random: logits shifted by noise that is large beside the margins."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net
        self.calls = 0

    def forward(self, images):
        self.calls += 1
        generator = torch.Generator().manual_seed(self.calls)
        logits = self.net(images)
        return logits + 0.01 * torch.randn(logits.shape, generator=generator, dtype=logits.dtype)


def test_eot_averages_that_many_draws():
    """Each query costs n passes, gradient and judgement are of their mean."""
    net = Noisy(network())
    images, labels = samples(net.net, 8)
    labels = net.net(images).argmax(1)
    attacks.run(net, images, labels, attack="pgd-2:eot=5:early_exit=false", eps="1/255", slots=8)
    # one call to learn the number of classes, one clean pass, 3 queries of 5 draws
    assert net.calls == 2 + 3 * 5


def test_nan_logits_name_the_sample():
    """NaN is an error, never a success (traps 31)."""

    class Broken(nn.Module):
        def forward(self, images):
            logits = images.flatten(1)[:, :4].clone()
            return torch.where(images.amax((1, 2, 3))[:, None] > 0.99, torch.nan, logits)

    images = torch.full((4, 3, 4, 4), 0.5)
    images[2, 0, 0, 0] = 1.0
    with pytest.raises(FloatingPointError, match=r"sample\(s\): third"):
        attacks.run(
            Broken(),
            images,
            torch.zeros(4, dtype=torch.int64),
            ids=["a", "b", "third", "d"],
            eps=0.1,
        )


class Twins(nn.Module):
    """Four classes of which 1 and 3 have one text: bit-equal logits."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear = nn.Linear(3 * 4 * 4, 3).double()
        self.groups = [0, 1, 2, 1]

    def forward(self, images):
        z = self.linear(images.flatten(1)) * 5
        return torch.stack([z[:, 0], z[:, 1], z[:, 2], z[:, 1]], 1)


def test_equal_texts_count_as_one_class():
    """Attacked one by one the twin's margin would be 0 for ever; a group has a real margin (traps 57)."""
    net = Twins()
    images = torch.rand(40, 3, 4, 4, dtype=torch.float64)
    labels = net(images).argmax(1)
    labels[labels == 1] = 3  # the second twin
    assert (labels == 3).any()
    merged = attacks.run(net, images, labels, attack="cw-margin-10", eps="8/255")
    assert all(o.clean_correct for o in merged)
    twins = [o for o in merged if o.label == 3]
    assert all(o.clean_margin > 0 for o in twins)
    assert 0 < sum(o.broken for o in merged) < 40
    kept = attacks.run(net, images, labels, attack="cw-margin-10", eps="8/255", duplicates="keep")
    # as published: the argmax of two equal logits is the first, so the second twin is always wrong
    assert not any(o.clean_correct for o in kept if o.label == 3)


def test_one_class_is_refused():
    """Nothing could be misclassified."""
    net = Twins()
    images = torch.rand(2, 3, 4, 4, dtype=torch.float64)
    with pytest.raises(UserError, match="at least 2 classes"):
        attacks.run(net, images, torch.zeros(2, dtype=torch.int64), eps=0.1, groups=[0, 0, 0, 0])


def test_parameters_get_no_gradient_and_the_mode_comes_back():
    """During an attack no parameter needs a gradient (traps 11); train mode is restored."""
    net = network().train()
    seen = []
    handle = net[0].register_forward_hook(
        lambda module, *_: seen.append((module.weight.requires_grad, module.training))
    )
    images, labels = samples(net, 10)
    seen.clear()
    attacks.run(net, images, labels, attack="pgd-2", eps="1/255")
    handle.remove()
    assert (True, True) not in seen[1:]  # the first call only counts the classes
    assert set(seen[1:]) == {(False, False)}
    assert all(p.grad is None and p.requires_grad for p in net.parameters())
    assert net.training


def test_a_stream_is_read_only_as_fast_as_slots_become_free():
    """Memory does not grow with the number of samples."""
    net = network()
    images, labels = samples(net, 64)
    read = 0
    returned = 0

    def chunks():
        nonlocal read
        for i in range(0, 64, 4):
            read += 4
            yield Chunk([str(j) for j in range(i, i + 4)], images[i : i + 4], labels[i : i + 4])

    plan = attacks.plan("pgd-10", Threat("linf", 1 / 255))
    for _ in attack_chunks(net, chunks(), plan, device=CPU, slots=8):
        returned += 1
        assert read - returned <= 8 + 4 + 4  # in slots, waiting, just leaving
    assert returned == 64


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": torch.rand(4, 3, 4, 4) * 255}, "must lie in"),
        ({"images": torch.zeros(4, 3, 4, 4, dtype=torch.uint8)}, "divide by 255"),
        ({"images": torch.rand(0, 3, 4, 4)}, "N >= 1"),
        ({"labels": torch.tensor([0, 1, 2, 9])}, r"labels must lie in \[0, 4\)"),
        ({"labels": torch.tensor([0, 1])}, "labels must have shape"),
        ({"ids": ["a", "a", "b", "c"]}, "different from each other"),
        ({"eps": 8}, "did you mean 8/255"),
        ({"attack": "pdg-20"}, "did you mean 'pgd-20'"),
        ({"attack": "pgd"}, "needs its number of steps"),
        ({"attack": "pgd-20:stp=1"}, "did you mean 'step'"),
        ({"attack": "pgd-0"}, "the number of steps must lie in 1 to 999999"),
        ({"attack": "pgd-5:judge=last:early_exit=true"}, "implies early_exit=false"),
    ],
)
def test_mistakes_are_one_line(change, message):
    """They name what was given and what is allowed."""
    arguments: dict[str, Any] = {
        "images": torch.rand(4, 3, 4, 4),
        "labels": torch.tensor([0, 1, 2, 3]),
        "eps": 1 / 255,
    }
    arguments |= change
    with pytest.raises(UserError, match=message) as caught:
        attacks.run(nn.Sequential(nn.Flatten(), nn.Linear(48, 4)), **arguments)
    assert "\n" not in str(caught.value)


def test_a_restart_goes_on_where_the_first_start_failed():
    """Restarts only add: what one start breaks, three starts break; steps count within the restart too."""
    net = network()
    images, labels = samples(net, 60)
    one = attacks.run(net, images, labels, attack="pgd-2:step=0.002", eps="3/255")
    three = attacks.run(net, images, labels, attack="pgd-2:step=0.002:restarts=40", eps="3/255")
    assert sum(o.broken for o in three) > sum(o.broken for o in one)
    late = [o for o in three if o.broken and o.step is not None and o.step > 2]
    assert late
    assert all(o.step_within is not None and o.step_within == o.step % 3 for o in late)


def test_a_plan_lists_every_setting_that_moves_an_outcome():
    """Two plans that attack differently have different settings; the same plan has the same."""
    threat = Threat("linf", 2 / 255)
    names = [
        "pgd-20",
        "pgd-21",
        "pgd-20:step=1/255",
        "pgd-20:restarts=2",
        "pgd-20:judge=last",
        "pgd-20:eot=2",
        "cw-margin-20",
        "cw-margin-20:kappa=50",
        "pgd-20:early_exit=false",
    ]
    settings = [attacks.plan(name, threat).settings() for name in names]
    for i, a in enumerate(settings):
        stripped = {k: v for k, v in a.items() if k != "name"}
        for b in settings[i + 1 :]:
            assert stripped != {k: v for k, v in b.items() if k != "name"}
    paper = attacks.plan("pgd-paper", threat)
    (pgd,) = paper.members
    assert isinstance(pgd, Pgd)
    assert (paper.judge, pgd.steps, pgd.step) == ("last", 100, 1 / 255)
    assert cross_entropy(torch.zeros(2, 4), torch.tensor([0, 1])).tolist() == pytest.approx(
        [np.log(4)] * 2
    )


def test_images_are_handed_over_for_every_attacked_sample_and_lie_in_the_ball():
    """Also where slots are refilled; a broken sample hands over what broke it, a clean mistake nothing."""
    net = network()
    images, labels = samples(net, 30)
    threat = Threat("linf", 4 / 255)
    found = attacks.run(
        net, images, labels, attack="pgd-6", eps=threat.eps, slots=4, keep_images=True
    )
    for image, label, o in zip(images, labels, found, strict=True):
        if not o.clean_correct:
            assert o.image is None
            continue
        assert o.image is not None
        assert bool(threat.contains(o.image[None], image[None]))
        with torch.no_grad():
            assert (int(net(o.image[None]).argmax(1)) != int(label)) == o.broken


def test_each_module_gets_its_own_mode_back():
    """A wrapper in train mode around a batch norm in eval mode must not switch that on (traps 10)."""
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 100, 5)
    ).double()
    net[1].eval()
    assert net.training
    before = {n: t.clone() for n, t in net.state_dict().items()}
    images = torch.rand(6, 3, 12, 12, dtype=torch.float64)
    attacks.run(net, images, torch.zeros(6, dtype=torch.int64), attack="pgd-2", eps="1/255")
    assert net.training
    assert not net[1].training
    assert all(torch.equal(before[n], t) for n, t in net.state_dict().items())
    net.train()
    attacks.run(net, images, torch.zeros(6, dtype=torch.int64), attack="pgd-2", eps="1/255")
    assert all(torch.equal(before[n], t) for n, t in net.state_dict().items())


def test_survivors_and_transfer_enter_by_what_is_known_of_them():
    """`so_far` decides who is attacked, whatever the attacked model says of the clean image."""
    net = network()
    images, labels = samples(net, 14)  # two of them the model gets wrong
    ids = [str(i) for i in range(14)]
    plan = attacks.plan("pgd-3:judge=none", Threat("linf", 8 / 255))
    so_far = [
        attacks.Outcome(ids[i], int(labels[i]), clean_correct=i != 3, clean_margin=1.0)
        for i in range(14)
    ]
    so_far[5].broken, so_far[5].by = True, "before"
    found = list(
        attack_chunks(
            net,
            [Chunk(ids, images, labels, so_far=so_far)],
            plan,
            device=CPU,
            keep_images=True,
        )
    )
    assert {o.id for o in found} == set(ids)
    attacked = {o.id for o in found if o.queries}
    assert attacked == set(ids) - {"3", "5"}
    assert all(o.queries == 4 and not o.broken and o.image is not None for o in found if o.queries)
    assert next(o for o in found if o.id == "5").by == "before"


def test_samples_of_one_attack_share_a_size():
    """One line, also when the sizes differ between chunks."""
    net = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(12, 3))
    chunks = [
        Chunk(["a"], torch.rand(1, 3, 8, 8), torch.zeros(1, dtype=torch.int64)),
        Chunk(["b"], torch.rand(1, 3, 9, 9), torch.zeros(1, dtype=torch.int64)),
    ]
    plan = attacks.plan("pgd-2", Threat("linf", 0.01))
    with pytest.raises(UserError, match="share a size"):
        list(attack_chunks(net, chunks, plan, device=CPU, slots=1))


@dataclass(frozen=True)
class Farthest(Cheat):
    """A minimum-norm attack's shape: queries at growing distances, the gradient unused."""

    minimal_norm: ClassVar[bool] = True

    def query(self, state):
        amount = 0.2 * (3 - state["step"]).to(state["images"])[:, None, None, None]
        return state["images"] * (1 - amount) + (1 - state["images"]) * amount


def test_minimum_norm_attacks_record_the_smallest_distance_of_any_misclassified_query():
    """Inside the ball or not; whether a sample is broken is another question."""
    net = network()
    images, labels = samples(net, 30)
    plan = Plan(Farthest(threat=Threat("linf", 0.3)), "every", early_exit=False, eot=1)
    ids = [str(i) for i in range(30)]
    found = {o.id: o for o in attack_chunks(net, [Chunk(ids, images, labels)], plan, device=CPU)}
    checked = 0
    for i, name in enumerate(ids):
        o = found[name]
        if not o.clean_correct:
            continue
        distances, inside = [], False
        for amount in (0.6, 0.4, 0.2):
            query = images[i] * (1 - amount) + (1 - images[i]) * amount
            with torch.no_grad():
                wrong = int(net(query[None]).argmax(1)) != int(labels[i])
            d = float((query - images[i]).abs().max())
            if wrong:
                distances.append(d)
                inside |= d <= 0.3
        assert o.smallest == (pytest.approx(min(distances)) if distances else None)
        assert o.broken == inside
        checked += bool(distances)
    assert checked > 3
