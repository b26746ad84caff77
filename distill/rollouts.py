"""Rollouts: receding horizon over stored starts, every episode with a named outcome."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch

import envs
from distill.cache import hypothesis_seeds
from distill.policies import Policy, plan
from distill.statistics import mode_entropy
from envs.panda import PandaEnv
from envs.specs import STATE, TaskSpec


@dataclass
class Episode:
    """One rollout. path: `[steps+1][2]` tool x, y [m]; actions: those carried out, kept for the episodes of the clips."""

    index: int
    success: bool = False
    failure: str = ""
    mode: str = ""
    steps: int = 0
    path: list[list[float]] = field(default_factory=list)
    carried: list[list[float]] = field(default_factory=list)
    actions: list[list[float]] = field(default_factory=list)


def episode_generator(seed: int, index: int) -> torch.Generator:
    """The randomness of episode `index`, the same for every policy, batch and number of processes."""
    return torch.Generator().manual_seed(int(hypothesis_seeds(seed, np.array([index]), 1)[0, 0]))


def run_episodes(
    task: str, policy: Policy, starts_ED: np.ndarray, indices: Sequence[int], execution_horizon: int, seed: int,
    keep_actions: int = 0, progress: Callable[[int], object] = lambda done: None, at_once: int = 64,
) -> list[Episode]:  # fmt: skip
    """Roll the policy out from ``starts_ED[indices]``, `at_once` episodes abreast so that the network works in batches.

    A chunk's first `execution_horizon` actions are carried out, then the policy is asked again. A chunk with NaN or
    infinity ends its episode as ``policy_error``. Episodes with index < keep_actions keep their actions.
    """
    pool = [envs.make(task) for _ in range(min(at_once, len(indices)))]
    finished: list[Episode] = []
    for begin in range(0, len(indices), at_once):
        wave = indices[begin : begin + at_once]
        finished += _run_wave(policy, pool[: len(wave)], starts_ED, wave, execution_horizon, seed, keep_actions)
        progress(len(finished))
    for env in pool:
        env.close()
    return finished


def _run_wave(
    policy: Policy, pool: Sequence[PandaEnv], starts_ED: np.ndarray, wave: Sequence[int], execution_horizon: int,
    seed: int, keep_actions: int,
) -> list[Episode]:  # fmt: skip
    episodes = [Episode(index=index) for index in wave]
    generators = [episode_generator(seed, index) for index in wave]
    steps_O = policy.shape.observation_steps
    history: list[list[np.ndarray]] = []
    for env, episode in zip(pool, episodes, strict=True):
        observation, _ = env.reset(options={"start": starts_ED[episode.index]})
        history.append([observation[STATE]] * steps_O)
        _note_place(env, episode)
    chunks: dict[int, np.ndarray] = {}
    active = list(range(len(wave)))
    step = 0
    while active:
        if step % execution_horizon == 0:
            states = np.stack([np.stack(history[row][-steps_O:]) for row in active])
            planned = plan(policy, states, [generators[row] for row in active])[:, 0]
            chunks = dict(zip(active, planned, strict=True))
        for row in list(active):
            env, episode, action = pool[row], episodes[row], chunks[row][step % execution_horizon]
            if not np.isfinite(chunks[row]).all():
                episode.failure = "policy_error"
                active.remove(row)
                continue
            observation, _, terminated, truncated, info = env.step(action)
            history[row] = [*history[row][1:], observation[STATE]]
            episode.steps += 1
            if episode.index < keep_actions:
                episode.actions.append([float(value) for value in action])
            _note_place(env, episode)
            if terminated or truncated:
                episode.success, episode.failure, episode.mode = info["is_success"], info["failure"], info["mode"]
                active.remove(row)
        step += 1
    return episodes


def _note_place(env: PandaEnv, episode: Episode) -> None:
    episode.path.append([round(float(value), 4) for value in env.tool_position()[:2]])
    carried = env.carried_position()
    if carried is not None:
        episode.carried.append([round(float(value), 4) for value in carried])


def summarise(spec: TaskSpec, episodes: Sequence[Episode]) -> dict[str, Any]:
    """Counts of a set of episodes: successes, failures by name, modes over successes, entropy (base: number of modes)."""
    modes = Counter(episode.mode for episode in episodes if episode.success)
    counts = [modes.get(mode, 0) for mode in spec.modes]
    return {
        "episodes": len(episodes),
        "successes": sum(episode.success for episode in episodes),
        "failures": dict(Counter(episode.failure for episode in episodes if not episode.success)),
        "mode_counts": dict(zip(spec.modes, counts, strict=True)),
        "modes_reached": sum(count > 0 for count in counts),
        "modes_total": len(spec.modes),
        "entropy": mode_entropy(counts, len(spec.modes)) if sum(counts) else None,
    }


def to_json(episodes: Sequence[Episode]) -> list[dict[str, Any]]:
    return [asdict(episode) for episode in sorted(episodes, key=lambda episode: episode.index)]
