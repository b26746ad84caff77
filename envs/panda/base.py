"""The base class of the tasks of the simulated Panda, and the smooth paths of their scripted experts."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

import gymnasium
import mujoco
import numpy as np

from envs.cameras.rig import CameraRig
from envs.cameras.specs import CameraSettings, CamerasSpec
from envs.panda.arm import FINGER_OPEN_M, HOME_Q, PHYSICS_DT_S, compile_model, solve_ik
from envs.panda.disturbances import Disturbance, Move
from envs.specs import FAILURES, STATE, Shape, TaskSpec

BLOCKS = 5
"""Contacts are checked five times per control step. At the greatest tool speed that is every 6 mm, so a graze of rod and
pillar (28 mm) that begins and ends between two checks is less than 0.2 mm deep; at the experts' speed, 0.1 mm."""
MAX_TOOL_SPEED_M_S = 0.6
"""Speed limit of the tool's reference on its way to the commanded target: no action can make the simulation unstable."""


def smooth_path(points: np.ndarray, speed_m_s: float, dt_s: float, rounding_m: float) -> np.ndarray:
    """Targets `[L, D]` along the polyline `points [P, D]`, one per control step, without the first point.

    Corners are rounded over about `rounding_m` [m], the speed along the path is constant, and the last target is the last
    point. Raises ValueError for fewer than two points.
    """
    points = np.asarray(points, dtype=np.float64)
    if points.ndim != 2 or len(points) < 2:
        raise ValueError(f"a path needs points [P >= 2, D], got shape {points.shape}")
    fine = _resample(points, 0.001)
    half = max(1, round(rounding_m / 0.002))
    half = min(half, (len(fine) - 1) // 2)
    if half >= 1:
        box = np.ones(2 * half + 1) / (2 * half + 1)
        for _ in range(2):  # two box filters make corners smooth; odd reflection keeps both ends
            padded = np.pad(fine, ((half, half), (0, 0)), mode="reflect", reflect_type="odd")
            fine = np.stack([np.convolve(column, box, mode="valid") for column in padded.T], axis=1)
    return _resample(fine, speed_m_s * dt_s)[1:]


def last_side(offsets: np.ndarray, clear_m: float) -> str:
    """The side, "left" (positive) or "right", of the last of `offsets [L]` that is farther than clear_m from 0, else ""."""
    clear = offsets[np.abs(offsets) > clear_m]
    return "" if not len(clear) else "left" if clear[-1] > 0 else "right"


def _resample(points: np.ndarray, spacing: float) -> np.ndarray:
    """`points` resampled at equal arc lengths, as close to `spacing` as a whole number of pieces allows."""
    along = np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.diff(points, axis=0), axis=1))])
    pieces = max(1, round(along[-1] / spacing))
    where = np.linspace(0.0, along[-1], pieces + 1)
    return np.stack([np.interp(where, along, column) for column in points.T], axis=1)


class PandaEnv(gymnasium.Env[dict[str, Any], np.ndarray], ABC):
    """One task of the Panda: absolute tool targets in, states out; contact physics decides the outcome.

    A task defines `spec_task`, `start_low`, `start_high` and the abstract methods; a task with an object to grasp names its
    free body in `object_name`, a task that can be disturbed has a `disturbance`. Everything that varies from start to start
    must live in `data`, because all environments of the process share `model`.

    The info of `step` and `reset` always holds `is_success: bool`, `failure: str` ("" or one of `FAILURES`) and `mode: str`
    ("" until the task was solved in a mode of the spec). After `open_cameras`, observations also hold camera features, and the
    info's ``cameras`` the counts of their defects (`CameraRig.observe`).
    """

    metadata: dict[str, Any] = {"render_modes": []}
    spec_task: ClassVar[TaskSpec]
    start_low: ClassVar[tuple[float, ...]]
    start_high: ClassVar[tuple[float, ...]]
    object_name: ClassVar[str] = ""
    disturbance: ClassVar[Disturbance | None] = None

    def __init__(self) -> None:
        spec = self.spec_task
        self.model = compile_model(self._mjcf())
        self.data = mujoco.MjData(self.model)
        self._scratch = mujoco.MjData(self.model)
        self._tool_site = self.model.site("tool").id
        self._object_body = self.model.body(self.object_name).id if self.object_name else -1
        self._fingers = set(self._geoms("finger"))
        self._forbidden = np.zeros((self.model.ngeom, self.model.ngeom), dtype=bool)
        for first, second in self._forbidden_pairs():
            self._forbidden[np.ix_(first, second)] = True
            self._forbidden[np.ix_(second, first)] = True
        self._low = np.array(spec.action.low)
        self._high = np.array(spec.action.high)
        self._substeps = round(spec.dt_s / PHYSICS_DT_S / BLOCKS)
        self._reach = MAX_TOOL_SPEED_M_S * spec.dt_s
        self._q = HOME_Q.copy()
        self._reference = np.zeros(3)
        self._steps = 0
        self._running = False
        self._move_steps_left = 0
        self._destination = np.zeros(2)
        self._last_state = np.zeros(len(spec.state_names), dtype=np.float32)
        self.camera_rig: CameraRig | None = None
        self.cameras_on_demand = False
        self._last_features: dict[str, np.ndarray] = {}
        self.camera_defects: dict[str, int] = {}
        mujoco.mj_forward(self.model, self.data)  # positions are valid before the first reset, too
        state_box = gymnasium.spaces.Box(-np.inf, np.inf, (len(spec.state_names),), np.float32)
        self._state_space: dict[str, gymnasium.spaces.Space[Any]] = {STATE: state_box}
        self.observation_space = gymnasium.spaces.Dict(self._state_space)
        self.action_space = gymnasium.spaces.Box(
            self._low.astype(np.float32), self._high.astype(np.float32), dtype=np.float32
        )

    # What a task defines ----------------------------------------------------------------------------------------

    @abstractmethod
    def _mjcf(self) -> str:
        """The task's MJCF text; the same text for every start."""

    @abstractmethod
    def _forbidden_pairs(self) -> list[tuple[list[int], list[int]]]:
        """Pairs of lists of geom ids whose contact is the failure ``collision``."""

    @abstractmethod
    def _place(self, start: np.ndarray) -> np.ndarray:
        """Writes the objects of `start [D]` to `data` and returns the tool's start position `[3]` [m]."""

    def _command(self, action: np.ndarray) -> tuple[np.ndarray, float]:
        """Tool target `[3]` and finger opening [m] of a clipped action `[A]`; the default is for x, y, z, opening."""
        return action[:3], float(action[3])

    def _state(self) -> np.ndarray:
        """The state `[S]`; the default is tool x, y, z, finger opening, object x, y, z."""
        data = self.data
        opening = 0.5 * (data.qpos[7] + data.qpos[8])
        return np.concatenate([data.site_xpos[self._tool_site], [opening], data.xpos[self._object_body]])

    @abstractmethod
    def _judge(self) -> tuple[bool, str, str]:
        """After a control step without collision: is_success, failure, mode."""

    @abstractmethod
    def plan(self, mode: str, rng: np.random.Generator) -> np.ndarray:
        """A scripted expert's actions `[L, A]` float32 from the present (just reset) state through `mode`.

        They vary as people's do: in speed, in where a gap is crossed, in when to turn. Raises ValueError for an unknown mode.
        """

    def _planned_modes(self, path: np.ndarray) -> tuple[str, ...]:
        """See `planned_modes`, for a tool path `[L, 3]` [m]; the default is a task without decisions."""
        return ()

    @abstractmethod
    def top_view(self) -> tuple[Shape, ...]:
        """The scene from above, for the report."""

    def object_position(self) -> np.ndarray | None:
        """Position `[3]` [m] of the task's object (its body's origin), or None when there is none."""
        return self.data.xpos[self._object_body].copy() if self.object_name else None

    # What every task has ----------------------------------------------------------------------------------------

    def sample_start(self, rng: np.random.Generator) -> np.ndarray:
        """One start `[D]` float64, uniform in the task's box; it does not determine the mode."""
        return rng.uniform(self.start_low, self.start_high)

    def tool_position(self) -> np.ndarray:
        """Tool centre `[3]` [m]."""
        return self.data.site_xpos[self._tool_site].copy()

    def planned_modes(self, actions: np.ndarray) -> tuple[str, ...]:
        """The option that planned actions `[L, A]` (finite) take at each decision of the task, from the tool's position.

        "" where the plan leaves a decision open: it ends before, or passes too close to the obstacle between the options. So
        two plans conflict when both name an option of the same decision and the names differ, never by small differences.
        """
        return self._planned_modes(np.stack([self.tool_position(), *self.targets(actions)]))

    def targets(self, actions: np.ndarray) -> np.ndarray:
        """Tool targets `[L, 3]` [m] of planned actions `[L, A]` (finite)."""
        return np.stack([self._command(action)[0] for action in np.clip(actions, self._low, self._high)])

    def reset(
        self, *, seed: int | None = None, options: Mapping[str, Any] | None = None
    ) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Starts an episode at ``options["start"]`` `[D]`, or at a sampled start.

        Raises ValueError for a start of wrong shape, with NaN, or out of the arm's reach.
        """
        super().reset(seed=seed)
        if options is not None and "start" in options:
            start = _checked(options["start"], len(self.spec_task.start_names), "start", self.spec_task.start_names)
        else:
            start = self.sample_start(self.np_random)
        mujoco.mj_resetData(self.model, self.data)
        tool = self._place(start)
        # Always from home, never from the last episode's end: the same start gives the same posture.
        self._q, error = solve_ik(self.model, self._scratch, HOME_Q, tool, iterations=60, tolerance_m=1e-4)
        if error > 0.003:
            raise ValueError(f"start {start.tolist()} is out of reach: the tool is {error * 1e3:.1f} mm off, not <= 3")
        self.data.qpos[:7] = self._q
        self.data.ctrl[:7] = self._q
        if self.model.nu > 7:
            self.data.qpos[7:9] = FINGER_OPEN_M
            self.data.ctrl[7:9] = FINGER_OPEN_M
        mujoco.mj_forward(self.model, self.data)
        self._reference = np.array(tool, dtype=np.float64)
        self._steps = 0
        self._move_steps_left = 0
        self._running = True
        observation = self._observe()
        return observation, self._info(False, "", "")

    def step(self, action: np.ndarray) -> tuple[dict[str, np.ndarray], float, bool, bool, dict[str, Any]]:
        """Drives the tool towards the absolute target `action [A]` for one control period.

        Ends at success (reward 1), at a failure, or truncated with failure ``timeout`` after `max_steps`. Raises
        ValueError for an action of wrong shape or with NaN, RuntimeError when no episode is running.
        """
        if not self._running:
            raise RuntimeError("no episode is running: call reset() first, and again after an episode has ended")
        action = _checked(action, self.spec_task.action.size, "action", self.spec_task.action.names)
        target, opening = self._command(np.clip(action, self._low, self._high))
        collided = self._advance(target, opening)
        self._steps += 1
        success, failure, mode = False, "", ""
        if not self._stable():
            failure = "unstable"
        elif collided:
            failure = "collision"
        else:
            success, failure, mode = self._judge()
        truncated = not success and not failure and self._steps >= self.spec_task.max_steps
        if truncated:
            failure = "timeout"
        assert failure == "" or failure in FAILURES
        terminated = success or (failure != "" and not truncated)
        self._running = not (terminated or truncated)
        observation = self._observe()
        return observation, float(success), terminated, truncated, self._info(success, failure, mode)

    def open_cameras(self, settings: CameraSettings) -> CamerasSpec:
        """Adds the features of these cameras to every observation; returns their spec.

        While `cameras_on_demand` is True, `reset` and `step` leave it out, and the caller uses `observe_cameras` when needed.
        Raises ValueError for a camera that is not there, RuntimeError for a renderer that does not work here.
        """
        self.close()
        self.camera_rig = CameraRig(self.model, settings)
        self.observation_space = gymnasium.spaces.Dict({**self._state_space, **self.camera_rig.space()})
        return self.camera_rig.spec

    def observe_cameras(self) -> dict[str, np.ndarray]:
        """Every camera feature of `CamerasSpec.shapes` now, float32; the last good ones while the simulation is unstable.

        Raises RuntimeError without cameras, ValueError when no point is left for a cloud.
        """
        if self.camera_rig is None:
            raise RuntimeError("this environment has no cameras: make it with envs.make(task, cameras=CameraSettings())")
        if self._stable() or not self._last_features:
            self._last_features, self.camera_defects = self.camera_rig.observe(self.data, self._steps)
        return {name: values.copy() for name, values in self._last_features.items()}

    def close(self) -> None:
        """Closes the cameras, if there are any."""
        if self.camera_rig is not None:
            self.camera_rig.close()
            self.camera_rig, self._last_features, self.camera_defects = None, {}, {}
            self.observation_space = gymnasium.spaces.Dict(self._state_space)

    def disturb(self, move: Move) -> bool:
        """Starts a disturbance, which takes the next `move.steps` control steps; whether it takes place.

        It does not where it would move an object that the robot touches: nobody pulls it out of the gripper. Raises
        ValueError for a task without a disturbance, RuntimeError when no episode is running.
        """
        if self.disturbance is None:
            raise ValueError(f"task {self.spec_task.name!r} has no disturbance; give its class one (envs.panda.disturbances)")
        if not self._running:
            raise RuntimeError("no episode is running: call reset() first, and again after an episode has ended")
        if self.disturbance.moves == "object" and self._touched():
            return False
        place = self.data.xpos[self._object_body] if self.disturbance.moves == "object" else self._reference
        self._destination = place[:2] + np.array(move.offset_m)
        self._move_steps_left = move.steps
        return True

    def _is_moved(self, what: str) -> bool:
        """Whether a disturbance is moving the ``tool`` or the ``object`` now."""
        return self._move_steps_left > 0 and self.disturbance is not None and self.disturbance.moves == what

    def _touched(self) -> bool:
        """Whether the robot touches the object."""
        bodies = self.model.geom_bodyid[self.data.contact.geom]
        mine = bodies == self._object_body
        robot = self.model.body_rootid[bodies] == self.model.body("link1").id
        return bool((mine.any(1) & robot.any(1)).any())

    def _drag(self, seconds: float) -> None:
        """Sets the object's velocity so that it arrives in `seconds`; 0 stops it. Contacts may still hold it back."""
        first = int(self.model.jnt_dofadr[self.model.body_jntadr[self._object_body]])
        if not seconds:
            self.data.qvel[first : first + 6] = 0.0
            return
        self.data.qvel[first : first + 2] = (self._destination - self.data.xpos[self._object_body][:2]) / seconds
        self.data.qvel[first + 3 : first + 6] = 0.0  # pushed, not tipped over

    def _advance(self, target: np.ndarray, opening: float) -> bool:
        """Simulates one control period; True as soon as there is a forbidden contact."""
        model, data = self.model, self.data
        if self._is_moved("tool"):  # the arm is held and moved, whatever the command
            target = self._reference.copy()
            target[:2] += (self._destination - target[:2]) / self._move_steps_left
        offset = target - self._reference
        length = math.sqrt(float(offset @ offset))
        self._reference = self._reference + offset * min(1.0, self._reach / max(length, 1e-9))
        old = self._q
        self._q, _ = solve_ik(model, self._scratch, old, self._reference)
        if model.nu > 7:
            data.ctrl[7:9] = opening
        for block in range(1, BLOCKS + 1):
            data.ctrl[:7] = old + (self._q - old) * (block / BLOCKS)
            if self._is_moved("object"):
                self._drag((BLOCKS * self._move_steps_left - block + 1) * self._substeps * PHYSICS_DT_S)
            mujoco.mj_step(model, data, nstep=self._substeps)
            if data.ncon:
                geoms = data.contact.geom
                if self._forbidden[geoms[:, 0], geoms[:, 1]].any():
                    return True
        if self._is_moved("object") and self._move_steps_left == 1:
            self._drag(0.0)  # it has arrived
        self._move_steps_left = max(0, self._move_steps_left - 1)
        return False

    def _stable(self) -> bool:
        """Whether the simulation has not diverged."""
        data = self.data
        return bool(np.isfinite(data.qpos).all() and np.isfinite(data.qvel).all() and np.abs(data.qvel).max() < 1e3)

    def _observe(self) -> dict[str, np.ndarray]:
        if self._stable():
            self._last_state = self._state().astype(np.float32)
        features = {} if self.camera_rig is None or self.cameras_on_demand else self.observe_cameras()
        return {STATE: self._last_state.copy(), **features}

    def _info(self, success: bool, failure: str, mode: str) -> dict[str, Any]:
        counts = {"cameras": dict(self.camera_defects)} if self.camera_rig is not None and not self.cameras_on_demand else {}
        return {"is_success": success, "failure": failure, "mode": mode, **counts}

    def _put_object(self, x: float, y: float, z: float) -> None:
        """Places the object upright; physics moves it from there."""
        first = int(self.model.jnt_qposadr[self.model.body_jntadr[self._object_body]])
        self.data.qpos[first : first + 7] = (x, y, z, 1.0, 0.0, 0.0, 0.0)

    def _fingers_on(self, geom: int) -> int:
        """How many of the fingers touch a geom."""
        pairs = self.data.contact.geom.tolist()
        return len({other for pair in pairs if geom in pair for other in pair if other in self._fingers})

    def _geoms(self, *prefixes: str) -> list[int]:
        """Ids of the geoms whose name starts with one of `prefixes`."""
        return [i for i in range(self.model.ngeom) if self.model.geom(i).name.startswith(prefixes)]

    def _robot_geoms(self) -> list[int]:
        """Ids of all geoms from the arm's first link on, including those fixed to the hand."""
        arm = self.model.body("link1").id
        return [i for i in range(self.model.ngeom) if self.model.body_rootid[self.model.geom_bodyid[i]] == arm]

    def _start_area(self, x: int, label: str) -> Shape:
        """The area from which entries `x` and `x + 1` of a start, an x and a y, are drawn."""
        low, high = np.array(self.start_low[x : x + 2]), np.array(self.start_high[x : x + 2])
        middle, half = (low + high) / 2, (high - low) / 2
        return Shape("box", (float(middle[0]), float(middle[1])), (float(half[0]), float(half[1])), "start", label)

    def _check_mode(self, mode: str) -> None:
        if mode not in self.spec_task.modes:
            raise ValueError(f"task {self.spec_task.name!r} has no mode {mode!r}; its modes are {self.spec_task.modes}")


def _checked(values: Any, size: int, what: str, names: tuple[str, ...]) -> np.ndarray:
    """`values` as finite float64 `[size]`; raises ValueError otherwise."""
    array = np.asarray(values, dtype=np.float64)
    if array.shape != (size,):
        raise ValueError(f"{what} must have shape ({size},) for {names}, got {array.shape}")
    if not np.isfinite(array).all():
        raise ValueError(f"{what} must be finite, got {array.tolist()} for {names}")
    return array
