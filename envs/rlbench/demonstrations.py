"""From RLBench's demonstrations to ours: the selection of frames, and the action that follows each."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from envs.cameras.frames import CameraFrames, pack
from envs.cameras.specs import CameraSettings
from envs.demonstrations import Demonstration
from envs.process.worker import Worker
from envs.rlbench.frames import is_open, is_still
from envs.rlbench.rig import RLBenchCameraRig
from envs.rlbench.spec import AVOIDS, NO_CHOICE, RLBenchSettings, pose_numbers, state_from_frames

REST_FRAMES = 4
"""Least number of frames between two rests."""
AT_ONCE = 16
"""Frames whose images are requested in one message."""


def select_frames(low: Mapping[str, np.ndarray], settings: RLBenchSettings) -> np.ndarray:
    """Indices of the kept frames among L, increasing: always the first, the last, and every change of the gripper.

    What is kept must be among envs/rlbench/frames.py's `KeptFrames`: a simulator renders no other frame.

    Without key frames also every `subsample`-th, and the last one before a change of the gripper if the arm rests there: the
    arm arrives in one action, and the gripper moves in the next. Without that frame a policy mixes demonstrations that differ
    by a few frames in when they arrive, and closes its gripper on the way. With key frames those where the arm rests
    (`rest_frames`).
    Raises ValueError for fewer than two frames, or for key frames of a demonstration without joint velocities.
    """
    opened = is_open(dict(low), settings.gripper_threshold)
    count = len(opened)
    if count < 2:
        raise ValueError(f"a demonstration of {count} frames shows no action; expected at least 2")
    changes = 1 + np.flatnonzero(np.diff(opened))
    if not settings.keyframes:
        before = changes - 1
        velocity = low.get("joint_velocities")
        still = [] if velocity is None else [frame for frame in before.tolist() if is_still(velocity[frame])]
        kept = [*range(0, count, settings.subsample), *changes.tolist(), *still, count - 1]
        return np.unique(np.array(kept, dtype=np.int64))
    if "joint_velocities" not in low:
        raise ValueError("key frames need the joints' velocities, which these demonstrations lack: use rlbench.no-keyframes")
    found = np.unique(np.concatenate([[0], rest_frames(low["joint_velocities"], opened), changes, [count - 1]]))
    # the arm also rests just before the end: one of the two is enough
    return np.delete(found, -2) if len(found) > 2 and found[-1] - found[-2] == 1 and found[-2] not in changes else found


def rest_frames(velocity_LJ: np.ndarray, open_L: np.ndarray) -> np.ndarray:
    """Indices of frames where the arm rests between two moves: all joints slow, the gripper unchanged around it.

    velocity_LJ: [rad/s]; open_L: 0 or 1.
    """
    found: list[int] = []
    for frame in range(1, len(velocity_LJ) - 1):
        same = open_L[frame - 1] == open_L[frame] == open_L[frame + 1]
        if is_still(velocity_LJ[frame]) and same and frame - (found[-1] if found else 0) >= REST_FRAMES:
            found.append(frame)
    return np.array(found, dtype=np.int64)


def actions_from_frames(low: Mapping[str, np.ndarray], base: np.ndarray, settings: RLBenchSettings) -> np.ndarray:
    """The action `[L, A]` float32 that leads to each frame: its pose in the base frame, or its joints; then its gripper.

    With per_action_collision_checking one number more: whether its path avoids collisions. Raises ValueError for
    demonstrations that do not record that.
    """
    opened = is_open(dict(low), settings.gripper_threshold)[:, None]
    arm = low["joint_positions"] if settings.arm == "joints" else pose_numbers(low["gripper_pose"], base)
    if not settings.per_action_collision_checking:
        return np.concatenate([arm, opened], axis=1).astype(np.float32)
    if AVOIDS not in low:
        raise ValueError(
            "these demonstrations do not say which of their paths avoid collisions: record live ones, or use "
            "rlbench.no-per-action-collision-checking"
        )
    return np.concatenate([arm, opened, low[AVOIDS][:, None]], axis=1).astype(np.float32)


def request_demonstration(
    worker: Worker, start: np.ndarray, settings: RLBenchSettings, cameras: CameraSettings | None, limit_s: float = 0.0,
    which: np.ndarray = NO_CHOICE,
) -> Demonstration:  # fmt: skip
    """The demonstration of a start `[D]`, live or stored; its own start reproduces its placement.

    which: one-hot of the task, see `which_task`; limit_s: time limit of the request [s], 0: the worker's.
    Step k holds the observation of a kept frame and the action that leads to the next one. Raises WorkerFailure, and
    ValueError for a demonstration that cannot be used.
    """
    message = {"command": "demonstrate", "start": start.tolist(), "images": cameras is not None}
    answer, low = worker.request(message, limit_s=limit_s)
    base = low.pop("base")
    kept = select_frames(low, settings)
    before, after = kept[:-1], kept[1:]
    placed = np.array(start, dtype=np.float64)
    placed[3] = answer["attempts"]
    observed = {name: values[before] for name, values in low.items()}
    state = state_from_frames(observed, base, settings.gripper_threshold, which)
    return Demonstration(
        state=state, action=actions_from_frames(low, base, settings)[after], tool=state[:, :3].copy(), start=placed,
        mode="solved", cameras=None if cameras is None else _camera_frames(worker, low, base, before, settings, cameras),
    )  # fmt: skip


def _camera_frames(
    worker: Worker, low: Mapping[str, np.ndarray], base: np.ndarray, frames: np.ndarray, settings: RLBenchSettings,
    cameras: CameraSettings,
) -> CameraFrames:  # fmt: skip
    rig = RLBenchCameraRig(cameras, settings.voxel_m, settings.without_robot)
    features, defects, poses = [], [], []
    for part in np.split(frames, range(AT_ONCE, len(frames), AT_ONCE)):
        _, images = worker.request({"command": "images", "frames": part.tolist()})
        for row, frame in enumerate(part):
            raw = {name: values[frame] for name, values in low.items()}
            raw |= {name: values[row] for name, values in images.items()} | {"base": base}
            one, counts, pose = rig.observe(raw, int(frame))
            features.append(one)
            defects.append(counts)
            poses.append(pose)
    return pack(rig.spec, features, defects, poses)
