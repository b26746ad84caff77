"""RLBench's cameras, under our names and in our frames: colours, metric depth, and one cropped, downsampled cloud."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import gymnasium
import numpy as np
from scipy.spatial.transform import Rotation

from envs.cameras.clouds import clean_depth, deproject, in_box, pixel_rays, sample_points, voxel_downsample
from envs.cameras.frames import CameraFrames
from envs.cameras.specs import CameraSettings, CameraSpec, CamerasSpec
from envs.rlbench.robot import on_robot
from envs.specs import DEPTH, IMAGES, POINTS

RLBENCH_NAMES = {"front": "front", "left": "left_shoulder", "right": "right_shoulder", "overhead": "overhead", "wrist": "wrist"}
"""Our camera names to RLBench's."""

_TURN = np.diag([-1.0, -1.0, 1.0])
"""From OpenCV's camera axes (x right, y down) to CoppeliaSim's (x left, y up): why RLBench's focal lengths are negative."""

JITTER = 0.002
"""Tolerance within which two poses of a camera count as the same [m; sine of an angle]: the simulator is not exact."""

_PLACES = 4
"""Decimals [m] to which a spec's poses are rounded: the simulator's last bits differ from start to start."""


class RLBenchCameraRig:
    """Converts the raw frames of one worker to features. voxel_m: side of the voxels that thin the cloud [m], 0: none.

    without_robot: leaves the robot's own points out of the cloud (`envs.rlbench.robot`).

    spec: what it adds to an observation; it is known after the first frame, before that RuntimeError.
    """

    def __init__(self, settings: CameraSettings, voxel_m: float, without_robot: bool = False) -> None:
        self.settings, self._voxel_m, self._without_robot = settings, voxel_m, without_robot
        self._spec: CamerasSpec | None = None
        self._rays: dict[str, np.ndarray] = {}

    @property
    def spec(self) -> CamerasSpec:
        if self._spec is None:
            raise RuntimeError("where RLBench's cameras are is known after the first reset: reset first")
        return self._spec

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of every feature, which follows from the settings alone."""
        settings = self.settings
        cameras = tuple(CameraSpec(name, settings.width, settings.height, 1.0) for name in settings.cameras)
        return CamerasSpec(settings, cameras).shapes()

    def space(self) -> dict[str, gymnasium.spaces.Box]:
        """A box per feature. A box cannot hold NaN, unknown depth; RLBench's depth is never unknown."""
        limits = {IMAGES: (0.0, 1.0), DEPTH: (0.0, self.settings.range_m), POINTS: (-np.inf, np.inf)}
        return {
            name: gymnasium.spaces.Box(*next(limits[kind] for kind in limits if name.startswith(kind)), shape, np.float32)
            for name, shape in self.shapes().items()
        }

    def observe(
        self, frame: Mapping[str, np.ndarray], step: int
    ) -> tuple[dict[str, np.ndarray], dict[str, int], dict[str, np.ndarray]]:
        """Features of one raw frame, its defect counts (see `CameraRig.observe`), and each camera's `[4, 4]` base_from_camera.

        step: number of the control step. Raises ValueError for images of another size than the settings, for a first frame in
        which nothing is drawn, and when no point is left for a cloud.
        """
        settings, base = self.settings, frame["base"]
        poses = {name: camera_pose(frame[f"{RLBENCH_NAMES[name]}.extrinsics"], base) for name in settings.cameras}
        if self._spec is None:
            self._check_drawn(frame)
            self._spec = CamerasSpec(settings, tuple(self._camera(name, frame, poses[name]) for name in settings.cameras))
        features: dict[str, np.ndarray] = {}
        points, point_colours, unknown = [], [], 0
        for name in settings.cameras:
            rlbench_name, colours = RLBENCH_NAMES[name], None
            if settings.images or settings.colours:
                colours = self._sized(frame[f"{rlbench_name}.rgb"], name).astype(np.float32) / np.float32(255)
            if settings.images and colours is not None:
                features[f"{IMAGES}.{name}"] = np.ascontiguousarray(colours.transpose(2, 0, 1))
            if not (settings.depth or settings.num_points):
                continue
            depth, holes = clean_depth(self._sized(frame[f"{rlbench_name}.depth"], name), settings.range_m)
            unknown += holes
            if settings.depth:
                features[f"{DEPTH}.{name}"] = depth[None].copy()
            if settings.num_points:
                points_3P = deproject(self._rays[name], depth.reshape(-1), poses[name])
                kept_P = in_box(points_3P, settings.crop_low, settings.crop_high) & (depth.reshape(-1) < settings.range_m)
                points.append(points_3P[:, kept_P].T)
                point_colours.append(np.zeros((len(points[-1]), 0)) if not settings.colours or colours is None
                              else colours.reshape(-1, 3)[kept_P])  # fmt: skip
        repeated = 0
        if settings.num_points:
            cloud = np.concatenate([np.concatenate(points), np.concatenate(point_colours)], axis=1)
            cloud = voxel_downsample(cloud, self._voxel_m) if self._voxel_m and len(cloud) else cloud
            if self._without_robot:
                tool_7 = np.concatenate([frame["gripper_pose"][:3] - base, frame["gripper_pose"][3:]])
                cloud = cloud[~on_robot(cloud[:, :3], frame["joint_positions"], tool_7)]
            rng = np.random.default_rng([settings.seed, step])
            chosen_N, repeated = sample_points(cloud[:, :3], settings.num_points, settings.sampling, rng)
            features[POINTS] = cloud[chosen_N].astype(np.float32)
        return features, {"unknown_pixels": unknown, "repeated_points": repeated}, poses

    def _check_drawn(self, frame: Mapping[str, np.ndarray]) -> None:
        """A missing renderer returns images of one value in every camera: a policy would learn to ignore them."""
        images = [frame[key] for name in self.settings.cameras for kind in ("rgb", "depth")
                  if (key := f"{RLBENCH_NAMES[name]}.{kind}") in frame]  # fmt: skip
        if images and all(image.min() == image.max() for image in images):
            raise ValueError(
                f"RLBench's cameras {list(self.settings.cameras)} draw nothing, their images are of one value each: the "
                "renderer does not work on this machine; use --rlbench.renderer opengl, and see flow2one doctor --rlbench"
            )

    def _sized(self, image: np.ndarray, name: str) -> np.ndarray:
        wanted = (self.settings.height, self.settings.width)
        if image.shape[:2] != wanted:
            raise ValueError(
                f"camera {name} gives images of {image.shape[:2]} (height, width), {wanted} are wanted: set "
                "observation.image_size to what is stored, or record again"
            )
        return image

    def _camera(self, name: str, frame: Mapping[str, np.ndarray], pose: np.ndarray) -> CameraSpec:
        """The camera's spec; sets its rays. The wrist camera is mounted on the hand, all others are fixed."""
        settings, matrix = self.settings, frame[f"{RLBENCH_NAMES[name]}.intrinsics"]
        focal_px = abs(float(matrix[0, 0]))
        # RLBench's clouds take a pixel's index as its centre, half a pixel away from where our rays go through
        intrinsics = np.array([[focal_px, 0, settings.width / 2 + 0.5], [0, focal_px, settings.height / 2 + 0.5], [0, 0, 1]])
        self._rays[name] = pixel_rays(intrinsics, settings.height, settings.width)
        mount = "base"
        if name == "wrist":
            mount, hand = "hand", np.eye(4)
            hand[:3, :3] = Rotation.from_quat(frame["gripper_pose"][3:]).as_matrix()
            hand[:3, 3] = frame["gripper_pose"][:3] - frame["base"]
            pose = np.linalg.inv(hand) @ pose
        placed = tuple((np.round(pose, _PLACES) + 0.0).reshape(-1).tolist())
        return CameraSpec(name, settings.width, settings.height, round(focal_px, _PLACES), mount, placed)


def unify_camera_spec(frames: CameraFrames, spec: CamerasSpec) -> CameraFrames:
    """The frames with `spec` in place of their own, if the cameras differ by no more than `JITTER`; else unchanged."""
    pairs = zip(frames.spec.cameras, spec.cameras, strict=False)
    near = all(np.allclose(one.extrinsics, other.extrinsics, rtol=0, atol=JITTER) for one, other in pairs)
    return replace(frames, spec=spec) if near and frames.spec.settings == spec.settings else frames


def camera_pose(extrinsics: np.ndarray, base: np.ndarray) -> np.ndarray:
    """`[4, 4]` base_from_camera with OpenCV's axes. extrinsics: RLBench's `[4, 4]` world_from_camera; base: `[3]` [m]."""
    pose = np.eye(4)
    pose[:3, :3], pose[:3, 3] = extrinsics[:3, :3] @ _TURN, extrinsics[:3, 3] - base
    return pose
