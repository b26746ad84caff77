"""Policies to evaluate, each with the name of its results and what they depend on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

from distill.evaluation.nearest_demonstration import DemonstrationMemory, NearestDemonstration
from distill.evaluation.policies import Policy, StudentPolicy, TeacherPolicy
from distill.inputs.teachers import TeacherSource
from distill.runtime.context import Context
from distill.runtime.stage import Input, Stage
from distill.training.data import normaliser_of
from envs.demonstrations import Demonstrations
from students import Student
from teachers.trained import TrainedTeacher

Kind = Literal["teacher", "student", "baseline"]


class MeasuredPolicy(Protocol):
    """name: of its results and random streams. label: in the report. num_steps: solver steps, None without a solver.

    inputs, settings: what its results depend on, as in `Stage`.
    """

    @property
    def name(self) -> str: ...
    @property
    def label(self) -> str: ...
    @property
    def kind(self) -> Kind: ...
    @property
    def num_steps(self) -> int | None: ...
    @property
    def inputs(self) -> Mapping[str, Input]: ...
    @property
    def settings(self) -> Mapping[str, Any]: ...
    def policy(self, context: Context) -> Policy: ...


def teacher_label(steps: int) -> str:
    """Label of a teacher at a number of solver steps."""
    return f"Teacher, {steps} step{'s' if steps > 1 else ''}"


@dataclass(frozen=True)
class TeacherAt:
    """A trained teacher at a number of solver steps."""

    source: TeacherSource
    num_steps: int
    kind: Kind = "teacher"

    @property
    def name(self) -> str:
        return f"teacher_{self.num_steps}"

    @property
    def label(self) -> str:
        return teacher_label(self.num_steps)

    @property
    def inputs(self) -> Mapping[str, Input]:
        return {"teacher": self.source}

    @property
    def settings(self) -> Mapping[str, Any]:
        return {"num_steps": self.num_steps}

    def policy(self, context: Context) -> Policy:
        teacher = self.source.teacher(context)
        assert isinstance(teacher, TrainedTeacher)
        return TeacherPolicy(teacher, self.num_steps)


@dataclass(frozen=True)
class DistilledStudent:
    """The student of one recipe. stage: the stage of its chosen checkpoint."""

    name: str
    label: str
    stage: Stage[Student]
    kind: Kind = "student"
    num_steps: int | None = 1

    @property
    def inputs(self) -> Mapping[str, Input]:
        return {"student": self.stage}

    @property
    def settings(self) -> Mapping[str, Any]:
        return {}

    def policy(self, context: Context) -> Policy:
        return StudentPolicy(self.stage.result(context).to(context.device), self.name)


@dataclass(frozen=True)
class NearestDemonstrationBaseline:
    """The chunk of the nearest demonstration, by the whole state, whatever the other policies observe."""

    demonstrations: Stage[Demonstrations]
    source: TeacherSource
    name: str = "nearest_demonstration"
    label: str = "Nearest demonstration"
    kind: Kind = "baseline"
    num_steps: int | None = None

    @property
    def inputs(self) -> Mapping[str, Input]:
        return {"demos": self.demonstrations, "teacher": self.source}

    @property
    def settings(self) -> Mapping[str, Any]:
        return {}

    def policy(self, context: Context) -> Policy:
        teacher, demonstrations = self.source.teacher(context), self.demonstrations.cached_result(context)
        assert isinstance(teacher, TrainedTeacher)
        shape = replace(teacher.shape, encoder=None, frame="base")
        memory = DemonstrationMemory(demonstrations, shape, normaliser_of(demonstrations, shape))
        return NearestDemonstration(memory.to(context.device))
