"""envs/rlbench/robot.py: the Panda's kinematics against its model in MuJoCo, and points on and off its capsules."""

from __future__ import annotations

import mujoco
import numpy as np

from envs.panda.arm import compile_model, panda_mjcf
from envs.rlbench.robot import capsules, joint_origins, on_robot

JOINTS = np.array([0.3, -0.4, 0.2, -2.0, 0.5, 1.9, -0.6])
TOOL = np.array([0.5, 0.1, 0.4, 1.0, 0.0, 0.0, 0.0])  # fingers down: half a turn about x


def test_joints_stand_where_they_do_in_the_model() -> None:
    model = compile_model(panda_mjcf("test", ""))
    data = mujoco.MjData(model)
    names = [model.joint(index).name for index in range(model.njnt)]
    arm = [name for name in names if name.endswith(tuple("1234567")) and "finger" not in name][:7]
    for name, angle in zip(arm, JOINTS, strict=True):
        data.joint(name).qpos[0] = angle
    mujoco.mj_kinematics(model, data)
    expected = np.array([data.xanchor[model.joint(name).id] for name in arm])
    axes = np.array([data.xaxis[model.joint(name).id] for name in arm])
    # along a joint's axis the place of its origin is a convention; across it, it is not
    gap = joint_origins(JOINTS) - expected
    across = gap - (gap * axes).sum(-1, keepdims=True) * axes
    np.testing.assert_allclose(across, 0.0, atol=2e-3)


def test_points_are_on_the_robot_within_a_capsules_radius() -> None:
    first, second, radius = capsules(JOINTS, TOOL)
    middle, along = (first + second) / 2, second - first
    aside = np.cross(along, [0.3, 0.7, -0.2])
    aside /= np.maximum(np.linalg.norm(aside, axis=-1, keepdims=True), 1e-9)
    assert on_robot(middle + 0.99 * radius[:, None] * aside, JOINTS, TOOL).all()
    # brute force: the distance to each segment, sampled finely
    rng = np.random.default_rng(0)
    points = rng.uniform([-0.3, -0.6, -0.1], [0.9, 0.6, 1.2], size=(400, 3))
    share = np.linspace(0, 1, 2001)[:, None, None]
    segments = first + share * along
    nearest = np.linalg.norm(points[:, None, None] - segments[None], axis=-1).min(1)
    expected = (nearest < radius).any(-1)
    near = (np.abs(nearest - radius) < 1e-3).any(-1)
    assert expected.any() and not expected.all()
    np.testing.assert_array_equal(on_robot(points, JOINTS, TOOL)[~near], expected[~near])


def test_what_is_between_the_fingers_and_below_them_is_seen() -> None:
    tip = TOOL[:3]
    points = tip + np.array([[0.0, 0.0, 0.0], [0.0, 0.0, -0.05], [0.0, 0.045, 0.03], [0.0, 0.0, 0.09], [0.3, 0.0, 0.0]])
    np.testing.assert_array_equal(on_robot(points, JOINTS, TOOL), [False, False, True, True, False])
    assert on_robot(np.zeros((0, 3)), JOINTS, TOOL).shape == (0,)
