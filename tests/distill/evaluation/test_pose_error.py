"""distill/evaluation/pose_error.py: the nearest sample's last pose, angles between rotations, and the frames that are used."""

from __future__ import annotations

import numpy as np
from scipy.spatial.transform import Rotation

from distill.evaluation.pose_error import first_and_other_frames, pose_errors, summarise_errors
from envs.poses import pose_layout
from envs.rlbench.spec import POSE


def _action(xyz: tuple[float, float, float], rotation: Rotation) -> np.ndarray:
    matrix = rotation.as_matrix()
    return np.concatenate([xyz, matrix[:, 0], matrix[:, 1], [1.0]])


def test_the_nearest_samples_last_pose_counts() -> None:
    shown = np.zeros((1, 2, 10))
    shown[0, 1] = _action((0.5, 0.0, 0.3), Rotation.identity())
    chunks = np.zeros((1, 3, 2, 10))
    chunks[0, :, 0] = 9.0  # only the last action counts
    chunks[0, 0, 1] = _action((0.5, 0.3, 0.3), Rotation.identity())
    chunks[0, 1, 1] = _action((0.53, 0.04, 0.3), Rotation.from_euler("y", 20, degrees=True))
    chunks[0, 2, 1] = _action((0.1, 0.0, 0.3), Rotation.identity())
    # a network's columns are neither unit vectors nor quite at right angles
    chunks[0, 1, 1, 3:6] *= 1.3
    chunks[0, 1, 1, 6:9] += 0.2 * chunks[0, 1, 1, 3:6]
    errors = pose_errors(chunks, shown, pose_layout(POSE))
    np.testing.assert_allclose(errors["position_m"], [0.05], atol=1e-9)
    np.testing.assert_allclose(errors["rotation_deg"], [20.0], atol=1e-5)
    assert summarise_errors(errors)["position_m"] == {"mean": errors["position_m"][0], "median": errors["position_m"][0]}


def test_a_task_in_the_plane_has_positions_only() -> None:
    errors = pose_errors(np.array([[[[3.0, 4.0]]]]), np.zeros((1, 1, 2)), pose_layout(("x_m", "y_m")))
    assert list(errors) == ["position_m"] and errors["position_m"][0] == 5.0


def test_half_of_the_frames_are_first_ones() -> None:
    episode = np.repeat(np.arange(10), 7)
    frames = first_and_other_frames(episode, 12, seed=0)
    assert len(frames) == len(set(frames.tolist())) == 12
    assert (frames % 7 == 0).sum() >= 6
    assert len(first_and_other_frames(episode[:5], 12, seed=0)) == 5
    np.testing.assert_array_equal(frames, first_and_other_frames(episode, 12, seed=0))
