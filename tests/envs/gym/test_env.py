"""An environment in a process of its own: observations, actions, success, cameras, failures by name, demonstrations."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from envs.cameras.specs import CameraSettings
from envs.gym.env import GymEnv, gym_cameras
from envs.gym.settings import GymSettings
from envs.gym.spec import gym_spec
from envs.process.worker import WorkerFailure
from envs.specs import DEPTH, IMAGES, POINTS, STATE
from tests.envs.gym.conftest import MAPPING

Point = Callable[..., GymSettings]
ODD, EVEN = np.array([1.0]), np.array([2.0])


@contextlib.contextmanager
def opened(settings: GymSettings, cameras: CameraSettings | None = None) -> Iterator[GymEnv]:
    with contextlib.closing(GymEnv("point", settings, cameras)) as env:
        yield env


def run(env: GymEnv, start: np.ndarray, action: float) -> tuple[list[Any], dict[str, Any]]:
    """The states of an episode with one action throughout, and the last info."""
    states = [env.reset(options={"start": start})[0][STATE]]
    while True:
        observation, _, terminated, truncated, info = env.step(np.array([action]))
        states.append(observation[STATE])
        if terminated or truncated:
            return states, info


def test_the_spec_is_what_mapping_and_spaces_say(point: Point) -> None:
    spec = gym_spec("point", point())
    assert (spec.name, spec.state_names, spec.modes) == ("point", ("x_m", "y_m", "goal_m"), ("left", "right"))
    assert (spec.action.names, spec.action.low, spec.action.high) == (("action_0",), (-1.0,), (1.0,))
    assert (spec.dt_s, spec.max_steps, spec.start_names) == (0.1, 12, ("seed",))


def test_what_the_mapping_leaves_out_is_the_environments_own(point: Point) -> None:
    spec = gym_spec("point", point("limited=9", mapping="state: [agent.xy, goal]\nsuccess: terminated"))
    assert spec.state_names == ("agent.xy_0", "agent.xy_1", "goal") and spec.modes == ("solved",)
    assert (spec.dt_s, spec.max_steps) == (0.1, 9)  # 10 frames per second; gymnasium's time limit


def test_an_episode_moves_as_the_environment_does(point: Point) -> None:
    with opened(point()) as env:
        states, info = run(env, EVEN, 1.0)
        assert len(states) == 9 and info["is_success"] and info["mode"] == "right" and info["failure"] == ""
        assert [state[0] - states[0][0] for state in states] == pytest.approx([0.1 * step for step in range(9)], abs=1e-6)
        assert [state[1] for state in states] == [step / 8 for step in range(9)]
        assert info["score"] == pytest.approx(abs(states[-1][0]), abs=1e-6)
        assert env.tool_position() == pytest.approx([states[-1][0], 1.0, 0.0])
        again, info = run(env, EVEN, -1.0)
        assert again[0].tolist() == states[0].tolist() and info["mode"] == "left"
        assert run(env, np.array([4.0]), 1.0)[0][0].tolist() != states[0].tolist()
        info = run(env, EVEN, 0.0)[1]
        assert (info["is_success"], info["failure"]) == (False, "task_failed")
        with pytest.raises(RuntimeError, match="no episode is running"):
            env.step(np.zeros(1))


def test_actions_are_scaled_and_clipped(point: Point) -> None:
    mapping = MAPPING + "action: {names: [dx_m], scale: 10, offset: 0.5}\n"
    with opened(point(mapping=mapping)) as env:
        assert env.spec_task.action.low == pytest.approx((-0.15,)) and env.spec_task.action.high == pytest.approx((0.05,))
        assert env.to_env(np.array([0.02])) == pytest.approx([0.7])
        assert env.to_env(np.array([9.0])) == pytest.approx([1.0])
        states, _ = run(env, EVEN, 0.02)
        assert states[1][0] - states[0][0] == pytest.approx(0.07, abs=1e-6)
        for bad in (np.zeros(2), np.array([np.nan])):
            env.reset(options={"start": EVEN})
            with pytest.raises(ValueError, match="an action is 1 finite numbers"):
                env.step(bad)


def test_a_discrete_action_is_the_greatest_number(point: Point) -> None:
    with opened(point("discrete=true")) as env:
        assert env.spec_task.action.names == ("action_0", "action_1")
        env.reset(options={"start": EVEN})
        before = env.reset(options={"start": EVEN})[0][STATE][0]
        assert env.step(np.array([0.2, 0.7]))[0][STATE][0] - before == pytest.approx(0.1, abs=1e-6)
        assert env.step(np.array([0.9, 0.7]))[0][STATE][0] - before == pytest.approx(0.0, abs=1e-6)


def test_success_must_hold_and_time_runs_out(point: Point) -> None:
    with opened(point(mapping=MAPPING.replace("info.is_success", "info.far >= 0.35\nhold: 2"))) as env:
        states, info = run(env, EVEN, 1.0)
        over = next(step for step, state in enumerate(states) if abs(state[0]) >= 0.35)
        assert info["is_success"] and len(states) == over + 2
    with opened(point(mapping=MAPPING.replace("info.is_success", "reward > 99"))) as env:
        states, info = run(env, EVEN, 1.0)
        assert (len(states), info["failure"]) == (13, "timeout")


def test_a_start_is_a_seed(point: Point) -> None:
    with opened(point()) as env:
        for bad in ([1.5], [-1.0], [np.nan], [1.0, 2.0]):
            with pytest.raises(ValueError, match="a start is one seed"):
                env.reset(options={"start": np.array(bad)})


# -- failures ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("fails", "name"), [("dies", "crash"), ("raises", "error"), ("hangs", "hang")])
def test_a_failing_environment_ends_its_episode_with_a_name_and_the_next_one_runs(point: Point, fails: str, name: str) -> None:
    with opened(point(f"fails={fails}", step_s=1.5 if fails == "hangs" else 60.0)) as env:
        states, info = run(env, ODD, 1.0)
        assert (len(states), info["failure"], info["is_success"]) == (4, name, False)
        assert states[-1].tolist() == states[-2].tolist()  # the last good one
        assert run(env, EVEN, 1.0)[1]["is_success"] and env.worker.starts == 2


def test_a_killed_process_is_a_crash(point: Point) -> None:
    with opened(point()) as env:
        env.reset(options={"start": EVEN})
        env.step(np.ones(1))
        assert env.worker.pid is not None
        os.kill(env.worker.pid, signal.SIGKILL)
        _, reward, terminated, truncated, info = env.step(np.ones(1))
        assert (reward, terminated, truncated, info["failure"]) == (0.0, True, False, "crash")


# -- cameras -----------------------------------------------------------------------------------------------------------


def test_images_depth_and_points_come_as_features(point: Point) -> None:
    settings = point()
    wanted = CameraSettings(cameras=("front",), width=16, height=12, num_points=20)
    cameras = gym_cameras(settings, wanted)
    with opened(settings, cameras) as env:
        seen, _ = env.reset(options={"start": EVEN})
        picture = np.arange(576, dtype=np.uint8).reshape(12, 16, 3)
        assert np.array_equal(seen[f"{IMAGES}.front"], picture.transpose(2, 0, 1).astype(np.float32) / np.float32(255))
        assert np.allclose(seen[f"{DEPTH}.front"][0], np.linspace(0.5, 2, 192).reshape(12, 16))
        cloud = np.linspace(-1, 1, 60, dtype=np.float32).reshape(20, 3)
        assert sorted(map(tuple, seen[POINTS].tolist())) == sorted(map(tuple, cloud.tolist()))


def test_a_rendered_frame_can_be_an_image_of_another_size(point: Point) -> None:
    settings = point()
    cameras = gym_cameras(settings, CameraSettings(cameras=("wrist",), width=8, height=6, depth=False, num_points=0))
    with opened(settings, cameras) as env:
        env.cameras_on_demand = True
        assert set(env.reset(options={"start": EVEN})[0]) == {STATE}
        image = env.observe_cameras()[f"{IMAGES}.wrist"]
        assert image.shape == (3, 6, 8) and image.min() == pytest.approx(40 / 255)


def test_a_feature_that_is_not_mapped_is_refused(point: Point) -> None:
    plain = point(mapping="state: goal\nsuccess: terminated\nmax_steps: 9")
    with pytest.raises(ValueError, match="images of camera 'front' are wanted"):
        gym_cameras(plain, CameraSettings(cameras=("front",), depth=False, num_points=0))
    with pytest.raises(ValueError, match="points are wanted"):
        gym_cameras(plain, CameraSettings(images=False, depth=False))


# -- demonstrations ----------------------------------------------------------------------------------------------------


def test_the_expert_demonstrates_in_the_mode_that_is_asked_for(point: Point) -> None:
    cameras = CameraSettings(cameras=("front",), width=16, height=12, depth=False, num_points=0)
    with opened(point(), cameras) as env:
        for mode, sign in (("left", -1.0), ("right", 1.0)):
            shown = env.demonstrate(EVEN, mode, 0)
            assert shown.mode == mode and shown.action[:, 0].tolist() == [sign] * 8 and shown.start.tolist() == [2.0]
            assert shown.state[:, 1].tolist() == [step / 8 for step in range(8)]
            assert shown.tool[:, 0].tolist() == shown.state[:, 0].tolist()
            assert shown.cameras is not None and shown.cameras.num_frames == 8


def test_a_disturbed_expert_is_recorded_as_it_wanted(point: Point) -> None:
    with opened(point(expert_noise=0.3)) as env:
        shown, again = (env.demonstrate(EVEN, "right", seed) for seed in (5, 5))
        other = env.demonstrate(EVEN, "right", 6)
    assert shown.action[:, 0].tolist() == [1.0] * 8  # wanted
    moved = np.diff(shown.state[:, 0])
    assert moved.max() <= 0.1 + 1e-6 and moved.min() < 0.09  # executed, and clipped
    assert shown.state.tolist() == again.state.tolist() != other.state.tolist()


@pytest.mark.parametrize(("expert", "name"), [("timid", "demo_error"), ("clumsy", "task_failed")])
def test_an_expert_that_fails_is_a_failure_with_a_name(point: Point, expert: str, name: str) -> None:
    settings = point()
    with opened(point(expert=settings.expert.replace(":expert", f":{expert}"))) as env:
        with pytest.raises(WorkerFailure) as caught:
            env.demonstrate(EVEN, "", 0)
        assert caught.value.name == name


# -- refusals ----------------------------------------------------------------------------------------------------------


def test_everything_that_does_not_fit_is_said_at_once(point: Point) -> None:
    mapping = """\
state: {agent.xz: [x_m], goal: [a, b], agent.xy: {x: 5}}
images: {front: goal}
points: depth
success: terminated
action: {names: [a, b]}
tool: [y, x]
"""
    with pytest.raises(ValueError) as caught:
        gym_spec("point", point(mapping=mapping))
    lines = [line.split(".yaml: ")[1] for line in str(caught.value).splitlines()]
    assert [line.split(":")[0] for line in lines] == [
        "state", "state.goal", "state.agent.xy", "images.front", "points", "action.names", "max_steps", "tool",
    ]  # fmt: skip
    assert "the observation has no 'agent.xz'. Did you mean 'agent.xy'?" in lines[0]
    assert "got 2 names, the environment gives 1 numbers" in lines[1] and "got index 5" in lines[2]


@pytest.mark.parametrize(("further", "message"), [
    ({"gym": "no/Such-v0"}, "did not start"),
    ({"make": ("speed=3",)}, "unexpected keyword argument 'speed'"),
    ({"make": ("speed",)}, "expected key=value"),
    ({"mapping": "nowhere.yaml"}, "there is no file nowhere.yaml"),
    ({"mapping": ""}, "world.mapping: got none"),
    ({"gym": ""}, "world.gym: got none"),
    ({"expert": "nobody.py"}, "there is no file nobody.py"),
    ({"python": "/nowhere/python"}, "can not be started"),
    ({"demonstrations": "nowhere", "expert": ""}, "nowhere does not exist"),
    ({"demonstrations": "."}, "expected one of them"),
    ({"workers": 0}, "workers must be at least 1"),
])  # fmt: skip
def test_wrong_settings_are_one_clear_line(point: Point, further: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        gym_spec("point", replace(point(), **further))
    assert "\n" not in str(caught.value)
