"""The table of image sets in docs/data.md, made of the cards."""

from __future__ import annotations

from zsrobust.data.cards import Card, card_names, load_card
from zsrobust.data.sets import load_suite, suite_names
from zsrobust.errors import UserError

_HEAD = ("card", "set", "split: images", "classes", "pixels", "attacked at", "texts", "suites")


def markdown_table() -> str:
    """Return one row a card of a whole public set (not of the small or drawn ones), as Markdown.

    "pixels" is the side of the stored images, "attacked at" where the ball lies unless another
    resolution is asked for, "texts" the card's own template with its first class name put in.
    """
    names = [name for name in card_names() if not name.startswith(("mini/", "demo/"))]
    members = {suite: load_suite(suite) for suite in suite_names()}
    rows = [_HEAD, ("---",) * len(_HEAD)]
    for name in names:
        card = load_card(name)
        suites = [s for s, suite in members.items() if name in suite.sets]
        suites += [f"{s} (source)" for s, suite in members.items() if name == suite.source]
        rows.append(
            (
                f"`{name}`",
                card.title,
                f"{card.split}: {card.splits[card.split]:,}",
                str(card.classes),
                str(card.native_size or "differ"),
                str(card.native_size) if card.resolution == "native" else "the model's size",
                _texts(card),
                ", ".join(suites) or "-",
            )
        )
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _texts(card: Card) -> str:
    template = (card.templates or ["{}"])[0]
    names = card.names()
    text = template.replace("{}", names[0] if names else "NAME")
    try:
        card.preset("clip-benchmark")
    except UserError:
        return f"{text!r}; not in CLIP benchmark"
    return repr(text)
