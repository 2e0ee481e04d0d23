"""Attacks against their floor, a plain loop, torchattacks, and the reference's number of model calls.

The floor: the greedy list schedule of the recorded queries on 64 slots; the sum over its iterations of the cost of
a bare call (forward, and input-only backward where the attack takes one) at that iteration's number of occupied
slots. The plain loop runs every iteration on every sample, clean mistakes too, in batches of 64. Clean logits are
handed to the engine, as an evaluation does. Repeats are interleaved; ratios are medians with quartiles.

    ZSROBUST_MODELS=... ZSROBUST_DATA=... ZSROBUST_GOLDEN=... python benchmarks/attacks.py \
        [--repeats 5] [--images 256] [--threads 2] [--torchattacks DIR]

DIR is what `pip install --no-deps --target DIR torchattacks` made. One line of JSON a row. Images are of a target
set and the model is not hardened: nothing is chosen here.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import platform
import statistics
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from zsrobust import attacks, data
from zsrobust.attacks.engine import Chunk, attack_chunks
from zsrobust.attacks.outcome import Outcome
from zsrobust.attacks.pgd import frozen
from zsrobust.models import ZeroShotClassifier, load_clip
from zsrobust.preprocess import to_unit
from zsrobust.randomness import sample_keys
from zsrobust.threat import Norm, Threat

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "attacks"))

SLOTS = 64
CPU = torch.device("cpu")
SIZES = (1, 2, 4, 8, 16, 32, 48, 64)
ITERATIONS = 101
"""Model calls of PGD-100 and APGD-100 a sample: a hundred steps and the look at the last."""


@dataclass(frozen=True)
class Subject:
    """A model and the images that it is attacked on."""

    name: str
    model: nn.Module
    images: Tensor
    labels: Tensor
    ids: list[str]
    logits: Tensor

    @classmethod
    def of(
        cls, name: str, model: nn.Module, images: Tensor, labels: Tensor, ids: Sequence[str]
    ) -> Subject:
        """Return the subject with its clean logits."""
        with torch.no_grad():
            logits = torch.cat([model(part) for part in images.split(SLOTS)])
        return cls(name, model, images, labels, list(ids), logits)

    def first(self, count: int) -> Subject:
        """Return the subject with its first images only."""
        return Subject(
            self.name,
            self.model,
            self.images[:count],
            self.labels[:count],
            self.ids[:count],
            self.logits[:count],
        )

    @property
    def classes(self) -> int:
        """Number of logits."""
        return self.logits.shape[1]


def mini_clip(set_name: str, count: int) -> Subject:
    """Return unhardened mini-clip on the first images of a set."""
    clip, images = load_clip("mini-clip"), data.open_set(set_name)
    names, _ = images.texts(None)
    if names is None:
        raise SystemExit(f"set {set_name} has no class names")
    classifier = ZeroShotClassifier.from_texts(clip, names, ["a photo of a {}."]).eval()
    loaded = list(data.batches(images, images.first(count), clip.preprocess.geometry(), SLOTS))
    pixels = to_unit(torch.cat([batch.images for batch in loaded]))
    labels = torch.cat([batch.labels for batch in loaded if batch.labels is not None])
    ids = [name for batch in loaded for name in batch.ids]
    return Subject.of(f"mini-clip, {set_name}", classifier, pixels, labels, ids)


def golden(label: str) -> tuple[Subject, Threat]:
    """Return a golden network on the images that the reference attacked, and its threat."""
    import golden as stored

    case = stored.CASES[label]
    pixels, labels, ids = stored.images(case)
    subject = Subject.of(label, stored.network(case.network), pixels, labels, ids)
    return subject, case.threat


def attack(subject: Subject, name: str, norm: Norm, eps: float) -> list[Outcome]:
    """Attack all images with the engine."""
    chunks = (
        Chunk(
            subject.ids[i : i + SLOTS],
            subject.images[i : i + SLOTS],
            subject.labels[i : i + SLOTS],
            subject.logits[i : i + SLOTS],
        )
        for i in range(0, len(subject.ids), SLOTS)
    )
    plan = attacks.plan(name, Threat(norm, eps), subject.classes)
    return list(attack_chunks(subject.model, chunks, plan, device=CPU, slots=SLOTS))


def schedule(queries: Sequence[int]) -> Iterator[int]:
    """Yield the number of occupied slots in each iteration of the greedy list schedule."""
    waiting, inside = deque(queries), []
    while waiting or inside:
        while waiting and len(inside) < SLOTS:
            inside.append(waiting.popleft())
        yield len(inside)
        inside = [left - 1 for left in inside if left > 1]


def bare_call(subject: Subject, size: int, backward: bool) -> float:
    """Return the seconds of one bare call on so many images."""
    images, labels = subject.images[:size].clone(), subject.labels[:size]
    begin = time.perf_counter()
    if backward:
        images.requires_grad_()
        loss = functional.cross_entropy(subject.model(images), labels, reduction="sum")
        torch.autograd.grad(loss, images)
    else:
        with torch.no_grad():
            subject.model(images)
    return time.perf_counter() - begin


def costs(subject: Subject, backward: bool) -> Callable[[int], float]:
    """Return seconds of a bare call as a function of its size: medians of three at `SIZES`, lines between."""
    with frozen(subject.model):
        seconds = [
            statistics.median(bare_call(subject, size, backward) for _ in range(3))
            for size in SIZES
        ]
    return lambda size: float(np.interp(size, SIZES, seconds))


def plain_loop(subject: Subject, name: str, norm: Norm, eps: float) -> float:
    """Return the seconds of a loop over all batches with every sample in it for `ITERATIONS`.

    All iterations cost the same: a tenth of them is timed.
    """
    plan = attacks.plan(name, Threat(norm, eps), subject.classes)
    (machine,) = plan.members
    begin = time.perf_counter()
    with frozen(subject.model):
        for i in range(0, len(subject.ids), SLOTS):
            ids, part = subject.ids[i : i + SLOTS], slice(i, i + SLOTS)
            keys = sample_keys(0, machine.name, ids)
            state = machine.init(
                subject.images[part], subject.labels[part], subject.logits[part], keys
            )
            for _ in range(ITERATIONS // 10):
                query = machine.query(state).detach().requires_grad_()
                logits = subject.model(query)
                (gradient,) = torch.autograd.grad(machine.loss(state, logits).sum(), query)
                state, _ = machine.update(state, logits.detach(), gradient)
    return (time.perf_counter() - begin) * ITERATIONS / (ITERATIONS // 10)


def torchattacks_loop(subject: Subject, name: str, eps: float, folder: str) -> float:
    """Return the seconds of torchattacks' attack on one batch of 64, scaled to all images."""
    if folder not in sys.path:
        sys.path.append(folder)
    import torchattacks

    made: Any
    if name == "pgd-100":
        made = torchattacks.PGD(subject.model, eps=eps, alpha=eps / 4, steps=100)
    else:
        made = torchattacks.APGD(subject.model, norm="Linf", eps=eps, steps=100, n_restarts=1)
    begin = time.perf_counter()
    made(subject.images[:SLOTS], subject.labels[:SLOTS])
    return (time.perf_counter() - begin) * len(subject.ids) / min(SLOTS, len(subject.ids))


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Return median and quartiles."""
    if len(values) < 2:
        return {"median": round(values[0], 3)}
    low, _, high = statistics.quantiles(values, n=4)
    return {
        "median": round(statistics.median(values), 3),
        "quartiles": [round(low, 3), round(high, 3)],
    }


def measured(
    subject: Subject,
    name: str,
    norm: Norm,
    eps: float,
    repeats: int,
    *,
    loops: bool = False,
    folder: str | None = None,
) -> dict[str, Any]:
    """Return what was attacked and the ratio of the engine's time to the floor's.

    If `loops`, the plain loop's time to the engine's beside it, and torchattacks' from `folder`.
    """
    members = attacks.plan(name, Threat(norm, eps), subject.classes).members
    floor, plain, ours = [], [], []
    found: list[Outcome] = []
    attack(subject.first(SLOTS), name, norm, eps)  # warms up
    for _ in range(repeats):
        cost = costs(subject, members[0].needs_grad)
        slow = plain_loop(subject, name, norm, eps) if loops else math.nan
        begin = time.perf_counter()
        found = attack(subject, name, norm, eps)
        seconds = time.perf_counter() - begin
        again = costs(subject, members[0].needs_grad)  # before and after: a drift favours neither
        queries = [o.queries for o in in_order(found, subject) if o.clean_correct]
        least = sum((cost(size) + again(size)) / 2 for size in schedule(queries))
        floor.append(seconds / least)
        plain.append(slow / seconds)
        ours.append(seconds)
    correct, asked = sum(o.clean_correct for o in found), sum(o.queries for o in found)
    row = {
        "model": subject.name,
        "attack": name,
        "threat": str(Threat(norm, eps)),
        "images": len(found),
        "clean_correct": correct,
        "survive_percent": round(100 * sum(o.robust for o in found) / len(found), 1),
        "queries": asked,
        "attack_s": spread(ours),
        "attack / floor": spread(floor),
    }
    if loops:
        row |= {
            "plain loop / attack": spread(plain),
            "ideal": round(ITERATIONS * len(found) / asked, 1),
            "ideal of clean-correct ones": round(ITERATIONS * correct / asked, 1),
        }
    if folder and loops:  # a minute: once
        theirs = torchattacks_loop(subject, name, eps, folder)
        row["torchattacks / attack"] = round(theirs / statistics.median(ours), 1)
    return row


def in_order(found: list[Outcome], subject: Subject) -> list[Outcome]:
    """Return outcomes in the order in which their samples entered."""
    by_id = {outcome.id: outcome for outcome in found}
    return [by_id[name] for name in subject.ids]


def calls_beside_the_reference(label: str) -> Iterator[dict[str, Any]]:
    """Yield images given to the model by ours and by the reference, per clean-correct sample."""
    import golden as stored

    subject, threat = golden(label)
    lines = stored._read("runs.jsonl").read_text("utf-8").splitlines()
    norm = {"linf": "Linf", "l2": "L2"}[threat.norm]
    rows = [json.loads(line) for line in lines]
    network = stored.CASES[label].network
    rows = [row for row in rows if row["network"] == network and row["norm"] == norm]
    for name in ("apgd-ce", "apgd-dlr", "apgd-t", "fab", "fab-t", "square"):
        theirs = [row for row in rows if row["attack"] == name]
        if not theirs:
            continue
        found = attack(subject, name, threat.norm, threat.eps)
        correct = sum(o.clean_correct for o in found)
        yield {
            "benchmark": "model calls a clean-correct sample",
            "model": label,
            "attack": name,
            "ours": round(sum(o.queries for o in found) / correct, 1),
            "reference_forward": round(theirs[0]["forward_images"] / correct, 1),
            "reference_backward": round(theirs[0]["backward_images"] / correct, 1),
        }


def main() -> None:
    """Measure, and print each row as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--set", default="mini/imagenette")
    parser.add_argument("--torchattacks")
    parser.add_argument("--only", choices=["loops", "beside", "calls"])
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    here = {
        "threads": options.threads,
        "torch": torch.__version__,
        "machine": platform.processor() or platform.machine(),
    }

    def tell(row: dict[str, Any]) -> None:
        print(json.dumps(row | here), flush=True)

    wanted = {options.only} if options.only else {"loops", "beside", "calls"}
    subject = mini_clip(options.set, options.images)
    pair = ("pgd-100", "apgd-ce-100")
    if "loops" in wanted:
        for name, eps in itertools.product(pair, (4 / 255, 0.6 / 255)):
            tell(
                measured(
                    subject,
                    name,
                    "linf",
                    eps,
                    options.repeats,
                    loops=True,
                    folder=options.torchattacks,
                )
            )
    if "beside" in wanted:
        few = subject.first(64)
        for name, norm, eps in (
            ("fab-t-20", "linf", 1 / 255),
            ("square-500", "linf", 4 / 255),
            ("cw-l2-20:search_steps=3", "l2", 0.25),
        ):
            tell(measured(few, name, norm, eps, options.repeats))  # type: ignore[arg-type]
        network, threat = golden("cnn-robust_Linf_8-255")
        for name in (*pair, "apgd-t", "fab-t", "square"):
            tell(measured(network, name, threat.norm, threat.eps, options.repeats))
        network, threat = golden("cnn-robust_L2_1.0")
        tell(measured(network, "cw-l2-100", threat.norm, threat.eps, options.repeats))
    if "calls" in wanted:
        for label in ("cnn-robust_Linf_8-255", "cnn-plain_Linf_2-255", "cnn-robust_L2_1.0"):
            for row in calls_beside_the_reference(label):
                tell(row)


if __name__ == "__main__":
    main()
