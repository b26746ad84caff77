"""Windows of demonstrations as a torch data set: what was observed in O frames, and the action chunk that follows."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from envs.cameras.frames import dequantise
from envs.demonstrations import Demonstrations, window_frames
from envs.specs import IMAGES, POINTS, STATE

ACTION = "action"
CACHE_MB = 2048
"""How much memory a process may keep inflated images in, unless it says otherwise."""


class WindowDataset(Dataset[dict[str, Tensor]]):
    """One window per frame of demonstrations; a list of frame numbers is read as one batch.

    ``observation.state`` `[O, S]`, the camera features that were asked for (`[O, 3, H, W]` in 0..1, `[O, 1, H, W]` [m]
    with NaN where depth is unknown, `[O, N, 3 + C]` [m]) and ``action`` `[T, A]`, all float32; a batch has B before them.
    """

    def __init__(
        self, demonstrations: Demonstrations, features: Sequence[str] = (), *, observation_steps: int = 2,
        horizon: int = 16, cache_mb: float = CACHE_MB,
    ) -> None:  # fmt: skip
        """features: names of camera features, of `CamerasSpec.shapes`.

        cache_mb: so much memory may be used to keep images and depth inflated once they were read, feature by feature
        in the order of their names here, each whole or not at all. Every worker of a loader keeps its own.
        Raises ValueError for a feature that is not stored, naming it and those there are.
        """
        if features and demonstrations.cameras is None:
            raise ValueError(f"wanted {list(features)}, but these demonstrations were recorded without cameras: record again")
        if demonstrations.cameras is not None:
            demonstrations.cameras.spec.require(features)
        self.demonstrations, self.features = demonstrations, tuple(features)
        self.observation_steps, self.horizon = observation_steps, horizon
        self._room: dict[str, tuple[tuple[int, ...], type]] = {}
        self._kept: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        left, frames = cache_mb * 2**20, demonstrations.num_frames
        for name in features:
            if name != POINTS and demonstrations.cameras is not None:
                settings = demonstrations.cameras.spec.settings
                size, image = (settings.height, settings.width), name.startswith(IMAGES)
                # channels first, as they will be asked for: turning images over costs more than reading them from here
                shape, dtype = ((frames, 3, *size), np.uint8) if image else ((frames, *size), np.uint16)
                needed = int(np.prod(shape)) * np.dtype(dtype).itemsize
                if needed <= left:
                    left -= needed
                    self._room[name] = shape, dtype

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_kept": {}}  # a worker that is not forked begins with an empty memory

    def __len__(self) -> int:
        return self.demonstrations.num_frames

    def __getitem__(self, index: int | Sequence[int] | np.ndarray) -> dict[str, Tensor]:
        """One window, or for several frame numbers a batch of them. ValueError for a frame that is not there."""
        if isinstance(index, (int, np.integer)):
            return {name: values[0] for name, values in self[[int(index)]].items()}
        demonstrations, frames_B = self.demonstrations, np.asarray(index, dtype=np.int64)
        history_BO, future_BT = window_frames(demonstrations, frames_B, self.observation_steps, self.horizon)
        read = {STATE: demonstrations.state[history_BO], ACTION: demonstrations.action[future_BT]}
        for name in self.features:
            values = self._read(name, history_BO.reshape(-1))
            read[name] = values.reshape(*history_BO.shape, *values.shape[1:])
        return {name: torch.from_numpy(values) for name, values in read.items()}

    def _read(self, name: str, frames_M: np.ndarray) -> np.ndarray:
        cameras = self.demonstrations.cameras
        assert cameras is not None
        if name not in self._room:
            return cameras.read(name, frames_M)
        if name not in self._kept:  # of which memory is taken only as it is filled
            self._kept[name] = np.empty(*self._room[name]), np.zeros(len(self), bool)
        kept, ready = self._kept[name]
        quantise = kept.transpose(0, 2, 3, 1) if name.startswith(IMAGES) else kept
        for frame in np.unique(frames_M[~ready[frames_M]]).tolist():
            cameras.raw(name, [frame], quantise[frame : frame + 1])
            ready[frame] = True
        chosen = kept[frames_M]
        return dequantise(name, chosen.transpose(0, 2, 3, 1) if name.startswith(IMAGES) else chosen, cameras.spec)


def batch_loader(
    dataset: WindowDataset, batches: Iterable[Sequence[int]], workers: int = 0, ahead: int = 2
) -> DataLoader[dict[str, Tensor]]:
    """Batches in the order of `batches`, lists of frame numbers, read by so many processes, each `ahead` batches ahead.

    With 0 workers the training process reads by itself. The order and the contents do not depend on `workers`.
    """
    return DataLoader(
        dataset, batch_size=None, sampler=batches, num_workers=workers, collate_fn=_as_it_is,
        prefetch_factor=ahead if workers else None, persistent_workers=workers > 0,
    )  # fmt: skip


def _as_it_is(batch: Any) -> Any:
    return batch
