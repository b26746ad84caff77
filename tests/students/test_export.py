"""Exported graphs: every kind of student is its graph, ONNX Runtime agrees with PyTorch, and the check finds what differs."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from envs.specs import DEPTH, STATE
from students import Student
from students.export import (
    FILES,
    SAMPLES,
    StudentGraph,
    check_format,
    export_program,
    measure_parity,
    random_observation,
    write_format,
)
from students.flow_map import FlowMapStudent
from students.one_step import OneStepStudent
from teachers.contract import Observation
from teachers.networks import PolicyShape

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


# -- the check ---------------------------------------------------------------------------------------------------------


def test_the_check_says_how_far_a_graph_is_off_and_refuses_it(make_student: Make) -> None:
    student = make_student()  # both half ranges of its actions are 0.3
    offset = torch.tensor([0.0, 9e-5])
    found = measure_parity(student, {
        "same": student, "near": lambda seen, latents: student(seen, latents) + offset / 10,
        "far": lambda seen, latents: student(seen, latents) - offset,
        "broken": lambda seen, latents: student(seen, latents) * torch.nan,
        "more": lambda seen, latents: student(seen, latents).repeat(1, 2, 1, 1),
    }, inputs=50)  # fmt: skip
    assert found["same"].largest < 1e-6 and found["same"].holds and found["near"].holds
    assert found["far"].largest == pytest.approx(9e-5, rel=0.02)
    assert found["far"].largest_normalised == pytest.approx(3e-4, rel=0.02) and not found["far"].holds
    assert math.isnan(found["broken"].largest) and not found["broken"].holds
    assert found["more"].largest == math.inf and not found["more"].holds


def test_a_latent_on_the_border_of_two_codes_is_left_out_and_counted(
    make_student: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    student = make_student(codes=2, latent_size=1)

    def drawn(count: int, samples: int, size: int, generator: torch.Generator) -> Tensor:
        latents = torch.full((count, samples, size), 0.3)
        latents[0] = 1e-7  # half of the normal distribution lies below 0: the border of two even codes
        return latents

    monkeypatch.setattr("students.export.torch.randn", drawn)
    parity = measure_parity(student, {"same": student}, inputs=2)["same"]
    assert (parity.chunks, parity.on_border) == (16, 16)


def test_random_observations_cover_the_known_ranges(all_kinds: dict[str, Student]) -> None:
    seen = random_observation(all_kinds["cameras"], 400, generator())
    # the statistics: centres 0.5 and 0, half ranges 0.25 and 0.3
    ends = seen[STATE].flatten(0, 1).aminmax(dim=0)
    torch.testing.assert_close(ends.min, torch.tensor([0.2, -0.36]), atol=0.01, rtol=0)
    torch.testing.assert_close(ends.max, torch.tensor([0.8, 0.36]), atol=0.01, rtol=0)
    depth = seen[f"{DEPTH}.front"]
    known = depth[~depth.isnan()]
    assert 0.4 <= known.min() < 0.41 and 1.39 < known.max() <= 1.4 and 0.01 < float(depth.isnan().float().mean()) < 0.03


# -- what is missing ---------------------------------------------------------------------------------------------------


def test_an_unknown_format_is_refused_with_the_nearest_one() -> None:
    with pytest.raises(ValueError, match=r"unknown 'onx'; expected some of \['onnx', 'torch', 'aoti'\].*onnx"):
        check_format("onx")


@pytest.mark.parametrize("package", ["onnx", "onnxscript", "onnxruntime"])
def test_a_missing_package_is_named_with_how_to_get_it(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)  # as Python marks an import that is blocked
    with pytest.raises(ValueError, match=rf'{package} not installed; pip install "flow2one\[onnx\]"'):
        check_format("onnx")
    check_format("torch")


def test_a_missing_compiler_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(ValueError, match=r"'no-such-compiler' was not found; install one"):
        check_format("aoti")
