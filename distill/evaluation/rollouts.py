"""Rollouts: receding horizon over stored starts, every episode with a named outcome."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any, Protocol

import numpy as np
import torch

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
from students.selection import SINGLE_SAMPLE, Memory, Selection, choose, draw_candidates


class Monitor(Protocol):
    """What says whether observations are like the training observations: distill.evaluation.demonstrated.SupportMonitor."""

    def are_out_of_distribution(self, states_BOS: np.ndarray) -> Sequence[bool]: ...


@dataclass
class Episode:
    """One rollout. path: `[steps+1][2]` tool x, y [m]; actions: those carried out, kept for the episodes of the clips.

    compared: replans at which the new plan and the unexecuted rest of the last one name a way for the same choice of the
    task (`PandaEnv.planned_modes`, both from where the tool is then); switches: those of them where the names differ. Plans
    that are carried out to their end leave no rest, so nothing is compared.
    jerk: root mean square jerk of the tool [m/s^3], see `rms_jerk`; None when it was not measured.
    asked: how often the policy was asked; outside: those of them where a monitor said that the observation was unlike the
    training observations, None where there was no monitor.
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


def episode_generator(seed: int, index: int) -> torch.Generator:
    """The randomness of episode `index`, the same for every policy, batch and number of processes."""
    return torch.Generator().manual_seed(int(hypothesis_seeds(seed, np.array([index]), 1)[0, 0]))


def run_episodes(
    task: str, policy: Policy, starts_ED: np.ndarray, indices: Sequence[int], execution_horizon: int, seed: int,
    keep_actions: int = 0, progress: Callable[[int], object] = lambda done: None, at_once: int = 64,
    selection: Selection = SINGLE_SAMPLE, monitor: Monitor | None = None, cameras: CameraSettings | None = None,
) -> list[Episode]:  # fmt: skip
    """Roll the policy out from ``starts_ED[indices]``, `at_once` episodes abreast so that the network works in batches.

    A chunk's first `execution_horizon` actions are carried out, then the policy is asked again. A chunk with NaN or
    infinity ends its episode as ``policy_error``. Episodes with index < keep_actions keep their actions. What each
    episode carries out of the policy's samples is `selection`'s choice; every episode remembers for itself. monitor: looks
    at every observation that the policy is asked at, and is only counted. cameras: those of the demonstrations, for a policy
    that sees with them. Raises ValueError for a policy that sees what they do not show.
    """
    pool = blind_pool(task, cameras_for(policy.shape, cameras), min(at_once, len(indices)))
    finished: list[Episode] = []
    for begin in range(0, len(indices), at_once):
        wave = indices[begin : begin + at_once]
        finished += run_wave(policy, pool[: len(wave)], starts_ED, wave, execution_horizon, seed, keep_actions,
                              selection, monitor)  # fmt: skip
        progress(len(finished))
    for env in pool:
        env.close()
    return finished


def blind_pool(task: str, cameras: CameraSettings | None, count: int) -> list[PandaEnv]:
    """So many environments, whose cameras see only when they are asked."""
    pool = [envs.make(task, cameras) for _ in range(count)]
    for env in pool:
        env.cameras_on_demand = True
    return pool


def run_wave(
    policy: Policy, pool: Sequence[TaskEnv], starts_ED: np.ndarray, wave: Sequence[int], execution_horizon: int,
    seed: int, keep_actions: int, selection: Selection, monitor: Monitor | None,
) -> list[Episode]:  # fmt: skip
    """As many episodes as there are environments, abreast; see `run_episodes`."""
    episodes = [Episode(index=index) for index in wave]
    memories = [Memory() for _ in wave]
    tools: list[list[np.ndarray]] = [[] for _ in wave]
    generators = [episode_generator(seed, index) for index in wave]
    histories = [History(env, policy.shape.observation_steps, lambda step: step % execution_horizon == 0) for env in pool]
    for row, (env, episode) in enumerate(zip(pool, episodes, strict=True)):
        start_episode(env, episode, histories[row], tools[row], starts_ED)
    chunks: dict[int, np.ndarray] = {}
    active = list(range(len(wave)))
    step = 0
    while active:
        if step % execution_horizon == 0:
            seen = stacked([histories[row] for row in active])
            planned, remembered = decide(
                policy, seen, [generators[row] for row in active], selection, [memories[row] for row in active],
                execution_horizon,
            )  # fmt: skip
            if monitor is not None:
                for row, outside in zip(active, monitor.are_out_of_distribution(seen[STATE]), strict=True):
                    episodes[row].out_of_distribution = (episodes[row].out_of_distribution or 0) + outside
            for row, chunk, memory in zip(active, planned, remembered, strict=True):
                episodes[row].queries += 1
                if row in chunks:
                    note_switch(pool[row], episodes[row], chunks[row][execution_horizon:], chunk)
                chunks[row], memories[row] = chunk, memory
        for row in list(active):
            env, episode, action = pool[row], episodes[row], chunks[row][step % execution_horizon]
            if not np.isfinite(chunks[row]).all():
                episode.failure = "policy_error"
                active.remove(row)
                continue
            if execute_action(env, episode, histories[row], tools[row], action, keep_actions):
                active.remove(row)
        step += 1
    for env, episode, positions in zip(pool, episodes, tools, strict=True):
        end_motion(env, episode, positions)
    return episodes


def start_episode(
    env: TaskEnv, episode: Episode, history: History, positions: list[np.ndarray], starts_ED: np.ndarray
) -> None:
    """Put the world at the episode's start; what is seen and where the tool is go into `history` and `positions`."""
    observation, _ = env.reset(options={"start": starts_ED[episode.index]})
    history.add(observation, 0)
    _note_place(env, episode)
    positions.append(env.tool_position())


def execute_action(
    env: TaskEnv, episode: Episode, history: History, positions: list[np.ndarray], action: np.ndarray, keep_actions: int
) -> bool:
    """One control step of an episode, noted there, in `history` and in `positions`; whether it has ended with it."""
    observation, _, terminated, truncated, info = env.step(action)
    episode.steps += 1
    if episode.index < keep_actions:
        episode.actions.append([float(value) for value in action])
    _note_place(env, episode)
    positions.append(env.tool_position())
    if terminated or truncated:
        episode.success, episode.failure, episode.mode = info["is_success"], info["failure"], info["mode"]
        return True
    history.add(observation, episode.steps)
    return False


def end_motion(env: TaskEnv, episode: Episode, positions: Sequence[np.ndarray]) -> None:
    """Note the jerk of an episode that has ended, from the tool's `positions` after each of its steps."""
    # a collision cuts its control step short, and a simulator that burst tells nothing
    whole = positions[:-1] if episode.failure == "collision" else positions
    episode.jerk = None if episode.failure == "unstable" else rms_jerk(np.stack(whole), env.spec_task.dt_s)


@torch.inference_mode()
def decide(
    policy: Policy, seen: RawObservation, generators: Sequence[torch.Generator], selection: Selection,
    memories: Sequence[Memory], executed: int,
) -> tuple[np.ndarray, list[Memory]]:  # fmt: skip
    """The whole policy call: the chunks to carry out `[B, T, A]`, raw, and what each of the B episodes then remembers."""
    drawn = [
        draw_candidates(selection, memory, partial(policy.draw, generator=generator), executed, policy.shape.horizon)
        for memory, generator in zip(memories, generators, strict=True)
    ]
    draws = torch.stack([draws for draws, _ in drawn]).to(device_of(policy))
    candidates_BNTA = policy.head(policy.encode(preprocess(policy, seen)), draws)
    weights_A = torch.tensor(policy.shape.action_weights, device=candidates_BNTA.device)
    chosen_BTA, remembered = choose(selection, candidates_BNTA, [memory for _, memory in drawn], executed, weights_A)
    return postprocess(policy, chosen_BTA), remembered


def note_switch(env: TaskEnv, episode: Episode, rest: np.ndarray, chunk: np.ndarray) -> None:
    """Count whether a new plan goes another way than the `rest` of the last one would have gone, from here."""
    if not len(rest) or not np.isfinite(chunk).all():
        return
    both = [(old, new) for old, new in zip(env.planned_modes(rest), env.planned_modes(chunk), strict=True) if old and new]
    episode.compared += bool(both)
    episode.switches += any(old != new for old, new in both)


def rms_jerk(positions_LD: np.ndarray, dt_s: float) -> float | None:
    """Root mean square jerk [m/s^3] of positions [m] `dt_s` apart: of the length of their third difference / dt_s^3.

    None for fewer than four positions.
    """
    if len(positions_LD) < 4:
        return None
    jerk_LD = np.diff(positions_LD, n=3, axis=0) / dt_s**3
    return math.sqrt(float(np.square(jerk_LD).sum(-1).mean()))


def _note_place(env: TaskEnv, episode: Episode) -> None:
    """Note where the tool is now, and the object."""
    episode.path.append([round(float(value), 4) for value in env.tool_position()[:2]])
    position = env.object_position()
    if position is not None:
        episode.carried.append([round(float(value), 4) for value in position])


def summarise(spec: TaskSpec, episodes: Sequence[Episode]) -> dict[str, Any]:
    """Counts of a set of episodes: successes, failures by name, modes over successes, entropy (base: number of modes).

    Over all episodes, failed ones too: switch_rate, the mean over episodes of switches / compared where anything was
    compared; jerk_rms [m/s^3], the mean of their root mean square jerks. None where no episode has one.
    out_of_distribution_share: share of the times a policy was asked at which the monitor found the observation foreign; None
    without a monitor.
    """
    modes = Counter(episode.mode for episode in episodes if episode.success)
    counts = [modes.get(mode, 0) for mode in spec.modes]
    switching = [episode.switches / episode.compared for episode in episodes if episode.compared]
    jerks = [episode.jerk for episode in episodes if episode.jerk is not None]
    watched = sum(episode.queries for episode in episodes if episode.out_of_distribution is not None)
    unfamiliar = sum(episode.out_of_distribution or 0 for episode in episodes)
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
        "out_of_distribution_share": unfamiliar / watched if watched else None,
    }


def to_json(episodes: Sequence[Episode]) -> list[dict[str, Any]]:
    return [asdict(episode) for episode in sorted(episodes, key=lambda episode: episode.index)]
