"""The stage `starts`: validation and test starts, and held-out observations from demonstrations of validation starts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from distill.config import EvaluateConfig
from distill.evaluation.policies import RawObservation
from distill.observation import observation_of
from distill.runtime.context import Context
from distill.runtime.stage import Input, Stage
from distill.store.manifest import make_key
from distill.training.data import windows_for
from distill.worlds.contract import World
from distill.worlds.starts import HELD_OUT_FOLDER, read_starts
from envs.demonstrations import Demonstrations
from envs.specs import STATE
from teachers.networks.shapes import PolicyShape


@dataclass(frozen=True)
class RecordStarts(Stage[dict[str, Tensor]]):
    """shape: of the policies, for their held-out observations."""

    world: World
    config: EvaluateConfig
    shape: PolicyShape
    name = "starts"

    @property
    def inputs(self) -> Mapping[str, Input | tuple[Input, ...]]:
        return {}

    @property
    def settings(self) -> Mapping[str, Any]:
        return {
            **self.world.origin, **self.world.camera_key, "validation": self.config.validation_starts,
            "test": self.config.test_starts, "observations": self.config.fidelity_observations,
            "observation_steps": self.shape.observation_steps,
        }  # fmt: skip

    def run(self, context: Context, folder: Path) -> None:
        self.world.record_starts(context, folder)

    def load(self, folder: Path) -> dict[str, Tensor]:
        return read_starts(folder)

    def held_out(self, context: Context) -> RawObservation:
        """The held-out raw observations, `[F, O, ..]` each."""
        place = ("held_out", self.key)
        if place not in context.memory:
            stored = self.cached_result(context)
            seen = {STATE: stored["observations"].numpy()}
            if self.world.cameras is not None:
                demonstrations = Demonstrations.load(self.folder(context) / HELD_OUT_FOLDER, self.world.spec)
                windows = windows_for(demonstrations, self.shape, self.shape.observation_steps, 1, context.share.world)
                batch = windows[stored["frames"].numpy()]
                seen |= {name: value.numpy() for name, value in observation_of(batch).items()}
            context.memory[place] = seen
        found: RawObservation = context.memory[place]
        return found


@dataclass(frozen=True)
class StartsOf:
    """The starts of one split. Its key changes with that split only, so that other test starts need no new training."""

    stage: RecordStarts
    split: str

    @property
    def key(self) -> str:
        world = self.stage.world
        return make_key({"split": self.split, **world.origin, **world.camera_key, "count": self.stage.settings[self.split]})

    @property
    def needs(self) -> tuple[Stage[Any], ...]:
        return self.stage.needs

    def starts(self, context: Context) -> np.ndarray:
        """`[E, D]` float64."""
        found: np.ndarray = self.stage.cached_result(context)[self.split].numpy()
        return found


@dataclass(frozen=True)
class DrawnStarts:
    """Starts of a split, drawn by the world instead of read from a stage: for policies on recordings of an embedded task."""

    world: World
    seed: int
    split: str
    count: int

    @property
    def key(self) -> str:
        return make_key({"split": self.split, **self.world.origin, "count": self.count})

    @property
    def needs(self) -> tuple[Stage[Any], ...]:
        return ()

    def starts(self, context: Context) -> np.ndarray:
        return self.world.drawn_starts(self.seed, self.split, self.count)


Starts = StartsOf | DrawnStarts
