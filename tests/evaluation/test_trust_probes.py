"""Flags on models built to deserve them, their silence on honest ones, and where what was found is kept."""

from __future__ import annotations

import importlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from zsrobust import attacks, data
from zsrobust.errors import UserError
from zsrobust.evaluation import evaluate, probes
from zsrobust.evaluation.stored import read_table
from zsrobust.evaluation.trust import FROM_PROBES, Flag, probe
from zsrobust.models import ZeroShotClassifier, load_clip

from ..attacks import golden

EPS = 8 / 255
needs_golden = pytest.mark.skipif(golden.folder() is None, reason="ZSROBUST_GOLDEN is not set")


class Toy(nn.Module):
    """A smooth classifier of 8x8 images into a few classes, with a logit scale and a way to spoil its input."""

    def __init__(self, classes: int = 5, scale: float = 20.0, spoil: Any = None) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        self.register_buffer("first", torch.randn(192, 64, generator=generator) / 14)
        self.register_buffer("second", torch.randn(64, classes, generator=generator) / 8)
        self.scale, self.spoil = scale, spoil

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        if self.spoil is not None:
            images = self.spoil(images)
        first, second = self.first.to(images.dtype), self.second.to(images.dtype)
        hidden = ((images - 0.5).flatten(1) @ first).tanh()
        return self.scale * nn.functional.normalize(hidden, dim=1) @ second


class Wrapped(nn.Module):
    """What a function makes of a model's logits."""

    def __init__(self, model: nn.Module, of: Any) -> None:
        super().__init__()
        self.model, self.of = model, of

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.of(self.model(images))


class Turned(torch.autograd.Function):
    """The image itself, with its gradient pointing the other way: masking at its worst."""

    @staticmethod
    def forward(ctx: Any, images: torch.Tensor) -> torch.Tensor:
        return images.clone()

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:
        return -grad


def images(count: int = 80, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.rand((count, 3, 8, 8), generator=generator).to(dtype)


def own_labels(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """Labels that the model gets right."""
    with torch.no_grad():
        return model(x).argmax(1)


def told(model: nn.Module, names: tuple[str, ...] = ("pgd-20",), **options: Any) -> dict[str, Flag]:
    """Flag -> the first of its name, of a toy on images that it gets right."""
    x = options.pop("x", images())
    y = options.pop("y", None)
    settings = {"eps": EPS, "attacks": list(names), **options}
    found = probe(model, x, own_labels(model, x) if y is None else y, **settings)
    return {flag.name: flag for flag in reversed(found)}


def test_an_honest_toy_raises_nothing():
    """Under every kind of attack, in both norms."""
    everything = (
        "pgd-20",
        "cw-margin-20",
        "apgd-ce",
        "apgd-dlr",
        "apgd-t",
        "fab-t",
        "square",
        "autoattack",
    )
    assert told(Toy(), everything) == {}
    assert told(Toy(), (*everything, "cw-l2"), norm="l2", eps=0.5) == {}


def test_a_detached_path_has_no_gradient():
    """The loss does not reach the input; an attack that asks for no gradient is not accused of it."""
    for spoil in (torch.Tensor.detach, torch.no_grad()(lambda x: x * 1.0)):
        found = told(Toy(spoil=spoil), ("pgd-20", "square"))
        assert found["no-gradient"].column == "pgd-20"
        assert "cross-entropy loss does not depend on the image" in found["no-gradient"].why
        assert set(found) == {"no-gradient"}
    assert set(told(Toy(spoil=torch.Tensor.detach), ("square",))) == {"weak-attack"}


def test_logits_that_forget_the_image_have_no_gradient():
    """They need a gradient, but the image is not in their graph."""
    model = Wrapped(Toy(), lambda z: z.detach() + nn.Parameter(torch.zeros(5)))
    assert "no-gradient" in told(model)


def test_a_quantised_input_has_zero_gradients_of_every_loss():
    """Rounding is flat almost everywhere."""
    model = Toy(spoil=lambda x: (x * 16).round() / 16)
    for attack, loss in (
        ("pgd-20", "cross-entropy"),
        ("cw-margin-20", "margin"),
        ("apgd-dlr", "dlr"),
        ("apgd-t", "targeted dlr"),
        ("fab-t", "margin"),
    ):
        flag = told(model, (attack,))["zero-gradient"]
        assert flag.column == attack
        assert flag.why == f"64 of 64 probes have an exactly zero gradient of the {loss} loss"


def test_logits_beyond_float32_saturate_cross_entropy_alone():
    """Times 10,000: the softmax is exactly 1.0 and its gradient exactly 0; the margin's is not."""
    model = Toy(scale=2e5)
    found = told(model)
    assert {"saturated", "zero-gradient"} <= set(found)
    assert "exactly 1.0" in found["saturated"].why
    both = told(model, ("pgd-20", "cw-margin-20"))
    assert both["zero-gradient"].column == "pgd-20"
    assert "saturated" not in both
    assert not {"saturated", "zero-gradient"} & set(told(model, ("autoattack-tecoa",)))
    assert "saturated" in told(model, ("pgd-20", "square"))


class Peaked(Toy):
    """Logits times 10,000 where the first pixel is bright."""

    bright = 1.0

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        factor = torch.where(images[:, 0, 0, 0] >= self.bright, 1e4, 1.0)
        return factor[:, None] * super().forward(images)


@pytest.mark.parametrize(("peaked", "raised"), [(1, False), (2, True)])
def test_a_few_confident_samples_do_not_saturate(peaked, raised):
    """One of forty is less than 5% of the probes, two are not."""
    x, model = images(40), Peaked()
    model.bright = float(x[:, 0, 0, 0].topk(peaked).values[-1])
    assert ("saturated" in told(model, x=x)) == raised


def test_outputs_that_are_probabilities():
    """Whatever their confidence; their logarithm is honest."""
    found = told(Wrapped(Toy(scale=4.0), lambda z: z.softmax(1)))
    assert "probabilities already" in found["saturated"].why
    assert "flat-output" in found
    assert told(Wrapped(Toy(), lambda z: z.log_softmax(1))) == {}


def test_randomness_shows_in_two_passes():
    """Noise on the input; dropout that eval mode does not turn off. Dropout that it does is none."""
    noisy = Toy(spoil=lambda x: x + 1e-4 * torch.randn_like(x))
    x = images()
    y = own_labels(Toy(), x)
    found = probe(noisy, x, y, eps=EPS)
    columns = [flag.column for flag in found if flag.name == "random-output"]
    assert columns == ["clean", "robust"]
    dropped = Wrapped(Toy(), lambda z: nn.functional.dropout(z, 0.1, training=True))
    assert "random-output" in told(dropped, y=y)
    honest = nn.Sequential(Toy(), nn.Dropout(0.5)).train()
    assert told(honest, y=y) == {}
    assert honest.training
    assert honest[1].training


def test_a_lost_logit_scale():
    """Cosines as logits; a zero-shot classifier whose scale says so, with two classes too."""
    assert "no logit of the probes is larger than" in told(Toy(scale=0.5))["flat-output"].why
    generator = torch.Generator().manual_seed(2)
    for classes in (2, 6):
        anchors = nn.functional.normalize(torch.randn(classes, 16, generator=generator), dim=1)
        encoder = nn.Sequential(nn.Flatten(), nn.Linear(192, 16))
        with torch.no_grad():
            weight = torch.randn((16, 192), generator=generator)
            encoder[1].weight.copy_(weight)
            encoder[1].bias.copy_(-0.5 * weight.sum(1))
        flat = told(ZeroShotClassifier(encoder, anchors, 1.0))["flat-output"]
        assert "its logit scale is 1" in flat.why
        assert "flat-output" not in told(ZeroShotClassifier(encoder, anchors, 30.0))


@needs_golden
def test_a_factor_on_the_logits_that_helps_shows_a_lost_scale():
    """Logits of an honest network divided by ten are beyond 1 still, yet cross-entropy is weak on them."""
    case = golden.CASES["cnn-plain_Linf_2-255"]
    x, y, ids = golden.images(case, 60)
    network = golden.network(case.network)
    found = told(Wrapped(network, lambda z: z / 8), x=x, y=y, ids=ids, eps=case.threat.eps)
    assert set(found) == {"flat-output"}
    assert found["flat-output"].why.startswith("logits times 100 let cross-entropy PGD-20 break ")
    assert told(network, x=x, y=y, ids=ids, eps=case.threat.eps) == {}


def test_masked_gradients_lose_to_square_and_survive_everything():
    """Followed the wrong way a gradient finds nothing; what needs none breaks, and linf 0.5 leaves samples."""
    model, x = Toy(spoil=Turned.apply), images()
    y = own_labels(model, x)
    outcomes = {
        name: attacks.run(model, x, y, attack=name, eps=EPS) for name in ("pgd-20", "square-200")
    }
    found = {f.name: f for f in probe(model, x, y, eps=EPS, outcomes=outcomes)}
    broken = [sum(o.broken for o in given) for given in outcomes.values()]
    left = 80 - broken[0]
    won = sum(b.broken and not a.broken for a, b in zip(*outcomes.values(), strict=True))
    assert won >= 3
    assert found["black-box-wins"].why == (
        f"square-200 broke {won} of the {left} samples that the gradient attacks left"
    )
    assert "survives-all" in found
    honest = {name: attacks.run(Toy(), x, y, attack=name, eps=EPS) for name in outcomes}
    silent = {f.name for f in probe(Toy(), x, y, eps=EPS, outcomes=honest)}
    assert not {"black-box-wins", "survives-all"} & silent


def test_outcomes_bring_the_flags_of_records():
    """Few samples, a weak attack, a stand-in for DLR; without outcomes what settings say."""
    model, x = Toy(2), images(30)
    y = own_labels(model, x)
    outcomes = {"apgd-dlr-5": attacks.run(model, x, y, attack="apgd-dlr-5", eps=EPS)}
    found = [(f.name, f.column) for f in probe(model, x, y, eps=EPS, outcomes=outcomes)]
    expected = [("weak-attack", "robust"), ("fallback-loss", "apgd-dlr-5")]
    assert [pair for pair in found if pair[0] != "few-samples"] == expected
    before = probe(model, x, y, eps=EPS, attacks=["apgd-dlr-5"])
    assert [(f.name, f.column) for f in before] == expected


def test_spread_is_the_share_of_wrong_classes_that_matter():
    """Equal logits: all of them. One rival far ahead: one of four. The true class does not count."""
    x, y = images(10), torch.full((10,), 2)

    def spread(rivals: list[float]) -> float:
        rows = torch.tensor([*rivals[:2], 50.0, *rivals[2:]])
        model = Wrapped(Toy(), lambda z: rows + 0 * z)
        options: dict[str, Any] = {"norm": "linf", "eps": EPS, "attacks": [], "outcomes": None}
        options |= {"ids": None, "groups": None, "duplicates": "merge", "slots": 64}
        found = probes.probe_images(model, x, y, **options).probe
        assert found is not None
        return found.spread

    assert spread([3.0] * 4) == pytest.approx(1.0)
    assert spread([40.0, 0.0, 0.0, 0.0]) == pytest.approx(0.25)
    assert spread([7.0, 7.0, -40.0, -40.0]) == pytest.approx(0.5)


def test_equal_texts_count_as_one_class():
    """Two classes with one text have equal logits: their own margin would be zero with no gradient."""
    twins = Wrapped(Toy(3), lambda z: torch.cat([z, z[:, :1]], dim=1))
    x = images()
    y = own_labels(Toy(3), x)
    everything = ("cw-margin-20", "apgd-dlr", "fab-t")
    assert told(twins, everything, x=x, y=y, groups=[0, 1, 2, 0]) == {}


@pytest.mark.parametrize("slots", [1, 7, 64])
def test_in_float64_the_slots_change_nothing(slots):
    """Not a number of what was found."""
    x = images(dtype=torch.float64)
    model = Toy(scale=0.6, spoil=Turned.apply)
    y = own_labels(model, x)

    def found(size: int) -> probes.Probe:
        options: dict[str, Any] = {
            "norm": "linf",
            "eps": EPS,
            "attacks": ["apgd-t"],
            "outcomes": None,
        }
        options |= {"ids": None, "groups": None, "duplicates": "merge", "slots": size}
        row = probes.probe_images(model, x, y, **options)
        assert row.probe is not None
        return row.probe

    one, other = found(slots), found(32)
    assert one.scaled == other.scaled != {}
    assert one.survivors == other.survivors
    assert one.gradients == other.gradients
    assert one.spread == pytest.approx(other.spread, abs=1e-12)
    assert one.samples == other.samples
    assert len(one.samples) == 64


def test_the_model_comes_back_as_it_was():
    """Modes, and which parameters need gradients; no gradient is left behind."""
    model = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(192), nn.Linear(192, 4)).train()
    x = images()
    with torch.no_grad():
        before = model[1].running_mean.clone()
    probe(model, x, own_labels(model.eval(), x), eps=EPS)
    model.train()
    probe(model, x, torch.zeros(80, dtype=torch.int64), eps=EPS)
    assert model.training
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    assert torch.equal(model[1].running_mean, before)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"images": images() * 255}, "divide by 255"),
        ({"labels": torch.full((80,), 9)}, r"labels must lie in \[0, 5\)"),
        ({"eps": 8}, "did you mean 8/255"),
        ({"norm": "l1"}, "unknown norm"),
        ({"attacks": ["pdg-20"]}, "did you mean 'pgd-20'"),
        ({"attacks": "pgd-20"}, r"write \['pgd-20'\]"),
        ({"duplicates": "drop"}, "unknown duplicates rule"),
        ({"slots": 0}, "slots must be >= 1"),
        ({"model": 3}, "the model is a int"),
        ({"outcomes": {"pgd-20": []}}, "outcomes of 'pgd-20' are not of these images"),
    ],
)
def test_a_mistake_is_one_line(change, words):
    """As in attacks.run."""
    model = Toy()
    x = images()
    given = {"model": model, "images": x, "labels": own_labels(model, x), "eps": EPS, **change}
    with pytest.raises(UserError, match=words) as caught:
        probe(given.pop("model"), given.pop("images"), given.pop("labels"), **given)
    assert "\n" not in str(caught.value)


def test_a_model_that_is_never_right_has_no_probes():
    """There is nothing to attack, and nothing to say."""
    model = Toy()
    x = images()
    assert told(model, y=(own_labels(model, x) + 1) % 5) == {}


@needs_golden
@pytest.mark.parametrize("label", golden.CASES)
def test_golden_networks_are_honest(label):
    """Each under its own threat, by the reference's attacks; with few classes the stand-ins are told."""
    case = golden.CASES[label]
    x, y, ids = golden.images(case)
    names = ["pgd-20", "apgd-ce", "apgd-dlr", "apgd-t", "fab", "fab-t", "square"]
    settings: dict[str, Any] = {"norm": case.threat.norm, "eps": case.threat.eps, "ids": ids}
    found = probe(golden.network(case.network), x, y, attacks=names, **settings)
    fewer = {"cnn-2class": ["apgd-dlr", "apgd-t"], "cnn-3class": ["apgd-t"]}.get(case.network, [])
    expected = [("fallback-loss", name) for name in fewer]
    assert [(flag.name, flag.column) for flag in found] == expected


@needs_golden
def test_a_golden_network_is_honest_in_its_records():
    """Gradient attacks and Square on the first thirty images: nothing but their small number."""
    case = golden.CASES["cnn-robust_Linf_8-255"]
    x, y, ids = golden.images(case, 30)
    network = golden.network(case.network)
    outcomes = {
        name: attacks.run(network, x, y, ids=ids, attack=name, eps=case.threat.eps)
        for name in ("apgd-ce-20", "cw-margin-20", "square-200")
    }
    found = probe(network, x, y, eps=case.threat.eps, ids=ids, outcomes=outcomes)
    assert {flag.name for flag in found} == {"few-samples"}


# --- beside the cells ---

ATTACKS = ["pgd-10", "cw-margin-10"]
RADIUS = 4 / 255
module = importlib.import_module("zsrobust.evaluation.evaluate")


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of images of each look that a zero-shot classifier takes."""
    seen: list[int] = []
    forward = ZeroShotClassifier.forward

    def look(self: ZeroShotClassifier, given: torch.Tensor) -> torch.Tensor:
        seen.append(len(given))
        return forward(self, given)

    monkeypatch.setattr(ZeroShotClassifier, "forward", look)
    return seen


def measure(model: Any, where: Path, out: Path | None, **settings: Any) -> Any:
    given = {"attacks": ATTACKS, "eps": RADIUS, "limit": 40, "device": "cpu", **settings}
    return evaluate([model], f"folder:{where}", out=out, **given)


def file_of(out: Path) -> Path:
    (found,) = out.glob("cells/*/probe.json")
    return found


def raised(table: Any) -> list[list[tuple[str, str, str]]]:
    """The flags of each row, sorted: cells alone do not tell the order of the attacks."""
    return [sorted((f.name, f.column, f.why) for f in row.flags) for row in table.rows]


def lost_scale(folder: Path) -> Any:
    clip = load_clip(f"local-dir:{folder}")
    clip.logit_scale = 1.0
    return clip


@pytest.fixture(scope="module")
def flat(tiny_clip_folder: Path, sorted_set: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """(folder, table) of a CLIP whose logit scale was lost."""
    out = tmp_path_factory.mktemp("flat")
    return out, measure(lost_scale(tiny_clip_folder), sorted_set, out)


def test_probes_stand_beside_the_clean_cell_and_in_the_report(flat):
    """The flags of the evaluation are those of its cells alone, without a model."""
    out, table = flat
    file = file_of(out)
    assert json.loads(file.with_name("cell.json").read_text())["attack"] == {"name": "clean"}
    (row,) = raised(table)
    whys = [why for name, column, why in row if (name, column) == ("flat-output", "robust")]
    assert len(whys) == 1
    assert "its logit scale is 1" in whys[0]
    assert raised(read_table([out]).table) == [row]


def test_probes_are_the_first_clean_correct_samples_of_the_fixed_order(flat, sorted_set):
    """With their labels and the hashes of their images."""
    out, table = flat
    opened = data.open_set(f"folder:{sorted_set}")
    right = [i for i, good in zip(table.rows[0].ids, table.rows[0].clean, strict=True) if good]
    samples = json.loads(file_of(out).read_text())["samples"]
    assert [name for name, _, _ in samples] == right
    labels = dict(zip(opened.ids, opened.labels, strict=True))
    assert all(labels[name] == label for name, label, _ in samples)


def test_complete_cells_ask_the_model_nothing(flat, tiny_clip_folder, sorted_set, tmp_path, looks):
    """The same request again, and a smaller one: not a look, not a byte."""
    out = Path(shutil.copytree(flat[0], tmp_path / "results"))
    before = file_of(out).read_bytes()
    clip = lost_scale(tiny_clip_folder)
    again = measure(clip, sorted_set, out)
    measure(clip, sorted_set, out, limit=10)
    assert looks == []
    assert file_of(out).read_bytes() == before
    assert raised(again) == raised(flat[1])


def test_another_attack_adds_what_it_needs_alone(
    flat, tiny_clip_folder, sorted_set, tmp_path, monkeypatch
):
    """One more loss, then one more eps, where the softmax is flat; what was found stays as it was."""
    out = Path(shutil.copytree(flat[0], tmp_path / "results"))
    before = json.loads(file_of(out).read_text())
    assert set(before["gradients"]) == {"cross-entropy", "margin"}
    assert set(before["scaled"]) == {f"linf {RADIUS!r}"}
    monkeypatch.setattr(probes, "_unattacked", None)  # not called
    clip = lost_scale(tiny_clip_folder)
    measure(clip, sorted_set, out, attacks=["apgd-dlr-3"])
    after = json.loads(file_of(out).read_text())
    assert set(after["gradients"]) == {"cross-entropy", "margin", "dlr"}
    measure(clip, sorted_set, out, attacks=["pgd-2"], eps=2 * RADIUS)
    last = json.loads(file_of(out).read_text())
    assert set(last["scaled"]) == {f"linf {RADIUS!r}", f"linf {2 * RADIUS!r}"}
    for name in ("samples", "largest", "survivors", "difference", "certain"):
        assert last[name] == before[name]


def test_what_a_killed_write_left_is_taken_away(tiny_clip, sorted_set, tmp_path):
    """The next write of the file removes it, though no clean sample was missing."""
    measure(tiny_clip, sorted_set, tmp_path, attacks=["clean"])
    (description,) = tmp_path.glob("cells/*/cell.json")
    description.with_name(".probe.json.123.partial").write_bytes(b"half")
    measure(tiny_clip, sorted_set, tmp_path, attacks=["pgd-2"])
    assert file_of(tmp_path).parent == description.parent
    assert list(tmp_path.rglob("*.partial")) == []


def test_more_samples_are_probed_anew(tiny_clip, sorted_set, tmp_path):
    """Ten have fewer probes than forty; ten again keep what forty told."""
    counts = []
    for limit in (10, 40, 10):
        measure(tiny_clip, sorted_set, tmp_path, limit=limit, attacks=["pgd-2"], eps=limit / 2550)
        counts.append(len(json.loads(file_of(tmp_path).read_text())["samples"]))
    assert counts[0] < counts[1] == counts[2]


def test_what_few_probes_told_is_asked_of_all_once_there_are_more(
    flat, tiny_clip_folder, sorted_set, tmp_path
):
    """A loss that was first needed for ten samples, then for forty."""
    out = Path(shutil.copytree(flat[0], tmp_path / "results"))
    clip = lost_scale(tiny_clip_folder)
    counts = []
    for limit in (10, 40):
        measure(clip, sorted_set, out, limit=limit, attacks=["apgd-dlr-3"], eps=2 * RADIUS)
        content = json.loads(file_of(out).read_text())
        dlr, scaled = content["gradients"]["dlr"], content["scaled"][f"linf {2 * RADIUS!r}"]
        assert dlr["of"] == scaled["of"]
        counts.append(dlr["of"])
    assert counts[0] < counts[1] == len(content["samples"])


def test_clean_alone_has_no_probes(tiny_clip, sorted_set, tmp_path, looks):
    """They are taken when an attack is measured."""
    measure(tiny_clip, sorted_set, tmp_path, attacks=["clean"])
    assert list(tmp_path.glob("cells/*/probe.json")) == []
    assert sum(looks) == 40


def test_cells_without_probes_raise_no_flag_that_needs_them(flat, tmp_path):
    """Cells from before; and of another version of the file."""
    out = Path(shutil.copytree(flat[0], tmp_path / "results"))
    content = json.loads(file_of(out).read_text())
    file_of(out).write_text(json.dumps({**content, "version": 0}))
    others = [[one for one in row if one[0] not in FROM_PROBES] for row in raised(flat[1])]
    assert raised(read_table([out]).table) == others
    file_of(out).unlink()
    assert raised(read_table([out]).table) == others


@pytest.mark.parametrize("content", ["", "{", "[]", '{"version": 1}', "null", "[" * 100_000])
def test_a_damaged_file_is_one_line(flat, tmp_path, content):
    """It names the file, and what happens without it."""
    out = Path(shutil.copytree(flat[0], tmp_path / "results"))
    file_of(out).write_text(content)
    with pytest.raises(UserError, match=r"probe\.json is damaged: remove it") as caught:
        read_table([out])
    assert "\n" not in str(caught.value)


def test_memory_holds_no_more_images_than_probes(tiny_clip, sorted_set, monkeypatch):
    """Of an attack with eight slots the probes go through the model eight at a time too."""
    seen: list[int] = []
    forward = ZeroShotClassifier.forward
    monkeypatch.setattr(
        ZeroShotClassifier,
        "forward",
        lambda self, given: seen.append(len(given)) or forward(self, given),
    )
    measure(tiny_clip, sorted_set, None, slots=8)
    assert max(seen) == 8


def test_tiny_is_honest():
    """The embedded model on drawn pictures."""
    table = evaluate(
        ["tiny"], "demo/shapes", ["pgd-10", "cw-margin-10"], "1/255", limit=24, device="cpu"
    )
    (row,) = table.rows
    assert row.probe is not None
    assert {flag.name for flag in row.flags} <= {"few-samples"}


@pytest.mark.needs_data
def test_mini_clip_is_honest_before_and_after_hardening(tmp_path):
    """On held-out source photographs; a hardening of four steps."""
    from zsrobust.training import harden, load_recipe

    short = ["source.limit=32", "batch=8", "epochs=1", "validation.every=never"]
    run = harden(load_recipe("mini/tecoa-ft-eps2", short), tmp_path / "run")
    table = evaluate(
        ["mini-clip", run],
        "mini/tiny_imagenet#val",
        ["apgd-ce-10", "cw-margin-10"],
        "1/255",
        limit=32,
        device="cpu",
    )
    assert len(table.rows) == 2
    for row in table.rows:
        assert row.probe is not None
        assert {flag.name for flag in row.flags} <= {"few-samples"}
