"""The report: one HTML file over an evaluation. Importing this package imports torch and matplotlib.

`build_report` is the function; `collect_examples` makes the examples that it shows.
"""

from zsrobust.evaluation.examples import AttackedExample, Example, collect_examples
from zsrobust.report.build import build_report

__all__ = ["AttackedExample", "Example", "build_report", "collect_examples"]
