"""Sets are compared in units that a glitch cannot inflate, and every number of an action has an error in its own unit."""

from __future__ import annotations

import numpy as np
import torch

from distill.evaluation.fidelity import dimension_figures, measuring_normaliser, set_fidelity
from teachers.networks.normalisation import Normaliser


def _fitted(low: list[float], high: list[float]) -> Normaliser:
    normaliser = Normaliser(1, len(low))
    normaliser.fit({"state": {"min": np.zeros(1), "max": np.ones(1)}, "action": {"min": np.array(low), "max": np.array(high)}})
    return normaliser


def _reference() -> torch.Tensor:
    return torch.rand(6, 16, 4, 2, generator=torch.Generator().manual_seed(0)) * 2 - 1


def test_a_policy_that_is_off_by_its_whole_range_is_off_support_however_wide_the_statistics_are() -> None:
    reference, wide = _reference(), _fitted([-1.0, -1.0], [1.0, 1e4])
    off, weights = reference + torch.tensor([0.0, 2.0]), torch.ones(2)

    def off_support(normaliser: Normaliser) -> float:
        sets = [normaliser.normalise_action(each[:1]) for each in (off, reference)]
        return set_fidelity(sets[0], sets[1], weights)["off_support_share"]

    assert off_support(wide) == 0.0  # what is not to be believed
    mended = measuring_normaliser(wide, reference)
    assert off_support(mended) == 1.0
    assert float(mended.action_high[1]) < 1.2 and float(wide.action_high[1]) == 1e4


def test_statistics_that_fit_are_left_as_they_are_to_the_last_bit() -> None:
    fitted = _fitted([-1.1, -3.0], [1.3, 0.9])
    mended = measuring_normaliser(fitted, _reference())
    assert torch.equal(mended.action_low, fitted.action_low) and torch.equal(mended.action_high, fitted.action_high)


def test_a_chunk_that_diverged_does_not_set_the_unit() -> None:
    reference = _reference()
    reference[0, 3] = 1e6
    mended = measuring_normaliser(_fitted([-1.0, -1.0], [1e6, 1e6]), reference)
    assert float(mended.action_high.max()) < 2.1


def test_errors_are_in_the_numbers_own_units() -> None:
    reference = _reference() * torch.tensor([1.0, 90.0])
    reference[..., 0] = 0.25  # which never moves
    rows = dimension_figures(reference + torch.tensor([0.0, 9.0]), reference, ["gripper", "elbow"])
    assert [row["name"] for row in rows] == ["gripper", "elbow"]
    assert rows[0]["mean_error"] == 0 and rows[0]["mean_error_share"] is None and rows[0]["low"] == rows[0]["high"] == 0.25
    assert abs(rows[1]["mean_error"] - 9) < 1e-4 and abs(rows[1]["mean_error_share"] - 0.05) < 0.005
    assert rows[1]["spread_error"] < 1e-4
