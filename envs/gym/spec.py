"""What a gymnasium environment is in our words: the description that its process gives, and the task's spec from it."""

from __future__ import annotations

import functools
from collections.abc import Mapping as Dictionary
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from envs.gym.mapping import RENDER, Mapping, read_mapping
from envs.gym.settings import GymSettings, find, is_file, split
from envs.process.worker import Worker, WorkerFailure, WorkerSettings
from envs.specs import ActionSpec, TaskSpec, nearest_name

PROGRAM = Path(__file__).resolve().parent / "program.py"


@dataclass(frozen=True)
class Description:
    """What `describe` of envs/gym/program.py answers. observation: key to shape and dtype."""

    observation: dict[str, tuple[tuple[int, ...], str]]
    action: dict[str, Any]
    dt_s: float
    max_steps: int
    renders: bool
    versions: dict[str, str]
    expert_takes: int

    @classmethod
    def of(cls, answer: Dictionary[str, Any]) -> Description:
        observation = {key: (tuple(shape), dtype) for key, (shape, dtype) in answer["observation"].items()}
        names = ("action", "dt_s", "max_steps", "renders", "versions", "expert_takes")
        return cls(observation, **{name: answer[name] for name in names})


def open_worker(settings: GymSettings, mapping: Mapping) -> Worker:
    """The process of one environment; its first request starts it."""
    gym, function = settings.gym, ""
    if is_file(gym):
        path, function = split(gym, "make")
        gym = str(path)
    expert, expert_function = split(settings.expert, "expert") if settings.expert else ("", "")
    rendered = settings.clips or RENDER in mapping.camera_keys
    options = {
        "gym": gym, "function": function, "make": settings.arguments(), "imports": list(mapping.imports), "render": rendered,
        "expert": str(expert), "expert_function": expert_function,
    }  # fmt: skip
    return Worker(PROGRAM, options, WorkerSettings(settings.python, settings.start_s, settings.step_s))


@functools.lru_cache
def described(settings: GymSettings) -> tuple[Mapping, Description]:
    """The mapping file, and what the environment says of itself, asked in a process of its own.

    Raises ValueError for settings, a mapping file, or an environment that cannot be made; WorkerStartError is one.
    """
    settings.check()
    mapping = read_mapping(find(settings.mapping))
    with open_worker(settings, mapping) as worker:
        try:
            return mapping, Description.of(worker.request({"command": "describe"})[0])
        except WorkerFailure as failure:
            raise ValueError(f"world.gym: {settings.gym} does not say what it is: {failure}") from failure


def gym_spec(task: str, settings: GymSettings) -> TaskSpec:
    """The task's spec. Raises ValueError with everything in which mapping and environment do not fit, one line each."""
    mapping, found = described(settings)
    wrong = [f"{settings.mapping}: {line}" for line in misfits(mapping, found)]
    if wrong:
        raise ValueError("\n".join(wrong))
    low, high = limits(mapping, found)
    names, size = mapping.action_names, len(low)
    return TaskSpec(
        name=task, summary=mapping.summary or f"{settings.gym}, a gymnasium environment.",
        state_names=state_names(mapping, found),
        action=ActionSpec(names or tuple(f"action_{index}" for index in range(size)), tuple(low.tolist()), tuple(high.tolist()),
                          per_dimension(mapping.weights, size)),
        modes=mapping.modes, start_names=("seed",), dt_s=mapping.dt_s or round(found.dt_s, 9),
        max_steps=mapping.max_steps or found.max_steps,
    )  # fmt: skip


def state_names(mapping: Mapping, found: Description) -> tuple[str, ...]:
    """A name for every number of the state: as mapped, else the key and a count."""
    names: list[str] = []
    for key, given, _ in mapping.state:
        size = int(np.prod(found.observation[key][0]))
        names += given or ([key] if size == 1 else [f"{key}_{index}" for index in range(size)])
    return tuple(names)


def per_dimension(values: tuple[float, ...], size: int, default: float = 1.0) -> tuple[float, ...]:
    """One number per action dimension, of as many or of one that stands for all."""
    return values if len(values) == size else (values or (default,)) * size


def limits(mapping: Mapping, found: Description) -> tuple[np.ndarray, np.ndarray]:
    """The action's box `[A]` in the policy's units: what the environment gets is scale x action + offset."""
    low = np.array([-np.inf if value is None else value for value in found.action["low"]])
    high = np.array([np.inf if value is None else value for value in found.action["high"]])
    scale, offset = (np.array(per_dimension(values, len(low), default))
                     for values, default in ((mapping.scale, 1.0), (mapping.offset, 0.0)))  # fmt: skip
    ends = np.stack([(low - offset) / scale, (high - offset) / scale])
    return ends.min(0), ends.max(0)


def misfits(mapping: Mapping, found: Description) -> list[str]:
    """Everything in which a mapping and an environment do not fit, one line each; [] when they do."""
    wrong: list[str] = []

    def key_there(what: str, key: str) -> bool:
        if key in found.observation:
            return True
        wrong.append(f"{what}: the observation has no {key!r}{nearest_name(key, found.observation)}; its keys are "
                     f"{sorted(found.observation)}")  # fmt: skip
        return False

    for key, names, indices in mapping.state:
        if not key_there("state", key):
            continue
        size = int(np.prod(found.observation[key][0]))
        if names and not indices and len(names) != size:
            wrong.append(f"state.{key}: got {len(names)} names, the environment gives {size} numbers")
        elif indices and max(indices) >= size:
            wrong.append(f"state.{key}: got index {max(indices)}, the environment gives {size} numbers, counted from 0")
    for kind, channels, pairs in (("images", (3,), mapping.images), ("depth", (1,), mapping.depth)):
        for camera, key in pairs:
            if key == RENDER and kind == "images":
                if not found.renders:
                    wrong.append(f"images.{camera}: the environment renders no rgb_array; name a key of the observation")
            elif key_there(f"{kind}.{camera}", key):
                shape = found.observation[key][0]
                if kind == "images" and (len(shape) != 3 or not {shape[0], shape[2]} & set(channels)):
                    wrong.append(f"images.{camera}: {key} has the shape {shape}, expected [H, W, 3] or [3, H, W]")
                elif kind == "depth" and len(np.squeeze(np.empty(shape)).shape) != 2:
                    wrong.append(f"depth.{camera}: {key} has the shape {shape}, expected [H, W] or [H, W, 1]")
    if mapping.points and key_there("points", mapping.points):
        shape = found.observation[mapping.points][0]
        if len(shape) != 2 or shape[1] not in (3, 6):
            wrong.append(f"points: {mapping.points} has the shape {shape}, expected [N, 3] or [N, 6]")
    size = len(found.action["low"])
    if found.action["kind"] not in ("box", "discrete"):
        wrong.append(f"the environment's actions are of {found.action['kind']}, expected Box or Discrete: wrap it")
    for name in ("action_names", "scale", "offset", "weights"):
        given = len(getattr(mapping, name))
        if given and given != size and not (given == 1 and name != "action_names"):
            wrong.append(f"{name.replace('action_', 'action.')}: got {given}, an action has {size} numbers")
    if found.action["kind"] == "discrete" and (mapping.scale or mapping.offset):
        wrong.append("action: a discrete action has one number per choice, the greatest is taken; leave out scale and offset")
    for name, value, own in (("dt_s", mapping.dt_s, found.dt_s), ("max_steps", mapping.max_steps, found.max_steps)):
        if not value and not own:
            wrong.append(f"{name}: the environment does not say it; add {name}")
    named = [name for _, given, _ in mapping.state for name in given]
    wrong += [f"tool: no state dimension is named {name!r}{nearest_name(name, named)}"
              for name in mapping.tool if name not in named]  # fmt: skip
    return wrong
