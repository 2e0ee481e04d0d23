"""The ledger: its averages recomputed, its names known elsewhere, a schema that forgives nothing."""

from __future__ import annotations

import copy
from statistics import fmean
from typing import Any

import pytest
import yaml

from zsrobust import data
from zsrobust.errors import UserError
from zsrobust.evaluation.published import Number, published
from zsrobust.evaluation.published.ledger import load_study, numbers, parse_study, study_names
from zsrobust.models.public import public_weights
from zsrobust.threat import parse_eps

# The one table whose columns are no set with a card.
ODD_SET = "100 classes of ImageNet"


def of(study: str, block: int) -> list[Number]:
    return [number for number in numbers(load_study(study)) if number.block == block]


def rows(found: list[Number]) -> dict[tuple[str, str], dict[str, float]]:
    """(model, measure) -> set or "mean" -> value."""
    table: dict[tuple[str, str], dict[str, float]] = {}
    for number in found:
        row = table.setdefault((number.model.name, number.measure), {})
        row["mean" if number.mean else str(number.image_set)] = number.value
    return table


def value(study: str, block: int, model: str, measure: str, place: str = "mean") -> float:
    return rows(of(study, block))[model, measure][place]


def off(study: str, block: int, tolerance: float) -> dict[tuple[str, str], float]:
    """Rows whose printed mean is not that of their cells, with the cells' mean."""
    found = {}
    for number in of(study, block):
        if number.mean is None:
            continue
        key = (number.model.name, number.measure)
        row = rows(of(study, block))[key]
        assert number.mean.sets is not None
        cells = [row[name] for name in number.mean.sets if name in row]
        if not cells:  # the mean alone was published or read
            continue
        assert len(cells) == number.mean.count, key
        if abs(fmean(cells) - number.value) > tolerance + 1e-9:
            found[key] = round(fmean(cells), 2)
    return found


def test_averages_over_sixteen_sets_are_those_of_their_cells():
    """TGA-ZSR's tables agree to 0.01, but for L_CE clean, whose cells give 44.93 (the sheet, 7.1)."""
    assert off("tga-zsr", 0, 0.01) == {("L_CE ViT-B/32 on Tiny-ImageNet", "clean"): 44.93}
    whole = [row for row in rows(of("tga-zsr", 0)).values() if len(row) == 17]
    assert len(whole) == 10


def test_averages_over_thirteen_sets_are_those_of_their_cells():
    """FARE's Table 4 agrees to its one digit, but for CLIP clean, whose cells give 72.95 (the sheet, 7.2)."""
    assert off("fare", 0, 0.05) == {("CLIP ViT-L/14", "clean"): 72.95}
    whole = [row for row in rows(of("fare", 0)).values() if len(row) == 15]
    assert len(whole) == 8


@pytest.mark.parametrize(
    ("study", "block", "model", "measure", "cells"),
    [
        ("tga-zsr", 0, "L_CE ViT-B/32 on Tiny-ImageNet", "clean", "44.93"),
        ("fare", 0, "CLIP ViT-L/14", "clean", "72.95"),
    ],
)
def test_an_average_that_is_not_of_its_cells_says_so(study, block, model, measure, cells):
    """The exceptions carry their doubt, and the printed value stays."""
    (number,) = [
        n
        for n in of(study, block)
        if (n.model.name, n.measure) == (model, measure) and n.mean is not None
    ]
    assert any(cells in doubt for doubt in number.doubts)


def test_differences_that_the_sources_state():
    """Gains in words are those of the numbers beside them (facts 6.1, 6.5, successors 3.2)."""
    tecoa = {key: row["mean"] for key, row in rows(of("tecoa", 0)).items()}
    clip, tuned, prompted = (
        {what: tecoa[name, what] for what in ("robust", "clean")}
        for name in ("CLIP ViT-B/32", "TeCoA fine-tuning ViT-B/32", "TeCoA prompting ViT-B/32")
    )
    assert tuned["robust"] - clip["robust"] == pytest.approx(31.61)
    assert tuned["clean"] - clip["clean"] == pytest.approx(-8.59)
    assert prompted["robust"] - clip["robust"] == pytest.approx(25.43)
    assert prompted["clean"] - clip["clean"] == pytest.approx(-11.56)
    (gain,) = of("tecoa", 1)
    assert gain.value == int(tuned["robust"] - clip["robust"])

    ours, theirs = "PMG-AFT ViT-B/32 on Tiny-ImageNet", "TeCoA ViT-B/32 on Tiny-ImageNet"
    for what, claimed in (("robust", 4.99), ("clean", 8.72)):
        absolute = value("pmg-aft", 0, ours, what) - value("pmg-aft", 0, theirs, what)
        assert absolute == pytest.approx(claimed)
        assert value("pmg-aft", 1, ours, what) == claimed
    for what, measured in (("PGD-100", 4.45), ("clean", 0.79)):
        again = value("tga-zsr", 0, ours, what) - value("tga-zsr", 0, theirs, what)
        assert again == pytest.approx(measured)


def test_one_model_in_two_tables_has_the_same_means_but_where_it_is_said():
    """Table 10 and the README give one model of FARE's twice; they differ in one number, 38.2 and 38.8."""
    table10, readme = rows(of("fare", 1)), rows(of("fare", 2))
    both = set(table10) & set(readme)
    assert len(both) == 8
    differing = {key for key in both if table10[key]["mean"] != readme[key]["mean"]}
    assert differing == {("TeCoA-1 ViT-B/32", "1/255")}
    for number in [*of("fare", 1), *of("fare", 2)]:
        if number.mean and (number.model.name, number.measure) in differing:
            other = "38.8" if number.value == 38.2 else "38.2"
            assert any(other in doubt for doubt in number.doubts)


def test_the_papers_own_tables_are_not_invented():
    """Of the paper's own numbers only averages could be read (facts 6.1): not one is of a set."""
    assert {number.image_set for number in published(image_set="mean")} == {None}
    own = list(numbers(load_study("tecoa")))
    assert all(number.mean is not None for number in own)
    assert all(number.mean.sets is None for number in own if number.mean)
    assert all(number.eps == () for number in own)
    assert all(number.doubts for number in own)


def test_every_number_says_where_it_was_read():
    """Study, work, table and place stand with each, and a robust one has an attack or none known."""
    for number in published():
        assert number.read
        assert number.work
        assert number.title
        assert number.metric == "robust" or not (number.eps or number.attack or number.attack_words)
        assert number.unit != "points" or number.against


def test_sets_bear_the_names_of_cards():
    """Sets, those of means and those attacked at their own size: what has no card is one odd set."""
    names = set()
    for number in published():
        sets = number.mean.sets if number.mean and number.mean.sets else ()
        names |= {number.image_set, *sets, *(number.native or ())} - {None}
        names |= {number.model.source} - {None}
    assert names - set(data.card_names()) == {ODD_SET}


def test_native_sets_are_those_of_the_cards():
    """Where CIFAR and STL-10 were attacked at their own size, our cards do so too."""
    for number in published():
        if number.resolution is not None and number.native:
            assert number.resolution == data.load_card(str(number.image_set)).resolution


def test_thirteen_sets_are_the_suite():
    """FARE's mean is over the targets of robustvlm13."""
    means = [number.mean for number in of("fare", 0) if number.mean is not None]
    suite = data.load_suite("robustvlm13")
    assert {mean.sets for mean in means} == {means[0].sets}
    assert sorted(means[0].sets or ()) == sorted(suite.sets)


def test_public_weights_agree_with_the_loaders_table():
    """A name of weights is a row of public.yaml, of the same base, method and eps; or open_clip's own."""
    table = {row.name: row for row in public_weights()}
    seen = set()
    for model in {number.model for number in published()}:
        for name in model.weights:
            if name == model.base:
                continue
            row = table[name]
            seen.add(name)
            assert row.base == model.base
            if row.method in ("TeCoA", "FARE"):
                assert row.method.lower() == model.method
            assert not row.eps or parse_eps(row.eps) == model.eps
    assert "chs20/fare2-clip" in seen


def test_filters():
    """By set, by text in model, base or weights, by method and source; together they narrow."""
    whole = published()
    assert {n.image_set for n in published(image_set="cifar10")} == {"cifar10"}
    fare = published(method="fare")
    assert {n.model.method for n in fare} == {"fare"}
    assert {n.study for n in fare} == {"FARE", "TGA-ZSR"}
    tiny = published(source="tiny_imagenet", method="fare")
    assert {n.study for n in tiny} == {"TGA-ZSR"}
    assert 0 < len(tiny) < len(fare) < len(whole)
    assert published(model="hf-hub:chs20/FARE2-clip") == published(model="fare_eps_2.pt")
    assert all("B/32" in n.model.name for n in published(model="vit-b/32"))


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"image_set": "cifar11"}, "unknown set with published numbers 'cifar11': did you mean"),
        ({"image_set": " "}, "an empty name of a set: write one, or leave it out"),
        ({"model": "gpt"}, "unknown model with published numbers 'gpt'"),
        ({"method": "teco"}, "did you mean 'tecoa'"),
        ({"source": "imagenett"}, "did you mean 'imagenet'"),
    ],
)
def test_a_name_that_nothing_bears_is_a_mistake(given, says):
    """One line, with the nearest names."""
    with pytest.raises(UserError, match=says):
        published(**given)


def test_text_keeps_the_digits_that_were_printed():
    """46.60 stays 46.60, a difference has its sign, a standard deviation stands behind."""
    texts = {number.text for number in published()}
    assert {"46.60", "+31", "-4.2", "44.87 ± 1.93", "73.1"} <= texts


STUDY = """
study: toy
work: a toy
models:
  one: {name: One}
blocks:
  - title: table
    read: here
    digits: 1
    columns: [cifar10, stl10, mean]
    mean: {count: 2, sets: [cifar10, stl10], includes_source: false}
    native: [cifar10]
    texts: paper
    measures:
      clean: {metric: clean, samples: all}
      pgd: {metric: robust, eps: 1/255, attack: pgd-paper}
    rows:
      one: {clean: [90.0, 80.0, 85.0], pgd: [10.0, ~, 5.0]}
    doubtful:
      - says: a typo perhaps
        measures: [pgd]
        columns: [stl10, mean]
"""


def toy() -> dict[str, Any]:
    return copy.deepcopy(yaml.safe_load(STUDY))


def test_a_block_is_taken_apart():
    """One number a cell that has one, each with the block's context, doubts where they are meant."""
    found = list(numbers(parse_study(toy(), "toy")))
    assert [(n.place, n.measure, n.value) for n in found] == [
        ("cifar10", "clean", 90.0),
        ("stl10", "clean", 80.0),
        ("mean of 2 sets", "clean", 85.0),
        ("cifar10", "pgd", 10.0),
        ("mean of 2 sets", "pgd", 5.0),
    ]
    assert [n.resolution for n in found] == ["native", "model", None, "native", None]
    assert [n.doubts for n in found] == [(), (), (), (), ("a typo perhaps",)]
    assert found[3].eps == (1 / 255,)


def put(content: dict[str, Any], path: str, new: Any) -> None:
    *parts, last = path.split("/")
    for part in parts:
        content = content[int(part)] if isinstance(content, list) else content[part]
    content[last] = new


@pytest.mark.parametrize(
    ("path", "new", "says"),
    [
        ("blocks/0/colour", "red", "blocks.0.colour: Extra inputs are not permitted"),
        ("models/one/epsilon", 1, "models.one.epsilon: Extra inputs"),
        ("models/two", {"name": "Two"}, "models and rows differ in two"),
        ("blocks/0/read", None, "blocks.0.read"),
        ("blocks/0/mean", None, "a column 'mean' and the key mean belong together"),
        ("blocks/0/mean/count", 3, "2 sets, but count: 3"),
        ("blocks/0/templates", ["a {}"], "texts or templates, not both"),
        ("blocks/0/texts", "mine", "blocks.0.texts"),
        ("blocks/0/rows/one/clean", [90.0, 80.0], "2 numbers for 3 columns"),
        ("blocks/0/rows/one/clean", [90.0, 180.0, 85.0], "180.0 is no per cent"),
        ("blocks/0/rows/one/apgd", [1.0, 1.0, 1.0], "no measure 'apgd'"),
        ("blocks/0/measures/pgd/eps", "8", "did you mean 8/255"),
        ("blocks/0/measures/pgd/attack_words", "PGD", "attack or attack_words, not both"),
        ("blocks/0/measures/clean/eps", "1/255", "belong to robust, not to clean"),
        ("blocks/0/measures/clean/unit", "points", "points are against something"),
        ("blocks/0/measures/clean/unit", "s", "accuracy is in % or points"),
        ("blocks/0/measures/clean/samples", "most", "samples"),
        ("blocks/0/doubtful", [{"says": "x", "models": ["two"]}], "names 'two', which is not here"),
        ("blocks/0/doubtful", [{"says": "x", "unknown": ["attack"]}], "doubtful.0.unknown"),
    ],
)
def test_the_schema_is_strict(path, new, says):
    """A file that says too much, too little or what cannot be is refused, with its field."""
    content = toy()
    put(content, path, new)
    with pytest.raises(UserError) as refused:
        parse_study(content, "toy")
    assert says in str(refused.value)
    assert str(refused.value).startswith("published/toy.yaml: ")


def test_the_files_are_packaged_and_read():
    """The paper's own numbers come first, single claims last."""
    names = study_names()
    assert (names[0], names[-1]) == ("tecoa", "others")
    assert set(names) >= {"fare", "tga-zsr", "pmg-aft", "fap"}
