"""Rollout frames as an animated WebP, which plays in browsers and in the report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image


def write_clip(
    path: Path, frames: Sequence[np.ndarray], fps: float, quality: int = 70, longer_ms: Mapping[int, float] | None = None
) -> None:
    """Write frames `[H, W, 3]` uint8 as a WebP that loops, `fps` frames per second.

    longer_ms: by how much longer a frame is shown, by its number. The file is replaced atomically. Raises ValueError for no
    frames, frames of other types or sizes, or a non-positive fps.
    """
    path = Path(path)
    if not frames:
        raise ValueError("got no frames, expected at least one: render the rollout first")
    if not 0 < fps <= 1000:
        raise ValueError(f"got fps={fps}, expected more than 0 and at most 1000 frames a second")
    shape = np.shape(frames[0])
    for index, frame in enumerate(frames):
        if np.asarray(frame).dtype != np.uint8 or np.shape(frame) != shape or len(shape) != 3 or shape[2] != 3:
            raise ValueError(
                f"got frame {index} of {np.asarray(frame).dtype} {np.shape(frame)}, expected uint8 [H, W, 3], "
                "the same size in all frames"
            )
    images = [Image.fromarray(np.ascontiguousarray(frame)) for frame in frames]
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.part")
    shown_ms = [max(1, round(1000 / fps + (longer_ms or {}).get(index, 0.0))) for index in range(len(images))]
    images[0].save(
        temporary, format="WEBP", save_all=True, append_images=images[1:], duration=shown_ms, loop=0,
        quality=quality, method=4,
    )  # fmt: skip
    temporary.replace(path)
