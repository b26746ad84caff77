"""A call in a run mode gives what PyTorch gives: chunk, candidates and choice, for every selection, encoder and solver."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from envs.specs import STATE
from students.flow_map import FlowMapStudent
from students.runtime.calls import NetworkInMode, StudentInMode, TeacherInMode
from students.runtime.modes import MODES, Compile, Mode, OnnxRuntime, PyTorch, in_precision
from students.selection import SINGLE_SAMPLE, Memory, Selection, choose
from teachers.networks.observations import fake_observation
from teachers.networks.shapes import PolicyShape

HERE = {name: mode for name, mode in MODES.items() if not mode.missing(torch.device("cpu"))}
SELECTIONS = {
    "single": SINGLE_SAMPLE, "outlier_rejection": Selection("outlier_rejection", 6),
    "temporal_consistency": Selection("temporal_consistency", 5, 0), "kept_latent": Selection("kept_latent", 1, 0),
}  # fmt: skip


def _seen(shape: PolicyShape, seed: int = 3) -> dict[str, np.ndarray]:
    return {name: value.numpy() for name, value in fake_observation(shape, 1, seed).items()}


def _check(student, mode: Mode, selection: Selection, executed: int = 3) -> None:
    """The call against `encode`, `generate` and `choose`, without and with a last plan."""
    call, seen = StudentInMode(student, mode, selection, executed), _seen(student.shape)
    latents = torch.randn(call.samples, *student.latent_shape, generator=torch.Generator().manual_seed(1))
    last = torch.randn(student.shape.horizon, student.shape.action_size, generator=torch.Generator().manual_seed(2))
    tensors = {name: torch.from_numpy(value) for name, value in seen.items()}
    for last_TA in (None, last):
        with torch.no_grad():
            candidates = student.generate(student.encode(tensors), latents[None])
            memory = Memory(replans=0 if last_TA is None else 1, last_TA=last_TA)
            weights = torch.tensor(student.shape.action_weights)
            chosen, _ = choose(selection, candidates, [memory], executed, weights)
            raw = student.normaliser.unnormalise_action(chosen)[0].numpy()
        found = call(seen, latents.numpy(), None if last_TA is None else last_TA.numpy())
        np.testing.assert_allclose(found.candidates_NTA, candidates[0].numpy(), atol=2e-5)
        np.testing.assert_allclose(found.chunk_TA, raw, atol=2e-5)
        assert torch.equal(candidates[0][found.index], chosen[0])


@pytest.mark.parametrize("kind", SELECTIONS)
def test_a_call_executes_what_the_selection_chooses(make_student, kind: str) -> None:
    _check(make_student(latent_size=2, codes=4, shares=True), PyTorch(), SELECTIONS[kind])


def test_the_selection_with_a_last_plan_in_onnx(make_student) -> None:
    _check(make_student(latent_size=2, codes=4, shares=True), OnnxRuntime(), SELECTIONS["temporal_consistency"])


def test_a_call_with_cameras_depth_and_points(make_teacher, make_student, seeing_shape: PolicyShape) -> None:
    student = make_student(make_teacher(encoder=seeing_shape.encoder))
    for mode in (PyTorch(), OnnxRuntime()):
        _check(student, mode, SELECTIONS["outlier_rejection"])


def test_a_flow_map_student_and_a_plan_that_is_executed_to_its_end(make_teacher) -> None:
    student = FlowMapStudent.from_teacher(make_teacher()).eval()
    _check(student, PyTorch(), SELECTIONS["outlier_rejection"])
    whole = StudentInMode(student, PyTorch(), SELECTIONS["temporal_consistency"], executed=8)
    assert whole.samples == 1  # nothing of the last plan is left to compare with


@pytest.mark.parametrize(("solver", "steps"), [("euler", 4), ("heun", 3), ("midpoint", 2), ("shrinking", 3), ("heun", 1)])
def test_a_teacher_in_a_mode_solves_as_its_solver_does(make_teacher, solver: str, steps: int) -> None:
    teacher = make_teacher(solver=solver)
    seen, noise = _seen(teacher.shape), torch.randn(1, 8, 2, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = teacher.solve(teacher.encode({STATE: torch.from_numpy(seen[STATE])}), noise[None], steps)[0]
    for mode in (PyTorch(), *([OnnxRuntime()] if (solver, steps) == ("heun", 3) else [])):
        found = TeacherInMode(teacher, mode, steps)(seen, noise.numpy(), None)
        np.testing.assert_allclose(found.candidates_NTA, expected.numpy(), atol=3e-5)
        np.testing.assert_allclose(found.chunk_TA, teacher.normaliser.unnormalise_action(expected)[0].numpy(), atol=3e-5)


def test_a_teacher_at_another_number_of_steps_uses_the_same_graphs(make_teacher) -> None:
    teacher, built = make_teacher(), []

    class Counted(PyTorch):
        def graph(self, module, examples):
            built.append(type(module).__name__)
            return super().graph(module, examples)

    first = TeacherInMode(teacher, Counted(), 5)
    second = TeacherInMode(teacher, Counted(), 2, first)
    assert built == ["TeacherEncoding", "TeacherStep"]
    noise, seen = np.zeros((1, 8, 2), np.float32), _seen(teacher.shape)
    alone = TeacherInMode(teacher, PyTorch(), 2)(seen, noise, None)
    np.testing.assert_array_equal(second(seen, noise, None).chunk_TA, alone.chunk_TA)


def test_a_mode_that_unrolls_records_the_whole_solver(make_teacher) -> None:
    class Recorded(PyTorch):  # stands for a CUDA graph, which records by running
        unrolls = True

    teacher, noise = make_teacher(solver="heun"), np.ones((1, 8, 2), np.float32)
    seen = _seen(teacher.shape)
    whole, steps = (TeacherInMode(teacher, mode, 3)(seen, noise, None) for mode in (Recorded(), PyTorch()))
    np.testing.assert_allclose(whole.chunk_TA, steps.chunk_TA, atol=1e-6)


def test_the_network_alone_gives_all_chunks(make_student) -> None:
    student = make_student()
    seen, latents = _seen(student.shape), torch.randn(4, 5)
    with torch.no_grad():
        expected = student.generate(student.encode({STATE: torch.from_numpy(seen[STATE])}), latents[None])[0]
    np.testing.assert_allclose(NetworkInMode(student, PyTorch(), 4)(seen, latents.numpy()), expected.numpy(), atol=1e-6)


@pytest.mark.parametrize(("change", "message"), [
    (lambda seen: seen * np.nan, "NaN or infinity"), (lambda seen: seen[..., :1], r"got the shape \(1, 2, 1\), expected"),
], ids=["nan", "shape"])  # fmt: skip
def test_what_a_graph_cannot_refuse_is_refused_before_it(make_student, change, message: str) -> None:
    student = make_student()
    call = StudentInMode(student, PyTorch(), SINGLE_SAMPLE, 3)
    with pytest.raises(ValueError, match=message):
        call({STATE: change(_seen(student.shape)[STATE])}, np.zeros((1, 5), np.float32), None)


def test_of_more_steps_than_observed_the_newest_are_used(make_student) -> None:
    student, latents = make_student(), np.zeros((1, 5), np.float32)
    call, seen = StudentInMode(student, PyTorch(), SINGLE_SAMPLE, 3), _seen(student.shape)
    longer = {STATE: np.concatenate([seen[STATE] + 7, seen[STATE]], axis=1)}
    np.testing.assert_array_equal(call(longer, latents, None).chunk_TA, call(seen, latents, None).chunk_TA)


def test_half_precision_changes_the_trunk_but_no_choice_of_a_code(make_student) -> None:
    student = make_student(latent_size=1, codes=8, shares=True)
    latents = torch.randn(64, 1, generator=torch.Generator().manual_seed(0)).numpy()
    selection = replace(SELECTIONS["outlier_rejection"], candidates=64)
    half, full = (StudentInMode(student, PyTorch(precision), selection, 3) for precision in ("bfloat16", "float32"))
    a, b = (call(_seen(student.shape), latents, None).candidates_NTA for call in (half, full))
    assert 1e-4 < np.abs(a - b).max() < 0.1 * np.abs(b).max()  # the same codes, rounded
    assert isinstance(in_precision(torch.nn.Identity(), "float32"), torch.nn.Identity)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in HERE if name not in ("pytorch", "onnxruntime")])
def test_every_other_mode_of_this_machine(make_student, make_teacher, name: str) -> None:
    _check(make_student(latent_size=2, codes=4, shares=True), HERE[name], SELECTIONS["outlier_rejection"])
    teacher = make_teacher()
    seen, noise = _seen(teacher.shape), np.ones((1, 8, 2), np.float32)
    found, expected = (TeacherInMode(teacher, mode, 3)(seen, noise, None) for mode in (HERE[name], PyTorch()))
    np.testing.assert_allclose(found.chunk_TA, expected.chunk_TA, atol=3e-5)


def test_a_mode_says_what_it_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    assert MODES["cuda_graph"].missing(cpu) == "needs an NVIDIA GPU" and MODES["cuda_graph"].missing(cuda) == ""
    assert MODES["onnxruntime"].missing(cuda) == "runs on the CPU only"
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert Compile().missing(cpu) == MODES["aoti"].missing(cpu) == "no C++ compiler, 'no-such-compiler' was not found"
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert MODES["openvino"].missing(cpu) == "onnx, onnxscript, openvino not installed"


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["cuda_graph", "cuda_graph_bfloat16", "compile"])
def test_the_modes_of_a_gpu(make_student, make_teacher, name: str) -> None:
    student, teacher = make_student().cuda(), make_teacher().cuda()
    seen, latents = _seen(student.shape), np.ones((6, 5), np.float32)
    found, expected = (StudentInMode(student, mode, SELECTIONS["outlier_rejection"], 3)(seen, latents, None).chunk_TA
                       for mode in (MODES[name], PyTorch()))  # fmt: skip
    np.testing.assert_allclose(found, expected, atol=1e-2 if "bfloat16" in name else 1e-4)
    noise = np.ones((1, 8, 2), np.float32)
    found, expected = (TeacherInMode(teacher, mode, 5)(seen, noise, None).chunk_TA for mode in (MODES[name], PyTorch()))
    np.testing.assert_allclose(found, expected, atol=5e-2 if "bfloat16" in name else 1e-4)
