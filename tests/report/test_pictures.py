"""Pictures: what is shown is what was attacked, magnified by the factor that is stated."""

from __future__ import annotations

import base64
import dataclasses
import io

import numpy as np
import pytest
from PIL import Image

from zsrobust.report.pictures import LARGEST, Picture, draw
from zsrobust.threat import Threat

from .conftest import EPS, example


def pixels(picture: Picture) -> np.ndarray:
    """Decode the PNG that stands in the page."""
    head, _, data = picture.uri.partition(",")
    assert head == "data:image/png;base64"
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))


def test_clean_and_attacked_pixels_are_shown_as_they_are():
    """Lossless, to 8 bits."""
    one = example("demo/shapes")
    drawn = draw(one)
    assert (pixels(drawn.clean) == one.clean).all()
    for (_, shown), attacked in zip(drawn.attacked, one.attacked, strict=True):
        assert (pixels(shown) == np.rint(255 * attacked.image.astype(np.float64))).all()


def test_a_linf_perturbation_reaches_from_black_to_white():
    """-eps is black, 0 mid grey, +eps white: the factor is 1 / (2 eps)."""
    one = example("demo/shapes")
    clean = np.full_like(one.clean, 100)
    image = clean / 255
    image[0, 0], image[0, 1] = image[0, 0] - EPS, image[0, 1] + EPS
    attacked = [dataclasses.replace(one.attacked[0], image=image)]
    drawn = draw(dataclasses.replace(one, clean=clean, attacked=attacked))
    grey = pixels(drawn.attacked[0][0])
    assert drawn.magnified == pytest.approx(1 / (2 * EPS))
    assert grey[0, 0].tolist() == [0, 0, 0]
    assert grey[0, 1].tolist() == [255, 255, 255]
    assert set(grey[1:].ravel()) == {128}


def test_an_l2_perturbation_is_magnified_by_its_largest_change():
    """The same factor for every model of the example, so that they can be compared."""
    one = example("demo/shapes", norm="l2")
    clean = np.full_like(one.clean, 100)
    images = [clean / 255, clean / 255]
    images[0][0, 0] += 0.1
    images[1][0, 0] += 0.05
    attacked = [dataclasses.replace(one.attacked[i], image=images[i]) for i in (0, 1)]
    drawn = draw(dataclasses.replace(one, clean=clean, attacked=attacked))
    assert drawn.magnified == pytest.approx(5)
    assert pixels(drawn.attacked[0][0])[0, 0].tolist() == [255] * 3
    assert pixels(drawn.attacked[1][0])[0, 0].tolist() == [191] * 3


def test_what_was_not_attacked_has_no_perturbation():
    """Also where the clean image was kept in float32, whose rounding is no perturbation."""
    drawn = draw(example("demo/shapes"))
    assert [grey is None for grey, _ in drawn.attacked] == [False, False, True]


def test_uint8_images_are_taken_too():
    """An adversarial image of whole levels."""
    one = example("demo/shapes")
    image = np.rint(255 * one.attacked[0].image).astype(np.uint8)
    drawn = draw(
        dataclasses.replace(one, attacked=[dataclasses.replace(one.attacked[0], image=image)])
    )
    assert (pixels(drawn.attacked[0][1]) == image).all()


@pytest.mark.parametrize(("side", "shown"), [(16, 128), (32, 128), (64, 128), (96, 96)])
def test_small_pictures_are_enlarged_a_whole_number_of_times(side, shown):
    """So that every pixel is as large as the others."""
    drawn = draw(example("demo/shapes", side=side))
    assert (drawn.clean.width, drawn.clean.height) == (shown, shown)
    assert drawn.shrunk_from is None


def test_large_pictures_are_shrunk_and_said_to_be():
    """A mean over squares; the perturbation keeps single pixels, since a mean would show a weaker one."""
    one = example("demo/shapes", side=224)
    drawn = draw(one)
    assert drawn.shrunk_from == (224, 224)
    shown = pixels(drawn.clean)
    assert shown.shape == (74, 74, 3)
    assert max(shown.shape) <= LARGEST
    assert shown[0, 0, 0] == np.rint(one.clean[:3, :3, 0].mean())
    grey = pixels(drawn.attacked[0][0])
    assert np.isin(grey, (0, 255)).mean() > 0.9


def test_eps_zero_is_no_division_by_zero():
    """Nothing may change, nothing is magnified."""
    still = dataclasses.replace(example("demo/shapes"), threat=Threat("linf", 0.0), attacked=[])
    assert draw(still).magnified == 1.0
