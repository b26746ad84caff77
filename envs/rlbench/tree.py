"""Reads RLBench's stored demonstrations: folders, low-dimensional pickles, PNG images and 24-bit depth.

    <root>/<task>/variation<v>/episodes/episode<e>/low_dim_obs.pkl and <camera>_rgb/<frame>.png, <camera>_depth/<frame>.png
    <root>/<task>/variation<v>/variation_descriptions.pkl
    <root>/<task>/all_variations/episodes/episode<e>/variation_number.pkl, variation_descriptions.pkl, where they were mixed

RLBench need not be installed. It runs in any Python from 3.8 on with numpy and Pillow, also in a worker's process.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

CAMERAS = ("front", "left_shoulder", "right_shoulder", "overhead", "wrist")
ALL = "all_variations"
"""A folder of episodes of any variation."""
DEPTH_CODES = 2**24 - 1
BASE_TO_FIRST_JOINT_M = 0.333
"""Height of a Panda's first joint above its base."""
BASE_M = (-0.2680, -0.0064, 0.7500)
"""Position of the base in RLBench's scene, for older demonstrations that lack the joints' poses."""


class StoredEpisode:
    """One demonstration of L frames.

    low: arrays of L frames: joint_positions, joint_velocities `[L, 7]` [rad, rad/s]; gripper_pose `[L, 7]` xyz [m] and
    quaternion xyzw in the world's frame; gripper_open `[L]`; where they were stored gripper_joint_positions `[L, 2]` [m] and
    ``<camera>.extrinsics`` `[L, 4, 4]` (world from camera), ``<camera>.intrinsics`` `[L, 3, 3]`.
    base: `[3]` position of the robot's base [m]; random_state: numpy's, before the episode was placed; attempts: placements
    tried, 0: not known; variation: of the task.
    """

    def __init__(self, folder: Path) -> None:
        """Raises ValueError, with its path, for a file that is missing, damaged or holds an unknown class."""
        plain_pickle = _reader()
        path = folder / "low_dim_obs.pkl"
        if not path.is_file():
            raise ValueError(f"{path} is missing: expected a demonstration as RLBench's generator stores it")
        try:
            demo = plain_pickle.read(path.read_bytes())
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
        if getattr(demo, "kind", "") != "Demo" or not demo.fields.get("_observations"):
            raise ValueError(f"{path} holds no demonstration with observations")
        self.folder = folder
        frames = [each.fields for each in demo.fields["_observations"]]
        self.low = _stacked(frames)
        misc = [frame.get("misc") or {} for frame in frames]
        self.planes = {}
        for camera in CAMERAS:
            name = camera + "_camera"
            if all(name + "_extrinsics" in each for each in misc):
                self.low[camera + ".extrinsics"] = np.stack([each[name + "_extrinsics"] for each in misc]).astype(np.float64)
                self.low[camera + ".intrinsics"] = np.stack([each[name + "_intrinsics"] for each in misc]).astype(np.float64)
                self.planes[camera] = [(each[name + "_near"], each[name + "_far"]) for each in misc]
        self.base = base_position(misc[0].get("joint_poses"))
        self.random_state = demo.fields.get("random_seed")
        self.attempts = int(demo.fields.get("num_reset_attempts") or 0)
        self.variation = int(misc[0].get("variation_index", 0))

    def __len__(self) -> int:
        return len(self.low["gripper_pose"])

    def images(self, frames: Sequence[int], cameras: Sequence[str], rgb: bool, depth: bool) -> dict[str, np.ndarray]:
        """``<camera>.rgb`` `[M, H, W, 3]` uint8 and ``<camera>.depth`` `[M, H, W]` float32 [m] of M frames.

        Raises ValueError for an image that is missing, or a camera whose planes were not stored.
        """
        found = {}
        for camera in cameras:
            if rgb:
                found[camera + ".rgb"] = np.stack([_image(self.folder / (camera + "_rgb") / f"{each}.png") for each in frames])
            if depth and camera not in self.planes:
                raise ValueError(f"{self.folder} does not say where camera {camera} is: record with this camera")
            if depth:
                pictures = [_image(self.folder / (camera + "_depth") / f"{each}.png") for each in frames]
                planes = [self.planes[camera][each] for each in frames]
                metres = [metric_depth(picture, *plane) for picture, plane in zip(pictures, planes)]  # noqa: B905
                found[camera + ".depth"] = np.stack(metres)
        return found


def episodes(root: Path, task: str, variation: int) -> list[int]:
    """The numbers of the stored episodes, in their order. Raises ValueError when there is none."""
    folder = _episodes_folder(root, task, variation)
    numbers = [path.name[7:] for path in folder.glob("episode*")]
    found = sorted(int(number) for number in numbers if number.isdigit())
    if folder.parent.name == ALL:
        found = [number for number in found if _variation_of(folder / f"episode{number}") == variation]
    if not found:
        raise ValueError(f"{folder} holds no episode<e>: give the folder that holds the tasks of RLBench's generator")
    return found


def episode(root: Path, task: str, variation: int, number: int) -> StoredEpisode:
    """One stored demonstration; see `StoredEpisode`."""
    return StoredEpisode(_episodes_folder(root, task, variation) / f"episode{number}")


def descriptions(root: Path, task: str, variation: int) -> list[str]:
    """What a person would call the task; [] where nothing is stored, or something else."""
    folder = _episodes_folder(root, task, variation)
    if folder.parent.name != ALL:
        return words(folder.parent)
    return next((found for number in episodes(root, task, variation) if (found := words(folder / f"episode{number}"))), [])


def words(folder: Path) -> list[str]:
    """What ``variation_descriptions.pkl`` of a folder says. [] where it is not there, damaged or holds something else, as
    that of RLBench's own test assets does: nothing depends on it."""
    path = folder / "variation_descriptions.pkl"
    try:
        told = _reader().read(path.read_bytes()) if path.is_file() else []
    except ValueError:
        return []
    return [str(each) for each in told] if isinstance(told, (list, tuple)) else []


def _episodes_folder(root: Path, task: str, variation: int) -> Path:
    """Where a variation's episodes lie: in a folder of its own, else among those of all."""
    own, mixed = root / task / f"variation{variation}" / "episodes", root / task / ALL / "episodes"
    return own if own.is_dir() or not mixed.is_dir() else mixed


def _variation_of(folder: Path) -> int:
    """The variation of an episode among those of all. Raises ValueError, naming the file, where it is not told."""
    path = folder / "variation_number.pkl"
    if not path.is_file():
        return StoredEpisode(folder).variation
    try:
        return int(_reader().read(path.read_bytes()))
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: holds no number: {error}") from error


def shown(episode: StoredEpisode, root: Path, task: str, variation: int) -> tuple[list[str], int, dict[str, np.ndarray]]:
    """A stored demonstration as envs/rlbench/protocol.py answers it: instructions, attempts, ``low`` and ``base``."""
    return descriptions(root, task, variation), episode.attempts, {**episode.low, "base": episode.base}


def metric_depth(picture: np.ndarray, near_m: float, far_m: float) -> np.ndarray:
    """Depth `[H, W]` float32 [m] of an RGB image whose 24 bits, red first, go from the near to the far plane [m]."""
    code = picture[..., :3].astype(np.uint32) @ np.array([65536, 256, 1], np.uint32)
    return (near_m + code / DEPTH_CODES * (far_m - near_m)).astype(np.float32)


def base_position(joint_poses: Any) -> np.ndarray:
    """Position `[3]` [m] of the robot's base, from the poses `[7, 7]` of its joints; `BASE_M` without them."""
    if joint_poses is None:
        return np.array(BASE_M)
    return np.asarray(joint_poses[0], np.float64)[:3] - [0, 0, BASE_TO_FIRST_JOINT_M]


def _stacked(frames: list[dict[str, Any]]) -> dict[str, np.ndarray]:
    found = {}
    for name in ("joint_positions", "joint_velocities", "gripper_pose", "gripper_open", "gripper_joint_positions"):
        values = [frame.get(name) for frame in frames]
        if all(value is not None for value in values):
            found[name] = np.stack([np.asarray(value, np.float64) for value in values])
        elif name in ("joint_positions", "gripper_pose", "gripper_open"):
            raise ValueError(f"the demonstration lacks {name}: record with RLBench's low-dimensional observations on")
    ignored = [frame.get("ignore_collisions") for frame in frames]  # only PerAct's fork records it
    if all(value is not None for value in ignored):
        found["avoids_collisions"] = 1.0 - np.array(ignored, np.float64).reshape(len(frames))
    return found


def _image(path: Path) -> np.ndarray:
    from PIL import Image

    if not path.is_file():
        raise ValueError(f"{path} is missing: leave its camera out, or record again")
    with Image.open(path) as opened:
        return np.asarray(opened.convert("RGB"))


def _reader() -> Any:
    """The module envs/rlbench/plain_pickle.py, which has another name in a worker's process."""
    import importlib
    import sys

    return sys.modules.get("flow2one_plain_pickle") or importlib.import_module("envs.rlbench.plain_pickle")
