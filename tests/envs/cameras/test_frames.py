"""Recording with cameras, packing, storing and reading back: what is read is what was seen, or it is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import envs
from envs.cameras.frames import DEPTH_UNIT_M, CameraFrames, Packed, dequantise, pack, quantise
from envs.cameras.specs import CameraSettings
from envs.demonstrations import Demonstration, Demonstrations
from envs.panda.recording import record, stored_starts
from envs.specs import DEPTH, IMAGES, POINTS, STATE

SETTINGS = CameraSettings(cameras=("front", "wrist"), width=20, height=16, num_points=24, colours=True, sampling="random")


@pytest.fixture(scope="module")
def episodes() -> list[Demonstration]:
    """Two episodes of `avoid` with two cameras."""
    env = envs.make("avoid", cameras=SETTINGS)
    start = stored_starts("avoid", 0, "train", 1)[0]
    found = [record(env, start, mode, seed) for seed, mode in enumerate(("L-C-2", "R-R-4"))]
    env.close()
    return [episode for episode in found if episode is not None]


@pytest.fixture(scope="module")
def recorded(episodes: list[Demonstration]) -> Demonstrations:
    return Demonstrations.from_episodes(envs.task_spec("avoid"), episodes, [0, 0])


@pytest.fixture(scope="module")
def stored(recorded: Demonstrations, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stored") / "demos"
    recorded.save(folder)
    return folder


def cameras_of(demonstrations: Demonstrations) -> CameraFrames:
    assert demonstrations.cameras is not None
    return demonstrations.cameras


def test_what_is_read_back_is_what_was_seen(stored: Path) -> None:
    """The episode is executed again without a recorder: images agree to the bit, depth to its unit, points to float16."""
    demonstrations = Demonstrations.load(stored, envs.task_spec("avoid"))
    frames = cameras_of(demonstrations)
    env = envs.make("avoid", cameras=SETTINGS)
    env.cameras_on_demand = True
    observation, _ = env.reset(options={"start": demonstrations.episode_start[0]})
    env.cameras_on_demand = False
    np.testing.assert_array_equal(observation[STATE], demonstrations.state[0])
    seen = env.observe_cameras()
    for name in (f"{IMAGES}.front", f"{IMAGES}.wrist"):
        np.testing.assert_array_equal(frames.read(name, [0])[0], seen[name])
    for name in (f"{DEPTH}.front", f"{DEPTH}.wrist"):
        np.testing.assert_allclose(frames.read(name, [0])[0], seen[name], atol=DEPTH_UNIT_M / 2 + 1e-6)
        far = seen[name] == 3.0
        np.testing.assert_array_equal(frames.read(name, [0])[0][far], seen[name][far])
    points = frames.read(POINTS, [0])[0]
    np.testing.assert_allclose(points[:, :3], seen[POINTS][:, :3], atol=3e-4)
    np.testing.assert_allclose(points[:, 3:], seen[POINTS][:, 3:], atol=1e-6)
    assert frames.spec == env.camera_rig.spec  # type: ignore[union-attr]
    np.testing.assert_allclose(frames.poses["wrist"][0], env.camera_rig.poses(env.data)["wrist"], atol=1e-6)  # type: ignore[union-attr]
    assert set(frames.poses) == {"wrist"}
    env.close()


def test_saved_frames_are_what_is_loaded_in_any_order(recorded: Demonstrations, stored: Path) -> None:
    loaded, ours = cameras_of(Demonstrations.load(stored)), cameras_of(recorded)
    order = np.random.default_rng(0).permutation(ours.num_frames)
    for name, shape in ours.spec.shapes().items():
        np.testing.assert_array_equal(loaded.read(name, order), ours.read(name, order))
        assert loaded.read(name, order).shape == (len(order), *shape) and loaded.read(name, order).dtype == np.float32
    assert sorted(path.name for path in (stored / "cameras").iterdir()) == sorted(
        ["info.json", "frames.safetensors", *(f"{name}.safetensors" for name in ours.spec.shapes())]
    )
    info = json.loads((stored / "cameras/info.json").read_text())
    assert info["unknown_pixels"] == 0 and info["repeated_points"] == ours.repeated_points.sum() == 0


def test_joined_episodes_stand_one_after_the_other(episodes: list[Demonstration], recorded: Demonstrations) -> None:
    first, second = (episode.cameras for episode in episodes)
    assert first is not None and second is not None
    for name in first.spec.shapes():
        both = np.concatenate([each.read(name, range(each.num_frames)) for each in (first, second)])
        np.testing.assert_array_equal(cameras_of(recorded).read(name, range(recorded.num_frames)), both)
    with pytest.raises(ValueError, match="1 of 2 episodes were recorded with cameras"):
        Demonstrations.from_episodes(recorded.spec, [episodes[0], replace(episodes[1], cameras=None)], [0, 0])
    other = replace(second, spec=replace(second.spec, settings=replace(second.spec.settings, seed=5)))
    with pytest.raises(ValueError, match="same settings"):
        CameraFrames.join([first, other])


def test_without_cameras_nothing_is_recorded(stored: Path) -> None:
    episode = record(envs.make("avoid"), np.array([0.3, 0.0]), "L-C-2", 0)
    assert episode is not None and episode.cameras is None
    with_cameras = Demonstrations.load(stored)
    assert len(with_cameras.state) == cameras_of(with_cameras).num_frames


def test_depth_by_hand() -> None:
    spec = cameras_spec()
    seen = np.array([[[1.0, 1.00012, 0.00001, np.nan, 3.0, 2.99999]]], np.float32)
    codes = quantise(f"{DEPTH}.front", seen, spec)
    assert codes.tolist() == [[4000, 4000, 1, 0, 65535, 12000]] and codes.dtype == np.uint16
    back = dequantise(f"{DEPTH}.front", codes[None], spec)[0, 0, 0]
    np.testing.assert_allclose(back[[0, 1, 4]], [1.0, 1.0, 3.0])
    assert back[2] > 0 and np.isnan(back[3])  # near is not unknown, and unknown is not zero


def cameras_spec():  # type: ignore[no-untyped-def]
    env = envs.make("avoid", cameras=SETTINGS)
    spec = env.camera_rig.spec  # type: ignore[union-attr]
    env.close()
    return spec


def test_unknown_depth_comes_back_as_unknown(episodes: list[Demonstration], tmp_path: Path) -> None:
    frames = episodes[0].cameras
    assert frames is not None
    seen = {name: frames.read(name, [0])[0] for name in frames.spec.shapes()}
    seen[f"{DEPTH}.wrist"][0, 3:5] = np.nan
    poses = {"wrist": frames.poses["wrist"][0]}
    pack(frames.spec, [seen], [{"unknown_pixels": 40, "repeated_points": 3}], [poses]).save(tmp_path)
    back = CameraFrames.load(tmp_path)
    np.testing.assert_array_equal(np.isnan(back.read(f"{DEPTH}.wrist", [0])[0]), np.isnan(seen[f"{DEPTH}.wrist"]))
    assert (back.unknown_pixels.tolist(), back.repeated_points.tolist()) == ([40], [3])
    seen[f"{DEPTH}.wrist"][0, 3] = np.inf
    with pytest.raises(ValueError, match="depth.wrist must be above 0"):
        pack(frames.spec, [seen], [{"unknown_pixels": 40, "repeated_points": 3}], [poses])


def test_a_camera_that_is_not_stored_is_named_with_those_that_are(stored: Path) -> None:
    frames = cameras_of(Demonstrations.load(stored))
    with pytest.raises(ValueError, match="'observation.images.left' is wanted.*depth.front.*images.wrist"):
        frames.read(f"{IMAGES}.left", [0])
    with pytest.raises(ValueError, match="did you mean 'observation.points'"):
        frames.spec.require(["observation.point"])


# -- files that do not fit ---------------------------------------------------------------------------------------------


def cut(path: Path) -> None:
    arrays = load_file(str(path))
    save_file({"data": arrays["data"][:-40], "ends": arrays["ends"]}, str(path))


def damage(path: Path) -> None:
    arrays = load_file(str(path))
    arrays["data"][int(arrays["ends"][0]) + 30 :] ^= 0x55
    save_file(arrays, str(path))


def drop_a_frame(path: Path) -> None:
    arrays = load_file(str(path))
    data, ends = arrays["data"], arrays["ends"]
    save_file({"data": data[: ends[-2]], "ends": ends[:-1]}, str(path))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (cut, ValueError, "images.front.safetensors.*bytes are stored, the frames end at"),
        (drop_a_frame, ValueError, "all features must have .* frames"),
        (damage, ValueError, "observation.images.front, frame 1: the stored bytes are damaged"),
        (Path.unlink, FileNotFoundError, "images.front.safetensors"),
    ],
)
def test_files_that_do_not_fit_are_refused_by_name(
    stored: Path, tmp_path: Path, change: Callable[[Path], None], error: type[Exception], message: str
) -> None:
    folder = tmp_path / "changed"
    shutil.copytree(stored, folder)
    change(folder / "cameras" / f"{IMAGES}.front.safetensors")
    with pytest.raises(error, match=message):
        cameras_of(Demonstrations.load(folder)).read(f"{IMAGES}.front", [1])


def test_another_schema_and_another_count_are_refused(stored: Path, tmp_path: Path) -> None:
    folder = tmp_path / "changed"
    shutil.copytree(stored, folder)
    info = json.loads((folder / "cameras/info.json").read_text())
    (folder / "cameras/info.json").write_text(json.dumps({**info, "num_frames": 3}))
    with pytest.raises(ValueError, match="info.json counts 3 frames"):
        Demonstrations.load(folder)
    (folder / "cameras/info.json").write_text(json.dumps({**info, "schema_version": 7}))
    with pytest.raises(ValueError, match="schema_version is 7, expected 1"):
        Demonstrations.load(folder)


def test_frames_and_demonstrations_must_agree(recorded: Demonstrations, episodes: list[Demonstration]) -> None:
    with pytest.raises(ValueError, match="the cameras saw .* frames, the demonstrations have"):
        replace(recorded, cameras=episodes[0].cameras)


def test_bytes_that_are_not_of_this_shape_are_refused() -> None:
    packed = Packed.of([np.arange(6, dtype=np.uint16)])
    with pytest.raises(ValueError, match="12 bytes are stored where 10 are expected"):
        packed.unpack(0, np.empty(5, np.uint16))
