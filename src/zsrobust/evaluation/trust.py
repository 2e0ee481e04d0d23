"""Flags: stated reasons to distrust a number. They stand beside it and never change it.

Some are raised by the records alone, the others need what probes.py found with the model at hand and stored
beside the clean cell; where nothing is stored, those are not judged. docs/trust.md says what each means and what
to do. All thresholds stand here. A changed threshold is a changed protocol version (`PROTOCOL` in cells.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from zsrobust.errors import UserError
from zsrobust.evaluation.statistics import wilson

if TYPE_CHECKING:
    from torch import Tensor, nn

    from zsrobust.attacks.engine import Duplicates
    from zsrobust.attacks.outcome import Outcome
    from zsrobust.evaluation.probes import Probe
    from zsrobust.evaluation.table import Row
    from zsrobust.threat import Norm

NO_GRADIENT = "no-gradient"
ZERO_GRADIENT = "zero-gradient"
RANDOM_OUTPUT = "random-output"
SATURATED = "saturated"
FLAT_OUTPUT = "flat-output"
BLACK_BOX_WINS = "black-box-wins"
NOT_CONVERGED = "not-converged"
SURVIVES_ALL = "survives-all"
WEAK_ATTACK = "weak-attack"
FEW_SAMPLES = "few-samples"
CHANCE_LEVEL = "chance-level"
FALLBACK_LOSS = "fallback-loss"

# Probes: the first clean-correct samples of the fixed order, and the steps of PGD on them.
PROBES = 64
PROBE_STEPS = 20
# zero-gradient: at least this share of the probes.
ZERO_SHARE = 0.01
# random-output: two passes over one batch differ by more, as a share of the largest logit. On a CPU the same sums
# are made in the same order, so that one bit is a difference; on a GPU atomic additions may change the order.
ROUNDING_CPU = 0.0
ROUNDING_ELSEWHERE = 1e-5
# saturated: the largest softmax is exactly 1.0 in float32 for at least this share of the probes.
CERTAIN_SHARE = 0.05
# flat-output: a zero-shot classifier's scale below this; or all logits within so much of 0, with more classes than
# two; or, again with more classes and where the softmax over the wrong ones is at least so even, logits times the
# factor let PGD break so many probes more. Cross-entropy is a little weaker than the margin on many an honest
# model, by 3 of 64 probes on one of our references: uneven as its softmax is, no scale was lost there.
FLAT_SCALE = 2.0
FLAT_LOGIT = 1.0
FLAT_CLASSES = 2
FLAT_SPREAD = 0.8
FLAT_FACTOR = 100.0
FLAT_BREAKS = 3
# black-box-wins: at least this share and this number of the samples that the gradient attacks left.
WINNING_SHARE = 0.01
WINNING_BREAKS = 3
# not-converged: of an attack of at least FEWEST_STEPS steps with at least so many breaks, at least this share and
# this number of them in the last tenth.
FEWEST_BREAKS = 20
LATE_SHARE = 0.05
LATE_BREAKS = 3
# survives-all: at this linf eps at least so many probes are left.
SURVIVAL_EPS = 0.5
SURVIVORS = 4
# weak-attack: an attack of fewer steps is weak.
FEWEST_STEPS = 10
# few-samples: the 95% interval is wider than this.
WIDEST_INTERVAL = 0.15

# What follows a gradient of the model that is judged; an attack of any other algorithm is black-box.
GRADIENT_ALGORITHMS = frozenset({"pgd", "apgd", "fab", "cw-l2", "fgsm", "mi-fgsm"})


@dataclass(frozen=True, slots=True)
class About:
    """What a flag stands for, in words for its reader."""

    raised_if: str
    means: str
    do: str


ABOUT: dict[str, About] = {
    FEW_SAMPLES: About(
        f"the 95% interval is wider than {100 * WIDEST_INTERVAL:.0f} points",
        "The number may lie far from what more samples would give.",
        "Measure more samples: raise --limit, or leave it out.",
    ),
    CHANCE_LEVEL: About(
        "the 95% interval of the clean accuracy reaches down to what one answer for every image scores, the "
        "most frequent class's share of the samples",
        "The model was not shown to tell these classes apart. One answer for every image cannot be attacked: "
        "its robust accuracy is its clean one, says how even the classes are, and is no robustness.",
        "Read no lead from this number; look at how the model was hardened (rate, length, objective), or at the "
        "set's class names.",
    ),
    WEAK_ATTACK: About(
        f"every attack is black-box, has fewer than {FEWEST_STEPS} steps, or is cross-entropy with a fixed "
        "step of at least eps",
        "A stronger attack would most likely break more: the robust accuracy is too high.",
        "Measure again with --attacks pgd-20,cw-margin-20 or stronger.",
    ),
    NOT_CONVERGED: About(
        f"of at least {FEWEST_BREAKS} breaks, at least {100 * LATE_SHARE:.0f}% (and {LATE_BREAKS}) fall in "
        "the last tenth of the attack's steps",
        "The attack was still finding samples when it stopped: more steps would break more.",
        "Measure again with more steps, for instance pgd-100.",
    ),
    FALLBACK_LOSS: About(
        "the model has too few classes for the attack as it is named: the margin loss stands in for DLR, or an "
        "attack is left out",
        "The number is of another attack than the name says, and not to be set beside others of that name.",
        "Say so beside the number; add square or fab-t where an attack was left out.",
    ),
    BLACK_BOX_WINS: About(
        f"an attack without gradients (Square, transfer) breaks at least {100 * WINNING_SHARE:.0f}% (and "
        f"{WINNING_BREAKS}) of the samples that the gradient attacks left",
        "The model hides its gradients more than it is robust: what knows less of it breaks more.",
        "Trust no number of gradient attacks on it; find what masks the gradient, and attack around that.",
    ),
    NO_GRADIENT: About(
        "the loss does not reach the input, or the gradient is missing",
        "The attack had no direction to follow: the number says nothing about robustness.",
        "Attack the model with its graph whole: look for detach, no_grad or numpy between the image and the "
        "logits; where there is no gradient by design, measure with --attacks square.",
    ),
    ZERO_GRADIENT: About(
        f"at least {100 * ZERO_SHARE:.0f}% of the probes have an exactly zero gradient at the clean image under "
        "the loss used",
        "On these samples the attack does not know where to go: the robust accuracy is too high.",
        "Measure with the margin loss (cw-margin-20, apgd-t) and with square; where the model rounds or "
        "thresholds its input, attack it through a smooth stand-in.",
    ),
    RANDOM_OUTPUT: About(
        "two passes over the same images differ by more than rounding",
        "Accuracies depend on the draw, and an attack that sees one draw a step follows noise: the robust "
        "accuracy is too high.",
        "Take the randomness out of the model (dropout left on, random crops), or measure with "
        "--attacks autoattack-rand.",
    ),
    SATURATED: About(
        f"the largest softmax is exactly 1.0 in float32 for at least {100 * CERTAIN_SHARE:.0f}% of the probes, or "
        "the outputs are probabilities already; and no attack on the margin or DLR loss was run",
        "Cross-entropy is flat there and its gradient is lost in rounding: the robust accuracy is too high.",
        "Measure with --attacks cw-margin-20 or autoattack beside it; let the model return logits.",
    ),
    FLAT_OUTPUT: About(
        f"a zero-shot classifier has a scale under {FLAT_SCALE:.0f}; or all logits of more than {FLAT_CLASSES} "
        f"classes lie within {FLAT_LOGIT:.0f} of 0; or the softmax is nearly uniform over the wrong ones, and "
        f"cross-entropy PGD-{PROBE_STEPS} on the logits times {FLAT_FACTOR:.0f} breaks at least {FLAT_BREAKS} "
        "probes more",
        "The logit scale is lost: the softmax is nearly uniform, and cross-entropy pulls at all classes at once.",
        "Multiply the cosines by the model's logit scale; measure with the margin loss too.",
    ),
    SURVIVES_ALL: About(
        f"at linf {SURVIVAL_EPS:g}, {PROBE_STEPS} steps of margin PGD and the grey image leave at least "
        f"{SURVIVORS} of the {PROBES} probes",
        "No model can be right there, since every image is within reach of grey: the attack is broken, or the "
        "model hides its gradients.",
        "Check that images lie in [0, 1] and that the gradient reaches them; measure with square.",
    ),
}

FROM_PROBES = frozenset(
    {NO_GRADIENT, ZERO_GRADIENT, RANDOM_OUTPUT, SATURATED, FLAT_OUTPUT, SURVIVES_ALL}
)
"""Flags that are judged only where probes were looked at."""


@dataclass(frozen=True, slots=True)
class Flag:
    """A flag raised for one column of a row."""

    name: str
    column: str
    """"clean", an attack's name, or "robust" where it is judged on the union of the attacks or on the model."""
    why: str
    """The numbers that raised it, as a clause."""

    def row(self) -> dict[str, str]:
        """Return the flag as JSON."""
        return {"flag": self.name, "column": self.column, "why": self.why}


def flags(row: Row) -> list[Flag]:
    """Return the flags of one model on one set at one eps, in the order of `ABOUT`.

    Judged a cell (clean, each attack): few-samples, not-converged, fallback-loss, no-gradient, zero-gradient.
    Judged on the union: saturated, weak-attack, black-box-wins. Of the model: chance-level and random-output (at
    clean too), flat-output, survives-all. Where the row knows no settings of its attacks, no labels or no probes,
    what needs them is not judged.
    """
    found: list[Flag | None] = [_few_samples(row, column) for column in ("clean", *row.robust)]
    found += _chance_level(row)
    found += [_weak_attack(row), _black_box_wins(row)]
    for attack in row.plans:
        found += [_not_converged(row, attack), _fallback_loss(row, attack)]
    if row.probe is not None:
        found += _of_probes(row, row.probe)
    raised = [flag for flag in found if flag is not None]
    order = list(ABOUT)
    return sorted(raised, key=lambda flag: order.index(flag.name))


def _of_probes(row: Row, probe: Probe) -> Iterator[Flag | None]:
    for attack in row.plans:
        yield from _gradients(row.plans[attack], probe)
    yield from _random_output(row, probe)
    if _attacks(row):
        yield _saturated(row, probe)
        yield _flat_output(row, probe)
        yield _survives_all(probe)


def loss_of(settings: Mapping[str, Any]) -> str | None:
    """Return the loss whose gradient an attack follows: a key of `Probe.gradients`; None if it follows none.

    FAB and CW-L2 follow differences of two logits, which at a clean-correct image are the margin's.
    """
    if not _follows_gradient(settings):
        return None
    loss = str(settings.get("loss", "margin"))
    return f"targeted {loss}" if settings.get("targeted") and loss == "dlr" else loss


def ball(norm: str, eps: float) -> str:
    """Return the key of `Probe.scaled` for a threat."""
    return f"{norm} {eps!r}"


def _members(settings: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return the settings of each attack of an ensemble, or of the one."""
    return list(settings.get("members", [settings]))


def _is_transfer(settings: Mapping[str, Any]) -> bool:
    return settings.get("source") is not None


def _follows_gradient(settings: Mapping[str, Any]) -> bool:
    return settings["algorithm"] in GRADIENT_ALGORITHMS


def _attacks(row: Row) -> list[str]:
    """Return the attacks of the union; none where the settings of one are unknown."""
    names = list(row.robust or row.plans)
    return [] if set(names) - set(row.plans) else names


def _all_members(row: Row) -> list[Mapping[str, Any]]:
    """Return the settings of every attack of the union that aims at the model itself."""
    plans = [row.plans[name] for name in _attacks(row)]
    return [member for plan in plans if not _is_transfer(plan) for member in _members(plan)]


def _few_samples(row: Row, column: str) -> Flag | None:
    if not row.ids:
        return None
    interval = wilson(row.values(column))
    width = interval.high - interval.low
    if width <= WIDEST_INTERVAL:
        return None
    why = f"its interval is {100 * width:.1f} points wide with {interval.samples} sample(s)"
    return Flag(FEW_SAMPLES, column, why)


def _chance_level(row: Row) -> Iterator[Flag]:
    if not row.labels:
        return
    label, share = row.most_frequent
    clean = wilson(row.values("clean"))
    if clean.low > share:
        return
    why = (
        f"clean accuracy is {100 * clean.value:.1f}% [{100 * clean.low:.1f}, {100 * clean.high:.1f}], and class "
        f"{label} for every image scores {100 * share:.1f}%"
    )
    for column in ("clean", *(["robust"] if row.robust else [])):
        yield Flag(CHANCE_LEVEL, column, why)


def _weak_attack(row: Row) -> Flag | None:
    # In a ball of radius 0 there is nothing for a stronger attack to find.
    if not row.eps or not _attacks(row):
        return None
    reasons = {name: _weakness(row.plans[name], row.eps) for name in _attacks(row)}
    if any(reason is None for reason in reasons.values()):
        return None
    return Flag(WEAK_ATTACK, "robust", "; ".join(f"{name} {why}" for name, why in reasons.items()))


def _weakness(plan: Mapping[str, Any], eps: float) -> str | None:
    """Return why an attack with these settings is weak at eps; None if it is not.

    An ensemble is as strong as its strongest member.
    """
    if _is_transfer(plan):
        return "is black-box"
    members = _members(plan)
    reasons = [_weakness_of_one(member, eps) for member in members]
    if any(reason is None for reason in reasons):
        return None
    if "members" not in plan:
        return reasons[0]
    said = (f"{member['name']} {why}" for member, why in zip(members, reasons, strict=True))
    return f"has weak members alone ({', '.join(said)})"


def _weakness_of_one(settings: Mapping[str, Any], eps: float) -> str | None:
    if not _follows_gradient(settings):
        return "is black-box"
    steps = _steps(settings)
    if steps < FEWEST_STEPS:
        return f"has {steps} step(s)"
    step = settings.get("step_size")  # an attack that sets its own step has none
    if settings.get("loss") == "cross-entropy" and step is not None and step >= eps:
        return "is cross-entropy with a step of at least eps"
    return None


def _steps(settings: Mapping[str, Any]) -> int:
    """Return the steps of one run, of one restart on one target."""
    return int(settings.get("steps", settings.get("queries", 1)))


def _not_converged(row: Row, attack: str) -> Flag | None:
    plan = row.plans[attack]
    steps = row.steps.get(attack)
    if steps is None or _is_transfer(plan):
        return None
    if "members" not in plan:
        why = _late(plan, plan, steps)
        return None if why is None else Flag(NOT_CONVERGED, attack, why)
    by = row.by.get(attack)
    if by is None:
        return None
    reasons = []
    for member in _members(plan):
        own = [step for step, name in zip(steps, by, strict=True) if name == member["name"]]
        why = _late(plan, member, own)
        reasons += [] if why is None else [f"{member['name']}: {why}"]
    return Flag(NOT_CONVERGED, attack, "; ".join(reasons)) if reasons else None


def _late(
    plan: Mapping[str, Any], settings: Mapping[str, Any], steps: Sequence[int | None]
) -> str | None:
    """Return why an attack that broke samples at these queries had not converged; None if it had."""
    length = _steps(settings)
    if length < FEWEST_STEPS or plan["judge"] != "every":
        return None
    # FAB takes a second query after a hit: 2 x steps a run at most.
    queries = 2 * length if settings["algorithm"] == "fab" else length
    breaks = [step for step in steps if step is not None]
    late = sum(10 * step > 9 * queries for step in breaks)  # query number s is what s steps led to
    if len(breaks) < FEWEST_BREAKS or late < LATE_BREAKS or late / len(breaks) < LATE_SHARE:
        return None
    unit = "steps" if queries == settings.get("steps") else "queries"
    return f"{late} of {len(breaks)} breaks fall in the last tenth of {queries} {unit}"


def _fallback_loss(row: Row, attack: str) -> Flag | None:
    said = row.plans[attack].get("fallbacks")
    return Flag(FALLBACK_LOSS, attack, "; ".join(said)) if said else None


def _black_box_wins(row: Row) -> Flag | None:
    """Judge the union: who broke what the gradient attacks left."""
    if not row.robust or not _attacks(row):
        return None
    by_gradient = [False] * len(row.ids)
    by_black_box: dict[int, str] = {}
    followed = False
    for attack in _attacks(row):
        plan = row.plans[attack]
        members = [] if _is_transfer(plan) else _members(plan)
        white = {member["name"] for member in members if _follows_gradient(member)}
        followed |= bool(white)
        by = row.by.get(attack)
        if by is None and "members" in plan:
            return None  # nobody knows which member broke a sample
        for i, (clean, robust) in enumerate(zip(row.clean, row.robust[attack], strict=True)):
            if not clean or robust:
                continue
            name = (by[i] if by is not None else None) or attack
            if name in white:
                by_gradient[i] = True
            else:
                by_black_box.setdefault(i, name)
    left = [i for i, clean in enumerate(row.clean) if clean and not by_gradient[i]]
    won = [i for i in left if i in by_black_box]
    if not followed or len(won) < WINNING_BREAKS or len(won) / len(left) < WINNING_SHARE:
        return None
    names = ", ".join(dict.fromkeys(by_black_box[i] for i in won))
    why = f"{names} broke {len(won)} of the {len(left)} samples that the gradient attacks left"
    return Flag(BLACK_BOX_WINS, "robust", why)


def _gradients(plan: Mapping[str, Any], probe: Probe) -> Iterator[Flag]:
    """Judge an attack by the gradients of its losses; an ensemble by the loss that has most of them."""
    if _is_transfer(plan):
        return
    losses = {loss for member in _members(plan) if (loss := loss_of(member)) is not None}
    known = {name: probe.gradients[name] for name in sorted(losses) if name in probe.gradients}
    # Where one loss was not looked at, it may be the one that works.
    if not known or len(known) < len(losses):
        return
    name, best = min(known.items(), key=lambda pair: (pair[1].missing, pair[1].zero / pair[1].of))
    if best.missing:
        yield Flag(NO_GRADIENT, plan["name"], f"the {name} loss does not depend on the image")
    elif best.zero / best.of >= ZERO_SHARE:
        why = f"{best.zero} of {best.of} probes have an exactly zero gradient of the {name} loss"
        yield Flag(ZERO_GRADIENT, plan["name"], why)


def _random_output(row: Row, probe: Probe) -> Iterator[Flag]:
    allowed = ROUNDING_CPU if probe.device == "cpu" else ROUNDING_ELSEWHERE
    if probe.difference <= allowed:
        return
    why = f"two passes differ by {probe.difference:.2g} of the largest logit"
    for column in ("clean", *(["robust"] if _attacks(row) else [])):
        yield Flag(RANDOM_OUTPUT, column, why)


def _saturated(row: Row, probe: Probe) -> Flag | None:
    members = _all_members(row)
    if any(loss_of(member) not in (None, "cross-entropy") for member in members):
        return None
    count = len(probe.samples)
    if probe.probabilities == count:
        why = "its outputs are probabilities already"
    elif probe.certain / count >= CERTAIN_SHARE:
        why = f"the largest softmax of {probe.certain} of {count} probes is exactly 1.0"
    else:
        return None
    return Flag(SATURATED, "robust", f"{why}, and no attack is on the margin or DLR loss")


def _flat_output(row: Row, probe: Probe) -> Flag | None:
    reasons = []
    if probe.scale is not None and probe.scale < FLAT_SCALE:
        reasons.append(f"its logit scale is {probe.scale:.3g}")
    if probe.classes > FLAT_CLASSES and probe.largest <= FLAT_LOGIT:
        reasons.append(f"no logit of the probes is larger than {probe.largest:.3g}")
    scaled = None
    if row.norm is not None and row.eps is not None:
        scaled = probe.scaled.get(ball(row.norm, row.eps))
    even = probe.classes > FLAT_CLASSES and probe.spread >= FLAT_SPREAD
    if even and scaled is not None and scaled.gained - (scaled.lost or 0) >= FLAT_BREAKS:
        after = scaled.broken + scaled.gained - (scaled.lost or 0)
        reasons.append(
            f"logits times {FLAT_FACTOR:.0f} let cross-entropy PGD-{PROBE_STEPS} break {after} of "
            f"{scaled.of} probes, not {scaled.broken}"
        )
    return Flag(FLAT_OUTPUT, "robust", "; ".join(reasons)) if reasons else None


def _survives_all(probe: Probe) -> Flag | None:
    if probe.survivors is None or probe.survivors < SURVIVORS:
        return None
    why = f"{probe.survivors} of {len(probe.samples)} probes are left at linf {SURVIVAL_EPS:g}"
    return Flag(SURVIVES_ALL, "robust", why)


def probe(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    eps: float | str,
    norm: Norm = "linf",
    attacks: Sequence[str] = ("pgd-20",),
    outcomes: Mapping[str, Sequence[Outcome]] | None = None,
    ids: Sequence[str] | None = None,
    groups: Tensor | Sequence[int] | None = None,
    duplicates: Duplicates = "merge",
    slots: int = 64,
) -> list[Flag]:
    """Return the flags of any PyTorch classifier, as `attacks.run` attacks it.

    The probes are the first 64 images that the model gets right. With `outcomes` every flag is judged that a row
    of `evaluate` can have; without, those of the model and of the attacks' settings.

    Args:
        model: a module, images (N, 3, H, W) in [0, 1] -> logits (N, K); normalisation belongs inside it.
        images: (N, 3, H, W) floats in [0, 1].
        labels: (N,) int64, class indices.
        eps: radius in [0, 1]-pixel units, 8/255 or "8/255".
        norm: "linf" or "l2".
        attacks: names of the attacks that are run, or are to be run; their settings are judged.
        outcomes: attack -> what `attacks.run` returned for all of these images; takes the place of `attacks`.
        ids: as they were given to `attacks.run`. Default: the row numbers.
        groups: text group of each class; default: the model's `groups` attribute, else each its own.
        duplicates: how classes with one text are scored, "merge" or "keep".
        slots: images that go through the model at once.

    Raises:
        UserError: if an argument does not fit, as in `attacks.run`, or outcomes are not of these images.
        FloatingPointError: if the model's logits are not finite.
    """
    from zsrobust.evaluation.probes import probe_images

    if isinstance(attacks, str):
        raise UserError(f"attacks must be a list, got {attacks!r}: write [{attacks!r}].")
    return flags(
        probe_images(
            model,
            images,
            labels,
            eps=eps,
            norm=norm,
            attacks=attacks,
            outcomes=outcomes,
            ids=ids,
            groups=groups,
            duplicates=duplicates,
            slots=slots,
        )
    )
