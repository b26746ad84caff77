"""How many-moded sets are: sets made by hand, and the shares that a policy keeps."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from distill.evaluation.diversity import mode_figures, mode_share_error, modes_of_cache, modes_per_observation, summarise_modes
from distill.hypotheses.cache import HypothesisDataset

ONE = torch.ones(1)


def _randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_the_modes_of_a_cache_are_counted(cache: HypothesisDataset) -> None:
    assert modes_of_cache(cache, torch.ones(2)) == {"observations": 23, "observations_by_modes": [3, 20]}
    assert modes_of_cache(cache, torch.ones(2), most=3)["observations"] == 3


def _clumps(counts: list[int], size: int, spread: float = 0.05, seed: int = 0) -> Tensor:
    """Chunks `[1, K, T, 2]` in Gaussian clumps, centres a unit of the distance between chunks apart."""
    centres = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])[: len(counts)] * 2**0.5
    where = centres.repeat_interleave(torch.tensor(counts), 0)[:, None]
    order = torch.randperm(sum(counts), generator=torch.Generator().manual_seed(seed))
    return (where + spread * _randn(sum(counts), size, 2, seed=seed))[order][None]


@pytest.mark.parametrize("counts", [[64], [32, 32], [56, 8], [40, 16, 8], [8, 8], [12, 4], [5, 5, 6], [22, 21, 21]])
@pytest.mark.parametrize("size", [1, 4])
def test_modes_of_sets_made_by_hand(counts: list[int], size: int) -> None:
    for seed in range(5):
        (modes,) = modes_per_observation(_clumps(counts, size, seed=seed), torch.ones(2))
        expected = torch.tensor(sorted(counts, reverse=True)) / sum(counts)
        torch.testing.assert_close(modes.shares, expected)
        assert torch.bincount(modes.label_K).tolist() == sorted(counts, reverse=True) and modes.count == len(counts)


@pytest.mark.parametrize(("dimensions", "most"), [(1, 8), (2, 1), (3, 0), (16, 0)])
def test_a_gaussian_has_one_mode(dimensions: int, most: int) -> None:
    sets = _randn(100, 64, dimensions, 1)
    assert sum(modes.count > 1 for modes in modes_per_observation(sets, ONE)) <= most


def test_three_of_thirty_two_are_no_mode_four_are() -> None:
    found = [modes_per_observation(_clumps(counts, 4), torch.ones(2))[0].count for counts in ([29, 3], [28, 4])]
    assert found == [1, 2]
    assert modes_per_observation(_clumps([29, 3], 4), torch.ones(2), smallest=3)[0].count == 2


def test_modes_of_different_widths_are_told_apart_and_copies_do_no_harm() -> None:
    chunks = torch.cat([0.01 * _randn(1, 20, 4, 2), 1 + 0.1 * _randn(1, 20, 4, 2, seed=1)], dim=1)
    assert modes_per_observation(chunks, torch.ones(2))[0].shares.tolist() == [0.5, 0.5]
    copies = torch.cat([chunks[:, :20].repeat(1, 2, 1, 1), chunks[:, 20:]], dim=1)
    assert modes_per_observation(copies, torch.ones(2))[0].shares.tolist() == pytest.approx([2 / 3, 1 / 3])
    assert modes_per_observation(torch.ones(1, 16, 4, 2), torch.ones(2))[0].shares.tolist() == [1.0]
    two_points = torch.tensor([0.0, 1.0]).repeat(8)[None, :, None, None]
    assert modes_per_observation(two_points, ONE)[0].shares.tolist() == [0.5, 0.5]


def test_strays_make_no_mode_and_go_to_the_nearest() -> None:
    chunks = torch.cat([_clumps([20, 10], 4), torch.tensor([[5.0, 0.0], [-3.0, 4.0]])[None, :, None].expand(1, 2, 4, 2)], 1)
    (modes,) = modes_per_observation(chunks, torch.ones(2))
    near = chunks[0, :30, 0, 0] > 0.7  # the smaller clump, at sqrt(2), 0
    assert torch.equal(modes.label_K[:30], near.long())
    assert modes.label_K[30:].tolist() == [1, 0]  # (5, 0) is nearer to the clump on its side
    torch.testing.assert_close(modes.shares, torch.tensor([21 / 32, 11 / 32]))
    with pytest.raises(ValueError, match="expected finite chunks"):
        modes_per_observation(torch.full((1, 8, 1, 1), torch.nan), ONE)


def test_the_share_error_by_hand() -> None:
    teacher = torch.tensor([0.0] * 6 + [1.0] * 4)[:, None, None]
    (modes,) = modes_per_observation(teacher[None], ONE)
    assert modes.shares.tolist() == pytest.approx([0.6, 0.4])

    def chunks(*values: float) -> Tensor:
        return torch.tensor(values)[:, None, None]

    assert mode_share_error(teacher, teacher, modes, ONE) == pytest.approx(0.0)
    assert mode_share_error(chunks(0.1, -2.0, 0.0), teacher, modes, ONE) == pytest.approx(0.4)
    assert mode_share_error(chunks(0.9, 0.1), teacher, modes, ONE) == pytest.approx(0.1)
    figures = mode_figures(chunks(1.0, 1.0), teacher, chunks(0.0, 1.0), ONE)
    assert (figures["modes"], figures["shares"]) == (2, [0.6, 0.4])
    assert (figures["share_error"], figures["share_error_floor"]) == (pytest.approx(0.6), pytest.approx(0.1))
    with pytest.raises(ValueError, match="expected equally many"):
        mode_figures(chunks(1.0), teacher, chunks(0.0, 1.0), ONE)
    one = {"modes": 1, "share_error": 0.0, "share_error_floor": 0.0}
    assert summarise_modes([figures, one, one]) == {
        "observations": 3, "observations_by_modes": [2, 1], "share_error": pytest.approx(0.6),
        "share_error_floor": pytest.approx(0.1),
    }  # fmt: skip
    assert summarise_modes([one])["share_error"] is None
