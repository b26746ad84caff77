"""Where cameras are and what they see, against points whose place is known; the observation with and without them."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import gymnasium
import numpy as np
import pytest

import envs
from envs.cameras.specs import CAMERAS, CameraSettings, CameraSpec, CamerasSpec, check_camera_features
from envs.panda.base import PandaEnv
from envs.specs import DEPTH, IMAGES, POINTS, STATE

SMALL = CameraSettings(width=24, height=20, num_points=32, sampling="random")
TASKS = sorted(envs.TASKS)


@pytest.fixture(scope="module", params=TASKS)
def seeing(request: pytest.FixtureRequest) -> Any:
    """Every task with every camera, just reset."""
    env = envs.make(request.param, cameras=SMALL)
    env.reset(seed=1)
    yield env
    env.close()


def spec_of(env: PandaEnv) -> CamerasSpec:
    assert env.camera_rig is not None
    return env.camera_rig.spec


# -- names, shapes, contract -------------------------------------------------------------------------------------------


def test_every_observation_holds_what_the_spec_names_beside_the_state(seeing: PandaEnv) -> None:
    first, info = seeing.reset(seed=1)
    second, _, _, _, later = seeing.step(seeing.action_space.sample())
    expected = {f"{kind}.{camera}": shape for camera in CAMERAS for kind, shape in
                ((IMAGES, (3, 20, 24)), (DEPTH, (1, 20, 24)))} | {POINTS: (32, 3)}  # fmt: skip
    for observation in (first, second):
        assert {name: values.shape for name, values in observation.items() if name != STATE} == expected
        assert all(values.dtype == np.float32 for values in observation.values())
        assert seeing.observation_space.contains(observation)
        check_camera_features(observation, spec_of(seeing))
    assert spec_of(seeing).shapes() == expected
    assert info["cameras"] == later["cameras"] == {"unknown_pixels": 0, "repeated_points": 0}
    assert not np.array_equal(first[f"{DEPTH}.wrist"], second[f"{DEPTH}.wrist"])  # the hand has moved


def test_only_what_is_asked_for() -> None:
    env = envs.make("detour", cameras=replace(SMALL, cameras=("wrist",), images=False, num_points=0))
    assert set(env.reset(seed=0)[0]) == {STATE, f"{DEPTH}.wrist"}
    env.open_cameras(replace(SMALL, cameras=("front", "left"), depth=False, colours=True))
    observation = env.reset(seed=0)[0]
    assert set(observation) == {STATE, f"{IMAGES}.front", f"{IMAGES}.left", POINTS}
    assert observation[POINTS].shape == (32, 6)
    assert observation[POINTS][:, 3:].min() >= 0 and 0 < observation[POINTS][:, 3:].max() <= 1
    env.close()
    assert set(env.reset(seed=0)[0]) == set(env.observation_space.spaces) == {STATE}


@pytest.mark.parametrize(
    ("features", "cameras"),
    [((f"{IMAGES}.wrist", f"{DEPTH}.front"), ("front", "wrist")), ((f"{DEPTH}.left",), ("left",)), ((POINTS,), CAMERAS),
     ((f"{IMAGES}.front", POINTS), CAMERAS)],
)  # fmt: skip
def test_narrower_settings_give_the_same_features(features: tuple[str, ...], cameras: tuple[str, ...]) -> None:
    narrow = SMALL.only(features)
    assert narrow.cameras == cameras
    wide_env, env = (envs.make("handles", cameras=settings) for settings in (SMALL, narrow))
    wide, seen = wide_env.reset(seed=0)[0], env.reset(seed=0)[0]
    assert len(seen) < len(wide)
    for name in features:
        np.testing.assert_array_equal(seen[name], wide[name])
    env.close()
    wide_env.close()


def test_settings_cannot_be_narrowed_to_what_they_do_not_give() -> None:
    for settings, name in ((SMALL, f"{IMAGES}.back"), (replace(SMALL, depth=False), f"{DEPTH}.front")):
        with pytest.raises(ValueError, match=f"give no .*{name}"):
            settings.only([name])
    with pytest.raises(ValueError, match="empty list of features"):
        SMALL.only([])


@pytest.mark.parametrize("task", TASKS)
def test_cameras_change_nothing_else(task: str) -> None:
    plain, seeing = envs.make(task), envs.make(task, cameras=replace(SMALL, cameras=("front",)))
    start = plain.sample_start(np.random.default_rng(3))
    (one, info), (two, camera_info) = plain.reset(options={"start": start}), seeing.reset(options={"start": start})
    assert set(one) == {STATE} and "cameras" not in info and "cameras" in camera_info
    plan = plain.plan(plain.spec_task.modes[0], np.random.default_rng(0))
    for action in plan[:8]:
        np.testing.assert_array_equal(one[STATE], two[STATE])
        one, two = plain.step(action)[0], seeing.step(action)[0]
    seeing.close()


def test_an_environment_with_cameras_conforms_and_gymnasium_makes_it() -> None:
    env = envs.make("handles", cameras=replace(SMALL, cameras=("front", "wrist")))
    envs.check_env(env, starts=1)
    env.close()
    made = gymnasium.make("flow2one/Detour-v0", cameras=replace(SMALL, cameras=("overhead",)))
    assert f"{IMAGES}.overhead" in made.reset(seed=0)[0]
    made.close()


def test_the_checker_finds_a_camera_that_is_missing_and_one_that_flickers(monkeypatch: pytest.MonkeyPatch) -> None:
    env = envs.make("handles", cameras=replace(SMALL, cameras=("front", "wrist")))
    observe, shots = env.observe_cameras, np.random.default_rng(0)
    with monkeypatch.context() as patch:
        patch.setattr(env, "observe_cameras", lambda: {name: seen for name, seen in observe().items() if "front" not in name})
        with pytest.raises(ValueError, match="lacks 'observation.images.front'.*observation.images.wrist"):
            envs.check_env(env, starts=1)
    with monkeypatch.context() as patch:
        patch.setattr(env, "observe_cameras", lambda: observe() | {POINTS: shots.random((32, 3), dtype=np.float32)})
        with pytest.raises(ValueError, match="observed twice and not the same.*points"):
            envs.check_env(env, starts=1)
    env.close()


def test_blind_steps_see_nothing_until_asked() -> None:
    env = envs.make("avoid", cameras=replace(SMALL, cameras=("front",)))
    env.cameras_on_demand = True
    observation, info = env.reset(seed=0)
    assert set(observation) == {STATE} and "cameras" not in info
    env.step(np.array([0.4, 0.1]))
    seen = env.observe_cameras()
    env.cameras_on_demand = False
    assert set(env.step(np.array([0.4, 0.1]))[0]) == {STATE, *seen}
    env.close()
    with pytest.raises(RuntimeError, match="has no cameras"):
        env.observe_cameras()


def test_a_broken_simulation_shows_the_last_good_view() -> None:
    env = envs.make("detour", cameras=replace(SMALL, cameras=("front",)))
    before = env.reset(seed=0)[0]
    env.data.qvel[0] = np.nan
    after = env.observe_cameras()
    for name, seen in after.items():
        np.testing.assert_array_equal(seen, before[name])
    env.close()


# -- geometry ----------------------------------------------------------------------------------------------------------


def test_intrinsics_by_hand() -> None:
    camera = CameraSpec("one", width=64, height=48, focal_px=50.0)
    assert (camera.intrinsics @ [0.1, -0.2, 0.5] / 0.5).tolist() == pytest.approx([32 + 10, 24 - 20, 1])
    assert camera.extrinsics.tolist() == np.eye(4).tolist() and not camera.moves


def test_extrinsics_by_hand(seeing: PandaEnv) -> None:
    """The overhead camera looks straight down from (0.52, 0, 0.95); up in its image is forward, right is the robot's right."""
    overhead = spec_of(seeing).camera("overhead")
    expected = [[0, -1, 0, 0.52], [-1, 0, 0, 0], [0, 0, -1, 0.95], [0, 0, 0, 1]]
    np.testing.assert_allclose(overhead.extrinsics, expected, atol=1e-9)
    assert overhead.focal_px == pytest.approx(10 / np.tan(np.deg2rad(18)))
    assert [camera.moves for camera in spec_of(seeing).cameras] == [False] * 4 + [True]
    assert spec_of(seeing).camera("wrist").mount == "hand"


def test_the_wrist_camera_hangs_on_the_hand_and_looks_at_the_finger_tips(seeing: PandaEnv) -> None:
    assert seeing.camera_rig is not None
    wrist = spec_of(seeing).camera("wrist")
    hand = seeing.model.body("hand").id
    base_from_hand = np.eye(4)
    base_from_hand[:3, :3], base_from_hand[:3, 3] = seeing.data.xmat[hand].reshape(3, 3), seeing.data.xpos[hand]
    np.testing.assert_allclose(seeing.camera_rig.poses(seeing.data)["wrist"], base_from_hand @ wrist.extrinsics, atol=1e-9)
    tool = np.linalg.inv(base_from_hand @ wrist.extrinsics) @ [*seeing.tool_position(), 1]
    column, row, ahead = wrist.intrinsics @ tool[:3]
    assert ahead > 0 and 0 < column / ahead < 24 and 0 < row / ahead < 20
    assert abs(column / ahead - 12) < 1  # in the middle from side to side


@pytest.mark.parametrize("camera", CAMERAS)
def test_cube_and_pillar_are_seen_where_the_spec_says(camera: str) -> None:
    """Points of their tops are put through intrinsics and extrinsics by hand: there are their colours and depths."""
    env = envs.make("detour", cameras=CameraSettings(cameras=(camera,), width=160, height=160, num_points=0))
    observation, _ = env.reset(options={"start": np.array([0.36, 0.02, 0.345, -0.02, 0.135])})
    assert env.camera_rig is not None
    pose, spec = env.camera_rig.poses(env.data)[camera], spec_of(env).camera(camera)
    tops = [(0.36 + x, 0.02 + y, 0.04, 2) for x, y in ((0.015, 0.015), (-0.015, 0.015), (0.0, 0.0))]
    tops += [(0.525 + x, y, 0.16, 0) for x, y in ((0.02, 0.02), (-0.02, -0.02), (0.0, 0.0))]
    seen = 0
    for x, y, z, colour in tops:
        column, row, ahead = spec.intrinsics @ (np.linalg.inv(pose) @ [x, y, z, 1.0])[:3]
        where = int(row / ahead), int(column / ahead)
        in_image = ahead > 0 and 0 <= row / ahead < 160 and 0 <= column / ahead < 160
        if not in_image or observation[f"{DEPTH}.{camera}"][0][where] < ahead - 0.01:
            continue  # the hand or the pillar stands before it
        seen += 1
        assert observation[f"{DEPTH}.{camera}"][0][where] == pytest.approx(ahead, abs=0.006)
        there = observation[f"{IMAGES}.{camera}"][:, where[0], where[1]]
        assert there[colour] > 2 * there[2 - colour]
    assert seen >= 3
    env.close()


# -- mistakes ----------------------------------------------------------------------------------------------------------


def test_a_camera_that_is_not_there_is_named_with_those_that_are() -> None:
    with pytest.raises(ValueError, match="'frnt'.*'wrist'.*did you mean 'front'"):
        envs.make("avoid", cameras=CameraSettings(cameras=("frnt",)))
    env = envs.make("avoid", cameras=replace(SMALL, cameras=("front", "left")))
    with pytest.raises(ValueError, match=r"no camera 'wrist' here, only \['front', 'left'\]"):
        spec_of(env).camera("wrist")
    env.close()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"cameras": ()}, "cameras must be named"), ({"cameras": ("front", "front")}, "each once"),
        ({"images": False, "depth": False, "num_points": 0}, "all off"), ({"width": 0}, "must be positive"),
        ({"range_m": -1.0}, "must be positive"), ({"num_points": -1}, "not negative"),
        ({"sampling": "nearest"}, "farthest.*random.*'nearest'"), ({"crop_low": (0.9, 0.0, 0.0)}, "below crop_high"),
    ],
)  # fmt: skip
def test_settings_that_make_no_sense_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(SMALL, **change)


def test_a_spec_goes_to_json_and_back(seeing: PandaEnv) -> None:
    spec = spec_of(seeing)
    assert CamerasSpec.from_json(json.loads(json.dumps(spec.to_json()))) == spec
    with pytest.raises(ValueError, match="can not be read"):
        CamerasSpec.from_json({"settings": {"lenses": 3}, "cameras": []})
    with pytest.raises(ValueError, match="must be those of the settings"):
        CamerasSpec(spec.settings, spec.cameras[:2])


def test_other_cameras_than_the_recorded_ones_are_refused(seeing: PandaEnv) -> None:
    spec = spec_of(seeing)
    narrow = spec.settings.only([f"{IMAGES}.wrist"])
    fewer = CamerasSpec(narrow, (spec.camera("wrist"),))
    for same in (spec, fewer):
        same.check_recorded(spec)
    with pytest.raises(ValueError, match=r"\['backend'\] differ.*record again"):
        replace(fewer, settings=replace(narrow, backend="egl")).check_recorded(spec)
    moved = replace(spec.camera("wrist"), focal_px=20.0)
    with pytest.raises(ValueError, match=r"\['wrist'\] differ"):
        CamerasSpec(narrow, (moved,)).check_recorded(spec)
    with pytest.raises(ValueError, match="give no .*observation.images.left"):
        spec.check_recorded(fewer)


@pytest.mark.parametrize(
    ("feature", "value", "message"),
    [
        (f"{DEPTH}.front", 0.0, "depth.front must be above 0.*NaN where it is unknown"),
        (f"{DEPTH}.front", np.inf, "depth.front must be above 0"), (f"{DEPTH}.front", 3.5, "at most 3.0 m"),
        (f"{IMAGES}.front", 1.5, "images.front must be in 0 .. 1"), (f"{IMAGES}.front", np.nan, "images.front must be in"),
        (POINTS, np.nan, "points must be finite"),
    ],
)  # fmt: skip
def test_values_that_cannot_be_seen_are_refused(seeing: PandaEnv, feature: str, value: float, message: str) -> None:
    seen = seeing.observe_cameras()
    seen[feature][..., 3, 2] = value
    with pytest.raises(ValueError, match=message):
        check_camera_features(seen, spec_of(seeing))


def test_unknown_depth_is_accepted_and_another_shape_is_not(seeing: PandaEnv) -> None:
    seen = seeing.observe_cameras()
    seen[f"{DEPTH}.front"][0, 3] = np.nan
    check_camera_features(seen, spec_of(seeing))
    with pytest.raises(ValueError, match=r"must be \(1, 20, 24\) float32, got \(20, 24\)"):
        check_camera_features(seen | {f"{DEPTH}.front": seen[f"{DEPTH}.front"][0]}, spec_of(seeing))
