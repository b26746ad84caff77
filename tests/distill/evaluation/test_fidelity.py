"""Fidelity of sets: small cases by hand, equal sets, far sets, and never pooled."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from distill.evaluation.fidelity import average, set_fidelity
from distill.hypotheses.distances import neighbour_radii
from students.selection import SAME_PLAN

ONE = torch.ones(1)


def _line(*observations: list[float]) -> Tensor:
    """Chunks of one action of one dimension, whose distance is |a - b|."""
    return torch.tensor(observations)[:, :, None, None]


def _randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_radii_by_hand() -> None:
    points = torch.tensor([[[0.0], [1.0], [3.0], [7.0]]])
    assert neighbour_radii(points, 1)[0].tolist() == pytest.approx([1, 1, 2, 4])
    assert neighbour_radii(points, 2)[0].tolist() == pytest.approx([3, 2, 3, 6])


def test_a_small_case_by_hand() -> None:
    # One neighbour. Teacher 0, 1, 3, 7: radii 1, 1, 2, 4. Policy 0.5, 0.6, 12: radii 0.1, 0.1, 11.4.
    got = set_fidelity(_line([0.5, 0.6, 12.0]), _line([0.0, 1.0, 3.0, 7.0]), ONE, neighbours=1)
    # nearest teacher of 0.5, 0.6, 12: 0.5, 0.4, 5. nearest policy of 0, 1, 3, 7: 0.5, 0.4, 2.4, 5
    assert got["chamfer_student_to_teacher"] == pytest.approx(5.9 / 3, abs=1e-5)
    assert got["chamfer_teacher_to_student"] == pytest.approx(8.3 / 4, abs=1e-5)
    assert got["precision"] == pytest.approx(2 / 3)  # 12 is 5 from 7, whose ball reaches 4
    assert got["recall"] == pytest.approx(3 / 4)  # 12's ball holds 1, 3, 7; none holds 0
    assert got["coverage"] == pytest.approx(2 / 4)  # 3's nearest is 2.4 > 2 away, 7's 5 > 4
    # cross distances: 0.5 + 0.5 + 2.5 + 6.5, 0.6 + 0.4 + 2.4 + 6.4, 12 + 11 + 9 + 5 = 56.8 over 12
    # policy spread (0.1 + 11.5 + 11.4) / 3; teacher spread (1 + 3 + 7 + 2 + 6 + 4) / 6
    assert got["energy_distance"] == pytest.approx(2 * 56.8 / 12 - 23 / 3 - 23 / 6, abs=1e-5)
    # 12 is 5 from all, no teacher sample is over 4 from its next
    assert got["off_support_share"] == got["off_support_share_strict"] == pytest.approx(1 / 3)


def test_what_is_nearer_than_the_resolution_is_not_outside_by_hand() -> None:
    # One way left: the teacher's plans are 0.1 of the resolution apart. Of the policy's four the first is on a teacher's
    # plan; 0.5 beyond the last one and 0.9 before the first are farther than that, but less than the resolution; 1.2 is more.
    near = [SAME_PLAN * step for step in (0.0, 0.1, 0.2)]
    policy = [SAME_PLAN * step for step in (0.1, 0.7, -0.9, 1.4)]
    got = set_fidelity(_line(policy), _line(near), ONE, neighbours=1)
    assert (got["off_support_share"], got["off_support_share_strict"]) == (pytest.approx(1 / 4), pytest.approx(3 / 4))
    # where the teacher's own plans are farther apart than the resolution, that is what counts: 5 and 4 resolutions
    apart = [SAME_PLAN * step for step in (0.0, 5.0, 9.0)]
    policy = [SAME_PLAN * step for step in (13.9, -4.9, 14.1, -5.1)]
    got = set_fidelity(_line(policy), _line(apart), ONE, neighbours=1)
    assert got["off_support_share"] == got["off_support_share_strict"] == pytest.approx(2 / 4)
    # each observation by itself: 17.5 is 5.5 beyond the second's last, whose plans are 6 apart; 0.5 is 0.3 off the first's
    first, second = [SAME_PLAN * step for step in (0.0, 0.1, 0.2)], [SAME_PLAN * step for step in (0.0, 6.0, 12.0)]
    policy = [SAME_PLAN * step for step in (0.5, 17.5)]
    got = set_fidelity(_line(policy, policy), _line(first, second), ONE, neighbours=1)
    assert (got["off_support_share"], got["off_support_share_strict"]) == (pytest.approx(1 / 4), pytest.approx(2 / 4))


def test_equal_sets_are_as_good_as_can_be() -> None:
    chunks = _randn(3, 12, 4, 2)
    got = set_fidelity(chunks[:, torch.randperm(12)], chunks, torch.ones(2))
    assert (got["precision"], got["recall"], got["coverage"], got["off_support_share"]) == (1.0, 1.0, 1.0, 0.0)
    assert got["chamfer_student_to_teacher"] == pytest.approx(0.0, abs=1e-5)
    assert got["chamfer_teacher_to_student"] == pytest.approx(0.0, abs=1e-5)
    assert got["energy_distance"] <= 1e-5


def test_far_sets_share_nothing() -> None:
    got = set_fidelity(_randn(3, 12, 4, 2) + 100.0, _randn(3, 12, 4, 2, seed=1), torch.ones(2))
    assert (got["precision"], got["recall"], got["coverage"], got["off_support_share"]) == (0.0, 0.0, 0.0, 1.0)
    assert got["chamfer_student_to_teacher"] == pytest.approx(100.0, rel=0.02)
    assert got["energy_distance"] == pytest.approx(200.0, rel=0.02)


def test_one_mode_of_two_is_precise_but_does_not_cover() -> None:
    near, far = [0.01 * k for k in range(8)], [10 + 0.01 * k for k in range(8)]
    got = set_fidelity(_line(near + near), _line(near + far), ONE)
    assert (got["precision"], got["off_support_share"]) == (1.0, 0.0)
    assert (got["recall"], got["coverage"]) == (0.5, 0.5)


def test_the_average_of_two_modes_is_outside() -> None:
    left, right = [-1 - 0.01 * k for k in range(8)], [1 + 0.01 * k for k in range(8)]
    got = set_fidelity(_line([0.001 * k for k in range(8)]), _line(left + right), ONE)
    assert (got["precision"], got["coverage"], got["off_support_share"]) == (0.0, 0.0, 1.0)


def test_observations_are_never_pooled() -> None:
    policy, teacher = _randn(2, 9, 3, 2), _randn(2, 8, 3, 2, seed=1)
    policy[1] += 5.0
    alone = [set_fidelity(policy[b : b + 1], teacher[b : b + 1], torch.ones(2)) for b in range(2)]
    assert set_fidelity(policy, teacher, torch.ones(2)) == pytest.approx(
        average([(1, alone[0]), (1, alone[1])]), rel=1e-5
    )
    # swapped, the pooled sets would be the same
    swapped = set_fidelity(policy, teacher.flip(0) + 0.0, torch.ones(2))
    assert swapped["energy_distance"] != pytest.approx(
        average([(1, alone[0]), (1, alone[1])])["energy_distance"], rel=0.01
    )


def test_an_average_counts_observations() -> None:
    assert average([(1, {"a": 1.0, "b": 0.0}), (3, {"a": 5.0, "b": 2.0})]) == {"a": 4.0, "b": 1.5}


@pytest.mark.parametrize(("policy", "teacher"), [(5, 9), (9, 5)])
def test_sets_too_small_for_their_neighbours_are_refused(policy: int, teacher: int) -> None:
    with pytest.raises(ValueError, match="got sets of 5 chunks, expected at least 6 for 5 neighbours"):
        set_fidelity(_randn(1, policy, 2, 1), _randn(1, teacher, 2, 1), ONE)
