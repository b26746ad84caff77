"""A gymnasium environment for the tests and its expert: a point that passes an obstacle on the left or right."""

from __future__ import annotations

import os
import time
from typing import Any

import gymnasium
import numpy as np

STEPS = 8


class Point(gymnasium.Env):
    """The action moves x by a tenth of it; y advances by 1/8; |x| must exceed 0.2 after four steps.

    fails: "", "dies", "hangs" or "raises", in the third step after an odd seed; deaf: whether reset ignores its seed.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}

    def __init__(self, fails: str = "", deaf: bool = False, discrete: bool = False, render_mode: str | None = None) -> None:
        box = gymnasium.spaces.Box
        self.observation_space = gymnasium.spaces.Dict({
            "agent": gymnasium.spaces.Dict({"xy": box(-10.0, 10.0, (2,))}), "goal": box(-10.0, 10.0, (1,)),
            "picture": box(0, 255, (12, 16, 3), np.uint8), "depth": box(0.0, 9.0, (12, 16)), "cloud": box(-1.0, 1.0, (20, 3)),
        })  # fmt: skip
        self.action_space = gymnasium.spaces.Discrete(2) if discrete else box(-1.0, 1.0, (1,))
        self.render_mode, self._fails, self._deaf, self._discrete = render_mode, fails, deaf, discrete
        self._unseeded = np.random.default_rng()

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self._seed, self._steps = seed or 0, 0
        self._x = float((self._unseeded if self._deaf else self.np_random).uniform(-0.05, 0.05))
        return self._observation(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self._steps += 1
        if self._steps == 3 and self._seed % 2:
            if self._fails == "dies":
                os._exit(3)
            if self._fails == "hangs":
                time.sleep(60)
            if self._fails == "raises":
                raise ValueError("no more of this")
        self._x += 0.1 * (2.0 * action - 1.0 if self._discrete else float(action[0]))
        crashed, passed = self._steps == 4 and abs(self._x) <= 0.2, self._steps >= STEPS
        info = {"is_success": passed, "side": "right" if self._x > 0 else "left", "far": np.float32(abs(self._x))}
        return self._observation(), float(abs(self._x)), crashed, False, info

    def render(self) -> np.ndarray:
        frame = np.full((24, 32, 3), 40, np.uint8)
        frame[min(23, 2 * self._steps), min(31, max(0, int(16 + 16 * self._x)))] = 255
        return frame

    def _observation(self) -> dict[str, Any]:
        xy = np.array([self._x, self._steps / STEPS], np.float32)
        depth = np.linspace(0.5, 2.0, 192, dtype=np.float32).reshape(12, 16)
        cloud = np.linspace(-1, 1, 60, dtype=np.float32).reshape(20, 3)
        picture = np.arange(576, dtype=np.uint8).reshape(12, 16, 3)
        return {"agent": {"xy": xy}, "goal": np.ones(1, np.float32), "picture": picture, "depth": depth, "cloud": cloud}


def make(**given: Any) -> gymnasium.Env[Any, Any]:
    """The environment. `limited`: with gymnasium's own time limit."""
    limited = given.pop("limited", 0)
    env: gymnasium.Env[Any, Any] = Point(render_mode="rgb_array", **given)
    return gymnasium.wrappers.TimeLimit(env, limited) if limited else env


def expert(env: Any, mode: str) -> Any:
    """Straight to the side of the mode."""
    return lambda observation: np.array([1.0 if mode == "right" else -1.0])


def timid(env: Any) -> Any:
    """Gives up at once."""
    return None


def clumsy(env: Any) -> Any:
    """Runs into the obstacle."""
    return lambda observation: np.zeros(1)
