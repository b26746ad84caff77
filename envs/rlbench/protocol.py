"""The messages between `RLBenchEnv` and a simulator's process, and the dispatch of each to the backend that answers it.

Two programs for envs/process/serving.py have a backend: program.py (RLBench) and replay.py (stored demonstrations). It runs in
any Python from 3.8 on with numpy, and imports nothing of ours. Messages name a ``command``:

    options      task, arm (planning, ik, joints), collision_checking, per_action_collision_checking (demonstrations hold
                 ``avoids_collisions`` `[L]`), cameras (RLBench's names), rgb, depth, image_size [H, W], renderer (opengl,
                 opengl3), dataset ("" or a folder), variation, keyframes, subsample (which frames of a demonstration are
                 kept; also the simulator steps for which a joint action is held), gripper_threshold, objects (names of those
                 in the scene whose poses are asked for)
    describe     -> variations, versions, rendered (frames rendered so far)
    load_task    task -> nothing; it replaces the task of the options
    reset        start [variation, episode, seed, attempts]; images -> attempts, instructions; a frame
    step         action `[8]`; images; avoid (of this one path, in place of collision_checking) -> success, ended; a frame
    observe      -> a frame with images
    demonstrate  start; images (whether kept frames are rendered) -> attempts, instructions; low-dimensional arrays of all L
                 frames
    images       frames [M] -> the images of these frames of the last demonstration
    snapshot     -> ``snapshot`` [H, W, 3] uint8 of the front camera, for people

A start with an episode >= 0 is that of a stored demonstration; else its seed places the scene, in the given number of attempts
(0: not known). A frame: what `StoredEpisode.low` and `StoredEpisode.images` (envs/rlbench/tree.py) name, without the L,
``base`` `[3]`, and with objects their poses ``objects`` `[n, 7]`, in demonstrations `[L, n, 7]`. An action is xyz [m] and
quaternion xyzw of the gripper in the world, or joint angles [rad]; then 1 for open, 0 for closed. A step that is refused fails
with `REFUSALS`, the scene is as before, and the episode may go on.
"""

from __future__ import annotations

from typing import Any

import numpy as np

REFUSALS = ("planner_error", "ik_error", "invalid_action")
"""Failures of a step before which nothing has moved: no path, no inverse kinematics, not an action.

RLBench's arm action modes raise them before they step the simulation, and the gripper moves after the arm.
"""


class Dispatcher:
    """Answers the messages above by the methods of a backend.

    They are describe, load_task, reset, step, frame, demonstrate, images and snapshot; see the two programs.
    """

    def __init__(self, backend: Any) -> None:
        self._backend = backend

    def answer(self, message: dict[str, Any], arrays: dict[str, np.ndarray]) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """Raises ValueError for an unknown command, and whatever the backend raises."""
        command, backend, images = message["command"], self._backend, bool(message.get("images"))
        if command == "describe":
            variations, versions, rendered = backend.describe()
            return {"variations": variations, "versions": versions, "rendered": rendered}, {}
        if command == "load_task":
            backend.load_task(message["task"])
            return {}, {}
        if command == "reset":
            instructions, attempts = backend.reset(message["start"])
            return {"attempts": attempts, "instructions": instructions}, backend.frame(images)
        if command == "step":
            success, ended = backend.step(arrays["action"], message.get("avoid"))
            return {"success": success, "ended": ended}, backend.frame(images)
        if command == "observe":
            return {}, backend.frame(True)
        if command == "demonstrate":
            instructions, attempts, low = backend.demonstrate(message["start"], images)
            return {"attempts": attempts, "instructions": instructions}, low
        if command == "images":
            return {}, backend.images([int(each) for each in message["frames"]])
        if command == "snapshot":
            snapshot = backend.snapshot()
            return {}, {} if snapshot is None else {"snapshot": snapshot}
        raise ValueError(f"unknown command {command!r}")
