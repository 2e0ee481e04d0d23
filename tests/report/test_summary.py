"""Sentences: the numbers in them are the table's, and no doubt is left out."""

from __future__ import annotations

import json

import numpy as np
import pytest

from zsrobust.evaluation.statistics import Interval, wilson
from zsrobust.evaluation.table import EvaluationTable
from zsrobust.report.summary import (
    between,
    describe_plan,
    flag_places,
    label_models,
    percent,
    points,
    points_between,
    summarise,
    summary_json,
)

from .conftest import ATTACKS, EPS, LABELS, MODELS, RATES, SETS, row, table

MINUS = "\N{MINUS SIGN}"


def test_numbers_in_words():
    """Per cent without a sign, points with one; what rounds to nothing has none."""
    one = Interval(0.34, 0.3194, 0.3605, 10)
    assert (percent(one), between(one)) == ("34.0%", "[31.9, 36.0]")
    assert [points(v) for v in (0.198, -0.1034, 0.0, -0.0004, 0.00051)] == [
        "+19.8",
        f"{MINUS}10.3",
        "0.0",
        "0.0",
        "+0.1",
    ]
    assert points_between(Interval(0.0, -0.02, 0.03, 10)) == f"[{MINUS}2.0, +3.0]"


def test_a_gain_that_excludes_zero_is_said_to_be_one(toy_table):
    """With the numbers of the paired difference, and on how many sets it holds."""
    (summary,) = summarise(toy_table, LABELS)
    gain = toy_table.difference(MODELS[0], MODELS[1], EPS, "robust")
    first, own = (toy_table.mean(m, EPS, "robust") for m in MODELS[:2])
    assert summary.headlines[0].startswith(
        f"TeCoA: {percent(first)} → {percent(own)} of the images stay right under attack "
        f"({points(gain.value)} points {points_between(gain)}); clean accuracy "
    )
    pair = {c: toy_table.difference(MODELS[2], MODELS[1], EPS, c) for c in ("clean", "robust")}
    assert summary.headlines[2:] == [
        f"TeCoA against FT(Adv.): clean {points(pair['clean'].value)} {points_between(pair['clean'])}, "
        f"robust {points(pair['robust'].value)} {points_between(pair['robust'])} points"
    ]
    assert pair["clean"].low > 0
    remark = summary.remarks[0]
    assert (remark.kind, remark.title) == ("good", "TeCoA against CLIP")
    assert "excludes zero" in remark.text
    assert "On 6 of 6 sets" in remark.text
    assert (summary.sets, summary.samples, summary.threat) == (6, 1200, "linf, eps 4/255")


def test_a_loss_and_no_difference_are_said_as_well():
    """The same outcomes are no difference; the better model first makes the second a loss."""
    rows = [row(model, name) for model in (MODELS[1], MODELS[0]) for name in SETS]
    (lost,) = summarise(EvaluationTable("x", table().request, rows), LABELS)
    assert lost.remarks[0].kind == "care"
    assert lost.remarks[0].text.startswith(f"The loss under attack, {MINUS}")
    assert "On none of 6 sets the interval lies above zero, on 6 below it." in lost.remarks[0].text
    twin = [row(MODELS[0], name) for name in SETS]
    same = [type(r)(**{**_fields(r), "model": "twin"}) for r in twin]
    (equal,) = summarise(
        EvaluationTable("x", table().request, [*twin, *same]), {**LABELS, "twin": "Twin"}
    )
    assert equal.remarks[0].kind == "care"
    # 1,200 samples on which the two agree do not show that they always do.
    end = wilson(np.zeros(1200)).high
    none = f"0.0 points [{points(-end)}, {points(end)}], includes zero: none is shown"
    assert none in equal.remarks[0].text


def _fields(of) -> dict:
    return {name: getattr(of, name) for name in of.__dataclass_fields__}


def test_pairs_beyond_the_first_are_said_while_the_models_are_few(toy_table):
    """Two models have none; of five there would be six."""
    two = EvaluationTable("x", table().request, [r for r in table().rows if r.model in MODELS[:2]])
    assert summarise(two, LABELS)[0].pairs == []
    more = [f"model {i}" for i in range(2)]
    rows = [
        type(r)(**{**_fields(r), "model": m}) for m in more for r in toy_table.of(MODELS[2], EPS)
    ]
    many = EvaluationTable("x", table().request, [*toy_table.rows, *rows])
    assert summarise(many, {**LABELS, **dict.fromkeys(more, "M")})[0].pairs == []
    four = EvaluationTable("x", table().request, [*toy_table.rows, *rows[: len(SETS)]])
    assert len(summarise(four, {**LABELS, "model 0": "M"})[0].pairs) == 3


def test_flags_of_attacks_count_at_the_number_that_carries_their_mark(toy_table):
    """Two attacks with few samples are one marked number, with both reasons."""
    few = EvaluationTable("x", table().request, [row(MODELS[0], SETS[0], samples=20)])
    places = flag_places(few, EPS, LABELS)["few-samples"]
    assert len(places) == sum("few-samples" in few.rows[0].flags_at(c) for c in ("clean", "robust"))
    assert places[-1].startswith(f"CLIP on {SETS[0]}, robust: pgd-20: its interval is ")
    assert "; cw-margin-20: its interval is " in places[-1]


def test_one_model_alone_is_said_with_its_intervals():
    """There is nothing to compare with."""
    alone = EvaluationTable("x", table().request, [row(MODELS[0], name) for name in SETS])
    (summary,) = summarise(alone, LABELS)
    robust, clean = (alone.mean(MODELS[0], EPS, c) for c in ("robust", "clean"))
    assert summary.headlines == [
        f"CLIP: {percent(robust)} {between(robust)} of the images stay right under attack; clean accuracy "
        f"{percent(clean)} {between(clean)}"
    ]


def test_how_it_was_judged_is_said(toy_table):
    """Every query, the steps in words; an attack whose last iterate alone is judged is no good sign."""
    (summary,) = summarise(toy_table, LABELS)
    texts = {remark.title: remark for remark in summary.remarks}
    assert texts["How it was judged"].kind == "good"
    assert "pgd-20: 20 steps of eps/4 on the cross-entropy loss" in texts["How it was judged"].text
    assert "No stronger attack than these (pgd-20, cw-margin-20)" in texts["An upper bound"].text
    assert "1,200 in 6 sets (200 of each)" in texts["How many images"].text
    partly = table()
    for one in partly.rows:
        one.plans["pgd-20"]["judge"] = "last"
    (summary,) = summarise(partly, LABELS)
    judged = next(r for r in summary.remarks if r.title == "How it was judged")
    assert judged.kind == "care"
    assert "Not every query is judged: pgd-20: last; cw-margin-20: every." in judged.text


def test_flags_are_said_with_what_they_mean():
    """How many numbers, and where to read on; one attack alone is no worst case of several."""
    few = EvaluationTable(
        "x", table().request, [row(MODELS[0], SETS[0], samples=20, attacks=["pgd-5"])]
    )
    (summary,) = summarise(few, LABELS)
    texts = {remark.title: remark for remark in summary.remarks}
    flags = texts["2 kinds of flag are raised"]
    assert flags.kind == "care"
    # Clean and robust are the numbers that the page marks; the attack's own cell is not shown.
    assert "few-samples on 2 numbers" in flags.text
    assert "weak-attack on 1 number: a stronger attack would most likely break more" in flags.text
    assert texts["The worst case counts"].kind == "plain"


@pytest.mark.parametrize(
    ("plan", "words"),
    [
        ({"steps": 100, "step_size": 1 / 255}, "100 steps of eps/4"),
        ({"steps": 100, "step_size": EPS}, "100 steps of eps"),
        ({"steps": 7, "step_size": 3 / 255, "restarts": 2}, "7 steps of 3/255 with 2 starts"),
        ({"steps": 7, "step_size": None, "start": "clean"}, "7 steps from a clean start"),
        ({"algorithm": "square"}, "square"),
    ],
)
def test_attacks_in_words(plan, words):
    """A step is named by its share of eps where that is a whole one."""
    assert describe_plan(plan, EPS) == words


def test_labels_are_given_or_short_and_never_shared(toy_table):
    """One label for two models: their specs stand in."""
    assert label_models(toy_table, None) == dict(
        zip(MODELS, ["mini-clip", "tecoa", "adv"], strict=True)
    )
    shared = label_models(toy_table, {MODELS[1]: "mini-clip"})
    assert shared == {MODELS[0]: MODELS[0], MODELS[1]: MODELS[1], MODELS[2]: "adv"}


def test_the_json_is_json_and_holds_headlines_and_numbers(toy_table):
    """What `zsrobust report --json` prints."""
    out = summary_json(toy_table, summarise(toy_table, LABELS))
    out = json.loads(json.dumps(out, allow_nan=False))
    assert out["summary"][0]["headlines"][0].startswith("TeCoA: ")
    assert out["summary"][0]["attacks"] == ATTACKS
    assert out["table"] == json.loads(json.dumps(toy_table.to_json()))
    assert len(RATES) == len(out["table"]["means"])
