"""The stage `distill/in_place`: the chosen checkpoint of a policy fine-tuned in place, also in the policy's own format."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from distill.evaluation.external import AdapterPolicy, Statistics
from distill.inputs.choice import Choice
from distill.inputs.policies import Kind
from distill.runtime.context import Context
from distill.runtime.stage import FolderStage, Input
from distill.stages.in_place.config import IN_PLACE
from distill.stages.in_place.train import TrainInPlace
from distill.store.manifest import sha256_file, write_json

OWN_FORMAT = "policy"
"""The folder, beside the weights, that the adapter's `save` wrote."""


@dataclass(frozen=True)
class ChooseInPlace(FolderStage):
    """The chosen checkpoint of a policy that was fine-tuned in place, also in the policy's own format (`OWN_FORMAT`)."""

    candidates: TrainInPlace
    choice: Choice

    @property
    def name(self) -> str:
        return f"distill/{IN_PLACE}"

    @property
    def inputs(self) -> Mapping[str, Input | tuple[Input, ...]]:
        return {"candidates": self.candidates, **self.choice.inputs}

    @property
    def settings(self) -> Mapping[str, Any]:
        return self.choice.settings(student=True)

    def run(self, context: Context, folder: Path) -> None:
        trained = self.candidates.folder(context)
        self.choice.choose(context, folder, trained, lambda path: self.policy(context, path))
        if context.is_main:
            self._save(context, folder)

    def policy(self, context: Context, folder: Path) -> AdapterPolicy:
        """The student of a checkpoint's folder. One at a time: the process takes other weights with the next call."""
        train = self.candidates
        student = train.teacher.student(folder / "model.safetensors")
        statistics = Statistics(train.statistics.normaliser(context)).to(context.device)
        return AdapterPolicy(student, statistics, train.opened.shape, 1, IN_PLACE)

    def _save(self, context: Context, folder: Path) -> None:
        """The student in the policy's own format, and how far its chunks are from those of what is read back from there."""
        train = self.candidates
        if not train.teacher.description.saves:
            context.say("  the adapter has no save(folder): the student's weights are in model.safetensors, for its trained()")
            return
        policy, recording = self.policy(context, folder), train.source.recording
        seen = recording.at(recording.frames["validation"][:2])
        arrays = policy.teacher.arrays({name: torch.from_numpy(value) for name, value in seen.items()})
        count = len(next(iter(arrays.values())))
        told, _ = policy.teacher.request("save", {**arrays, "seeds": np.arange(4 * count).reshape(count, 4)},
                                         folder=str((folder / OWN_FORMAT).resolve()))  # fmt: skip
        write_json(folder / "saved.json", told)
        if told["difference"] is None:
            context.say("  the adapter has no reload(folder): that what it saved gives the same chunks was not checked")
            return
        scale = float(train.normaliser(context).centre_scale("action")[1].max())
        if told["difference"] > 1e-5 * max(scale, 1.0):
            raise ValueError(f"save: what was read back by reload() gives chunks that differ by {told['difference']:g}, "
                             "expected the same ones; see what save() leaves out")  # fmt: skip
        context.say(f"  saved in the policy's own format; read back, its chunks differ by {told['difference']:.1e}")


@dataclass(frozen=True)
class InPlaceStudent:
    """A policy to measure (distill.inputs.policies.MeasuredPolicy): the chosen checkpoint at one evaluation."""

    stage: ChooseInPlace
    name: str = IN_PLACE
    label: str = "Student, in place"
    kind: Kind = "student"
    num_steps: int | None = 1

    @property
    def inputs(self) -> Mapping[str, Input]:
        return {"student": self.stage}

    @property
    def settings(self) -> Mapping[str, Any]:
        return {}

    def policy(self, context: Context) -> AdapterPolicy:
        return self.stage.policy(context, self.stage.folder(context))


def read_student(folder: Path) -> dict[str, Any]:
    """The config.json of a student that was fine-tuned in place. Raises ValueError where its adapter is not what it was."""
    told: dict[str, Any] = json.loads((folder / "config.json").read_text())
    adapter = told["adapter"]
    if not Path(adapter["file"]).is_file():
        raise ValueError(f"{folder}: its adapter {adapter['file']} is gone; put it back, or use {OWN_FORMAT} there by itself")
    if sha256_file(Path(adapter["file"])) != adapter["sha256"]:
        raise ValueError(f"{folder}: its adapter {adapter['file']} was changed since; put it back, or convert again")
    return told
