"""Files that are damaged or meant to do harm: one line that names the file, nothing run, nothing finished lost."""

from __future__ import annotations

import gzip
import importlib
import io
import json
import os
import pickle
import re
import shutil
import struct
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from zsrobust import data
from zsrobust.training.loop import harden
from zsrobust.training.recipe import load_recipe

WEIGHTS = "open_clip_model.safetensors"
PICKLE = "open_clip_pytorch_model.bin"


class Harm:
    """Unpickled as Python does it, it makes a folder: what a malicious file would do."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.place),)


def saved(content: Any, **options: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer, **options)
    return buffer.getvalue()


def harmful(place: Path) -> dict[str, bytes]:
    """The same harm in every form that a pickle comes in."""
    return {
        "torch": saved({"state_dict": Harm(place)}),
        "torch-legacy": saved({"state_dict": Harm(place)}, _use_new_zipfile_serialization=False),
        "pickle-2": pickle.dumps({"state_dict": Harm(place)}, protocol=2),
        "pickle-4": pickle.dumps({"state_dict": Harm(place)}, protocol=4),
    }


@pytest.fixture
def weights(tiny_clip_folder: Path, tmp_path: Path) -> Path:
    """The weights of a copy of the tiny CLIP, to be damaged."""
    shutil.copytree(tiny_clip_folder, tmp_path / "damaged")
    return tmp_path / "damaged" / WEIGHTS


@pytest.fixture
def measure(zs: Any, pets: str) -> Callable[[str], str]:
    """Measure a model spec and return the one line of the mistake."""
    return lambda spec: zs("eval", spec, "--sets", pets, "--attacks", "clean").mistake()


@pytest.mark.parametrize("cut", [0, 4, 8, 1000, 6000, -1])
def test_weights_cut_off_anywhere(measure, weights, cut):
    """Before the header's length, within the header, at its end, within the data."""
    content = weights.read_bytes()
    weights.write_bytes(content[:cut])
    line = measure("local-dir:damaged")
    assert re.search("an empty file|not a whole safetensors file", line)
    assert f"{weights.parent.name}/{WEIGHTS}" in line
    assert "fetch or write it again" in line


def header(content: bytes) -> tuple[dict[str, Any], bytes]:
    length = struct.unpack("<Q", content[:8])[0]
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def with_header(described: Any, data: bytes) -> bytes:
    written = described if isinstance(described, bytes) else json.dumps(described).encode()
    return struct.pack("<Q", len(written)) + written + data


@pytest.mark.parametrize(
    "lie",
    ["length", "overlap", "beyond", "dtype", "list", "empty", "no JSON", "more data", "pickle"],
)
def test_weights_whose_header_lies(measure, weights, tmp_path, lie):
    """An absurd length, tensors that overlap or lie beyond the end, something else than a table."""
    described, data = header(weights.read_bytes())
    first, second = [name for name in described if name != "__metadata__"][:2]
    if lie == "overlap":
        described[second]["data_offsets"] = described[first]["data_offsets"]
    if lie == "beyond":
        described[second]["data_offsets"][1] += 10**12
    if lie == "dtype":
        described[second]["dtype"] = "F13"
    content = {
        "length": struct.pack("<Q", 2**62) + weights.read_bytes()[8:],
        "list": with_header([1], data),
        "empty": with_header({}, data),
        "no JSON": with_header(b"{" + b"x" * 50, data),
        "more data": weights.read_bytes() + b"x",
        "pickle": harmful(tmp_path / "done")["pickle-4"],
    }.get(lie, with_header(described, data))
    weights.write_bytes(content)
    assert re.search(rf"{WEIGHTS}: not a whole safetensors file", measure("local-dir:damaged"))
    assert not (tmp_path / "done").exists()


@pytest.mark.parametrize("form", ["torch", "torch-legacy", "pickle-2", "pickle-4"])
@pytest.mark.parametrize("spec", ["local-dir:damaged", "harm.pt@local-dir:whole"])
def test_a_checkpoint_that_would_run_something_is_not_run(
    measure, weights, tiny_clip_folder, tmp_path, form, spec
):
    """As a folder's weights and as a foreign tower; the line says what it asked for, or that nothing was run."""
    shutil.copytree(tiny_clip_folder, tmp_path / "whole")
    content = harmful(tmp_path / "done")[form]
    weights.unlink()
    (weights.parent / PICKLE).write_bytes(content)
    (tmp_path / "harm.pt").write_bytes(content)
    line = measure(spec)
    assert re.search(r"asks for posix\.mkdir|a pickle of protocol 4", line)
    assert "nothing of it was run; save the bare state_dict()" in line
    assert not (tmp_path / "done").exists()


def test_the_harm_is_real(tmp_path):
    """What the tests above look for does happen where a file is unpickled without care."""
    pickle.loads(harmful(tmp_path / "done")["pickle-2"])  # noqa: S301
    assert (tmp_path / "done").is_dir()


@pytest.mark.parametrize("cut", [0, 3, 200, -10])
def test_a_pickled_checkpoint_cut_off(measure, weights, cut):
    """Also where torch's own text would advise to load it in an unsafe way."""
    content = saved(load_file(weights))
    weights.unlink()
    (weights.parent / PICKLE).write_bytes(content[:cut])
    line = measure("local-dir:damaged")
    assert re.search(
        rf"{PICKLE}: (an empty file|a damaged or cut off checkpoint); fetch or write", line
    )
    assert "weights_only" not in line


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "a pointer of Git LFS"),
        (b"<html>404</html>", "neither safetensors nor a checkpoint of torch.save"),
        (saved([1, 2]), "a value of type list, not a table of named tensors; save the model's"),
        (saved({}), "an empty table, no tensors; save the model's"),
        (saved({"a": "text"}), "entries that are no tensors: a; save the model's"),
        (saved({"proj": torch.zeros(2)}), "tensors do not fit the model: .*name the base"),
    ],
)
def test_what_is_no_tower_is_said_to_be_none(measure, model, tmp_path, content, words):
    """Laid over a base that is whole."""
    (tmp_path / "tower.pt").write_bytes(content)
    assert re.search(f"tower.pt.*{words}", measure(f"tower.pt@{model}"))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"visual.proj": None}, r"1 missing \(visual.proj\); config and weights do not belong"),
        ({"visual.proj": torch.full((32, 16), torch.nan)}, r"NaN or infinity \(visual.proj\)"),
        ({"visual.proj": torch.ones(32, 16, dtype=torch.int8)}, "1 of another type"),
        ({"logit_scale": torch.tensor(1e4)}, "logit scale is exp.10000., released models"),
    ],
)
def test_weights_of_the_wrong_content(measure, weights, change, words):
    """The file is whole; what it holds is not the model."""
    tensors = {**load_file(weights), **change}
    save_file({name: tensor for name, tensor in tensors.items() if tensor is not None}, weights)
    assert re.search(words, measure("local-dir:damaged"))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "no open_clip_config.json; the folder is no model"),
        (b"", "not JSON"),
        (b"\xff\xfe", "not JSON"),
        (b"[1]", "a table is expected, not list"),
        (b"[" * 100_000, "not JSON"),
        (b"{}", "no table 'model_cfg'"),
        (b'{"model_cfg": {}}', "lacks embed_dim, vision_cfg, text_cfg"),
    ],
)
def test_a_config_that_is_none(measure, weights, content, words):
    """Missing, not JSON, JSON of another kind."""
    config = weights.with_name("open_clip_config.json")
    config.unlink()
    if content is not None:
        config.write_bytes(content)
    assert re.search(words, measure("local-dir:damaged"))


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        ({"open_clip_config.json": None}, "has not finished; start its command again, it goes on"),
        ({"adaptation.json": None}, "no adaptation.json"),
        ({WEIGHTS: None}, f"no weights; put them there as {WEIGHTS}"),
        ({WEIGHTS: b"cut"}, "not a whole safetensors file"),
        ({"adaptation.json": b"{"}, "adaptation.json: not JSON"),
        ({"adaptation.json": b"[1]"}, "adaptation.json: a table is expected"),
        ({"adaptation.json": {"format": 99}}, "format 99 is unknown, this version reads 1"),
        ({"adaptation.json": {"adaptation": "lorra"}}, "unknown adaptation 'lorra'"),
        ({"adaptation.json": {"adaptation": ["full"]}}, "unknown adaptation .*did you mean 'full'"),
        ({"adaptation.json": {"source": 5}}, "'source' must be a table of texts, got 5"),
    ],
)
def test_a_runs_model_that_is_not_whole(measure, done: Path, tmp_path, damage, words):
    """A file is missing or damaged: it is not measured as if it were the hardened model."""
    shutil.copytree(done, tmp_path / "run")
    for name, content in damage.items():
        file = tmp_path / "run" / "model" / name
        before = file.read_bytes()
        file.unlink()
        if isinstance(content, dict):
            file.write_text(json.dumps({**json.loads(before), **content}))
        elif content is not None:
            file.write_bytes(content)
    assert re.search(words, measure("run:run"))


@pytest.fixture(scope="module")
def done(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run; to be copied."""
    folder = tmp_path_factory.mktemp("done") / "run"
    harden(load_recipe(str(recipe)), folder)
    return folder


@pytest.fixture(scope="module")
def half(recipe: Path, tmp_path_factory: pytest.TempPathFactory, harden_until: Any) -> Path:
    """The folder of a run that was stopped after its first step; to be copied."""
    folder = tmp_path_factory.mktemp("half") / "run"
    harden_until(load_recipe(str(recipe), ["checkpoint_every=1"]), folder, 1)
    assert (folder / "checkpoint.pt").is_file()
    return folder


@pytest.fixture
def go_on(
    zs: Any, recipe: Path, half: Path, tmp_path: Path
) -> Callable[[Callable[[Path], object]], Any]:
    """Copy the half-done run, damage it, and start the same command again."""

    def call(damage: Callable[[Path], object]) -> Any:
        shutil.copytree(half, tmp_path / "run")
        damage(tmp_path / "run")
        return zs("harden", recipe, "checkpoint_every=1", "--no-evaluate", "--out", "run")

    return call


def test_a_checkpoint_that_is_whole_is_gone_on_from(go_on):
    """The ground of the tests below."""
    found = go_on(lambda run: None)
    assert found.code == 0, found.err


@pytest.mark.parametrize("cut", [0, 100, -20])
def test_a_runs_checkpoint_cut_off(go_on, cut):
    """What to do is said; nothing is trained on what was read of it."""

    def damage(run: Path) -> None:
        file = run / "checkpoint.pt"
        file.write_bytes(file.read_bytes()[:cut])

    line = go_on(damage).mistake()
    assert re.search(
        "checkpoint.pt: (an empty file|a damaged or cut off checkpoint); delete it", line
    )


@pytest.mark.parametrize("form", ["torch", "torch-legacy", "pickle-2", "pickle-4"])
def test_a_runs_checkpoint_that_would_run_something_is_not_run(go_on, tmp_path, form):
    """It is a pickle like any other."""
    content = harmful(tmp_path / "done")[form]
    line = go_on(lambda run: (run / "checkpoint.pt").write_bytes(content)).mistake()
    assert "nothing of it was run; delete it to start the run anew" in line
    assert not (tmp_path / "done").exists()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"format": 99}, "has format 99, this version reads 1"),
        ({"optimiser": None}, "optimiser is missing"),
        ({"optimiser": {"a": 1}}, "is damaged"),
        ({"random": torch.zeros(3)}, "is damaged"),
        ({"epoch": "one"}, "its position is epoch 'one'"),
        ({"step": 999}, "epoch 0, step 999 of 1 epochs with 2 steps each"),
        ({"parameters": 5}, "belongs to another model"),
        ({"parameters": "of another shape"}, "another shape than the model's"),
        ({"best": 5}, "its best epoch is none"),
    ],
)
def test_a_runs_checkpoint_of_the_wrong_content(go_on, change, words):
    """It loads, and is not what a run goes on from."""

    def damage(run: Path) -> None:
        state = torch.load(run / "checkpoint.pt", weights_only=True)
        for name, value in change.items():
            if value == "of another shape":
                state[name] = {key: torch.zeros(3) for key in state[name]}
            elif value is None:
                del state[name]
            else:
                state[name] = value
        torch.save(state, run / "checkpoint.pt")

    line = go_on(damage).mistake()
    assert re.search(words, line)
    assert "delete it to start the run anew" in line


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("recipe.json", b"{", "recipe.json is damaged .*choose another --out"),
        ("recipe.json", b"\xff\xfe", "recipe.json is damaged"),
        ("log.jsonl", b"nonsense\n", "line 1: not JSON .*remove that line"),
        ("log.jsonl", b"[1]\n", "line 1: not a table"),
        ("log.jsonl", b'{"steps_done": "many"}\n', "steps_done is 'many', no whole number"),
    ],
)
def test_a_runs_other_files_damaged(go_on, name, content, words):
    """The recipe that it must agree with, and its log."""
    assert re.search(words, go_on(lambda run: (run / name).write_bytes(content)).mistake())


def png(size: tuple[int, int] = (24, 20)) -> bytes:
    buffer = io.BytesIO()
    Image.linear_gradient("L").resize(size).convert("RGB").save(buffer, format="PNG")
    return buffer.getvalue()


def jpeg() -> bytes:
    buffer = io.BytesIO()
    Image.effect_noise((64, 64), 80).convert("RGB").save(buffer, format="JPEG")
    return buffer.getvalue()


def bomb() -> bytes:
    """A PNG that says to hold 60,000 x 60,000 pixels."""
    whole = bytearray(png())
    whole[16:24] = struct.pack(">II", 60_000, 60_000)
    whole[29:33] = struct.pack(">I", zlib.crc32(bytes(whole[12:29])))
    return bytes(whole)


DAMAGED_PICTURES = {
    "cut.png": (png()[:60], "a damaged picture"),
    "flipped.png": (png()[:50] + b"\0\xff" + png()[52:], "a damaged picture"),
    "cut.jpg": (jpeg()[:-300], "a damaged picture"),
    "text.png": (b"a text", "not a picture that Pillow can read"),
    "empty.png": (b"", "an empty file, no picture"),
    "bomb.png": (bomb(), "a picture of more than 178956970 pixels"),
    "cut.tif": (b"II*\0" + b"\x08\0\0\0" + b"\xff" * 20, "not a picture|a damaged picture"),
}


@pytest.mark.parametrize("name", DAMAGED_PICTURES)
def test_a_damaged_picture_of_a_folder(zs, model, tiny_set_folder, tmp_path, name):
    """Set and id are named, and no warning of the decoder's stands beside them."""
    content, words = DAMAGED_PICTURES[name]
    shutil.copytree(tiny_set_folder / "val", tmp_path / "birds")
    (tmp_path / "birds" / "red_ball" / name).write_bytes(content)
    line = zs("eval", model, "--sets", "folder:birds", "--attacks", "clean").mistake()
    assert re.search(f"birds, red_ball/{name}: ({words}).*; replace the file or take it out", line)


def tar_of(*members: tuple[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


SAMPLES = tuple(
    member
    for k in range(6)
    for member in ((f"{k:03}.png", png((20 + k, 20))), (f"{k:03}.cls", b"%d" % (k % 3)))
)
ONE = ("100.png", png())

DAMAGED_TARS = {
    "empty": (b"", "damaged or cut off at its beginning .*bring the file anew"),
    "cut": (tar_of(*SAMPLES)[:4000], "damaged or cut off after sample '00"),
    "no end": (tar_of(*SAMPLES)[: 512 * 16], "damaged or cut off after sample"),
    "text": (b"hello world", "damaged or cut off at its beginning"),
    "gzip": (gzip.compress(tar_of(*SAMPLES)), "compressed with gzip.*; unpack it to a plain tar"),
    "no samples": (tar_of(), "the tars hold no samples; expected KEY.jpg"),
    "climbs out": (
        tar_of(("../../x.png", png()), *SAMPLES),
        r"'../../x.png' would leave the folder",
    ),
    "absolute": (tar_of(("/etc/x.png", png()), *SAMPLES), "'/etc/x.png' would leave the folder"),
    "no label": (tar_of(*SAMPLES, ONE), "sample '100' has no label; expected a .cls"),
    "no labels at all": (tar_of(*SAMPLES[::2]), "sample '000' has no label; expected a .cls"),
    "no picture": (tar_of(*SAMPLES, ("100.cls", b"1")), "sample '100' has no image"),
    "negative": (tar_of(*SAMPLES, ONE, ("100.cls", b"-1")), "label -1, but there are 3 .*0 to 2"),
    "beyond": (
        tar_of(*SAMPLES, ONE, ("100.cls", b"3")),
        "label 3, but there are 3 .*mend the .cls",
    ),
    "words": (tar_of(*SAMPLES, ONE, ("100.cls", b"one")), "holds b'one'; expected a whole number"),
    "no number": (tar_of(*SAMPLES, ONE, ("100.cls", b"")), "holds b''; expected a whole number"),
    "bytes": (tar_of(*SAMPLES, ONE, ("100.cls", b"\xff")), "expected a whole number"),
    "cut picture": (
        tar_of(*SAMPLES, ("100.png", png()[:60]), ("100.cls", b"1")),
        "birds, 100: a damaged picture",
    ),
    "no bytes": (
        tar_of(*SAMPLES, ("100.png", b""), ("100.cls", b"1")),
        "birds, 100: an empty file, no picture",
    ),
}


@pytest.mark.parametrize("name", DAMAGED_TARS)
def test_a_damaged_tar(zs, model, tmp_path, name):
    """Shard and sample are named; nothing is written outside of the set."""
    content, words = DAMAGED_TARS[name]
    (tmp_path / "birds" / "test").mkdir(parents=True)
    (tmp_path / "birds" / "classnames.txt").write_text("owl\nrobin\nwren\n")
    (tmp_path / "birds" / "test" / "0.tar").write_bytes(content)
    line = zs("eval", model, "--sets", "wds:birds", "--attacks", "clean").mistake()
    assert re.search(words, line)
    assert "birds" in line


@pytest.mark.parametrize(
    ("kind", "names", "words"),
    [
        ("wds", "owl\nrobin\n", "label 2, but there are 2 class names"),
        ("wds", "owl\n\nwren\n", "classnames.txt, line 2: empty"),
        ("wds", "", "classnames.txt, line 1: empty"),
        ("folder", "owl\nrobin\n", "has 2 names, but .* has 5 class folders"),
    ],
)
def test_class_names_that_do_not_fit(zs, model, tiny_set_folder, tmp_path, kind, names, words):
    """Fewer than labels, or with a hole."""
    if kind == "wds":
        (tmp_path / "birds" / "test").mkdir(parents=True)
        (tmp_path / "birds" / "test" / "0.tar").write_bytes(tar_of(*SAMPLES))
    else:
        shutil.copytree(tiny_set_folder / "val", tmp_path / "birds")
    (tmp_path / "birds" / "classnames.txt").write_text(names)
    assert re.search(words, zs("eval", model, "--sets", f"{kind}:birds").mistake())


@pytest.mark.parametrize("left", ["nothing", "empty classes"])
def test_a_set_without_a_picture(zs, model, tiny_set_folder, tmp_path, left):
    """An accuracy of nothing is not zero."""
    (tmp_path / "birds").mkdir()
    if left == "empty classes":
        (tmp_path / "birds" / "owl").mkdir()
        (tmp_path / "birds" / "wren").mkdir()
    line = zs("eval", model, "--sets", "folder:birds").mistake()
    assert "no picture in it; expected .jpg" in line


def outcomes(results: Path) -> dict[str, list[str]]:
    """The lines of every cell, by attack."""
    found = {}
    for cell in (results / "cells").iterdir():
        name = json.loads((cell / "cell.json").read_text())["attack"]["name"]
        found[name] = (cell / "outcomes.jsonl").read_text().splitlines()
    return found


def test_a_damaged_picture_in_the_middle_costs_nothing_that_was_done(
    zs, model, tiny_set_folder, tmp_path, monkeypatch
):
    """What was measured before it stays in the cells; mended, the same command goes on behind it."""
    module = importlib.import_module("zsrobust.evaluation.measure")
    shutil.copytree(tiny_set_folder / "val", tmp_path / "birds")
    opened = data.open_set("folder:birds")
    order = [opened.ids[i] for i in opened.order()]
    file = tmp_path / "birds" / order[11]
    whole = file.read_bytes()
    file.write_bytes(whole[:80])
    command = ["eval", model, "--sets", "folder:birds", "--attacks", "clean,pgd-2", "--slots", "4"]
    line = zs(*command).mistake()
    assert f"birds, {order[11]}: a damaged picture" in line
    before = outcomes(tmp_path / "results")
    assert [json.loads(row)["id"] for row in before["clean"]] == order[:8]

    file.write_bytes(whole)
    measured: list[str] = []
    real = module.Case.unattacked

    def counting(case: Any, names: list[str], *rest: Any) -> Any:
        measured.extend(names)
        return real(case, names, *rest)

    monkeypatch.setattr(module.Case, "unattacked", counting)
    found = zs(*command)
    assert found.code == 0, found.err
    assert measured == order[8:]
    assert outcomes(tmp_path / "results")["clean"][:8] == before["clean"]


def test_a_second_set_that_is_damaged_leaves_the_first_ones_results(zs, model, pets, tmp_path):
    """The first set's cells are whole, and are not computed again."""
    (tmp_path / "birds" / "owl").mkdir(parents=True)
    (tmp_path / "birds" / "wren").mkdir()
    (tmp_path / "birds" / "owl" / "1.png").write_bytes(png())
    (tmp_path / "birds" / "wren" / "1.png").write_bytes(b"a text")
    line = zs("eval", model, "--sets", f"{pets},folder:birds", "--attacks", "clean").mistake()
    assert "birds, wren/1.png: not a picture" in line
    (cell,) = (
        c
        for c in (tmp_path / "results" / "cells").iterdir()
        if json.loads((c / "cell.json").read_text())["set"] == "val"
    )
    assert len((cell / "outcomes.jsonl").read_text().splitlines()) == 30


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("cell.json", b"{", "cell.json is damaged: move the folder away"),
        ("cell.json", b"{}", "does not belong to this cell: move the folder away"),
        ("outcomes.jsonl", b"nonsense\n", "line 1: not JSON .*remove that line"),
        ("outcomes.jsonl", b"[1]\n", "line 1: not a table"),
        ("outcomes.jsonl", b'{"a": 1}\n', "line 1: not a record .*'a'.*remove that line"),
        (
            "outcomes.jsonl",
            b'{"id": "a", "label": 0, "image": "", "clean": "yes", "clean_margin": 0}\n',
            "line 1: not a record .*clean is 'yes'",
        ),
    ],
)
def test_results_that_are_damaged(zs, model, pets, tmp_path, name, content, words):
    """A number is not made of what cannot be read, and what to remove is said."""
    command = ["eval", model, "--sets", pets, "--attacks", "clean", "--limit", "4"]
    assert zs(*command).code == 0
    (cell,) = (tmp_path / "results" / "cells").iterdir()
    (cell / name).write_bytes(content)
    line = zs(*command).mistake()
    assert re.search(words, line)
    assert f"results/cells/{cell.name}/{name}" in line
