"""The demo's image sets: which classes each holds, and its pictures as samples.

Three disjoint draws: `web`, captioned, holds all classes in compositions, for pre-training; `source`,
for hardening; and the targets. No class of a target is one of the source, and the dice of a picture
are a function of (seed, section, split, number), so no picture is in two of them.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from PIL import Image

from zsrobust.data.drawn import patterns, views
from zsrobust.data.drawn.canvas import Dice
from zsrobust.data.drawn.figures import (
    ANIMALS,
    DIGITS,
    LETTERS,
    SHAPES_SOURCE,
    SHAPES_TARGET,
    THINGS,
    VEHICLES,
)
from zsrobust.data.drawn.pictures import FIGURES, PATTERNS, Picture, draw, draw_two
from zsrobust.data.storage import Opened
from zsrobust.errors import unknown_name

SIZE = 60
WEB = "web"
SECTIONS: dict[str, list[str]] = {
    # A letter X is a cross that leans.
    "source": [
        *SHAPES_SOURCE,
        *patterns.SOURCE,
        *THINGS,
        *(name for name in LETTERS if name != "letter X"),
    ],
    "shapes": list(SHAPES_TARGET),
    "patterns": list(patterns.TARGET),
    "animals": list(ANIMALS),
    "vehicles": list(VEHICLES),
    "digits": list(DIGITS),
    "flags": list(views.FLAGS),
    "scenes": list(views.SCENES),
}
EVERY_CLASS = [*FIGURES, *PATTERNS, *views.FLAGS, *views.SCENES]
# Of the web's pictures, how many show two figures.
_TWO = 0.15


@dataclass(slots=True)
class DrawnImages:
    """Pictures that are drawn when they are asked for, the same ones every time.

    Args:
        section: a name of `SECTIONS`, or `WEB`.
        split: part of the dice, so that no picture is in two splits.
        seed: of all pictures.
        count: N.
        size: side in pixels.
    """

    section: str
    split: str
    seed: int
    count: int
    size: int = SIZE
    ids: list[str] = field(init=False)
    labels: list[int] | None = field(init=False)
    captioned: bool = field(init=False)
    encoded: bool = field(init=False, default=False)
    _last: tuple[int, Picture] | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        if self.section != WEB and self.section not in SECTIONS:
            raise unknown_name("drawn section", self.section, [*SECTIONS, WEB])
        self.ids = [f"{self.section}/{self.split}/{i:06d}" for i in range(self.count)]
        classes = None if self.section == WEB else len(SECTIONS[self.section])
        self.labels = None if classes is None else [i % classes for i in range(self.count)]
        self.captioned = self.section == WEB

    def drawn(self, index: int) -> Picture:
        """Return a sample's picture with its captions; the last one is kept."""
        if self._last is None or self._last[0] != index:
            self._last = (index, self._draw(index, self.size))
        return self._last[1]

    def _draw(self, index: int, size: int) -> Picture:
        dice = Dice(f"zsrobust/{self.seed}/{self.ids[index]}")
        if self.section != WEB:
            classes = SECTIONS[self.section]
            hardens = self.section == "source"
            ornaments = patterns.SOURCE_ORNAMENTS if hardens else patterns.ORNAMENTS
            return draw(classes[index % len(classes)], dice, size, ornaments)
        if dice.chance(_TWO):
            names = list(FIGURES)
            return draw_two((dice.one(names), dice.one(names)), dice, size)
        return draw(dice.one(EVERY_CLASS), dice, size)

    def stored(self, index: int) -> bytes:
        """Return the S * S * 3 bytes of a picture."""
        pixels: bytes = self.drawn(index).pixels.tobytes()
        return pixels

    def picture(self, index: int, stored: bytes, what: str) -> Image.Image:
        """Return the bytes as a picture."""
        del index, what
        pixels = np.frombuffer(stored, np.uint8).reshape(self.size, self.size, 3)
        return Image.fromarray(pixels)

    def captions(self, index: int) -> list[str] | None:
        """Return what is true of a picture of the web, from short to long; None elsewhere."""
        if not self.captioned:
            return None
        if self._last is not None and self._last[0] == index:
            return self._last[1].captions
        return self._draw(index, 1).captions  # they do not depend on the size, one pixel is fastest


def open_drawn(section: str, split: str, seed: int, count: int) -> Opened:
    """Open a drawn set.

    Args:
        section: see `SECTIONS`, or `WEB`.
        split: any name.
        seed: of all pictures.
        count: N; the first M pictures are the same for every N >= M.

    Raises:
        UserError: for an unknown section.
    """
    return Opened(
        name=f"demo/{section}",
        split=split,
        storage=DrawnImages(section, split, seed, count),
        classnames=SECTIONS.get(section),
    )
