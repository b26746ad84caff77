"""Where policies are demonstrated and rolled out: embedded tasks, RLBench, any gymnasium environment, or nowhere (recordings).

Needs: `contract.py`, the interface of a world; a new world is one file and one line in `WORLDS`. Not here: stages, keys.
"""

from __future__ import annotations

from distill.config import Config
from distill.worlds.contract import World
from distill.worlds.embedded import EmbeddedWorld
from distill.worlds.gym import GymWorld
from distill.worlds.rlbench import RLBenchWorld
from envs.specs import nearest_name

WORLDS: dict[str, type[World]] = {"embedded": EmbeddedWorld, "rlbench": RLBenchWorld, "gym": GymWorld}
"""Every world by name; a task belongs to the first one that supports it. A new world is one file and one line here."""


def open_world(config: Config) -> World:
    """The world of the config: its gymnasium environment, else that of its task.

    Raises ValueError, with the nearest name, for an unknown task.
    """
    config.world.check()
    if config.world.gym:
        return WORLDS["gym"].open(config)
    for world in WORLDS.values():
        if world.supports(config.task):
            return world.open(config)
    names = [name for world in WORLDS.values() for name in world.task_names()]
    raise ValueError(f"unknown task {config.task!r}, the tasks are {sorted(names)}"
                     f"{nearest_name(config.task, names, '; did you mean', cutoff=0.4)}")  # fmt: skip
