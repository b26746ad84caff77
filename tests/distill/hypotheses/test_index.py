"""The support over a whole cache: its index, pooled figures and duplicates against brute force and sets made by hand."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest
import torch
from torch import Tensor

from distill.hypotheses import index as support
from distill.hypotheses import neighbours
from distill.hypotheses.cache import HypothesisDataset
from distill.hypotheses.index import (
    HypothesisIndex,
    cache_blocks,
    distinct,
    distinct_in_pool,
    novelty,
    pooled_fidelity,
    pooled_vectors,
    state_vectors,
)
from envs.specs import STATE
from teachers.networks.normalisation import Normaliser

needs_faiss = pytest.mark.skipif(importlib.util.find_spec("faiss") is None, reason="no FAISS here")
KINDS = [False, pytest.param(True, marks=needs_faiss)]


def _randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _normaliser(statistics: dict[str, dict[str, np.ndarray]]) -> Normaliser:
    normaliser = Normaliser(2, 2)
    normaliser.fit(statistics)
    return normaliser


# -- vectors -----------------------------------------------------------------------------------------------------------


def test_vectors_by_hand(statistics) -> None:
    # centres 0.5, 0.0 and half ranges 0.25, 0.3: both histories are [1, 0], [0, -1] and zero
    states = torch.tensor([[[0.75, 0.0], [0.5, -0.3]], [[0.5, 0.0], [0.5, 0.0]]])
    vectors = state_vectors(states, _normaliser(statistics))
    torch.testing.assert_close(vectors, torch.tensor([[0.5, 0.0, 0.0, -0.5], [0.0] * 4]))
    # root mean square of 1, 0, 0, 1
    assert float((vectors[0] - vectors[1]).norm()) == pytest.approx(0.5**0.5)
    chunks = torch.tensor([[[[1.0, 1.0]], [[3.0, 1.0]]], [[[1.0, 5.0]], [[1.0, 1.0]]]])  # B = K = A = 2, T = 1
    alone = pooled_vectors(chunks, torch.tensor([1.0, 3.0]))
    torch.testing.assert_close(alone[1] - alone[0], torch.tensor([1.0, 0.0]))  # sqrt(1 * 4 / 4)
    torch.testing.assert_close(alone[2] - alone[0], torch.tensor([0.0, 12.0**0.5]))  # sqrt(3 * 16 / 4)
    both = pooled_vectors(chunks, torch.tensor([1.0, 3.0]), vectors, scale=3.0)
    assert both.shape == (4, 6) and torch.equal(both[:, 4:], alone)
    assert float((both[3] - both[0]).norm()) == pytest.approx(3 * 0.5**0.5)


# -- an index ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("approximate", KINDS)
def test_an_index_filled_by_blocks_finds_what_brute_force_finds(approximate: bool, monkeypatch) -> None:
    monkeypatch.setattr(support, "PROBES", 1000)  # through all lists, an approximate index is exact
    points, query = 100 + _randn(900, 8), 100 + _randn(40, 8, seed=1)
    index = HypothesisIndex(points[::2], 900, approximate)
    for block in points.split(250):
        index.add(block)
    distance, found = index.search(query, 6)
    expected = torch.cdist(query.double(), points.double()).sort(-1)
    assert index.exact is not approximate and torch.equal(found, expected.indices[:, :6])
    torch.testing.assert_close(distance, expected.values[:, :6].float(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("approximate", KINDS)
def test_an_index_leaves_a_query_itself_out_even_among_copies(approximate: bool) -> None:
    points = torch.cat([_randn(500, 4), torch.zeros(30, 4)])
    index = HypothesisIndex(points, 530, approximate)
    index.add(points)
    own = torch.arange(490, 530)
    distance, found = index.search(points[490:], 3, own)
    assert not (found == own[:, None]).any() and not distance[10:].any() and bool((distance[:10] > 0).all())
    if not approximate:
        expected = torch.cdist(points[490:500], points).sort(-1).indices[:, 1:4]
        assert torch.equal(found[:10], expected)


@needs_faiss
def test_an_approximate_index_finds_nearly_all_neighbours_and_fills_short_lists(monkeypatch) -> None:
    # a two-dimensional sheet in eight dimensions
    points = torch.tanh(_randn(6000, 2) @ _randn(2, 8, seed=1))
    index = HypothesisIndex(points, 6000, True)
    index.add(points)
    _, found = index.search(points[:200], 5)
    expected = torch.cdist(points[:200].double(), points.double()).topk(5, largest=False).indices
    assert float((found[:, :, None] == expected[:, None]).any(-1).float().mean()) > 0.97
    index._index.nprobe = 1
    distance, found = index.search(points[:3], 3000)  # more than any list holds
    assert bool((found >= 0).all()) and bool(torch.isfinite(distance).all())
    torch.testing.assert_close(
        distance, torch.cdist(points[:3].double(), points.double()).sort(-1).values[:, :3000].float(), rtol=1e-3, atol=1e-3
    )


def test_the_size_and_faiss_choose_the_kind_of_index(monkeypatch) -> None:
    sample = _randn(100, 3)
    monkeypatch.setattr(support, "faiss_available", lambda: False)
    neighbours.log_missing_faiss.cache_clear()
    assert HypothesisIndex(sample, support.IVF_FROM).exact
    assert neighbours.log_missing_faiss.cache_info().currsize == 1  # it was said
    with pytest.raises(ValueError, match="needs FAISS; pip install faiss-cpu"):
        HypothesisIndex(sample, 10, approximate=True)
    monkeypatch.undo()
    assert HypothesisIndex(sample, support.IVF_FROM - 1).exact


@needs_faiss
def test_a_large_index_is_approximate_where_faiss_is() -> None:
    assert not HypothesisIndex(_randn(200, 3), support.IVF_FROM).exact


def test_an_index_refuses_what_makes_no_sense() -> None:
    index = HypothesisIndex(_randn(10, 3), 4)
    index.add(_randn(3, 3))
    for block, words in ((_randn(2, 3), "expected at most 4"), (_randn(1, 2), r"vectors \[N, 3\]"),
                         (torch.full((1, 3), torch.nan), "finite")):  # fmt: skip
        with pytest.raises(ValueError, match=words):
            index.add(block)
    with pytest.raises(ValueError, match="asked for 4 neighbours"):
        index.search(_randn(1, 3), 3, torch.tensor([0]))
    with pytest.raises(ValueError, match="finite vectors"):
        index.search(torch.full((1, 3), torch.nan), 1)
    with pytest.raises(ValueError, match="got a sample"):
        HypothesisIndex(torch.zeros(0, 3), 4)


def test_a_cache_is_indexed_shard_by_shard_in_its_order(cache: HypothesisDataset) -> None:
    sizes = [len(states) for states, _ in cache_blocks(cache)]
    assert sizes == [5, 5, 5, 5, 3]
    asked: list[int] = []

    def vectors(state_BOS: Tensor, chunks_BKTA: Tensor) -> Tensor:
        asked.append(len(state_BOS))
        return pooled_vectors(chunks_BKTA, torch.ones(2), state_BOS.flatten(1), 0.1)

    index = HypothesisIndex.of_cache(cache, vectors)
    assert index.count == 23 * 8 and asked == [*sizes, *sizes]  # once for the sample, once to add
    for row in (0, 7, 22):
        item = cache[row]
        query = vectors(item[STATE][None], item["hypotheses"][None])
        distance, found = index.search(query, 1)
        assert found[:, 0].tolist() == list(range(8 * row, 8 * row + 8)) and float(distance.max()) < 1e-6


# -- two pooled sets ---------------------------------------------------------------------------------------------------


def _brute_force(policy: Tensor, teacher: Tensor, neighbours: int) -> dict[str, float]:
    def radii(points: Tensor) -> list[float]:
        return [sorted(float((p - q).norm()) for q in points)[neighbours] for p in points]

    own, theirs = radii(policy), radii(teacher)
    inside = [[float((p - t).norm()) <= r for t, r in zip(teacher, theirs, strict=True)] for p in policy]
    back = [[float((p - t).norm()) <= r for p, r in zip(policy, own, strict=True)] for t in teacher]
    return {
        "precision": sum(any(row) for row in inside) / len(policy), "recall": sum(any(row) for row in back) / len(teacher),
        "density": sum(sum(row) for row in inside) / (neighbours * len(policy)),
        "coverage": sum(any(row[t] for row in inside) for t in range(len(teacher))) / len(teacher),
    }  # fmt: skip


@pytest.mark.parametrize(("sizes", "shift"), [((30, 40), 0.0), ((40, 25), 1.0), ((12, 12), 9.0)])
def test_pooled_fidelity_against_loops(sizes: tuple[int, int], shift: float, monkeypatch) -> None:
    policy, teacher = _randn(sizes[0], 3).double() + shift, 1.5 * _randn(sizes[1], 3, seed=1).double()
    expected = _brute_force(policy, teacher, 3)
    assert pooled_fidelity(policy, teacher, 3) == pytest.approx(expected)
    monkeypatch.setattr(support, "_NUMBERS_AT_ONCE", 70)  # two or so rows at a time
    assert pooled_fidelity(policy, teacher, 3) == pytest.approx(expected)


def test_pooled_fidelity_by_hand() -> None:
    # teacher 0, 1, 2, 10: balls to the nearest other reach 1, 1, 1, 8. policy 0.5, 3, 40: balls reach 2.5, 2.5, 37
    teacher = torch.tensor([[0.0], [1.0], [2.0], [10.0]])
    found = pooled_fidelity(torch.tensor([[0.5], [3.0], [40.0]]), teacher, 1)
    # 0.5 lies in the balls of 0 and 1; 3 on the edges of those of 2 and of 10; 40 in none
    assert found == pytest.approx({"precision": 2 / 3, "recall": 1.0, "density": 4 / 3, "coverage": 1.0})
    # far from the origin the same holds, edges included
    assert pooled_fidelity(torch.tensor([[0.5], [3.0], [40.0]]) + 4096, teacher + 4096, 1) == pytest.approx(found)


def test_a_set_against_itself_has_its_neighbours_on_the_edges_of_its_balls() -> None:
    # every ball holds its centre, four neighbours, and the fifth on its edge: rounding must not drop that one
    points = 50 + _randn(200, 7)
    assert pooled_fidelity(points, points) == {"precision": 1.0, "recall": 1.0, "density": 6 / 5, "coverage": 1.0}


def test_pooled_fidelity_needs_enough_vectors() -> None:
    with pytest.raises(ValueError, match="got 5 vectors, expected at least 6"):
        pooled_fidelity(_randn(5, 2), _randn(9, 2))


# -- duplicates and novelty --------------------------------------------------------------------------------------------


def test_what_is_near_an_earlier_one_that_stays_goes() -> None:
    # 0.8 goes because of 0; 1.5 stays, because 0.8 is gone and 0 is far; 2.4 goes because of 1.5; 2.5 is at the radius
    line = torch.tensor([0.0, 0.8, 1.5, 2.4, 2.5, 0.0])
    keep = distinct(torch.stack([line, 10 * line])[..., None], 1.0)
    assert keep.tolist() == [[True, False, True, False, False, False], [True, True, True, True, False, False]]


@pytest.mark.parametrize("approximate", KINDS)
def test_pruning_over_blocks_is_pruning_of_the_whole(approximate: bool, monkeypatch) -> None:
    monkeypatch.setattr(support, "PROBES", 1000)
    points = _randn(700, 2)
    index = HypothesisIndex(points, 700, approximate)
    keep = distinct_in_pool(points.split(130), index, 0.15)
    assert torch.equal(keep, distinct(points[None], 0.15)[0])
    assert 100 < int(keep.sum()) < 600 and index.count == int(keep.sum())
    kept = points[keep]
    assert float((torch.cdist(kept, kept) + 9 * torch.eye(len(kept))).min()) > 0.15
    assert float(torch.cdist(points, kept).amin(1).max()) <= 0.15


def test_novelty_is_the_distance_to_the_kth_other() -> None:
    points = torch.tensor([0.0, 1.0, 3.0, 7.0, 7.0])[:, None]
    index = HypothesisIndex(points, 5)
    index.add(points)
    assert novelty(index, points, 0, 2).tolist() == [3.0, 2.0, 3.0, 4.0, 4.0]
    assert novelty(index, points[3:], 3, 1).tolist() == [0.0, 0.0]
