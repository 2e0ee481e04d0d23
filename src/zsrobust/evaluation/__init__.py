"""Evaluation: cells, statistics, tables. Importing this package imports torch.

`evaluate` is the function. It is brought in at once: brought in later, the module of the same name, which
Python binds here whenever it is first imported, would stand in its place.
"""

from zsrobust.evaluation.evaluate import evaluate
from zsrobust.evaluation.table import EvaluationTable

__all__ = ["EvaluationTable", "evaluate"]
