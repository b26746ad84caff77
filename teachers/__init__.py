"""Teachers: whatever can be asked for K action chunks per observation. A new kind is a file and a line in TEACHERS."""

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
"""Kinds of teachers that can be trained here, by the name that `teacher.kind` takes."""


def make_teacher(kind: str, shape: PolicyShape, solver: str = "", time_power: float = 1.0) -> TrainedTeacher:
    """An untrained teacher.

    solver: one of the kind's own; "", or the flow teacher's default where another kind is asked for, takes the kind's
    default. time_power: only a flow teacher has one.
    Raises ValueError for an unknown kind, a solver the kind does not have, or a time_power it would not heed.
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
    """The trained teacher in a folder that `save_pretrained` wrote, of whichever kind its config.json names.

    Raises ValueError for a folder without one, an unknown kind, and whatever else is wrong with it.
    """
    kinds = {teacher.KIND: teacher for teacher in TEACHERS.values()}
    return kinds[read_kind(folder, kinds)].from_pretrained(folder)
