"""An embedded task under the names that LeRobot gives observations. Imports nothing of LeRobot."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gymnasium
import numpy as np

import envs
from envs.cameras.backends import open_renderer
from envs.cameras.specs import CameraSettings
from envs.panda.recording import stored_starts
from envs.specs import IMAGES, STATE

STARTS = 1000
"""Stored test starts; a longer list begins with the shorter one. LeRobot's seeds begin at 1000, which is start 0."""
SHOWN = (240, 180)
"""Width and height of a rendered frame [px]."""


class Flow2OneTask(gymnasium.Env[dict[str, Any], np.ndarray]):
    """agent_pos, environment_state: the whole state `[S]`; pixels: uint8 `[H, W, 3]` of each camera, where any are named.

    The seed of a reset is the number of a stored test start (`STARTS`). An episode ends at success, with reward 1, or at a
    failure, which info names.
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"]}

    def __init__(
        self, name: str, cameras: Sequence[str] = (), image_size: Sequence[int] = (64, 64), starts_seed: int = 0,
        render_mode: str = "rgb_array",
    ) -> None:  # fmt: skip
        """Raises ValueError for an unknown task or camera."""
        height, width = image_size
        settings = CameraSettings(tuple(cameras), width, height, depth=False, num_points=0) if cameras else None
        self._env, self._cameras, self._starts_seed = envs.make(name, settings), tuple(cameras), starts_seed
        spec = self._env.spec_task
        self.task, self.task_description, self.render_mode = spec.name, spec.summary, render_mode
        self.metadata = {**self.metadata, "render_fps": round(1 / spec.dt_s)}
        state = gymnasium.spaces.Box(-np.inf, np.inf, (len(spec.state_names),), np.float32)
        spaces: dict[str, gymnasium.spaces.Space[Any]] = {"agent_pos": state, "environment_state": state}
        if cameras:
            picture = gymnasium.spaces.Box(0, 255, (height, width, 3), np.uint8)
            spaces["pixels"] = gymnasium.spaces.Dict(dict.fromkeys(cameras, picture))
        self.observation_space, self.action_space = gymnasium.spaces.Dict(spaces), self._env.action_space
        self._renderer: Any = None

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[dict[str, Any], dict[str, Any]]:
        super().reset(seed=seed)
        number = int(self.np_random.integers(STARTS)) if seed is None else seed % STARTS
        starts = stored_starts(self.task, self._starts_seed, "test", number + 1)
        observation, _ = self._env.reset(options={"start": starts[number]})
        return self._named(observation), {"is_success": False}

    def step(self, action: np.ndarray) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, info = self._env.step(action)
        told = {name: info[name] for name in ("is_success", "failure", "mode")}
        return self._named(observation), float(reward), terminated, truncated, {**told, "is_success": bool(info["is_success"])}

    def render(self) -> np.ndarray:  # type: ignore[override]
        """`[H, W, 3]` uint8 of the front camera."""
        if self._renderer is None:
            self._renderer = open_renderer(self._env.model, *SHOWN)
        frame: np.ndarray = self._renderer.render(self._env.data, "front")[0]
        return frame

    def close(self) -> None:
        if self._renderer is not None:
            self._renderer.close()
            self._renderer = None
        self._env.close()

    def _named(self, observation: dict[str, np.ndarray]) -> dict[str, Any]:
        state = observation[STATE].astype(np.float32)
        pictures = {camera: np.round(observation[f"{IMAGES}.{camera}"].transpose(1, 2, 0) * 255).astype(np.uint8)
                    for camera in self._cameras}  # fmt: skip
        return {"agent_pos": state, "environment_state": state.copy(), **({"pixels": pictures} if pictures else {})}
