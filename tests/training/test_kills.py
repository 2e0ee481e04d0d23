"""A training that is killed or stopped, and started again with the same command, ends as if it had never been."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from zsrobust.cli import main
from zsrobust.interrupt import Stopped
from zsrobust.training import loop
from zsrobust.training.loop import harden
from zsrobust.training.recipe import load_recipe
from zsrobust.training.run import Run

from ..processes import count_lines, end, hearing_ctrl_c, run, start, wait_until


@pytest.fixture(scope="module")
def recipe(
    tiny_clip_folder: Path, tiny_set_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Two epochs of four steps, a checkpoint every second step, held-out images after each epoch."""
    content = {
        "name": "two-epochs",
        "model": f"local-dir:{tiny_clip_folder}",
        "source": {"set": f"folder:{tiny_set_folder}", "split": "train"},
        "validation": {"split": "val", "limit": 10, "attack": "pgd-2", "every": "epoch"},
        "threat": {"eps": "4/255"},
        "optimiser": {"name": "adamw", "lr": 1e-3, "weight_decay": 0.01},
        "schedule": {"warmup": 2},
        "epochs": 2,
        "batch": 16,
        "threads": 1,
        "checkpoint_every": 2,
        "device": "cpu",
    }
    path = tmp_path_factory.mktemp("recipe") / "two-epochs.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


@pytest.fixture(scope="module")
def whole(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The run that nobody disturbed; to be read only."""
    return harden(load_recipe(str(recipe)), tmp_path_factory.mktemp("whole") / "run")


def command(recipe: Path) -> list[str]:
    return ["harden", str(recipe), "--out", "run"]


def finish(recipe: Path, place: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Give the same command in this process, and return the run."""
    monkeypatch.chdir(place)
    with pytest.raises(SystemExit) as stopped:
        main(command(recipe))
    assert not stopped.value.code
    return Run(place / "run", load_recipe(str(recipe)))


def assert_as_if_never_stopped(found: Run, whole: Run) -> None:
    """The same files, weights bit for bit, every step and validation once, one end."""
    files = [
        {str(path.relative_to(of.folder)) for path in of.folder.rglob("*") if path.is_file()}
        for of in (found, whole)
    ]
    assert files[0] == files[1]
    for file in sorted(whole.model.iterdir()):
        assert (found.model / file.name).read_bytes() == file.read_bytes(), file.name
    for event in ("step", "validation", "end"):
        assert found.read_log(event) == whole.read_log(event)


def events(place: Path) -> list[str]:
    """The log's events in their order, starts left out."""
    rows = map(json.loads, (place / "run" / "log.jsonl").read_text().splitlines())
    return [row["event"] for row in rows if row["event"] != "start"]


def test_three_kills_of_one_run(recipe, whole, tmp_path, monkeypatch):
    """While the first checkpoint is put in place, in the last validation, while the model is put in place."""
    place = tmp_path / "run"

    killed = run(command(recipe), tmp_path, kill_at="os.rename checkpoint.pt 1")
    assert (killed.code, killed.err) == (-signal.SIGKILL, "")
    assert events(tmp_path) == ["step"] * 2
    assert not (place / "checkpoint.pt").exists()
    assert len(list(place.glob(".checkpoint.pt.*.partial"))) == 1

    # Each validation opens ten pictures.
    killed = run(command(recipe), tmp_path, kill_at="open /val/ 15")
    assert (killed.code, killed.err) == (-signal.SIGKILL, "")
    assert events(tmp_path) == ["step"] * 4 + ["validation"] + ["step"] * 4
    assert torch.load(place / "checkpoint.pt", weights_only=True)["step"] == 4

    killed = run(command(recipe), tmp_path, kill_at="os.rename open_clip_config.json 1")
    assert (killed.code, killed.err) == (-signal.SIGKILL, "")
    assert events(tmp_path) == (["step"] * 4 + ["validation"]) * 2
    assert (place / "model" / "open_clip_model.safetensors").is_file()
    assert not (place / "model" / "open_clip_config.json").is_file()

    assert_as_if_never_stopped(finish(recipe, tmp_path, monkeypatch), whole)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("moment", "left"),
    [
        ("os.rename recipe.json 1", ".recipe.json.*.partial"),
        ("open log.jsonl 1", "recipe.json"),
        ("open checkpoint.pt 2", "checkpoint.pt"),
        ("open /val/ 5", "checkpoint.pt"),
        ("os.rename open_clip_model.safetensors 1", "model/.open_clip_model.safetensors.*.partial"),
        ("os.rename adaptation.json 1", "model/open_clip_model.safetensors"),
        ("os.remove checkpoint.pt 1", "model/open_clip_config.json"),
    ],
)
def test_a_kill_at_each_file(recipe, whole, tmp_path, monkeypatch, moment, left):
    """From the first one that a run writes to the last one that it removes; then the log is cut as well."""
    killed = run(command(recipe), tmp_path, kill_at=moment)
    assert (killed.code, killed.err) == (-signal.SIGKILL, "")
    assert len(list((tmp_path / "run").glob(left))) == 1
    again = run(command(recipe), tmp_path, kill_at="os.rename log.jsonl 1")
    assert again.code in (0, -signal.SIGKILL)  # there may be nothing to cut
    assert_as_if_never_stopped(finish(recipe, tmp_path, monkeypatch), whole)


@pytest.mark.slow
def test_ctrl_c_spares_the_loading_processes(recipe, whole, tmp_path, monkeypatch):
    """It reaches the whole process group after step 2: step 3 is finished with what they load; exit code 130."""
    stopped = run(
        [*command(recipe), "workers=1"],
        tmp_path,
        kill_at="os.rename checkpoint.pt 1",
        kill_with="SIGINT",
    )
    assert stopped.line(130) == (
        "zsrobust: stopped after step 3 of 8; the same command goes on from there.\n"
    )
    assert events(tmp_path) == ["step"] * 3
    assert_as_if_never_stopped(finish(recipe, tmp_path, monkeypatch), whole)


def test_sigterm_stops_a_run_that_nobody_else_may_touch(recipe, tmp_path, monkeypatch, capsys):
    """Meanwhile the same command is refused, exit code 1; then a checkpoint, one line, exit code 143."""
    long = [*command(recipe), "epochs=100000", "validation.every=never"]
    process = start(long, tmp_path)
    log = tmp_path / "run" / "log.jsonl"
    wait_until(lambda: count_lines(log) >= 3, process)

    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as refused:
        main(long)
    assert refused.value.code == 1
    assert capsys.readouterr() == (
        "",
        "zsrobust: another process is working in run; wait for it, or choose another folder.\n",
    )

    os.kill(process.pid, signal.SIGTERM)
    line = end(process).line(143)
    found = re.fullmatch(
        r"zsrobust: stopped after step (\d+) of 400000; the same command goes on from there\.\n",
        line,
    )
    assert found, line
    done = int(found[1])
    assert events(tmp_path) == ["step"] * done
    checkpoint = torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)
    assert checkpoint["epoch"] * 4 + checkpoint["step"] == done


def test_what_a_killed_write_left_is_taken_away(recipe, whole, tmp_path, monkeypatch):
    """A recipe that was never put in place is no run; what lies beside it goes."""
    (tmp_path / "run").mkdir()
    for name in ("recipe.json", "log.jsonl", "checkpoint.pt"):
        (tmp_path / "run" / f".{name}.123.partial").write_bytes(b"half")
    assert_as_if_never_stopped(finish(recipe, tmp_path, monkeypatch), whole)


def test_a_kill_after_the_model_leaves_little_to_do(recipe, whole, tmp_path, monkeypatch):
    """Before the checkpoint is removed and the log is closed: nothing is trained, both are made good."""
    folder = Path(shutil.copytree(whole.folder, tmp_path / "run"))
    (folder / "checkpoint.pt").write_bytes(b"the last one")
    (folder / "model" / ".open_clip_config.json.123.partial").write_bytes(b"half")
    lines = (folder / "log.jsonl").read_text().splitlines(keepends=True)
    assert json.loads(lines[-1])["event"] == "end"
    (folder / "log.jsonl").write_text("".join(lines[:-1]))
    monkeypatch.setattr(loop, "_train", lambda *_: pytest.fail("trained again"))
    assert_as_if_never_stopped(finish(recipe, tmp_path, monkeypatch), whole)


@pytest.fixture(scope="module")
def whole_best(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The same with select: best, which writes a checkpoint before and after an epoch's scores."""
    chosen = load_recipe(str(recipe), ["select=best"])
    return harden(chosen, tmp_path_factory.mktemp("whole-best") / "run")


@pytest.mark.parametrize(("number", "written"), [(3, False), (3, True), (6, False)])
def test_scores_that_are_in_the_log_are_not_measured_again(
    whole_best, tmp_path, monkeypatch, number, written
):
    """Cut between the line of an epoch's scores and their checkpoint, after it, and in the last epoch."""
    real, calls = loop.save_checkpoint, 0

    def cut(*arguments: Any, **options: Any) -> None:
        nonlocal calls
        calls += 1
        if calls < number or written:
            real(*arguments, **options)
        if calls == number:
            raise RuntimeError("cut")

    measured = []
    validate = loop.validate

    def counted(*arguments: Any) -> Any:
        measured.append(None)
        return validate(*arguments)

    monkeypatch.setattr(loop, "validate", counted)
    monkeypatch.setattr(loop, "save_checkpoint", cut)
    with pytest.raises(RuntimeError, match="cut"):
        harden(whole_best.recipe, tmp_path / "run")
    monkeypatch.setattr(loop, "save_checkpoint", real)
    assert_as_if_never_stopped(harden(whole_best.recipe, tmp_path / "run"), whole_best)
    assert len(measured) == 2


@pytest.fixture
def third_step_signalled(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Ctrl-C comes as the third step begins."""
    real, calls = loop.training_step, 0

    def signalled(*arguments: Any, **options: Any) -> float:
        nonlocal calls
        calls += 1
        if calls == 3:
            signal.raise_signal(signal.SIGINT)
        return real(*arguments, **options)

    monkeypatch.setattr(loop, "training_step", signalled)
    with hearing_ctrl_c():
        yield


@pytest.mark.usefixtures("third_step_signalled")
def test_ctrl_c_ends_the_step(recipe, whole, tmp_path, monkeypatch, capsys):
    """Step 3 is finished, checkpointed, said; exit code 130; the same command goes on."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        main(command(recipe))
    assert stopped.value.code == 130
    assert capsys.readouterr() == (
        "",
        "zsrobust: stopped after step 3 of 8; the same command goes on from there.\n",
    )
    assert events(tmp_path) == ["step"] * 3
    assert torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)["step"] == 3
    assert_as_if_never_stopped(finish(recipe, tmp_path, monkeypatch), whole)


@pytest.mark.usefixtures("third_step_signalled")
def test_ctrl_c_from_python_is_a_keyboard_interrupt_after_the_checkpoint(recipe, tmp_path):
    """Why it stopped is the interrupt's context; the handlers are those of before."""
    before = [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)]
    with pytest.raises(KeyboardInterrupt) as interrupted:
        harden(load_recipe(str(recipe)), tmp_path / "run")
    assert isinstance(interrupted.value.__context__, Stopped)
    assert "after step 3 of 8" in str(interrupted.value.__context__)
    assert [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)] == before
    assert torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)["step"] == 3


def test_a_validation_is_stopped_at_once_and_made_good(recipe, whole, tmp_path, monkeypatch):
    """Its checkpoint is there already; the next start measures and goes on."""
    real = loop.validate

    def signalled(*arguments: Any) -> Any:
        signal.raise_signal(signal.SIGINT)
        pytest.fail("went on")

    monkeypatch.setattr(loop, "validate", signalled)
    with hearing_ctrl_c(), pytest.raises(KeyboardInterrupt) as interrupted:
        harden(load_recipe(str(recipe)), tmp_path / "run")
    assert "after step 4 of 8" in str(interrupted.value.__context__)
    assert events(tmp_path) == ["step"] * 4
    monkeypatch.setattr(loop, "validate", real)
    assert_as_if_never_stopped(harden(load_recipe(str(recipe)), tmp_path / "run"), whole)
