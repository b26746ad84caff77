"""What stages ask of a world: demonstrations, starts, rollouts, real-time rollouts, clips. A new world is one file here.

A world that cannot do something keeps the default of that method, which says so. Nothing that measures asks which world it is.
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

    split: of the starts; name: of the candidate or the evaluation; folder: the stage's, where a world may write each episode
    down as it ends and go on from there; seed: of all randomness; keep_actions: episodes below it keep their actions.
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
    """A policy whose first test episodes are shown. result: its ``result.json``; folder: of its evaluation."""

    name: str
    policy: Policy | None
    result: Mapping[str, Any]
    folder: Path


class World(ABC):
    """One task of one simulator, as a config runs it. DerivedValue before anything runs: simulators start when they are needed.

    spec: the task; cameras: what demonstrations are recorded with and policies see with, None where no camera is needed.
    """

    rolls_out: ClassVar[bool] = True
    """Whether policies can be rolled out; without it success is not measured."""
    has_oracle: ClassVar[bool] = False
    """Whether the test starts' own demonstrations are replayed beside the policies."""
    real_time: ClassVar[bool] = False
    """Whether it can go on while a policy computes."""
    repeats_demonstrations: ClassVar[bool] = True
    """Whether a start can be demonstrated several times, and in every mode."""
    named_by_preset: ClassVar[bool] = True
    """Whether runs that see with cameras are named by their preset, as the task's name is that of the runs from the state."""

    spec: TaskSpec
    cameras: CameraSettings | None

    # -- before anything runs ---------------------------------------------------------------------------------------

    @classmethod
    @abstractmethod
    def takes(cls, task: str) -> bool:
        """Whether a task of this name is one of this world's."""

    @classmethod
    @abstractmethod
    def task_names(cls) -> Sequence[str]:
        """Names to suggest where an unknown one was given."""

    @classmethod
    @abstractmethod
    def open(cls, config: Config) -> Self:
        """The world of a config's task. Raises ValueError for a task that it does not have."""

    def check(self, config: Config) -> None:
        """Raise ValueError for settings that this world cannot take."""
        if config.real_time.is_on and not self.real_time:
            raise ValueError(f"real_time: the world of {config.task} waits for the policy; leave out all that starts with "
                             "--real-time")  # fmt: skip
        if config.demos.per_mode != 1 and not self.repeats_demonstrations:
            raise ValueError(f"demos.per_mode: got {config.demos.per_mode}, expected 1: {config.task} demonstrates each start "
                             "once")  # fmt: skip

    @property
    def origin(self) -> Mapping[str, Any]:
        """What demonstrations, starts and rollouts depend on, without the cameras: part of the stages' keys."""
        return {}

    @property
    def seen(self) -> Mapping[str, Any]:
        """The cameras, as part of the stages' keys; nothing where no camera is opened."""
        return {} if self.cameras is None else {"cameras": asdict(self.cameras)}

    # -- demonstrations and starts ----------------------------------------------------------------------------------

    def record_demonstrations(self, context: Context, folder: Path) -> None:
        """Write the training demonstrations into `folder` (envs.demonstrations)."""
        raise ValueError(f"{self.spec.name} has no expert: give observations that were recorded")

    def record_starts(self, context: Context, folder: Path) -> None:
        """Write ``starts.safetensors`` (distill.worlds.starts) and the held-out demonstrations into `folder`."""
        raise ValueError(f"{self.spec.name} has no starts: give observations that were recorded")

    def drawn_starts(self, seed: int, split: str, count: int) -> np.ndarray:
        """`[count, D]` float64 starts of a split, where none were stored. Raises ValueError where there are none."""
        raise ValueError(f"{self.spec.name} draws no starts; success cannot be measured there without a run")

    # -- rollouts ---------------------------------------------------------------------------------------------------

    def roll_out(self, context: Context, policy: Policy, starts: np.ndarray, job: RolloutJob) -> list[Episode]:
        """Every start `[E, D]` once, over all processes; the same list on each, in the starts' order."""
        raise ValueError(f"{self.spec.name} cannot be simulated here, so success is not measured")

    def write_evaluation(self, folder: Path, episodes: Sequence[Episode]) -> None:  # noqa: B027  (most write nothing)
        """On the first process, further files of a policy's evaluation beside ``result.json``."""

    def replay_demonstrations(self, context: Context, starts: Path, folder: Path) -> None:
        """The oracle: replay the test starts' demonstrations, into ``result.json``. starts: the stage's folder."""
        raise ValueError(f"{self.spec.name} replays no demonstrations")

    # -- real time --------------------------------------------------------------------------------------------------

    @property
    def disturbance(self) -> Any:
        """What moves while the policy is at work (envs.panda.disturbances). Raises ValueError where nothing does."""
        raise ValueError(f"{self.spec.name} has no disturbance")

    def roll_out_in_real_time(
        self, context: Context, policy: Policy, starts: np.ndarray, clock: Clock, seed: int, disturbed: bool,
        selection: Selection, title: str,
    ) -> list[RealTimeEpisode]:  # fmt: skip
        """Every start once, the world going on while the policy computes."""
        raise ValueError(f"the world of {self.spec.name} waits for the policy")

    # -- latency and report -----------------------------------------------------------------------------------------

    def camera_ms(self, calls: int, warmup: int) -> float | None:
        """Median time [ms] in which the cameras give one observation; None where it is not known."""
        return None

    def scene(self) -> list[dict[str, Any]]:
        """The scene from above, as dictionaries of `envs.specs.Shape`; [] where nothing is known of it."""
        return []

    def clips(self, starts: np.ndarray, shown: Sequence[Clip], job: RolloutJob, folder: Path) -> dict[str, str]:
        """Write ``clips/<name>.webp`` into `folder`; the paths by the policies' names."""
        return {}

    def report_facts(self, demonstrations: Path, evaluated: Mapping[str, Path]) -> dict[str, Any]:
        """Further parts of the report's results. evaluated: the folders of the evaluations by the policies' labels."""
        return {}

    def close(self) -> None:  # noqa: B027  (most hold nothing)
        """End the simulators, if any run."""
