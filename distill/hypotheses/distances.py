"""Distances between chunks and between sets of chunks, in normalised action space, always per observation.

The distance of two chunks is d(a, b) = sqrt( sum_ta w_ta (a_ta - b_ta)^2 / sum_ta w_ta ), the weighted root mean square
difference, so its unit is half of an action dimension's range whatever T and A are.
"""

from __future__ import annotations

import torch
from torch import Tensor

from distill.hypotheses.neighbours import Backend, nearest

TINY = 1e-12
"""The square root has no gradient at zero; below this squared distance two chunks count as equal."""


def embed(chunks_BMTA: Tensor, weights_A: Tensor) -> Tensor:
    """Chunks as vectors `[B, M, T*A]` whose Euclidean distance is d(a, b); weights `[A]` or `[T, A]`."""
    weights_TA = weights_A.expand(chunks_BMTA.shape[-2:])
    return (chunks_BMTA * (weights_TA / weights_TA.sum()).sqrt()).flatten(-2)


def chunk_weights(weights_A: Tensor, horizon: int, execution_horizon: int, unexecuted_weight: float) -> Tensor:
    """Weights `[T, A]`: those of the task for executed actions, times `unexecuted_weight` for the rest of the chunk.

    The end of a chunk holds decisions that are replanned before they are executed. At full weight their variance dominates the
    distance, and the student is less accurate where it acts.
    """
    weights_TA = weights_A.repeat(horizon, 1)
    weights_TA[execution_horizon:] *= unexecuted_weight
    return weights_TA


def distances(first_BMD: Tensor, second_BKD: Tensor) -> Tensor:
    """All Euclidean distances `[B, M, K]`, by differences."""
    return partner_distances(first_BMD[:, :, None], second_BKD[:, None])


def partner_distances(first_BMD: Tensor, second_BMD: Tensor) -> Tensor:
    """Euclidean distances `[B, M]` of corresponding vectors, with a gradient that stays finite at distance zero."""
    return ((first_BMD - second_BMD).square().sum(-1) + TINY).sqrt()


def neighbour_radii(points_BND: Tensor, neighbours: int) -> Tensor:
    """Distance `[B, N]` of every point to its `neighbours`-th nearest other point of the same observation.

    Raises ValueError for `neighbours` points or fewer.
    """
    if points_BND.shape[1] <= neighbours:
        raise ValueError(f"got {points_BND.shape[1]} chunks an observation, expected at least {neighbours + 1}")
    return distances(points_BND, points_BND).sort(-1).values[..., neighbours]


def _to_nearest(from_BMD: Tensor, to_BKD: Tensor, backend: Backend) -> Tensor:
    """Mean over b and m of min_k d(from_bm, to_bk). The search has no gradient; the distance to the nearest chunk has."""
    _, index_BM = nearest(from_BMD.detach(), to_BKD.detach(), backend)
    winner_BMD = to_BKD.gather(1, index_BM[..., None].expand(-1, -1, to_BKD.shape[-1]))
    return partner_distances(from_BMD, winner_BMD).mean()


def coverage(student_BMTA: Tensor, teacher_BKTA: Tensor, weights_A: Tensor, backend: Backend = "auto") -> Tensor:
    """1/K sum_k min_m d(t_k, s_m): every hypothesis of the teacher has a student sample near it (IMLE, 1809.09087)."""
    return _to_nearest(embed(teacher_BKTA.detach(), weights_A), embed(student_BMTA, weights_A), backend)


def fidelity(student_BMTA: Tensor, teacher_BKTA: Tensor, weights_A: Tensor, backend: Backend = "auto") -> Tensor:
    """1/M sum_m min_k d(s_m, t_k): every student sample is near some hypothesis of the teacher."""
    return _to_nearest(embed(student_BMTA, weights_A), embed(teacher_BKTA.detach(), weights_A), backend)


def energy_distance(student_BMTA: Tensor, teacher_BKTA: Tensor, weights_A: Tensor) -> Tensor:
    """2 E d(s, t) - E d(s, s') - E d(t, t'), expectations over different samples (Szekely and Rizzo 2013, eq. 5).

    Unbiased, so it may be slightly negative for equal distributions. Zero only for equal distributions: unlike Chamfer it
    depends on the mode frequencies. For a set of one sample the term within the set is 0.
    """
    student_BMD, teacher_BKD = embed(student_BMTA, weights_A), embed(teacher_BKTA.detach(), weights_A)

    def within(points_BND: Tensor) -> Tensor:
        count = points_BND.shape[1]
        if count < 2:
            return points_BND.new_zeros(())
        off_diagonal_NN = 1 - torch.eye(count, device=points_BND.device, dtype=points_BND.dtype)
        return (distances(points_BND, points_BND) * off_diagonal_NN).sum((-1, -2)).mean() / (count * (count - 1))

    return 2 * distances(student_BMD, teacher_BKD).mean() - within(student_BMD) - within(teacher_BKD)
