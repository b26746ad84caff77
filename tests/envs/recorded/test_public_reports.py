"""Properties of public bug reports beyond those of the other files here: each is right, or refused with a way out.

The table of them stands in docs/data.md.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from envs.recorded import open_recorded
from envs.specs import DEPTH, STATE
from tests.envs.recorded.writers import FRONT, Recording, as_zarr, film, lerobot, walk, zarr_buffer

pytest.importorskip("pyarrow")
zarr = pytest.importorskip("zarr")


def test_a_joint_that_wraps_is_told(tmp_path: Path) -> None:
    """huggingface/lerobot issue 1255: an encoder of 0 to 4095 goes past its end and begins again."""
    made = walk(4, 60)
    for number, states in enumerate(made.states):
        states[:, 1] = (3500 + 400 * number + 20 * np.arange(60)) % 4096
    recorded = open_recorded(as_zarr(tmp_path / "set", made))
    assert any("observation.state[1] jumps by nearly all of its range in 2 places" in line for line in recorded.opened_as())
    assert recorded.usable.all()
    assert not any("jumps by nearly" in line for line in open_recorded(as_zarr(tmp_path / "calm", walk(4, 60))).notes)


def test_a_renderers_depth_buffer_is_no_depth(tmp_path: Path) -> None:
    """Lifelong-Robot-Learning/LIBERO issue 29: robosuite's depth lies between 0.98 and 0.99."""
    pytest.importorskip("h5py")
    import h5py

    with h5py.File(tmp_path / "set.hdf5", "w") as file:
        file["data/demo_0/actions"], file["data/demo_0/obs/robot0_eef_pos"] = np.zeros((30, 2)), np.zeros((30, 3))
        file["data/demo_0/obs/agentview_depth"] = np.random.default_rng(0).uniform(0.98, 0.99, (30, 4, 5, 1)).astype(np.float32)
    with pytest.raises(ValueError, match=r"agentview_depth: depth lies between 0.98.* as a renderer's depth buffer does"):
        open_recorded(tmp_path / "set.hdf5")
    assert f"{DEPTH}.agentview" not in open_recorded(tmp_path / "set.hdf5", {"agentview_depth": ""}).features


def test_joints_that_are_recorded_faster_than_the_camera_are_refused_with_the_camera(tmp_path: Path) -> None:
    """huggingface/lerobot PR 403: the camera gives 30 frames a second, the joints are recorded at more."""
    pytest.importorskip("av")
    images = tuple(np.full((20, 32, 32, 3), 40, np.uint8) for _ in range(2))
    made = walk(2, 20, fps=60, images=images)
    path = lerobot(tmp_path / "set", made, "v2.1", video=True)
    for number in range(2):
        film(path / f"videos/chunk-000/{FRONT}/episode_{number:06d}.mp4", list(images[0][:10]), 30)
    with pytest.raises(ValueError, match=r"episode 0: .*0.50 frames \(0.0083 s\)|the video ends early"):
        open_recorded(path)
    assert open_recorded(path, features=[STATE]).dt_s == pytest.approx(1 / 60)


def test_lengths_that_belong_to_other_episodes_do_not_move_borders(tmp_path: Path) -> None:
    """unitreerobotics/unitree_lerobot issue 41: by the list's lengths an episode would begin within another."""
    made = Recording(tuple(walk(1, length, seed=length).states[0] for length in (8, 20, 12)),
                     tuple(walk(1, length, seed=length).actions[0] for length in (8, 20, 12)))  # fmt: skip

    def turned(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        for row, length in zip(rows, (8, 12, 12), strict=True):
            row["length"] = length
        return rows

    recorded = open_recorded(lerobot(tmp_path / "set", made, meta=turned))
    assert recorded.episodes == (8, 20, 12) and recorded.notes
    np.testing.assert_array_equal(recorded.read([28], 2)[STATE][0], made.states[2][[0, 0]])


def test_arrays_of_other_lengths_are_refused_by_name_and_can_be_left_out(tmp_path: Path) -> None:
    """real-stanford/reflect issue 3: 12816 rows of everything, 8942 frames of the camera."""
    arrays = {"state": np.zeros((40, 2), np.float32), "img": np.full((40, 4, 5, 3), 90, np.uint8)}
    path = zarr_buffer(tmp_path / "set.zarr", arrays, [20, 20])
    zarr.open_group(path, mode="r+")["data/img"].resize((28, 4, 5, 3))
    with pytest.raises(ValueError, match=r"data/img has 28 frames, expected 40, as meta/episode_ends says; .*--names img="):
        open_recorded(path)
    assert open_recorded(path, {"img": ""}).features == {STATE: (2,)}


def test_a_number_that_never_moves_is_told(tmp_path: Path) -> None:
    """huggingface/lerobot issue 211, X-Square-Robot/wall-x issue 113: a joint that is fixed was divided by a range of 0.

    That it comes out exactly: tests/teachers/networks/test_normalisation.py.
    """
    from envs.recorded.inspection import inspect

    made = walk(3, 12)
    for states in made.states:
        states[:, 0] = 0.1
    told = inspect(open_recorded(as_zarr(tmp_path / "set", made)))
    assert told["constant"][STATE] == ["state_0"]
    assert told["ranges"][STATE][0]["low"] == told["ranges"][STATE][0]["high"] == float(np.float32(0.1))
