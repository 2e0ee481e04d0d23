"""`zsrobust report`: from cells to a page, as a user meets it."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def results(model, strangers, hardened, tmp_path_factory):
    """Cells of a tiny CLIP and of its hardened self; to be read only."""
    from zsrobust.evaluation.evaluate import evaluate

    out = tmp_path_factory.mktemp("results")
    given = (
        [model, f"run:{hardened.run}"],
        strangers,
        ["pgd-2", "cw-margin-2"],
        ["1/255", "2/255"],
    )
    return out, evaluate(*given, limit=20, out=out, device="cpu")


@pytest.fixture
def cells(results, tmp_path) -> Path:
    return Path(shutil.copytree(results[0], tmp_path / "results"))


def test_a_page_is_written_beside_the_cells(zs, cells, results):
    """Headlines on standard output, the file's name on standard error."""
    found = zs("report", "results")
    assert found.code == 0, found.err
    assert found.err.splitlines()[-1] == "report: results/report.html"
    lines = found.out.splitlines()
    assert len(lines) == 2
    base, hard = results[1].models
    for line, eps in zip(lines, (1 / 255, 2 / 255), strict=True):
        first, second = (100 * results[1].mean(m, eps, "robust").value for m in (base, hard))
        threat = f"linf, eps {round(eps * 255)}/255: "
        assert line.startswith(threat)
        assert f": {first:.1f}% → {second:.1f}% of the images stay right under attack" in line
    text = (cells / "report.html").read_text("utf-8")
    assert "Zero-shot robustness" in text
    # The run that a cell names is found by itself, and its recipe shown.
    assert "name: two-steps" in text
    assert "weak-attack" in text


def test_the_json_is_the_tables(zs, cells, results):
    """Every number of the evaluation, from the cells alone."""
    found = zs("report", "results", "--out", "page.html", "--json")
    assert (found.code, found.err) == (0, "")
    out = json.loads(found.out)
    assert out["report"] == "page.html"
    assert Path("page.html").is_file()
    assert out["notes"] == []
    ours, theirs = out["table"], results[1].to_json()
    for key in ("means", "differences"):
        assert [_sorted(one) for one in ours[key]] == [_sorted(one) for one in theirs[key]]
    assert [s["threat"] for s in out["summary"]] == ["linf, eps 1/255", "linf, eps 2/255"]


def _sorted(value: dict) -> str:
    return json.dumps(value, sort_keys=True)


def test_models_are_chosen_and_named(zs, cells, results):
    """SPEC=NAME, in the order given; the command in the page writes the same page again."""
    base, hard = results[1].models
    options = ["--model", f"{hard}=Hard", "--model", f"{base}=Soft", "--eps", "2/255"]
    found = zs("report", "results", *options, "--title", "Soft & hard", "--source", "other-set")
    assert found.code == 0, found.err
    assert found.out == ""  # a source alone has no mean to put in a headline
    found = zs("report", "results", *options, "--title", "Soft & hard")
    assert found.out.startswith("linf, eps 2/255: Soft: ")
    page = (cells / "report.html").read_text("utf-8")
    assert "<h1>Soft &amp; hard</h1>" in page
    command = re.search(r"<pre>(zsrobust report .*?)\n", page)
    assert command
    import html

    words = shlex.split(html.unescape(command[1]))
    assert words[0] == "zsrobust"
    assert zs(*words[1:]).code == 0
    assert (cells / "report.html").read_text("utf-8") == page


def test_a_run_can_be_given_by_its_folder(zs, cells, hardened, results):
    """Its recipe is shown; alone it holds no cells."""
    shutil.copytree(hardened.run, "my-run")
    found = zs("report", "results", "my-run")
    assert found.code == 0, found.err
    assert found.err == "report: results/report.html\n"
    text = (cells / "report.html").read_text("utf-8")
    assert "written to my-run" in text
    assert text.count("name: two-steps") == 1  # it and the run that the cells name are one
    assert "runs alone hold no cells" in zs("report", "my-run").mistake()
    Path("my-run/recipe.json").write_text("{}")
    assert (
        "is damaged or was written by another version"
        in zs("report", "results", "my-run").mistake()
    )


@pytest.mark.parametrize("noted", [True, False], ids=["noted", "from before the note"])
def test_a_run_that_did_not_make_the_model_is_not_shown(zs, cells, hardened, results, noted):
    """Trained anew in its folder since, or never measured: its recipe would explain other numbers."""
    from safetensors.torch import load_file, save_file

    base, hard = results[1].models
    run = Path(shutil.copytree(hardened.run, "my-run"))
    adaptation = run / "model" / "adaptation.json"
    record = json.loads(adaptation.read_text())
    assert record["fingerprint"] == results[1].of(hard, 1 / 255)[0].key["weights"]
    if not noted:
        del record["fingerprint"]
        adaptation.write_text(json.dumps(record))
        # As a run from before the note is: still found to be the model that was measured.
        found = zs("report", "results", "my-run")
        assert "is not shown" not in found.err
        assert "written to my-run" in (cells / "report.html").read_text("utf-8")
        weights = load_file(run / "model" / "open_clip_model.safetensors")
        save_file({n: t + 1 for n, t in weights.items()}, run / "model/open_clip_model.safetensors")
    else:
        adaptation.write_text(json.dumps({**record, "fingerprint": "0" * 64}))
    note = "The recipe of run my-run is not shown: its model is none of those measured."
    found = zs("report", "results", "my-run", "--model", base)
    assert note in found.err.splitlines()
    text = (cells / "report.html").read_text("utf-8")
    assert note in text
    assert "name: two-steps" not in text
    shutil.rmtree(run / "model")
    found = zs("report", "results", "my-run", "--json")
    (note,) = json.loads(found.out)["notes"]
    assert note.startswith("The recipe of run my-run is not shown: its model cannot be read")


def test_what_is_left_out_is_said(zs, cells, results):
    """On standard error and in the page."""
    digits = results[1].rows[0].key["weights"]
    for file in cells.glob("cells/*/cell.json"):
        content = json.loads(file.read_text())
        if content["weights"] == digits and content["attack"]["name"] == "pgd-2":
            shutil.rmtree(file.parent)
    found = zs("report", "results", "--eps", "1/255")
    note = "pgd-2 at eps 1/255 is left out: not all models were measured under it."
    assert note in found.err.splitlines()
    assert note in (cells / "report.html").read_text("utf-8")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nowhere"], "nowhere is no folder"),
        (["."], "holds no cells"),
        (["results", "--model", "mini-clip"], "unknown model in these cells 'mini-clip'"),
        (["results", "--eps", "3/255"], "no cell at eps 3/255; there: 1/255, 2/255."),
        (["results", "--eps", "much"], "eps 'much' is not a number"),
        (["results", "--norm", "l2"], "unknown norm in these cells 'l2'"),
        (["results", "--source", "cats"], "unknown set in these cells 'cats'"),
    ],
)
def test_mistakes_are_one_line(zs, cells, arguments, words):
    """Exit code 2, nothing written."""
    assert words in zs("report", *arguments).mistake()
    assert not (cells / "report.html").exists()


def test_a_file_where_the_page_should_go(zs, cells):
    """A folder of that name."""
    Path("page.html").mkdir()
    line = zs("report", "results", "--out", "page.html").mistake()
    assert "page.html is a folder: name a file, for instance page.html/report.html." in line
