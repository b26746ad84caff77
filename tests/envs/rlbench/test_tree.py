"""RLBench's stored demonstrations are read as its generator left them, and what is wrong with them is named."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from envs.rlbench.tree import BASE_M, StoredEpisode, base_position, descriptions, episode, episodes, metric_depth

Store = Callable[..., Path]


def test_an_episode_is_read_whole(store_rlbench: Store) -> None:
    root = store_rlbench(episodes=2, frames=4, size=[18, 24])
    assert episodes(root, "reach_target", 0) == [0, 1]
    assert descriptions(root, "reach_target", 0) == ["do reach_target", "variation 0"]
    assert descriptions(root, "reach_target", 7) == []
    stored = episode(root, "reach_target", 0, 1)
    assert len(stored) == 4 and stored.attempts == 1 and stored.variation == 0 and stored.random_state[0] == "MT19937"
    np.testing.assert_allclose(stored.base, [-0.27, 0.01, 0.75])
    shapes = {name: values.shape for name, values in stored.low.items()}
    assert shapes["gripper_pose"] == shapes["joint_positions"] == (4, 7) and shapes["gripper_open"] == (4,)
    assert shapes["wrist.extrinsics"] == (4, 4, 4) and shapes["front.intrinsics"] == (4, 3, 3)
    np.testing.assert_allclose(stored.low["gripper_pose"][0, :3], [0.28, 0.01, 1.40])
    seen = stored.images([1, 3], ["front", "wrist"], rgb=True, depth=True)
    assert {name: (values.shape, values.dtype.name) for name, values in seen.items()} == {
        "front.rgb": ((2, 18, 24, 3), "uint8"), "front.depth": ((2, 18, 24), "float32"),
        "wrist.rgb": ((2, 18, 24, 3), "uint8"), "wrist.depth": ((2, 18, 24), "float32"),
    }  # fmt: skip
    assert set(stored.images([0], ["front"], rgb=False, depth=True)) == {"front.depth"}


def test_depth_is_24_bits_from_the_near_to_the_far_plane() -> None:
    picture = np.zeros((1, 3, 3), np.uint8)
    picture[0, 1] = (255, 255, 255)
    picture[0, 2] = (1, 2, 3)  # 65536 + 512 + 3
    np.testing.assert_allclose(metric_depth(picture, 0.5, 4.5), [[0.5, 4.5, 0.5 + 66051 / 16777215 * 4]], rtol=1e-6)


def test_depth_comes_back_to_a_tenth_of_a_millimetre(store_rlbench: Store) -> None:
    stored = episode(store_rlbench(episodes=2, frames=4, size=[18, 24]), "reach_target", 0, 0)
    depth = stored.images([0], ["overhead"], rgb=False, depth=True)["overhead.depth"][0]
    # from 2.0 m straight down on a table at 0.75 m: the rays' z is the height above it
    pose, matrix = stored.low["overhead.extrinsics"][0], stored.low["overhead.intrinsics"][0]
    ray = pose[:3, :3] @ np.linalg.inv(matrix) @ [0, 0, 1]
    assert depth[0, 0] == pytest.approx((0.75 - 2.0) / ray[2], abs=1e-4)


def test_episodes_are_listed_by_number_not_by_name(tmp_path: Path) -> None:
    for name in ("episode10", "episode2", "episode", "other3"):
        (tmp_path / "t" / "variation0" / "episodes" / name).mkdir(parents=True)
    assert episodes(tmp_path, "t", 0) == [2, 10]
    with pytest.raises(ValueError, match="variation1/episodes holds no episode<e>: give the folder that holds the tasks"):
        episodes(tmp_path, "t", 1)


def test_the_base_stands_a_third_of_a_metre_below_the_first_joint() -> None:
    np.testing.assert_allclose(base_position([[1.0, 2.0, 3.0, 0, 0, 0, 1]]), [1.0, 2.0, 2.667])
    np.testing.assert_allclose(base_position(None), BASE_M)


def test_demonstrations_from_before_the_joints_were_stored_have_the_scenes_base(store_rlbench: Store) -> None:
    stored = episode(store_rlbench(episodes=1, frames=2, images=False, joint_poses=False), "reach_target", 0, 0)
    np.testing.assert_allclose(stored.base, BASE_M)


def test_what_is_missing_is_named(store_rlbench: Store, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="low_dim_obs.pkl is missing"):
        StoredEpisode(tmp_path)
    (tmp_path / "low_dim_obs.pkl").write_bytes(b"\x80\x04]\x94.")
    with pytest.raises(ValueError, match="holds no demonstration with observations"):
        StoredEpisode(tmp_path)
    whole = store_rlbench(episodes=2, frames=4, size=[18, 24]) / "reach_target/variation0/episodes/episode0"
    copy = tmp_path / "copy"
    shutil.copytree(whole, copy)
    (copy / "front_depth" / "2.png").unlink()
    stored = StoredEpisode(copy)
    with pytest.raises(ValueError, match="front_depth/2.png is missing: leave its camera out, or record again"):
        stored.images([2], ["front"], rgb=True, depth=True)
    assert stored.images([2], ["front"], rgb=True, depth=False)["front.rgb"].shape == (1, 18, 24, 3)


def test_a_foreign_class_is_refused_with_the_files_name(tmp_path: Path) -> None:
    (tmp_path / "low_dim_obs.pkl").write_bytes(b"cos\nsystem\n(S'true'\ntR.")
    with pytest.raises(ValueError, match=r"low_dim_obs.pkl: the pickle names 'os.system', expected only") as caught:
        StoredEpisode(tmp_path)
    assert "\n" not in str(caught.value)
