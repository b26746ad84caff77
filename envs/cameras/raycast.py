"""Colour and depth images by one ray per pixel, without OpenGL: the same images on every machine."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import mujoco
import numpy as np

from envs.cameras.render import VISIBLE_GROUPS, Renderer, background, camera_id, focal_pixels

_RAYS_GIVE_NORMALS = "normal:" in (mujoco.mj_multiRay.__doc__ or "")  # newer MuJoCo; else normals come from the depth's slope
_GROUPS = np.array(VISIBLE_GROUPS, np.uint8)
_CORNERS = np.array([(x, y, z) for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)], dtype=np.float64)
_NEAR_M = 1e-3
"""A box that comes nearer to the camera's plane than this may cover the whole image."""


@dataclass
class _StaticImage:
    """The image of the static geometry in a fixed camera, and what it was drawn from.

    key: everything the image depends on, as bytes. moving: the model with its static geometry hidden.
    world_P3: the rays in the world's frame. depth_P: [m]; rgb_P3: uint8.
    """

    key: tuple[bytes, ...]
    moving: mujoco.MjModel
    world_P3: np.ndarray
    depth_P: np.ndarray
    rgb_P3: np.ndarray


class RaycastRenderer(Renderer):
    """Images by one ray per pixel, without OpenGL. Depth equals OpenGL's; colours do not.

    Plain colours lit from the camera and from above, darker with distance; no textures and no transparency.
    For a camera fixed to the world the static geometry is drawn once; later frames cast only the rays that can hit a moving
    geom: the same image, two to three times as fast.
    """

    backend = "raycast"

    def __init__(self, model: mujoco.MjModel, width: int, height: int) -> None:
        super().__init__(model, width, height)
        pixels = width * height
        self._rays: dict[int, np.ndarray] = {}
        self._static_images: dict[int, _StaticImage] = {}
        self._geom = np.empty(pixels, np.int32)
        self._distance = np.empty(pixels, np.float64)
        self._normal = np.zeros((pixels, 3), np.float64)
        self._from_geoms = _RAYS_GIVE_NORMALS
        shown = np.isin(model.geom_group, np.flatnonzero(_GROUPS))
        moves = _bodies_that_move(model)
        self._fixed_cameras = set(np.flatnonzero(~moves[model.cam_bodyid]).tolist())
        self._fixed_G, self._moving_G = (np.flatnonzero(which[model.geom_bodyid]) for which in (~moves, moves))
        self._boxed_G = self._moving_G[shown[self._moving_G]]
        centre, half = model.geom_aabb[self._boxed_G, None, :3], model.geom_aabb[self._boxed_G, None, 3:]
        self._boxes_G83 = centre + half * _CORNERS

    def render(self, data: mujoco.MjData, camera: str) -> tuple[np.ndarray, np.ndarray]:
        depth_P, rgb_P3 = self._image(data, camera, coloured=True)
        assert rgb_P3 is not None
        return rgb_P3.reshape(self.height, self.width, 3), depth_P.astype(np.float32).reshape(self.height, self.width)

    def depth(self, data: mujoco.MjData, camera: str) -> np.ndarray:
        return self._image(data, camera, coloured=False)[0].astype(np.float32).reshape(self.height, self.width)

    def _image(self, data: mujoco.MjData, camera: str, coloured: bool) -> tuple[np.ndarray, np.ndarray | None]:
        """Depth `[P]` and colours `[P, 3]`; None instead of colours unless `coloured`."""
        index = camera_id(self.model, camera)
        if index not in self._rays:
            self._rays[index] = pinhole_rays(self.width, self.height, focal_pixels(self.model, index, self.height))
        forward_P = self._rays[index][:, 2]
        if index not in self._fixed_cameras or not self._from_geoms:
            return self._draw(self.model, data, index, self._world_rays(data, index), forward_P, coloured)
        static = self._static_image(data, index)
        depth_P, rgb_P3 = static.depth_P.copy(), static.rgb_P3.copy() if coloured else None
        pixels_R = np.flatnonzero(self._may_move(data, index))
        if len(pixels_R):
            world_R3 = static.world_P3[pixels_R]
            depth_R, rgb_R3 = self._draw(static.moving, data, index, world_R3, forward_P[pixels_R], coloured)
            before_R = depth_R < static.depth_P[pixels_R]
            depth_P[pixels_R[before_R]] = depth_R[before_R]
            if rgb_P3 is not None and rgb_R3 is not None:
                rgb_P3[pixels_R[before_R]] = rgb_R3[before_R]
        return depth_P, rgb_P3

    def _static_image(self, data: mujoco.MjData, index: int) -> _StaticImage:
        model, fixed_G = self.model, self._fixed_G
        parts = (
            data.cam_xpos[index], data.cam_xmat[index], data.geom_xpos[fixed_G], data.geom_xmat[fixed_G],
            model.geom_size, model.geom_rgba, model.mat_rgba, model.geom_group,
        )  # fmt: skip
        key = tuple(part.tobytes() for part in parts)
        # a task may move or recolour static geometry
        if index not in self._static_images or self._static_images[index].key != key:
            world_P3 = self._world_rays(data, index)
            fixed = _without(model, self._moving_G)
            depth_P, rgb_P3 = self._draw(fixed, data, index, world_P3, self._rays[index][:, 2], coloured=True)
            assert rgb_P3 is not None
            self._static_images[index] = _StaticImage(key, _without(model, fixed_G), world_P3, depth_P, rgb_P3)
        return self._static_images[index]

    def _may_move(self, data: mujoco.MjData, index: int) -> np.ndarray:
        """`[P]` bool: pixels in a rectangle around the bounding box of a moving geom."""
        reached = np.zeros((self.height, self.width), bool)
        if not len(self._boxed_G):
            return reached.reshape(-1)
        turn_G33 = data.geom_xmat[self._boxed_G].reshape(-1, 3, 3)
        world_G83 = data.geom_xpos[self._boxed_G, None] + self._boxes_G83 @ turn_G33.transpose(0, 2, 1)
        corner_G83 = (world_G83 - data.cam_xpos[index]) @ data.cam_xmat[index].reshape(3, 3)
        ahead_G8 = -corner_G83[..., 2]
        if not ahead_G8.min() > _NEAR_M:  # at or behind the camera's plane, or not finite
            behind_G = ~(ahead_G8.min(axis=1) > _NEAR_M)
            reached[:] = bool((behind_G & ~(ahead_G8.max(axis=1) <= 0)).any())
            corner_G83, ahead_G8 = corner_G83[~behind_G], ahead_G8[~behind_G]
        focal = focal_pixels(self.model, index, self.height)
        across_G8 = self.width / 2 + focal * corner_G83[..., 0] / ahead_G8
        down_G8 = self.height / 2 - focal * corner_G83[..., 1] / ahead_G8
        size = np.array([self.height, self.width, self.height, self.width])
        edges = (down_G8.min(axis=1), across_G8.min(axis=1), down_G8.max(axis=1) + 1, across_G8.max(axis=1) + 1)
        for top, left, bottom, right in np.clip(np.stack(edges, axis=1), 0, size).astype(int).tolist():
            reached[top:bottom, left:right] = True
        return reached.reshape(-1)

    def _world_rays(self, data: mujoco.MjData, index: int) -> np.ndarray:
        return np.ascontiguousarray(self._rays[index] @ data.cam_xmat[index].reshape(3, 3).T)

    def _draw(
        self, model: mujoco.MjModel, data: mujoco.MjData, index: int, world_R3: np.ndarray, forward_R: np.ndarray,
        coloured: bool,
    ) -> tuple[np.ndarray, np.ndarray | None]:  # fmt: skip
        """Depth `[R]` [m] and colours `[R, 3]` uint8 along rays; `forward_R`: their components along the camera's z."""
        count = len(world_R3)
        geom_R, distance_R, normal_R3 = self._geom[:count], self._distance[:count], self._normal[:count]
        wanted = {"normal": normal_R3.reshape(-1) if self._from_geoms and coloured else None} if _RAYS_GIVE_NORMALS else {}
        mujoco.mj_multiRay(
            m=model, d=data, pnt=data.cam_xpos[index], vec=world_R3.reshape(-1), geomgroup=_GROUPS, flg_static=1,
            bodyexclude=-1, geomid=geom_R, dist=distance_R, nray=count, cutoff=mujoco.mjMAXVAL, **wanted,
        )  # fmt: skip
        depth_R = -distance_R * forward_R
        missed_R = (geom_R < 0) | (depth_R >= self.far_m)
        depth_R[missed_R] = self.far_m
        if not coloured:
            return depth_R, None
        if not self._from_geoms:
            depth = depth_R.astype(np.float32).reshape(self.height, self.width)
            normal_R3 = self._normals_of(depth, index) @ data.cam_xmat[index].reshape(3, 3).T
        toward_R = np.einsum("rk,rk->r", normal_R3, world_R3)  # > 0: this normal points away from the camera and is flipped
        light_R = 0.35 + 0.35 * np.abs(toward_R) + 0.4 * np.maximum(-np.sign(toward_R) * normal_R3[:, 2], 0.0)
        light_R *= 255.0 / (1.0 + 0.03 * depth_R)
        rgb_R3 = np.minimum(self._colours()[geom_R] * light_R[:, None] + 0.5, 255.5).astype(np.uint8)
        rgb_R3[missed_R] = background()
        return depth_R, rgb_R3

    def _colours(self) -> np.ndarray:
        """`[G, 3]` present colour of every geom (a task may recolour): its own, or its material's when it has none."""
        colours_G3 = self.model.geom_rgba[:, :3].copy()
        unset = np.array((0.5, 0.5, 0.5, 1.0), np.float32)
        plain = np.all(self.model.geom_rgba == unset, axis=1) & (self.model.geom_matid >= 0)
        colours_G3[plain] = self.model.mat_rgba[self.model.geom_matid[plain], :3]
        return colours_G3

    def _normals_of(self, depth: np.ndarray, index: int) -> np.ndarray:
        """`[P, 3]` unit normals in the camera's frame from the slope of the depth image."""
        rays_P3 = self._rays[index]
        points = (rays_P3 / -rays_P3[:, 2:]).reshape(*depth.shape, 3) * depth[..., None]
        across = np.gradient(points, axis=1) if self.width > 1 else np.broadcast_to([1.0, 0, 0], points.shape)
        down = np.gradient(points, axis=0) if self.height > 1 else np.broadcast_to([0, 1.0, 0], points.shape)
        normals = np.cross(across, down).reshape(-1, 3)
        return normals / np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-12)


def pinhole_rays(width: int, height: int, focal: float) -> np.ndarray:
    """`[H*W, 3]` unit rays through pixel centres, row by row from the top left; x right, y up, looking along -z."""
    column, row = np.meshgrid(np.arange(width) + 0.5 - width / 2, np.arange(height) + 0.5 - height / 2)
    rays = np.stack([column / focal, -row / focal, -np.ones_like(row)], axis=-1).reshape(-1, 3)
    return rays / np.linalg.norm(rays, axis=1, keepdims=True)


def _bodies_that_move(model: mujoco.MjModel) -> np.ndarray:
    """`[bodies]` bool: moved by a joint, or set directly (mocap)."""
    moves = np.zeros(model.nbody, bool)
    for body in range(1, model.nbody):  # parents come before their children
        by_itself = model.body_weldid[body] != 0 or model.body_mocapid[body] >= 0
        moves[body] = by_itself or moves[model.body_parentid[body]]
    return moves


def _without(model: mujoco.MjModel, geoms: np.ndarray) -> mujoco.MjModel:
    """A copy of the model in which these geoms are in a group that is not drawn."""
    changed = copy.copy(model)
    changed.geom_group[geoms] = len(VISIBLE_GROUPS) - 1
    return changed
