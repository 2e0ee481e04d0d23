"""Published numbers: the ledger, and what it says beside a number that was measured here.

`published` returns what others measured; `beside` and `beside_mean` find the numbers that belong to a
measured one, and say what differs where they do not agree.
"""

from zsrobust.evaluation.published.compare import (
    Comparison,
    Hardening,
    beside,
    beside_mean,
)
from zsrobust.evaluation.published.ledger import Mean, Number, PublishedModel, published

__all__ = [
    "Comparison",
    "Hardening",
    "Mean",
    "Number",
    "PublishedModel",
    "beside",
    "beside_mean",
    "published",
]
