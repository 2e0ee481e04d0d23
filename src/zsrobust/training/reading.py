"""A recipe's text read strictly, and what a schema refuses put into words.

YAML by itself takes the last of two equal keys, and pydantic speaks of inputs and instances: neither
tells the person who wrote the file what to mend.
"""

from __future__ import annotations

import re
from collections.abc import Hashable
from typing import Any, get_args

import yaml
from pydantic import BaseModel

from zsrobust.errors import UserError, nearest, one_line, unknown_name

# Kind of a pydantic error -> what the value must be; of the others its own words are used.
_KINDS = {
    "int": "a whole number",
    "float": "a number",
    "finite": "a finite number",
    "bool": "true or false",
    "string": "a text",
    "list": "a list",
    "tuple": "a list",
    "dict": "a block of keys and values",
    "model": "a block of keys and values",
}


def read_yaml(text: str, what: str) -> Any:
    """Return what a YAML text holds: plain values alone, and no key twice in one block.

    Args:
        text: of one document.
        what: names it in messages.

    Raises:
        UserError: if it is not YAML, asks for anything but plain values, or holds a key twice; with
            line and column.
    """
    try:
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        _refuse_twice(node, what, set())
        return loader.construct_document(node)
    except yaml.YAMLError as error:
        raise UserError(f"{what} is not YAML of plain values: {_where(error)}.") from error
    except RecursionError as error:
        raise UserError(f"{what} is not YAML of plain values: it is nested too deeply.") from error


def _refuse_twice(node: yaml.Node, what: str, seen: set[int]) -> None:
    if id(node) in seen:  # an alias, maybe of what it stands in
        return
    seen.add(id(node))
    if isinstance(node, yaml.SequenceNode):
        for item in node.value:
            _refuse_twice(item, what, seen)
    elif isinstance(node, yaml.MappingNode):
        lines: dict[Hashable, int] = {}
        for key, value in node.value:
            name = (key.tag, key.value) if isinstance(key, yaml.ScalarNode) else id(key)
            line = key.start_mark.line + 1
            if name in lines:
                raise UserError(
                    f"{what}: the key {key.value!r} stands twice, in line {lines[name]} and line {line}; "
                    "leave one of them out."
                )
            lines[name] = line
            _refuse_twice(value, what, seen)


def _where(error: yaml.YAMLError) -> str:
    """Return line, column and cause of an error in YAML."""
    mark = getattr(error, "problem_mark", None)
    problem = getattr(error, "problem", None) or one_line(error)
    tag = re.search(r"constructor for the tag '([^']+)'", problem)
    if tag:
        named = tag[1].replace("tag:yaml.org,2002:", "!!")
        problem = f"the tag {named} asks for something that is never made"
    return f"line {mark.line + 1}, column {mark.column + 1}: {problem}" if mark else problem


def put_override(data: dict[str, Any], override: str) -> str:
    """Put "key=value" with a dotted key into a mapping, the value read as YAML; return the key.

    Raises:
        UserError: if it has not this form, or the key leads through a value.
    """
    key, equals, value = override.partition("=")
    key = key.strip()
    if not equals or not key:
        raise UserError(
            f"{override!r} is no override; write key=value, for instance optimiser.lr=1e-4."
        )
    *path, last = key.split(".")
    part = data
    for name in path:
        if part.get(name) is None:
            part[name] = {}
        part = part[name]
        if not isinstance(part, dict):
            raise UserError(
                f"{override!r}: {name!r} is a value, it has no keys under it; leave out what stands "
                "behind it."
            )
    part[last] = read_yaml(value, f"{override!r}: the value")
    return key


def in_words(errors: list[Any], schema: type[BaseModel]) -> str:
    """Return what a schema refused, all of it, in one line without a full stop at its end.

    Args:
        errors: of pydantic's ValidationError.
        schema: that refused; its blocks say which keys there are.
    """
    found: dict[tuple[str, str], list[str]] = {}
    for error in errors:
        key, words = _one(error, schema)
        given = error.get("input")
        simple = isinstance(given, str | int | float | None) and words.startswith("must ")
        # Of a value that may be of several types there is one error each.
        found.setdefault((key, f", got {given!r}" if simple else ""), []).append(words)
    lines = []
    for (key, shown), several in found.items():
        if not key:  # these say their key themselves
            lines += several
            continue
        said = list(dict.fromkeys(several))
        if f"must be {_KINDS['float']}" in said:  # a whole number is one
            said = [words for words in said if words != f"must be {_KINDS['int']}"]
        others = [words.removeprefix("must be ") for words in said[1:]]
        lines.append(f"{key}: {' or '.join([said[0], *others])}{shown}")
    return "; ".join(lines)


def _one(error: Any, schema: type[BaseModel]) -> tuple[str, str]:
    """Return the key of one error, and what is wrong with it."""
    part: type[BaseModel] | None = schema
    places: list[str] = []
    for place in error["loc"]:
        if isinstance(place, str) and part is None:
            break  # pydantic's name for one of the types that a value may have
        places.append(str(place))
        if isinstance(place, str) and part is not None:
            field = part.model_fields.get(place)
            part = _part_of(field.annotation) if field is not None else None
    key = ".".join(places)
    kind, given = error["type"], error.get("input")
    if kind == "extra_forbidden":
        block = _block(error["loc"][:-1], schema)
        words = str(unknown_name("key", places[-1], block.model_fields)).removesuffix(".")
        return "", words.replace(repr(places[-1]), repr(key), 1)
    if kind == "missing":
        if isinstance(error["loc"][-1], int):
            return ".".join(places[:-1]), f"value number {error['loc'][-1] + 1} is missing"
        return "", f"key {key!r} is missing"
    if kind == "value_error":  # one of ours: it says what was given
        return key, str(error["msg"]).removeprefix("Value error, ").removesuffix(".")
    if kind == "invalid_key":
        return key, "a key must be a text"
    if kind == "literal_error":
        near = nearest(str(given), re.findall(r"'([^']*)'", str(error["ctx"]["expected"])))
        if near and isinstance(given, str):
            return key, f"{given!r} is unknown, did you mean {' or '.join(map(repr, near))}?"
    wanted = _KINDS.get(kind.split("_")[0])
    if wanted is not None and kind.split("_")[1] in ("type", "parsing", "from", "number"):
        return key, f"must be {wanted}"
    if kind == "too_short":
        return key, "must not be empty"
    return key, str(error["msg"]).replace("Input should be", "must be")


def _block(places: tuple[str | int, ...], schema: type[BaseModel]) -> type[BaseModel]:
    """Return the block of keys at a place of the schema."""
    for name in places:
        if isinstance(name, str):  # a number is a place in a list of blocks
            schema = _part_of(schema.model_fields[name].annotation) or schema
    return schema


def _part_of(annotation: Any) -> type[BaseModel] | None:
    """Return the block that an annotation holds, bare or in `... | None` or `list[...]`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for a in get_args(annotation) if (found := _part_of(a))), None)


def has_numbers(annotation: Any) -> bool:
    """Whether a value of this annotation may be a number."""
    return annotation in (int, float) or any(has_numbers(a) for a in get_args(annotation))
