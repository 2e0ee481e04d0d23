"""Mistakes: exit code 2 and one line that says what was given, what is allowed, what to do."""

from __future__ import annotations

import re

import pytest

from zsrobust.files import folder_lock

from .conftest import run


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--eps", "8"], r"got '8'; did you mean 8/255\?"),
        (["--eps", "1/255,eight"], "'eight' is not a number"),
        (["--eps", "-1/255"], ">= 0"),
        (["--eps", ""], "no eps given"),
        (["--attacks", "pdg-20"], "unknown attack 'pdg-20': did you mean 'pgd-20'"),
        (["--attacks", "pgd-20:stp=1/255"], "unknown option .*'stp': did you mean 'step'"),
        (["--sets", "mimi"], "unknown image set 'mimi': did you mean 'mini'"),
        (
            ["--sets", "mini/cifar01"],
            "unknown image set 'mini/cifar01': did you mean 'mini/cifar10'",
        ),
        (["--sets", "mini/cifar10"], "is not on this machine .*ZSROBUST_DATA is not set"),
        (["--norm", "linff"], "unknown norm 'linff': did you mean 'linf'"),
        (["--duplicates", "merg"], "unknown duplicates rule 'merg': did you mean 'merge'"),
        (["--resolution", "nativ"], "unknown resolution 'nativ': did you mean 'native'"),
        (["--precision", "fp16"], "unknown precision 'fp16'"),
        (["--device", "gpu"], "device 'gpu' is unknown"),
        (["--limit", "0"], "limit must be >= 1"),
        (["--template", "a photo"], "must hold {} exactly once"),
        (["--with-source"], "name no source set"),
    ],
)
def test_eval(zs, model, pets, options, words):
    """Wrong options of eval."""
    sets = [] if "--sets" in options else ["--sets", pets]
    assert re.search(words, zs("eval", model, *sets, *options).mistake())


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("tiny-clp0", "unknown model 'tiny-clp0': did you mean 'tiny-clip0'"),
        ("ViT-B-23:openai", "unknown architecture 'ViT-B-23': did you mean .*'ViT-B-32'"),
        ("ViT-B-32-quickgelu:opnai", "unknown tag .*'opnai': did you mean 'openai'"),
        ("ViT-B-32:openai", "use ViT-B-32-quickgelu:openai"),
        ("local-dir:/nowhere", "/nowhere is not a folder"),
        ("run:/nowhere", "/nowhere is not a folder"),
    ],
)
def test_models(zs, pets, tiny_clip_folder, monkeypatch, spec, words):
    """Model specs that name nothing, in eval and in convert."""
    monkeypatch.setenv("ZSROBUST_MODELS", str(tiny_clip_folder.parent))
    spec = spec.replace("tiny-clip0", tiny_clip_folder.name)
    assert re.search(words, zs("eval", spec, "--sets", pets).mistake())
    assert re.search(words, zs("convert", spec, "--out", "x").mistake())


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["lr"], "'lr' is no override; write key=value"),
        (["=1"], "is no override"),
        (["optimizer.lr=1e-4"], "unknown key 'optimizer': did you mean 'optimiser'"),
        (["optimiser.lrr=1e-4"], "unknown key 'optimiser.lrr'"),
        (["evaluate.set=mini"], "unknown key 'evaluate.set'"),
        (["epochs=many"], "epochs: .*got 'many'"),
        (["epochs=0"], "epochs: .*greater than or equal to 1.*got 0"),
        (["optimiser.lr=-1"], "optimiser.lr: .*greater than 0"),
        (["objective.name=tecao"], "unknown objective 'tecao': did you mean 'tecoa'"),
        (["adaptation.name=ful"], "unknown adaptation 'ful': did you mean 'full'"),
        (["threat.eps=8"], "did you mean"),
        (["threat.norm=l1"], "threat.norm: .*got 'l1'"),
        (["schedule.kind=cosin"], "schedule.kind: .*cosine"),
        (["select=best"], "select: best needs validation"),
        (["epochs.x=1"], "'epochs' is a value|epochs"),
        (["batch=0", "epochs=0"], "batch: .*; epochs: |epochs: .*; batch: "),
        (["source.set=folder:/nowhere"], "no such folder"),
        (["source.limit=61"], "source.limit is 61, .* holds 60"),
        (["model=local-dir:/nowhere"], "/nowhere is not a folder"),
    ],
)
def test_overrides_of_a_recipe(zs, recipe, overrides, words):
    """Wrong keys, types, values and names: all of them named, with what is allowed."""
    assert re.search(words, zs("harden", recipe, *overrides).mistake())


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("evaluate.attacks=[clean, pdg-20]", "unknown attack 'pdg-20': did you mean 'pgd-20'"),
        ("evaluate.sets=mimi", "unknown image set 'mimi': did you mean 'mini'"),
        ("evaluate.sets=folder:/nowhere", "no such folder"),
        ("evaluate.eps=[8]", "did you mean"),
    ],
)
def test_a_mistake_in_the_evaluation_shows_before_the_hardening(
    zs, recipe, override, words, tmp_path
):
    """Not after hours of training: no run is begun."""
    assert re.search(words, zs("harden", recipe, override).mistake())
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("name: x\n  bad: [", "is not YAML"),
        ("- a\n- b\n", "must be a mapping"),
        ("", "must be a mapping"),
        ("name: x\n", "key 'model' is missing.*key 'source' is missing"),
    ],
)
def test_recipe_files(zs, tmp_path, content, words):
    """Files that are no recipe."""
    (tmp_path / "r.yaml").write_text(content)
    assert re.search(words, zs("harden", "r.yaml").mistake())


def test_recipes_that_are_not_there(zs):
    """A file that does not exist, and a name that nearly does."""
    assert "recipe file nowhere.yaml does not exist" in zs("harden", "nowhere.yaml").mistake()
    line = zs("harden", "mini/tecoa-ft-eps3").mistake()
    assert "unknown recipe 'mini/tecoa-ft-eps3': did you mean 'mini/tecoa-ft-eps" in line
    assert "Or give a .yaml file." in line


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["list", "atacks"], "unknown list 'atacks': did you mean 'attacks'"),
        (["data", "show", "mini/cifar01"], "did you mean 'mini/cifar10'"),
        (["data", "show", "wsd:x"], "unknown kind of image set 'wsd': did you mean 'wds'"),
        (["data", "check", "folder:/nowhere"], "no such folder"),
        (["data", "pack", "PETS", "--out", "x", "--limit", "0"], "limit 0: must be at least 1"),
        (["data", "overlap", "PETS", "mimi"], "did you mean 'mini'"),
        (["convert", "MODEL", "--out", "x", "--form", "visul"], "did you mean 'visual'"),
        (["tune", "RECIPE", "--lr", "small"], "is no list of numbers"),
        (["tune", "RECIPE", "--lr", "1e-4"], "at least two different rates"),
        (["tune", "RECIPE", "--images", "20", "--lr", "1e-4,-1"], "rates > 0"),
    ],
)
def test_other_commands(zs, model, pets, recipe, arguments, words):
    """The same manner everywhere."""
    names = {"PETS": pets, "MODEL": model, "RECIPE": recipe}
    assert re.search(words, zs(*(names.get(a, a) for a in arguments)).mistake())


@pytest.mark.parametrize(
    "arguments", [["evl"], ["eval"], ["eval", "x", "--limit", "many"], ["eval", "x", "--epsilon"]]
)
def test_what_typer_refuses_is_a_mistake_as_well(zs, arguments):
    """Unknown commands, options and types: 2, and how to ask for help."""
    found = zs(*arguments)
    assert found.code == 2
    assert found.out == ""
    assert "--help" in found.err
    assert "Traceback" not in found.err


def test_a_second_process_in_a_folder_is_told_to_wait(zs, model, pets, recipe, tmp_path):
    """Results and runs have one owner at a time: exit code 1, and which folder."""
    with folder_lock(tmp_path / "results"):
        line = zs("eval", model, "--sets", pets, "--attacks", "clean").fault()
    assert "another process is working in results; wait for it" in line
    with folder_lock(tmp_path / "runs" / "two-steps"):
        line = zs("harden", recipe).fault()
    assert "another process is working in runs/two-steps" in line


def test_a_folder_that_cannot_be_written_is_a_machine_fault(zs, model, pets, tmp_path):
    """A file stands where the folder should be: exit code 1, the path and the cause."""
    (tmp_path / "taken").write_text("")
    line = zs("eval", model, "--sets", pets, "--attacks", "clean", "--out", "taken").fault()
    assert "cannot write taken" in line


def test_a_folder_with_something_else_is_no_place_for_a_run(zs, recipe, tmp_path):
    """Nothing of the user's is overwritten."""
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").write_text("words")
    line = zs("harden", recipe, "--out", "thesis").mistake()
    assert "not empty and holds no run" in line
    assert (tmp_path / "thesis" / "chapter.tex").read_text() == "words"


def test_debug_shows_the_traceback(zs, tmp_path):
    """In processes of their own: one line without --debug, the traceback with it."""
    arguments = ["eval", "local-dir:/nowhere", "--eps", "8"]
    line = run(arguments, tmp_path, script=True).mistake()
    assert "did you mean 8/255?" in line
    found = run(["--debug", *arguments], tmp_path)
    assert found.code != 0
    assert found.err.startswith("Traceback (most recent call last)")
    assert "UserError: a linf eps lies in [0, 1]" in found.err
