"""Every task: its expert reaches every mode, the average of its modes fails, and each failure has its name."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import envs
from envs.panda.base import last_side
from envs.specs import FAILURES, STATE


@pytest.mark.parametrize(("task", "starts"), [("avoid", 4), ("detour", 20), ("handles", 20)])
def test_the_expert_succeeds_in_every_mode_asked_for(task: str, starts: int, carry_out: Any) -> None:
    env = envs.make(task)
    wrong = []
    for seed in range(starts):
        rng = np.random.default_rng(seed)
        start = env.sample_start(rng)
        for mode in env.spec_task.modes:
            env.reset(options={"start": start})
            info = carry_out(env, env.plan(mode, rng))
            if not info["is_success"] or info["mode"] != mode:
                wrong.append((seed, mode, info))
    assert len(wrong) <= 0.05 * starts * len(env.spec_task.modes), wrong


@pytest.mark.parametrize("task", sorted(envs.TASKS))
def test_the_average_of_the_modes_always_fails(task: str, carry_out: Any) -> None:
    env = envs.make(task)
    for seed in range(30):
        rng = np.random.default_rng(1000 + seed)
        env.reset(options={"start": env.sample_start(rng)})
        plans = [env.plan(mode, rng) for mode in env.spec_task.modes]
        longest = max(len(plan) for plan in plans)
        padded = [np.concatenate([plan, np.repeat(plan[-1:], longest - len(plan), axis=0)]) for plan in plans]
        info = carry_out(env, np.mean(padded, axis=0))
        assert (info["is_success"], info["failure"], info["mode"]) == (False, "collision", "")


@pytest.mark.parametrize("task", ["detour", "handles"])
def test_left_and_right_are_mirror_images(task: str) -> None:
    env = envs.make(task)
    middle = (np.array(env.start_low) + np.array(env.start_high)) / 2
    env.reset(options={"start": middle})
    left, right = (env.plan(mode, np.random.default_rng(0)) for mode in ("left", "right"))
    assert abs(len(left) - len(right)) <= 1
    assert left[:, 1].max() > 0.12 and right[:, 1].min() < -0.12


@pytest.mark.parametrize("task", sorted(envs.TASKS))
def test_a_plan_goes_the_way_it_was_made_for(task: str) -> None:
    env = envs.make(task)
    for seed in range(5):
        rng = np.random.default_rng(seed)
        env.reset(options={"start": env.sample_start(rng)})
        for mode in env.spec_task.modes:
            plan = env.plan(mode, rng)
            assert "-".join(env.planned_modes(plan)) == mode
            assert set(env.planned_modes(plan[:2])) == {""}  # too short to tell


def test_a_path_close_to_what_stands_between_two_ways_tells_none() -> None:
    env = envs.make("avoid")
    env.reset(options={"start": np.array([0.30, 0.0])})

    def modes(*points: tuple[float, float]) -> tuple[str, ...]:
        return env.planned_modes(np.array(points))

    # pillars stand at y = 0 in row 1 (x = 0.41) and at 0.06, -0.06 in row 2 (x = 0.52); the rod touches them at 28 mm
    assert modes((0.40, 0.029), (0.42, 0.029)) == ("L", "", "")
    assert modes((0.40, 0.027), (0.42, 0.027)) == ("", "", "")
    assert modes((0.40, -0.05), (0.50, -0.05), (0.54, 0.05)) == ("R", "C", "")  # row 2 at y = 0, half-way
    assert modes((0.42, 0.06), (0.40, 0.06), (0.40, -0.06), (0.42, -0.06)) == ("R", "", "")  # the last crossing counts


def test_the_last_side_that_is_clear() -> None:
    assert last_side(np.array([0.0, 0.3, 0.1]), 0.2) == "left"
    assert last_side(np.array([0.3, -0.3, 0.1]), 0.2) == "right"
    assert last_side(np.array([0.2, -0.2]), 0.2) == ""


@pytest.mark.parametrize("task", sorted(envs.TASKS))
def test_standing_still_is_a_timeout(task: str) -> None:
    env = envs.make(task)
    env.reset(seed=0)
    stay = np.zeros(env.spec_task.action.size)
    stay[: min(3, stay.size)] = env.tool_position()[: min(3, stay.size)]
    for step in range(1, env.spec_task.max_steps + 1):
        _, reward, terminated, truncated, info = env.step(stay)
        assert not terminated and reward == 0.0
        assert truncated == (step == env.spec_task.max_steps)
    assert info == {"is_success": False, "failure": "timeout", "mode": ""}


def test_avoid_driving_into_a_pillar_is_a_collision_where_the_rod_touches(carry_out: Any) -> None:
    env = envs.make("avoid")
    env.reset(options={"start": [0.30, 0.0]})
    assert carry_out(env, np.array([[0.41, 0.0]]))["failure"] == "collision"
    # Pillar at x = 0.41, pillar radius 0.020 + rod radius 0.008: first touch at 0.382.
    assert env.tool_position()[0] == pytest.approx(0.382, abs=0.006)


def test_avoid_names_the_gaps_that_were_really_taken(carry_out: Any) -> None:
    env = envs.make("avoid")
    env.reset(options={"start": [0.30, 0.0]})
    corners = [(0.36, 0.06), (0.46, 0.06), (0.47, 0.0), (0.56, 0.0), (0.575, -0.06), (0.74, -0.06)]
    way = np.concatenate([np.repeat([corner], 10, axis=0) for corner in corners])
    assert carry_out(env, way) == {"is_success": True, "failure": "", "mode": "L-C-3"}


def test_avoid_leaving_to_the_side_is_off_table(carry_out: Any) -> None:
    env = envs.make("avoid")
    env.reset(options={"start": [0.30, 0.0]})
    assert carry_out(env, np.array([[0.32, 0.28]]))["failure"] == "off_table"


def test_detour_swerving_late_hits_the_pillar(carry_out: Any) -> None:
    env = envs.make("detour")
    env.reset(options={"start": [0.38, 0.0, 0.38, 0.0, 0.12]})
    plan = env.plan("left", np.random.default_rng(0))
    late = plan.copy()
    late[plan[:, 0] < 0.47, 1] = 0.0
    assert carry_out(env, late)["failure"] == "collision"


def test_detour_the_pillar_can_not_be_flown_over(carry_out: Any) -> None:
    env = envs.make("detour")
    env.reset(options={"start": [0.38, 0.0, 0.38, 0.0, 0.12]})
    down = [[0.38, 0.0, 0.02]] * 8
    grasp = np.array([[*xyz, opening] for opening in (0.04, 0.0) for xyz in down])
    over = np.array([[0.38, 0.0, 9.0, 0.0]] * 10 + [[0.70, 0.0, 9.0, 0.0]])
    assert carry_out(env, np.concatenate([grasp, over]))["failure"] == "collision"
    assert env.data.body("cube").xpos[2] > 0.12
    env.reset(options={"start": [0.38, 0.0, 0.38, 0.0, 0.12]})
    assert carry_out(env, over)["failure"] == "collision"  # nor by the closed fingers alone


@pytest.mark.parametrize("mode", ["left", "right"])
def test_detour_opening_the_gripper_on_the_way_drops_the_cube(mode: str, carry_out: Any) -> None:
    env = envs.make("detour")
    env.reset(seed=1)
    plan = env.plan(mode, np.random.default_rng(0))
    plan[np.abs(plan[:, 1]) > 0.1, 3] = 0.04
    assert carry_out(env, plan)["failure"] == "dropped"


def test_detour_a_cube_set_down_before_the_pillar_is_no_success(carry_out: Any) -> None:
    env = envs.make("detour")
    env.reset(options={"start": [0.38, 0.0, 0.38, 0.0, 0.12]})
    down, up = [0.38, 0.0, 0.02], [0.38, 0.0, 0.09]
    way = [[*down, 0.04]] * 10 + [[*down, 0.0]] * 6 + [[*up, 0.0]] * 10 + [[*down, 0.0]] * 10 + [[*down, 0.04]] * 10
    assert carry_out(env, np.array(way))["failure"] == "dropped"


def test_handles_letting_go_after_the_lift_drops_the_tray(carry_out: Any) -> None:
    env = envs.make("handles")
    env.reset(seed=1)
    plan = env.plan("right", np.random.default_rng(0))
    plan[-8:, 3] = 0.04
    assert carry_out(env, plan)["failure"] == "dropped"


def test_handles_coming_down_in_the_middle_is_a_collision_on_the_deck(carry_out: Any) -> None:
    env = envs.make("handles")
    env.reset(options={"start": [0.5, 0.0, 0.5, 0.0, 0.15]})
    assert carry_out(env, np.array([[0.5, 0.0, 0.037, 0.04]]))["failure"] == "collision"


def test_handles_the_tray_hangs_level_from_one_handle(carry_out: Any) -> None:
    env = envs.make("handles")
    env.reset(seed=2)
    assert carry_out(env, env.plan("left", np.random.default_rng(0)))["is_success"]
    upright = env.data.body("tray").xmat.reshape(3, 3)[2, 2]
    assert upright > np.cos(np.deg2rad(5.0))


@pytest.mark.parametrize("task", sorted(envs.TASKS))
def test_top_view_and_positions(task: str) -> None:
    env = envs.make(task)
    observation, _ = env.reset(seed=0)
    roles = {shape.role for shape in env.top_view()}
    assert {"obstacle", "goal", "start"} <= roles <= {"obstacle", "goal", "start", "object"}
    size = 2 if task == "avoid" else 3
    np.testing.assert_allclose(observation[STATE][:size], env.tool_position()[:size], atol=1e-6)
    position = env.object_position()
    assert (position is None) == (task == "avoid")
    if position is not None:
        np.testing.assert_allclose(observation[STATE][4:], position, atol=1e-6)


@pytest.mark.parametrize("task", sorted(envs.TASKS))
def test_our_tasks_conform(task: str) -> None:
    envs.check_env(envs.make(task), starts=1)


def test_the_checker_finds_what_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    env = envs.make("handles")
    with monkeypatch.context() as patch:
        patch.setattr(env, "_holding", lambda: "left")
        with pytest.raises(ValueError, match="plan of mode 'right' ended in .*'left'"):
            envs.check_env(env, starts=1)
    with monkeypatch.context() as patch:
        plan = env.plan
        patch.setattr(env, "plan", lambda mode, rng: plan(mode, rng)[:, :2])
        with pytest.raises(ValueError, match=r"finite float32 \[L, 4\]"):
            envs.check_env(env, starts=1)
    with monkeypatch.context() as patch:
        patch.setattr(env, "start_low", (0.48, -0.02))
        patch.setattr(env, "start_high", (0.52, 0.02))
        with pytest.raises(ValueError, match=r"sample_start must give \[5\]"):
            envs.check_env(env, starts=1)


def test_failure_names_are_the_agreed_ones() -> None:
    assert FAILURES == ("collision", "dropped", "off_table", "timeout", "unstable", "policy_error")
