"""The worker of one gymnasium environment: a program for envs/process/serving.py, in the user's own interpreter.

It needs Python 3.8 or newer, numpy, gymnasium and the environment, and imports nothing of ours. Messages name a ``command``:

    options      gym (an id, or a file), function (of the file), make (keyword arguments), imports (modules), render (whether
                 frames may be asked for), expert (a file, or ""), expert_function
    describe     -> observation {key: [shape, dtype]}, action {kind, shape, low, high}, dt_s, max_steps, render_modes, versions,
                 expert_takes (number of its arguments)
    reset        seed, keys -> info; the observation's keys
    step         keys; action `[A]` -> reward, terminated, truncated, info; the observation's keys
    observe      keys -> the present observation's keys; ``render`` is the frame of env.render()
    expert       mode, seed -> the expert of the episode that was just reset
    act          -> action `[A]` of that expert for the present observation, gave_up

An observation that is a dictionary is flattened, ``a.b`` is key b of dictionary a; any other one has the key ``observation``.
"""

from __future__ import annotations

import contextlib
import ctypes.util
import importlib
import importlib.metadata
import inspect
import os
import sys
from pathlib import Path
from typing import Any, Callable  # noqa: UP035 - Python 3.8

import numpy as np

SINGLE = "observation"
"""The key of an observation that is no dictionary."""


def start(options: dict[str, Any], load: Callable[[Path], Any]) -> Served:
    """The environment of these options. Without a display MuJoCo renders by EGL, where there is one."""
    if not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")) and ctypes.util.find_library("EGL"):
        os.environ.setdefault("MUJOCO_GL", "egl")
    for name in options["imports"]:
        importlib.import_module(name)
    expert = None
    if options["expert"]:
        expert = _function(load(Path(options["expert"])), options["expert_function"], options["expert"])
    return Served(_made(options, load), expert, bool(options["render"]))


def text_of(error: Exception) -> str:
    """What failed, in one line, without the chain of an environment's own wrappers."""
    text = " ".join(str(error).split())
    return type(error).__name__ + (": " + text if text else "")


def _function(module: Any, name: str, path: str) -> Any:
    found = getattr(module, name, None)
    if not callable(found):
        there = sorted(each for each in vars(module) if callable(getattr(module, each)) and not each.startswith("_"))
        raise ValueError(f"{path} has no function {name!r}, only {there}")
    return found


def _made(options: dict[str, Any], load: Callable[[Path], Any]) -> Any:
    make = dict(options["make"])
    if options["function"]:
        return _single(_function(load(Path(options["gym"])), options["function"], options["gym"])(**make))
    import gymnasium

    if options["render"] and "render_mode" not in make and "rgb_array" in _render_modes(gymnasium.spec(options["gym"])):
        make["render_mode"] = "rgb_array"
    return gymnasium.make(options["gym"], disable_env_checker=True, **make)


def _render_modes(spec: Any) -> Any:
    """The render modes that an environment's class declares; rgb_array where that is not known before it is made."""
    try:
        entry = spec.entry_point
        if isinstance(entry, str):
            module, _, name = entry.partition(":")
            entry = getattr(importlib.import_module(module), name)
        return entry.metadata["render_modes"]
    except (AttributeError, KeyError, TypeError, ImportError):
        return ()


def _single(env: Any) -> Any:
    """One environment, also of what LeRobot's ``make_env`` gives: dictionaries of vector environments."""
    while isinstance(env, dict):
        env = next(iter(env.values()))
    return env.envs[0] if hasattr(env, "envs") else env


class Served:
    """One environment, its expert, and the present observation."""

    def __init__(self, env: Any, expert: Any, render: bool) -> None:
        self._env, self._expert, self._render = env, expert, render
        self._observation: Any = None
        self._info: dict[str, Any] = {}
        self._act: Any = None

    def answer(self, message: dict[str, Any], arrays: dict[str, np.ndarray]) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """Raises ValueError for an unknown command, and whatever the environment raises."""
        command = message["command"]
        if command == "describe":
            return self._describe(), {}
        if command == "reset":
            self._act = None
            self._observation, self._info = self._env.reset(seed=int(message["seed"]))
            return {"info": scalars(self._info)}, self._keys(message["keys"])
        if command == "step":
            step = self._env.step(self._to_env(arrays["action"]))
            self._observation, reward, terminated, truncated, self._info = step
            answer = {"reward": _finite(reward), "terminated": bool(terminated), "truncated": bool(truncated)}
            return {**answer, "info": scalars(self._info)}, self._keys(message["keys"])
        if command == "observe":
            return {}, self._keys(message["keys"])
        if command == "expert":
            return self._start_expert(str(message["mode"]), int(message["seed"]))
        if command == "act":
            action = self._act(self._observation) if self._act is not None else None
            return {"gave_up": action is None}, {} if action is None else {"action": self._from_env(action)}
        raise ValueError(f"unknown command {command!r}")

    def _start_expert(self, mode: str, seed: int) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        if self._expert is None:
            raise ValueError("no expert was named")
        given = (self._env, mode, np.random.default_rng(seed))[: _takes(self._expert)]
        self._act = self._expert(*given)
        if self._act is not None and not callable(self._act):
            raise ValueError(f"the expert returned a {type(self._act).__name__}, expected a function observation -> action")
        return {}, {}

    # -- spaces -----------------------------------------------------------------------------------------------------

    def _describe(self) -> dict[str, Any]:
        env = self._env
        metadata = getattr(env, "metadata", None) or {}
        fps = metadata.get("render_fps")
        dt_s = getattr(env.unwrapped, "dt", None) or (1.0 / fps if fps else 0.0)
        return {
            "observation": {key: [list(shape), dtype] for key, (shape, dtype) in _leaves(env.observation_space).items()},
            "action": self._action_space(), "dt_s": float(dt_s), "max_steps": _time_limit(env),
            "render_modes": [str(each) for each in metadata.get("render_modes", ())],
            "renders": getattr(env, "render_mode", None) == "rgb_array",
            "versions": versions(type(env.unwrapped).__module__.split(".")[0]),
            "expert_takes": 0 if self._expert is None else _takes(self._expert),
        }  # fmt: skip

    def _action_space(self) -> dict[str, Any]:
        space = self._env.action_space
        if hasattr(space, "low"):
            low, high = (np.asarray(each, np.float64).reshape(-1) for each in (space.low, space.high))
            # a box without bounds has infinite ones, which JSON does not know
            sent = [[float(value) if np.isfinite(value) else None for value in each.tolist()] for each in (low, high)]
            return {"kind": "box", "shape": list(space.shape), "low": sent[0], "high": sent[1]}
        if type(space).__name__ == "Discrete":
            size = int(space.n)
            return {"kind": "discrete", "shape": [size], "low": [0.0] * size, "high": [1.0] * size}
        return {"kind": type(space).__name__, "shape": [], "low": [], "high": []}

    def _to_env(self, action: np.ndarray) -> Any:
        space = self._env.action_space
        if hasattr(space, "low"):
            return np.asarray(action, np.float64).reshape(space.shape).astype(space.dtype)
        return int(np.argmax(action)) + int(space.start)

    def _from_env(self, action: Any) -> np.ndarray:
        space = self._env.action_space
        if hasattr(space, "low"):
            return np.clip(np.asarray(action, np.float64), space.low, space.high).reshape(-1).astype(np.float64)
        return np.eye(int(space.n))[int(action) - int(space.start)]

    def _keys(self, keys: list[str]) -> dict[str, np.ndarray]:
        flat = flattened(self._observation)
        found = {}
        for key in keys:
            if key == "render":
                found[key] = self._frame()
            elif key in flat:
                found[key] = np.asarray(flat[key])
            else:
                raise ValueError(f"the observation has no {key!r}, only {sorted(flat)}")
        return found

    def _frame(self) -> np.ndarray:
        frame = self._env.render()
        if isinstance(frame, (list, tuple)) and frame:
            frame = frame[-1]
        array = np.asarray(frame)
        if array.ndim != 3 or array.shape[2] not in (3, 4):
            raise ValueError(f"env.render() gave {type(frame).__name__} of shape {array.shape}, expected [H, W, 3]")
        return np.ascontiguousarray(array[..., :3]).astype(np.uint8)


def _time_limit(env: Any) -> int:
    """Steps after which gymnasium's own time limit truncates an episode; 0 without one."""
    limit = getattr(getattr(env, "spec", None), "max_episode_steps", None)
    while not limit and env is not None:
        limit, env = vars(env).get("_max_episode_steps"), vars(env).get("env")
    return int(limit or 0)


def _takes(expert: Any) -> int:
    """How many of env, mode and generator an expert takes."""
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return min(3, sum(each.kind in kinds for each in inspect.signature(expert).parameters.values()))


def flattened(observation: Any, prefix: str = "") -> dict[str, Any]:
    """The observation's arrays by their keys."""
    if isinstance(observation, dict):
        found: dict[str, Any] = {}
        for key, value in observation.items():
            found.update(flattened(value, f"{prefix}.{key}" if prefix else str(key)))
        return found
    return {prefix or SINGLE: observation}


def _leaves(space: Any, prefix: str = "") -> dict[str, tuple[tuple[int, ...], str]]:
    """Shape and dtype of each of a space's keys; a space of anything but numbers is left out."""
    if hasattr(space, "spaces") and hasattr(space.spaces, "items"):
        found: dict[str, tuple[tuple[int, ...], str]] = {}
        for key, value in space.spaces.items():
            found.update(_leaves(value, f"{prefix}.{key}" if prefix else str(key)))
        return found
    shape, dtype = getattr(space, "shape", None), getattr(space, "dtype", None)
    return {} if shape is None or dtype is None else {prefix or SINGLE: (tuple(shape), str(np.dtype(dtype)))}


def scalars(info: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """What info holds of finite numbers, booleans and texts; keys of dictionaries in it as ``a.b``."""
    found: dict[str, Any] = {}
    for key, value in (info or {}).items():
        name = f"{prefix}{key}"
        if isinstance(value, dict):
            found.update(scalars(value, name + "."))
            continue
        if isinstance(value, np.ndarray) and value.size == 1:
            value = value.reshape(-1)[0]
        if isinstance(value, np.generic):
            value = value.item()
        if isinstance(value, (bool, int, str)) or (isinstance(value, float) and np.isfinite(value)):
            found[name] = value
    return found


def _finite(reward: Any) -> float | None:
    number = float(reward)
    return number if np.isfinite(number) else None


def versions(package: str) -> dict[str, str]:
    """Of Python, numpy, gymnasium, and of the package and the simulator that the environment is from."""
    found = {"python": sys.version.split()[0], "numpy": np.__version__}
    for name in ("gymnasium", package, "mujoco", "pybullet", "pymunk"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found
