"""Image sets: cards, opening, the fixed order, loading in batches, packing.

Importing this package imports no torch: `loading.py` does where it is called.
"""

from zsrobust.data.cards import Card, card_names, load_card
from zsrobust.data.loading import Batch, batches, batches_of
from zsrobust.data.pack import pack
from zsrobust.data.sets import (
    ImageSet,
    Sample,
    SetMissing,
    Suite,
    load_suite,
    open_set,
    suite_names,
)

__all__ = [
    "Batch",
    "Card",
    "ImageSet",
    "Sample",
    "SetMissing",
    "Suite",
    "batches",
    "batches_of",
    "card_names",
    "load_card",
    "load_suite",
    "open_set",
    "pack",
    "suite_names",
]
