"""Perturbed observations: a teacher can be queried at any state, and few demonstrations cover little of the state space."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from envs.specs import STATE


def with_copies(frames_N: np.ndarray, num_frames: int, count: int, seed: int) -> np.ndarray:
    """`[count]` frame numbers: the frames, then perturbed copies of them, each frame equally often (up to one).

    Number v * num_frames + f, v >= 1, is the v-th copy of frame f. With `count` frames or more, the frames alone.
    """
    rng, numbers, round_ = np.random.default_rng([seed, 78]), [np.asarray(frames_N, dtype=np.int64)], 1
    while (missing := count - sum(map(len, numbers))) > 0:
        numbers.append(rng.permutation(numbers[0])[:missing] + round_ * num_frames)
        round_ += 1
    return np.concatenate(numbers)


def perturbed(state_NOS: np.ndarray, numbers_N: np.ndarray, num_frames: int, spread_S: np.ndarray, seed: int) -> np.ndarray:
    """The raw states, with normal noise of standard deviation `spread_S` added to copies.

    All O steps of an observation get the same noise, so that its velocities do not change. A copy's noise depends only on its
    number and the seed.
    """
    moved_NOS = state_NOS.copy()
    for row, number in enumerate(numbers_N.tolist()):
        if number >= num_frames:
            noise_S = np.random.default_rng([seed, 77, number]).normal(size=len(spread_S))
            moved_NOS[row] += (spread_S * noise_S).astype(state_NOS.dtype)
    return moved_NOS


def with_perturbed(
    observe: Callable[[np.ndarray], Mapping[str, np.ndarray]], num_frames: int, spread_S: np.ndarray, seed: int
) -> Callable[[np.ndarray], Mapping[str, np.ndarray]]:
    """`observe` (frames to raw observations), extended to the numbers of `with_copies`: copies have perturbed states."""

    def look(numbers_N: np.ndarray) -> Mapping[str, np.ndarray]:
        seen = observe(numbers_N % num_frames)
        return {**seen, STATE: perturbed(seen[STATE], numbers_N, num_frames, spread_S, seed)}

    return look
