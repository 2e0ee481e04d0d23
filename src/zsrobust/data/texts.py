"""The words of class texts: what a stored class name becomes, and templates that have a name.

Three presets of templates exist: "paper" (a set's own texts in TeCoA's code), "openai" (the eighty
templates of open_clip's zero-shot builder, an ensemble) and "clip-benchmark" (the set's in CLIP
benchmark, which RobustVLM's numbers were made with). `ImageSet.texts` turns one of them, or
templates, into class names and templates.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from importlib import resources
from typing import Any, Literal

import yaml

from zsrobust.errors import UserError, nearest

NameRule = Literal["paper", "cars", "aircraft", "caltech256"]
PRESETS = ("paper", "openai", "clip-benchmark")
OPENAI = "openai"
PAPER_TEMPLATE = "This is a photo of a {}"


def by_rule(rule: NameRule | None, name: str) -> str:
    """Return the word for a class of a stored name; applied again it changes nothing more.

    Args:
        rule: "paper" is TeCoA's own (facts 2.5): lower case, `_`, `-` and `/` become spaces. The
            three others are its exceptions (facts 4.1): Stanford Cars lose the year at the end and
            keep `/`; aircraft that begin with 7 get Boeing in front and keep `-` and `/`;
            Caltech-256 loses number and "-101". None leaves the name as it is.
        name: as the set's own files have it.
    """
    if rule is None:
        return name
    if rule == "cars":
        return _spaced(re.sub(r" \d{4}$", "", name), "_-")
    if rule == "aircraft":
        return _spaced(f"Boeing {name}" if name.startswith("7") else name, "_")
    if rule == "caltech256":
        return _spaced(re.sub(r"^\d{3}\.", "", name).replace("-101", ""), "_-").strip()
    return _spaced(name, "_-/")


def _spaced(name: str, letters: str) -> str:
    return re.sub(f"[{re.escape(letters)}]", " ", name.lower())


def preset_of(templates: Sequence[str]) -> str | None:
    """Return the preset that is asked for, None for templates.

    Raises:
        UserError: for an unknown name, a preset beside others, a template without exactly one {},
            or none at all.
    """
    if not templates:
        raise UserError(
            "no templates given: name at least one, or leave them out for each set's own."
        )
    named = [template for template in templates if template in PRESETS]
    if named and len(templates) > 1:
        raise UserError(
            f"templates {named[0]!r} is a preset and stands alone: leave it or the others out."
        )
    if named:
        return named[0]
    for template in templates:
        if template.count("{}") != 1:
            near = [] if "{" in template or " " in template else nearest(template, PRESETS)
            mend = f"did you mean {near[0]!r}?" if near else f"or name one of {', '.join(PRESETS)}."
            raise UserError(
                f"template {template!r} must hold {{}} exactly once, where the name goes; {mend}"
            )
    return None


def openai_templates() -> list[str]:
    """Return the eighty templates of open_clip's zero-shot builder, made by CLIP's authors."""
    from open_clip.zero_shot_metadata import OPENAI_IMAGENET_TEMPLATES

    return [str(template("{}")) for template in OPENAI_IMAGENET_TEMPLATES]


def benchmark_keys() -> list[str]:
    """Return the names under which CLIP benchmark lists templates of sets that have a card."""
    return sorted(_benchmark())


def benchmark_templates(key: str) -> list[str]:
    """Return CLIP benchmark's templates of a set; "openai" are those that it takes for the others.

    Args:
        key: one of `benchmark_keys`, or "openai".
    """
    return openai_templates() if key == OPENAI else list(_benchmark()[key])


def _benchmark() -> dict[str, list[str]]:
    text = (resources.files("zsrobust.data") / "clip_benchmark.yaml").read_text("utf-8")
    content: Any = yaml.safe_load(text)
    return {str(key): [str(line) for line in lines] for key, lines in content.items()}


def equal_texts(names: Sequence[str]) -> list[tuple[str, list[int]]]:
    """Return the names that stand for several labels, upper and lower case alike, with the labels.

    The tokenizer lower-cases, so that such classes have one text under every template (traps 16, 57).
    """
    labels: dict[str, list[int]] = {}
    for label, name in enumerate(names):
        labels.setdefault(" ".join(name.lower().split()), []).append(label)
    return [(name, found) for name, found in labels.items() if len(found) > 1]
