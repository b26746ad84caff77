"""Frames of video files by their time, decoded by PyAV as they are asked for; a video that ends early is refused."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np

from envs.recorded.keys import optional

OPEN = 4
"""Videos that stay open, each where it was read last."""
SKIP_S = 2.0
"""A frame that is farther ahead than this is sought, one that is nearer is decoded towards [s]."""


class Videos:
    """Reads frames of many files; whoever reads forwards decodes every frame once."""

    def __init__(self, extra: str, path: Path) -> None:
        """ImportError without PyAV, naming the extra."""
        self._av = optional("av", extra, path)
        self._held: OrderedDict[Path, _Video] = OrderedDict()

    def length(self, path: Path) -> int:
        """How many frames the file says that it has, 0 where it does not say. ValueError for a file that is no video."""
        try:
            with self._av.open(str(path)) as container:
                return int(container.streams.video[0].frames)
        except (self._av.FFmpegError, OSError, IndexError) as error:
            raise ValueError(f"{path}: cannot be opened as a video, it is missing or cut off: {_said(error)}") from error

    def read(self, path: Path, times_M: np.ndarray, tolerance_s: float) -> np.ndarray:
        """The frames at M rising times [s], `[M, H, W, 3]` uint8. ValueError where none lies within the tolerance."""
        if path not in self._held:
            while len(self._held) >= OPEN:
                self._held.popitem(last=False)[1].close()
            try:
                self._held[path] = _Video(self._av, path)
            except (self._av.FFmpegError, OSError, IndexError) as error:
                raise ValueError(f"{path}: cannot be opened as a video, it is missing or cut off: {_said(error)}") from error
        self._held.move_to_end(path)
        try:
            return np.stack([self._held[path].at(float(time_s), tolerance_s) for time_s in times_M])
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

    def at(self, time_s: float, tolerance_s: float) -> np.ndarray:
        """The first frame that is not before `time_s`, give or take the tolerance."""
        if time_s < self._time_s - tolerance_s or time_s > self._time_s + SKIP_S:
            self._container.seek(int(max(time_s - tolerance_s, 0) / self._stream.time_base), stream=self._stream)
            self._frames, self._time_s = self._container.decode(self._stream), -np.inf
        while self._time_s < time_s - tolerance_s:
            last_s = self._time_s
            frame = next(self._frames, None)
            if frame is None:
                raise ValueError(f"{self._path}: the video ends at {max(last_s, 0):.3f} s, but a frame at {time_s:.3f} s is "
                                 "wanted; it is shorter than the data says")  # fmt: skip
            self._time_s = float(frame.time)
            if self._time_s >= time_s - tolerance_s:
                self._image = frame.to_ndarray(format="rgb24")
        if self._time_s > time_s + tolerance_s:
            raise ValueError(f"{self._path}: has no frame at {time_s:.3f} s, the next is at {self._time_s:.3f} s; its frames "
                             "do not fit the data's frequency")  # fmt: skip
        return self._image

    def close(self) -> None:
        self._container.close()


def _said(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
