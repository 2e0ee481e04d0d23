"""Names of attacks: what `apgd-t-50:restarts=2` or `autoattack` stands for, and what stands in for few classes.

`ATTACKS` and `ENSEMBLES` are written out by hand. Nothing here imports torch before an attack is built.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from typing import TYPE_CHECKING, Any

from zsrobust.attacks.fab import MOST_CLASSES
from zsrobust.errors import UserError, unknown_name
from zsrobust.threat import Threat, parse_step

if TYPE_CHECKING:
    from zsrobust.attacks.engine import Attack, Judge

_JUDGES = ("every", "last", "none")
_COUNT = "1 to 999999"


@dataclass(frozen=True, slots=True)
class Entry:
    """What one name stands for."""

    module: str
    kind: str
    """Class in that module."""
    about: str
    fixed: dict[str, Any] = field(default_factory=dict)
    """Settings that the name implies."""
    number: tuple[str, int | None] | None = None
    """Setting that the -N of a name fills, and its default; None for the default: it must be given."""
    options: tuple[str, ...] = ()
    """Options that it takes, beside judge, early_exit and eot."""
    judge: Judge = "every"
    fewest: int = 2
    """Classes below which the margin loss stands in for its own."""

    def title(self, name: str) -> str:
        """Return the name as a list shows it: "pgd-N", "apgd-ce[-N]"."""
        if self.number is None:
            return name
        return f"{name}-N" if self.number[1] is None else f"{name}[-N]"


@dataclass(frozen=True, slots=True)
class Ensemble:
    """Attacks one after the other, each on the survivors of the one before."""

    members: tuple[str, ...]
    about: str
    alone_with_two: bool = False
    """With two classes the first member runs alone, as the code does that it is named after."""
    eot: int = 1


_APGD = ("restarts", "rho")

ATTACKS: dict[str, Entry] = {
    "pgd": Entry(
        "pgd",
        "Pgd",
        "cross-entropy PGD, random start, step eps/4, N+1 queries, each judged",
        number=("steps", None),
        options=("step", "restarts"),
    ),
    "cw-margin": Entry(
        "pgd",
        "Pgd",
        "the same on the margin loss (the TeCoA authors' CW)",
        {"loss_name": "margin"},
        number=("steps", None),
        options=("step", "restarts", "kappa"),
    ),
    "pgd-paper": Entry(
        "pgd",
        "Pgd",
        "100 steps of 1/255, last iterate judged; weak on undefended models when eps is 1/255",
        {"steps": 100, "step_size": 1 / 255},
        options=("step", "restarts"),
        judge="last",
    ),
    "fgsm": Entry("fgsm", "Fgsm", "one step of eps from the clean image"),
    "mi-fgsm": Entry(
        "mi_fgsm",
        "MiFgsm",
        "FGSM with momentum, for transfer, N=10 steps of eps/N from the clean image",
        number=("steps", 10),
        options=("step", "decay"),
    ),
    "apgd-ce": Entry(
        "apgd",
        "Apgd",
        "APGD on cross-entropy, N=100",
        {"loss_name": "cross-entropy"},
        number=("steps", 100),
        options=_APGD,
    ),
    "apgd-dlr": Entry(
        "apgd",
        "Apgd",
        "APGD on the DLR loss, N=100; two classes: on the margin",
        {"loss_name": "dlr"},
        number=("steps", 100),
        options=_APGD,
        fewest=3,
    ),
    "apgd-t": Entry(
        "apgd",
        "Apgd",
        "APGD on the targeted DLR loss, N=100, 9 targets; two and three classes: on the margin",
        {"loss_name": "dlr", "targeted": True},
        number=("steps", 100),
        options=(*_APGD, "targets"),
        fewest=4,
    ),
    "fab": Entry(
        "fab",
        "Fab",
        "smallest norm across linearised boundaries, N=100; up to 10 classes",
        {"targeted": False},
        number=("steps", 100),
        options=("restarts",),
    ),
    "fab-t": Entry(
        "fab",
        "Fab",
        "the same towards one class after the other, N=100, 9 targets",
        {"targeted": True},
        number=("steps", 100),
        options=("restarts", "targets"),
    ),
    "square": Entry(
        "square",
        "Square",
        "black-box random search with squares, N=5000 queries",
        number=("queries", 5000),
        options=("restarts",),
    ),
    "cw-l2": Entry(
        "cw_l2",
        "CwL2",
        "Carlini and Wagner's own: binary search over c, smallest l2 norm, N=1000 steps a search",
        number=("steps", 1000),
        options=("step", "kappa", "search_steps"),
    ),
}

ENSEMBLES: dict[str, Ensemble] = {
    "autoattack": Ensemble(
        ("apgd-ce", "apgd-t", "fab-t", "square"),
        "AutoAttack standard: APGD-CE, targeted APGD-DLR, targeted FAB, Square",
    ),
    "autoattack-tecoa": Ensemble(
        ("apgd-ce", "apgd-dlr"),
        "what the TeCoA authors' code runs: APGD-CE, APGD-DLR; two classes: APGD-CE alone",
        alone_with_two=True,
    ),
    "autoattack-fare": Ensemble(
        ("apgd-ce", "apgd-t"),
        "what RobustVLM's runs: APGD-CE, targeted APGD-DLR; two classes: APGD-CE alone",
        alone_with_two=True,
    ),
    "autoattack-rand": Ensemble(
        ("apgd-ce", "apgd-dlr"),
        "for models that answer at random: APGD-CE, APGD-DLR, each query a mean of 20 draws",
        eot=20,
    ),
}


def _count(text: str) -> int:
    """Read a number of steps, restarts or draws; one that is beyond all use is a slip of the keyboard."""
    value = int(text)
    if not 1 <= value <= 999_999:
        raise ValueError("out of range")
    return value


def _at_least_0(text: str) -> float:
    value = float(text)
    if not (math.isfinite(value) and value >= 0):
        raise ValueError("out of range")
    return value


# Option -> (how its text is read, what it takes, for messages).
_OPTIONS: dict[str, tuple[Callable[[str], Any], str]] = {
    "step": (str, "a step size in [0, 1]-pixel units, 1/255"),
    "restarts": (_count, f"a whole number, {_COUNT}"),
    "targets": (_count, f"a whole number, {_COUNT}"),
    "search_steps": (_count, f"a whole number, {_COUNT}"),
    "kappa": (_at_least_0, "a finite number >= 0"),
    "decay": (_at_least_0, "a finite number >= 0"),
    "rho": (float, "a share in [0, 1]"),
    "judge": (str, "every, last or none"),
    "early_exit": (lambda text: {"true": True, "false": False}[text.lower()], "true or false"),
    "eot": (_count, f"a whole number, {_COUNT}"),
}
_OF_ALL = ("judge", "early_exit", "eot")


class Plan:
    """One or several attacks with their threat and the engine's options: what a name such as `pgd-20` stands for.

    Attributes:
        name: as records and cells carry it.
        members: the state machines, each run on the survivors of the one before.
        judge: "every", "last" or "none".
        early_exit: whether a broken sample leaves at once.
        eot: draws averaged at each query, for models that answer at random.
        fallbacks: what stands in, or is dropped, because the model has few classes; a clause each.
    """

    def __init__(
        self,
        members: Attack | Sequence[Attack],
        judge: Judge,
        early_exit: bool,
        eot: int,
        *,
        name: str | None = None,
        fallbacks: Sequence[str] = (),
    ) -> None:
        self.members = tuple(members) if isinstance(members, Sequence) else (members,)
        self.judge = judge
        self.early_exit = early_exit
        self.eot = eot
        self.name = self.members[0].name if name is None else name
        self.fallbacks = tuple(fallbacks)

    @property
    def threat(self) -> Threat:
        """Norm and eps, the same for all members."""
        return self.members[0].threat

    def settings(self) -> dict[str, Any]:
        """Return everything that determines outcomes, for the key of a cell."""
        if len(self.members) == 1 and self.name == self.members[0].name:
            what = self.members[0].settings()
        else:
            members = [member.settings() for member in self.members]
            what = {"name": self.name, "algorithm": "ensemble", "members": members}
        said = {"fallbacks": list(self.fallbacks)} if self.fallbacks else {}
        own = {"judge": self.judge, "early_exit": self.early_exit, "eot": self.eot}
        return {**what, **said, **own}


def queries(settings: dict[str, Any]) -> int:
    """Return how many looks at an image an attack with these settings takes at most, those of `eot` counted."""
    if settings["algorithm"] == "ensemble":
        looks = sum(queries({**member, "eot": 1}) for member in settings["members"])
    else:
        runs = int(settings.get("restarts", 1)) * int(settings.get("targets") or 1)
        steps = int(settings.get("steps", settings.get("queries", 1)))
        each = {"fab": 2 * steps, "cw-l2": steps * int(settings.get("search_steps", 1))}
        looks = runs * each.get(settings["algorithm"], steps + 1)
    return looks * int(settings.get("eot", 1))


def plan(text: str, threat: Threat, classes: int | None = None) -> Plan:
    """Read an attack: a name with options, as `pgd-50:step=1/255:restarts=2:judge=last`.

    Args:
        text: as above; a name of `ATTACKS`, with its number of steps where it takes one, or of `ENSEMBLES`.
        threat: norm, eps and resolution.
        classes: text groups of the model. With few of them the margin loss stands in for DLR (3 classes
            needed, targeted 4), targets are at most classes - 1, and some ensembles drop a member: the plan
            says so. None takes as many as the attack needs.

    Raises:
        UserError: for an unknown name or option, a value that does not fit, or an attack that does not fit
            the norm or the classes.
    """
    if not isinstance(text, str):
        raise UserError(f"attack {text!r} is no name: write one such as 'pgd-20'.")
    whole = text.strip()
    name, *pairs = whole.split(":")
    match = re.fullmatch(r"(.+?)-(\d+)", name)
    stem, number = (match[1], match[2]) if match else (name, None)
    if name in ATTACKS or name in ENSEMBLES:
        stem, number = name, None
    if stem not in ATTACKS and stem not in ENSEMBLES:
        if name == "clean":
            raise UserError("'clean' is no attack but the accuracy without one: name an attack.")
        raise unknown_name("attack", text, _examples(), "'zsrobust list attacks' shows all.")
    ensemble = ENSEMBLES.get(stem)
    takes = _OF_ALL if ensemble else (*ATTACKS[stem].options, *_OF_ALL)
    options = _read_options(text, stem, pairs, takes)

    judge = options.pop("judge", "every" if ensemble else ATTACKS[stem].judge)
    if judge not in _JUDGES:
        raise unknown_name(f"judge of attack {name!r}", judge, _JUDGES)
    if ensemble and judge != "every":
        raise UserError(
            f"attack {text!r}: judge is {judge!r}, but each member of an ensemble gets the survivors of the one "
            "before: leave it out."
        )
    early_exit = options.pop("early_exit", judge == "every")
    if early_exit and judge != "every":
        raise UserError(f"attack {text!r}: judge={judge} implies early_exit=false.")
    eot = options.pop("eot", ensemble.eot if ensemble else 1)
    if "step" in options:
        try:
            options["step_size"] = parse_step(options.pop("step"), threat.norm)
        except UserError as error:
            raise UserError(f"attack {text!r}: {error}") from error

    if ensemble is None:
        settings = {**_number(stem, name, number), **options}
        member, said = _build(stem, whole, threat, classes, settings)
        return Plan(member, judge, early_exit, eot, fallbacks=said)
    if number is not None:
        raise UserError(f"attack {name!r} has its own numbers of steps: write {stem}.")
    names, said = ensemble.members, []
    if ensemble.alone_with_two and classes == 2:
        names = ensemble.members[:1]
        said = [f"{', '.join(ensemble.members[1:])} is left out with 2 classes"]
    members = []
    for one in names:
        # Under its own name, so that it draws the noise that it draws alone.
        built, clauses = _build(one, one, threat, classes, _number(one, one, None))
        members.append(built)
        said += clauses
    return Plan(members, judge, early_exit, eot, name=whole, fallbacks=said)


def _examples() -> list[str]:
    needs = {name for name, entry in ATTACKS.items() if entry.number and entry.number[1] is None}
    return [f"{name}-20" if name in needs else name for name in ATTACKS] + [*ENSEMBLES, "clean"]


def _read_options(text: str, stem: str, pairs: list[str], takes: tuple[str, ...]) -> dict[str, Any]:
    options: dict[str, Any] = {}
    for pair in pairs:
        option, equals, value = pair.partition("=")
        if option not in takes:
            if option in _OPTIONS:
                having = [name for name, entry in ATTACKS.items() if option in entry.options]
                raise UserError(
                    f"attack {text!r}: {option} belongs to {', '.join(having)}; leave it out."
                )
            raise unknown_name(f"option of attack {stem!r}", option, takes)
        read, what = _OPTIONS[option]
        if not equals:
            raise UserError(f"attack {text!r}: {option} has no value; write {option}=, {what}.")
        if option in options:
            raise UserError(f"attack {text!r}: {option} is given twice; leave one of them out.")
        try:
            options[option] = read(value)
        except (ValueError, KeyError) as error:
            raise UserError(f"attack {text!r}: {option} takes {what}, got {value!r}.") from error
    return options


def _number(stem: str, name: str, given: str | None) -> dict[str, int]:
    """Return the setting that the number of a name fills."""
    entry = ATTACKS[stem]
    if entry.number is None:
        if given is not None:
            raise UserError(f"attack {name!r}: {stem} has its own number of steps; write {stem}.")
        return {}
    key, default = entry.number
    if given is None:
        if default is None:
            raise UserError(f"attack {name!r} needs its number of steps: write {name}-20.")
        return {key: default}
    try:
        return {key: _count(given)}
    except ValueError as error:
        raise UserError(f"attack {name!r}: the number of steps must lie in {_COUNT}.") from error


def _build(
    stem: str, name: str, threat: Threat, classes: int | None, settings: dict[str, Any]
) -> tuple[Attack, list[str]]:
    """Return an attack as it runs with so many classes, and what stands in for what."""
    entry = ATTACKS[stem]
    settings = {**entry.fixed, **settings}
    said = []
    if classes is not None:
        if classes < entry.fewest:
            settings["loss_name"] = "margin"
            said.append(f"{stem} has the margin loss in place of DLR with {classes} classes")
        if "targets" in entry.options:
            settings["targets"] = min(settings.get("targets", 9), classes - 1)
        if stem == "fab" and classes > MOST_CLASSES:
            raise UserError(
                f"attack {name!r} takes a gradient a class, for up to {MOST_CLASSES} classes; the "
                f"model has {classes}: use fab-t."
            )
    kind: Callable[..., Attack] = getattr(
        import_module(f"zsrobust.attacks.{entry.module}"), entry.kind
    )
    return kind(threat=threat, name=name, **settings), said
