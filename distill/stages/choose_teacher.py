"""The stage `teach`: the teacher's checkpoint, chosen by rollouts from the validation starts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distill.evaluation.policies import TeacherPolicy
from distill.inputs.choice import ByRollouts
from distill.runtime.context import Context
from distill.runtime.stage import Input, Stage
from distill.stages.train_teacher import TrainTeacher
from teachers import load_teacher
from teachers.networks.normalisation import Normaliser
from teachers.trained import TrainedTeacher


@dataclass(frozen=True)
class ChooseTeacher(Stage[TrainedTeacher]):
    """num_steps: solver steps of the checkpoints' rollouts."""

    candidates: TrainTeacher
    choice: ByRollouts
    num_steps: int
    name = "teach"

    @property
    def inputs(self) -> Mapping[str, Input | tuple[Input, ...]]:
        return {"candidates": self.candidates, **self.choice.inputs}

    @property
    def settings(self) -> Mapping[str, Any]:
        return {**self.choice.settings(student=False), "num_steps": self.num_steps}

    def run(self, context: Context, folder: Path) -> None:
        self.choice.choose(
            context, folder, self.candidates.folder(context),
            lambda path: TeacherPolicy(load_teacher(path).to(context.device), self.num_steps),
        )  # fmt: skip

    def load(self, folder: Path) -> TrainedTeacher:
        return load_teacher(folder)

    # -- a teacher source (distill.inputs.teachers) ----------------------------------------------------------------

    def teacher(self, context: Context) -> TrainedTeacher:
        return self.result(context).to(context.device)

    def normaliser(self, context: Context) -> Normaliser:
        return self.teacher(context).normaliser
