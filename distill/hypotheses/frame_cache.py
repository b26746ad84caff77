"""The frame cache: raw observations at the frames of a hypothesis cache, kept in memory during training if they fit."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor

from envs.specs import IMAGES
from teachers.contract import Observation

MOST_BYTES = 2 << 30


class FrameCache:
    """Rows of raw observations, read once; images as 8 bits, as recorded. Above `most` bytes they are read every time."""

    def __init__(
        self, observe: Callable[[np.ndarray], Mapping[str, np.ndarray]], frames_N: np.ndarray, most: int = MOST_BYTES
    ) -> None:
        """observe: frames `[n]` to raw observations `[n, O, ..]`; frames_N: the frame of each row."""
        self._observe, self._frames_N = observe, frames_N
        first = observe(frames_N[:1])
        size = sum(math.prod(value.shape) * (1 if name.startswith(IMAGES) else 4) for name, value in first.items())
        self._cached: dict[str, Tensor] | None = None
        if size * len(frames_N) <= most:
            kinds = {name: torch.uint8 if name.startswith(IMAGES) else torch.float32 for name in first}
            self._cached = {
                name: torch.empty(len(frames_N), *value.shape[1:], dtype=kinds[name]) for name, value in first.items()
            }
            for rows in np.array_split(np.arange(len(frames_N)), -(-len(frames_N) // 64)):
                for name, value in observe(frames_N[rows]).items():
                    tensor = torch.from_numpy(value)
                    self._cached[name][rows] = (255 * tensor).round().to(torch.uint8) if name.startswith(IMAGES) else tensor

    def at(self, rows_B: Tensor) -> Observation:
        """The observations of these rows, `[B, O, ..]` float32."""
        if self._cached is None:
            return {name: torch.from_numpy(value) for name, value in self._observe(self._frames_N[rows_B.numpy()]).items()}
        found = {name: value[rows_B] for name, value in self._cached.items()}
        return {name: value.float() / 255 if name.startswith(IMAGES) else value for name, value in found.items()}
