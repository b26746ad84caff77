"""Action selection: choices computed by hand, what is remembered and forgotten, each episode by itself."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from students.selection import (
    MODE_DUPLICATES,
    OUTLIER_RATIO,
    SAME_PLAN,
    Memory,
    Selection,
    choose,
    draw_candidates,
    first_inlier,
    nearest_to_remainder,
)

ONE = torch.ones(1)


def _chunks(*rows: list[float]) -> Tensor:
    """Rows of T numbers as candidates `[1, N, T, 1]`."""
    return torch.tensor(rows)[None, ..., None]


def _draws(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# -- the nearest ---------------------------------------------------------------------------------------------------


def test_the_rest_is_compared_with_the_first_actions_of_a_candidate() -> None:
    last = torch.tensor([[9.0, 9.0, 1.0, 2.0]])[..., None]  # two were executed, 1 and 2 are left
    candidates = _chunks([9.0, 9.0, 1.0, 2.0], [1.0, 2.5, -9.0, -9.0], [2.0, 2.0, 1.0, 2.0])
    assert nearest_to_remainder(candidates, last, 2, ONE).tolist() == [1]
    # with three executed only the 2 is left: squares 49, 1, 0
    assert nearest_to_remainder(candidates, last, 3, ONE).tolist() == [2]


def test_weights_decide_between_dimensions() -> None:
    last = torch.zeros(1, 2, 2)
    candidates = torch.tensor([[[3.0, 0.0], [0.0, 0.0]], [[0.0, 4.0], [0.0, 0.0]]])[None]
    assert nearest_to_remainder(candidates, last, 1, torch.tensor([1.0, 1.0])).tolist() == [0]  # 9 against 16
    assert nearest_to_remainder(candidates, last, 1, torch.tensor([1.0, 0.5])).tolist() == [1]  # 9 against 8
    # the mean over actions is of squares, not of distances: 2 and 2 (8) are nearer than 0 and 3 (9)
    assert nearest_to_remainder(_chunks([0.0, 3.0, 0.0], [2.0, 2.0, 0.0]), torch.zeros(1, 3, 1), 1, ONE).tolist() == [1]


def test_of_equals_the_first_and_a_broken_one_is_not_hidden() -> None:
    last = torch.zeros(1, 2, 1)
    assert nearest_to_remainder(_chunks([2.0, 0.0], [-1.0, 5.0], [1.0, 0.0]), last, 1, ONE).tolist() == [1]
    assert nearest_to_remainder(_chunks([0.0, 0.0], [math.nan, 0.0]), last, 1, ONE).tolist() == [1]


def test_a_batch_against_brute_force_and_each_row_by_itself() -> None:
    candidates, last, weights = _draws(5, 7, 6, 3), _draws(5, 6, 3, seed=1), torch.tensor([1.0, 0.25, 2.0])
    chosen = nearest_to_remainder(candidates, last, 4, weights)
    for b in range(5):
        far = [
            sum(float(weights[a]) * float(candidates[b, n, t, a] - last[b, 4 + t, a]) ** 2 for t in range(2) for a in range(3))
            for n in range(7)
        ]  # fmt: skip
        assert int(chosen[b]) == far.index(min(far))
        assert nearest_to_remainder(candidates[b : b + 1], last[b : b + 1], 4, weights).tolist() == [int(chosen[b])]
    assert len(set(chosen.tolist())) > 1


@pytest.mark.parametrize("executed", [0, 4, 5])
def test_with_nothing_left_there_is_nothing_to_compare(executed: int) -> None:
    with pytest.raises(ValueError, match="nothing left"):
        nearest_to_remainder(torch.zeros(1, 2, 4, 1), torch.zeros(1, 4, 1), executed, ONE)


# -- outlier rejection -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0.5, 0.0, 0.02, 1.0, 1.02], 1),  # 0.48 to its nearest, the others 0.02, and 4 times that is 0.08
        ([0.5, 1.0, 0.0, 0.02, 1.02], 1),
        ([0.5, -0.4, 1.0, 0.0, 0.02, 1.02, 0.01], 2),  # two outliers
        ([0.0, 0.5, 0.02, 1.0, 1.02], 0),  # the first good one
        ([0.3, 0.3, 0.3, 0.3], 0),
        ([0.309, 0.3, 0.3, 0.3, 0.3], 0),  # the same plan: the median is 0, but 0.009 is no outlier
        ([0.311, 0.3, 0.3, 0.3, 0.3], 1),
        ([0.09, 0.0, 0.02, 0.04], 0),  # 0.05, 0.02, 0.02, 0.02
        ([0.13, 0.0, 0.02, 0.04], 1),  # 0.09
        ([0.0, 1.0, 2.0, 3.0], 0),  # everybody is as far from everybody
    ],
)
def test_the_first_inlier_is_taken(values: list[float], expected: int) -> None:
    assert (OUTLIER_RATIO, SAME_PLAN) == (4.0, 0.01)
    assert first_inlier(_chunks(*([value, value] for value in values)), 2, ONE).tolist() == [expected]


def test_of_fewer_than_three_candidates_none_is_an_outlier() -> None:
    for count in (1, 2):
        assert first_inlier(_draws(4, count, 3, 2), 3, torch.ones(2)).tolist() == [0] * 4
    # of three, one can be
    assert first_inlier(_chunks([5.0], [0.0], [0.1]), 1, ONE).tolist() == [1]


@pytest.mark.parametrize("broken", [0, 1, 3])
def test_a_candidate_with_nan_does_not_lend_its_place_to_a_sound_one(broken: int) -> None:
    candidates = _chunks([0.5, 0.5], [0.0, 0.0], [0.02, 0.02], [1.0, 1.0], [1.02, 1.02])
    candidates[0, broken, 1] = math.nan
    assert first_inlier(candidates, 2, ONE).tolist() == [0]
    # another episode's trouble is not this one's
    both = torch.cat([candidates, _chunks([0.5, 0.5], [0.0, 0.0], [0.02, 0.02], [1.0, 1.0], [1.02, 1.02])])
    assert first_inlier(both, 2, ONE).tolist() == [0, 1]


def test_only_executed_actions_make_an_outlier() -> None:
    candidates = _chunks([0.0, 0.0, 9.0], [0.01, 0.02, 0.0], [0.02, 0.01, 0.0], [0.0, 0.02, 0.0])
    assert first_inlier(candidates, 2, ONE).tolist() == [0]
    assert first_inlier(candidates, 3, ONE).tolist() == first_inlier(candidates, 8, ONE).tolist() == [1]


def test_weights_decide_who_is_an_outlier() -> None:
    candidates = torch.zeros(1, 4, 1, 2)
    candidates[0, :, 0, 0] = torch.tensor([0.0, 0.01, 0.02, 0.03])
    candidates[0, 0, 0, 1] = 0.5
    assert first_inlier(candidates, 1, torch.tensor([1.0, 0.0])).tolist() == [0]
    assert first_inlier(candidates, 1, torch.tensor([1.0, 1.0])).tolist() == [1]
    # with 1 and 4: the others are sqrt(0.02^2 / 5) = 0.0089 apart, an outlier is farther than 0.0358
    candidates = torch.tensor([[0.0, 0.0], [0.0, 0.0], [0.02, 0.0], [0.04, 0.0], [0.06, 0.0]])[None, :, None]
    for height, expected in ((0.038, 0), (0.042, 1)):  # sqrt(4 * 0.038^2 / 5) = 0.0340, sqrt(4 * 0.042^2 / 5) = 0.0376
        candidates[0, 0, 0, 1] = height
        assert first_inlier(candidates, 1, torch.tensor([1.0, 4.0])).tolist() == [expected]


def test_duplicates_of_an_outlier_are_no_neighbours_until_they_are_a_mode() -> None:
    usual = [[0.0], [0.1], [0.2], [0.3], [0.4], [0.5]]
    for copies in range(MODE_DUPLICATES):  # besides itself
        assert first_inlier(_chunks(*[[5.0]] * (1 + copies), *usual), 1, ONE).tolist() == [1 + copies]
    assert first_inlier(_chunks(*[[5.0]] * (1 + MODE_DUPLICATES), *usual), 1, ONE).tolist() == [0]
    # and all copies of one: there is nothing else to take
    for count in (3, 4, 8):
        assert first_inlier(_chunks(*[[1.0]] * count), 1, ONE).tolist() == [0]


def test_a_batch_of_inliers_against_brute_force() -> None:
    weights, executed = torch.tensor([1.0, 0.25, 2.0]), 4
    candidates = 0.3 * _draws(40, 7, 6, 3) * (_draws(40, 7, 1, 1, seed=1) > 0.3)  # some at one place, some far from all
    chosen = first_inlier(candidates, executed, weights)

    def far(one: Tensor, other: Tensor) -> float:
        squares = [sum(float(weights[a]) * float(one[t, a] - other[t, a]) ** 2 for a in range(3)) for t in range(executed)]
        return math.sqrt(sum(squares) / executed / 3.25)

    for b in range(40):
        to_others = [[far(candidates[b, n], candidates[b, m]) for m in range(7) if m != n] for n in range(7)]
        alone = [0.0 if row.count(0.0) >= MODE_DUPLICATES else min(d for d in row if d > 0) for row in to_others]
        bound = max(OUTLIER_RATIO * sorted(alone)[3], SAME_PLAN)
        assert int(chosen[b]) == next(n for n in range(7) if alone[n] <= bound)
        assert first_inlier(candidates[b : b + 1], executed, weights).tolist() == [int(chosen[b])]
    assert len(set(chosen.tolist())) > 2


def test_the_modes_keep_their_shares_and_outliers_are_hardly_ever_executed() -> None:
    sets, generator = 3000, torch.Generator().manual_seed(0)
    kind = torch.rand(sets, 16, generator=generator)  # 54 % one way, 36 % the other, 10 % between
    place = torch.where(kind < 0.54, -1.0, 1.0)
    place = torch.where(kind > 0.9, 2 * torch.rand(sets, 16, generator=generator) - 1, place)
    candidates = place[..., None, None] + 0.02 * torch.randn(sets, 16, 4, 2, generator=generator)
    chosen = kind[torch.arange(sets), first_inlier(candidates, 4, torch.ones(2))]
    outliers, inliers = int((chosen > 0.9).sum()), chosen[chosen <= 0.9]
    assert 260 < int((kind[:, 0] > 0.9).sum()) < 340 and outliers < 75  # some lie on a mode, or two next to each other
    # 0.6 within four standard errors
    assert float((inliers < 0.54).double().mean()) == pytest.approx(0.6, abs=4 * math.sqrt(0.6 * 0.4 / len(inliers)))


def test_outlier_rejection_is_per_episode_and_ignores_the_last_plan() -> None:
    row = _chunks([0.5, 0.5], [0.0, 0.0], [0.02, 0.02], [1.0, 1.0], [1.02, 1.02])
    candidates, selection = torch.cat([row, row[:, [3, 0, 1, 2, 4]]]), Selection("outlier_rejection", 5)
    for memories in ([Memory(), Memory()], [Memory(3, row[0, 3]), Memory(4, row[0, 1])]):
        chosen, after = choose(selection, candidates, memories, 1, ONE)
        assert torch.equal(chosen, torch.stack([row[0, 1], row[0, 3]]))
        assert [memory.replans for memory in after] == [memory.replans + 1 for memory in memories]
    for executed in (1, 2, 5):  # plans that are executed to their end, too
        draws, memory = draw_candidates(selection, Memory(), lambda count: _draws(count, 2), executed, 2)
        assert draws.shape == (5, 2) and memory == Memory()


# -- remembering and forgetting ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("forget_every", "expected"),
    [(0, [0, 1, 1, 1, 1, 1, 1]), (5, [0, 1, 1, 1, 1, 0, 1]), (3, [0, 1, 1, 0, 1, 1, 0]), (1, [0] * 7)],
)
def test_the_last_plan_is_forgotten(forget_every: int, expected: list[int]) -> None:
    selection, memories, taken = Selection("temporal_consistency", 2, forget_every), [Memory()], []
    for _ in range(7):  # what is left of either is -1: the second keeps to it, the first is what one sample would be
        chosen, memories = choose(selection, _chunks([1.0, -1.0], [-1.0, -1.0]), memories, 1, ONE)
        taken.append(int(chosen[0, 0, 0] < 0))
    assert taken == expected


def test_memories_are_each_episodes_own() -> None:
    candidates, selection = _draws(4, 5, 6, 2), Selection("temporal_consistency", 5, 4)
    memories = [
        Memory(),  # at its first replan
        Memory(2, candidates[1, 3].roll(2, 0)),  # two were executed, the rest is just candidate 3's beginning
        Memory(4, candidates[2, 3].roll(2, 0)),  # the same, but now it forgets
        Memory(3, candidates[3, 4].roll(2, 0)),
    ]
    chosen, after = choose(selection, candidates, memories, 2, torch.ones(2))
    for row, index in enumerate([0, 3, 0, 4]):
        assert torch.equal(chosen[row], candidates[row, index])
        assert after[row].replans == memories[row].replans + 1
        assert torch.equal(after[row].last_TA, chosen[row])  # type: ignore[arg-type]
        alone, _ = choose(selection, candidates[row : row + 1], memories[row : row + 1], 2, torch.ones(2))
        assert torch.equal(alone[0], chosen[row])
    assert memories[0] == Memory()  # nothing was changed in place


@pytest.mark.parametrize("kind", ["single", "kept_latent"])
def test_only_consistency_looks_at_the_last_plan(kind: str) -> None:
    candidates = _draws(1, 3, 4, 2)
    chosen, _ = choose(Selection(kind), candidates, [Memory(1, candidates[0, 2].roll(2, 0))], 2, torch.ones(2))
    assert torch.equal(chosen[0], candidates[0, 0])


def test_a_plan_carried_out_to_its_end_leaves_one_sample() -> None:
    selection, candidates = Selection("temporal_consistency", 3, 0), _draws(1, 3, 4, 2)
    for executed in (4, 5):
        draws, _ = draw_candidates(selection, Memory(3, candidates[0, 2]), lambda count: _draws(count, 2), executed, 4)
        chosen, _ = choose(selection, candidates, [Memory(3, candidates[0, 2])], executed, torch.ones(2))
        assert draws.shape == (1, 2) and torch.equal(chosen[0], candidates[0, 0])
    draws, _ = draw_candidates(selection, Memory(), lambda count: _draws(count, 2), 3, 4)
    assert draws.shape == (3, 2)  # at a first replan too: a batch holds episodes that compare and such that do not


# -- what is drawn -------------------------------------------------------------------------------------------------


def _drawn(selection: Selection, replans: int) -> list[float]:
    generator, memory, seen = torch.Generator().manual_seed(3), Memory(), []
    for _ in range(replans):
        draws, memory = draw_candidates(selection, memory, lambda count: torch.rand(count, generator=generator), 2, 4)
        assert draws.shape == (1,)
        seen.append(float(draws))
        _, (memory,) = choose(selection, torch.zeros(1, 1, 4, 1), [memory], 2, ONE)
    return seen


def test_a_kept_latent_is_drawn_once_and_again_when_it_is_forgotten() -> None:
    fresh = torch.rand(7, generator=torch.Generator().manual_seed(3)).tolist()
    assert _drawn(Selection("single"), 7) == fresh
    assert _drawn(Selection("kept_latent", forget_every=0), 7) == [fresh[0]] * 7
    assert _drawn(Selection("kept_latent", forget_every=3), 7) == [*fresh[:1] * 3, *fresh[1:2] * 3, fresh[2]]
    assert _drawn(Selection("kept_latent", forget_every=1), 7) == fresh


@pytest.mark.parametrize(
    ("values", "words"),
    [(("best",), "got 'best'"), (("temporal_consistency", 0), "candidates: got 0"),
     (("single", 32, -1), "forget_every: got -1")],
)
def test_a_selection_that_is_none_is_refused(values: tuple[str | int, ...], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Selection(*values)  # type: ignore[arg-type]
    assert Selection() == Selection("single", 32, 5)
