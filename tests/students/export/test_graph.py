"""Exported graphs: every kind of student is its graph, ONNX Runtime agrees with PyTorch, and the check finds what differs."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from envs.specs import DEPTH, STATE
from students import Student
from students.export.graph import FILES, SAMPLES, StudentGraph, check_format, export_program, write_format
from students.export.parity import measure_parity, random_observation
from students.flow_map import FlowMapStudent
from students.one_step import OneStepStudent
from teachers.contract import Observation
from teachers.networks.shapes import PolicyShape

Make = Callable[..., OneStepStudent]


@pytest.fixture
def all_kinds(make_student: Make, make_teacher, seeing_shape: PolicyShape) -> dict[str, Student]:
    """A student of every kind that there is, with random weights; shares that are not even."""
    seeing = make_teacher(encoder=seeing_shape.encoder)
    flow_map = FlowMapStudent.from_teacher(make_teacher()).eval()
    students: dict[str, Student] = {
        "linear": make_student(), "codes": make_student(codes=8, latent_size=1),
        "shares": make_student(codes=8, latent_size=3, shares=True), "cameras": make_student(seeing, codes=8, shares=True),
        "narrow": OneStepStudent(replace(seeing_shape, width=8), 2), "flow map": flow_map,
    }  # fmt: skip
    students["narrow"].normaliser.load_state_dict(seeing.normaliser.state_dict())
    with torch.no_grad():
        for name in ("shares", "cameras"):
            head = students[name].share_head
            head.weight.copy_(torch.randn(head.weight.shape, generator=torch.Generator().manual_seed(1)))
        flow_map.span.layers[-1].weight.normal_(generator=torch.Generator().manual_seed(2))
    return {name: student.eval() for name, student in students.items()}


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@torch.no_grad()
def differ(student: Student, call: Callable[[Observation, Tensor], Tensor], observation: Observation, samples: int) -> float:
    latents = torch.randn(1, samples, *student.latent_shape, generator=generator(3))
    return float((call(observation, latents) - student(observation, latents)).abs().max())


# -- the graph ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["linear", "codes", "shares", "cameras", "narrow", "flow map"])
def test_the_graph_of_every_kind_is_the_student_to_the_last_bit(kind: str, all_kinds: dict[str, Student]) -> None:
    student = all_kinds[kind]
    for seed in range(5):
        observation = random_observation(student, 1, generator(seed))
        assert differ(student, StudentGraph(student), observation, samples=1 + seed) == 0


@pytest.mark.parametrize("kind", ["shares", "flow map"])
def test_a_program_of_torch_takes_any_number_of_samples(kind: str, all_kinds: dict[str, Student], tmp_path: Path) -> None:
    student = all_kinds[kind]
    call = write_format("torch", student, export_program(student), tmp_path)
    parity = measure_parity(student, {"torch": call}, inputs=150)["torch"]
    assert parity.holds and parity.inputs == 150 and parity.chunks + parity.on_border == 50 * (16 + 1 + 5)
    assert (tmp_path / FILES["torch"]).is_file()


def test_onnx_agrees_with_pytorch_on_a_thousand_random_inputs(all_kinds: dict[str, Student], tmp_path: Path) -> None:
    import onnxruntime

    student = all_kinds["shares"]
    call = write_format("onnx", student, export_program(student), tmp_path)
    parity = measure_parity(student, {"onnx": call})["onnx"]
    assert parity.holds and parity.inputs == 1000 and parity.on_border < 20
    assert [path.name for path in tmp_path.iterdir()] == [FILES["onnx"]]  # one file, the weights in it
    session = onnxruntime.InferenceSession(str(tmp_path / FILES["onnx"]), providers=["CPUExecutionProvider"])
    assert [(each.name, each.shape) for each in session.get_inputs()] == [(STATE, [1, 2, 2]), ("latents", [1, SAMPLES, 3])]
    assert [(each.name, each.shape) for each in session.get_outputs()] == [("actions", [1, SAMPLES, 8, 2])]


def test_onnx_of_a_student_with_cameras_makes_up_unknown_depth_as_pytorch_does(
    all_kinds: dict[str, Student], tmp_path: Path
) -> None:
    student = all_kinds["cameras"]
    call = write_format("onnx", student, export_program(student), tmp_path)
    assert measure_parity(student, {"onnx": call}, inputs=60)["onnx"].holds
    observation, depth = random_observation(student, 1, generator()), f"{DEPTH}.front"
    known = {**observation, depth: observation[depth].nan_to_num(nan=0.9)}
    unknown = {**observation, depth: torch.full_like(observation[depth], torch.nan)}
    for each in (known, unknown):
        assert differ(student, call, each, samples=4) < 1e-5
    assert differ(student, lambda seen, latents: call(known, latents), unknown, samples=4) > 1e-3  # depth does matter


@pytest.mark.slow
def test_aotinductor_agrees_with_pytorch_on_a_thousand_random_inputs(
    make_student: Make, make_teacher, tmp_path: Path
) -> None:
    # 16 actions a chunk and 16 samples: two axes of one length, which AOTInductor must not take for the same
    student = make_student(make_teacher(horizon=16), codes=8, latent_size=1, shares=True)
    call = write_format("aoti", student, export_program(student), tmp_path)
    parity = measure_parity(student, {"aoti": call})["aoti"]
    assert parity.holds and parity.inputs == 1000


def test_statistics_that_are_not_finite_are_not_exported(make_student: Make) -> None:
    student = make_student()
    student.normaliser.action_low[0] = torch.nan
    with pytest.raises(ValueError, match=r"action_low.* not finite"):
        export_program(student)


# -- what is missing ---------------------------------------------------------------------------------------------------


def test_an_unknown_format_is_refused_with_the_nearest_one() -> None:
    with pytest.raises(ValueError, match=r"unknown 'onx'; expected some of \['onnx', 'call', 'torch', 'aoti'\].*onnx"):
        check_format("onx")


@pytest.mark.parametrize("package", ["onnx", "onnxscript", "onnxruntime"])
def test_a_missing_package_is_named_with_how_to_get_it(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)  # as Python marks an import that is blocked
    with pytest.raises(ValueError, match=rf"{package} not installed; pip install {package}$"):
        check_format("onnx")
    check_format("torch")


def test_a_missing_compiler_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(ValueError, match=r"'no-such-compiler' was not found; install one"):
        check_format("aoti")
