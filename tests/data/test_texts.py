"""Facts of data/texts.py, of the cards' texts, and of the table in docs/data.md."""

import re
from pathlib import Path

import pytest

from zsrobust.data import card_names, load_card, load_suite, open_set
from zsrobust.data.listing import markdown_table
from zsrobust.data.texts import (
    PRESETS,
    benchmark_keys,
    benchmark_templates,
    by_rule,
    equal_texts,
    preset_of,
)
from zsrobust.errors import UserError

DOCS = Path(__file__).parents[2] / "docs"


@pytest.mark.parametrize(
    ("rule", "stored", "name"),
    [
        ("paper", "Aquarium_fish", "aquarium fish"),
        ("paper", "apartment-building/outdoor", "apartment building outdoor"),
        ("cars", "Ram C/V Cargo Van Minivan 2012", "ram c/v cargo van minivan"),
        ("cars", "Acura TL Type-S 2008", "acura tl type s"),
        ("aircraft", "737-700", "boeing 737-700"),
        ("aircraft", "F-16A/B", "f-16a/b"),
        ("caltech256", "015.bonsai-101", "bonsai"),
        ("caltech256", "232.t-shirt", "t shirt"),
        (None, "As_It-is", "As_It-is"),
    ],
)
def test_rules_of_names(rule, stored, name):
    """As facts 2.5 and 4.1 say; a second time changes nothing."""
    assert by_rule(rule, stored) == name
    assert by_rule(rule, name) == name


@pytest.mark.parametrize("name", [n for n in card_names() if not n.startswith(("mini/", "demo/"))])
def test_every_list_has_its_length_and_no_problem(name):
    """Under the card's own texts and under each preset that it has."""
    card = load_card(name)
    assert card.check()[0] == []
    for preset in PRESETS:
        if preset == "clip-benchmark" and preset not in card.texts:
            continue
        names, templates = card.preset(preset)
        assert names is None or len(names) == card.classes
        assert all(template.count("{}") == 1 for template in templates)
        assert len(templates) == {"paper": 1, "openai": 80}.get(preset, len(templates))


def test_the_papers_sixteen_templates():
    """Facts 4.1, word for word."""
    texts = {
        "caltech256": "A photo of a {}.",
        "cars": "A photo of a {}.",
        "food101": "A photo of {}, a type of food.",
        "pets": "A photo of a {}, a type of pet.",
        "flowers102": "A photo of a {}, a type of flower.",
        "dtd": "A surface with a {} texture.",
        "eurosat": "A centered satellite photo of {}.",
        "fgvc_aircraft": "A photo of a {}, a type of aircraft.",
        "pcam": "{}",
        "hateful_memes": "a {}.",
    }
    suite = load_suite("paper16")
    assert len(suite.sets) == 15
    for name in [suite.source, *suite.sets]:
        templates = load_card(name).preset("paper")[1]
        assert templates == [texts.get(name, "This is a photo of a {}")]


def test_counts_and_resolutions_of_the_papers_sets():
    """Facts 4.1: images used, classes, size at the attack."""
    table = {
        "imagenet": (1000, 50000),
        "cifar10": (10, 10000),
        "cifar100": (100, 10000),
        "stl10": (10, 8000),
        "caltech101": (101, 8677),
        "caltech256": (257, 30607),
        "sun397": (397, 108754),
        "cars": (196, 8041),
        "food101": (101, 25250),
        "pets": (37, 3669),
        "flowers102": (102, 6149),
        "dtd": (47, 1880),
        "eurosat": (10, 27000),
        "fgvc_aircraft": (100, 3333),
        "pcam": (2, 32768),
        "hateful_memes": (2, 3000),
        "country211": (211, 21100),
        "tiny_imagenet": (200, 10000),
    }
    for name, (classes, images) in table.items():
        card = load_card(name)
        assert (card.classes, card.splits[card.split]) == (classes, images)
        native = {"cifar10": 32, "cifar100": 32, "stl10": 96}
        assert card.resolution == ("native" if name in native else "model")
        assert card.native_size == native.get(name, card.native_size)


def test_single_names_of_presets():
    """A few that the facts state."""
    paper = {
        name: load_card(name).preset("paper")[0] for name in ("imagenet", "flowers102", "pcam")
    }
    assert (paper["imagenet"][278], paper["imagenet"][134]) == ("kit fox", "crane")
    assert equal_texts(paper["imagenet"]) == [
        ("crane", [134, 517]),
        ("cardigan", [264, 474]),
        ("maillot", [638, 639]),
    ]
    assert "pink yellow dahlia?" in paper["flowers102"]
    assert "cyclamen " in paper["flowers102"]
    assert paper["pcam"][0] == "Tthis is a photo of healthy lymph node tissue."
    assert load_card("pcam").names()[0] == "healthy lymph node tissue"
    assert "aquarium_fish" in load_card("cifar100").preset("clip-benchmark")[0]
    assert "Kosovo" in load_card("country211").preset("paper")[0]
    assert equal_texts(load_card("cars").names())[1] == ("bentley continental gt coupe", [41, 42])


def test_templates_of_clip_benchmark():
    """The numbers of templates; for the sets that it does not list, the eighty of ImageNet."""
    counts = {key: len(benchmark_templates(key)) for key in benchmark_keys()}
    assert counts == {
        "caltech101": 34,
        "cars": 8,
        "cifar10": 18,
        "cifar100": 18,
        "country211": 5,
        "dtd": 8,
        "eurosat": 3,
        "fgvc_aircraft": 2,
        "flowers": 1,
        "food101": 1,
        "pcam": 2,
        "pets": 1,
        "stl10": 2,
        "sun397": 2,
    }
    assert len(load_card("imagenet_r").preset("clip-benchmark")[1]) == 80
    for name in load_suite("robustvlm13").sets:
        assert load_card(name).preset("clip-benchmark")[1]


def test_what_templates_may_be():
    """A preset alone, or texts with one place each."""
    assert preset_of(["a {}."]) is None
    assert preset_of(["openai"]) == "openai"
    for given, message in (
        ([], "no templates given"),
        (["openai", "a {}."], "'openai' is a preset and stands alone"),
        (["a photo"], r"must hold \{\} exactly once, where the name goes; or name one of paper"),
        (["{} {}"], r"must hold \{\} exactly once"),
        (["clip-bench"], "did you mean 'clip-benchmark'"),
    ):
        with pytest.raises(UserError, match=message):
            preset_of(given)


def test_texts_of_an_opened_set(pets):
    """A set without a card has the paper's general texts, and none of CLIP benchmark."""
    assert pets.texts(None) == (["cat", "dog"], None)
    assert pets.texts(["a {}.", "the {}."]) == (["cat", "dog"], ["a {}.", "the {}."])
    assert pets.texts(["paper"]) == (["cat", "dog"], ["This is a photo of a {}"])
    assert len(pets.texts(["openai"])[1]) == 80
    with pytest.raises(UserError, match="only sets with a card have them, 'pets' has none"):
        pets.texts(["clip-benchmark"])
    shapes = open_set("demo/shapes")
    assert shapes.texts(["paper"])[1] == ["This is a photo of a {}"]
    with pytest.raises(UserError, match="CLIP benchmark has no texts for demo/shapes"):
        shapes.texts(["clip-benchmark"])


def test_the_table_in_the_docs_is_made_of_the_cards():
    """`zsrobust data list --markdown` prints it."""
    page = (DOCS / "data.md").read_text("utf-8")
    found = re.search(r"<!-- table of sets -->\n(.*?)\n<!-- end of table -->", page, re.DOTALL)
    assert found is not None
    assert found[1].strip() == markdown_table()
