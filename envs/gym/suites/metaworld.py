"""Meta-World (metaworld 3.1) as a world: an environment whose goal is observed and whose reset uses its seed; its experts.

It runs in the interpreter that has Meta-World and imports nothing of ours. Meta-World's own `reset` ignores the seed.
"""

from __future__ import annotations

from typing import Any

import gymnasium


class Seeded(gymnasium.Wrapper[Any, Any, Any, Any]):
    """A task whose random vector, the places of objects and goal, is drawn by the seed of `reset`."""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """As gymnasium's."""
        if seed is not None:
            task: Any = self.unwrapped
            task.seed(seed)
        return self.env.reset(options=options)


def make(task: str, camera: str = "corner2", size: int = 240) -> gymnasium.Env[Any, Any]:
    """A task by its name without version, such as ``drawer-close``. Raises ValueError for an unknown one.

    camera, size: of `render` [px]; nothing is rendered before it is called.
    """
    from metaworld.env_dict import ALL_V3_ENVIRONMENTS_GOAL_OBSERVABLE as tasks

    name = f"{task}-v3-goal-observable"
    if name not in tasks:
        known = sorted(each.replace("-v3-goal-observable", "") for each in tasks)
        raise ValueError(f"Meta-World has no task {task!r}, its tasks are {known}")
    env = tasks[name](seed=0, render_mode="rgb_array")
    env.camera_name, env.width, env.height = camera, size, size
    env.mujoco_renderer.camera_id = env.model.camera(camera).id
    env.mujoco_renderer.width, env.mujoco_renderer.height = size, size
    env._freeze_rand_vec, env.seeded_rand_vec = False, True
    env.metaworld_task = f"{task}-v3"
    return Seeded(env)


def expert(env: Any) -> Any:
    """Meta-World's scripted policy of the task."""
    from metaworld.policies import ENV_POLICY_MAP

    return ENV_POLICY_MAP[env.unwrapped.metaworld_task]().get_action
