"""Studies: what is run, chosen, measured and drawn; and a killed one that goes on."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

from zsrobust.errors import UserError
from zsrobust.files import read_json_lines
from zsrobust.training import loop
from zsrobust.training.recipe import parse_recipe
from zsrobust.training.validation import Scores
from zsrobust.workflows import study as module
from zsrobust.workflows.study import choose_share, run_study
from zsrobust.workflows.study_plan import in_words, plan_study
from zsrobust.workflows.study_recipe import Choose, load_study, study_names

from ..processes import end, run, start, wait_until
from .conftest import hardenings

Write = Callable[..., Path]

SIZE = [
    {"label": 2, "x": 2, "set": ["source.per_class=2", "epochs=2"]},
    {"label": 4, "x": 4, "set": ["source.per_class=4"]},
]


@pytest.fixture
def write(short_recipe: dict[str, Any], tmp_path: Path, other_set: Path) -> Write:
    """Write a study of the tiny model and its base recipe, beside each other; changes go into the study."""

    def writing(**changes: Any) -> Path:
        study = {
            "name": "toy-size",
            "base": "base.yaml",
            "axes": [{"name": "images", "values": SIZE}],
            "evaluate": {
                "sets": f"folder:{other_set}",
                "attacks": ["clean", "pgd-2"],
                "eps": ["4/255"],
                "limit": 12,
            },
        }
        study |= changes
        (tmp_path / "base.yaml").write_text(yaml.safe_dump(short_recipe))
        (tmp_path / "study.yaml").write_text(yaml.safe_dump(study))
        return tmp_path / "study.yaml"

    return writing


def outcomes(folder: Path) -> dict[str, list[str]]:
    """Return the records of every cell."""
    files = (folder / "results").rglob("outcomes.jsonl")
    return {file.parent.name: file.read_text().splitlines() for file in files}


def test_runs_measures_and_draws(write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Every file is there with content, and a second start trains and measures nothing."""
    trained = hardenings(monkeypatch)
    study, combinations = load_study(str(write()))
    out = tmp_path / "out"
    outcome = run_study(study, combinations, out)
    assert trained == ["2", "4"]
    rows = [(place.labels, place.hardened) for place in outcome.places]
    assert rows == [({}, False), ({"images": "2"}, True), ({"images": "4"}, True)]
    assert {place.sets for place in outcome.places} == {1}
    table = {row["model"]: row for row in outcome.json["table"]["means"]}
    for place in outcome.places:
        assert place.robust.value == table[place.model]["mean"]["robust"]["value"]
        assert place.robust.value <= place.clean.value
    record = json.loads((out / "study.json").read_text())
    assert record == outcome.json
    assert record["measured_on"] == "targets"
    assert record["runs"]["4"]["recipe"]["source"]["per_class"] == 4
    with Image.open(out / "figure.png") as picture:
        assert len(picture.convert("RGB").getcolors(2**20) or []) > 20
        assert min(picture.size) > 300
    svg = (out / "figure.svg").read_text()
    assert "right under attack" in svg
    assert "before: local-dir:" in svg
    assert (out / "table.md").read_text().count("\n| ") == 4
    before, cells = svg, outcomes(out)
    run_study(study, combinations, out)
    assert trained == ["2", "4"]
    assert outcomes(out) == cells
    assert (out / "figure.svg").read_text() == before


def test_two_axes_and_several_radii_make_lines_and_panels(write: Write, tmp_path: Path):
    """A product of hardenings; two places that train the same weights share one; each eps has its row."""
    axes = [
        {"name": "images", "values": SIZE},
        {
            "name": "seed",
            "values": [{"label": "a", "set": ["seed=0"]}, {"label": "b", "set": ["seed=0"]}],
        },
    ]
    file = write(axes=axes, figure={"x": "images", "series": "eps tested"})
    study, combinations = load_study(str(file), ["evaluate.eps=[2/255, 4/255]"])
    assert [one.folder for one in combinations] == ["2--a", "2--a", "4--a", "4--a"]
    outcome = run_study(study, combinations, tmp_path / "out")
    assert len(outcome.places) == 2 * (1 + 4)
    by = {(*p.labels.values(),): p for p in outcome.places}
    assert by["2", "a", "4/255"].model == by["2", "b", "4/255"].model
    assert by["2", "a", "4/255"].robust.value <= by["2", "a", "2/255"].robust.value
    svg = (tmp_path / "out" / "figure.svg").read_text()
    for text in ("seed a", "seed b", "eps tested 2/255", "eps tested 4/255"):
        assert text in svg


def test_interpolation_is_chosen_before_targets_are_opened(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Its ends are the two models; the chosen point stands in figure, table and choices.json."""
    file = write(axes=[{"name": "share", "mix": [0, 0.5, 1]}])
    study, combinations = load_study(str(file))
    out = tmp_path / "out"
    measured = module._measure
    seen: list[dict[str, Any]] = []

    def looking(*arguments: Any) -> Any:
        assert not (out / "results").exists()
        seen.append(json.loads((out / "choices.json").read_text()))
        return measured(*arguments)

    monkeypatch.setattr(module, "_measure", looking)
    outcome = run_study(study, combinations, out)
    share = seen[0]["runs"]["base"]["at"]
    assert [row["at"] for row in seen[0]["runs"]["base"]["held_out"]] == [0, 0.5, 1]
    assert [p.labels["share"] for p in outcome.places if p.chosen] == [f"{share:g}"]
    assert "chosen on held-out source images" in (out / "figure.svg").read_text()
    assert (out / "table.md").read_text().count("(chosen)") == 1
    # Three models at one eps: no cell of an end beside those of its model.
    assert len(outcomes(out)) == 3 * 2
    validated: list[Any] = []
    monkeypatch.setattr(module, "_measure", measured)
    monkeypatch.setattr(module, "validate", lambda *a: validated.append(a))
    run_study(study, combinations, out)
    assert validated == []
    # Another rule would be one that was set with the targets known.
    other = study.model_copy(update={"choose": Choose(clean_loss=0.5)})
    words = r"choose\.by robust, clean_loss 0\.05, got robust, 0\.5: .*--out"
    with pytest.raises(UserError, match=words):
        run_study(other, combinations, out)
    other = study.model_copy(update={"choose": Choose(by="sum")})
    with pytest.raises(UserError, match=r"clean_loss 0\.05, got sum, 1: .*--out"):
        run_study(other, combinations, out)


def scores(clean: int, robust: int, of: int = 100) -> Scores:
    return Scores(
        [str(i) for i in range(of)],
        [i < clean for i in range(of)],
        [i < robust for i in range(of)],
        0.5,
    )


def test_the_rule_of_choice():
    """Clean accuracy bounds, robust accuracy chooses, and of tied points the nearest to CLIP."""
    curve = {0.0: scores(90, 5), 0.5: scores(87, 40), 0.75: scores(86, 42), 1.0: scores(70, 60)}
    assert choose_share(curve, Choose())[0] == 0.5  # 0.75 is tied with it, 1 costs 20 points
    assert choose_share(curve, Choose(clean_loss=0.5))[0] == 1.0
    assert choose_share(curve, Choose(clean_loss=0.0))[0] == 0.0
    assert "tied" in choose_share(curve, Choose())[1]


def test_the_largest_sum():
    """Clean and robust accuracy together, whatever is lost of either; of equal sums the nearest to CLIP."""
    curve = {0.0: scores(90, 5), 0.5: scores(80, 40), 0.75: scores(60, 60), 1.0: scores(30, 70)}
    assert choose_share(curve, Choose(by="sum"))[0] == 0.5
    assert choose_share({**curve, 0.75: scores(61, 60)}, Choose(by="sum"))[0] == 0.75


def test_heads_are_measured_on_the_sources_classes(
    write: Write, tmp_path: Path, tiny_set_folder: Path
):
    """By the head that each trained, without the model before; elsewhere it is refused before any training."""
    values = [{"label": "Adv.", "set": ["objective.name=adv", "adaptation.name=full"]}]
    evaluate = {
        "sets": f"folder:{tiny_set_folder}#val",
        "attacks": ["pgd-1"],
        "eps": ["4/255"],
        "limit": 6,
        "head": True,
    }
    file = write(axes=[{"name": "head", "values": values}], evaluate=evaluate)
    study, combinations = load_study(str(file))
    outcome = run_study(study, combinations, tmp_path / "out")
    assert [(p.labels, p.hardened) for p in outcome.places] == [({"head": "Adv."}, True)]
    cell = next((tmp_path / "out" / "results").rglob("cell.json"))
    assert "head" in json.loads(cell.read_text())["texts"]
    other = write(axes=[{"name": "n", "values": SIZE}], evaluate=evaluate)
    with pytest.raises(UserError, match="'tecoa' trains no head"):
        run_study(*load_study(str(other)), tmp_path / "more")
    assert not (tmp_path / "more").exists()


def test_a_killed_study_goes_on(write: Write, tmp_path: Path):
    """Killed in the second hardening, then in the measuring: nothing that was finished is done again."""
    file, out = write(), tmp_path / "out"
    command = ["study", file, "--out", out]
    killed = run(command, tmp_path, kill_at="os.rename checkpoint.pt 6")
    assert killed.code == -9
    first = out / "runs" / "2" / "model" / "open_clip_model.safetensors"
    written = first.stat().st_mtime_ns
    assert not (out / "runs" / "4" / "model").exists()
    assert (out / "runs" / "4" / "checkpoint.pt").is_file()

    process = start(command, tmp_path)
    wait_until(
        lambda: any(outcomes(out).values()) if (out / "results").is_dir() else False, process
    )
    process.kill()
    end(process)
    done = {cell: rows[:-1] for cell, rows in outcomes(out).items()}

    last = run(command, tmp_path)
    assert last.code == 0, last.err
    assert first.stat().st_mtime_ns == written
    for name, steps in (("2", 4), ("4", 3)):
        log = (out / "runs" / name / "log.jsonl").read_text().splitlines()
        rows = [json.loads(line) for line in log]
        assert [r["steps_done"] for r in rows if r["event"] == "step"] == list(range(1, steps + 1))
    for cell, rows in outcomes(out).items():
        ids = [json.loads(row)["id"] for row in rows]
        assert len(ids) == len(set(ids))
        assert rows[: len(done.get(cell, []))] == done.get(cell, [])
    assert (out / "figure.png").stat().st_size > 5000


def test_plan_says_what_is_done_and_writes_nothing(write: Write, tmp_path: Path):
    """By real steps before anything is there, by finished runs' times after; done runs take no time."""
    study, combinations = load_study(str(write()))
    out = tmp_path / "out"
    plan = plan_study(study, combinations, out)
    assert not out.exists()
    assert [(r.folder, r.steps, r.complete) for r in plan.runs] == [
        ("2", 4, False),
        ("4", 3, False),
    ]
    assert {r.timed_by for r in plan.runs} == {"real steps"}
    assert (plan.models, plan.samples) == (3, 12)
    module._harden(combinations[0], out, False, None)
    files = sorted(out.rglob("*"))
    plan = plan_study(study, combinations, out)
    assert sorted(out.rglob("*")) == files
    assert [(r.complete, r.timed_by) for r in plan.runs] == [(True, ""), (False, "finished runs")]
    (row,) = read_json_lines(out / "times.jsonl")
    assert [r.seconds for r in plan.runs] == [0, pytest.approx(3 * row["seconds"] / 4)]
    assert plan.to_json()["runs"][0]["steps_done"] == 4


def test_times_in_words():
    """Seconds, minutes, hours, rounded up where it is short."""
    assert [in_words(s) for s in (0.2, 99, 101, 3600, 9000)] == [
        "1 s",
        "99 s",
        "2 min",
        "60 min",
        "2.5 h",
    ]


MIX = [{"name": "share", "mix": [0, 1]}]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"axis": []}, "unknown key 'axis': did you mean 'axes'"),
        ({"axes": []}, "axes: must not be empty"),
        ({"axes": [{"name": "n", "values": SIZE, "mix": [0, 1]}]}, "either values or mix"),
        ({"axes": [{"name": "n", "values": SIZE[:1]}]}, "one value"),
        ({"axes": MIX, "choose": {"by": "sum", "clean_loss": 0.1}}, "of choose.by robust"),
        ({"figure": {"kind": "points"}}, "one axis of names and one eps"),
        (
            {
                "axes": [
                    {"name": "n", "values": [{"label": "a", "base": "base.yaml"}, {"label": "b"}]},
                    {"name": "m", "values": [{"label": "a", "base": "base.yaml"}, {"label": "b"}]},
                ]
            },
            "give base to the values of one axis",
        ),
        (
            {"axes": MIX, "evaluate": {"sets": "x", "eps": 0.1, "head": True}},
            "mixed model has no head",
        ),
        ({"axes": [{"name": "n", "values": [*SIZE, SIZE[0]]}]}, "'2' twice"),
        ({"axes": [{"name": "n", "mix": [0, 0.5]}]}, "ascend from 0 to 1"),
        ({"axes": [{"name": "n", "mix": [0, 1.5]}]}, "axes.0.mix.1"),
        ({"axes": MIX * 2}, "both axes are called 'share'"),
        ({"axes": MIX, "set": ["validation=null"]}, "give its recipe a validation block"),
        ({"axes": MIX, "figure": {"x": "share"}}, "leave figure.x out"),
        ({"choose": {"clean_loss": 0.1}}, "choose is of a study with a mix axis"),
        ({"figure": {"series": "imagse"}}, "did you mean 'images'?"),
        (
            {
                "axes": [{"name": "n", "values": [{**SIZE[0], "x": 0}, {**SIZE[1], "x": 1}]}],
                "figure": {"scale": "log"},
            },
            "axis 'n' has a place at 0 or below: use linear",
        ),
        ({"set": ["optimiser.rl=1"]}, "(images 2): unknown key 'optimiser.rl'"),
        ({"set": ["source.limit=4"]}, "limit is 4 and per_class 2"),
        ({"base": "tiny/teca-ft"}, "did you mean 'tiny/tecoa-ft'"),
    ],
)
def test_wrong_studies_are_refused_in_one_line(write: Write, changes: dict[str, Any], words: str):
    """The key, what is wrong, what is allowed."""
    with pytest.raises(UserError) as caught:
        load_study(str(write(**changes)))
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_wrong_names_and_folders(write: Write, tmp_path: Path):
    """An unknown study; an override of an unknown key; a folder that holds another study or something else."""
    with pytest.raises(UserError, match="did you mean 'tiny/size'"):
        load_study("tiny/sise")
    with pytest.raises(UserError, match=r"study .*: unknown key 'evaluate.limt'"):
        load_study(str(write()), ["evaluate.limt=3"])
    study, combinations = load_study(str(write()))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("")
    with pytest.raises(UserError, match="holds something else"):
        run_study(study, combinations, tmp_path / "full")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "study.json").write_text('{"study": {"name": "another"}}')
    with pytest.raises(UserError, match="holds study 'another'"):
        run_study(study, combinations, tmp_path / "other")


def test_a_mistake_in_the_sets_shows_before_the_first_hardening(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """No hour of training goes before it."""
    trained = hardenings(monkeypatch)
    study, combinations = load_study(str(write()), ["evaluate.sets=folder:nowhere"])
    with pytest.raises(UserError, match="nowhere"):
        run_study(study, combinations, tmp_path / "out")
    study, combinations = load_study(str(write()), ["recipe.source.per_class=13"])
    with pytest.raises(UserError, match="holds 12 images of class"):
        run_study(study, combinations, tmp_path / "out")
    assert trained == []


def test_images_per_class_are_the_first_of_the_fixed_order(tiny_set_folder: Path):
    """So many of each class, in the set's order, and part of what a run resumes under."""
    content: dict[str, Any] = {
        "name": "toy",
        "model": "m",
        "source": {"set": f"folder:{tiny_set_folder}", "per_class": 3},
        "optimiser": {"lr": 1},
    }
    recipe = parse_recipe(content)
    source = loop.open_source(recipe)
    labels = source.images.labels
    assert labels is not None
    assert sorted(labels[i] for i in source.indices) == [i for i in range(5) for _ in range(3)]
    order = source.images.order()
    for label in range(5):
        of_class = [i for i in order if labels[i] == label]
        assert [i for i in source.indices if labels[i] == label] == of_class[:3]
    assert source.indices == [i for i in order if i in set(source.indices)]
    content["source"]["per_class"] = 4
    assert parse_recipe(content).determining() != recipe.determining()


@pytest.mark.parametrize("name", study_names())
def test_packaged_studies_load(name: str):
    """Every recipe that they make is sound, and measures what it names."""
    study, combinations = load_study(name)
    assert study.name == name
    assert study.title
    assert combinations
