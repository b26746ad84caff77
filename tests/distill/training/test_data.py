"""distill/training/data.py: ranges of demonstrations with floors and motions, and moved batches for any number of processes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from distill.inputs.observations import DemonstratedObservations, numbered_motions
from distill.training import data
from distill.training.data import moved, normaliser_of, resident, widened, windows_for
from distill.training.loop import Share, step_generator
from envs.demonstrations import Demonstration, Demonstrations
from envs.poses import LEAST_HALF_RANGES, pose_layout
from envs.rlbench.spec import POSE, RLBenchSettings, task_spec
from envs.specs import POINTS, STATE
from teachers.networks.scene_motions import MotionRange
from teachers.networks.shapes import EncoderShape, PolicyShape

SETTINGS = RLBenchSettings()
SPEC = task_spec("rlbench/reach_target", SETTINGS)
FRAMES = 6


def _shape(encoder: EncoderShape | None) -> PolicyShape:
    return PolicyShape(SPEC.name, SPEC.state_names, POSE, SPEC.action.weights, SPEC.dt_s, 1, 8, 16, 1, 2, 8, encoder)


@pytest.fixture
def demonstrations() -> Demonstrations:
    rng = np.random.default_rng(0)
    episodes = []
    for start in range(3):
        state = np.zeros((FRAMES, 17), np.float32)
        state[:, 0] = 0.3 + 0.2 * rng.uniform(size=FRAMES)
        state[:, 1] = 1e-3 * rng.uniform(size=FRAMES)
        state[:, 3] = 1 - 1e-4 * rng.uniform(size=FRAMES)
        state[:, 7] = -1.0
        action = state[:, :10].copy()
        action[:, 9] = 1.0
        episodes.append(Demonstration(state, action, state[:, :3], np.array([0.0, -1, start, 1]), "solved", None))
    return Demonstrations.from_episodes(SPEC, episodes, range(3))


def test_small_ranges_are_widened_about_their_centre_and_constants_stay(demonstrations: Demonstrations) -> None:
    normaliser = normaliser_of(demonstrations, _shape(None))
    low, high = demonstrations.action.min(0), demonstrations.action.max(0)
    centre, half = normaliser.centre_scale("action")
    np.testing.assert_allclose(centre.numpy(), (low + high) / 2, atol=1e-6)
    # x varies by more than the least range
    assert half[0].item() == pytest.approx((high[0] - low[0]) / 2, rel=1e-5)
    assert half[1].item() == pytest.approx(LEAST_HALF_RANGES["position"], rel=1e-5)
    assert half[3].item() == pytest.approx(LEAST_HALF_RANGES["rotation"], rel=1e-5)
    # what never changes comes out exactly, whatever a network predicts
    wild = normaliser.unnormalise_action(torch.full((1, 10), 3.0))
    assert wild[0, 7].item() == -1.0 and wild[0, 9].item() == 1.0


def test_widened_by_hand() -> None:
    layout = pose_layout(("x_m", "y_m", "z_m", "gripper_open", "speed"))
    got = widened(np.array([0.0, 0.2, 0.5, 0.0, 0.0]), np.array([0.2, 0.22, 0.5, 1.0, 1e-3]), layout)
    np.testing.assert_allclose(got["min"], [0.0, 0.16, 0.5, 0.0, 0.0], atol=1e-12)
    np.testing.assert_allclose(got["max"], [0.2, 0.26, 0.5, 1.0, 1e-3], atol=1e-12)


def test_ranges_cover_moved_scenes(demonstrations: Demonstrations) -> None:
    motions = MotionRange(translate_m=0.2, rotate_deg=20)
    plain, wide = (normaliser_of(demonstrations, _shape(None), each) for each in (MotionRange(), motions))
    # turned by 20 degrees, a point 0.3 to 0.5 m from the base moves sideways by at most 0.5 sin 20, then 0.2 m along each axis
    assert 0.2 < wide.action_high[1].item() <= 0.5 * np.sin(np.radians(20)) + 0.2 + 1e-3
    assert wide.action_low[0].item() < plain.action_low[0].item() - 0.1
    # z and the gripper do not turn; z moves up and down
    assert wide.action_high[2].item() == pytest.approx(0.2, abs=0.03)
    assert wide.action_high[9].item() == plain.action_high[9].item()
    again = normaliser_of(demonstrations, _shape(None), motions)
    assert torch.equal(wide.action_high, again.action_high)


def _batch(count: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(2)
    return {STATE: torch.randn(count, 1, 17, generator=generator), POINTS: torch.rand(count, 1, 12, 3, generator=generator),
            "action": torch.randn(count, 8, 10, generator=generator)}  # fmt: skip


def test_two_processes_move_the_rows_that_one_moves() -> None:
    shape = _shape(EncoderShape(state_names=POSE, num_points=12, width=16, heads=2))
    motions, batch = MotionRange(0.1, 9, 0.2), _batch(6)
    whole = moved(batch, shape, motions, 6, step_generator(0, 5), Share())
    for rank in range(2):
        share = Share(rank, 2)
        part = moved({name: share.of(value) for name, value in batch.items()}, shape, motions, 6, step_generator(0, 5), share)
        for name, value in part.items():
            torch.testing.assert_close(value, share.of(whole[name]), rtol=0, atol=1e-6)


def test_without_motions_nothing_is_drawn() -> None:
    generator, batch = step_generator(0, 5), _batch(2)
    before = generator.get_state()
    assert moved(batch, _shape(None), MotionRange(), 2, generator, Share()) is batch
    assert torch.equal(generator.get_state(), before)


class _Stage:
    """A finished stage with these demonstrations."""

    key = "0" * 64
    needs = ()

    def __init__(self, demonstrations: Demonstrations) -> None:
        self._demonstrations = demonstrations

    def cached_result(self, context: Any) -> Demonstrations:
        return self._demonstrations


def test_numbered_observations_are_moved_by_number_and_seed_alone(demonstrations: Demonstrations) -> None:
    stage: Any = _Stage(demonstrations)
    context: Any = type("Context", (), {"share": Share()})()
    shape = _shape(None)
    still = DemonstratedObservations(stage)
    moving = DemonstratedObservations(stage, MotionRange(0.2, 20), seed=3)
    assert still.key == stage.key != moving.key and not still.moves and moving.moves
    count = demonstrations.num_frames
    numbers = np.array([4, 4 + count, 4 + 2 * count, 5])
    seen = moving.observe(context, shape)(numbers)[STATE]
    # the copies of a frame are different scenes, and a number is the same scene in any batch
    assert len({tuple(row[0, :3]) for row in seen[:3]}) == 3
    np.testing.assert_array_equal(moving.observe(context, shape)(numbers[2:3])[STATE][0], seen[2])
    original = still.observe(context, shape)(np.array([4]))[STATE]
    motions = numbered_motions(MotionRange(0.2, 20), 3, numbers[:1])
    expected = motions.rotation_B33[0].numpy() @ original[0, 0, :3] + motions.translation_B3[0].numpy()
    np.testing.assert_allclose(seen[0, 0, :3], expected, atol=1e-6)


@pytest.mark.parametrize("most", [2**30, 10])
def test_held_rows_are_the_rows_that_are_read(demonstrations: Demonstrations, most: int, monkeypatch: Any) -> None:
    """Read once where they fit, else every time."""
    windows, asked = windows_for(demonstrations, _shape(None), 2, 8), []

    def read(rows: torch.Tensor) -> dict[str, torch.Tensor]:
        asked.append(len(rows))
        return windows[rows.numpy()]

    monkeypatch.setattr(data, "MOST_BYTES", most)
    held = resident(read, len(windows), torch.device("cpu"))
    rows = torch.tensor([5, 0, 17, 5])
    for _ in range(2):
        batch, expected = held(rows), windows[rows.numpy()]
        assert batch.keys() == expected.keys() and all(torch.equal(batch[name], expected[name]) for name in expected)
    assert asked == ([1, len(windows)] if most > 10 else [1, 4, 4])


def test_images_are_never_held() -> None:
    asked: list[int] = []

    def read(rows: torch.Tensor) -> dict[str, torch.Tensor]:
        asked.append(len(rows))
        return {"observation.images.front": torch.ones(len(rows), 1)}

    reader = resident(read, 3, torch.device("cpu"))
    assert len(reader(torch.arange(2))["observation.images.front"]) == 2 and asked == [1, 2]
