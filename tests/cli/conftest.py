"""The command line as a user meets it: called in this process, and now and then in one of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml


@dataclass(frozen=True)
class Result:
    """What a command left behind."""

    code: int
    out: str
    err: str

    def mistake(self) -> str:
        """Return the one line of a wrong request: exit code 2, nothing on standard output."""
        return self._line(2)

    def fault(self) -> str:
        """Return the one line of a machine fault: exit code 1, nothing on standard output."""
        return self._line(1)

    def _line(self, code: int) -> str:
        assert (self.code, self.out) == (code, ""), self.err
        assert self.err.startswith("zsrobust: ")
        assert self.err.endswith("\n")
        assert self.err.count("\n") == 1
        assert "Traceback" not in self.err
        return self.err


@pytest.fixture(autouse=True)
def _fresh_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty current folder, and no settings of the person who runs the tests."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ZSROBUST_DEBUG", "")  # --debug sets it; this takes it back afterwards
    monkeypatch.delenv("ZSROBUST_DATA", raising=False)
    monkeypatch.delenv("ZSROBUST_MODELS", raising=False)


@pytest.fixture
def zs(capsys: pytest.CaptureFixture[str]) -> Callable[..., Result]:
    """Call the command line with these arguments, in this process."""
    from zsrobust.cli import main

    def call(*arguments: Any) -> Result:
        capsys.readouterr()
        with pytest.raises(SystemExit) as stopped:
            main([str(argument) for argument in arguments])
        return Result(stopped.value.code or 0, *capsys.readouterr())

    return call


def run(arguments: list[str], cwd: Path, *, script: bool = False) -> Result:
    """Run the command line in a process of its own, as `zsrobust` or `python -m zsrobust`."""
    command = [str(Path(sys.executable).with_name("zsrobust"))]
    if not script:
        command = [sys.executable, "-m", "zsrobust"]
    clean = {k: v for k, v in os.environ.items() if not k.startswith("ZSROBUST_")}
    done = subprocess.run(
        [*command, *arguments],
        cwd=cwd,
        env={**clean, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    return Result(done.returncode, done.stdout, done.stderr)


@pytest.fixture(scope="session")
def model(tiny_clip_folder: Path) -> str:
    """The spec of a tiny CLIP."""
    return f"local-dir:{tiny_clip_folder}"


@pytest.fixture(scope="session")
def pets(tiny_set_folder: Path) -> str:
    """The spec of thirty labelled pictures."""
    return f"folder:{tiny_set_folder}/val"


@pytest.fixture(scope="session")
def strangers(other_set_folder: Path) -> str:
    """The same pictures under class names that the recipe does not see."""
    return f"folder:{other_set_folder}"


@pytest.fixture(scope="session")
def recipe(
    model: str, strangers: str, tiny_set_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A recipe of two steps on sixty pictures, measured on the other thirty."""
    content = {
        "name": "two-steps",
        "model": model,
        "source": {"set": f"folder:{tiny_set_folder}", "split": "train"},
        "validation": {"split": "val", "limit": 20, "attack": "pgd-2"},
        "threat": {"eps": "4/255"},
        "optimiser": {"name": "sgd", "lr": 0.05},
        "batch": 30,
        "threads": 1,
        "evaluate": {
            "sets": strangers,
            "attacks": ["clean", "pgd-2"],
            "eps": ["1/255"],
            "limit": 20,
        },
    }
    path = tmp_path_factory.mktemp("recipes") / "two-steps.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


@dataclass(frozen=True)
class Hardened:
    """A finished hardening: what was printed, and the folder in which it was run."""

    printed: Result
    place: Path

    @property
    def run(self) -> Path:
        return self.place / "runs" / "two-steps"


@pytest.fixture(scope="session")
def hardened(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Hardened:
    """`python -m zsrobust harden two-steps.yaml` in an empty folder; to be read only."""
    place = tmp_path_factory.mktemp("place")
    return Hardened(run(["harden", str(recipe)], place), place)
