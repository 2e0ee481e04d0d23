"""The page: the table's own numbers, self-contained, small, and safe against what names may hold."""

from __future__ import annotations

import html
import json
import re
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import yaml

from zsrobust.errors import UserError
from zsrobust.evaluation.table import EvaluationTable
from zsrobust.report import build_report
from zsrobust.report.summary import summarise
from zsrobust.training.recipe import parse_recipe
from zsrobust.training.run import Run

from .conftest import EPS, HOSTILE, LABELS, MODELS, SETS, example, row, table


class Page(HTMLParser):
    """Tables as lists of rows of texts, every tag with its attributes, and all text."""

    VOID = frozenset({"meta", "img", "br", "wbr", "link", "input"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tables: list[list[list[str]]] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.text += data
        if {"td", "th"} & set(self.open) and "sup" not in self.open:
            self.tables[-1][-1][-1] += data


def build(of: EvaluationTable, tmp_path: Path, **given: Any) -> tuple[str, Page]:
    path = build_report(of, tmp_path / "report.html", **{"title": "Toy", "labels": LABELS, **given})
    text = path.read_text("utf-8")
    return text, Page(text)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Page]:
    """The toy table's page with an example a set; to be read only."""
    folder = tmp_path_factory.mktemp("built")
    found = build(table(), folder, examples=[example(name) for name in SETS])
    assert [file.name for file in folder.iterdir()] == ["report.html"]
    return found


def numbers(text: str) -> list[float]:
    return [float(n) for n in re.findall(r"[-+]?\d+\.\d", text.replace("\N{MINUS SIGN}", "-"))]


def rounded(*values: float) -> list[float]:
    return [float(f"{100 * value:.1f}") for value in values]


def test_the_page_holds_the_numbers_of_the_table(built, toy_table):
    """Every set, the mean, intervals and paired differences, at one decimal."""
    _, page = built
    shown = {cells[0]: cells[1:] for cells in page.tables[0][2:]}
    whole = toy_table.to_json()
    assert [name.split("200 images")[0] for name in shown][:-1] == SETS
    wanted: dict[str, list[list[float]]] = {}
    minus = {d["model"]: d for d in whole["differences"] if d["minus"] == MODELS[0]}
    for column in ("clean", "robust"):
        for model in MODELS:
            of_model = [r for r in whole["rows"] if r["model"] == model]
            mean = next(m for m in whole["means"] if m["model"] == model)["mean"][column]
            lines = [(r["set"], r["accuracy"][column]) for r in of_model] + [("mean", mean)]
            for name, n in lines:
                cell = rounded(n["value"], n["low"], n["high"])
                if model in minus:
                    d = minus[model]
                    d = d["mean"][column] if name == "mean" else d["per_set"][name][column]
                    cell += rounded(d["value"], d["low"], d["high"])
                wanted.setdefault(name, []).append(cell)
    for name, cells in shown.items():
        key = "mean" if name.startswith("mean of 6 sets") else name.split("200 images")[0]
        assert [numbers(cell) for cell in cells] == wanted[key]


def test_every_two_models_are_compared(built, toy_table):
    """A table of the means' differences, and a sentence on the models that are not the first."""
    _, page = built
    (shown,) = (t for t in page.tables if t[0][0] == "models")
    assert shown[0] == ["models", "right on clean images", "right under attack"]
    pairs = [(1, 0), (2, 0), (1, 2)]
    assert len(shown) == 1 + len(pairs)
    for (a, b), (name, *cells) in zip(pairs, shown[1:], strict=True):
        assert name == f"{LABELS[MODELS[a]]} minus {LABELS[MODELS[b]]}"
        for column, cell in zip(("clean", "robust"), cells, strict=True):
            d = toy_table.difference(MODELS[b], MODELS[a], EPS, column)
            assert numbers(cell) == rounded(d.value, d.low, d.high)
    (summary,) = summarise(toy_table, LABELS)
    assert f"{summary.pairs[0].sentence}." in " ".join(page.text.split())


def test_two_models_need_no_table_of_pairs(tmp_path):
    """What is to be said stands in the table of the sets."""
    rows = [r for r in table().rows if r.model in MODELS[:2]]
    _, page = build(EvaluationTable("x", table().request, rows), tmp_path)
    assert not [t for t in page.tables if t[0][0] == "models"]
    assert "against FT" not in page.text


def test_the_headline_and_the_tiles_hold_the_means(built, toy_table):
    """The sentence of each hardened model, with the differences; and the threat stands beside it."""
    _, page = built
    text = " ".join(page.text.split())
    for model in MODELS[1:]:
        first, own = (toy_table.mean(m, EPS, "robust") for m in (MODELS[0], model))
        gain = toy_table.difference(MODELS[0], model, EPS, "robust")
        sentence = (
            f"{LABELS[model]}: {100 * first.value:.1f}% → {100 * own.value:.1f}% of the images"
        )
        assert sentence in text
        assert f"({100 * gain.value:+.1f} points" in text
    assert "6 target sets, 1,200 images; linf, eps 4/255, images of 32 × 32 pixels" in text  # noqa: RUF001
    assert "attacked by pgd-20 and cw-margin-20" in text
    for model in MODELS:
        assert f"{100 * toy_table.mean(model, EPS, 'clean').value:.1f}%" in text


def test_every_section_is_there(built):
    """In the order of a reader with ten seconds, then ten minutes."""
    text, page = built
    heads = re.findall(r"<h2[^>]*>([^<]+)</h2>", text)
    wanted = ["Every set", "Set by set", "Clean against robust", "Examples", "Protocol", "Glossary"]
    assert heads == wanted
    links = [a["href"] for tag, a in page.tags if tag == "a" and not a["href"].startswith("#flag")]
    ids = {a["id"] for _, a in page.tags if a.get("id")}
    assert links
    assert all(link[1:] in ids for link in links)
    assert text.index("Can I trust it?") < text.index("Every set")


def test_the_file_stands_alone(built):
    """One file; nothing is loaded, no script runs, and the page itself forbids both."""
    text, page = built
    for tag, attributes in page.tags:
        assert tag not in ("script", "link", "iframe", "object", "embed", "base", "form")
        assert not any(name.startswith("on") for name in attributes)
        for name in ("src", "href", "xlink:href", "srcset", "data", "action", "poster"):
            value = attributes.get(name)
            assert value is None or value.startswith(("data:image/png;base64,", "#")), (tag, value)
    assert "://" not in text
    assert "@import" not in text
    assert re.findall(r"url\((?!#)", text) == []
    policy = next(a["content"] for t, a in page.tags if a.get("http-equiv"))
    assert policy == "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


def test_it_stays_under_a_megabyte(tmp_path, toy_table):
    """Six sets, three models, six examples of random 64 px pictures, which no PNG can shrink."""
    shown = [example(name, side=64) for name in SETS]
    text, _ = build(toy_table, tmp_path, examples=shown)
    assert len(text.encode()) < 2**20
    large = [example(name, side=224) for name in SETS]
    text, _ = build(toy_table, tmp_path, examples=large)
    assert len(text.encode()) < 1.5 * 2**20


def test_ids_are_given_once(tmp_path, toy_table, toy_examples):
    """Plots of one page do not share ids, and what a plot refers to is its own."""
    both = table()
    both.rows += [r for r in table(eps=1 / 255).rows]
    text, page = build(both, tmp_path, examples=toy_examples)
    ids = [a["id"] for _, a in page.tags if a.get("id")]
    flags = [name for name in ids if name.startswith("flag-")]
    ids = [name for name in ids if name not in flags]
    assert len(ids) == len(set(ids))
    used = re.findall(r'(?:href="#|url\(#)([^")]+)', text)
    assert used
    assert set(used) <= set(ids) | set(flags)


def test_hostile_names_are_text(tmp_path):
    """Class names, set names, ids, labels, titles and notes hold tags, quotes, dollars and braces."""
    name = "wild/<img src=x onerror=alert(1)>&_$a$"
    rows = [row(model, name, classnames=HOSTILE) for model in MODELS]
    source = [row(m, "src", classnames=["a & b"], is_source=True) for m in MODELS]
    wild = EvaluationTable("x", table().request, [*rows, *source])
    labels = {MODELS[0]: "<b>CLIP</b>", MODELS[1]: "$\\frac{1}{2}$ & co"}
    text, page = build(
        wild,
        tmp_path,
        title="<h1>&",
        about="Hardened <within> 2/255.",
        labels=labels,
        examples=[example("demo/<i>", true_class=one) for one in HOSTILE],
        notes=["<u>note</u>"],
        commands=["zsrobust report '<dir>' && true"],
    )
    allowed = {"b", "script", "img", "i", "u"}
    counts = {tag: sum(t == tag for t, _ in page.tags) for tag in allowed}
    assert counts["script"] == counts["b"] == counts["u"] == 0
    assert counts["img"] == 5 * 5  # clean, and two for each of two models
    assert all("onerror" not in attributes for _, attributes in page.tags)
    for one in [*HOSTILE, *labels.values(), "<u>note</u>", "demo/<i>", name, "<h1>&", "<within>"]:
        assert one in page.text
    assert "49" not in re.findall(r"class names</dt><dd>(.*?)</dd>", text)[0]


def test_a_source_is_apart_and_in_no_mean(tmp_path, built):
    """Below the mean, said to be the source; near-duplicate names are listed against it."""
    with_source = table()
    with_source.rows += [
        row(m, "demo/source", is_source=True, classnames=["red circle", "boat"]) for m in MODELS
    ]
    text, page = build(with_source, tmp_path)
    names = [cells[0] for cells in page.tables[0][2:]]
    assert names[-1].startswith("demo/source")
    assert "source, in no mean" in names[-1]
    assert names[-2].startswith("mean of 6 sets")
    _, without = built
    assert page.tables[0][-2] == without.tables[0][-1]
    assert "demo/source (source, in no mean)" in text
    pairs = page.tables[-1][1:]
    assert ["demo/shapes", "circle", "red circle", "words of one in the other"] in pairs
    assert len(pairs) == 6
    assert "Class names alike" not in without.text


def test_a_source_alone_has_no_headline(tmp_path):
    """No target set, no mean, no plot; the numbers are shown all the same."""
    only = EvaluationTable(
        "x", table().request, [row(m, "demo/source", is_source=True) for m in MODELS]
    )
    text, page = build(only, tmp_path)
    assert "Only the source set was measured: there is no zero-shot mean." in text
    assert "<svg" not in text
    assert page.tables[0][-1][0].startswith("demo/source")


def test_clean_alone_says_nothing_of_attacks(tmp_path):
    """One column group, no scatter, no eps."""
    clean = table(eps=None, attacks=[])
    clean.request |= {"attacks": [], "eps": []}
    text, page = build(clean, tmp_path)
    assert [t[0][0] for t in page.tables] == ["set", "models"]
    assert len(page.tables[1][1]) == 2  # no column of attacks
    assert len(page.tables[0][2]) == 1 + len(MODELS)
    assert "clean images only" in page.text
    assert "Clean against robust" not in page.text
    assert text.count("<svg") == 1


def test_several_radii_stand_side_by_side(tmp_path):
    """Each with its headline, table and plots."""
    both = table()
    both.rows += table(eps=1 / 255).rows
    text, page = build(both, tmp_path)
    assert text.count("<svg") == 7  # and one of accuracy against eps
    assert re.findall(r"<h2>(linf, eps [^<]+)</h2>", text) == ["linf, eps 4/255", "linf, eps 1/255"]
    assert len([t for t in page.tables if t[0][0] == "set" and "right" in t[0][1]]) == 2


def test_native_resolution_is_said(tmp_path):
    """A number without its resolution is not printed (traps 48)."""
    _, page = build(table(resolution="native"), tmp_path)
    assert "images of each set's own size" in page.text


def test_flags_stand_at_their_numbers_and_are_explained(tmp_path, built):
    """Forty samples are few: a mark at each wide number, what it means and what to do below."""
    few = table(samples=40)
    text, page = build(few, tmp_path)
    marked = len(re.findall(r'<sup><a href="#flag-few-samples"', text))
    wide = sum(c in ("clean", "robust") for r in few.rows for c in _wide(r))
    assert marked == wide > 0
    assert f"({marked} numbers)" in page.text
    assert f"few-samples on {marked} numbers" in page.text
    assert "the 95% interval is wider than 15 points" in page.text
    assert "raise --limit" in page.text
    silent, _ = built
    assert 'href="#flag' not in silent
    assert "No flag is raised" in silent


def _wide(of: Any) -> set[str]:
    return {"clean" if flag.column == "clean" else "robust" for flag in of.flags}


def test_examples_show_pictures_and_answers(tmp_path, toy_table, toy_examples):
    """Broken, held, and wrong before any attack."""
    text, page = build(toy_table, tmp_path, examples=toy_examples[:1])
    words = " ".join(page.text.split())
    assert "the first image of its fixed order that CLIP gets right unattacked" in words
    assert "demo/shapes, sample 0007, 3 classes; pgd-20 at linf, eps 4/255" in words
    assert "under attack, broken at query 3" in words
    assert "under attack, held to the end" in words
    captions = re.findall(r"<figcaption>(attacked image|last image)</figcaption>", text)
    assert captions == [
        "attacked image",
        "last image",
    ]  # what broke the first model; where the second held
    assert "wrong before any attack: not attacked" in words
    assert "perturbation ×31.88" in words  # noqa: RUF001 - 1 / (2 * 4/255)
    pictures = [a for t, a in page.tags if t == "img"]
    assert len(pictures) == 5
    assert all(a["alt"] for a in pictures)
    assert all((a["width"], a["height"]) == ("128", "128") for a in pictures)


def test_examples_claim_no_more_than_is_known(tmp_path, toy_table, toy_examples):
    """Broken on the way, right again at the end; and a class with a twin's name that was right all the same."""
    first, second, _ = toy_examples[0].attacked
    gone_on = replace(first, shown="last image", said="circle", right=True)
    twin = replace(second, said_clean="disc", said="disc")
    one = replace(toy_examples[0], attacked=[gone_on, twin])
    text, page = build(toy_table, tmp_path, examples=[one])
    words = " ".join(page.text.split())
    assert "under attack, broken at query 3; the last image:✓ right: circle" in words
    assert words.count("✓ right: disc") == 2
    assert "✗" not in re.findall(r"<article.*?</article>", text, flags=re.DOTALL)[0]
    assert "<figcaption>attacked image</figcaption>" not in text
    assert "query 0 is the random start itself" in words


def test_plots_and_tables_can_be_read_without_sight(built):
    """Plots have a text, header cells a scope, scrolling boxes a name."""
    _, page = built
    plots = [a for t, a in page.tags if t == "svg"]
    assert len(plots) == 3
    assert all(a["role"] == "img" and "%" in a["aria-label"] for a in plots)
    assert all(a.get("scope") for t, a in page.tags if t == "th")
    assert all(
        a.get("aria-label") and a.get("tabindex") == "0"
        for t, a in page.tags
        if a.get("class") == "scroll"
    )


def test_the_protocol_holds_every_setting(tmp_path, toy_table):
    """Request, attacks, weights, texts, recipes as resolved, versions, commands, notes."""
    recipe = parse_recipe(
        {
            "name": "toy",
            "model": "mini-clip",
            "source": {"set": "mini/nowhere"},
            "optimiser": {"lr": 0.001},
        }
    )
    run = Run(tmp_path / "runs" / "toy", recipe)
    run.folder.mkdir(parents=True)
    run.log.write_text(
        '{"event": "start", "trained_numbers": 1234}\n'
        '{"event": "validation", "samples": 50, "clean": 0.5, "robust": 0.25}\n'
    )
    _, page = build(
        toy_table, tmp_path, runs=[run], commands=["zsrobust demo"], notes=["One set is missing."]
    )
    words = " ".join(page.text.split())
    for wanted in (
        "20 steps of eps/4 on the margin loss from a random start",
        "a photo of a {}.",
        "circle, square, triangle",
        toy_table.rows[0].key["weights"],
        "zsrobust 0.1.0, torch 2.0, device cpu",
        "zsrobust demo",
        "One set is missing.",
        "weight_decay: 0.0",
        "1,234 trained numbers",
        "on 50 held-out source images 50.0% clean and 25.0% robust",
        "guessing 33.3%",
    ):
        assert wanted in words, wanted


@pytest.mark.parametrize("labels", [LABELS, None])
def test_the_page_tells_no_folder(tmp_path, labels):
    """Runs below the page's folder from there, others by their name; the same for specs, labels and notes."""
    (tmp_path / "out").mkdir()
    inside, outside = tmp_path / "out" / "runs" / "tecoa", tmp_path / "elsewhere" / "adv"
    specs = dict(
        zip(MODELS, ["local-dir:/models/clip", f"run:{inside}", f"run:{outside}"], strict=True)
    )
    rows = [type(r)(**{**_fields(r), "model": specs[r.model]}) for r in table().rows]
    examples = [
        replace(e, attacked=[replace(a, model=specs[a.model]) for a in e.attacked])
        for e in (example(name) for name in SETS)
    ]
    recipe = {"name": "toy", "model": specs[MODELS[0]], "source": {"set": "mini/nowhere"}}
    recipe = parse_recipe({**recipe, "optimiser": {"lr": 0.001}})
    text, page = build(
        EvaluationTable("demo", table().request, rows),
        tmp_path / "out",
        labels=None if labels is None else {specs[m]: name for m, name in labels.items()},
        examples=examples,
        runs=[Run(inside, recipe), Run(outside, recipe)],
        notes=[
            f"x is left out: not measured yet for run:{tmp_path}/gone/late, {specs[MODELS[1]]}."
        ],
    )
    assert str(tmp_path) not in text
    assert "/models" not in text
    words = " ".join(page.text.split())
    for shown in ("local-dir:clip", "run:runs/tecoa", "run:adv"):
        assert f" {shown} " in words
    assert "written to runs/tecoa" in words
    assert "written to adv" in words
    assert "not measured yet for run:late, run:runs/tecoa." in words
    assert "model: local-dir:clip" in words


def test_sets_named_by_their_folders_do_not_tell_them(tmp_path):
    """Two of one name have their specs as titles; and a recipe may name its images so."""
    sets = [f"folder:{tmp_path}/elsewhere/{part}/val" for part in "ab"] + [SETS[0]]
    rows = [row(model, name) for model in MODELS for name in sets]
    recipe = {"name": "toy", "model": "mini-clip", "source": {"set": f"folder:{tmp_path}/source"}}
    recipe["evaluate"] = {"sets": f"mini/gtsrb,wds:{tmp_path}/tars", "eps": "1/255"}
    run = Run(tmp_path / "toy", parse_recipe({**recipe, "optimiser": {"lr": 0.001}}))
    (tmp_path / "out").mkdir()
    given = EvaluationTable("x", table().request, rows)
    text, page = build(given, tmp_path / "out", runs=[run])
    assert str(tmp_path) not in text
    names = [cells[0].split("200 images")[0] for cells in page.tables[0][2:-1]]
    assert names == ["folder:val (1)", "folder:val (2)", SETS[0]]
    assert "set: folder:source" in text
    assert "sets: mini/gtsrb,wds:tars" in text
    assert [r.image_set for r in given.rows] == sets * 3  # the caller's table is as it was


def test_runs_of_one_name_outside_keep_apart(tmp_path):
    """Their labels are alike, and so are their specs as the page shows them: their places are added."""
    specs = {MODELS[0]: "mini-clip", MODELS[1]: "run:/a/run", MODELS[2]: "run:/b/run"}
    rows = [type(r)(**{**_fields(r), "model": specs[r.model]}) for r in table().rows]
    _, page = build(EvaluationTable("x", table().request, rows), tmp_path, labels=None)
    assert page.tables[0][1] == ["mini-clip", "run:run (2)", "run:run (3)"] * 2


def _fields(of: Any) -> dict[str, Any]:
    return {name: getattr(of, name) for name in of.__dataclass_fields__}


def test_a_recipe_says_what_null_stood_for(tmp_path, toy_table):
    """A value where it has one, words where not; it stays a recipe that trains the same."""
    given = {
        "name": "toy",
        "model": "mini-clip",
        "source": {"set": "mini/nowhere"},
        "validation": {},
        "threat": {"eps": 4 / 255},
        "optimiser": {"lr": 0.001},
        "evaluate": {"sets": "mini", "eps": "1/255"},
    }
    shown = {}
    for name, log in (("tecoa", True), ("adv", True), ("tecoa", False)):
        recipe = parse_recipe({**given, "objective": {"name": name}})
        run = Run(tmp_path / f"{name} {log}", recipe)
        if log:
            run.folder.mkdir()
            start = {"event": "start", "steps": 500, "threads": 3, "templates": ["a {}."]}
            run.log.write_text(json.dumps(start) + "\n")
        text, page = build(toy_table, tmp_path, runs=[run])
        recipe_text = html.unescape(re.findall(r"<pre>(name: toy.*?)</pre>", text, re.DOTALL)[0])
        assert not re.search(r": null$", recipe_text, re.MULTILINE)
        again = parse_recipe(yaml.safe_load(recipe_text))
        assert again.step_size() == recipe.step_size()
        shown[name, log] = yaml.safe_load(recipe_text), recipe_text, page.text
    values, words, page_text = shown["tecoa", True]
    assert values["adversary"]["step_size"] == 4 / 255
    assert values["schedule"]["warmup"] == 50
    assert (values["threads"], values["source"]["templates"]) == (3, ["a {}."])
    assert values["validation"]["set"] == "mini/nowhere"
    assert "temperature: null  # the model's own, 1 / exp(logit scale)" in words
    assert "head_start: null  # no head" in words
    assert "linear head" not in page_text
    values, words, page_text = shown["adv", True]
    assert values["objective"]["head_start"] == "random"
    assert "temperature: null  # none" in words
    assert "its linear head starts at random, is trained along" in page_text
    values, words, _ = shown["tecoa", False]
    assert "warmup: null  # min(1000, 10% of the steps)" in words
    assert "threads: null  # as they were" in words


def test_intervals_are_explained(built):
    """What stands in where resampling shows nothing is said."""
    assert "Where every set's values are equal among themselves" in built[1].text


def test_the_same_table_gives_the_same_file(built, tmp_path, toy_table, toy_examples):
    """No clock, no random id."""
    again, _ = build(toy_table, tmp_path, examples=toy_examples)
    assert again == built[0]


def test_models_keep_apart_whatever_they_are_called(tmp_path, toy_table):
    """Two models under one label: the specs stand in; without labels the short names."""
    _, page = build(toy_table, tmp_path, labels=dict.fromkeys(MODELS, "CLIP"))
    assert page.tables[0][1] == ["mini-clip", "run:tecoa", "run:adv"] * 2
    _, page = build(toy_table, tmp_path, labels=None)
    heads = page.tables[0][1]
    assert heads == ["mini-clip", "tecoa", "adv"] * 2


def test_mistakes(tmp_path, toy_table):
    """No rows; a file where the folder should be."""
    with pytest.raises(UserError, match="the table has no rows"):
        build_report(EvaluationTable("x", {}), tmp_path / "r.html", title="t")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file is a file"):
        build_report(toy_table, tmp_path / "file" / "r.html", title="t")


def test_the_template_comes_with_the_package():
    """And importing zsrobust, or asking for help, imports neither matplotlib nor jinja2."""
    code = (
        "import sys, zsrobust\n"
        "from zsrobust.cli import main\n"
        "try:\n    main(['report', '--help'])\n"
        "except SystemExit as stop:\n    assert not stop.code\n"
        "assert not {'matplotlib', 'jinja2', 'torch'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_a_failed_report_leaves_the_old_one(tmp_path):
    """Written whole or not at all."""
    path = tmp_path / "report.html"
    path.write_text("old")
    bad = table()
    bad.rows[0].key["preprocess"] = None
    with pytest.raises(AttributeError):
        build_report(bad, path, title="t", labels=LABELS)
    assert path.read_text() == "old"
