"""Observations that stages read: those to draw hypotheses for, and held-out ones to compare sets at."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch

from distill.evaluation.policies import RawObservation
from distill.observation import observation_of
from distill.runtime.context import Context
from distill.runtime.stage import Input, Stage
from distill.store.manifest import make_key
from distill.training.data import windows_for
from envs.demonstrations import Demonstrations
from teachers.networks.scene_motions import NUMBERS, STILL, MotionRange, SceneMotions, draw_motions, move_batch
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

    @property
    def moves(self) -> bool:
        """Whether every observation, and every copy of one, is a scene moved at random."""
        ...

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
    """The frames of the training demonstrations. motions: each number's scene is moved by one of these, drawn by `seed`.

    Numbers beyond the frames are copies, which are moved differently: v * num_frames + f is the v-th copy of frame f.
    """

    demonstrations: Stage[Demonstrations]
    motions: MotionRange = STILL
    seed: int = 0

    @property
    def key(self) -> str:
        if not self.motions.any:
            return self.demonstrations.key
        return make_key({"demos": self.demonstrations.key, "seed": self.seed, **self.motions.key})

    @property
    def needs(self) -> tuple[Stage[Any], ...]:
        return self.demonstrations.needs

    @property
    def moves(self) -> bool:
        return self.motions.any

    def training_frames(self, context: Context) -> np.ndarray:
        return np.arange(self.num_frames(context))

    def episode_index(self, context: Context) -> np.ndarray:
        return self.demonstrations.cached_result(context).episode_index

    def num_frames(self, context: Context) -> int:
        return self.demonstrations.cached_result(context).num_frames

    def observe(self, context: Context, shape: PolicyShape) -> Observe:
        demonstrations = self.demonstrations.cached_result(context)
        dataset = windows_for(demonstrations, shape, shape.observation_steps, 1, context.share.world)

        def at(numbers: np.ndarray) -> RawObservation:
            seen = dict(observation_of(dataset[np.asarray(numbers) % len(dataset)]))
            if self.motions.any:
                seen = move_batch(seen, shape, numbered_motions(self.motions, self.seed, numbers))
            return {name: value.numpy() for name, value in seen.items()}

        return at


def numbered_motions(motions: MotionRange, seed: int, numbers_N: np.ndarray) -> SceneMotions:
    """The motion of each observation number: a function of the number and the seed alone."""
    uniform = [np.random.default_rng([seed, 79, int(number)]).random(NUMBERS) for number in numbers_N]
    return draw_motions(motions, torch.from_numpy(np.array(uniform, dtype=np.float32)))
