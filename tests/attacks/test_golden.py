"""Ours against the reference AutoAttack, attack by attack, on the golden networks."""

from __future__ import annotations

import pytest

from . import golden

pytestmark = pytest.mark.skipif(golden.folder() is None, reason="ZSROBUST_GOLDEN names no folder")

IN_TIME = ["cnn-robust_Linf_8-255", "cnn-2class_Linf_4-255", "cnn-3class_Linf_8-255"]


def cases(labels: list[str], *, square: bool) -> list[tuple[str, str]]:
    """Return (case, attack) pairs; `square`: with those that spend 5,000 queries on a survivor."""
    if golden.folder() is None:
        return []
    long = () if square else ("square", "standard")
    return [(label, kind) for label in labels for kind in golden.kinds(label) if kind not in long]


def check(found: golden.Comparison) -> None:
    assert found.too_weak <= 0, found
    if found.differ_allowed is not None:
        assert found.differ <= found.differ_allowed, found


@pytest.mark.parametrize(("label", "kind"), cases(IN_TIME, square=False))
def test_no_weaker_than_the_reference(label: str, kind: str) -> None:
    """One seed: as many broken but one; with FAB and APGD the same samples, but for the few that are allowed."""
    check(golden.compare(label, kind, [0]))


@pytest.mark.slow
@pytest.mark.parametrize(("label", "kind"), cases(list(golden.CASES), square=True))
def test_no_weaker_than_the_reference_over_three_seeds(label: str, kind: str) -> None:
    """Every attack, network and norm that the reference was run on."""
    check(golden.compare(label, kind, [0, 1, 2]))
