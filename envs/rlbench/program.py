"""A program for envs/process/serving.py that runs RLBench. The only file that imports it, and only in the worker's process.

It needs stepjam/RLBench and stepjam/PyRep, CoppeliaSim 4.1 and an X display. What is asked and answered:

    options   task, arm (planning, ik, joints), collision_checking, per_action_collision_checking (demos hold
              ``avoids_collisions`` `[L]`), repeat (simulator steps for which a joint action is held),
              cameras (RLBench's names), rgb, depth, image_size [H, W], renderer (opengl, opengl3), dataset ("" or a folder)
    describe  -> variations, versions
    task      task -> nothing; it takes the place of the first one
    reset     start [variation, episode, seed, attempts] -> attempts, instructions; a frame
    step      action `[8]`; images; avoid, of this one path, in place of collision_checking -> success, ended; a frame
    see       -> a frame with images
    demo      start -> attempts, instructions; arrays of all L frames without images
    images    frames [M] -> the images of these frames of the last demo
    picture   -> ``picture`` [H, W, 3] uint8 of the front camera, for a person to look at

A start of an episode >= 0 is that of a stored demonstration; else it is placed by the seed, in so many attempts as it once
took, or 0. A frame: what `StoredEpisode.low` and `images` of envs/rlbench/tree.py name, without the L, and ``base`` `[3]`. An
action is xyz [m] and quaternion xyzw of the gripper in the world, or joint angles [rad]; then 1 for open, 0 for closed.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

NAMES = (
    ("ConfigurationPathError", "planner_error"), ("IKError", "ik_error"), ("ConfigurationError", "planner_error"),
    ("InvalidActionError", "invalid_action"), ("BoundaryError", "placement_error"), ("WaypointError", "placement_error"),
    ("TaskEnvironmentError", "placement_error"), ("DemoError", "demo_error"), ("NoWaypointsError", "demo_error"),
)  # fmt: skip
"""What RLBench and PyRep raise, and what that is called; the first one that is anywhere in the chain of causes counts."""


PICTURED = "front"
"""The camera that takes pictures for people."""


def name_of(error: BaseException) -> str:
    chain: set[str] = set()
    cause: Any = error
    while cause is not None:
        chain |= {kind.__name__ for kind in type(cause).__mro__}
        cause = cause.__cause__ or cause.__context__
    return next((name for kind, name in NAMES if kind in chain), "")


def start(options: dict[str, Any], beside: Any) -> Simulator:
    beside("plain_pickle")
    return Simulator(options, beside("tree"))


class DemoError(Exception):
    """RLBench's planner did not solve the task from here; another start may do."""


class Simulator:
    """One RLBench environment with one task."""

    def __init__(self, options: dict[str, Any], tree: Any) -> None:
        from pyrep.const import RenderMode
        from rlbench.action_modes import arm_action_modes as arms
        from rlbench.action_modes.action_mode import MoveArmThenGripper
        from rlbench.action_modes.gripper_action_modes import Discrete
        from rlbench.environment import Environment
        from rlbench.observation_config import CameraConfig, ObservationConfig
        from rlbench.utils import name_to_task_class

        self._options, self._tree = options, tree
        height, width = options["image_size"]
        seen: dict[str, Any] = {}
        self._cameras: list[tuple[Any, bool, bool]] = []
        for camera in tree.CAMERAS:
            wanted = camera in options["cameras"]
            rgb, depth = wanted and options["rgb"], wanted and options["depth"]
            # a camera of which nothing is asked for at the launch is taken out of the scene; the front one takes pictures
            made = seen[camera + "_camera"] = CameraConfig(
                rgb=rgb or camera == PICTURED, depth=depth, point_cloud=False, mask=False, image_size=(width, height),
                render_mode=RenderMode[options["renderer"].upper()], depth_in_meters=True,
            )  # fmt: skip
            self._cameras.append((made, rgb, depth))
        self._pictured = seen[PICTURED + "_camera"]
        self._observed = ObservationConfig(
            joint_forces=False, gripper_joint_positions=True, task_low_dim_state=False, **seen
        )
        arm = {
            "planning": lambda: arms.EndEffectorPoseViaPlanning(collision_checking=options["collision_checking"]),
            "ik": lambda: arms.EndEffectorPoseViaIK(collision_checking=options["collision_checking"]),
            "joints": arms.JointPosition,
        }[options["arm"]]()
        self._arm = arm
        self._environment = Environment(MoveArmThenGripper(arm, Discrete()), obs_config=self._observed, headless=True)
        self._environment.launch()
        self._find, self._name = name_to_task_class, options["task"]
        self._task = self._environment.get_task(self._find(self._name))
        self._demo: Any = None

    def answer(self, message: dict[str, Any], arrays: dict[str, np.ndarray]) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        do = message["do"]
        if do == "describe":
            return {"variations": self._task.variation_count(), "versions": versions()}, {}
        if do == "task":
            self._name = message["task"]
            self._task = self._environment.get_task(self._find(self._name))
            return {}, {}
        if do == "reset":
            self._look(False)
            instructions, attempts = self._place(message["start"])
            return {"attempts": attempts, "instructions": instructions}, self._frame(bool(message.get("images")))
        if do == "step":
            self._look(False)
            if "avoid" in message:
                self._arm._collision_checking = message["avoid"]
            success, ended = self._step(arrays["action"])
            return {"success": success, "ended": ended}, self._frame(bool(message.get("images")))
        if do == "see":
            return {}, self._frame(True)
        if do == "picture":
            self._look(False)
            self._pictured.rgb = True
            return {}, {"picture": np.asarray(getattr(self._task.get_observation(), PICTURED + "_rgb"), np.uint8)}
        if do == "demo":
            return self._demonstrate(message["start"])
        if do == "images":
            return {}, self._images([int(each) for each in message["frames"]])
        raise ValueError(f"asked to {do!r}, which is not known here")

    def _look(self, on: bool) -> None:
        """Rendering costs more than a step of the physics: cameras are asked for where a frame is wanted only."""
        for camera, rgb, depth in self._cameras:
            camera.rgb, camera.depth = on and rgb, on and depth

    def _place(self, start: list[float]) -> tuple[list[str], int]:
        """Put the scene at a start; the instructions, and how many attempts it took (0: not known)."""
        variation, number, seed, attempts = (int(value) for value in start[:4])
        if number < 0 and not attempts:
            np.random.seed(seed)  # noqa: NPY002 - it is what RLBench places its objects by
            self._task.set_variation(variation)
            instructions, _ = self._task.reset()
            return list(instructions), int(getattr(self._task._scene, "_attempts", -1)) + 1
        if number >= 0:
            stored = self._tree.episode(Path(self._options["dataset"]), self._name, variation, number)
            if stored.random_state is None:
                raise ValueError(f"{stored.folder} does not tell numpy's random state: it can not be placed again")
            state, attempts = stored.random_state, stored.attempts
        else:
            state = np.random.RandomState(seed).get_state()
        instructions, _ = self._task.reset_to_demo(self._as_demo(variation, state, attempts))
        return list(instructions), attempts

    def _as_demo(self, variation: int, state: Any, attempts: int) -> Any:
        """What RLBench's reset_to_demo looks at."""
        from rlbench.demo import Demo

        class First:
            misc = {"variation_index": variation}

        demo = Demo([First()], random_seed=state)
        demo.num_reset_attempts = attempts or None
        return demo

    def _step(self, action: np.ndarray) -> tuple[bool, bool]:
        repeat = int(self._options["repeat"]) if self._options["arm"] == "joints" else 1
        for _ in range(repeat):
            _, reward, ended = self._task.step(action)
            if reward == 1.0 or ended:
                break
        return reward == 1.0, bool(ended)

    def _frame(self, images: bool) -> dict[str, np.ndarray]:
        self._look(images)
        observation = self._task.get_observation()
        frame = _low(observation)
        frame["base"] = self._tree.base_position(observation.misc.get("joint_poses"))
        if images:
            frame.update(self._seen(observation))
            for camera in self._options["cameras"]:
                for what in ("extrinsics", "intrinsics"):
                    frame[f"{camera}.{what}"] = np.asarray(observation.misc[f"{camera}_camera_{what}"], np.float64)
        return frame

    def _seen(self, observation: Any) -> dict[str, np.ndarray]:
        found = {}
        for camera in self._options["cameras"]:
            if self._options["rgb"]:
                found[camera + ".rgb"] = np.asarray(getattr(observation, camera + "_rgb"), np.uint8)
            if self._options["depth"]:
                found[camera + ".depth"] = np.asarray(getattr(observation, camera + "_depth"), np.float32)
        return found

    def _demonstrate(self, start: list[float]) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        variation, number, seed, _ = (int(value) for value in start[:4])
        if number >= 0:
            self._demo = self._tree.episode(Path(self._options["dataset"]), self._name, variation, number)
            told = self._tree.descriptions(Path(self._options["dataset"]), self._name, variation)
            return {"attempts": self._demo.attempts, "instructions": told}, {**self._demo.low, "base": self._demo.base}
        np.random.seed(seed)  # noqa: NPY002
        self._task.set_variation(variation)
        self._look(True)
        avoided: list[float] = []
        try:
            record = self._options.get("per_action_collision_checking")
            with watched(self._task._scene, avoided) if record else contextlib.nullcontext():
                self._demo = self._task.get_demos(1, live_demos=True, max_attempts=1)[0]
        except RuntimeError as error:
            raise DemoError(str(error)) from error
        first, rows = self._demo[0], [_low(self._demo[each]) for each in range(len(self._demo))]
        low = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
        for camera in self._options["cameras"]:
            for what in ("extrinsics", "intrinsics"):
                frames = [self._demo[each].misc[f"{camera}_camera_{what}"] for each in range(len(self._demo))]
                low[f"{camera}.{what}"] = np.stack(frames).astype(np.float64)
        if avoided:
            if len(avoided) != len(rows) - 1:
                raise ValueError(f"{len(avoided)} of {len(rows)} frames are on a path, expected all but one: another RLBench?")
            low["avoids_collisions"] = np.array([avoided[0], *avoided])
        low["base"] = self._tree.base_position(first.misc.get("joint_poses"))
        return {"attempts": int(getattr(self._demo, "num_reset_attempts", 0) or 0), "instructions": []}, low

    def _images(self, frames: list[int]) -> dict[str, np.ndarray]:
        if hasattr(self._demo, "images"):
            options = self._options
            return dict(self._demo.images(frames, options["cameras"], options["rgb"], options["depth"]))
        rows = [self._seen(self._demo[frame]) for frame in frames]
        return {name: np.stack([row[name] for row in rows]) for name in rows[0]}


@contextlib.contextmanager
def watched(scene: Any, avoided: list[float]) -> Iterator[None]:
    """While a demonstration is made: for every frame but the first whether the path that it is on avoids collisions.

    A way-point says whether its path does; one that is part of the task's model was never planned, so it does not.
    """
    from rlbench.backend import waypoints

    kinds, record = (waypoints.Point, waypoints.PredefinedPath), scene._demo_record_step
    plans = [kind.get_path for kind in kinds]
    now = [0.0]

    def noting(plan: Any, planned: bool) -> Any:
        def get_path(point: Any, *given: Any, **named: Any) -> Any:
            path = plan(point, *given, **named)
            now[0] = float(planned and not point._ignore_collisions)
            return path

        return get_path

    def recorded(frames: list[Any], *given: Any) -> None:
        record(frames, *given)
        avoided.append(now[0])

    try:
        for kind, plan in zip(kinds, plans):  # noqa: B905
            kind.get_path = noting(plan, kind is waypoints.Point)
        scene._demo_record_step = recorded
        yield
    finally:
        for kind, plan in zip(kinds, plans):  # noqa: B905
            kind.get_path = plan
        del scene._demo_record_step


def _low(observation: Any) -> dict[str, np.ndarray]:
    names = ("joint_positions", "joint_velocities", "gripper_pose", "gripper_open", "gripper_joint_positions")
    return {name: np.asarray(getattr(observation, name), np.float64) for name in names}


def versions() -> dict[str, str]:
    """Of what decides a result here."""
    import sys

    import pyrep
    import rlbench

    told = {"python": sys.version.split()[0], "numpy": np.__version__}
    return {**told, **{module.__name__: str(getattr(module, "__version__", "")) for module in (rlbench, pyrep)}}
