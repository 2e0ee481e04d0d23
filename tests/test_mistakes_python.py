"""Mistakes in Python: a `UserError` of one line that says what was given, what is allowed, what to do."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import zsrobust as zr
from zsrobust.errors import nearest, one_line, unknown_name


def refused(call: Any, *arguments: Any, **options: Any) -> str:
    """Return the one line of the error."""
    with pytest.raises(zr.UserError) as caught:
        call(*arguments, **options)
    line = str(caught.value)
    assert "\n" not in line
    assert line[-1] in ".?"
    return line


IMAGES = torch.rand((4, 3, 4, 4), generator=torch.Generator().manual_seed(0))
NORMALISED = (IMAGES - 0.45) / 0.27
WITH_NAN = IMAGES.clone()
WITH_NAN[2, 1, 0, 0] = torch.nan


class Flat(nn.Module):
    """One number an image: no logits."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.flatten(1).sum(1)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            {"images": (255 * IMAGES).to(torch.uint8)},
            "floats in .0, 1., got torch.uint8: divide by 255",
        ),
        ({"images": 255 * IMAGES}, r"must lie in \[0, 1\], got \[.*, 25\d\]: divide by 255"),
        (
            {"images": NORMALISED},
            r"got \[-1\..*: pass them before normalisation, and normalise inside",
        ),
        ({"images": WITH_NAN}, "got NaN or infinity in 1 of 4, first in number 2: mend or leave"),
        ({"images": WITH_NAN.nan_to_num(torch.inf)}, "got NaN or infinity in 1 of 4"),
        (
            {"images": IMAGES.permute(0, 2, 3, 1)},
            r"\(N, 3, H, W\), got shape \(4, 4, 4, 3\); .*permute",
        ),
        ({"images": IMAGES[:, :1]}, r"\(N, 3, H, W\), got shape \(4, 1, 4, 4\)"),
        ({"images": IMAGES[0]}, r"got shape \(3, 4, 4\); one image goes in as images\[None\]"),
        ({"images": IMAGES[:0], "labels": torch.zeros(0, dtype=torch.int64)}, "with N >= 1"),
        ({"images": IMAGES.numpy()}, "images must be a torch tensor, got ndarray"),
        ({"labels": np.arange(4)}, "labels must be a torch tensor, got ndarray"),
        ({"labels": torch.zeros(4)}, "class numbers of an integer type, got torch.float32"),
        ({"labels": torch.zeros(4, dtype=torch.bool)}, "an integer type, got torch.bool"),
        ({"labels": torch.zeros(4, 5, dtype=torch.int64)}, r"shape \(4,\), .* got \(4, 5\)"),
        ({"labels": torch.zeros(3, dtype=torch.int64)}, r"shape \(4,\), .* got \(3,\)"),
        ({"labels": torch.tensor([0, 1, 2, 5])}, r"lie in \[0, 5\), .*5 logits; got 0..5"),
        ({"labels": torch.tensor([0, 1, 2, -1])}, r"lie in \[0, 5\), .*got -1..2"),
        ({"ids": ["a", "b", "a", "c"]}, "ids must be different .*got 'a' more than once"),
        ({"ids": ["a", "b"]}, "ids name 2 samples, there are 4 images"),
        ({"ids": "abcd"}, "ids must be a list of texts, .*got the text 'abcd'"),
        ({"eps": 8}, r"got 8; did you mean 8/255\?"),
        ({"eps": 8.0}, r"got 8.0; did you mean 8/255\?"),
        ({"eps": "8"}, r"got '8'; did you mean 8/255\?"),
        ({"eps": -0.1}, "eps must be a finite number >= 0 .*got -0.1"),
        ({"eps": float("nan")}, "eps must be a finite number"),
        ({"eps": float("inf")}, "eps must be a finite number"),
        ({"eps": None}, "eps None is not a number; write it .*8/255"),
        ({"eps": True}, "eps True is not a number"),
        ({"norm": "linff"}, "unknown norm 'linff': did you mean 'linf'"),
        ({"resolution": "nativ"}, "unknown attack resolution 'nativ': did you mean 'native'"),
        ({"duplicates": "merg"}, "unknown duplicates rule 'merg': did you mean 'merge'"),
        ({"attack": "pdg-20"}, "unknown attack 'pdg-20': did you mean 'pgd-20'"),
        ({"attack": "clean"}, "'clean' is no attack but the accuracy without one"),
        ({"attack": 20}, "attack 20 is no name: write one such as 'pgd-20'"),
        ({"slots": 0}, "slots must be >= 1, got 0"),
        ({"groups": [0, 1]}, "groups name 2 classes, the model has 5 logits"),
        ({"groups": [0] * 5}, "at least 2 classes with different texts, got 1"),
        ({"model": Flat()}, r"must return logits \(N, K\), for one image it returned \(1,\)"),
        ({"model": lambda images: images}, "the model is a function; give a torch.nn.Module"),
    ],
)
def test_attacking_a_classifier(change, words):
    """Images not in [0, 1], labels and ids that do not fit, settings out of range."""
    arguments: dict[str, Any] = {
        "model": nn.Sequential(nn.Flatten(), nn.Linear(48, 5)),
        "images": IMAGES,
        "labels": torch.arange(4),
        "eps": "1/255",
        "attack": "pgd-2",
    }
    arguments |= change
    assert re.search(words, refused(zr.attacks.run, **arguments))


def test_labels_of_a_small_integer_type_are_class_numbers():
    """uint8 would pick by a mask where it is taken as an index."""
    net = nn.Sequential(nn.Flatten(), nn.Linear(48, 5))
    labels = torch.tensor([0, 1, 2, 3])
    wanted = zr.attacks.run(net, IMAGES, labels, attack="pgd-2", eps="4/255")
    for kind in (torch.uint8, torch.int32):
        assert zr.attacks.run(net, IMAGES, labels.to(kind), attack="pgd-2", eps="4/255") == wanted


@pytest.fixture(scope="module")
def clip(tiny_clip_folder: Path) -> zr.Clip:
    return zr.load_clip(f"local-dir:{tiny_clip_folder}")


@pytest.mark.parametrize(
    ("names", "options", "words"),
    [
        ([], {}, "no class names; give at least one"),
        ("cat", {}, "lists of texts, not one text"),
        (["cat", " "], {}, r"class name number 1 \(counted from 0\) is blank"),
        (["cat", 5], {}, "texts, got 5 among them"),
        (["cat", "dog"], {"templates": []}, "no templates; give at least one"),
        (["cat", "dog"], {"templates": "a {}"}, "lists of texts, not one text"),
        (["cat", "dog"], {"templates": ["a photo"]}, "'a photo' must hold {} exactly once"),
        (["cat", "dog"], {"precision": "fp16"}, "unknown precision 'fp16'"),
    ],
)
def test_making_a_classifier(clip, names, options, words):
    """Class names and templates."""
    assert re.search(words, refused(zr.ZeroShotClassifier.from_texts, clip, names, **options))


@pytest.mark.parametrize(
    "images",
    [
        torch.zeros(2, 3, 16, 16, dtype=torch.uint8),
        torch.zeros(2, 16, 16, 3),
        torch.zeros(3, 16, 16),
    ],
)
def test_what_a_classifier_is_given(clip, images):
    """Bytes would pass for very bright images, channels at the end for a narrow one."""
    classifier = zr.ZeroShotClassifier.from_texts(clip, ["cat", "dog"])
    line = refused(classifier, images)
    assert f"got {tuple(images.shape)} of {images.dtype}" in line


@pytest.mark.parametrize("scale", [0.0, -1.0, float("nan"), float("inf")])
def test_a_scale_that_is_none(clip, scale):
    """Without it the softmax is flat, and every attack fails (traps 15)."""
    anchors = torch.eye(16)[:3]
    line = refused(zr.ZeroShotClassifier, clip.image_encoder(), anchors, scale)
    assert f"must be a finite number > 0 (CLIP's is about 100), got {scale}" in line


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"models": []}, "no model given: name at least one"),
        ({"models": "mini-clip"}, r"models must be a list, got 'mini-clip': write \['mini-clip'\]"),
        ({"models": [5]}, "5 is no model: give a spec string, a Clip or a Run"),
        ({"models": 5}, "models must be a list, got 5"),
        ({"attacks": []}, "no attacks given: name at least one; clean alone"),
        ({"attacks": "clean"}, r"attacks must be a list, got 'clean': write \['clean'\]"),
        ({"attacks": ["clean", 5]}, "attack 5 is no name"),
        ({"sets": ""}, "sets '': empty; give a suite"),
        ({"sets": []}, "sets '': empty; give a suite"),
        ({"sets": [5]}, "sets are named by texts, got 5"),
        ({"eps": []}, "no eps given"),
        ({"eps": None}, "eps None is not a number"),
        ({"eps": 8}, r"got 8; did you mean 8/255\?"),
        ({"eps": ["1/255", 4]}, r"got 4; did you mean 4/255\?"),
        ({"norm": "l1"}, "unknown norm 'l1': did you mean 'l2'"),
        ({"norm": "l1", "attacks": ["clean"]}, "unknown norm 'l1'"),
        ({"limit": 0}, "limit must be >= 1, got 0"),
        ({"limit": "10"}, "limit must be a whole number, got '10'"),
        ({"limit": True}, "limit must be a whole number, got True"),
        ({"seed": "first"}, "seed must be a whole number, got 'first'"),
        ({"slots": 1.5}, "slots must be a whole number, got 1.5"),
        ({"workers": -1}, "workers must be >= 0, got -1"),
        ({"templates": []}, "no templates given: name at least one, or leave them out"),
        ({"templates": "a {}."}, r"templates must be a list, got 'a {}.': write"),
        ({"precision": "fp16"}, "unknown precision 'fp16'"),
        ({"resolution": "nativ"}, "unknown resolution 'nativ': did you mean 'native'"),
        ({"device": "gpu"}, "device 'gpu' is unknown: give auto, cpu, cuda"),
    ],
)
def test_measuring(clip, tiny_set_folder, change, words):
    """An empty request, unknown names, values of the wrong type."""
    arguments: dict[str, Any] = {
        "models": [clip],
        "sets": f"folder:{tiny_set_folder}/val",
        "attacks": ["clean", "pgd-2"],
        "eps": "1/255",
        "device": "cpu",
    }
    arguments |= change
    assert re.search(words, refused(zr.evaluate, **arguments))


@pytest.mark.parametrize(
    ("call", "given", "words"),
    [
        (zr.Threat, {"eps": 8}, r"got 8; did you mean 8/255\?"),
        (zr.Threat, {"norm": "max"}, "unknown norm 'max': allowed: l2, linf"),
        (zr.Threat, {"eps": "1/0"}, "'1/0' is not a number"),
        (zr.load_clip, {"spec": "ViT-B-32-quickgelu:opnai"}, "did you mean 'openai'"),
        (zr.load_clip, {"spec": 5}, "a model spec is a text, got 5"),
        (zr.open_set, {"spec": "imagnet"}, "did you mean 'imagenet'"),
        (zr.open_set, {"spec": 5}, "an image set is named by a text, got 5"),
        (zr.load_recipe, {"name_or_file": "mini/tecoa-eps1"}, "did you mean 'mini/tecoa-ft-eps1'"),
        (zr.harden, {"recipe": "mini/tecoa-ft-eps1"}, "takes a Recipe, got .*load_recipe"),
    ],
)
def test_the_other_public_functions(call, given, words):
    """Names and types at the first door."""
    assert re.search(words, refused(call, **given))


def test_near_names_are_found_whatever_their_case():
    """Both, where two differ in case alone; none, where nothing is near."""
    assert nearest("PGD-20", ["pgd-20", "cw-margin-20"]) == ["pgd-20"]
    assert nearest("vit", ["ViT", "VIT", "resnet"]) == ["ViT", "VIT"]
    assert nearest("zzz", ["pgd-20"]) == []


def test_a_long_list_of_names_is_cut():
    """What stands at the end of the line is still read."""
    line = str(unknown_name("thing", "zzzz", [f"name-{i:02}" for i in range(30)], "Do this."))
    assert line.endswith("name-10, name-11 and 18 more. Do this.")


def test_a_message_is_one_line_without_control_characters():
    """A file's name may carry a newline, or what would move the cursor."""
    assert one_line(ValueError("a\n  b\tc \x1b[2Jd")) == "a b c \\x1b[2Jd"
    assert one_line(EOFError()) == "EOFError"
