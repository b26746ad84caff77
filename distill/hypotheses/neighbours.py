"""Nearest neighbours between two sets of vectors per observation: batched matrix products or FAISS, same result."""

from __future__ import annotations

import functools
import importlib.util
import logging
from typing import Any, Literal

import torch
from torch import Tensor

Backend = Literal["auto", "matmul", "faiss"]

FAISS_FROM = 2**40
"""From this many pairs per observation on, "auto" uses FAISS's exact search. No search reaches it.

benchmarks/neighbours.py finds products faster at every size it measures, 8 x 8 to 20,000 x 20,000, but one: 128 x 128
of 32 numbers, where FAISS takes 0.91 of their time (AVX-512 Xeon, one thread, torch with MKL). Set it to a size where
your CPU's table says otherwise. FAISS is worth installing for the approximate index of large pools
(distill/hypotheses/index.py).
"""

CANDIDATES = 4
"""Extra candidates per query whose distances are recomputed exactly, so that both back ends give the same result."""

KEYS_AT_ONCE = 2**16
PAIRS_AT_ONCE = 2**24
"""Larger searches run in blocks: at most this many float32 distances (64 MB) are held at a time."""


def faiss_available() -> bool:
    """Whether FAISS is installed."""
    return importlib.util.find_spec("faiss") is not None


def faiss_sees_gpu() -> bool:
    """Whether both torch and the installed FAISS can use a CUDA device; FAISS is loaded only where torch can."""
    if not (torch.cuda.is_available() and faiss_available()):
        return False
    import faiss

    return int(getattr(faiss, "get_num_gpus", lambda: 0)()) > 0


def describe_faiss() -> str:
    """One line for the doctor: what runs the large searches on this machine."""
    if not faiss_available():
        return "not installed: exact search by matrix products everywhere, the same neighbours; pools of millions are slow"
    if faiss_sees_gpu():
        return "installed, sees a GPU: for pools of millions; its speed there was never measured for this project"
    return "installed, CPU only: for pools of millions; smaller searches are faster by matrix products"


@functools.cache
def log_missing_faiss() -> None:
    """Log once per process, only where FAISS would have been used."""
    logging.getLogger(__name__).info("FAISS is %s; pip install faiss-cpu", describe_faiss())


def choose_backend(num_queries: int, num_keys: int, device: torch.device, backend: Backend = "auto") -> str:
    """The back end that `nearest` uses. Raises ValueError for an unknown one, or for FAISS if it is not installed.

    On a GPU "auto" uses matrix products: FAISS was never measured there.
    """
    if backend not in ("auto", "matmul", "faiss"):
        raise ValueError(f"unknown back end {backend!r}; expected auto, matmul or faiss")
    if backend == "faiss" and not faiss_available():
        raise ValueError("FAISS was asked for but is not installed; pip install faiss-cpu, or use backend='matmul'")
    if backend != "auto":
        return backend
    if num_queries * num_keys <= FAISS_FROM or device.type != "cpu":
        return "matmul"
    if not faiss_available():
        log_missing_faiss()
        return "matmul"
    return "faiss"


def nearest(query_BMD: Tensor, key_BKD: Tensor, backend: Backend = "auto") -> tuple[Tensor, Tensor]:
    """Euclidean distance to and index of the nearest key of the same observation, `[B, M]` each; see `nearest_k`."""
    distance_BM1, index_BM1 = nearest_k(query_BMD, key_BKD, 1, backend)
    return distance_BM1[..., 0], index_BM1[..., 0]


@torch.no_grad()
def nearest_k(
    query_BMD: Tensor, key_BKD: Tensor, count: int, backend: Backend = "auto", strict: bool = True
) -> tuple[Tensor, Tensor]:
    """Distances to and indices of the `count` nearest keys of the same observation, `[B, M, count]`, nearest first.

    Ties go to the lowest index. Both back ends propose `count` + `CANDIDATES` - 1 keys by |q|^2 - 2 q.k + |k|^2; these are
    compared again by direct differences, and a query whose candidates are too close for that formula's rounding is compared
    with every key. The result therefore does not depend on the back end. No gradient.
    strict=False omits that last comparison, which is expensive in a large pool with duplicates: the distances still belong to
    the indices, but neighbours at equal distance up to rounding may be swapped.

    Raises ValueError for shapes that do not match, no keys, values that are not finite, or a count outside 1 .. K.
    """
    if query_BMD.ndim != 3 or key_BKD.ndim != 3 or query_BMD.shape[::2] != key_BKD.shape[::2]:
        raise ValueError(f"got {tuple(query_BMD.shape)} and {tuple(key_BKD.shape)}, expected [B, M, D] and [B, K, D]")
    batch, keys, size = key_BKD.shape
    if keys == 0:
        raise ValueError("got no key to search among, expected at least one per observation")
    if not 1 <= count <= keys:
        raise ValueError(f"asked for {count} neighbours among {keys} keys, expected 1 to {keys}")
    if not (bool(torch.isfinite(query_BMD).all()) and bool(torch.isfinite(key_BKD).all())):
        raise ValueError("got NaN or infinity, expected finite vectors: neighbours of them mean nothing")
    chosen = choose_backend(query_BMD.shape[1], keys, query_BMD.device, backend)
    candidates = min(count - 1 + CANDIDATES, keys)
    rows = max(1, PAIRS_AT_ONCE // max(1, batch * max(min(keys, KEYS_AT_ONCE), candidates * size)))
    parts = [_search(part, key_BKD, count, candidates, chosen, strict) for part in query_BMD.split(rows, dim=1)]
    return torch.cat([distance for distance, _ in parts], dim=1), torch.cat([index for _, index in parts], dim=1)


def _search(
    query_BMD: Tensor, key_BKD: Tensor, count: int, candidates: int, backend: str, strict: bool
) -> tuple[Tensor, Tensor]:
    propose = _faiss_candidates if backend == "faiss" else _matmul_candidates
    # lowest index first, so that the stable choice below breaks ties towards it
    candidate_BMC = propose(query_BMD, key_BKD, candidates).sort(dim=-1).values
    batch_index = torch.arange(len(key_BKD), device=key_BKD.device)[:, None, None]
    exact_BMC = (query_BMD[:, :, None] - key_BKD[batch_index, candidate_BMC]).square().sum(-1)
    best_BMk = _lowest(exact_BMC, count)
    index_BMk, squared_BMk = candidate_BMC.gather(-1, best_BMk), exact_BMC.gather(-1, best_BMk)
    if strict and candidates < key_BKD.shape[1]:
        eps = torch.finfo(query_BMD.dtype).eps
        if backend == "faiss":
            eps = max(eps, torch.finfo(torch.float32).eps)  # FAISS always searches in float32
        scale_BM = query_BMD.square().sum(-1) + key_BKD.square().sum(-1).amax(-1, keepdim=True)
        unsure_BM = exact_BMC.amax(-1) - squared_BMk[..., -1] <= 64 * eps * scale_BM
        rows = max(1, PAIRS_AT_ONCE // key_BKD[0].numel())
        for b in unsure_BM.any(-1).nonzero()[:, 0].tolist():
            for row_U in unsure_BM[b].nonzero()[:, 0].split(rows):
                every_UK = (query_BMD[b, row_U, None] - key_BKD[b]).square().sum(-1)
                best_Uk = _lowest(every_UK, count)
                index_BMk[b, row_U], squared_BMk[b, row_U] = best_Uk, every_UK.gather(-1, best_Uk)
    return squared_BMk.sqrt(), index_BMk


def _lowest(values: Tensor, count: int) -> Tensor:
    """Positions of the `count` lowest values of the last dimension, lowest first; ties by position."""
    return values.argmin(-1, keepdim=True) if count == 1 else values.argsort(dim=-1, stable=True)[..., :count]


def _matmul_candidates(query_BMD: Tensor, key_BKD: Tensor, count: int) -> Tensor:
    """Indices `[B, M, count]` of the lowest |k|^2 - 2 q.k, by blocks of keys."""
    values, indices = [], []
    for start in range(0, key_BKD.shape[1], KEYS_AT_ONCE):
        block_BJD = key_BKD[:, start : start + KEYS_AT_ONCE]
        squared = torch.baddbmm(block_BJD.square().sum(-1)[:, None], query_BMD, block_BJD.transpose(1, 2), alpha=-2)
        lowest = squared.topk(min(count, block_BJD.shape[1]), dim=-1, largest=False)
        values.append(lowest.values)
        indices.append(lowest.indices + start)
    if len(values) == 1:
        return indices[0]
    return torch.cat(indices, dim=-1).gather(-1, torch.cat(values, dim=-1).topk(count, dim=-1, largest=False).indices)


def _faiss_candidates(query_BMD: Tensor, key_BKD: Tensor, count: int) -> Tensor:
    """Indices `[B, M, count]` of the nearest keys in float32, one FAISS call per observation."""
    import faiss  # imported only when used: loading it together with torch has caused crashes

    found = []
    if query_BMD.is_cuda and faiss_sees_gpu():
        import faiss.contrib.torch_utils  # lets knn_gpu accept GPU tensors

        for query, key in zip(query_BMD.float(), key_BKD.float(), strict=True):
            _, index = faiss.knn_gpu(gpu_resources(), query.contiguous(), key.contiguous(), count)
            found.append(index)
        return torch.stack(found)
    for query, key in zip(query_BMD.cpu().float(), key_BKD.cpu().float(), strict=True):
        _, index = faiss.knn(query.contiguous().numpy(), key.contiguous().numpy(), count)
        found.append(torch.from_numpy(index))
    return torch.stack(found).to(query_BMD.device)


@functools.cache
def gpu_resources() -> Any:
    """FAISS's scratch memory on the GPU, created once per process."""
    import faiss

    return faiss.StandardGpuResources()
