"""Teachers: policies that draw K action chunks per observation. A new kind is one file and one line in `TEACHERS`.

Rooms: networks (encoders and transformer, also of students), adapters (external policies). Needs: torch and `envs`.
Not here: training loops, hypothesis caches, and students.
"""

from __future__ import annotations

from pathlib import Path

from teachers.diffusion import DiffusionTeacher
from teachers.energy import EnergyTeacher
from teachers.flow import FlowTeacher
from teachers.networks.pretrained import read_kind
from teachers.networks.shapes import PolicyShape
from teachers.trained import TrainedTeacher

TEACHERS: dict[str, type[TrainedTeacher]] = {
    "flow": FlowTeacher,
    "diffusion": DiffusionTeacher,
    "energy": EnergyTeacher,
}
"""Kinds of teachers that can be trained here, by their names in the config (`teacher.kind`)."""


def make_teacher(kind: str, shape: PolicyShape, solver: str = "", time_power: float = 1.0) -> TrainedTeacher:
    """An untrained teacher.

    solver: one of the kind's; "", or for another kind the flow teacher's default, stands for the kind's default.
    time_power: for flow teachers only.
    Raises ValueError for an unknown kind, a solver that the kind lacks, or a time_power that it would ignore.
    """
    if kind not in TEACHERS:
        raise ValueError(f"unknown kind of teacher {kind!r}; expected one of {sorted(TEACHERS)}")
    chosen = TEACHERS[kind]
    if solver in ("", FlowTeacher.SOLVERS[0]):
        solver = chosen.SOLVERS[0]
    if chosen is FlowTeacher:
        return FlowTeacher(shape, solver, time_power)
    if time_power != 1:
        raise ValueError(f"time_power: got {time_power}, but only a flow teacher has one, not kind {kind!r}; leave it at 1")
    return chosen(shape, solver)


def load_teacher(folder: Path | str) -> TrainedTeacher:
    """The trained teacher in a folder that `save_pretrained` wrote, of the kind that its config.json names.

    Raises ValueError for a folder without a teacher, an unknown kind, and damaged files.
    """
    kinds = {teacher.KIND: teacher for teacher in TEACHERS.values()}
    return kinds[read_kind(folder, kinds)].from_pretrained(folder)
