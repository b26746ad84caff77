"""The set objectives by hand, by loops, by their gradients, and on a mixture whose answer is known."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from distill.objectives import (
    OBJECTIVES,
    chamfer,
    chamfer_energy,
    chunk_weights,
    coverage,
    distances,
    embed,
    energy_distance,
    fidelity,
    regression,
)

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]
TERMS: dict[str, Loss] = {
    "coverage": coverage, "fidelity": fidelity, "energy_distance": energy_distance,
    **{name: objective.loss for name, objective in OBJECTIVES.items()},
}  # fmt: skip
ONE = torch.ones(1)


def _randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _line(*observations: list[float]) -> Tensor:
    """Chunks of one action of one dimension, `[B, M, 1, 1]`: with weight 1 their distance is |a - b|."""
    return torch.tensor(observations)[:, :, None, None]


# -- by hand -------------------------------------------------------------------------------------------------------

STUDENT, TEACHER = _line([0.0, 1.0]), _line([0.0, 4.0, 5.0])
# distances: from 0 to 0, 4, 5; from 1 to 1, 3, 4
BY_HAND = {
    "fidelity": (0 + 1) / 2,
    "coverage": (0 + 3 + 4) / 3,
    "chamfer": 1 / 2 + 7 / 3,
    # cross mean (0 + 4 + 5 + 1 + 3 + 4) / 6 = 17 / 6; student spread 1; teacher spread (4 + 5 + 1) / 3 = 10 / 3
    "energy_distance": 2 * 17 / 6 - 1 - 10 / 3,
    "chamfer_energy": 17 / 6 + 0.5 * (17 / 3 - 13 / 3),
    "regression": (0 + 16 + 25 + 1 + 9 + 16) / 6,
}


@pytest.mark.parametrize("name", TERMS)
def test_a_small_case_by_hand(name: str) -> None:
    assert float(TERMS[name](STUDENT, TEACHER, ONE)) == pytest.approx(BY_HAND[name], abs=1e-5)


def test_the_distance_is_the_weighted_root_mean_square_difference() -> None:
    # T = 2, A = 2, weights 1 and 3: (1*1 + 3*4 + 1*9 + 3*16) / (2 * 4) = 70 / 8
    first, second = torch.zeros(1, 1, 2, 2), torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]])
    weights = torch.tensor([1.0, 3.0])
    expected = math.sqrt(8.75)
    assert float(distances(embed(first, weights), embed(second, weights))) == pytest.approx(expected, rel=1e-6)
    for term in (fidelity, coverage):
        assert float(term(first, second, weights)) == pytest.approx(expected, rel=1e-6)
    assert float(regression(first, second, weights)) == pytest.approx(8.75, rel=1e-6)
    assert float(energy_distance(first, second, weights)) == pytest.approx(2 * expected, rel=1e-6)  # no spread of one


def test_the_unit_does_not_depend_on_chunk_length_or_action_size() -> None:
    # two chunks that differ by 0.5 everywhere are 0.5 apart
    for horizon, actions in ((1, 1), (16, 2), (32, 7)):
        first, weights = torch.zeros(1, 1, horizon, actions), torch.rand(actions) + 0.1
        assert float(fidelity(first, first + 0.5, weights)) == pytest.approx(0.5, rel=1e-5)


# -- against loops -------------------------------------------------------------------------------------------------


def _loops(student: Tensor, teacher: Tensor, weights: Tensor) -> dict[str, float]:
    """Every term by loops over observations, chunks, actions and dimensions."""

    def d(a: Tensor, b: Tensor) -> float:
        horizon, actions = a.shape
        total = 0.0
        for t in range(horizon):
            for i in range(actions):
                total += float(weights[i]) * float(a[t, i] - b[t, i]) ** 2
        return math.sqrt(total / (horizon * float(weights.sum())))

    def mean(values: list[float]) -> float:
        return sum(values) / len(values)

    per_observation = []
    for s, t in zip(student.double(), teacher.double(), strict=True):
        pairs = [(a, b) for a in range(len(s)) for b in range(len(s)) if a != b]
        teacher_pairs = [(a, b) for a in range(len(t)) for b in range(len(t)) if a != b]
        per_observation.append({
            "fidelity": mean([min(d(a, b) for b in t) for a in s]),
            "coverage": mean([min(d(a, b) for a in s) for b in t]),
            "energy_distance": 2 * mean([d(a, b) for a in s for b in t]) - mean([d(s[a], s[b]) for a, b in pairs])
            - mean([d(t[a], t[b]) for a, b in teacher_pairs]),
            "regression": mean([d(a, b) ** 2 for a in s for b in t]),
        })  # fmt: skip
    joined = {name: mean([row[name] for row in per_observation]) for name in per_observation[0]}
    joined["chamfer"] = joined["fidelity"] + joined["coverage"]
    joined["chamfer_energy"] = joined["chamfer"] + 0.5 * joined["energy_distance"]
    return joined


@pytest.mark.parametrize(("samples", "hypotheses"), [(4, 5), (2, 2), (6, 3)])
def test_random_sets_against_loops(samples: int, hypotheses: int) -> None:
    student, teacher = _randn(3, samples, 3, 2), _randn(3, hypotheses, 3, 2, seed=1) + 0.3
    weights = torch.tensor([0.7, 2.0])
    expected = _loops(student, teacher, weights)
    assert set(expected) == set(TERMS)
    got = {name: float(term(student, teacher, weights)) for name, term in TERMS.items()}
    assert got == pytest.approx(expected, rel=1e-5)


# -- what they do and do not see -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TERMS)
def test_observations_are_never_pooled(name: str) -> None:
    student, teacher = _randn(2, 4, 3, 2), _randn(2, 5, 3, 2, seed=1)
    student[1] += 3.0
    teacher[1] -= 2.0
    weights, term = torch.ones(2), TERMS[name]
    alone = [float(term(student[b : b + 1], teacher[b : b + 1], weights)) for b in range(2)]
    assert float(term(student, teacher, weights)) == pytest.approx(sum(alone) / 2, rel=1e-5)
    # with the teacher's observations swapped the pooled sets are the same, the answer is not
    assert float(term(student, teacher.flip(0), weights)) != pytest.approx(sum(alone) / 2, rel=1e-2)


@pytest.mark.parametrize("name", TERMS)
def test_the_order_of_a_set_does_not_matter(name: str) -> None:
    student, teacher, weights = _randn(2, 5, 3, 2), _randn(2, 6, 3, 2, seed=1), torch.ones(2)
    shuffled = student[:, [3, 0, 4, 1, 2]], teacher[:, [5, 2, 0, 4, 1, 3]]
    assert float(TERMS[name](*shuffled, weights)) == pytest.approx(
        float(TERMS[name](student, teacher, weights)), rel=1e-5
    )


@pytest.mark.parametrize("name", TERMS)
def test_weights_say_how_much_a_dimension_counts(name: str) -> None:
    student, teacher, term = _randn(2, 4, 3, 2), _randn(2, 5, 3, 2, seed=1), TERMS[name]
    plain = float(term(student, teacher, torch.tensor([1.0, 1.0])))
    # only their ratio counts
    assert float(term(student, teacher, torch.tensor([5.0, 5.0]))) == pytest.approx(plain, rel=1e-5)
    # a dimension of weight zero might as well not be there
    only_first = float(term(student[..., :1], teacher[..., :1], ONE))
    assert float(term(student, teacher, torch.tensor([2.0, 0.0]))) == pytest.approx(only_first, rel=1e-4)
    far = student.clone()
    far[..., 1] += 10.0
    assert float(term(far, teacher, torch.tensor([2.0, 0.0]))) == pytest.approx(only_first, rel=1e-4)
    assert float(term(far, teacher, torch.tensor([1.0, 1.0]))) > plain + 1.0


def test_weights_may_differ_from_action_to_action() -> None:
    # T = 3, A = 2; two actions are carried out, the third counts a quarter
    weights_TA = chunk_weights(torch.tensor([1.0, 3.0]), 3, 2, 0.25)
    assert weights_TA.tolist() == [[1.0, 3.0], [1.0, 3.0], [0.25, 0.75]]
    first, second = torch.zeros(1, 1, 3, 2), torch.zeros(1, 1, 3, 2)
    second[0, 0, 1, 1], second[0, 0, 2, 0] = 2.0, 4.0
    # d^2 = (3 * 2^2 + 0.25 * 4^2) / (4 + 4 + 1) = 16 / 9
    assert float(coverage(first, second, weights_TA)) == pytest.approx(4 / 3, rel=1e-5)
    same_for_all = chunk_weights(torch.tensor([1.0, 3.0]), 3, 2, 1.0)
    student, teacher = _randn(2, 4, 3, 2), _randn(2, 5, 3, 2, seed=1)
    plain = chamfer(student, teacher, torch.tensor([1.0, 3.0]))
    torch.testing.assert_close(chamfer(student, teacher, same_for_all), plain)


# -- energy distance -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shift", [0.0, 0.5, 2.0])
def test_the_energy_distance_of_two_gaussians_has_the_expectation_of_its_closed_form(shift: float) -> None:
    # s - t is N(shift, 2), so E|s - t| = 2 / sqrt(pi) exp(-shift^2 / 4) + shift erf(shift / 2),
    # and s - s' is N(0, 2), so E|s - s'| = 2 / sqrt(pi)
    expected = 2 * (2 / math.sqrt(math.pi) * (math.exp(-(shift**2) / 4) - 1) + shift * math.erf(shift / 2))
    student, teacher = _randn(3000, 4, 1, 1), _randn(3000, 4, 1, 1, seed=1) + shift
    estimates = torch.stack([energy_distance(student[b : b + 1], teacher[b : b + 1], ONE) for b in range(3000)])
    error = float(estimates.std()) / math.sqrt(3000)
    assert error < 0.03 and abs(float(estimates.mean()) - expected) < 3.5 * error
    if shift == 0.0:
        assert bool((estimates < 0).any())  # unbiased, so not always above zero


def test_energy_sees_how_often_and_chamfer_does_not() -> None:
    teacher = _line([0.0] * 6 + [1.0] * 2)
    even, right = _line([0.0] * 4 + [1.0] * 4), _line([0.0] * 6 + [1.0] * 2)
    assert float(chamfer(even, teacher, ONE)) == pytest.approx(float(chamfer(right, teacher, ONE)), abs=1e-5)
    assert float(energy_distance(even, teacher, ONE)) > float(energy_distance(right, teacher, ONE)) + 0.05


def test_coverage_sees_a_lost_mode_and_fidelity_a_false_one() -> None:
    teacher = _line([-1.0, -1.0, 1.0, 1.0])
    lost, false = _line([1.0] * 4), _line([-1.0, 1.0, 0.0, 0.0])
    assert float(fidelity(lost, teacher, ONE)) == pytest.approx(0.0, abs=1e-5)
    assert float(coverage(lost, teacher, ONE)) == pytest.approx(1.0, abs=1e-5)  # two of four are 2 away
    assert float(fidelity(false, teacher, ONE)) == pytest.approx(0.5, abs=1e-5)  # two of four are 1 away
    assert float(coverage(false, teacher, ONE)) == pytest.approx(0.0, abs=1e-5)


# -- gradients -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TERMS)
def test_every_term_sends_a_gradient_to_the_student_and_none_to_the_teacher(name: str) -> None:
    student, teacher = _randn(2, 4, 3, 2).requires_grad_(), _randn(2, 5, 3, 2, seed=1).requires_grad_()
    TERMS[name](student, teacher, torch.ones(2)).backward()
    assert student.grad is not None and bool(torch.isfinite(student.grad).all())
    assert bool(student.grad.flatten(1).any(1).all())
    assert teacher.grad is None or not teacher.grad.any()


@pytest.mark.parametrize("name", TERMS)
def test_the_gradient_agrees_with_finite_differences(name: str) -> None:
    teacher, weights = _randn(2, 5, 3, 2, seed=1).double(), torch.tensor([0.5, 1.5], dtype=torch.float64)
    student = _randn(2, 4, 3, 2).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda s: TERMS[name](s, teacher, weights), (student,), eps=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", TERMS)
def test_the_gradient_is_finite_where_chunks_coincide(name: str) -> None:
    student = torch.zeros(2, 4, 3, 2, requires_grad=True)  # four equal samples, on top of the teacher's first two
    teacher = torch.zeros(2, 5, 3, 2)
    teacher[:, 2:] = 1.0
    TERMS[name](student, teacher, torch.ones(2)).backward()
    assert student.grad is not None and bool(torch.isfinite(student.grad).all())


# -- regression ----------------------------------------------------------------------------------------------------


def test_the_minimum_of_regression_is_the_mean_of_the_hypotheses() -> None:
    teacher, weights = _randn(3, 6, 4, 2), torch.tensor([1.0, 2.0])
    mean = teacher.mean(1, keepdim=True).requires_grad_()
    lowest = regression(mean, teacher, weights)
    lowest.backward()
    assert mean.grad is not None and float(mean.grad.abs().max()) < 1e-6
    for seed in range(5):
        assert float(regression(mean.detach() + 0.1 * _randn(3, 1, 4, 2, seed=seed), teacher, weights)) > lowest.item()
    # a student that ignores its latent loses nothing by it: that is what `one_sample` says
    assert OBJECTIVES["regression"].one_sample and not OBJECTIVES["chamfer"].one_sample
    assert float(regression(mean.detach().expand(3, 5, 4, 2), teacher, weights)) == pytest.approx(
        lowest.item(), rel=1e-5
    )


# -- a mixture whose answer is known -------------------------------------------------------------------------------


def _trained_on_a_mixture(loss: Loss) -> Tensor:
    """4000 samples of a small generator trained on 0.7 N(-1, 0.05^2) + 0.3 N(1, 0.05^2)."""
    torch.manual_seed(0)
    student = nn.Sequential(nn.Linear(4, 48), nn.SiLU(), nn.Linear(48, 48), nn.SiLU(), nn.Linear(48, 1))
    optimizer = torch.optim.Adam(student.parameters(), lr=1e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 600)
    for _ in range(600):
        modes = torch.where(torch.rand(16, 16) < 0.7, -1.0, 1.0)
        teacher = (modes + 0.05 * torch.randn(16, 16))[..., None, None]
        made = loss(student(torch.randn(16, 16, 4))[..., None], teacher, ONE)
        optimizer.zero_grad()
        made.backward()
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        return student(torch.randn(4000, 4))[:, 0]


def test_chamfer_energy_finds_both_modes_with_their_weights() -> None:
    samples = _trained_on_a_mixture(chamfer_energy)
    left, right = samples[samples < 0], samples[samples >= 0]
    assert len(left) / len(samples) == pytest.approx(0.7, abs=0.05)
    assert float(left.median()) == pytest.approx(-1.0, abs=0.05) and float(right.median()) == pytest.approx(
        1.0, abs=0.05
    )
    near = ((samples.abs() - 1).abs() < 0.25).float().mean()
    assert float(near) > 0.75  # a continuous map of the latent has to pass between the modes somewhere


def test_regression_collapses_to_the_mean_of_the_mixture() -> None:
    samples = _trained_on_a_mixture(regression)
    assert float(samples.mean()) == pytest.approx(-0.4, abs=0.1)  # 0.7 * -1 + 0.3 * 1, where no data is
    assert float(samples.std()) < 0.1
