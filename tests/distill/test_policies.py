"""Teacher and student behind one face: the same numbers as asked directly, each row with its own randomness."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from distill.policies import Policy, StudentPolicy, TeacherPolicy, plan, postprocess, preprocess
from envs.specs import STATE
from students.one_step import OneStepStudent


def _student(make_teacher) -> OneStepStudent:
    torch.manual_seed(0)
    return OneStepStudent.from_teacher(make_teacher(), 5).eval()


@pytest.fixture(params=["euler", "heun", "student"])
def policy(request, make_teacher) -> Policy:
    if request.param == "student":
        return StudentPolicy(_student(make_teacher), "chamfer")
    return TeacherPolicy(make_teacher(solver=request.param), 3)


def _states(count: int) -> np.ndarray:
    return np.random.default_rng(0).uniform([0.25, -0.3], [0.75, 0.3], (count, 2, 2))


def _generators(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def test_a_teachers_plan_is_its_sample(make_teacher) -> None:
    teacher = make_teacher(solver="heun")
    got = plan(TeacherPolicy(teacher, 4), _states(1), _generators(3), samples=6)
    asked = teacher.sample({STATE: torch.from_numpy(_states(1)).float()}, 6, 4, _generators(3)[0])
    assert got.shape == (1, 6, 8, 2)
    np.testing.assert_allclose(got, asked.numpy(), rtol=1e-5, atol=1e-6)


def test_a_students_plan_is_its_forward(make_teacher) -> None:
    student = _student(make_teacher)
    got = plan(StudentPolicy(student, "chamfer"), _states(1), _generators(3), samples=6)
    latents = torch.randn(6, 5, generator=_generators(3)[0])
    with torch.no_grad():
        asked = student({STATE: torch.from_numpy(_states(1)).float()}, latents[None])
    np.testing.assert_allclose(got, asked.numpy(), rtol=1e-5, atol=1e-6)


def test_names_and_evaluations(make_teacher) -> None:
    euler, heun = make_teacher(), make_teacher(solver="heun")
    teachers = [TeacherPolicy(euler, 50), TeacherPolicy(heun, 4), TeacherPolicy(euler, 1)]
    assert [(policy.name, policy.evaluations) for policy in teachers] == [
        ("teacher_50", 50), ("teacher_4", 7), ("teacher_1", 1)
    ]  # fmt: skip
    student = StudentPolicy(_student(make_teacher), "chamfer_energy")
    assert (student.name, student.evaluations, student.shape) == ("chamfer_energy", 1, euler.shape)


def test_a_plan_costs_the_evaluations_that_are_reported(policy: Policy) -> None:
    calls: list[int] = []
    policy.module.trunk.register_forward_hook(lambda *_: calls.append(1))  # type: ignore[operator,union-attr]
    plan(policy, _states(2), _generators(0, 1), samples=3)
    assert len(calls) == policy.evaluations


def test_a_row_does_not_depend_on_the_rows_beside_it(policy: Policy) -> None:
    states = _states(4)
    together = plan(policy, states, _generators(10, 11, 12, 13), samples=2)
    for row in range(4):
        alone = plan(policy, states[row : row + 1], _generators(10 + row), samples=2)[0]
        np.testing.assert_allclose(together[row], alone, rtol=1e-4, atol=1e-5)
    turned = plan(policy, states[::-1], _generators(13, 12, 11, 10), samples=2)
    np.testing.assert_allclose(turned[::-1], together, rtol=1e-4, atol=1e-5)


def test_randomness_comes_from_the_rows_generator_alone(policy: Policy) -> None:
    states = np.repeat(_states(1), 3, axis=0)
    torch.manual_seed(0)
    first = plan(policy, states, _generators(1, 2, 1))
    torch.manual_seed(1)
    assert np.array_equal(plan(policy, states, _generators(1, 2, 1)), first)
    np.testing.assert_allclose(first[0], first[2], rtol=1e-5, atol=1e-6)
    assert np.abs(first[0] - first[1]).max() > 1e-3


def test_a_generator_goes_on_from_plan_to_plan(policy: Policy) -> None:
    generators = _generators(5)
    first, second = (plan(policy, _states(1), generators) for _ in range(2))
    assert np.abs(first - second).max() > 1e-3
    two = plan(policy, _states(1), _generators(5), samples=2)
    np.testing.assert_allclose(np.concatenate([first, second], axis=1), two, rtol=1e-4, atol=1e-5)


def test_states_and_chunks_change_their_unit_by_the_statistics(policy: Policy) -> None:
    assert preprocess(policy, _states(2))[STATE].dtype == torch.float32
    # centres 0.5, -0.1 and half ranges 0.3
    raw = postprocess(policy, torch.tensor([[[-1.0, 1.0], [0.0, 0.5]]]))
    np.testing.assert_allclose(raw, [[[0.2, 0.2], [0.5, 0.05]]], atol=1e-6)
