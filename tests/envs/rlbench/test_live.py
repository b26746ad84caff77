"""On a real RLBench: FLOW2ONE_RLBENCH_PYTHON, COPPELIASIM_ROOT and DISPLAY set; `pytest -m rlbench`."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest

import envs
from envs.cameras.specs import CAMERAS, CameraSettings, check_camera_features
from envs.demonstrations import Demonstration
from envs.process.worker import WorkerFailure, WorkerStartError
from envs.rlbench.env import PYTHON_VARIABLE, RLBenchEnv
from envs.rlbench.spec import RLBenchSettings
from envs.specs import POINTS, STATE

pytestmark = [
    pytest.mark.rlbench, pytest.mark.timeout(900),
    pytest.mark.skipif(not os.environ.get(PYTHON_VARIABLE), reason=f"{PYTHON_VARIABLE} names no interpreter with RLBench"),
]  # fmt: skip
CROP = RLBenchSettings()
EYES = CameraSettings(
    width=64, height=64, num_points=512, sampling="random", crop_low=CROP.crop_low, crop_high=CROP.crop_high
)


@pytest.fixture(params=["planning", "joints"])
def env(request: pytest.FixtureRequest) -> Iterator[RLBenchEnv]:
    settings = RLBenchSettings(arm=request.param, subsample=1 if request.param == "joints" else 3)
    made = envs.make_rlbench("rlbench/reach_target", settings, EYES)
    yield made
    made.close()


def solvable(env: RLBenchEnv, seed: int = 0) -> np.ndarray:
    """The start of the first of a few seeds that RLBench's own planner solves."""
    rng = np.random.default_rng(seed)
    for _ in range(5):
        try:
            return env.demonstrate(env.sample_start(rng), with_cameras=False).start
        except WorkerFailure as failure:
            assert failure.name in ("demo_error", "placement_error")
    raise AssertionError("none of five starts was demonstrated")


def replay(env: RLBenchEnv, shown: Demonstration) -> None:
    """The demonstration's actions, and the last one for a while: they must solve the task."""
    outcome = {}
    for action in [*shown.action, *[shown.action[-1]] * 10]:
        _, _, terminated, truncated, outcome = env.step(action)
        if terminated or truncated:
            break
    assert outcome["is_success"], outcome


def test_a_demonstration_is_placed_again_and_its_replay_succeeds(env: RLBenchEnv) -> None:
    start = solvable(env)
    shown = env.demonstrate(start)
    assert shown.cameras is not None and shown.cameras.num_frames == len(shown.state)
    first = env.reset(options={"start": shown.start})[0]
    check_camera_features(first, env.camera_rig.spec)  # type: ignore[union-attr]
    np.testing.assert_allclose(first[STATE][:3], shown.state[0, :3], atol=0.01)
    replay(env, shown)


def test_every_camera_sees_the_same_table(env: RLBenchEnv) -> None:
    """Uncropped, the lowest large plane in front of the robot is where its base stands."""
    env.open_cameras(CameraSettings(
        width=64, height=64, images=False, depth=False, num_points=3000, sampling="random", crop_low=(0.2, -0.3, -0.05),
        crop_high=(0.6, 0.3, 0.05),
    ))  # fmt: skip
    heights = env.reset(seed=1)[0][POINTS][:, 2]
    assert abs(np.median(heights)) < 0.01
    assert set(env.camera_rig.spec.settings.cameras) == set(CAMERAS)  # type: ignore[union-attr]


def test_a_killed_simulator_costs_that_episode_only_while_another_works(env: RLBenchEnv) -> None:
    other = envs.make_rlbench("rlbench/reach_target", env.settings, EYES)
    try:
        starting = threading.Thread(target=other.reset, kwargs={"seed": 1})
        starting.start()
        env.reset(seed=2)
        starting.join()
        assert env.worker.pid is not None
        os.kill(env.worker.pid, signal.SIGKILL)
        stay = env._frame["joint_positions"] if env.settings.arm == "joints" else np.array([0.5, 0, 0.5, -1, 0, 0, 0, 1, 0])
        action = np.append(stay, 1.0)
        assert env.step(action)[4]["failure"] == "crash"
        assert other.step(action)[4]["failure"] in ("", "planner_error")
        env.reset(seed=2)
        assert env.worker.starts == 2 and other.worker.starts == 1
    finally:
        other.close()


def test_a_film_shows_the_front_camera_though_the_policy_does_not_look(env: RLBenchEnv) -> None:
    env.open_cameras(replace(EYES, cameras=("wrist",)))
    env.video_frames = []
    env.reset(seed=2)
    stay = env._frame["joint_positions"] if env.settings.arm == "joints" else np.array([0.5, 0, 0.7, -1, 0, 0, 0, 1, 0])
    env.step(np.append(stay, 1.0))
    assert [picture.shape for picture in env.video_frames] == [(64, 64, 3)] * 2 and env.video_frames[0].std() > 5
    if env.settings.arm == "planning":  # the arm has moved before the camera
        assert (env.video_frames[0] != env.video_frames[1]).any()


def test_each_path_of_a_demonstration_says_whether_it_avoids_collisions() -> None:
    """RLBench's open_drawer ignores collisions on the way to the handle and while it pulls."""
    settings = RLBenchSettings(keyframes=True, per_action_collision_checking=True)
    env = envs.make_rlbench("rlbench/open_drawer", settings)
    try:
        start = solvable(env)
        shown = env.demonstrate(start)
        assert shown.action.shape[1] == 11 and set(shown.action[:, -1].tolist()) == {0.0, 1.0}
        env.reset(options={"start": shown.start})
        replay(env, shown)
    finally:
        env.close()


def test_the_state_tells_where_the_drawer_is_and_how_far_it_moved() -> None:
    env = envs.make_rlbench("rlbench/open_drawer", RLBenchSettings(objects=("waypoint_anchor_bottom", "drawer_frame")))
    try:
        shown = env.demonstrate(solvable(env))
        handle, frame = shown.state[:, 17:].reshape(-1, 2, 9).transpose(1, 0, 2)
        np.testing.assert_allclose(handle[-1, :3], shown.tool[-1], atol=0.02)  # the gripper holds it
        np.testing.assert_allclose(frame, np.tile(frame[:1], (len(frame), 1)), atol=5e-3)
        assert np.linalg.norm(handle[-1, :3] - handle[0, :3]) > 0.1
        assert handle[:, 2].std() < 5e-3  # it slides
        first = env.reset(options={"start": shown.start})[0][STATE]
        np.testing.assert_allclose(first[17:], shown.state[0, 17:], atol=1e-3)
    finally:
        env.close()
    with (
        pytest.raises(WorkerStartError, match="open_drawer has no object 'drawer_fram'; it has, nearest first, drawer_frame, "),
        envs.make_rlbench("rlbench/open_drawer", RLBenchSettings(objects=("drawer_fram",))).worker as worker,
    ):
        worker.start()


def test_several_tasks_take_turns_in_one_simulator_until_it_is_worn() -> None:
    env = envs.make_rlbench("rlbench/reach_target+open_drawer", RLBenchSettings(restart_after=3))
    try:
        observed = []
        for number in (0, 1, 0, 1):
            env.reset(options={"start": [0, -1, 3, 0, number]})
            observed.append((env.instructions[0].split()[0], env.worker.starts))
        assert observed == [("reach", 1), ("open", 1), ("reach", 1), ("open", 2)]
    finally:
        env.close()


def test_it_ends_within_its_grace_time(env: RLBenchEnv) -> None:
    env.reset(seed=3)
    pid = env.worker.pid
    env.close()
    assert pid is not None and not os.path.exists(f"/proc/{pid}")
