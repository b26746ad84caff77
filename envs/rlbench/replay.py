"""A program for envs/process/serving.py that answers as envs/rlbench/program.py does, from stored demonstrations alone.

No simulator: an action moves along the recorded episode as far as its target lies on it. It serves tests, and machines without
RLBench; a success means that the recorded path was followed to its end, no more.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

FOLDER = Path(__file__).resolve().parent
AHEAD = 12
"""Recorded frames ahead that one action may reach (all of them with key frames)."""
NEAR = {"joints": 0.15, "pose": 0.03}
"""A target farther from the recorded path than this moves nothing [rad, m]."""
REACH_M = 1.2
"""A target farther from the robot's base than this, or below it, is refused, as RLBench's planner would."""
OTHER_GRIPPER = 0.02
"""Penalty on the distance of a frame with the other state of the gripper [rad, m]."""


def start(options: dict[str, Any], load: Any) -> Any:
    """See envs/process/serving.py."""
    load(FOLDER / "plain_pickle.py")
    return load(FOLDER / "protocol.py").Dispatcher(Replay(options, load(FOLDER / "tree.py")))


class UnreachableError(Exception):
    """There is no path to a target."""


def name_of(error: BaseException) -> str:
    """The failure's name; "" where it has none."""
    return "planner_error" if isinstance(error, UnreachableError) else ""


class Replay:
    """A backend of envs/rlbench/protocol.py. tree: the module envs/rlbench/tree.py.

    Raises ValueError for a folder without episodes of the task.
    """

    def __init__(self, options: dict[str, Any], tree: Any) -> None:
        self._options, self._tree = options, tree
        self._root, self._task = Path(options["dataset"]), options["task"]
        tree.episodes(self._root, self._task, int(options.get("variation", 0)))  # so that a wrong folder fails at once
        self._episode: Any = None
        self._demonstration: Any = None
        self._now = 0

    def describe(self) -> tuple[int, dict[str, str], int]:
        """Number of stored variations, versions of what decides a result, and that nothing was rendered."""
        return len(list((self._root / self._task).glob("variation*"))), {"numpy": np.__version__}, 0

    def load_task(self, name: str) -> None:
        self._task = name

    def reset(self, start: list[float]) -> tuple[list[str], int]:
        """Instructions and attempts of the episode that the start names."""
        self._episode, self._now = self._load(start), 0
        return self._tree.descriptions(self._root, self._task, int(start[0])), self._episode.attempts

    def step(self, action: np.ndarray, avoid: Any) -> tuple[bool, bool]:
        """Whether the end of the episode is reached, twice: as success and as end. Raises UnreachableError."""
        self._move(action)
        done = self._now == len(self._episode) - 1
        return done, done

    def demonstrate(self, start: list[float], images: bool) -> tuple[list[str], int, dict[str, np.ndarray]]:
        """Instructions, attempts and low-dimensional arrays of the stored episode."""
        self._demonstration = self._load(start)
        return self._tree.shown(self._demonstration, self._root, self._task, int(start[0]))

    def images(self, frames: list[int]) -> dict[str, np.ndarray]:
        """Of these frames of the last demonstration; see `StoredEpisode.images`."""
        return dict(self._demonstration.images(frames, *self._wanted()))

    def snapshot(self) -> Any:
        """`[H, W, 3]` uint8 of the front camera; None where none was stored."""
        try:
            return self._episode.images([self._now], ["front"], True, False)["front.rgb"][0]
        except ValueError:
            return None

    def frame(self, images: bool) -> dict[str, np.ndarray]:
        """The present frame."""
        episode, now = self._episode, self._now
        frame = {name: values[now] for name, values in episode.low.items() if images or "." not in name}
        frame["base"] = episode.base
        if images:
            frame.update({name: values[0] for name, values in episode.images([now], *self._wanted()).items()})
        return frame

    def _wanted(self) -> tuple[list[str], bool, bool]:
        return self._options["cameras"], self._options["rgb"], self._options["depth"]

    def _load(self, start: list[float]) -> Any:
        variation, number, seed, _ = (int(value) for value in start[:4])
        if number < 0:  # where a simulator's scene is placed by the seed, it chooses an episode here
            there = self._tree.episodes(self._root, self._task, variation)
            number = there[seed % len(there)]
        return self._tree.episode(self._root, self._task, variation, number)

    def _move(self, action: np.ndarray) -> None:
        joints = self._options["arm"] == "joints"
        target_m = action[:3] - self._episode.base
        if not joints and (np.linalg.norm(target_m) > REACH_M or target_m[2] < 0):
            raise UnreachableError(f"no path to {target_m.round(3).tolist()} m from the base")
        low = self._episode.low
        path = low["joint_positions"] if joints else low["gripper_pose"][:, :3]
        last = len(path) - 1 if self._options.get("keyframes") else min(len(path) - 1, self._now + AHEAD)
        ahead = np.arange(self._now, last + 1)
        gap = np.linalg.norm(path[ahead] - action[: path.shape[1]], axis=1)
        other = (low["gripper_open"][ahead] > 0.5) != (action[-1] > 0.5)
        # where the arm waits, the later frame wins the tie
        best = int(np.argmin(gap + OTHER_GRIPPER * other - 1e-5 * np.arange(len(ahead))))
        if gap[best] <= NEAR["joints" if joints else "pose"]:
            self._now = int(ahead[best])
