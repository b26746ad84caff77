"""A policy call as graphs without Python's branches: what every run mode compiles, captures or exports."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from students.selection import Selection, first_inlier, nearest_to_remainder
from teachers.flow import FlowTeacher
from teachers.networks.encoding import EncodingPolicy
from teachers.networks.observations import sources_of
from teachers.solvers import SOLVERS, euler_step, integrate


class StudentCall(nn.Module):
    """A whole call of a student at one observation: normalisation, encoder, N chunks in one evaluation, and the selection.

    Inputs: the raw sources in the order of `sources_of`, each `[1, O, ..]`, then the latents `[1, N, ...]`. With the selection
    ``temporal_consistency`` also the last plan `[1, T, A]`, normalised, and `[1]` float: 1 where there is one, else 0.
    Outputs: the selected chunk `[1, T, A]` in raw units, all N candidates `[1, N, T, A]`, normalised, and the index `[1]` of
    the selected one. A graph cannot raise errors: the caller makes sure that the inputs are finite; depth may be NaN.
    """

    def __init__(self, student: EncodingPolicy, selection: Selection, executed: int) -> None:
        super().__init__()
        self.student, self.selection, self.executed = student, selection, executed
        self.names = sources_of(student.shape)
        self.weights_A: Tensor
        self.register_buffer("weights_A", torch.tensor(student.shape.action_weights), persistent=False)

    @property
    def takes_last_plan(self) -> bool:
        """Whether the last plan is an input."""
        return self.selection.kind == "temporal_consistency" and self.executed < self.student.shape.horizon

    def forward(self, *inputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The chunk, the candidates and the index; see the class."""
        observed, rest = inputs[: len(self.names)], inputs[len(self.names) :]
        condition_BC = self.student.encode_unchecked(dict(zip(self.names, observed, strict=True)))
        candidates_BNTA = self.student.generate(condition_BC, rest[0])  # type: ignore[operator]
        index_B = self.index(candidates_BNTA, *rest[1:])
        chosen_BTA = candidates_BNTA[torch.arange(len(index_B), device=index_B.device), index_B]
        return self.student.normaliser.unnormalise_action(chosen_BTA), candidates_BNTA, index_B

    def index(self, candidates_BNTA: Tensor, *last: Tensor) -> Tensor:
        """The index `[B]` of the selected one of normalised candidates `[B, N, T, A]`. last: the last two inputs, if taken."""
        if last and candidates_BNTA.shape[1] > 1:
            last_BTA, is_there_B = last
            nearest_B = nearest_to_remainder(candidates_BNTA, last_BTA, self.executed, self.weights_A)
            return (nearest_B * is_there_B).long()
        if self.selection.kind == "outlier_rejection":
            return first_inlier(candidates_BNTA, self.executed, self.weights_A)
        return torch.zeros(len(candidates_BNTA), dtype=torch.long, device=candidates_BNTA.device)


class Network(nn.Module):
    """A student's network alone, the bare evaluation: raw sources and latents to the N normalised chunks `[1, N, T, A]`."""

    def __init__(self, student: EncodingPolicy) -> None:
        super().__init__()
        self.student, self.names = student, sources_of(student.shape)

    def forward(self, *inputs: Tensor) -> tuple[Tensor]:
        """The chunks; see the class."""
        observation = dict(zip(self.names, inputs[:-1], strict=True))
        return (self.student.generate(self.student.encode_unchecked(observation), inputs[-1]),)  # type: ignore[operator]


class TeacherEncoding(nn.Module):
    """Raw sources, each `[1, O, ..]`, to a teacher's condition `[1, C]`."""

    def __init__(self, teacher: EncodingPolicy) -> None:
        super().__init__()
        self.teacher, self.names = teacher, sources_of(teacher.shape)

    def forward(self, *inputs: Tensor) -> tuple[Tensor]:
        """The condition; see the class."""
        return (self.teacher.encode_unchecked(dict(zip(self.names, inputs, strict=True))),)


class TeacherStep(nn.Module):
    """One solver step of a flow teacher: condition `[1, C]`, x `[1, T, A]`, time `[1]` and step `[1]` to the next x.

    last: the step that ends at the data, an Euler step for some solvers (`teachers.solvers.Solver.ends_early`).
    """

    def __init__(self, teacher: FlowTeacher, last: bool = False) -> None:
        super().__init__()
        solver = SOLVERS[teacher.solver]
        self.teacher = teacher
        self.step = euler_step if last and solver.ends_early else solver.step

    def forward(self, condition_BC: Tensor, x_NTA: Tensor, time_N: Tensor, dt_1: Tensor) -> tuple[Tensor]:
        """x(t + dt) `[1, T, A]`."""
        return (self.step(lambda x, t: self.teacher.velocity(x, t, condition_BC), x_NTA, time_N, dt_1),)  # type: ignore[arg-type]


class TeacherCall(nn.Module):
    """A whole call of a flow teacher, its solver steps unrolled: raw sources and noise `[1, T, A]` to the last x `[1, T, A]`.

    For modes that record a graph by running it; compilers and exporters need minutes for 50 unrolled steps.
    """

    def __init__(self, teacher: FlowTeacher, num_steps: int) -> None:
        super().__init__()
        self.teacher, self.num_steps, self.names = teacher, num_steps, sources_of(teacher.shape)

    def forward(self, *inputs: Tensor) -> tuple[Tensor]:
        """The normalised chunk; see the class."""
        condition_BC = self.teacher.encode_unchecked(dict(zip(self.names, inputs[:-1], strict=True)))
        return (integrate(lambda x, t: self.teacher.velocity(x, t, condition_BC), inputs[-1], self.num_steps,
                          self.teacher.solver),)  # fmt: skip
