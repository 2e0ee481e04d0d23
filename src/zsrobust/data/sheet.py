"""A contact sheet: the first pictures of a set, a class a column."""

from __future__ import annotations

from typing import TYPE_CHECKING

from zsrobust.errors import UserError

if TYPE_CHECKING:
    from PIL.Image import Image

    from zsrobust.data.sets import ImageSet

_GAP = 2
_COLUMNS = 10  # of a set without labels, or with more classes


def contact_sheet(image_set: ImageSet, rows: int = 4, side: int = 96) -> Image:
    """Return the first pictures of a set's fixed order on one sheet, side by side.

    With up to ten classes a column is a class. What is drawn by the package is drawn at this size.

    Args:
        image_set: any set.
        rows: of the sheet.
        side: of a tile in pixels; pictures are fitted into it.

    Raises:
        UserError: if rows or side are below 1, or a picture cannot be read.
    """
    from PIL import Image as Pil
    from PIL import ImageOps

    if rows < 1 or side < 1:
        raise UserError(f"a sheet needs rows and side of at least 1, got {rows} and {side}.")
    classes = len(image_set.classnames or [])
    columns = classes if 0 < classes <= _COLUMNS else _COLUMNS
    shown = image_set.first(rows * columns)
    rows = -(-len(shown) // columns)
    step = side + _GAP
    sheet = Pil.new("RGB", (columns * step - _GAP, rows * step - _GAP), "white")
    drawn = image_set.redrawn(side)
    for place, index in enumerate(shown):
        picture = drawn.picture(index)
        if picture.size != (side, side):
            picture = ImageOps.pad(picture, (side, side), Pil.Resampling.LANCZOS, color="white")
        sheet.paste(picture, ((place % columns) * step, (place // columns) * step))
    return sheet
