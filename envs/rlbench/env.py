"""A task of RLBench as an environment with the contract of `PandaEnv`; the simulator runs in a process of its own."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np

from envs.cameras.specs import CameraSettings
from envs.demonstrations import Demonstration
from envs.process.worker import Worker, WorkerFailure, WorkerSettings
from envs.rlbench.demonstrations import request_demonstration
from envs.rlbench.protocol import REFUSALS
from envs.rlbench.rig import RLBENCH_NAMES, RLBenchCameraRig
from envs.rlbench.spec import RLBenchSettings, state_from_frames, task_names, task_spec, which_task, world_pose
from envs.specs import STATE, Shape, TaskSpec

_HERE = Path(__file__).resolve().parent
PYTHON_VARIABLE = "FLOW2ONE_RLBENCH_PYTHON"
"""Environment variable with the interpreter that imports rlbench, where the settings name none."""
_DEMO_STEPS = 5
"""Time limit of a live demonstration, in time limits of a step."""


class RLBenchEnv(gymnasium.Env[dict[str, Any], np.ndarray]):
    """One task, one simulator; the contract is that of `PandaEnv`.

    An action is a pose of the gripper in the robot's base frame or joint angles, then the gripper (`RLBenchSettings.action`).
    A start is (variation, episode, seed, attempts): a stored episode, or with episode -1 a placement by numpy's seed in the
    given number of attempts (0: not known); with several tasks also the task's index.
    A failure of the simulator is the episode's failure, by its name. An action that the simulator refuses moves nothing and is
    no step: the episode goes on, unless more than `RLBenchSettings.retries` in a row are refused.

    max_steps: actions after which an episode has timed out, at first the spec's.
    instructions: the task in words, after a reset; video_frames: None, or a list to which an image is appended at the start
    and after each action.
    """

    metadata: dict[str, Any] = {"render_modes": []}
    disturbance = None

    def __init__(self, task: str, settings: RLBenchSettings) -> None:
        """Does not start the simulator yet. Raises ValueError for an invalid task name or settings."""
        settings.check()
        self.spec_task: TaskSpec = task_spec(task, settings)
        self.settings, self.max_steps = settings, self.spec_task.max_steps
        self.camera_rig: RLBenchCameraRig | None = None
        self.cameras_on_demand = False
        self.camera_defects: dict[str, int] = {}
        self.video_frames: list[np.ndarray] | None = None
        self._worker: Worker | None = None
        self._frame: dict[str, np.ndarray] = {}
        self._last_features: dict[str, np.ndarray] = {}
        self.tasks = task_names(task)
        self._loaded = (0, self.tasks[0])  # the process, by its number of starts, and the task in it
        self._episodes = 0  # since the simulator was started
        self._lost = "crash"  # name of the failure that ended the last simulator
        self._start, self._which = np.zeros(len(self.spec_task.start_names)), which_task(np.zeros(5), self.tasks)[1]
        self._steps, self._refused, self._running = 0, 0, False  # actions; refusals in a row
        self.instructions: list[str] = []
        size, action = len(self.spec_task.state_names), self.spec_task.action
        self._state_space: dict[str, gymnasium.spaces.Space[Any]] = {
            STATE: gymnasium.spaces.Box(-np.inf, np.inf, (size,), np.float32)
        }
        self.observation_space = gymnasium.spaces.Dict(self._state_space)
        low, high = np.array(action.low, np.float32), np.array(action.high, np.float32)
        self.action_space = gymnasium.spaces.Box(low, high, dtype=np.float32)

    # -- the worker -------------------------------------------------------------------------------------------------

    @property
    def worker(self) -> Worker:
        """The simulator's process; the first request starts it."""
        if self._worker is None:
            settings = self.settings
            limits = WorkerSettings(interpreter(settings), settings.start_s, settings.step_s)
            program = _HERE / f"{'replay' if settings.program == 'replay' else 'program'}.py"
            self._worker = Worker(program, self._options(), limits, simulator_environment(os.environ))
        return self._worker

    def _options(self) -> dict[str, Any]:
        """Options of the program; see envs/rlbench/protocol.py."""
        settings, cameras = self.settings, None if self.camera_rig is None else self.camera_rig.settings
        return {
            "task": self.tasks[0], "arm": settings.arm,
            "collision_checking": settings.collision_checking,
            "per_action_collision_checking": settings.per_action_collision_checking,
            "renderer": settings.renderer, "objects": list(settings.objects),
            "dataset": str(Path(settings.dataset).resolve()) if settings.dataset else "",
            "variation": settings.variations[0], "keyframes": settings.keyframes, "subsample": settings.subsample,
            "gripper_threshold": settings.gripper_threshold,
            "cameras": [] if cameras is None else [RLBENCH_NAMES[name] for name in cameras.cameras],
            "rgb": cameras is not None and (cameras.images or cameras.colours),
            "depth": cameras is not None and (cameras.depth or cameras.num_points > 0),
            "image_size": [128, 128] if cameras is None else [cameras.height, cameras.width],
        }  # fmt: skip

    def describe(self) -> dict[str, Any]:
        """``variations``: number of the task's variations; ``versions``: of the packages that simulate it; ``rendered``: number
        of frames that this simulator has rendered."""
        return self.worker.request({"command": "describe"})[0]

    def interrupt(self) -> None:
        """From another thread: ends the simulator at once; a pending request raises WorkerInterrupted."""
        if self._worker is not None:
            self._worker.interrupt()

    def close(self) -> None:
        """Ends the simulator. The next reset starts another."""
        if self._worker is not None:
            self._worker.close()
            self._worker = None
        self._loaded, self._running = (0, self.tasks[0]), False

    # -- the contract of PandaEnv -----------------------------------------------------------------------------------

    def sample_start(self, rng: np.random.Generator) -> np.ndarray:
        """A new start `[D]` float64: a variation, and a seed of numpy's for RLBench's placement."""
        start = [rng.choice(self.settings.variations), -1, rng.integers(2**31), 0]
        return np.array([*start, *([rng.integers(len(self.tasks))] if len(self.tasks) > 1 else [])], dtype=np.float64)

    def reset(
        self, *, seed: int | None = None, options: Mapping[str, Any] | None = None
    ) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Starts an episode at ``options["start"]`` `[D]`, or at a sampled start.

        Raises ValueError for a start of wrong shape or that is not of whole numbers; WorkerFailure when the simulator fails.
        """
        super().reset(seed=seed)
        given = None if options is None else options.get("start")
        start = self.sample_start(self.np_random) if given is None else _checked(given, len(self._start), "start")
        if (start != np.round(start)).any() or start[0] < 0 or start[1] < -1 or (start[1] < 0 and start[2] < 0) or (
            len(start) > 4 and not 0 <= start[4] < len(self.tasks)
        ):
            raise ValueError(f"a start is {self.spec_task.start_names} in whole numbers, got {start.tolist()}")
        self._running, self._steps, self._refused, self._last_features, self._start = False, 0, 0, {}, start.copy()
        self._load(start)
        message = {"command": "reset", "start": start.tolist(), "images": self._wants_images}
        answer, self._frame = self.worker.request(message)
        self.instructions = [str(each) for each in answer["instructions"]]
        self._start[3] = answer["attempts"]
        self._running = True
        self._take_snapshot()
        return self._observe(), self._info(False, "")

    def step(self, action: np.ndarray) -> tuple[dict[str, np.ndarray], float, bool, bool, dict[str, Any]]:
        """Executes one action `[A]`, clipped to its box.

        Ends at success (reward 1), at a failure, or truncated with failure ``timeout`` after `max_steps`. A failure of the
        simulator ends the episode with the failure's name and the last good observation; an action that it refuses (`REFUSALS`)
        only after `retries` others in a row, until then it changes nothing. info holds ``refused``, too: the name of such a
        failure, "" for an executed action. Raises ValueError for an action of wrong shape or with NaN, RuntimeError when no
        episode is running.
        """
        if not self._running:
            raise RuntimeError("no episode is running: call reset() first, and again after an episode has ended")
        spec = self.spec_task.action
        action = np.clip(_checked(action, spec.size, "action"), spec.low, spec.high)
        self._steps += 1
        success, failure = self._execute(action)
        refused = failure if failure in REFUSALS else ""
        self._refused = self._refused + 1 if refused else 0
        if refused and self._refused <= self.settings.retries:
            self._steps -= 1
            return self._last_observation(), 0.0, False, False, self._info(False, "", refused)
        self._take_snapshot()
        truncated = not success and not failure and self._steps >= self.max_steps
        if truncated:
            failure = "timeout"
        terminated = success or (failure != "" and not truncated)
        self._running = not (terminated or truncated)
        if failure and not truncated:
            return self._last_observation(), 0.0, True, False, self._info(False, failure, refused)
        return self._observe(), float(success), terminated, truncated, self._info(success, failure)

    def plan(self, mode: str, rng: np.random.Generator) -> np.ndarray:
        """The actions `[L, A]` float32 of the demonstration from the present start, which is then set up again.

        rng: unused, RLBench's planner has its own random state. Raises ValueError for an unknown mode, WorkerFailure when
        there is no demonstration.
        """
        if mode not in self.spec_task.modes:
            raise ValueError(f"task {self.spec_task.name!r} has no mode {mode!r}; its modes are {self.spec_task.modes}")
        limit_s = _DEMO_STEPS * self.settings.step_s
        shown = request_demonstration(self.worker, self._start, self.settings, None, limit_s, self._which)
        self.reset(options={"start": shown.start})
        return shown.action

    def demonstrate(self, start: np.ndarray, with_cameras: bool = True) -> Demonstration:
        """The demonstration of a start `[D]`, live or stored, and its camera frames if wanted; see `request_demonstration`."""
        cameras = self.camera_rig.settings if self.camera_rig is not None and with_cameras else None
        self._running = False
        self._load(start)
        limit_s = _DEMO_STEPS * self.settings.step_s
        return request_demonstration(self.worker, start, self.settings, cameras, limit_s, self._which)

    def open_cameras(self, settings: CameraSettings) -> None:
        """Adds the features of these cameras to observations; ends a running simulator.

        Raises ValueError for a camera that RLBench lacks.
        """
        unknown = [name for name in settings.cameras if name not in RLBENCH_NAMES]
        if unknown:
            raise ValueError(f"RLBench has no camera {unknown}; its cameras are {sorted(RLBENCH_NAMES)}")
        self.close()
        self.camera_rig = RLBenchCameraRig(settings, self.settings.voxel_m, self.settings.without_robot)
        self.observation_space = gymnasium.spaces.Dict({**self._state_space, **self.camera_rig.space()})

    def observe_cameras(self) -> dict[str, np.ndarray]:
        """Every camera feature now, float32. Raises RuntimeError without cameras, WorkerFailure from the simulator."""
        if self.camera_rig is None:
            raise RuntimeError("this environment has no cameras: make it with envs.make(task, cameras, rlbench)")
        if not self._running and self._last_features:  # the simulator may be gone: the last good frame
            return {name: values.copy() for name, values in self._last_features.items()}
        if not any(name.endswith(".extrinsics") for name in self._frame):
            self._frame = self._request({"command": "observe"})[1]
        return self._observe_frame()

    def tool_position(self) -> np.ndarray:
        """Position `[3]` [m] of the gripper in the base frame."""
        return np.asarray(self._frame["gripper_pose"][:3] - self._frame["base"])

    def object_position(self) -> None:
        """None: RLBench does not report positions of objects."""
        return

    def planned_modes(self, actions: np.ndarray) -> tuple[str, ...]:
        """Empty: RLBench's tasks have no named modes."""
        return ()

    def top_view(self) -> tuple[Shape, ...]:
        """Empty: RLBench's scenes have no top view."""
        return ()

    # -- plumbing ---------------------------------------------------------------------------------------------------

    def _load(self, start: np.ndarray) -> None:
        """Makes sure that a healthy simulator with the start's task runs; restarts it after `restart_after` episodes."""
        number, self._which = which_task(start, self.tasks)
        self.worker.discard_unhealthy()
        if 0 < self.settings.restart_after <= self._episodes:
            self.worker.kill()
        self.worker.start()
        if self.worker.starts != self._loaded[0]:
            self._episodes = 0
        self._episodes += 1
        wanted = (self.worker.starts, self.tasks[number])
        if wanted != self._loaded and (self._loaded[0] == wanted[0] or number):
            self.worker.request({"command": "load_task", "task": self.tasks[number]})
        self._loaded = wanted

    def _execute(self, action: np.ndarray) -> tuple[bool, str]:
        """Whether the task is solved now, and the failure's name or ""."""
        try:
            arm = action[:7] if self.settings.arm == "joints" else world_pose(action[:9], self._frame["base"])
        except ValueError:  # its six numbers give no rotation
            return False, "invalid_action"
        shown = self.settings.per_action_collision_checking
        message = {"command": "step", "images": self._wants_images, **({"avoid": bool(action[-1] > 0.5)} if shown else {})}
        sent = {"action": np.append(arm, float(action[-2 if shown else -1] > 0.5))}
        try:
            answer, self._frame = self._request(message, sent)
        except WorkerFailure as failure:
            return False, failure.name
        return bool(answer["success"]), "task_failed" if answer["ended"] and not answer["success"] else ""

    def _take_snapshot(self) -> None:
        """Appends to `video_frames`, if there are any; a simulator that fails here loses the image only."""
        if self.video_frames is not None and self.worker.pid is not None:
            with contextlib.suppress(WorkerFailure):
                self.video_frames += list(self._request({"command": "snapshot"})[1].values())

    def _request(
        self, message: Mapping[str, Any], arrays: Mapping[str, np.ndarray] | None = None
    ) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """A request to the simulator of the running episode; a new one would not know the episode.

        Raises WorkerFailure, with the earlier failure's name if an earlier request ended that simulator.
        """
        if self.worker.pid is None:
            raise WorkerFailure(self._lost, "the simulator of this episode is gone")
        try:
            return self.worker.request(message, arrays)
        except WorkerFailure as failure:
            self._lost = failure.name
            raise

    @property
    def _wants_images(self) -> bool:
        return self.camera_rig is not None and not self.cameras_on_demand

    def _observe(self) -> dict[str, np.ndarray]:
        state = state_from_frames(self._frame, self._frame["base"], self.settings.gripper_threshold, self._which)
        return {STATE: state, **(self._observe_frame() if self._wants_images else {})}

    def _last_observation(self) -> dict[str, np.ndarray]:
        state = state_from_frames(self._frame, self._frame["base"], self.settings.gripper_threshold, self._which)
        last = self._last_features if self._wants_images else {}
        return {STATE: state, **{name: values.copy() for name, values in last.items()}}

    def _observe_frame(self) -> dict[str, np.ndarray]:
        assert self.camera_rig is not None
        self._last_features, self.camera_defects, _ = self.camera_rig.observe(self._frame, self._steps)
        return {name: values.copy() for name, values in self._last_features.items()}

    def _info(self, success: bool, failure: str, refused: str = "") -> dict[str, Any]:
        counts = {"cameras": dict(self.camera_defects)} if self._wants_images else {}
        return {"is_success": success, "failure": failure, "mode": "solved" if success else "", "refused": refused, **counts}

    @property
    def last_start(self) -> list[float]:
        """The start of the running or last episode, with the attempts that its placement took."""
        return [float(value) for value in self._start]


def interpreter(settings: RLBenchSettings) -> str:
    """The command line of the interpreter that imports rlbench; "": this one, which suffices for replays."""
    return settings.python or (os.environ.get(PYTHON_VARIABLE, "") if settings.program == "rlbench" else "")


def simulator_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment of a simulator's process: with the path of CoppeliaSim's libraries, and a Qt platform that can draw."""
    found = dict(environment)
    root = found.get("COPPELIASIM_ROOT", "")
    if root:
        libraries = found.get("LD_LIBRARY_PATH", "").split(os.pathsep)
        found["LD_LIBRARY_PATH"] = os.pathsep.join([root, *(place for place in libraries if place and place != root)])
        found.setdefault("QT_QPA_PLATFORM_PLUGIN_PATH", root)
    if found.get("QT_QPA_PLATFORM") == "offscreen":  # it dies with the first image
        del found["QT_QPA_PLATFORM"]
    return found


def _checked(values: Any, size: int, what: str) -> np.ndarray:
    array = np.asarray(values, dtype=np.float64)
    if array.shape != (size,) or not np.isfinite(array).all():
        raise ValueError(f"{what} must be {size} finite numbers, got {array.tolist()} of shape {array.shape}")
    return array
