"""The stage `observations`: ranges of the recorded observations, and of the chunks of an external policy."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from distill.hypotheses.cache import draw_hypotheses, hypothesis_seeds
from distill.inputs.recorded import Opened, Recording, evenly_spaced, read_features
from distill.runtime.context import Context
from distill.runtime.stage import Input, Stage
from envs.recorded.outliers import robust_range, without_diverged
from envs.specs import STATE
from teachers.contract import Observation, Teacher
from teachers.networks.normalisation import Normaliser, observed_ranges
from teachers.networks.observations import sources_of
from teachers.networks.shapes import PolicyShape

PILOT = 64
"""Observations at which an external policy is queried for the range of its actions, before chunks can be normalised."""
PILOT_STREAM = 0x9107
MOST_FRAMES = 4096
"""At most this many evenly spaced frames determine the ranges of the observations."""


@dataclass(frozen=True)
class MeasureRanges(Stage[Normaliser]):
    """The normaliser of an external policy's students. shape: theirs. batch_size: observations per query."""

    opened: Opened
    recording: Recording
    shape: PolicyShape
    batch_size: int
    seed: int
    name = "observations"

    @property
    def inputs(self) -> Mapping[str, Input | tuple[Input, ...]]:
        return {"policy": self.opened, "recording": self.recording}

    @property
    def settings(self) -> Mapping[str, Any]:
        return {"shape": self.shape.to_json(), "seed": self.seed}

    def run(self, context: Context, folder: Path) -> None:
        if not context.is_main:
            return
        shape, recorded = self.shape, self.recording.recorded
        frames = evenly_spaced(self.recording.frames["train"], MOST_FRAMES)
        features = tuple(dict.fromkeys((STATE, *sources_of(shape))))
        states = []

        def blocks() -> Iterator[Observation]:
            for block in context.bar(np.array_split(frames, -(-len(frames) // 256)), "ranges", "block"):
                seen = read_features(recorded, block, 1, features)
                states.append(seen[STATE].reshape(-1, shape.state_size))
                yield {name: torch.from_numpy(value) for name, value in seen.items()}

        ranges = observed_ranges(blocks(), robust=True)
        pilot_nTA = self._pilot().flatten(0, 1).numpy()
        kept_n = without_diverged(pilot_nTA)
        if not kept_n.all():
            context.say(f"  {int((~kept_n).sum())} of {len(kept_n)} chunks of the teacher are outliers: they do not set "
                        "the range of its actions")  # fmt: skip
        for name, rows in (("state", np.concatenate(states)), ("action", pilot_nTA[kept_n].reshape(-1, shape.action_size))):
            ranges[name] = dict(zip(("min", "max"), robust_range(rows), strict=True))  # robust_range keeps NaN
        tensors = {f"{name}.{end}": torch.from_numpy(np.asarray(value, dtype=np.float64))
                   for name, ends in ranges.items() for end, value in ends.items()}  # fmt: skip
        wrong = [name for name, value in tensors.items() if not bool(torch.isfinite(value).all())]
        if wrong:
            raise ValueError(f"{', '.join(wrong)}: NaN or infinity, expected finite ranges of the observations and of the "
                             "teacher's actions; they cannot be normalised")  # fmt: skip
        save_file(tensors, str(folder / "ranges.safetensors"))

    def _pilot(self) -> Tensor:
        """Chunks of the policy at a few training observations, `[n, 8, T, A]`."""
        frames = evenly_spaced(self.recording.frames["train"], PILOT)
        seeds_NK = hypothesis_seeds(self.seed ^ PILOT_STREAM, frames, 8)
        teacher, host = self.opened.policy, torch.device("cpu")
        assert isinstance(teacher, Teacher)
        drawn = []
        for part in np.array_split(np.arange(len(frames)), -(-len(frames) // self.batch_size)):
            seen = self.recording.at(frames[part], sources_of(self.opened.shape))
            observation = {name: torch.from_numpy(value) for name, value in seen.items()}
            drawn.append(draw_hypotheses(teacher, observation, seeds_NK[part], self.opened.num_steps, host))
        return torch.cat(drawn)

    def load(self, folder: Path) -> Normaliser:
        tensors = load_file(str(folder / "ranges.safetensors"))
        ranges = {name: {end: tensors[f"{name}.{end}"].numpy() for end in ("min", "max")}
                  for name in {key.split(".")[0] for key in tensors}}  # fmt: skip
        made = Normaliser.of(self.shape)
        made.fit(ranges)
        return made
