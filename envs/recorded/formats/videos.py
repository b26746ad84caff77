"""Frames of video files by their own time stamps, decoded by PyAV as they are asked for; a video that ends early is refused."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np

from envs.recorded.keys import optional
from envs.recorded.sources import refuse_pointer
from envs.recorded.timing import nearest

OPEN = 4
"""Videos that stay open, each where it was read last."""
SKIP_S = 2.0
"""A frame that is farther ahead than this is sought, one that is nearer is decoded towards [s]."""


class Videos:
    """Reads frames of many files; whoever reads forwards decodes every frame once."""

    def __init__(self, path: Path) -> None:
        """Raises ImportError without PyAV, with what to install."""
        self._av = optional("av", path)
        self._held: OrderedDict[Path, _Video] = OrderedDict()
        self._times: dict[Path, np.ndarray] = {}

    def times(self, path: Path) -> np.ndarray:
        """When each frame is shown [s], rising; read from the packets, nothing is decoded. ValueError for what is no video."""
        if path not in self._times:
            refuse_pointer(path)
            try:
                with self._av.open(str(path)) as container:
                    stream = container.streams.video[0]
                    stamps = [packet.pts for packet in container.demux(stream)
                              if packet.pts is not None and not packet.is_discard]
                    self._times[path] = np.sort(np.array(stamps, dtype=np.float64)) * float(stream.time_base or 0)
            except (self._av.FFmpegError, OSError, IndexError) as error:
                raise ValueError(f"{path}: cannot be opened as a video, it is missing or cut off: {_said(error)}") from error
        return self._times[path]

    def read(self, path: Path, times_M: np.ndarray) -> np.ndarray:
        """The frames nearest to M rising times [s], `[M, H, W, 3]` uint8. ValueError where the video cannot be decoded."""
        shown = self.times(path)
        if not len(shown):
            raise ValueError(f"{path}: the video has no frame")
        if path not in self._held:
            while len(self._held) >= OPEN:
                self._held.popitem(last=False)[1].close()
            try:
                self._held[path] = _Video(self._av, path)
            except (self._av.FFmpegError, OSError, IndexError) as error:
                raise ValueError(f"{path}: cannot be opened as a video, it is missing or cut off: {_said(error)}") from error
        self._held.move_to_end(path)
        try:
            return np.stack([self._held[path].at(float(time_s)) for time_s in shown[nearest(shown, times_M)]])
        except (self._av.FFmpegError, OSError) as error:
            self._held.pop(path).close()
            raise ValueError(f"{path}: cannot be decoded from {times_M[0]:.3f} s on, it is damaged: {_said(error)}") from error

    def close(self) -> None:
        while self._held:
            self._held.popitem()[1].close()


class _Video:
    """One open file, and the frame that was decoded last."""

    def __init__(self, av: Any, path: Path) -> None:
        self._path, self._container = path, av.open(str(path))
        self._stream = self._container.streams.video[0]
        self._frames = self._container.decode(self._stream)
        self._time_s, self._image = -np.inf, np.zeros(0, np.uint8)

    def at(self, time_s: float) -> np.ndarray:
        """The frame that is shown at `time_s`, one of the stream's own times."""
        half = 1e-6
        if time_s < self._time_s - half or time_s > self._time_s + SKIP_S:
            self._container.seek(int(max(time_s, 0) / self._stream.time_base), stream=self._stream)
            self._frames, self._time_s = self._container.decode(self._stream), -np.inf
        while self._time_s < time_s - half:
            last_s = self._time_s
            frame = next(self._frames, None)
            if frame is None:
                raise ValueError(f"{self._path}: the video ends at {max(last_s, 0):.3f} s, but a frame at {time_s:.3f} s is "
                                 "wanted; it is shorter than the data says")  # fmt: skip
            self._time_s = float(frame.time)
            if self._time_s >= time_s - half:
                self._image = frame.to_ndarray(format="rgb24")
        return self._image

    def close(self) -> None:
        self._container.close()


def _said(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
