"""Attacks on any PyTorch classifier of images in [0, 1].

Each attack is a state machine in a file of its own; the engine schedules and judges it.
`ATTACKS` is written out by hand: the name's stem -> how it is built.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from zsrobust.errors import UserError, unknown_name
from zsrobust.threat import Threat, parse_step

if TYPE_CHECKING:
    from zsrobust.attacks.engine import Attack, Judge
    from zsrobust.attacks.pgd import Pgd

__all__ = ["ATTACKS", "Outcome", "Plan", "plan", "robust_accuracy", "run"]


def _pgd(threat: Threat, number: str | None, name: str, options: dict[str, Any]) -> Pgd:
    from zsrobust.attacks.pgd import Pgd

    return Pgd(threat=threat, steps=_steps(name, number), name=name, **options)


def _cw_margin(threat: Threat, number: str | None, name: str, options: dict[str, Any]) -> Pgd:
    from zsrobust.attacks.pgd import Pgd

    return Pgd(threat=threat, steps=_steps(name, number), loss_name="margin", name=name, **options)


def _pgd_paper(threat: Threat, number: str | None, name: str, options: dict[str, Any]) -> Pgd:
    from zsrobust.attacks.pgd import Pgd

    if number is not None:
        raise UserError(f"attack {name!r}: pgd-paper has 100 steps by definition; write pgd-paper.")
    return Pgd(threat=threat, **{"steps": 100, "step_size": 1 / 255, "name": name, **options})


def _steps(name: str, number: str | None) -> int:
    if number is None:
        raise UserError(f"attack {name!r} needs its number of steps: write {name}-20.")
    try:
        return _count(number)
    except ValueError as error:
        raise UserError(f"attack {name!r}: the number of steps must lie in {_COUNT}.") from error


def _count(text: str) -> int:
    """Read a number of steps, restarts or draws; one that is beyond all use is a slip of the keyboard."""
    value = int(text)
    if not 0 <= value <= 999_999:
        raise ValueError("out of range")
    return value


_COUNT = "1 to 999999"


# Stem of the name -> (builder, what it is, for `zsrobust list attacks`).
ATTACKS: dict[str, tuple[Callable[..., Any], str]] = {
    "pgd": (_pgd, "pgd-N: cross-entropy PGD, random start, step eps/4, N+1 queries, each judged"),
    "cw-margin": (_cw_margin, "cw-margin-N: the same on the margin loss (the TeCoA authors' CW)"),
    "pgd-paper": (
        _pgd_paper,
        "pgd-paper: 100 steps of 1/255, last iterate judged; weak on undefended models when eps is 1/255",
    ),
}

# Option -> (how its text is read, what it takes, for messages).
_OPTIONS: dict[str, tuple[Callable[[str], Any], str]] = {
    "step": (str, "a step size in [0, 1]-pixel units, 1/255"),
    "restarts": (_count, f"a whole number, {_COUNT}"),
    "kappa": (float, "a finite number >= 0"),
    "judge": (str, "every, last or none"),
    "early_exit": (lambda text: {"true": True, "false": False}[text.lower()], "true or false"),
    "eot": (_count, f"a whole number, {_COUNT}"),
}
_JUDGES = ("every", "last", "none")


class Plan:
    """An attack with its threat and the engine's options: all that a name such as `pgd-20` stands for.

    Attributes:
        attack: the state machine.
        judge: "every", "last" or "none".
        early_exit: whether a broken sample leaves at once.
        eot: draws averaged at each query, for models that answer at random.
    """

    def __init__(self, attack: Attack, judge: Judge, early_exit: bool, eot: int) -> None:
        self.attack = attack
        self.judge = judge
        self.early_exit = early_exit
        self.eot = eot

    @property
    def name(self) -> str:
        """The attack's name, as records carry it."""
        return self.attack.name

    def settings(self) -> dict[str, Any]:
        """Return everything that determines outcomes, for the key of a cell."""
        return {
            **self.attack.settings(),
            "judge": self.judge,
            "early_exit": self.early_exit,
            "eot": self.eot,
        }


def plan(text: str, threat: Threat) -> Plan:
    """Read an attack: a name of `ATTACKS`, with options as `pgd-50:step=1/255:restarts=2:judge=last`.

    Args:
        text: as above; options are step, restarts, kappa (cw-margin), judge, early_exit, eot.
        threat: norm, eps and resolution.

    Raises:
        UserError: for an unknown name or option, or a value that does not fit.
    """
    if not isinstance(text, str):
        raise UserError(f"attack {text!r} is no name: write one such as 'pgd-20'.")
    name, *pairs = text.strip().split(":")
    match = re.fullmatch(r"(.+?)-(\d+)", name)
    stem, number = (match[1], match[2]) if match else (name, None)
    if name in ATTACKS:
        stem, number = name, None
    if stem not in ATTACKS:
        examples = [f"{known}-20" if known != "pgd-paper" else known for known in ATTACKS]
        if name == "clean":
            raise UserError("'clean' is no attack but the accuracy without one: name an attack.")
        raise unknown_name(
            "attack", text, [*examples, "clean"], "'zsrobust list attacks' shows all."
        )
    options: dict[str, Any] = {}
    for pair in pairs:
        option, equals, value = pair.partition("=")
        if option not in _OPTIONS:
            raise unknown_name(f"option of attack {name!r}", option, _OPTIONS)
        read, takes = _OPTIONS[option]
        if not equals:
            raise UserError(f"attack {text!r}: {option} has no value; write {option}=, {takes}.")
        if option in options:
            raise UserError(f"attack {text!r}: {option} is given twice; leave one of them out.")
        try:
            options[option] = read(value)
        except (ValueError, KeyError) as error:
            raise UserError(f"attack {text!r}: {option} takes {takes}, got {value!r}.") from error
    judge = options.pop("judge", "last" if stem == "pgd-paper" else "every")
    if judge not in _JUDGES:
        raise unknown_name(f"judge of attack {name!r}", judge, _JUDGES)
    early_exit = options.pop("early_exit", judge == "every")
    if early_exit and judge != "every":
        raise UserError(f"attack {text!r}: judge={judge} implies early_exit=false.")
    eot = options.pop("eot", 1)
    if eot < 1:
        raise UserError(f"attack {text!r}: eot must be >= 1, got {eot}.")
    if "step" in options:
        try:
            options["step_size"] = parse_step(options.pop("step"), threat.norm)
        except UserError as error:
            raise UserError(f"attack {text!r}: {error}") from error
    if "kappa" in options and stem != "cw-margin":
        raise UserError(f"attack {text!r}: kappa belongs to cw-margin; leave it out.")
    kappa = options.get("kappa", 0.0)
    if not (math.isfinite(kappa) and kappa >= 0):
        raise UserError(f"attack {text!r}: kappa must be a finite number >= 0, got {kappa}.")
    attack = ATTACKS[stem][0](threat, number, text.strip(), options)
    return Plan(attack, judge, early_exit, eot)


def __getattr__(name: str) -> Any:
    """Bring in what needs torch only when it is asked for."""
    if name == "run":
        from zsrobust.attacks.engine import run

        return run
    if name in ("Outcome", "robust_accuracy"):
        from zsrobust.attacks import outcome

        return getattr(outcome, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
