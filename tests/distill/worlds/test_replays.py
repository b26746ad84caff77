"""Plans drawn over a camera's frames: where they fall in the picture, and that the rest of it stays."""

from __future__ import annotations

import numpy as np
import pytest

import envs
from distill.worlds.replays import draw_plans, to_pixels
from envs.cameras.backends import open_renderer
from envs.cameras.rig import camera_spec
from envs.cameras.specs import CameraSpec

# 1 m above the origin, looking down: its x is the base's x, its y (down in the picture) the base's -y
ABOVE = (1.0, 0, 0, 0, 0, -1.0, 0, 0, 0, 0, -1.0, 1.0, 0, 0, 0, 1.0)


def test_points_fall_on_the_pixels_computed_by_hand() -> None:
    camera = CameraSpec("above", 40, 20, 100.0, mount_from_camera=ABOVE)
    points = np.array([[0.0, 0, 0], [0.1, 0, 0], [0, 0.05, 0.5], [0, 0, 2.0]])
    # the last one is behind the camera
    np.testing.assert_allclose(to_pixels(points, camera), [[20, 10], [30, 10], [20, 0]], atol=1e-9)


def test_what_is_drawn_lies_on_what_is_rendered() -> None:
    """The cube's place in the left camera's picture, where nothing stands before it, has the depth that it has."""
    env = envs.make("detour")
    env.reset(seed=3)
    cube = env.object_position()
    assert cube is not None
    view = camera_spec(env.model, "left", 320, 240)
    column, row = to_pixels(np.array([cube]), view)[0]
    with open_renderer(env.model, 320, 240) as renderer:
        depth = renderer.render(env.data, "left")[1]
    env.close()
    along = (cube - view.extrinsics[:3, 3]) @ view.extrinsics[:3, 2]
    # the surface is nearer than the middle, by at most the cube's diagonal
    assert 0 < along - depth[int(row), int(column)] < 0.05


def test_lines_change_only_the_pixels_they_pass() -> None:
    frame = np.full((8, 10, 3), 200, np.uint8)
    drawn = draw_plans(frame, [np.array([[1.0, 4], [8, 4]])])
    changed = np.argwhere((drawn != frame).any(-1))
    assert sorted(map(tuple, changed.tolist())) == [(4, column) for column in range(1, 9)]
    twice = draw_plans(drawn, [np.array([[1.0, 4], [8, 4]])])
    assert twice[4, 4, 2] < drawn[4, 4, 2] < frame[4, 4, 2]
    assert draw_plans(frame, []).tolist() == frame.tolist()


def test_targets_are_where_the_actions_send_the_tool() -> None:
    env = envs.make("detour")
    env.reset(seed=0)
    targets = env.targets(np.array([[0.5, 0.1, 0.12, 0.04], [0.45, -0.1, 0.1, 0.0]], np.float32))
    env.close()
    assert targets == pytest.approx(np.array([[0.5, 0.1, 0.12], [0.45, -0.1, 0.1]]), abs=1e-6)
