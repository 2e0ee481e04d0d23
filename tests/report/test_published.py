"""The section of published numbers: there where something fits, silent elsewhere."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from zsrobust import data
from zsrobust.evaluation.table import EvaluationTable
from zsrobust.report import build_report
from zsrobust.report.published import published_lines
from zsrobust.training.recipe import parse_recipe
from zsrobust.training.run import Run

from .conftest import MODELS, row, table

SPEC = "hf-hub:chs20/tecoa2-clip"
ATTACK = "autoattack-fare"


def like_fare(*, samples: int = 1000, sets: tuple[str, ...] = ("cifar10",)) -> EvaluationTable:
    """A table measured as FARE's was; the first model's outcomes under the name of public weights."""
    rows = []
    for name in sets:
        card = data.load_card(name)
        names, templates = card.preset("clip-benchmark")
        drawn = row(MODELS[0], name, samples=samples, eps=2 / 255, classnames=names)
        key = {
            **drawn.key,
            "set": name,
            "split": card.split,
            "duplicates": "keep",
            "preprocess": {
                "size": [224, 224],
                "interpolation": "bicubic",
                "resize_mode": "shortest",
            },
        }
        rows.append(
            replace(
                drawn,
                model=SPEC,
                resolution=card.resolution,
                templates=templates,
                robust={ATTACK: drawn.robust["pgd-20"]},
                plans={ATTACK: {**drawn.plans["pgd-20"], "name": ATTACK}},
                steps={ATTACK: drawn.steps["pgd-20"]},
                key=key,
            )
        )
    request = {"attacks": [ATTACK], "norm": "linf", "eps": [2 / 255], "limit": samples, "seed": 0}
    return EvaluationTable("results", request, rows)


def page(of: EvaluationTable, folder: Path) -> str:
    return build_report(of, folder / "report.html", title="Toy").read_text("utf-8")


def test_a_page_without_such_a_model_has_no_section(tmp_path):
    """As the demo's: nothing of it, not even a link."""
    assert published_lines(table(), dict.fromkeys(MODELS, "M"), []) == []
    assert "ublished number" not in page(table(), tmp_path)


def test_beside_where_all_agrees(tmp_path):
    """The measured number, the published one, and its doubts; clean on 1,000 images is another number."""
    of = like_fare()
    lines = published_lines(of, {SPEC: "TeCoA-2"}, [])
    assert [(line.what, line.value, line.measured is None) for line in lines] == [
        ("clean", "87.5", True),
        (f"{ATTACK}, linf 2/255", "63.7", False),
    ]
    assert lines[1].measured == of.rows[0].accuracy(ATTACK)
    assert lines[0].statement == "not the same: images: 1,000 here, all there"
    text = page(of, tmp_path)
    assert '<a href="#published">' in text
    assert "1 published number of these models and sets" in text
    assert f"{100 * lines[1].measured.value:.1f}" in text
    assert "63.7" in text
    assert "Not the same: images: 1,000 here, all there." in text
    assert "sampling error" in text


def test_other_radii_are_left_out(tmp_path):
    """At 4/255 there is a number as well, but not for this table."""
    lines = published_lines(like_fare(), {SPEC: "TeCoA-2"}, [])
    assert "31.0" not in [line.value for line in lines]


def test_clean_accuracy_is_told_once():
    """A table of two radii has one clean number a set."""
    of = like_fare()
    both = EvaluationTable(of.suite, of.request, [*of.rows, replace(of.rows[0], eps=4 / 255)])
    lines = published_lines(both, {SPEC: "TeCoA-2"}, [])
    assert [line.value for line in lines] == ["87.5", "63.7", "31.0"]


def test_the_union_stands_in_where_it_is_the_nearest():
    """A number appears once, in the column most like it."""
    of = like_fare()
    (only,) = of.rows
    two = replace(only, robust={**only.robust, "pgd-20": [False] * 1000})
    two = replace(two, steps={**only.steps, "pgd-20": [0] * 1000})
    lines = published_lines(EvaluationTable("x", of.request, [two]), {SPEC: "TeCoA-2"}, [])
    assert [line.what for line in lines] == ["clean", f"{ATTACK}, linf 2/255"]


def test_means_stand_beside_means():
    """Over the thirteen sets, and over nothing else."""
    sets = tuple(data.load_suite("robustvlm13").sets)
    of = like_fare(sets=sets)
    found = [
        line
        for line in published_lines(of, {SPEC: "TeCoA-2"}, [])
        if line.place == "mean of 13 sets"
    ]
    assert [(line.value, line.measured is None) for line in found] == [
        ("60.0", True),
        ("43.6", False),
    ]
    assert found[1].measured == of.mean(SPEC, 2 / 255, ATTACK)
    fewer = published_lines(like_fare(sets=sets[:12]), {SPEC: "TeCoA-2"}, [])
    assert not [line for line in fewer if line.place.startswith("mean")]


def test_a_run_by_the_same_recipe_is_told_apart(tmp_path):
    """The weights are not the published ones: no measured number beside, and that is said."""
    recipe = parse_recipe(
        {
            "name": "mine",
            "title": "mine",
            "model": "ViT-L-14-quickgelu:openai",
            "source": {"set": "imagenet"},
            "objective": {"name": "tecoa"},
            "threat": {"eps": "2/255"},
            "adversary": {"steps": 10},
            "optimiser": {"name": "adamw", "lr": 1e-5},
            "epochs": 2,
            "batch": 128,
        }
    )
    run = Run(tmp_path, recipe)
    of = like_fare()
    mine = EvaluationTable(of.suite, of.request, [replace(of.rows[0], model=run.spec)])
    lines = published_lines(mine, {run.spec: "mine"}, [run])
    assert [line.measured for line in lines] == [None, None]
    assert all("trained here, not the published weights" in line.statement for line in lines)
    assert published_lines(mine, {run.spec: "mine"}, []) == []
