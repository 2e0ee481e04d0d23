"""Choosing a learning rate: the rule, the extension of the grid, the record."""

from __future__ import annotations

import json

import pytest

from zsrobust.errors import UserError
from zsrobust.training.loop import harden
from zsrobust.training.recipe import parse_recipe
from zsrobust.training.validation import Scores
from zsrobust.workflows import tune as module
from zsrobust.workflows.tune import choose, tune

RECIPE = {
    "name": "test/tune",
    "model": "m",
    "source": {"set": "folder:a"},
    "validation": {"split": "val"},
    "optimiser": {"lr": 1},
}


def scores(right: int, probability: float = 0.5, of: int = 100, shift: int = 0) -> Scores:
    """`right` of `of` samples robust, the first ones or those behind `shift`."""
    robust = [shift <= i < shift + right for i in range(of)]
    return Scores([str(i) for i in range(of)], [True] * of, robust, probability)


def test_a_clear_winner_wins_whatever_its_probabilities():
    """More than two standard errors of the paired difference above the others."""
    rate, reason = choose({1e-5: scores(10, 0.9), 1e-4: scores(40, 0.1), 1e-3: scores(12, 0.9)})
    assert rate == 1e-4
    assert "more than two standard errors" in reason


def test_among_tied_rates_the_probability_of_the_true_class_decides():
    """The best accuracy by a hair loses to a tied rate that is surer of the truth; a clear loser does not."""
    found, reason = choose({1e-5: scores(5, 0.9), 1e-4: scores(31, 0.2), 1e-3: scores(30, 0.3)})
    assert found == 1e-3
    assert "tied" in reason


def test_then_the_smaller_rate():
    """Equal in all."""
    assert choose({1e-3: scores(30), 1e-4: scores(30)})[0] == 1e-4


def test_ties_are_paired():
    """20 right against 30 right: on nested samples (10 against 0) a clear win, on disjoint ones a tie."""
    assert choose({1e-4: scores(30, 0.1), 1e-3: scores(20, 0.9)})[0] == 1e-4
    assert choose({1e-4: scores(30, 0.1), 1e-3: scores(20, 0.9, shift=40)})[0] == 1e-3


@pytest.mark.parametrize(("best", "beyond"), [(3e-5, 9e-6), (1e-4, None), (3e-4, 9e-4)])
def test_a_best_value_at_an_end_extends_the_grid_by_one(monkeypatch, tmp_path, best, beyond):
    """At the grid's own ratio; the record holds grid, scores and reason."""
    asked = []

    def score(recipe, rate, **_):
        asked.append(rate)
        return scores(60 if rate == best else 10)

    monkeypatch.setattr(module, "_score", score)
    monkeypatch.setattr(module, "open_source", lambda _: None)
    monkeypatch.setattr(module, "open_held_out", lambda *_: None)
    choice = tune(parse_recipe(RECIPE), [3e-4, 3e-5, 1e-4], images=50, out=tmp_path)
    expected = [3e-5, 1e-4, 3e-4] + ([beyond] if beyond else [])
    assert asked == pytest.approx(expected)
    assert choice.rate == best
    record = json.loads((tmp_path / "choice.json").read_text())
    assert [row["lr"] for row in record["grid"]] == pytest.approx(sorted(expected))
    assert record["chosen"] == best
    assert record["images"] == 50
    assert record["held_out"]["split"] == "val"


def test_the_grid_is_extended_where_the_best_lies_at_an_end_though_a_tied_rate_is_chosen(
    monkeypatch, tmp_path
):
    """The accuracy still rises there; who is chosen is decided after looking beyond."""
    known = {1e-4: scores(5), 3e-4: scores(28, 0.9), 9e-4: scores(30, 0.5), 2.7e-3: scores(9, 0.9)}
    asked = []

    def score(recipe, rate, **_):
        asked.append(rate)
        return next(s for r, s in known.items() if r == pytest.approx(rate))

    monkeypatch.setattr(module, "_score", score)
    monkeypatch.setattr(module, "open_source", lambda _: None)
    monkeypatch.setattr(module, "open_held_out", lambda *_: None)
    choice = tune(parse_recipe(RECIPE), [1e-4, 3e-4, 9e-4], images=50, out=tmp_path)
    assert asked == pytest.approx([1e-4, 3e-4, 9e-4, 2.7e-3])
    assert choice.rate == 3e-4


def test_a_real_grid_runs_on_held_out_source_images_alone(
    tmp_path, tiny_clip_folder, tiny_set_folder
):
    """End to end on drawn pictures; a second call runs nothing again."""
    recipe = parse_recipe(
        {
            "name": "test/tune",
            "model": f"local-dir:{tiny_clip_folder}",
            "source": {"set": f"folder:{tiny_set_folder}", "split": "train"},
            "validation": {"split": "val", "limit": 20, "attack": "pgd-2"},
            "threat": {"eps": "2/255"},
            "optimiser": {"lr": 1},
        }
    )
    choice = tune(recipe, [1e-4, 1e-3], images=32, out=tmp_path)
    assert choice.rate in choice.scores
    assert len(next(iter(choice.scores.values())).ids) == 20
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("log.jsonl")}
    again = tune(recipe, [1e-4, 1e-3], images=32, out=tmp_path)
    assert again.rate == choice.rate
    assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("log.jsonl")} == before
    asked = recipe.validation.model_copy(update={"limit": 15})
    other = tune(
        recipe.model_copy(update={"validation": asked}), [1e-4, 1e-3], images=32, out=tmp_path
    )
    assert {len(one.ids) for one in other.scores.values()} == {15}  # not the scores kept before
    assert {p: p.stat().st_mtime_ns for p in before} == before
    (tmp_path / "lr-0.001" / "scores.json").write_text("{")
    with pytest.raises(UserError, match=r"scores\.json is damaged: delete it"):
        tune(recipe, [1e-4, 1e-3], images=32, out=tmp_path)


def test_rates_of_adv_are_scored_with_the_head_that_each_trained(
    tmp_path, tiny_clip_folder, tiny_set_folder, monkeypatch
):
    """The record's accuracies are those of each run's stored head, not of the class texts."""
    import torch

    from zsrobust import data
    from zsrobust.models import HeadClassifier, load_clip
    from zsrobust.preprocess import to_unit

    recipe = parse_recipe(
        {
            "name": "test/tune",
            "model": f"local-dir:{tiny_clip_folder}",
            "source": {"set": f"folder:{tiny_set_folder}", "split": "train"},
            "validation": {"split": "val", "limit": 30, "attack": "pgd-2"},
            "objective": {"name": "adv", "head_start": "probe"},
            "threat": {"eps": "2/255"},
            "optimiser": {"lr": 1},
        }
    )
    choice = tune(recipe, [1e-4, 1e-3], images=40, out=tmp_path)
    assert tune(recipe, [1e-4, 1e-3], images=40, out=tmp_path).scores == choice.scores
    record = json.loads((tmp_path / "choice.json").read_text())
    assert record["chosen"] == choice.rate
    images = data.open_set(recipe.source.set, "val")
    batch = next(
        data.batches(images, images.first(30), load_clip(recipe.model).preprocess.geometry(), 30)
    )
    for row in record["grid"]:
        folder = tmp_path / f"lr-{row['lr']:.3g}"
        encoder = load_clip(f"run:{folder}").image_encoder()
        head = HeadClassifier.from_file(encoder, folder / "model" / "head.safetensors")
        with torch.no_grad():
            right = (head(to_unit(batch.images)).argmax(1) == batch.labels).float().mean()
        assert row["scored_by"] == "head"
        assert row["clean"] == pytest.approx(float(right))
        assert row["text_clean"] != row["clean"]
    # The same runs by the texts, as a zero-shot model is used: kept beside.
    monkeypatch.setattr("zsrobust.training.loop._train", lambda *_: pytest.fail("trained again"))
    tune(recipe, [1e-4, 1e-3], images=40, out=tmp_path, by_texts=True)
    texts = json.loads((tmp_path / "choice-texts.json").read_text())
    for row, by_head in zip(texts["grid"], record["grid"], strict=True):
        assert row["scored_by"] == "texts"
        assert row["clean"] == pytest.approx(by_head["text_clean"])
    assert tune(recipe, [1e-4, 1e-3], images=40, out=tmp_path).scores == choice.scores


def test_by_clean_accuracy_the_attack_decides_nothing():
    """Where there is no adversary: accuracy, ties and probabilities are those of clean images."""

    def both(clean: int, robust: int, clean_probability: float) -> Scores:
        names = [str(i) for i in range(100)]
        right = [[i < count for i in range(100)] for count in (clean, robust)]
        return Scores(names, *right, 0.9 - robust / 200, clean_probability=clean_probability)

    clear = {1e-5: both(20, 19, 0.9), 1e-4: both(60, 2, 0.1)}
    assert choose(clear, "clean")[0] == 1e-4
    assert choose(clear)[0] == 1e-5
    tied, reason = choose({1e-5: both(60, 40, 0.5), 1e-4: both(59, 2, 0.6)}, "clean")
    assert tied == 1e-4
    assert "on the clean images" in reason


@pytest.mark.parametrize(
    ("objective", "scored_by", "chosen_by"),
    [
        ({"name": "ce"}, "texts", "clean"),
        ({"name": "coadv", "dictionary": "trained"}, "dictionary", "robust"),
        ({"name": "tecoa-pseudo"}, "pseudo-labels", "robust"),
        ({"name": "fare"}, "texts", "robust"),
    ],
)
def test_rates_are_scored_with_what_each_objective_trains(
    tmp_path, tiny_clip_folder, tiny_set_folder, objective, scored_by, chosen_by
):
    """After the run as at its end: the same row as the run's own validation writes."""
    recipe = parse_recipe(
        {
            "name": "test/tune",
            "model": f"local-dir:{tiny_clip_folder}",
            "source": {"set": f"folder:{tiny_set_folder}", "split": "train"},
            "validation": {"split": "val", "limit": 30, "attack": "pgd-2"},
            "objective": objective,
            "threat": {"eps": "2/255"},
            "optimiser": {"lr": 1e-3},
        }
    )
    choice = tune(recipe, [1e-4, 1e-3], images=40, out=tmp_path / "grid")
    record = json.loads((tmp_path / "grid" / "choice.json").read_text())
    assert record["chosen_by"] == chosen_by
    row = next(row for row in record["grid"] if row["lr"] == 1e-3)
    assert row["scored_by"] == scored_by
    limited = recipe.source.model_copy(update={"limit": 40})
    run = harden(recipe.model_copy(update={"source": limited}), tmp_path / "run")
    (logged,) = run.read_log("validation")
    assert {key: logged[key] for key in row if key != "lr"} == pytest.approx(
        {key: value for key, value in row.items() if key != "lr"}
    )
    assert choice.rate in choice.scores


def test_without_held_out_images_nothing_is_chosen(tmp_path):
    """No validation block, or a grid of one."""
    bare = parse_recipe({k: v for k, v in RECIPE.items() if k != "validation"})
    with pytest.raises(UserError, match="add a validation block"):
        tune(bare, [1e-4, 1e-3], images=None, out=tmp_path)
    with pytest.raises(UserError, match="at least two different rates"):
        tune(parse_recipe(RECIPE), [1e-4], images=None, out=tmp_path)
