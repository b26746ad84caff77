"""The renderer's depth against closed forms, its orientation, and its backends against each other."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import mujoco
import numpy as np
import pytest

from envs.cameras import backends, render
from envs.cameras.backends import available_backends, open_renderer
from envs.cameras.raycast import RaycastRenderer, pinhole_rays
from envs.cameras.render import focal_pixels

ROOT = Path(__file__).resolve().parents[3]

# Camera 2 m above the table looking straight down: image right = world +x, image up = world +y.
# Box top at z = 0.2 (1.8 m away); red ball left, blue ball right, both 0.1 m in radius; a slab hidden below the box.
SCENE = """
<mujoco>
  <visual><map znear="0.01" zfar="10"/></visual>
  <statistic extent="1" center="0 0 0"/>
  <asset><material name="lime" rgba="0 1 0 1"/></asset>
  <worldbody>
    <geom type="plane" size="3 3 .1" rgba=".8 .8 .8 1"/>
    <geom type="box" size=".2 .1 .1" pos="0 0 .1" material="lime"/>
    <geom name="red" type="sphere" size=".1" pos="-.5 0 .1" rgba="1 0 0 1"/>
    <geom type="sphere" size=".1" pos=".5 0 .1" rgba="0 0 1 1"/>
    <geom type="sphere" size=".05" pos="0 .6 .05" rgba="1 1 0 1"/>
    <geom type="box" size=".5 .5 .5" pos="0 0 1.45" rgba="1 1 1 1" group="3"/>
    <geom type="sphere" size=".3" pos="0 0 1.2" rgba="1 1 1 0"/>
    <site type="sphere" size=".3" pos="0 0 1" rgba="1 0 1 1"/>
    <camera name="above" pos="0 0 2" fovy="60"/>
    <camera name="ahead" pos="0 -2 .5" xyaxes="1 0 0 0 0 1" fovy="45"/>
  </worldbody>
</mujoco>
"""
WIDTH, HEIGHT = 96, 64


@pytest.fixture(scope="module")
def scene():
    model = mujoco.MjModel.from_xml_string(SCENE)
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    return model, data


@pytest.fixture(scope="module", params=backends.BACKENDS)
def renderer(request, scene):
    reason = available_backends()[request.param]
    if reason:
        pytest.skip(f"{request.param}: {reason}")
    try:
        opened = open_renderer(scene[0], WIDTH, HEIGHT, request.param)
    except RuntimeError as error:  # where EGL works, OSMesa is tried by test_agreement.py, in processes of its own
        pytest.skip(str(error))
    with opened:
        yield opened


def _pixel(model, x, y, z):
    """(row, column) of a world point under the camera above, by hand: f = H/2 / tan 30 deg, depth = 2 - z."""
    focal = HEIGHT / 2 / np.tan(np.pi / 6)
    return int(HEIGHT / 2 - focal * y / (2 - z)), int(WIDTH / 2 + focal * x / (2 - z))


def test_shapes_and_kinds(renderer, scene):
    rgb, depth = renderer.render(scene[1], "above")
    assert rgb.shape == (HEIGHT, WIDTH, 3) and rgb.dtype == np.uint8
    assert depth.shape == (HEIGHT, WIDTH) and depth.dtype == np.float32
    assert renderer.backend in backends.BACKENDS


def test_depth_of_plane_and_box_by_hand(renderer, scene):
    _, depth = renderer.render(scene[1], "above")
    # the table is 2 m along the axis everywhere, also in the corners (along the ray it would be 2.6 m there)
    for row, column in ((0, 0), (0, -1), (-1, 0), (-1, -1)):
        assert depth[row, column] == pytest.approx(2.0, abs=2e-3)
    # the box's top at z = .2; the ball's top at z = .2 seen a little from the side, so within 2 cm of 1.8
    assert depth[HEIGHT // 2, WIDTH // 2] == pytest.approx(1.8, abs=2e-3)
    assert depth[_pixel(scene[0], -0.15, 0.08, 0.2)] == pytest.approx(1.8, abs=2e-3)
    assert depth[_pixel(scene[0], -0.5, 0.0, 0.2)] == pytest.approx(1.8, abs=2e-2)
    assert depth.min() >= 1.8 - 2e-3  # hidden groups, transparent geoms and sites are nowhere


def test_the_floor_from_the_side_by_hand(renderer, scene):
    _, depth = renderer.render(scene[1], "ahead")
    # camera 0.5 m up, looking level: a row v pixels under the centre meets the floor at 0.5 * f / v metres
    focal = HEIGHT / 2 / np.tan(np.deg2rad(22.5))
    row = HEIGHT - 2
    below = row + 0.5 - HEIGHT / 2
    assert depth[row, 2] == pytest.approx(0.5 * focal / below, rel=2e-3)
    assert depth[0, 0] == np.float32(renderer.far_m) == np.float32(10.0)


def test_red_is_left_blue_is_right_yellow_is_up(renderer, scene):
    rgb, _ = renderer.render(scene[1], "above")
    red, blue = rgb[_pixel(scene[0], -0.5, 0, 0.2)].astype(int), rgb[_pixel(scene[0], 0.5, 0, 0.2)].astype(int)
    up, middle = rgb[_pixel(scene[0], 0, 0.6, 0.1)].astype(int), rgb[HEIGHT // 2, WIDTH // 2].astype(int)
    assert red[0] > 2 * max(red[1], red[2]) and red[0] > 80
    assert blue[2] > 2 * max(blue[0], blue[1]) and blue[2] > 80
    assert min(up[0], up[1]) > 2 * up[2]
    assert middle[1] > 2 * max(middle[0], middle[2])  # the material's colour
    assert _pixel(scene[0], -0.5, 0, 0.2)[1] < WIDTH // 2 and _pixel(scene[0], 0, 0.6, 0.1)[0] < HEIGHT // 2


def test_near_hides_far(renderer, scene):
    rgb, depth = renderer.render(scene[1], "ahead")
    focal = HEIGHT / 2 / np.tan(np.deg2rad(22.5))
    row = int(HEIGHT / 2 + focal * 0.4 / 1.9)  # height 0.1: the box's front face, 1.9 m ahead, hides the yellow ball
    assert depth[row, WIDTH // 2] == pytest.approx(1.9, abs=4e-3)
    colour = rgb[row, WIDTH // 2].astype(int)
    assert colour[1] > 2 * max(colour[0], colour[2])


def test_nothing_is_the_background_colour(renderer, scene):
    rgb, _ = renderer.render(scene[1], "ahead")
    assert rgb[0, 0].tolist() == [round(255 * part) for part in render.BACKGROUND]


def test_moves_and_colours_are_seen(renderer, scene):
    model = mujoco.MjModel.from_xml_string(SCENE)
    data = mujoco.MjData(model)
    model.geom("red").rgba[:3] = (0, 1, 1)
    model.geom("red").pos[0] = -0.7
    mujoco.mj_forward(model, data)
    with open_renderer(model, WIDTH, HEIGHT, renderer.backend) as fresh:
        rgb, _ = fresh.render(data, "above")
    there = rgb[_pixel(model, -0.7, 0, 0.2)].astype(int)
    assert min(there[1], there[2]) > 2 * there[0]


def test_two_renderers_do_not_disturb_each_other(scene):
    model, data = scene
    with open_renderer(model, 32, 32) as small, open_renderer(model, 64, 48) as large:
        first = small.render(data, "above")[1]
        large.render(data, "above")
        assert np.array_equal(small.render(data, "above")[1], first)


def test_normals_from_depth_look_like_normals_from_geoms(scene):
    model, data = scene
    with RaycastRenderer(model, WIDTH, HEIGHT) as new, RaycastRenderer(model, WIDTH, HEIGHT) as old:
        old._from_geoms = False  # what an older MuJoCo does
        with_geoms, from_depth = new.render(data, "above")[0].astype(int), old.render(data, "above")[0].astype(int)
    assert np.median(np.abs(with_geoms - from_depth)) <= 1


MOVING = """
<mujoco>
  <worldbody>
    <light pos="0 0 3"/>
    <geom type="plane" size="3 3 .1" rgba=".8 .8 .8 1"/>
    <geom name="wall" type="box" size=".02 .3 .2" pos="0 .1 .2" rgba="0 1 0 1"/>
    <body name="ball" pos="-.4 0 .3"><freejoint/><geom type="sphere" size=".1" rgba="1 0 0 1"/>
      <geom type="capsule" fromto="0 0 0 .3 0 .2" size=".04" rgba="1 .5 0 1"/></body>
    <body name="pushed" mocap="true" pos=".4 0 .1"><geom type="cylinder" size=".1 .1" rgba="0 0 1 1"/></body>
    <camera name="above" pos="0 0 2" fovy="60"/>
    <camera name="ahead" pos="0 -2 .5" xyaxes="1 0 0 0 0 1" fovy="45"/>
  </worldbody>
</mujoco>
"""


def test_what_is_drawn_once_and_what_moves_make_the_picture_that_all_rays_make():
    """Also when the ball is in front of, behind and next to the camera, and the wall is moved and painted directly."""
    model = mujoco.MjModel.from_xml_string(MOVING)
    data = mujoco.MjData(model)
    rng = np.random.default_rng(0)
    with RaycastRenderer(model, WIDTH, HEIGHT) as clever, RaycastRenderer(model, WIDTH, HEIGHT) as plain:
        plain._fixed_cameras = set()
        for shot in range(30):
            data.qpos[:3] = rng.uniform((-1, -3, 0), (1, 1, 2.5))
            data.qpos[3:7] = rng.normal(size=4)
            data.mocap_pos[0] = rng.uniform((-1, -1, 0), (1, 1, 1))
            if shot % 10 == 9:
                model.geom("wall").pos[0] += 0.1
                model.geom("wall").rgba[:3] = rng.uniform(size=3)
            mujoco.mj_forward(model, data)
            for camera in ("above", "ahead"):
                for ours, theirs in zip(clever.render(data, camera), plain.render(data, camera), strict=True):
                    np.testing.assert_array_equal(ours, theirs)
                np.testing.assert_array_equal(clever.depth(data, camera), plain.render(data, camera)[1])


def test_rays_by_hand():
    rays = pinhole_rays(2, 2, focal=0.5)  # pixel centres half a pixel off the axis: 45 degrees in x and in y
    assert rays == pytest.approx(np.array([[-1, 1, -1], [1, 1, -1], [-1, -1, -1], [1, -1, -1]]) / np.sqrt(3))


def test_focal_by_hand(scene):
    assert focal_pixels(scene[0], 0, 64) == pytest.approx(32 * np.sqrt(3))


def test_auto_never_fails_when_gl_is_absent(scene, monkeypatch):
    monkeypatch.setattr(backends, "_probe", lambda name: "" if name == "raycast" else "no OpenGL here")
    with open_renderer(scene[0], 16, 16) as opened:
        assert opened.backend == "raycast"


def test_auto_goes_on_when_gl_fails_in_this_process(scene, monkeypatch):
    def broken(backend, *_):
        raise ImportError(f"{backend} cannot be loaded with another OpenGL")

    monkeypatch.setattr(backends, "_probe", lambda name: "")
    monkeypatch.setattr(backends, "_open", broken)
    with open_renderer(scene[0], 16, 16) as opened:
        assert opened.backend == "raycast"


def test_a_backend_asked_for_by_name_is_not_replaced(scene, monkeypatch):
    monkeypatch.setattr(backends, "_probe", lambda name: "library not found")
    with pytest.raises(RuntimeError, match="'egl' is not available .library not found.*raycast"):
        open_renderer(scene[0], 16, 16, "egl")


@pytest.mark.parametrize(("stub", "reason"), [("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "signal 11"),
                                              ("import time; time.sleep(30)", "did not answer")])  # fmt: skip
def test_a_backend_that_kills_or_hangs_is_only_a_reason(stub, reason, monkeypatch):
    monkeypatch.setattr(backends, "_PROBE", stub)
    monkeypatch.setattr(backends, "PROBE_SECONDS", 2)
    assert reason in backends._probe.__wrapped__("egl")


def test_mistakes_are_explained(scene):
    with pytest.raises(ValueError, match="did you mean 'above'"), open_renderer(scene[0], 8, 8, "raycast") as opened:
        opened.render(scene[1], "abvoe")
    with pytest.raises(ValueError, match="expected one of"):
        open_renderer(scene[0], 8, 8, "opengl")
    with pytest.raises(ValueError, match="expected at least 1 x 1"):
        open_renderer(scene[0], 0, 8, "raycast")


def test_leaving_a_renderer_open_does_not_break_the_exit():
    code = (
        "import mujoco; from envs.cameras.backends import open_renderer\n"
        "model = mujoco.MjModel.from_xml_string('<mujoco><worldbody><camera name=\"c\"/></worldbody></mujoco>')\n"
        "data = mujoco.MjData(model); mujoco.mj_forward(model, data)\n"
        "kept = open_renderer(model, 8, 8); kept.render(data, 'c')"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
