"""Flags: each is raised by records that earn it, is silent one record short of that, and changes no number."""

from __future__ import annotations

from typing import Any

import pytest

from zsrobust.attacks import plan
from zsrobust.evaluation.table import EvaluationTable, Row
from zsrobust.evaluation.trust import ABOUT, Flag
from zsrobust.threat import Threat

EPS = 1 / 255


def row(
    steps: dict[str, list[int | None]],
    *,
    eps: float = EPS,
    wrong: int = 0,
    settings: dict[str, dict[str, Any]] | None = None,
) -> Row:
    """A row whose samples are broken at these queries (None: not at all), `wrong` more being clean mistakes."""
    count = len(next(iter(steps.values()))) + wrong
    attacks = {name: [*found, *[None] * wrong] for name, found in steps.items()}
    clean = [i < count - wrong for i in range(count)]
    plans = {name: plan(name, Threat("linf", eps)).settings() for name in steps}
    return Row(
        model="m",
        image_set="s",
        is_source=False,
        eps=eps,
        resolution="model",
        classes=2,
        templates=["a {}"],
        ids=[str(i) for i in range(count)],
        clean=clean,
        robust={
            name: [c and s is None for c, s in zip(clean, found, strict=True)]
            for name, found in attacks.items()
        },
        plans={name: {**plans[name], **(settings or {}).get(name, {})} for name in plans},
        steps=attacks,
    )


def names(of: Row) -> list[tuple[str, str]]:
    return [(flag.name, flag.column) for flag in of.flags]


def broken(count: int, late: int, steps: int, held: int = 1000) -> list[int | None]:
    """`count` breaks, `late` of them at the last query; and so many samples that held that no interval is wide."""
    return [*[0] * (count - late), *[steps] * late, *[None] * held]


def test_few_samples_is_an_interval_wider_than_15_points():
    """Half of 164 right: 15.1 points; half of 167: 14.99. Each cell on its own."""
    half = [None] * 82
    wide, narrow = row({"pgd-20": half}, wrong=82), row({"pgd-20": [None] * 84}, wrong=83)
    assert names(wide) == [("few-samples", "clean"), ("few-samples", "pgd-20")]
    assert "15.1 points wide with 164 sample" in wide.flags[0].why
    assert names(narrow) == []
    one_cell = row({"pgd-20": [0] * 50 + [None] * 50})  # clean is 100 of 100
    assert names(one_cell) == [("few-samples", "pgd-20")]


@pytest.mark.parametrize("attack", ["pgd-9", "cw-margin-9", "pgd-20:step=1/255", "pgd-paper"])
def test_weak_attack_alone_is_flagged(attack):
    """Fewer than ten steps, or cross-entropy with a fixed step of at least eps."""
    (flag,) = row({attack: [None] * 1000}).flags
    assert (flag.name, flag.column) == ("weak-attack", "robust")
    assert attack in flag.why


@pytest.mark.parametrize("attack", ["pgd-10", "cw-margin-10", "cw-margin-20:step=1/255"])
def test_an_attack_that_is_not_weak_is_not_flagged(attack):
    """Ten steps, or the margin loss with a large step."""
    assert names(row({attack: [None] * 1000})) == []


def test_one_strong_attack_lifts_the_flag_of_the_union():
    """The strongest attack of the union decides."""
    held: list[int | None] = [None] * 1000
    assert names(row({"pgd-5": held, "cw-margin-3": held})) == [("weak-attack", "robust")]
    assert names(row({"pgd-5": held, "cw-margin-20": held})) == []


def test_pgd_paper_is_weak_at_its_own_step_and_not_at_a_larger_eps():
    """Its step is 1/255 whatever eps is."""
    assert names(row({"pgd-paper": [None] * 1000}, eps=4 / 255)) == []


def test_an_algorithm_that_follows_no_gradient_is_black_box():
    """However many steps it has."""
    black = row({"pgd-50": [None] * 1000}, settings={"pgd-50": {"algorithm": "square"}})
    assert names(black) == [("weak-attack", "robust")]


@pytest.mark.parametrize(
    ("breaks", "late", "raised"),
    [(20, 3, True), (60, 3, True), (140, 7, True), (20, 2, False), (61, 3, False), (19, 19, False)],
)
def test_not_converged_counts_breaks_in_the_last_tenth(breaks, late, raised):
    """At least 20 breaks, at least 3 and 5% of them late."""
    found = row({"pgd-20": broken(breaks, late, 20)})
    assert names(found) == ([("not-converged", "pgd-20")] if raised else [])
    if raised:
        assert f"{late} of {breaks} breaks" in found.flags[0].why


@pytest.mark.parametrize(
    ("attack", "query", "raised"),
    [("pgd-20", 19, True), ("pgd-20", 18, False), ("pgd-10", 10, True), ("pgd-10", 9, False)],
)
def test_the_last_tenth_of_the_steps(attack, query, raised):
    """Query number s is what s steps led to: of 20 steps the last tenth are 19 and 20."""
    found = row({attack: broken(20, 20, query)})
    assert (("not-converged", attack) in names(found)) == raised


def test_not_converged_is_not_asked_of_short_or_partly_judged_attacks():
    """Nine steps; or the last query alone judged, which finds every break in the last tenth."""
    short = row({"pgd-9": broken(100, 100, 9)})
    assert names(short) == [("weak-attack", "robust")]
    last = row({"pgd-20:judge=last": broken(100, 100, 20)})
    assert names(last) == []


def test_each_attack_is_judged_on_its_own():
    """The other one's breaks do not help."""
    both = row({"pgd-20": broken(100, 0, 20), "cw-margin-20": broken(100, 50, 20)})
    assert names(both) == [("not-converged", "cw-margin-20")]


def test_without_settings_only_the_interval_is_judged():
    """A row made by hand knows no plans: what cannot be judged is not flagged."""
    by_hand = Row(
        model="m",
        image_set="s",
        is_source=False,
        eps=EPS,
        resolution="model",
        classes=2,
        templates=["a {}"],
        ids=["0", "1"],
        clean=[True, False],
        robust={"pgd-1": [True, False]},
    )
    assert names(by_hand) == [("few-samples", "clean"), ("few-samples", "pgd-1")]


def test_a_flag_stands_beside_the_number_and_changes_none():
    """In the JSON of its row; the accuracies are those of a row without flags."""
    flagged = row({"pgd-5": [None] * 900 + [0] * 100})
    silent = row({"pgd-10": [None] * 900 + [0] * 100})
    tables = [
        EvaluationTable("s", {"norm": "linf", "attacks": [*one.robust]}, [one])
        for one in (flagged, silent)
    ]
    first, second = (table.to_json()["rows"][0] for table in tables)
    assert first["flags"] == [
        {"flag": "weak-attack", "column": "robust", "why": "pgd-5 has 5 step(s)"}
    ]
    assert second["flags"] == []
    assert first["accuracy"]["robust"] == second["accuracy"]["robust"]
    assert tables[0].raised == {"weak-attack": 1}
    assert tables[1].raised == {}
    assert flagged.flags_at("robust") == ["weak-attack"]
    assert flagged.flags_at("clean") == []


def test_every_flag_is_explained():
    """What raises it, what it means, what to do."""
    assert list(ABOUT) == ["few-samples", "weak-attack", "not-converged"]
    for about in ABOUT.values():
        assert all((about.raised_if, about.means, about.do))
    assert Flag("few-samples", "clean", "x").row()["column"] == "clean"
