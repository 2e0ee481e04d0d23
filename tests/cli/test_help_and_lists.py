"""Help and lists: there for every command, and fast, because nothing of them imports torch."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest
import typer

from zsrobust import __version__
from zsrobust.cli import app
from zsrobust.cli.listing import NOUNS


def commands(command: Any = None, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """Every command and group of the command line, the whole first."""
    command = typer.main.get_command(app) if command is None else command
    found = [path]
    for name, sub in getattr(command, "commands", {}).items():
        found += commands(sub, (*path, name))
    return found


def test_the_commands_are_these():
    """The design's list, as far as it is there."""
    assert {path[0] for path in commands() if path} >= {
        "harden",
        "pretrain",
        "eval",
        "tune",
        "convert",
        "report",
        "list",
        "data",
    }
    assert {path[1] for path in commands() if len(path) == 2} >= {
        "list",
        "show",
        "pack",
        "check",
        "overlap",
    }


@pytest.mark.parametrize("path", commands(), ids=lambda path: " ".join(path) or "zsrobust")
def test_every_command_explains_itself(zs, path):
    """--help exits 0 and says what the command does and takes."""
    found = zs(*path, "--help")
    assert (found.code, found.err) == (0, "")
    assert "Usage:" in found.out
    assert "--help" in found.out


def test_help_imports_no_torch():
    """In a fresh process: the package, every help page and every list come without torch and open_clip."""
    code = f"""
import sys
import zsrobust
from zsrobust.cli import main
for path in {[[*path, "--help"] for path in commands()] + [["list", noun] for noun in NOUNS]}:
    try:
        main(path)
    except SystemExit as stopped:
        assert not stopped.code, path
    assert not {{"torch", "torchvision", "open_clip", "lightning_fabric"}} & set(sys.modules), path
"""
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_version(zs):
    """--version says it and stops."""
    assert zs("--version").out == f"zsrobust {__version__}\n"


@pytest.mark.parametrize("noun", NOUNS)
def test_each_noun_is_listed(zs, noun, tiny_clip_folder, monkeypatch):
    """As lines and as JSON: the same names, each with something said of it."""
    monkeypatch.setenv("ZSROBUST_MODELS", str(tiny_clip_folder.parent))
    plain, parsed = zs("list", noun), zs("list", noun, "--json")
    assert plain.code == parsed.code == 0
    rows = json.loads(parsed.out)
    lines = plain.out.splitlines()
    assert len(lines) == len(rows) > 0
    for line, row in zip(lines, rows, strict=True):
        assert set(row) == {"name", "about"}
        assert row["about"]
        assert line.split()[0] == row["name"]
        assert line.endswith(row["about"].rstrip())
    expected = {
        "models": tiny_clip_folder.name,
        "attacks": "pgd-N",
        "objectives": "tecoa",
        "adaptations": "full",
        "recipes": "mini/tecoa-ft-eps1",
        "sets": "mini/cifar10",
    }[noun]
    assert expected in [row["name"] for row in rows]


def test_data_list_is_list_sets(zs):
    """Two ways to one list."""
    assert zs("data", "list").out == zs("list", "sets").out
    assert json.loads(zs("data", "list", "--json").out) == json.loads(
        zs("list", "sets", "--json").out
    )
