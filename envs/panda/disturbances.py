"""Disturbances: what is moved during an episode, when, and by how much."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

MOVED = ("object", "tool")
"""What a disturbance can move: the task's object, or the arm with its tool."""


@dataclass(frozen=True)
class Move:
    """One disturbance of one episode.

    step: the control step in which it begins, from 0; steps: its duration in control steps;
    offset_m: displacement in x and y [m], at constant speed. Raises ValueError for values out of range.
    """

    step: int
    steps: int
    offset_m: tuple[float, float]

    def __post_init__(self) -> None:
        if self.step < 0 or self.steps < 1:
            raise ValueError(f"a move needs step >= 0 and steps >= 1, got step {self.step}, steps {self.steps}")
        if not all(math.isfinite(value) for value in self.offset_m):
            raise ValueError(f"a move needs a finite offset [m], got {self.offset_m}")


@dataclass(frozen=True)
class Disturbance:
    """The distribution of a task's disturbances; each draw is one `Move`.

    moves: ``object``: the task's object is dragged over the table. ``tool``: the arm is held and moved, and follows no command
    until it is released.
    summary: one sentence for newcomers.
    step: first and last control step in which it may begin, uniform; steps: its duration in control steps.
    low_m, high_m: range of the distance [m], uniform; both 0: held in place.
    angles_rad: directions of which one is drawn, measured from x to y; ``spread_rad``: uniform to either side.

    Raises ValueError for values out of range.
    """

    moves: str
    summary: str
    step: tuple[int, int]
    steps: int
    low_m: float
    high_m: float
    angles_rad: tuple[float, ...] = (-math.pi / 2, math.pi / 2)
    spread_rad: float = 0.0

    def __post_init__(self) -> None:
        if self.moves not in MOVED:
            raise ValueError(f"a disturbance moves one of {MOVED}, got {self.moves!r}")
        if not 0 <= self.step[0] <= self.step[1] or self.steps < 1:
            raise ValueError(f"a disturbance needs 0 <= first <= last step and steps >= 1, got {self.step}, {self.steps}")
        if not 0 <= self.low_m <= self.high_m < math.inf or not self.angles_rad:
            raise ValueError(f"a disturbance needs 0 <= low <= high [m] and a direction, got {self.low_m}, {self.high_m}")

    def draw(self, seed: int, index: int) -> Move:
        """The move of episode `index`: the same for every policy, latency, batch and number of processes."""
        rng = np.random.default_rng([seed, index, 17])
        step = int(rng.integers(self.step[0], self.step[1] + 1))
        far = float(rng.uniform(self.low_m, self.high_m))
        angle = float(rng.choice(self.angles_rad)) + float(rng.uniform(-self.spread_rad, self.spread_rad))
        return Move(step, self.steps, (far * math.cos(angle), far * math.sin(angle)))
