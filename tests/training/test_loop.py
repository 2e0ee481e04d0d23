"""A hardening end to end: what it writes, what it moves, that it resumes bit for bit."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from zsrobust import data
from zsrobust.errors import EnvironmentFault, UserError
from zsrobust.files import folder_lock
from zsrobust.models import load_clip
from zsrobust.objectives.tecoa import Tecoa
from zsrobust.preprocess import to_unit
from zsrobust.training import loop
from zsrobust.training.loop import global_batches, harden
from zsrobust.training.recipe import parse_recipe


@pytest.fixture
def base(toy_recipe) -> dict[str, Any]:
    """Within 4/255, scored on ten held-out pictures."""
    validation = {"split": "val", "limit": 10, "attack": "pgd-2"}
    return {**toy_recipe, "validation": validation, "threat": {"eps": "4/255"}}


def weights(spec: str) -> dict[str, torch.Tensor]:
    return load_clip(spec).model.state_dict()


def test_a_run_writes_what_it_says_and_moves_only_the_image_tower(base, tmp_path):
    """recipe, log and model; no checkpoint is left; text tower and logit scale are bit-identical."""
    run = harden(parse_recipe(base), tmp_path / "run")
    files = {str(p.relative_to(run.folder)) for p in run.folder.rglob("*") if p.is_file()}
    assert files - {".lock"} == {
        "recipe.json",
        "log.jsonl",
        "model/open_clip_config.json",
        "model/open_clip_model.safetensors",
        "model/adaptation.json",
    }
    before, after = weights(base["model"]), weights(run.spec)
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved
    assert all(name.startswith("visual.") for name in moved)
    assert len(run.read_log("step")) == 8
    assert [row["steps_done"] for row in run.read_log("step")] == list(range(1, 9))
    assert run.read_log("validation")[-1]["samples"] == 10
    record = json.loads((run.model / "adaptation.json").read_text())
    assert (record["adaptation"], record["base"]) == ("full", base["model"])


@pytest.mark.parametrize(
    "settings", [{}, {"precision": "fp64"}, {"objective": {"name": "adv"}}, {"select": "best"}]
)
def test_a_model_notes_the_fingerprint_that_its_cells_will_have(base, tmp_path, settings):
    """In memory after training as after loading, whatever it was trained in."""
    held_out = {**base["validation"], "every": "epoch"}
    run = harden(parse_recipe({**base, "validation": held_out, **settings}), tmp_path / "run")
    record = json.loads((run.model / "adaptation.json").read_text())
    assert record["fingerprint"] == load_clip(run.spec).fingerprint != record["base_fingerprint"]


def test_plain_open_clip_loads_the_hardened_model(base, tmp_path):
    """local-dir: with the same features as ours."""
    import open_clip

    run = harden(parse_recipe({**base, "epochs": 1, "validation": None}), tmp_path / "run")
    model, _, _ = open_clip.create_model_and_transforms(f"local-dir:{run.model}")
    images = torch.rand(3, 3, 16, 16)
    ours = load_clip(run.spec)
    with torch.no_grad():
        theirs = model.eval().encode_image(ours.preprocess.normalise(images))
        assert torch.allclose(theirs, ours.image_encoder()(images), atol=1e-6)


def test_a_finished_run_is_not_run_again(base, tmp_path, monkeypatch):
    """The same command returns what is there."""
    recipe = parse_recipe({**base, "epochs": 1})
    run = harden(recipe, tmp_path / "run")
    monkeypatch.setattr(loop, "_train", lambda *_: pytest.fail("trained again"))
    assert harden(recipe, tmp_path / "run").complete
    assert run.complete


@pytest.mark.parametrize("stop_at", [1, 4, 5, 7])
@pytest.mark.parametrize("optimiser", ["adamw", "sgd"])
def test_a_stopped_run_goes_on_to_bit_identical_weights(
    base, tmp_path, harden_until, stop_at, optimiser
):
    """Stopped in mid-epoch, at its end, or after it: the same permutation, noise, rates and moments (traps 42)."""
    recipe = parse_recipe({**base, "optimiser": {**base["optimiser"], "name": optimiser}})
    whole = harden(recipe, tmp_path / "whole")

    harden_until(recipe, tmp_path / "cut", stop_at)
    torch.rand(3)  # what happens between the two must not matter
    resumed = harden(recipe, tmp_path / "cut")

    a, b = weights(whole.spec), weights(resumed.spec)
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert [r["loss"] for r in whole.read_log("step")] == [
        r["loss"] for r in resumed.read_log("step")
    ]
    assert whole.read_log("validation") == resumed.read_log("validation")


def test_a_last_epoch_is_cut_where_epochs_are_no_whole_number(base, tmp_path, harden_until):
    """1.5 epochs of four steps are six; stopped within the cut one it goes on, and validates at its end."""
    recipe = parse_recipe({**base, "epochs": 1.5})
    whole = harden(recipe, tmp_path / "whole")
    harden_until(recipe, tmp_path / "cut", 5)
    resumed = harden(recipe, tmp_path / "cut")

    steps = whole.read_log("step")
    assert [row["epoch"] for row in steps] == [0, 0, 0, 0, 1, 1]
    assert steps[-1]["lr"] < steps[1]["lr"]  # the schedule ends with the sixth step
    assert [row["steps_done"] for row in whole.read_log("validation")] == [6]
    assert resumed.read_log("step") == steps
    a, b = weights(whole.spec), weights(resumed.spec)
    assert all(torch.equal(a[name], b[name]) for name in a)
    two = harden(parse_recipe({**base, "epochs": 2}), tmp_path / "two").read_log("step")
    assert [row["loss"] for row in two[:2]] == [
        row["loss"] for row in steps[:2]
    ]  # as warm-up has it


def test_another_seed_gives_other_weights_and_workers_do_not(base, tmp_path):
    """Order and noise are functions of (seed, epoch, sample id); a worker pool changes nothing (traps 41)."""
    one = {**base, "epochs": 1, "validation": None}
    a = weights(harden(parse_recipe(one), tmp_path / "a").spec)
    b = weights(harden(parse_recipe({**one, "workers": 1}), tmp_path / "b").spec)
    c = weights(harden(parse_recipe({**one, "seed": 1}), tmp_path / "c").spec)
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert any(not torch.equal(a[name], c[name]) for name in a)


def test_gradient_accumulation_equals_the_whole_batch(base, tmp_path):
    """Micro-batches of unequal sizes (16 = 6 + 6 + 4) weigh by their samples; one step of SGD in float64."""
    one = {
        **base,
        "epochs": 1,
        "source": {**base["source"], "limit": 16},
        "validation": None,
        "precision": "fp64",
        "optimiser": {"name": "sgd", "lr": 1e-2},
        "schedule": {"warmup": 0, "kind": "constant"},
    }
    a = weights(harden(parse_recipe(one), tmp_path / "a").spec)
    b = weights(harden(parse_recipe({**one, "micro_batch": 6}), tmp_path / "b").spec)
    start = weights(base["model"])
    assert max(float((a[n] - start[n]).abs().max()) for n in a) > 1e-5
    assert max(float((a[n] - b[n]).abs().max()) for n in a) < 1e-7


def test_one_step_is_the_gradient_step_of_the_formula(base, tmp_path):
    """SGD without momentum on TeCoA at the adversarial images, redone by hand from the recipe's own parts."""
    from zsrobust.randomness import ball_start, sample_keys
    from zsrobust.threat import Threat

    recipe = parse_recipe(
        {
            **base,
            "epochs": 1,
            "source": {**base["source"], "limit": 10},
            "validation": None,
            "precision": "fp64",
            "optimiser": {"name": "sgd", "lr": 0.05, "momentum": 0.0},
            "schedule": {"warmup": 0, "kind": "constant"},
        }
    )
    found = weights(harden(recipe, tmp_path / "run").spec)

    clip = load_clip(recipe.model)
    model = copy.deepcopy(clip.model)
    source = loop.open_source(recipe)
    batch = next(
        data.batches(source.images, source.indices, clip.preprocess.geometry(), len(source.indices))
    )
    from zsrobust.models import text_anchors

    anchors = text_anchors(clip, source.images.classnames, source.templates).anchors.double()
    model.double()
    scale = clip.logit_scale
    x, y = to_unit(batch.images).double(), batch.labels
    mean = torch.tensor([0.5, 0.5, 0.5]).double().reshape(1, 3, 1, 1)

    def loss(images):
        f = model.encode_image((images - mean) / 0.25)
        return torch.nn.functional.cross_entropy(
            scale * (f / f.norm(dim=1, keepdim=True)) @ anchors.T, y
        )

    keys = sample_keys(0, "train/0", batch.ids)
    eps = 4 / 255
    start = ball_start(keys, torch.zeros_like(keys), x, "linf", eps)
    adversarial = Threat("linf", eps).project(x + start, x)
    for _ in range(2):
        adversarial = adversarial.detach().requires_grad_()
        (g,) = torch.autograd.grad(loss(adversarial), adversarial)
        adversarial = (adversarial.detach() + eps * g.sign()).clamp(x - eps, x + eps).clamp(0, 1)
    parameters = dict(model.visual.named_parameters())
    for parameter in parameters.values():
        parameter.requires_grad_(True)
    gradients = torch.autograd.grad(loss(adversarial), list(parameters.values()))
    for (name, parameter), gradient in zip(parameters.items(), gradients, strict=True):
        expected = (parameter - 0.05 * gradient).float()
        assert torch.allclose(found[f"visual.{name}"], expected, atol=1e-7), name


def test_hardening_lowers_the_objective_on_adversarial_images(base, tmp_path):
    """The loss of the last epoch lies below that of the first."""
    run = harden(
        parse_recipe({**base, "epochs": 12, "validation": None, "checkpoint_every": 100}),
        tmp_path / "r",
    )
    losses = [row["loss"] for row in run.read_log("step")]
    assert sum(losses[-4:]) < 0.8 * sum(losses[:4])


def test_pairs_train_from_captions(base, tmp_path, tiny_set_folder):
    """A folder of images with a .txt beside each; equal captions are one text."""
    import shutil

    folder = tmp_path / "pairs"
    folder.mkdir()
    for number, image in enumerate(sorted((tiny_set_folder / "train").rglob("*.png"))[::2]):
        shutil.copy(image, folder / f"{number:03}.png")
        (folder / f"{number:03}.txt").write_text(
            f"a picture of a {image.parent.name}\nthe {image.parent.name} number {number}\n"
        )
    recipe = parse_recipe(
        {
            **base,
            "source": {"set": f"folder:{folder}", "split": "test"},
            # Captions name no classes: labelled held-out images bring their own.
            "validation": {**base["validation"], "set": f"folder:{tiny_set_folder}"},
            "objective": {"name": "tecoa-pairs"},
            "epochs": 10,
        }
    )
    run = harden(recipe, tmp_path / "run")
    losses = [row["loss"] for row in run.read_log("step")]
    assert sum(losses[-4:]) < sum(losses[:4])
    (row,) = run.read_log("validation")
    assert (row["samples"], row["scored_by"]) == (10, "texts")


def test_best_epoch_is_chosen_on_held_out_source_images(base, tmp_path, monkeypatch):
    """select: best keeps the weights of the epoch with the highest robust accuracy on held-out source images."""
    from zsrobust.training.validation import Scores

    scores = iter([0.4, 0.8, 0.6])
    states = []

    def fake(recipe, clip, source, fabric, head):
        states.append({n: t.clone() for n, t in clip.model.state_dict().items()})
        right = int(next(scores) * 10)
        return Scores([str(i) for i in range(10)], [True] * 10, [i < right for i in range(10)], 0.5)

    monkeypatch.setattr(loop, "validate", fake)
    recipe = parse_recipe(
        {
            **base,
            "epochs": 3,
            "select": "best",
            "validation": {**base["validation"], "every": "epoch"},
        }
    )
    run = harden(recipe, tmp_path / "run")
    found = weights(run.spec)
    assert all(torch.equal(found[n], states[1][n]) for n in found)
    assert json.loads((run.model / "adaptation.json").read_text())["epoch"] == 1


def test_a_folder_holds_one_recipes_run(base, tmp_path):
    """Another seed in the same folder is refused and says what differs; so is a folder with other things."""
    harden(parse_recipe({**base, "epochs": 1, "validation": None}), tmp_path / "run")
    with pytest.raises(UserError, match="seed was 0, is 1"):
        harden(parse_recipe({**base, "epochs": 1, "validation": None, "seed": 1}), tmp_path / "run")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").write_text("x")
    with pytest.raises(UserError, match="holds no run"):
        harden(parse_recipe(base), tmp_path / "other")


def test_a_second_process_in_the_folder_is_told_so(base, tmp_path):
    """One owner a run."""
    with folder_lock(tmp_path / "run"), pytest.raises(EnvironmentFault, match="another process"):
        harden(parse_recipe(base), tmp_path / "run")


def test_a_truncated_checkpoint_is_one_line(base, tmp_path, harden_until):
    """It says what to do; nothing is trained on garbage."""
    recipe = parse_recipe(base)
    harden_until(recipe, tmp_path / "run", 2)
    checkpoint = tmp_path / "run" / "checkpoint.pt"
    checkpoint.write_bytes(checkpoint.read_bytes()[:500])
    with pytest.raises(
        UserError, match=r"a damaged or cut off checkpoint; delete it to start the run anew"
    ):
        harden(recipe, tmp_path / "run")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"objective": {"name": "tecoa-pairs"}}, "needs captions"),
        ({"source": {"limit": 1000}}, "source.limit is 1000"),
        ({"validation": {"split": "train", "limit": 5}}, "is the split that is trained on"),
    ],
)
def test_data_that_do_not_fit_are_refused_before_training(
    base, tmp_path, monkeypatch, change, message
):
    """The objective's needs, the limit, and a validation that is no held-out split."""
    merged = {k: {**base.get(k, {}), **v} for k, v in change.items()}
    monkeypatch.setattr(loop, "training_step", lambda *_, **__: pytest.fail("trained"))
    with pytest.raises(UserError, match=message):
        harden(parse_recipe({**base, **merged}), tmp_path / "run")


def test_every_sample_is_seen_once_an_epoch_in_another_order_each():
    """The last, smaller batch is kept (traps 40); one of a single pair is dropped, it has nothing to contrast."""
    recipe = parse_recipe(
        {
            "name": "x",
            "model": "m",
            "source": {"set": "folder:a"},
            "optimiser": {"lr": 1},
            "batch": 4,
        }
    )
    ids = [str(i) for i in range(13)]
    first, second = (global_batches(recipe, ids, epoch) for epoch in (0, 1))
    assert [len(b) for b in first] == [4, 4, 4, 1]
    assert sorted(i for batch in first for i in batch) == list(range(13))
    assert first != second
    pairs = parse_recipe({**recipe.model_dump(), "objective": {"name": "tecoa-pairs"}})
    assert [len(b) for b in global_batches(pairs, ids, 0)] == [4, 4, 4]


def test_anchors_are_encoded_once(base, tmp_path, monkeypatch):
    """The text tower does not run in a step (traps 13)."""
    calls = []
    real = Tecoa.losses

    def losses(self, encode, images, batch):
        calls.append(self.anchors.data_ptr())
        return real(self, encode, images, batch)

    from zsrobust.models.load import Clip

    texts = []
    encode_texts = Clip.encode_texts
    monkeypatch.setattr(
        Clip, "encode_texts", lambda self, t, *a: texts.append(len(t)) or encode_texts(self, t, *a)
    )
    monkeypatch.setattr(Tecoa, "losses", losses)
    harden(parse_recipe({**base, "epochs": 1, "validation": None}), tmp_path / "run")
    assert len(set(calls)) == 1
    assert len(calls) == 4 * 3  # two attack steps and the learner's forward a step
    assert sum(texts) == 5  # five class texts, one template


def test_batch_norm_statistics_never_move(base, tmp_path):
    """Not in training, not in validation, not in evaluation (traps 10): a ResNet's buffers are bit-identical."""
    import open_clip
    from safetensors.torch import save_file

    from zsrobust.evaluation.evaluate import evaluate

    folder = tmp_path / "resnet"
    folder.mkdir()
    config = json.loads(
        (Path(base["model"].split(":", 1)[1]) / "open_clip_config.json").read_text()
    )
    config["model_cfg"]["vision_cfg"] = {
        "image_size": 32,
        "layers": [1, 1, 1, 1],
        "width": 8,
        "patch_size": None,
    }
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    torch.manual_seed(0)
    model = open_clip.model.CLIP(**config["model_cfg"])
    save_file(
        {n: t.contiguous() for n, t in model.state_dict().items()},
        folder / "open_clip_model.safetensors",
    )
    recipe = parse_recipe(
        {
            **base,
            "model": f"local-dir:{folder}",
            "validation": {**base["validation"], "every": "epoch"},
            "epochs": 2,
            "source": {**base["source"], "limit": 20},
        }
    )
    run = harden(recipe, tmp_path / "run")
    before, after = weights(recipe.model), weights(run.spec)
    statistics = [n for n in before if "running" in n or "num_batches" in n]
    assert len(statistics) > 20
    assert all(torch.equal(before[n], after[n]) for n in statistics)
    assert any(not torch.equal(before[n], after[n]) for n in before)

    clip = load_clip(run.spec)
    fingerprint = clip.fingerprint
    root = base["source"]["set"]
    evaluate([clip], f"{root}/val", ["pgd-2"], "4/255", limit=6, device="cpu")
    assert clip.fingerprint == fingerprint
    assert not clip.model.training


def test_native_resolution_trains_in_the_sets_own_pixels(base, tmp_path, monkeypatch):
    """The ball is around 20x24 px images, upsampled inside the encoder (traps 3)."""
    shapes = []
    real = loop.training_step

    def looking(*args: Any, **kwargs: Any) -> float:
        shapes.append(tuple(args[4].images.shape[1:]))
        return real(*args, **kwargs)

    monkeypatch.setattr(loop, "training_step", looking)
    recipe = parse_recipe({**base, "epochs": 1, "threat": {"eps": "4/255", "resolution": "native"}})
    run = harden(recipe, tmp_path / "run")
    assert set(shapes) == {(3, 20, 24)}
    assert run.read_log("validation")


def test_a_loss_that_is_not_finite_ends_the_run_before_a_weight_is_touched(
    base, tmp_path, monkeypatch
):
    """One line that names the rate; the checkpoint before it is whole."""
    real, calls = Tecoa.losses, 0

    def losses(self, encode, images, batch):
        nonlocal calls
        calls += 1
        found = real(self, encode, images, batch)
        return found * torch.nan if calls == 9 else found  # the learner's forward of the third step

    monkeypatch.setattr(Tecoa, "losses", losses)
    recipe = parse_recipe(base)
    with pytest.raises(FloatingPointError, match="learning rate"):
        harden(recipe, tmp_path / "run")
    monkeypatch.setattr(Tecoa, "losses", real)
    whole = weights(harden(recipe, tmp_path / "whole").spec)
    again = weights(harden(recipe, tmp_path / "run").spec)
    assert all(torch.equal(whole[n], again[n]) for n in whole)


@pytest.mark.parametrize("device", ["cdua", "mps", "cuda:x", "cpu:300"])
def test_an_unknown_device_is_refused(base, tmp_path, device):
    """It must not train on another one in silence."""
    with pytest.raises(UserError, match=f"device '{device}'"):
        harden(parse_recipe({**base, "device": device}), tmp_path / "run")
