"""envs/poses.py: positions and directions found by name, and least half ranges."""

from __future__ import annotations

import pytest

from envs.panda.detour import SPEC as DETOUR
from envs.poses import LEAST_HALF_RANGES, MISSING, PoseLayout, pose_layout
from envs.rlbench.spec import JOINTS, POSE, STATE_NAMES


def test_layout_of_a_pose_with_joints() -> None:
    layout = pose_layout(STATE_NAMES)
    assert layout.positions == ((0, 1, 2),)
    assert layout.directions == ((3, 4, 5), (6, 7, 8))
    assert layout.grippers == (9,)
    assert layout.angles == tuple(range(10, 17)) and STATE_NAMES[10:] == JOINTS


def test_every_object_of_a_state_has_its_position_and_a_finger_has_none() -> None:
    layout = pose_layout(DETOUR.state_names)
    assert DETOUR.state_names[3] == "finger_m"
    assert layout == PoseLayout(positions=((0, 1, 2), (4, 5, 6)))


def test_a_missing_axis_is_marked() -> None:
    assert pose_layout(("tool_x_m", "tool_y_m")).positions == ((0, 1, MISSING),)
    assert pose_layout(("box_m", "index_m")).positions == ()


def test_half_a_rotation_is_refused() -> None:
    with pytest.raises(ValueError, match="r_xx: got no r_yx and r_zx"):
        pose_layout(("r_xx", "r_yx"))


def test_least_half_ranges_by_kind() -> None:
    kinds = LEAST_HALF_RANGES
    got = pose_layout((*POSE, "joint_1_rad", "finger_m")).least_half_ranges(12)
    assert got == [kinds["position"]] * 3 + [kinds["rotation"]] * 6 + [kinds["gripper"], kinds["angle"], 0.0]
    # an axis that is not there has no place in the result
    assert pose_layout(("a_x_m", "a_y_m", "other")).least_half_ranges(3) == [kinds["position"]] * 2 + [0.0]
