"""Training data: windows of demonstrations, their statistics, and batches in a reproducible order."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

from distill.observation import camera_sources
from distill.training.loop import Share, batch_indices
from envs.demonstrations import Demonstrations
from envs.poses import PoseLayout, pose_layout
from envs.specs import DEPTH, IMAGES, STATE
from envs.windows import CACHE_MB, WindowDataset
from teachers.networks.normalisation import CONSTANT, Normaliser, observed_ranges
from teachers.networks.scene_motions import NUMBERS, STILL, MotionRange, draw_motions, move_batch
from teachers.networks.shapes import PolicyShape
from teachers.networks.tool_frame import ToolFrame

Batch = dict[str, Tensor]
"""An observation (``observation.*`` `[B, O, ..]`, or ``features`` `[B, F]`), and ``hypotheses`` `[B, K, T, A]` with ``seed``
`[B, K]`, or ``action`` `[B, T, A]`."""

MOVED_COPIES = 8
"""Random motions of each frame from which ranges are taken."""

MOST_BYTES = 2**30
"""Training data up to this size are held on the training device; several processes on one machine share it."""

Reader = Callable[[Tensor], Batch]
"""Rows `[b]` to their part of a batch."""

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


def normaliser_of(demonstrations: Demonstrations, shape: PolicyShape, motions: MotionRange = STILL) -> Normaliser:
    """The normaliser of a policy of this shape, from the ranges of the demonstrations, moved as they will be in training.

    Ranges of poses are at least those of `envs.poses.LEAST_HALF_RANGES`.
    """
    normaliser = Normaliser.of(shape)
    frame = ToolFrame(shape) if shape.frame == "tool" else None
    # only relative to the tool does it matter which frames are in one window
    steps, horizon = (shape.observation_steps, shape.horizon) if frame else (1, 1)
    dataset = WindowDataset(demonstrations, camera_sources(shape), observation_steps=steps, horizon=horizon, cache_mb=0)
    generator = torch.Generator().manual_seed(0)

    def blocks() -> Iterator[Batch]:
        for block in np.array_split(np.arange(len(dataset)), -(-len(dataset) // 256)):
            rows = dataset[block]
            yield rows
            for _ in range(MOVED_COPIES if motions.any else 0):
                yield move_batch(rows, shape, draw_motions(motions, torch.rand(len(block), NUMBERS, generator=generator)))

    low: dict[str, np.ndarray] = {}
    high: dict[str, np.ndarray] = {}

    def counted() -> Iterator[Batch]:
        for rows in map(frame.batch, blocks()) if frame else blocks():
            for name, values in (("state", rows[STATE]), ("action", rows["action"])):
                ends = [end(values.flatten(0, 1), 0).double().numpy() for end in (torch.amin, torch.amax)]
                low[name] = np.minimum(low.get(name, ends[0]), ends[0])
                high[name] = np.maximum(high.get(name, ends[1]), ends[1])
            yield rows

    statistics = observed_ranges(counted())
    for name, names in (("state", shape.state_names), ("action", shape.action_names)):
        statistics[name] = widened(low[name], high[name], pose_layout(names))
    normaliser.fit(statistics)
    return normaliser


def widened(low: np.ndarray, high: np.ndarray, layout: PoseLayout) -> dict[str, np.ndarray]:
    """``{"min", "max"}`` of a range whose halves are at least the layout's least ones; a constant dimension stays constant."""
    half = (high - low) / 2
    more = np.where(half > CONSTANT, np.maximum(layout.least_half_ranges(len(half)) - half, 0), 0)
    return {"min": low - more, "max": high + more}


def moved(
    batch: Batch, shape: PolicyShape, motions: MotionRange, batch_size: int, generator: torch.Generator, share: Share
) -> Batch:
    """This process's part of a batch, every row's scene moved at random; drawn for the whole batch of `batch_size`."""
    if not motions.any:
        return batch
    uniform_B4 = share.of(torch.rand(batch_size, NUMBERS, generator=generator))
    return move_batch(batch, shape, draw_motions(motions, uniform_B4.to(batch[STATE].device)))


def resident(read: Reader, count: int, device: torch.device, processes: int = 1) -> Reader:
    """A reader of the same rows that holds all `count` of them on `device`, or reads each batch where they do not fit.

    read: rows `[b]` to their part of a batch, on the CPU. Images and depth are never held: they are larger decoded.
    """
    row = read(torch.zeros(1, dtype=torch.long))
    bytes_needed = count * sum(value.nbytes for value in row.values())
    if bytes_needed > MOST_BYTES / processes or any(name.startswith((IMAGES, DEPTH)) for name in row):
        return lambda rows: {name: value.to(device) for name, value in read(rows).items()}
    held = {name: value.to(device) for name, value in read(torch.arange(count)).items()}
    return lambda rows: {name: value.index_select(0, rows.to(device)) for name, value in held.items()}


def batches_of(read: Reader, count: int, batch_size: int, seed: int) -> Batches:
    """Batches of `batch_size` of `count` rows, in an order given by the seed; read: rows `[b]` to their part of a batch."""

    def batches(first: int, last: int, share: Share) -> Iterator[Batch]:
        for step in range(first, last):
            yield read(share.of(batch_indices(seed, step, batch_size, count)))

    return batches
