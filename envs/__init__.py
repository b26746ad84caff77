"""Environments, demonstrations and recorded data; here: tasks by name, embedded and of RLBench.

Rooms: panda (the embedded simulator), cameras, rlbench, recorded (other people's data), process (another interpreter).
Needs: numpy, gymnasium, mujoco. Not here: policies, and how they are trained and measured.
"""

from __future__ import annotations

import gymnasium

from envs.cameras.specs import CameraSettings
from envs.checks import check_env
from envs.panda.tasks import TASKS, disturbance, make, task_class
from envs.rlbench.env import RLBenchEnv
from envs.rlbench.spec import RLBenchSettings, names_rlbench_task
from envs.rlbench.spec import task_spec as rlbench_spec
from envs.specs import TaskSpec

__all__ = ["TASKS", "check_env", "disturbance", "make", "make_rlbench", "task_spec"]

for _name in TASKS:
    if f"flow2one/{_name.capitalize()}-v0" not in gymnasium.registry:
        gymnasium.register(f"flow2one/{_name.capitalize()}-v0", entry_point="envs:make", kwargs={"name": _name})


def make_rlbench(name: str, settings: RLBenchSettings, cameras: CameraSettings | None = None) -> RLBenchEnv:
    """An environment of the task ``rlbench/<name>``; the first reset starts its simulator. Raises ValueError as `make`."""
    env = RLBenchEnv(name, settings)
    if cameras is not None:
        env.open_cameras(cameras)
    return env


def task_spec(name: str, rlbench: RLBenchSettings | None = None) -> TaskSpec:
    """The spec of a task. Raises ValueError with the nearest name for an unknown one.

    rlbench: how a task of RLBench is run, which decides its actions; None: the default settings.
    """
    return rlbench_spec(name, rlbench or RLBenchSettings()) if names_rlbench_task(name) else task_class(name).spec_task
