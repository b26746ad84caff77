"""Which frames of RLBench's demonstrations are kept, and which action each is followed by: hand-made cases."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from envs.rlbench.demonstrations import actions_from_frames, rest_frames, select_frames
from envs.rlbench.frames import KeptFrames, is_still
from envs.rlbench.spec import RLBenchSettings

EVERY = RLBenchSettings(subsample=3)
KEYS = RLBenchSettings(keyframes=True)


def shown(opened: list[float], speeds: list[float] | None = None) -> dict[str, np.ndarray]:
    count = len(opened)
    return {
        "gripper_open": np.array(opened), "joint_velocities": np.outer(speeds or [0.5] * count, np.ones(7)),
        "joint_positions": np.arange(7.0 * count).reshape(count, 7),
        "gripper_pose": np.array([[0.1 * each, 0, 1, 0, 0, 0, 1.0] for each in range(count)]),
    }  # fmt: skip


def test_every_third_frame_the_last_and_each_change_of_the_gripper_are_kept() -> None:
    assert select_frames(shown([1] * 9), EVERY).tolist() == [0, 3, 6, 8]
    assert select_frames(shown([1] * 4 + [0] * 4 + [1]), EVERY).tolist() == [0, 3, 4, 6, 8]
    assert select_frames(shown([1] * 3), replace(EVERY, subsample=1)).tolist() == [0, 1, 2]
    assert select_frames(shown([1] * 2), replace(EVERY, subsample=50)).tolist() == [0, 1]


def test_the_threshold_decides_what_a_change_is() -> None:
    low = shown([1] * 7)
    low["gripper_joint_positions"] = np.outer([1, 1, 0.93, 0.93, 0, 0, 0], [0.04, 0.04])
    assert select_frames(low, replace(EVERY, subsample=6)).tolist() == [0, 4, 6]
    assert select_frames(low, replace(EVERY, subsample=6, gripper_threshold=0.95)).tolist() == [0, 2, 6]


def test_key_frames_are_rests_and_changes_of_the_gripper() -> None:
    speeds = [0, 0.5, 0.5, 0.5, 0.05, 0.5, 0.5, 0.5, 0.5, 0.5, 0.0]
    assert select_frames(shown([1] * 11, speeds), KEYS).tolist() == [0, 4, 10]
    opened = [1.0] * 7 + [0.0] * 4
    assert select_frames(shown(opened, speeds), KEYS).tolist() == [0, 4, 7, 10]
    # a rest just before the end is the end
    assert select_frames(shown([1] * 11, [0.5] * 9 + [0.0] * 2), KEYS).tolist() == [0, 10]
    # one change of the gripper just before the end stays
    assert select_frames(shown([1] * 10 + [0.0], [0.5] * 11), KEYS).tolist() == [0, 10]
    assert select_frames(shown([1] * 9 + [0.0] * 2, [0.5] * 11), KEYS).tolist() == [0, 9, 10]


def test_the_arm_arrives_before_the_gripper_moves() -> None:
    opened, fast = [1.0] * 5 + [0.0] * 5, [0.5] * 10
    assert select_frames(shown(opened, fast), EVERY).tolist() == [0, 3, 5, 6, 9]
    resting = [*fast[:3], 0.01, 0.01, *fast[5:]]
    assert select_frames(shown(opened, resting), EVERY).tolist() == [0, 3, 4, 5, 6, 9]
    # stored demonstrations without velocities have no such frame
    low = {name: values for name, values in shown(opened, resting).items() if name != "joint_velocities"}
    assert select_frames(low, EVERY).tolist() == [0, 3, 5, 6, 9]


@pytest.mark.parametrize("fingers", [False, True])
@pytest.mark.parametrize("settings", [EVERY, replace(EVERY, subsample=7, gripper_threshold=0.95), KEYS])
def test_what_is_kept_is_always_among_the_frames_that_are_rendered(settings: RLBenchSettings, fingers: bool) -> None:
    options = {name: getattr(settings, name) for name in ("keyframes", "subsample", "gripper_threshold")}
    rng, rendered_of = np.random.default_rng(0), []
    for _ in range(200):
        count = int(rng.integers(2, 60))
        opened = (rng.random(count).cumsum() % 8 > 3).astype(float)  # it changes every few frames
        low = shown(opened.tolist(), rng.choice([0.02, 0.09, 0.11, 0.5], count, p=[0.2, 0.2, 0.2, 0.4]).tolist())
        if fingers:
            low["gripper_joint_positions"] = np.outer(np.where(opened, rng.choice([0.93, 1.0], count), 0.0), [0.04, 0.04])
        frames = KeptFrames(options)
        rendered = {each for each in range(count) if frames.may_keep({name: values[each] for name, values in low.items()})}
        kept = select_frames(low, settings)
        assert set(kept[:-1].tolist()) <= rendered and frames.count == count
        # others are rendered only where the arm rests, as the gripper may move next
        assert all(is_still(low["joint_velocities"][frame]) for frame in rendered - set(kept.tolist()))
        rendered_of.append(len(rendered) / count)
    assert np.mean(rendered_of) < 0.8  # it is a choice


def test_an_arm_that_rests_long_rests_every_few_frames_only() -> None:
    assert rest_frames(np.zeros((12, 7)), np.ones(12)).tolist() == [4, 8]


def test_an_action_is_the_pose_or_the_joints_of_the_frame_it_leads_to() -> None:
    low, base = shown([1, 0]), np.array([0.0, 0.0, 0.75])
    np.testing.assert_allclose(
        actions_from_frames(low, base, EVERY),
        [[0, 0, 0.25, 1, 0, 0, 0, 1, 0, 1], [0.1, 0, 0.25, 1, 0, 0, 0, 1, 0, 0]], atol=1e-6,
    )
    joints = actions_from_frames(low, base, replace(EVERY, arm="joints"))
    np.testing.assert_array_equal(joints, [[0, 1, 2, 3, 4, 5, 6, 1], [7, 8, 9, 10, 11, 12, 13, 0]])
    assert joints.dtype == np.float32


def test_a_demonstration_that_shows_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="a demonstration of 1 frames shows no action"):
        select_frames(shown([1]), EVERY)
    low = shown([1, 1])
    del low["joint_velocities"]
    assert select_frames(low, EVERY).tolist() == [0, 1]
    with pytest.raises(ValueError, match="key frames need the joints' velocities"):
        select_frames(low, KEYS)
