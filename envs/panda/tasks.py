"""The embedded tasks by name. A new task is one file in this room and one line in `TASKS`."""

from __future__ import annotations

from envs.cameras.specs import CameraSettings
from envs.panda.avoid import AvoidEnv
from envs.panda.base import PandaEnv
from envs.panda.detour import DetourEnv
from envs.panda.disturbances import Disturbance
from envs.panda.handles import HandlesEnv
from envs.specs import nearest_name

TASKS: dict[str, type[PandaEnv]] = {env.spec_task.name: env for env in (AvoidEnv, DetourEnv, HandlesEnv)}
"""Every embedded task by name."""


def make(name: str, cameras: CameraSettings | None = None) -> PandaEnv:
    """A new environment of the task. Raises ValueError with the nearest name for an unknown one.

    cameras: camera features to add, `CameraSettings()` for all; None: observations hold the state only.
    Raises ValueError for an unknown camera, RuntimeError for a renderer that does not work here.
    """
    env = task_class(name)()
    if cameras is not None:
        env.open_cameras(cameras)
    return env


def disturbance(name: str) -> Disturbance:
    """The task's disturbance. Raises ValueError for an unknown task, or one without."""
    found = task_class(name).disturbance
    if found is None:
        known = sorted(task for task, env in TASKS.items() if env.disturbance is not None)
        raise ValueError(f"task {name!r} has no disturbance; the tasks that have one are {known}")
    return found


def task_class(name: str) -> type[PandaEnv]:
    """The class of an embedded task. Raises ValueError with the nearest name for an unknown one."""
    if name not in TASKS:
        hint = nearest_name(name, TASKS, "; did you mean", cutoff=0.4)
        raise ValueError(f"unknown task {name!r}, the tasks are {sorted(TASKS)}{hint}")
    return TASKS[name]
