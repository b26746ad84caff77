"""Recorded observations as stages read them: split into training, validation and test frames, and opened policies on them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch

from distill.evaluation.external import AdapterPolicy, Statistics
from distill.evaluation.policies import Policy, RawObservation, StudentPolicy, TeacherPolicy
from distill.inputs.observations import Observe
from distill.inputs.policies import Kind, steps_in_words
from distill.inputs.teachers import TeacherSource
from distill.runtime.context import Context
from distill.runtime.stage import Input, Stage
from distill.store.manifest import make_key
from envs.recorded.observations import RecordedObservations
from envs.specs import STATE, nearest_name
from students import Student
from teachers.adapters.teacher import AdapterTeacher
from teachers.contract import Teacher
from teachers.networks.normalisation import Normaliser
from teachers.networks.observations import sources_of
from teachers.networks.shapes import PolicyShape
from teachers.trained import TrainedTeacher

LEAST_FRAMES = 20


def split(episodes: Sequence[int]) -> dict[str, np.ndarray]:
    """Which frames are for what: the last tenth is for measuring, the tenth before it for choosing checkpoints.

    Whole episodes where there are ten or more, as frames that follow each other are nearly the same; else stretches of
    them. Raises ValueError for too few frames.
    """
    ends = np.cumsum(episodes)
    count = int(ends[-1])
    if count < LEAST_FRAMES:
        raise ValueError(f"observations: got {count} frames, expected at least {LEAST_FRAMES}: some are kept for measuring")
    first, second = int(0.8 * count), int(0.9 * count)
    if len(episodes) >= 10:
        first, second = (int(ends[int(share * len(episodes)) - 1]) for share in (0.8, 0.9))
    frames = np.arange(count)
    return {"train": frames[:first], "validation": frames[first:second], "test": frames[second:]}


def spread(frames: np.ndarray, most: int) -> np.ndarray:
    """At most so many of the frames, evenly."""
    chosen: np.ndarray = frames[np.unique(np.linspace(0, len(frames) - 1, min(most, len(frames))).round().astype(int))]
    return chosen


def read_features(
    recorded: RecordedObservations, rows: np.ndarray, steps: int, features: Sequence[str], whose: str = "looked at"
) -> dict[str, np.ndarray]:
    """These features of the recorded observations, `[n, O, ..]`. Raises ValueError for one that was not recorded."""
    for name in features:
        if name not in recorded.features:
            raise ValueError(f"features: {name!r} is {whose}, but was not recorded; there are {list(recorded.features)}"
                             f"{nearest_name(name, recorded.features)}")  # fmt: skip
    seen = recorded.read(rows, steps)
    return {name: np.ascontiguousarray(seen[name], dtype=np.float32) for name in features}


@dataclass(frozen=True)
class Recording:
    """Recorded observations, O frames each, as an observation source: the training frames come first.

    features: everything that any of the policies sees, the state always among it.
    """

    recorded: RecordedObservations
    observation_steps: int
    features: tuple[str, ...]

    @cached_property
    def key(self) -> str:
        return make_key({"recorded": self.recorded.fingerprint(), "observation_steps": self.observation_steps})

    @property
    def needs(self) -> tuple[Stage[Any], ...]:
        return ()

    @cached_property
    def frames(self) -> dict[str, np.ndarray]:
        return split(self.recorded.episodes)

    def at(self, frames: np.ndarray, features: tuple[str, ...] = ()) -> RawObservation:
        """What was observed at these frames, raw, `[n, O, ..]`."""
        return read_features(self.recorded, frames, self.observation_steps, features or self.features)

    # -- an observation source (distill.inputs.observations) --------------------------------------------------------

    def episode_index(self, context: Context) -> np.ndarray:
        return self.recorded.episode_index(self.frames["train"])

    def num_frames(self, context: Context) -> int:
        return len(self.recorded)

    def observe(self, context: Context, shape: PolicyShape) -> Observe:
        features = tuple(dict.fromkeys((STATE, *sources_of(shape))))
        return lambda frames: self.at(frames, features)


@dataclass(frozen=True)
class HeldOutRecording:
    """So many frames of one split, evenly."""

    recording: Recording
    split: str
    count: int

    @property
    def key(self) -> str:
        return make_key({"recording": self.recording.key, "split": self.split, "count": self.count})

    @property
    def needs(self) -> tuple[Stage[Any], ...]:
        return ()

    def held_out(self, context: Context) -> RawObservation:
        place = ("held_out", self.key)
        if place not in context.memory:
            context.memory[place] = self.recording.at(spread(self.recording.frames[self.split], self.count))
        found: RawObservation = context.memory[place]
        return found


# -- opened policies ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class NamedTeacher(TeacherPolicy):
    """A teacher of ours under the name of its results, as several may be compared at the same number of steps."""

    called: str

    @property
    def name(self) -> str:
        return self.called


@dataclass(frozen=True)
class Opened:
    """A policy that the command line names, opened and checked (distill.cli.opening).

    label: as it was named; key: of its files, and of what it makes; shape: what it sees and makes; num_steps: solver steps
    it is used with, 1 for a student. policy: one of ours, or an adapter.
    """

    label: str
    key: str
    policy: TrainedTeacher | Student | AdapterTeacher
    shape: PolicyShape
    num_steps: int

    @property
    def needs(self) -> tuple[Stage[Any], ...]:
        return ()

    @property
    def kind(self) -> Kind:
        if isinstance(self.policy, AdapterTeacher):
            return "student" if self.policy.is_student else "teacher"
        return "teacher" if isinstance(self.policy, TrainedTeacher) else "student"

    @property
    def external(self) -> bool:
        """Whether it runs in a process of its own, and brings no statistics."""
        return isinstance(self.policy, AdapterTeacher)

    def close(self) -> None:
        if isinstance(self.policy, AdapterTeacher):
            self.policy.close()


@dataclass(frozen=True)
class OpenedTeacher:
    """An opened policy as a teacher source. ranges: the stage that measured statistics, where it brings none of its own."""

    opened: Opened
    ranges: Stage[Normaliser] | None

    @property
    def key(self) -> str:
        return self.opened.key

    @property
    def needs(self) -> tuple[Stage[Any], ...]:
        return () if self.ranges is None else self.ranges.needs

    def teacher(self, context: Context) -> Teacher:
        policy = self.opened.policy
        if isinstance(policy, TrainedTeacher):
            return policy.to(context.device)
        assert isinstance(policy, Teacher)
        return policy

    def normaliser(self, context: Context) -> Normaliser:
        if self.ranges is not None:
            return self.ranges.remembered(context).to(context.device)
        assert isinstance(self.opened.policy, torch.nn.Module)
        own: Normaliser = self.opened.policy.to(context.device).normaliser
        return own


@dataclass(frozen=True)
class OpenedAt:
    """An opened policy at a number of solver steps, under the name of its results. by_steps: labelled so."""

    opened: Opened
    steps: int
    name: str
    statistics: TeacherSource
    by_steps: bool = False

    @property
    def label(self) -> str:
        return steps_in_words(self.steps) if self.by_steps else self.opened.label

    @property
    def kind(self) -> Kind:
        return self.opened.kind

    @property
    def num_steps(self) -> int | None:
        return self.steps

    @property
    def inputs(self) -> Mapping[str, Input]:
        return {"policy": self.opened}

    @property
    def settings(self) -> Mapping[str, Any]:
        return {"num_steps": self.steps, "called": self.name}

    def policy(self, context: Context) -> Policy:
        policy = self.opened.policy
        if isinstance(policy, AdapterTeacher):
            statistics = Statistics(self.statistics.normaliser(context)).to(context.device)
            return AdapterPolicy(policy, statistics, self.opened.shape, self.steps, self.name)
        if isinstance(policy, TrainedTeacher):
            return NamedTeacher(policy.to(context.device), self.steps, self.name)
        return StudentPolicy(policy.to(context.device), self.name)
