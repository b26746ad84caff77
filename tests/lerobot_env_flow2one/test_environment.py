"""The embedded tasks under LeRobot's names: observations, seeds, success, frames. LeRobot itself: tests/worlds."""

from __future__ import annotations

import contextlib
import importlib.util
import tomllib
from pathlib import Path

import numpy as np
import pytest

import envs
from envs.panda.recording import stored_starts
from envs.specs import STATE

ROOT = Path(__file__).parents[2]
# by its path: the package's door imports LeRobot
_SPEC = importlib.util.spec_from_file_location("flow2one_environment", ROOT / "lerobot_env_flow2one/environment.py")
assert _SPEC is not None and _SPEC.loader is not None
_module = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(_module)
Flow2OneTask = _module.Flow2OneTask


def test_the_package_has_the_name_that_lerobot_looks_for() -> None:
    folder = ROOT / "lerobot_env_flow2one"
    name = tomllib.loads((folder / "pyproject.toml").read_text())["project"]["name"]
    assert name == folder.name and name.startswith("lerobot_env_")


@pytest.mark.parametrize("task", sorted(envs.TASKS))
def test_an_episode_begins_at_the_stored_test_start_of_its_seed(task: str) -> None:
    starts = stored_starts(task, 3, "test", 3)
    with contextlib.closing(envs.make(task)) as ours, contextlib.closing(Flow2OneTask(task, starts_seed=3)) as env:
        for number, seed in ((0, 1000), (2, 1002), (2, 2)):
            seen, info = env.reset(seed=seed)
            state = ours.reset(options={"start": starts[number]})[0][STATE]
            assert seen["agent_pos"].tolist() == seen["environment_state"].tolist() == state.tolist()
            assert info == {"is_success": False} and env.observation_space.contains(seen)
        assert env.action_space == ours.action_space and env.metadata["render_fps"] == round(1 / ours.spec_task.dt_s)


def test_an_episode_goes_as_ours_does_and_ends_with_its_name() -> None:
    start = stored_starts("avoid", 0, "test", 1)[0]
    with contextlib.closing(envs.make("avoid")) as ours, contextlib.closing(Flow2OneTask("avoid")) as env:
        ours.reset(options={"start": start})
        plan = ours.plan(ours.spec_task.modes[0], np.random.default_rng(0))
        env.reset(seed=0)
        for action in plan:
            theirs, mine = env.step(action), ours.step(action)
            assert theirs[0]["agent_pos"].tolist() == mine[0][STATE].tolist() and theirs[1:4] == mine[1:4]
            if mine[2]:
                break
        assert theirs[4] == {"is_success": True, "failure": "", "mode": ours.spec_task.modes[0]} and theirs[1] == 1.0


def test_cameras_are_bytes_and_a_frame_can_be_rendered() -> None:
    with contextlib.closing(Flow2OneTask("avoid", ("front", "wrist"), (20, 24))) as env:
        seen, _ = env.reset(seed=0)
        assert set(seen["pixels"]) == {"front", "wrist"} and env.observation_space.contains(seen)
        assert seen["pixels"]["front"].shape == (20, 24, 3) and len(np.unique(seen["pixels"]["front"])) > 3
        assert env.render().shape == (180, 240, 3)
