"""LeRobot's configs of the embedded tasks: one type ``flow2one_<task>`` for each."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import gymnasium
from lerobot.configs.types import FeatureType, PolicyFeature
from lerobot.envs.configs import EnvConfig

import envs
from envs.specs import IMAGES, STATE

PREFIX = "flow2one_"


@dataclass
class Flow2OneEnvConfig(EnvConfig):
    """An embedded task. ``observation.state`` is its whole state, and so is ``observation.environment_state``.

    The latter is for LeRobot policies that need more than a state. task, fps: set by the type. cameras: what is observed as
    ``observation.images.<camera>``; image_size: their height and width [px]; seed: of the stored test starts. Episode i of
    ``lerobot-eval`` begins at the test start i of a flow2one run with this seed.
    """

    task: str | None = None
    fps: int = 0
    cameras: list[str] = field(default_factory=list)
    image_size: list[int] = field(default_factory=lambda: [64, 64])
    seed: int = 0
    features: dict[str, PolicyFeature] = field(default_factory=dict)
    features_map: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        name = self.type.removeprefix(PREFIX)
        spec = envs.task_spec(name)
        self.task, self.fps, size = f"{name}-v0", round(1 / spec.dt_s), (len(spec.state_names),)
        self.features = {
            "action": PolicyFeature(FeatureType.ACTION, (spec.action.size,)),
            "agent_pos": PolicyFeature(FeatureType.STATE, size),
            "environment_state": PolicyFeature(FeatureType.ENV, size),
            **{f"pixels/{camera}": PolicyFeature(FeatureType.VISUAL, (*self.image_size, 3)) for camera in self.cameras},
        }  # fmt: skip
        self.features_map = {
            "action": "action", "agent_pos": STATE, "environment_state": "observation.environment_state",
            **{f"pixels/{camera}": f"{IMAGES}.{camera}" for camera in self.cameras},
        }  # fmt: skip

    @property
    def package_name(self) -> str:
        return __package__ or "lerobot_env_flow2one"

    @property
    def gym_kwargs(self) -> dict[str, Any]:
        limit = envs.task_spec(self.type.removeprefix(PREFIX)).max_steps
        return {"cameras": self.cameras, "image_size": self.image_size, "starts_seed": self.seed, "max_episode_steps": limit}


for _name in envs.TASKS:
    _shown = {"__module__": __name__, "__doc__": f"The task {_name}."}
    _class = type(f"{_name.capitalize()}Config", (Flow2OneEnvConfig,), _shown)
    globals()[_class.__name__] = EnvConfig.register_subclass(PREFIX + _name)(dataclass(_class))
    gymnasium.register(
        f"{__package__}/{_name}-v0", "lerobot_env_flow2one.environment:Flow2OneTask", kwargs={"name": _name}
    )
