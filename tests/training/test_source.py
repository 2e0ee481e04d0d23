"""Facts of a recipe's source block: presets of templates, the image rule."""

import numpy as np
import pytest
from PIL import Image

from zsrobust.errors import UserError
from zsrobust.preprocess import Preprocess
from zsrobust.training.loop import open_source
from zsrobust.training.recipe import parse_recipe
from zsrobust.training.validation import recipe_geometry


def _recipe(root, **source):
    return parse_recipe(
        {
            "name": "x",
            "model": "tiny",
            "source": {"set": f"folder:{root}", "split": "train", **source},
            "optimiser": {"lr": 1e-4},
        }
    )


@pytest.fixture
def photos(tmp_path):
    """Two classes whose names the paper's rule changes."""
    for name in ("Big-cat", "small_dog"):
        folder = tmp_path / "photos/train" / name
        folder.mkdir(parents=True)
        Image.new("RGB", (40, 20), (9, 9, 9)).save(folder / "0.png")
    (tmp_path / "photos/classnames.txt").write_text("Big-cat\nsmall_dog\n")
    return tmp_path / "photos"


def test_a_preset_brings_its_names(photos):
    """The set keeps its own, by which hardened classes are known again; the texts are the preset's."""
    own = open_source(_recipe(photos))
    assert (own.templates, own.classnames) == (["a photo of a {}."], ["Big-cat", "small_dog"])
    paper = open_source(_recipe(photos, templates="paper"))
    assert paper.templates == ["This is a photo of a {}"]
    assert paper.classnames == ["big cat", "small dog"]
    assert paper.images.classnames == own.images.classnames
    assert len(open_source(_recipe(photos, templates=["openai"])).templates) == 80


def test_templates_are_checked_as_the_recipe_is_read(photos):
    """A preset beside templates, a name of none, and no template."""
    for given, message in (
        (["openai", "a {}."], "stands alone"),
        (["opena"], "did you mean 'openai'"),
        ([], "give at least one template"),
    ):
        with pytest.raises(UserError, match=message):
            _recipe(photos, templates=given)
    with pytest.raises(UserError, match="preprocess"):
        _recipe(photos, preprocess="papers")


def test_the_image_rule_of_training(photos):
    """Under "paper" the picture is resized bilinearly to 8/7 of the model's size and cropped."""

    class Model:
        preprocess = Preprocess(size=(14, 14), mean=(0.5,) * 3, std=(0.2,) * 3)

    pixels = np.random.default_rng(0).integers(0, 256, (20, 40, 3), dtype=np.uint8)
    picture = Image.fromarray(pixels)
    made = {}
    for rule in ("model", "paper"):
        recipe = _recipe(photos, preprocess=rule)
        made[rule] = np.asarray(recipe_geometry(recipe, Model, open_source(recipe))(picture))
    expected = picture.resize((32, 16), Image.Resampling.BILINEAR).crop((9, 1, 23, 15))
    assert np.array_equal(made["paper"], np.asarray(expected))
    assert not np.array_equal(made["model"], made["paper"])
    assert _recipe(photos).determining() != _recipe(photos, preprocess="paper").determining()
