"""Mistakes: exit code 2 and one line that says what was given, what is allowed, what to do."""

from __future__ import annotations

import re
import shutil

import pytest

from zsrobust.files import folder_lock

from .conftest import run


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--eps", "8"], r"got '8'; did you mean 8/255\?"),
        (["--eps", "1/255,eight"], "'eight' is not a number; write it .* 8/255"),
        (["--eps", "1/255 2/255"], "'1/255 2/255' is not a number"),
        (["--eps", "8/0"], "'8/0' is not a number; write it .* 8/255"),
        (["--eps", "nan"], "'nan' is not a number"),
        (["--eps", "inf"], "'inf' is not a number"),
        (["--eps", "-1/255"], ">= 0 .*got '-1/255'"),
        (["--eps", "8,16", "--norm", "linf"], r"got '8'; did you mean 8/255\?"),
        (["--eps", "-1", "--norm", "l2"], ">= 0"),
        (["--eps", ""], "no eps given: .*1/255"),
        (["--attacks", ""], "no attacks given: name at least one; clean alone"),
        (["--attacks", "pdg-20"], "unknown attack 'pdg-20': did you mean 'pgd-20'"),
        (["--attacks", "PGD-20"], "unknown attack 'PGD-20': did you mean 'pgd-20'"),
        (["--attacks", "clena"], "unknown attack 'clena': did you mean 'clean'"),
        (["--attacks", "pgd"], "'pgd' needs its number of steps: write pgd-20"),
        (["--attacks", "pgd-0"], "'pgd-0': the number of steps must lie in 1 to 999999"),
        (["--attacks", "pgd-99999999999999999999"], "steps must lie in 1 to 999999"),
        (["--attacks", "pgd-paper-20"], "pgd-paper has its own number of steps; write pgd-paper"),
        (["--attacks", "pgd-20:stp=1/255"], "unknown option .*'stp': did you mean 'step'"),
        (["--attacks", "pgd-20:step=8"], r"step size lies in .*'8'; did you mean 8/255\?"),
        (["--attacks", "pgd-20:step=0"], "a step size must be > 0 .*got '0'"),
        (["--attacks", "pgd-20:step=nan"], "step size 'nan' is not a number"),
        (["--attacks", "pgd-20:step"], "step has no value; write step="),
        (["--attacks", "pgd-20:restarts=0"], "restarts takes a whole number, 1 to 999999, got '0'"),
        (["--attacks", "pgd-20:restarts=two"], "restarts takes a whole number, .*got 'two'"),
        (["--attacks", "pgd-20:eot=0"], "eot takes a whole number, 1 to 999999, got '0'"),
        (["--attacks", "pgd-20:eot=2:eot=3"], "eot is given twice; leave one of them out"),
        (["--attacks", "pgd-20:judge=evry"], "unknown judge .*'evry': did you mean 'every'"),
        (["--attacks", "pgd-20:early_exit=maybe"], "takes true or false, got 'maybe'"),
        (["--attacks", "cw-margin-20:kappa=nan"], "kappa takes a finite number >= 0, got 'nan'"),
        (["--attacks", "pgd-20:kappa=1"], "kappa belongs to cw-margin, cw-l2; leave it out"),
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
        (["--device", "gpu"], "device 'gpu' is unknown: give auto, cpu, cuda"),
        (["--device", "meta"], "device 'meta' computes nothing: give auto"),
        (["--device", "cuda:77"], "no device 'cuda:77' here .*cpu is always there"),
        (["--limit", "0"], "limit must be >= 1, got 0"),
        (["--slots", "0"], "slots must be >= 1, got 0"),
        (["--workers", "-1"], "workers must be >= 0, got -1"),
        (["--template", "a photo"], "'a photo' must hold {} exactly once"),
        (["--template", ""], "'' must hold {} exactly once"),
        (["--with-source"], "name no source set: leave --with-source out"),
        (["--sets", ""], "sets '': empty; give a suite"),
        (["--sets", "foldr:x"], "unknown kind of image set 'foldr': did you mean 'folder'"),
        (["--sets", "folder:"], "nothing after the colon; give a folder"),
        (["--sets", "folder:/nowhere"], "/nowhere: no such folder; give"),
        (["--sets", "wds:/nowhere"], "/nowhere: no such folder; give"),
        (["--sets", "hf-hub:cifar"], "'hf-hub:cifar': not of the form ORG/REPO"),
        (["--sets", "imagnet"], "unknown image set 'imagnet': did you mean 'imagenet'"),
        (["--sets", "cifar10#tset"], "unknown split of cifar10 'tset': did you mean 'test'"),
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
        ("local-dir:/nowhere", "/nowhere is not a folder; local-dir: takes a folder with"),
        ("run:/nowhere", "/nowhere is not a folder; run: takes the folder of a hardening"),
        ("run:", "nothing stands after run: .*run:DIR"),
        ("localdir:/nowhere", "unknown form .*'localdir': did you mean 'local-dir'"),
        ("hf_hub:a/b", "unknown form .*'hf_hub': did you mean 'hf-hub'"),
        ("hf-hub:fare2-clip", "reads hf-hub:ORG/NAME"),
        ("https://example.org/a.pt", "'https' is neither an architecture of open_clip nor a form"),
        ("models/mine", "'models/mine': no file and no folder .* is there; check the path"),
        ("ViT-B-32", "'ViT-B-32' needs a tag: ViT-B-32:TAG"),
        ("vit-b-32:openai", "unknown architecture 'vit-b-32': did you mean 'ViT-B-32'"),
        ("qqqqq", "unknown model 'qqqqq': known by name: .*; other forms: ARCH:TAG"),
        ("none.pt@tiny-clip0", "no file 'none.pt'; FILE@BASE needs a file that exists"),
        ("", "an empty model spec; allowed: ARCH:TAG"),
    ],
)
def test_models(zs, pets, tiny_clip_folder, monkeypatch, spec, words):
    """Model specs that name nothing, in eval and in convert."""
    monkeypatch.setenv("ZSROBUST_MODELS", str(tiny_clip_folder.parent))
    spec = spec.replace("tiny-clip0", tiny_clip_folder.name)
    assert re.search(words, zs("eval", spec, "--sets", pets).mistake())
    assert re.search(words, zs("convert", spec, "--out", "x").mistake())


def test_a_folder_is_told_its_prefix(zs, pets, tiny_clip_folder, tiny_set_folder, tmp_path):
    """A path that is right but for what stands before it."""
    line = zs("eval", tiny_clip_folder, "--sets", pets).mistake()
    assert f"is a folder; write local-dir:{tiny_clip_folder}" in line
    line = zs("eval", f"local-dir:{tiny_clip_folder}", "--sets", tiny_set_folder).mistake()
    assert f"is a folder: write folder:{tiny_set_folder} for pictures" in line
    (tmp_path / "0.tar").write_bytes(b"")
    line = zs("data", "check", tmp_path / "0.tar").mistake()
    assert f"is a file: write wds:{tmp_path}" in line
    assert "is no hardening's" in zs("convert", f"run:{tmp_path}", "--out", "x").mistake()


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["lr"], "'lr' is no override; write key=value"),
        (["=1"], "'=1' is no override"),
        (["optimizer.lr=1e-4"], r"unknown key 'optimizer': did you mean 'optimiser'\?$"),
        (["optimiser.lrr=1e-4"], "unknown key 'optimiser.lrr': did you mean 'lr'"),
        (["evaluate.set=mini"], "unknown key 'evaluate.set': did you mean 'sets'"),
        (["epochs=many"], "epochs: must be a number, got 'many'"),
        (["epochs=true"], "epochs: must be a number, got 'true'"),
        (["batch=1.5"], "batch: must be a whole number, got 1.5"),
        (["epochs="], "epochs: must be a number, got None"),
        (["epochs=0"], "epochs: must be greater than 0, got 0"),
        (["batch=0"], "batch: must be greater than or equal to 1, got 0"),
        (["seed=first"], "seed: must be a whole number, got 'first'"),
        (["optimiser.lr=-1"], "optimiser.lr: must be greater than 0, got -1"),
        (["optimiser.lr=0"], "optimiser.lr: must be greater than 0, got 0"),
        (["optimiser.lr=nan"], "optimiser.lr: must be a finite number, got 'nan'"),
        (["optimiser.lr=.inf"], "optimiser.lr: must be a finite number, got inf"),
        (["optimiser.lr=fast"], "optimiser.lr: must be a number, got 'fast'"),
        (["optimiser.name=adam"], "optimiser.name: 'adam' is unknown, did you mean 'adamw'"),
        (["optimiser.betas=[0.9]"], "optimiser.betas: value number 2 is missing"),
        (["optimiser.betas=[2, 0.9]"], "optimiser.betas.0: must be less than 1, got 2"),
        (["optimiser.lr=1", "optimiser.lr=2"], "optimiser.lr is given twice; leave one"),
        (["optimiser.lr.x=1"], "'lr' is a value, it has no keys under it"),
        (["optimiser.lr={"], "'optimiser.lr={': the value is not YAML"),
        (["objective.name=tecao"], "unknown objective 'tecao': did you mean 'tecoa'"),
        (["objective.temperature=0"], "objective.temperature: must be greater than 0, got 0"),
        (["adaptation.name=ful"], "unknown adaptation 'ful': did you mean 'full'"),
        (["threat.eps=8"], r"threat: .*got 8.0; did you mean 8/255\?$"),
        (["threat.eps=-1"], "threat.eps: .*>= 0 .*got -1"),
        (["threat.eps=nan"], "threat.eps: eps 'nan' is not a number"),
        (["threat.norm=l1"], "threat.norm: 'l1' is unknown, did you mean 'l2'"),
        (["threat.norm=1"], "threat.norm: must be 'linf' or 'l2', got 1"),
        (["threat.resolution=nativ"], "'nativ' is unknown, did you mean 'native'"),
        (["adversary.steps=-1"], "adversary.steps: must be greater than or equal to 0, got -1"),
        (["adversary.step_size=0"], "step_size is 0, so that none of the 2 steps moves: give"),
        (["adversary.step_size=2"], r"adversary.step_size: .*got 2.0; did you mean 2/255\?$"),
        (["adversary.start=unifrom"], "'unifrom' is unknown, did you mean 'uniform'"),
        (["schedule.kind=cosin"], "schedule.kind: 'cosin' is unknown, did you mean 'cosine'"),
        (["schedule.warmup=1.5"], "a number of steps, or a fraction below 1, got 1.5"),
        (["schedule.warmup=soon"], "schedule.warmup: must be a number, got 'soon'"),
        (["schedule.warmup=1000"], "warmup is 1000 steps, the whole run has 2: give fewer"),
        (["precision=fp16"], "precision: 'fp16' is unknown, did you mean"),
        (["workers=many"], "workers: must be a whole number or 'auto', got 'many'"),
        (["devices=1000"], "devices=1000: .* are here; ask for no more"),
        (["device=gpu"], "'gpu': hardening runs on auto, cpu, cuda or cuda:N"),
        (["select=best", "validation.every=end"], "select: best needs validation with every"),
        (["epochs.x=1"], "epochs: must be a number"),
        (["source=pets"], "source: must be a block of keys and values, got 'pets'"),
        (["source.set=folder:/nowhere"], "no such folder; give"),
        (["source.split=tran"], "unknown split of .*'tran': did you mean 'train'"),
        (["source.limit=61"], "source.limit is 61, .* holds 60"),
        (["source.templates=[]"], "source.templates: give at least one template"),
        (["source.templates=[a photo]"], "'a photo' must hold {} exactly once"),
        (["validation.split=vall"], "unknown split of .*'vall': did you mean 'val'"),
        (["validation.attack=pdg-5"], "unknown attack 'pdg-5'"),
        (["validation.limit=0"], "validation.limit: must be greater than or equal to 1, got 0"),
        (["model=local-dir:/nowhere"], "/nowhere is not a folder"),
        (["model=5"], "model: must be a text, got 5"),
        (["name=../elsewhere"], "a name such as .*got '../elsewhere'"),
        (["evaluate.eps=[]"], "evaluate.eps: must not be empty"),
        (["evaluate.attacks=[]"], "evaluate.attacks: must not be empty"),
        (["evaluate.limit=0"], "evaluate.limit: must be greater than or equal to 1, got 0"),
        (
            ["batch=0", "epochs=none", "threat.eps=8", "objective.name=x", "bach=1"],
            "objective.name: unknown objective 'x'.*; threat: .*8/255.*; epochs: .*'none'; "
            "batch: .*got 0; unknown key 'bach': did you mean 'batch'",
        ),
    ],
)
def test_overrides_of_a_recipe(zs, recipe, overrides, words):
    """Wrong keys, types, values and names: all of them named, with what is allowed."""
    assert re.search(words, zs("harden", recipe, *overrides).mistake())


def test_a_mended_command_goes_on_in_the_folder_that_the_wrong_one_began(zs, recipe, tmp_path):
    """A model's name shows to be wrong after the run was begun: it must not be in the way of the right one."""
    assert "/nowhere is not a folder" in zs("harden", recipe, "model=local-dir:/nowhere").mistake()
    assert (tmp_path / "runs" / "two-steps" / "recipe.json").is_file()
    found = zs("harden", recipe, "--no-evaluate")
    assert found.code == 0, found.err
    assert "another recipe" in zs("harden", recipe, "epochs=2").mistake()  # there is a model now


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("evaluate.attacks=[clean, pdg-20]", "unknown attack 'pdg-20': did you mean 'pgd-20'"),
        ("evaluate.sets=mimi", "unknown image set 'mimi': did you mean 'mini'"),
        ("evaluate.sets=folder:/nowhere", "no such folder"),
        ("evaluate.eps=[8]", r"got 8.0; did you mean 8/255\?"),
        ("evaluate.attacks=[pgd-2:judge=none]", "judges no query"),
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
        (b"name: x\n  bad: [", "is not YAML .*: line 2, column 6: mapping values"),
        (b"- a\n- b\n", "holds a list; it must be a mapping"),
        (b"only words", "is no recipe; it must be a mapping"),
        (b"", "is empty; it must be a mapping"),
        (b"\x00\x01", "is not YAML"),
        (b"\xff\xfe\x00", "is not UTF-8 text; give a YAML file"),
        (b"[" * 2000, "is nested too deeply"),
        (b"a: 1\n---\nb: 2\n", "is not YAML .*another document"),
        (
            b"name: x\n",
            "key 'model' is missing; key 'source' is missing; key 'optimiser' is missing",
        ),
        (b"name: x\nmodel: m\nname: y\n", "the key 'name' stands twice, in line 1 and line 3"),
        (b"optimiser:\n  lr: 1\n  lr: 2\n", "the key 'lr' stands twice, in line 2 and line 3"),
        (b"optimiser: {lr: 1, lr: 2}", "the key 'lr' stands twice"),
        (b"1: 2", "a key must be a text"),
        (b"!!python/object/apply:os.mkdir [done]", "the tag !!python/object/apply:os.mkdir"),
        (b"seed: !!python/object/apply:os.mkdir [done]", "line 1, column 7: the tag !!python"),
    ],
)
def test_recipe_files(zs, tmp_path, content, words):
    """Files that are no recipe; nothing that they ask for is done."""
    (tmp_path / "r.yaml").write_bytes(content)
    line = zs("harden", "r.yaml").mistake()
    assert re.search(words, line)
    assert "r.yaml" in line
    assert sorted(p.name for p in tmp_path.iterdir()) == ["r.yaml"]


def test_recipes_that_are_not_there(zs, tmp_path):
    """A file that does not exist, and a name that nearly does."""
    assert "file nowhere.yaml does not exist; check" in zs("harden", "nowhere.yaml").mistake()
    assert "is a folder; give a recipe's name" in zs("harden", tmp_path).mistake()
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
        (["data", "pack", "PETS", "--out", "RECIPE"], "RECIPE is a file; name another folder"),
        (["data", "pack", "PETS", "--out", "PLACE"], "exists and is not empty; choose another"),
        (["data", "pack", "PETS", "--out", "x", "--split", "tset"], "split 'tset' was asked for"),
        (["data", "show", ""], "unknown image set ''"),
        (["data", "overlap", "PETS", "mimi"], "did you mean 'mini'"),
        (["convert", "MODEL", "--out", "x", "--form", "visul"], "did you mean 'visual'"),
        (["convert", "MODEL", "--out", "RECIPE"], "is there already; name another place"),
        (["convert", "MODEL", "--out", "PLACE"], "is there already; name another place"),
        (["convert", "MODEL", "--out", "RECIPE/x"], "RECIPE is a file; name another folder"),
        (["convert", "MODEL", "--out", "PLACE", "--form", "visual"], "is there already"),
        (["harden", "RECIPE", "--out", "RECIPE"], "RECIPE is a file; name another folder"),
        (["harden", "RECIPE", "--out", "RECIPE/x"], "RECIPE is a file; name another folder"),
        (["harden", "RECIPE", "--results", "RECIPE"], "RECIPE is a file; name another folder"),
        (["eval", "MODEL", "--sets", "PETS", "--out", "RECIPE"], "RECIPE is a file; name another"),
        (["tune", "RECIPE", "--lr", "small"], "is no list of numbers"),
        (["tune", "RECIPE", "--lr", "1e-4"], "at least two different rates"),
        (["tune", "RECIPE", "--images", "20", "--lr", "1e-4,-1"], "rates > 0"),
        (["tune", "RECIPE", "--images", "0"], "images must be >= 1, got 0; leave it out"),
        (["tune", "RECIPE", "--lr", "1e-4,inf"], "must be a finite number, got inf"),
    ],
)
def test_other_commands(zs, model, pets, recipe, tmp_path, arguments, words):
    """The same manner everywhere; a path that is a file, or taken, is no fault of the machine."""
    names = {"PETS": pets, "MODEL": model, "RECIPE": str(recipe), "PLACE": str(recipe.parent)}
    filled = [re.sub("^(PETS|MODEL|RECIPE|PLACE)", lambda m: names[m[0]], a) for a in arguments]
    assert re.search(words.replace("RECIPE", str(recipe)), zs(*filled).mistake())
    assert not list(tmp_path.iterdir()) or arguments[0] == "tune"


@pytest.mark.parametrize("before", ["", "local-dir:", "run:"])
def test_a_text_that_is_no_path(zs, pets, before):
    """Too long for a file's name, it is a mistake all the same."""
    line = zs("eval", before + 5000 * "x", "--sets", pets).mistake()
    assert "xxx... is too long for a file; check what was given" in line


def test_class_texts_that_nothing_could_be_mistaken_for(zs, model, tiny_set_folder, tmp_path):
    """One class, or several with one name: the set is named, no attack is run."""
    only = tmp_path / "alone" / "cat"
    shutil.copytree(tiny_set_folder / "val" / "grey_cat", only)
    line = zs("eval", model, "--sets", f"folder:{only.parent}").mistake()
    assert "set 'alone' has one class ('cat'): nothing could be misclassified; measure on" in line
    shutil.copytree(tiny_set_folder / "val", tmp_path / "same")
    (tmp_path / "same" / "classnames.txt").write_text("cat\n" * 5)
    line = zs(
        "eval", model, "--sets", f"folder:{tmp_path / 'same'}", "--attacks", "clean"
    ).mistake()
    assert "set 'same': an attack needs at least 2 classes with different texts, got 1" in line


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["evla"], "unknown command 'evla': did you mean 'eval'\\? 'zsrobust --help' lists"),
        (["hardne", "x"], "unknown command 'hardne': did you mean 'harden'"),
        (
            ["data", "shwo", "x"],
            "unknown command of data 'shwo': did you mean 'show'\\? 'zsrobust data",
        ),
        (["--verison"], "unknown option '--verison': did you mean '--version'"),
        (["eval", "x", "--set", "mini"], "unknown option of eval '--set': did you mean '--sets'"),
        (
            ["eval", "x", "--epsilon", "1"],
            "unknown option of eval '--epsilon': did you mean '--eps'",
        ),
        (["harden", "x", "--lr", "1"], "unknown option of harden '--lr'.*given as key=value"),
        (["data", "check", "x", "--spilt", "y"], "of data check '--spilt': did you mean '--split'"),
        (["eval"], "eval: the argument 'models' is missing .*'zsrobust eval --help' shows"),
        (["eval", "--sets", "mini"], "the argument 'models' is missing"),
        (["convert", "x"], "convert: the option '--out' is missing .*; 'zsrobust convert --help'"),
        (["list"], "list: the argument 'what' is missing .*models .*recipes"),
        (["list", "models", "sets"], "list: .*extra argument.*sets"),
        (["eval", "x", "--limit", "many"], "eval: --limit 'many' is not a whole number"),
        (["eval", "x", "--seed", "1.5"], "eval: --seed '1.5' is not a whole number"),
        (["eval", "x", "--seed", "first"], "eval: --seed 'first' is not a whole number"),
        (["eval", "x", "--sets"], "eval: option '--sets' requires an argument"),
        (["eval", "x", "--json=1"], "eval: option '--json' does not take a value"),
    ],
)
def test_what_typer_refuses_is_said_like_everything_else(zs, arguments, words):
    """Unknown commands, options and types, and what is missing: one line, the nearest, how to ask for help."""
    assert re.search(words, zs(*arguments).mistake())


@pytest.mark.parametrize("arguments", [[], ["data"]])
def test_no_command_at_all_is_answered_with_the_help(zs, arguments):
    """It is no mistake to be told of: the commands are listed."""
    found = zs(*arguments)
    assert "Commands:" in found.err
    assert "zsrobust: " not in found.err


def test_a_second_process_in_a_folder_is_told_to_wait(zs, model, pets, recipe, tmp_path):
    """Results and runs have one owner at a time: exit code 1, and which folder."""
    with folder_lock(tmp_path / "results"):
        line = zs("eval", model, "--sets", pets, "--attacks", "clean").fault()
    assert "another process is working in results; wait for it" in line
    with folder_lock(tmp_path / "runs" / "two-steps"):
        line = zs("harden", recipe).fault()
    assert "another process is working in runs/two-steps" in line


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
    assert "did you mean 'eval'?" in run(["evla"], tmp_path, script=True).mistake()
    found = run(["--debug", *arguments], tmp_path)
    assert found.code != 0
    assert found.err.startswith("Traceback (most recent call last)")
    assert "UserError: a linf eps lies in [0, 1]" in found.err
