"""The teacher's support over the whole cache: an index of all hypotheses, pooled figures, duplicates and novelty."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from distill.hypotheses.cache import HypothesisDataset
from distill.hypotheses.distances import embed
from distill.hypotheses.neighbours import faiss_available, faiss_sees_gpu, gpu_resources, log_missing_faiss, nearest_k
from envs.specs import STATE
from teachers.networks.normalisation import Normaliser

IVF_FROM = 200_000
"""From this many vectors on, an index is approximate if FAISS is installed (figures: benchmarks/neighbours.py)."""

PROBES = 32
"""Lists of an approximate index that a query searches; more lists find more of the true neighbours and take longer."""

SAMPLES_PER_LIST = 40

_NUMBERS_AT_ONCE = 2**24


# -- vectors -----------------------------------------------------------------------------------------------------------


def state_vectors(state_BOS: Tensor, normaliser: Normaliser) -> Tensor:
    """Raw state histories as `[B, O*S]`, whose Euclidean distance is the root mean square normalised difference."""
    return normaliser.normalise_state(state_BOS).flatten(1) / math.sqrt(state_BOS.shape[1:].numel())


def pooled_vectors(
    chunks_BKTA: Tensor, weights_A: Tensor, observation_BE: Tensor | None = None, scale: float = 1.0
) -> Tensor:
    """Chunks of many observations in one space, `[B*K, D]`: the chunk alone, or with its observation.

    observation_BE: a vector per observation, for instance `state_vectors`; then D = E + T*A and
    d^2 = scale^2 d(observations)^2 + d(chunks)^2. A large scale compares similar observations only; 0, or no observation,
    tells whether a chunk resembles any that the teacher drew anywhere. Pooled figures do not replace those per observation
    (distill.evaluation.fidelity): a pool hides a chunk of the wrong observation, or a mode lost in one.
    """
    chunk_BKD = embed(chunks_BKTA, weights_A)
    if observation_BE is not None:
        chunk_BKD = torch.cat([scale * observation_BE[:, None].expand(-1, chunk_BKD.shape[1], -1), chunk_BKD], dim=-1)
    return chunk_BKD.flatten(0, 1)


def cache_blocks(dataset: HypothesisDataset, rows: Sequence[int] | None = None) -> Iterator[tuple[Tensor, Tensor]]:
    """Raw states `[n, O, S]` and normalised chunks `[n, K, T, A]` of a cache, one shard's number of rows at a time."""
    chosen = range(len(dataset)) if rows is None else rows
    for start in range(0, len(chosen), dataset.shard_size):
        batch = dataset.batch(chosen[start : start + dataset.shard_size])
        yield batch[STATE], batch["hypotheses"]


# -- an index ----------------------------------------------------------------------------------------------------------


class HypothesisIndex:
    """Nearest neighbours among vectors that are added in blocks; vector i is the i-th that was added.

    Exact below `IVF_FROM` expected vectors or without FAISS, otherwise approximate (FAISS IVF, full float32 vectors,
    Euclidean); see `exact`. Memory: 4 D bytes per vector, 0.4 GB for a million chunks of 48 x 2.
    """

    def __init__(self, sample_ND: Tensor, capacity: int, approximate: bool | None = None) -> None:
        """sample_ND: a representative sample of the vectors, from which an approximate index learns its lists.

        capacity: maximum number of vectors. approximate: None chooses by capacity. Raises ValueError for a sample that is not
        `[N, D]`, finite and non-empty, or if FAISS is needed and missing.
        """
        if sample_ND.ndim != 2 or not sample_ND.numel() or not bool(torch.isfinite(sample_ND).all()):
            raise ValueError(f"got a sample {tuple(sample_ND.shape)}, expected finite vectors [N, D], at least one")
        if approximate and not faiss_available():
            raise ValueError("an approximate index needs FAISS; pip install faiss-cpu, or take approximate=None")
        if approximate is None and capacity >= IVF_FROM and not faiss_available():
            log_missing_faiss()
        self.exact = not (capacity >= IVF_FROM and faiss_available() if approximate is None else approximate)
        self.capacity, self.count = capacity, 0
        self._centre_D = sample_ND.float().mean(0)  # a search by products loses digits far from the origin
        if self.exact:
            self._vectors_ND = torch.empty(capacity, sample_ND.shape[1], device=sample_ND.device)
        else:
            self._index = self._trained(sample_ND.float() - self._centre_D)

    def _trained(self, sample_ND: Tensor) -> Any:
        import faiss  # imported only when used, as in distill/hypotheses/neighbours.py

        # FAISS wants 39 sample vectors a list, and warns below that
        self.lists = max(1, min(_lists(self.capacity), len(sample_ND) // SAMPLES_PER_LIST))
        quantizer = faiss.IndexFlatL2(sample_ND.shape[1])
        index = faiss.IndexIVFFlat(quantizer, sample_ND.shape[1], self.lists)
        index.quantizer, index.nprobe, index.cp.niter = quantizer, min(PROBES, self.lists), 10
        index.train(np.ascontiguousarray(sample_ND[: SAMPLES_PER_LIST * self.lists].cpu().numpy()))
        if sample_ND.is_cuda and faiss_sees_gpu():  # never measured for this project
            return faiss.index_cpu_to_gpu(gpu_resources(), sample_ND.device.index or 0, index)
        return index

    def add(self, block_ND: Tensor) -> None:
        """Append vectors. Raises ValueError for another size, values that are not finite, or more than the capacity."""
        if block_ND.ndim != 2 or block_ND.shape[1] != len(self._centre_D) or not bool(torch.isfinite(block_ND).all()):
            raise ValueError(f"got {tuple(block_ND.shape)}, expected finite vectors [N, {len(self._centre_D)}]")
        if self.count + len(block_ND) > self.capacity:
            raise ValueError(f"got {self.count + len(block_ND)} vectors, expected at most {self.capacity}: the capacity")
        centred_ND = block_ND.to(self._centre_D) - self._centre_D
        if self.exact:
            self._vectors_ND[self.count : self.count + len(block_ND)] = centred_ND
        elif len(block_ND):
            self._index.add(np.ascontiguousarray(centred_ND.cpu().numpy()))
        self.count += len(block_ND)

    def search(self, query_MD: Tensor, count: int, own_M: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Euclidean distances to and indices of the `count` nearest vectors, `[M, count]`, nearest first.

        own_M: the queries' own positions in the index, which are excluded. Vectors at the same distance up to rounding may
        come in any order. Search many queries at once: the exact index reads every vector per call.
        Raises ValueError when the index has fewer vectors, or a query is not finite.
        """
        wanted = count + (own_M is not None)
        if not 1 <= count <= wanted <= self.count:
            raise ValueError(f"asked for {wanted} neighbours (its own included), expected 1 to {self.count}: those added")
        if query_MD.ndim != 2 or not bool(torch.isfinite(query_MD).all()):
            raise ValueError(f"got queries {tuple(query_MD.shape)}, expected finite vectors [M, {len(self._centre_D)}]")
        centred_MD = query_MD.to(self._centre_D) - self._centre_D
        if self.exact:
            found, places = nearest_k(centred_MD[None], self._vectors_ND[None, : self.count], wanted, strict=False)
            distance_Mk, index_Mk = found[0], places[0]
        else:
            distance_Mk, index_Mk = (part.to(query_MD.device) for part in self._probe(centred_MD, wanted))
        if own_M is None:
            return distance_Mk, index_Mk
        is_own_Mk = index_Mk == own_M.to(index_Mk)[:, None]
        is_own_Mk[:, -1] |= ~is_own_Mk.any(-1)  # not found among its duplicates: drop the last instead
        return distance_Mk[~is_own_Mk].view(-1, count), index_Mk[~is_own_Mk].view(-1, count)

    def _probe(self, query_MD: Tensor, count: int) -> tuple[Tensor, Tensor]:
        import faiss

        query = np.ascontiguousarray(query_MD.cpu().numpy())
        squared, index = self._index.search(query, count)
        short = (index < 0).any(1)  # the probed lists hold too few vectors: search all lists
        if short.any():
            everywhere = faiss.SearchParametersIVF()
            everywhere.nprobe = self.lists
            squared[short], index[short] = self._index.search(query[short], count, params=everywhere)
        return torch.from_numpy(squared).clamp(min=0).sqrt(), torch.from_numpy(index)

    @classmethod
    def of_cache(
        cls, dataset: HypothesisDataset, vectors: Callable[[Tensor, Tensor], Tensor], approximate: bool | None = None
    ) -> HypothesisIndex:
        """An index of all hypotheses of a cache, read shard by shard: hypothesis k of row n is vector n * K + k.

        vectors: raw states `[n, O, S]` and normalised chunks `[n, K, T, A]` to `[n*K, D]`, see `pooled_vectors`.
        """
        per_row = int(dataset.index["num_hypotheses"])
        capacity = len(dataset) * per_row
        # evenly spaced rows: the cache is in episode order, so its beginning is not representative
        enough = -(-SAMPLES_PER_LIST * _lists(capacity) // per_row)
        sampled_rows = np.unique(np.linspace(0, len(dataset) - 1, min(enough, len(dataset))).round().astype(int)).tolist()
        sample = torch.cat([vectors(*block) for block in cache_blocks(dataset, sampled_rows)])
        order = torch.randperm(len(sample), generator=torch.Generator().manual_seed(0))
        index = cls(sample[order], capacity, approximate)
        for block in cache_blocks(dataset):
            index.add(vectors(*block))
        return index


def _lists(capacity: int) -> int:
    """Lists of an approximate index: about as many as vectors per list, which balances the two searches."""
    return max(1, int(2 * math.sqrt(capacity)))


# -- two pooled sets ---------------------------------------------------------------------------------------------------


def pooled_fidelity(policy_ND: Tensor, teacher_LD: Tensor, neighbours: int = 5) -> dict[str, float]:
    """precision, recall, density, coverage of a policy's pooled vectors against the teacher's; exact.

    Balls reach to the `neighbours`-th nearest other vector of the same set. precision, recall: share of vectors in any ball of
    the other set (Kynkaanniemi et al. 2019, eq. 1-2). density: mean number of the teacher's balls that a policy vector is in,
    over `neighbours`; may exceed 1. coverage: share of the teacher's balls that contain a policy vector (Naeem et al. 2020,
    section 3). They complement the figures per observation, see `pooled_vectors`.
    Raises ValueError when a set has fewer than `neighbours` + 1 vectors.
    """
    smallest = min(len(policy_ND), len(teacher_LD))
    if smallest <= neighbours:
        raise ValueError(f"got {smallest} vectors, expected at least {neighbours + 1} for {neighbours} neighbours")
    # float64: a vector on the edge of a ball, as on grids, must not fall out by the rounding of a product
    centre_D = teacher_LD.double().mean(0)
    policy_ND, teacher_LD = policy_ND.double() - centre_D, teacher_LD.double() - centre_D
    radius_N, radius_L = _radii(policy_ND, neighbours), _radii(teacher_LD, neighbours)
    slack = 1e-12 * (policy_ND.square().sum(-1).max() + teacher_LD.square().sum(-1).max())
    precise = balls = 0.0
    recalled_L = torch.zeros(len(teacher_LD), dtype=torch.bool, device=teacher_LD.device)
    covered_L = recalled_L.clone()
    rows = max(1, _NUMBERS_AT_ONCE // len(teacher_LD))
    for part_nD, reach_n in zip(policy_ND.split(rows), radius_N.split(rows), strict=True):
        squared_nL = part_nD.square().sum(-1)[:, None] + teacher_LD.square().sum(-1) - 2 * part_nD @ teacher_LD.T
        inside_nL = squared_nL <= radius_L.square() + slack
        precise += float(inside_nL.any(1).sum())
        balls += float(inside_nL.sum())
        covered_L |= inside_nL.any(0)
        recalled_L |= (squared_nL <= reach_n.square()[:, None] + slack).any(0)
    return {
        "precision": precise / len(policy_ND), "recall": float(recalled_L.double().mean()),
        "density": balls / (neighbours * len(policy_ND)), "coverage": float(covered_L.double().mean()),
    }  # fmt: skip


def _radii(points_ND: Tensor, neighbours: int) -> Tensor:
    """Distance `[N]` to the `neighbours`-th nearest other point; the nearest of all is the point itself."""
    return nearest_k(points_ND[None], points_ND[None], neighbours + 1, strict=False)[0][0, :, -1]


# -- duplicates and novelty --------------------------------------------------------------------------------------------


def distinct(chunks_BKD: Tensor, radius: float) -> Tensor:
    """Mask `[B, K]` of the vectors kept: one within `radius` of an earlier kept one of the same observation is dropped."""
    close_BKK = torch.cdist(chunks_BKD, chunks_BKD, compute_mode="donot_use_mm_for_euclid_dist") <= radius
    keep_BK = torch.ones(chunks_BKD.shape[:2], dtype=torch.bool, device=chunks_BKD.device)
    for k in range(1, chunks_BKD.shape[1]):
        keep_BK[:, k] = ~(close_BKK[:, k, :k] & keep_BK[:, :k]).any(-1)
    return keep_BK


def distinct_in_pool(blocks: Iterable[Tensor], index: HypothesisIndex, radius: float) -> Tensor:
    """Mask `[N]` of the vectors kept over all blocks `[n, D]`: one within `radius` of an earlier kept one is dropped.

    The kept ones are added to `index`, which is empty at first. If it is approximate, a missed neighbour keeps a duplicate; an
    original is never dropped.
    """
    kept = []
    for block_nD in blocks:
        for part_nD in block_nD.split(1024):
            far_n = torch.ones(len(part_nD), dtype=torch.bool, device=part_nD.device)
            if index.count:
                far_n = index.search(part_nD, 1)[0][:, 0] > radius
            far_n[far_n.clone()] = distinct(part_nD[far_n][None], radius)[0]
            index.add(part_nD[far_n])
            kept.append(far_n)
    return torch.cat(kept)


def novelty(index: HypothesisIndex, vectors_ND: Tensor, first: int, neighbours: int = 5) -> Tensor:
    """Distance `[N]` of vectors first, first + 1, .. of an index to their `neighbours`-th nearest other vector in it."""
    own_N = torch.arange(first, first + len(vectors_ND), device=vectors_ND.device)
    return index.search(vectors_ND, neighbours, own_N)[0][:, -1]
