"""Fidelity of a sample set: how similar a policy's samples are to fresh teacher samples, per observation."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from distill.hypotheses.distances import coverage, distances, embed, energy_distance, fidelity, neighbour_radii
from envs.recorded.outliers import robust_range, without_diverged
from students.selection import SAME_PLAN
from teachers.networks.normalisation import Normaliser

INFLATED = 4.0
"""A normalisation range this many times wider than the reference's own chunks is not used for comparison."""


def set_fidelity(
    policy_BMTA: Tensor, teacher_BKTA: Tensor, weights_A: Tensor, neighbours: int = 5
) -> dict[str, float]:
    """Distances between two sets of normalised chunks, per observation, then averaged over observations.

    chamfer_*: mean distance to the nearest chunk of the other set, both ways. energy_distance: unbiased estimate.
    precision, recall (Kynkaanniemi et al. 2019, eq. 1-2), coverage (Naeem et al. 2020, eq. 8): with balls that reach to the
    `neighbours`-th nearest neighbour. off_support_share: share of the policy's samples that are farther from every teacher
    sample than any teacher sample is from its nearest one, and farther than SAME_PLAN. off_support_share_strict: without the
    second condition. Raises ValueError when a set has fewer than `neighbours` + 1 chunks.
    """
    smallest = min(policy_BMTA.shape[1], teacher_BKTA.shape[1])
    if smallest <= neighbours:
        raise ValueError(f"got sets of {smallest} chunks, expected at least {neighbours + 1} for {neighbours} neighbours")
    policy_BMD, teacher_BKD = embed(policy_BMTA, weights_A), embed(teacher_BKTA, weights_A)
    distance_BMK = distances(policy_BMD, teacher_BKD)
    teacher_radius_BK = neighbour_radii(teacher_BKD, neighbours)
    policy_radius_BM = neighbour_radii(policy_BMD, neighbours)
    farthest_B1 = neighbour_radii(teacher_BKD, 1).amax(-1, keepdim=True)
    return {
        "chamfer_student_to_teacher": float(fidelity(policy_BMTA, teacher_BKTA, weights_A)),
        "chamfer_teacher_to_student": float(coverage(policy_BMTA, teacher_BKTA, weights_A)),
        "energy_distance": float(energy_distance(policy_BMTA, teacher_BKTA, weights_A)),
        "precision": float((distance_BMK <= teacher_radius_BK[:, None]).any(2).float().mean()),
        "recall": float((distance_BMK <= policy_radius_BM[:, :, None]).any(1).float().mean()),
        "coverage": float((distance_BMK.amin(1) <= teacher_radius_BK).float().mean()),
        "off_support_share": float((distance_BMK.amin(-1) > farthest_B1.clamp(min=SAME_PLAN)).float().mean()),
        "off_support_share_strict": float((distance_BMK.amin(-1) > farthest_B1).float().mean()),
    }


def average(parts: Sequence[tuple[int, dict[str, float]]]) -> dict[str, float]:
    """Combine the results of several groups of observations, weighted by their number of observations."""
    total = sum(count for count, _ in parts)
    return {name: sum(count * values[name] for count, values in parts) / total for name in parts[0][1]}


def measuring_normaliser(normaliser: Normaliser, reference_NKTA: Tensor) -> Normaliser:
    """The action space in which sets are compared: the given normaliser, but with ranges that are not inflated.

    A range more than `INFLATED` times as wide as that of the reference's raw chunks `[N, K, T, A]` is replaced by theirs.
    Otherwise a range set by a glitch would make policies that are far apart look alike.
    """
    chunks_nTA = reference_NKTA.flatten(0, 1).double().cpu().numpy()
    low_A, high_A = robust_range(chunks_nTA[without_diverged(chunks_nTA)].reshape(-1, chunks_nTA.shape[-1]))
    made = copy.deepcopy(normaliser)
    low, high = made.action_low, made.action_high
    own_A = (high - low).double().cpu().numpy() > INFLATED * np.maximum(high_A - low_A, 1e-6)
    for buffer, value_A in ((low, low_A), (high, high_A)):
        buffer.copy_(torch.where(torch.from_numpy(own_A).to(buffer.device), torch.from_numpy(value_A).to(buffer), buffer))
    return made


def dimension_figures(policy_NMTA: Tensor, teacher_NKTA: Tensor, names: Sequence[str]) -> list[dict[str, Any]]:
    """Distance of a policy's raw chunks from the teacher's in each action dimension, in that dimension's own unit.

    mean_error: absolute difference of the two sets' means, averaged over observations and steps of the chunk. spread_error:
    the same for their standard deviations. low, high: outlier-robust range of the teacher's chunks. mean_error_share:
    mean_error over that range; None for a range of 0.
    """
    policy, teacher = policy_NMTA.double(), teacher_NKTA.double()
    mean_A = (policy.mean(1) - teacher.mean(1)).abs().mean((0, 1)).cpu().numpy()
    spread_A = (policy.std(1, correction=0) - teacher.std(1, correction=0)).abs().mean((0, 1)).cpu().numpy()
    low_A, high_A = robust_range(teacher.flatten(0, 2).cpu().numpy())
    return [
        {"name": name, "mean_error": float(mean), "spread_error": float(spread), "low": float(low), "high": float(high),
         "mean_error_share": float(mean / (high - low)) if high > low else None}
        for name, mean, spread, low, high in zip(names, mean_A, spread_A, low_A, high_A, strict=True)
    ]  # fmt: skip
