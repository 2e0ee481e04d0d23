"""Hardenings by every adaptation: what moves, what is kept, and that it goes on, loads and is attacked."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from zsrobust import data
from zsrobust.adaptations import ADAPTATIONS, PROMPTING
from zsrobust.adaptations.lora import factors
from zsrobust.adaptations.prompts import prompt_facts, prompt_tensors, without_prompts
from zsrobust.errors import UserError
from zsrobust.models import ZeroShotClassifier, convert, load_clip, load_unmerged
from zsrobust.objectives import OBJECTIVES
from zsrobust.preprocess import to_unit
from zsrobust.training import loop
from zsrobust.training.loop import harden
from zsrobust.training.recipe import GOES_WITH, AdaptationPart, parse_recipe
from zsrobust.training.run import Run

NAMES = ["blue star", "green box", "grey cat", "red ball", "white dog"]
CASES: dict[str, dict[str, Any]] = {
    "full": {"name": "full"},
    "partial": {"name": "partial", "blocks": 1},
    "partial-budget": {"name": "partial", "budget": 300},
    "partial-tensors": {"name": "partial", "tensors": 9},
    "lora": {"name": "lora", "rank": 2},
    "pixel": {"name": "pixel", "width": 4},
    "pixel-before": {"name": "pixel", "kind": "fixed-patch", "width": 9, "added": "before"},
    "pixel-random": {"name": "pixel", "kind": "random-patch", "width": 13, "std": 0.5},
    "token": {"name": "token", "tokens": 4},
    "token-deep": {
        "name": "token",
        "tokens": 2,
        "where": "prepend",
        "depth": "every-block",
        "position": "trained",
    },
    "pixel+token": {"name": "pixel+token", "width": 3, "tokens": 3, "token_std": 0.5},
}
PROMPTED = [case for case in CASES if CASES[case]["name"] in PROMPTING]
WEIGHTED = [case for case in CASES if case not in PROMPTED]


@pytest.fixture
def base(toy_recipe) -> dict[str, Any]:
    """At a rate that moves prompts too."""
    return {**toy_recipe, "validation": None, "optimiser": {**toy_recipe["optimiser"], "lr": 3e-2}}


@pytest.fixture(scope="session")
def runs(tiny_clip_folder, tiny_set_folder, tmp_path_factory) -> Any:
    """One short run of each case, made when first asked for; to be read only."""
    made: dict[str, Run] = {}
    root = tmp_path_factory.mktemp("adapted")

    def run(case: str) -> Run:
        if case not in made:
            recipe = {
                "name": f"test/{case}",
                "model": f"local-dir:{tiny_clip_folder}",
                "source": {"set": f"folder:{tiny_set_folder}", "split": "train", "limit": 20},
                "adaptation": CASES[case],
                "threat": {"eps": "2/255"},
                "optimiser": {"lr": 3e-2},
                "batch": 10,
                "epochs": 2,
            }
            made[case] = harden(parse_recipe(recipe), root / case)
        return made[case]

    return run


def copied(run: Run, to: Path) -> Run:
    shutil.copytree(run.folder, to)
    return Run(to, run.recipe)


def fixed_batch(recipe: Any) -> tuple[torch.Tensor, torch.Tensor]:
    source = loop.open_source(recipe)
    geometry = load_clip(recipe.model).preprocess.geometry()
    batch = next(data.batches(source.images, source.indices, geometry, 60))
    return to_unit(batch.images), batch.labels


def loss_on(spec: str, images: torch.Tensor, labels: torch.Tensor) -> float:
    """Cross-entropy to the class texts at images a fixed sign step away, through the model of a spec."""
    classifier = ZeroShotClassifier.from_texts(load_clip(spec), NAMES)
    x = images.clone().requires_grad_()
    torch.nn.functional.cross_entropy(classifier(x), labels).backward()
    moved = (images + 2 / 255 * x.grad.sign()).clamp(0, 1)
    with torch.no_grad():
        return float(torch.nn.functional.cross_entropy(classifier(moved), labels))


@pytest.mark.parametrize("case", CASES)
def test_training_lowers_the_loss_and_moves_what_it_says(base, tmp_path, case):
    """On a fixed batch at adversarial images, against the start that the run itself had; nothing else moves."""
    recipe = parse_recipe({**base, "adaptation": CASES[case], "epochs": 9, "checkpoint_every": 99})
    run = harden(recipe, tmp_path / "run")
    images, labels = fixed_batch(recipe)
    start = {**recipe.model_dump(), "optimiser": {"lr": 1e-12}, "schedule": {}, "epochs": 1}
    start["source"] |= {"limit": 5}
    unmoved = harden(parse_recipe(start), tmp_path / "start")
    assert loss_on(run.spec, images, labels) < 0.98 * loss_on(unmoved.spec, images, labels)

    clip, plain = load_clip(run.spec), load_clip(base["model"]).model.state_dict()
    after = without_prompts(clip.model.state_dict())
    moved = {name for name in plain if not torch.equal(plain[name], after[name])}
    assert all(name.startswith("visual.") for name in moved)
    assert bool(moved) == (case in WEIGHTED)
    assert bool(prompt_facts(clip.model)) == (case in PROMPTED)
    (line,) = run.read_log("start")
    assert line["adapted_numbers"] == line["trained_numbers"] > 0
    if case in PROMPTED:
        count = sum(t.numel() for t in prompt_tensors(clip.model).values())
        assert line["adapted_numbers"] == count
    record = json.loads((run.model / "adaptation.json").read_text())
    assert record["adaptation"] == CASES[case]["name"]
    assert {"name": record["adaptation"], **record["settings"], **CASES[case]} == {
        "name": record["adaptation"],
        **record["settings"],
    }
    assert record["fingerprint"] == clip.fingerprint != record["base_fingerprint"]


@pytest.mark.parametrize("case", CASES)
def test_a_stopped_run_goes_on_to_the_same_model(base, tmp_path, harden_until, case):
    """Bit for bit, weights, prompts, factors, log and held-out scores; a checkpoint holds what moves alone."""
    validation = {"split": "val", "limit": 10, "attack": "pgd-2", "every": "epoch"}
    source = {**base["source"], "limit": 32}
    recipe = {**base, "source": source, "adaptation": CASES[case], "validation": validation}
    recipe = parse_recipe(recipe)
    whole = harden(recipe, tmp_path / "whole")
    harden_until(recipe, tmp_path / "cut", 3)
    checkpoint = torch.load(tmp_path / "cut" / "checkpoint.pt", weights_only=True)
    numbers = sum(t.numel() for t in checkpoint["parameters"].values())
    assert numbers == whole.read_log("start")[0]["adapted_numbers"]
    torch.rand(3)  # what happens between the two must not matter
    resumed = harden(recipe, tmp_path / "cut")
    files = {p.name: p for p in whole.model.iterdir()}
    assert set(files) == {p.name for p in resumed.model.iterdir()}
    for name, path in files.items():
        if name.endswith(".safetensors"):
            a, b = load_file(path), load_file(resumed.model / name)
            assert all(torch.equal(a[key], b[key]) for key in a)
            assert set(a) == set(b)
    for event in ("step", "validation"):
        assert whole.read_log(event) == resumed.read_log(event)


@pytest.mark.parametrize("case", CASES)
def test_a_run_writes_the_files_of_its_adaptation(runs, case):
    """Weights always whole; prompts and factors beside them."""
    found = {path.name for path in runs(case).model.iterdir()}
    beside = {"lora": {"lora.safetensors"}}.get(case, set())
    beside |= {"prompts.safetensors"} if case in PROMPTED else set()
    assert found == {
        "open_clip_config.json",
        "open_clip_model.safetensors",
        "adaptation.json",
        *beside,
    }


@pytest.mark.parametrize("case", CASES)
def test_plain_open_clip_loads_every_folder(runs, base, case):
    """With our features where all is in the weights; a prompted one as the model that it started from."""
    import open_clip

    model, _, _ = open_clip.create_model_and_transforms(f"local-dir:{runs(case).model}")
    images = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    ours = load_clip(runs(case).spec)
    plain = load_clip(base["model"])
    with torch.no_grad():
        theirs = model.eval().encode_image(ours.preprocess.normalise(images))
        same = plain if case in PROMPTED else ours
        torch.testing.assert_close(theirs, same.image_encoder()(images), rtol=0, atol=1e-5)
        assert not torch.allclose(ours.image_encoder()(images), plain.image_encoder()(images))


@pytest.mark.parametrize("case", PROMPTED)
def test_what_is_measured_is_the_model_that_was_trained(base, tmp_path, monkeypatch, case):
    """Held-out features in the run equal those of run:DIR bit for bit; attacks go through the prompt too."""
    from zsrobust import attacks

    seen: list[torch.Tensor] = []
    images, labels = fixed_batch(parse_recipe(base))

    def looking(recipe, clip, *_):
        from zsrobust.training.validation import Scores

        with torch.no_grad():
            seen.append(clip.image_encoder()(images))
        return Scores(["0"], [True], [True], 0.5)

    monkeypatch.setattr(loop, "validate", looking)
    held_out = {"validation": {"split": "val", "limit": 10}, "epochs": 1}
    run = harden(parse_recipe({**base, **held_out, "adaptation": CASES[case]}), tmp_path / "run")
    clip = load_clip(run.spec)
    with torch.no_grad():
        assert torch.equal(clip.image_encoder()(images), seen[0])
    assert load_clip(run.spec).fingerprint == clip.fingerprint

    classifier = ZeroShotClassifier.from_texts(clip, NAMES)
    with torch.no_grad():
        right = (classifier(images).argmax(1) == labels).tolist()
    outcomes = attacks.run(
        classifier, images, labels, ids=[str(i) for i in range(60)], attack="pgd-2", eps="2/255"
    )
    assert [outcome.clean_correct for outcome in outcomes] == right
    plain = gradient(load_clip(base["model"]), images, labels)
    assert not torch.allclose(gradient(clip, images, labels), plain)


def gradient(clip: Any, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    classifier = ZeroShotClassifier.from_texts(clip, NAMES)
    x = images.clone().requires_grad_()
    loss = torch.nn.functional.cross_entropy(classifier(x), labels)
    return torch.autograd.grad(loss, x)[0]


@pytest.mark.parametrize("case", PROMPTED)
def test_prompts_are_in_the_fingerprint(runs, tmp_path, case):
    """Their numbers, and where a patch stands, which is no tensor; the plain model's is untouched by it."""
    clip = load_clip(runs(case).spec)
    before = clip.fingerprint
    with torch.no_grad():
        next(iter(prompt_tensors(clip.model).values())).add_(1e-3)
    assert clip.fingerprint != before
    if case == "pixel-random":
        other = load_clip(runs(case).spec)
        row, column = other.model.visual.pixel_prompt.corner
        other.model.visual.pixel_prompt.corner = (row ^ 1, column)
        assert other.fingerprint not in (before, clip.fingerprint)


def test_a_random_patch_stands_where_the_seed_has_it(base, tmp_path, monkeypatch):
    """Elsewhere at each step of training, all forwards of a step in one place; in evaluation it stands still."""
    from zsrobust.adaptations.pixel import PixelPrompt

    seen: list[tuple[int, int]] = []
    real = PixelPrompt.canvas
    monkeypatch.setattr(PixelPrompt, "canvas", lambda self: seen.append(self.corner) or real(self))
    recipe = parse_recipe({**base, "adaptation": CASES["pixel-random"], "seed": 4})
    run = harden(recipe, tmp_path / "run")
    prompt = load_clip(run.spec).model.visual.pixel_prompt
    expected = [prompt.drawn_corner(4, f"step/{step}") for step in range(8)]
    # Two forwards of the adversary, one of the learner.
    assert seen == [corner for corner in expected for _ in range(3)]
    assert len(set(expected)) > 4
    assert prompt.corner == prompt.drawn_corner(4, "evaluation")
    other = harden(parse_recipe({**recipe.model_dump(), "seed": 5}), tmp_path / "other")
    assert load_clip(other.spec).model.visual.pixel_prompt.corner != prompt.corner


def test_lora_is_stored_merged_and_comes_apart_again(runs, base):
    """run:DIR has the sums; the factors beside it give back the weights that it started from, within rounding."""
    run = runs("lora")
    merged, apart = load_clip(run.spec), load_unmerged(run.spec)
    plain = load_clip(base["model"]).model.state_dict()
    images = torch.rand(4, 3, 16, 16)
    with torch.no_grad():
        a, b = merged.image_encoder()(images), apart.image_encoder()(images)
    torch.testing.assert_close(a, b, rtol=0, atol=1e-5)
    assert any("parametrizations" in name for name in apart.model.state_dict())
    for name, tensor in apart.model.state_dict().items():
        if name.endswith(".original"):
            whole = name.replace(".parametrizations", "").removesuffix(".original")
            torch.testing.assert_close(tensor, plain[whole], rtol=0, atol=1e-6)
            assert not torch.equal(merged.model.state_dict()[whole], plain[whole])
    stored = load_file(run.model / "lora.safetensors")
    assert all(torch.equal(tensor, stored[name]) for name, tensor in factors(apart.model).items())
    moving = {name for name, p in apart.model.named_parameters() if p.requires_grad}
    assert len(moving) == len(stored) == 2 * 2 * 6


def test_only_a_lora_run_comes_apart(runs, base, tmp_path):
    with pytest.raises(UserError, match="only what a hardening wrote has factors"):
        load_unmerged(base["model"])
    with pytest.raises(UserError, match=r"adaptation\.json says nothing of lora\.safetensors"):
        load_unmerged(runs("full").spec)
    run = copied(runs("lora"), tmp_path / "run")
    (run.model / "lora.safetensors").unlink()
    load_clip(run.spec)  # the weights are whole without it
    with pytest.raises(UserError, match="no such file"):
        load_unmerged(run.spec)
    shutil.copy(runs("pixel").model / "prompts.safetensors", run.model / "lora.safetensors")
    with pytest.raises(UserError, match="belongs to another run, or was changed"):
        load_unmerged(run.spec)


def test_convert_merges_lora_and_refuses_prompts(runs, tmp_path):
    """With the reason, before anything is written, and the model that it started from."""
    convert(runs("lora").spec, tmp_path / "lora")
    a = load_clip(runs("lora").spec).model.state_dict()
    b = load_clip(f"local-dir:{tmp_path / 'lora'}").model.state_dict()
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert not (tmp_path / "lora" / "lora.safetensors").exists()
    for case in PROMPTED:
        for form, out in (("open_clip", tmp_path / case), ("visual", tmp_path / f"{case}.pt")):
            with pytest.raises(UserError, match=r"carries prompts, .* started from \(local-dir:"):
                convert(runs(case).spec, out, form)
            assert not out.exists()


def test_prompts_in_memory_are_not_written_as_weights(runs, tmp_path):
    from zsrobust.models import save_open_clip, save_visual

    clip = load_clip(runs("pixel+token").spec)
    with pytest.raises(UserError, match="carries prompts"):
        save_open_clip(clip.model, clip.config, tmp_path / "a")
    with pytest.raises(UserError, match="carries prompts"):
        save_visual(clip, tmp_path / "a.pt")
    assert not list(tmp_path.iterdir())


def test_a_prompted_folder_is_no_plain_model(runs, tmp_path, base):
    """local-dir: on it is refused, and so is a tower laid over it, or another prompt on top."""
    run = runs("token")
    with pytest.raises(UserError, match=r"stand prompts .* write run:"):
        load_clip(f"local-dir:{run.model}")
    convert(base["model"], tmp_path / "tower.pt", "visual")
    with pytest.raises(UserError, match=r"carries prompts, .* trained on as base"):
        load_clip(f"{tmp_path / 'tower.pt'}@{run.spec}")
    again = {**base, "model": run.spec, "adaptation": CASES["pixel"]}
    with pytest.raises(UserError, match="carries a token prompt already"):
        harden(parse_recipe(again), tmp_path / "again")


def test_prompts_on_top_of_a_fine_tuned_tower(runs, base, tmp_path):
    """The base is a run; its weights stay bit for bit."""
    again = {**base, "model": runs("partial").spec, "adaptation": CASES["token"], "epochs": 1}
    run = harden(parse_recipe(again), tmp_path / "again")
    before = load_clip(runs("partial").spec).model.state_dict()
    after = without_prompts(load_clip(run.spec).model.state_dict())
    assert all(torch.equal(after[name], before[name]) for name in before)


def damage(run: Run, how: str, other: Run) -> None:
    prompts, record = run.model / "prompts.safetensors", run.model / "adaptation.json"
    noted = json.loads(record.read_text())
    tensors = load_file(prompts)
    first = sorted(tensors)[0]
    if how == "missing":
        prompts.unlink()
    elif how == "cut":
        prompts.write_bytes(prompts.read_bytes()[:-7])
    elif how == "empty":
        prompts.write_bytes(b"")
    elif how == "foreign":
        shutil.copy(other.model / "prompts.safetensors", prompts)
    elif how == "changed":
        save_file({**tensors, first: tensors[first] + 1e-4}, prompts)
    elif how == "left over":
        save_file({**tensors, "more": torch.zeros(1)}, prompts)
    elif how == "unknown":
        del noted["prompts"]
    elif how == "no settings":
        noted["settings"] = None
    elif how == "other settings":
        noted["settings"] = {**noted["settings"], "width": 5}
    elif how == "wrong settings":
        noted["settings"] = {**noted["settings"], "width": "wide"}
    elif how == "strange settings":
        noted["settings"] = {**noted["settings"], "rank": 3}
    elif how == "moved":
        noted["prompts"]["facts"]["pixel_prompt"]["corner"] = [0, 1]
    elif how == "other adaptation":
        noted["adaptation"] = "full"
    record.write_text(json.dumps(noted))


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("missing", "no such file"),
        ("cut", "not a whole safetensors file"),
        ("empty", "an empty file"),
        ("foreign", "belongs to another run, or was changed"),
        ("changed", "belongs to another run, or was changed"),
        ("left over", "belongs to another run, or was changed"),
        ("unknown", r"says nothing of prompts\.safetensors"),
        ("no settings", "has no table 'settings'"),
        ("other settings", "another one than the settings describe"),
        ("wrong settings", "width must be a whole number"),
        ("strange settings", "unknown setting of adaptation pixel 'rank'"),
        ("moved", "belongs to another run, or was changed"),
        ("other adaptation", "beside adaptation 'full', which has no prompts"),
    ],
)
def test_damaged_and_foreign_prompts_are_refused(runs, tmp_path, how, message):
    """In one line; what is loaded is the model that was trained, or nothing."""
    run = copied(runs("pixel-random"), tmp_path / "run")
    load_clip(run.spec)
    damage(run, how, runs("pixel"))
    with pytest.raises(UserError, match=message) as caught:
        load_clip(run.spec)
    assert "\n" not in str(caught.value)


def test_prompts_that_are_not_finite_are_refused(runs, tmp_path):
    """Also where the record fits them."""
    from zsrobust.models.adapters import noted

    run = copied(runs("pixel"), tmp_path / "run")
    tensors = load_file(run.model / "prompts.safetensors")
    tensors["pixel_prompt.top"][0, 0, 0] = float("nan")
    save_file(tensors, run.model / "prompts.safetensors")
    record = json.loads((run.model / "adaptation.json").read_text())
    record["prompts"] = noted(tensors, record["prompts"]["facts"])
    (run.model / "adaptation.json").write_text(json.dumps(record))
    with pytest.raises(UserError, match="hold NaN or infinity"):
        load_clip(run.spec)


def test_a_model_saved_over_a_prompted_one_takes_its_prompts_away(runs, tmp_path):
    from zsrobust.models import save_hardened

    run = copied(runs("pixel"), tmp_path / "run")
    clip = load_clip(runs("full").spec)
    save_hardened(clip.model, clip.config, run.folder, {"adaptation": "full", "base": "a"})
    assert not (run.model / "prompts.safetensors").exists()
    assert load_clip(run.spec).fingerprint == clip.fingerprint
    with pytest.raises(UserError, match=r"'pixel' is noted for a model with no prompts"):
        save_hardened(clip.model, clip.config, run.folder, {"adaptation": "pixel", "base": "a"})


@pytest.mark.parametrize("precision", ["fp64", "bf16"])
@pytest.mark.parametrize("case", ["lora", "pixel-before", "pixel+token", "token-deep"])
def test_other_precisions(base, tmp_path, case, precision):
    """What is stored is float32 and is the model that the record names."""
    one = {**base, "adaptation": CASES[case], "precision": precision, "epochs": 1}
    run = harden(parse_recipe(one), tmp_path / "run")
    clip = load_clip(run.spec)
    assert all(t.dtype == torch.float32 for t in clip.model.state_dict().values())
    record = json.loads((run.model / "adaptation.json").read_text())
    assert record["fingerprint"] == clip.fingerprint


def test_accumulation_equals_the_whole_batch(base, tmp_path):
    """A random patch stands in one place for all micro-batches of a step; one step of SGD in float64."""
    for case in ("pixel-random", "token-deep", "lora"):
        one = {
            **base,
            "adaptation": CASES[case],
            "source": {**base["source"], "limit": 16},
            "precision": "fp64",
            "optimiser": {"name": "sgd", "lr": 0.1},
            "schedule": {"warmup": 0, "kind": "constant"},
            "epochs": 1,
        }
        runs = [
            harden(parse_recipe({**one, "micro_batch": size}), tmp_path / f"{case}-{size}")
            for size in (16, 6)
        ]
        name = "lora.safetensors" if case == "lora" else "prompts.safetensors"
        a, b = (load_file(run.model / name) for run in runs)
        assert max(float((a[key] - b[key]).abs().max()) for key in a) < 1e-6


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_every_pair_trains_or_is_refused_in_one_line(
    base, tmp_path, tiny_set_folder, objective, captioned_folder
):
    """The table names every objective; what it allows takes a step, and what it forbids is one line."""
    assert set(GOES_WITH) == set(OBJECTIVES)
    source = {"set": f"folder:{captioned_folder}", "split": "train", "limit": 8}
    for name in ADAPTATIONS:
        case = next((c for c in CASES.values() if c["name"] == name), {"name": name})
        one = {
            **base,
            "source": source if objective == "tecoa-pairs" else {**base["source"], "limit": 8},
            "objective": {"name": objective},
            "adaptation": case,
            "schedule": {"warmup": 0},
            "epochs": 1,
            "batch": 8,
        }
        if name not in GOES_WITH[objective]:
            with pytest.raises(UserError, match=f"objective '{objective}' goes with") as caught:
                parse_recipe(one)
            assert "\n" not in str(caught.value)
            continue
        run = harden(parse_recipe(one), tmp_path / name.replace("+", "-"))
        assert len(run.read_log("step")) == 1
        load_clip(run.spec)


@pytest.fixture
def captioned_folder(tiny_set_folder, tmp_path) -> Path:
    """Eight images with a caption each: DIR/train/*.png and *.txt."""
    folder = tmp_path / "captioned" / "train"
    folder.mkdir(parents=True)
    for number, image in enumerate(sorted((tiny_set_folder / "train").rglob("*.png"))[::7]):
        shutil.copy(image, folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(f"picture number {number}")
    return folder.parent


def test_a_linear_probe_moves_its_head_alone(base, tmp_path):
    """The model stays bit for bit, and so does its fingerprint; the head has learnt."""
    probe = {"objective": {"name": "linear"}, "adaptation": {"name": "linear"}, "epochs": 10}
    run = harden(parse_recipe({**base, **probe}), tmp_path / "run")
    record = json.loads((run.model / "adaptation.json").read_text())
    assert record["fingerprint"] == record["base_fingerprint"] == load_clip(run.spec).fingerprint
    assert run.read_log("start")[0]["adapted_numbers"] == 0
    losses = [row["loss"] for row in run.read_log("step")]
    assert sum(losses[-4:]) < 0.9 * sum(losses[:4])


def test_a_budget_is_said_before_the_first_step(base, tmp_path):
    said: list[str] = []
    one = {**base, "adaptation": CASES["partial-budget"], "epochs": 1}
    run = harden(parse_recipe(one), tmp_path / "run", notify=said.append)
    count = run.read_log("start")[0]["adapted_numbers"]
    assert said == [f"partial fine-tuning: 6 tensors, {count:,} numbers move (the budget is 300)"]


def test_what_does_not_fit_shows_before_the_objective_is_made(base, tmp_path, monkeypatch):
    """Pseudo-labels of a large source take hours: a prompt too large is refused first."""
    monkeypatch.setattr(loop, "build_objective", lambda *_, **__: pytest.fail("made"))
    for adaptation, message in (
        ({"name": "pixel"}, "width is 30, a padding on images of 16 x 16 pixels has at most 8"),
        ({"name": "pixel", "width": 0}, "nothing would move"),
        ({"name": "partial", "blocks": 9}, "the tower has 2"),
    ):
        with pytest.raises(UserError, match=message):
            harden(parse_recipe({**base, "adaptation": adaptation}), tmp_path / "run")


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ({"name": "lora", "ranks": 3}, "unknown key 'adaptation.ranks': did you mean 'rank'"),
        ({"name": "pixel", "rank": 3}, "rank is a setting of 'lora', adaptation 'pixel' has kind,"),
        ({"rank": 3}, "adaptation 'full' has none: leave it out, or use another"),
        ({"name": "token", "width": 3}, "width is a setting of 'pixel' and 'pixel.token'"),
        ({"name": "partial"}, "needs exactly one of blocks, budget and tensors"),
        ({"name": "lora", "rank": "many"}, "adaptation.rank: must be a whole number, got 'many'"),
        ({"name": "lora", "targets": ["k", "x"]}, "target 'x' is unknown"),
        ({"name": "lora", "rank": True}, "adaptation.rank: must be a whole number"),
        ({"name": "pixels"}, "unknown adaptation 'pixels': did you mean 'pixel'"),
        ({"name": "pixel", "std": ".nan"}, "adaptation.std: must be a"),
    ],
)
def test_wrong_settings_are_one_line(base, part, message):
    with pytest.raises(UserError, match=message) as caught:
        parse_recipe({**base, "adaptation": part})
    assert "\n" not in str(caught.value)


def test_a_recipe_is_kept_with_the_settings_in_force(base):
    """Defaults too, and no other adaptation's; what is kept reads as the same recipe."""
    recipe = parse_recipe({**base, "adaptation": {"name": "lora", "targets": "q"}})
    kept = recipe.model_dump(mode="json")
    assert kept["adaptation"] == {"name": "lora", "rank": 8, "alpha": 16.0, "targets": ["q"]}
    assert parse_recipe(kept).determining() == recipe.determining()
    assert parse_recipe(base).model_dump(mode="json")["adaptation"] == {"name": "full"}


def test_every_setting_of_the_block_belongs_to_an_adaptation():
    from zsrobust.adaptations import setting_names

    named = {key for name in ADAPTATIONS for key in setting_names(name)}
    assert named == set(AdaptationPart.model_fields) - {"name"}


def test_prompts_do_not_decay(base):
    """Nor do biases; low-rank factors do (traps 44)."""
    from zsrobust.adaptations import build
    from zsrobust.training.step import parameter_groups

    for case in PROMPTED:
        settings = {k: v for k, v in CASES[case].items() if k != "name"}
        moving = build(CASES[case]["name"], settings).apply(load_clip(base["model"]).model)
        assert [g["weight_decay"] for g in parameter_groups(moving, 0.1)] == [0.0]
    moving = build("lora").apply(load_clip(base["model"]).model)
    assert [g["weight_decay"] for g in parameter_groups(moving, 0.1)] == [0.1]
