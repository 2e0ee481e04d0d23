"""`zsrobust eval`: the table and its JSON are one set of numbers."""

from __future__ import annotations

import importlib
import json

import pytest

from zsrobust.cli.output import markdown_table, percent, print_table, signed
from zsrobust.evaluation.statistics import Interval
from zsrobust.evaluation.table import EvaluationTable, Row

from .conftest import run


def interval(row: dict) -> Interval:
    return Interval(**row)


def test_the_table_and_the_json_hold_the_same_numbers(zs, model, pets, tmp_path):
    """Each number of the JSON stands in the table, beside its threat and number of samples."""
    arguments = ["eval", model, "--sets", pets, "--attacks", "pgd-2,cw-margin-2"]
    arguments += ["--eps", "1/255,2/255", "--limit", "25"]
    printed = zs(*arguments)
    assert printed.code == 0
    parsed = zs(*arguments, "--json")
    assert (parsed.code, parsed.err) == (0, "")
    out = json.loads(parsed.out)
    lines = printed.out.splitlines()
    assert [row["eps"] for row in out["rows"]] == [1 / 255, 2 / 255]
    for eps in ("1/255", "2/255"):
        assert any(line.startswith(f"{pets}: linf, eps {eps}; accuracy in %") for line in lines)
    for row in out["rows"]:
        numbers = [percent(interval(number)) for number in row["accuracy"].values()]
        assert any(
            " val " in line and " 25 " in line and all(number in line for number in numbers)
            for line in lines
        )
    for mean in out["means"]:
        numbers = [percent(interval(number)) for number in mean["mean"].values()]
        assert any(
            "mean of 1 set " in line and " 25 " in line and all(n in line for n in numbers)
            for line in lines
        )
    header = next(line.split() for line in lines if line.split()[:1] == ["model"])
    assert header == ["model", "set", "n", "clean", "pgd-2", "cw-margin-2", "robust"]
    assert "clean mistakes count as broken" in printed.out
    assert (tmp_path / "results" / "cells").is_dir()  # the default of --out


def test_options_reach_the_evaluation(zs, model, pets):
    """Each option is stated in the JSON as it was asked for."""
    found = zs(
        *("eval", model, "--sets", pets, "--attacks", "clean,pgd-1", "--eps", "0.5"),
        *("--norm", "l2", "--limit", "7", "--out", "cells-here", "--seed", "3"),
        *("--template", "a {}", "--template", "the {}", "--duplicates", "keep"),
        *("--precision", "bf16", "--resolution", "native", "--slots", "5", "--json"),
    )
    assert found.code == 0, found.err
    out = json.loads(found.out)
    assert out["request"] == {
        "attacks": ["pgd-1"],
        "norm": "l2",
        "eps": [0.5],
        "limit": 7,
        "seed": 3,
        "duplicates": "keep",
        "precision": "bf16",
        "resolution": "native",
        "templates": ["a {}", "the {}"],
    }
    assert out["rows"][0]["resolution"] == "native"


def test_two_models_are_compared_in_pairs(zs, model, strangers, hardened):
    """The second minus the first, said as such."""
    second = f"run:{hardened.run}"
    arguments = ["eval", model, second, "--sets", strangers, "--attacks", "pgd-1", "--limit", "10"]
    printed, parsed = zs(*arguments), json.loads(zs(*arguments, "--json").out)
    (difference,) = parsed["differences"]
    assert (difference["model"], difference["minus"]) == (second, model)
    line = next(line for line in printed.out.splitlines() if " paired " in line)
    assert all(signed(interval(n)) in line for n in difference["mean"].values())


def test_clean_alone_prints_clean_alone(zs, model, pets):
    """No threat, no column of an attack, no sentence on robustness."""
    found = zs("eval", model, "--sets", pets, "--attacks", "clean", "--limit", "5")
    assert "clean only" in found.out
    assert "robust" not in found.out
    assert "eps" not in found.out


def test_records_set_aside_are_said_on_standard_error(zs, model, pets, tmp_path, tiny_set_folder):
    """The result stays parsable."""
    import shutil

    shutil.copytree(tiny_set_folder / "val", tmp_path / "val")
    arguments = ["eval", model, "--sets", "folder:val", "--attacks", "clean", "--json"]
    assert zs(*arguments).err == ""
    first, second = sorted((tmp_path / "val").rglob("*.png"))[:2]
    shutil.copy(second, first)
    found = zs(*arguments)
    assert found.err.startswith("val: 1 record(s) set aside")
    assert json.loads(found.out)["rows"][0]["accuracy"]["clean"]["samples"] == 30


def test_as_a_user_would(model, pets, tmp_path):
    """The console script, in a process of its own and another folder: table on stdout, no bar, no noise."""
    found = run(["eval", model, "--sets", pets, "--limit", "5"], tmp_path, script=True)
    assert (found.code, found.err) == (0, "")
    header = ["model", "set", "n", "clean", "pgd-20", "cw-margin-20", "robust"]
    assert header in [line.split() for line in found.out.splitlines()]
    assert "mean of 1 set " in found.out
    assert len(list((tmp_path / "results" / "cells").iterdir())) == 3


def test_no_number_is_cut_short_by_a_narrow_terminal(capsys, monkeypatch):
    """Eighty columns and six attacks: every interval and every name stands there whole."""
    monkeypatch.setenv("COLUMNS", "80")
    attacks = [f"cw-margin-{n}:restarts=2" for n in (10, 20, 30, 40, 50, 60)]
    table = EvaluationTable("sets", {"norm": "linf", "attacks": attacks})
    models = ["local-dir:/data/[old]/clip:cat:", "run:" + "a-long-name/" * 8]
    for name in models:
        right = [i % 3 == 0 for i in range(40)]
        table.rows.append(
            Row(
                model=name,
                image_set="a/set/with/a/long/name",
                is_source=False,
                eps=1 / 255,
                resolution="native",
                classes=2,
                templates=["a {}"],
                ids=[str(i) for i in range(40)],
                clean=right,
                robust=dict.fromkeys(attacks, right),
            )
        )
    print_table(table)
    out = capsys.readouterr().out
    assert "…" not in out
    assert models[0] in out  # brackets and colons are no markup
    assert "a/set/with/a/long/name @native" in out
    expected = percent(table.rows[0].accuracy("clean"))
    assert out.count(expected) == 2 * 8  # a row of clean, six attacks, robust; for each model
    assert all(attack in out for attack in attacks)


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [(KeyboardInterrupt, 130, "stopped"), (FloatingPointError, 1, "logits")],
)
def test_what_stops_a_measurement_is_one_line(zs, model, pets, monkeypatch, error, code, words):
    """Ctrl-C: 128 + 2 and what to do; logits that are no numbers: the machine's or the model's fault."""
    module = importlib.import_module("zsrobust.evaluation.evaluate")

    def stop(*_: object, **__: object) -> None:
        raise error("the model's logits are not finite")

    monkeypatch.setattr(module, "evaluate", stop)
    found = zs("eval", model, "--sets", pets)
    assert found.code == code
    assert found.out == ""
    assert words in found.err
    assert "Traceback" not in found.err
    assert found.err.strip().count("\n") == 0


def test_a_bug_of_ours_shows_itself(model, pets, monkeypatch):
    """Only what a user or a machine can cause is made a line: the rest keeps its traceback."""
    from zsrobust.cli import main

    module = importlib.import_module("zsrobust.evaluation.evaluate")

    def bug(*_: object, **__: object) -> None:
        raise RuntimeError("ours")

    monkeypatch.setattr(module, "evaluate", bug)
    with pytest.raises(RuntimeError, match="ours"):
        main(["eval", model, "--sets", pets])


def test_markdown_holds_the_numbers_of_the_json(zs, model, strangers, hardened):
    """One table for clean and one for the union; each set, the mean, and the paired differences."""
    arguments = ["eval", model, f"run:{hardened.run}", "--sets", strangers, "--attacks", "pgd-1"]
    arguments += ["--limit", "10"]
    printed, parsed = zs(*arguments, "--markdown").out, json.loads(zs(*arguments, "--json").out)
    tables = printed.split("\n\n**robust")
    assert len(tables) == 2
    (difference,) = parsed["differences"]
    for text, column in zip(tables, ("clean", "robust"), strict=True):
        rows = [line for line in text.splitlines() if line.startswith("| ")]
        assert len(rows) == 3  # head, the set, the mean
        for mean in parsed["means"]:
            assert percent(interval(mean["mean"][column])) in rows[2]
        assert signed(interval(difference["mean"][column])) in rows[2]
        for row in parsed["rows"]:
            assert percent(interval(row["accuracy"][column])) in rows[1]


@pytest.mark.parametrize("count", [3, 5])
def test_every_two_means_are_compared_while_the_models_are_few(capsys, count):
    """Of three models the second minus the third stands in both tables; of five none of the six pairs."""
    right = [[i % k == 0 for i in range(60)] for k in (1, 2, 3, 4, 5)]
    table = EvaluationTable("sets", {"norm": "linf", "attacks": ["pgd-20"]})
    for name, outcomes in list(zip("abcde", right, strict=True))[:count]:
        table.rows.append(
            Row(
                model=name,
                image_set="x",
                is_source=False,
                eps=1 / 255,
                resolution="model",
                classes=2,
                templates=["a {}"],
                ids=[str(i) for i in range(60)],
                clean=outcomes,
                robust={"pgd-20": [r and i % 7 > 0 for i, r in enumerate(outcomes)]},
            )
        )
    print_table(table)
    printed, marked = capsys.readouterr().out, markdown_table(table)
    lines = [line for line in printed.splitlines() if " b minus c " in line]
    rows = [line.split("|") for line in marked.splitlines() if line.startswith("| b minus c,")]
    if count == 5:
        assert (lines, rows) == ([], [])
        return
    differences = {c: table.difference("c", "b", 1 / 255, c) for c in ("clean", "robust")}
    (line,) = lines
    assert all(signed(d) in line for d in differences.values())
    assert differences["clean"].value == pytest.approx(1 / 2 - 1 / 3)
    heads = [line.split("|") for line in marked.splitlines() if line.startswith("| set |")]
    for head, row, d in zip(heads, rows, differences.values(), strict=True):
        assert len(row) == len(head)
        at = [cell.strip() for cell in row].index(signed(d))
        assert head[at].strip() == "difference, paired"
        assert head[at - 1].strip() == "c"
        assert row[2].strip() == "60"


def test_flags_stand_beside_the_numbers_with_a_footnote(zs, model, pets):
    """A weak attack on few samples of a model that learnt nothing: marks, footnotes, and the rest in the JSON."""
    arguments = ["eval", model, "--sets", pets, "--attacks", "pgd-2", "--limit", "25"]
    printed = zs(*arguments).out
    assert any(" val [1] [2] [3] " in line for line in printed.splitlines())
    notes = [line for line in printed.splitlines() if line.startswith("[")]
    expected = ["[1] few-samples", "[2] chance-level", "[3] weak-attack"]
    assert [note.split(":")[0] for note in notes] == expected
    assert all(note.endswith("see docs/trust.md.") for note in notes)
    marked = zs(*arguments, "--markdown").out
    assert marked.rstrip().endswith(notes[-1])
    assert "] [1] [2] [3] |" in marked  # robust: an interval, and all flags
    (row,) = json.loads(zs(*arguments, "--json").out)["rows"]
    assert {(flag["flag"], flag["column"]) for flag in row["flags"]} == {
        ("few-samples", "clean"),
        ("few-samples", "pgd-2"),
        ("chance-level", "clean"),
        ("chance-level", "robust"),
        ("weak-attack", "robust"),
    }
