"""How policies are rolled out, and what a stage's key takes of it; the source of the out-of-distribution monitor."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from distill.evaluation.external import AdapterPolicy
from distill.evaluation.monitor import SupportMonitor
from distill.evaluation.policies import Policy, StudentPolicy
from distill.evaluation.rollouts import Episode
from distill.evaluation.run_modes import PolicyInMode
from distill.hypotheses.cache import episode_seed
from distill.runtime.context import Context
from distill.runtime.stage import Input, Stage
from distill.training.data import normaliser_of
from distill.worlds.contract import RolloutJob, World
from envs.demonstrations import Demonstrations, windows
from students.selection import MODE_DUPLICATES, OUTLIER_RATIO, SAME_PLAN, SINGLE_SAMPLE, Selection
from teachers.networks.shapes import PolicyShape


@dataclass(frozen=True)
class MonitorSource:
    """The out-of-distribution monitor of the training demonstrations, by the whole state, whatever policies observe."""

    demonstrations: Stage[Demonstrations]
    shape: PolicyShape

    @property
    def key(self) -> str:
        return self.demonstrations.key

    @property
    def needs(self) -> tuple[Stage[Any], ...]:
        return self.demonstrations.needs

    def monitor(self, context: Context) -> SupportMonitor | None:
        """None with demonstrations of one start only: the distance between starts is then unknown."""
        place = ("monitor", self.key)
        if place not in context.memory:
            context.memory[place] = monitor_of(self.demonstrations.cached_result(context), self.shape)
        found: SupportMonitor | None = context.memory[place]
        return found


def monitor_of(demonstrations: Demonstrations, shape: PolicyShape) -> SupportMonitor | None:
    """The monitor of demonstrations; None if they have one start only."""
    if len(np.unique(demonstrations.start_index)) < 2:
        return None
    states, _ = windows(demonstrations, np.arange(demonstrations.num_frames), shape.observation_steps, 1)
    starts = torch.from_numpy(demonstrations.start_index[demonstrations.episode_index])
    normaliser = normaliser_of(demonstrations, replace(shape, encoder=None, frame="base"))
    return SupportMonitor(torch.from_numpy(states), starts, normaliser)


@dataclass(frozen=True)
class Rollouts:
    """The settings shared by all policies of a run: world, execution horizon, and how a student selects its sample."""

    world: World
    seed: int
    execution_horizon: int
    selection: Selection
    monitor: MonitorSource | None = None

    @property
    def inputs(self) -> Mapping[str, Input]:
        """What must exist before a rollout."""
        return {} if self.monitor is None else {"monitored": self.monitor}

    def settings(self, student: bool) -> Mapping[str, Any]:
        """What a stage that rolls out a student, or another policy, depends on."""
        chosen = selection_settings(self.selection) if student else {}
        world = {**self.world.origin, **self.world.rollout_settings, **self.world.camera_key}
        return {**world, "execution_horizon": self.execution_horizon, **chosen}

    def run(
        self, context: Context, policy: Policy, starts: np.ndarray, split: str, folder: Path, name: str, keep_actions: int = 0
    ) -> list[Episode]:
        """Every start once, over all processes. folder, name: where a world may store each episode as it ends."""
        monitor = None if self.monitor is None else self.monitor.monitor(context)
        job = RolloutJob(
            split, name, folder, self.execution_horizon, episode_seed(self.seed, split, 0, 0),
            selection_for(policy, self.selection), monitor, keep_actions,
        )  # fmt: skip
        return self.world.roll_out(context, policy, starts, job)


def selection_for(policy: Policy, students: Selection) -> Selection:
    """The selection of a policy: students draw several candidates at little cost; a teacher would pay for each."""
    policy = policy.policy if isinstance(policy, PolicyInMode) else policy
    is_student = isinstance(policy, StudentPolicy) or (isinstance(policy, AdapterPolicy) and policy.is_student)
    return students if is_student else SINGLE_SAMPLE


def selection_settings(how: Selection) -> dict[str, object]:
    """The settings that matter for a kind of selection: a single sample needs neither candidates nor forget_every."""
    selection: dict[str, object] = {} if how.kind == "single" else {"selection": how.kind}
    if how.has_memory:
        selection |= {"forget_every": how.forget_every}
    if how.uses_candidates:
        selection |= {"candidates_of_selection": how.candidates}
    if how.kind == "outlier_rejection":
        selection |= {"outlier_ratio": OUTLIER_RATIO, "mode_duplicates": MODE_DUPLICATES, "same_plan_distance": SAME_PLAN}
    return selection
