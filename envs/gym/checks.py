"""A checker of gymnasium environments as worlds: everything that is wrong, and what it is like, in one go."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from envs.gym.env import GymEnv
from envs.gym.mapping import RENDER
from envs.gym.settings import GymSettings
from envs.gym.spec import described, gym_spec, open_worker
from envs.process.worker import Worker, WorkerFailure
from envs.specs import nearest_name

STEPS = 40
"""Random actions of an episode of the check."""


@dataclass
class Findings:
    """problems: what would make a run wrong or impossible. facts: what the environment is like, for a reader to judge."""

    problems: list[str] = field(default_factory=list)
    facts: list[str] = field(default_factory=list)


def check_world(settings: GymSettings, task: str = "", starts: int = 5) -> Findings:
    """Everything that is wrong with an environment and its mapping, found by running it. Nothing is written.

    Checked: the mapping against the environment's spaces; that a seed gives the same start again, and another seed another;
    that the same actions lead to the same states; finite observations; the keys of info that success, score and modes are read
    from; rendering; and the expert at `starts` seeds.
    """
    found = Findings()
    try:
        mapping, description = described(settings)
        spec = gym_spec(task or settings.name, settings)
    except ValueError as error:
        found.problems += str(error).splitlines()
        return found
    versions = ", ".join(f"{name} {version}" for name, version in description.versions.items())
    names, action = ", ".join(spec.state_names[:12]), spec.action
    found.facts += [
        f"environment: {settings.gym} ({versions})",
        f"state: {len(spec.state_names)} numbers: {names}{' ..' if len(spec.state_names) > 12 else ''}",
        f"action: {action.size} numbers from {_shown(action.low)} to {_shown(action.high)}, every {spec.dt_s:.4g} s, at most "
        f"{spec.max_steps} steps",
    ]
    if not np.isfinite([*spec.action.low, *spec.action.high]).all():
        found.facts.append("action: its box has no bounds, so nothing is clipped")
    infos: set[str] = set()
    with open_worker(settings, mapping) as worker:
        try:
            found.problems += _reproducibility(worker, [key for key, _, _ in mapping.state], len(spec.action.low), infos, found)
            for what, key in _info_keys(mapping):
                if key not in infos:
                    hint = nearest_name(key, infos) or f"; info has {sorted(infos)}"
                    found.problems.append(f"{what}: info has no {key!r} in {STEPS} steps of random actions{hint}")
            if settings.clips or RENDER in mapping.camera_keys:
                found.facts.append(_rendering(worker, description.renders))
        except WorkerFailure as failure:
            found.problems.append(f"the environment fails with random actions: {failure}")
    _camera_shapes(settings, mapping, found)
    if settings.expert:
        _expert(settings, spec.name, starts, found)
    elif not settings.demonstrations:
        found.facts.append("demonstrations: neither an expert nor recorded ones; a conversion needs none, a run does")
    return found


def _shown(values: tuple[float, ...]) -> str:
    return f"{values[0]:.4g}" if len(set(values)) == 1 else f"[{', '.join(f'{value:.4g}' for value in values)}]"


def _info_keys(mapping: Any) -> Iterator[tuple[str, str]]:
    """The keys of info that the mapping reads, with what for."""
    read = [("success", mapping.success.what), ("score", mapping.score.what if mapping.score else "")]
    yield from ((what, name.removeprefix("info.")) for what, name in read if name.startswith("info."))


def _reproducibility(worker: Worker, keys: list[str], size: int, infos: set[str], found: Findings) -> list[str]:
    """Two episodes of one seed, one of another, with the same random actions; collects the keys of info."""
    wrong: list[str] = []

    def episode(seed: int) -> list[np.ndarray]:
        answer, arrays = worker.request({"command": "reset", "seed": seed, "keys": keys})
        states, rng = [_joined(arrays, keys)], np.random.default_rng(0)
        infos.update(answer["info"])
        began = time.perf_counter()
        for _ in range(STEPS):
            action = rng.uniform(-1, 1, size) * wide + middle
            answer, arrays = worker.request({"command": "step", "keys": keys}, {"action": action})
            states.append(_joined(arrays, keys))
            infos.update(answer["info"])
            if answer["terminated"] or answer["truncated"]:
                break
        speeds.append((len(states) - 1) / (time.perf_counter() - began))
        return states

    action = worker.request({"command": "describe"})[0]["action"]
    low, high = (np.array([bound if value is None else value for value in action[name]], float)
                 for name, bound in (("low", -1.0), ("high", 1.0)))  # fmt: skip
    wide, middle, speeds = (high - low) / 2, (high + low) / 2, list[float]()
    first, again, other = episode(1), episode(1), episode(2)
    if not np.array_equal(first[0], again[0]):
        wrong.append(f"starts: reset(seed=1) gave two different states (by up to {np.abs(first[0] - again[0]).max():.3g}), so "
                     "policies cannot be compared on the same starts; make its reset use the seed, in a file of your own "
                     "(--world.gym my_env.py:make)")  # fmt: skip
    elif np.array_equal(first[0], other[0]):
        wrong.append("starts: reset(seed=1) and reset(seed=2) gave the same state: every episode would be the same; make its "
                     "reset use the seed, in a file of your own, or observe what differs (state)")
    elif len(first) != len(again) or not all(map(np.array_equal, first, again)):
        found.facts.append("repeatable: no, the same seed and actions lead to different states; rollouts are paired by their "
                           "starts only")
    else:
        found.facts.append("repeatable: yes, the same seed and actions lead to the same states")
    if not all(np.isfinite(state).all() for state in (*first, *other)):
        wrong.append("state: it holds numbers that are not finite")
    found.facts.append(f"speed: {np.median(speeds):.0f} steps per second in one process")
    return wrong


def _joined(arrays: dict[str, np.ndarray], keys: list[str]) -> np.ndarray:
    return np.concatenate([np.asarray(arrays[key], np.float64).reshape(-1) for key in keys])


def _rendering(worker: Worker, renders: bool) -> str:
    if not renders:
        return "clips: none, it has no render mode rgb_array"
    try:
        frame = worker.request({"command": "observe", "keys": [RENDER]})[1][RENDER]
    except WorkerFailure as failure:
        return f"clips: none, rendering fails here ({failure.text})"
    return f"clips: frames of {frame.shape[1]} x {frame.shape[0]} pixels"


def _camera_shapes(settings: GymSettings, mapping: Any, found: Findings) -> None:
    """One frame of every mapped camera key."""
    if not mapping.camera_keys:
        return
    with open_worker(settings, mapping) as worker:
        try:
            worker.request({"command": "reset", "seed": 1, "keys": []})
            arrays = worker.request({"command": "observe", "keys": list(mapping.camera_keys)})[1]
        except WorkerFailure as failure:
            found.problems.append(f"images, depth or points cannot be read: {failure}")
            return
    for key, values in arrays.items():
        if values.dtype != np.uint8 and not np.isfinite(values[values == values]).all():
            found.problems.append(f"{key}: it holds infinite numbers")
        if values.size and values.min() == values.max():
            found.problems.append(f"{key}: all its values are {values.min():.4g}: does the renderer work here?")
        found.facts.append(f"{key}: {values.shape} {values.dtype}, {values.min():.4g} to {values.max():.4g}")


def _expert(settings: GymSettings, task: str, starts: int, found: Findings) -> None:
    """The expert's episodes from a few seeds, in every mode it is given."""
    env = GymEnv(task, settings)
    outcomes, steps, began = list[str](), list[int](), time.monotonic()
    modes = env.spec_task.modes if env.description.expert_takes > 1 else ("",)
    try:
        for seed in range(starts):
            for mode in modes:
                try:
                    shown = env.demonstrate(np.array([float(seed)]), mode, seed)
                    reached = "" if mode in ("", shown.mode) else f", asked for {mode!r}"
                    outcomes.append(f"solved ({shown.mode}{reached})" if len(env.spec_task.modes) > 1 else "solved")
                    steps.append(len(shown.action))
                except WorkerFailure as failure:
                    outcomes.append(failure.name)
                    last = failure
    finally:
        env.close()
    counted = ", ".join(f"{outcomes.count(each)} {each}" for each in dict.fromkeys(outcomes))
    took = f"{(time.monotonic() - began) / len(outcomes):.1f} s an episode"
    found.facts.append(f"expert: {counted} of {len(outcomes)}; {took}"
                       + (f", {min(steps)} to {max(steps)} steps" if steps else ""))  # fmt: skip
    if not steps:
        found.problems.append(f"expert: it solves none of {len(outcomes)} episodes, at last: {last}")
