"""Logits are scale x cosine, gradients reach the pixels, equal texts are one group."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from zsrobust.errors import UserError
from zsrobust.models import (
    Clip,
    HeadClassifier,
    ImageEncoder,
    ZeroShotClassifier,
    load_clip,
    text_anchors,
    text_record,
)

TEMPLATES = ("a photo of a {}.", "a sketch of the {}")


@pytest.fixture
def clip(folders: dict[str, Path]) -> Clip:
    return load_clip(f"local-dir:{folders['vit']}")


def slow_anchors(clip: Clip, classnames: list[str], templates: tuple[str, ...]) -> Tensor:
    """Each text alone, in float64 after the tower: mean of unit features, made unit again."""
    rows = []
    for name in classnames:
        total = 0
        for template in templates:
            tokens = clip.tokenizer([template.format(name)])
            model: Any = clip.model
            feature = model.encode_text(tokens, normalize=False)[0].double()
            total = total + feature / feature.square().sum().sqrt()
        rows.append(total / total.square().sum().sqrt())
    return torch.stack(rows)


@pytest.mark.parametrize("templates", [TEMPLATES, TEMPLATES[:1]])
def test_anchors_are_mean_of_unit_features_made_unit(
    clip: Clip, templates: tuple[str, ...]
) -> None:
    names = ["cat", "dog", "traffic light"]
    texts = text_anchors(clip, names, templates)
    assert texts.anchors.dtype == torch.float32
    torch.testing.assert_close(texts.anchors.norm(dim=-1), torch.ones(3))
    slow = slow_anchors(clip, names, templates)
    torch.testing.assert_close(texts.anchors.double(), slow, rtol=0, atol=1e-6)


def test_equal_texts_form_a_group_with_bit_equal_anchors(clip: Clip) -> None:
    """The tokenizer lower-cases, and cuts at the context length."""
    long = " ".join(["word"] * 20)
    names = ["Crane", "dog", "crane", f"{long} one", f"{long} two"]
    texts = text_anchors(clip, names, TEMPLATES)
    assert texts.groups.tolist() == [0, 1, 0, 2, 2]
    assert texts.representatives.tolist() == [0, 1, 3]
    assert torch.equal(texts.anchors[0], texts.anchors[2])
    assert torch.equal(texts.anchors[3], texts.anchors[4])
    assert not torch.equal(texts.anchors[0], texts.anchors[1])


def test_classes_that_differ_under_one_template_only_are_apart(clip: Clip) -> None:
    cut = " ".join(["word"] * 20)
    texts = text_anchors(clip, ["cat", "dog"], (f"{cut} {{}}", "{}"))
    assert texts.groups.tolist() == [0, 1]
    assert text_anchors(clip, ["cat", "dog"], (f"{cut} {{}}",)).groups.tolist() == [0, 0]


def test_class_names_may_hold_braces(clip: Clip) -> None:
    assert text_anchors(clip, ["{}", "{x}"], ("a {}",)).anchors.shape == (2, 16)


@pytest.mark.parametrize(
    ("names", "templates", "words"),
    [
        ([], TEMPLATES, "no class names"),
        (["cat", " "], TEMPLATES, "number 1"),
        (["cat"], (), "no templates"),
        (["cat"], ("a photo",), "exactly once"),
        (["cat"], ("a {} of {}",), "exactly once"),
        (["cat"], ("a {name}",), "exactly once"),
        ("cat", TEMPLATES, "lists of texts"),
        (["cat"], "a {}", "lists of texts"),
    ],
)
def test_wrong_texts_are_refused(clip: Clip, names: Any, templates: Any, words: str) -> None:
    with pytest.raises(UserError, match=words):
        text_anchors(clip, names, templates)


def test_text_record_is_of_what_is_rendered() -> None:
    record = text_record(["cat"], ["a {}"])
    assert record["classnames"] == ["cat"]
    assert record["templates"] == ["a {}"]
    assert record == text_record(("cat",), ("a {}",))
    assert record["rendered"] != text_record(["cat"], ["the {}"])["rendered"]
    assert record["rendered"] != text_record(["dog"], ["a {}"])["rendered"]


def test_logits_are_scale_times_cosine(clip: Clip, images: Tensor) -> None:
    names = ["cat", "dog", "bird"]
    classifier = ZeroShotClassifier.from_texts(clip, names, TEMPLATES)
    with torch.no_grad():
        logits = classifier(images)
        features = clip.image_encoder()(images).double()
    anchors = slow_anchors(clip, names, TEMPLATES)
    for n in range(2):
        for k in range(3):
            cosine = (features[n] * anchors[k]).sum() / features[n].square().sum().sqrt()
            assert logits[n, k].item() == pytest.approx(clip.logit_scale * cosine.item(), abs=1e-4)
    assert classifier.groups.tolist() == [0, 1, 2]
    assert classifier.text_record() == text_record(names, TEMPLATES)


def test_gradient_flows_through_upsampling_and_normalisation(folders: dict[str, Path]) -> None:
    """Against finite differences, in float64, at 20 px for a model of 32 px."""
    clip = load_clip(f"local-dir:{folders['vit']}")
    classifier = ZeroShotClassifier.from_texts(clip, ["cat", "dog"]).double()
    generator = torch.Generator().manual_seed(1)
    x = torch.rand(1, 3, 20, 20, generator=generator, dtype=torch.float64).requires_grad_()
    logits = classifier(x)
    assert logits.dtype == torch.float64
    (gradient,) = torch.autograd.grad(logits[0, 0] - logits[0, 1], x)
    assert (gradient != 0).all()
    direction = torch.randn(x.shape, generator=generator, dtype=torch.float64)
    step = 1e-5
    with torch.no_grad():
        ahead, behind = classifier(x + step * direction), classifier(x - step * direction)
    slope = ((ahead - behind)[0, 0] - (ahead - behind)[0, 1]) / (2 * step)
    torch.testing.assert_close(slope, (gradient * direction).sum(), rtol=1e-6, atol=1e-9)


def test_double_agrees_with_plain_open_clip_in_float64(
    folders: dict[str, Path], images: Tensor
) -> None:
    clip = load_clip(f"local-dir:{folders['vit']}")
    encoder = clip.image_encoder().double()
    features = encoder(images.double())
    model: Any = clip.model
    expected = model.encode_image(clip.preprocess.normalise(images.double()), normalize=False)
    assert features.dtype == torch.float64
    assert torch.equal(features, expected)


def test_native_resolution_is_upsampled_inside(clip: Clip) -> None:
    images = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(2))
    encoder = clip.image_encoder()
    assert torch.equal(encoder(images), encoder(clip.preprocess.upsample(images)))


def test_normalisation_is_the_preprocessings(clip: Clip, images: Tensor) -> None:
    encoder = clip.image_encoder()
    assert torch.equal((images - encoder.mean) / encoder.std, clip.preprocess.normalise(images))
    assert "mean" not in encoder.state_dict()


def test_bf16_is_near_and_features_stay_float32(clip: Clip, images: Tensor) -> None:
    exact, rough = clip.image_encoder()(images), clip.image_encoder("bf16")(images)
    assert rough.dtype == torch.float32
    assert not torch.equal(rough, exact)
    torch.testing.assert_close(rough, exact, rtol=0.1, atol=0.1)
    with pytest.raises(UserError, match="unknown precision 'fp61'"):
        clip.image_encoder("fp61")


def test_autocast_around_the_call_changes_nothing(clip: Clip, images: Tensor) -> None:
    classifier = ZeroShotClassifier.from_texts(clip, ["cat", "dog"])
    plain = classifier(images)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(classifier(images), plain)


def test_encoder_shares_the_models_parameters(clip: Clip) -> None:
    encoder = clip.image_encoder()
    assert isinstance(encoder, ImageEncoder)
    assert encoder.model is clip.model
    assert encoder.preprocess is clip.preprocess
    assert encoder.precision == "fp32"


def test_anchors_receive_no_gradient_and_must_be_unit(clip: Clip) -> None:
    encoder = clip.image_encoder()
    anchors = torch.eye(16)[:3].requires_grad_()
    classifier = ZeroShotClassifier(encoder, anchors, 10.0)
    assert not classifier.anchors.requires_grad
    assert classifier.groups.tolist() == [0, 1, 2]
    assert list(classifier.text_record()) == ["anchors"]
    with pytest.raises(UserError, match="unit length, got lengths from 2 to 2"):
        ZeroShotClassifier(encoder, 2 * anchors, 10.0)
    with pytest.raises(UserError, match="2 class names for 3 anchors"):
        ZeroShotClassifier(encoder, anchors, 10.0, classnames=["a", "b"])
    with pytest.raises(UserError, match="2 groups for 3 anchors"):
        ZeroShotClassifier(encoder, anchors, 10.0, torch.tensor([0, 1]))


def random_head() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(4)
    return torch.randn(3, 16, generator=generator), torch.randn(3, generator=generator)


def test_linear_head_sees_unnormalised_features(clip: Clip, images: Tensor) -> None:
    weight, bias = random_head()
    encoder = clip.image_encoder()
    head = HeadClassifier.linear(encoder, weight, bias)
    features = encoder(images).double()
    expected = features @ weight.double().T + bias.double()
    torch.testing.assert_close(head(images).double(), expected, rtol=1e-5, atol=1e-5)


def test_dictionary_head_is_scale_times_cosine(clip: Clip, images: Tensor) -> None:
    vectors = torch.nn.functional.normalize(random_head()[0], dim=-1)
    encoder = clip.image_encoder()
    head = HeadClassifier.dictionary(encoder, vectors, 7.5)
    features = encoder(images).double()
    expected = 7.5 * (features @ vectors.double().T) / features.norm(dim=-1, keepdim=True)
    torch.testing.assert_close(head(images).double(), expected, rtol=1e-5, atol=1e-5)
    with pytest.raises(UserError, match="unit length"):
        HeadClassifier.dictionary(encoder, 2 * vectors, 7.5)


@pytest.mark.parametrize("kind", ["linear", "dictionary"])
def test_head_is_saved_and_read_again(
    kind: str, clip: Clip, images: Tensor, tmp_path: Path
) -> None:
    encoder = clip.image_encoder()
    weight, bias = random_head()
    names = ["cat", "dog", "café"]
    if kind == "linear":
        head = HeadClassifier.linear(encoder, weight, bias, names)
    else:
        unit = torch.nn.functional.normalize(weight, dim=-1)
        head = HeadClassifier.dictionary(encoder, unit, 24.7, names)
    head.save(tmp_path / "model" / "head.safetensors")
    again = HeadClassifier.from_file(encoder, tmp_path / "model" / "head.safetensors")
    assert (again.kind, again.scale, again.classnames) == (kind, head.scale, names)
    assert torch.equal(again(images), head(images))
    assert again.content_hash == head.content_hash
    assert again.text_record() == {"head": head.content_hash}


def test_head_hash_is_of_its_content(clip: Clip) -> None:
    encoder = clip.image_encoder()
    weight, bias = random_head()
    unit = torch.nn.functional.normalize(weight, dim=-1)
    heads = [
        HeadClassifier.linear(encoder, weight, bias),
        HeadClassifier.linear(encoder, weight, bias + 1),
        HeadClassifier.linear(encoder, unit, torch.zeros(3)),
        HeadClassifier.dictionary(encoder, unit, 7.5),
        HeadClassifier.dictionary(encoder, unit, 7.6),
    ]
    assert len({head.content_hash for head in heads}) == 5


def test_file_that_is_no_head_is_refused(clip: Clip, folders: dict[str, Path]) -> None:
    file = folders["vit"] / "open_clip_model.safetensors"
    with pytest.raises(UserError, match="not a head"):
        HeadClassifier.from_file(clip.image_encoder(), file)


def test_head_of_wrong_shape_is_refused(clip: Clip) -> None:
    encoder = clip.image_encoder()
    with pytest.raises(UserError, match="bias of shape"):
        HeadClassifier.linear(encoder, torch.zeros(3, 16), torch.zeros(2))
    with pytest.raises(UserError, match="2 class names for a head of 3"):
        HeadClassifier.linear(encoder, torch.zeros(3, 16), torch.zeros(3), ["a", "b"])


@pytest.mark.needs_data
def test_mini_clip_anchors_and_logits(mini_clip: Any) -> None:
    names = ["Crane", "dog", "crane", "golden retriever"]
    classifier = ZeroShotClassifier.from_texts(mini_clip, names)
    assert classifier.groups.tolist() == [0, 1, 0, 2]
    assert torch.equal(classifier.anchors[0], classifier.anchors[2])
    torch.testing.assert_close(classifier.anchors.norm(dim=-1), torch.ones(4))
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        logits = classifier(images).double()
        features = mini_clip.image_encoder()(images).double()
    unit = features / features.square().sum(-1, keepdim=True).sqrt()
    slow = mini_clip.logit_scale * unit @ slow_anchors(mini_clip, names, TEMPLATES[:1]).T
    torch.testing.assert_close(logits, slow, rtol=0, atol=2e-5)
