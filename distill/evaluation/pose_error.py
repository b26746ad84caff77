"""How far planned poses are from demonstrated ones, at training and at held-out observations: what shows memorised goals."""

from __future__ import annotations

from typing import Any

import numpy as np

from envs.poses import MISSING, PoseLayout


def pose_errors(chunks_FKTA: np.ndarray, shown_FTA: np.ndarray, layout: PoseLayout) -> dict[str, np.ndarray]:
    """Error of the last action's pose, of the sample that is nearest to the demonstration, for each of F observations.

    A policy may take another way than the demonstration, so the nearest of K samples counts. ``position_m`` `[F]`: distance of
    the first position of the action. ``rotation_deg`` `[F]`: angle between the planned and the demonstrated rotation, given by
    its first two columns; only where the action has them.
    """
    last_FKA, shown_FA = chunks_FKTA[:, :, -1], shown_FTA[:, -1]
    here = [index for index in layout.positions[0] if index != MISSING]
    gap_FK = np.linalg.norm(last_FKA[..., here] - shown_FA[:, None, here], axis=-1)
    nearest_F, rows_F = gap_FK.argmin(1), np.arange(len(gap_FK))
    found = {"position_m": gap_FK[rows_F, nearest_F]}
    if len(layout.directions) >= 2:
        columns = [list(each) for each in layout.directions[:2]]
        planned, shown = (_rotations(values, columns) for values in (last_FKA[rows_F, nearest_F], shown_FA))
        trace_F = np.einsum("fij,fij->f", planned, shown)
        found["rotation_deg"] = np.degrees(np.arccos(np.clip((trace_F - 1) / 2, -1, 1)))
    return found


def _rotations(values_FA: np.ndarray, columns: list[list[int]]) -> np.ndarray:
    """`[F, 3, 3]` orthonormalised from two columns (Gram-Schmidt)."""
    first, second = (values_FA[:, each].astype(np.float64) for each in columns)
    first = first / np.maximum(np.linalg.norm(first, axis=-1, keepdims=True), 1e-12)
    second = second - (first * second).sum(-1, keepdims=True) * first
    second = second / np.maximum(np.linalg.norm(second, axis=-1, keepdims=True), 1e-12)
    return np.stack([first, second, np.cross(first, second)], axis=-1)


def summarise_errors(errors: dict[str, np.ndarray]) -> dict[str, Any]:
    """Mean and median of each error."""
    return {name: {"mean": float(values.mean()), "median": float(np.median(values))} for name, values in errors.items()}


def first_and_other_frames(episode_index_F: np.ndarray, count: int, seed: int) -> np.ndarray:
    """`[n <= count]` frames, half of them first frames of episodes, where a whole task is still to be planned."""
    rng = np.random.default_rng([seed, 14])
    first = np.flatnonzero(np.diff(episode_index_F, prepend=episode_index_F[0] - 1))
    chosen = rng.permutation(first)[: count // 2]
    others = np.setdiff1d(np.arange(len(episode_index_F)), chosen)
    frames: np.ndarray = np.sort(np.concatenate([chosen, rng.permutation(others)[: count - len(chosen)]]))
    return frames
