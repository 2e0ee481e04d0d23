"""The table of ours against the reference AutoAttack that docs/attacks.md shows; minutes on one thread.

ZSROBUST_GOLDEN=... python benchmarks/golden.py [--seeds 3] [case or attack ...]
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "attacks"))

import golden


def _row(found: golden.Comparison) -> str:
    def shown(values: Sequence[float]) -> str:
        return ", ".join(f"{value:.1f}" for value in values)

    network_name, norm, eps = found.case.split("_")
    allowed = found.differ_allowed
    cells = [
        f"{network_name} {norm} {eps.replace('-', '/')}",
        f"`{golden.ATTACKS[found.attack].partition(':')[0]}`",
        f"{found.clean_correct} of {found.images}",
        shown(found.reference),
        shown(found.ours),
        f"{found.differ}" + ("" if allowed is None else f" of {allowed:.1f}"),
    ]
    return f"| {' | '.join(cells)} |"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("only", nargs="*")
    options = parser.parse_args()
    torch.set_num_threads(1)
    print("| network, norm, eps | attack | clean-correct | reference | ours | differ |", flush=True)
    print("|---|---|---|---|---|---|")
    for label in golden.CASES:
        for kind in golden.kinds(label):
            if not options.only or label in options.only or kind in options.only:
                print(_row(golden.compare(label, kind, range(options.seeds))), flush=True)


if __name__ == "__main__":
    main()
