"""Fidelity of a set: how like fresh teacher samples a policy's samples are, observation by observation."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from distill.hypotheses.distances import coverage, distances, embed, energy_distance, fidelity, neighbour_radii
from students.selection import SAME_PLAN


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
