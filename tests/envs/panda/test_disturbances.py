"""Disturbances: drawn again from seed and index, seen in the state, no jump, and nothing is torn out of the hand."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

import envs
from envs.panda.base import PandaEnv
from envs.panda.disturbances import Disturbance, Move
from envs.specs import STATE

DISTURBED = sorted(task for task, env in envs.TASKS.items() if env.disturbance is not None)
WITH_OBJECT = [task for task in DISTURBED if envs.disturbance(task).moves == "object"]


def _disturbance(**changes: Any) -> Disturbance:
    base = {"moves": "object", "summary": "", "step": (2, 5), "steps": 2, "low_m": 0.03, "high_m": 0.04}
    return Disturbance(**{**base, **changes})


def _hold(env: PandaEnv) -> np.ndarray:
    """The action that leaves the tool where it is, fingers open."""
    place = env.tool_position()
    return place[:2] if env.spec_task.action.size == 2 else np.array([*place, env.spec_task.action.high[3]])


def test_every_task_has_a_disturbance_that_moves_something_it_has() -> None:
    assert sorted(envs.TASKS) == DISTURBED
    for task in DISTURBED:
        assert envs.disturbance(task).summary.endswith(".")
        assert envs.disturbance(task).step[1] < envs.task_spec(task).max_steps
        if envs.disturbance(task).moves == "object":
            assert envs.TASKS[task].object_name


@pytest.mark.parametrize("task", DISTURBED)
def test_a_draw_is_the_same_again_and_another_for_another_episode_or_seed(task: str) -> None:
    disturbance = envs.disturbance(task)
    moves = [disturbance.draw(3, index) for index in range(200)]
    assert moves == [disturbance.draw(3, index) for index in range(200)]
    assert moves != [disturbance.draw(4, index) for index in range(200)]
    assert {move.step for move in moves} == set(range(disturbance.step[0], disturbance.step[1] + 1))
    assert {move.steps for move in moves} == {disturbance.steps}
    far = [math.hypot(*move.offset_m) for move in moves]
    assert min(far) >= disturbance.low_m - 1e-12 and max(far) <= disturbance.high_m + 1e-12


def test_a_direction_is_one_of_the_angles_give_or_take_the_spread() -> None:
    moves = [_disturbance(angles_rad=(0.0, math.pi / 2), spread_rad=0.1).draw(0, index) for index in range(300)]
    angles = np.array([math.atan2(move.offset_m[1], move.offset_m[0]) for move in moves])
    ahead, aside = angles[angles < 0.5], angles[angles > 0.5]
    assert len(ahead) > 100 and len(aside) > 100
    assert 0.08 < np.abs(ahead).max() <= 0.1 and 0.08 < np.abs(aside - math.pi / 2).max() <= 0.1


@pytest.mark.parametrize("task", WITH_OBJECT)
def test_a_pushed_object_is_seen_to_slide_to_its_place_and_to_stay_there(task: str) -> None:
    env = envs.make(task)
    before = env.reset(seed=0)[0][STATE][4:]
    assert env.spec_task.state_names[4:6] == (f"{env.object_name}_x_m", f"{env.object_name}_y_m")
    assert env.disturb(Move(0, 2, (0.012, -0.03)))
    places = [env.step(_hold(env))[0][STATE][4:] for _ in range(6)]
    np.testing.assert_allclose(places[0][:2] - before[:2], [0.006, -0.015], atol=0.003)  # about half of the way: no jump
    for place in places[1:]:
        np.testing.assert_allclose(place[:2] - before[:2], [0.012, -0.03], atol=0.0015)
        assert abs(place[2] - before[2]) < 0.001
    body = env.data.xmat[env.model.body(env.object_name).id].reshape(3, 3)
    assert body[2, 2] > 0.9999  # upright


@pytest.mark.parametrize("task", WITH_OBJECT)
def test_an_object_in_the_hand_is_left_there(task: str, carry_out: Any) -> None:
    ends = []
    for disturbed in (False, True):
        env = envs.make(task)
        env.reset(seed=1)
        plan = env.plan("left", np.random.default_rng(0))
        closed = int(np.argmax(plan[:, 3] < 0.01)) + 8
        for action in plan[:closed]:
            env.step(action)
        if disturbed:
            assert not env.disturb(Move(0, 2, (0.0, 0.04)))
        ends.append((carry_out(env, plan[closed:]), env.tool_position().tolist()))
    assert ends[0] == ends[1] and ends[0][0]["is_success"]


def test_a_caught_arm_follows_no_command_until_it_is_let_go() -> None:
    env = envs.make("avoid")
    start = env.reset(options={"start": np.array([0.30, 0.0])})[0][STATE]
    assert env.disturb(Move(0, 4, (0.0, 0.0)))
    held = [env.step(np.array([0.36, 0.02]))[0][STATE] for _ in range(4)]
    np.testing.assert_allclose(held, np.repeat(start[None], 4, 0), atol=1e-4)
    for _ in range(6):
        state = env.step(np.array([0.36, 0.02]))[0][STATE]
    np.testing.assert_allclose(state, [0.36, 0.02], atol=0.002)


def test_a_caught_arm_is_moved_aside_evenly() -> None:
    env = envs.make("avoid")
    env.reset(options={"start": np.array([0.30, 0.0])})
    assert env.disturb(Move(0, 5, (0.0, 0.04)))
    aside = [float(env.step(np.array([0.36, 0.0]))[0][STATE][1]) for _ in range(5)]
    assert np.all(np.diff([0.0, *aside]) > 0.002) and np.all(np.diff([0.0, *aside]) < 0.012)
    assert aside[-1] == pytest.approx(0.04, abs=0.006)  # the joints trail their targets by some 30 ms


@pytest.mark.parametrize("task", DISTURBED)
def test_a_new_episode_knows_nothing_of_the_last_ones_move(task: str) -> None:
    env = envs.make(task)
    start = env.sample_start(np.random.default_rng(0))
    paths = []
    for disturbed in (False, True):
        env.reset(options={"start": start})
        if disturbed:
            env.disturb(Move(0, 6, (0.0, 0.03)))
            env.step(_hold(env))
            env.reset(options={"start": start})
        paths.append([env.step(_hold(env))[0][STATE] for _ in range(5)])
    np.testing.assert_array_equal(*paths)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"moves": "pillar"}, "moves one of .*'pillar'"),
        ({"step": (5, 2)}, "0 <= first <= last"),
        ({"step": (-1, 2)}, "0 <= first <= last"),
        ({"steps": 0}, "steps >= 1"),
        ({"low_m": 0.05}, "0 <= low <= high"),
        ({"high_m": math.inf}, "0 <= low <= high"),
        ({"angles_rad": ()}, "a direction"),
    ],
)
def test_a_disturbance_that_cannot_be_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        _disturbance(**changes)


@pytest.mark.parametrize("wrong", [(-1, 2, (0.0, 0.0)), (0, 0, (0.0, 0.0)), (0, 2, (math.nan, 0.0))])
def test_a_move_that_cannot_be_is_refused(wrong: tuple[int, int, tuple[float, float]]) -> None:
    with pytest.raises(ValueError, match="a move needs"):
        Move(*wrong)


def test_who_cannot_be_disturbed_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    env = envs.make("avoid")
    with pytest.raises(RuntimeError, match="no episode is running"):
        env.disturb(Move(0, 2, (0.0, 0.0)))
    monkeypatch.setattr(envs.TASKS["avoid"], "disturbance", None)
    with pytest.raises(ValueError, match=r"'avoid' has no disturbance; the tasks that have one are \['detour', 'handles'\]"):
        envs.disturbance("avoid")
    env.reset(seed=0)
    with pytest.raises(ValueError, match="'avoid' has no disturbance"):
        env.disturb(Move(0, 2, (0.0, 0.0)))
