"""The package's face: the names that others may rely on."""

from __future__ import annotations

import subprocess
import sys

import pytest

import zsrobust

PUBLIC = [
    "Clip",
    "EnvironmentFault",
    "HeadClassifier",
    "Recipe",
    "Run",
    "Threat",
    "UserError",
    "ZeroShotClassifier",
    "ZsRobustError",
    "attack_images",
    "attacks",
    "evaluate",
    "harden",
    "interpolate",
    "load_clip",
    "load_recipe",
    "open_set",
]


def test_the_public_names_are_these():
    """A name that goes, or comes, is a decision: this list changes with it."""
    assert zsrobust.__all__ == PUBLIC
    assert set(PUBLIC) <= set(dir(zsrobust))


@pytest.mark.parametrize("name", [name for name in PUBLIC if name != "attacks"])
def test_a_public_name_is_a_thing_of_that_name(name):
    """Asked for twice, since Python binds a module in place of a function that has its name."""
    for _ in range(2):
        found = getattr(zsrobust, name)
        assert callable(found)
        assert found.__name__ == name


def test_attacks_is_the_package():
    """zr.attacks.run is the public way to attack any classifier."""
    assert zsrobust.attacks.__name__ == "zsrobust.attacks"
    assert callable(zsrobust.attacks.run)


def test_another_name_is_an_attribute_error():
    """Not an ImportError, and not None."""
    with pytest.raises(AttributeError, match="no attribute 'evalute'"):
        zsrobust.evalute  # noqa: B018


def test_names_hold_whatever_was_imported_before():
    """A fresh process: importing brings no torch; evaluate stays the function after its module came first."""
    code = (
        "import sys, zsrobust as zr\n"
        "assert zr.Recipe and zr.Threat and zr.UserError and zr.open_set\n"
        "assert not {'torch', 'open_clip'} & set(sys.modules)\n"
        "import zsrobust.evaluation.evaluate\n"
        "from zsrobust import evaluate\n"
        "assert callable(evaluate) and zr.evaluate is evaluate\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
