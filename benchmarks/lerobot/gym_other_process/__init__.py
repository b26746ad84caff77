"""An environment for `lerobot-eval` whose simulator runs in another interpreter; it knows the simulator by lines of JSON only.

    lerobot-eval --env.discover_packages_path=gym_other_process --env.type=other_process \
        --env.command='["/path/to/flow2one/python", "benchmarks/lerobot/world.py", "detour"]'

with benchmarks/lerobot on PYTHONPATH. Nothing of flow2one is imported here.
"""

from __future__ import annotations

import json
import subprocess
from dataclasses import dataclass, field
from typing import Any

import gymnasium
import numpy as np
from lerobot.configs.types import FeatureType, PolicyFeature
from lerobot.envs.configs import EnvConfig


@EnvConfig.register_subclass("other_process")
@dataclass
class OtherProcessConfig(EnvConfig):
    """command: the program that simulates; state_size, action_size, max_steps: of what it simulates."""

    task: str = "simulated-v0"
    fps: int = 20
    command: list[str] = field(default_factory=list)
    state_size: int = 7
    action_size: int = 4
    max_steps: int = 200
    features: dict[str, PolicyFeature] = field(default_factory=dict)
    features_map: dict[str, str] = field(default_factory=lambda: {"action": "action", "agent_pos": "observation.state"})

    def __post_init__(self) -> None:
        self.features = {
            "action": PolicyFeature(FeatureType.ACTION, (self.action_size,)),
            "agent_pos": PolicyFeature(FeatureType.STATE, (self.state_size,)),
        }

    @property
    def gym_kwargs(self) -> dict[str, Any]:
        sizes = {"state_size": self.state_size, "action_size": self.action_size}
        return {"command": self.command, **sizes, "max_episode_steps": self.max_steps}


class OtherProcess(gymnasium.Env[dict[str, np.ndarray], np.ndarray]):
    """The seed of an episode is the number of its stored test start."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 20}

    def __init__(self, command: list[str], state_size: int, action_size: int) -> None:
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.task = self.task_description = self._told()["task"]
        box = gymnasium.spaces.Box(-np.inf, np.inf, (state_size,), np.float32)
        self.observation_space = gymnasium.spaces.Dict({"agent_pos": box})
        self.action_space = gymnasium.spaces.Box(-np.inf, np.inf, (action_size,), np.float32)

    def _told(self, message: dict[str, Any] | None = None) -> dict[str, Any]:
        assert self._process.stdin is not None and self._process.stdout is not None
        if message is not None:
            self._process.stdin.write(json.dumps(message) + "\n")
            self._process.stdin.flush()
        return dict(json.loads(self._process.stdout.readline()))

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        super().reset(seed=seed)
        told = self._told({"start": seed or 0})
        return {"agent_pos": np.array(told["state"], np.float32)}, {"is_success": False}

    def step(self, action: np.ndarray) -> tuple[dict[str, np.ndarray], float, bool, bool, dict[str, Any]]:
        told = self._told({"action": [float(each) for each in action]})
        state, success = np.array(told["state"], np.float32), bool(told["success"])
        return {"agent_pos": state}, float(success), told["terminated"], told["truncated"], {"is_success": success}

    def render(self) -> np.ndarray:  # type: ignore[override]
        return np.zeros((32, 32, 3), np.uint8)

    def close(self) -> None:
        self._process.kill()
        self._process.wait()


gymnasium.register("gym_other_process/simulated-v0", OtherProcess)
