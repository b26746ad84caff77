"""Training data: windows of demonstrations, their statistics, and batches in a reproducible order."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from torch import Tensor

from distill.observation import camera_sources
from distill.training.loop import Share, batch_indices
from envs.demonstrations import Demonstrations
from envs.windows import CACHE_MB, WindowDataset
from teachers.networks.normalisation import Normaliser, observed_ranges
from teachers.networks.shapes import PolicyShape

Batch = dict[str, Tensor]
"""An observation (``observation.*`` `[B, O, ..]`, or ``features`` `[B, F]`), and ``hypotheses`` `[B, K, T, A]` with ``seed``
`[B, K]`, or ``action`` `[B, T, A]`."""

Batches = Callable[[int, int, Share], Iterator[Batch]]
"""(first step, last step, this process's share) to its part of each step's batch."""


def windows_for(
    demonstrations: Demonstrations, shape: PolicyShape, observation_steps: int, horizon: int, processes: int = 1
) -> WindowDataset:
    """Windows of demonstrations with all features that a policy of this shape observes, always with the state."""
    # every process keeps its own images in memory, and they may all be on one machine
    return WindowDataset(
        demonstrations, camera_sources(shape), observation_steps=observation_steps, horizon=horizon,
        cache_mb=CACHE_MB / processes,
    )  # fmt: skip


def normaliser_of(demonstrations: Demonstrations, shape: PolicyShape) -> Normaliser:
    """The normaliser of a policy of this shape, from the ranges of the demonstrations."""
    normaliser, statistics = Normaliser.of(shape), demonstrations.statistics()
    if camera_sources(shape):
        dataset = WindowDataset(demonstrations, camera_sources(shape), observation_steps=1, horizon=1, cache_mb=0)
        blocks = np.array_split(np.arange(len(dataset)), -(-len(dataset) // 256))
        statistics |= observed_ranges(dataset[block] for block in blocks)
    normaliser.fit(statistics)
    return normaliser


def batches_of(read: Callable[[Tensor], Batch], count: int, batch_size: int, seed: int) -> Batches:
    """Batches of `batch_size` of `count` rows, in an order given by the seed; read: rows `[b]` to their part of a batch."""

    def batches(first: int, last: int, share: Share) -> Iterator[Batch]:
        for step in range(first, last):
            yield read(share.of(batch_indices(seed, step, batch_size, count)))

    return batches
