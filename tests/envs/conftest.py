"""What the tests of the simulated tasks share: carrying out a plan to the episode's end."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from envs.panda.base import PandaEnv

CarryOut = Callable[[PandaEnv, np.ndarray], dict[str, Any]]


@pytest.fixture
def carry_out() -> CarryOut:
    """Sends a plan `[L, A]` (its last action repeated) until the episode ends; returns the last info."""

    def run(env: PandaEnv, plan: np.ndarray) -> dict[str, Any]:
        for step in range(env.spec_task.max_steps):
            _, _, terminated, truncated, info = env.step(plan[min(step, len(plan) - 1)])
            if terminated or truncated:
                return info
        raise AssertionError("the episode did not end within max_steps")

    return run
