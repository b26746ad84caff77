"""Demonstrations that flow2one recorded, read as recorded observations."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from envs.demonstrations import Demonstrations
from envs.recorded.observations import RecordedObservations
from envs.specs import STATE

FRAMES = "frames.safetensors"


class RecordedDemonstrations(RecordedObservations):
    """Demonstrations that were recorded here; images and depth stay on disk until they are read."""

    looks_for_outliers = False

    def __init__(self, path: Path) -> None:
        """Raises what `Demonstrations.load` raises."""
        self._held = held = Demonstrations.load(path)
        spec, cameras = held.spec, {} if held.cameras is None else held.cameras.spec.shapes()
        super().__init__(
            path, {STATE: (len(spec.state_names),), **cameras}, np.bincount(held.episode_index).tolist(),
            action_size=spec.action.size, state_names=spec.state_names, action_names=spec.action.names, dt_s=spec.dt_s,
        )  # fmt: skip

    def frames(self, feature: str, frames_M: np.ndarray) -> np.ndarray:
        if feature == STATE:
            return self._held.state[frames_M]
        assert self._held.cameras is not None
        return self._held.cameras.read(feature, frames_M)

    def action_frames(self, frames_M: np.ndarray) -> np.ndarray:
        return self._held.action[frames_M]

    def files(self) -> tuple[list[Path], list[Path]]:
        return sorted(self.path.rglob("*.json")), sorted(self.path.rglob("*.safetensors"))
