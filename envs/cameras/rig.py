"""The cameras of a simulated scene: colours, metric depth and the fused cloud, under LeRobot's names."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import gymnasium
import mujoco
import numpy as np

from envs.cameras.backends import open_renderer
from envs.cameras.clouds import clean_depth, deproject, in_box, pixel_rays, sample_points
from envs.cameras.render import camera_id, focal_pixels
from envs.cameras.specs import CameraSettings, CameraSpec, CamerasSpec
from envs.specs import DEPTH, IMAGES, POINTS

_FLIP = np.diag([1.0, -1.0, -1.0])
"""From OpenCV's camera axes (x right, y down, z ahead) to MuJoCo's (y up, looking along -z)."""


def camera_spec(model: mujoco.MjModel, name: str, width: int, height: int) -> CameraSpec:
    """Intrinsics and extrinsics of a camera of the model; the base frame is the world's. ValueError for an unknown one."""
    index = camera_id(model, name)
    body = int(model.cam_bodyid[index])
    pose = np.eye(4)
    turned = np.empty(9)
    mujoco.mju_quat2Mat(turned, model.cam_quat[index])
    pose[:3, :3], pose[:3, 3] = turned.reshape(3, 3) @ _FLIP, model.cam_pos[index]
    mount = "base" if body == 0 else model.body(body).name
    return CameraSpec(name, width, height, focal_pixels(model, index, height), mount, tuple(pose.reshape(-1).tolist()))


class CameraRig:
    """The cameras of one MuJoCo scene. Close it when done; it belongs to the thread that created it.

    spec: what it adds to an observation.
    """

    def __init__(self, model: mujoco.MjModel, settings: CameraSettings) -> None:
        """Raises ValueError for a camera that the model lacks, RuntimeError for a backend that does not work here."""
        for name in settings.cameras:
            camera_id(model, name)
        self._model = model
        self._renderer = open_renderer(model, settings.width, settings.height, settings.backend)
        self.spec = CamerasSpec(
            replace(settings, backend=self._renderer.backend),
            tuple(camera_spec(model, name, settings.width, settings.height) for name in settings.cameras),
        )
        self._rays = {camera.name: pixel_rays(camera.intrinsics, camera.height, camera.width) for camera in self.spec.cameras}

    def space(self) -> dict[str, gymnasium.spaces.Space[Any]]:
        """A box per feature of `CamerasSpec.shapes`. A simulated camera's depth is known everywhere."""
        settings = self.spec.settings
        limits = {IMAGES: (0.0, 1.0), DEPTH: (0.0, settings.range_m), POINTS: (-np.inf, np.inf)}
        return {
            name: gymnasium.spaces.Box(*next(limits[kind] for kind in limits if name.startswith(kind)), shape, np.float32)
            for name, shape in self.spec.shapes().items()
        }

    def poses(self, data: mujoco.MjData) -> dict[str, np.ndarray]:
        """The present `[4, 4]` base_from_camera of every camera."""
        found = {}
        for camera in self.spec.cameras:
            index = camera_id(self._model, camera.name)
            pose = np.eye(4)
            pose[:3, :3], pose[:3, 3] = data.cam_xmat[index].reshape(3, 3) @ _FLIP, data.cam_xpos[index]
            found[camera.name] = pose
        return found

    def observe(self, data: mujoco.MjData, step: int) -> tuple[dict[str, np.ndarray], dict[str, int]]:
        """One frame of every feature, float32, and counts of its defects.

        step: number of the control step; the same scene, seed and step give the same cloud. Defects: ``unknown_pixels``
        (without depth, of all cameras together; they are left out of the cloud) and ``repeated_points`` (points that occur
        twice because the crop left fewer than N).
        Raises ValueError when no point is left for a cloud.
        """
        settings, features, unknown = self.spec.settings, {}, 0
        depths, colours = {}, {}
        for name in settings.cameras:
            if settings.images or settings.colours:
                rgb, depth = self._renderer.render(data, name)
                colours[name] = rgb.astype(np.float32) / np.float32(255)
            else:
                depth = self._renderer.depth(data, name)
            depths[name], holes = clean_depth(depth, settings.range_m)
            unknown += holes
            if settings.images:
                features[f"{IMAGES}.{name}"] = np.ascontiguousarray(colours[name].transpose(2, 0, 1))
            if settings.depth:
                features[f"{DEPTH}.{name}"] = depths[name][None].copy()
        repeated = 0
        if settings.num_points:
            rng = np.random.default_rng([settings.seed, step])
            features[POINTS], repeated = self._cloud(depths, colours, self.poses(data), rng)
        return features, {"unknown_pixels": unknown, "repeated_points": repeated}

    def close(self) -> None:
        self._renderer.close()

    def _cloud(
        self, depths: dict[str, np.ndarray], colours: dict[str, np.ndarray], poses: dict[str, np.ndarray],
        rng: np.random.Generator,
    ) -> tuple[np.ndarray, int]:  # fmt: skip
        """The fused cloud `[N, 3 + C]` float32, and how many of its points are repeated."""
        settings, points, point_colours = self.spec.settings, [], []
        for name, depth in depths.items():
            points_3P = deproject(self._rays[name], depth.reshape(-1), poses[name])
            # at range_m there is no surface; NaN compares false
            kept_P = in_box(points_3P, settings.crop_low, settings.crop_high) & (depth.reshape(-1) < settings.range_m)
            points.append(points_3P[:, kept_P].T)
            if settings.colours:
                point_colours.append(colours[name].reshape(-1, 3)[kept_P])
        points_M3 = np.concatenate(points)
        chosen_N, repeated = sample_points(points_M3, settings.num_points, settings.sampling, rng)
        parts = [points_M3[chosen_N], np.concatenate(point_colours)[chosen_N]] if settings.colours else [points_M3[chosen_N]]
        return np.concatenate(parts, axis=1).astype(np.float32), repeated
