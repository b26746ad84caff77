"""A student as one graph from raw observation and latents to raw chunks, for ONNX Runtime, torch.export and AOTInductor."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from envs.specs import nearest_name
from students import Student
from students.runtime.modes import missing_compiler
from students.runtime.tracing import quiet
from teachers.contract import Observation
from teachers.networks.observations import fake_observation, sources_of

LATENTS, ACTIONS, SAMPLES = "latents", "actions", "samples"
"""Names of the graph's last input, of its output, and of the dynamic axis of both."""

EXAMPLE_SAMPLES = 89
"""Length of the dynamic axis while a graph is traced. It must differ from every size in the student: AOTInductor unifies axes
of equal length, and a chunk of 16 actions would fix the number of samples at 16 (torch 2.13; the parity check fails then)."""

FILES = {"onnx": "student.onnx", "call": "student.call.onnx", "torch": "student.torch.pt2", "aoti": "student.aoti.pt2"}
"""Formats, and the file that each writes. ``call`` is written by students/export/whole_call.py."""

Call = Callable[[Observation, Tensor], Tensor]
"""An exported graph: observation `[1, ...]` and latents `[1, M, ...]` to raw chunks `[1, M, T, A]`."""


class StudentGraph(nn.Module):
    """Raw observation `[1, O, ..]` and latents `[1, M, ...]` to raw chunks `[1, M, T, A]`: the student without its checks.

    A graph cannot raise errors: the caller ensures that states, colours and points are finite. Depth may be NaN.
    """

    def __init__(self, student: Student) -> None:
        super().__init__()
        self.student = student

    def forward(self, observation: Observation, latents: Tensor) -> Tensor:
        """Raw chunks `[1, M, T, A]`."""
        chunks_BMTA = self.student.generate(self.student.encode_unchecked(observation), latents)
        return self.student.normaliser.unnormalise_action(chunks_BMTA)


def export_program(student: Student) -> torch.export.ExportedProgram:
    """The student's graph for one observation and any number of latents. The student must be on the CPU, in eval mode."""
    student.normaliser.check()
    observation = fake_observation(student.shape, 1)
    latents = torch.randn(1, EXAMPLE_SAMPLES, *student.latent_shape)
    shapes = {"observation": {name: {} for name in observation}, "latents": {1: torch.export.Dim.DYNAMIC}}
    with quiet(), torch.no_grad():
        student(observation, latents)  # checks the statistics and caches the result: a graph cannot do that
        return torch.export.export(StudentGraph(student).eval(), (observation, latents), dynamic_shapes=shapes)


# -- the formats -------------------------------------------------------------------------------------------------------


def check_format(name: str) -> None:
    """Raises ValueError, before any work, for an unknown format and for one whose packages or compiler are missing."""
    if name not in FILES:
        raise ValueError(f"formats: unknown {name!r}; expected some of {list(FILES)}{nearest_name(name, FILES)}")
    if name in ("onnx", "call"):
        missing = [package for package in ("onnx", "onnxscript", "onnxruntime") if not _is_installed(package)]
        if missing:
            raise ValueError(f"format {name}: {', '.join(missing)} not installed; pip install {' '.join(missing)}")
    if name == "aoti":
        reason = missing_compiler()
        if reason:
            raise ValueError(f"format aoti: {reason}; install one (Debian: apt-get install g++), name one in CXX, or leave "
                             "aoti out of --formats")  # fmt: skip


def write_format(name: str, student: Student, program: torch.export.ExportedProgram, folder: Path) -> Call:
    """Writes the format's file into the folder; returns its graph, read back. Raises ValueError where the compiler fails."""
    path = folder / FILES[name]
    with quiet():
        if name == "onnx":
            return _write_onnx(student, program, path)
        if name == "torch":
            torch.export.save(program, path)
            return torch.export.load(path).module()
        try:
            torch._inductor.aoti_compile_and_package(program, package_path=str(path))
            return torch._inductor.aoti_load_package(str(path))
        except RuntimeError as error:
            first = str(error).strip().splitlines()[0]
            raise ValueError(f"format aoti: the C++ compiler failed ({first}); see docs/export.md") from error


def _write_onnx(student: Student, program: torch.export.ExportedProgram, path: Path) -> Call:
    sources = list(sources_of(student.shape))
    shapes = {"observation": {name: {} for name in sources}, "latents": {1: SAMPLES}}
    exported = torch.onnx.export(
        program, (), input_names=[*sources, LATENTS], output_names=[ACTIONS], dynamic_shapes=shapes, dynamo=True, verbose=False,
    )  # fmt: skip
    assert exported is not None
    exported.save(path, external_data=False)
    return onnx_call(path)


def onnx_call(path: Path) -> Call:
    """The graph of an ONNX file in ONNX Runtime, on one thread of the CPU."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def call(observation: Observation, latents: Tensor) -> Tensor:
        feed = {name: value.numpy() for name, value in observation.items()}
        return torch.from_numpy(session.run([ACTIONS], feed | {LATENTS: latents.numpy()})[0])

    return call


def _is_installed(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except ValueError:  # Python's error where its import is blocked
        return False
