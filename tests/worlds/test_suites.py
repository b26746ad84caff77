"""Environments that nobody here wrote, each in its own interpreter: nothing is wrong with them, and a run measures success."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from distill import api
from distill.config import Config
from distill.presets import apply_preset, shipped
from envs.gym.checks import check_world
from envs.gym.settings import GymSettings
from tests.worlds.conftest import interpreter

pytestmark = [pytest.mark.worlds, pytest.mark.timeout(1800)]
METAWORLD = sorted(name for name in shipped() if name.startswith("metaworld/") and name != "metaworld/state")
FETCH = """\
imports: [gymnasium_robotics]
state: {observation: {grip_x_m: 0, grip_y_m: 1, grip_z_m: 2}, desired_goal: [goal_x_m, goal_y_m, goal_z_m]}
success: info.is_success
tool: [grip_x_m, grip_y_m, grip_z_m]
"""
REACH = """\
imports: [panda_gym]
state: {observation: [x_m, y_m, z_m, vx, vy, vz], desired_goal: [goal_x_m, goal_y_m, goal_z_m]}
success: info.is_success
tool: [x_m, y_m, z_m]
"""
EXPERT = """\
import numpy as np

def expert(env):
    rest = [0.0] * (env.action_space.shape[0] - 3)
    return lambda seen: np.array([*np.clip(8 * (seen["desired_goal"] - seen["achieved_goal"]), -1, 1), *rest])
"""


@pytest.mark.parametrize("name", METAWORLD)
def test_a_task_of_metaworld_is_a_world_and_its_expert_solves_it(name: str) -> None:
    world = replace(apply_preset(Config(), Path(name)).world, python=interpreter("metaworld"), clips=False)
    found = check_world(world, starts=4)
    facts = dict(line.split(": ", 1) for line in found.facts)
    assert found.problems == [] and facts["repeatable"].startswith("yes")
    assert int(facts["expert"].split()[0]) >= 3


def test_push_t_is_solved_on_both_sides() -> None:
    found = check_world(replace(apply_preset(Config(), Path("pusht")).world, python=interpreter("pusht")), starts=2)
    facts = dict(line.split(": ", 1) for line in found.facts)
    assert found.problems == [] and facts["repeatable"].startswith("yes")
    assert "solved (clockwise)" in facts["expert"] and "solved (counterclockwise)" in facts["expert"]
    assert "asked for" not in facts["expert"]


@pytest.mark.parametrize(("python", "gym", "mapping"), [
    ("panda", "PandaReach-v3", REACH), ("robotics", "FetchReach-v4", FETCH),
])  # fmt: skip
def test_an_environment_of_somebody_elses_goes_from_an_expert_to_success(
    python: str, gym: str, mapping: str, tmp_path: Path
) -> None:
    (tmp_path / "mapping.yaml").write_text(mapping)
    (tmp_path / "expert.py").write_text(EXPERT)
    world = GymSettings(gym, (), str(tmp_path / "mapping.yaml"), interpreter(python), expert=str(tmp_path / "expert.py"))
    assert check_world(world, starts=2).problems == []
    small = {
        "demos": {"train_starts": 30}, "sample": {"num_observations": 256},
        "teacher": {"width": 64, "depth": 2, "training_steps": 500, "candidates": 1, "batch_size": 64, "horizon": 8,
                    "patch": 4},
        "student": {"objectives": ["chamfer"], "training_steps": 150, "candidates": 1},
        "evaluate": {"test_starts": 20, "validation_starts": 4, "teacher_steps": [10], "execution_horizon": 4, "baselines": [],
                     "fidelity_observations": 8, "fidelity_samples": 16, "latency_calls": 20},
    }  # fmt: skip
    result = api.run(Config(world=world, runs_dir=tmp_path, processes=1), **small)
    assert result.reference.success_rate is not None and result.reference.success_rate >= 0.8
    assert result.student is not None and result.student.success_rate is not None and result.student.success_rate >= 0.8
