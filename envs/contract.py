"""What a rollout needs of an environment: `PandaEnv` and `RLBenchEnv` implement it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np

from envs.specs import TaskSpec


class TaskEnv(Protocol):
    """A gymnasium-like environment of one task; `envs.check_env` tests the contract. See `PandaEnv` for details.

    cameras_on_demand: leave camera features out of `reset` and `step`; the caller gets them by `observe_cameras`.
    """

    cameras_on_demand: bool

    @property
    def spec_task(self) -> TaskSpec:
        """The task's spec."""
        ...

    @property
    def camera_rig(self) -> Any:
        """The open cameras, whose `spec` is a `CamerasSpec`; None without cameras."""
        ...

    def reset(
        self, *, seed: int | None = None, options: Mapping[str, Any] | None = None
    ) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Starts an episode at ``options["start"]`` `[D]`: observation and info."""
        ...

    def step(self, action: np.ndarray) -> tuple[dict[str, np.ndarray], float, bool, bool, dict[str, Any]]:
        """Executes one action `[A]`: observation, reward, terminated, truncated and info (is_success, failure, mode).

        info may hold ``refused``: where it is not "", the action was not executed and the observation is as before.
        """
        ...

    def observe_cameras(self) -> dict[str, np.ndarray]:
        """Every camera feature now, float32."""
        ...

    def tool_position(self) -> np.ndarray:
        """Tool centre `[3]` [m] in the robot's base frame."""
        ...

    def object_position(self) -> np.ndarray | None:
        """Position `[3]` [m] of the object the task moves; None where there is none or it is unknown."""
        ...

    def planned_modes(self, actions: np.ndarray) -> tuple[str, ...]:
        """The option that planned actions `[L, A]` take at each decision of the task; "" where they leave it open."""
        ...
