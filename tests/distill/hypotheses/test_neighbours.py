"""The nearest-neighbour search against loops: both back ends, ties, cancellation, and what is refused."""

from __future__ import annotations

import importlib.util
import logging
import sys

import pytest
import torch
from torch import Tensor

from distill.hypotheses import neighbours
from distill.hypotheses.neighbours import FAISS_FROM, choose_backend, describe_faiss, nearest, nearest_k

BACKENDS = [
    "matmul",
    pytest.param("faiss", marks=pytest.mark.skipif(importlib.util.find_spec("faiss") is None, reason="no FAISS here")),
]
CPU = torch.device("cpu")


def _randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _loops(query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
    """Distance and index by loops in float64; the first of equals wins."""
    distance, index = torch.zeros(query.shape[:2]), torch.zeros(query.shape[:2], dtype=torch.long)
    for b in range(len(query)):
        for m in range(query.shape[1]):
            squared = [float((query[b, m].double() - k.double()).square().sum()) for k in key[b]]
            index[b, m] = squared.index(min(squared))
            distance[b, m] = min(squared) ** 0.5
    return distance, index


def _agrees(query: Tensor, key: Tensor, backend: str) -> None:
    distance, index = nearest(query, key, backend)  # type: ignore[arg-type]
    expected_distance, expected_index = _loops(query, key)
    assert torch.equal(index, expected_index)
    torch.testing.assert_close(distance, expected_distance, rtol=1e-5, atol=1e-6, check_dtype=False)


@pytest.mark.parametrize("backend", BACKENDS)
def test_by_hand(backend: str) -> None:
    query = torch.tensor([[[0.0, 0.0], [3.0, 4.0]], [[1.0, 1.0], [-5.0, 0.0]]])
    key = torch.tensor([[[0.0, 2.0], [3.0, 0.0], [3.0, 3.0]], [[1.0, 1.0], [-2.0, 4.0], [9.0, 9.0]]])
    # first: 2, 3, 4.2; 3.6, 4, 1. second: 0, 4.2, 11.3; 6.1, 5, 16.6
    distance, index = nearest(query, key, backend)  # type: ignore[arg-type]
    assert index.tolist() == [[0, 2], [0, 1]] and distance.tolist() == [[2.0, 1.0], [0.0, 5.0]]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("queries", "keys", "size"), [(7, 7, 6), (3, 40, 5), (40, 3, 5), (1, 1, 4), (5, 1, 4), (1, 9, 1), (30, 5, 70)]
)
def test_random_sets_of_all_sizes_against_loops(backend: str, queries: int, keys: int, size: int) -> None:
    _agrees(_randn(3, queries, size), _randn(3, keys, size, seed=1), backend)


@pytest.mark.parametrize("backend", BACKENDS)
def test_of_equal_keys_the_lowest_index_wins(backend: str) -> None:
    # nine copies of one key: more than are looked at exactly
    distinct = _randn(2, 4, 6)
    key = torch.cat([distinct[:, 2:], distinct.repeat(1, 9, 1)], dim=1)
    _agrees(distinct, key, backend)
    assert nearest(distinct, key, backend)[1].tolist() == [[2, 3, 0, 1]] * 2  # type: ignore[arg-type]


@pytest.mark.parametrize("backend", BACKENDS)
def test_of_keys_equally_far_the_lowest_index_wins(backend: str) -> None:
    # eight corners of a square grid at distance 1 from the origin, whichever order they stand in
    corners = torch.tensor([[x, y, z, 0.0] for x in (-1.0, 1.0) for y in (-1.0, 1.0) for z in (-1.0, 1.0)])
    far = torch.full((3, 4), 7.0)
    for shift in range(8):
        key = torch.cat([far, corners.roll(shift, 0)])[None]
        distance, index = nearest(torch.zeros(1, 2, 4), key, backend)  # type: ignore[arg-type]
        assert index.tolist() == [[3, 3]] and distance.tolist() == [[pytest.approx(3**0.5)] * 2]


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_set_against_itself_finds_itself(backend: str) -> None:
    points = _randn(2, 30, 8)
    distance, index = nearest(points, points, backend)  # type: ignore[arg-type]
    assert torch.equal(index, torch.arange(30).expand(2, 30)) and not distance.any()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("offset", [10.0, 1e3, 1e5])
def test_a_large_common_offset_does_not_cancel_the_answer_away(backend: str, offset: float) -> None:
    # |q|^2 - 2 q.k + |k|^2 loses all digits here; the differences are exact
    query, key = _randn(2, 6, 5) + offset, _randn(2, 20, 5, seed=1) + offset
    _agrees(query, key, backend)


@pytest.mark.parametrize("backend", BACKENDS)
def test_close_keys_in_double_precision_are_told_apart(backend: str) -> None:
    query = _randn(1, 12, 8).double()
    key = query[:, :1] + 1e-9 * _randn(1, 30, 8, seed=1).double()
    _agrees(query, key, backend)


@pytest.mark.skipif(importlib.util.find_spec("faiss") is None, reason="no FAISS here")
@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_both_back_ends_give_one_answer_to_the_last_bit(scale: float) -> None:
    for seed in range(5):
        query = scale * _randn(2, 50, 64, seed=seed)
        key = torch.cat([query[:, :10], scale * _randn(2, 45, 64, seed=seed + 50)], dim=1)
        key = torch.cat([key, key[:, ::3] + 1e-6 * scale], dim=1)
        first, second = nearest(query, key, "matmul"), nearest(query, key, "faiss")
        assert torch.equal(first[1], second[1]) and torch.equal(first[0], second[0])


# -- several neighbours --------------------------------------------------------------------------------------------


def _loops_k(query: Tensor, key: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """As `_loops`, sorted by distance, then by index."""
    squared = (query.double()[:, :, None] - key.double()[:, None]).square().sum(-1)
    rows = [[sorted((float(value), k) for k, value in enumerate(row))[:count] for row in each] for each in squared]
    return (torch.tensor([[[value**0.5 for value, _ in row] for row in each] for each in rows]),
            torch.tensor([[[k for _, k in row] for row in each] for each in rows]))  # fmt: skip


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("queries", "keys", "count"), [(5, 30, 3), (30, 5, 5), (1, 1, 1), (7, 9, 6), (12, 40, 11)])
def test_the_nearest_few_against_loops(backend: str, queries: int, keys: int, count: int) -> None:
    query, key = _randn(2, queries, 5), _randn(2, keys, 5, seed=1)
    distance, index = nearest_k(query, key, count, backend)  # type: ignore[arg-type]
    expected_distance, expected_index = _loops_k(query, key, count)
    assert torch.equal(index, expected_index)
    torch.testing.assert_close(distance, expected_distance, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
def test_of_many_copies_the_first_few_come_in_their_order(backend: str) -> None:
    key = torch.cat([torch.full((1, 3, 4), 9.0), torch.ones(1, 20, 4), torch.zeros(1, 20, 4)], dim=1)
    distance, index = nearest_k(torch.zeros(1, 1, 4), key, 22, backend)  # type: ignore[arg-type]
    assert index[0, 0].tolist() == [*range(23, 43), 3, 4] and distance[0, 0].tolist() == [0.0] * 20 + [2.0, 2.0]
    # not strict: any of the copies, but the distances are right
    loose, places = nearest_k(torch.zeros(1, 1, 4), key, 22, backend, strict=False)  # type: ignore[arg-type]
    assert torch.equal(loose, distance) and set(places[0, 0, :20].tolist()) == set(range(23, 43))


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_search_by_blocks_is_the_whole_search(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    query, key = _randn(2, 23, 6), _randn(2, 50, 6, seed=1)
    key = torch.cat([key, key[:, :20]], dim=1)  # equal keys in different blocks
    whole = nearest_k(query, key, 4, backend)  # type: ignore[arg-type]
    monkeypatch.setattr(neighbours, "KEYS_AT_ONCE", 9)
    monkeypatch.setattr(neighbours, "PAIRS_AT_ONCE", 200)
    parts = nearest_k(query, key, 4, backend)  # type: ignore[arg-type]
    assert torch.equal(whole[1], parts[1]) and torch.equal(whole[0], parts[0])
    assert torch.equal(parts[1], _loops_k(query, key, 4)[1])


@pytest.mark.parametrize("count", [0, 4])
def test_more_neighbours_than_keys_are_refused(count: int) -> None:
    with pytest.raises(ValueError, match=f"asked for {count} neighbours among 3 keys, expected 1 to 3"):
        nearest_k(_randn(1, 2, 3), _randn(1, 3, 3), count)


@pytest.mark.gpu
@pytest.mark.skipif(not neighbours.faiss_sees_gpu(), reason="needs faiss-gpu and a CUDA device")
def test_faiss_on_a_gpu_gives_the_same_neighbours() -> None:
    query, key = _randn(2, 200, 64), _randn(2, 300, 64, seed=1)
    found = nearest_k(query.cuda(), key.cuda(), 5, "faiss")
    assert found[1].is_cuda and torch.equal(found[1].cpu(), nearest_k(query, key, 5, "matmul")[1])


def test_the_search_carries_no_gradient() -> None:
    distance, _ = nearest(_randn(1, 3, 2).requires_grad_(), _randn(1, 3, 2).requires_grad_())
    assert not distance.requires_grad


# -- which back end ------------------------------------------------------------------------------------------------


def test_the_size_chooses_the_back_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neighbours, "faiss_available", lambda: True)
    assert choose_backend(1, FAISS_FROM, CPU) == "matmul" and choose_backend(2, FAISS_FROM // 2, CPU) == "matmul"
    assert choose_backend(1, FAISS_FROM + 1, CPU) == "faiss" and choose_backend(2, FAISS_FROM // 2 + 1, CPU) == "faiss"
    assert choose_backend(4, FAISS_FROM, torch.device("cuda")) == "matmul"
    assert choose_backend(4, FAISS_FROM, CPU, "matmul") == "matmul" and choose_backend(1, 1, CPU, "faiss") == "faiss"


def test_auto_takes_what_the_size_says_and_does_without_faiss(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def candidates(query: Tensor, key: Tensor, count: int) -> Tensor:
        asked.append(key.shape[1])
        return torch.cdist(query, key).topk(count, largest=False).indices

    monkeypatch.setattr(neighbours, "_faiss_candidates", candidates)
    monkeypatch.setattr(neighbours, "FAISS_FROM", 100)
    monkeypatch.setattr(neighbours, "faiss_available", lambda: True)
    small, large = (_randn(1, 10, 3), _randn(1, 10, 3, seed=1)), (_randn(1, 10, 3), _randn(1, 11, 3, seed=1))
    nearest(*small)
    assert asked == []
    _agrees(*large, "auto")
    assert asked == [11]
    monkeypatch.setattr(neighbours, "faiss_available", lambda: False)
    _agrees(*large, "auto")
    assert asked == [11]


def test_without_faiss_it_is_said_once_and_only_where_it_would_be_taken(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(neighbours, "faiss_available", lambda: False)
    neighbours.log_missing_faiss.cache_clear()
    with caplog.at_level(logging.INFO, "distill.hypotheses.neighbours"):
        choose_backend(1, FAISS_FROM, CPU), choose_backend(2, FAISS_FROM, torch.device("cuda"))
        assert caplog.messages == []
        choose_backend(2, FAISS_FROM, CPU), choose_backend(2, FAISS_FROM, CPU)
    assert len(caplog.messages) == 1 and "FAISS is not installed" in caplog.messages[0]
    assert "pip install faiss-cpu" in caplog.messages[0] and describe_faiss() in caplog.messages[0]


def test_faiss_in_words_when_it_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neighbours, "faiss_available", lambda: True)
    for sees, words in ((False, "installed, CPU only"), (True, "never measured")):
        monkeypatch.setattr(neighbours, "faiss_sees_gpu", lambda sees=sees: sees)
        assert words in describe_faiss()


def test_faiss_asked_for_but_missing_is_said_clearly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "faiss", None)
    monkeypatch.setattr(neighbours, "faiss_available", lambda: False)
    with pytest.raises(ValueError, match="FAISS was asked for but is not installed; pip install faiss-cpu"):
        nearest(_randn(1, 2, 3), _randn(1, 2, 3), "faiss")


def test_an_unknown_back_end_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown back end 'annoy'; expected auto, matmul or faiss"):
        nearest(_randn(1, 2, 3), _randn(1, 2, 3), "annoy")  # type: ignore[arg-type]


# -- refusals ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("where", ["query", "key"])
def test_values_that_are_not_finite_are_refused(value: float, where: str) -> None:
    sets = {"query": _randn(1, 3, 2), "key": _randn(1, 4, 2)}
    sets[where][0, 1, 1] = value
    with pytest.raises(ValueError, match="NaN or infinity"):
        nearest(sets["query"], sets["key"])


@pytest.mark.parametrize(
    ("query", "key"), [((2, 3, 4), (2, 3, 5)), ((2, 3, 4), (3, 3, 4)), ((3, 4), (3, 4)), ((1, 2, 3, 4), (1, 2, 3, 4))]
)
def test_shapes_that_do_not_match_are_refused(query: tuple[int, ...], key: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"expected \[B, M, D\] and \[B, K, D\]"):
        nearest(torch.zeros(query), torch.zeros(key))


def test_no_key_is_refused() -> None:
    with pytest.raises(ValueError, match="no key to search among"):
        nearest(torch.zeros(1, 3, 2), torch.zeros(1, 0, 2))
