"""The page in a real browser: not blank, as narrow as a phone, in both schemes, with nothing broken."""

from __future__ import annotations

import importlib.util
import io
import os
import shutil
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

from zsrobust.evaluation.table import EvaluationTable
from zsrobust.report import build_report

from .conftest import LABELS, MODELS, SETS, example, row, table

ROOT = Path(__file__).parents[2]
WIDTHS = [1280, 768, 390, 320]


@pytest.fixture(scope="module")
def screenshots() -> ModuleType:
    """docs/screenshots.py as a module."""
    spec = importlib.util.spec_from_file_location("screenshots", ROOT / "docs" / "screenshots.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["screenshots"] = module  # its dataclasses look themselves up
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def browser(screenshots):
    if shutil.which("chromium") is None:
        message = "chromium is not installed: apt-get install chromium"
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)
    with screenshots.chromium() as started:
        yield started


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six sets with long names, a source, two radii, three models with long labels, examples."""
    long = [f"{name}_with_a_rather_long_name_{i}" for i, name in enumerate(SETS)]
    rows = [row(model, name, samples=40, eps=eps) for eps in (1 / 255, 4 / 255)
            for model in MODELS for name in long]  # fmt: skip
    rows += [row(m, "demo/source", is_source=True, eps=4 / 255) for m in MODELS]
    wide = EvaluationTable("demo", table().request, rows)
    labels = {model: f"{LABELS[model]}, some more words of a label" for model in MODELS}
    return build_report(
        wide,
        tmp_path_factory.mktemp("chromium") / "report.html",
        title="A title of some length: robustness under attack",
        labels=labels,
        examples=[
            example(name, side=side)
            for name, side in zip(long, (16, 32, 64, 96, 112, 224), strict=True)
        ],
        commands=["zsrobust report " + "a-long-folder-name/" * 12],
        notes=["A note."],
    )


@pytest.mark.parametrize("width", WIDTHS)
def test_the_page_is_never_wider_than_the_window(browser, report, width):
    """What is wider (tables, commands) scrolls in a box of its own; plots and pictures shrink."""
    page = browser.open(report, width)
    assert page.evaluate("window.innerWidth") == width
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    outside = page.evaluate(
        "[...document.querySelectorAll('figure, svg, img, .tile, .scroll, pre, h1, h2, p, li')]"
        f".filter(e => e.getBoundingClientRect().right > {width} + 1 && !e.closest('.scroll'))"
        ".map(e => e.outerHTML.slice(0, 80))"
    )
    assert outside == []
    boxes = "[...document.querySelectorAll('.scroll')].filter(e => e.scrollWidth > e.clientWidth)"
    if width <= 390:
        assert page.evaluate(f"{boxes}.length") > 0


@pytest.mark.parametrize("width", [1280, 390])
def test_the_picture_is_not_blank(browser, report, width):
    """Ink, the models' colours and pictures are there; dark is dark."""
    shots = {}
    for dark in (False, True):
        png = browser.open(report, width, dark=dark).screenshot(2000)
        shots[dark] = np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))
    for pixels in shots.values():
        assert len(np.unique(pixels[::3, ::3].astype(int) @ (1 << 16, 1 << 8, 1))) > 100
    assert np.median(shots[False]) > 200
    assert np.median(shots[True]) < 60
    assert (shots[False] == (0, 0x72, 0xB2)).all(axis=2).sum() > 500  # the second model's bars


def test_pictures_and_plots_are_drawn(browser, report):
    """Every image decodes, every plot has a size and readable letters, also on a phone."""
    page = browser.open(report, 390)
    assert page.evaluate("[...document.images].every(i => i.complete && i.naturalWidth > 0)")
    assert page.evaluate("document.images.length") == 6 * 5
    heights = page.evaluate(
        "[...document.querySelectorAll('svg')].map(s => s.getBoundingClientRect().height)"
    )
    assert len(heights) == 7
    assert min(heights) > 100
    letters = page.evaluate(
        "Math.min(...[...document.querySelectorAll('svg text')].map(t => {"
        " const box = t.ownerSVGElement.getBoundingClientRect();"
        " const scale = box.width / t.ownerSVGElement.viewBox.baseVal.width;"
        " return parseFloat(getComputedStyle(t).fontSize) * scale }))"
    )
    assert letters >= 7.5


def test_the_script_writes_two_pictures(browser, report, tmp_path, screenshots, monkeypatch):
    """docs/screenshots.py: a wide and a narrow one, of the page's top."""
    monkeypatch.setattr(sys, "argv", ["screenshots.py", str(report), "--out", str(tmp_path)])
    screenshots.main()
    sizes = {f.name: Image.open(f).size for f in tmp_path.iterdir()}
    assert sizes == {"report-wide.png": (1280, 1500), "report-narrow.png": (780, 4000)}


def test_the_script_says_in_one_line_what_is_missing(screenshots, tmp_path, monkeypatch):
    """No chromium; no report."""
    monkeypatch.setattr(sys, "argv", ["screenshots.py", str(tmp_path / "r.html")])
    with pytest.raises(SystemExit, match=r"r\.html does not exist"):
        screenshots.main()
    (tmp_path / "r.html").write_text("x")
    monkeypatch.setattr(screenshots.shutil, "which", lambda _: None)
    with pytest.raises(SystemExit, match="chromium is not installed: apt-get install chromium"):
        screenshots.main()
