"""Facts of data/cards.py and of the cards themselves."""

import re
import subprocess
import sys

import pytest

from zsrobust.data import card_names, load_card
from zsrobust.data.cards import HASH_RULE, parse_card
from zsrobust.errors import UserError


@pytest.mark.parametrize("name", card_names())
def test_every_card_is_whole(name):
    """It parses, states the hash rule, holds no machine's path, and says how to bring the set."""
    card = load_card(name)
    assert card.name == name
    assert card.hash_rule == HASH_RULE
    assert card.bring.strip()
    assert "\n" not in card.bring.strip()
    assert not re.search(r"(^|\s)(/|~)\w", card.model_dump_json())
    names = card.names()
    assert names is None or len(names) == card.classes


def test_the_cards_of_the_first_sets_exist():
    """The full sets and the eleven small folders."""
    assert {"cifar10", "imagenet", "mini/tiny_imagenet", "mini/flickr_captions"} <= set(
        card_names()
    )
    assert sum(name.startswith("mini/") for name in card_names()) == 11


def _content(**changes):
    content = load_card("cifar10").model_dump(mode="json")
    content["sources"][0].pop("splits", None)
    return content | changes


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"colour": "red"}, "colour: Extra inputs"),
        ({"split": "val"}, "split 'val' is none of splits: train, test"),
        ({"classes": 9}, "10 classnames, but classes: 9"),
        ({"classes": None}, "classes and classnames must both be given"),
        ({"classnames": "from-sauce"}, "classnames 'from-sauce'"),
        ({"templates": ["a photo"]}, "must hold {} once"),
        ({"resolution": "32"}, "resolution: Input should be 'model' or 'native'"),
        ({"splits": {"test": 0}}, "splits.test: Input should be greater than 0"),
        ({"sources": [{"kind": "wds", "wds": "/data/x"}]}, "sources.0.wds.wds"),
        ({"sources": [{"kind": "wds", "wds": "../x"}]}, "sources.0.wds.wds"),
        ({"sources": [{"kind": "ftp"}]}, "sources.0"),
        ({"name": "cifar"}, "its name says 'cifar'"),
    ],
)
def test_a_card_with_a_mistake_is_refused(changes, message):
    """The field and the mistake stand in one line."""
    with pytest.raises(UserError, match=re.escape(message)) as caught:
        parse_card(_content(**changes), "cifar10")
    assert "\n" not in str(caught.value)


def test_all_mistakes_are_told_together():
    """Two wrong fields give two mistakes."""
    with pytest.raises(UserError, match=r"version.*title"):
        parse_card(_content(version=0, title=None), "cifar10")


def test_an_unknown_card_is_answered_with_the_nearest():
    """Did you mean."""
    with pytest.raises(UserError, match="did you mean 'imagenet'"):
        load_card("imagnet")


def test_importing_the_package_imports_no_torch():
    """Listing sets stays fast."""
    code = (
        "import sys, zsrobust.data as d; [d.load_card(n) for n in d.card_names()];"
        "d.load_suite('mini'); sys.exit('torch' in sys.modules or 'PIL' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
