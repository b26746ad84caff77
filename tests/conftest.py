"""What the tests of all rooms share: one thread per process, and small networks that are not trivial."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import teachers
from envs.specs import STATE
from students.one_step import OneStepStudent
from teachers.contract import Observation
from teachers.networks.observations import fake_observation
from teachers.networks.shapes import EncoderShape, PolicyShape
from teachers.trained import TrainedTeacher

torch.set_num_threads(1)

SMALL = PolicyShape(
    task="avoid", state_names=("tool_x_m", "tool_y_m"), action_names=("x_m", "y_m"), action_weights=(1.0, 1.0),
    dt_s=0.05, observation_steps=2, horizon=8, width=16, depth=1, heads=2, patch=4,
)  # fmt: skip

SEEING = EncoderShape(
    state_names=("tool_y_m",), cameras=("front", "wrist"), depth_cameras=("front",), image_size=(16, 24), num_points=32,
    point_colours=True, width=16, heads=2, queries=2, channels=16,
)  # fmt: skip

STATISTICS = {
    "state": {"min": np.array([0.25, -0.3]), "max": np.array([0.75, 0.3])},
    "action": {"min": np.array([0.2, -0.4]), "max": np.array([0.8, 0.2])},
    "depth": {"min": np.array([0.4]), "max": np.array([1.4])},
    "points": {"min": np.array([0.0, -0.5, 0.0]), "max": np.array([1.0, 0.5, 1.0])},
}
"""Centres 0.5, 0.0 and half ranges 0.25, 0.3 of the state; centres 0.5, -0.1 and half ranges 0.3, 0.3 of the action."""

Make = Callable[..., TrainedTeacher]


@pytest.fixture(scope="session")
def store_rlbench(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Makes a folder of demonstrations as RLBench's generator stores them, once for each set of options."""
    made: dict[str, Path] = {}

    def store(**options: Any) -> Path:
        asked = json.dumps(options, sort_keys=True)
        if asked not in made:
            made[asked] = tmp_path_factory.mktemp("rlbench")
            program = Path(__file__).parent / "storing_rlbench.py"
            subprocess.run([sys.executable, str(program), str(made[asked]), asked], check=True)
        return made[asked]

    return store


@pytest.fixture
def small_shape() -> PolicyShape:
    """O = 2, S = 2, T = 8, A = 2, of the task `avoid`."""
    return SMALL


@pytest.fixture
def seeing_shape() -> PolicyShape:
    """The same with an encoder for one number of the state, two cameras of 16 x 24, one in depth, and 32 coloured points."""
    return replace(SMALL, encoder=SEEING)


@pytest.fixture
def seen(seeing_shape: PolicyShape) -> Observation:
    """Three made-up observations of `seeing_shape`."""
    return fake_observation(seeing_shape, 3, seed=7)


@pytest.fixture
def statistics() -> dict[str, dict[str, np.ndarray]]:
    return STATISTICS


@pytest.fixture
def make_teacher() -> Make:
    """A small teacher, by default a flow teacher, with random weights in every layer; other arguments change its shape."""

    def make(seed: int = 0, solver: str = "euler", kind: str = "flow", scale: float = 0.3, **changes: Any) -> TrainedTeacher:
        teacher = teachers.make_teacher(kind, replace(SMALL, **changes), solver)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():  # fresh from the constructor the transformer's blocks do nothing (adaLN-zero)
            for value in teacher.parameters():
                value.copy_(torch.randn(value.shape, generator=generator) * scale)
        teacher.normaliser.fit(STATISTICS)
        return teacher.eval()

    return make


@pytest.fixture
def make_student(make_teacher: Make) -> Callable[..., OneStepStudent]:
    """A one-step student of a teacher's shape and statistics (unless one is given, of a small flow teacher's), warm or not."""

    def make(
        teacher: TrainedTeacher | None = None, latent_size: int = 5, codes: int = 0, warm: bool = True, shares: bool = False
    ) -> OneStepStudent:
        teacher = teacher or make_teacher()
        torch.manual_seed(0)
        student = OneStepStudent(teacher.shape, latent_size, codes=codes, shares=shares)
        student.normaliser.load_state_dict(teacher.normaliser.state_dict())
        if warm:
            student.warm_start(teacher)
        return student.eval()

    return make


@pytest.fixture
def observation() -> Observation:
    """Three observations `[3, 2, 2]` within the range of the statistics."""
    low, high = torch.tensor([0.25, -0.3]), torch.tensor([0.75, 0.3])
    return {STATE: low + (high - low) * torch.rand(3, 2, 2, generator=torch.Generator().manual_seed(5))}
