"""Recorded observations of any format, streamed: windows under our feature names, whatever the folder holds."""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from envs.specs import DEPTH, STATE

ENDS_BYTES = 1 << 16
"""So many bytes of either end of a data file go into a fingerprint; a file of metadata goes in whole."""


class RecordedObservations(ABC):
    """Frames of E episodes, one after the other, of which only what is asked for is read.

    path: where they lie. features: our feature name to the shape of one frame, as `envs.specs` says: ``[S]``, ``[3, H, W]``
    in 0..1, ``[1, H, W]`` [m], ``[N, 3+C]`` [m]. episodes: `[E]` frames of each. action_size: A, 0 where there are no
    actions. state_names, action_names: `[S]`, `[A]`, or () where the data does not say. dt_s: control period [s] or None.
    """

    def __init__(
        self, path: Path, features: Mapping[str, tuple[int, ...]], episodes: Sequence[int], *, action_size: int = 0,
        state_names: Sequence[str] = (), action_names: Sequence[str] = (), dt_s: float | None = None,
    ) -> None:  # fmt: skip
        """ValueError where these do not fit each other: no features, an empty episode, as many names as there are not."""
        self.path, self.features, self.episodes = path, dict(features), tuple(int(length) for length in episodes)
        self.action_size, self.dt_s = action_size, dt_s
        self.state_names, self.action_names = tuple(state_names), tuple(action_names)
        if not self.features:
            raise ValueError(f"{path}: got no feature, expected at least one; say by `names` which of its keys is what")
        if not self.episodes or min(self.episodes) < 1:
            raise ValueError(f"{path}: got episodes of {list(self.episodes)[:8]} frames, expected at least one frame in each")
        told = {"state_names": (self.state_names, self.features.get(STATE, (0,))[0]),
                "action_names": (self.action_names, action_size)}  # fmt: skip
        for what, (names, size) in told.items():
            if names and len(names) != size:
                raise ValueError(f"{path}: {what} are {len(names)}, expected {size}: {list(names)[:8]}")
        self._ends = np.cumsum(self.episodes)

    def __len__(self) -> int:
        """Frames of all episodes, F."""
        return int(self._ends[-1])

    @abstractmethod
    def frames(self, feature: str, frames_M: np.ndarray) -> np.ndarray:
        """A feature in M frames, `[M, *shape]` float32; the frames rise and none comes twice. ValueError for bad data."""

    @abstractmethod
    def action_frames(self, frames_M: np.ndarray) -> np.ndarray:
        """The actions of M rising frames, `[M, A]` float32. Only asked for where there are any."""

    @abstractmethod
    def files(self) -> tuple[list[Path], list[Path]]:
        """The files of metadata, and those of data, for `fingerprint`."""

    def instructions(self, indices: Sequence[int] | np.ndarray) -> list[str]:
        """What the robot was told to do in each of n frames, "" where the data does not say."""
        return [""] * len(self._checked(indices))

    def episode_index(self, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """The episode of each of n frames, `[n]` int64, 0 .. E-1."""
        return np.searchsorted(self._ends, self._checked(indices), side="right").astype(np.int64)

    def read(self, indices: Sequence[int] | np.ndarray, observation_steps: int) -> dict[str, np.ndarray]:
        """What was observed in the O frames up to each of n: every feature `[n, O, *shape]` float32.

        Before an episode's first frame that frame is repeated. Raises ValueError for a frame that is not there, and for
        numbers that are not finite (in depth NaN is right: unknown) with feature, frame and episode.
        """
        frames_n = self._checked(indices)
        first_n = self._ends[self.episode_index(frames_n)] - np.array(self.episodes)[self.episode_index(frames_n)]
        history_nO = np.maximum(frames_n[:, None] + np.arange(1 - observation_steps, 1), first_n[:, None])
        frames_M, back = np.unique(history_nO, return_inverse=True)
        found = {}
        for name, shape in self.features.items():
            values_M = self._finite(name, self.frames(name, frames_M), frames_M, shape)
            found[name] = values_M[back.reshape(-1)].reshape(*history_nO.shape, *shape)
        return found

    def actions(self, indices: Sequence[int] | np.ndarray, horizon: int) -> np.ndarray:
        """The T actions from each of n frames on, `[n, T, A]` float32; an episode's last one is repeated after its end.

        Raises ValueError where the data has no actions, and as `read` does.
        """
        frames_n = self._checked(indices)
        if not self.action_size:
            raise ValueError(f"{self.path}: got no actions, expected some; only observations can be read from it")
        last_n = self._ends[self.episode_index(frames_n)] - 1
        future_nT = np.minimum(frames_n[:, None] + np.arange(horizon), last_n[:, None])
        frames_M, back = np.unique(future_nT, return_inverse=True)
        values_M = self._finite("action", self.action_frames(frames_M), frames_M, (self.action_size,))
        return values_M[back.reshape(-1)].reshape(*future_nT.shape, self.action_size)

    def fingerprint(self) -> dict[str, Any]:
        """What a stage's key holds of this data: names and shapes, and a sha256 over its files.

        Of metadata every byte counts, of data files the size and both ends. So it costs little, and misses only a change
        that leaves a file's size, its first and its last 64 KiB as they were.
        """
        metadata, data = self.files()
        digest = hashlib.sha256()
        for path in (*metadata, *data):
            size = path.stat().st_size
            digest.update(json.dumps([self._shown(path), size]).encode())
            with path.open("rb") as file:
                if path in metadata:
                    digest.update(file.read())
                else:
                    digest.update(file.read(ENDS_BYTES))
                    file.seek(max(size - ENDS_BYTES, 0))
                    digest.update(file.read(ENDS_BYTES))
        return {
            "format": type(self).__name__, "features": {name: list(shape) for name, shape in self.features.items()},
            "state_names": list(self.state_names), "action_names": list(self.action_names), "dt_s": self.dt_s,
            "episodes": len(self.episodes), "frames": len(self), "files_sha256": digest.hexdigest(),
        }  # fmt: skip

    def _shown(self, path: Path) -> str:
        return str(path.relative_to(self.path)) if path != self.path else path.name

    def _checked(self, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        frames_n = np.asarray(indices, dtype=np.int64)
        if frames_n.ndim != 1 or (frames_n.size and (frames_n.min() < 0 or frames_n.max() >= len(self))):
            ends = f" from {frames_n.min()} to {frames_n.max()}" if frames_n.size else ""
            raise ValueError(f"{self.path}: indices must be [n] within 0 .. {len(self) - 1}, got shape {frames_n.shape}{ends}")
        return frames_n

    def _finite(self, name: str, values_M: np.ndarray, frames_M: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        if values_M.shape != (len(frames_M), *shape):
            raise ValueError(f"{self.path}: {name} is {values_M.shape[1:]} in frame {frames_M[:1]}, expected {shape}")
        rest = tuple(range(1, values_M.ndim))
        bad_M = np.isinf(values_M).any(axis=rest) if name.startswith(DEPTH) else ~np.isfinite(values_M).all(axis=rest)
        if bad_M.any():
            frame = int(frames_M[np.argmax(bad_M)])
            episode = int(np.searchsorted(self._ends, frame, side="right"))
            raise ValueError(
                f"{self.path}: {name} has NaN or infinity in frame {frame} (episode {episode}, step "
                f"{frame - int(self._ends[episode]) + self.episodes[episode]}), expected finite numbers; leave that episode out"
            )
        return values_M.astype(np.float32, copy=False)
