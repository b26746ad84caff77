"""Selects one of a student's chunks, in numpy, as students/selection.py of flow2one does in torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

KINDS = ("single", "outlier_rejection", "temporal_consistency", "kept_latent")


@dataclass(frozen=True)
class Selection:
    """The entry `selection` of ``export.json``, and the metric of its distances.

    kind: one of `KINDS`. candidates: chunks per replan, for the two kinds that compare some. forget_every: the last plan or
    latent is forgotten at replans 0, forget_every, ..; 0: only at the first. executed: actions per replan. metric_A: factors
    that turn a difference of raw actions into weighted half ranges.
    """

    kind: str
    executed: int
    candidates: int = 1
    forget_every: int = 0
    outlier_ratio: float = 4.0
    mode_duplicates: int = 3
    same_plan_distance: float = 0.01
    metric_A: np.ndarray | None = None

    @classmethod
    def of(cls, entry: Mapping[str, Any], action: Mapping[str, Any] | None) -> Selection:
        """From ``export.json``. Raises ValueError for an unknown kind, and for one that needs ranges of actions without any."""
        kind = entry["kind"]
        if kind not in KINDS:
            raise ValueError(f"export.json: got selection {kind!r}, expected one of {list(KINDS)}")
        if kind in ("single", "kept_latent"):
            return cls(kind, entry["execution_horizon"], forget_every=entry.get("forget_every", 0))
        if action is None:
            raise ValueError(f"export.json: selection {kind!r} needs the ranges of the actions; export the student again")
        weights_A, scale_A = (np.asarray(action[name], np.float32) for name in ("weights", "scale"))
        return cls(
            kind, entry["execution_horizon"], entry["candidates"], entry["forget_every"], entry["outlier_ratio"],
            entry["mode_duplicates"], entry["same_plan_distance"], np.sqrt(weights_A / weights_A.sum()) / scale_A,
        )  # fmt: skip

    def count(self, horizon: int) -> int:
        """Chunks to draw at a replan."""
        compares = self.kind == "outlier_rejection" or (self.kind == "temporal_consistency" and self.executed < horizon)
        return self.candidates if compares else 1

    def forgets(self, replans: int) -> bool:
        """Whether the last plan or latent is forgotten before the replan after `replans` others."""
        return replans == 0 or (self.forget_every > 0 and replans % self.forget_every == 0)

    def index(self, chunks_MTA: np.ndarray, last_TA: np.ndarray | None, done: int) -> int:
        """Which raw chunk is executed. last_TA: the last plan, if it is remembered; done: how many of its actions are over."""
        if self.kind == "temporal_consistency" and last_TA is not None and done < len(last_TA):
            return int(self._distance(chunks_MTA[:, : len(last_TA) - done], last_TA[done:]).argmin())
        if self.kind == "outlier_rejection" and len(chunks_MTA) > 2:
            return self._first_inlier(chunks_MTA[:, : self.executed])
        return 0

    def _first_inlier(self, chunks_MTA: np.ndarray) -> int:
        distance_MM = self._distance(chunks_MTA[:, None], chunks_MTA[None])
        duplicate_MM = distance_MM < 1e-5  # of itself, too
        nearest_M = np.where(duplicate_MM, 1e6, distance_MM).min(-1)
        nearest_M[duplicate_MM.sum(-1) > self.mode_duplicates] = 0
        median = np.sort(nearest_M)[(len(nearest_M) - 1) // 2]
        return int((~(nearest_M > max(self.outlier_ratio * median, self.same_plan_distance))).argmax())

    def _distance(self, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        """Weighted root mean square difference of chunks `[.., T, A]`."""
        distance: np.ndarray = np.sqrt((((first - second) * self.metric_A) ** 2).sum(-1).mean(-1))
        return distance
