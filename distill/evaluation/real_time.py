"""Real-time rollouts: the simulation goes on, and may be disturbed, while the policy computes its next chunk."""

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
    count_mode_switch,
    episode_generator,
    execute_action,
    make_env_pool,
    query_policy,
    record_jerk,
    start_episode,
)
from distill.evaluation.statistics import mcnemar_p, paired_difference, wilson_interval
from distill.observation import cameras_for
from envs.cameras.specs import CameraSettings
from envs.panda.base import PandaEnv
from envs.panda.disturbances import Move
from students.selection import SINGLE_SAMPLE, Memory, Selection

CONDITIONS = ("calm", "disturbed")
"""Every policy is rolled out in both at every latency: it separates the cost of the control delay from late reactions."""


@dataclass(frozen=True)
class Clock:
    """When a policy is queried, and which action is executed when; all in control steps, starting at 0.

    delay: control delay, the steps from the observation of a query to the first step at which its chunk can be executed.
    every: control steps between two queries of a policy that is fast enough.
    delays_per_query: minimum time between two queries, in multiples of the delay. The period between queries is
    max(every, ceil(delays_per_query x delay)), as a policy computes one chunk at a time. With 1 a slow policy replans as soon
    as a chunk arrives; a multimodal one then switches modes before it has followed any (docs/lab-notes.md).

    The first chunk is ready at step 0: the robot stands still until then. After that, the last chunk is executed while the
    next one is computed. Action i of a chunk observed at step k is meant for step k + i: a chunk that arrives at step k +
    delay starts at its action `delay`, and the earlier actions are skipped. Where a chunk ends before the next one arrives,
    its last action is held. Raises ValueError for values out of range.
    """

    delay: int
    every: int
    delays_per_query: float = 2.0

    def __post_init__(self) -> None:
        if self.delay < 0 or self.every < 1:
            raise ValueError(f"a clock needs delay >= 0 and every >= 1 control steps, got {self.delay} and {self.every}")
        if not 1 <= self.delays_per_query < math.inf:
            raise ValueError(f"delays_per_query: got {self.delays_per_query}, expected at least 1: a policy computes one chunk "
                             "at a time")  # fmt: skip

    @property
    def period(self) -> int:
        """Control steps between two queries."""
        return max(self.every, math.ceil(round(self.delays_per_query * self.delay, 9)))

    def queries_at(self, step: int) -> bool:
        """Whether the policy is queried with the observation of `step`."""
        return step % self.period == 0

    def newest(self, step: int) -> int:
        """The step of the observation that the chunk executed at `step` was computed from."""
        return max(0, (step - self.delay) // self.period) * self.period

    def action(self, step: int, horizon: int) -> int:
        """The index of the action of that chunk (of `horizon` actions) that is executed at `step`."""
        return min(step - self.newest(step), horizon - 1)


def delay_steps(latency_ms: float, dt_s: float) -> int:
    """The control delay of a call of this latency, in control steps: 0 ms: 0; up to one control period: 1; and so on.

    The step at which the call starts counts. Raises ValueError for a negative or infinite latency.
    """
    if not 0 <= latency_ms < math.inf:
        raise ValueError(f"latency_ms: got {latency_ms}, expected at least 0 milliseconds")
    return math.ceil(round(latency_ms / (1000 * dt_s), 9))  # 150 ms at 0.05 s are 3 steps, not 3.0000000000000004


@dataclass
class RealTimeEpisode:
    """A real-time rollout.

    disturbed_at: the control step at which the disturbance began; None without one: the episode ended before it, or the
    gripper already held the object (`PandaEnv.disturb`).
    reaction_steps: control steps from there to the first executed action of a chunk computed from a later observation. At
    least 1, as a disturbance is observed one step after it begins. None when no such action was executed.
    """

    episode: Episode
    disturbed_at: int | None = None
    reaction_steps: int | None = None


def outcome(run: RealTimeEpisode) -> dict[str, Any]:
    """What is stored of a rollout: how it ended, when it was disturbed, and when the policy reacted."""
    episode = run.episode
    return {
        "index": episode.index, "success": episode.success, "failure": episode.failure, "mode": episode.mode,
        "steps": episode.steps, "queries": episode.queries, "disturbed_at": run.disturbed_at,
        "reaction_steps": run.reaction_steps,
    }  # fmt: skip


def run_in_real_time(
    task: str, policy: Policy, starts_ED: np.ndarray, indices: Sequence[int], clock: Clock, seed: int,
    disturbed: bool = True, keep_actions: int = 0, progress: Callable[[int], object] = lambda done: None,
    at_once: int = 64, selection: Selection = SINGLE_SAMPLE, cameras: CameraSettings | None = None,
) -> list[RealTimeEpisode]:  # fmt: skip
    """Roll the policy out from ``starts_ED[indices]`` by `clock`, asynchronously.

    With delay 0 and no disturbance it equals `rollouts.run_episodes` with execution horizon `clock.every`.
    disturbed: each episode gets its own draw of the task's disturbance, a function of seed and index, so that all policies and
    latencies face the same ones. cameras: those of the demonstrations, for a policy that needs them. Raises ValueError for a
    task without a disturbance, for features that the cameras do not provide, and for a chunk shorter than `clock.every`.
    """
    spec = envs.task_spec(task)
    disturbance = envs.disturbance(task) if disturbed else None
    if clock.every > policy.shape.horizon:
        raise ValueError(
            f"a chunk of {policy.name} has {policy.shape.horizon} actions, the policy is queried every {clock.every} steps; "
            f"query at least every {policy.shape.horizon}"
        )
    pool = make_env_pool(spec.name, cameras_for(policy.shape, cameras), min(at_once, len(indices)))
    finished: list[RealTimeEpisode] = []
    for begin in range(0, len(indices), at_once):
        batch = indices[begin : begin + at_once]
        moves = [disturbance.draw(seed, index) if disturbance else None for index in batch]
        finished += _run_batch(policy, pool[: len(batch)], starts_ED, batch, clock, seed, moves, keep_actions, selection)
        progress(len(finished))
    for env in pool:
        env.close()
    return finished


def _executed(clock: Clock, selection: Selection, horizon: int) -> int:
    """The number of executed actions that a selection is given: the steps between two queries, which is the offset between two
    chunks. Kinds that compare the actions themselves also get the skipped ones."""
    return min(horizon, clock.period if selection.kind == "temporal_consistency" else clock.period + clock.delay)


def _run_batch(
    policy: Policy, pool: Sequence[PandaEnv], starts_ED: np.ndarray, batch: Sequence[int], clock: Clock, seed: int,
    moves: Sequence[Move | None], keep_actions: int, selection: Selection,
) -> list[RealTimeEpisode]:  # fmt: skip
    runs = [RealTimeEpisode(Episode(index=index)) for index in batch]
    memories = [Memory() for _ in batch]
    tools: list[list[np.ndarray]] = [[] for _ in batch]
    generators = [episode_generator(seed, index) for index in batch]
    horizon = policy.shape.horizon
    executed = _executed(clock, selection, horizon)
    histories = [History(env, policy.shape.observation_steps, clock.queries_at) for env in pool]
    for row, (env, run) in enumerate(zip(pool, runs, strict=True)):
        start_episode(env, run.episode, histories[row], tools[row], starts_ED)
    plans: dict[int, dict[int, np.ndarray]] = {}  # by the step of their query, then by row
    active = list(range(len(batch)))
    step = 0
    while active:
        if clock.queries_at(step):
            seen = stacked([histories[row] for row in active])
            planned, remembered = query_policy(
                policy, seen, [generators[row] for row in active], selection, [memories[row] for row in active], executed
            )
            plans = {query: plans[query] for query in list(plans)[-2:]} | {step: dict(zip(active, planned, strict=True))}
            for row, memory in zip(active, remembered, strict=True):
                runs[row].episode.queries += 1
                memories[row] = memory
        newest, index = clock.newest(step), clock.action(step, horizon)
        for row in list(active):
            env, run, chunk = pool[row], runs[row], plans[newest][row]
            episode = run.episode
            if step and newest != clock.newest(step - 1):  # a new chunk starts; the rest of the last one is dropped
                last = clock.newest(step - 1)
                count_mode_switch(env, episode, plans[last][row][step - last :], chunk[index:])
            if not np.isfinite(chunk).all():
                episode.failure = "policy_error"
                active.remove(row)
                continue
            move = moves[row]
            if move is not None and move.step == step and env.disturb(move):
                run.disturbed_at = step
            if run.disturbed_at is not None and run.reaction_steps is None and newest > run.disturbed_at:
                run.reaction_steps = step - run.disturbed_at
            if execute_action(env, episode, histories[row], tools[row], chunk[index], keep_actions):
                active.remove(row)
        step += 1
    for env, run, positions in zip(pool, runs, tools, strict=True):
        record_jerk(env, run.episode, positions)
    return runs


def paired_rows(results: Sequence[Mapping[str, Any]], labels: Mapping[str, str], student: str) -> list[dict[str, Any]]:
    """One row per latency and policy, in that order. results: the policies' result.json; student: name of the default student.

    Per condition (calm, disturbed): successes, their Wilson interval, failures by name, and the success of the student minus
    that of this policy at the same latency, paired over the starts. reaction_*: mean over the disturbed episodes in which the
    policy reacted; `disturbed_episodes` and `answered_episodes` are their numbers.
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
                "disturbed_episodes": sum(each["disturbed_at"] is not None for each in time["disturbed"]),
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
