"""RLBench's environment: the contract, both programs behind it, failures by name, a simulator killed in mid-episode."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import envs
from envs.cameras.specs import CameraSettings, check_camera_features
from envs.process.worker import WorkerFailure, WorkerStartError
from envs.rlbench.env import PYTHON_VARIABLE, RLBenchEnv, simulator_environment
from envs.rlbench.spec import RLBenchSettings
from envs.specs import IMAGES, POINTS, STATE

Store = Callable[..., Path]
Make = Callable[..., RLBenchEnv]
CROP = RLBenchSettings()
CAMERAS = CameraSettings(
    width=24, height=24, num_points=64, sampling="random", crop_low=CROP.crop_low, crop_high=CROP.crop_high
)


@pytest.fixture
def replay(store_rlbench: Store) -> Iterator[Make]:
    made: list[RLBenchEnv] = []

    def new(cameras: CameraSettings | None = None, task: str = "take_ball", **changes: object) -> RLBenchEnv:
        root = store_rlbench(tasks=["take_ball"], episodes=2, frames=9)
        settings = replace(RLBenchSettings(program="replay", dataset=str(root), max_steps=30), **changes)
        made.append(envs.make_rlbench(f"rlbench/{task}", settings, cameras))
        return made[-1]

    yield new
    for env in made:
        env.close()


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where `import rlbench` and `import pyrep` find something that answers as they do."""
    folder = tmp_path_factory.mktemp("packages")
    subprocess.run([sys.executable, str(Path(__file__).parent / "standing_in.py"), str(folder)], check=True)
    return folder


@pytest.fixture
def simulated(packages: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Make]:
    """The program that imports RLBench, with the packages that stand in for it."""
    monkeypatch.setenv("PYTHONPATH", str(packages))
    monkeypatch.delenv(PYTHON_VARIABLE, raising=False)  # the interpreter of a real one is no business of these tests
    made: list[RLBenchEnv] = []

    def new(cameras: CameraSettings | None = None, task: str = "reach_target", **changes: object) -> RLBenchEnv:
        made.append(envs.make_rlbench(f"rlbench/{task}", replace(RLBenchSettings(max_steps=30), **changes), cameras))
        return made[-1]

    yield new
    for env in made:
        env.close()


# -- the contract ------------------------------------------------------------------------------------------------------


def test_stored_demonstrations_keep_the_contract(replay: Make) -> None:
    envs.check_env(replay(CAMERAS), starts=1)


@pytest.mark.parametrize("change", [{"arm": "joints"}, {"keyframes": True}])
def test_with_joints_and_with_key_frames_too(replay: Make, change: dict[str, object]) -> None:
    envs.check_env(replay(**change), starts=1)


def test_the_simulators_program_keeps_the_contract(simulated: Make) -> None:
    envs.check_env(simulated(CAMERAS, subsample=1), starts=1, seed=4)


def test_the_simulator_is_started_by_the_first_reset_and_ended_by_close(replay: Make) -> None:
    env = replay()
    assert env.worker.pid is None
    env.reset(seed=1)
    pid = env.worker.pid
    assert pid is not None and (Path("/proc") / str(pid)).exists()
    env.close()
    assert not (Path("/proc") / str(pid)).exists()


@pytest.mark.parametrize("start", [[0.5, 0, 0, 0], [-1, 0, 0, 0], [0, -2, 0, 0], [0, -1, -5, 0]])
def test_a_start_is_whole_numbers(replay: Make, start: list[float]) -> None:
    with pytest.raises(ValueError, match="whole numbers"):
        replay().reset(options={"start": start})


def test_cameras_that_rlbench_has_not_are_named(replay: Make) -> None:
    with pytest.raises(ValueError, match=r"RLBench has no camera \['ceiling'\]"):
        replay(replace(CAMERAS, cameras=("ceiling",)))


def test_one_environment_may_have_several_tasks(store_rlbench: Store) -> None:
    root = store_rlbench(tasks=["take_ball", "reach_target"], episodes=2, frames=5, images=False)
    settings = RLBenchSettings(program="replay", dataset=str(root), max_steps=30)
    env = envs.make_rlbench("rlbench/reach_target+take_ball", settings)
    assert env.spec_task.state_names[-2:] == ("task_reach_target", "task_take_ball")
    try:
        envs.check_env(env, starts=2)
        for number, instruction in ((1, "do take_ball"), (0, "do reach_target"), (1, "do take_ball")):
            observation, _ = env.reset(options={"start": [0, 1, 0, 0, number]})
            assert env.instructions[0] == instruction and env.worker.starts == 1
            np.testing.assert_array_equal(observation[STATE][-2:], np.eye(2)[number])
        assert env.worker.pid is not None
        os.kill(env.worker.pid, signal.SIGKILL)
        assert env.step(env.action_space.sample())[4]["failure"] == "crash"
        env.reset(options={"start": [0, 1, 0, 0, 1]})
        assert env.instructions[0] == "do take_ball" and env.worker.starts == 2
        shown = env.demonstrate(np.array([0.0, 0, 0, 0, 0]))
        np.testing.assert_array_equal(shown.state[:, -2:], np.tile([1.0, 0.0], (len(shown.state), 1)))
        env.close()
        env.reset(options={"start": [0, 1, 0, 0, 1]})  # the next simulator knows nothing of the last one's task
        assert env.instructions[0] == "do take_ball" and env.worker.starts == 1
        for wrong in ([0, 1, 0, 0, 2], [0, 1, 0, 0, -1]):
            with pytest.raises(ValueError, match="in whole numbers"):
                env.reset(options={"start": wrong})
    finally:
        env.close()


# -- demonstrations ----------------------------------------------------------------------------------------------------


def test_a_stored_demonstration_is_ours(replay: Make) -> None:
    env = replay(CAMERAS)
    shown = env.demonstrate(np.array([0.0, 1, 0, 0]))
    # 9 frames to the ball, the gripper closed from frame 9 on, 5 frames of lifting: 0 3 6 9 12 13 are kept
    assert shown.state.shape == (5, 17) and shown.action.shape == (5, 10) and shown.mode == "solved"
    np.testing.assert_array_equal(shown.start, [0, 1, 0, 1])
    np.testing.assert_array_equal(shown.action[:, 9], [1, 1, 0, 0, 0])
    np.testing.assert_allclose(shown.action[:-1, :10], shown.state[1:, :10], atol=1e-6)
    np.testing.assert_allclose(shown.tool, shown.state[:, :3])
    np.testing.assert_allclose(shown.tool[0], [0.28 + 0.27, 0.0, 1.40 - 0.75], atol=1e-6)
    assert shown.action[-1, 2] - shown.action[2, 2] == pytest.approx(0.15, abs=1e-6)
    assert shown.cameras is not None and shown.cameras.num_frames == 5
    check_camera_features({name: shown.cameras.read(name, [4])[0] for name in shown.cameras.spec.shapes()}, shown.cameras.spec)
    frame = env.reset(options={"start": shown.start})[0]
    np.testing.assert_allclose(shown.cameras.read(POINTS, [0])[0], frame[POINTS], atol=1e-3)  # it is stored in 16 bits


def test_a_live_demonstration_is_placed_again(simulated: Make) -> None:
    env = simulated(subsample=1)
    rng = np.random.default_rng(0)
    for start in (env.sample_start(rng) for _ in range(4)):
        try:
            shown = env.demonstrate(start)
        except WorkerFailure as failure:  # it is one of those that the planner does not solve
            assert failure.name == "demo_error"
            assert failure.text.endswith("the task?; ValueError: Could not get a path for waypoint 0.")
            continue
        assert shown.start[3] >= 1 and shown.start[:3].tolist() == start[:3].tolist()
        env.reset(options={"start": shown.start})
        _, reward, _, _, info = env.step(shown.action[-1])
        assert info["is_success"] and reward == 1.0 and env.instructions[0] == "reach it"


def test_the_poses_of_objects_are_in_the_state_of_every_kept_frame(simulated: Make) -> None:
    """The stand-in's scene: a target turned by a quarter, ``tool`` at the gripper, ``fuse``, too, until it is removed."""
    env = simulated(subsample=4, objects=("target", "fuse", "tool"))
    assert env.spec_task.state_names[16:27] == (
        "joint_7_rad", "target_x_m", "target_y_m", "target_z_m", "target_r_xx", "target_r_yx", "target_r_zx", "target_r_xy",
        "target_r_yy", "target_r_zy", "fuse_x_m",
    )  # fmt: skip
    shown = env.demonstrate(np.array([0.0, -1, 3, 0]))
    # of seven frames 0, 4 and 5 (the gripper closes) are kept; the base stands at (-0.27, 0, 0.75)
    place = np.random.RandomState(3).uniform(-0.1, 0.1, 3) + [0.3, 0.0, 1.0]
    way = np.array([0.28, 0, 1.4]) + np.outer(np.arange(7) / 6, place - [0.28, 0, 1.4])
    target, fuse, tool = shown.state[:, 17:].reshape(3, 3, 9).transpose(1, 0, 2)
    np.testing.assert_allclose(target, [[*(place - [-0.27, 0, 0.75]), 0, 1, 0, -1, 0, 0]] * 3, atol=1e-6)
    np.testing.assert_allclose(tool, np.hstack([way[[0, 4, 5]] - [-0.27, 0, 0.75], [[-1, 0, 0, 0, 1, 0]] * 3]), atol=1e-6)
    assert way[2, 2] > 1.2 > way[3, 2]  # it is removed between two kept frames, and stays where it was last
    np.testing.assert_allclose(fuse[:, :3], way[[0, 2, 2]] - [-0.27, 0, 0.75], atol=1e-6)
    first = env.reset(options={"start": shown.start})[0][STATE]
    np.testing.assert_allclose(first, shown.state[0], atol=1e-6)
    after = env.step(pose(0.5, 0.1, 0.4))[0][STATE][17:].reshape(3, 9)
    np.testing.assert_allclose(after[:, :3], [target[0, :3], first[26:29], [0.5, 0.1, 0.4]], atol=1e-6)


def test_an_object_that_is_not_there_is_named_at_the_start_with_those_that_are(simulated: Make) -> None:
    with pytest.raises(WorkerStartError, match="reach_target has no object 'Targt'; it has, nearest first, target, tool, fuse"):
        simulated(objects=("tool", "Targt")).reset(seed=0)
    envs.check_env(simulated(objects=("tool",), subsample=1), starts=1, seed=4)


def test_stored_starts_are_restored_in_the_simulator(simulated: Make, store_rlbench: Store) -> None:
    root = store_rlbench(episodes=2, frames=4, images=False)
    env = simulated(dataset=str(root), subsample=1)
    first = env.reset(options={"start": [0.0, 1, 0, 0]})[0]
    again = env.reset(options={"start": [0.0, 1, 0, 0]})[0]
    np.testing.assert_array_equal(first[STATE], again[STATE])
    assert env.last_start == [0, 1, 0, 1]
    # numpy's stored state places the goal where it drew the ball; the demonstration is the stored one
    shown = env.demonstrate(np.array([0.0, 1, 0, 0]))
    assert shown.action.shape == (3, 10)


# -- what goes wrong ---------------------------------------------------------------------------------------------------


def pose(*place: float) -> np.ndarray:
    """Down at `place` in the base frame of the packages that stand in."""
    return np.array([*place, -1, 0, 0, 0, 1, 0, 1], dtype=np.float32)


@pytest.mark.parametrize(
    ("arm", "wrong"),
    [
        ("planning", [(pose(0.4, 0.0, -0.05), "planner_error"), (pose(0.4, 0.95, 0.3), "invalid_action"),
                      (np.zeros(10), "invalid_action")]),  # the last tells no rotation
        ("ik", [(pose(0.9, 0.0, 0.3), "ik_error")]),
    ],
)  # fmt: skip
def test_failures_have_names_and_end_the_episode_only(simulated: Make, arm: str, wrong: list[tuple[np.ndarray, str]]) -> None:
    env = simulated(CAMERAS, arm=arm, retries=0)
    for action, failure in wrong:
        before = env.reset(seed=1)[0]
        after, reward, terminated, truncated, info = env.step(action)
        assert (info["failure"], info["is_success"], reward, terminated, truncated) == (failure, False, 0.0, True, False)
        assert env.observation_space.contains(after)
        np.testing.assert_array_equal(after[STATE], before[STATE])
        with pytest.raises(RuntimeError, match="no episode is running"):
            env.step(action)
    assert env.worker.starts == 1


def test_a_refused_action_changes_nothing_and_ends_the_episode_only_after_its_retries(simulated: Make) -> None:
    env, good = simulated(CAMERAS, retries=2, max_steps=4), pose(0.6, 0.3, 0.6)
    low, aside, no_rotation = pose(0.4, 0.0, -0.05), pose(0.4, 0.95, 0.3), np.zeros(10)
    before = env.reset(seed=1)[0]
    for _ in range(2):  # an action that is executed in between starts the count again
        for action, name in ((low, "planner_error"), (no_rotation, "invalid_action")):
            after, reward, terminated, truncated, info = env.step(action)
            assert (info["refused"], info["failure"], reward, terminated, truncated) == (name, "", 0.0, False, False)
            for feature, values in before.items():
                np.testing.assert_array_equal(after[feature], values)
        before, _, terminated, truncated, info = env.step(good)
        assert (info["refused"], info["failure"], terminated, truncated) == ("", "", False, False)
        np.testing.assert_allclose(before[STATE][:3], good[:3], atol=1e-6)
    for action, name, ended in ((low, "planner_error", False), (low, "planner_error", False), (aside, "invalid_action", True)):
        _, _, terminated, _, info = env.step(action)
        assert (info["refused"], info["failure"], terminated) == (name, name if ended else "", ended)
    env.reset(seed=1)  # nor do refused actions count for max_steps, or those of the last episode
    for _ in range(4):
        env.step(low)
        env.step(low)
        truncated = env.step(good)[3]
    assert truncated and env.worker.starts == 1


def test_a_replay_refuses_what_no_robot_reaches(replay: Make) -> None:
    env = replay(retries=1)
    first = env.reset(options={"start": [0, 1, 0, 0]})[0]
    for place, refused in (((0.5, 0.9, 0.9), True), ((0.5, 0.0, -0.01), True), ((0.3, -0.3, 0.3), False)):
        after, _, terminated, _, info = env.step(pose(*place))
        assert (info["refused"], terminated) == ("planner_error" if refused else "", refused and place[2] < 0)
        np.testing.assert_array_equal(after[STATE], first[STATE])
        if terminated:
            assert info["failure"] == "planner_error"
            env.reset(options={"start": [0, 1, 0, 0]})


def test_a_simulator_that_is_killed_costs_that_episode_only(simulated: Make) -> None:
    env = simulated(CAMERAS)
    first = env.reset(seed=2)[0]
    assert env.worker.pid is not None
    os.kill(env.worker.pid, signal.SIGKILL)
    seen, _, terminated, _, info = env.step(pose(0.5, 0.0, 0.5))
    assert terminated and info["failure"] == "crash"
    np.testing.assert_array_equal(seen[POINTS], first[POINTS])
    np.testing.assert_array_equal(env.observe_cameras()[POINTS], first[POINTS])
    again = env.reset(seed=2)[0]
    np.testing.assert_array_equal(again[STATE], first[STATE])
    assert env.worker.starts == 2


def test_a_simulator_is_started_anew_after_so_many_episodes(simulated: Make) -> None:
    env = simulated(restart_after=2)
    starts = []
    for seed in range(5):
        env.reset(seed=seed)
        starts.append(env.worker.starts)
    assert starts == [1, 1, 2, 2, 3]


def test_a_variation_that_is_not_there_is_a_failure_of_placing(simulated: Make) -> None:
    with pytest.raises(WorkerFailure, match="placement_error: TaskEnvironmentError: only 2 variations"):
        simulated().reset(options={"start": [5.0, -1, 1, 0]})


def test_an_episode_that_is_not_solved_ends_with_a_timeout(simulated: Make) -> None:
    env = simulated(max_steps=2)
    env.reset(seed=1)
    assert not env.step(pose(0.6, 0.3, 0.6))[3]
    _, _, terminated, truncated, info = env.step(pose(0.6, 0.3, 0.6))
    assert truncated and not terminated and info["failure"] == "timeout"


def test_without_rlbench_the_start_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYTHONPATH", raising=False)
    monkeypatch.delenv(PYTHON_VARIABLE, raising=False)
    with (
        pytest.raises(WorkerStartError, match="did not start: error: ModuleNotFoundError: No module named 'pyrep'"),
        envs.make_rlbench("rlbench/reach_target", RLBenchSettings()).worker as worker,
    ):
        worker.start()


def test_a_folder_without_the_task_is_named_at_the_start(replay: Make) -> None:
    with pytest.raises(WorkerStartError, match="close_door/variation0/episodes holds no episode"):
        replay(task="close_door").reset(seed=0)


# -- what it costs -----------------------------------------------------------------------------------------------------


def test_nothing_is_rendered_where_nobody_looks(simulated: Make) -> None:
    """Of the packages that stand in, the colour of an image is how often a camera drew, in variation 1."""
    cameras = replace(CAMERAS, cameras=("front",), num_points=0, depth=False)
    env = simulated(cameras, arm="joints", subsample=3, variations=(1,))
    env.cameras_on_demand = True
    env.reset(seed=1)
    for _ in range(3):
        assert set(env.step(np.array([0, 0, 0, -1, 0, 1, 0, 1.0]))[0]) == {STATE}
    assert env.observe_cameras()[f"{IMAGES}.front"][0, 0, 0] * 255 == pytest.approx(1)


@pytest.mark.parametrize(("subsample", "drawn"), [(1, [0, 1, 2, 3, 4, 5, 6]), (3, [0, 3, 5, 6]), (4, [0, 4, 5])])
def test_a_demonstration_renders_the_frames_that_are_kept_and_no_other(
    simulated: Make, subsample: int, drawn: list[int]
) -> None:
    """The stand-in's demonstrations have seven frames, the gripper closes in frame 5; the last frame is observed by nobody."""
    cameras = replace(CAMERAS, num_points=0, depth=False, cameras=("front", "wrist"))
    env = simulated(cameras, subsample=subsample, variations=(1,))
    env.cameras_on_demand = True
    start = np.array([1.0, -1, 3, 0])
    assert env.demonstrate(start, with_cameras=False).cameras is None and env.describe()["rendered"] == 0
    with pytest.raises(WorkerFailure, match=r"frames \[0\] of the last demonstration were not rendered, 0 others were"):
        env.worker.request({"command": "images", "frames": [0]})
    shown = env.demonstrate(start)
    assert shown.cameras is not None and env.describe()["rendered"] == len(drawn)
    # an image's colour is its number; the wrist draws before the front
    colours = shown.cameras.read(f"{IMAGES}.front", range(len(shown.state)))[:, 0, 0, 0] * 255
    wrist = shown.cameras.read(f"{IMAGES}.wrist", range(len(shown.state)))[:, 0, 0, 0] * 255
    np.testing.assert_allclose(colours, 2 * (1 + np.arange(len(shown.state))), atol=1e-3)
    np.testing.assert_allclose(wrist, colours - 1, atol=1e-3)
    env.reset(options={"start": shown.start})
    assert env.instructions[3] == f"renders {2 * len(drawn)}" and env.describe()["rendered"] == len(drawn)
    for frame in {*range(7)} - {*drawn}:
        with pytest.raises(WorkerFailure, match=rf"frames \[{frame}\] of the last demonstration were not rendered"):
            env.worker.request({"command": "images", "frames": [0, frame]})


def test_a_film_has_a_picture_of_the_start_and_one_after_every_action(simulated: Make) -> None:
    for cameras, size in ((None, (128, 128, 3)), (replace(CAMERAS, cameras=("wrist",)), (CAMERAS.height, CAMERAS.width, 3))):
        env = simulated(cameras)
        env.reset(seed=2)
        assert env.video_frames is None
        env.video_frames = []
        env.reset(seed=2)
        env.step(pose(0.5, 0.0, 0.5))
        assert [picture.shape for picture in env.video_frames] == [size] * 2 and env.video_frames[0].dtype == np.uint8
        assert env.worker.pid is not None
        os.kill(env.worker.pid, signal.SIGKILL)
        assert env.step(pose(0.5, 0.0, 0.5))[4]["failure"] == "crash" and len(env.video_frames) == 2


def test_an_episode_whose_simulator_was_lost_by_a_picture_is_not_gone_on_with_in_another(simulated: Make) -> None:
    for name, number in (("crash", signal.SIGKILL), ("hang", signal.SIGSTOP)):
        env = simulated(CAMERAS, step_s=0.5)
        env.video_frames = []
        env.reset(seed=2)
        assert env.worker.pid is not None
        os.kill(env.worker.pid, number)
        env._take_snapshot()
        assert env.worker.pid is None and len(env.video_frames) == 1
        with pytest.raises(WorkerFailure, match=f"{name}: the simulator of this episode is gone"):
            env._request({"command": "observe"})
        assert env.step(pose(0.5, 0.0, 0.5))[4]["failure"] == name and env.worker.starts == 1
        env.reset(seed=2)
        assert env.worker.starts == 2


def test_each_action_may_choose_whether_its_path_avoids_collisions(simulated: Make) -> None:
    env = simulated(per_action_collision_checking=True, subsample=1)
    assert env.spec_task.action.names[-2:] == ("gripper_open", "avoids_collisions") and env.spec_task.action.size == 11
    shown = env.demonstrate(np.array([0.0, -1, 3, 0]))
    # the stand-in's seven frames: shares 0, 1/6 (a path of the model), 2/6, 3/6 (ignores collisions), 4/6, 5/6, 1
    assert shown.action[:, -1].tolist() == [0.0, 0.0, 0.0, 1.0, 1.0, 1.0]
    env.reset(options={"start": shown.start})
    for action in shown.action:
        info = env.step(action)[4]
    assert info["is_success"]
    env.reset(options={"start": shown.start})
    assert env.instructions[2] == "avoided [False, False, False, True, True, True]"


def test_joints_are_held_for_as_many_steps_as_were_left_out(simulated: Make) -> None:
    env = simulated(arm="joints", subsample=3)
    env.reset(seed=1)
    seen = env.step(np.array([0.1, 0, 0, -1, 0, 1, 0, 1.0]))[0][STATE]
    np.testing.assert_allclose(seen[10:], [0.1, 0, 0, -1, 0, 1, 0], atol=1e-6)


def test_the_versions_are_told(simulated: Make, replay: Make) -> None:
    described = simulated().describe()
    versions = described["versions"]
    assert (described["variations"], described["rendered"]) == (2, 0)
    assert versions["rlbench"] == "1.2.0" and versions["pyrep"] == "4.1.0.3"
    assert replay().describe()["variations"] == 1


def test_the_simulators_environment_finds_its_libraries_and_can_draw() -> None:
    found = simulator_environment({"COPPELIASIM_ROOT": "/sim", "LD_LIBRARY_PATH": "/a:/sim", "QT_QPA_PLATFORM": "offscreen"})
    assert found == {"COPPELIASIM_ROOT": "/sim", "LD_LIBRARY_PATH": "/sim:/a", "QT_QPA_PLATFORM_PLUGIN_PATH": "/sim"}
    assert simulator_environment({"QT_QPA_PLATFORM": "xcb"}) == {"QT_QPA_PLATFORM": "xcb"}
