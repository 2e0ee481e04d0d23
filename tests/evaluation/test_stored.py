"""Tables from cells on disk: the same numbers as the evaluation's own, and nothing left out in silence."""

from __future__ import annotations

import importlib
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from zsrobust.attacks.pgd import Pgd
from zsrobust.errors import UserError
from zsrobust.evaluation import evaluate
from zsrobust.evaluation.stored import read_table
from zsrobust.models import load_clip

# The module: its name in the package stands for the function.
measuring = importlib.import_module("zsrobust.evaluation.measure")

ATTACKS = ["pgd-3", "cw-margin-2"]


@pytest.fixture(scope="module")
def specs(tiny_clip_folder: Path, cousin_folder: Path) -> list[str]:
    return [f"local-dir:{tiny_clip_folder}", f"local-dir:{cousin_folder}"]


def measure(specs: list[str], where: Path, out: Path, **settings: Any):
    given = {"attacks": ATTACKS, "eps": ["1/255", "4/255"], "limit": 20, "device": "cpu"}
    return evaluate(specs, f"folder:{where}", **{**given, **settings}, out=out)


@pytest.fixture(scope="module")
def measured(specs, sorted_set, tmp_path_factory):
    """(the folder, the table that the evaluation gave): two models, two attacks, two radii."""
    out = tmp_path_factory.mktemp("measured")
    return out, measure(specs, sorted_set, out)


@pytest.fixture
def cells(measured, tmp_path) -> Path:
    """A copy to work on."""
    return Path(shutil.copytree(measured[0], tmp_path / "results"))


def test_cells_give_the_evaluations_own_numbers(measured, specs):
    """Models by the names they had, in their order; accuracies, means, differences and flags alike."""
    folder, table = measured
    stored = read_table([folder])
    assert stored.notes == []
    assert stored.table.models == specs
    ours, theirs = stored.table.to_json(), table.to_json()
    for key in ("rows", "means", "differences"):
        for a, b in zip(ours[key], theirs[key], strict=True):
            # The order of attacks is not recorded: by name.
            assert _sorted(a) == _sorted(b)
    assert {key: ours["request"][key] for key in ("norm", "eps", "seed", "duplicates")} == {
        key: theirs["request"][key] for key in ("norm", "eps", "seed", "duplicates")
    }
    assert ours["request"]["templates"] == ["a photo of a {}."]


def _sorted(value: Any) -> str:
    flags = sorted((flag["flag"], flag["column"]) for flag in value.get("flags", []))
    return json.dumps({**value, "flags": flags}, sort_keys=True)


def test_rows_carry_what_a_report_says_of_them(measured):
    """Key, settings of the attacks, the query of each break, and the machine without the role."""
    folder, table = measured
    stored = read_table([folder]).table
    for ours, theirs in zip(stored.rows, table.rows, strict=True):
        assert ours.key == theirs.key
        assert ours.plans == theirs.plans
        assert ours.steps == theirs.steps
        assert ours.environments == theirs.environments
        assert {"torch", "device"} <= set(ours.environments[0])
        assert "role" not in ours.environments[0]
        for attack in ATTACKS:
            for right, stayed, step in zip(
                ours.clean, ours.robust[attack], ours.steps[attack], strict=True
            ):
                assert (step is not None) == (right and not stayed)


def test_models_are_chosen_ordered_and_named_by_digits(measured, specs):
    """By spec or by the first digits of the fingerprint."""
    folder, table = measured
    digits = table.of(specs[1], 1 / 255)[0].key["weights"][:10]
    stored = read_table([folder], models=[digits, specs[0]])
    assert stored.table.models == [specs[1], specs[0]]
    assert stored.named == {digits: specs[1], specs[0]: specs[0]}
    assert read_table([folder], models=[specs[1]]).table.models == [specs[1]]
    with pytest.raises(UserError, match="unknown model in these cells 'mini-clip'"):
        read_table([folder], models=["mini-clip"])
    with pytest.raises(UserError, match="are one: name each once"):
        read_table([folder], models=[digits, specs[1]])


def test_cells_that_noted_no_role_are_named_by_their_weights(cells, specs):
    """Older cells: the first digits of the fingerprint."""
    for file in cells.glob("cells/*/environments.jsonl"):
        rows = [json.loads(line) for line in file.read_text().splitlines()]
        file.write_text("".join(json.dumps({**row, "role": None}) + "\n" for row in rows))
        file.write_text(file.read_text().replace(', "role": null', ""))
    stored = read_table([cells]).table
    assert len(stored.models) == 2
    for name in stored.models:
        assert name == f"weights {stored.of(name, 1 / 255)[0].key['weights'][:8]}"
    assert read_table([cells], models=[stored.models[1]]).table.models == [stored.models[1]]


def test_a_radius_is_chosen(measured):
    """And one that is not there is refused with those that are."""
    assert read_table([measured[0]], eps=[4 / 255]).table.radii == [4 / 255]
    with pytest.raises(UserError, match=r"no cell at eps 2/255; there: 1/255, 4/255\."):
        read_table([measured[0]], eps=[2 / 255])


def cut(file: Path, count: int) -> None:
    """Leave the first lines, those of the samples that were known first."""
    lines = (file / "outcomes.jsonl").read_text().splitlines(keepends=True)
    assert len(lines) > count
    (file / "outcomes.jsonl").write_text("".join(lines[:count]))


def unnote(root: Path) -> None:
    """Make cells as they were before starts noted what they asked for."""
    for file in root.glob("cells/*/environments.jsonl"):
        rows = [json.loads(line) for line in file.read_text().splitlines()]
        rows = [{k: v for k, v in row.items() if k != "asked"} for row in rows]
        file.write_text("".join(json.dumps(row) + "\n" for row in rows if row))


def test_a_set_whose_evaluation_was_stopped_is_left_out(cells, specs, measured):
    """What is known first broke first: the eight records that all cells share are no sample of the set."""
    _, table = measured
    whole = table.of(specs[1], 4 / 255)[0]
    file = _cell(cells, "pgd-3", 4 / 255, whole.key["weights"])
    cut(file, 8)
    known = {json.loads(line)["id"] for line in (file / "outcomes.jsonl").open()}
    early = [r for i, r in zip(whole.ids, whole.robust["pgd-3"], strict=True) if i in known]
    assert sum(early) / len(early) < whole.accuracy("pgd-3").value  # what must not be reported
    stored = read_table([cells])
    assert stored.table.radii == [1 / 255]
    assert all(len(row.ids) == 20 for row in stored.table.rows)
    (note,) = stored.notes
    assert note.startswith(
        "pets at eps 4/255 is left out: not every cell (8 to 20 samples) holds all"
    )
    assert "start the evaluation again" in note
    with pytest.raises(UserError, match=r"nothing to report: pets at eps 4/255 is left out"):
        read_table([cells], eps=[4 / 255])


def test_a_stopped_evaluation_is_reported_once_it_has_gone_on(
    specs, sorted_set, tmp_path, monkeypatch
):
    """Stopped in the second model's attack after ten outcomes: nothing; then the evaluation's own numbers."""
    attack, given = measuring.attack_chunks, {"eps": "4/255", "attacks": ["pgd-3"], "slots": 5}

    def stops(*arguments: Any, **options: Any) -> Any:
        for count, outcome in enumerate(attack(*arguments, **options)):
            if count == 10:
                raise KeyboardInterrupt
            yield outcome

    measure(specs[:1], sorted_set, tmp_path, **given)
    with monkeypatch.context() as patch:
        patch.setattr(measuring, "attack_chunks", stops)
        with pytest.raises(KeyboardInterrupt):
            measure(specs, sorted_set, tmp_path, **given)
    with pytest.raises(UserError, match=r"nothing to report: .* \(10 to 20 samples\)"):
        read_table([tmp_path])
    table = measure(specs, sorted_set, tmp_path, **given)
    stored = read_table([tmp_path])
    assert stored.notes == []
    assert [row.robust for row in stored.table.rows] == [row.robust for row in table.rows]


def test_a_smaller_number_that_all_cells_hold_stands_in(specs, sorted_set, tmp_path):
    """The first six, measured before; not the ten that the cells share, nor what else is there."""
    given = {"eps": "4/255", "limit": 6}
    table = measure(specs, sorted_set, tmp_path, **given)
    measure(specs, sorted_set, tmp_path, **{**given, "limit": 20})
    cut(_cell(tmp_path, "pgd-3", 4 / 255, table.rows[1].key["weights"]), 10)
    stored = read_table([tmp_path])
    assert [row.ids for row in stored.table.rows] == [row.ids for row in table.rows]
    assert [row.robust for row in stored.table.rows] == [row.robust for row in table.rows]
    assert [row.clean for row in stored.table.rows] == [row.clean for row in table.rows]
    (note,) = stored.notes
    assert note.startswith("pets at eps 4/255: the first 6 samples, not the 20 asked for")


def test_many_records_are_no_complete_subset(specs, sorted_set, tmp_path):
    """Fifteen of twenty: not the first twelve, though they are fewer; once these are there, they are."""
    measure(specs, sorted_set, tmp_path, eps="4/255")
    whole = read_table([tmp_path]).table.rows[1]
    file = _cell(tmp_path, "pgd-3", 4 / 255, whole.key["weights"])
    missing = {*whole.ids[:3], *whole.ids[18:]}
    lines = (file / "outcomes.jsonl").read_text().splitlines(keepends=True)
    kept = [line for line in lines if json.loads(line)["id"] not in missing]
    (file / "outcomes.jsonl").write_text("".join(kept))
    measure(specs[:1], sorted_set, tmp_path, eps="4/255", limit=12)
    with pytest.raises(UserError, match="nothing to report"):
        read_table([tmp_path])
    table = measure(specs, sorted_set, tmp_path, eps="4/255", limit=12)
    stored = read_table([tmp_path]).table
    assert [row.ids for row in stored.rows] == [row.ids for row in table.rows]
    assert [row.robust for row in stored.rows] == [row.robust for row in table.rows]


def test_cells_without_the_number_asked_for_are_taken_if_they_agree(
    cells, specs, measured, sorted_set
):
    """The same samples everywhere, in the fixed order: said once. A number noted later changes nothing."""
    _, table = measured
    unnote(cells)
    for _ in range(2):
        stored = read_table([cells])
        assert stored.table.to_json()["means"] == read_table([measured[0]]).table.to_json()["means"]
        (note,) = stored.notes
        assert note.startswith(
            "Measured before evaluations noted how many samples they asked for: pets."
        )
        measure(specs, sorted_set, cells, limit=5)
    cut(_cell(cells, "pgd-3", 4 / 255, table.rows[0].key["weights"]), 19)
    stored = read_table([cells], eps=[4 / 255])
    assert all(len(row.ids) == 5 for row in stored.table.rows)


@pytest.mark.parametrize("drop", ["an attack's", "everywhere"])
def test_cells_without_the_number_asked_for_are_left_out_otherwise(cells, specs, measured, drop):
    """A sample that one cell lacks; one lacking in all of them moves those of its class behind it."""
    row = measured[1].of(specs[0], 4 / 255)[0]
    unnote(cells)
    one = [_cell(cells, "pgd-3", 4 / 255, row.key["weights"])]
    for file in one if drop == "an attack's" else cells.glob("cells/*"):
        lines = (file / "outcomes.jsonl").read_text().splitlines(keepends=True)
        kept = [line for line in lines if json.loads(line)["id"] != row.ids[1]]
        (file / "outcomes.jsonl").write_text("".join(kept))
    with pytest.raises(UserError, match="nothing to report: pets at eps 4/255 is left out"):
        read_table([cells], eps=[4 / 255])


def test_a_sample_whose_image_changed_in_between_spoils_the_subset(cells, specs, measured):
    """Same id, other bytes: two models saw two pictures, and dropping one may drop what did not break."""
    file = _cell(cells, "clean", None, measured[1].of(specs[0], 1 / 255)[0].key["weights"])
    lines = (file / "outcomes.jsonl").read_text().splitlines(keepends=True)
    changed = {**json.loads(lines[0]), "image": "0" * 16}
    (file / "outcomes.jsonl").write_text("".join([json.dumps(changed) + "\n", *lines[1:]]))
    with pytest.raises(UserError, match=r"nothing to report: .* 1/255 .* 4/255 is left out"):
        read_table([cells])


def _cell(root: Path, attack: str, eps: float | None, weights: str) -> Path:
    for file in root.glob("cells/*/cell.json"):
        content = json.loads(file.read_text())
        threat = content["threat"]
        found = (content["attack"]["name"], threat and threat["eps"], content["weights"])
        if found == (attack, eps, weights):
            return file.parent
    raise AssertionError("no such cell")


def test_an_attack_that_one_model_lacks_is_left_out(specs, sorted_set, tmp_path):
    """Both are then compared under the attack they share."""
    measure(specs[:1], sorted_set, tmp_path, eps="1/255", limit=5)
    measure(specs[1:], sorted_set, tmp_path, eps="1/255", limit=5, attacks=["pgd-3"])
    stored = read_table([tmp_path])
    assert stored.table.columns == ["clean", "pgd-3", "robust"]
    assert stored.notes == [
        "cw-margin-2 at eps 1/255 is left out: not all models were measured under it."
    ]


def test_a_set_that_one_model_lacks_is_left_out(specs, sorted_set, other_set_folder, tmp_path):
    """An evaluation on its way: what is there for all is reported."""
    given = {"attacks": ["pgd-2"], "eps": "1/255", "limit": 5, "out": tmp_path, "device": "cpu"}
    both = [f"folder:{sorted_set}", f"folder:{other_set_folder}"]
    evaluate(specs[:1], both, **given)
    evaluate(specs[1:], both[:1], **given)
    stored = read_table([tmp_path])
    assert {row.image_set for row in stored.table.rows} == {"pets"}
    assert stored.notes == [f"other-set at eps 1/255 is left out: not measured yet for {specs[1]}."]


def test_a_model_measured_at_another_eps_only(specs, sorted_set, tmp_path):
    """Each eps has its own models, a missing base is said, and the JSON holds no difference to it."""
    measure(specs[:1], sorted_set, tmp_path, eps="1/255", limit=5)
    measure(specs[1:], sorted_set, tmp_path, eps="2/255", limit=5)
    stored = read_table([tmp_path], models=specs)
    out = stored.table.to_json()
    assert [(mean["model"], mean["eps"]) for mean in out["means"]] == [
        (specs[0], 1 / 255),
        (specs[1], 2 / 255),
    ]
    assert out["differences"] == []
    assert stored.notes == [
        f"{specs[0]} was not measured at eps 2/255: there is no difference to it."
    ]


def test_clean_cells_alone_give_a_clean_table(specs, sorted_set, tmp_path):
    """No eps, no attack."""
    measure(specs[:1], sorted_set, tmp_path, attacks=["clean"], limit=5)
    stored = read_table([tmp_path]).table
    assert stored.radii == [None]
    assert stored.columns == ["clean"]


def test_what_was_measured_as_source_enters_no_mean(cells):
    """Given by name; an unknown name is refused."""
    stored = read_table([cells], sources=["pets"]).table
    assert all(row.is_source for row in stored.rows)
    assert stored.to_json()["means"] == []
    with pytest.raises(UserError, match="unknown set in these cells 'cats'"):
        read_table([cells], sources=["cats"])


def test_a_noted_source_enters_no_mean(cells):
    """What the evaluation knew of the set is kept with the cells."""
    for file in cells.glob("cells/*/environments.jsonl"):
        file.write_text(file.read_text().replace('"source": false', '"source": true'))
    assert all(row.is_source for row in read_table([cells]).table.rows)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"templates": ["a {}."]},
            r"pets was measured with templates .* and .*: a report is of one",
        ),
        ({"resolution": "native"}, "pets was measured with resolution"),
        ({"duplicates": "keep"}, "pets was measured with duplicates"),
        ({"precision": "bf16"}, "pets was measured with precision"),
        ({"norm": "l2", "eps": 0.5}, "hold linf and l2, two threats: choose one with norm"),
        ({"seed": 1}, "pets was measured with seed 0 and 1: a report is of one"),
    ],
)
def test_two_ways_to_measure_are_not_put_in_one_table(cells, specs, sorted_set, settings, message):
    """Numbers of two questions (traps 3): refused, with what differs."""
    measure(specs[:1], sorted_set, cells, **{"limit": 3, "eps": "1/255", **settings})
    with pytest.raises(UserError, match=message):
        read_table([cells])


def test_two_models_under_two_seeds_are_not_compared(specs, sorted_set, tmp_path):
    """Their differences would hold the noise of two attacks."""
    for spec, seed in zip(specs, (0, 1), strict=True):
        measure([spec], sorted_set, tmp_path, eps="1/255", limit=3, seed=seed)
    with pytest.raises(UserError, match="pets was measured with seed 0 and 1"):
        read_table([tmp_path])


def test_two_models_under_two_versions_of_an_attack_are_not_compared(
    specs, sorted_set, tmp_path, monkeypatch
):
    """One name, two attacks: at each eps on its own."""
    given = {"limit": 3, "attacks": ["pgd-3"]}
    measure(specs, sorted_set, tmp_path, eps="4/255", **given)
    measure(specs[:1], sorted_set, tmp_path, eps="1/255", **given)
    monkeypatch.setattr(Pgd, "version", 2)
    measure(specs[1:], sorted_set, tmp_path, eps="1/255", **given)
    with pytest.raises(
        UserError, match=r"pgd-3 at eps 1/255 was run with version (1 and 2|2 and 1)"
    ):
        read_table([tmp_path])
    assert len(read_table([tmp_path], eps=[4 / 255]).table.rows) == 2


def test_two_image_rules_of_one_model_are_not_put_in_one_table(cells, specs, sorted_set):
    """Equal weights, two ways to see: the later clean cell does not take the place of the other."""
    clip = load_clip(specs[0])
    clip.preprocess = replace(clip.preprocess, mean=(0.4, 0.5, 0.5))
    measure([clip], sorted_set, cells, attacks=["clean"], limit=3)
    with pytest.raises(
        UserError, match=r"pets holds two clean cells of one model, with preprocess: mean "
    ):
        read_table([cells])


def test_an_attack_on_another_image_rule_is_not_put_beside_the_clean_cell(cells, specs, sorted_set):
    """The clean cell is one model's, the attacked one another's."""
    clip = load_clip(specs[0])
    clip.preprocess = replace(clip.preprocess, mean=(0.4, 0.5, 0.5))
    measure([clip], sorted_set, cells, attacks=["pgd-1"], eps="1/255", limit=3)
    for file in cells.glob("cells/*/cell.json"):
        content = json.loads(file.read_text())
        if content["threat"] is None and content["preprocess"]["mean"][0] == 0.4:
            shutil.rmtree(file.parent)
    with pytest.raises(
        UserError, match=r"pets: pgd-1 at eps 1/255 and the clean cell differ in preprocess"
    ):
        read_table([cells])


def test_a_norm_can_be_chosen(cells, specs, sorted_set):
    """Where the cells hold both; another seed of the other norm is no matter."""
    measure(specs[:1], sorted_set, cells, norm="l2", eps=0.5, limit=3, seed=1)
    assert read_table([cells], norm="linf").table.radii == [1 / 255, 4 / 255]
    stored = read_table([cells], norm="l2")
    assert (stored.table.request["norm"], stored.table.radii) == ("l2", [0.5])
    with pytest.raises(UserError, match="unknown norm in these cells 'l1'"):
        read_table([cells], norm="l1")


def test_sets_of_one_name_are_told_apart(specs, tiny_set_folder, tmp_path):
    """Two folders called "val" with other classes stay two sets; other splits of one set too."""
    copy = tmp_path / "again" / "val"
    for i, folder in enumerate(sorted((tiny_set_folder / "val").iterdir())):
        shutil.copytree(folder, copy / f"class {i}")
    given = {"attacks": ["pgd-1"], "eps": "1/255", "limit": 5, "device": "cpu"}
    out = tmp_path / "out"
    evaluate(specs[:1], [f"folder:{tiny_set_folder}/val", f"folder:{copy}"], **given, out=out)
    titles = [row.image_set for row in read_table([out]).table.rows]
    assert len(set(titles)) == 2
    assert all(title.startswith("val#") for title in titles)
    assert any("(class 0, class 1, ...)" in title for title in titles)


def test_two_folders_are_one_result(specs, sorted_set, tmp_path):
    """A cell that stands in both holds the records of both."""
    measure(specs[:1], sorted_set, tmp_path / "a", eps="1/255", limit=4)
    measure(specs[:1], sorted_set, tmp_path / "b", eps="1/255", limit=8)
    measure(specs[1:], sorted_set, tmp_path / "b", eps="1/255", limit=8)
    for order in (["a", "b"], ["b", "a"]):
        stored = read_table([tmp_path / name for name in order])
        assert [len(row.ids) for row in stored.table.rows] == [8, 8]
        assert set(stored.table.models) == set(specs)


def test_what_is_damaged_is_refused(cells, tmp_path):
    """A changed key, text that is no JSON, a folder without cells."""
    file = next(iter(sorted(cells.glob("cells/*/cell.json"))))
    whole = file.read_text()
    file.write_text(whole.replace('"merge"', '"keep"'))
    with pytest.raises(UserError, match="was changed after it was written"):
        read_table([cells])
    file.write_text("{")
    with pytest.raises(UserError, match="is damaged: move the folder away"):
        read_table([cells])
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="holds no cells"):
        read_table([tmp_path / "empty"])


def test_cells_of_another_protocol_are_left_out_and_said(cells, monkeypatch):
    """Their numbers stand for something else."""
    monkeypatch.setattr("zsrobust.evaluation.stored.PROTOCOL", 2)
    with pytest.raises(UserError, match=r"nothing to report: 10 cell\(s\) of another protocol"):
        read_table([cells])
