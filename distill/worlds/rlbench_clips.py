"""Clips of RLBench episodes: front-camera images stored next to the episodes, joined for the report."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageSequence

from distill.worlds.clips import write_clip
from distill.worlds.contract import Clip
from envs.rlbench.env import RLBenchEnv

FILMED = 2
"""Number of a policy's first test episodes that are recorded as clips."""
FPS = 5
"""Frames per second of a clip; one image is taken after every action, however long its path."""
HOLD = 5
"""Number of frames for which a clip holds the end of an episode."""


@contextlib.contextmanager
def filmed(env: RLBenchEnv, folder: Path, name: str, index: int) -> Iterator[None]:
    """Write the front camera's images during the block to ``<name>-<index>.webp``, for the first test episodes."""
    if name != "test" or index >= FILMED:
        yield
        return
    env.video_frames = []
    try:
        yield
    finally:
        pictures, env.video_frames = env.video_frames, None
        if pictures:
            write_clip(folder / f"{name}-{index}.webp", pictures, FPS)


def join_clips(shown: Sequence[Clip], folder: Path) -> dict[str, str]:
    """One clip per policy, ``clips/<name>.webp``; the paths in the folder by the policies' names.

    Policies without recorded images are left out.
    """
    clips: dict[str, str] = {}
    for each in shown:
        done = len(each.result["episodes"])
        pictures = [picture for index in range(min(FILMED, done)) for picture in _pictures(each.folder / f"test-{index}.webp")]
        if pictures:
            clips[each.name] = f"clips/{each.name}.webp"
            write_clip(folder / clips[each.name], pictures, FPS)
    return clips


def _pictures(path: Path) -> list[np.ndarray]:
    if not path.is_file():
        return []
    with Image.open(path) as clip:
        shown = []
        for frame in ImageSequence.Iterator(clip):  # equal images are stored once, with a longer duration
            picture = np.asarray(frame.convert("RGB"))
            shown += [picture] * max(1, round(frame.info.get("duration", 0) * FPS / 1000))
    return shown + shown[-1:] * HOLD
