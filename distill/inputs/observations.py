"""Observations that stages read: those to draw hypotheses for, and held-out ones to compare sets at."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from distill.evaluation.policies import RawObservation
from distill.observation import observation_of
from distill.runtime.context import Context
from distill.runtime.stage import Input, Stage
from distill.training.data import windows_for
from envs.demonstrations import Demonstrations
from teachers.networks.shapes import PolicyShape

Observe = Callable[[np.ndarray], RawObservation]
"""Frame numbers `[n]` to raw observations, `[n, O, ..]`, always with the state."""


class ObservationSource(Input, Protocol):
    """Training observations, numbered 0 .. num_frames - 1."""

    def training_frames(self, context: Context) -> np.ndarray:
        """The numbers `[F]` of the frames at which a teacher may be queried, increasing."""
        ...

    def episode_index(self, context: Context) -> np.ndarray:
        """The episode `[F]` of each of them."""
        ...

    def num_frames(self, context: Context) -> int: ...

    def observe(self, context: Context, shape: PolicyShape) -> Observe:
        """A reader of what a policy of this shape observes."""
        ...


class HeldOut(Input, Protocol):
    """Observations not used in training, at which sets are compared and calls are timed."""

    def held_out(self, context: Context) -> RawObservation:
        """`[F, O, ..]` each."""
        ...


@dataclass(frozen=True)
class DemonstratedObservations:
    """The frames of the training demonstrations."""

    demonstrations: Stage[Demonstrations]

    @property
    def key(self) -> str:
        return self.demonstrations.key

    @property
    def needs(self) -> tuple[Stage[Any], ...]:
        return self.demonstrations.needs

    def training_frames(self, context: Context) -> np.ndarray:
        return np.arange(self.num_frames(context))

    def episode_index(self, context: Context) -> np.ndarray:
        return self.demonstrations.cached_result(context).episode_index

    def num_frames(self, context: Context) -> int:
        return self.demonstrations.cached_result(context).num_frames

    def observe(self, context: Context, shape: PolicyShape) -> Observe:
        demonstrations = self.demonstrations.cached_result(context)
        dataset = windows_for(demonstrations, shape, shape.observation_steps, 1, context.share.world)

        def at(frames: np.ndarray) -> RawObservation:
            return {name: value.numpy() for name, value in observation_of(dataset[frames]).items()}

        return at
