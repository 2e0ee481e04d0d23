"""The mini recipe on real photographs, shortened, judged on held-out source images alone."""

from __future__ import annotations

import os

import pytest
import torch

from zsrobust.evaluation import evaluate
from zsrobust.training import harden, load_recipe

pytestmark = [pytest.mark.slow, pytest.mark.needs_data]


def test_a_short_hardening_raises_robust_accuracy_on_held_out_source_images(tmp_path):
    """1,280 images twice at 2/255: the paired interval of the robust accuracy on 400 images excludes 0."""
    torch.set_num_threads(os.cpu_count() or 1)
    recipe = load_recipe(
        "mini/tecoa-ft-eps2", ["source.limit=1280", "epochs=2", "validation.every=never"]
    )
    run = harden(recipe, tmp_path / "run")
    table = evaluate(
        ["mini-clip", run], "mini/tiny_imagenet#val", ["pgd-10"], "2/255", limit=400, device="cpu"
    )
    difference = table.set_difference(*table.models, 2 / 255, "mini/tiny_imagenet", "robust")
    assert difference.low > 0
    assert all(row.is_source for row in table.rows)
