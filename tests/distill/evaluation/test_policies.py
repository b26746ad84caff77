"""Teacher and student behind one face: the same numbers as asked directly, each row with its own randomness."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from distill.evaluation.policies import Policy, StudentPolicy, TeacherPolicy, postprocess, preprocess, sample_set
from distill.evaluation.rollouts import query_policy
from envs.specs import STATE
from students.selection import KINDS, SAME_PLAN, SINGLE_SAMPLE, Memory, Selection, first_inlier

OUTLIER_REJECTION = Selection("outlier_rejection", 16)


@pytest.fixture(params=["euler", "heun", "student"])
def policy(request, make_teacher, make_student) -> Policy:
    if request.param == "student":
        return StudentPolicy(make_student(), "chamfer")
    return TeacherPolicy(make_teacher(solver=request.param), 3)


class Ways(StudentPolicy):
    """One in eight draws makes a plan of its own far away; the others go one of two ways."""

    def draw(self, samples: int, generator: torch.Generator) -> torch.Tensor:
        return torch.rand(samples, 1, generator=generator)

    def head(self, condition_BC: torch.Tensor, draws: torch.Tensor) -> torch.Tensor:
        way = torch.where(draws > 0.5, 1.0, -1.0) + SAME_PLAN * draws
        return torch.where(draws < 0.125, 20 + 1e4 * draws, way)[..., None].expand(-1, -1, 8, 2)


@pytest.fixture
def ways(make_student) -> Ways:
    return Ways(make_student(latent_size=1), "ways")


def _states(count: int) -> np.ndarray:
    return np.random.default_rng(0).uniform([0.25, -0.3], [0.75, 0.3], (count, 2, 2))


def _generators(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def _decide(
    policy: Policy, states: np.ndarray, generators: list[torch.Generator], selection: Selection = SINGLE_SAMPLE
) -> np.ndarray:
    """The raw chunks `[B, T, A]` of episodes at their first replan, three actions of each carried out."""
    return query_policy(policy, {STATE: states}, generators, selection, [Memory() for _ in states], 3)[0]


def _set(policy: Policy, seed: int, samples: int, selection: Selection = SINGLE_SAMPLE) -> np.ndarray:
    """Raw chunks `[S, T, A]` for the first of the states."""
    return postprocess(policy, sample_set(policy, {STATE: _states(1)}, _generators(seed)[0], samples, selection, 3))


def test_a_teachers_plan_is_its_sample(make_teacher) -> None:
    teacher = make_teacher(solver="heun")
    policy = TeacherPolicy(teacher, 4)
    asked = teacher.sample({STATE: torch.from_numpy(_states(1)).float()}, 6, 4, _generators(3)[0])[0]
    got = _set(policy, 3, 6)
    assert got.shape == (6, 8, 2)
    np.testing.assert_allclose(got, asked.numpy(), rtol=1e-5, atol=1e-6)
    one = _decide(policy, _states(1), _generators(3))
    assert one.shape == (1, 8, 2)
    np.testing.assert_allclose(one[0], asked[0].numpy(), rtol=1e-5, atol=1e-6)


def test_a_students_plan_is_its_forward(make_student) -> None:
    student = make_student()
    policy = StudentPolicy(student, "chamfer")
    latents = torch.randn(6, 5, generator=_generators(3)[0])
    with torch.no_grad():
        asked = student({STATE: torch.from_numpy(_states(1)).float()}, latents[None])[0]
    np.testing.assert_allclose(_set(policy, 3, 6), asked.numpy(), rtol=1e-5, atol=1e-6)
    with torch.no_grad():
        one = student({STATE: torch.from_numpy(_states(1)).float()}, torch.randn(1, 1, 5, generator=_generators(3)[0]))[0]
    np.testing.assert_allclose(_decide(policy, _states(1), _generators(3)), one.numpy(), rtol=1e-5, atol=1e-6)


def test_names_and_evaluations(make_teacher, make_student) -> None:
    euler, heun = make_teacher(), make_teacher(solver="heun")
    teachers = [TeacherPolicy(euler, 50), TeacherPolicy(heun, 4), TeacherPolicy(euler, 1)]
    assert [(policy.name, policy.evaluations) for policy in teachers] == [
        ("teacher_50", 50), ("teacher_4", 7), ("teacher_1", 1)
    ]  # fmt: skip
    student = StudentPolicy(make_student(), "chamfer_energy")
    assert (student.name, student.evaluations, student.shape) == ("chamfer_energy", 1, euler.shape)


@pytest.mark.parametrize("selection", [SINGLE_SAMPLE, OUTLIER_REJECTION], ids=lambda selection: selection.kind)
def test_a_plan_costs_the_evaluations_that_are_reported(policy: Policy, selection: Selection) -> None:
    calls: list[int] = []
    policy.module.trunk.register_forward_hook(lambda *_: calls.append(1))  # type: ignore[operator,union-attr]
    _decide(policy, _states(2), _generators(0, 1), selection)
    assert len(calls) == policy.evaluations
    _set(policy, 0, 3, selection)
    assert len(calls) == 2 * policy.evaluations


@pytest.mark.parametrize("selection", [SINGLE_SAMPLE, OUTLIER_REJECTION], ids=lambda selection: selection.kind)
def test_a_row_does_not_depend_on_the_rows_beside_it(policy: Policy, selection: Selection) -> None:
    states = _states(4)
    together = _decide(policy, states, _generators(10, 11, 12, 13), selection)
    for row in range(4):
        alone = _decide(policy, states[row : row + 1], _generators(10 + row), selection)[0]
        np.testing.assert_allclose(together[row], alone, rtol=1e-4, atol=1e-5)
    turned = _decide(policy, states[::-1], _generators(13, 12, 11, 10), selection)
    np.testing.assert_allclose(turned[::-1], together, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("selection", [SINGLE_SAMPLE, OUTLIER_REJECTION], ids=lambda selection: selection.kind)
def test_randomness_comes_from_the_rows_generator_alone(policy: Policy, selection: Selection) -> None:
    states = np.repeat(_states(1), 3, axis=0)
    torch.manual_seed(0)
    first = _decide(policy, states, _generators(1, 2, 1), selection)
    torch.manual_seed(1)
    assert np.array_equal(_decide(policy, states, _generators(1, 2, 1), selection), first)
    np.testing.assert_allclose(first[0], first[2], rtol=1e-5, atol=1e-6)
    assert np.abs(first[0] - first[1]).max() > 1e-3


def test_a_generator_goes_on_from_plan_to_plan(policy: Policy) -> None:
    generators = _generators(5)
    first, second = (_decide(policy, _states(1), generators) for _ in range(2))
    assert np.abs(first - second).max() > 1e-3
    np.testing.assert_allclose(np.concatenate([first, second]), _set(policy, 5, 2), rtol=1e-4, atol=1e-5)


# -- the set of an observation -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "outlier_rejection"])
def test_a_set_without_a_last_plan_is_the_policys_plain_draw(policy: Policy, kind: str) -> None:
    got = sample_set(policy, {STATE: _states(1)}, _generators(3)[0], 6, Selection(kind, 16), 3)
    with torch.inference_mode():
        condition = policy.encode(preprocess(policy, {STATE: _states(1)}))
        plain = policy.head(condition, policy.draw(6, _generators(3)[0])[None])[0]
    assert torch.equal(got, plain)


def test_a_set_of_typical_plans_is_that_of_as_many_episodes_that_begin_here(policy: Policy) -> None:
    got, generators = _set(policy, 3, 12, OUTLIER_REJECTION), _generators(3)
    # torch makes 16 numbers at once: of 16 draws each time, one draw of all has the numbers of the loop
    loop = [_decide(policy, _states(1), generators, OUTLIER_REJECTION)[0] for _ in range(12)]
    np.testing.assert_allclose(got, np.stack(loop), rtol=1e-4, atol=1e-5)


def test_a_set_of_typical_plans_is_that_of_episodes_that_pass_strays_over(ways: Ways) -> None:
    got, generators = _set(ways, 3, 40, OUTLIER_REJECTION), _generators(3)
    loop = [_decide(ways, _states(1), generators, OUTLIER_REJECTION)[0] for _ in range(40)]
    np.testing.assert_allclose(got, np.stack(loop), rtol=1e-5, atol=1e-6)
    firsts = postprocess(ways, ways.head(torch.zeros(1, 1), torch.rand(1, 640, 1, generator=_generators(3)[0])))[0, ::16]
    passed_over = int((np.abs(got - firsts).max((1, 2)) > 1).sum())
    assert 0 < passed_over < 15  # one in eight of 40


def test_a_stray_is_in_no_set(ways: Ways) -> None:
    plain, typical = (
        sample_set(ways, {STATE: _states(1)}, _generators(0)[0], 400, selection, 8)[:, 0, 0]
        for selection in (SINGLE_SAMPLE, OUTLIER_REJECTION)
    )
    assert 20 < int((plain > 2).sum()) < 80 and not bool((typical > 2).any())
    # the two ways have 3/8 and 4/8: 4/7 of what is carried out, within 4 standard errors
    assert float((typical > 0).double().mean()) == pytest.approx(4 / 7, abs=4 * (4 / 7 * 3 / 7 / 400) ** 0.5)
    # and by hand: each of the first sets of sixteen
    draws = torch.rand(16 * 400, 1, generator=_generators(0)[0])
    candidates = ways.head(torch.zeros(1, 1), draws[None])[0].unflatten(0, (400, 16))
    for index in range(20):
        chosen = int(first_inlier(candidates[index : index + 1], 8, torch.ones(2)))
        assert float(typical[index]) == float(candidates[index, chosen, 0, 0])


def test_states_and_chunks_change_their_unit_by_the_statistics(policy: Policy) -> None:
    assert preprocess(policy, {STATE: _states(2)})[STATE].dtype == torch.float32
    # centres 0.5, -0.1 and half ranges 0.3
    raw = postprocess(policy, torch.tensor([[[-1.0, 1.0], [0.0, 0.5]]]))
    np.testing.assert_allclose(raw, [[[0.2, 0.2], [0.5, 0.05]]], atol=1e-6)
