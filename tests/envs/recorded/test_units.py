"""Units are judged over many frames, the same for every format, and what cannot be told is refused before it is used."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from envs.recorded import open_recorded
from envs.recorded.units import looked_at
from envs.specs import DEPTH, IMAGES, POINTS, STATE
from tests.envs.recorded.writers import lerobot, walk, zarr_buffer

h5py, zarr = pytest.importorskip("h5py"), pytest.importorskip("zarr")
FRAMES, FRONT, DEPTH_FRONT = 40, f"{IMAGES}.front", f"{DEPTH}.front"
RNG = np.random.default_rng(0)


def as_zarr(path: Path, key: str, values: np.ndarray) -> tuple[Path, dict[str, str]]:
    key = {"image": "img", "depth": "depth", "points": "point_cloud"}[key]
    return zarr_buffer(path / "set.zarr", {"state": np.zeros((FRAMES, 2), np.float32), key: values}, [20, 20]), {}


def as_hdf5(path: Path, key: str, values: np.ndarray) -> tuple[Path, dict[str, str]]:
    key = {"image": "front_image", "depth": "front_depth", "points": "point_cloud"}[key]
    with h5py.File(path / "set.hdf5", "w") as file:
        for episode in range(2):
            file[f"data/demo_{episode}/actions"] = np.zeros((20, 2))
            file[f"data/demo_{episode}/obs/robot0_eef_pos"] = np.zeros((20, 3))
            file[f"data/demo_{episode}/obs/{key}"] = values[20 * episode : 20 * episode + 20]
    return path / "set.hdf5", {}


def as_lerobot(path: Path, key: str, values: np.ndarray) -> tuple[Path, dict[str, str]]:
    pytest.importorskip("pyarrow")
    name = {"image": FRONT, "depth": DEPTH_FRONT, "points": POINTS}[key]
    told = {"dtype": str(values.dtype), "shape": list(values.shape[1:]), "names": None}
    cells = [values[:20].tolist(), values[20:].tolist()]
    return lerobot(path / "set", walk(2, 20), columns={name: (told, cells)}), {}


FORMATS = [as_zarr, as_hdf5, as_lerobot]
Writer = Callable[[Path, str, np.ndarray], tuple[Path, dict[str, str]]]


def image(most: float) -> np.ndarray:
    values = RNG.uniform(0, most, (FRAMES, 4, 5, 3))
    values[:, 0, 0] = most
    return values


@pytest.mark.parametrize("write", FORMATS)
def test_images_in_floats_are_judged_by_more_than_their_first_frames(tmp_path: Path, write: Writer) -> None:
    bright = np.round(image(255)).astype(np.float32)
    bright[:5] = 0  # the camera was still dark
    path, names = write(tmp_path, "image", bright)
    recorded = open_recorded(path, names)
    np.testing.assert_allclose(recorded.read([30], 1)[FRONT][0, 0], bright[30].transpose(2, 0, 1) / 255, atol=1e-6)
    assert "divided by 255" in recorded.units[FRONT] and any("divided by 255" in line for line in recorded.opened_as())


@pytest.mark.parametrize("write", FORMATS)
def test_images_of_0_to_1_stay_so(tmp_path: Path, write: Writer) -> None:
    plain = image(1.0).astype(np.float32)
    path, names = write(tmp_path, "image", plain)
    np.testing.assert_allclose(open_recorded(path, names).read([7], 1)[FRONT][0, 0], plain[7].transpose(2, 0, 1), atol=1e-6)


def two_units() -> np.ndarray:
    values = np.round(image(255))
    values[20:] = image(1.0)[20:]
    return values.astype(np.float32)


def signed() -> np.ndarray:
    return (image(1.0) * 2 - 1).astype(np.float32)


def slightly_over() -> np.ndarray:
    return image(1.4).astype(np.float32)


def rounded() -> np.ndarray:
    return (image(1.0) > 0.5).astype(np.uint8)


def sixteen_bits() -> np.ndarray:
    return RNG.integers(0, 65536, (FRAMES, 4, 5, 3)).astype(np.uint16)


@pytest.mark.parametrize("write", [as_zarr, as_hdf5])
@pytest.mark.parametrize(("values", "message"), [
    (two_units, r"two units in one recording"), (signed, r"go from -.* expected 0 to 1 or 0 to 255"),
    (slightly_over, r"reach 1.4 .* expected at most 1, or far more"), (rounded, r"whole numbers up to 1 "),
    (sixteen_bits, r"to 6\d{4} .* expected 0 to 1 or 0 to 255"),
])  # fmt: skip
def test_images_of_no_known_unit_are_refused(
    tmp_path: Path, write: Writer, values: Callable[[], np.ndarray], message: str
) -> None:
    path, names = write(tmp_path, "image", values())
    with pytest.raises(ValueError, match=message) as caught:
        open_recorded(path, names)
    assert "\n" not in str(caught.value) and "--names" in str(caught.value) or "write" in str(caught.value).lower()
    assert open_recorded(path, names, [STATE]).features.keys() == {STATE}


def test_a_frame_of_another_unit_that_was_not_looked_at_is_refused_when_it_is_read(tmp_path: Path) -> None:
    values = np.concatenate([image(1.0)] * 10).astype(np.float32)
    path = zarr_buffer(tmp_path / "set.zarr", {"state": np.zeros((400, 2), np.float32), "img": values}, [400])
    group = zarr.open_group(path, mode="r+")
    frame = int(np.setdiff1d(np.arange(400), looked_at(np.array([400])))[30])
    group["data/img"][frame] = 200.0
    recorded = open_recorded(path)
    with pytest.raises(ValueError, match="data/img: reaches 200, judged to be images 0 to 1 .* two units in one recording"):
        recorded.read([frame], 1)


@pytest.mark.parametrize("write", FORMATS)
def test_depth_is_metres_whatever_it_was_written_in(tmp_path: Path, write: Writer) -> None:
    metres = RNG.uniform(0.4, 2.5, (FRAMES, 4, 5))
    for number, stored in enumerate((metres.astype(np.float32), (metres * 1000).astype(np.float32),
                                     np.round(metres * 1000).astype(np.uint16))):  # fmt: skip
        stored[:, 0, 0] = 0
        folder = tmp_path / str(number)
        folder.mkdir()
        path, names = write(folder, "depth", stored)
        depth = open_recorded(path, names).read([13], 1)[DEPTH_FRONT][0, 0, 0]
        assert np.isnan(depth[0, 0])
        np.testing.assert_allclose(depth[1:], metres[13, 1:], atol=6e-4)


@pytest.mark.parametrize("write", [as_zarr, as_hdf5])
def test_depth_that_may_be_either_is_refused_and_a_sensors_mark_is_unknown(tmp_path: Path, write: Writer) -> None:
    path, names = write(tmp_path, "depth", RNG.uniform(10, 60, (FRAMES, 4, 5)).astype(np.float32))
    with pytest.raises(ValueError, match="too far for metres and too near for millimetres"):
        open_recorded(path, names)
    marked = RNG.integers(400, 2500, (FRAMES, 4, 5)).astype(np.uint16)
    marked[:, 1, 1] = 65535
    (tmp_path / "marked").mkdir()
    path, names = write(tmp_path / "marked", "depth", marked)
    depth = open_recorded(path, names).read([3], 1)[DEPTH_FRONT][0, 0, 0]
    assert np.isnan(depth[1, 1]) and np.nanmax(depth) < 2.6


@pytest.mark.parametrize("write", FORMATS)
def test_points_are_metres_with_colours_of_0_to_1(tmp_path: Path, write: Writer) -> None:
    places, colours = RNG.uniform(-0.5, 0.5, (FRAMES, 9, 3)), RNG.integers(0, 256, (FRAMES, 9, 3))
    path, names = write(tmp_path, "points", np.concatenate([places * 1000, colours], 2).astype(np.float32))
    points = open_recorded(path, names).read([21], 1)[POINTS][0, 0]
    np.testing.assert_allclose(points[:, :3], places[21], atol=1e-4)
    np.testing.assert_allclose(points[:, 3:], colours[21] / 255, atol=1e-6)


def test_numbers_of_64_bits_whose_differences_would_be_lost_are_refused(tmp_path: Path) -> None:
    state = np.stack([1.7e9 + np.arange(FRAMES) / 10, np.sin(np.arange(FRAMES))], 1)
    path = zarr_buffer(tmp_path / "set.zarr", {"state": state}, [20, 20])
    with pytest.raises(ValueError, match=r"observation.state\[0\] goes from 1700000000 to .* are lost in 32 bits"):
        open_recorded(path)
    state[:, 0] -= 1.7e9
    open_recorded(zarr_buffer(tmp_path / "less.zarr", {"state": state}, [20, 20]))
