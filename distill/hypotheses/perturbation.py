"""Perturbed observations: a teacher can be queried anywhere, and few demonstrations leave much of the state space out."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from envs.specs import STATE


def with_copies(frames_N: np.ndarray, num_frames: int, count: int, seed: int) -> np.ndarray:
    """`[count]` the frames, and numbers of copies of them, each frame as often as another (one more or less).

    Number v * num_frames + f, v >= 1, is the v-th copy of frame f. As they are where there are `count` or more.
    """
    rng, numbers, round_ = np.random.default_rng([seed, 78]), [np.asarray(frames_N, dtype=np.int64)], 1
    while (missing := count - sum(map(len, numbers))) > 0:
        numbers.append(rng.permutation(numbers[0])[:missing] + round_ * num_frames)
        round_ += 1
    return np.concatenate(numbers)


def perturbed(state_NOS: np.ndarray, numbers_N: np.ndarray, num_frames: int, spread_S: np.ndarray, seed: int) -> np.ndarray:
    """The states, those of copies moved by normal noise of standard deviation `spread_S`, raw units.

    All O steps of an observation are moved alike, so that its velocities stay; a copy's noise depends on its number and the
    seed alone.
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
    """`observe` (frames to what was seen there) for the numbers of `with_copies`, too: the states of copies are perturbed."""

    def look(numbers_N: np.ndarray) -> Mapping[str, np.ndarray]:
        seen = observe(numbers_N % num_frames)
        return {**seen, STATE: perturbed(seen[STATE], numbers_N, num_frames, spread_S, seed)}

    return look
