"""Rollouts: receding horizon from stored starts; every episode has a named outcome."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

import envs
from distill.evaluation.histories import History, stacked
from distill.evaluation.policies import Policy, RawObservation, device_of, postprocess, preprocess
from distill.evaluation.statistics import mode_entropy
from distill.hypotheses.cache import hypothesis_seeds
from distill.observation import cameras_for
from envs.cameras.specs import CameraSettings
from envs.contract import TaskEnv
from envs.panda.base import PandaEnv
from envs.specs import STATE, TaskSpec
from students.selection import SINGLE_SAMPLE, Memory, Selection, alternatives, choose, draw_candidates


class Monitor(Protocol):
    """Says whether observations are like the training observations, such as distill.evaluation.monitor.SupportMonitor."""

    def are_out_of_distribution(self, states_BOS: np.ndarray) -> Sequence[bool]: ...


@dataclass
class Episode:
    """One rollout.

    path: `[steps+1][2]` x, y of the tool [m]; carried: those of the object. actions: executed ones, kept for clips.
    compared: replans at which both the new chunk and the unexecuted rest of the last one imply a mode of the same choice
    (`PandaEnv.planned_modes`, both from the current tool position). switches: those of them where the modes differ. Chunks
    that are executed to their end have no rest, so nothing is compared.
    jerk: root mean square jerk of the tool [m/s^3], see `rms_jerk`; None when not measured.
    queries: number of policy queries. out_of_distribution: those with an observation that the monitor flagged; None without
    one. refused: actions that the simulator refused, which moved nothing; one that ended the episode is also its last step.
    score: the number that the world gives an episode, beside success; None where it gives none.
    """

    index: int
    success: bool = False
    failure: str = ""
    mode: str = ""
    steps: int = 0
    path: list[list[float]] = field(default_factory=list)
    carried: list[list[float]] = field(default_factory=list)
    actions: list[list[float]] = field(default_factory=list)
    compared: int = 0
    switches: int = 0
    jerk: float | None = None
    queries: int = 0
    out_of_distribution: int | None = None
    refused: int = 0
    score: float | None = None


def episode_generator(seed: int, index: int) -> torch.Generator:
    """The random generator of episode `index`: the same for every policy, batch and number of processes."""
    return torch.Generator().manual_seed(int(hypothesis_seeds(seed, np.array([index]), 1)[0, 0]))


def run_episodes(
    task: str, policy: Policy, starts_ED: np.ndarray, indices: Sequence[int], execution_horizon: int, seed: int,
    keep_actions: int = 0, progress: Callable[[int], object] = lambda done: None, at_once: int = 64,
    selection: Selection = SINGLE_SAMPLE, monitor: Monitor | None = None, cameras: CameraSettings | None = None,
) -> list[Episode]:  # fmt: skip
    """Roll the policy out from ``starts_ED[indices]``, `at_once` episodes in parallel so that the network runs in batches.

    The first `execution_horizon` actions of a chunk are executed, then the policy is queried again. A chunk with NaN or
    infinity ends its episode as ``policy_error``. Episodes with index < keep_actions keep their actions. selection: which of
    the policy's samples each episode executes; every episode has its own memory. monitor: counts out-of-distribution
    observations, and changes nothing. cameras: those of the demonstrations, for a policy that needs them. Raises ValueError
    when they do not provide its features.
    """
    pool = make_env_pool(task, cameras_for(policy.shape, cameras), min(at_once, len(indices)))
    finished: list[Episode] = []
    for begin in range(0, len(indices), at_once):
        batch = indices[begin : begin + at_once]
        finished += run_batch(policy, pool[: len(batch)], starts_ED, batch, execution_horizon, seed, keep_actions,
                              selection, monitor)  # fmt: skip
        progress(len(finished))
    for env in pool:
        env.close()
    return finished


def make_env_pool(task: str, cameras: CameraSettings | None, count: int) -> list[PandaEnv]:
    """`count` environments whose cameras render only on demand."""
    pool = [envs.make(task, cameras) for _ in range(count)]
    for env in pool:
        env.cameras_on_demand = True
    return pool


class _Run:
    """An episode while it runs.

    chunk: what it executes, None: the policy is to be queried; at: executed actions of the chunk; asked_at: the step of the
    last query; others: further chunks of that query, see `alternatives`; positions: of the tool.
    """

    def __init__(self, env: TaskEnv, index: int, policy: Policy, execution_horizon: int, seed: int) -> None:
        self.env, self.episode, self.generator = env, Episode(index=index), episode_generator(seed, index)
        self._execution_horizon = execution_horizon
        self.history = History(env, policy.shape.observation_steps, self._queries_at)
        self.memory, self.positions = Memory(), list[np.ndarray]()
        self.chunk: np.ndarray | None = None
        self.at = self.asked_at = 0
        self.others: Iterator[np.ndarray] = iter(())

    @property
    def needs_chunk(self) -> bool:
        return self.chunk is None or self.at == self._execution_horizon

    def replan(self) -> None:
        """After a refused action: the next of the query's other chunks if this one has not begun, else a new query."""
        self.chunk = next(self.others, None) if self.at == 0 else None
        if self.chunk is None:
            self.memory = Memory()  # of what was refused
            self.history.refresh()

    def _queries_at(self, step: int) -> bool:
        return (step - self.asked_at) % self._execution_horizon == 0


def run_batch(
    policy: Policy, pool: Sequence[TaskEnv], starts_ED: np.ndarray, batch: Sequence[int], execution_horizon: int,
    seed: int, keep_actions: int, selection: Selection, monitor: Monitor | None,
) -> list[Episode]:  # fmt: skip
    """One episode per environment, in parallel; see `run_episodes`.

    An action that the environment refuses is not executed. If it is the first of a chunk, the query's other candidates are
    tried (`alternatives`); else, or without any, the policy is queried again from the present observation.
    """
    runs = [_Run(env, index, policy, execution_horizon, seed) for env, index in zip(pool, batch, strict=True)]
    for run in runs:
        start_episode(run.env, run.episode, run.history, run.positions, starts_ED)
    active = list(runs)
    while active:
        asking = [run for run in active if run.needs_chunk]
        if asking:
            _query(policy, asking, execution_horizon, selection, monitor)
        for run in list(active):
            assert run.chunk is not None
            if not np.isfinite(run.chunk).all():
                run.episode.failure = "policy_error"
                active.remove(run)
                continue
            refused = run.episode.refused
            if execute_action(run.env, run.episode, run.history, run.positions, run.chunk[run.at], keep_actions):
                active.remove(run)
            elif run.episode.refused > refused:
                run.replan()
            else:
                run.at += 1
    for run in runs:
        record_jerk(run.env, run.episode, run.positions)
    return [run.episode for run in runs]


def _query(
    policy: Policy, asking: Sequence[_Run], execution_horizon: int, selection: Selection, monitor: Monitor | None
) -> None:
    """Query the policy for these episodes in one batch; each gets its chunk."""
    seen, drawn = stacked([run.history for run in asking]), list[Tensor]()
    planned, remembered = query_policy(
        policy, seen, [run.generator for run in asking], selection, [run.memory for run in asking], execution_horizon,
        drawn=drawn.append,
    )  # fmt: skip
    if monitor is not None:
        for run, flagged in zip(asking, monitor.are_out_of_distribution(seen[STATE]), strict=True):
            run.episode.out_of_distribution = (run.episode.out_of_distribution or 0) + flagged
    for run, chunk, memory, candidates_NTA in zip(asking, planned, remembered, drawn[0], strict=True):
        run.episode.queries += 1
        if run.chunk is not None:
            count_mode_switch(run.env, run.episode, run.chunk[execution_horizon:], chunk)
        run.chunk, run.memory, run.at, run.asked_at = chunk, memory, 0, run.episode.steps
        run.others = _other_chunks(policy, selection, candidates_NTA, execution_horizon)


def _other_chunks(policy: Policy, selection: Selection, candidates_NTA: Tensor, executed: int) -> Iterator[np.ndarray]:
    """The raw chunks `[T, A]` of `alternatives`, computed when the first is asked for."""
    with torch.inference_mode():
        weights_A = torch.tensor(policy.shape.action_weights, device=candidates_NTA.device)
        chunks_RTA = postprocess(policy, alternatives(selection, candidates_NTA, executed, weights_A))
    yield from chunks_RTA


def start_episode(
    env: TaskEnv, episode: Episode, history: History, positions: list[np.ndarray], starts_ED: np.ndarray
) -> None:
    """Reset the environment to the episode's start; add the observation to `history`, the tool to `positions`."""
    observation, _ = env.reset(options={"start": starts_ED[episode.index]})
    history.add(observation, 0)
    _record_positions(env, episode)
    positions.append(env.tool_position())


def execute_action(
    env: TaskEnv, episode: Episode, history: History, positions: list[np.ndarray], action: np.ndarray, keep_actions: int
) -> bool:
    """One control step of an episode, recorded in it, in `history` and in `positions`; whether the episode has ended.

    Of an action that is refused without ending the episode, only `Episode.refused` is recorded.
    """
    observation, _, terminated, truncated, info = env.step(action)
    if info.get("refused"):
        episode.refused += 1
        if not (terminated or truncated):
            return False
    episode.steps += 1
    if episode.index < keep_actions:
        episode.actions.append([float(value) for value in action])
    _record_positions(env, episode)
    positions.append(env.tool_position())
    if terminated or truncated:
        episode.success, episode.failure, episode.mode = info["is_success"], info["failure"], info["mode"]
        return True
    history.add(observation, episode.steps)
    return False


def record_jerk(env: TaskEnv, episode: Episode, positions: Sequence[np.ndarray]) -> None:
    """Store the jerk of a finished episode, from the tool's `positions` after each of its steps."""
    # a collision cuts its control step short; positions of an unstable simulation mean nothing
    whole = positions[:-1] if episode.failure == "collision" else positions
    episode.jerk = None if episode.failure == "unstable" else rms_jerk(np.stack(whole), env.spec_task.dt_s)


def query_policy(
    policy: Policy, seen: RawObservation, generators: Sequence[torch.Generator], selection: Selection,
    memories: Sequence[Memory], executed: int, stage_done: Callable[[], object] = lambda: None,
    drawn: Callable[[Tensor], object] | None = None,
) -> tuple[np.ndarray, list[Memory]]:  # fmt: skip
    """The whole policy call: the raw chunks to execute `[B, T, A]`, and the memories of the B episodes after it.

    seen: raw observation `[B, O, ..]`; generators, memories: one per episode; executed: actions executed per chunk.
    stage_done: called after each of the stages of a call, see `distill.evaluation.latency.STAGES`. drawn: called with all
    normalised candidates `[B, N, T, A]`.
    """
    if hasattr(policy, "query"):  # makes its calls as one program: distill.evaluation.run_modes
        whole: tuple[np.ndarray, list[Memory]] = policy.query(
            seen, generators, selection, memories, executed, stage_done, drawn
        )
        return whole
    with torch.inference_mode():
        return _query_in_torch(policy, seen, generators, selection, memories, executed, stage_done, drawn)


def _query_in_torch(
    policy: Policy, seen: RawObservation, generators: Sequence[torch.Generator], selection: Selection,
    memories: Sequence[Memory], executed: int, stage_done: Callable[[], object], drawn: Callable[[Tensor], object] | None,
) -> tuple[np.ndarray, list[Memory]]:  # fmt: skip
    """`query_policy` for policies in PyTorch."""
    observation = preprocess(policy, seen)
    stage_done()
    condition = policy.encode(observation)
    stage_done()
    latents = [
        draw_candidates(selection, memory, partial(policy.draw, generator=generator), executed, policy.shape.horizon)
        for memory, generator in zip(memories, generators, strict=True)
    ]
    draws = torch.stack([draws for draws, _ in latents]).to(device_of(policy))
    candidates_BNTA = policy.head(condition, draws)
    if drawn is not None:
        drawn(candidates_BNTA)
    stage_done()
    weights_A = torch.tensor(policy.shape.action_weights, device=candidates_BNTA.device)
    chosen_BTA, remembered = choose(selection, candidates_BNTA, [memory for _, memory in latents], executed, weights_A)
    chunks_BTA = postprocess(policy, chosen_BTA)
    stage_done()
    return chunks_BTA, remembered


def count_mode_switch(env: TaskEnv, episode: Episode, rest: np.ndarray, chunk: np.ndarray) -> None:
    """Count whether a new chunk takes another mode than the unexecuted `rest` of the last one, from the current state."""
    if not len(rest) or not np.isfinite(chunk).all():
        return
    both = [(old, new) for old, new in zip(env.planned_modes(rest), env.planned_modes(chunk), strict=True) if old and new]
    episode.compared += bool(both)
    episode.switches += any(old != new for old, new in both)


def rms_jerk(positions_LD: np.ndarray, dt_s: float) -> float | None:
    """Root mean square jerk [m/s^3] of positions [m] `dt_s` apart: the norm of their third difference / dt_s^3.

    None for fewer than four positions.
    """
    if len(positions_LD) < 4:
        return None
    jerk_LD = np.diff(positions_LD, n=3, axis=0) / dt_s**3
    return math.sqrt(float(np.square(jerk_LD).sum(-1).mean()))


def _record_positions(env: TaskEnv, episode: Episode) -> None:
    """Append the positions of the tool and of the object."""
    episode.path.append([round(float(value), 4) for value in env.tool_position()[:2]])
    position = env.object_position()
    if position is not None:
        episode.carried.append([round(float(value), 4) for value in position])


def summarise(spec: TaskSpec, episodes: Sequence[Episode]) -> dict[str, Any]:
    """Figures of a set of episodes: successes, failures by name, modes over successes, entropy (base: number of modes).

    Over all episodes, failed ones included: switch_rate, the mean over episodes of switches / compared where any were
    compared; jerk_rms [m/s^3], the mean of their root mean square jerks. None when no episode has one.
    out_of_distribution_share: share of queries with an out-of-distribution observation; None without a monitor.
    score: the mean of the episodes' scores, a missing one counted as 0; None without any.
    refused_actions: their number over all episodes; episodes_with_refusals: the number of episodes with any.
    """
    modes = Counter(episode.mode for episode in episodes if episode.success)
    counts = [modes.get(mode, 0) for mode in spec.modes]
    switching = [episode.switches / episode.compared for episode in episodes if episode.compared]
    jerks = [episode.jerk for episode in episodes if episode.jerk is not None]
    scored = any(episode.score is not None for episode in episodes)
    monitored = sum(episode.queries for episode in episodes if episode.out_of_distribution is not None)
    flagged = sum(episode.out_of_distribution or 0 for episode in episodes)
    return {
        "episodes": len(episodes),
        "successes": sum(episode.success for episode in episodes),
        "failures": dict(Counter(episode.failure for episode in episodes if not episode.success)),
        "mode_counts": dict(zip(spec.modes, counts, strict=True)),
        "modes_reached": sum(count > 0 for count in counts),
        "modes_total": len(spec.modes),
        "entropy": mode_entropy(counts, len(spec.modes)) if sum(counts) else None,
        "switch_rate": float(np.mean(switching)) if switching else None,
        "jerk_rms": float(np.mean(jerks)) if jerks else None,
        "out_of_distribution_share": flagged / monitored if monitored else None,
        "score": float(np.mean([episode.score or 0.0 for episode in episodes])) if scored else None,
        "refused_actions": sum(episode.refused for episode in episodes),
        "episodes_with_refusals": sum(episode.refused > 0 for episode in episodes),
    }


def to_json(episodes: Sequence[Episode]) -> list[dict[str, Any]]:
    """The episodes as dictionaries, by index."""
    return [asdict(episode) for episode in sorted(episodes, key=lambda episode: episode.index)]
