"""Distances between chunks and between sets of chunks, in normalised action space, always per observation.

The distance of two chunks is d(a, b) = sqrt( sum_ta w_ta (a_ta - b_ta)^2 / sum_ta w_ta ), the weighted root mean square
difference, so its unit is half of an action dimension's range whatever T and A are.
"""

from __future__ import annotations

import torch
from torch import Tensor

TINY = 1e-12
"""The square root has no gradient at zero; below this squared distance two chunks count as equal."""

BY_DIFFERENCES = "donot_use_mm_for_euclid_dist"
"""How torch.cdist computes here: |a|^2 - 2 a.b + |b|^2 would round the distances of near chunks away."""


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
    """All Euclidean distances `[B, M, K]`, by differences, of which no `[B, M, K, D]` is held."""
    return (torch.cdist(first_BMD, second_BKD, compute_mode=BY_DIFFERENCES).square() + TINY).sqrt()


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


def _to_nearest(from_BMD: Tensor, to_BKD: Tensor) -> Tensor:
    """Mean over b and m of min_k d(from_bm, to_bk); the search has no gradient, the distance to the nearest chunk has."""
    index_BM = torch.cdist(from_BMD.detach(), to_BKD.detach(), compute_mode=BY_DIFFERENCES).argmin(-1)
    winner_BMD = to_BKD.gather(1, index_BM[..., None].expand(-1, -1, to_BKD.shape[-1]))
    return partner_distances(from_BMD, winner_BMD).mean()


def coverage(student_BMTA: Tensor, teacher_BKTA: Tensor, weights_A: Tensor) -> Tensor:
    """1/K sum_k min_m d(t_k, s_m): every hypothesis of the teacher has a student sample near it (IMLE, 1809.09087)."""
    return _to_nearest(embed(teacher_BKTA.detach(), weights_A), embed(student_BMTA, weights_A))


def fidelity(student_BMTA: Tensor, teacher_BKTA: Tensor, weights_A: Tensor) -> Tensor:
    """1/M sum_m min_k d(s_m, t_k): every student sample is near some hypothesis of the teacher."""
    return _to_nearest(embed(student_BMTA, weights_A), embed(teacher_BKTA.detach(), weights_A))


def chamfer(student_BMTA: Tensor, teacher_BKTA: Tensor, weights_A: Tensor) -> Tensor:
    """Bidirectional Chamfer distance: 1/M sum_m min_k d(s_m, t_k) + 1/K sum_k min_m d(t_k, s_m).

    Set-level IMLE of "From Flow to One Step" (arXiv 2603.09415), with un-squared distances.
    """
    return fidelity(student_BMTA, teacher_BKTA, weights_A) + coverage(student_BMTA, teacher_BKTA, weights_A)


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


def chamfer_energy(student_BMTA: Tensor, teacher_BKTA: Tensor, weights_A: Tensor) -> Tensor:
    """Chamfer + 0.5 x energy distance: also matches the mode frequencies."""
    return chamfer(student_BMTA, teacher_BKTA, weights_A) + 0.5 * energy_distance(
        student_BMTA, teacher_BKTA, weights_A
    )


def paired(student_BMTA: Tensor, teacher_BKTA: Tensor, weights_A: Tensor) -> Tensor:
    """1/M sum_m d(s_m, t_m)^2, sample m generated from the same noise as the teacher's hypothesis m.

    One-step distillation of a flow by regression on its end points (Luhman and Luhman 2021, arXiv 2101.02388, eq. 4).
    Hypotheses beyond the first M have no partner. Raises ValueError for more samples than hypotheses.
    """
    samples = student_BMTA.shape[1]
    if samples > teacher_BKTA.shape[1]:
        raise ValueError(f"got {samples} samples and {teacher_BKTA.shape[1]} hypotheses, expected one for every sample")
    student_BMD, teacher_BMD = embed(student_BMTA, weights_A), embed(teacher_BKTA[:, :samples].detach(), weights_A)
    return (student_BMD - teacher_BMD).square().sum(-1).mean()


def share_loss(log_share_BM: Tensor, student_BMTA: Tensor, teacher_BKTA: Tensor, weights_A: Tensor) -> Tensor:
    """A scalar whose gradient, in expectation over the sampled codes, is that of E(p); its value has no meaning.

    The score-function estimator (Williams 1992): dE/dp_j = 2 a_j - 2 sum_i p_i D_ij, estimated for each of the M samples from
    the hypotheses and the other samples, minus a baseline, the E(p) of the other samples. The baseline does not depend on the
    sample itself; with a mean over all samples it would: the repulsion would weaken to (M - 2) / (M - 1), and rare modes would
    die out.
    log_share_BM: log shares of the codes that the samples used. Chunks get no gradient. Raises ValueError for a single sample.
    """
    samples = student_BMTA.shape[1]
    if samples < 2:
        raise ValueError(f"got {samples} sample an observation, expected at least 2: a share is learned by comparing")
    student_BMD, teacher_BKD = embed(student_BMTA.detach(), weights_A), embed(teacher_BKTA.detach(), weights_A)
    to_teacher_BM = distances(student_BMD, teacher_BKD).mean(-1)
    among_BM = distances(student_BMD, student_BMD).sum(-1)
    slope_BM = 2 * to_teacher_BM - 2 * among_BM / (samples - 1)
    others_BM = to_teacher_BM.sum(-1, keepdim=True) - to_teacher_BM
    among_others_BM = among_BM.sum(-1, keepdim=True) - 2 * among_BM
    baseline_BM = 2 * others_BM / (samples - 1) - 2 * among_others_BM / ((samples - 1) * max(samples - 2, 1))
    return ((slope_BM - baseline_BM) * log_share_BM).mean()
