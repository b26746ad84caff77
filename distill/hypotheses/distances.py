"""Distances between chunks: weighted root mean squares in normalised action space, always per observation."""

from __future__ import annotations

from torch import Tensor

TINY = 1e-12
"""A root has no slope at zero; below this squared distance two chunks count as one."""


def embed(chunks_BMTA: Tensor, weights_A: Tensor) -> Tensor:
    """Chunks as vectors `[B, M, T*A]` whose Euclidean distance is d(a, b); weights `[A]` or `[T, A]`."""
    weights_TA = weights_A.expand(chunks_BMTA.shape[-2:])
    return (chunks_BMTA * (weights_TA / weights_TA.sum()).sqrt()).flatten(-2)


def chunk_weights(weights_A: Tensor, horizon: int, execution_horizon: int, unexecuted_weight: float) -> Tensor:
    """Weights `[T, A]`: those of the task for the actions that are carried out, times `unexecuted_weight` for the rest.

    The far end of a chunk holds decisions that will be taken anew before it is reached. At full weight their spread
    rules the distance, and the student is blurred where it acts.
    """
    weights_TA = weights_A.repeat(horizon, 1)
    weights_TA[execution_horizon:] *= unexecuted_weight
    return weights_TA


def distances(first_BMD: Tensor, second_BKD: Tensor) -> Tensor:
    """All Euclidean distances `[B, M, K]`, by differences."""
    return partner_distances(first_BMD[:, :, None], second_BKD[:, None])


def partner_distances(first_BMD: Tensor, second_BMD: Tensor) -> Tensor:
    """Euclidean distances `[B, M]` of partners, with a gradient that stays finite at zero distance."""
    return ((first_BMD - second_BMD).square().sum(-1) + TINY).sqrt()


def neighbour_radii(points_BND: Tensor, neighbours: int) -> Tensor:
    """Distance `[B, N]` of every point to its `neighbours`-th nearest other point of the same observation.

    Raises ValueError where there are no more than `neighbours` points.
    """
    if points_BND.shape[1] <= neighbours:
        raise ValueError(f"got {points_BND.shape[1]} chunks an observation, expected at least {neighbours + 1}")
    return distances(points_BND, points_BND).sort(-1).values[..., neighbours]
