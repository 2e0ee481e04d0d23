"""Contact sheets: the first pictures of the fixed order, a class a column."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageOps

from zsrobust import data
from zsrobust.cli import main
from zsrobust.data.sheet import contact_sheet
from zsrobust.errors import UserError


def test_a_column_is_a_class(tiny_set_folder):
    images = data.open_set(f"folder:{tiny_set_folder}", "train")
    classes = len(images.classnames)
    sheet = contact_sheet(images, rows=2, side=16)
    assert sheet.size == (classes * 18 - 2, 2 * 18 - 2)
    shown = images.first(2 * classes)
    assert [images.labels[i] for i in shown] == [*range(classes)] * 2
    for place, index in enumerate(shown[:classes]):
        tile = np.asarray(sheet)[:16, place * 18 : place * 18 + 16]
        fitted = ImageOps.pad(
            images.picture(index), (16, 16), Image.Resampling.LANCZOS, color="white"
        )
        assert np.array_equal(tile, np.asarray(fitted))


def test_drawn_sets_are_drawn_at_the_size_of_a_tile():
    images = data.open_set("demo/animals")
    sharp = np.asarray(contact_sheet(images, rows=1, side=128))[:, :128]
    exact = np.asarray(images.redrawn(128).picture(images.first(1)[0]))
    assert np.array_equal(sharp, exact)


def test_the_command_writes_a_png(tmp_path, capsys):
    out = tmp_path / "sheet.png"
    with pytest.raises(SystemExit) as stop:
        main(["data", "sheet", "demo/flags", "--rows", "1", "--out", str(out)])
    assert not stop.value.code
    assert out.read_bytes().startswith(b"\x89PNG")
    assert "pixels" in capsys.readouterr().out


def test_mistakes(tmp_path, capsys):
    with pytest.raises(UserError, match="at least 1"):
        contact_sheet(data.open_set("demo/flags"), rows=0)
    with pytest.raises(SystemExit) as stop:
        main(["data", "sheet", "demo/flags", "--out", str(tmp_path / "sheet.jpg")])
    assert stop.value.code == 2
    assert "ends so" in capsys.readouterr().err
