"""No world: recordings of a task that cannot be simulated here. Sets are compared, success is not measured."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Self

import numpy as np

from distill.config import Config
from distill.worlds.contract import World
from envs.specs import ActionSpec, TaskSpec
from teachers.networks.shapes import PolicyShape


class RecordedWorld(World):
    """What is known of the task of recorded observations."""

    rolls_out: ClassVar[bool] = False

    def __init__(self, shape: PolicyShape, where: Path) -> None:
        """shape: of the policies on these recordings. where: path of the recordings."""
        everything = (-np.inf,) * shape.action_size, (np.inf,) * shape.action_size
        self.cameras = None
        self.spec = TaskSpec(
            name=shape.task, summary=f"Observations recorded in {where}.", state_names=shape.state_names,
            action=ActionSpec(shape.action_names, *everything, shape.action_weights), modes=(), start_names=(),
            dt_s=shape.dt_s, max_steps=0,
        )  # fmt: skip

    @classmethod
    def open(cls, config: Config) -> Self:
        raise ValueError(f"task {config.task!r} has no recordings of its own")
