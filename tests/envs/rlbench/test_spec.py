"""RLBench's settings, specs and poses: hand-made rotations there and back, and refusals that say what to do."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import envs
from envs.poses import pose_layout
from envs.rlbench.frames import is_open
from envs.rlbench.spec import RLBenchSettings, pose_numbers, state_from_frames, task_spec, world_pose

BASE = np.array([-0.3, 0.0, 0.75])


def test_a_pose_is_told_in_the_base_frame_by_two_columns() -> None:
    quarter = np.array([0.7, 0.1, 0.95, 0, 0, np.sqrt(0.5), np.sqrt(0.5)])  # a quarter turn about z: x becomes y
    np.testing.assert_allclose(pose_numbers(quarter, BASE), [1.0, 0.1, 0.2, 0, 1, 0, -1, 0, 0], atol=1e-12)


def test_poses_come_back(seed: int = 3) -> None:
    rng = np.random.default_rng(seed)
    poses = rng.normal(size=(20, 7))
    poses[:, 3:] /= np.linalg.norm(poses[:, 3:], axis=1, keepdims=True)
    for pose, numbers in zip(poses, pose_numbers(poses, BASE), strict=True):
        back = world_pose(numbers, BASE)
        np.testing.assert_allclose(back[:3], pose[:3])
        np.testing.assert_allclose(back[3:] * np.sign(back[3:] @ pose[3:]), pose[3:], atol=1e-9)


def test_columns_that_are_neither_of_length_one_nor_perpendicular_are_set_right() -> None:
    # the first column is x, the second is not perpendicular to it: what remains without x is y
    np.testing.assert_allclose(world_pose(np.array([0, 0, 0, 2.0, 0, 0, 0.5, 3, 0]), BASE), [*BASE, 0, 0, 0, 1], atol=1e-12)


@pytest.mark.parametrize("columns", [[0, 0, 0, 0, 1, 0], [1, 0, 0, 2, 0, 0], [1, 0, 0, 0, 0, 0]])
def test_columns_that_tell_no_rotation_are_refused(columns: list[float]) -> None:
    with pytest.raises(ValueError, match="give no rotation"):
        world_pose(np.array([0, 0, 0, *columns], dtype=float), BASE)


def test_the_gripper_is_open_above_the_threshold() -> None:
    low = {"gripper_open": np.ones(3), "gripper_joint_positions": np.array([[0.04, 0.04], [0.0372, 0.04], [0.0, 0.0]])}
    np.testing.assert_array_equal(is_open(low, 0.9), [1, 1, 0])  # 0.93 of the way
    np.testing.assert_array_equal(is_open(low, 0.95), [1, 0, 0])
    np.testing.assert_array_equal(is_open({"gripper_open": np.array([0.0, 1.0])}, 0.95), [0, 1])


def test_the_state_has_the_names_of_the_spec() -> None:
    spec = task_spec("rlbench/open_drawer", RLBenchSettings())
    low = {"gripper_pose": np.array([[0.7, 0.1, 0.95, 0, 0, 0, 1.0]]), "gripper_open": np.array([1.0]),
           "joint_positions": np.arange(7.0)[None]}  # fmt: skip
    state = dict(zip(spec.state_names, state_from_frames(low, BASE, 0.9)[0].tolist(), strict=True))
    assert state["x_m"] == pytest.approx(1.0) and state["r_xx"] == state["r_yy"] == 1 and state["r_xy"] == 0
    assert state["gripper_open"] == 1 and state["joint_7_rad"] == 6


def test_objects_are_told_in_the_base_frame_after_the_joints() -> None:
    low = {
        "gripper_pose": np.array([0.7, 0, 1.0, 0, 0, 0, 1.0]), "gripper_open": np.ones(()), "joint_positions": np.zeros(7),
        "objects": np.array([[0.7, 0.1, 0.95, 0, 0, np.sqrt(0.5), np.sqrt(0.5)], [-0.3, 0, 0.75, 1.0, 0, 0, 0]]),
    }  # fmt: skip
    # a quarter turn about z, and half a turn about x
    expected = [1.0, 0.1, 0.2, 0, 1, 0, -1, 0, 0, 0, 0, 0, 1, 0, 0, 0, -1, 0]
    np.testing.assert_allclose(state_from_frames(low, BASE, 0.9)[17:], expected, atol=1e-6)
    frames = {name: np.stack([values] * 4) for name, values in low.items()}
    np.testing.assert_allclose(state_from_frames(frames, BASE, 0.9)[:, 17:], [expected] * 4, atol=1e-6)
    spec = task_spec("rlbench/open_drawer", RLBenchSettings(objects=("handle", "lid")))
    assert spec.state_names[17:20] == ("handle_x_m", "handle_y_m", "handle_z_m") and len(spec.state_names) == 35
    layout = pose_layout(spec.state_names)
    assert layout.positions == ((0, 1, 2), (17, 18, 19), (26, 27, 28))
    assert layout.directions[2:4] == ((20, 21, 22), (23, 24, 25))


def test_objects_are_of_one_task_and_of_live_demonstrations() -> None:
    with pytest.raises(ValueError, match=r"rlbench.objects: got \['lid'\] for 'rlbench/a\+b'.*one policy a task"):
        task_spec("rlbench/a+b", RLBenchSettings(objects=("lid",)))
    for change in ({"dataset": "d"}, {"dataset": "d", "program": "replay"}):
        with pytest.raises(ValueError, match=r"rlbench.objects: got \['lid'\], but the stored demonstrations"):
            RLBenchSettings(objects=("lid",), **change).check()  # type: ignore[arg-type]
    one = RLBenchSettings()
    assert replace(one, objects=("lid",)).recording() == {**one.recording(), "objects": ("lid",)}


def test_what_an_action_is_follows_from_the_arm() -> None:
    spec = envs.task_spec("rlbench/open_drawer")
    assert spec.action.names[:3] == ("x_m", "y_m", "z_m") and spec.action.size == 10
    assert spec.dt_s == pytest.approx(0.15) and spec.max_steps == 200 and spec.modes == ("solved",)
    joints = task_spec("rlbench/open_drawer", RLBenchSettings(arm="joints", subsample=1))
    assert joints.action.size == 8 and joints.dt_s == 0.05
    assert "not simulated" in task_spec("rlbench/x", RLBenchSettings(program="replay", dataset="d")).summary


@pytest.mark.parametrize("name", ["rlbench/", "rlbench/Open Drawer", "rlbench/../x", "rlbench/a/b", "rlbench/9"])
def test_what_can_be_no_task_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="expected rlbench/ and the name of a file"):
        envs.task_spec(name)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"program": "rlbnch"}, "rlbench.program: unknown 'rlbnch'.*Did you mean 'rlbench'?"),
        ({"arm": "plan"}, "rlbench.arm: unknown 'plan'"),
        ({"renderer": "egl"}, "rlbench.renderer: unknown 'egl'"),
        ({"program": "replay"}, "rlbench.dataset: got none"),
        ({"variations": (0, 0)}, "rlbench.variations"),
        ({"variations": ()}, "rlbench.variations"),
        ({"objects": ("lid", "lid")}, "rlbench.objects: got .'lid', 'lid'., expected different names"),
        ({"objects": ("",)}, "rlbench.objects"),
        ({"subsample": 0}, "must be at least 1"),
        ({"step_s": 0.0}, "above 0"),
        ({"arm": "ik", "per_action_collision_checking": True}, "rlbench.per_action_collision_checking.*got arm ik"),
        ({"collision_checking": True, "per_action_collision_checking": True},
         "rlbench.per_action_collision_checking.*collision_checking True"),
        ({"restart_after": -1}, "restart_after and retries not below; got .*, -1, 5"),
        ({"retries": -1}, "restart_after and retries not below; got .*, 0, -1"),
        ({"gripper_threshold": 1.0}, "gripper_threshold: got 1.0"),
        ({"arm": "joints", "keyframes": True}, "rlbench.arm joints"),
        ({"arm": "joints", "collision_checking": True}, "rlbench.arm joints"),
    ],
)
def test_settings_that_make_no_sense_are_refused(change: dict[str, Any], message: str) -> None:
    RLBenchSettings().check()
    with pytest.raises(ValueError, match=message):
        replace(RLBenchSettings(), **change).check()


def test_where_a_run_is_made_changes_no_result() -> None:
    one = RLBenchSettings()
    assert replace(
        one, python="/opt/python", workers=7, step_s=1.0, start_s=2.0, restart_after=3
    ).recording() == one.recording()
    assert replace(one, arm="ik").recording() != one.recording()


def test_what_only_rollouts_depend_on_does_not_record_again() -> None:
    one = RLBenchSettings()
    for change in ({"max_steps": 40}, {"retries": 0}, {"collision_checking": True}):
        other = replace(one, **change)  # type: ignore[arg-type]
        assert other.recording() == one.recording() and other.rollouts() != one.rollouts()
    assert replace(one, subsample=5).rollouts() == one.rollouts()
