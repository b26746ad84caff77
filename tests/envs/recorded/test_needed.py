"""Only what is needed is opened; what nobody needs may be of any kind, packed by anything, cut off, or not there at all."""

from __future__ import annotations

import json
import os
import shutil
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from envs.recorded import open_recorded
from envs.specs import IMAGES, POINTS, STATE
from tests.envs.recorded.writers import FRONT, Recording, as_hdf5, as_zarr, lerobot, walk, zarr_buffer

h5py, zarr = pytest.importorskip("h5py"), pytest.importorskip("zarr")
pytest.importorskip("pyarrow")
IMAGES_OF = tuple(np.random.default_rng(each).integers(0, 256, (12, 16, 16, 3)).astype(np.uint8) for each in range(3))


def made() -> Recording:
    return walk(3, 12, images=IMAGES_OF)


def lost_video(path: Path) -> Path:
    lerobot(path, made(), video=True)
    shutil.rmtree(path / "videos")
    return path


def cut_video(path: Path) -> Path:
    lerobot(path, made(), video=True)
    file = next((path / "videos").rglob("*.mp4"))
    file.write_bytes(file.read_bytes()[:200])
    return path


def broken_images(path: Path) -> Path:
    empty = [[{"bytes": b"no image", "path": None}] * 12] * 3
    feature = {"dtype": "image", "shape": [16, 16, 3], "names": None}
    return lerobot(path, walk(3, 12), columns={FRONT: (feature, empty)})


def nan_column(path: Path) -> Path:
    return lerobot(path, walk(3, 12), columns={FRONT: ({"dtype": "float32", "shape": [3, 1, 1], "names": None},
                                                       [[[[[np.nan]]] * 3] * 12] * 3)})  # fmt: skip


def lost_chunks(path: Path) -> Path:
    as_zarr(path, made())
    for file in (path / "data/img").glob("[0-9]*"):
        file.unlink()
    return path


def odd_codec(path: Path) -> Path:
    as_zarr(path, made())
    told = json.loads((path / "data/img/.zarray").read_text())
    (path / "data/img/.zarray").write_text(json.dumps({**told, "compressor": {"id": "imagecodecs_jpegxl", "level": 99}}))
    return path


def objects(path: Path) -> Path:
    as_zarr(path, made())
    told = json.loads((path / "data/img/.zarray").read_text())
    (path / "data/img/.zarray").write_text(json.dumps({**told, "dtype": "|O", "filters": [{"id": "pickle"}]}))
    return path


def shorter_array(path: Path) -> Path:
    as_zarr(path, made())
    zarr.open_group(path, mode="r+")["data/img"].resize((7, 16, 16, 3))
    return path


def unwritten_images(path: Path) -> Path:
    path = as_hdf5(path.with_suffix(".hdf5"), made())
    with h5py.File(path, "r+") as file:
        del file["data/demo_1/obs/front_image"]
        file.create_dataset("data/demo_1/obs/front_image", (12, 16, 16, 3), np.uint8, chunks=(2, 16, 16, 3))
    return path


def linked_images(path: Path) -> Path:
    path = as_hdf5(path.with_suffix(".hdf5"), made())
    with h5py.File(path, "r+") as file:
        del file["data/demo_1/obs/front_image"]
        file["data/demo_1/obs/front_image"] = h5py.ExternalLink("/etc/other.hdf5", "object")
    return path


MAKERS = (lost_video, cut_video, broken_images, nan_column, lost_chunks, odd_codec, objects, shorter_array, unwritten_images,
          linked_images)  # fmt: skip


@pytest.mark.parametrize("make", MAKERS)
def test_a_feature_that_is_not_needed_may_be_anything(tmp_path: Path, make: Callable[[Path], Path]) -> None:
    pytest.importorskip("av")
    path = make(tmp_path / "set")
    with pytest.raises(ValueError) as caught:
        recorded = open_recorded(path)
        recorded.read([0], 1)
    assert "\n" not in str(caught.value)
    recorded = open_recorded(path, features=[STATE])
    np.testing.assert_array_equal(recorded.read([15], 1)[STATE][0, 0], made().states[1][3])
    assert len(recorded.fingerprint()["files_sha256"]) == 64
    with pytest.raises(ValueError):
        open_recorded(path, features=[STATE, FRONT]).read([0], 1)


def test_an_error_says_how_to_leave_the_key_out_and_that_works(tmp_path: Path) -> None:
    """Of every maker above the advice `--names key=` can be followed."""
    pytest.importorskip("av")
    for number, make in enumerate(MAKERS):
        path = make(tmp_path / str(number))
        with pytest.raises(ValueError) as caught:
            open_recorded(path).read([0], 1)
        said = str(caught.value)
        if "--names " in said:
            key = said.split("--names ")[1].split("=")[0].split(" ")[0]
            assert STATE in open_recorded(path, {key: ""}).features, said


def test_without_pyav_the_numbers_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = lerobot(tmp_path / "set", made(), video=True)
    monkeypatch.setitem(sys.modules, "av", None)
    assert open_recorded(path, features=[STATE]).features == {STATE: (2,)}
    with pytest.raises(ImportError, match=r"pip install av$"):
        open_recorded(path)


TOLD: dict[str, tuple[dict[str, Any], list[Any]]] = {
    "language_events": ({"dtype": "language", "shape": [1], "names": None}, [[[]] * 12] * 3),
    "note": ({"dtype": "string", "shape": [1], "names": None}, [["a"] * 12] * 3),
    "success": ({"dtype": "bool", "shape": [1], "names": None}, [[True] * 12] * 3),
    "observation.words": ({"dtype": "list[str]", "shape": [1], "names": None}, [[["a"]] * 12] * 3),
}


@pytest.mark.parametrize("version", ["v2.1", "v3.0"])
def test_columns_of_any_kind_lie_beside_the_numbers(tmp_path: Path, version: str) -> None:
    recorded = open_recorded(lerobot(tmp_path / "set", walk(3, 12), version, columns=TOLD))
    assert recorded.features == {STATE: (2,)} and set(recorded.left_out) == set(TOLD)
    added = open_recorded(tmp_path / "set", {"success": STATE})
    assert added.features == {STATE: (3,)} and added.read([0], 1)[STATE][0, 0, 2] == 1.0
    with pytest.raises(ValueError, match="note has dtype 'string', expected numbers, image or video"):
        open_recorded(tmp_path / "set", {"note": STATE})


MARKS = [{"info": {"is_depth_map": True}}, {"info": {"video.is_depth_map": True}}, {"video_info": {"video.is_depth_map": True}},
         {"is_depth_map": True}, {"video.is_depth_map": True}, {"info": {"video": {"is_depth_map": True}}}]  # fmt: skip


@pytest.mark.parametrize("mark", MARKS)
@pytest.mark.parametrize("kind", ["video", "image"])
def test_depth_that_was_squeezed_into_pictures_is_left_out(tmp_path: Path, mark: dict[str, Any], kind: str) -> None:
    feature = {"dtype": kind, "shape": [16, 16, 1], "names": None, **mark}
    recorded = open_recorded(lerobot(tmp_path / "set", walk(2, 12), columns={f"{IMAGES}.deep": (feature, [[0] * 12] * 2)}))
    assert recorded.features == {STATE: (2,)} and "depth" in recorded.left_out[f"{IMAGES}.deep"]


# -- as downloads have them --------------------------------------------------------------------------------------------


def as_snapshot(path: Path, home: Path) -> Path:
    """As the cache of the Hugging Face Hub holds it: links into blobs/."""
    snapshot = home / "snapshots" / ("a" * 40)
    (home / "blobs").mkdir(parents=True)
    for number, file in enumerate(sorted(each for each in path.rglob("*") if each.is_file())):
        link = snapshot / file.relative_to(path)
        link.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, home / "blobs" / f"{number:040x}")
        link.symlink_to(os.path.relpath(home / "blobs" / f"{number:040x}", link.parent))
    return snapshot


@pytest.mark.parametrize("version", ["v2.1", "v3.0", "zarr"])
def test_a_snapshot_of_the_hubs_cache_is_read_and_links_that_leave_it_are_refused(tmp_path: Path, version: str) -> None:
    pytest.importorskip("av")
    plain = as_zarr(tmp_path / "set", made()) if version == "zarr" else lerobot(tmp_path / "set", made(), version, video=True)
    snapshot = as_snapshot(plain, tmp_path / "hub" / "datasets--me--it")
    np.testing.assert_array_equal(open_recorded(snapshot).read([15], 1)[STATE][0, 0], made().states[1][3])
    (tmp_path / "link").symlink_to(snapshot)
    assert len(open_recorded(tmp_path / "link")) == 36
    which = {"zarr": "data/state/0.0", "v2.1": "data/chunk-000/episode_000000.parquet",
             "v3.0": "data/chunk-000/file-000.parquet"}[version]  # fmt: skip
    for target in (plain / which, tmp_path / "hub" / "other" / "blobs" / "x"):
        target.parent.mkdir(parents=True, exist_ok=True)
        if not target.exists():
            shutil.copy(plain / which, target)
        (snapshot / which).unlink()
        (snapshot / which).symlink_to(target)
        with pytest.raises(ValueError, match="leads out of the data set|outside of the data set"):
            open_recorded(snapshot)


POINTER = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 123456\n"


@pytest.mark.parametrize(("make", "file"), [
    (lambda path: as_zarr(path, made()), "data/state/0.0"), (lambda path: as_zarr(path, made()), "data/img/.zarray"),
    (lambda path: as_zarr(path, made(), 2, True), ""), (lambda path: as_hdf5(path.with_suffix(".hdf5"), made()), ""),
    (lambda path: lerobot(path, made(), video=True), f"videos/{FRONT}/chunk-000/file-000.mp4"),
    (lambda path: lerobot(path, made()), "meta/tasks.parquet"),
])  # fmt: skip
def test_a_pointer_of_git_lfs_is_called_so(tmp_path: Path, make: Callable[[Path], Path], file: str) -> None:
    path = make(tmp_path / "set")
    (path / file if file else path).write_text(POINTER)
    with pytest.raises(ValueError, match="is a pointer of git-lfs, not the data itself; run `git lfs pull`"):
        open_recorded(path)


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_a_zip_may_have_a_folder_around_the_group(tmp_path: Path, zarr_format: int) -> None:
    folder = as_zarr(tmp_path / "set.zarr", made(), zarr_format)
    with zipfile.ZipFile(tmp_path / "set.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(each for each in folder.rglob("*") if each.is_file()):
            archive.write(file, f"pusht/set.zarr/{file.relative_to(folder)}")
            archive.writestr(f"__MACOSX/pusht/set.zarr/{file.relative_to(folder)}", b"junk")
    recorded = open_recorded(tmp_path / "set.zip")
    np.testing.assert_array_equal(recorded.read([15], 1)[STATE][0, 0], made().states[1][3])
    (tmp_path / "unpacked/pusht").mkdir(parents=True)
    shutil.copytree(folder, tmp_path / "unpacked/pusht/set.zarr")
    with pytest.raises(ValueError, match=r"holds no recording itself, but .*unpacked/pusht/set.zarr does; give that path"):
        open_recorded(tmp_path / "unpacked")


def test_mimics_inner_actions_are_no_actions_and_nested_groups_have_names(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "set.hdf5", "w") as file:
        for episode in range(3):
            for key, width in (("obs/eef_pos", 3), ("obs/actions", 8), ("obs/policy/gripper", 2)):
                file[f"data/demo_{episode}/{key}"] = np.full((8, width), float(episode))
    names = {"eef_pos": STATE, "policy/gripper": STATE}
    recorded = open_recorded(tmp_path / "set.hdf5", names)
    assert recorded.features == {STATE: (5,)} and recorded.action_size == 0
    assert recorded.left_out["obs/actions"] == "the last action, as an observation"
    assert open_recorded(tmp_path / "set.hdf5", {**names, "obs/actions": "action"}).action_size == 8


def test_colours_of_a_cloud_that_nobody_wants_are_not_opened(tmp_path: Path) -> None:
    arrays = {"robot_state": np.zeros((12, 4), np.float32), "pcd_xyz": np.zeros((12, 5, 3), np.float32),
              "pcd_color": np.zeros((12, 5, 3), np.uint8)}  # fmt: skip
    path = zarr_buffer(tmp_path / "set.zarr", arrays, [12])
    shutil.rmtree(path / "data/pcd_color")
    (path / "data/pcd_color").mkdir()
    assert open_recorded(path).features == {STATE: (4,), POINTS: (5, 3)}
