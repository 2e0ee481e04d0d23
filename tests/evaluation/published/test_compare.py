"""A published number stands beside a measured one where every condition agrees, else what differs is said."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from zsrobust import data
from zsrobust.errors import UserError
from zsrobust.evaluation.published import Comparison, Hardening, beside, beside_mean
from zsrobust.evaluation.table import Row

FARE4 = "hf-hub:chs20/fare4-clip"
TECOA2 = "hf-hub:chs20/tecoa2-clip"
CLIP_B32 = "ViT-B-32-quickgelu:openai"
ATTACK = "autoattack-fare"


def row(image_set: str = "cifar10", model: str = TECOA2, **changes: Any) -> Row:
    """A row as FARE's protocol makes it: a thousand images, its attack at 2/255, its texts."""
    card = data.load_card(image_set)
    names, templates = card.preset("clip-benchmark")
    names = names or ["one", "two"]
    samples = changes.pop("samples", 1000)
    own = {
        "model": model,
        "image_set": image_set,
        "is_source": False,
        "eps": 2 / 255,
        "resolution": card.resolution,
        "classes": len(names),
        "templates": templates,
        "ids": [str(i) for i in range(samples)],
        "clean": [True] * samples,
        "robust": {ATTACK: [True] * samples},
        "key": {
            "weights": "0" * 64,
            "preprocess": {
                "size": [224, 224],
                "interpolation": "bicubic",
                "resize_mode": "shortest",
                "resolution": card.resolution,
            },
            "texts": {"classnames": names, "templates": templates},
            "duplicates": "keep",
            "set": image_set,
            "split": card.split,
            "precision": "fp32",
        },
    }
    return Row(**{**own, **changes})


def keyed(found: Row, **changes: Any) -> Row:
    return replace(found, key={**found.key, **changes})


def nearest(found: list[Comparison]) -> Comparison:
    return min(found, key=lambda one: len(one.differs))


def test_all_conditions_agree():
    """TeCoA-2 on CIFAR-10 by FARE's protocol: the published 63.7 stands beside it, with its doubts."""
    one = beside(row(), ATTACK)[0]
    assert one.agrees
    assert one.differs == ()
    assert one.number.value == 63.7
    assert one.statement == "all stated conditions agree"
    assert any("chosen in another way" in remark for remark in one.remarks)
    assert any("3.1 points" in remark for remark in one.remarks)
    # The union of one attack is that attack.
    assert beside(row(), "robust")[0].agrees


def test_clean_asks_for_all_images_and_no_threat():
    """The clean number was made with all images; radius and attack of the row do not matter."""
    whole = row(samples=10_000, eps=4 / 255)
    (one,) = beside(whole, "clean")
    assert (one.agrees, one.number.value) == (True, 87.5)
    (part,) = beside(row(), "clean")
    assert part.differs == ("images: 1,000 here, all there",)


def test_agreement_holds_where_images_are_resized_first():
    """On a set attacked at the model's size the image rule counts; there it agrees too."""
    one = beside(row("dtd"), ATTACK)[0]
    assert (one.agrees, one.number.value) == (True, 27.0)


@pytest.mark.parametrize(
    ("image_set", "changes", "key", "column", "norm", "says"),
    [
        ("cifar10", {"eps": 1 / 255}, {}, ATTACK, "linf", "eps: 1/255 here, 2/255 there"),
        ("cifar10", {}, {}, ATTACK, "l2", "norm: l2 here, linf there"),
        (
            "cifar10",
            {"robust": {"pgd-20": [True] * 1000}},
            {},
            "pgd-20",
            "linf",
            "attack: pgd-20 here, autoattack-fare there",
        ),
        (
            "cifar10",
            {"robust": {ATTACK: [True] * 1000, "pgd-20": [True] * 1000}},
            {},
            "robust",
            "linf",
            "attack: autoattack-fare and pgd-20 (worst case) here, autoattack-fare there",
        ),
        (
            "cifar10",
            {"resolution": "model"},
            {},
            ATTACK,
            "linf",
            "attack resolution: model here, native there",
        ),
        (
            "dtd",
            {"resolution": "native"},
            {},
            ATTACK,
            "linf",
            "attack resolution: native here, model there",
        ),
        (
            "cifar10",
            {"templates": ["This is a photo of a {}"]},
            {},
            ATTACK,
            "linf",
            "templates: 'This is a photo of a {}' here, clip-benchmark there",
        ),
        ("cifar10", {"samples": 500}, {}, ATTACK, "linf", "images: 500 here, 1,000 there"),
        ("cifar10", {}, {"split": "train"}, ATTACK, "linf", "split: train here, test there"),
        ("cifar10", {}, {"precision": "bf16"}, ATTACK, "linf", "precision: bf16 here, fp32 there"),
        (
            "cifar10",
            {},
            {"texts": {"classnames": ["plane"] + ["x"] * 9}},
            ATTACK,
            "linf",
            "class names: others here than those of clip-benchmark",
        ),
    ],
)
def test_each_condition_alone_keeps_them_apart(image_set, changes, key, column, norm, says):
    """One condition changed: exactly that is said, and nothing agrees."""
    found = beside(keyed(row(image_set, **changes), **key), column, norm=norm)
    assert not any(one.agrees for one in found)
    assert nearest(found).differs == (says,)
    assert nearest(found).statement == f"not the same: {says}"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"size": [336, 336]}, "336x336 px, bicubic, shortest here"),
        ({"interpolation": "bilinear"}, "224x224 px, bilinear, shortest here"),
        ({"resize_mode": "squash"}, "224x224 px, bicubic, squash here"),
    ],
)
def test_the_image_rule_keeps_them_apart_where_it_applies(change, says):
    """Size, interpolation and resize rule count at the model's size, not at the set's own."""
    for name, applies in (("dtd", True), ("cifar10", False)):
        whole = row(name)
        other = keyed(whole, preprocess={**whole.key["preprocess"], **change})
        one = nearest(beside(other, ATTACK))
        assert one.agrees is not applies
        if applies:
            assert one.differs == (f"image rule: {says}, 224x224 px, bicubic, shortest there",)


def test_equal_class_texts_merged_are_another_score():
    """Published argmaxes know no groups of equal texts; where a set has them, merging differs."""
    names, _ = data.load_card("imagenet").preset("paper")
    assert names is not None
    assert len(set(names)) < len(names)
    given = row("imagenet")
    merged = keyed(given, duplicates="merge", texts={"classnames": names})
    says = "equal class texts: merged here, each scored for itself there"
    assert says in nearest(beside(merged, ATTACK)).differs
    # No equal texts on CIFAR-10: the rule has nothing to act on.
    assert nearest(beside(keyed(row(), duplicates="merge"), ATTACK)).agrees


def test_what_was_not_read_does_not_agree():
    """TGA-ZSR's class names, image rule, precision and number of images are unknown: none agrees."""
    card = data.load_card("dtd")
    measured = row(
        "dtd",
        CLIP_B32,
        eps=1 / 255,
        templates=["This is a photo of a {}"],
        samples=card.splits[card.split],
        robust={"pgd-paper": [True] * card.splits[card.split]},
    )
    (one,) = [c for c in beside(measured, "pgd-paper") if c.number.study == "TGA-ZSR"][:1]
    assert one.number.value == 2.02
    assert one.differs == (
        "image rule: not known there",
        "class names: not known there",
        "images: 1,880 here, not known there",
        "precision: fp32 here, not known there",
    )


def test_another_model_or_set_has_nothing():
    """Neither the package's own models and sets nor public models on other sets match anything."""
    for model in ("tiny", "mini-clip", "run:runs/tecoa", "local-dir:folder"):
        assert beside(row(model=model), "clean") == []
    own = replace(row(), image_set="demo/shapes")
    assert beside(keyed(own, set="demo/shapes"), "clean") == []
    assert beside(row("food101"), ATTACK) == []


def test_a_set_goes_by_its_own_name_not_by_its_title():
    """In a table of two CIFAR-10s the title tells them apart; the key has the name."""
    assert beside(replace(row(), image_set="cifar10#test"), ATTACK)[0].agrees


@pytest.mark.parametrize(
    ("spec", "known"),
    [
        ("hf-hub:chs20/FARE4-clip", True),
        ("hf-hub:chs20/fare4-clip (0123abcd)", True),
        ("/some/where/fare_eps_4.pt@ViT-L-14-quickgelu:openai", True),
        ("/some/where/fare_eps_4.pt@ViT-L-14-quickgelu:dfn2b", False),
        ("/some/where/other.pt@ViT-L-14-quickgelu:openai", False),
        ("chs20/fare4-clip-of-mine", False),
    ],
)
def test_weights_are_known_by_their_public_name(spec, known):
    """A hub name or a file's name over its base; anything else is another model."""
    found = beside(row(model=spec, samples=10_000), "clean")
    assert bool(found) is known or all(one.number.model.name == "FARE-4 ViT-L/14" for one in found)
    means = beside_mean(thirteen(spec), ATTACK)
    assert bool(means) is known
    if known:
        assert {one.number.model.name for one in means} == {"FARE-4 ViT-L/14"}
        by_file = any("name of their file alone" in remark for remark in means[0].remarks)
        assert by_file is ("@" in spec)


def thirteen(model: str = FARE4, **changes: Any) -> list[Row]:
    return [row(name, model, **changes) for name in data.load_suite("robustvlm13").sets]


def test_a_mean_stands_beside_a_mean_over_exactly_these_sets():
    """All thirteen by FARE's protocol agree; one set less or one more, and nothing is near."""
    one = beside_mean(thirteen(), ATTACK)[0]
    assert one.number.value == 45.9
    assert one.differs == ()
    assert beside_mean(thirteen()[1:], ATTACK) == []
    assert beside_mean([*thirteen(), row("imagenet", FARE4)], ATTACK) == []
    assert beside_mean([], ATTACK) == []


def test_a_means_differences_name_the_sets():
    """What differs on all sets is said once; what differs on some names them."""
    rows = thirteen()
    everywhere = beside_mean([replace(r, eps=1 / 255) for r in rows], ATTACK)
    assert nearest(everywhere).differs == ("eps: 1/255 here, 2/255 there",)
    rows[2] = replace(rows[2], resolution="model")
    (says,) = nearest(beside_mean(rows, ATTACK)).differs
    assert says == "attack resolution: model here, native there (on stl10)"


def test_a_mean_of_several_models_is_a_mistake():
    """Rows of two models have no mean."""
    with pytest.raises(UserError, match="give the rows of one"):
        beside_mean([row(), row("stl10", FARE4)], ATTACK)


def test_a_column_that_is_not_there_is_a_mistake():
    """The message names the columns that are."""
    with pytest.raises(UserError, match="no column 'pgd-5': it has clean, autoattack-fare, robust"):
        beside(row(), "pgd-5")


HARDENING = Hardening(
    base="ViT-L-14-quickgelu:openai",
    method="tecoa",
    adaptation="full",
    source="imagenet",
    eps=2 / 255,
    steps=10,
)


def test_a_run_by_the_same_recipe_is_near_and_never_the_same():
    """Trained again, base, method, source and radius alike: shown, with the weights as what differs."""
    given = row(model="run:runs/mine")
    one = nearest(beside(given, ATTACK, hardening=HARDENING))
    assert one.number.model.name == "TeCoA-2 ViT-L/14"
    assert one.differs == ("model: trained here, not the published weights",)
    assert beside(given, ATTACK) == []


@pytest.mark.parametrize(
    ("change", "more"),
    [
        ({"steps": 2}, "training steps: 2 here, 10 there"),
        ({"part": True}, "source images: a part of the set here"),
        ({"base": CLIP_B32}, None),
        ({"method": "fare"}, None),
        ({"adaptation": "partial"}, None),
        ({"source": "tiny_imagenet"}, None),
        ({"eps": 3 / 255}, None),
        ({"eps": None}, None),
        ({"norm": "l2"}, None),
    ],
)
def test_what_a_run_must_share(change, more):
    """Another base, method, adaptation, source or threat is another model; steps and images are said."""
    found = beside(row(model="run:runs/mine"), ATTACK, hardening=replace(HARDENING, **change))
    named = [one for one in found if one.number.model.name == "TeCoA-2 ViT-L/14"]
    if more is None:
        assert named == []
    else:
        assert nearest(named).differs == ("model: trained here, not the published weights", more)
