"""Windows of demonstrations as a torch data set: the observations of O frames, and the action chunk that follows."""

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
"""Default size of a process' cache of decompressed images [MiB]."""


class WindowDataset(Dataset[dict[str, Tensor]]):
    """One window per frame of demonstrations; a list of frame indices is read as one batch.

    ``observation.state`` `[O, S]`, the requested camera features (`[O, 3, H, W]` in 0..1, `[O, 1, H, W]` [m] with NaN where
    depth is unknown, `[O, N, 3 + C]` [m]) and ``action`` `[T, A]`, all float32; a batch has a leading B.
    """

    def __init__(
        self, demonstrations: Demonstrations, features: Sequence[str] = (), *, observation_steps: int = 2,
        horizon: int = 16, cache_mb: float = CACHE_MB,
    ) -> None:  # fmt: skip
        """features: names of camera features, of `CamerasSpec.shapes`.

        cache_mb: memory for decompressed images and depth [MiB]; features are cached whole or not at all, in the order given.
        Every worker of a loader has its own cache.
        Raises ValueError for a feature that is not stored, with the names of those that are.
        """
        if features and demonstrations.cameras is None:
            raise ValueError(f"wanted {list(features)}, but these demonstrations were recorded without cameras: record again")
        if demonstrations.cameras is not None:
            demonstrations.cameras.spec.require(features)
        self.demonstrations, self.features = demonstrations, tuple(features)
        self.observation_steps, self.horizon = observation_steps, horizon
        self._cacheable: dict[str, tuple[tuple[int, ...], type]] = {}
        self._cached: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        left, frames = cache_mb * 2**20, demonstrations.num_frames
        for name in features:
            if name != POINTS and demonstrations.cameras is not None:
                settings = demonstrations.cameras.spec.settings
                size, image = (settings.height, settings.width), name.startswith(IMAGES)
                # channels first, as they are returned: transposing images costs more than reading them from the cache
                shape, dtype = ((frames, 3, *size), np.uint8) if image else ((frames, *size), np.uint16)
                needed = int(np.prod(shape)) * np.dtype(dtype).itemsize
                if needed <= left:
                    left -= needed
                    self._cacheable[name] = shape, dtype

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_cached": {}}  # a worker that is not forked begins with an empty cache

    def __len__(self) -> int:
        return self.demonstrations.num_frames

    def __getitem__(self, index: int | Sequence[int] | np.ndarray) -> dict[str, Tensor]:
        """One window, or a batch for several frame indices. Raises ValueError for a frame out of range."""
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
        if name not in self._cacheable:
            return cameras.read(name, frames_M)
        if name not in self._cached:  # the system commits its memory only as it is filled
            self._cached[name] = np.empty(*self._cacheable[name]), np.zeros(len(self), bool)
        cached, ready = self._cached[name]
        as_stored = cached.transpose(0, 2, 3, 1) if name.startswith(IMAGES) else cached
        for frame in np.unique(frames_M[~ready[frames_M]]).tolist():
            cameras.raw(name, [frame], as_stored[frame : frame + 1])
            ready[frame] = True
        chosen = cached[frames_M]
        return dequantise(name, chosen.transpose(0, 2, 3, 1) if name.startswith(IMAGES) else chosen, cameras.spec)


def batch_loader(
    dataset: WindowDataset, batches: Iterable[Sequence[int]], workers: int = 0, ahead: int = 2
) -> DataLoader[dict[str, Tensor]]:
    """A loader of `batches`, lists of frame indices, in their order.

    workers: processes that read, each `ahead` batches ahead; with 0 the training process reads. Order and contents do not
    depend on it.
    """
    return DataLoader(
        dataset, batch_size=None, sampler=batches, num_workers=workers, collate_fn=_identity,
        prefetch_factor=ahead if workers else None, persistent_workers=workers > 0,
    )  # fmt: skip


def _identity(batch: Any) -> Any:
    return batch
