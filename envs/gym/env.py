"""A gymnasium environment in a process of its own, with the contract of `PandaEnv` (envs/contract.py)."""

from __future__ import annotations

from collections.abc import Mapping as Dictionary
from dataclasses import replace
from typing import Any

import gymnasium
import numpy as np
from PIL import Image

from envs.cameras.clouds import sample_points
from envs.cameras.frames import CameraFrames, pack
from envs.cameras.specs import CameraSettings, CameraSpec, CamerasSpec
from envs.demonstrations import Demonstration
from envs.gym.mapping import RENDER
from envs.gym.settings import GymSettings
from envs.gym.spec import described, gym_spec, open_worker, per_dimension
from envs.process.worker import Worker, WorkerFailure
from envs.specs import DEPTH, IMAGES, POINTS, STATE, TaskSpec


class GymCameras:
    """The camera features of one environment. spec: what they add to an observation (`CamerasSpec`)."""

    def __init__(self, settings: CameraSettings) -> None:
        self.spec = CamerasSpec(
            settings, tuple(CameraSpec(name, settings.width, settings.height, 1.0) for name in settings.cameras)
        )


class GymEnv:
    """One environment, one process. A start is the seed of its reset; an action is in the policy's units, clipped to the box.

    A process that dies or hangs ends the episode with that name; so does an error of the environment. The next reset starts
    another process. video_frames: None, or a list to which a frame is appended every `video_every` steps; video_error: why
    there is none.
    """

    metadata: dict[str, Any] = {"render_modes": []}

    def __init__(self, task: str, settings: GymSettings, cameras: CameraSettings | None = None) -> None:
        """Raises ValueError for settings, a mapping file or an environment that do not fit (`gym_spec`)."""
        self.spec_task: TaskSpec = gym_spec(task, settings)
        self.mapping, self.description = described(settings)
        self.camera_rig = None if cameras is None else GymCameras(cameras)
        self.cameras_on_demand = False
        self.video_frames: list[np.ndarray] | None = None
        self.video_every, self.video_error = 1, ""
        self._worker: Worker = open_worker(settings, self.mapping)
        self._noise = settings.expert_noise
        self._low, self._high = np.array(self.spec_task.action.low), np.array(self.spec_task.action.high)
        size = self.spec_task.action.size
        self._scale, self._offset = (np.array(per_dimension(values, size, default)) for values, default in (
            (self.mapping.scale, 1.0), (self.mapping.offset, 0.0)))  # fmt: skip
        self.action_space = gymnasium.spaces.Box(self._low.astype(np.float32), self._high.astype(np.float32))
        self._state_keys = list(dict.fromkeys(key for key, _, _ in self.mapping.state))
        self._tool = [self.spec_task.state_names.index(name) for name in self.mapping.tool]
        self._state = np.zeros(len(self.spec_task.state_names), np.float32)
        self._features: dict[str, np.ndarray] = {}
        self._lost, self._running = "crash", False
        self._steps, self._held, self._total = 0, 0, 0.0
        self.score: float | None = None
        self.last_start: list[float] = [0.0]

    @property
    def worker(self) -> Worker:
        """The environment's process; the first request starts it."""
        return self._worker

    def interrupt(self) -> None:
        """From another thread: ends the process at once; a pending request raises WorkerInterrupted."""
        self._worker.interrupt()

    def close(self) -> None:
        """Ends the process. The next reset starts another."""
        self._worker.close()
        self._running = False

    # -- the contract of PandaEnv -----------------------------------------------------------------------------------

    def sample_start(self, rng: np.random.Generator) -> np.ndarray:
        """A new start `[1]` float64, a seed."""
        return np.array([rng.integers(2**31)], dtype=np.float64)

    def reset(
        self, *, seed: int | None = None, options: Dictionary[str, Any] | None = None
    ) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Starts an episode at ``options["start"]`` `[1]`, or at a drawn one.

        Raises ValueError for a start that is no seed, WorkerFailure when the environment fails.
        """
        given = None if options is None else options.get("start")
        start = self.sample_start(np.random.default_rng(seed)) if given is None else np.asarray(given, np.float64)
        if start.shape != (1,) or not np.isfinite(start).all() or start[0] < 0 or start[0] != round(start[0]):
            raise ValueError(f"a start is one seed, a whole number from 0 on, got {start.tolist()}")
        self._running, self._steps, self._held, self._total, self.score = False, 0, 0, 0.0, None
        self.last_start, self._features = [float(start[0])], {}
        self._worker.discard_unhealthy()
        _, arrays = self._worker.request({"command": "reset", "seed": int(start[0]), "keys": self._state_keys})
        self._take_state(arrays)
        self._running = True
        self._film()
        return self._observation(), {"is_success": False, "failure": "", "mode": ""}

    def step(self, action: np.ndarray) -> tuple[dict[str, np.ndarray], float, bool, bool, dict[str, Any]]:
        """Executes one action `[A]`. Ends at success (reward 1), at a failure, or truncated as ``timeout`` after `max_steps`.

        info: is_success, failure, mode, and score so far. Raises ValueError for an action of wrong shape or with NaN,
        RuntimeError when no episode is running.
        """
        if not self._running:
            raise RuntimeError("no episode is running: call reset() first, and again after an episode has ended")
        sent = {"action": self.to_env(action)}
        self._steps += 1
        try:
            answer, arrays = self._request({"command": "step", "keys": self._state_keys}, sent)
            self._take_state(arrays)
        except WorkerFailure as failure:
            return self._ended(False, failure.name, "")
        reward = float(answer["reward"] or 0.0)
        self._total += reward
        info, terminated = answer["info"], answer["terminated"]
        truncated = bool(answer["truncated"]) or self._steps >= self.spec_task.max_steps
        if self.mapping.score is not None:
            self.score = self.mapping.score.after(self.score, reward, info)
        self._held = self._held + 1 if self.mapping.success.holds(reward, self._total, terminated, truncated, info) else 0
        solved = self._held >= self.mapping.hold or (self._held > 0 and (terminated or truncated))
        self._film()
        if solved or terminated or truncated:
            return self._ended(solved, "" if solved else "task_failed" if terminated else "timeout", self._mode(info))
        return self._observation(), 0.0, False, False, {"is_success": False, "failure": "", "mode": "", "score": self.score}

    def to_env(self, action: np.ndarray) -> np.ndarray:
        """`[A]` float64 in the environment's units, within its box. Raises ValueError for another shape or NaN."""
        given = np.asarray(action, np.float64)
        if given.shape != self._low.shape or not np.isfinite(given).all():
            raise ValueError(f"an action is {len(self._low)} finite numbers, got {given.tolist()}")
        return np.clip(given, self._low, self._high) * self._scale + self._offset

    def _ended(
        self, solved: bool, failure: str, mode: str
    ) -> tuple[dict[str, np.ndarray], float, bool, bool, dict[str, Any]]:
        self._running = False
        info = {"is_success": solved, "failure": failure, "mode": mode, "score": self.score}
        return self._observation(), float(solved), failure != "timeout", failure == "timeout", info

    def _mode(self, info: Dictionary[str, Any]) -> str:
        """The mode that info names, by its name or its number; the only one where there are no others."""
        if not self.mapping.mode_key:
            return self.spec_task.modes[0]
        value, modes = info.get(self.mapping.mode_key, ""), self.spec_task.modes
        if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < len(modes):
            return modes[value]
        return str(value) if str(value) in modes else ""

    def observe_cameras(self) -> dict[str, np.ndarray]:
        """Every camera feature now, float32. Raises RuntimeError without cameras, WorkerFailure from the environment."""
        if self.camera_rig is None:
            raise RuntimeError("this environment has no cameras")
        if not self._running and self._features:  # the process may be gone: the last good frame
            return {name: values.copy() for name, values in self._features.items()}
        wanted = self._camera_keys()
        arrays = self._request({"command": "observe", "keys": list(dict.fromkeys(wanted.values()))})[1]
        settings = self.camera_rig.spec.settings
        self._features = {name: _feature(name, arrays[key], settings, self._steps) for name, key in wanted.items()}
        return {name: values.copy() for name, values in self._features.items()}

    def _camera_keys(self) -> dict[str, str]:
        """Our feature to the observation's key."""
        assert self.camera_rig is not None
        mapped = {f"{kind}.{camera}": key for kind, pairs in ((IMAGES, self.mapping.images), (DEPTH, self.mapping.depth))
                  for camera, key in pairs} | {POINTS: self.mapping.points}  # fmt: skip
        return {name: mapped[name] for name in self.camera_rig.spec.shapes()}

    def tool_position(self) -> np.ndarray:
        """`[3]`: the mapped state dimensions, then 0; all 0 where none are mapped."""
        found = np.zeros(3)
        found[: len(self._tool)] = self._state[self._tool]
        return found

    def object_position(self) -> None:
        """None: it is not known."""
        return

    def planned_modes(self, actions: np.ndarray) -> tuple[str, ...]:
        """Empty: not known."""
        return ()

    # -- demonstrations ---------------------------------------------------------------------------------------------

    def demonstrate(self, start: np.ndarray, mode: str, seed: int) -> Demonstration:
        """An episode of the expert from a start, to its success. seed: of the expert and of its disturbance.

        Raises WorkerFailure when it fails: its name is that of the episode's failure, or ``demo_error``.
        """
        rng = np.random.default_rng(seed)
        observation, _ = self.reset(options={"start": start})
        self._request({"command": "expert", "mode": mode, "seed": int(rng.integers(2**31))})
        states, actions, tools, filmed, disturbance = [], [], [], [], np.zeros_like(self._low)
        wide = np.where(np.isfinite(self._high - self._low), (self._high - self._low) / 2, 1.0)
        while True:
            answer, arrays = self._request({"command": "act"})
            if answer["gave_up"]:
                raise WorkerFailure("demo_error", f"the expert gave up after {self._steps} steps")
            states.append(observation[STATE])
            tools.append(self.tool_position())
            if self.camera_rig is not None:
                filmed.append(self.observe_cameras())
            action = (arrays["action"] - self._offset) / self._scale
            actions.append(action.astype(np.float32))
            # first-order smooth noise with the wanted standard deviation
            disturbance = 0.8 * disturbance + 0.6 * rng.normal(0, self._noise, len(action)) * wide
            observation, _, terminated, truncated, info = self.step(action + disturbance)
            if terminated or truncated:
                break
        if not info["is_success"]:
            raise WorkerFailure(info["failure"], f"the expert's episode ended after {self._steps} steps")
        if not info["mode"]:
            raise WorkerFailure("demo_error", f"info[{self.mapping.mode_key!r}] was none of {list(self.spec_task.modes)}")
        return Demonstration(np.stack(states), np.stack(actions), np.stack(tools), np.array(start, np.float64), info["mode"],
                             self._packed(filmed))  # fmt: skip

    def _packed(self, filmed: list[dict[str, np.ndarray]]) -> CameraFrames | None:
        if self.camera_rig is None:
            return None
        count = {"unknown_pixels": 0, "repeated_points": 0}
        return pack(self.camera_rig.spec, filmed, [count] * len(filmed), [{}] * len(filmed))

    # -- plumbing ---------------------------------------------------------------------------------------------------

    def _request(
        self, message: Dictionary[str, Any], arrays: Dictionary[str, np.ndarray] | None = None
    ) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """A request to the process of the running episode; a new one would not know the episode. Raises WorkerFailure."""
        if self._worker.pid is None:
            raise WorkerFailure(self._lost, "the process of this episode is gone")
        try:
            return self._worker.request(message, arrays)
        except WorkerFailure as failure:
            self._lost = failure.name
            raise

    def _take_state(self, arrays: Dictionary[str, np.ndarray]) -> None:
        """Keeps the state. Raises WorkerFailure where it is not finite."""
        parts = []
        for key, _, indices in self.mapping.state:
            values = np.asarray(arrays[key], np.float64).reshape(-1)
            parts.append(values[list(indices)] if indices else values)
        state = np.concatenate(parts)
        if not np.isfinite(state).all():
            raise WorkerFailure("unstable", f"the state is not finite: {state.tolist()}")
        self._state = state.astype(np.float32)

    def _observation(self) -> dict[str, np.ndarray]:
        with_cameras = self.camera_rig is not None and not self.cameras_on_demand
        return {STATE: self._state.copy(), **(self.observe_cameras() if with_cameras else {})}

    def _film(self) -> None:
        """Appends a frame; an environment that cannot render loses its clip only."""
        if self.video_frames is None or self.video_error or self._steps % self.video_every:
            return
        if not self.description.renders:
            self.video_error = "it has no render mode rgb_array"
            return
        try:
            self.video_frames.append(self._request({"command": "observe", "keys": [RENDER]})[1][RENDER])
        except WorkerFailure as failure:
            self.video_error = failure.text


def gym_cameras(settings: GymSettings, cameras: CameraSettings) -> CameraSettings:
    """The cameras that a mapping gives, of those that are wanted. Raises ValueError for a feature that is not mapped."""
    mapping, _ = described(settings)
    wanted = list(cameras.cameras) if cameras.images or cameras.depth else []
    for kind, on, pairs in (("images", cameras.images, mapping.images), ("depth", cameras.depth, mapping.depth)):
        missing = [name for name in wanted if on and name not in dict(pairs)]
        if missing:
            raise ValueError(f"observation.sources: {kind} of camera {missing[0]!r} are wanted, {settings.mapping} "
                             f"maps {dict(pairs)}: add them there, or change observation.cameras")  # fmt: skip
    if cameras.num_points and not mapping.points:
        raise ValueError(f"observation.sources: points are wanted, {settings.mapping} maps none: add points: <key>")
    return replace(cameras, cameras=tuple(wanted) or cameras.cameras[:1])


def _feature(name: str, values: np.ndarray, settings: CameraSettings, step: int) -> np.ndarray:
    """One raw array as a feature: images resized and 0..1, depth in metres, a cloud of N points."""
    size = (settings.width, settings.height)
    if name == POINTS:
        cloud = np.asarray(values, np.float32)[:, : 6 if settings.colours else 3]
        chosen, _ = sample_points(cloud[:, :3], settings.num_points, settings.sampling, np.random.default_rng([0, step]))
        return cloud[chosen]
    if name.startswith(DEPTH):
        depth = np.asarray(Image.fromarray(np.squeeze(values).astype(np.float32)).resize(size, Image.Resampling.NEAREST))
        return np.where(depth > 0, np.minimum(depth, np.float32(settings.range_m)), np.float32(np.nan))[None]
    if values.shape[-1] != 3 and values.shape[0] == 3:
        values = values.transpose(1, 2, 0)
    if values.dtype != np.uint8:
        values = np.round(np.clip(values, 0, 1) * 255).astype(np.uint8)
    if values.shape[:2] != size[::-1]:
        values = np.asarray(Image.fromarray(np.ascontiguousarray(values)).resize(size, Image.Resampling.BILINEAR))
    return np.ascontiguousarray(values.transpose(2, 0, 1)).astype(np.float32) / np.float32(255)
