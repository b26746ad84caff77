"""What the robot sees and does: tasks by name, here and in RLBench, and what is known of each before it runs.

Rooms: panda (the embedded simulator), cameras, rlbench, recorded (other people's data), process (another interpreter).
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
    """A task of RLBench, ``rlbench/<name>``; its simulator is started by the first reset. ValueError as `make`."""
    env = RLBenchEnv(name, settings)
    if cameras is not None:
        env.open_cameras(cameras)
    return env


def task_spec(name: str, rlbench: RLBenchSettings | None = None) -> TaskSpec:
    """What is known of the task before it runs; ValueError with the nearest name for an unknown one.

    rlbench: how a task of RLBench is run, which decides what an action is; without, as it is by default.
    """
    return rlbench_spec(name, rlbench or RLBenchSettings()) if names_rlbench_task(name) else task_class(name).spec_task
