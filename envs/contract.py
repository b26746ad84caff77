"""What a rollout needs of an environment, simulated here or elsewhere: `PandaEnv` and `RLBenchEnv` have it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np

from envs.specs import TaskSpec


class TaskEnv(Protocol):
    """See `PandaEnv` for what each of these does; `check_env` tries it."""

    cameras_on_demand: bool

    @property
    def spec_task(self) -> TaskSpec: ...

    @property
    def camera_rig(self) -> Any: ...

    def reset(
        self, *, seed: int | None = None, options: Mapping[str, Any] | None = None
    ) -> tuple[dict[str, np.ndarray], dict[str, Any]]: ...

    def step(self, action: np.ndarray) -> tuple[dict[str, np.ndarray], float, bool, bool, dict[str, Any]]: ...

    def observe_cameras(self) -> dict[str, np.ndarray]: ...

    def tool_position(self) -> np.ndarray: ...

    def object_position(self) -> np.ndarray | None: ...

    def planned_modes(self, actions: np.ndarray) -> tuple[str, ...]: ...
