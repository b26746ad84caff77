"""The contract of a world: demonstrations, starts, rollouts, real-time rollouts, clips. A new world is one file here.

A world that does not support something keeps the default method, which says so. Measuring code never asks which world it is.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np

from distill.config import Config
from distill.evaluation.policies import Policy
from distill.evaluation.real_time import Clock, RealTimeEpisode
from distill.evaluation.rollouts import Episode, Monitor
from distill.runtime.context import Context
from envs.cameras.specs import CameraSettings
from envs.specs import TaskSpec
from students.selection import SINGLE_SAMPLE, Selection


@dataclass(frozen=True)
class RolloutJob:
    """How a policy is rolled out from starts.

    split: of the starts. name: of the candidate or the evaluation. folder: the stage's, where a world may store each episode
    as it ends, to resume. seed: of all randomness. keep_actions: episodes with a lower index keep their actions.
    """

    split: str
    name: str
    folder: Path
    execution_horizon: int
    seed: int
    selection: Selection = SINGLE_SAMPLE
    monitor: Monitor | None = None
    keep_actions: int = 0


@dataclass(frozen=True)
class Clip:
    """A policy whose first test episodes are shown. result: its ``result.json``. folder: of its evaluation.

    call_ms: median latency of a policy call, which a clip in real time shows.
    """

    name: str
    policy: Policy | None
    result: Mapping[str, Any]
    folder: Path
    call_ms: float = 0.0


class World(ABC):
    """One task of one simulator, as a config runs it. Cheap to create: simulators start when they are needed.

    spec: the task. cameras: what demonstrations are recorded with and policies use; None when no camera is needed.
    """

    rolls_out: ClassVar[bool] = True
    """Whether policies can be rolled out; if not, success is not measured."""
    has_oracle: ClassVar[bool] = False
    """Whether the test starts' own demonstrations are replayed as an oracle."""
    real_time: ClassVar[bool] = False
    """Whether it supports real-time rollouts."""
    repeats_demonstrations: ClassVar[bool] = True
    """Whether a start can be demonstrated several times, and in every mode."""
    named_by_preset: ClassVar[bool] = True
    """Whether runs with cameras are named by their preset; the task's name is that of state-only runs."""

    spec: TaskSpec
    cameras: CameraSettings | None

    @property
    def shows_robot(self) -> bool:
        """Whether point clouds hold the robot's own points."""
        return True

    # -- before anything runs ---------------------------------------------------------------------------------------

    @classmethod
    def supports(cls, task: str) -> bool:
        """Whether this world has a task of this name; False for one that is chosen otherwise."""
        return False

    @classmethod
    def task_names(cls) -> Sequence[str]:
        """Task names to suggest for an unknown one."""
        return []

    @classmethod
    @abstractmethod
    def open(cls, config: Config) -> Self:
        """The world of a config's task. Raises ValueError for a task that it does not have."""

    def check(self, config: Config) -> None:
        """Raise ValueError for settings that this world does not support."""
        if config.real_time.is_on and not self.real_time:
            raise ValueError(f"real_time: {config.task} does not support real-time evaluation; leave out all "
                             "--real-time flags")  # fmt: skip
        if config.demos.per_mode != 1 and not self.repeats_demonstrations:
            raise ValueError(f"demos.per_mode: got {config.demos.per_mode}, expected 1: {config.task} demonstrates each start "
                             "once")  # fmt: skip

    @property
    def state_shows_scene(self) -> bool:
        """Whether the observed state shows all of the scene that matters, so that random motions of scenes need no cloud."""
        return False

    @property
    def origin(self) -> Mapping[str, Any]:
        """What demonstrations, starts and rollouts depend on, apart from the cameras: part of the stages' keys."""
        return {}

    @property
    def rollout_settings(self) -> Mapping[str, Any]:
        """What only rollouts depend on, besides `origin`: part of the keys of evaluations."""
        return {}

    @property
    def camera_key(self) -> Mapping[str, Any]:
        """The cameras, as part of the stages' keys; empty when no camera is opened."""
        return {} if self.cameras is None else {"cameras": asdict(self.cameras)}

    # -- demonstrations and starts ----------------------------------------------------------------------------------

    def record_demonstrations(self, context: Context, folder: Path) -> None:
        """Write the training demonstrations into `folder` (envs.demonstrations)."""
        raise ValueError(f"{self.spec.name} has no expert: use recorded observations")

    def record_starts(self, context: Context, folder: Path) -> None:
        """Write ``starts.safetensors`` (distill.worlds.starts) and the held-out demonstrations into `folder`."""
        raise ValueError(f"{self.spec.name} has no starts: use recorded observations")

    def drawn_starts(self, seed: int, split: str, count: int) -> np.ndarray:
        """`[count, D]` float64 starts of a split, where none are stored. Raises ValueError for a world that draws none."""
        raise ValueError(f"{self.spec.name} draws no starts; success cannot be measured without a run")

    # -- rollouts ---------------------------------------------------------------------------------------------------

    def roll_out(self, context: Context, policy: Policy, starts: np.ndarray, job: RolloutJob) -> list[Episode]:
        """Roll out every start `[E, D]` once, over all processes; the same list on each, in the order of the starts."""
        raise ValueError(f"{self.spec.name} cannot be simulated here, so success is not measured")

    def write_evaluation(self, folder: Path, episodes: Sequence[Episode]) -> None:  # noqa: B027  (most write nothing)
        """On the first process: write more files of a policy's evaluation, besides ``result.json``."""

    def replay_demonstrations(self, context: Context, starts: Path, folder: Path) -> None:
        """The oracle: replay the test starts' demonstrations, into ``result.json``. starts: the stage's folder."""
        raise ValueError(f"{self.spec.name} replays no demonstrations")

    # -- real time --------------------------------------------------------------------------------------------------

    @property
    def disturbance(self) -> Any:
        """The disturbance of real-time rollouts (envs.panda.disturbances). Raises ValueError for a task without one."""
        raise ValueError(f"{self.spec.name} has no disturbance")

    def roll_out_in_real_time(
        self, context: Context, policy: Policy, starts: np.ndarray, clock: Clock, seed: int, disturbed: bool,
        selection: Selection, title: str,
    ) -> list[RealTimeEpisode]:  # fmt: skip
        """Every start once, with the simulation going on while the policy computes."""
        raise ValueError(f"{self.spec.name} does not support real-time evaluation")

    # -- latency and report -----------------------------------------------------------------------------------------

    def camera_ms(self, calls: int, warmup: int) -> float | None:
        """Median time [ms] to render one observation; None when unknown."""
        return None

    def scene(self) -> list[dict[str, Any]]:
        """The scene from above, as dictionaries of `envs.specs.Shape`; [] when unknown."""
        return []

    def clips(self, starts: np.ndarray, shown: Sequence[Clip], job: RolloutJob, folder: Path) -> dict[str, str]:
        """Write ``clips/<name>.webp`` into `folder`; the paths by the policies' names."""
        return {}

    def report_facts(self, demonstrations: Path, evaluated: Mapping[str, Path]) -> dict[str, Any]:
        """Further entries of the report's results. evaluated: the evaluations' folders by the policies' labels."""
        return {}

    def close(self) -> None:  # noqa: B027  (most hold nothing)
        """Stop running simulators."""
