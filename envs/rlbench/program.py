"""A program for envs/process/serving.py that runs RLBench. The only file that imports it, and only in the worker's process.

It needs stepjam/RLBench and stepjam/PyRep, CoppeliaSim 4.1 and an X display. Its messages: envs/rlbench/protocol.py.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any

import numpy as np

NAMES = (
    ("ConfigurationPathError", "planner_error"), ("IKError", "ik_error"), ("ConfigurationError", "planner_error"),
    ("InvalidActionError", "invalid_action"), ("BoundaryError", "placement_error"), ("WaypointError", "placement_error"),
    ("TaskEnvironmentError", "placement_error"), ("DemoError", "demo_error"), ("NoWaypointsError", "demo_error"),
)  # fmt: skip
"""Exceptions of RLBench and PyRep, and the failure's name. The first one found anywhere in the chain of causes counts."""

SNAPSHOT_CAMERA = "front"
"""The camera that takes pictures for people."""

FOLDER = Path(__file__).resolve().parent


def name_of(error: BaseException) -> str:
    """The failure's name by `NAMES`; "" where it has none."""
    chain: set[str] = set()
    cause: Any = error
    while cause is not None:
        chain |= {kind.__name__ for kind in type(cause).__mro__}
        cause = cause.__cause__ or cause.__context__
    return next((name for kind, name in NAMES if kind in chain), "")


def start(options: dict[str, Any], load: Any) -> Any:
    """See envs/process/serving.py."""
    load(FOLDER / "plain_pickle.py")
    simulator = Simulator(options, load(FOLDER / "tree.py"), load(FOLDER / "frames.py"))
    return load(FOLDER / "protocol.py").Dispatcher(simulator)


class DemoError(Exception):
    """RLBench's planner did not solve the task from this start; another one may work."""


class Simulator:
    """One RLBench environment with one task: a backend of envs/rlbench/protocol.py. tree, frames: the modules beside this one.

    Cameras are off except while a frame with images is made: rendering costs more than a physics step.
    """

    def __init__(self, options: dict[str, Any], tree: Any, frames: Any) -> None:
        from pyrep.const import RenderMode
        from rlbench.action_modes import arm_action_modes as arms
        from rlbench.action_modes.action_mode import MoveArmThenGripper
        from rlbench.action_modes.gripper_action_modes import Discrete
        from rlbench.environment import Environment
        from rlbench.observation_config import CameraConfig, ObservationConfig
        from rlbench.utils import name_to_task_class

        self._options, self._tree, self._frames = options, tree, frames
        self._rendered = 0
        height, width = options["image_size"]
        cameras: dict[str, Any] = {}
        self._cameras: list[tuple[Any, bool, bool]] = []
        for camera in tree.CAMERAS:
            wanted = camera in options["cameras"]
            rgb, depth = wanted and options["rgb"], wanted and options["depth"]
            # RLBench removes a camera without any output at launch; the front one takes the snapshots
            config = cameras[camera + "_camera"] = CameraConfig(
                rgb=rgb or camera == SNAPSHOT_CAMERA, depth=depth, point_cloud=False, mask=False, image_size=(width, height),
                render_mode=RenderMode[options["renderer"].upper()], depth_in_meters=True,
            )  # fmt: skip
            self._cameras.append((config, rgb, depth))
        self._snapshot_camera = cameras[SNAPSHOT_CAMERA + "_camera"]
        self._observation_config = ObservationConfig(
            joint_forces=False, gripper_joint_positions=True, task_low_dim_state=False, **cameras
        )
        arm = {
            "planning": lambda: arms.EndEffectorPoseViaPlanning(collision_checking=options["collision_checking"]),
            "ik": lambda: arms.EndEffectorPoseViaIK(collision_checking=options["collision_checking"]),
            "joints": arms.JointPosition,
        }[options["arm"]]()
        self._arm = arm
        self._environment = Environment(MoveArmThenGripper(arm, Discrete()), obs_config=self._observation_config, headless=True)
        self._environment.launch()
        self._enable_cameras(False)
        self._find = name_to_task_class
        self._demonstration: Any = None
        self._drawn: set[int] = set()
        self.load_task(options["task"])

    def describe(self) -> tuple[int, dict[str, str], int]:
        """Number of variations of the task, versions of what decides a result, and number of frames rendered so far."""
        return self._task.variation_count(), versions(), self._rendered

    def load_task(self, name: str) -> None:
        self._name = name
        self._task = self._environment.get_task(self._find(name))
        if self._options["objects"]:
            tree = self._task._task.get_base().get_objects_in_tree(exclude_base=False)
            self._objects = Objects(name, self._options["objects"], {each.get_name(): each for each in tree})

    def reset(self, start: list[float]) -> tuple[list[str], int]:
        """Places the scene at a start; the instructions, and how many attempts it took (0: not known)."""
        variation, number, seed, attempts = (int(value) for value in start[:4])
        if number < 0 and not attempts:
            np.random.seed(seed)  # noqa: NPY002 - RLBench places its objects by it
            self._task.set_variation(variation)
            instructions, _ = self._task.reset()
            return list(instructions), int(getattr(self._task._scene, "_attempts", -1)) + 1
        if number >= 0:
            stored = self._tree.episode(Path(self._options["dataset"]), self._name, variation, number)
            if stored.random_state is None:
                raise ValueError(f"{stored.folder} lacks numpy's random state: its scene cannot be placed again")
            state, attempts = stored.random_state, stored.attempts
        else:
            state = np.random.RandomState(seed).get_state()
        instructions, _ = self._task.reset_to_demo(self._as_demo(variation, state, attempts))
        return list(instructions), attempts

    def step(self, action: np.ndarray, avoid: Any) -> tuple[bool, bool]:
        """Executes an action `[8]`; whether the task is solved, and whether it has ended. avoid: None, or of this path."""
        if avoid is not None:
            self._arm._collision_checking = avoid
        repeat = int(self._options["subsample"]) if self._options["arm"] == "joints" else 1
        for _ in range(repeat):
            _, reward, ended = self._task.step(action)
            if reward == 1.0 or ended:
                break
        return reward == 1.0, bool(ended)

    def snapshot(self) -> np.ndarray:
        """`[H, W, 3]` uint8 of the front camera."""
        self._snapshot_camera.rgb = True
        try:
            self._rendered += 1
            return np.asarray(getattr(self._task.get_observation(), SNAPSHOT_CAMERA + "_rgb"), np.uint8)
        finally:
            self._enable_cameras(False)

    def _enable_cameras(self, on: bool) -> None:
        for camera, rgb, depth in self._cameras:
            camera.rgb, camera.depth = on and rgb, on and depth

    def _with_images(self, observe: Callable[[], Any]) -> Any:
        """An observation that the cameras see."""
        self._enable_cameras(True)
        try:
            self._rendered += 1
            return observe()
        finally:
            self._enable_cameras(False)

    def _as_demo(self, variation: int, state: Any, attempts: int) -> Any:
        """What RLBench's reset_to_demo reads of a demonstration."""
        from rlbench.demo import Demo

        class First:
            misc = {"variation_index": variation}

        demo = Demo([First()], random_seed=state)
        demo.num_reset_attempts = attempts or None
        return demo

    def frame(self, images: bool) -> dict[str, np.ndarray]:
        """The present frame."""
        observe = self._task.get_observation
        observation = self._with_images(observe) if images else observe()
        frame = _low(observation)
        frame["base"] = self._tree.base_position(observation.misc.get("joint_poses"))
        if self._options["objects"]:
            frame["objects"] = self._objects.poses()
        if images:
            frame.update(self._camera_images(observation))
            for camera in self._options["cameras"]:
                for what in ("extrinsics", "intrinsics"):
                    frame[f"{camera}.{what}"] = np.asarray(observation.misc[f"{camera}_camera_{what}"], np.float64)
        return frame

    def _camera_images(self, observation: Any) -> dict[str, np.ndarray]:
        found = {}
        for camera in self._options["cameras"]:
            if self._options["rgb"]:
                found[camera + ".rgb"] = np.asarray(getattr(observation, camera + "_rgb"), np.uint8)
            if self._options["depth"]:
                found[camera + ".depth"] = np.asarray(getattr(observation, camera + "_depth"), np.float32)
        return found

    def demonstrate(self, start: list[float], images: bool) -> tuple[list[str], int, dict[str, np.ndarray]]:
        """Instructions, attempts and low-dimensional arrays of a demonstration, stored or live. Raises DemoError.

        images: whether a live one renders the frames that may be kept; `images` has no others.
        """
        variation, number, seed, _ = (int(value) for value in start[:4])
        self._drawn = set()
        if number >= 0:
            root = Path(self._options["dataset"])
            self._demonstration = self._tree.episode(root, self._name, variation, number)
            shown: tuple[list[str], int, dict[str, np.ndarray]]
            shown = self._tree.shown(self._demonstration, root, self._name, variation)
            return shown
        np.random.seed(seed)  # noqa: NPY002
        self._task.set_variation(variation)
        scene, kept = self._task._scene, self._frames.KeptFrames(self._options)
        avoiding: list[float] = []
        causes: list[str] = []
        placed: list[np.ndarray] = []

        def observed(observe: Callable[[], Any]) -> Any:
            frame, observation = kept.count, observe()
            if self._options["objects"]:
                placed.append(self._objects.poses())
            if not kept.may_keep(_low(observation)) or not images:
                return observation
            self._drawn.add(frame)
            return self._with_images(observe)

        try:
            record = self._options.get("per_action_collision_checking")
            checking = recording_collision_checks(scene, avoiding) if record else contextlib.nullcontext()
            with checking, observing_by(scene, observed, causes):
                self._demonstration = self._task.get_demos(1, live_demos=True, max_attempts=1)[0]
        except RuntimeError as error:  # RLBench's own does not say why
            raise DemoError("; ".join([str(error), *causes])) from error
        first, rows = self._demonstration[0], [_low(self._demonstration[each]) for each in range(len(self._demonstration))]
        if kept.count != len(rows):
            raise ValueError(f"{kept.count} observations were made for {len(rows)} frames, expected as many: another RLBench?")
        low = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
        for camera in self._options["cameras"]:
            for what in ("extrinsics", "intrinsics"):
                frames = [self._demonstration[each].misc[f"{camera}_camera_{what}"] for each in range(len(self._demonstration))]
                low[f"{camera}.{what}"] = np.stack(frames).astype(np.float64)
        if placed:
            low["objects"] = np.stack(placed)
        if avoiding:
            if len(avoiding) != len(rows) - 1:
                raise ValueError(f"{len(avoiding)} of {len(rows)} frames are on a path, expected all but one: another RLBench?")
            low["avoids_collisions"] = np.array([avoiding[0], *avoiding])
        low["base"] = self._tree.base_position(first.misc.get("joint_poses"))
        return [], int(getattr(self._demonstration, "num_reset_attempts", 0) or 0), low

    def images(self, frames: list[int]) -> dict[str, np.ndarray]:
        """Of these frames of the last demonstration; see `StoredEpisode.images`. Raises ValueError for one without images."""
        if hasattr(self._demonstration, "images"):
            options = self._options
            return dict(self._demonstration.images(frames, options["cameras"], options["rgb"], options["depth"]))
        missing = sorted(set(frames) - self._drawn)
        if missing:
            raise ValueError(
                f"frames {missing} of the last demonstration were not rendered, {len(self._drawn)} others were: demonstrate "
                "with images, and ask for frames that are kept"
            )
        rows = [self._camera_images(self._demonstration[frame]) for frame in frames]
        return {name: np.stack([row[name] for row in rows]) for name in rows[0]}


class Objects:
    """The poses of some objects of a task's scene. there: all that it holds, by their names.

    Raises ValueError for a name that is not among them.
    """

    def __init__(self, task: str, names: Sequence[str], there: Mapping[str, Any]) -> None:
        for name in names:
            if name not in there:
                nearest = sorted(there, key=lambda other: -SequenceMatcher(None, name.lower(), other.lower()).ratio())
                raise ValueError(f"rlbench.objects: {task} has no object {name!r}; it has, nearest first, {', '.join(nearest)}")
        self._objects = [there[name] for name in names]
        self._last = np.zeros((len(names), 7))

    def poses(self) -> np.ndarray:
        """`[n, 7]` in the world: xyz [m], quaternion xyzw. An object that was removed keeps its last one."""
        for row, each in enumerate(self._objects):
            if each.still_exists():
                self._last[row] = each.get_pose()
        return self._last.copy()


@contextlib.contextmanager
def observing_by(scene: Any, observed: Callable[[Callable[[], Any]], Any], causes: list[str]) -> Iterator[None]:
    """While a demonstration is made, each of its frames is ``observed(get_observation)``; the reset before it is left alone.

    causes: gets what ended a demonstration, which RLBench only logs.
    """
    make, observe = scene.get_demo, scene.get_observation

    def get_demo(*given: Any, **named: Any) -> Any:
        scene.get_observation = lambda: observed(observe)
        try:
            return make(*given, **named)
        except Exception as error:
            causes.append(f"{type(error).__name__}: {error}")
            raise
        finally:
            del scene.get_observation

    scene.get_demo = get_demo
    try:
        yield
    finally:
        del scene.get_demo


@contextlib.contextmanager
def recording_collision_checks(scene: Any, avoiding: list[float]) -> Iterator[None]:
    """While a demonstration is made, appends for every frame but the first whether its path avoids collisions (1.0 or 0.0).

    A way-point says whether its path does; a predefined path of the task's model was never planned, so it does not.
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
        avoiding.append(now[0])

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
    """Versions of what decides a result here."""
    import sys

    import pyrep
    import rlbench

    base = {"python": sys.version.split()[0], "numpy": np.__version__}
    return {**base, **{module.__name__: str(getattr(module, "__version__", "")) for module in (rlbench, pyrep)}}
