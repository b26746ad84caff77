"""What was demonstrated, at run time: the monitor and the nearest demonstration by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from distill.config import Config
from distill.evaluation import monitor as monitoring
from distill.evaluation.monitor import SupportMonitor
from distill.evaluation.nearest_demonstration import DemonstrationMemory, NearestDemonstration
from distill.evaluation.policies import device_of, postprocess, sample_set
from distill.evaluation.rollouts import query_policy
from distill.inputs.rollouts import monitor_of
from envs import task_spec
from envs.demonstrations import Demonstration, Demonstrations
from envs.specs import STATE
from students.selection import SINGLE_SAMPLE, Memory
from teachers.networks.normalisation import Normaliser


def _set(policy: NearestDemonstration, state_1OS: np.ndarray, samples: int) -> np.ndarray:
    """Raw chunks `[S, T, A]`."""
    generator = torch.Generator().manual_seed(0)
    return postprocess(policy, sample_set(policy, {STATE: state_1OS}, generator, samples, SINGLE_SAMPLE, 8))


def _normaliser(statistics: dict[str, dict[str, np.ndarray]]) -> Normaliser:
    normaliser = Normaliser(2, 2)
    normaliser.fit(statistics)
    return normaliser


def test_a_monitor_by_hand(statistics) -> None:
    # one normalised dimension moves: 0, 0.1, 0.2 in the first group, 0.4, 0.5 in the second, 1 in the third
    position = torch.tensor([0.0, 0.1, 0.2, 0.4, 0.5, 1.0])
    states = torch.stack([0.5 + 0.25 * position, torch.zeros(6)], -1)[:, None]
    groups = torch.tensor([0, 0, 0, 1, 1, 2])
    monitor = SupportMonitor(states, groups, _normaliser(statistics), quantile=1.0)
    # to another group: 0.4, 0.3, 0.2, 0.2, 0.3, 0.5; the root mean square over two dimensions halves the square
    half = 0.5**0.5
    assert monitor.threshold == pytest.approx(0.5 * half, rel=1e-5)
    assert SupportMonitor(states, groups, _normaliser(statistics), 0.5).threshold == pytest.approx(0.3 * half, rel=1e-5)
    asked = torch.tensor([[[0.5 + 0.25 * 0.3, 0.0]], [[0.75, 0.3 * 0.49]], [[0.75, 0.3 * 0.51]]])
    expected = torch.tensor([0.1, 0.49, 0.51]) * half
    torch.testing.assert_close(monitor.distance(asked), expected)
    assert [monitor.is_out_of_distribution(state) for state in asked] == [False, False, True]
    assert monitor.is_out_of_distribution(torch.full((1, 2), torch.nan))
    assert not any(monitor.is_out_of_distribution(state) for state in states)
    for bad in (torch.zeros(6, dtype=torch.long), torch.arange(5)):
        with pytest.raises(ValueError, match="two groups or more"):
            SupportMonitor(states, bad, _normaliser(statistics))


def test_there_is_no_monitor_of_one_demonstrated_start(demonstrations: Demonstrations) -> None:
    shape = Config().shape(demonstrations.spec)
    assert monitor_of(demonstrations, shape) is not None
    assert monitor_of(replace(demonstrations, start_index=np.zeros(3, int)), shape) is None


def test_a_monitor_calls_about_one_new_observation_in_a_hundred_foreign(statistics, monkeypatch) -> None:
    low, high = torch.tensor([0.25, -0.3]), torch.tensor([0.75, 0.3])
    inside = low + (high - low) * torch.rand(3000, 1, 2, generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr(monitoring, "CALIBRATION", 700)
    monitor = SupportMonitor(inside[:1500], torch.arange(1500), _normaliser(statistics))
    share = float((monitor.distance(inside[1500:]) > monitor.threshold).float().mean())
    assert 0.002 < share < 0.03
    assert monitor.is_out_of_distribution(torch.tensor([[0.5, 0.5]]))


@pytest.fixture
def demonstrations() -> Demonstrations:
    """Three episodes of 12 frames of task avoid, side by side; the third is far."""
    spec = task_spec("avoid")
    episodes = []
    for number, offset in enumerate((0.0, 0.02, 0.2)):
        x = np.linspace(0.3, 0.6, 12)
        state = np.stack([x, np.full(12, offset)], -1)
        action = np.stack([x + 0.01, np.full(12, offset + 0.1 * number)], -1)
        episodes.append(Demonstration(
            state=state.astype(np.float32), action=action.astype(np.float32), tool=np.zeros((12, 3), np.float32),
            start=np.zeros(len(spec.start_names)), mode=spec.modes[number % 2],
        ))  # fmt: skip
    return Demonstrations.from_episodes(spec, episodes, [0, 0, 1])


def test_the_nearest_demonstration_is_a_policy(demonstrations: Demonstrations, small_shape, statistics) -> None:
    memory = DemonstrationMemory(demonstrations, small_shape, _normaliser(statistics))
    policy = NearestDemonstration(memory)
    assert (policy.name, policy.evaluations, policy.shape) == ("nearest_demonstration", 0, small_shape)
    assert device_of(policy).type == "cpu" and not any(value.requires_grad for value in memory.parameters())
    # frames 3 and 4 of the second episode, a little off
    state = demonstrations.state[[12 + 3, 12 + 4]][None] + np.float32(0.002)
    chunks = _set(policy, state, 3)
    assert chunks.shape == (3, 8, 2)
    np.testing.assert_allclose(chunks, np.repeat(demonstrations.action[None, 16:24], 3, 0), atol=1e-6)
    # the end of the far episode: its last action goes on
    state = demonstrations.state[[34, 35]][None]
    chunk = _set(policy, state, 1)[0]
    np.testing.assert_allclose(chunk, np.repeat(demonstrations.action[None, 35], 8, 0), atol=1e-6)


def test_one_of_several_neighboursis_drawn_each_from_another_episode(
    demonstrations: Demonstrations, small_shape, statistics
) -> None:
    policy = NearestDemonstration(DemonstrationMemory(demonstrations, small_shape, _normaliser(statistics)), 2)
    states = np.stack([demonstrations.state[[3, 4]], demonstrations.state[[24 + 3, 24 + 4]]])

    def plans(states: np.ndarray, first_seed: int) -> np.ndarray:
        generators = [torch.Generator().manual_seed(first_seed + row) for row in range(len(states))]
        return query_policy(policy, {STATE: states}, generators, SINGLE_SAMPLE, [Memory() for _ in states], 8)[0]

    chunks = plans(states.repeat(200, 0), 0).reshape(2, 200, 8, 2)
    for row, frames in ((0, (4, 16)), (1, (28, 16))):  # the second row's nearest other episode is the middle one
        for frame in frames:
            same = np.abs(chunks[row] - demonstrations.action[frame : frame + 8]).max((1, 2)) < 1e-5
            assert 70 < same.sum() < 130
            drawn = np.abs(_set(policy, states[row : row + 1], 200) - demonstrations.action[frame : frame + 8]).max((1, 2))
            assert 70 < (drawn < 1e-5).sum() < 130
    np.testing.assert_array_equal(plans(states[1:].repeat(200, 0), 200), chunks[1])


def test_neighboursmust_be_in_number_of_the_episodes(demonstrations: Demonstrations, small_shape, statistics) -> None:
    memory = DemonstrationMemory(demonstrations, small_shape, _normaliser(statistics))
    for neighbours in (0, 4):
        with pytest.raises(ValueError, match="expected 1 to 3: one from each episode"):
            NearestDemonstration(memory, neighbours)
