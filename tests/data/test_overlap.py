"""Near-duplicate class names: found by spelling, and nothing found where there is nothing."""

from __future__ import annotations

import pytest

from zsrobust.data.overlap import near_duplicates


@pytest.mark.parametrize(
    ("target", "source", "why"),
    [
        ("goldfish", "goldfish", "same name"),
        ("Goldfish", "goldfish", "same name"),
        ("tabby cat", "Tabby Cats", "same name"),
        ("wall_clock", "wall clock", "same name"),
        ("wall-clock", "wall clock", "same name"),
        ("butterfly", "butterflies", "same name"),
        ("747-400", "747 400", "same name"),
        ("café", "Café", "same name"),
        ("cat", "tabby cat", "words of one in the other"),
        ("egyptian cat", "cats", "words of one in the other"),
        ("police car", "sports car", "same head noun 'car'"),
        ("police cars", "sports car", "same head noun 'car'"),
    ],
)
def test_a_pair_that_looks_alike_is_named_with_its_reason(target, source, why):
    """Case, plural, underscore and hyphen do not matter; the target stands first."""
    assert near_duplicates([source], [target]) == [(target, source, why)]


@pytest.mark.parametrize(
    ("target", "source"),
    [
        ("dog", "golden retriever"),  # the rule knows spelling, not meaning
        ("car", "carpet"),
        ("car door", "car seat"),
        ("bus", "business"),
        ("glass", "gla"),
        ("cactus", "cactu"),
        ("boeing 737-700", "boeing 737-800"),
        ("speed limit 20", "speed limit 30"),
        ("cafe", "café"),
    ],
)
def test_other_names_are_no_pair(target, source):
    """Part of a word, a shared first word, or another number is no near duplicate."""
    assert near_duplicates([source], [target]) == []


def test_names_without_a_word_pair_with_nothing():
    """An empty set of words would lie in every other one."""
    assert near_duplicates(["", "?!"], ["cat", "-", ""]) == []


def test_pairs_come_in_the_order_of_target_and_source():
    """Every pair once; a name of the target may pair with several of the source."""
    found = near_duplicates(["sports car", "cat", "car"], ["dog", "race car", "cats"])
    assert [(target, source) for target, source, _ in found] == [
        ("race car", "sports car"),
        ("race car", "car"),
        ("cats", "cat"),
    ]


def test_nothing_pairs_with_nothing():
    """No class names, no pairs."""
    assert near_duplicates([], ["cat"]) == near_duplicates(["cat"], []) == []
