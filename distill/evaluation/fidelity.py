"""Fidelity of a set: how like fresh teacher samples a policy's samples are, observation by observation."""

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
"""A range more than this many times as wide as what the reference draws is no unit to measure it in."""


def set_fidelity(
    policy_BMTA: Tensor, teacher_BKTA: Tensor, weights_A: Tensor, neighbours: int = 5
) -> dict[str, float]:
    """Distances between two sets of normalised chunks, computed per observation, then averaged over observations.

    chamfer_*: mean distance to the nearest chunk of the other set, both ways; energy_distance: unbiased.
    precision, recall (Kynkaanniemi et al. 2019, eq. 1-2), coverage (Naeem et al. 2020, eq. 8): by balls that reach to
    the `neighbours`-th neighbour. off_support_share: share of the policy's samples that are farther from every teacher
    sample than any teacher sample is from its own nearest one, and than SAME_PLAN; off_support_share_strict: without the
    latter.
    Raises ValueError when a set has fewer than `neighbours` + 1 chunks.
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
    """Join the results of several groups of observations, each with its number of observations."""
    total = sum(count for count, _ in parts)
    return {name: sum(count * values[name] for count, values in parts) / total for name in parts[0][1]}


def measuring_normaliser(normaliser: Normaliser, reference_NKTA: Tensor) -> Normaliser:
    """The action space that sets are compared in: the normaliser's, but a range that is more than `INFLATED` times as wide as
    that of the reference's own raw chunks `[N, K, T, A]` is replaced by theirs.

    So a range that a glitch has set cannot make a policy that is off by all of the real range look alike.
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
    """How far a policy's raw chunks are from the teacher's in each number of an action, in that number's own unit.

    mean_error: absolute difference of the two sets' means, averaged over observations and steps of the chunk; spread_error: the
    same of their standard deviations; low, high: the range of the teacher's chunks that few of them cannot set;
    mean_error_share: of that range, None where it is 0.
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
