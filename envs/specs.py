"""Frozen specs of tasks, and the names of features and failures: the types that every room shares."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass

STATE = "observation.state"
"""LeRobot's name of the proprioceptive and low-dimensional state."""

ACTION = "action"
"""LeRobot's name of what the robot did."""

IMAGES, DEPTH, POINTS = "observation.images", "observation.depth", "observation.points"
"""LeRobot's names. ``observation.images.<camera>`` `[.., 3, H, W]`, 0 to 1; ``observation.depth.<camera>`` `[.., 1, H, W]` [m],
NaN where unknown; ``observation.points`` `[.., N, 3+C]`: xyz [m] in the robot's base frame, then C = 0 or 3 colours, 0 to 1."""

SPLITS = ("train", "validation", "test")
"""Of starts: what policies are trained on, what checkpoints are chosen by, what is reported."""

FAILURES = ("collision", "dropped", "off_table", "timeout", "unstable", "policy_error")
"""Failures of an episode. An episode that does not succeed carries exactly one of these names."""

SPLITS = ("train", "validation", "test")
"""Of starts and episodes. Seeds depend on the order."""

SIMULATOR_FAILURES = (
    "crash", "hang", "planner_error", "ik_error", "invalid_action", "placement_error", "demo_error", "task_failed", "error",
)  # fmt: skip
"""Further failures, of a simulator in its own process: it died, or was killed for taking too long; no path, no inverse
kinematics, or an invalid action; the scene or the demonstration could not be made; the task ended unsolved; anything else
that it raised."""


def nearest_name(value: str, choices: Iterable[str], opening: str = ". Did you mean", cutoff: float = 0.6) -> str:
    """The end of an error message that suggests the choice most similar to `value`; "" where none is similar."""
    close = difflib.get_close_matches(value, list(choices), n=1, cutoff=cutoff)
    return f"{opening} {close[0]!r}?" if close else ""


@dataclass(frozen=True)
class ActionSpec:
    """One action, sent every `TaskSpec.dt_s` seconds.

    names: `[A]` what each dimension is, with its unit, e.g. ``x_m``.
    low, high: `[A]` box the environment clips to, in the units of the names.
    weights: `[A]` weight of each dimension's squared difference in distances between normalised chunks.

    Raises ValueError for unequal lengths or an empty box.
    """

    names: tuple[str, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    weights: tuple[float, ...]

    def __post_init__(self) -> None:
        sizes = {len(self.names), len(self.low), len(self.high), len(self.weights)}
        if len(sizes) != 1:
            raise ValueError(f"names, low, high and weights must have one length, got {sorted(sizes)}")
        if any(low >= high for low, high in zip(self.low, self.high, strict=True)):
            raise ValueError(f"every low must be below its high, got low={self.low}, high={self.high}")

    @property
    def size(self) -> int:
        return len(self.names)


@dataclass(frozen=True)
class TaskSpec:
    """What policies, rollouts and reports need to know about a task.

    name: the task's registered name.
    summary: one sentence for newcomers.
    state_names: `[S]` what each dimension of ``observation.state`` is, with its unit.
    action: the action's box, names and weights.
    modes: the distinct ways to solve the task that the environment can tell apart.
    start_names: `[D]` what each number of a stored start is, with its unit.
    dt_s: control period [s].
    max_steps: control steps after which an episode has failed with ``timeout``.
    """

    name: str
    summary: str
    state_names: tuple[str, ...]
    action: ActionSpec
    modes: tuple[str, ...]
    start_names: tuple[str, ...]
    dt_s: float
    max_steps: int


@dataclass(frozen=True)
class Shape:
    """One shape in the top view of a scene, in metres in the robot's base frame.

    kind: ``circle`` (size = radius, radius) or ``box`` (size = half extents in x and y).
    role: ``obstacle``, ``goal``, ``start`` or ``object``; the report colours by it.
    """

    kind: str
    xy: tuple[float, float]
    size: tuple[float, float]
    role: str
    label: str = ""
