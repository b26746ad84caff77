"""The world that does not wait: which action when, what an answer costs, and with no latency the rollouts as they were."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import envs
import teachers
from distill.evaluation.policies import StudentPolicy, TeacherPolicy
from distill.evaluation.real_time import Clock, RealTimeEpisode, delay_steps, outcome, run_in_real_time
from distill.evaluation.rollouts import run_episodes
from envs.panda.disturbances import Disturbance
from envs.panda.recording import stored_starts
from students.selection import SINGLE_SAMPLE, Selection
from teachers.networks.shapes import PolicyShape

STARTS = stored_starts("avoid", 0, "test", 6)


# -- the clock, by hand ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("latency_ms", "dt_s", "steps"),
    [(0, 0.05, 0), (0.001, 0.05, 1), (6, 0.05, 1), (50, 0.05, 1), (50.1, 0.05, 2), (116, 0.05, 3), (150, 0.05, 3),
     (1000, 0.05, 20), (300, 0.1, 3)],
)  # fmt: skip
def test_the_steps_that_begin_while_a_plan_is_made_are_lost(latency_ms: float, dt_s: float, steps: int) -> None:
    assert delay_steps(latency_ms, dt_s) == steps


def _table(clock: Clock, horizon: int, steps: int) -> list[tuple[int, int]]:
    """(the step the plan was asked at, which of its actions) of the first control steps."""
    return [(clock.newest(step), clock.action(step, horizon)) for step in range(steps)]


def test_without_delay_a_plan_is_carried_out_from_its_first_action_on() -> None:
    assert _table(Clock(0, 3), 8, 7) == [(0, 0), (0, 1), (0, 2), (3, 0), (3, 1), (3, 2), (6, 0)]
    assert [step for step in range(9) if Clock(0, 4).queries_at(step)] == [0, 4, 8]


def test_a_late_plan_is_entered_where_time_is() -> None:
    """Asked at 3, there at 5: its actions for steps 3 and 4 are skipped."""
    assert _table(Clock(2, 3, delays_per_query=1), 8, 9) == [
        (0, 0), (0, 1), (0, 2), (0, 3), (0, 4), (3, 2), (3, 3), (3, 4), (6, 2)
    ]  # fmt: skip


def test_a_policy_makes_one_plan_at_a_time_and_follows_it_as_long_as_it_is_patient() -> None:
    assert [Clock(5, 3, delays_per_query).period for delays_per_query in (1, 1.5, 2)] == [5, 8, 10]  # 7.5 is rounded up
    assert [Clock(delay, 4).period for delay in (0, 1, 2, 3, 4)] == [4, 4, 4, 6, 8]
    # asked at 2, 4, ..: the plan that comes in when the next is asked for is the one before it
    assert _table(Clock(2, 1, delays_per_query=1), 8, 8) == [(0, 0), (0, 1), (0, 2), (0, 3), (2, 2), (2, 3), (4, 2), (4, 3)]


def test_a_plan_that_runs_out_holds_its_last_target() -> None:
    assert _table(Clock(3, 4, delays_per_query=1), 4, 9) == [
        (0, 0), (0, 1), (0, 2), (0, 3), (0, 3), (0, 3), (0, 3), (4, 3), (4, 3)
    ]  # fmt: skip


@pytest.mark.parametrize("wrong", [{"delay": -1}, {"every": 0}, {"delays_per_query": 0.5}, {"delays_per_query": math.inf}])
def test_a_clock_that_cannot_be_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="delay >= 0 and every >= 1|delays_per_query: got"):
        Clock(**{"delay": 0, "every": 1, **wrong})


@pytest.mark.parametrize("latency_ms", [-1.0, math.nan, math.inf])
def test_a_latency_that_is_no_time_is_refused(latency_ms: float) -> None:
    with pytest.raises(ValueError, match="latency_ms: got .*expected at least 0 milliseconds"):
        delay_steps(latency_ms, 0.05)


# -- the same as without a clock ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("selection", "every"),
    [(SINGLE_SAMPLE, 3), (SINGLE_SAMPLE, 8), (Selection("outlier_rejection", 5), 5),
     (Selection("temporal_consistency", 5, 3), 3),
     (Selection("kept_latent"), 4)],
)  # fmt: skip
def test_with_no_latency_and_no_disturbance_an_episode_is_that_of_the_synchronous_rollouts(
    make_student: Callable[..., Any], selection: Selection, every: int
) -> None:
    policy = StudentPolicy(make_student(), "student")
    indices = [3, 0, 1, 2]
    waiting = run_episodes("avoid", policy, STARTS, indices, every, 7, 9, at_once=3, selection=selection)
    moving = run_in_real_time("avoid", policy, STARTS, indices, Clock(0, every), 7, False, 9, at_once=3, selection=selection)
    assert [run.episode for run in moving] == waiting
    assert len({episode.steps for episode in waiting}) > 1 and sum(episode.compared for episode in waiting) > 0 or every == 8
    assert {(run.disturbed_at, run.reaction_steps) for run in moving} == {(None, None)}


@pytest.mark.parametrize("task", ["detour", "handles"])
def test_with_no_latency_a_teacher_does_in_other_tasks_what_it_did(task: str, small_shape: PolicyShape) -> None:
    spec = envs.task_spec(task)
    size, actions = len(spec.state_names), spec.action
    teacher = teachers.make_teacher("flow", replace(
        small_shape, task=task, state_names=spec.state_names, action_names=actions.names, action_weights=actions.weights
    ))  # fmt: skip
    teacher.normaliser.fit({"state": {"min": -np.ones(size), "max": np.ones(size)},
                            "action": {"min": np.array(actions.low), "max": np.array(actions.high)}})  # fmt: skip
    policy, starts = TeacherPolicy(teacher.eval(), 2), stored_starts(task, 0, "test", 2)
    waiting = run_episodes(task, policy, starts, [0, 1], 8, 7, 2)
    assert [run.episode for run in run_in_real_time(task, policy, starts, [0, 1], Clock(0, 8), 7, False, 2)] == waiting


# -- a policy whose actions say which plan they are of ---------------------------------------------------------------


@dataclass(frozen=True)
class Counting(TeacherPolicy):
    """Its n-th plan's action i is x = 0.30 + 0.0005 n, y = 0.001 i; asked: the histories `[B, O, S]` it was asked with."""

    asked: list[Tensor] = field(default_factory=list)

    def encode(self, observation: Any) -> Tensor:
        self.asked.append(observation["observation.state"].clone())
        return observation["observation.state"]

    def head(self, condition_BC: Tensor, draws: Tensor) -> Tensor:
        steps = torch.arange(self.shape.horizon)
        raw_TA = torch.stack([torch.full_like(steps, len(self.asked) - 1) * 0.0005 + 0.30, 0.001 * steps], dim=-1)
        normalised: Tensor = self.module.normaliser.normalise_action(raw_TA)  # type: ignore[operator, union-attr]
        return normalised.expand(*draws.shape[:2], -1, -1)


def _carried_out(run: RealTimeEpisode, steps: int) -> list[tuple[int, int]]:
    return [(round((x - 0.30) / 0.0005), round(y / 0.001)) for x, y in run.episode.actions[:steps]]


@pytest.fixture
def counting(make_teacher: Callable[..., Any]) -> Counting:
    return Counting(make_teacher(horizon=4), 1)


def _roll(
    policy: Any, clock: Clock, indices: tuple[int, ...] = (0,), disturbed: bool = False, **keywords: Any
) -> list[RealTimeEpisode]:
    return run_in_real_time("avoid", policy, STARTS, indices, clock, 5, disturbed, 9, **keywords)


def test_what_is_carried_out_is_what_the_clock_says(counting: Counting) -> None:
    """Every 3 steps, 2 late, plans of 4 actions: the second plan is asked at 3, comes at 5, and is at its end at 6."""
    run = _roll(counting, Clock(2, 3, delays_per_query=1))[0]
    assert _carried_out(run, 12) == [
        (0, 0), (0, 1), (0, 2), (0, 3), (0, 3), (1, 2), (1, 3), (1, 3), (2, 2), (2, 3), (2, 3), (3, 2)
    ]  # fmt: skip
    assert run.episode.failure == "timeout" and run.episode.steps == 100
    assert run.episode.queries == len(counting.asked) == 34  # at 0, 3, .., 99


def test_a_plan_is_made_from_what_was_seen_when_it_was_asked_for(counting: Counting) -> None:
    run = _roll(counting, Clock(2, 3, delays_per_query=1))[0]
    seen = torch.stack([state[0, -1] for state in counting.asked])
    path = torch.tensor(run.episode.path)
    torch.testing.assert_close(seen, path[0:100:3].float(), atol=6e-5, rtol=0)  # the path is rounded to 0.1 mm


def test_a_broken_plan_ends_the_episode_when_it_is_entered(make_teacher: Callable[..., Any]) -> None:
    class Breaking(Counting):
        def head(self, condition_BC: Tensor, draws: Tensor) -> Tensor:
            chunks = Counting.head(self, condition_BC, draws).clone()
            return chunks * math.nan if len(self.asked) == 2 else chunks

    run = _roll(Breaking(make_teacher(horizon=8), 1), Clock(2, 4))[0]
    assert (run.episode.failure, run.episode.steps, run.episode.success) == ("policy_error", 6, False)


def test_who_is_asked_less_often_than_it_plans_is_refused(counting: Counting) -> None:
    with pytest.raises(ValueError, match="teacher_1 has 4 actions, .* queried every 5 steps; query at least every 4"):
        _roll(counting, Clock(0, 5))


# -- disturbed -------------------------------------------------------------------------------------------------------


def _disturb_at(monkeypatch: pytest.MonkeyPatch, first: int, last: int | None = None) -> None:
    disturbance = Disturbance("tool", "", (first, first if last is None else last), 2, 0.0, 0.0)
    monkeypatch.setattr(envs.TASKS["avoid"], "disturbance", disturbance)


@pytest.mark.parametrize(
    ("delay", "every", "disturbed_at", "reaction"),
    [
        (0, 1, 5, 1),  # seen at 6, asked at 6, carried out at 6: no one can be faster
        (0, 4, 3, 1),  # asked at 4
        (0, 4, 4, 4),  # asked just before it moved, again at 8
        (1, 1, 5, 2),  # asked at 6, there at 7
        (2, 4, 5, 5),  # asked at 8, there at 10
        (3, 4, 5, 4),  # asked every 6 steps: at 6, there at 9
        (3, 4, 6, 9),  # at 12, there at 15
    ],
)
def test_the_reaction_is_counted_from_the_begin_of_the_move_to_the_first_answer_carried_out(
    counting: Counting, monkeypatch: pytest.MonkeyPatch, delay: int, every: int, disturbed_at: int, reaction: int
) -> None:
    _disturb_at(monkeypatch, disturbed_at)
    run = _roll(counting, Clock(delay, every), disturbed=True)[0]
    assert (run.disturbed_at, run.reaction_steps) == (disturbed_at, reaction)
    assert outcome(run) == {
        "index": 0, "success": False, "failure": "timeout", "mode": "", "steps": 100, "queries": run.episode.queries,
        "disturbed_at": disturbed_at, "reaction_steps": reaction,
    }  # fmt: skip


def test_who_has_ended_before_is_not_disturbed(counting: Counting, monkeypatch: pytest.MonkeyPatch) -> None:
    _disturb_at(monkeypatch, 100)
    run = _roll(counting, Clock(0, 4), disturbed=True)[0]
    assert run.episode.steps == 100 and (run.disturbed_at, run.reaction_steps) == (None, None)


def test_an_answer_that_comes_after_the_end_is_none(counting: Counting, monkeypatch: pytest.MonkeyPatch) -> None:
    _disturb_at(monkeypatch, 97)
    run = _roll(counting, Clock(3, 4), disturbed=True)[0]  # asked at 102
    assert (run.disturbed_at, run.reaction_steps) == (97, None)


def test_all_policies_and_latencies_meet_the_same_disturbances(
    make_teacher: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    _disturb_at(monkeypatch, 2, 9)
    steps = []
    for policy, clock, indices, at_once in (
        (Counting(make_teacher(horizon=4), 1), Clock(0, 4), (0, 1, 2, 3), 64),
        (Counting(make_teacher(horizon=8), 1), Clock(2, 3), (3, 1, 0, 2), 2),
    ):
        runs = _roll(policy, clock, indices, disturbed=True, at_once=at_once)
        steps.append({run.episode.index: run.disturbed_at for run in runs})
    assert steps[0] == steps[1] and len(set(steps[0].values())) > 1


def test_a_disturbed_episode_is_the_same_alone_and_in_company(make_student: Callable[..., Any]) -> None:
    policy = StudentPolicy(make_student(), "student")
    together = {run.episode.index: run for run in _roll(policy, Clock(1, 4), tuple(range(5)), disturbed=True)}
    for index in (3, 1):
        alone = _roll(policy, Clock(1, 4), (index,), disturbed=True)[0]
        assert (alone.disturbed_at, alone.reaction_steps) == (together[index].disturbed_at, together[index].reaction_steps)
        np.testing.assert_allclose(alone.episode.path[:20], together[index].episode.path[:20], atol=2e-3)


def test_a_task_without_a_disturbance_is_refused(counting: Counting, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(envs.TASKS["avoid"], "disturbance", None)
    with pytest.raises(ValueError, match="'avoid' has no disturbance"):
        _roll(counting, Clock(0, 4), disturbed=True)
    assert _roll(counting, Clock(0, 4), disturbed=False)
