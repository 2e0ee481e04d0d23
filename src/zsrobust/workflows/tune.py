"""Choose a learning rate on held-out source images, as the design's section 7 says.

Each rate of the grid hardens the model on a prefix of the source; the one with the highest robust accuracy on
held-out source images at the trained eps is best, scored with what the objective trains: the class texts, a
linear head, or a dictionary. Rates whose paired difference to it is within two standard errors are tied with it:
the higher mean probability of the true class on the attacked images decides, then the smaller rate. Where the
objective has no adversary (`ce`, `linear`) clean accuracy and clean images take their place. A best value at an
end of the grid extends the grid by one, also where a tied rate inside it is chosen. No target set is opened.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from zsrobust.errors import UserError
from zsrobust.files import write_json
from zsrobust.machine import training_device
from zsrobust.models import HeadClassifier, load_clip
from zsrobust.models.load import HEAD_NAME
from zsrobust.objectives import objective_class
from zsrobust.training.loop import harden, open_source
from zsrobust.training.recipe import Recipe, parse_recipe
from zsrobust.training.validation import Scores, kept_scores, open_held_out, validate

ChosenBy = Literal["robust", "clean"]


@dataclass(frozen=True)
class Choice:
    """What a grid came to."""

    rate: float
    reason: str
    scores: dict[float, Scores]
    images: int | None
    """How many source images each rate was trained on; null is all of them."""
    file: Path
    """Where it is kept."""

    def to_json(self, recipe: Recipe) -> dict[str, Any]:
        """Return grid, scores and choice, to be committed before any target is evaluated."""
        validation = recipe.validation
        return {
            "recipe": recipe.name,
            "images": self.images,
            "eps": recipe.threat.eps,
            "norm": recipe.threat.norm,
            "held_out": None if validation is None else validation.model_dump(mode="json"),
            "grid": [{"lr": rate, **self.scores[rate].row()} for rate in sorted(self.scores)],
            "chosen_by": recipe.chosen_by,
            "chosen": self.rate,
            "reason": self.reason,
        }


def tune(
    recipe: Recipe,
    rates: list[float],
    *,
    images: int | None,
    out: str | Path,
    by_texts: bool = False,
    progress: bool = False,
) -> Choice:
    """Run the grid and return the choice; resumable, a rate that is done is not run again.

    Args:
        recipe: everything but the rate; its `evaluate:` block is not used.
        rates: the grid, at least two different rates > 0, ascending or not.
        images: the first N images of the source's fixed order; None takes the recipe's limit.
        out: folder of the grid's runs and of `choice.json` (`choice-texts.json` if `by_texts`).
        by_texts: score by the class texts, as a zero-shot model is used, also where the objective trains a
            head or a dictionary: what it would choose that never looks at the head.
        progress: draw progress bars on the terminal.

    Raises:
        UserError: if the recipe has no validation block, or the grid is too small.
    """
    if recipe.validation is None:
        raise UserError("a rate is chosen on held-out source images: add a validation block.")
    if images is not None and images < 1:
        raise UserError(
            f"images must be >= 1, got {images}; leave it out for the recipe's own limit."
        )
    grid = sorted(set(rates))
    if len(grid) < 2 or grid[0] <= 0:
        raise UserError(f"the grid needs at least two different rates > 0, got {rates}.")
    folder = Path(out)
    open_held_out(recipe, open_source(recipe))  # a mistake in it must not show after the first rate

    def score(rate: float) -> Scores:
        return _score(
            recipe, rate, images=images, folder=folder, by_texts=by_texts, progress=progress
        )

    scores = {rate: score(rate) for rate in grid}
    by = recipe.chosen_by
    rate, reason = choose(scores, by)
    best = _best(scores, by)
    if best in (grid[0], grid[-1]):
        beyond = _beyond(grid, best)
        scores[beyond] = score(beyond)
        rate, again = choose(scores, by)
        reason = f"the grid was extended to {beyond:.3g}; {again}"
    file = folder / ("choice-texts.json" if by_texts else "choice.json")
    used = recipe.source.limit if images is None else images
    choice = Choice(rate, reason, scores, used, file)
    write_json(file, choice.to_json(recipe))
    return choice


def choose(scores: dict[float, Scores], by: ChosenBy = "robust") -> tuple[float, str]:
    """Return the rate that the rule chooses, and why.

    Args:
        scores: rate -> scores on the same held-out samples.
        by: the accuracy that counts, "robust" or "clean".
    """
    best = _best(scores, by)
    tied = [rate for rate in scores if rate == best or is_tied(scores[best], scores[rate], by)]
    if len(tied) == 1:
        return best, f"highest {by} accuracy, more than two standard errors above the others"

    def probability(rate: float) -> float:
        one = scores[rate]
        clean = one.clean_probability if by == "clean" else None
        return one.true_probability if clean is None else clean

    chosen = min(tied, key=lambda rate: (-probability(rate), rate))
    named = ", ".join(f"{rate:.3g}" for rate in sorted(tied))
    where = "attacked" if by == "robust" else "clean"
    return chosen, (
        f"{named} are tied within two standard errors of the best ({best:.3g}); "
        f"{chosen:.3g} has the highest mean probability of the true class on the {where} images"
    )


def _best(scores: dict[float, Scores], by: ChosenBy) -> float:
    """Return the rate with the highest accuracy; of equal ones the smaller."""
    return max(scores, key=lambda rate: (getattr(scores[rate], by), -rate))


def is_tied(best: Scores, other: Scores, by: ChosenBy) -> bool:
    """Whether the paired difference of two scores lies within two standard errors.

    Raises:
        UserError: if they are not of the same samples.
    """
    if best.ids != other.ids:
        raise UserError("what is compared must be scored on the same held-out samples.")
    first, second = (
        np.asarray(s.robust_correct if by == "robust" else s.clean_correct, float)
        for s in (best, other)
    )
    difference = first - second
    error = float(difference.std(ddof=1)) / math.sqrt(len(difference))
    return bool(abs(difference.mean()) <= 2 * error)


def _beyond(grid: list[float], rate: float) -> float:
    """Return the next rate beyond the end that won, at the grid's own ratio there, to 2 digits."""
    if rate == grid[0]:
        return float(f"{grid[0] * grid[0] / grid[1]:.1e}")
    return float(f"{grid[-1] * grid[-1] / grid[-2]:.1e}")


def _score(
    recipe: Recipe,
    rate: float,
    *,
    images: int | None,
    folder: Path,
    by_texts: bool,
    progress: bool,
) -> Scores:
    data = recipe.model_dump(mode="json")
    data["optimiser"]["lr"] = rate
    data["evaluate"] = None
    data["validation"]["every"] = "never"
    data["select"] = "last"
    if images is not None:
        data["source"] |= {"limit": images, "per_class": None}
    one = parse_recipe(data)
    run = harden(one, folder / f"lr-{rate:.3g}", progress=progress)

    heads = objective_class(one.objective.name).scored_by in ("head", "dictionary")

    def score() -> Scores:
        clip = load_clip(run.spec, training_device(one.device, "tuning"))
        head = None
        if heads and not by_texts:
            head = HeadClassifier.from_file(clip.image_encoder(), run.model / HEAD_NAME)
        return validate(one, clip, open_source(one), None, head)

    # The run goes on under another validation block, which trains nothing: scores do not.
    asked = one.determining() | {"validation": data["validation"]}
    name = "scores-texts.json" if heads and by_texts else "scores.json"
    return kept_scores(run.folder / name, asked, score)
