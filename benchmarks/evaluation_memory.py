"""Peak memory of evaluating 10,000 samples beside that of 1,000.

Each evaluation runs in a process of its own (peak resident memory is a process's), alternating, three times each;
mini-clip on source images, PGD-2 at 1/255, records written to disk, images not kept.

    ZSROBUST_DATA=... ZSROBUST_MODELS=... python benchmarks/evaluation_memory.py [--repeats 3]
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import statistics
import subprocess
import sys
import tempfile

import torch


def evaluate_once(limit: int) -> None:
    """Evaluate in this process and print its peak resident memory in MiB."""
    from zsrobust.evaluation import evaluate

    torch.set_num_threads(2)
    with tempfile.TemporaryDirectory() as folder:
        evaluate(
            ["mini-clip"],
            "mini/tiny_imagenet#train",  # the only set here with 10,000 images
            ["pgd-2"],
            "1/255",
            limit=limit,
            out=folder,
            device="cpu",
        )
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def main() -> None:
    """Measure, and print the figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--one", type=int, help="evaluate so many samples in this process")
    options = parser.parse_args()
    if options.one:
        evaluate_once(options.one)
        return
    peaks: dict[int, list[float]] = {1000: [], 10_000: []}
    for _ in range(options.repeats):
        for limit, found in peaks.items():
            command = [sys.executable, __file__, "--one", str(limit)]
            done = subprocess.run(command, capture_output=True, text=True, check=True)  # noqa: S603
            found.append(float(done.stdout.split()[-1]))
    small, large = (statistics.median(values) for values in peaks.values())
    print(
        json.dumps(
            {
                "benchmark": "peak memory of evaluating 10,000 samples minus 1,000",
                "difference_mib": round(large - small, 1),
                "peaks_mib": {str(k): [round(v, 1) for v in found] for k, found in peaks.items()},
                "torch": torch.__version__,
                "machine": platform.processor() or platform.machine(),
            }
        )
    )


if __name__ == "__main__":
    main()
