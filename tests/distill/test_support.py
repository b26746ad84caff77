"""The support over a whole cache: pooled figures, duplicates and modes against brute force and sets made by hand."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from distill import neighbours, support
from distill.cache import HypothesisDataset, shard_name
from distill.policies import device_of, plan
from distill.support import (
    DemonstrationMemory,
    HypothesisIndex,
    NearestDemonstration,
    SupportMonitor,
    cache_blocks,
    distinct,
    distinct_in_pool,
    mode_figures,
    mode_share_error,
    modes_of_cache,
    modes_per_observation,
    novelty,
    pooled_fidelity,
    pooled_vectors,
    state_vectors,
    summarise_modes,
)
from envs import task_spec
from envs.demonstrations import Demonstrations
from envs.specs import STATE, Demonstration
from teachers.normalisation import Normaliser

needs_faiss = pytest.mark.skipif(importlib.util.find_spec("faiss") is None, reason="no FAISS here")
KINDS = [False, pytest.param(True, marks=needs_faiss)]
ONE = torch.ones(1)


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
    neighbours.say_faiss_is_missing.cache_clear()
    assert HypothesisIndex(sample, support.IVF_FROM).exact
    assert neighbours.say_faiss_is_missing.cache_info().currsize == 1  # it was said
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


@pytest.fixture
def cache(tmp_path: Path) -> HypothesisDataset:
    """23 observations of 8 hypotheses in shards of 5; in the first 20 they are two clumps of chunks, then one."""
    states = _randn(23, 2, 2)
    chunks = 0.05 * _randn(23, 8, 4, 2, seed=1)
    chunks[:20, 4:] += 1.0
    for shard in range(5):
        part = slice(5 * shard, 5 * shard + 5)
        tensors = {STATE: states[part], "hypotheses": chunks[part].half(), "seed": torch.zeros(len(states[part]), 8).long()}
        save_file({name: value.contiguous() for name, value in tensors.items()}, tmp_path / shard_name(shard))
    (tmp_path / "index.json").write_text(json.dumps({"observations": 23, "num_hypotheses": 8, "shard_size": 5}))
    return HypothesisDataset(tmp_path)


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


def test_the_modes_of_a_cache_are_counted(cache: HypothesisDataset) -> None:
    assert modes_of_cache(cache, torch.ones(2)) == {"observations": 23, "observations_by_modes": [3, 20]}
    assert modes_of_cache(cache, torch.ones(2), most=3)["observations"] == 3


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


# -- modes -------------------------------------------------------------------------------------------------------------


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


# -- at run time -------------------------------------------------------------------------------------------------------


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
    assert [monitor.is_outside(state) for state in asked] == [False, False, True]
    assert monitor.is_outside(torch.full((1, 2), torch.nan))
    assert not any(monitor.is_outside(state) for state in states)
    for bad in (torch.zeros(6, dtype=torch.long), torch.arange(5)):
        with pytest.raises(ValueError, match="two groups or more"):
            SupportMonitor(states, bad, _normaliser(statistics))


def test_a_monitor_calls_about_one_new_observation_in_a_hundred_foreign(statistics, monkeypatch) -> None:
    low, high = torch.tensor([0.25, -0.3]), torch.tensor([0.75, 0.3])
    inside = low + (high - low) * torch.rand(3000, 1, 2, generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr(support, "CALIBRATION", 700)
    monitor = SupportMonitor(inside[:1500], torch.arange(1500), _normaliser(statistics))
    share = float((monitor.distance(inside[1500:]) > monitor.threshold).float().mean())
    assert 0.002 < share < 0.03
    assert monitor.is_outside(torch.tensor([[0.5, 0.5]]))


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
    chunk = plan(policy, state, [torch.Generator().manual_seed(0)], samples=3)
    assert chunk.shape == (1, 3, 8, 2)
    np.testing.assert_allclose(chunk[0], np.repeat(demonstrations.action[None, 16:24], 3, 0), atol=1e-6)
    # the end of the far episode: its last action goes on
    state = demonstrations.state[[34, 35]][None]
    chunk = plan(policy, state, [torch.Generator().manual_seed(0)])[0, 0]
    np.testing.assert_allclose(chunk, np.repeat(demonstrations.action[None, 35], 8, 0), atol=1e-6)


def test_one_of_several_neighbours_is_drawn_each_from_another_episode(
    demonstrations: Demonstrations, small_shape, statistics
) -> None:
    policy = NearestDemonstration(DemonstrationMemory(demonstrations, small_shape, _normaliser(statistics)), 2)
    states = np.stack([demonstrations.state[[3, 4]], demonstrations.state[[24 + 3, 24 + 4]]])
    generators = [torch.Generator().manual_seed(seed) for seed in (0, 1)]
    chunks = plan(policy, states, generators, samples=200)
    for row, frames in ((0, (4, 16)), (1, (28, 16))):  # the second row's nearest other episode is the middle one
        for frame in frames:
            same = np.abs(chunks[row] - demonstrations.action[frame : frame + 8]).max((1, 2)) < 1e-5
            assert 70 < same.sum() < 130
    again = plan(policy, states[1:], [torch.Generator().manual_seed(1)], samples=200)
    np.testing.assert_array_equal(again[0], chunks[1])


def test_neighbours_must_be_in_number_of_the_episodes(demonstrations: Demonstrations, small_shape, statistics) -> None:
    memory = DemonstrationMemory(demonstrations, small_shape, _normaliser(statistics))
    for neighbours_ in (0, 4):
        with pytest.raises(ValueError, match="expected 1 to 3: one from each episode"):
            NearestDemonstration(memory, neighbours_)
