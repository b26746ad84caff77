"""The mapping file of a gymnasium environment: what its observations, actions, success, score and modes are in our words."""

from __future__ import annotations

import re
from collections.abc import Mapping as Dictionary
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from envs import plain_yaml
from envs.cameras.specs import CAMERAS
from envs.specs import nearest_name

RENDER = "render"
"""In place of an observation's key: the frame of `env.render()`."""

_NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
_SUCCESS = re.compile(rf"(reward|return|terminated|survived|info\.[\w./ -]+?)(?:\s*(>=|<=|>|<)\s*({_NUMBER}))?")
_SCORE = re.compile(r"(max|last|sum)\s+(reward|info\.[\w./ -]+)")

State = tuple[tuple[str, tuple[str, ...], tuple[int, ...]], ...]


@dataclass(frozen=True)
class Success:
    """When an episode is solved. what: reward, return (the sum of rewards), terminated, survived or ``info.<key>``.

    than: >=, >, <=, < and the number; "" for what is true or false.
    """

    what: str
    than: str = ""
    number: float = 0.0

    @classmethod
    def parse(cls, text: Any) -> Success:
        """From text such as ``info.is_success`` or ``reward >= 0.95``. Raises ValueError for anything else."""
        match = _SUCCESS.fullmatch(str(text).strip())
        expected = "expected info.<key>, reward >= number, return >= number, info.<key> >= number, terminated or survived"
        if match is None:
            raise ValueError(f"success: got {text!r}, {expected}")
        what, than, number = match[1].strip(), match[2] or "", float(match[3] or 0)
        if bool(than) != (what in ("reward", "return")) and not what.startswith("info."):
            raise ValueError(f"success: got {text!r}, {expected}")
        return cls(what, than, number)

    def holds(self, reward: float, total: float, terminated: bool, truncated: bool, info: Dictionary[str, Any]) -> bool:
        """Whether a step shows success. A key that `info` lacks counts as false."""
        if self.what == "terminated":
            return terminated
        if self.what == "survived":
            return truncated and not terminated
        value = {"reward": reward, "return": total}.get(self.what, info.get(self.what.removeprefix("info."), False))
        if not self.than:
            return bool(value)
        number = float(value)
        return {">=": number >= self.number, ">": number > self.number, "<=": number <= self.number,
                "<": number < self.number}[self.than]  # fmt: skip


@dataclass(frozen=True)
class Score:
    """A number per episode: the largest, last or sum of the rewards, or of a key of info."""

    how: str
    what: str

    @classmethod
    def parse(cls, text: Any) -> Score:
        """From text such as ``max info.coverage``. Raises ValueError for anything else."""
        match = _SCORE.fullmatch(str(text).strip())
        if match is None:
            raise ValueError(f"score: got {text!r}, expected max, last or sum, then reward or info.<key>, such as max reward")
        return cls(match[1], match[2].strip())

    def after(self, before: float | None, reward: float, info: Dictionary[str, Any]) -> float | None:
        """The score after one more step. before: that of the steps before, None without any."""
        value = reward if self.what == "reward" else info.get(self.what.removeprefix("info."))
        if value is None:
            return before
        number = float(value)
        return number if before is None or self.how == "last" else before + number if self.how == "sum" else max(before, number)


@dataclass(frozen=True)
class Mapping:
    """A mapping file (docs/worlds.md).

    imports: modules that are imported in the environment's process, so that its id is registered. state: keys of the
    observation, each with names and indices of its numbers; no indices: all of them, in order. images, depth: our camera and
    its key. points: key of the cloud, "": none. success, score, hold: how an episode is judged; success must hold for `hold`
    steps.
    action_names, scale, offset, weights: of an action; the environment gets scale x action + offset. mode_key, modes: the key
    of info that says how a task was solved, and its values. tool: names of the state dimensions that are the tool's x, y (, z).
    dt_s, max_steps: 0: the environment's own. summary: one sentence.
    """

    success: Success
    state: State
    imports: tuple[str, ...] = ()
    images: tuple[tuple[str, str], ...] = ()
    depth: tuple[tuple[str, str], ...] = ()
    points: str = ""
    score: Score | None = None
    hold: int = 1
    action_names: tuple[str, ...] = ()
    scale: tuple[float, ...] = ()
    offset: tuple[float, ...] = ()
    weights: tuple[float, ...] = ()
    mode_key: str = ""
    modes: tuple[str, ...] = ("solved",)
    tool: tuple[str, ...] = ()
    dt_s: float = 0.0
    max_steps: int = 0
    summary: str = ""

    @property
    def camera_keys(self) -> tuple[str, ...]:
        """The observation's keys that are read for camera features only."""
        keys = [key for _, key in (*self.images, *self.depth)] + ([self.points] if self.points else [])
        return tuple(dict.fromkeys(keys))


_KEYS = ("imports", "state", "images", "depth", "points", "success", "score", "hold", "action", "modes", "tool", "dt_s",
         "max_steps", "summary")  # fmt: skip
_ACTION_KEYS = ("names", "scale", "offset", "weights")


def read_mapping(path: Path) -> Mapping:
    """The mapping in a YAML file. Raises ValueError with everything that is wrong with it, one line each."""
    try:
        values = plain_yaml.read(path.read_text())
    except (ValueError, OSError) as error:
        raise ValueError(f"{path} cannot be read as YAML: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path}: got a {type(values).__name__}, expected `key: value` lines")
    wrong: list[str] = []
    made: dict[str, Any] = {}
    for key, value in values.items():
        if key not in _KEYS:
            wrong.append(f"unknown key {key!r}{nearest_name(str(key), _KEYS)}; known: {list(_KEYS)}")
            continue
        try:
            made |= _read(key, value)
        except (ValueError, TypeError) as error:
            wrong.append(str(error))
    wrong += [f"{key} is missing" for key in ("state", "success") if key not in values]
    if wrong:
        raise ValueError("\n".join(f"{path}: {line}" for line in wrong))
    return Mapping(**made)


def _read(key: str, value: Any) -> dict[str, Any]:
    if key == "success":
        return {key: Success.parse(value)}
    if key == "score":
        return {key: Score.parse(value)}
    if key == "state":
        return {key: _state(value)}
    if key in ("images", "depth"):
        pairs = value if isinstance(value, dict) else {}
        unknown = [name for name in pairs if name not in CAMERAS]
        if not pairs or unknown:
            hint = nearest_name(str(unknown[0]), CAMERAS) if unknown else ""
            raise ValueError(f"{key}: got {value!r}, expected camera: key with cameras of {list(CAMERAS)}{hint}")
        return {key: tuple((str(name), str(where)) for name, where in pairs.items())}
    if key == "action":
        unknown = [each for each in value if each not in _ACTION_KEYS] if isinstance(value, dict) else [value]
        if unknown:
            raise ValueError(f"action: got {unknown[0]!r}{nearest_name(str(unknown[0]), _ACTION_KEYS)}; expected some of "
                             f"{list(_ACTION_KEYS)}")  # fmt: skip
        return {("action_names" if name == "names" else name): _numbers(f"action.{name}", each, name == "names")
                for name, each in value.items()}  # fmt: skip
    if key == "modes":
        if not isinstance(value, dict) or set(value) != {"info", "names"} or len(set(value["names"])) < 2:
            raise ValueError(f"modes: got {value!r}, expected info: key of info, and names: [two or more]")
        return {"mode_key": str(value["info"]), "modes": tuple(map(str, value["names"]))}
    if key in ("imports", "tool"):
        if not isinstance(value, list) or (key == "tool" and len(value) not in (2, 3)):
            what = "two or three state names" if key == "tool" else "modules"
            raise ValueError(f"{key}: got {value!r}, expected a list of {what}")
        return {key: tuple(map(str, value))}
    if key in ("points", "summary"):
        return {key: str(value)}
    kind = {f.name: f.type for f in fields(Mapping)}[key]
    if isinstance(value, bool) or not isinstance(value, int | float) or value <= 0 or (kind == "int" and value != int(value)):
        raise ValueError(f"{key}: got {value!r}, expected a {'whole ' if kind == 'int' else ''}number above 0")
    return {key: int(value) if kind == "int" else float(value)}


def _state(value: Any) -> State:
    """From a key, a list of keys, or keys with names (a list) or with names and indices (a dictionary)."""
    if isinstance(value, str):
        value = [value]
    if isinstance(value, list):
        value = dict.fromkeys(map(str, value))
    if not isinstance(value, dict) or not value:
        raise ValueError(f"state: got {value!r}, expected keys of the observation, alone or each with the names of its numbers")
    found = []
    for key, names in value.items():
        if isinstance(names, dict):
            if not all(isinstance(index, int) and index >= 0 for index in names.values()):
                raise ValueError(f"state.{key}: got {names!r}, expected name: index, counted from 0")
            found.append((str(key), tuple(map(str, names)), tuple(names.values())))
        elif names is None or isinstance(names, list):
            found.append((str(key), tuple(map(str, names or ())), ()))
        else:
            raise ValueError(f"state.{key}: got {names!r}, expected a list of names, or name: index")
    return tuple(found)


def _numbers(key: str, value: Any, names: bool) -> tuple[Any, ...]:
    """A list of names or of numbers; one number stands for all dimensions."""
    if names:
        if not isinstance(value, list):
            raise ValueError(f"{key}: got {value!r}, expected a list of names")
        return tuple(map(str, value))
    values = value if isinstance(value, list) else [value]
    if not all(isinstance(each, int | float) and not isinstance(each, bool) and np.isfinite(each) for each in values):
        raise ValueError(f"{key}: got {value!r}, expected a number, or one for each action dimension")
    if key == "action.scale" and 0 in values:
        raise ValueError(f"{key}: got {value!r}, expected no 0")
    return tuple(map(float, values))
