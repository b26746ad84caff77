"""RLBench's tasks: settings, specs, states, and conversion of poses between RLBench's frames and ours."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

import numpy as np
from scipy.spatial.transform import Rotation

from envs.rlbench.frames import is_open
from envs.specs import ActionSpec, TaskSpec, nearest_name

PREFIX = "rlbench/"
"""Prefix of RLBench's task names."""

STEP_S = 0.05
"""RLBench's simulator step [s]."""

PROGRAMS = ("rlbench", "replay")
ARMS = ("planning", "ik", "joints")
RENDERERS = ("opengl", "opengl3")

ROTATION = ("r_xx", "r_yx", "r_zx", "r_xy", "r_yy", "r_zy")
"""A rotation as six numbers: the first two columns of its matrix (Zhou et al. 2019, arXiv 1812.07035)."""
JOINTS = tuple(f"joint_{number}_rad" for number in range(1, 8))
POSE = ("x_m", "y_m", "z_m", *ROTATION, "gripper_open")
STATE_NAMES = (*POSE, *JOINTS)

AVOIDS = "avoids_collisions"
"""Name of the action dimension, and of the demonstrations' array, that says whether a path avoids collisions."""

NO_CHOICE = np.zeros(0)
"""The task's one-hot in the state where there is only one task: empty."""

_JOINT_LOW = (-2.8973, -1.7628, -2.8973, -3.0718, -2.8973, -0.0175, -2.8973)
_JOINT_HIGH = (2.8973, 1.7628, 2.8973, -0.0698, 2.8973, 3.7525, 2.8973)


_OF_ROLLOUTS = ("max_steps", "retries", "collision_checking")

MOST_STEPS = 200
"""Actions per episode where neither the settings nor demonstrations say how many."""


@dataclass(frozen=True)
class RLBenchSettings:
    """How a task of RLBench is run, observed and recorded; unused for other tasks.

    Attributes:
        program: rlbench (the simulator), or replay (stored demonstrations without a simulator, to test everything else)
        python: the interpreter that imports rlbench, as a command line; "": that of FLOW2ONE_RLBENCH_PYTHON, or this one
        workers: simulators per process
        dataset: folder of RLBench's stored demonstrations; "" records live ones
        arm: planning or ik (actions are poses of the gripper) or joints
        collision_checking: whether paths avoid collisions; for planning and ik
        per_action_collision_checking: one more number of each action says whether its planned path avoids collisions, as the
            demonstration's path to that frame did; in place of collision_checking (PerAct's ``ignore_collisions``, inverted)
        keyframes: keep only frames where the gripper changes or the arm rests; else every `subsample`-th, and gripper changes
        subsample: keep every so many-th frame, see keyframes
        gripper_threshold: opening, 0 to 1, above which the gripper counts as open (RLBench: 0.9, PerAct's fork: 0.95)
        variations: variations of the task, used equally often
        objects: names of objects of the task's scene whose poses are appended to the state, nine numbers each in the robot's
            base frame: ``<object>_x_m``, ``_y_m``, ``_z_m``, ``_r_xx``, ``_r_yx``, ``_r_zx``, ``_r_xy``, ``_r_yy``, ``_r_zy``.
            For live demonstrations of one task; the error of an unknown name lists those of the scene
        max_steps: actions per episode; 0: twice the longest training demonstration
        retries: how often in a row an episode queries its policy again after an action that the simulator refused (no path, no
            inverse kinematics, no rotation), before it ends with that failure; 0: the first refusal ends it
        voxel_m: side of the voxels that thin the cloud [m], 0: none
        without_robot: leave the robot's own points out of the cloud; a policy knows where its arm is
        crop_low: lower corner of the cloud's box in the robot's base frame [m]; the floor is 4 mm above the table
        crop_high: its upper corner [m]
        renderer: opengl, or opengl3 (with shadows, ten times slower or more)
        start_s: time limit of a simulator's start [s], after which it is killed
        step_s: time limit of one step [s], after which it is killed
        restart_after: restart a simulator after this many episodes, because its memory grows; 0: never
    """

    program: str = "rlbench"
    python: str = ""
    workers: int = 1
    dataset: str = ""
    arm: str = "planning"
    collision_checking: bool = False
    per_action_collision_checking: bool = False
    keyframes: bool = False
    subsample: int = 3
    gripper_threshold: float = 0.9
    variations: tuple[int, ...] = (0,)
    objects: tuple[str, ...] = ()
    max_steps: int = 0
    retries: int = 5
    voxel_m: float = 0.01
    without_robot: bool = False
    crop_low: tuple[float, float, float] = (0.1, -0.65, 0.004)
    crop_high: tuple[float, float, float] = (1.3, 0.65, 1.25)
    renderer: str = "opengl"
    start_s: float = 180.0
    step_s: float = 120.0
    restart_after: int = 0

    def check(self) -> None:
        """Raises ValueError for values that are unknown, out of range or inconsistent."""
        for name, choices in (("program", PROGRAMS), ("arm", ARMS), ("renderer", RENDERERS)):
            value = getattr(self, name)
            if value not in choices:
                raise ValueError(f"rlbench.{name}: unknown {value!r}; expected one of {choices}{nearest_name(value, choices)}")
        if self.program == "replay" and not self.dataset:
            raise ValueError("rlbench.dataset: got none, but program replay plays stored demonstrations; name their folder")
        if "" in self.objects or len(set(self.objects)) != len(self.objects):
            raise ValueError(f"rlbench.objects: got {list(self.objects)}, expected different names of objects of the scene")
        if self.objects and self.dataset:
            raise ValueError(f"rlbench.objects: got {list(self.objects)}, but the stored demonstrations of rlbench.dataset do "
                             "not say where objects are; record live ones (leave out rlbench.dataset), or name no objects")
        if not self.variations or min(self.variations) < 0 or len(set(self.variations)) != len(self.variations):
            raise ValueError(f"rlbench.variations: got {list(self.variations)}, expected different numbers from 0 on")
        if min(self.workers, self.subsample) < 1 or min(self.start_s, self.step_s) <= 0 or min(
            self.max_steps, self.voxel_m, self.restart_after, self.retries
        ) < 0:
            raise ValueError(
                "rlbench: workers and subsample must be at least 1, start_s and step_s above 0, max_steps, voxel_m, "
                f"restart_after and retries not below; got {self.workers}, {self.subsample}, {self.start_s}, {self.step_s}, "
                f"{self.max_steps}, {self.voxel_m}, {self.restart_after}, {self.retries}"
            )
        if not 0 < self.gripper_threshold < 1:
            raise ValueError(f"rlbench.gripper_threshold: got {self.gripper_threshold}, expected between 0 and 1")
        if self.arm == "joints" and (self.collision_checking or self.keyframes):
            raise ValueError("rlbench.arm joints moves by small steps, unplanned: leave collision_checking and keyframes off")

        if self.per_action_collision_checking and (self.arm != "planning" or self.collision_checking):
            raise ValueError(
                "rlbench.per_action_collision_checking: it is for planned paths, in place of collision_checking; expected "
                f"arm planning without collision_checking, got arm {self.arm}, collision_checking {self.collision_checking}"
            )

    @property
    def action(self) -> ActionSpec:
        """Poses `[10]`: xyz in the base frame, rotation (`ROTATION`), gripper; or joints `[8]`: angles, gripper.

        With per_action_collision_checking one more number at the end, 1 where the path avoids collisions.
        """
        if self.per_action_collision_checking:
            plain = replace(self, per_action_collision_checking=False).action
            return ActionSpec((*plain.names, AVOIDS), (*plain.low, 0.0), (*plain.high, 1.0), (*plain.weights, 1.0))
        if self.arm == "joints":
            return ActionSpec((*JOINTS, "gripper_open"), (*_JOINT_LOW, 0.0), (*_JOINT_HIGH, 1.0), (1.0,) * 8)
        # six numbers for three degrees of freedom
        return ActionSpec(
            POSE, (-1.0, -1.0, -0.1, *(-1.0,) * 6, 0.0), (1.3, 1.0, 1.3, *(1.0,) * 6, 1.0), (1.0,) * 3 + (0.5,) * 6 + (1.0,)
        )

    def recording(self) -> dict[str, object]:
        """The settings that change demonstrations or starts; not where, or by how many processes, they are made."""
        left_out = ("python", "workers", "start_s", "step_s", "restart_after", *_OF_ROLLOUTS)
        named = {name: value for name, value in vars(self).items() if name not in left_out}
        if not self.objects:  # what was recorded before there were any stays valid
            del named["objects"]
        return named

    @property
    def object_names(self) -> tuple[str, ...]:
        """Names of the state's dimensions that hold the objects' poses."""
        return tuple(f"{name}_{part}" for name in self.objects for part in ("x_m", "y_m", "z_m", *ROTATION))

    def rollouts(self) -> dict[str, object]:
        """The settings that change rollouts only."""
        return {name: getattr(self, name) for name in _OF_ROLLOUTS}


def names_rlbench_task(task: str) -> bool:
    """Whether a task's name is one of RLBench's."""
    return task.startswith(PREFIX)


def task_names(task: str) -> tuple[str, ...]:
    """RLBench's names in ``rlbench/<name>``, or in ``rlbench/<name>+<name>``: several tasks for one policy.

    Raises ValueError for anything else.
    """
    names = tuple(task.removeprefix(PREFIX).split("+"))
    if not all(re.fullmatch(r"[a-z][a-z0-9_]*", name) for name in names) or len(set(names)) != len(names):
        raise ValueError(f"unknown task {task!r}: expected rlbench/ and the name of a file in RLBench's tasks, as open_drawer, "
                         "or several joined by +")
    return names


def task_spec(task: str, settings: RLBenchSettings) -> TaskSpec:
    """The spec of a task of RLBench, or of several at once.

    With several, the state and the start also identify the task. Raises ValueError as `task_names`, and for objects of several.
    """
    names = task_names(task)
    several = len(names) > 1
    if several and settings.objects:
        raise ValueError(f"rlbench.objects: got {list(settings.objects)} for {task!r}, but the scenes of several tasks hold "
                         "different objects; train one policy a task, or name no objects")
    return TaskSpec(
        name=task,
        summary=f"RLBench's task {', '.join(names).replace('_', ' ')!r}, variations {list(settings.variations)}"
        + ("; replayed from recordings, not simulated." if settings.program == "replay" else "."),
        state_names=(*STATE_NAMES, *settings.object_names, *(f"task_{name}" for name in names if several)),
        action=settings.action,
        modes=("solved",),
        start_names=("variation", "episode", "seed", "attempts", *(["task"] if several else [])),
        dt_s=1.0 if settings.keyframes else STEP_S * settings.subsample,
        max_steps=settings.max_steps or MOST_STEPS,
    )


def pose_numbers(pose_L7: np.ndarray, base: np.ndarray) -> np.ndarray:
    """World poses `[.., 7]` (xyz [m], quaternion xyzw) as `[.., 9]` in the base frame: xyz [m] and rotation (`ROTATION`)."""
    matrix = Rotation.from_quat(pose_L7[..., 3:].reshape(-1, 4)).as_matrix()
    columns = matrix[:, :, :2].transpose(0, 2, 1).reshape(*pose_L7.shape[:-1], 6)
    return np.concatenate([pose_L7[..., :3] - base, columns], axis=-1)


def world_pose(numbers_9: np.ndarray, base: np.ndarray) -> np.ndarray:
    """The inverse of `pose_numbers` for one pose: `[7]`, with a unit quaternion xyzw.

    The two columns are orthonormalised (Gram-Schmidt). Raises ValueError where they are zero or parallel.
    """
    first, second = numbers_9[3:6], numbers_9[6:9]
    length = np.linalg.norm(first)
    first = first / max(length, 1e-12)
    perpendicular = second - (first @ second) * first
    width = np.linalg.norm(perpendicular)
    if length < 1e-3 or width < 1e-3:
        raise ValueError(f"{numbers_9[3:9].tolist()} give no rotation: the two columns must not be zero or parallel")
    second = perpendicular / width
    matrix = np.stack([first, second, np.cross(first, second)], axis=1)
    return np.concatenate([numbers_9[:3] + base, Rotation.from_matrix(matrix).as_quat()])


def state_from_frames(
    low: dict[str, np.ndarray], base: np.ndarray, threshold: float, which: np.ndarray = NO_CHOICE
) -> np.ndarray:
    """The state `[.., S]` float32 of one frame or of L: `STATE_NAMES`, poses of objects, the task's one-hot `which` `[tasks]`.

    low: its ``objects`` `[.., n, 7]`, if any, are poses in the world.
    """
    pose, opened = pose_numbers(low["gripper_pose"], base), is_open(low, threshold)
    objects = [pose_numbers(low["objects"], base).reshape(*opened.shape, -1)] if "objects" in low else []
    chosen = np.broadcast_to(which, (*opened.shape, len(which)))
    return np.concatenate([pose, opened[..., None], low["joint_positions"], *objects, chosen], axis=-1).astype(np.float32)


def which_task(start: np.ndarray, names: tuple[str, ...]) -> tuple[int, np.ndarray]:
    """The index of a start's task, and its one-hot `[tasks]`; `[0]` for a single task."""
    if len(names) == 1:
        return 0, NO_CHOICE
    return int(start[4]), np.eye(len(names))[int(start[4])]
