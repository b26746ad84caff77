"""The observation history of an episode: the last O frames, with camera images only for frames that a query uses."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from envs.contract import TaskEnv
from envs.specs import STATE


class History:
    """The last O frames of an episode; before its first step the first frame is repeated.

    queries_at: whether the policy is queried at a control step. Rendering costs more than a control step of the simulator, so
    frames that no query uses hold the state only.
    """

    def __init__(self, env: TaskEnv, observation_steps: int, queries_at: Callable[[int], bool]) -> None:
        """For an environment without cameras, or with cameras and `cameras_on_demand`."""
        self._env, self._steps, self._queries_at = env, observation_steps, queries_at
        self._frames: list[dict[str, np.ndarray]] = []

    def add(self, observation: Mapping[str, np.ndarray], step: int) -> None:
        """Add what `reset` (step 0) or the last `env.step` returned."""
        frame = {STATE: observation[STATE]}
        if self._env.camera_rig is not None and any(self._queries_at(step + ahead) for ahead in range(self._steps)):
            frame |= self._env.observe_cameras()
        self._frames = [*(self._frames or [frame] * self._steps)[1:], frame]

    def refresh(self) -> None:
        """Make the window valid at the present step, at which no query was expected.

        The newest frame gets its camera images; older frames without images become the newest, as at an episode's start.
        """
        newest = self._frames[-1]
        if self._env.camera_rig is not None and len(newest) == 1:
            newest |= self._env.observe_cameras()
        self._frames = [frame if len(frame) == len(newest) else newest for frame in self._frames]

    def window(self) -> dict[str, np.ndarray]:
        """Every feature `[O, ..]`, newest frame last. Only valid at a step at which the policy is queried."""
        return {name: np.stack([frame[name] for frame in self._frames]) for name in self._frames[-1]}


def stacked(histories: Sequence[History]) -> dict[str, np.ndarray]:
    """The windows of B episodes, `[B, O, ..]` each."""
    windows = [history.window() for history in histories]
    return {name: np.stack([window[name] for window in windows]) for name in windows[0]}
