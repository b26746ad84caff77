"""The task `avoid` as an environment that `lerobot-eval` finds: --env.discover_packages_path=gym_flow2one_avoid."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import gymnasium
import numpy as np
from lerobot.configs.types import FeatureType, PolicyFeature
from lerobot.envs.configs import EnvConfig

import envs
from envs.panda.recording import stored_starts
from envs.specs import STATE

SIDE = 32


@EnvConfig.register_subclass("flow2one_avoid")
@dataclass
class AvoidConfig(EnvConfig):
    """What LeRobot's factory needs of an environment: its name and its features."""

    task: str = "avoid-v0"
    fps: int = 20
    features: dict[str, PolicyFeature] = field(default_factory=lambda: {
        "action": PolicyFeature(FeatureType.ACTION, (2,)), "agent_pos": PolicyFeature(FeatureType.STATE, (2,)),
    })  # fmt: skip
    features_map: dict[str, str] = field(default_factory=lambda: {"action": "action", "agent_pos": STATE})

    @property
    def gym_kwargs(self) -> dict[str, Any]:
        return {"max_episode_steps": envs.task_spec("avoid").max_steps}


class Avoid(gymnasium.Env[dict[str, np.ndarray], np.ndarray]):
    """Our environment under LeRobot's names; the seed of an episode is the number of its stored test start."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 20}

    def __init__(self) -> None:
        self._env, self.task, self.task_description = envs.make("avoid"), "avoid", "cross the rows of pillars"
        self.observation_space = gymnasium.spaces.Dict({"agent_pos": gymnasium.spaces.Box(-np.inf, np.inf, (2,), np.float32)})
        self.action_space = gymnasium.spaces.Box(-np.inf, np.inf, (2,), np.float32)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        super().reset(seed=seed)
        number = (seed or 0) % 100
        observation, _ = self._env.reset(options={"start": stored_starts("avoid", 0, "test", number + 1)[number]})
        return {"agent_pos": observation[STATE]}, {"is_success": False}

    def step(self, action: np.ndarray) -> tuple[dict[str, np.ndarray], float, bool, bool, dict[str, Any]]:
        observation, _, terminated, truncated, info = self._env.step(action)
        success = bool(info["is_success"])
        return {"agent_pos": observation[STATE]}, float(success), terminated, truncated, {"is_success": success}

    def render(self) -> np.ndarray:  # type: ignore[override]
        return np.zeros((SIDE, SIDE, 3), np.uint8)


gymnasium.register("gym_flow2one_avoid/avoid-v0", Avoid)
