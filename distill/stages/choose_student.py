"""The stages `distill/<recipe>`: the chosen checkpoint of a student, with calibrated code shares."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from distill.evaluation.policies import StudentPolicy
from distill.inputs.choice import Choice
from distill.objectives.code_shares import calibrate, calibration_settings
from distill.runtime.context import Context
from distill.runtime.stage import Input, Stage
from distill.stages.train_student import TrainStudent, student_weights
from distill.store.manifest import write_json
from students import Student, load_student
from students.one_step import OneStepStudent


@dataclass(frozen=True)
class ChooseStudent(Stage[Student]):
    """The chosen student of one recipe."""

    candidates: TrainStudent
    choice: Choice

    @property
    def name(self) -> str:
        return f"distill/{self.candidates.recipe_name}"

    @property
    def inputs(self) -> Mapping[str, Input | tuple[Input, ...]]:
        return {"candidates": self.candidates, **self.choice.inputs}

    @property
    def settings(self) -> Mapping[str, Any]:
        learns = self.candidates.recipe.learns_shares(self.candidates.config)
        return {**self.choice.settings(student=True), **({"calibration": calibration_settings()} if learns else {})}

    def run(self, context: Context, folder: Path) -> None:
        self.choice.choose(
            context, folder, self.candidates.folder(context),
            lambda path: StudentPolicy(load_student(path).to(context.device), self.candidates.recipe_name),
        )  # fmt: skip
        if context.is_main:
            self._calibrate(context, folder)

    def _calibrate(self, context: Context, folder: Path) -> None:
        """Calibrate the shares of the student's codes on the hypotheses, if it learns any (objectives.code_shares)."""
        student = load_student(folder).to(context.device)
        if not isinstance(student, OneStepStudent) or student.share_head is None:
            return
        trained = self.candidates
        read, count = trained.read_hypotheses(context, student.shape)
        counted = context.by_itself().bar(torch.arange(count).split(16), "calibrate", "batch")
        batches = (context.to_device(read(rows)) for rows in counted)
        began = time.process_time()
        weights_TA = student_weights(
            context, trained.weights, student.shape.horizon, trained.execution_horizon, trained.config
        )
        figures = calibrate(student, batches, weights_TA, trained.seed)
        student.save_pretrained(folder)
        write_json(folder / "calibration.json", {**figures, "cpu_seconds": round(time.process_time() - began, 3)})

    def load(self, folder: Path) -> Student:
        return load_student(folder)
