"""robomimic's HDF5: what was written is read in our units, and what is malformed is refused with what and where."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from envs.recorded import open_recorded
from envs.specs import DEPTH, IMAGES, STATE

h5py = pytest.importorskip("h5py", reason="h5py is not installed: pip install 'flow2one[hdf5]'")

RNG = np.random.default_rng(0)
LENGTHS = {"demo_0": 4, "demo_2": 3, "demo_10": 6}


def episode(length: int) -> dict[str, np.ndarray]:
    return {
        "actions": RNG.normal(size=(length, 7)),
        "obs/robot0_eef_pos": RNG.normal(size=(length, 3)),
        "obs/robot0_eef_quat": RNG.normal(size=(length, 4)),
        "obs/robot0_gripper_qpos": RNG.normal(size=(length, 2)),
        "obs/object": RNG.normal(size=(length, 10)),
        "obs/agentview_image": RNG.integers(0, 256, (length, 6, 8, 3)).astype(np.uint8),
        "obs/agentview_depth": RNG.uniform(0.5, 2, (length, 6, 8, 1)).astype(np.float32),
    }


EPISODES = {name: episode(length) for name, length in LENGTHS.items()}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    with h5py.File(tmp_path / "image.hdf5", "w") as file:
        file.create_group("data").attrs["env_args"] = json.dumps({"env_name": "Lift", "env_kwargs": {"control_freq": 20}})
        for name, sets in EPISODES.items():
            for key, values in sets.items():
                chunks = (2, *values.shape[1:]) if "image" in key else None
                file.create_dataset(f"data/{name}/{key}", data=values, chunks=chunks)
            file[f"data/{name}"].attrs["num_samples"] = LENGTHS[name]
    return tmp_path / "image.hdf5"


def test_robomimics_layout_is_read_in_our_units(path: Path) -> None:
    recorded = open_recorded(path)
    image, depth = f"{IMAGES}.agentview", f"{DEPTH}.agentview"
    assert recorded.features == {STATE: (9,), image: (3, 6, 8), depth: (1, 6, 8), "observation.environment_state": (10,)}
    assert (recorded.episodes, recorded.action_size, recorded.dt_s) == ((4, 3, 6), 7, 0.05)  # demo_2 before demo_10
    seen, demo = recorded.read([4, 3, 12], 2), EPISODES["demo_2"]
    joined = np.concatenate([demo[f"obs/robot0_{part}"] for part in ("eef_pos", "eef_quat", "gripper_qpos")], axis=1)
    np.testing.assert_allclose(seen[STATE][0], joined[[0, 0]], rtol=1e-6)
    picture = EPISODES["demo_0"]["obs/agentview_image"][2].transpose(2, 0, 1) / 255
    np.testing.assert_allclose(seen[image][1, 0], picture, atol=1e-7)
    np.testing.assert_array_equal(seen[depth][2, 1, 0], EPISODES["demo_10"]["obs/agentview_depth"][5, ..., 0])
    np.testing.assert_allclose(recorded.actions([5], 4)[0], demo["actions"][[1, 2, 2, 2]], rtol=1e-6)
    assert recorded.fingerprint() == open_recorded(path).fingerprint()


def test_names_choose_the_state(path: Path) -> None:
    added = open_recorded(path, {"object": STATE, "agentview_depth": "", "agentview_image": f"{IMAGES}.front"})
    assert added.features == {STATE: (19,), f"{IMAGES}.front": (3, 6, 8)}
    parts = {f"robot0_{part}": "" for part in ("eef_pos", "eef_quat", "gripper_qpos")}
    assert open_recorded(path, {**parts, "object": STATE}).features[STATE] == (10,)
    with pytest.raises(ValueError, match="speaks of 'agentview', .*Did you mean 'agentview_"):
        open_recorded(path, {"agentview": f"{IMAGES}.front"})


# -- what is malformed -------------------------------------------------------------------------------------------------


def spoil(file: Any) -> None:
    file["data/demo_2/actions"][1, 3] = np.nan


def widen(file: Any) -> None:
    del file["data/demo_10/actions"]
    file["data/demo_10/actions"] = np.zeros((6, 8))


def shorten(file: Any) -> None:
    del file["data/demo_2/actions"]
    file["data/demo_2/actions"] = np.zeros((2, 7))


def leave_out(file: Any) -> None:
    del file["data/demo_10/obs/agentview_image"]


def never_write(file: Any) -> None:
    del file["data/demo_10/obs/agentview_image"]
    file.create_dataset("data/demo_10/obs/agentview_image", (6, 6, 8, 3), np.uint8, chunks=(2, 6, 8, 3))[:2] = 1


def link(file: Any) -> None:
    del file["data/demo_2/obs/object"]
    file["data/demo_2/obs/object"] = h5py.ExternalLink("/etc/other.hdf5", "object")


def count(file: Any) -> None:
    file["data/demo_2"].attrs["num_samples"] = 5


def empty(file: Any) -> None:
    del file["data"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (spoil, r"action has NaN or infinity in frame 5 \(episode 1, step 1\)"),
        (widen, r"actions of data/demo_10 is \(8,\) float64 in each frame, expected \(7,\)"),
        (shorten, r"actions of data/demo_2 has 2 frames, the others 3, expected as many in each"),
        (leave_out, r"data/demo_10 has no 'agentview_image'"),
        (never_write, r"2 chunks of agentview_image of data/demo_10 were never written; they would read as zeros"),
        (link, r"data/demo_2/obs/object is a link to elsewhere"),
        (count, r"num_samples is 5, expected as many in each"),
        (empty, r"with no data/demo_0, expected a file of robomimic's"),
    ],
)
def test_what_is_malformed_is_refused_in_one_line(path: Path, change: Callable[[Any], None], message: str) -> None:
    with h5py.File(path, "r+") as file:
        change(file)
    with pytest.raises(ValueError, match=message) as caught:
        open_recorded(path)
    assert str(caught.value).startswith(str(path)) and "\n" not in str(caught.value)


def test_a_file_that_is_cut_off_is_refused(path: Path) -> None:
    whole = path.read_bytes()
    for kept in (len(whole) - 100, 1000, 4):
        path.write_bytes(whole[:kept])
        with pytest.raises(ValueError, match=r"image.hdf5: cannot be opened as HDF5, it is cut off or another file"):
            open_recorded(path)
