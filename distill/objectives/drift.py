"""Drifting over sets: each sample follows a field, attracted by the teacher's hypotheses and repelled by the other samples."""

from __future__ import annotations

import torch
from torch import Tensor

from distill.hypotheses.distances import distances, embed

TEMPERATURES = (0.02, 0.05, 0.2)
"""Of the affinities, relative to the mean distance (arXiv 2602.04770)."""

GROUPS = ("chunk", "dimension", "step")
"""What moves as one point: a whole chunk, one action dimension over time, or one time step."""


def drift(
    student_BMTA: Tensor, teacher_BKTA: Tensor, weights_A: Tensor, floor: float = 0.0, groups: str = "chunk"
) -> Tensor:
    """|x - stopgrad(x + V(x))|^2 per dimension, with the drift V of `field` (drifting models, arXiv 2602.04770).

    Positives are the K hypotheses of the same observation, negatives its M samples. floor: least product of two softmaxes; the
    published code has 1e-6, which stops samples far from all hypotheses. groups: one of `GROUPS`; more than one point per chunk
    can mix the modes of its parts.

    The scale of distances and of V is the batch's: several processes, or accumulated parts of a batch, have their own, so that
    their students differ from those of one process by more than rounding.
    The value is nearly constant, as V has unit size at every temperature: it says nothing about progress; `field` does.
    """
    first_GMD, second_GKD = (_grouped(each, weights_A, groups) for each in (student_BMTA, teacher_BKTA.detach()))
    with torch.no_grad():
        scale = distances(first_GMD, second_GKD).mean().clamp(min=1e-8) / first_GMD.shape[-1] ** 0.5
        target_GMD = (first_GMD / scale).detach() + field(first_GMD / scale, second_GKD / scale, floor)
    return (first_GMD / scale - target_GMD).square().mean()


def field(samples_GMD: Tensor, positives_GKD: Tensor, floor: float = 0.0) -> Tensor:
    """The drift V `[G, M, D]` of samples whose mean distance from the positives is sqrt(D) (arXiv 2602.04770).

    With affinities a = sqrt(row softmax x column softmax) of -distance / temperature over positives and other samples,
    V_m = (sum_j a-_mj) sum_k a+_mk y_k - (sum_k a+_mk) sum_j a-_mj x_j, scaled to unit root mean square at each temperature and
    summed over `TEMPERATURES`. It is zero for a single sample, which nothing repels.
    """
    samples_GMD, positives_GKD = samples_GMD.float(), positives_GKD.float()  # half precision loses small affinities
    count, size = samples_GMD.shape[1:]
    distance_GMN = torch.cat([distances(samples_GMD, samples_GMD), distances(samples_GMD, positives_GKD)], dim=2)
    own_MN = torch.eye(count, distance_GMN.shape[2], dtype=torch.bool, device=samples_GMD.device)
    total_GMD = torch.zeros_like(samples_GMD)
    for temperature in TEMPERATURES:
        logit_GMN = (-distance_GMN / (temperature * size**0.5)).masked_fill(own_MN, -torch.inf)
        # a column of one sample's own distances alone has no softmax: nothing repels a single sample
        logarithm_GMN = (logit_GMN.log_softmax(2) + logit_GMN.log_softmax(1).nan_to_num(nan=-torch.inf)) / 2
        affinity_GMN = logarithm_GMN.exp().clamp(min=floor**0.5).masked_fill(own_MN, 0.0)
        away_GMM, toward_GMK = affinity_GMN[..., :count], affinity_GMN[..., count:]
        force_GMD = away_GMM.sum(2, keepdim=True) * (toward_GMK @ positives_GKD)
        force_GMD = force_GMD - toward_GMK.sum(2, keepdim=True) * (away_GMM @ samples_GMD)
        total_GMD = total_GMD + force_GMD / force_GMD.square().mean().sqrt().clamp(min=1e-12)
    return total_GMD


def _grouped(chunks_BNTA: Tensor, weights_A: Tensor, groups: str) -> Tensor:
    """The points that move, `[G, N, D]`, in the metric of all objectives."""
    scaled_BNTA = embed(chunks_BNTA, weights_A).view(chunks_BNTA.shape)
    if groups == "dimension":
        return scaled_BNTA.permute(0, 3, 1, 2).flatten(0, 1)
    if groups == "step":
        return scaled_BNTA.permute(0, 2, 1, 3).flatten(0, 1)
    return scaled_BNTA.flatten(2)
