"""What RLBench's cameras see lands where it is: frames, intrinsics, clouds, against the rendered scene's own geometry."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from envs.cameras.specs import CAMERAS, CameraSettings, check_camera_features
from envs.rlbench.rig import RLBENCH_NAMES, RLBenchCameraRig, camera_pose, unify_camera_spec
from envs.rlbench.spec import RLBenchSettings
from envs.rlbench.tree import StoredEpisode, episode
from envs.specs import DEPTH, IMAGES, POINTS

CROP = RLBenchSettings()
SETTINGS = CameraSettings(
    width=40, height=30, num_points=256, colours=True, sampling="random", crop_low=CROP.crop_low, crop_high=CROP.crop_high
)


@pytest.fixture(scope="module")
def stored(store_rlbench: Callable[..., Path]) -> StoredEpisode:
    return episode(store_rlbench(episodes=1, frames=3, size=[30, 40]), "reach_target", 0, 0)


def raw(stored: StoredEpisode, frame: int = 0) -> dict[str, np.ndarray]:
    names = list(RLBENCH_NAMES.values())
    found = {name: values[frame] for name, values in stored.low.items()} | {"base": stored.base}
    return found | {name: values[0] for name, values in stored.images([frame], names, rgb=True, depth=True).items()}


def ball(stored: StoredEpisode) -> np.ndarray:
    """Where the red ball is, in the base frame: the gripper ends there."""
    return stored.low["gripper_pose"][-1, :3] - stored.base


def test_features_are_as_their_spec_says(stored: StoredEpisode) -> None:
    rig = RLBenchCameraRig(SETTINGS, 0.01)
    with pytest.raises(RuntimeError, match="known after the first reset"):
        _ = rig.spec
    seen, counts, poses = rig.observe(raw(stored), 0)
    check_camera_features(seen, rig.spec)
    assert {name: values.shape for name, values in seen.items()} == rig.spec.shapes() == rig.shapes()
    assert set(poses) == set(CAMERAS) and counts["unknown_pixels"] == 0
    assert all(rig.space()[name].contains(values) for name, values in seen.items())


def test_every_camera_puts_the_ball_where_it_is(stored: StoredEpisode) -> None:
    """The red points of each camera alone lie on a sphere of 5 cm around the ball."""
    for name in ("front", "left", "right", "overhead"):
        seen, _, _ = RLBenchCameraRig(replace(SETTINGS, cameras=(name,), num_points=4000), 0.0).observe(raw(stored), 0)
        cloud = seen[POINTS]
        red = cloud[(cloud[:, 3] > 0.8) & (cloud[:, 4] < 0.1)]
        assert len(red) > 20, name
        np.testing.assert_allclose(np.linalg.norm(red[:, :3] - ball(stored), axis=1), 0.05, atol=2e-4)


def test_points_are_those_of_rlbenchs_own_formula(stored: StoredEpisode) -> None:
    """World = extrinsics * inverse(intrinsics) * (column, row, 1) * depth, with whole pixel numbers; then the base is moved."""
    frame = raw(stored)
    depth, matrix, pose = (frame[f"left_shoulder.{what}"] for what in ("depth", "intrinsics", "extrinsics"))
    column, row = np.meshgrid(np.arange(40), np.arange(30))
    pixels = np.stack([column, row, np.ones_like(row)]).reshape(3, -1) * depth.reshape(-1)
    world = (pose[:3, :3] @ np.linalg.inv(matrix) @ pixels + pose[:3, 3:]).T - stored.base
    low, high = np.array(CROP.crop_low), np.array(CROP.crop_high)
    expected = world[((world >= low) & (world <= high)).all(1) & (depth.reshape(-1) < 3.0)]
    settings = replace(SETTINGS, cameras=("left",), colours=False, num_points=len(expected))
    seen, counts, _ = RLBenchCameraRig(settings, 0.0).observe(frame, 0)
    assert counts["repeated_points"] == 0
    np.testing.assert_allclose(seen[POINTS], expected, atol=1e-5)


def test_the_focal_length_becomes_positive_and_the_axes_opencvs(stored: StoredEpisode) -> None:
    rig = RLBenchCameraRig(SETTINGS, 0.01)
    rig.observe(raw(stored), 0)
    front = rig.spec.camera("front")
    assert front.focal_px == 48.0 and not front.moves  # 1.2 x 40 pixels
    pose = front.extrinsics
    np.testing.assert_allclose(pose[:3, 3], np.array([1.3, 0.0, 1.5]) - stored.base, atol=1e-4)
    ahead = np.array([0.3, 0.0, 0.9]) - [1.3, 0.0, 1.5]
    np.testing.assert_allclose(pose[:3, 2], ahead / np.linalg.norm(ahead), atol=1e-4)
    np.testing.assert_allclose(pose[:3, 0], [0, 1, 0], atol=1e-4)  # it looks back at the robot: its right is the robot's left
    assert pose[2, 1] < 0 and np.linalg.det(pose[:3, :3]) == pytest.approx(1, abs=1e-3)
    # a point ahead of it falls on the picture's middle
    assert (front.intrinsics @ np.linalg.inv(pose)[:3] @ [*(np.array([0.3, 0.0, 0.9]) - stored.base), 1])[0] / 1.1662 == (
        pytest.approx(20, abs=0.01)
    )


def test_the_wrists_camera_hangs_on_the_hand(stored: StoredEpisode) -> None:
    rig = RLBenchCameraRig(SETTINGS, 0.01)
    specs = []
    for frame in (0, 2):
        _, _, poses = rig.observe(raw(stored, frame), frame)
        other = RLBenchCameraRig(SETTINGS, 0.01)
        other.observe(raw(stored, frame), 0)
        specs.append(other.spec.camera("wrist"))
        eye = stored.low["gripper_pose"][frame, :3] + [0.05, 0.0, 0.1] - stored.base
        np.testing.assert_allclose(poses["wrist"][:3, 3], eye, atol=1e-9)
    assert specs[0] == specs[1] and specs[0].mount == "hand"
    # the gripper is turned by half a turn about y: x and z change their signs
    np.testing.assert_allclose(specs[0].extrinsics[:3, 3], [-0.05, 0.0, -0.1], atol=1e-4)


def test_the_table_is_cropped_and_a_grid_thins_the_cloud(stored: StoredEpisode) -> None:
    settings = replace(SETTINGS, num_points=4096, colours=False)
    (fine, all_of_them, _), (thin, counts, _) = (
        RLBenchCameraRig(settings, side_m).observe(raw(stored), 0) for side_m in (0.0, 0.02)
    )
    assert min(fine[POINTS][:, 2].min(), thin[POINTS][:, 2].min()) > 0.004
    left = 4096 - counts["repeated_points"]
    assert left == len(np.unique(thin[POINTS], axis=0)) < (4096 - all_of_them["repeated_points"]) / 2
    # means of points on the ball lie within it, by less than the grid's side
    away = np.linalg.norm(thin[POINTS] - ball(stored), axis=1)
    assert away.min() > 0.03 and away.max() < 0.0502


def test_nothing_beyond_the_range_is_in_the_cloud(stored: StoredEpisode) -> None:
    settings = replace(SETTINGS, cameras=("front",), range_m=1.0, images=False, num_points=0, colours=False)
    seen, _, _ = RLBenchCameraRig(settings, 0.0).observe(raw(stored), 0)
    assert set(seen) == {f"{DEPTH}.front"} and seen[f"{DEPTH}.front"].max() == 1.0


def test_images_of_another_size_are_refused(stored: StoredEpisode) -> None:
    with pytest.raises(ValueError, match=r"camera front gives images of \(30, 40\) .*set observation.image_size"):
        RLBenchCameraRig(replace(SETTINGS, width=64, height=64), 0.01).observe(raw(stored), 0)


def test_cameras_that_draw_nothing_are_told(stored: StoredEpisode) -> None:
    settings = replace(SETTINGS, cameras=("front", "wrist"), num_points=0, colours=False)
    frame = raw(stored)
    black = {name: np.full_like(values, 1) if name.endswith((".rgb", ".depth")) else values for name, values in frame.items()}
    with pytest.raises(ValueError, match=r"cameras \['front', 'wrist'\] draw nothing.*--rlbench.renderer opengl"):
        RLBenchCameraRig(settings, 0.0).observe(black, 0)
    # one camera that is covered is no broken renderer
    RLBenchCameraRig(settings, 0.0).observe({**frame, "wrist.rgb": black["wrist.rgb"], "wrist.depth": black["wrist.depth"]}, 0)


def test_the_same_step_gives_the_same_cloud(stored: StoredEpisode) -> None:
    clouds = [RLBenchCameraRig(SETTINGS, 0.01).observe(raw(stored), step)[0][POINTS] for step in (3, 3, 4)]
    np.testing.assert_array_equal(clouds[0], clouds[1])
    assert not np.array_equal(clouds[0], clouds[2])


def test_colours_are_those_of_the_picture(stored: StoredEpisode) -> None:
    frame = raw(stored)
    seen, _, _ = RLBenchCameraRig(SETTINGS, 0.01).observe(frame, 0)
    np.testing.assert_allclose(seen[f"{IMAGES}.right"].transpose(1, 2, 0), frame["right_shoulder.rgb"] / 255, atol=1e-6)


def test_a_camera_that_jitters_is_the_same_and_one_that_was_moved_is_not(stored: StoredEpisode) -> None:
    from envs.cameras.frames import pack

    rig = RLBenchCameraRig(SETTINGS, 0.01)
    seen, counts, poses = rig.observe(raw(stored), 0)
    frames = pack(rig.spec, [seen], [counts], [poses])

    def moved(by_m: float) -> Any:
        cameras = [*rig.spec.cameras]
        pose = cameras[0].extrinsics
        pose[0, 3] += by_m
        cameras[0] = replace(cameras[0], mount_from_camera=tuple(pose.reshape(-1).tolist()))
        return replace(rig.spec, cameras=tuple(cameras))

    assert unify_camera_spec(frames, moved(0.0005)).spec == moved(0.0005)
    assert unify_camera_spec(frames, moved(0.01)).spec == rig.spec


def test_a_pose_is_moved_to_the_base_and_turned() -> None:
    pose = camera_pose(np.array([[1, 0, 0, 1.0], [0, 1, 0, 2], [0, 0, 1, 3], [0, 0, 0, 1]]), np.array([0.5, 0.0, 1.0]))
    np.testing.assert_array_equal(pose, [[-1, 0, 0, 0.5], [0, -1, 0, 2], [0, 0, 1, 2], [0, 0, 0, 1]])
