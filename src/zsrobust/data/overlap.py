"""Near-duplicate class names between a source and a target set, to be listed with results (traps 45)."""

from __future__ import annotations

import re
from collections.abc import Sequence


def near_duplicates(source: Sequence[str], target: Sequence[str]) -> list[tuple[str, str, str]]:
    """Return (target name, source name, why) for every pair that looks alike.

    Two names are near duplicates if, in lower case and singular, they are equal, the words of one all stand
    in the other, or they end in the same word (its head noun: "sports car", "police car"). The rule
    knows spelling, not meaning: a "golden retriever" is not found under "dog".
    """
    pairs = []
    for name in target:
        words = _words(name)
        for other in source:
            known = _words(other)
            if not words or not known:
                continue
            if words == known:
                why = "same name"
            elif set(words) <= set(known) or set(known) <= set(words):
                why = "words of one in the other"
            elif words[-1] == known[-1]:
                why = f"same head noun {words[-1]!r}"
            else:
                continue
            pairs.append((name, other, why))
    return pairs


def _words(name: str) -> list[str]:
    # Digits and accents count: "boeing 737-700" is not "boeing 737-800".
    return [_singular(word) for word in re.findall(r"[^\W_]+", name.lower())]


def _singular(word: str) -> str:
    if word.endswith("ies") and len(word) > 4:
        return word[:-3] + "y"
    if word.endswith("s") and not word.endswith(("ss", "us")) and len(word) > 3:
        return word[:-1]
    return word
