"""The set objectives by hand, by loops, by their gradients, and on a mixture whose answer is known."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import torch
from scipy.optimize import linprog
from torch import Tensor, nn

from distill.hypotheses.distances import chunk_weights, coverage, distances, embed, energy_distance, fidelity
from distill.objectives.sets import (
    ANCHORED,
    OBJECTIVES,
    best_set,
    chamfer,
    chamfer_energy,
    hungarian,
    large_pool,
    objective,
    paired,
    pool_winners,
    regression,
    rs_imle,
    rs_imle_adaptive,
    sinkhorn,
    soft_chamfer,
)

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]
TERMS: dict[str, Loss] = {
    "coverage": coverage,
    **{name: objective.loss for name, objective in OBJECTIVES.items() if not name.startswith("drift")},
}  # fmt: skip
"""Drifting is no distance: its value says nothing, and its scale is that of the batch (test_drift.py)."""
NOISE = {name for name, chosen in OBJECTIVES.items() if chosen.noise}
TIED = {"large_pool", *NOISE}
"""Those whose samples belong to hypotheses, one to one: the first K to all of them, or all of them to the first M."""
ONE = torch.ones(1)


def _randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _line(*observations: list[float]) -> Tensor:
    """Chunks of one action of one dimension, `[B, M, 1, 1]`: with weight 1 their distance is |a - b|."""
    return torch.tensor(observations)[:, :, None, None]


def _sets(name: str) -> tuple[Tensor, Tensor]:
    """Two observations of random chunks, five hypotheses and as many samples as the objective can take."""
    return _randn(2, 7 if name == "large_pool" else 4, 3, 2), _randn(2, 5, 3, 2, seed=1)


def _added_up(name: str, values: dict[str, float]) -> float:
    """A weighted sum such as ``2fidelity+imle`` of what its terms come to."""
    return sum(float(weight or 1) * values[term] for weight, term in re.findall(r"([\d.]*)([a-z_]+)", name))


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
    "imle": (0 + 3 + 4) / 3,
    # the sample on top of the first hypothesis is rejected, the next one is 1 away
    "rs_imle": (1 + 3 + 4) / 3,
    # each one's nearest other is 4, 1, 1 away: epsilon is half of their median, 1
    "rs_imle_adaptive": (1 + 3 + 4) / 3,
    "set_imle": 1 / 2 + 7 / 3,
    # the others weigh exp(-50) or less, and a mean over K instead of a sum adds tau log K
    "soft_chamfer": 1 / 2 + 7 / 3 + 0.02 * (math.log(3) + math.log(2)),
    # 0 sends a third to 0 and a sixth to 4; 1 sends a sixth to 4 and a third to 5
    "hungarian": (0 + 4) * 1 / 6 + 3 / 6 + 4 / 3 - 0 * 1 / 3,
    # the plan of least cost and most entropy: 0 sends 1/3, 1/12, 1/12 to 0, 4, 5; 1 sends 0, 1/4, 1/4. It costs as much,
    # and its divergence from 1/6 everywhere is 1/3 log 2 + 1/6 log 1/2 + 1/2 log 3/2. A set from itself: log of its size
    "sinkhorn": 2.5 + 0.02 * (math.log(2) / 6 + math.log(1.5) / 2 - math.log(2) / 2 - math.log(3) / 2),
    # 0 belongs to 0 and 1 to 4; 5 has no partner
    "noise_regression": (0 + 9) / 2,
}
BY_HAND["anchored"] = _added_up(ANCHORED, BY_HAND)


@pytest.mark.parametrize("name", [name for name in TERMS if name != "large_pool"])
def test_a_small_case_by_hand(name: str) -> None:
    assert float(TERMS[name](STUDENT, TEACHER, ONE)) == pytest.approx(BY_HAND[name], abs=1e-5)


def test_samples_that_belong_to_a_hypothesis_by_hand() -> None:
    # 1, 4, 7 belong to 0, 4, 5
    assert float(paired(_line([1.0, 4.0, 7.0]), TEACHER, ONE)) == pytest.approx((1 + 0 + 4) / 3)
    assert float(paired(_line([1.0]), TEACHER, ONE)) == pytest.approx(1.0)
    # the winners are 1, 0 and 2 away from theirs; of the rest 1 is 1 away from its nearest hypothesis, 4.5 half
    value = large_pool(_line([1.0, 4.0, 7.0, 1.0, 4.5]), TEACHER, ONE)
    assert float(value) == pytest.approx((1 + 0 + 2) / 3 + (1 + 0.5) / 2, abs=1e-5)
    with pytest.raises(ValueError, match="got 4 samples and 3 hypotheses, expected one for every sample"):
        paired(_line([1.0, 4.0, 7.0, 7.0]), TEACHER, ONE)
    with pytest.raises(ValueError, match="got 3 samples, expected 3 winners and at least one other"):
        large_pool(_line([1.0, 4.0, 7.0]), TEACHER, ONE)


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
        distance = np.array([[d(a, b) for b in t] for a in s])
        own = sorted(min(d(t[a], t[b]) for b in range(len(t)) if a != b) for a in range(len(t)))
        pairs = [(a, b) for a in range(len(s)) for b in range(len(s)) if a != b]
        teacher_pairs = [(a, b) for a in range(len(t)) for b in range(len(t)) if a != b]
        per_observation.append({
            "fidelity": mean([min(d(a, b) for b in t) for a in s]),
            "coverage": mean([min(d(a, b) for a in s) for b in t]),
            "energy_distance": 2 * mean([d(a, b) for a in s for b in t]) - mean([d(s[a], s[b]) for a, b in pairs])
            - mean([d(t[a], t[b]) for a, b in teacher_pairs]),
            "regression": mean([d(a, b) ** 2 for a in s for b in t]),
            "rs_imle": _rejecting(distance, 0.03),
            "rs_imle_adaptive": _rejecting(distance, 0.5 * own[(len(own) - 1) // 2]),
            "soft_chamfer": mean([-0.02 * math.log(mean([math.exp(-x / 0.02) for x in row])) for row in distance])
            + mean([-0.02 * math.log(mean([math.exp(-x / 0.02) for x in column])) for column in distance.T]),
            "hungarian": _transport(distance),
            "sinkhorn": _entropic(distance) - 0.5 * _entropic(np.array([[d(a, b) for b in s] for a in s]))
            - 0.5 * _entropic(np.array([[d(a, b) for b in t] for a in t])),
            "noise_regression": mean([d(a, b) ** 2 for a, b in zip(s, t, strict=False)]),
            "large_pool": mean([d(a, b) for a, b in zip(s, t, strict=False)])
            + mean([min(row) for row in distance[len(t):]] or [math.nan]),
        })  # fmt: skip
    joined = {name: mean([row[name] for row in per_observation]) for name in per_observation[0]}
    joined["imle"] = joined["coverage"]
    joined["chamfer"] = joined["set_imle"] = joined["fidelity"] + joined["coverage"]
    joined["chamfer_energy"] = joined["chamfer"] + 0.5 * joined["energy_distance"]
    joined["anchored"] = _added_up(ANCHORED, joined)
    return joined


def _rejecting(distance_MK: np.ndarray, epsilon: float) -> float:
    kept = [[value for value in column if value > epsilon] for column in distance_MK.T]
    assert all(kept)  # the samples are random: none of the hypotheses is left without one
    return sum(min(values) for values in kept) / len(kept)


def _transport(distance_MK: np.ndarray) -> float:
    """The linear programme of optimal transport between uniform weights."""
    samples, hypotheses = distance_MK.shape
    sums = [np.kron(np.eye(samples), np.ones(hypotheses)), np.kron(np.ones(samples), np.eye(hypotheses))]
    masses = [np.full(samples, 1 / samples), np.full(hypotheses, 1 / hypotheses)]
    return float(linprog(distance_MK.ravel(), A_eq=np.concatenate(sums), b_eq=np.concatenate(masses)).fun)


def _entropic(distance_MK: np.ndarray) -> float:
    """<P, d> + 0.02 KL(P | uniform) by Sinkhorn's scaling (Cuturi 2013, algorithm 1) until it stands still."""
    kernel = np.exp(-distance_MK / 0.02)
    rows = np.ones(len(kernel))
    for _ in range(5000):
        columns = 1 / kernel.shape[1] / (kernel.T @ rows)
        rows = 1 / kernel.shape[0] / (kernel @ columns)
    plan = rows[:, None] * kernel * columns
    positive = plan > 0
    divergence = np.sum(plan[positive] * np.log(plan[positive] * plan.size))
    return float(np.sum(plan * distance_MK) + 0.02 * divergence)


@pytest.mark.parametrize(("samples", "hypotheses"), [(4, 5), (2, 2), (6, 3), (5, 5)])
def test_random_sets_against_loops(samples: int, hypotheses: int) -> None:
    student, teacher = _randn(3, samples, 3, 2), _randn(3, hypotheses, 3, 2, seed=1) + 0.3
    weights = torch.tensor([0.7, 2.0])
    expected = _loops(student, teacher, weights)
    assert set(expected) == set(TERMS)
    skipped = {"large_pool"} if samples <= hypotheses else set()
    skipped |= NOISE if samples > hypotheses else set()
    got = {name: float(term(student, teacher, weights)) for name, term in TERMS.items() if name not in skipped}
    # the transport plan has its 50 iterations, the loops as many as they like
    assert got.pop("sinkhorn") == pytest.approx(expected["sinkhorn"], abs=0.005)
    assert got == pytest.approx({name: value for name, value in expected.items() if name in got}, rel=1e-5, abs=1e-6)


# -- what they do and do not see -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TERMS)
def test_observations_are_never_pooled(name: str) -> None:
    student, teacher = _sets(name)
    student[1] += 3.0
    teacher[1] -= 2.0
    weights, term = torch.ones(2), TERMS[name]
    alone = [float(term(student[b : b + 1], teacher[b : b + 1], weights)) for b in range(2)]
    assert float(term(student, teacher, weights)) == pytest.approx(sum(alone) / 2, rel=1e-5)
    # with the teacher's observations swapped the pooled sets are the same, the answer is not
    assert float(term(student, teacher.flip(0), weights)) != pytest.approx(sum(alone) / 2, rel=1e-2)


@pytest.mark.parametrize("name", TERMS)
def test_the_order_of_a_set_does_not_matter(name: str) -> None:
    (student, teacher), weights = _sets(name), torch.ones(2)
    order = [3, 0, 4, 1, 2]
    mixed = torch.randperm(student.shape[1]).tolist()
    if name in NOISE:  # of samples that belong to hypotheses the same order for both; the fifth has no partner
        order, mixed = [3, 0, 2, 1, 4], [3, 0, 2, 1]
    elif name in TIED:
        mixed = [*order, 6, 5]
    plain = float(TERMS[name](student, teacher, weights))
    assert float(TERMS[name](student[:, mixed], teacher[:, order], weights)) == pytest.approx(plain, rel=1e-5)
    if name in TIED:
        assert float(TERMS[name](student, teacher[:, order], weights)) != pytest.approx(plain, rel=1e-3)


@pytest.mark.parametrize("name", TERMS)
def test_weights_say_how_much_a_dimension_counts(name: str) -> None:
    (student, teacher), term = _sets(name), TERMS[name]
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
    student, teacher = (chunks.requires_grad_() for chunks in _sets(name))
    TERMS[name](student, teacher, torch.ones(2)).backward()
    assert student.grad is not None and bool(torch.isfinite(student.grad).all())
    assert bool(student.grad.flatten(1).any(1).all())
    assert teacher.grad is None or not teacher.grad.any()


# a Sinkhorn plan is held fixed, which is right once it has converged: see `test_the_gradient_of_sinkhorn`
@pytest.mark.parametrize("name", [name for name in TERMS if name != "sinkhorn"])
def test_the_gradient_agrees_with_finite_differences(name: str) -> None:
    (student, teacher), weights = _sets(name), torch.tensor([0.5, 1.5], dtype=torch.float64)
    student, teacher = student.double().requires_grad_(), teacher.double()
    assert torch.autograd.gradcheck(lambda s: TERMS[name](s, teacher, weights), (student,), eps=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", TERMS)
def test_the_gradient_is_finite_where_chunks_coincide(name: str) -> None:
    student, teacher = (torch.zeros_like(chunks) for chunks in _sets(name))
    student.requires_grad_()  # equal samples, on top of the teacher's first two
    teacher[:, 2:] = 1.0
    TERMS[name](student, teacher, torch.ones(2)).backward()
    assert student.grad is not None and bool(torch.isfinite(student.grad).all())


# -- rejection -----------------------------------------------------------------------------------------------------


def test_rejection_takes_the_nearest_sample_beyond_epsilon() -> None:
    student, teacher = _line([0.1, 0.5, 2.0]), _line([0.0, 1.0])
    # from 0: .1 .5 2; from 1: .9 .5 1
    for epsilon, expected in ((0.05, (0.1 + 0.5) / 2), (0.3, (0.5 + 0.5) / 2), (0.7, (2.0 + 0.9) / 2)):
        assert float(rs_imle(student, teacher, ONE, epsilon=epsilon)) == pytest.approx(expected, abs=1e-5)
    # beyond 0.95 only one hypothesis has a sample left at 1.5: the other is left out of the mean
    assert float(rs_imle(student, teacher, ONE, epsilon=1.5)) == pytest.approx(2.0, abs=1e-5)


def test_where_all_is_rejected_the_loss_is_zero_and_has_a_graph() -> None:
    student, teacher = _randn(2, 4, 3, 2).requires_grad_(), _randn(2, 5, 3, 2, seed=1)
    value = rs_imle(student, teacher, torch.ones(2), epsilon=100.0)
    assert value.item() == 0.0
    value.backward()
    assert student.grad is not None and not student.grad.any()
    # every observation weighs the same: one without any is served well enough, 0, and the other's 1 away
    student, teacher = _line([0.0, 0.1], [0.0, 4.0]), _line([0.0, 0.1], [1.0, 1.0])
    assert float(rs_imle(student, teacher, ONE, epsilon=0.5)) == pytest.approx((0.0 + 1.0) / 2, abs=1e-5)
    # the first has one hypothesis left, 4 away; the second two, 1 and 3 away
    student, teacher = _line([0.0, 0.1], [0.0, 0.0]), _line([0.0, 4.1], [1.0, 3.0])
    assert float(rs_imle(student, teacher, ONE, epsilon=0.5)) == pytest.approx((4.0 + 2.0) / 2, abs=1e-5)


def test_an_adaptive_epsilon_is_each_observations_own() -> None:
    # hypotheses 1 apart and 10 apart: epsilon 0.5 and 5
    teacher, student = _line([0.0, 1.0, 2.0], [0.0, 10.0, 20.0]), _line([0.4, 0.6], [4.0, 6.0])
    kept = [0.6, 0.6, 1.4, 6.0, 6.0, 14.0]  # 0.4 from 0 and from 1 is too near, and so is 4 from 0 and from 10
    assert float(rs_imle_adaptive(student, teacher, ONE)) == pytest.approx(sum(kept) / 6, abs=1e-5)
    kept = [0.4, 0.4, 1.4, 4.0, 4.0, 14.0]
    assert float(rs_imle_adaptive(student, teacher, ONE, scale=0.3)) == pytest.approx(sum(kept) / 6, abs=1e-5)


# -- transport -----------------------------------------------------------------------------------------------------


def _plain_distances(student: Tensor, teacher: Tensor) -> Tensor:
    """`[B, M, K]`, all weights one."""
    return (student[:, :, None] - teacher[:, None]).square().mean((-1, -2)).sqrt()


def test_hungarian_is_the_best_of_all_permutations() -> None:
    student, teacher = _randn(3, 5, 3, 2), _randn(3, 5, 3, 2, seed=1)
    best = [
        min(sum(float(one[m, k]) for m, k in enumerate(order)) / 5 for order in itertools.permutations(range(5)))
        for one in _plain_distances(student, teacher)
    ]
    assert float(hungarian(student, teacher, torch.ones(2))) == pytest.approx(sum(best) / 3, rel=1e-5)


@pytest.mark.parametrize(("samples", "hypotheses"), [(2, 4), (6, 3), (2, 3), (1, 5)])
def test_hungarian_of_unequal_sets_is_the_best_of_all_permutations_of_copies(samples: int, hypotheses: int) -> None:
    student, teacher = _randn(2, samples, 3, 2), _randn(2, hypotheses, 3, 2, seed=1)
    size = math.lcm(samples, hypotheses)
    best = [
        min(sum(float(one[copy % samples, k % hypotheses]) for copy, k in enumerate(order)) / size
            for order in itertools.permutations(range(size)))
        for one in _plain_distances(student, teacher)
    ]  # fmt: skip
    assert float(hungarian(student, teacher, torch.ones(2))) == pytest.approx(sum(best) / 2, rel=1e-5)


@pytest.mark.parametrize(("samples", "slack"), [(5, 1e-4), (4, 0.002)])
def test_sinkhorn_tends_to_hungarian_as_the_temperature_falls(samples: int, slack: float) -> None:
    student, teacher = _randn(2, samples, 3, 2).double(), _randn(2, 5, 3, 2, seed=1).double()
    weights = torch.ones(2, dtype=torch.float64)
    exact = float(hungarian(student, teacher, weights))
    # of equal sizes every plan is a permutation in the end, whose entropies cancel; else some of 0.001 log 5 stays
    near = float(sinkhorn(student, teacher, weights, temperature=0.001, iterations=2000))
    assert near == pytest.approx(exact, abs=slack)
    assert abs(float(sinkhorn(student, teacher, weights, temperature=0.3)) - exact) > 0.02


@pytest.mark.parametrize("temperature", [0.005, 0.02, 0.5])
def test_sinkhorn_is_zero_for_equal_sets_and_positive_for_others(temperature: float) -> None:
    teacher, weights = _randn(3, 6, 3, 2), torch.ones(2)
    assert abs(float(sinkhorn(teacher.clone(), teacher, weights, temperature))) < 1e-5
    shuffled = teacher[:, [5, 2, 0, 4, 1, 3]]
    assert abs(float(sinkhorn(shuffled, teacher, weights, temperature))) < 1e-4
    assert float(sinkhorn(teacher + 0.3, teacher, weights, temperature)) > 0.02


@pytest.mark.parametrize("samples", [3, 4])
def test_the_gradient_of_sinkhorn(samples: int) -> None:
    student, teacher = _randn(1, samples, 2, 2).double().requires_grad_(), _randn(1, 4, 2, 2, seed=1).double()
    weights = torch.tensor([0.5, 1.5], dtype=torch.float64)

    def loss(student: Tensor) -> Tensor:
        return sinkhorn(student, teacher, weights, temperature=0.5, iterations=120)

    assert torch.autograd.gradcheck(loss, (student,), eps=1e-6, atol=1e-6)


def test_fifty_iterations_of_sinkhorn_are_nearly_enough() -> None:
    # at the final temperature from the start these would be wrong by 0.006 to 0.09
    student = torch.tensor([0.0, 1.0])[torch.arange(8) % 2] + 0.05 * _randn(6, 8)
    teacher = torch.tensor([0.0, 0.0, 0.0, 1.0])[torch.arange(16) % 4] + 0.05 * _randn(6, 16, seed=1)
    for s, t in zip(student[:, :, None, None], teacher[:, :, None, None], strict=True):
        enough = float(sinkhorn(s[None], t[None], ONE, iterations=1000))
        assert float(sinkhorn(s[None], t[None], ONE)) == pytest.approx(enough, abs=0.002)


def test_sinkhorn_sees_how_often_each_mode_is_chosen() -> None:
    teacher = _line([0.0] * 6 + [1.0] * 2)
    even, right = _line([0.0] * 4 + [1.0] * 4), _line([0.0] * 6 + [1.0] * 2)
    for term in (sinkhorn, hungarian):
        # a quarter of the mass has 1 to go
        assert float(term(even, teacher, ONE)) == pytest.approx(0.25, abs=0.03)
        assert float(term(right, teacher, ONE)) == pytest.approx(0.0, abs=1e-4)


# -- the soft minimum ----------------------------------------------------------------------------------------------


def test_soft_chamfer_lies_between_chamfer_and_the_mean_of_all_distances() -> None:
    student, teacher = _randn(2, 4, 3, 2).double(), _randn(2, 5, 3, 2, seed=1).double()
    weights = torch.ones(2, dtype=torch.float64)
    hard, mean = float(chamfer(student, teacher, weights)), 2 * float(_plain_distances(student, teacher).mean())
    assert float(soft_chamfer(student, teacher, weights, 1e-5)) == pytest.approx(hard, abs=1e-4)
    assert float(soft_chamfer(student, teacher, weights, 1e3)) == pytest.approx(mean, abs=1e-3)
    values = [float(soft_chamfer(student, teacher, weights, tau)) for tau in (0.01, 0.1, 1.0, 10.0)]
    assert hard < values[0] < values[1] < values[2] < values[3] < mean


def test_soft_chamfer_moves_samples_that_are_not_the_nearest() -> None:
    grads = []
    for term in (chamfer, partial(soft_chamfer, temperature=1.0)):
        # the second sample is nobody's nearest, and its own nearest hypothesis lies on the other side of 0 than the far one
        student = _line([0.0, 1.0, 5.0]).requires_grad_()
        term(student, _line([0.0, 9.0, 9.5]), ONE).backward()
        assert student.grad is not None
        grads.append(student.grad.flatten())
    assert float(grads[0][1]) == pytest.approx(1 / 3, abs=1e-5)  # of fidelity alone
    assert float((grads[1][1] - 1 / 3).abs()) > 0.01


# -- which latents are made again ----------------------------------------------------------------------------------


def test_the_best_set_is_the_one_with_the_least_chamfer_distance() -> None:
    tried, teacher = _randn(4, 24, 3, 2), _randn(4, 5, 3, 2, seed=1)
    weights = torch.tensor([0.7, 2.0])
    index_BM = best_set(tried, teacher, weights, 3)
    assert index_BM.shape == (4, 3)
    for b in range(4):
        values = [
            float(chamfer(tried[b : b + 1, 3 * j : 3 * j + 3], teacher[b : b + 1], weights)) for j in range(8)
        ]
        best = values.index(min(values))
        assert index_BM[b].tolist() == [3 * best, 3 * best + 1, 3 * best + 2]
    assert len({int(first) for first in index_BM[:, 0]}) > 1  # each observation's own


def test_the_winners_of_a_pool_are_the_nearest_to_each_hypothesis() -> None:
    tried, teacher = _randn(3, 16, 3, 2), _randn(3, 5, 3, 2, seed=1)
    weights = torch.tensor([0.7, 2.0])
    index_BN = pool_winners(tried, teacher, weights, 2)
    assert index_BN.shape == (3, 7) and index_BN[:, 5:].tolist() == [[0, 1]] * 3
    for b in range(3):
        for k in range(5):
            values = [float(((tried[b, m] - teacher[b, k]).square() * weights).sum()) for m in range(16)]
            assert int(index_BN[b, k]) == values.index(min(values))
    # so the covering half of the loss is the coverage of the whole pool
    made = torch.stack([tried[b, index_BN[b]] for b in range(3)])
    expected = float(coverage(tried, teacher, weights) + fidelity(tried[:, :2], teacher, weights))
    assert float(large_pool(made, teacher, weights)) == pytest.approx(expected, rel=1e-5)


# -- names ---------------------------------------------------------------------------------------------------------


def test_a_plain_name_is_the_objective_itself() -> None:
    assert all(objective(name) is chosen for name, chosen in OBJECTIVES.items())


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("chamfer+0.5energy_distance", chamfer_energy),
        ("rs_imle@0.8", partial(rs_imle, epsilon=0.8)),
        ("rs_imle_adaptive@.3", partial(rs_imle_adaptive, scale=0.3)),
        ("sinkhorn@0.5", partial(sinkhorn, temperature=0.5)),
        ("2chamfer", lambda *sets: 2 * chamfer(*sets)),
        (
            ".5soft_chamfer@0.1+3imle+regression",
            lambda *sets: 0.5 * soft_chamfer(*sets, temperature=0.1) + 3 * coverage(*sets) + regression(*sets),
        ),
        ("chamfer+.3noise_regression", lambda *sets: chamfer(*sets) + 0.3 * paired(*sets)),
    ],
)
def test_a_name_may_be_a_weighted_sum_with_parameters(name: str, expected: Loss) -> None:
    student, teacher, weights = _randn(3, 4, 3, 2), _randn(3, 5, 3, 2, seed=1), torch.tensor([0.7, 2.0])
    chosen = objective(name)
    assert float(chosen.loss(student, teacher, weights)) == pytest.approx(
        float(expected(student, teacher, weights)), rel=1e-6
    )
    assert chosen.label == name


def test_a_parameter_that_is_set_changes_the_loss() -> None:
    student, teacher, weights = _randn(3, 4, 3, 2), _randn(3, 5, 3, 2, seed=1), torch.ones(2)
    for name in ("rs_imle@1.2", "rs_imle_adaptive@2", "sinkhorn@1", "soft_chamfer@1"):
        plain = OBJECTIVES[name.partition("@")[0]]
        assert plain.parameter
        difference = objective(name).loss(student, teacher, weights) - plain.loss(student, teacher, weights)
        assert abs(float(difference)) > 0.01


def test_a_sum_needs_the_latents_that_its_terms_need() -> None:
    assert objective("2regression").one_sample and not objective("regression+chamfer").one_sample
    assert objective("0.5noise_regression").noise and not objective("chamfer+imle").noise
    # a term that needs the teacher's noise gives it to the others, wherever it stands
    for name in ("chamfer+noise_regression", "0.3noise_regression+imle", "2anchored", ANCHORED):
        assert objective(name).noise and not objective(name).one_sample and objective(name).pool_factor == 1
    tried = objective("2set_imle")
    assert tried.pool_factor == 8 and tried.choose is best_set and objective("chamfer+imle").choose is None


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("chamfr", "unknown objective 'chamfr'; expected one of .*Did you mean 'chamfer'"),
        ("chamfer+0.5energy_distanse", "unknown objective 'energy_distanse'.*Did you mean 'energy_distance'"),
        ("chamfer+", "unknown objective ''"),
        ("-1chamfer", "unknown objective '-1chamfer'"),
        ("Chamfer", "unknown objective 'Chamfer'.*Did you mean 'chamfer'"),
        ("rs_imle@", "unknown objective 'rs_imle@'"),
        ("rs_imle@-1", "unknown objective 'rs_imle@-1'"),
        ("chamfer@0.1", "objective 'chamfer' has nothing to set by '@0.1'; leave that out"),
        ("sinkhorn+energy_distance@2", "objective 'energy_distance' has nothing to set by '@2'"),
        ("set_imle+noise_regression", "'set_imle\\+noise_regression': these terms need different latents"),
        ("noise_regression+large_pool", "these terms need different latents"),
        ("anchored+set_imle", "these terms need different latents"),
        ("chamfer+set_imle", "these terms need different latents"),
        ("large_pool+set_imle", "these terms need different latents"),
    ],
)
def test_a_name_that_means_nothing_is_refused(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        objective(name)


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


def test_a_lone_hypothesis_has_no_spacing_to_adapt_to() -> None:
    with pytest.raises(ValueError, match="got 1 chunks an observation, expected at least 2"):
        OBJECTIVES["rs_imle_adaptive"].loss(torch.zeros(2, 3, 4, 2), torch.zeros(2, 1, 4, 2), torch.ones(2))
