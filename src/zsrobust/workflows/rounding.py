"""From an attacked image to one of 8 bits that still lies within eps of its clean image (traps 6)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from zsrobust.errors import UserError
from zsrobust.threat import Threat, format_eps

if TYPE_CHECKING:
    from torch import Tensor

# Of a level: a computed eps may lie that much below its level. Membership forgives far more.
_HAIR = 1e-6


def check_levels(threat: Threat) -> None:
    """Refuse an eps within which no other image of 8 bits lies.

    Raises:
        UserError: for an eps below 1/255, in either norm.
    """
    if threat.eps * 255 < 1 - _HAIR:
        raise UserError(
            f"eps {format_eps(threat.eps)} is less than one of the 255 levels of a file: the saved image would "
            "be the clean one; give 1/255 or more."
        )


def round_within(images: Tensor, clean: Tensor, threat: Threat) -> Tensor:
    """Return the images in 8 bits: rounded to nearest, then towards the clean image where eps is exceeded.

    linf: |d| is at most the whole number of levels in eps. l2: numbers of a sample are taken one level back
    towards the clean image, beginning with those that were rounded up furthest, until it lies within eps.

    Args:
        images: (N, 3, H, W) floats in [0, 1]; what lies outside the ball is drawn back to it first.
        clean: (N, 3, H, W) uint8, the centres.
        threat: norm and eps.

    Returns:
        (N, 3, H, W) uint8.
    """
    import torch

    centre = clean.double()
    away = images.double() * 255 - centre  # in levels
    reach = threat.eps * 255
    if threat.norm == "linf":
        levels = math.floor(reach + _HAIR)
        away = away.round().clamp(-levels, levels)
    else:
        away = torch.stack([_within_length(one, reach) for one in away])
    return (centre + away).clamp(0, 255).to(torch.uint8)


def _within_length(away: Tensor, reach: float) -> Tensor:
    """Return the difference of one image in whole levels, of a length of at most `reach` levels."""
    import torch

    length = float(away.norm())
    if length > reach:
        away = away * (reach / length)
    nearest = away.round()
    budget = reach * reach * (1 + _HAIR)
    excess = float(nearest.square().sum()) - budget
    if excess <= 0:
        return nearest
    # Cut towards zero no number is longer than it was, so taking all of them back is enough.
    cut = away.trunc()
    up = (nearest != cut).flatten().nonzero()[:, 0]
    kept = (away - cut).abs().flatten()[up]
    up = up[kept.argsort(stable=True)]  # least of a level first
    saved = nearest.flatten()[up].square() - cut.flatten()[up].square()
    count = int((saved.cumsum(0) < excess).sum()) + 1
    whole = nearest.flatten().clone()
    whole[up[:count]] = cut.flatten()[up[:count]]
    return torch.as_tensor(whole.reshape(away.shape))
