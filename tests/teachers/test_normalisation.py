"""Normalisation by hand, a dimension that never moves, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from teachers.normalisation import Normaliser


def _fitted() -> Normaliser:
    normaliser = Normaliser(2, 3)
    normaliser.fit({
        "state": {"min": np.array([0.0, -1.0]), "max": np.array([2.0, 3.0])},
        "action": {"min": np.array([0.2, 5.0, -4.0]), "max": np.array([0.8, 5.0, -4.0 + 1e-7])},
    })  # fmt: skip
    return normaliser


def test_states_by_hand() -> None:
    # centres 1 and 1, half ranges 1 and 2
    got = _fitted().normalise_state(torch.tensor([[[0.0, -1.0], [2.0, 3.0]], [[1.0, 1.0], [1.5, 5.0]]]))
    assert got.tolist() == [[[-1.0, -1.0], [1.0, 1.0]], [[0.0, 0.0], [0.5, 2.0]]]


def test_actions_by_hand_and_a_dimension_that_never_moves_is_only_shifted() -> None:
    # centres 0.5, 5, -4; half range 0.3 in the first only
    got = _fitted().normalise_action(torch.tensor([[0.2, 5.0, -4.0], [0.8, 5.5, -3.0], [0.5, 4.0, -4.25]]))
    expected = torch.tensor([[-1.0, 0.0, 0.0], [1.0, 0.5, 1.0], [0.0, -1.0, -0.25]])
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-6)


def test_actions_go_there_and_back() -> None:
    normaliser = _fitted()
    raw = torch.randn(7, 4, 3, generator=torch.Generator().manual_seed(0)) * torch.tensor([0.3, 1.0, 2.0])
    torch.testing.assert_close(normaliser.unnormalise_action(normaliser.normalise_action(raw)), raw, rtol=0, atol=2e-6)


def test_the_statistics_travel_with_the_weights() -> None:
    copy = Normaliser(2, 3)
    copy.load_state_dict(_fitted().state_dict())
    raw = torch.tensor([0.3, 5.1, -3.9])
    assert torch.equal(copy.normalise_action(raw), _fitted().normalise_action(raw))


@pytest.mark.parametrize("which", ["normalise_state", "normalise_action", "unnormalise_action"])
def test_nothing_can_be_done_before_the_statistics_are_there(which: str) -> None:
    with pytest.raises(ValueError, match="statistics"):
        getattr(Normaliser(2, 2), which)(torch.zeros(1, 2))


def test_check_names_what_is_unset() -> None:
    normaliser = _fitted()
    normaliser.check()
    normaliser.action_high[1] = torch.inf
    with pytest.raises(ValueError, match=r"\['action_high'\] are not finite"):
        normaliser.check()
    with pytest.raises(ValueError, match="state_low.*state_high.*action_low.*action_high"):
        Normaliser(2, 3).check()


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (np.array([1.0, 2.0, 3.0]), r"state \(max\): got shape \(3,\).*expected \(2,\)"),
        (np.array([1.0, np.nan]), r"state \(max\).*finite=False"),
        (np.array([1.0, np.inf]), r"state \(max\).*finite=False"),
    ],
)
def test_statistics_of_the_wrong_size_or_not_finite_are_refused(value: np.ndarray, message: str) -> None:
    whole = {"state": {"min": np.zeros(2), "max": value}, "action": {"min": np.zeros(3), "max": np.ones(3)}}
    with pytest.raises(ValueError, match=message):
        Normaliser(2, 3).fit(whole)
