"""Clips of RLBench's episodes: what its front camera saw, kept beside the episodes' lines and put together for the report."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageSequence

from distill.worlds.clips import write_clip
from envs.rlbench.env import RLBenchEnv

if TYPE_CHECKING:
    from distill.stages.pipeline import Pipeline

FILMED = 2
"""So many of a policy's test episodes, the first ones, are filmed."""
FPS = 5
"""A picture is taken after every action, however long its path; so many of them are shown in a second."""
HOLD = 5
"""Pictures for which a clip stands still at the end of an episode."""


@contextlib.contextmanager
def filmed(env: RLBenchEnv, folder: Path, name: str, index: int) -> Iterator[None]:
    """What the front camera sees meanwhile becomes ``<name>-<index>.webp`` in the folder, for the first test episodes."""
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


def join_clips(pipeline: Pipeline, folder: Path) -> dict[str, str]:
    """One clip for the oracle, the reference teacher, the regression student and the default one, ``clips/<policy>.webp``.

    Returns their paths in the folder by the policies' names; without those of which nothing was filmed.
    """
    config, plan = pipeline.config, pipeline.plan
    steps = config.evaluate.teacher_steps[0]
    stages = {"oracle": plan.oracle, f"teacher_{steps}": plan.teachers_evaluated[steps],
              **{name: plan.students_evaluated.get(name) for name in ("regression", config.student.default)}}  # fmt: skip
    clips: dict[str, str] = {}
    for name, stage in stages.items():
        if stage is None:
            continue
        here = pipeline.run.folder(stage)
        done = len(json.loads((here / "result.json").read_text())["episodes"])
        pictures = [picture for index in range(min(FILMED, done)) for picture in _pictures(here / f"test-{index}.webp")]
        if pictures:
            clips[name] = f"clips/{name}.webp"
            write_clip(folder / clips[name], pictures, FPS)
    return clips


def _pictures(path: Path) -> list[np.ndarray]:
    if not path.is_file():
        return []
    with Image.open(path) as clip:
        shown = []
        for frame in ImageSequence.Iterator(clip):  # pictures that were alike are one, shown for longer
            picture = np.asarray(frame.convert("RGB"))
            shown += [picture] * max(1, round(frame.info.get("duration", 0) * FPS / 1000))
    return shown + shown[-1:] * HOLD
