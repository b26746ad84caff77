"""Twelve made-up episodes of `avoid`, four frames each, to convert from."""

from __future__ import annotations

import numpy as np

import envs
from envs.demonstrations import Demonstration, Demonstrations
from envs.panda.recording import stored_starts


def twelve_episodes() -> Demonstrations:
    """From two starts in turn, each in a mode of its own."""
    spec, starts, rng = envs.task_spec("avoid"), stored_starts("avoid", 0, "train", 2), np.random.default_rng(0)
    low, high = np.array([[0.3, -0.2], [0.7, 0.2]], np.float32)
    episodes = []
    for number in range(12):
        state = rng.uniform(low, high, (4, 2)).astype(np.float32)
        tool = np.column_stack([state, np.full(4, 0.1)]).astype(np.float32)
        episodes.append(Demonstration(state, state + np.float32(0.01), tool, starts[number % 2], spec.modes[number]))
    return Demonstrations.from_episodes(spec, episodes, [number % 2 for number in range(12)])
