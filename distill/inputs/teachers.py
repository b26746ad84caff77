"""Teachers that hypotheses are drawn from and students are initialised from: a checkpoint, a folder, an opened policy."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from distill.runtime.context import Context
from distill.runtime.stage import Input, Stage
from distill.store.manifest import make_key, sha256_file
from teachers import load_teacher
from teachers.contract import Teacher
from teachers.networks.normalisation import Normaliser
from teachers.trained import TrainedTeacher


class TeacherSource(Input, Protocol):
    """A teacher, and the normaliser that its chunks are stored and compared in."""

    def teacher(self, context: Context) -> Teacher: ...

    def normaliser(self, context: Context) -> Normaliser: ...


@dataclass(frozen=True)
class TeacherFolder:
    """An existing trained teacher in a folder (teacher.path); no teacher is trained."""

    path: Path

    @cached_property
    def key(self) -> str:
        return folder_key(self.path)

    @property
    def needs(self) -> tuple[Stage[Any], ...]:
        return ()

    def teacher(self, context: Context) -> TrainedTeacher:
        return load_teacher(self.path).to(context.device)

    def normaliser(self, context: Context) -> Normaliser:
        return self.teacher(context).normaliser


def folder_key(folder: Path) -> str:
    """The key of a policy's folder: a hash of the bytes of its two files."""
    return make_key({name: sha256_file(folder / name) for name in ("config.json", "model.safetensors")})


@contextlib.contextmanager
def solved_by(teacher: Teacher | None, solver: str) -> Iterator[None]:
    """Within this context a trained teacher uses this solver ("": the one its kind draws hypotheses with)."""
    if not isinstance(teacher, TrainedTeacher):
        yield
        return
    before = teacher.solver
    teacher.use_solver(solver or teacher.CACHE_SOLVER)
    try:
        yield
    finally:
        teacher.use_solver(before)
