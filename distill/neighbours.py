"""Nearest neighbours between two sets of vectors per observation: batched matmul or FAISS, one answer."""

from __future__ import annotations

import importlib.util
from typing import Literal

import torch
from torch import Tensor

Backend = Literal["auto", "matmul", "faiss"]

FAISS_FROM = 128 * 128
"""From this many pairs per observation on, "auto" takes FAISS (FIELD section 7: about equal there, faster beyond)."""

CANDIDATES = 4
"""Approximate neighbours per query whose distances are computed again exactly, so that both back ends agree."""


def faiss_available() -> bool:
    return importlib.util.find_spec("faiss") is not None


def choose_backend(num_queries: int, num_keys: int, device: torch.device, backend: Backend = "auto") -> str:
    """The back end that `nearest` will take. Raises ValueError for an unknown one, or FAISS where it is missing."""
    if backend not in ("auto", "matmul", "faiss"):
        raise ValueError(f"unknown back end {backend!r}; expected auto, matmul or faiss")
    if backend == "faiss" and not faiss_available():
        raise ValueError("FAISS was asked for but is not installed; pip install faiss-cpu, or use backend='matmul'")
    if backend != "auto":
        return backend
    large = num_queries * num_keys > FAISS_FROM
    return "faiss" if large and device.type == "cpu" and faiss_available() else "matmul"


@torch.no_grad()
def nearest(query_BMD: Tensor, key_BKD: Tensor, backend: Backend = "auto") -> tuple[Tensor, Tensor]:
    """Euclidean distance to and index of the nearest key of the same observation, `[B, M]` each.

    Ties go to the lowest index. Both back ends propose `CANDIDATES` keys by |q|^2 - 2 q.k + |k|^2; those are compared
    again by direct differences, and a query whose candidates are too close for that formula's rounding is compared
    with every key. So the answer does not depend on the back end. No gradient.

    Raises ValueError for shapes that do not match, an empty set of keys, or values that are not finite.
    """
    if query_BMD.ndim != 3 or key_BKD.ndim != 3 or query_BMD.shape[::2] != key_BKD.shape[::2]:
        raise ValueError(f"got {tuple(query_BMD.shape)} and {tuple(key_BKD.shape)}, expected [B, M, D] and [B, K, D]")
    if key_BKD.shape[1] == 0:
        raise ValueError("got no key to search among, expected at least one per observation")
    if not (bool(torch.isfinite(query_BMD).all()) and bool(torch.isfinite(key_BKD).all())):
        raise ValueError("got NaN or infinity, expected finite vectors: neighbours of them mean nothing")
    keys = key_BKD.shape[1]
    count = min(CANDIDATES, keys)
    eps = torch.finfo(query_BMD.dtype).eps
    if choose_backend(query_BMD.shape[1], keys, query_BMD.device, backend) == "faiss":
        eps = max(eps, torch.finfo(torch.float32).eps)  # FAISS searches in float32 whatever it is given
        candidate_BMC = _faiss_candidates(query_BMD, key_BKD, count)
    else:
        squared = key_BKD.square().sum(-1)[:, None] - 2 * query_BMD @ key_BKD.transpose(1, 2)
        candidate_BMC = squared.topk(count, dim=-1, largest=False).indices
    # lowest index first, so that argmin breaks ties towards it
    candidate_BMC = candidate_BMC.sort(dim=-1).values
    batch_index = torch.arange(len(key_BKD), device=key_BKD.device)[:, None, None]
    exact_BMC = (query_BMD[:, :, None] - key_BKD[batch_index, candidate_BMC]).square().sum(-1)
    best_BM = exact_BMC.argmin(-1, keepdim=True)
    index_BM = candidate_BMC.gather(-1, best_BM)[..., 0]
    squared_BM = exact_BMC.gather(-1, best_BM)[..., 0]
    if count < keys:
        scale_BM = query_BMD.square().sum(-1) + key_BKD.square().sum(-1).amax(-1, keepdim=True)
        unsure_BM = exact_BMC.amax(-1) - squared_BM <= 64 * eps * scale_BM
        for b in unsure_BM.any(-1).nonzero()[:, 0].tolist():
            every_UK = (query_BMD[b, unsure_BM[b], None] - key_BKD[b]).square().sum(-1)
            index_BM[b, unsure_BM[b]] = every_UK.argmin(-1)
            squared_BM[b, unsure_BM[b]] = every_UK.amin(-1)
    return squared_BM.sqrt(), index_BM


def _faiss_candidates(query_BMD: Tensor, key_BKD: Tensor, count: int) -> Tensor:
    import faiss  # imported only when used: loading it beside torch has crashed people

    found = []
    for query, key in zip(query_BMD.cpu().float(), key_BKD.cpu().float(), strict=True):
        _, index = faiss.knn(query.contiguous().numpy(), key.contiguous().numpy(), count)
        found.append(torch.from_numpy(index))
    return torch.stack(found).to(query_BMD.device)
