"""Recorded observations as stages read them, split into training, validation and test frames, and the opened policies."""

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
from distill.inputs.policies import Kind, teacher_label
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


def evenly_spaced(frames: np.ndarray, most: int) -> np.ndarray:
    """At most `most` of the frames, evenly spaced."""
    chosen: np.ndarray = frames[np.unique(np.linspace(0, len(frames) - 1, min(most, len(frames))).round().astype(int))]
    return chosen


def read_features(
    recorded: RecordedObservations, rows: np.ndarray, steps: int, features: Sequence[str], whose: str = "needed"
) -> dict[str, np.ndarray]:
    """These features of the recorded observations, `[n, O, ..]`. Raises ValueError for one that was not recorded.

    whose: completes the error "<feature> is ..., but was not recorded".
    """
    for name in features:
        if name not in recorded.features:
            raise ValueError(f"features: {name!r} is {whose}, but was not recorded; there are {list(recorded.features)}"
                             f"{nearest_name(name, recorded.features)}")  # fmt: skip
    seen = recorded.read(rows, steps)
    return {name: np.ascontiguousarray(seen[name], dtype=np.float32) for name in features}


@dataclass(frozen=True)
class Recording:
    """Recorded observations, O frames each, as an observation source. frames: those of each split.

    features: everything that any of the policies observes, always with the state.
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
        return self.recorded.split(self.observation_steps)

    def at(self, frames: np.ndarray, features: tuple[str, ...] = ()) -> RawObservation:
        """The raw observations at these frames, `[n, O, ..]`."""
        return read_features(self.recorded, frames, self.observation_steps, features or self.features)

    # -- an observation source (distill.inputs.observations) --------------------------------------------------------

    @property
    def moves(self) -> bool:
        return False

    def training_frames(self, context: Context) -> np.ndarray:
        return self.frames["train"]

    def episode_index(self, context: Context) -> np.ndarray:
        return self.recorded.episode_index(self.frames["train"])

    def num_frames(self, context: Context) -> int:
        return len(self.recorded)

    def observe(self, context: Context, shape: PolicyShape) -> Observe:
        features = tuple(dict.fromkeys((STATE, *sources_of(shape))))
        return lambda frames: self.at(frames, features)


@dataclass(frozen=True)
class HeldOutRecording:
    """`count` frames of one split, evenly spaced."""

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
            context.memory[place] = self.recording.at(evenly_spaced(self.recording.frames[self.split], self.count))
        found: RawObservation = context.memory[place]
        return found


# -- opened policies ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class NamedTeacher(TeacherPolicy):
    """One of our teachers under the name of its results; several may be compared at the same number of steps."""

    called: str

    @property
    def name(self) -> str:
        return self.called


@dataclass(frozen=True)
class Opened:
    """A policy named on the command line, opened and checked (distill.cli.opening).

    label: as the user named it. key: of its files, and of its output. shape: its features and chunk size. num_steps: solver
    steps it is used with, 1 for a student. policy: one of ours, or an adapter.
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
        """Whether it runs in its own process and has no normaliser."""
        return isinstance(self.policy, AdapterTeacher)

    def close(self) -> None:
        if isinstance(self.policy, AdapterTeacher):
            self.policy.close()


@dataclass(frozen=True)
class OpenedTeacher:
    """An opened policy as a teacher source. ranges: the stage that measures its normaliser, if it has none."""

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
            return self.ranges.cached_result(context).to(context.device)
        assert isinstance(self.opened.policy, torch.nn.Module)
        own: Normaliser = self.opened.policy.to(context.device).normaliser
        return own


@dataclass(frozen=True)
class _WithRanges:
    """An adapter's policy as an input: it is read with the ranges that were measured for it."""

    key: str
    needs: tuple[Stage[Any], ...]


@dataclass(frozen=True)
class OpenedAt:
    """An opened policy at a number of solver steps, under the name of its results. by_steps: label it by its steps."""

    opened: Opened
    steps: int
    name: str
    statistics: TeacherSource
    by_steps: bool = False

    @property
    def label(self) -> str:
        return teacher_label(self.steps) if self.by_steps else self.opened.label

    @property
    def kind(self) -> Kind:
        return self.opened.kind

    @property
    def num_steps(self) -> int | None:
        return self.steps

    @property
    def inputs(self) -> Mapping[str, Input]:
        return {"policy": _WithRanges(self.opened.key, self.statistics.needs if self.opened.external else ())}

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
