"""What decides whether a frame of a demonstration is kept; the choice is `select_frames` (envs/rlbench/demonstrations.py).

The simulator's process uses it, too: it runs in any Python from 3.8 on with numpy, and imports nothing of ours.
"""

from __future__ import annotations

from typing import Any

import numpy as np

FINGER_M = 0.04
"""A finger's travel from closed to open [m]."""
STILL_RAD_S = 0.1
"""The arm rests while no joint is faster."""


def is_open(low: dict[str, np.ndarray], threshold: float) -> np.ndarray:
    """Whether the gripper is open, 0.0 or 1.0, `[]` or `[L]`: by its finger joints, where they were recorded."""
    fingers = low.get("gripper_joint_positions")
    if fingers is None:
        return np.asarray(low["gripper_open"], np.float64)
    return np.asarray(fingers[..., 0] / FINGER_M > threshold).astype(np.float64)


def is_still(velocity_J: np.ndarray) -> bool:
    """Whether the arm rests, by its joints' velocities [rad/s]."""
    return bool(np.abs(velocity_J).max() < STILL_RAD_S)


class KeptFrames:
    """Tells of each frame, while a demonstration is being made, whether `select_frames` may keep it.

    Every frame that is kept is among them, except for the last one, which nothing observes. What follows a rest is only known
    later, so every frame where the arm is slow is among them.
    options: keyframes, subsample, gripper_threshold (envs/rlbench/protocol.py).
    """

    def __init__(self, options: dict[str, Any]) -> None:
        self._options, self._opened, self.count = options, 0.0, 0

    def may_keep(self, low: dict[str, np.ndarray]) -> bool:
        """Of the next frame, by its low-dimensional arrays without L. Counts it."""
        opened, number = float(is_open(low, self._options["gripper_threshold"])), self.count
        changed = number == 0 or opened != self._opened
        self._opened, self.count = opened, number + 1
        due = not self._options["keyframes"] and number % self._options["subsample"] == 0
        return bool(changed or due or is_still(low["joint_velocities"]))
