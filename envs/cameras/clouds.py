"""From depth images to one point cloud of fixed size in the robot's base frame: pure functions on arrays."""

from __future__ import annotations

import numpy as np

FARTHEST_CANDIDATES = 4
"""Farthest-point sampling starts from at most this many times N points, drawn uniformly, because its cost grows with them."""


def clean_depth(depth: np.ndarray, range_m: float) -> tuple[np.ndarray, int]:
    """Depth float32 [m] of any shape, NaN where unknown, clipped at `range_m`; and the number of unknown pixels.

    NaN, infinity, zero and negative values are unknown. They are never replaced by a number.
    """
    depth = np.asarray(depth, dtype=np.float32)
    unknown = ~(np.isfinite(depth) & (depth > 0))
    count = int(np.count_nonzero(unknown))
    clipped = np.minimum(depth, np.float32(range_m))
    if count:
        clipped[unknown] = np.nan
    return clipped, count


def pixel_rays(intrinsics: np.ndarray, height: int, width: int) -> np.ndarray:
    """`[3, H*W]` rays through the pixel centres, row by row, with z = 1 in the camera's frame: times depth, a point."""
    column, row = np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5)
    rays_3P: np.ndarray = np.linalg.inv(intrinsics) @ np.stack([column, row, np.ones_like(row)]).reshape(3, -1)
    return rays_3P


def deproject(rays_3P: np.ndarray, depth_P: np.ndarray, base_from_camera: np.ndarray) -> np.ndarray:
    """Points `[3, P]` in the base frame [m]. rays_3P: of `pixel_rays`; depth_P: [m]; base_from_camera: `[4, 4]`."""
    points_3P: np.ndarray = (base_from_camera[:3, :3] @ rays_3P) * depth_P + base_from_camera[:3, 3:]
    return points_3P


def in_box(points_3P: np.ndarray, low: tuple[float, ...], high: tuple[float, ...]) -> np.ndarray:
    """`[P]` bool: which points lie in the box; never one with NaN."""
    within = np.ones(points_3P.shape[1], dtype=bool)
    for along_P, least, most in zip(points_3P, low, high, strict=True):
        within &= (along_P >= least) & (along_P <= most)
    return within


def voxel_downsample(cloud_MD: np.ndarray, side_m: float) -> np.ndarray:
    """The mean of the points `[D]` (xyz [m], then other features) in each occupied voxel.

    In the order of the voxels, x first. Raises ValueError for a side that is not above 0.
    """
    if side_m <= 0:
        raise ValueError(f"the grid's side must be above 0 m, got {side_m}")
    cell_M3 = np.floor(cloud_MD[:, :3] / side_m).astype(np.int64)
    cell_M3 -= cell_M3.min(axis=0)
    span = cell_M3.max(axis=0) + 1
    number_M = (cell_M3[:, 0] * span[1] + cell_M3[:, 1]) * span[2] + cell_M3[:, 2]
    _, cube_M, count_V = np.unique(number_M, return_inverse=True, return_counts=True)
    sums_VD = np.stack([np.bincount(cube_M, column, len(count_V)) for column in cloud_MD.T], axis=1)
    return sums_VD / count_V[:, None]


def sample_points(points_M3: np.ndarray, count: int, sampling: str, rng: np.random.Generator) -> tuple[np.ndarray, int]:
    """Indices `[count]` of the points that form the cloud, and how many of them repeat another.

    sampling: ``farthest`` or ``random``. With fewer than `count` points all are taken, and the rest are drawn among them with
    replacement. Raises ValueError without points.
    """
    found = len(points_M3)
    if found == 0:
        raise ValueError("no point is left for the cloud: nothing known lies in the crop box; widen it or look elsewhere")
    if found <= count:
        return np.concatenate([np.arange(found), rng.integers(0, found, count - found)]), count - found
    if sampling == "random":
        return rng.permutation(found)[:count], 0
    some = rng.permutation(found)[: FARTHEST_CANDIDATES * count]
    return some[farthest_points(points_M3[some], count)], 0


def farthest_points(points_M3: np.ndarray, count: int) -> np.ndarray:
    """Indices `[count]` by farthest-point sampling: the first point, then always the farthest from all taken (count <= M)."""
    points_M3 = np.asarray(points_M3, dtype=np.float32) - np.float32(points_M3.mean(axis=0))
    square_M1, one_M1 = np.square(points_M3).sum(axis=1, keepdims=True), np.ones((len(points_M3), 1), np.float32)
    # |p - q|^2 = (-2 p, |p|^2, 1) . (q, 1, |q|^2): one product per round instead of ten small operations
    left_5M = np.ascontiguousarray(np.concatenate([-2 * points_M3, square_M1, one_M1], axis=1).T)
    right_M5 = np.concatenate([points_M3, one_M1, square_M1], axis=1)
    taken = np.zeros(count, dtype=np.int64)
    gap_M, to_last_M = np.full(len(points_M3), np.inf, dtype=np.float32), np.empty(len(points_M3), np.float32)
    for number in range(1, count):
        np.dot(right_M5[taken[number - 1]], left_5M, out=to_last_M)
        np.minimum(gap_M, to_last_M, out=gap_M)
        gap_M[taken[number - 1]] = -1.0  # rounding must not let a point be taken twice
        taken[number] = gap_M.argmax()
    return taken
