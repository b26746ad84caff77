"""The stage `reference`: two independent sets of the reference per held-out observation, for fidelity and its floor."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from distill.evaluation.policies import Policy, raw_sample_set
from distill.hypotheses.cache import episode_seed
from distill.inputs.observations import HeldOut
from distill.inputs.policies import MeasuredPolicy
from distill.inputs.rollouts import selection_for, selection_settings
from distill.runtime.context import Context
from distill.runtime.stage import Input, Stage
from students.selection import Selection

STREAMS = ("reference", "floor")


@dataclass(frozen=True)
class HeldOutSets:
    """How sets are drawn at held-out observations, the same for every policy.

    samples: S per set. executed: actions between replans. selection: how a student selects its sample.
    """

    observations: HeldOut
    samples: int
    executed: int
    selection: Selection
    seed: int

    def draw(self, context: Context, policy: Policy, row: int, stream: str) -> np.ndarray:
        """Fresh raw samples `[S, T, A]` at observation `row`; stream: name of their random stream."""
        seen = {name: values[row : row + 1] for name, values in self.observations.held_out(context).items()}
        generator = torch.Generator().manual_seed(episode_seed(self.seed, stream, row, 0))
        selection = selection_for(policy, self.selection)
        return raw_sample_set(policy, seen, generator, self.samples, selection, self.executed)


@dataclass(frozen=True)
class DrawReference(Stage[dict[str, Tensor]]):
    """``reference`` and ``floor``, raw, `[F, S, T, A]` each."""

    policy: MeasuredPolicy
    sets: HeldOutSets
    name = "reference"

    @property
    def inputs(self) -> Mapping[str, Input | tuple[Input, ...]]:
        return {**self.policy.inputs, "held_out": self.sets.observations}

    @property
    def settings(self) -> Mapping[str, Any]:
        chosen = selection_settings(self.sets.selection) if self.policy.kind == "student" else {}
        executed = {"execution_horizon": self.sets.executed} if chosen else {}
        return {**self.policy.settings, "samples": self.sets.samples, "seed": self.sets.seed, **chosen, **executed}

    def run(self, context: Context, folder: Path) -> None:
        policy = self.policy.policy(context)
        count = len(next(iter(self.sets.observations.held_out(context).values())))
        mine = [(stream, row) for stream in STREAMS for row in context.my_share(range(count))]
        parts = [(stream, row, self.sets.draw(context, policy, row, stream))
                 for stream, row in context.bar(mine, f"sets of {policy.name}", "set", len(STREAMS) * count)]  # fmt: skip
        gathered = sorted(context.gather(parts), key=lambda part: part[1])
        if context.is_main:
            sets = {name: np.stack([chunks for stream, _, chunks in gathered if stream == name]) for name in STREAMS}
            tensors = {name: torch.from_numpy(chunks) for name, chunks in sets.items()}
            save_file(tensors, str(folder / "reference.safetensors"))

    def load(self, folder: Path) -> dict[str, Tensor]:
        return load_file(str(folder / "reference.safetensors"))
