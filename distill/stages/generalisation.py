"""The stage `generalisation`: errors of planned poses at training and at held-out observations."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from distill.evaluation.policies import Policy, raw_sample_set
from distill.evaluation.pose_error import first_and_other_frames, pose_errors, summarise_errors
from distill.inputs.policies import MeasuredPolicy
from distill.observation import observation_of
from distill.runtime.context import Context
from distill.runtime.stage import Input, Stage
from distill.stages.starts import RecordStarts
from distill.store.manifest import write_json
from distill.training.data import windows_for
from distill.worlds.starts import HELD_OUT_FOLDER
from envs.demonstrations import Demonstrations
from envs.poses import pose_layout
from students.selection import SINGLE_SAMPLE

FRAMES, SAMPLES = 64, 16
"""Observations of each kind, and samples at each."""


@dataclass(frozen=True)
class MeasureGeneralisation(Stage[dict[str, Any]]):
    """policies: whose plans are compared with the demonstrations. starts: hold the held-out demonstrations."""

    policies: tuple[MeasuredPolicy, ...]
    demonstrations: Stage[Demonstrations]
    starts: RecordStarts
    seed: int
    name = "generalisation"

    @property
    def inputs(self) -> Mapping[str, Input | tuple[Input, ...]]:
        each = {f"{policy.name}.{name}": value for policy in self.policies for name, value in policy.inputs.items()}
        return {**each, "demos": self.demonstrations, "starts": self.starts}

    @property
    def settings(self) -> Mapping[str, Any]:
        return {"seed": self.seed, "policies": {policy.name: dict(policy.settings) for policy in self.policies}}

    def run(self, context: Context, folder: Path) -> None:
        if not context.is_main:
            return
        held_out = Demonstrations.load(self.starts.folder(context) / HELD_OUT_FOLDER, self.starts.world.spec)
        rows = []
        for measured in self.policies:
            policy = measured.policy(context.by_itself())
            rows.append({"label": measured.label, **{
                name: summarise_errors(self._errors(policy, shown, context))
                for name, shown in (("training", self.demonstrations.cached_result(context)), ("held_out", held_out))
            }})  # fmt: skip
        write_json(folder / "generalisation.json", {"rows": rows, "frames": FRAMES, "samples": SAMPLES})

    def _errors(self, policy: Policy, shown: Demonstrations, context: Context) -> dict[str, np.ndarray]:
        shape = policy.shape
        frames = first_and_other_frames(shown.episode_index, FRAMES, self.seed)
        windows = windows_for(shown, shape, shape.observation_steps, shape.horizon, context.share.world)[frames]
        seen = {name: value.numpy() for name, value in observation_of(windows).items()}
        generator = torch.Generator().manual_seed(self.seed)
        chunks = [
            raw_sample_set(policy, {name: value[row : row + 1] for name, value in seen.items()}, generator, SAMPLES,
                           SINGLE_SAMPLE, shape.horizon)
            for row in range(len(frames))
        ]  # fmt: skip
        return pose_errors(np.stack(chunks), windows["action"].numpy(), pose_layout(shape.action_names))

    def load(self, folder: Path) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((folder / "generalisation.json").read_text())
        return found
