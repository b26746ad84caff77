"""Students: one network evaluation from (observation, latent) to an action chunk. A new kind is one file and one line here.

Also here: selection among a policy's samples at run time; room: export (graphs, model card, upload). Needs: torch, `teachers`.
Not here: the objectives that train students, and what was measured of them (distill).
"""

from __future__ import annotations

from pathlib import Path

from students.flow_map import FlowMapStudent
from students.one_step import OneStepStudent
from teachers.networks.pretrained import read_kind

Student = OneStepStudent | FlowMapStudent
STUDENTS: dict[str, type[Student]] = {kind.KIND: kind for kind in (OneStepStudent, FlowMapStudent)}
"""Kinds of students by the `kind` in their ``config.json``."""


def load_student(folder: Path | str) -> Student:
    """The student in a folder that `save_pretrained` wrote. Raises ValueError for anything else."""
    return STUDENTS[read_kind(folder, STUDENTS)].from_pretrained(folder)
