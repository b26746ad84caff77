"""The arm against hand-computed kinematics, and the contract every task inherits."""

from __future__ import annotations

import math
from pathlib import Path

import gymnasium
import mujoco
import numpy as np
import pytest

import envs
from envs.panda.arm import HOME_Q, JOINT_HIGH, JOINT_LOW, solve_ik
from envs.panda.base import smooth_path
from envs.specs import STATE


def dh_tool_position(q: np.ndarray) -> np.ndarray:
    """Tool centre from the published (Craig) DH table: a_{i-1}, d_i, alpha_{i-1}, then flange and finger length."""
    quarter = math.pi / 2
    table = [
        (0.0, 0.333, 0.0),
        (0.0, 0.0, -quarter),
        (0.0, 0.316, quarter),
        (0.0825, 0.0, quarter),
        (-0.0825, 0.384, -quarter),
        (0.0, 0.0, quarter),
        (0.088, 0.0, quarter),
    ]
    pose = np.eye(4)
    for (a, d, alpha), angle in zip(table, q, strict=True):
        c, s, ca, sa = math.cos(angle), math.sin(angle), math.cos(alpha), math.sin(alpha)
        pose = pose @ np.array(
            [[c, -s, 0, a], [s * ca, c * ca, -sa, -d * sa], [s * sa, c * sa, ca, d * ca], [0, 0, 0, 1]]
        )
    return (pose @ np.array([0, 0, 0.107 + 0.1034, 1.0]))[:3]


def test_forward_kinematics_at_the_stretched_arm() -> None:
    env = envs.make("detour")
    env.data.qpos[:7] = 0.0
    mujoco.mj_forward(env.model, env.data)
    # 0.333 + 0.316 + 0.384 up, 0.107 + 0.1034 down again, 0.088 ahead.
    np.testing.assert_allclose(env.tool_position(), [0.088, 0.0, 0.8226], atol=1e-9)


def test_forward_kinematics_against_the_dh_table() -> None:
    env = envs.make("avoid")
    rng = np.random.default_rng(0)
    for q in [HOME_Q, *rng.uniform(JOINT_LOW, JOINT_HIGH, (20, 7))]:
        env.data.qpos[:7] = q
        mujoco.mj_forward(env.model, env.data)
        np.testing.assert_allclose(env.tool_position(), dh_tool_position(q), atol=1e-9)


@pytest.mark.parametrize("task", sorted(envs.TASKS))
def test_inverse_kinematics_reaches_the_whole_action_box(task: str) -> None:
    env = envs.make(task)
    spec = env.spec_task
    rng = np.random.default_rng(1)
    for action in rng.uniform(spec.action.low, spec.action.high, (40, spec.action.size)):
        target, _ = env._command(action)
        q, error = solve_ik(env.model, env._scratch, HOME_Q, target, iterations=60, tolerance_m=1e-5)
        assert error < 0.003, f"{target} is {error * 1000:.1f} mm away"
        assert (q >= JOINT_LOW).all() and (q <= JOINT_HIGH).all()
        env.data.qpos[:7] = q
        mujoco.mj_forward(env.model, env.data)
        np.testing.assert_allclose(env.tool_position(), target, atol=0.003)
        down = env.data.site("tool").xmat.reshape(3, 3)[:, 2]
        assert math.degrees(math.acos(min(1.0, -down[2]))) < 2.0


def test_the_arm_follows_slow_targets_within_millimetres() -> None:
    env = envs.make("avoid")
    env.reset(options={"start": [0.30, 0.0]})
    for x in np.linspace(0.30, 0.34, 41):
        env.step(np.array([x, 0.0]))
    x, y, z = env.tool_position()
    assert abs(x - 0.34) < 0.003 and abs(y) < 0.001 and abs(z - 0.17) < 0.001


def test_smooth_path_keeps_its_ends_its_speed_and_rounds_the_corner() -> None:
    points = np.array([[0.0, 0.0], [0.2, 0.0], [0.2, 0.2]])
    path = smooth_path(points, speed_m_s=0.4, dt_s=0.05, rounding_m=0.04)
    steps = np.linalg.norm(np.diff(np.concatenate([points[:1], path]), axis=0), axis=1)
    np.testing.assert_allclose(path[-1], points[-1], atol=1e-9)
    np.testing.assert_allclose(steps, 0.02, rtol=0.05)
    assert np.linalg.norm(path - points[1], axis=1).min() > 0.005
    np.testing.assert_allclose(path[path[:, 0] < 0.1, 1], 0.0, atol=1e-9)


@pytest.mark.parametrize("task", sorted(envs.TASKS))
def test_same_start_and_actions_give_the_same_trajectory(task: str) -> None:
    first, second = envs.make(task), envs.make(task)
    assert first.model is second.model
    start = first.sample_start(np.random.default_rng(3))
    second.reset(seed=99)
    for _ in range(3):
        second.step(np.array(second.spec_task.action.low))  # another past must leave no trace
    first.reset(options={"start": start})
    plan = first.plan(first.spec_task.modes[0], np.random.default_rng(4))
    second.reset(options={"start": start})
    for action in plan[:30]:
        one, other = first.step(action), second.step(action)
        np.testing.assert_array_equal(one[0][STATE], other[0][STATE])
        assert one[1:] == other[1:]
        if one[2] or one[3]:
            break


@pytest.mark.parametrize("task", sorted(envs.TASKS))
def test_wrong_starts_actions_and_modes_are_refused(task: str) -> None:
    env = envs.make(task)
    starts, actions = len(env.spec_task.start_names), env.spec_task.action.size
    with pytest.raises(RuntimeError, match="call reset"):
        env.step(np.zeros(actions))
    with pytest.raises(ValueError, match=rf"start must have shape \({starts},\).*got \({starts + 1},\)"):
        env.reset(options={"start": np.zeros(starts + 1)})
    with pytest.raises(ValueError, match="start must be finite"):
        env.reset(options={"start": np.full(starts, np.nan)})
    with pytest.raises(ValueError, match="out of reach"):
        env.reset(options={"start": np.full(starts, 2.0)})
    env.reset(seed=0)
    with pytest.raises(ValueError, match=rf"action must have shape \({actions},\)"):
        env.step(np.zeros((1, actions)))
    with pytest.raises(ValueError, match="action must be finite"):
        env.step(np.full(actions, np.inf))
    with pytest.raises(ValueError, match="has no mode 'up'"):
        env.plan("up", np.random.default_rng(0))


@pytest.mark.parametrize("task", sorted(envs.TASKS))
@pytest.mark.parametrize("speed", [np.nan, 1e9])
def test_a_simulator_gone_wild_is_a_failure_not_an_exception(
    task: str, speed: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # MuJoCo writes MUJOCO_LOG.TXT where it is
    env = envs.make(task)
    env.reset(seed=0)
    env.data.qvel[2] = speed
    observation, reward, terminated, truncated, info = env.step(np.array(env.spec_task.action.low))
    assert np.isfinite(observation[STATE]).all()
    assert (reward, terminated, truncated) == (0.0, True, False)
    assert info == {"is_success": False, "failure": "unstable", "mode": ""}


@pytest.mark.parametrize("task", sorted(envs.TASKS))
def test_gymnasium_makes_the_task(task: str) -> None:
    env = gymnasium.make(f"flow2one/{task.capitalize()}-v0")
    observation, _ = env.reset(seed=5)
    again, _ = env.reset(seed=5)
    np.testing.assert_array_equal(observation[STATE], again[STATE])
    assert env.observation_space.contains(observation)
    env.step(env.action_space.sample())
    env.close()


def test_an_unknown_task_is_answered_with_the_nearest_name() -> None:
    with pytest.raises(ValueError, match="unknown task 'detuor'.*did you mean 'detour'"):
        envs.make("detuor")
    with pytest.raises(ValueError, match="unknown task 'xyz'"):
        envs.task_spec("xyz")
