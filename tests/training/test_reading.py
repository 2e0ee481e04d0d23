"""A recipe's text: YAML of plain values, no key twice, and a schema's complaints in words."""

from __future__ import annotations

from typing import Literal

import pytest
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from zsrobust.errors import UserError
from zsrobust.training.reading import in_words, put_override, read_yaml


def test_plain_values_are_read_as_yaml_reads_them():
    """Also anchors and merges, in which a key that is overridden does not stand twice."""
    text = "base: &b {lr: 1, x: [1, two, null]}\nmine: {<<: *b, lr: 2}\nyours: {<<: *b}\n"
    assert read_yaml(text, "text") == {
        "base": {"lr": 1, "x": [1, "two", None]},
        "mine": {"lr": 2, "x": [1, "two", None]},
        "yours": {"lr": 1, "x": [1, "two", None]},
    }
    assert read_yaml("", "text") is None


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: 1\nb:\n  - c: 1\n    c: 2\n", "text: the key 'c' stands twice, in line 3 and line 4"),
        ("a: &x\n  b: *x\na: 1\n", "the key 'a' stands twice, in line 1 and line 3"),
        ("a: [", "line 1, column 5"),
        (
            "a: !!python/name:os.system",
            "line 1, column 4: the tag !!python/name:os.system asks for",
        ),
        ("a: !mine 1", "the tag !mine asks for something that is never made"),
    ],
)
def test_what_yaml_would_take_and_a_person_would_not(text, words):
    """The place of the mistake is said."""
    with pytest.raises(UserError) as caught:
        read_yaml(text, "text")
    assert words in str(caught.value)


def test_an_override_makes_the_blocks_that_it_needs():
    """Also where the file says null."""
    data = {"a": None, "n": 1}
    assert put_override(data, "a.b.c=[1, x]") == "a.b.c"
    assert data == {"a": {"b": {"c": [1, "x"]}}, "n": 1}
    with pytest.raises(UserError, match="'n' is a value, it has no keys under it"):
        put_override(data, "n.b=1")


class Inner(BaseModel):
    model_config = ConfigDict(extra="forbid")

    kind: Literal["big", "small"] = "big"
    count: int | Literal["auto"] = Field(default=1, ge=1)


class Outer(BaseModel):
    model_config = ConfigDict(extra="forbid")

    inner: Inner
    many: list[Inner] = []
    flag: bool = False


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({}, "key 'inner' is missing"),
        ({"inner": 5}, "inner: must be a block of keys and values, got 5"),
        ({"inner": {"kind": "bgi"}}, "inner.kind: 'bgi' is unknown, did you mean 'big'?"),
        ({"inner": {"kind": "zzz"}}, "inner.kind: must be 'big' or 'small', got 'zzz'"),
        ({"inner": {"count": "x"}}, "inner.count: must be a whole number or 'auto', got 'x'"),
        ({"inner": {}, "many": 1}, "many: must be a list, got 1"),
        (
            {"inner": {}, "many": [{}, {"cuont": 1}]},
            "unknown key 'many.1.cuont': did you mean 'count'?",
        ),
        ({"inner": {}, "flag": "x"}, "flag: must be true or false, got 'x'"),
        (
            {"inner": {"kind": 3}, "flug": 1, "flag": []},
            "inner.kind: must be 'big' or 'small', got 3; flag: must be true or false; "
            "unknown key 'flug': did you mean 'flag'?",
        ),
    ],
)
def test_a_schemas_complaints_in_words(data, words):
    """Each with its key, all in one line."""
    with pytest.raises(ValidationError) as caught:
        Outer.model_validate(data)
    assert in_words(caught.value.errors(), Outer) == words
