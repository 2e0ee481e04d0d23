"""Names of attacks: what each stands for, alone and in sequence, with few classes and many."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from zsrobust import attacks
from zsrobust.attacks.engine import Chunk, Groups, attack_chunks
from zsrobust.attacks.names import ATTACKS, ENSEMBLES, queries
from zsrobust.errors import UserError
from zsrobust.threat import Threat

CPU = torch.device("cpu")
LINF = Threat("linf", 8 / 255)
STANDARD = ["apgd-ce", "apgd-t", "fab-t", "square"]


def short(name: str) -> str:
    """Return the name of a single attack with few steps."""
    return name if ATTACKS[name].number is None else f"{name}-3"


def net(classes: int, seed: int = 0) -> nn.Module:
    """A small smooth network on 6 px images, as many classes as asked."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(108, 24), nn.Tanh(), nn.Linear(24, classes)).eval()


def images(count: int) -> Tensor:
    return torch.rand(count, 3, 6, 6, generator=torch.Generator().manual_seed(1))


def test_autoattack_is_the_standard_one_with_its_budgets():
    """Croce and Hein's four, 100 steps, 9 targets, one restart, 5,000 queries; nothing stands in."""
    plan = attacks.plan("autoattack", LINF, classes=1000)
    settings = plan.settings()
    members = settings["members"]
    assert [member["name"] for member in members] == STANDARD
    assert [member.get("steps", member.get("queries")) for member in members] == [100] * 3 + [5000]
    assert [member["restarts"] for member in members] == [1] * 4
    assert [members[1]["targets"], members[2]["targets"]] == [9, 9]
    assert members[1]["loss"] == "dlr"
    assert "fallbacks" not in settings
    assert queries(settings) == 101 + 9 * 101 + 9 * 200 + 5001


def test_the_other_ensembles():
    """TeCoA's and RobustVLM's code leave FAB and Square out; rand takes means of draws."""

    def members(name: str, classes: int) -> list[str]:
        return [member.name for member in attacks.plan(name, LINF, classes).members]

    assert members("autoattack-tecoa", 10) == ["apgd-ce", "apgd-dlr"]
    assert members("autoattack-fare", 10) == ["apgd-ce", "apgd-t"]
    assert members("autoattack-rand", 10) == ["apgd-ce", "apgd-dlr"]
    assert attacks.plan("autoattack-rand", LINF).eot == 20
    assert attacks.plan("autoattack-rand:eot=3", LINF).eot == 3


@pytest.mark.parametrize(
    ("name", "classes", "said"),
    [
        ("apgd-dlr", 2, ["apgd-dlr has the margin loss in place of DLR with 2 classes"]),
        ("apgd-dlr", 3, []),
        ("apgd-t", 3, ["apgd-t has the margin loss in place of DLR with 3 classes"]),
        ("apgd-t", 4, []),
        ("autoattack", 3, ["apgd-t has the margin loss in place of DLR with 3 classes"]),
        ("autoattack-fare", 3, ["apgd-t has the margin loss in place of DLR with 3 classes"]),
        ("autoattack-fare", 2, ["apgd-t is left out with 2 classes"]),
        ("autoattack-tecoa", 2, ["apgd-dlr is left out with 2 classes"]),
        ("autoattack-rand", 2, ["apgd-dlr has the margin loss in place of DLR with 2 classes"]),
    ],
)
def test_few_classes_have_substitutes_and_the_key_says_so(name, classes, said):
    """DLR needs three classes, targeted DLR four (traps 25)."""
    settings = attacks.plan(name, LINF, classes).settings()
    assert settings.get("fallbacks", []) == said
    for member in settings.get("members", [settings]):
        if member.get("targets") is not None:
            assert member["targets"] == classes - 1


def test_a_member_draws_what_it_draws_alone():
    """So that an ensemble and its first member break the same samples at the same steps."""
    model, batch = net(5), images(40)
    labels = model(batch).argmax(1)
    alone = attacks.run(model, batch, labels, attack="apgd-ce", eps=0.05)
    whole = attacks.run(model, batch, labels, attack="autoattack-fare", eps=0.05)
    first = {o.id: o.step for o in whole if o.by == "apgd-ce"}
    assert first == {o.id: o.step for o in alone if o.broken}
    assert len(first) > 5


def test_each_member_gets_the_survivors_of_the_one_before():
    """Queries add up, who broke a sample is told, and a survivor has gone through all."""
    model, batch = net(5), images(40)
    labels = model(batch).argmax(1)
    threat, weak = Threat("linf", 0.05), "pgd-1:step=0.05"
    members = [attacks.plan(name, threat, 5).members[0] for name in (weak, "apgd-t-10")]
    plan = attacks.Plan(members, "every", early_exit=True, eot=1, name="two")
    chunk = Chunk([str(n) for n in range(40)], batch, labels)
    found = list(attack_chunks(model, [chunk], plan, device=CPU, slots=8))
    assert {o.by for o in found} == {None, weak, "apgd-t-10"}
    for outcome in found:
        least = {None: 2 + 4 * 11, weak: 1, "apgd-t-10": 3}[outcome.by]
        most = {None: least, weak: 2, "apgd-t-10": 2 + 4 * 11}[outcome.by]
        assert least <= outcome.queries <= most
        if outcome.by == "apgd-t-10":
            assert outcome.step == outcome.queries - 1 - 2


def test_outcomes_of_a_sequence_are_told_as_they_are_known():
    """A clean mistake and what the first member breaks do not wait for the last one's survivors."""
    model, batch = net(5), images(40)
    labels = model(batch).argmax(1)
    labels[0] = (labels[0] + 1) % 5

    def chunks() -> Iterator[Chunk]:
        for i in range(0, 40, 4):
            yield Chunk([str(n) for n in range(i, i + 4)], batch[i : i + 4], labels[i : i + 4])

    plan = attacks.plan("autoattack-fare", Threat("linf", 0.02), 5)
    told = [o.id for o in attack_chunks(model, chunks(), plan, device=CPU, slots=4)]
    assert told[0] == "0"
    assert sorted(told, key=int) == [str(n) for n in range(40)]


@pytest.mark.parametrize("classes", [2, 3, 12])
@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("name", ATTACKS)
def test_every_attack_takes_every_number_of_classes(name, norm, classes):
    """None raises but untargeted FAB beyond ten classes and CW-L2 under linf, which say what to use."""
    model, batch = net(classes), images(5)
    labels = model(batch).argmax(1)
    eps = 0.05 if norm == "linf" else 0.5

    def run() -> list[attacks.Outcome]:
        return attacks.run(model, batch, labels, attack=short(name), norm=norm, eps=eps)

    if name == "fab" and classes > 10:
        with pytest.raises(UserError, match="the model has 12: use fab-t"):
            run()
    elif name == "cw-l2" and norm == "linf":
        with pytest.raises(UserError, match="l2"):
            run()
    else:
        assert len(run()) == 5


@pytest.mark.parametrize("name", ["apgd-dlr-3", "apgd-t-3", "fab-t-3", "fab-3"])
def test_equal_texts_count_as_one_class(name):
    """Four classes of which two share a text are three groups: targets and DLR go by groups (traps 57)."""
    model, batch = net(4), images(5)
    labels = model(batch).argmax(1)
    found = attacks.run(model, batch, labels, attack=name, eps=0.05, groups=[0, 1, 1, 2])
    assert len(found) == 5
    assert len(Groups.of([0, 1, 1, 2], 4, CPU).representative) == 3


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("apgd", "unknown attack 'apgd': did you mean 'apgd-"),
        ("autoatack", "unknown attack 'autoatack': did you mean 'autoattack"),
        ("pgd", "'pgd' needs its number of steps: write pgd-20"),
        ("fgsm-3", "fgsm has its own number of steps; write fgsm"),
        ("autoattack-20", "'autoattack-20' has its own numbers of steps: write autoattack"),
        ("apgd-ce:targets=3", "targets belongs to apgd-t, fab-t; leave it out"),
        ("autoattack:restarts=3", "restarts belongs to pgd, "),
        ("autoattack:judge=last", "each member of an ensemble gets the survivors"),
        ("apgd-ce-0", "must lie in 1 to 999999"),
        ("apgd-t:targets=0", "targets takes a whole number"),
        ("mi-fgsm:decay=-1", "decay takes a finite number >= 0, got '-1'"),
        ("apgd-ce:rho=2", "rho must lie in"),
    ],
)
def test_mistakes_are_one_line(text, message):
    """They name what was given and what is allowed."""
    with pytest.raises(UserError, match=message) as caught:
        attacks.plan(text, LINF)
    assert "\n" not in str(caught.value)


def test_every_name_is_listed_with_what_it_is():
    """And an ensemble's members are names."""
    for ensemble in ENSEMBLES.values():
        assert set(ensemble.members) <= set(ATTACKS)
    titles = [entry.title(name) for name, entry in ATTACKS.items()]
    assert "pgd-N" in titles
    assert "apgd-ce[-N]" in titles
    assert "fgsm" in titles
