"""A program for envs/process/serving.py that answers as envs/rlbench/program.py does, from stored demonstrations alone.

No simulator: the recorded episode is a rail, and an action moves along it as far as its target lies on it. It serves tests,
and machines on which RLBench is not installed; a success here says that the rail was followed to its end, no more.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

AHEAD = 12
"""An action reaches so many recorded frames ahead (all of them with key frames)."""
NEAR = {"joints": 0.15, "pose": 0.03}
"""Farther from the rail than this a target does not count [rad, m]; nothing moves then."""
OTHER_GRIPPER = 0.02
"""What a frame with the other state of the gripper counts as farther [rad, m]."""


def start(options: dict[str, Any], beside: Any) -> Replay:
    beside("plain_pickle")
    return Replay(options, beside("tree"))


class Replay:
    def __init__(self, options: dict[str, Any], tree: Any) -> None:
        self._options, self._tree = options, tree
        self._root, self._task = Path(options["dataset"]), options["task"]
        tree.episodes(self._root, self._task, int(options.get("variation", 0)))  # so that a wrong folder is told at once
        self._episode: Any = None
        self._demo: Any = None
        self._now = 0

    def answer(self, message: dict[str, Any], arrays: dict[str, np.ndarray]) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        do = message["do"]
        if do == "describe":
            found = len(list((self._root / self._task).glob("variation*")))
            return {"variations": found, "versions": {"numpy": np.__version__}}, {}
        if do == "task":
            self._task = message["task"]
            return {}, {}
        if do == "reset":
            self._episode, self._now = self._load(message["start"]), 0
            told = self._tree.descriptions(self._root, self._task, int(message["start"][0]))
            return {"attempts": self._episode.attempts, "instructions": told}, self._frame(bool(message.get("images")))
        if do == "step":
            self._move(arrays["action"])
            done = self._now == len(self._episode) - 1
            return {"success": done, "ended": done}, self._frame(bool(message.get("images")))
        if do == "see":
            return {}, self._frame(True)
        if do == "picture":
            try:
                return {}, {"picture": self._episode.images([self._now], ["front"], True, False)["front.rgb"][0]}
            except ValueError:  # of this camera none were stored
                return {}, {}
        if do == "demo":
            self._demo = self._load(message["start"])
            told = self._tree.descriptions(self._root, self._task, int(message["start"][0]))
            return {"attempts": self._demo.attempts, "instructions": told}, {**self._demo.low, "base": self._demo.base}
        if do == "images":
            options, frames = self._options, [int(each) for each in message["frames"]]
            return {}, self._demo.images(frames, options["cameras"], options["rgb"], options["depth"])
        raise ValueError(f"asked to {do!r}, which is not known here")

    def _load(self, start: list[float]) -> Any:
        variation, number, seed, _ = (int(value) for value in start[:4])
        if number < 0:  # as a seed places a scene, so it chooses an episode here
            there = self._tree.episodes(self._root, self._task, variation)
            number = there[seed % len(there)]
        return self._tree.episode(self._root, self._task, variation, number)

    def _move(self, action: np.ndarray) -> None:
        joints = self._options["arm"] == "joints"
        low = self._episode.low
        rail = low["joint_positions"] if joints else low["gripper_pose"][:, :3]
        last = len(rail) - 1 if self._options.get("keyframes") else min(len(rail) - 1, self._now + AHEAD)
        ahead = np.arange(self._now, last + 1)
        gap = np.linalg.norm(rail[ahead] - action[: rail.shape[1]], axis=1)
        other = (low["gripper_open"][ahead] > 0.5) != (action[-1] > 0.5)
        # where the arm waits, later is as near
        best = int(np.argmin(gap + OTHER_GRIPPER * other - 1e-5 * np.arange(len(ahead))))
        if gap[best] <= NEAR["joints" if joints else "pose"]:
            self._now = int(ahead[best])

    def _frame(self, images: bool) -> dict[str, np.ndarray]:
        episode, now, options = self._episode, self._now, self._options
        frame = {name: values[now] for name, values in episode.low.items() if images or "." not in name}
        frame["base"] = episode.base
        if images:
            seen = episode.images([now], options["cameras"], options["rgb"], options["depth"])
            frame.update({name: values[0] for name, values in seen.items()})
        return frame
