"""The table: unions, means and differences of rows made by hand."""

from __future__ import annotations

from typing import Any

import pytest

from zsrobust.errors import UserError
from zsrobust.evaluation.table import EvaluationTable, Row

EPS = 1 / 255
FOUR = ["1111", "1110", "0110", "0100"]


def row(model: str, image_set: str, clean: str, eps: float | None = EPS, **attacks: str) -> Row:
    """A row with outcomes written as "1101"."""
    return Row(
        model=model,
        image_set=image_set,
        is_source=image_set == "source",
        eps=eps,
        resolution="model",
        classes=2,
        templates=["a {}"],
        ids=[f"{image_set}/{i}" for i in range(len(clean))],
        clean=[c == "1" for c in clean],
        robust={name: [c == "1" for c in text] for name, text in attacks.items()},
    )


def table(*rows: Row) -> EvaluationTable:
    request: dict[str, Any] = {"norm": "linf", "attacks": ["weak", "strong"]}
    return EvaluationTable("by hand", request, list(rows))


def test_a_union_is_right_where_every_attack_left_it_right():
    """Not the weakest and not the strongest attack: all of them at once."""
    one = row("a", "x", "1111", weak="1101", strong="0111")
    assert one.values("robust").tolist() == [0, 1, 0, 1]
    assert one.accuracy("robust").value == 0.5
    assert one.accuracy("weak").value == one.accuracy("strong").value == 0.75


def test_a_mean_is_over_sets_and_without_the_source():
    """100% of 2 and 0% of 6 samples is 50%, whatever the source set says."""
    whole = table(
        row("a", "x", "11", weak="10"),
        row("a", "y", "000000", weak="000000"),
        row("a", "source", "1111", weak="1111"),
    )
    assert whole.mean("a", EPS, "clean").value == 0.5
    assert whole.mean("a", EPS, "weak").value == 0.25
    assert whole.mean("a", EPS, "clean").samples == 8
    assert whole.to_json()["means"][0]["mean"]["clean"]["value"] == 0.5


def test_a_mean_of_what_was_not_measured_raises():
    """A radius or a model that the table does not hold has no mean."""
    with pytest.raises(ValueError, match="no sets"):
        table(row("a", "x", "11", weak="10")).mean("a", 2 / 255, "clean")


def test_columns_models_and_radii_stand_in_the_order_given():
    """clean first, robust last where there is any attack."""
    whole = table(
        row("b", "x", "11", eps=2 / 255, strong="10", weak="10"),
        row("b", "x", "11", eps=EPS, strong="10", weak="10"),
        row("a", "x", "11", eps=2 / 255, strong="10", weak="10"),
    )
    assert whole.columns == ["clean", "strong", "weak", "robust"]
    assert whole.models == ["b", "a"]
    assert whole.radii == [2 / 255, EPS]
    assert table(row("a", "x", "11", eps=None)).columns == ["clean"]


def test_a_difference_by_hand():
    """x: 3/4 - 2/4, y: 0/2 - 1/2; their mean is -0.125."""
    whole = table(
        row("a", "x", "1100", weak="1100"),
        row("a", "y", "10", weak="10"),
        row("b", "x", "0111", weak="0111"),
        row("b", "y", "00", weak="00"),
    )
    found = whole.difference("a", "b", EPS, "weak")
    assert found.value == (0.25 - 0.5) / 2
    assert found.samples == 6
    assert whole.set_difference("a", "b", EPS, "x", "weak").value == 0.25
    out = whole.to_json()["differences"][0]
    assert (out["model"], out["minus"]) == ("b", "a")
    assert out["mean"]["weak"]["value"] == -0.125
    assert out["per_set"]["y"]["weak"]["value"] == -0.5


def test_a_model_does_not_differ_from_its_equal():
    """The same outcomes: 0; four samples do not show that no other would differ."""
    whole = table(row("a", "x", "1010", weak="1000"), row("b", "x", "1010", weak="1000"))
    found = whole.difference("a", "b", EPS, "robust")
    none_of_four = row("a", "x", "0000").accuracy("clean")
    assert (found.value, found.low, found.high) == (0, -none_of_four.high, none_of_four.high)


def test_every_two_models_are_compared_in_the_json():
    """To the first one as ever; then the others with each other, the earlier minus the later."""
    whole = table(
        *(row(model, "x", clean, weak=clean) for model, clean in zip("abcd", FOUR, strict=True)),
        *(
            row(model, "source", clean, weak=clean)
            for model, clean in zip("abcd", FOUR, strict=True)
        ),
    )
    out = whole.to_json()["differences"]
    pairs = [("b", "a"), ("c", "a"), ("d", "a"), ("b", "c"), ("b", "d"), ("c", "d")]
    assert [(one["model"], one["minus"]) for one in out] == pairs
    for one in out:
        expected = whole.difference(one["minus"], one["model"], EPS, "weak")
        assert one["mean"]["weak"] == expected.row()
        assert one["per_set"]["x"]["clean"] == expected.row()  # one set is its own mean
        assert set(one["per_set"]) == {"x", "source"}
        assert (one["eps"], one["sets"]) == (EPS, 1)
    assert [one["mean"]["clean"]["value"] for one in out] == [-0.25, -0.5, -0.75, 0.25, 0.5, 0.25]


def test_pairs_are_shown_to_people_while_the_models_are_few():
    """Of five models there would be six pairs beside the four differences to the first."""
    rows = [row(model, "x", "10", weak="10") for model in "abcde"]
    assert table(*rows[:4]).shown_pairs(EPS) == [("b", "c"), ("b", "d"), ("c", "d")]
    assert table(*rows).shown_pairs(EPS) == []
    assert len(table(*rows).other_pairs(EPS)) == 6
    assert table(*rows[:2]).other_pairs(EPS) == []
    # A model that was not measured at an eps has no difference there.
    assert table(*rows[:2], row("c", "x", "10", eps=2 / 255, weak="10")).other_pairs(EPS) == []


def test_other_samples_have_no_difference():
    """Two models measured on different sets or subsets are not compared (traps 46)."""
    whole = table(row("a", "x", "1100", weak="1100"), row("b", "x", "110", weak="110"))
    with pytest.raises(UserError, match="same samples"):
        whole.difference("a", "b", EPS, "weak")
    with pytest.raises(UserError, match="same samples"):
        whole.set_difference("a", "b", EPS, "x", "weak")
    with pytest.raises(UserError, match="same samples"):
        whole.difference("a", "c", EPS, "weak")
    with pytest.raises(UserError, match="same samples"):
        whole.difference("c", "c", EPS, "weak")
