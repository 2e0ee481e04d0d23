"""`zsrobust published`: the ledger as tables and as JSON."""

from __future__ import annotations

import json

import pytest

from zsrobust.evaluation.published import published


def test_every_number_is_printed(zs):
    """All studies, with where each was read and what is doubtful."""
    found = zs("published")
    assert (found.code, found.err) == (0, "")
    for number in published():
        assert number.text in found.out
        assert number.read in found.out
        assert f"{number.study}: {number.title}\n" in found.out
        for doubt in number.doubts:
            assert f"{doubt}.\n" in found.out


def test_one_set_and_one_model(zs):
    """A line a model, a column a measure; marks of doubts run from 1."""
    out = zs("published", "--set", "cifar10", "--model", "tecoa2").out
    assert out.count("FARE: ") == 1
    (line,) = [line for line in out.splitlines() if line.strip().startswith("cifar10 ")]
    assert line.split() == ["cifar10", "TeCoA-2", "ViT-L/14", "87.5", "63.7", "[1]", "31.0", "[1]"]
    assert "  [1] 1,000 images carry" in out
    assert "1,000 images a set" in out
    assert "cifar10, cifar100, stl10 at native size" in out


def test_means_alone(zs):
    """--set mean: what each is over is said."""
    out = zs("published", "--set", "mean", "--model", "TeCoAmodel_best").out
    assert "mean of 16 sets" in out
    assert "the source set is one of them" in out
    assert "mean of 13 sets" in out
    assert "the source set is not in it" in out
    assert "imagenet  " not in out


def test_json(zs):
    """The same numbers, null for what is not known."""
    rows = json.loads(zs("published", "--set", "cifar10", "--json").out)
    assert len(rows) == len(published(image_set="cifar10"))
    assert {row["set"] for row in rows} == {"cifar10"}
    first = next(row for row in rows if row["study"] == "TGA-ZSR")
    assert (first["value"], first["samples"], first["resolution"]) == (88.06, None, "model")
    assert first["doubts"]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (("--set", "cifar"), "did you mean 'cifar10'"),
        (("--set", ""), "an empty name of a set"),
        (("--model", "blip"), "unknown model with published numbers 'blip'"),
        (("--model", "tecoa2", "--set", "sun397"), "unknown model with published numbers 'tecoa2'"),
    ],
)
def test_unknown_names(zs, given, said):
    """One line, exit code 2."""
    assert said in zs("published", *given).mistake()
