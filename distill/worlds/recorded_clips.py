"""Clips of episodes that cannot be replayed: frames stored next to the episodes as they ran, joined for the report."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageSequence

from distill.worlds.clips import write_clip
from distill.worlds.contract import Clip
from distill.worlds.simulators import ProcessEnv

FILMED = 2
"""Number of a policy's first test episodes that are recorded as clips."""
FPS = 5.0
"""Frames per second of a clip where one image is taken after every action, however long its path."""
HOLD = 5
"""Number of frames for which a clip holds the end of an episode."""


@contextlib.contextmanager
def filmed(env: ProcessEnv, folder: Path, name: str, index: int, fps: float = FPS) -> Iterator[None]:
    """Write the environment's frames during the block to ``<name>-<index>.webp``, for the first test episodes."""
    if name != "test" or index >= FILMED:
        yield
        return
    env.video_frames = []
    try:
        yield
    finally:
        pictures, env.video_frames = env.video_frames, None
        if pictures:
            write_clip(folder / f"{name}-{index}.webp", pictures, fps)


def join_clips(shown: Sequence[Clip], folder: Path, fps: float = FPS) -> dict[str, str]:
    """One clip per policy, ``clips/<name>.webp``; the paths in the folder by the policies' names.

    Policies without recorded images are left out.
    """
    clips: dict[str, str] = {}
    for each in shown:
        done = len(each.result["episodes"])
        files = [each.folder / f"test-{index}.webp" for index in range(min(FILMED, done))]
        pictures = [picture for file in files for picture in _pictures(file, fps)]
        if pictures:
            clips[each.name] = f"clips/{each.name}.webp"
            write_clip(folder / clips[each.name], pictures, fps)
    return clips


def _pictures(path: Path, fps: float = FPS) -> list[np.ndarray]:
    if not path.is_file():
        return []
    with Image.open(path) as clip:
        shown = []
        for frame in ImageSequence.Iterator(clip):  # equal images are stored once, with a longer duration
            picture = np.asarray(frame.convert("RGB"))
            shown += [picture] * max(1, round(frame.info.get("duration", 0) * fps / 1000))
    return shown + shown[-1:] * HOLD
