"""Several processes that measure together: each takes its share of the samples, the first brings them together.

`torchrun --nproc-per-node N -m zsrobust eval ...` starts them. A sample belongs to a process by its place among
those that are missing; what it draws depends on its id alone, so that outcomes are those of one process.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch

Sample = TypeVar("Sample")


@dataclass(frozen=True, slots=True)
class Ranks:
    """This process among those that measure together."""

    number: int = 0
    count: int = 1
    local: int = 0
    """Its number on this machine: which GPU is its own."""

    @classmethod
    def here(cls) -> Ranks:
        """Return what the launcher says; one process alone where there is none.

        Several processes meet over gloo.
        """
        count = int(os.environ.get("WORLD_SIZE", "1"))
        if count <= 1:
            return cls()
        if not torch.distributed.is_initialized():
            torch.distributed.init_process_group("gloo")
        number = torch.distributed.get_rank()
        return cls(number, count, int(os.environ.get("LOCAL_RANK", number)))

    @property
    def is_first(self) -> bool:
        """Whether it writes what all share, and speaks."""
        return self.number == 0

    def share(self, samples: Sequence[Sample]) -> list[Sample]:
        """Return this process's part of a list that all hold."""
        return list(samples[self.number :: self.count])

    def wait(self) -> None:
        """Wait until all have come here."""
        if self.count > 1:
            torch.distributed.barrier()
