"""Replay buffers in zarr: what was written is read in our units, and what is malformed is refused with what and where."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from envs.recorded import open_recorded
from envs.specs import DEPTH, IMAGES, POINTS, STATE

zarr = pytest.importorskip("zarr", reason="zarr is not installed: pip install 'flow2one[zarr]'")

RNG = np.random.default_rng(0)
ENDS = np.array([5, 9, 16])
PUSHT = {
    "state": RNG.normal(size=(16, 5)).astype(np.float32),
    "action": RNG.normal(size=(16, 2)).astype(np.float32),
    "img": RNG.integers(0, 256, (16, 12, 10, 3)).astype(np.float32),
}


def write(path: Path, arrays: dict[str, np.ndarray], ends: np.ndarray = ENDS, zarr_format: int = 2) -> Path:
    group = zarr.open_group(path, mode="w", zarr_format=zarr_format)
    for name, values in ({f"data/{key}": values for key, values in arrays.items()} | {"meta/episode_ends": ends}).items():
        array = group.create_array(name, shape=values.shape, dtype=values.dtype, chunks=(4, *values.shape[1:]),
                                   config={"write_empty_chunks": True})  # fmt: skip
        array[:] = values
    return path


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_diffusion_policys_layout_is_read_in_our_units(tmp_path: Path, zarr_format: int) -> None:
    recorded = open_recorded(write(tmp_path / "pusht.zarr", PUSHT, zarr_format=zarr_format))
    assert recorded.features == {STATE: (5,), f"{IMAGES}.front": (3, 12, 10)}
    assert (recorded.episodes, recorded.action_size, recorded.dt_s, len(recorded)) == ((5, 4, 7), 2, None, 16)
    seen = recorded.read([5, 15, 2], 2)
    np.testing.assert_array_equal(seen[STATE], PUSHT["state"][[[5, 5], [14, 15], [1, 2]]])
    np.testing.assert_allclose(seen[f"{IMAGES}.front"][1, 0], PUSHT["img"][14].transpose(2, 0, 1) / 255, atol=1e-7)
    np.testing.assert_array_equal(recorded.actions([3, 8], 3), PUSHT["action"][[[3, 4, 4], [8, 8, 8]]])
    first = recorded.fingerprint()
    assert first == open_recorded(tmp_path / "pusht.zarr").fingerprint()


def test_a_zip_is_read_as_the_folder_that_went_into_it(tmp_path: Path) -> None:
    write(tmp_path / "pusht.zarr", PUSHT)
    shutil.make_archive(str(tmp_path / "pusht.zarr"), "zip", tmp_path / "pusht.zarr")
    folder, archive = open_recorded(tmp_path / "pusht.zarr"), open_recorded(tmp_path / "pusht.zarr.zip")
    np.testing.assert_array_equal(archive.read([7], 3)[f"{IMAGES}.front"], folder.read([7], 3)[f"{IMAGES}.front"])
    assert archive.episodes == folder.episodes
    (tmp_path / "pusht.zarr.zip").write_bytes((tmp_path / "pusht.zarr.zip").read_bytes()[:-200])
    with pytest.raises(ValueError, match="pusht.zarr.zip: is no whole zip file"):
        open_recorded(tmp_path / "pusht.zarr.zip")


def test_pointflowmatchs_layout_has_clouds_and_acts_by_its_next_states(tmp_path: Path) -> None:
    arrays = {
        "robot_state": RNG.normal(size=(16, 10)).astype(np.float32), "pcd_xyz": RNG.normal(size=(16, 6, 3)).astype(np.float32),
        "pcd_color": RNG.integers(0, 256, (16, 6, 3)).astype(np.uint8),
    }  # fmt: skip
    recorded = open_recorded(write(tmp_path / "pfm.zarr", arrays))
    assert recorded.features == {STATE: (10,), POINTS: (6, 6)} and recorded.action_size == 10
    points = recorded.read([4], 1)[POINTS][0, 0]
    np.testing.assert_array_equal(points[:, :3], arrays["pcd_xyz"][4])
    np.testing.assert_allclose(points[:, 3:], arrays["pcd_color"][4] / 255, atol=1e-7)
    np.testing.assert_array_equal(recorded.actions([7, 2], 3), arrays["robot_state"][[[8, 8, 8], [3, 4, 4]]])
    without = open_recorded(tmp_path / "pfm.zarr", {"pcd_color": ""})
    np.testing.assert_array_equal(without.read([4], 1)[POINTS][0, 0], arrays["pcd_xyz"][4])


def test_names_join_keys_to_the_state_and_name_cameras(tmp_path: Path) -> None:
    arrays = {
        "pos": RNG.normal(size=(16, 3)), "width": RNG.normal(size=(16, 1)), "top": np.full((16, 4, 5, 3), 51, np.uint8),
        "range": np.full((16, 4, 5), 1500, np.uint16),
    }  # fmt: skip
    arrays["range"][:, 0, 0] = 0
    path = write(tmp_path / "own.zarr", arrays)
    with pytest.raises(ValueError, match=r"got the keys \['pos', 'range', 'top', 'width'\], and none is known"):
        open_recorded(path)
    names = {"pos": STATE, "width": STATE, "top": f"{IMAGES}.top", "range": f"{DEPTH}.top"}
    recorded = open_recorded(path, names)
    seen = recorded.read([6], 1)
    np.testing.assert_allclose(seen[STATE][0, 0], np.concatenate([arrays["pos"][6], arrays["width"][6]]), rtol=1e-6)
    np.testing.assert_allclose(seen[f"{IMAGES}.top"], 0.2)
    depth = seen[f"{DEPTH}.top"][0, 0, 0]
    assert np.isnan(depth[0, 0]) and np.allclose(depth[1:], 1.5)
    with pytest.raises(ValueError, match="got no actions, expected some"):
        recorded.actions([0], 4)


# -- what is malformed -------------------------------------------------------------------------------------------------


def remove_a_chunk(path: Path) -> None:
    (path / "data/img/2.0.0.0").unlink()


def spoil_a_number(path: Path) -> None:
    zarr.open_group(path, mode="r+")["data/action"][6, 1] = np.nan


def spoil_a_chunk(path: Path) -> None:
    chunk = path / "data/state/1.0"
    chunk.write_bytes(chunk.read_bytes()[:9])


def cut_an_array(path: Path) -> None:
    zarr.open_group(path, mode="r+")["data/action"].resize((15, 2))


def ends_of(*ends: float) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        meta = zarr.open_group(path, mode="r+")["meta"]
        del meta["episode_ends"]
        meta["episode_ends"] = np.array(ends)

    return change


def told(name: str, **changes: Any) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        held = json.loads((path / name).read_text())
        (path / name).write_text(json.dumps({**held, **changes}))

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (remove_a_chunk, r"1 of 4 chunks of data/img are missing, the first is data/img/2.0.0.0; they would read as zeros"),
        (spoil_a_number, r"action has NaN or infinity in frame 6 \(episode 1, step 1\)"),
        (spoil_a_chunk, r"data/state cannot be read in frames"),
        (cut_an_array, r"data/action has 15 frames, expected 16, as meta/episode_ends says"),
        (ends_of(5, 9, 17), r"episode_ends is \[5, 9, 17\] .. \[17\], expected a row of rising numbers that ends at 16"),
        (ends_of(5.5, 16), r"expected a row of rising numbers that ends at 16"),
        (ends_of(5, 5, 16), r"expected a row of rising numbers that ends at 16"),
        (told("data/state/.zarray", dtype="|O", filters=[{"id": "pickle"}]), r"state/.zarray: is an array of objects"),
        (told("data/img/.zarray", filters=[{"id": "pickle", "protocol": 5}]), r"img/.zarray: is an array of objects"),
        (lambda path: (path / "data/img/.zarray").write_text('{"chu'), r"img/.zarray: is no JSON"),
        (lambda path: shutil.rmtree(path / "meta"), r"cannot be read as a replay buffer with data/\* and meta/episode_ends"),
    ],
)
def test_what_is_malformed_is_refused_in_one_line(tmp_path: Path, change: Callable[[Path], None], message: str) -> None:
    path = write(tmp_path / "pusht.zarr", PUSHT)
    change(path)
    with pytest.raises(ValueError, match=message) as caught:
        open_recorded(path)
    assert str(caught.value).startswith(str(path)) and "\n" not in str(caught.value)


def test_shapes_that_are_not_what_the_name_says_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "pusht.zarr", PUSHT)
    with pytest.raises(ValueError, match=r"data/state is \(5,\) in each frame, expected \(height, width, 3\)"):
        open_recorded(path, {"state": f"{IMAGES}.front", "img": ""})
    with pytest.raises(ValueError, match=r"data/img is \(12, 10, 3\) in each frame, expected numbers in a row to be action"):
        open_recorded(path, {"img": "action"})
