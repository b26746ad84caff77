"""Rollouts in a world that does not wait: it goes on, and moves, while the policy computes its next plan."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

import envs
from distill.evaluation.histories import History, stacked
from distill.evaluation.policies import Policy
from distill.evaluation.rollouts import (
    Episode,
    blind_pool,
    decide,
    end_motion,
    episode_generator,
    execute_action,
    note_switch,
    start_episode,
)
from distill.evaluation.statistics import mcnemar_p, paired_difference, wilson_interval
from distill.observation import cameras_for
from envs.cameras.specs import CameraSettings
from envs.panda.base import PandaEnv
from envs.panda.disturbances import Move
from students.selection import SINGLE_SAMPLE, Memory, Selection

CONDITIONS = ("calm", "disturbed")
"""Every policy is rolled out in both at every latency: what coming late costs by itself is told from reacting late."""


@dataclass(frozen=True)
class Clock:
    """When a policy is asked, and which action is carried out when; all in control steps, the first is 0.

    delay: control steps that pass between the observation a plan is made from and the first step it can be carried out at.
    every: control steps from one question to the next, were the policy fast enough. It makes one plan at a time, so the
    next question waits for the last answer; and a plan is followed for at least `patience` - 1 times as long as it took to
    make: `period` = max(every, patience x delay), rounded up. With patience 1 nothing waits, but a slow policy that knows
    several ways then changes from one to another before it has gone any (docs/lab-notes.md).

    The first plan is there when the clock starts: the robot stands still before it, and nothing is lost by waiting. From
    then on the last plan is followed while the next is made. Action i of a plan made from what was seen at step k is meant
    for step k + i: a plan that arrives at step k + delay is entered at its action `delay`, the actions whose time has
    passed are skipped. Where a plan ends before the next one is there, its last target is held.
    """

    delay: int
    every: int
    patience: float = 2.0

    def __post_init__(self) -> None:
        if self.delay < 0 or self.every < 1:
            raise ValueError(f"a clock needs delay >= 0 and every >= 1 control steps, got {self.delay} and {self.every}")
        if not 1 <= self.patience < math.inf:
            raise ValueError(f"patience: got {self.patience}, expected at least 1: a policy makes one plan at a time")

    @property
    def period(self) -> int:
        """Control steps from one question to the next."""
        return max(self.every, math.ceil(round(self.patience * self.delay, 9)))

    def queries_at(self, step: int) -> bool:
        """Whether the policy is asked with what is seen at `step`."""
        return step % self.period == 0

    def newest(self, step: int) -> int:
        """The step whose observation the newest plan that is there at `step` was made from."""
        return max(0, (step - self.delay) // self.period) * self.period

    def action(self, step: int, horizon: int) -> int:
        """Which of that plan's `horizon` actions is carried out at `step`."""
        return min(step - self.newest(step), horizon - 1)


def delay_steps(latency_ms: float, dt_s: float) -> int:
    """Control steps until a plan can be carried out: those that begin while it is still being computed, the one in which
    it was begun among them. 0 ms: 0; up to one control period: 1. Raises ValueError for less than 0 or no finite time."""
    if not 0 <= latency_ms < math.inf:
        raise ValueError(f"latency_ms: got {latency_ms}, expected at least 0 milliseconds")
    return math.ceil(round(latency_ms / (1000 * dt_s), 9))  # 150 ms at 0.05 s are 3 steps, not 3.0000000000000004


@dataclass
class RealTimeEpisode:
    """A rollout while the world moves on.

    moved_at: the control step in which the world began to move; None when the episode was not disturbed: it had ended
    before, or the hand had the object already (`PandaEnv.disturb`).
    reaction_steps: control steps from the begin of that one to the begin of the first one whose action is of a plan that
    was made from an observation after it. At least 1, as a move is seen a step after it begins. None when it never came.
    """

    episode: Episode
    moved_at: int | None = None
    reaction_steps: int | None = None


def outcome(run: RealTimeEpisode) -> dict[str, Any]:
    """What is kept of a rollout on disk: how it ended, and when it was disturbed and reacted."""
    episode = run.episode
    return {
        "index": episode.index, "success": episode.success, "failure": episode.failure, "mode": episode.mode,
        "steps": episode.steps, "queries": episode.queries, "moved_at": run.moved_at, "reaction_steps": run.reaction_steps,
    }  # fmt: skip


def run_in_real_time(
    task: str, policy: Policy, starts_ED: np.ndarray, indices: Sequence[int], clock: Clock, seed: int,
    disturbed: bool = True, keep_actions: int = 0, progress: Callable[[int], object] = lambda done: None,
    at_once: int = 64, selection: Selection = SINGLE_SAMPLE, cameras: CameraSettings | None = None,
) -> list[RealTimeEpisode]:  # fmt: skip
    """Roll the policy out from ``starts_ED[indices]`` by `clock`, asynchronously.

    With delay 0 and no disturbance it does what `rollouts.run_episodes` does with execution horizon `clock.every`.
    disturbed: each episode is given its own draw of the task's disturbance, by seed and index, so that all policies and
    latencies meet the same. cameras: those of the demonstrations, for a policy that sees with them. Raises ValueError for a
    task without a disturbance, for a policy that sees what they do not show, or when a plan is followed for longer than it is.
    """
    spec = envs.task_spec(task)
    disturbance = envs.disturbance(task) if disturbed else None
    if clock.every > policy.shape.horizon:
        raise ValueError(
            f"a plan of {policy.name} has {policy.shape.horizon} actions, the policy is asked every {clock.every} steps; ask "
            f"at least every {policy.shape.horizon}"
        )
    pool = blind_pool(spec.name, cameras_for(policy.shape, cameras), min(at_once, len(indices)))
    finished: list[RealTimeEpisode] = []
    for begin in range(0, len(indices), at_once):
        wave = indices[begin : begin + at_once]
        moves = [disturbance.draw(seed, index) if disturbance else None for index in wave]
        finished += _run_wave(policy, pool[: len(wave)], starts_ED, wave, clock, seed, moves, keep_actions, selection)
        progress(len(finished))
    for env in pool:
        env.close()
    return finished


def _executed(clock: Clock, selection: Selection, horizon: int) -> int:
    """What a selection is told of how many actions are carried out: those until the next question, which is by how much
    the next plan is later; for who looks at the actions themselves, those that are skipped, too."""
    return min(horizon, clock.period if selection.kind == "temporal_consistency" else clock.period + clock.delay)


def _run_wave(
    policy: Policy, pool: Sequence[PandaEnv], starts_ED: np.ndarray, wave: Sequence[int], clock: Clock, seed: int,
    moves: Sequence[Move | None], keep_actions: int, selection: Selection,
) -> list[RealTimeEpisode]:  # fmt: skip
    runs = [RealTimeEpisode(Episode(index=index)) for index in wave]
    memories = [Memory() for _ in wave]
    tools: list[list[np.ndarray]] = [[] for _ in wave]
    generators = [episode_generator(seed, index) for index in wave]
    horizon = policy.shape.horizon
    executed = _executed(clock, selection, horizon)
    histories = [History(env, policy.shape.observation_steps, clock.queries_at) for env in pool]
    for row, (env, run) in enumerate(zip(pool, runs, strict=True)):
        start_episode(env, run.episode, histories[row], tools[row], starts_ED)
    plans: dict[int, dict[int, np.ndarray]] = {}  # by the step they were asked at, then by row
    active = list(range(len(wave)))
    step = 0
    while active:
        if clock.queries_at(step):
            seen = stacked([histories[row] for row in active])
            planned, remembered = decide(
                policy, seen, [generators[row] for row in active], selection, [memories[row] for row in active], executed
            )
            plans = {asked: plans[asked] for asked in list(plans)[-2:]} | {step: dict(zip(active, planned, strict=True))}
            for row, memory in zip(active, remembered, strict=True):
                runs[row].episode.queries += 1
                memories[row] = memory
        newest, index = clock.newest(step), clock.action(step, horizon)
        for row in list(active):
            env, run, chunk = pool[row], runs[row], plans[newest][row]
            episode = run.episode
            if step and newest != clock.newest(step - 1):  # a new plan is entered, what is left of the last one given up
                last = clock.newest(step - 1)
                note_switch(env, episode, plans[last][row][step - last :], chunk[index:])
            if not np.isfinite(chunk).all():
                episode.failure = "policy_error"
                active.remove(row)
                continue
            move = moves[row]
            if move is not None and move.step == step and env.disturb(move):
                run.moved_at = step
            if run.moved_at is not None and run.reaction_steps is None and newest > run.moved_at:
                run.reaction_steps = step - run.moved_at
            if execute_action(env, episode, histories[row], tools[row], chunk[index], keep_actions):
                active.remove(row)
        step += 1
    for env, run, positions in zip(pool, runs, tools, strict=True):
        end_motion(env, run.episode, positions)
    return runs


def paired_rows(results: Sequence[Mapping[str, Any]], labels: Mapping[str, str], student: str) -> list[dict[str, Any]]:
    """One row per time and policy, in that order; `results`: the policies' result.json, `student` the default one's name.

    Per condition (calm, disturbed): successes, their Wilson interval, failures by name, and the success of the student minus
    that of this policy at the same time, paired over the starts. reaction: mean over the episodes that were disturbed and
    in which an answer was carried out; `disturbed_episodes` and `answered_episodes` say how many.
    """
    by_policy = {result["policy"]: result for result in results}
    rows = []
    for place in range(len(by_policy[student]["times"])):
        against = by_policy[student]["times"][place]
        for name, result in by_policy.items():
            time, step_ms = result["times"][place], 1000 * result["dt_s"]
            answers = [each["reaction_steps"] for each in time["disturbed"] if each["reaction_steps"] is not None]
            rows.append({
                "policy": name, "label": labels.get(name, name), "is_default_student": name == student,
                "scale": time["scale"], "latency_ms": time["latency_ms"], "delay_steps": time["delay_steps"],
                "period_steps": time["period_steps"],
                "reaction_steps": float(np.mean(answers)) if answers else None,
                "reaction_ms": float(np.mean(answers)) * step_ms if answers else None,
                "disturbed_episodes": sum(each["moved_at"] is not None for each in time["disturbed"]),
                "answered_episodes": len(answers),
                **{condition: _condition(time[condition], None if name == student else against[condition])
                   for condition in CONDITIONS if condition in time},
            })  # fmt: skip
    return rows


def _condition(episodes: Sequence[Mapping[str, Any]], against: Sequence[Mapping[str, Any]] | None) -> dict[str, Any]:
    success = np.array([each["success"] for each in episodes])
    low, high = wilson_interval(int(success.sum()), len(success))
    row: dict[str, Any] = {
        "episodes": len(success), "successes": int(success.sum()), "success_rate": float(success.mean()),
        "success_low": low, "success_high": high,
        "failures": dict(Counter(each["failure"] for each in episodes if not each["success"])),
        "student_difference": None, "student_low": None, "student_high": None, "mcnemar_p": None,
    }  # fmt: skip
    if against is not None:
        students = np.array([each["success"] for each in against])
        row["student_difference"], row["student_low"], row["student_high"] = paired_difference(students, success)
        row["mcnemar_p"] = mcnemar_p(students, success)
    return row
