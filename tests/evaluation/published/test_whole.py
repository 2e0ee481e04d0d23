"""The ledger as a whole: every number that was read is there once, and what follows from two of them fits."""

from __future__ import annotations

from collections import Counter
from importlib import resources
from typing import Any

import pytest
import yaml

from zsrobust.evaluation.published import Number, published
from zsrobust.evaluation.published.ledger import load_study, study_names


def value(study: str, block: int, model: str, measure: str, place: str = "mean") -> float:
    """One number of a study's table, by the ids of its file."""
    table = load_study(study).blocks[block]
    cell = table.rows[model][measure][table.columns.index(place)]
    found = getattr(cell, "value", cell)
    assert found is not None
    return float(found)


def test_every_number_is_there():
    """As many as the tables that were read have."""
    assert Counter(number.study for number in published()) == {
        "TeCoA": 8 + 1,
        # Table 4: CLIP without its cells at 4/255, two models whole, the means of two more; Table 10; README.
        "FARE": (15 + 15 + 1 + 45 + 45 + 6) + 32 + 40 + 4 + 1,
        "TGA-ZSR": 10 * 17 + (2 + 3 + 3 + 2) + 4 + 3,
        "PMG-AFT": 4 + 2,
        "FAP": 4 + 4 + (3 + 4) + 3,
        "others": 4 + 2 + 2 + 2 + 2 + 1,
    }


def test_what_the_authors_recipe_leaves_on_imagenet():
    """FARE's recipe against the authors' file: +15.7 clean and +17.4 at 1/255 (facts 6.3)."""
    for measure, gain in (("clean", 15.7), ("1/255", 17.4)):
        first, second = (value("fare", 1, m, measure, "imagenet") for m in ("authors", "tecoa1"))
        assert second - first == pytest.approx(gain)


def test_faps_averages_without_imagenet():
    """Table 8: 43.57 and 13.75 over the ten sets that are left."""
    for measure, rest in (("clean", 43.57), ("PGD-100", 13.75)):
        whole = 11 * value("fap", 2, "shots16", measure)
        source = value("fap", 2, "shots16", measure, "imagenet")
        assert round((whole - source) / 10, 2) == rest


def test_json_says_everything():
    """Every condition is a key; nothing of the file's inner order is."""
    (first, *_) = published(image_set="cifar10")
    content = first.to_json()
    assert set(content) == {*Number.model_fields, "set"} - {"image_set", "block", "digits"}
    assert content["set"] == "cifar10"


class _OnceOnly(yaml.SafeLoader):
    """Refuses a key that stands twice, where YAML would silently take the last one."""

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        own = [key.value for key, _ in node.value]
        if not getattr(node, "seen", False):
            assert len(own) == len(set(own)), f"twice: {own}"
        node.seen = True  # flattening puts merged keys in front of a mapping's own
        super().flatten_mapping(node)


def once_only(text: str) -> Any:
    return yaml.load(text, _OnceOnly)  # noqa: S506 - a safe loader


@pytest.mark.parametrize("name", study_names())
def test_no_key_stands_twice(name):
    """In the files as they are written."""
    text = (resources.files("zsrobust.evaluation.published") / f"{name}.yaml").read_text("utf-8")
    assert once_only(text)["study"] == load_study(name).study


def test_a_key_that_stands_twice_would_be_found():
    """Beside a merged mapping too."""
    with pytest.raises(AssertionError, match="twice"):
        once_only("{a: 1, a: 2}")
    with pytest.raises(AssertionError, match="twice"):
        once_only("{x: &x {a: 1}, y: {<<: *x, b: 1, b: 2}}")
    assert once_only("{x: &x {a: 1}, y: {<<: *x, a: 2}}")["y"] == {"a": 2}
