"""One exported student for all tests of the runtime."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from distill.cli.export import ExportOptions, export_student
from students.one_step import OneStepStudent
from tests.conftest import SMALL, STATISTICS


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A student of `avoid` with codes and shares, exported in three formats; beside it the `student`. Do not change it."""
    torch.manual_seed(0)
    student = OneStepStudent(SMALL, 2, codes=8, shares=True)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():  # fresh from the constructor its blocks do nothing
        for value in student.parameters():
            value.copy_(torch.randn(value.shape, generator=generator) * 0.3)
    student.normaliser.fit(STATISTICS)
    folder = tmp_path_factory.mktemp("runtime")
    student.eval().save_pretrained(folder / "student")
    return export_student(ExportOptions(folder / "student", folder / "exported", ("onnx", "call", "torch")), lambda line: None)
