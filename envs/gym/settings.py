"""The section `world` of the configuration: which gymnasium environment, in which interpreter, mapped by which file."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SUITES = Path(__file__).resolve().parent / "suites"
"""Files of our own for well-known suites: ``metaworld.py`` is the one here, unless there is one nearer."""


@dataclass(frozen=True)
class GymSettings:
    """A gymnasium environment as the world of a run: rollouts, starts, demonstrations (docs/worlds.md).

    Attributes:
        gym: a gymnasium id such as gym_pusht/PushT-v0, or a Python file and its function that makes the environment,
            my_env.py:make; "": the world is that of the task
        make: key=value for each keyword argument of the environment; values are JSON, or text
        mapping: YAML file that says which observations are state, images, depth and points, and what success is
        python: the interpreter that the environment is installed in, as a command line; "": the current one
        workers: environments at once per process, each in a process of its own
        expert: a Python file and its function that demonstrates, my_expert.py:expert; "": none
        expert_noise: smooth disturbance of the expert's executed actions, never of the recorded ones, in standard deviations
            relative to half the range of an action; the recorded actions then show how to recover
        demonstrations: recorded demonstrations in any format of docs/recorded.md, in place of an expert; "": none
        clips: whether the first test episodes are rendered for the report
        start_s: limit for the start of an environment's process [s], after which it is killed
        step_s: limit for one step [s], after which it is killed
    """

    gym: str = ""
    make: tuple[str, ...] = ()
    mapping: str = ""
    python: str = ""
    workers: int = 2
    expert: str = ""
    expert_noise: float = 0.0
    demonstrations: str = ""
    clips: bool = True
    start_s: float = 120.0
    step_s: float = 60.0

    @property
    def name(self) -> str:
        """The task's name where none is given: the id, or the file's name."""
        return Path(self.gym.partition(":")[0]).stem if is_file(self.gym) else self.gym

    def check(self) -> None:
        """Raises ValueError for settings that contradict each other, and for files that do not exist."""
        given = [name for name in ("make", "mapping", "python", "expert", "demonstrations") if getattr(self, name)]
        if not self.gym:
            if given:
                raise ValueError(f"world.gym: got none, but world.{given[0]}; name the environment, such as gym_pusht/PushT-v0")
            return
        if not self.mapping:
            raise ValueError("world.mapping: got none, expected a YAML file of what policies observe (docs/worlds.md)")
        self.arguments()
        if self.expert and self.demonstrations:
            raise ValueError("world.expert, world.demonstrations: got both, expected one of them")
        if self.workers < 1 or min(self.start_s, self.step_s) <= 0 or self.expert_noise < 0:
            raise ValueError(f"world: workers must be at least 1, start_s and step_s above 0, expert_noise not below; got "
                             f"{self.workers}, {self.start_s}, {self.step_s}, {self.expert_noise}")  # fmt: skip
        for name, text in (("gym", self.gym if is_file(self.gym) else ""), ("mapping", self.mapping), ("expert", self.expert)):
            if text and not find(text.partition(".py:")[0] + ".py" if ".py:" in text else text).is_file():
                raise ValueError(f"world.{name}: there is no file {text}")
        if self.demonstrations and not Path(self.demonstrations).exists():
            raise ValueError(f"world.demonstrations: {self.demonstrations} does not exist")

    def arguments(self) -> dict[str, Any]:
        """The keyword arguments of the environment. Raises ValueError for one without a name."""
        pairs = [each.partition("=") for each in self.make]
        wrong = [each for each, (name, sign, _) in zip(self.make, pairs, strict=True) if not sign or not name.isidentifier()]
        if wrong:
            raise ValueError(f"world.make: got {wrong}, expected key=value for a keyword argument of the environment")
        return {name: _value(text) for name, _, text in pairs}

    def sources(self) -> dict[str, str]:
        """What the environment is made of, for the keys of stages: the files' hashes in place of their paths."""
        return {name: _hash_of(text) if is_file(text) else text for name, text in (("gym", self.gym), ("expert", self.expert))}


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


def is_file(text: str) -> bool:
    """Whether this names a Python file, with or without a function."""
    return text.endswith(".py") or ".py:" in text


def split(text: str, function: str) -> tuple[Path, str]:
    """The Python file and the function that a text such as ``my_env.py:make`` names. function: the default."""
    name, _, given = text.partition(".py")
    return find(f"{name}.py"), given.removeprefix(":") or function


def find(text: str) -> Path:
    """The file at this path, else the one of this name in `SUITES`."""
    path = Path(text)
    return path.resolve() if path.exists() or not (SUITES / path.name).is_file() or path.name != text else SUITES / text


def _hash_of(text: str) -> str:
    path, function = split(text, "")
    return f"{hashlib.sha256(path.read_bytes()).hexdigest()}:{function}"
