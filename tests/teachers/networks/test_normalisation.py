"""Normalisation by hand, a dimension that never moves, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from envs.specs import POINTS
from teachers.networks.normalisation import Normaliser, fill_unknown, observed_ranges


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


def test_statistics_that_change_after_they_were_used_are_used() -> None:
    normaliser = _fitted()
    assert normaliser.normalise_state(torch.tensor([1.0, 1.0])).tolist() == [0.0, 0.0]
    normaliser.fit({
        "state": {"min": np.zeros(2), "max": np.array([4.0, 2.0])}, "action": {"min": np.zeros(3), "max": np.ones(3)},
    })  # fmt: skip
    assert normaliser.normalise_state(torch.tensor([1.0, 1.0])).tolist() == [-0.5, 0.0]
    normaliser.state_high[0] = torch.nan
    with pytest.raises(ValueError, match="state_high.*not finite"):
        normaliser.normalise_state(torch.tensor([1.0, 1.0]))


def test_actions_go_there_and_back() -> None:
    normaliser = _fitted()
    raw = torch.randn(7, 4, 3, generator=torch.Generator().manual_seed(0)) * torch.tensor([0.3, 1.0, 2.0])
    raw[..., 1:] = normaliser.action_low[1:]  # which never move
    torch.testing.assert_close(normaliser.unnormalise_action(normaliser.normalise_action(raw)), raw, rtol=0, atol=2e-6)


def test_an_action_that_never_moves_comes_out_exactly_whatever_the_network_says() -> None:
    normaliser = Normaliser(1, 3)
    held = np.array([0.1, -7.3e5, 3e-8])
    normaliser.fit({"state": {"min": np.zeros(1), "max": np.ones(1)}, "action": {"min": held, "max": held}})
    noise = torch.randn(5, 3, generator=torch.Generator().manual_seed(0)) * 100
    assert torch.equal(normaliser.unnormalise_action(noise), torch.from_numpy(held).float().expand(5, 3))


def test_a_few_wrong_pixels_and_points_do_not_set_robust_ranges() -> None:
    rng = np.random.default_rng(0)
    depth, points = rng.uniform(0.5, 1.5, (4, 1, 1, 20, 20)), rng.uniform(-0.4, 0.4, (4, 1, 300, 3))
    depth[2, 0, 0, 3, 4], points[1, 0, 7, 2] = 65.5, 900.0
    seen = {"observation.depth.front": torch.from_numpy(depth), POINTS: torch.from_numpy(points)}
    ranges = observed_ranges([seen], robust=True)
    assert ranges["depth"]["max"][0] < 2.1 and ranges["depth"]["min"][0] >= 0.5
    assert (ranges["points"]["max"] < 0.9).all() and (ranges["points"]["min"] >= -0.4).all()
    assert observed_ranges([seen])["depth"]["max"][0] == 65.5


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


# -- what cameras see --------------------------------------------------------------------------------------------------


def _seeing() -> Normaliser:
    normaliser = Normaliser(1, 1, depth=True, points=True)
    one = {"min": np.zeros(1), "max": np.ones(1)}
    normaliser.fit({
        "state": one, "action": one, "depth": {"min": np.array([0.5]), "max": np.array([1.5])},
        "points": {"min": np.array([0.0, -1.0, 0.25]), "max": np.array([1.0, 3.0, 0.25])},
    })  # fmt: skip
    return normaliser


def test_there_are_statistics_only_of_what_is_seen() -> None:
    assert list(Normaliser(2, 3).state_dict()) == ["state_low", "state_high", "action_low", "action_high"]
    assert list(_seeing().state_dict())[4:] == ["depth_low", "depth_high", "points_low", "points_high"]
    with pytest.raises(ValueError, match=r"got \['action', 'state'\], but not \['depth', 'points'\].*observed_ranges"):
        _seeing().fit({name: {"min": np.zeros(1), "max": np.ones(1)} for name in ("state", "action")})
    unset = Normaliser(1, 1, points=True)
    with pytest.raises(ValueError, match="points_low.*points_high.*are not finite"):
        unset.normalise_points(torch.zeros(1, 1, 2, 3))


def test_depth_by_hand_and_whether_it_is_known() -> None:
    depth = torch.tensor([[0.5, 1.0], [torch.nan, 1.5]])[None, None, None]
    got = _seeing().normalise_depth(depth)
    assert got.shape == (1, 1, 2, 2, 2)
    assert got[0, 0, 0].tolist() == [[-1.0, 0.0], [0.0, 1.0]]  # made up from the three around it: (-1 + 0 + 1) / 3
    assert got[0, 0, 1].tolist() == [[1.0, 1.0], [0.0, 1.0]]


def test_points_and_colours_by_hand() -> None:
    # centres 0.5, 1, 0.25; half ranges 0.5, 2 and none
    got = _seeing().normalise_points(torch.tensor([[[[1.0, 0.0, 0.5, 0.0, 0.5, 1.0]]]]))
    assert got.flatten().tolist() == [1.0, -0.5, 0.25, -1.0, 0.0, 1.0]
    assert _seeing().normalise_image(torch.tensor([0.0, 0.25, 1.0])).tolist() == [-1.0, -0.5, 1.0]


def test_an_unknown_pixel_takes_the_mean_of_the_known_ones_near_it() -> None:
    value = torch.randn(2, 3, 1, 9, 8, generator=torch.Generator().manual_seed(0))
    known = torch.rand(2, 3, 1, 9, 8, generator=torch.Generator().manual_seed(1)) > 0.7
    known[0, 0, 0, :6, :6] = False  # a hole in whose middle nothing is near
    known[1, 2] = False
    filled = fill_unknown(torch.where(known, value, torch.full_like(value, 0.0)), known)
    assert torch.equal(filled[known], value[known]) and not filled[1, 2].any()
    for b, o, i, j in (~known).nonzero()[:, [0, 1, 3, 4]].tolist():
        window = (b, o, 0, slice(max(0, i - 2), i + 3), slice(max(0, j - 2), j + 3))
        near, every = value[window][known[window]], value[b, o][known[b, o]]
        expected = float(near.mean() if len(near) else every.mean() if len(every) else 0.0)
        assert float(filled[b, o, 0, i, j]) == pytest.approx(expected, abs=1e-5)
    assert not known[0, 0, 0, :5, :5].any()


def test_ranges_are_those_of_everything_observed() -> None:
    depth = torch.tensor([1.0, torch.nan, 0.75, 2.0]).view(1, 1, 1, 2, 2)
    cloud = torch.tensor([[0.1, -0.2, 0.3, 9.0, 9.0, 9.0], [0.4, 0.0, -0.5, 9.0, 9.0, 9.0]])[None, None]
    got = observed_ranges([
        {"observation.depth.a": depth, "observation.depth.b": depth / 2, "observation.points": cloud},
        {"observation.points": cloud + 1, "observation.state": torch.tensor([torch.nan])},
    ])  # fmt: skip
    assert set(got) == {"depth", "points"}
    assert (got["depth"]["min"].tolist(), got["depth"]["max"].tolist()) == ([0.375], [2.0])
    np.testing.assert_allclose(got["points"]["min"], [0.1, -0.2, -0.5], atol=1e-6)
    np.testing.assert_allclose(got["points"]["max"], [1.4, 1.0, 1.3], atol=1e-6)
    depth, points = "observation.depth.a", "observation.points"
    for name, value in ((depth, torch.nan), (depth, torch.inf), (points, torch.nan)):
        with pytest.raises(ValueError, match=f"{name}: got . known values, or infinity"):
            observed_ranges([{name: torch.full((1, 1, 1, 2, 3), value)}])
