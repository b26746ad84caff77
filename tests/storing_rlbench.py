"""Writes demonstrations as RLBench's generator stores them: its folders, classes, PNG images and 24-bit depth.

A program of its own, ``python storing_rlbench.py FOLDER OPTIONS``: it is the only file that pickles, so that the readers meet
the real thing. The scene is a table at 0.75 m and a red ball of 5 cm above it; the gripper goes to the ball, and in a task that
is called ``take_..`` it closes there and lifts. OPTIONS is JSON, see `main`.
"""

from __future__ import annotations

import json
import pickle
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

CAMERAS = ("left_shoulder", "right_shoulder", "overhead", "wrist", "front")
BASE = np.array([-0.27, 0.01, 0.75])
TABLE_M, RADIUS_M, NEAR_M, FAR_M = 0.75, 0.05, 0.01, 3.5
HOME = np.array([0.28, 0.01, 1.40])
DOWN = np.array([0.0, 1.0, 0.0, 0.0])
"""Of a gripper that points at the table: half a turn about y."""


def rlbench_class(module: str, name: str) -> Any:
    """A class that a pickle finds where RLBench has it."""
    for part in ("rlbench", "rlbench.backend", module):
        sys.modules.setdefault(part, types.ModuleType(part))
    made = type(name, (), {"__module__": module})
    setattr(sys.modules[module], name, made)
    return made


def looking(eye: np.ndarray, at: np.ndarray) -> np.ndarray:
    """`[4, 4]` world_from_camera with CoppeliaSim's axes: x left, y up, z ahead."""
    ahead = (at - eye) / np.linalg.norm(at - eye)
    up = np.array([0.0, 0.0, 1.0]) if abs(ahead[2]) < 0.99 else np.array([1.0, 0.0, 0.0])
    left = np.cross(up, ahead)
    left /= np.linalg.norm(left)
    pose = np.eye(4)
    pose[:3, :3], pose[:3, 3] = np.stack([left, np.cross(ahead, left), ahead], axis=1), eye
    return pose


def render(pose: np.ndarray, matrix: np.ndarray, size: tuple[int, int], ball: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Colours `[H, W, 3]` and depth `[H, W]` [m]; a pixel's number is its middle, as in RLBench's clouds."""
    column, row = np.meshgrid(np.arange(size[1]), np.arange(size[0]))
    rays = np.linalg.inv(matrix) @ np.stack([column, row, np.ones_like(row)]).reshape(3, -1).astype(float)
    ways = pose[:3, :3] @ rays
    with np.errstate(divide="ignore"):
        table = np.where(ways[2] < 0, (TABLE_M - pose[2, 3]) / np.where(ways[2] < 0, ways[2], -1), np.inf)
    back = pose[:3, 3] - ball
    a, b, c = (ways**2).sum(0), 2 * back @ ways, back @ back - RADIUS_M**2
    inside = b**2 - 4 * a * c
    hit = np.where(inside > 0, (-b - np.sqrt(np.maximum(inside, 0))) / (2 * a), np.inf)
    depth = np.minimum(np.minimum(table, np.where(hit > 0, hit, np.inf)), FAR_M)
    colours = np.zeros((rays.shape[1], 3), np.uint8)
    colours[table < FAR_M] = (120, 90, 60)
    colours[hit < np.minimum(table, FAR_M)] = (220, 0, 0)
    return colours.reshape(*size, 3), depth.reshape(size)


def save_depth(path: Path, depth: np.ndarray) -> None:
    code = np.floor((depth - NEAR_M) / (FAR_M - NEAR_M) * (2**24 - 1) + 0.5).astype(np.int64)
    Image.fromarray(np.stack([code >> 16, code >> 8 & 255, code & 255], axis=-1).astype(np.uint8)).save(path)


def path_of(task: str, ball: np.ndarray, frames: int) -> tuple[np.ndarray, np.ndarray]:
    """Gripper positions `[L, 3]` and openings `[L]`."""
    there = HOME + np.linspace(0, 1, frames)[:, None] ** 1.0 * (ball - HOME)
    opened = np.ones(frames)
    if task.startswith("take_"):
        lift = ball + np.linspace(0, 1, frames // 2 + 1)[:, None] * np.array([0.0, 0.0, 0.15])
        there, opened = np.concatenate([there, lift]), np.concatenate([opened, np.zeros(len(lift))])
    return there, opened


def save_episode(folder: Path, task: str, variation: int, rng: np.random.RandomState, options: dict[str, Any]) -> None:
    height, width = options["size"]
    state = rng.get_state()
    ball = np.array([0.30, 0.0, 0.95]) + rng.uniform(-0.1, 0.1, 3)
    places, opened = path_of(task, ball, options["frames"])
    matrix = np.array([[-width * 1.2, 0, width / 2], [0, -width * 1.2, height / 2], [0, 0, 1.0]])
    eyes = {"left_shoulder": (-0.2, 0.5, 1.7), "right_shoulder": (-0.2, -0.5, 1.7), "overhead": (0.3, 0.0, 2.0),
            "front": (1.3, 0.0, 1.5)}  # fmt: skip
    observations = []
    for frame, (place, is_open) in enumerate(zip(places, opened, strict=True)):
        made = OBSERVATION()
        joints = np.concatenate([place, [-1.5, 0.1, 1.5, 0.4]])
        still = frame in (0, len(places) - 1) or opened[frame] != opened[frame - 1]
        amount = 0.93 if options["half_open"] and is_open else is_open
        misc: dict[str, Any] = {"variation_index": variation}
        if options["joint_poses"]:
            misc["joint_poses"] = [np.array([*(BASE + [0, 0, 0.333 + 0.1 * each]), 0, 0, 0, 1]) for each in range(7)]
        made.__dict__.update(
            joint_positions=joints, joint_velocities=np.full(7, 0.0 if still else 0.5), joint_forces=np.zeros(7),
            gripper_open=float(is_open), gripper_pose=np.concatenate([place, DOWN]), gripper_matrix=np.eye(4),
            gripper_joint_positions=np.full(2, 0.04 * amount), gripper_touch_forces=np.zeros(6),
            task_low_dim_state=ball, misc=misc,
        )  # fmt: skip
        for camera in CAMERAS:
            eye = np.array(eyes.get(camera, place + [0.05, 0.0, 0.1]))
            pose = looking(eye, np.array([0.3, 0.0, 0.9]) if camera != "wrist" else eye - [0.0, 0.0, 1.0])
            misc.update({f"{camera}_camera_extrinsics": pose, f"{camera}_camera_intrinsics": matrix,
                         f"{camera}_camera_near": NEAR_M, f"{camera}_camera_far": FAR_M})  # fmt: skip
            made.__dict__.update({f"{camera}_{what}": None for what in ("rgb", "depth", "mask", "point_cloud")})
            if options["images"]:
                colours, depth = render(pose, matrix, (height, width), ball)
                for what in ("rgb", "depth", "mask"):
                    (folder / f"{camera}_{what}").mkdir(parents=True, exist_ok=True)
                Image.fromarray(colours).save(folder / f"{camera}_rgb" / f"{frame}.png")
                Image.fromarray(np.zeros_like(colours)).save(folder / f"{camera}_mask" / f"{frame}.png")
                save_depth(folder / f"{camera}_depth" / f"{frame}.png", depth)
        observations.append(made)
    demo = DEMO()
    demo._observations, demo.random_seed, demo.num_reset_attempts = observations, state, 1
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "low_dim_obs.pkl").write_bytes(pickle.dumps(demo, protocol=options["protocol"]))


def main(folder: Path, given: dict[str, Any]) -> None:
    options = {"tasks": ["reach_target"], "variations": [0], "episodes": 2, "frames": 10, "size": [24, 24], "images": True,
               "joint_poses": True, "half_open": False, "protocol": 4, "seed": 0, **given}  # fmt: skip
    rng = np.random.RandomState(options["seed"])
    for task in options["tasks"]:
        for variation in options["variations"]:
            place = folder / task / f"variation{variation}"
            for number in range(options["episodes"]):
                save_episode(place / "episodes" / f"episode{number}", task, variation, rng, options)
            words = pickle.dumps([f"do {task}", f"variation {variation}"])
            (place / "variation_descriptions.pkl").write_bytes(words)


if __name__ == "__main__":
    DEMO = rlbench_class("rlbench.demo", "Demo")
    OBSERVATION = rlbench_class("rlbench.backend.observation", "Observation")
    main(Path(sys.argv[1]), json.loads(sys.argv[2]))
