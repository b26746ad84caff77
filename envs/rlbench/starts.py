"""The starts of RLBench's episodes in each split, drawn or stored."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from envs.rlbench.spec import RLBenchSettings, task_names
from envs.rlbench.tree import episodes
from envs.specs import SPLITS

Starts = dict[str, np.ndarray]
"""Split to starts `[count, D]`."""


def split_starts(task: str, settings: RLBenchSettings, seed: int, counts: Mapping[str, int]) -> Starts:
    """`[count, D]` float64 starts for each split; the splits are disjoint.

    Live starts are drawn, cycling through tasks and variations. Stored demonstrations are taken in turn, first for training,
    then for validation and test. Raises ValueError for an unknown split, or when too few are stored.
    """
    unknown = sorted(set(counts) - set(SPLITS))
    if unknown:
        raise ValueError(f"splits must be of {SPLITS}, got {unknown}")
    if settings.dataset:
        return _stored(task, settings, counts)
    return {
        split: np.stack([draw_start(task, settings, seed, split, number) for number in range(count)])
        for split, count in counts.items()
    }


def draw_start(task: str, settings: RLBenchSettings, seed: int, split: str, number: int, attempt: int = 0) -> np.ndarray:
    """Live start `number` of a split, `[D]` float64; each attempt is another placement."""
    rng = np.random.default_rng([seed, SPLITS.index(split), number, attempt, *task.encode()])
    tasks = len(task_names(task))
    variation = settings.variations[number // tasks % len(settings.variations)]
    return np.array([variation, -1, rng.integers(2**31), 0, *([number % tasks] if tasks > 1 else [])], dtype=np.float64)


def _stored(task: str, settings: RLBenchSettings, counts: Mapping[str, int]) -> Starts:
    names = task_names(task)
    there = {
        (which, variation): episodes(Path(settings.dataset), name, variation)
        for variation in settings.variations for which, name in enumerate(names)
    }  # fmt: skip
    order = [
        (variation, numbers[place], 0, 0, *([which] if len(names) > 1 else []))
        for place in range(max(map(len, there.values())))
        for (which, variation), numbers in there.items()
        if place < len(numbers)
    ]
    wanted = sum(counts.values())
    if wanted > len(order):
        raise ValueError(
            f"{settings.dataset} holds {len(order)} demonstrations of {' and '.join(names)} in variations "
            f"{list(settings.variations)}, but {dict(counts)} are wanted, together {wanted}: take fewer (demos.train_starts, "
            "evaluate.validation_starts, evaluate.test_starts), or record more"
        )
    starts, begin = {}, 0
    for split in SPLITS:
        chosen = order[begin : begin + counts.get(split, 0)]
        begin += len(chosen)
        if chosen:
            starts[split] = np.array(chosen, dtype=np.float64)
    return starts
