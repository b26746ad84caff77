"""Clouds against brute force and against the sizes of what stands in the scene; holes in depth; too few points."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import envs
from envs.cameras.backends import open_renderer
from envs.cameras.clouds import clean_depth, deproject, farthest_points, in_box, pixel_rays, sample_points, voxel_downsample
from envs.cameras.specs import CameraSettings
from envs.panda import avoid, detour, handles
from envs.panda.base import PandaEnv
from envs.specs import DEPTH, POINTS

FINE = CameraSettings(width=600, height=600, images=False, depth=False, num_points=400_000, sampling="random")
"""A pixel is about 1 mm on the table, and N is more than is seen, so that every point is in the cloud."""


# -- by hand -----------------------------------------------------------------------------------------------------------


def test_what_no_measurement_can_be_is_unknown_and_counted() -> None:
    depth = np.array([[1.0, np.nan, np.inf, -np.inf], [0.0, -1.0, 5.0, 0.25]], np.float32)
    known, count = clean_depth(depth, range_m=3.0)
    np.testing.assert_array_equal(known, np.array([[1, np.nan, np.nan, np.nan], [np.nan, np.nan, 3, 0.25]], np.float32))
    assert count == 5 and known.dtype == np.float32
    assert np.isinf(depth[0, 2])  # the caller's image is left as it was


def test_a_pixel_becomes_a_point_by_hand() -> None:
    intrinsics = np.array([[2.0, 0, 2], [0, 2.0, 1], [0, 0, 1]])  # 4 x 2 pixels, focal length 2
    rays_3P = pixel_rays(intrinsics, height=2, width=4)
    assert rays_3P[:, 0].tolist() == [-0.75, -0.25, 1] and rays_3P[:, 7].tolist() == [0.75, 0.25, 1]
    pose = np.array([[0, -1, 0, 10], [-1, 0, 0, 20], [0, 0, -1, 30], [0, 0, 0, 1.0]])
    point = deproject(rays_3P[:, :1], np.array([4.0]), pose)[:, 0]  # (-3, -1, 4) in the camera's frame
    assert point.tolist() == [11, 23, 26]


def test_inside_by_hand() -> None:
    points_3P = np.array([[0, 0, 0], [1, 1, 1], [0.5, 0.5, 2], [np.nan, 0.5, 0.5]]).T
    assert in_box(points_3P, (0, 0, 0), (1, 1, 1)).tolist() == [True, True, False, False]


def test_farthest_points_against_brute_force() -> None:
    points_M3 = np.random.default_rng(0).normal(size=(80, 3)) + 5
    taken = [0]
    while len(taken) < 25:
        gaps = np.linalg.norm(points_M3[:, None] - points_M3[None, taken], axis=2).min(axis=1)
        taken.append(int(gaps.argmax()))
    assert farthest_points(points_M3, 25).tolist() == taken


def test_farthest_takes_no_point_twice_not_even_where_many_are_alike() -> None:
    points_M3 = np.repeat(np.random.default_rng(0).normal(size=(5, 3)), 4, axis=0)
    chosen = farthest_points(points_M3, 12)
    assert len(set(chosen.tolist())) == 12
    assert len(np.unique(points_M3[chosen[:5]], axis=0)) == 5


@pytest.mark.parametrize("sampling", ["farthest", "random"])
def test_a_cloud_of_n_points_is_seeded_and_without_repeats(sampling: str) -> None:
    points_M3 = np.random.default_rng(0).normal(size=(500, 3))
    (one, repeated), (again, _), (other, _) = (
        sample_points(points_M3, 40, sampling, np.random.default_rng(s)) for s in (1, 1, 2)
    )
    assert repeated == 0 and len(set(one.tolist())) == 40
    assert one.tolist() == again.tolist() != other.tolist()


def test_too_few_points_are_all_taken_and_the_rest_repeats_them() -> None:
    points_M3 = np.arange(21.0).reshape(7, 3)
    for sampling in ("farthest", "random"):
        chosen, repeated = sample_points(points_M3, 10, sampling, np.random.default_rng(0))
        assert repeated == 3 and chosen[:7].tolist() == list(range(7)) and set(chosen[7:].tolist()) <= set(range(7))
        assert sample_points(points_M3, 7, sampling, np.random.default_rng(0))[1] == 0
    with pytest.raises(ValueError, match="no point is left for the cloud.*crop box"):
        sample_points(np.zeros((0, 3)), 10, "random", np.random.default_rng(0))


# -- of the tasks ------------------------------------------------------------------------------------------------------


def extents(points_N3: np.ndarray, low: Any, high: Any) -> tuple[np.ndarray, np.ndarray]:
    """Least and greatest x, y, z of the points in a box."""
    chosen = points_N3[in_box(points_N3.T, low, high)]
    assert len(chosen) > 1000
    return chosen.min(axis=0), chosen.max(axis=0)


def has_size(points_N3: np.ndarray, middle: Any, half: Any, height: float, tolerance_m: float = 0.002) -> None:
    """What stands on the table round `middle [2]` reaches `half [2]` to each side, and `height` up."""
    middle, half = np.array(middle), np.array(half)
    low, high = extents(points_N3, (*(middle - half - 0.012), 0.004), (*(middle + half + 0.012), height + 0.012))
    np.testing.assert_allclose(low[:2], middle - half, atol=tolerance_m)
    np.testing.assert_allclose(high[:2], middle + half, atol=tolerance_m)
    assert high[2] == pytest.approx(height, abs=tolerance_m)


@pytest.fixture(scope="module", params=["raycast", "egl"])
def backend(request: pytest.FixtureRequest) -> str:
    try:
        with open_renderer(envs.make("avoid").model, 8, 8, request.param):
            return str(request.param)
    except RuntimeError as error:
        pytest.skip(str(error))


def full_cloud(task: str, start: tuple[float, ...], backend: str) -> np.ndarray:
    env = envs.make(task, cameras=replace(FINE, backend=backend))
    observation, info = env.reset(options={"start": np.array(start)})
    found = FINE.num_points - info["cameras"]["repeated_points"]
    env.close()
    assert 50_000 < found < FINE.num_points
    cloud: np.ndarray = observation[POINTS][:found]
    return cloud


def test_the_cube_and_the_pillar_have_their_sizes(backend: str) -> None:
    points_N3 = full_cloud("detour", (0.36, 0.02, 0.345, -0.02, 0.135), backend)
    has_size(points_N3, (0.36, 0.02), (detour.CUBE_HALF_M,) * 2, 2 * detour.CUBE_HALF_M)
    has_size(points_N3, detour.PILLAR_XY, (detour.PILLAR_RADIUS_M,) * 2, detour.PILLAR_HEIGHT_M)


def test_the_tray_has_its_size(backend: str) -> None:
    points_N3 = full_cloud("handles", (0.51, -0.01, 0.48, -0.012, 0.17), backend)
    middle, half = (0.51, -0.01), (handles.DECK_HALF[0], handles.HANDLE_Y_M + handles.HANDLE_HALF[1])
    has_size(points_N3, middle, half, 2 * handles.HANDLE_HALF[2])
    low, high = extents(points_N3, (0.43, -0.01 - 0.08, 0.004), (0.59, -0.01 + 0.08, 0.08))
    assert high[2] == pytest.approx(2 * handles.DECK_HALF[2], abs=0.002)


def test_the_pillars_have_their_sizes(backend: str) -> None:
    points_N3 = full_cloud("avoid", (0.30, 0.0), backend)
    for x, ys in avoid.ROWS:
        for y in ys:
            has_size(points_N3, (x, y), (avoid.PILLAR_RADIUS_M,) * 2, avoid.PILLAR_HEIGHT_M)


@pytest.mark.parametrize("sampling", ["farthest", "random"])
def test_the_table_is_cropped_and_the_cube_gets_its_share(sampling: str) -> None:
    env = envs.make("detour", cameras=CameraSettings(images=False, depth=False, sampling=sampling))
    start = {"start": np.array([0.36, 0.02, 0.345, -0.02, 0.135])}
    points_N3 = env.reset(options=start)[0][POINTS]
    assert points_N3[:, 2].min() >= 0.004
    on_cube = in_box(points_N3.T, (0.335, -0.005, 0.0), (0.385, 0.045, 0.045))
    assert on_cube.sum() >= 10
    np.testing.assert_array_equal(points_N3, env.reset(options=start)[0][POINTS])
    env.close()


# -- holes -------------------------------------------------------------------------------------------------------------


def with_holes(env: PandaEnv, monkeypatch: pytest.MonkeyPatch, camera: str, holes: Any, value: float) -> None:
    """From now on the depth of a camera has `value` in `holes`."""
    assert env.camera_rig is not None
    depth = env.camera_rig._renderer.depth

    def spoiled(data: Any, name: str) -> np.ndarray:
        image = depth(data, name).copy()
        if camera in (name, "all"):
            image[holes] = value
        return image

    monkeypatch.setattr(env.camera_rig._renderer, "depth", spoiled)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 0.0])
def test_holes_are_unknown_counted_and_never_points(value: float, monkeypatch: pytest.MonkeyPatch) -> None:
    env = envs.make("detour", cameras=CameraSettings(images=False, num_points=256, sampling="random"))
    clean = env.reset(seed=0)[0]
    with_holes(env, monkeypatch, "front", np.s_[10:20], value)
    seen = env.observe_cameras()
    assert env.camera_defects["unknown_pixels"] == 10 * 64
    assert np.isnan(seen[f"{DEPTH}.front"][0, 10:20]).all() and np.isnan(seen[f"{DEPTH}.front"]).sum() == 10 * 64
    np.testing.assert_array_equal(seen[f"{DEPTH}.front"][0, 20:], clean[f"{DEPTH}.front"][0, 20:])
    np.testing.assert_array_equal(seen[f"{DEPTH}.left"], clean[f"{DEPTH}.left"])
    low, high = env.camera_rig.spec.settings.crop_low, env.camera_rig.spec.settings.crop_high  # type: ignore[union-attr]
    assert np.isfinite(seen[POINTS]).all() and in_box(seen[POINTS].T, np.array(low) - 1e-6, np.array(high) + 1e-6).all()  # type: ignore[arg-type]
    env.close()


def test_cameras_that_see_nearly_nothing_repeat_points_and_blind_ones_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    env = envs.make("detour", cameras=CameraSettings(images=False, num_points=256))
    env.reset(seed=0)
    with_holes(env, monkeypatch, "all", np.s_[:30], np.nan)
    with_holes(env, monkeypatch, "all", np.s_[32:], np.nan)
    cloud = env.observe_cameras()[POINTS]
    found = len(np.unique(cloud, axis=0))
    assert 0 < found < 256 and env.camera_defects == {"unknown_pixels": 5 * 62 * 64, "repeated_points": 256 - found}
    with_holes(env, monkeypatch, "all", np.s_[:], np.nan)
    with pytest.raises(ValueError, match="no point is left for the cloud"):
        env.observe_cameras()
    env.close()


def test_one_point_stands_for_each_cube_of_a_grid() -> None:
    cloud = np.array([[0.01, 0.0, 0.0, 1.0], [0.09, 0.0, 0.0, 0.0], [0.11, 0.0, 0.0, 0.5], [-0.01, 0.05, 0.35, 0.2]])
    means = voxel_downsample(cloud, 0.1)
    np.testing.assert_allclose(means, [[-0.01, 0.05, 0.35, 0.2], [0.05, 0, 0, 0.5], [0.11, 0, 0, 0.5]])
    np.testing.assert_allclose(voxel_downsample(cloud[:, :3], 10.0), [[-0.01, 0.05, 0.35], cloud[:3, :3].mean(0)])


def test_a_grid_against_a_dictionary() -> None:
    cloud = np.random.default_rng(0).uniform(-1, 1, (500, 3))
    cubes: dict[tuple[int, ...], list[np.ndarray]] = {}
    for point in cloud:
        cubes.setdefault(tuple(np.floor(point / 0.25).astype(int).tolist()), []).append(point)
    np.testing.assert_allclose(voxel_downsample(cloud, 0.25), [np.mean(cubes[cube], axis=0) for cube in sorted(cubes)])
    with pytest.raises(ValueError, match="above 0 m, got 0"):
        voxel_downsample(cloud, 0)
