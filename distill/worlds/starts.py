"""The stored starts of a run, and held-out observations along demonstrations from some of the validation starts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from envs.demonstrations import Demonstrations, windows

HELD_OUT = 32
"""At most this many validation starts are demonstrated for the held-out observations."""

FILE = "starts.safetensors"
HELD_OUT_FOLDER = "held_out"
TEST_FOLDER = "test"


def write_starts(
    folder: Path, held_out: Demonstrations, validation: np.ndarray, test: np.ndarray, observations: int,
    observation_steps: int, generator: np.random.Generator,
) -> None:  # fmt: skip
    """Write ``starts.safetensors``: the starts `[E, D]`, and observations sampled from the held-out demonstrations.

    With cameras, images stay packed in ``held_out/``; ``frames`` `[F]` are the frame numbers of the observations.
    """
    frames = generator.permutation(held_out.num_frames)[:observations]
    states, _ = windows(held_out, frames, observation_steps, 1)
    stored = {"validation": torch.from_numpy(validation), "test": torch.from_numpy(test),
              "observations": torch.from_numpy(np.ascontiguousarray(states))}  # fmt: skip
    if held_out.cameras is not None:
        stored["frames"] = torch.from_numpy(frames)
    save_file(stored, str(folder / FILE))


def read_starts(folder: Path) -> dict[str, Tensor]:
    """``validation``, ``test``: starts `[E, D]`. ``observations``: held-out state histories `[F, O, S]`. With cameras also
    ``frames`` `[F]`: their frames in the held-out demonstrations.
    """
    return load_file(str(folder / FILE))
