"""Flags: each is raised by records that earn it, is silent one record short of that, and changes no number."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from zsrobust.attacks import plan
from zsrobust.evaluation.probes import Gradient, Probe, Scaled
from zsrobust.evaluation.table import EvaluationTable, Row
from zsrobust.evaluation.trust import ABOUT, FROM_PROBES, Flag, ball
from zsrobust.threat import Threat

EPS = 1 / 255


def row(
    steps: dict[str, list[int | None]],
    *,
    eps: float = EPS,
    wrong: int = 0,
    settings: dict[str, dict[str, Any]] | None = None,
    by: dict[str, list[str | None]] | None = None,
    classes: int = 10,
    norm: str = "linf",
    **rest: Any,
) -> Row:
    """A row whose samples are broken at these queries (None: not at all), `wrong` more being clean mistakes."""
    count = len(next(iter(steps.values()))) + wrong
    attacks = {name: [*found, *[None] * wrong] for name, found in steps.items()}
    clean = [i < count - wrong for i in range(count)]
    plans = {name: plan(name, Threat(norm, eps), classes).settings() for name in steps}
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
        by={name: [*found, *[None] * wrong] for name, found in (by or {}).items()},
        norm=norm,
        **rest,
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


@pytest.mark.parametrize(
    ("right", "labels", "raised"),
    [
        (500, [0, 1] * 500, True),  # one answer for all
        (530, [0, 1] * 500, True),  # [49.9, 56.1]
        (531, [0, 1] * 500, False),  # [50.001, 56.2]
        (100, [*range(10)] * 100, True),
        (532, [0] * 900 + [1] * 100, True),  # less than the larger class
        (1000, [0] * 1000, True),  # one class alone: no answer is wrong
        (500, [], False),  # labels are not known
    ],
)
def test_chance_level_is_what_one_answer_for_every_image_scores(right, labels, raised):
    """Its interval begins at or below the most frequent class's share; it stands at clean and at the union."""
    found = row({"pgd-20": [None] * right}, wrong=1000 - right, labels=labels)
    expected = [("chance-level", "clean"), ("chance-level", "robust")] if raised else []
    assert names(found) == expected
    for column in ("clean", "robust"):
        assert found.flags_at(column) == ["chance-level"] * raised


def test_chance_level_is_said_of_clean_accuracy_alone():
    """Robust accuracy below the share is what an attack does; without an attack the flag stands at clean."""
    labels = [0, 1] * 500
    assert names(row({"pgd-20": [0] * 900 + [None] * 100}, labels=labels)) == []
    alone = Row(
        **{
            **vars(row({"pgd-20": [None] * 500}, wrong=500, labels=labels)),
            "robust": {},
            "plans": {},
        }
    )
    (flag,) = alone.flags
    assert (flag.name, flag.column) == ("chance-level", "clean")
    assert (
        flag.why == "clean accuracy is 50.0% [46.9, 53.1], and class 0 for every image scores 50.0%"
    )


WEAK = ["pgd-9", "cw-margin-9", "pgd-20:step=1/255", "pgd-paper", "fgsm", "mi-fgsm-9", "apgd-ce-9"]
WEAK += ["fab-t-9", "square"]


@pytest.mark.parametrize("attack", WEAK)
def test_weak_attack_alone_is_flagged(attack):
    """Fewer than ten steps, cross-entropy with a fixed step of at least eps, or no gradient."""
    (flag,) = row({attack: [None] * 1000}).flags
    assert (flag.name, flag.column) == ("weak-attack", "robust")
    assert attack in flag.why


STRONG = ["pgd-10", "cw-margin-10", "cw-margin-20:step=1/255", "mi-fgsm-10", "apgd-ce-10", "fab-10"]
STRONG += ["apgd-t", "autoattack", "autoattack-fare"]


@pytest.mark.parametrize("attack", STRONG)
def test_an_attack_that_is_not_weak_is_not_flagged(attack):
    """Ten steps, the margin loss with a large step, or an ensemble with one such member."""
    assert names(row({attack: [None] * 1000})) == []


def test_the_step_of_cw_l2_is_no_pixel_step():
    """It is Adam's, 0.01 in another variable; the ball may be smaller."""
    assert names(row({"cw-l2": [None] * 1000}, eps=0.005, norm="l2")) == []


def test_an_ensemble_is_as_strong_as_its_strongest_member():
    """Weak members alone are weak together, and each one's reason is told."""
    held: list[int | None] = [None] * 1000
    members = [plan(name, Threat("linf", EPS)).settings() for name in ("pgd-5", "square")]
    (flag,) = row({"autoattack": held}, settings={"autoattack": {"members": members}}).flags
    assert flag.name == "weak-attack"
    assert (
        flag.why == "autoattack has weak members alone (pgd-5 has 5 step(s), square is black-box)"
    )
    members.append(plan("apgd-t", Threat("linf", EPS)).settings())
    assert names(row({"autoattack": held}, settings={"autoattack": {"members": members}})) == []


def test_images_of_another_model_are_black_box():
    """However strong the attack on the source was."""
    found = row({"pgd-50": [None] * 1000}, settings={"pgd-50": {"source": "0123"}})
    assert [(flag.name, flag.why) for flag in found.flags] == [
        ("weak-attack", "pgd-50 is black-box")
    ]


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


@pytest.mark.parametrize(
    ("attack", "query", "raised"),
    [
        ("fab-t", 181, True),  # of 100 iterations, 200 queries at most
        ("fab-t", 180, False),
        ("square", 4501, True),
        ("square", 4500, False),
        ("apgd-t", 91, True),
        ("apgd-t", 90, False),
    ],
)
def test_each_algorithm_counts_its_own_queries(attack, query, raised):
    """A second query after a hit makes FAB's run twice its iterations; Square has queries for steps."""
    found = row({attack: broken(20, 20, query), "pgd-20": broken(0, 0, 0, held=1020)})
    assert (("not-converged", attack) in names(found)) == raised


def test_a_member_of_an_ensemble_is_judged_by_what_it_broke():
    """Step 95 is late for APGD's 100, and early for Square's 5,000."""
    steps = [*[95] * 30, *[3] * 30, *[None] * 1000]
    for first, raised in (("apgd-ce", True), ("square", False)):
        by = [*[first] * 30, *["apgd-t"] * 30, *[None] * 1000]
        found = row({"autoattack": steps}, by={"autoattack": by})
        late = [flag for flag in found.flags if flag.name == "not-converged"]
        assert [flag.column for flag in late] == (["autoattack"] if raised else [])
        if raised:
            assert late[0].why == ("apgd-ce: 30 of 30 breaks fall in the last tenth of 100 steps")
    few = [*["apgd-ce"] * 19, *["apgd-t"] * 41, *[None] * 1000]  # the 41 have 11 late ones, of 100
    found = row({"autoattack": steps}, by={"autoattack": few})
    assert "apgd-t: 11 of 41" in next(f.why for f in found.flags if f.name == "not-converged")
    assert ("not-converged", "autoattack") not in names(row({"autoattack": steps}))


@pytest.mark.parametrize(
    ("won", "left", "raised"), [(3, 300, True), (3, 301, False), (2, 20, False)]
)
def test_black_box_wins_on_what_the_gradient_attacks_left(won, left, raised):
    """At least 1% and at least 3 of them; two cells, or two members of one ensemble."""
    pgd: list[int | None] = [*[0] * 500, *[None] * left]
    square: list[int | None] = [*[7] * 500, *[7] * won, *[None] * (left - won)]
    apart = row({"pgd-20": pgd, "square": square})
    expected = [("black-box-wins", "robust")] if raised else []
    assert names(apart) == expected
    steps = [
        first if first is not None else second for first, second in zip(pgd, square, strict=True)
    ]
    by = [*["apgd-ce"] * 500, *["square"] * won, *[None] * (left - won)]
    inside = row({"autoattack": steps}, by={"autoattack": by})
    assert names(inside) == expected
    if raised:
        why = f"square broke {won} of the {left} samples that the gradient attacks left"
        assert [flag.why for one in (apart, inside) for flag in one.flags] == [why, why]


def test_black_box_wins_counts_every_gradient_attack():
    """What Square breaks in one cell and a gradient attack in another is no win; clean mistakes are none."""
    held: list[int | None] = [None] * 900
    square = row({"pgd-20": [*[None] * 50, *held], "square": [*[3] * 50, *held]}, wrong=50)
    assert names(square) == [("black-box-wins", "robust")]
    both = {
        "pgd-20": [*[None] * 50, *held],
        "square": [*[3] * 50, *held],
        "apgd-t": [*[1] * 50, *held],
    }
    assert names(row(both, wrong=50)) == []
    alone = row({"square": [*[3] * 50, *held]})
    assert "black-box-wins" not in [flag.name for flag in alone.flags]


def test_transfer_wins_as_a_black_box():
    """Images of another model that break what the model's own gradient left."""
    held: list[int | None] = [None] * 900
    found = row(
        {"pgd-20": [*[None] * 50, *held], "mi-fgsm": [None] * 950},
        settings={"mi-fgsm": {"source": "0123"}},
        by={"mi-fgsm": [*["transfer:mi-fgsm"] * 50, *held]},
    )
    found.robust["mi-fgsm"][:50] = [
        False
    ] * 50  # broken, at no step: the image as a whole is judged
    (flag,) = found.flags
    assert (flag.name, flag.column) == ("black-box-wins", "robust")
    assert flag.why.startswith("transfer:mi-fgsm broke 50 of the 950")


@pytest.mark.parametrize(
    ("attack", "classes", "words"),
    [
        ("apgd-dlr", 2, "margin loss in place of DLR with 2 classes"),
        ("apgd-t", 3, "margin loss in place of DLR with 3 classes"),
        ("autoattack", 3, "apgd-t has the margin loss"),
        ("autoattack-tecoa", 2, "apgd-dlr is left out with 2 classes"),
        ("autoattack-fare", 2, "apgd-t is left out with 2 classes"),
    ],
)
def test_fallback_loss_says_what_stands_in_or_is_left_out(attack, classes, words):
    """In the words of the plan; with enough classes there is nothing to say."""
    held: list[int | None] = [None] * 1000
    (flag,) = row({attack: held}, classes=classes).flags
    assert (flag.name, flag.column) == ("fallback-loss", attack)
    assert words in flag.why
    assert names(row({attack: held}, classes=4)) == []


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
    assert len(ABOUT) == 12
    assert set(ABOUT) > FROM_PROBES
    for about in ABOUT.values():
        assert all((about.raised_if, about.means, about.do))
    assert Flag("few-samples", "clean", "x").row()["column"] == "clean"


def test_the_page_says_what_the_code_says():
    """A section each, in the same order, with the same condition and meaning."""
    page = (Path(__file__).parents[2] / "docs" / "trust.md").read_text("utf-8")
    sections = dict(re.findall(r"^## ([a-z-]+)$(.*?)(?=^## |\Z)", page, re.MULTILINE | re.DOTALL))
    assert list(sections) == list(ABOUT)
    for name, about in ABOUT.items():
        words = sections[name]
        assert f"**Raised if** {about.raised_if}." in words
        assert f"**Means**: {about.means[0].lower()}{about.means[1:]}" in words.replace("\n", " ")
        assert "**Do**: " in words
        assert f"| [{name}](#{name}) |" in page


def probe(**changes: Any) -> Probe:
    """What 64 probes of an honest model tell."""
    honest: dict[str, Any] = {
        "samples": tuple((str(i), 0, "0") for i in range(64)),
        "device": "cpu",
        "classes": 10,
        "scale": 100.0,
        "certain": 0,
        "probabilities": 0,
        "largest": 30.0,
        "spread": 0.2,
        "difference": 0.0,
        "survivors": 3,
        "gradients": {
            name: Gradient(missing=False, zero=0, of=64)
            for name in ("cross-entropy", "margin", "dlr", "targeted dlr")
        },
    }
    return Probe(**{**honest, **changes})


HELD: list[int | None] = [None] * 1000
NONE = Gradient(missing=False, zero=0, of=64)
ONE = Gradient(missing=False, zero=1, of=64)
GONE = Gradient(missing=True, zero=64, of=64)


@pytest.mark.parametrize(
    ("attacks", "changes", "raised"),
    [
        (["pgd-20"], {}, []),
        (["pgd-20", "square"], {"gradients": {"cross-entropy": GONE}}, [("no-gradient", "pgd-20")]),
        (["pgd-20"], {"gradients": {"cross-entropy": ONE}}, [("zero-gradient", "pgd-20")]),
        (["pgd-20"], {"gradients": {"cross-entropy": Gradient(False, 0, 64), "margin": ONE}}, []),
        (["cw-margin-20"], {"gradients": {"cross-entropy": ONE, "margin": NONE}}, []),
        (
            ["fab-t"],
            {"gradients": {"cross-entropy": NONE, "margin": ONE}},
            [("zero-gradient", "fab-t")],
        ),
        (["apgd-t"], {"gradients": {"targeted dlr": ONE}}, [("zero-gradient", "apgd-t")]),
        (["autoattack-tecoa"], {"gradients": {"cross-entropy": GONE, "dlr": NONE}}, []),
        (
            ["autoattack-tecoa"],
            {"gradients": {"cross-entropy": GONE, "dlr": ONE}},
            [("zero-gradient", "autoattack-tecoa")],
        ),
        (["autoattack-tecoa"], {"gradients": {"cross-entropy": GONE}}, []),  # DLR was not looked at
        (
            ["pgd-20"],
            {"difference": 1e-9},
            [("random-output", "clean"), ("random-output", "robust")],
        ),
        (["pgd-20"], {"difference": 1e-5, "device": "cuda"}, []),
        (
            ["pgd-20"],
            {"difference": 1.1e-5, "device": "cuda"},
            [("random-output", "clean"), ("random-output", "robust")],
        ),
        (["pgd-20", "square"], {"certain": 4}, [("saturated", "robust")]),
        (["pgd-20"], {"certain": 3}, []),
        (["pgd-20", "cw-margin-20"], {"certain": 64}, []),
        (["pgd-20", "fab-t"], {"certain": 64}, []),
        (["autoattack-fare"], {"certain": 64}, []),
        (["apgd-ce"], {"probabilities": 64}, [("saturated", "robust")]),
        (["apgd-ce"], {"probabilities": 63}, []),
        (["pgd-20"], {"scale": 1.9}, [("flat-output", "robust")]),
        (["pgd-20"], {"scale": 2.0}, []),
        (["pgd-20"], {"largest": 1.0, "scale": None}, [("flat-output", "robust")]),
        (["pgd-20"], {"largest": 1.01, "scale": None}, []),
        (["pgd-20"], {"largest": 1.0, "classes": 2}, []),
        (["pgd-20"], {"survivors": 4}, [("survives-all", "robust")]),
        (["pgd-20"], {"survivors": None}, []),
    ],
)
def test_what_the_probes_raise(attacks, changes, raised):
    """At the threshold, and one short of it."""
    assert names(row({name: HELD for name in attacks}, probe=probe(**changes))) == raised


@pytest.mark.parametrize(
    ("scaled", "spread", "raised"),
    [
        (Scaled(10, 3, 0, 64), 0.8, True),
        (Scaled(10, 5, 2, 64), 0.8, True),
        (Scaled(10, 5, 3, 64), 0.8, False),
        (Scaled(10, 2, None, 64), 0.8, False),
        (Scaled(10, 30, 0, 64), 0.79, False),
        (None, 0.9, False),
    ],
)
def test_a_factor_on_the_logits_that_helps_the_attack(scaled, spread, raised):
    """By three probes net, where the softmax is nearly uniform; at the row's own norm and eps."""
    told = probe(scaled={ball("linf", EPS): scaled}, spread=spread)
    found = row({"pgd-20": HELD}, probe=told)
    assert names(found) == ([("flat-output", "robust")] if raised else [])
    assert names(row({"pgd-20": HELD}, eps=2 * EPS, probe=told)) == []
    if raised:
        assert "break 13 of 64 probes, not 10" in found.flags[0].why


def test_clean_alone_is_judged_by_what_it_needs():
    """Randomness moves a clean accuracy; gradients do not."""
    told = probe(difference=0.1, survivors=64, certain=64, scale=1.0)
    one = row({"pgd-20": HELD}, probe=told)
    clean = Row(**{**vars(one), "robust": {}, "plans": {}, "steps": {}, "eps": None})
    assert names(clean) == [("random-output", "clean")]


def test_what_the_probes_tell_comes_back_from_its_file():
    """As JSON and back; another version counts as none, damage is an error."""
    told = probe(scaled={"linf 0.1": Scaled(1, 2, None, 64), "l2 1.0": None}, survivors=None)
    content = json.loads(json.dumps(told.to_json()))
    assert Probe.from_json(content) == told
    assert Probe.from_json({**content, "version": 0}) is None
    for damage in (
        {"certain": "1"},
        {"certain": -1},
        {"largest": None},
        {"samples": [["a", 0]]},
        {"samples": []},
        {"gradients": {"margin": {"zero": 1}}},
        {"gradients": {"margin": {"missing": False, "zero": 0, "of": 0}}},
        {"gradients": {"margin": {"missing": "no", "zero": 0, "of": 64}}},
        {"scaled": {"linf 0.1": {"broken": 1, "gained": 2.5, "lost": None, "of": 64}}},
        {"unknown": 1},
    ):
        with pytest.raises(ValueError, match="no probe"):
            Probe.from_json({**content, **damage})
    for nothing in (None, [], {}, "x"):
        with pytest.raises(ValueError, match="no probe"):
            Probe.from_json(nothing)
