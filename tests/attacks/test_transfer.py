"""Transfer: made on the source with every step spent, judged once on the target."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import nn

from zsrobust import attacks
from zsrobust.attacks import Plan, plan
from zsrobust.attacks.engine import Chunk, attack_chunks
from zsrobust.attacks.outcome import Outcome
from zsrobust.attacks.transfer import transfer, transferred
from zsrobust.errors import UserError
from zsrobust.threat import Threat

from . import golden

CPU = torch.device("cpu")
LINF = Threat("linf", 8 / 255)


def network(seed: int, classes: int = 6, hidden: int = 24) -> nn.Module:
    """A small seeded network on 8x8 images; two seeds share most of their first layer, so images transfer."""
    torch.manual_seed(0)
    common = torch.randn(hidden, 3 * 8 * 8, dtype=torch.float64) / 8
    last = torch.randn(classes, hidden, dtype=torch.float64)
    torch.manual_seed(seed)
    net = nn.Sequential(
        nn.Flatten(), nn.Linear(3 * 8 * 8, hidden), nn.Tanh(), nn.Linear(hidden, classes)
    ).double()
    with torch.no_grad():
        net[1].weight.copy_(common + 0.3 * torch.randn_like(common) / 8)
        net[3].weight.copy_(4 * (last + 0.3 * torch.randn_like(last)))
    return net


@dataclass
class Case:
    """Two networks, and images with labels that now one, now the other gets wrong."""

    source: nn.Module = field(default_factory=lambda: network(1))
    target: nn.Module = field(default_factory=lambda: network(2))

    def __post_init__(self) -> None:
        torch.manual_seed(3)
        self.images = torch.rand(60, 3, 8, 8, dtype=torch.float64)
        with torch.no_grad():
            self.of_source = self.source(self.images).argmax(1)
            self.of_target = self.target(self.images).argmax(1)
        self.labels = self.of_target.clone()
        self.labels[::5] = (self.labels[::5] + 1) % 6  # the target is wrong on these
        self.ids = [f"image {i}" for i in range(60)]

    def chunks(self, order: list[int], size: int = 16) -> list[Chunk]:
        parts = [order[at : at + size] for at in range(0, len(order), size)]
        return [Chunk([self.ids[i] for i in p], self.images[p], self.labels[p]) for p in parts]

    def run(self, text: str | Plan, threat: Threat = LINF, **options: Any) -> dict[str, Outcome]:
        chunks = self.chunks(list(range(60)), options.pop("size", 16))
        read = plan(text, threat, 6) if isinstance(text, str) else text
        found = transfer(self.source, self.target, chunks, read, device=CPU, **options)
        return {outcome.id: outcome for outcome in found}


def pair(threat: Threat = LINF) -> Plan:
    """Two attacks in sequence, the second stronger."""
    members = [*plan("fgsm", threat).members, *plan("apgd-t-8:targets=3", threat, 6).members]
    return Plan(members, "every", early_exit=True, eot=1, name="pair")


@pytest.fixture(scope="module")
def case() -> Case:
    return Case()


@pytest.mark.parametrize("text", ["pgd-8", "mi-fgsm-5", "apgd-ce-8"])
@pytest.mark.parametrize("threat", [LINF, Threat("l2", 0.4)], ids=str)
def test_it_is_the_sources_last_word_judged_on_the_target(case, text, threat):
    """Image by image: the source's `final`, from an attack that judges nothing; wrong for the target or not."""
    found = case.run(text, threat, keep_images=True)
    assert sorted(found) == sorted(case.ids)
    right = (case.of_target == case.labels).tolist()
    both = [i for i in range(60) if right[i] and case.of_source[i] == case.labels[i]]
    assert 10 < len(both) < sum(right)
    alone = Chunk([case.ids[i] for i in both], case.images[both], case.labels[both])
    of_source = attack_chunks(
        case.source, [alone], transferred(plan(text, threat)), device=CPU, keep_images=True
    )
    for one in of_source:
        assert torch.equal(found[one.id].image, one.image)
    for name, outcome in found.items():
        i = case.ids.index(name)
        assert outcome.clean_correct == right[i]
        if not right[i]:
            assert (outcome.broken, outcome.queries, outcome.image) == (False, 0, None)
            continue
        with torch.no_grad():
            logits = case.target(outcome.image[None])
        assert outcome.broken == bool(logits.argmax(1) != case.labels[i])
        assert outcome.by == (f"transfer:{text}" if outcome.broken else None)
        assert (outcome.step, outcome.step_within, outcome.smallest) == (None, None, None)
        true = float(logits[0, case.labels[i]])
        others = logits[0].clone()
        others[case.labels[i]] = -torch.inf
        assert outcome.margin == pytest.approx(
            min(true - float(others.max()), outcome.clean_margin)
        )
    broken = sum(outcome.broken for outcome in found.values())
    assert 5 < broken < sum(right)
    # Also where the source was wrong before any attack.
    unlike = [i for i in range(60) if right[i] and case.of_source[i] != case.labels[i]]
    assert all(found[case.ids[i]].queries > 1 for i in unlike)
    assert len(unlike) > 3


def test_every_step_is_spent(case):
    """On the source nothing is judged: each sample that the target gets right costs all queries."""
    found = case.run("pgd-8:judge=last")
    assert {o.queries for o in found.values()} == {0, 9}
    settings = transferred(plan("pgd-8", LINF)).settings()
    assert (settings["judge"], settings["early_exit"]) == ("none", False)
    assert settings == transferred(plan("pgd-8:judge=last", LINF)).settings() | {"name": "pgd-8"}


def test_outcomes_do_not_depend_on_slots_chunks_or_order(case):
    """In float64: broken, queries and margin alike."""

    def rows(found: dict[str, Outcome]):
        return {n: (o.broken, o.by, o.queries, round(o.margin, 9)) for n, o in found.items()}

    expected = rows(case.run(pair()))
    assert rows(case.run(pair(), slots=1, size=60)) == expected
    assert rows(case.run(pair(), slots=7, size=5)) == expected
    order = np.random.default_rng(0).permutation(60).tolist()
    shuffled = transfer(
        case.source,
        case.target,
        case.chunks(order, 9),
        pair(),
        device=CPU,
        slots=10,
    )
    assert rows({o.id: o for o in shuffled}) == expected


def test_of_an_ensemble_each_gets_the_survivors(case):
    """Of both members that break something, the second one attacks what stood the first one's images."""
    both = case.run(pair())
    first, second = case.run("fgsm"), case.run("apgd-t-8:targets=3")
    for name, outcome in both.items():
        assert outcome.broken == (first[name].broken or second[name].broken)
        if first[name].broken:
            assert outcome.by == "transfer:fgsm"
            assert outcome.queries == first[name].queries
        elif outcome.clean_correct:
            assert outcome.queries == first[name].queries + second[name].queries
    assert {o.by for o in both.values()} == {None, "transfer:fgsm", "transfer:apgd-t-8:targets=3"}


def test_what_is_known_of_the_samples_already_is_taken(case):
    """Broken ones pass at once; the clean logits that are given are the target's and not made again."""
    first = case.run("fgsm")
    so_far = [first[name] for name in case.ids]
    before = [o.broken for o in so_far]
    queries = [o.queries for o in so_far]
    with torch.no_grad():
        logits = case.target(case.images)
    chunk = Chunk(case.ids, case.images, case.labels, logits, so_far)
    later = list(transfer(case.source, case.target, [chunk], plan("pgd-4", LINF), device=CPU))
    assert len(later) == 60
    for outcome, was, spent in zip(so_far, before, queries, strict=True):
        if was or not outcome.clean_correct:
            assert outcome.queries == spent
        else:
            assert outcome.queries > spent
    assert [o.by for o in so_far if o.by] != []


@dataclass(frozen=True)
class Far:
    """An attack whose final image lies outside the ball: the negative."""

    needs_grad: ClassVar[bool] = False
    minimal_norm: ClassVar[bool] = True
    version: ClassVar[int] = 1
    threat: Threat = LINF
    name: str = "far"

    def settings(self) -> dict[str, Any]:
        return {"name": self.name}

    def init(self, images, labels, clean_logits, key):
        return {"images": images}

    def query(self, state):
        return 1 - state["images"]

    def loss(self, state, logits):
        raise AssertionError("not asked for")

    def update(self, state, logits, grad):
        return state, torch.ones(len(logits), dtype=torch.bool)

    def final(self, state):
        return 1 - state["images"]


def test_an_image_outside_the_ball_breaks_nothing(case):
    """Though the target is wrong on it; and what is smallest for the source is not the target's."""
    chunks = case.chunks(list(range(60)))
    far = Plan(Far(), "none", early_exit=False, eot=1)
    found = list(transfer(case.source, case.target, chunks, far, device=CPU))
    with torch.no_grad():
        assert (case.target(1 - case.images).argmax(1) != case.labels).sum() > 20
    assert not any(o.broken for o in found)
    assert all(o.margin == o.clean_margin and o.distance == 0 for o in found)
    assert all(o.smallest is None and o.image is None for o in found)


def test_classes_with_one_text_count_as_one_for_each_model(case):
    """The source may take others for equal than the target."""
    pairs = [0, 0, 1, 2, 3, 4]
    options = {"groups": pairs, "source_groups": [0, 1, 2, 3, 4, 4]}
    found = case.run("pgd-8", keep_images=True, **options)
    for i, name in enumerate(case.ids):
        if found[name].image is None:
            continue
        with torch.no_grad():
            logits = case.target(found[name].image[None])[0]
        logits[1] = -torch.inf  # its representative has the logit
        group = pairs[int(logits.argmax())]
        assert found[name].broken == (group != pairs[int(case.labels[i])])


def test_models_and_arguments_are_given_back_as_they_were(case):
    """Modes and frozen parameters of both."""
    case.source.train()
    case.target.train()
    case.run("pgd-2")
    assert case.source.training
    assert case.target.training
    assert all(p.requires_grad for p in case.source.parameters())
    case.source.eval()
    case.target.eval()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"slots": 0}, "slots must be >= 1, got 0"),
        ({"groups": [0] * 6}, "needs at least 2 classes"),
        ({"source_groups": [0] * 6}, "needs at least 2 classes"),
    ],
)
def test_mistakes(case, change, message):
    with pytest.raises(UserError, match=message):
        case.run("pgd-2", **change)


def test_models_of_different_classes_are_refused(case):
    """No class of one could be said to be a class of the other."""
    other = Case(source=network(1, classes=5), target=case.target)
    with pytest.raises(UserError, match="the source has 5 classes, the target 6"):
        other.run("pgd-2")


def test_samples_of_different_sizes_are_refused(case):
    chunks = [
        Chunk(["a"], torch.rand(1, 3, 8, 8).double(), case.of_target[:1]),
        Chunk(["b"], torch.rand(1, 3, 4, 16).double(), case.of_target[:1]),
    ]
    for chunk in chunks:
        with torch.no_grad():
            chunk.labels[:] = case.target(chunk.images).argmax(1)
    with pytest.raises(UserError, match="2 sizes: use resolution 'model'"):
        list(transfer(case.source, case.target, chunks, plan("pgd-2", LINF), device=CPU))


@pytest.mark.skipif(golden.folder() is None, reason="ZSROBUST_GOLDEN is not set")
def test_between_golden_networks_it_breaks_less_than_the_target_itself():
    """MI-FGSM from the robust CNN to the plain one: more than noise of the same size, less than white box."""
    of = golden.CASES["cnn-plain_Linf_2-255"]
    images, labels, ids = golden.images(of, 60)
    source, target = golden.network("cnn-robust"), golden.network("cnn-plain")
    threat = Threat("linf", 4 / 255)
    text = "mi-fgsm-10"

    def broken(outcomes: Any) -> set[str]:
        return {o.id for o in outcomes if o.broken}

    chunk = Chunk(ids, images, labels)
    moved = broken(transfer(source, target, [chunk], plan(text, threat, 10), device=CPU))
    white = broken(attacks.run(target, images, labels, ids=ids, attack=text, eps=4 / 255))
    noise = broken(
        attacks.run(target, images, labels, ids=ids, attack="pgd-1:step=0.0000001", eps=4 / 255)
    )
    assert len(noise) + 3 < len(moved) < len(white)
    assert len(moved & white) > 0.9 * len(moved)
