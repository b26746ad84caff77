"""Copies of few observations: how many of each there are, how far they lie from it, and that they are always the same."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from distill.checks import validate
from distill.config import Config, ObservationConfig
from distill.hypotheses.perturbation import perturbed, with_copies, with_perturbed


def test_copies_are_shared_out_over_the_frames() -> None:
    numbers = with_copies(np.array([3, 5, 8]), num_frames=10, count=8, seed=0)
    assert numbers[:3].tolist() == [3, 5, 8]
    assert sorted(numbers[3:6].tolist()) == [13, 15, 18]
    assert set((numbers[6:] - 20).tolist()) < {3, 5, 8} and len(set(numbers.tolist())) == 8
    assert with_copies(np.array([3, 5, 8]), 10, 3, 0).tolist() == [3, 5, 8]


def test_copies_alone_are_moved_all_steps_alike_and_by_the_spread() -> None:
    state = np.zeros((2000, 2, 3), np.float32)
    numbers = np.arange(2000) + 10 * (np.arange(2000) >= 10)  # of 20 frames the first ten are no copies
    spread = np.array([0.5, 0.02, 0.0])
    moved = perturbed(state, numbers, 20, spread, seed=1)
    assert not moved[:10].any() and not state.any()
    np.testing.assert_array_equal(moved[:, 0], moved[:, 1])
    np.testing.assert_allclose(moved[10:, 0].std(0), spread, rtol=0.06)
    np.testing.assert_allclose(moved[10:, 0].mean(0), 0, atol=0.03)
    # of which others it stands among changes nothing; the seed does
    np.testing.assert_array_equal(perturbed(state[:3], numbers[[1500, 4, 1999]], 20, spread, 1), moved[[1500, 4, 1999]])
    assert (perturbed(state[:1], numbers[1500:1501], 20, spread, 2) != moved[1500]).any()


def test_what_cameras_saw_cannot_be_moved() -> None:
    config = Config(task="detour", observation=ObservationConfig(sources=("points",)))
    validate(config)
    with pytest.raises(ValueError, match="sample.perturbation: got 0.2, but images and points cannot be moved"):
        validate(replace(config, sample=replace(config.sample, perturbation=0.2)))
    with pytest.raises(ValueError, match="sample.perturbation"):
        validate(replace(Config(), sample=replace(config.sample, perturbation=-0.1)))


def test_copies_are_looked_at_where_their_frame_was_and_moved() -> None:
    seen = {"observation.state": np.arange(6, dtype=np.float32).reshape(3, 1, 2), "observation.other": np.arange(3.0)}
    asked: list[list[int]] = []

    def observe(frames: np.ndarray) -> dict[str, np.ndarray]:
        asked.append(frames.tolist())
        return {name: values[frames] for name, values in seen.items()}

    numbers, spread = np.array([2, 4, 7]), np.array([0.1, 0.0])
    looked = with_perturbed(observe, 3, spread, seed=5)(numbers)
    assert asked == [[2, 1, 1]]
    assert looked["observation.other"].tolist() == [2.0, 1.0, 1.0]
    expected = perturbed(seen["observation.state"][[2, 1, 1]], numbers, 3, spread, 5)
    np.testing.assert_array_equal(looked["observation.state"], expected)
    np.testing.assert_array_equal(looked["observation.state"][0], seen["observation.state"][2])
    assert (looked["observation.state"][1:, 0, 0] != 2).all() and (looked["observation.state"][1:, 0, 1] == 3).all()
