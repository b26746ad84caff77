"""How multimodal the teacher's hypotheses are per observation, and whether a policy keeps the mode shares."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from distill.hypotheses.cache import HypothesisDataset
from distill.hypotheses.distances import embed
from distill.hypotheses.index import cache_blocks, distinct
from distill.hypotheses.neighbours import nearest_k
from students.selection import SAME_PLAN

MODE_RATIO = 2.0
"""Minimum ratio of the gap between two modes to the widest gap within them."""


@dataclass(frozen=True)
class Modes:
    """The modes of one observation's hypotheses. label_K: the mode of each; shares: of the modes, largest first."""

    label_K: Tensor
    shares: Tensor

    @property
    def count(self) -> int:
        return len(self.shares)


def modes_per_observation(
    chunks_BKTA: Tensor, weights_A: Tensor, ratio: float = MODE_RATIO, smallest: int | None = None
) -> list[Modes]:
    """The modes of each observation's K chunks, by single-linkage clustering cut where the linkage distance grows most.

    Single linkage joins the nearest groups first; h_i is the distance of the i-th join. The cut is where h_(i+1) / h_i is
    largest among all cuts that leave at least two groups of `smallest` chunks (at least 4, and 5 % of K). If that ratio is
    below `ratio`, there is one mode. Chunks of smaller groups get the mode of their nearest chunk. A rare mode therefore
    needs a large K to be found: 4 of 16 are 25 %, 4 of 64 are 6 %. A chain of outliers between two modes joins them.

    Over 1000 draws, Gaussian sets of 16 / 32 / 64 chunks are called multimodal in 8 / 4 / 2 % of the draws in one dimension,
    and in 0.2 % or less in two and three. Two equal Gaussians are separated in 97 % or more when 10 standard deviations
    apart, in 55 to 98 % at 8, seldom below 6. It errs towards one mode. Raises ValueError for chunks that are not finite `[B,
    K, T, A]`.
    """
    if chunks_BKTA.ndim != 4 or not bool(torch.isfinite(chunks_BKTA).all()):
        raise ValueError(f"got {tuple(chunks_BKTA.shape)}, expected finite chunks [B, K, T, A]")
    smallest = max(4, math.ceil(0.05 * chunks_BKTA.shape[1])) if smallest is None else smallest
    return [_modes(points_KD, ratio, smallest) for points_KD in embed(chunks_BKTA, weights_A).double().cpu().numpy()]


def _modes(points_KD: np.ndarray, ratio: float, smallest: int) -> Modes:
    from scipy.cluster.hierarchy import fcluster, linkage
    from scipy.spatial.distance import pdist

    label_K = np.zeros(len(points_KD), dtype=np.int64)
    if len(points_KD) >= 2 * smallest:
        distance = pdist(points_KD)
        tree = linkage(distance, "single")
        height = tree[:, 2]
        tiny = max(1e-9, 1e-6 * height[-1])  # duplicates join at distance 0, which has no ratio
        growth = height[1:] / np.maximum(height[:-1], tiny)
        for cut in np.argsort(-growth, kind="stable"):
            if growth[cut] < ratio:
                break
            group_K = fcluster(tree, height[cut], "distance")
            large = np.flatnonzero(np.bincount(group_K) >= smallest)
            if len(large) >= 2:
                label_K = _joined(points_KD, group_K, large)
                break
    shares = np.bincount(label_K) / len(label_K)
    order = np.argsort(-shares, kind="stable")
    return Modes(torch.from_numpy(np.argsort(order)[label_K]), torch.from_numpy(shares[order]).float())


def _joined(points_KD: np.ndarray, group_K: np.ndarray, large: np.ndarray) -> np.ndarray:
    """Labels 0, 1, .. of the large groups; every other point gets the label of the nearest point in one of them."""
    from scipy.spatial.distance import cdist

    inside = np.flatnonzero(np.isin(group_K, large))
    winner_K = inside[cdist(points_KD, points_KD[inside]).argmin(1)]
    label_K: np.ndarray = np.searchsorted(large, group_K[winner_K])
    return label_K


def mode_share_error(policy_MTA: Tensor, teacher_KTA: Tensor, modes: Modes, weights_A: Tensor) -> float:
    """Total variation, 0 to 1, between a teacher's mode shares and the shares of a policy's chunks.

    A chunk counts for the mode of its nearest teacher chunk, however far away: read it together with `off_support_share`, as a
    mean of two modes counts as one of them. Its floor is the same figure for a second teacher set of M chunks.
    """
    policy_1MD, teacher_1KD = embed(policy_MTA[None], weights_A), embed(teacher_KTA[None], weights_A)
    label_M = modes.label_K.to(teacher_1KD.device)[nearest_k(policy_1MD, teacher_1KD, 1)[1][0, :, 0]]
    shares = torch.bincount(label_M, minlength=modes.count).cpu() / len(policy_MTA)
    return float(0.5 * (shares - modes.shares).abs().sum())


def mode_figures(policy_MTA: Tensor, teacher_KTA: Tensor, second_MTA: Tensor, weights_A: Tensor) -> dict[str, Any]:
    """One observation, for JSON: number of modes, their shares, the policy's share error, and that of a second teacher set.

    Raises ValueError when the policy's set and the second set differ in size: a smaller set has a larger error by chance.
    """
    if len(policy_MTA) != len(second_MTA):
        raise ValueError(f"got {len(policy_MTA)} chunks and {len(second_MTA)} for the floor, expected equally many")
    (modes,) = modes_per_observation(teacher_KTA[None], weights_A)
    return {
        "modes": modes.count, "shares": [round(float(share), 4) for share in modes.shares],
        "share_error": mode_share_error(policy_MTA, teacher_KTA, modes, weights_A),
        "share_error_floor": mode_share_error(second_MTA, teacher_KTA, modes, weights_A),
    }  # fmt: skip


def summarise_modes(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The number of observations with 1, 2, .. modes, and the mean share errors over multimodal ones (None without any)."""
    many = [row for row in rows if row["modes"] > 1]
    return {
        "observations": len(rows),
        "observations_by_modes": np.bincount([row["modes"] for row in rows])[1:].tolist() if rows else [],
        **{name: float(np.mean([row[name] for row in many])) if many else None
           for name in ("share_error", "share_error_floor") if not rows or name in rows[0]},
    }  # fmt: skip


def modes_of_cache(dataset: HypothesisDataset, weights_A: Tensor, most: int = 2048) -> dict[str, Any]:
    """`summarise_modes` of a cache's observations, at most `most` of them, evenly spaced."""
    rows = np.unique(np.linspace(0, len(dataset) - 1, min(most, len(dataset))).round().astype(int)).tolist()
    return summarise_modes([
        {"modes": modes.count}
        for _, chunks_BKTA in cache_blocks(dataset, rows) for modes in modes_per_observation(chunks_BKTA, weights_A)
    ])  # fmt: skip


def cached_figures(folder: Path, weights: tuple[float, ...], most: int = 512) -> dict[str, Any]:
    """observations_by_modes: number of the cache's observations with 1, 2, .. modes.

    repeated_share: share of the hypotheses within SAME_PLAN of an earlier one of the same observation.
    """
    dataset, weights_A = HypothesisDataset(folder), torch.tensor(weights)
    rows = range(0, len(dataset), max(1, len(dataset) // most))
    kept_BK = torch.cat([distinct(embed(chunks, weights_A), SAME_PLAN) for _, chunks in cache_blocks(dataset, rows)])
    counts = modes_of_cache(dataset, weights_A, most)["observations_by_modes"]
    return {"observations_by_modes": counts, "repeated_share": 1 - float(kept_BK.float().mean())}
