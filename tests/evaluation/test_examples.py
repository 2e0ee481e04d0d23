"""Examples: chosen by the rule, attacked as an evaluation does it, and said to be what the models say."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from zsrobust import data
from zsrobust.errors import UserError
from zsrobust.evaluation import evaluate
from zsrobust.evaluation.examples import collect_examples
from zsrobust.models import ZeroShotClassifier, load_clip

ATTACK, EPS = "pgd-5", "4/255"


@pytest.fixture(scope="module")
def specs(tiny_clip_folder: Path, cousin_folder: Path) -> list[str]:
    return [f"local-dir:{tiny_clip_folder}", f"local-dir:{cousin_folder}"]


@pytest.fixture(scope="module")
def found(specs, sorted_set):
    return collect_examples(specs, f"folder:{sorted_set}", ATTACK, EPS, per_set=30, device="cpu")


@pytest.fixture(scope="module")
def table(specs, sorted_set):
    return evaluate(specs, f"folder:{sorted_set}", [ATTACK], EPS, device="cpu")


def test_they_are_the_first_that_the_first_model_gets_right(found, table, specs, sorted_set):
    """In the set's fixed order, mistakes skipped and nothing else."""
    row = table.of(specs[0], 4 / 255)[0]
    opened = data.open_set(f"folder:{sorted_set}")
    assert row.ids == [opened.ids[i] for i in opened.order()]
    right = [i for i, is_right in zip(row.ids, row.clean, strict=True) if is_right]
    assert len(right) < len(row.ids)
    assert [example.id for example in found] == right[:30]
    assert all(example.classes == 5 for example in found)
    names = opened.classnames
    labels = dict(zip(opened.ids, opened.labels, strict=True))
    assert all(example.true_class == names[labels[example.id]] for example in found)


def test_each_model_is_attacked_as_the_evaluation_attacks_it(found, table):
    """The same noise by seed, attack and id: broken at the same query."""
    for example in found:
        for one in example.attacked:
            row = table.of(one.model, 4 / 255)[0]
            at = row.ids.index(example.id)
            assert one.step == row.steps[ATTACK][at]
            assert one.broken == (row.clean[at] and not row.robust[ATTACK][at])
            assert (one.said_clean == example.true_class) == row.clean[at]
    outcomes = [one.broken for example in found for one in example.attacked]
    assert any(outcomes)
    assert not all(outcomes)


def test_the_image_shown_lies_in_the_ball_and_says_what_broken_says(found, specs):
    """The query that broke the model, else the last one: always a changed image inside eps."""
    for example in found:
        (one,) = [one for one in example.attacked if one.model == specs[0]]
        change = np.abs(one.image - example.clean / 255)
        assert change.max() <= 4 / 255 + 1e-6
        assert change.max() > 0
        assert one.image.shape == example.clean.shape == (16, 16, 3)
        assert one.broken == (one.said != example.true_class) == (not one.right)
        assert one.shown == ("breaking query" if one.broken else "last image")


def test_probabilities_are_the_classifiers_own(found, specs, sorted_set):
    """By an independent softmax over all classes."""
    clip = load_clip(specs[1])
    classnames = data.open_set(f"folder:{sorted_set}").classnames
    classifier = ZeroShotClassifier.from_texts(clip, classnames)
    for example in found[:5]:
        (one,) = [one for one in example.attacked if one.model == specs[1]]
        pixels = [example.clean.astype(np.float32) / 255, one.image]
        with torch.no_grad():
            images = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2)
            logits = classifier(images).double().numpy()
        e = np.exp(logits - logits.max(axis=1, keepdims=True))
        p = e / e.sum(axis=1, keepdims=True)
        assert [one.said_clean, one.said] == [classnames[k] for k in p.argmax(axis=1)]
        assert [one.probability_clean, one.probability] == pytest.approx(p.max(axis=1), abs=1e-4)


def test_a_model_that_is_wrong_unattacked_is_not_attacked(found):
    """Its image is the clean one, nothing is broken."""
    wrong = [
        (example, one)
        for example in found
        for one in example.attacked
        if one.said_clean != example.true_class
    ]
    assert wrong
    for example, one in wrong:
        assert (one.broken, one.step, one.shown) == (False, None, "clean image")
        assert (one.right_clean, one.right) == (False, False)
        assert np.allclose(one.image, example.clean / 255, atol=1e-7)
        assert (one.said, one.probability) == (one.said_clean, one.probability_clean)


def test_without_early_exit_the_last_image_is_shown_and_said_to_be(specs, sorted_set):
    """The attack goes on after its first hit, so what it ends with is not what broke the model."""
    given = {"per_set": 30, "device": "cpu"}
    spec = f"folder:{sorted_set}"
    kept = collect_examples(specs[:1], spec, "pgd-5:step=2/255:early_exit=false", EPS, **given)
    broken = [one for example in kept for one in example.attacked if one.broken]
    assert any(one.step < 5 for one in broken)
    assert all(one.shown == "last image" for example in kept for one in example.attacked)
    for example in kept:
        (one,) = example.attacked
        assert one.right == (one.said == example.true_class)
    last = collect_examples(specs[:1], spec, "pgd-5:judge=last", EPS, **given)
    for example in last:
        (one,) = example.attacked
        assert one.shown == "last image"
        assert one.step == (5 if one.broken else None)  # judged alone
        assert one.right != one.broken


def test_a_query_is_counted_within_its_start(specs, sorted_set):
    """With restarts a later start's query 0 is a random start too."""
    attack = "pgd-1:step=0.001:restarts=30"
    found = collect_examples(
        specs[:1], f"folder:{sorted_set}", attack, EPS, per_set=40, device="cpu"
    )
    steps = [one.step for example in found for one in example.attacked if one.broken]
    assert steps
    assert max(steps) <= 1


@pytest.mark.parametrize("duplicates", ["merge", "keep"])
def test_classes_with_one_text_are_scored_as_an_evaluation_does(
    predicted, specs, tmp_path, duplicates
):
    """merge: either twin is right and the true one named. keep: the first twin is said, and right alone."""
    most = max({name for _, name in predicted}, key=[name for _, name in predicted].count)
    other = next(name for _, name in predicted if name != most)
    files = [file for file, name in predicted if name == most][:8]
    for k, chosen in enumerate((files[:1], files[1:], [f for f, n in predicted if n == other][:2])):
        (tmp_path / "twins" / str(k)).mkdir(parents=True)
        for i, file in enumerate(chosen):
            shutil.copy(file, tmp_path / "twins" / str(k) / f"{i}.png")
    name, third = most.replace("_", " "), other.replace("_", " ")
    (tmp_path / "twins" / "classnames.txt").write_text(f"{name}\n{name.upper()}\n{third}\n")
    given = {"per_set": 20, "duplicates": duplicates, "device": "cpu"}
    spec = f"folder:{tmp_path / 'twins'}"
    found = collect_examples(specs[:1], spec, ATTACK, "0", **given)
    table = evaluate(specs[:1], spec, ["clean"], duplicates=duplicates, device="cpu")
    row = table.rows[0]
    assert [example.id for example in found] == [
        i for i, right in zip(row.ids, row.clean, strict=True) if right
    ]
    seconds = [example for example in found if example.true_class == name.upper()]
    assert bool(seconds) == (duplicates == "merge")
    for example in found:
        (one,) = example.attacked
        assert one.right_clean
        assert one.right
        assert one.said_clean == one.said == example.true_class


def test_fewer_are_given_where_fewer_are_right(specs, sorted_set):
    """Within the first so many of the order; and one a set by default."""
    given = {"device": "cpu", "limit": 10}
    few = collect_examples(specs, f"folder:{sorted_set}", ATTACK, EPS, per_set=50, **given)
    assert 0 < len(few) <= 10
    one = collect_examples(specs, f"folder:{sorted_set}", ATTACK, EPS, **given)
    assert [example.id for example in one] == [few[0].id]


def test_native_resolution_shows_native_pixels(specs, sorted_set):
    """The ball lies where the threat says."""
    (one,) = collect_examples(
        specs[:1], f"folder:{sorted_set}", ATTACK, EPS, resolution="native", device="cpu"
    )
    assert one.clean.shape == one.attacked[0].image.shape == (20, 24, 3)
    assert one.threat.resolution == "native"


def test_mistakes(specs, sorted_set):
    """In words, before anything is attacked."""
    spec = f"folder:{sorted_set}"
    with pytest.raises(UserError, match="per_set must be >= 1"):
        collect_examples(specs, spec, ATTACK, EPS, per_set=0)
    with pytest.raises(UserError, match="no model given"):
        collect_examples([], spec, ATTACK, EPS)
    with pytest.raises(UserError, match="judges no query"):
        collect_examples(specs, spec, "pgd-5:judge=none", EPS)
    with pytest.raises(UserError, match="did you mean 8/255"):
        collect_examples(specs, spec, ATTACK, 8)
    other = load_clip(specs[0])
    other.preprocess = type(other.preprocess)(size=(8, 8), mean=(0.5,) * 3, std=(0.5,) * 3)
    with pytest.raises(UserError, match="resize images in different ways"):
        collect_examples([specs[1], other], spec, ATTACK, EPS)
