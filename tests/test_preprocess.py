"""Facts of preprocess.py: the paper's image rule beside the model's own."""

import numpy as np
import pytest
from PIL import Image

from zsrobust.errors import UserError
from zsrobust.preprocess import Preprocess

RULE = Preprocess(size=(224, 224), mean=(0.5,) * 3, std=(0.2,) * 3)


def _picture(width, height):
    pixels = np.random.default_rng(3).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@pytest.mark.parametrize(
    ("width", "height", "resized", "box"),
    [
        (500, 375, (341, 256), (58, 16, 282, 240)),
        (300, 400, (256, 341), (16, 58, 240, 282)),
        (96, 96, (256, 256), (16, 16, 240, 240)),
    ],
)
def test_short_side_256_bilinear_then_the_centre(width, height, resized, box):
    """Facts 4.2, made again with Pillow alone, whose resize is antialiased; no edge is guessed."""
    picture = _picture(width, height)
    expected = picture.resize(resized, Image.Resampling.BILINEAR).crop(box)
    found = RULE.under("paper").geometry()(picture)
    assert found.size == (224, 224)
    assert np.array_equal(np.asarray(found), np.asarray(expected))


def test_a_set_without_a_crop_is_squashed():
    """Hateful Memes: both sides at once."""
    picture = _picture(500, 375)
    expected = picture.resize((224, 224), Image.Resampling.BILINEAR)
    found = RULE.under("paper", "squash").geometry()(picture)
    assert np.array_equal(np.asarray(found), np.asarray(expected))


@pytest.mark.parametrize(("side", "short"), [(224, 256), (64, 73), (60, 69), (336, 384)])
def test_other_sizes_keep_the_proportion(side, short):
    """256 to 224, rounded."""
    rule = Preprocess(size=(side, side), mean=(0.5,) * 3, std=(0.2,) * 3).under("paper")
    picture = _picture(100, 100)
    edge = round((short - side) / 2.0)
    box = (edge, edge, edge + side, edge + side)
    expected = picture.resize((short, short), Image.Resampling.BILINEAR).crop(box)
    assert np.array_equal(np.asarray(rule.geometry()(picture)), np.asarray(expected))


def test_the_models_own_rule_is_untouched():
    """So are its settings, and with them the keys of cells; mean and deviation stay under both."""
    assert RULE.under("model") is RULE
    paper = RULE.under("paper")
    assert paper.settings() != RULE.settings()
    assert (paper.mean, paper.std, paper.size) == (RULE.mean, RULE.std, RULE.size)
    assert RULE.under("paper", "squash").settings() != paper.settings()


def test_what_the_paper_rule_cannot_do():
    """Oblong images, and a rule of another name."""
    oblong = Preprocess(size=(224, 256), mean=(0.5,) * 3, std=(0.2,) * 3)
    with pytest.raises(UserError, match="makes square images, this model sees 256 x 224 pixels"):
        oblong.under("paper")
    with pytest.raises(UserError, match="did you mean 'paper'"):
        RULE.under("papers")
