"""How often each code is taken: the gradient, the energy and the border against sums by hand; what calibration finds."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from distill.hypotheses.distances import embed, share_loss
from distill.objectives import code_shares as shares
from distill.objectives.code_shares import calibrate, energy_of_shares, off_support_distance
from envs.specs import STATE
from students.one_step import CODE_GAIN, SHARE_GAIN, OneStepStudent
from students.selection import SAME_PLAN
from teachers.networks.shapes import PolicyShape

ONES_A = torch.ones(2)


def _normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def _line(*values: float) -> Tensor:
    """Points `[N, 1]` on a line, as embedded chunks."""
    return torch.tensor(values, dtype=torch.float64)[:, None]


def _levels(*values: float) -> Tensor:
    """Chunks `[N, 8, 2]` that are level: with even weights their distances are those of the values."""
    return torch.tensor(values)[:, None, None].expand(-1, 8, 2)


def _energy(share_BJ: Tensor, codes_BJD: Tensor, teacher_BKD: Tensor) -> Tensor:
    """E(p) of embedded chunks."""
    return energy_of_shares(share_BJ, torch.cdist(codes_BJD, teacher_BKD).mean(-1), torch.cdist(codes_BJD, codes_BJD))


# -- the energy ----------------------------------------------------------------------------------------------------


def test_the_energy_of_shares_on_a_line() -> None:
    # codes at 0 and 2, teacher four times at 0 and once at 2: a = (2/5, 8/5), D = 2
    codes, teacher = _line(0, 2).expand(3, 2, 1), _line(0, 0, 0, 0, 2).expand(3, 5, 1)
    share_BJ = torch.tensor([[0.5, 0.5], [0.8, 0.2], [1.0, 0.0]], dtype=torch.float64)
    # 2 (1/2 2/5 + 1/2 8/5) - 2 1/4 2;  2 (4/5 2/5 + 1/5 8/5) - 2 4/25 2;  2 2/5
    torch.testing.assert_close(_energy(share_BJ, codes, teacher), torch.tensor([1.0, 0.64, 0.8]).double())


@pytest.mark.parametrize("codes", [3, 40])  # from 26 points on torch.cdist goes another way
def test_the_energy_of_shares_is_its_double_sum(codes: int) -> None:
    codes_BJD, teacher_BKD = _normal(2, codes, 6), _normal(2, 5, 6, seed=1)
    share_BJ = _normal(2, codes, seed=2).softmax(-1)
    for b, got in enumerate(_energy(share_BJ, codes_BJD, teacher_BKD).tolist()):
        p, x, t = share_BJ[b], codes_BJD[b], teacher_BKD[b]
        near = sum(float(p[j] * (x[j] - t[k]).norm()) / 5 for j in range(codes) for k in range(5))
        among = sum(float(p[i] * p[j] * (x[i] - x[j]).norm()) for i in range(codes) for j in range(codes))
        assert got == pytest.approx(2 * near - among, abs=1e-6)


def test_the_energy_is_convex_in_the_shares() -> None:
    codes_BJD, teacher_BKD = _normal(1, 7, 6), _normal(1, 5, 6, seed=1)
    for seed in range(5):
        first, last = (_normal(7, seed=10 * seed + end).softmax(-1) for end in (2, 3))
        along_NJ = torch.stack([first.lerp(last, t / 20) for t in range(21)])
        energy_N = _energy(along_NJ, codes_BJD.expand(21, -1, -1), teacher_BKD.expand(21, -1, -1))
        assert float((energy_N[2:] - 2 * energy_N[1:-1] + energy_N[:-2]).min()) > 0


def test_the_energy_is_least_at_the_teachers_own_shares() -> None:
    # three ways in the plane, taken by 2, 3 and 5 of ten hypotheses; all shares in twentieths
    modes_JD = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.3, 2.0]], dtype=torch.float64)
    teacher_KD = modes_JD.repeat_interleave(torch.tensor([2, 3, 5]), 0)
    grid = [(i / 20, j / 20, (20 - i - j) / 20) for i in range(21) for j in range(21 - i)]
    share_NJ = torch.tensor(grid, dtype=torch.float64)
    energy_N = _energy(share_NJ, modes_JD.expand(len(grid), -1, -1), teacher_KD.expand(len(grid), -1, -1))
    assert grid[int(energy_N.argmin())] == (0.2, 0.3, 0.5)


# -- the loss of a training step --------------------------------------------------------------------------------------


@pytest.mark.parametrize("samples", [2, 3, 4])
def test_over_all_draws_of_codes_the_gradient_is_that_of_the_energy(samples: int) -> None:
    """Every tuple of three codes, weighted by its probability, against autograd through E(p) itself.

    A baseline that does not depend on a sample's own code leaves the gradient as it is. The samples' mean with the sample
    in it makes it (M - 1) / M times as long, if no other term of it depends on the code: a factor for all codes and
    observations alike is let pass, another direction is not.
    """
    logits_BJ = torch.tensor([[0.3, -0.5, 0.9], [-1.0, 0.2, 0.1]], dtype=torch.float64, requires_grad=True)
    codes_BJTA, teacher_BKTA, weights_A = _normal(2, 3, 4, 2), _normal(2, 6, 4, 2, seed=1), torch.tensor([1.0, 3.0]).double()
    log_share_BJ, mean_BJ = logits_BJ.log_softmax(-1), torch.zeros(2, 3, dtype=torch.float64)
    for draw in itertools.product(range(3), repeat=samples):
        code = list(draw)
        loss = share_loss(log_share_BJ[:, code], codes_BJTA[:, code], teacher_BKTA, weights_A)
        (gradient_BJ,) = torch.autograd.grad(loss, logits_BJ, retain_graph=True)
        # an observation's own gradient is seen as often as its own codes come up
        mean_BJ += log_share_BJ.detach()[:, code].sum(-1, keepdim=True).exp() * gradient_BJ
    energy = _energy(log_share_BJ.exp(), embed(codes_BJTA, weights_A), embed(teacher_BKTA, weights_A)).mean()
    (exact_BJ,) = torch.autograd.grad(energy, logits_BJ)
    factor = float((mean_BJ * exact_BJ).sum() / exact_BJ.square().sum())
    torch.testing.assert_close(mean_BJ, factor * exact_BJ, rtol=1e-4, atol=1e-5)
    assert (samples - 1) / samples - 1e-4 <= factor <= 1 + 1e-4


def test_stepwise_the_shares_become_the_teachers() -> None:
    """Two codes on the teacher's two ways (1/5 and 4/5), M = 4 as a student is trained: the very shares, from even ones."""
    modes_JTA, generator = _levels(-1.0, 1.0), torch.Generator().manual_seed(0)
    teacher_BKTA = _levels(-1.0, -1.0, *[1.0] * 8).expand(256, -1, -1, -1)
    logits_J = torch.zeros(2, requires_grad=True)
    optimizer, late = torch.optim.Adam([logits_J], lr=0.02), []
    for step in range(400):
        log_share_J = logits_J.log_softmax(-1)
        code_BM = torch.multinomial(log_share_J.detach().exp().expand(256, -1), 4, True, generator=generator)
        optimizer.zero_grad()
        share_loss(log_share_J[code_BM], modes_JTA[code_BM], teacher_BKTA, ONES_A).backward()
        optimizer.step()
        if step >= 200:
            late.append(float(logits_J.detach().softmax(-1)[1]))
    assert sum(late) / len(late) == pytest.approx(0.8, abs=0.01)


def test_the_chunks_get_no_gradient_from_it() -> None:
    log_share_BM, student_BMTA, teacher_BKTA = (
        value.requires_grad_() for value in (_normal(2, 3), _normal(2, 3, 4, 2), _normal(2, 5, 4, 2, seed=1))
    )
    share_loss(log_share_BM, student_BMTA, teacher_BKTA, ONES_A.double()).backward()
    assert student_BMTA.grad is None and teacher_BKTA.grad is None
    assert log_share_BM.grad is not None and bool(log_share_BM.grad.all()) and bool(log_share_BM.grad.isfinite().all())


def test_samples_that_are_all_alike_say_nothing_of_their_shares() -> None:
    log_share_BM = _normal(2, 4).requires_grad_()
    alike_BMTA = _normal(2, 1, 4, 2).expand(-1, 4, -1, -1)
    share_loss(log_share_BM, alike_BMTA, _normal(2, 5, 4, 2, seed=1), ONES_A.double()).backward()
    assert log_share_BM.grad is not None and float(log_share_BM.grad.abs().max()) < 1e-12


def test_a_single_sample_has_no_share() -> None:
    with pytest.raises(ValueError, match="got 1 sample an observation, expected at least 2"):
        share_loss(torch.zeros(2, 1), torch.zeros(2, 1, 4, 2), torch.zeros(2, 5, 4, 2), ONES_A)


# -- the border -------------------------------------------------------------------------------------------------------


def test_how_far_outside_on_a_line() -> None:
    # the teacher's points are .1, .1 and .2 from their nearest others: the border is .2 from any of them
    teacher = torch.stack([_line(0.0, 0.1, 0.3), _line(5.0, 5.5, 6.0)])  # and .5 in the second observation
    codes = torch.stack([_line(0.0, 0.15, 0.45, 0.7, -1.0), _line(5.2, 6.5, 6.6, 4.0, 4.6)])
    expected = torch.tensor([[0.0, 0.0, 0.0, 0.2, 0.8], [0.0, 0.0, 0.1, 0.5, 0.0]]).double()
    torch.testing.assert_close(off_support_distance(codes, teacher), expected, rtol=0, atol=1e-6)


def test_plans_that_differ_by_less_than_alike_are_within() -> None:
    # a teacher that always plans the same: without the floor every other plan would be outside
    teacher, codes = _line(1.0, 1.0, 1.0)[None], _line(1.0, 1.0 + 0.9 * SAME_PLAN, 1.0 - 0.9 * SAME_PLAN, 1.05)[None]
    torch.testing.assert_close(off_support_distance(codes, teacher), torch.tensor([[0.0, 0.0, 0.0, 0.05 - SAME_PLAN]]).double())


# -- calibration ------------------------------------------------------------------------------------------------------


class Fixed(OneStepStudent):
    """Its chunks are what is lifted: code j makes the j-th of the chunks it was given, whatever is observed."""

    def generate_from_lifted(self, condition_BC: Tensor, lifted_BMD: Tensor) -> Tensor:
        return lifted_BMD.unflatten(-1, (self.shape.horizon, self.shape.action_size))


@pytest.fixture
def fixed(small_shape: PolicyShape, make_teacher):
    """A student whose codes lie at these levels, its encoder a teacher's."""

    def make(*levels: float, shares: bool = True) -> Fixed:
        torch.manual_seed(0)
        student = Fixed(small_shape, 1, codes=len(levels), shares=shares)
        student.encoder.load_state_dict(make_teacher().encoder.state_dict())
        student.normaliser.load_state_dict(make_teacher().normaliser.state_dict())
        with torch.no_grad():
            student.code_book.copy_(_levels(*levels).flatten(1) / CODE_GAIN)
        return student.eval()

    return make


def _states(rows: int, seed: int = 0) -> Tensor:
    """State histories `[N, 2, 2]` that stand still, within the range of the fixture's statistics."""
    low, high = torch.tensor([0.25, -0.3]), torch.tensor([0.75, 0.3])
    random_N1S = torch.rand(rows, 1, 2, generator=torch.Generator().manual_seed(seed))
    return (low + (high - low) * random_N1S).expand(-1, 2, -1)


def _batches(state_NOS: Tensor, chunks_NKTA: Tensor, size: int = 16) -> Iterator[dict[str, Tensor]]:
    for rows in torch.arange(len(state_NOS)).split(size):
        yield {STATE: state_NOS[rows], "hypotheses": chunks_NKTA[rows]}


def _ten(rows: int, up: int) -> Tensor:
    """Ten hypotheses `[N, 10, 8, 2]` an observation, `up` of them at 1 and the others at -1."""
    return _levels(*[1.0] * up, *[-1.0] * (10 - up)).expand(rows, -1, -1, -1)


def _shares(student: OneStepStudent, state_NOS: Tensor) -> Tensor:
    with torch.no_grad():
        log_share_NJ = student.log_shares(student.encode({STATE: state_NOS}))
    assert log_share_NJ is not None
    return log_share_NJ.exp()


@pytest.fixture
def unfaithful(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing holds to the shares that were learned in training: the least energy alone."""
    monkeypatch.setattr(shares, "DIVERGENCE_WEIGHT", 0.0)


def _near(got: Tensor, expected: list[float], each: float = 0.02, mean: float = 0.005) -> None:
    """Every observation's shares, and more sharply their mean."""
    wanted = torch.tensor(expected)
    torch.testing.assert_close(got, wanted.expand_as(got), rtol=0, atol=each)
    torch.testing.assert_close(got.mean(0), wanted, rtol=0, atol=mean)


@pytest.mark.usefixtures("unfaithful")
def test_calibration_finds_the_shares_of_two_ways(fixed) -> None:
    student, state = fixed(-1.0, 1.0), _states(70)
    figures = calibrate(student, _batches(state, _ten(70, 8)), ONES_A, seed=0)
    # of every observation, and of others that it has not seen
    for asked in (state, _states(50, seed=1)):
        _near(_shares(student, asked), [0.2, 0.8], each=0.04)
    # even shares: 2 (1/2 2/5 + 1/2 8/5) - 2 1/4 2, the teacher's: 2 (4/5 2/5 + 1/5 8/5) - 2 4/25 2
    assert figures["energy_before"] == pytest.approx(1.0, abs=1e-3)
    assert figures["energy_after"] == pytest.approx(0.64, abs=1e-3)
    assert figures["off_support_before"] == pytest.approx(0.0, abs=1e-6) == figures["off_support_after"]


@pytest.mark.parametrize("faith", [0.04, 1.0])
def test_faith_holds_the_shares_to_those_learned_in_training(fixed, faith: float, monkeypatch) -> None:
    monkeypatch.setattr(shares, "DIVERGENCE_WEIGHT", faith)
    student, state = fixed(-1.0, 1.0), _states(32)
    figures = calibrate(student, _batches(state, _ten(32, 8)), ONES_A, seed=0)
    # with even shares before, E + F KL = 0.64 + 4 (p - 4/5)^2 + F (log 2 + p log p + (1 - p) log(1 - p)) is least where its
    # slope, which rises, is zero; by halving
    low, high = 0.5, 0.8
    for _ in range(50):
        p = (low + high) / 2
        low, high = (p, high) if 8 * (p - 0.8) + faith * math.log(p / (1 - p)) < 0 else (low, p)
    _near(_shares(student, state), [1 - p, p])
    divergence = math.log(2) + p * math.log(p) + (1 - p) * math.log(1 - p)
    assert figures["divergence_before"] == pytest.approx(0.0, abs=1e-6)
    assert figures["divergence_after"] == pytest.approx(divergence, abs=0.01)
    assert figures["energy_after"] == pytest.approx(0.64 + 4 * (p - 0.8) ** 2, abs=0.005)


@pytest.mark.usefixtures("unfaithful")
def test_codes_of_one_way_share_its_share(fixed) -> None:
    student, state = fixed(-1.0, 1.0, 1.0, 1.0), _states(32)
    calibrate(student, _batches(state, _ten(32, 8)), ONES_A, seed=0)
    share_NJ = _shares(student, state)
    _near(torch.stack([share_NJ[:, 0], share_NJ[:, 1:].sum(-1)], -1), [0.2, 0.8])
    # alike from the start, and nothing tells them apart
    torch.testing.assert_close(share_NJ[:, 1:], share_NJ[:, 1:2].expand(-1, 3), rtol=0, atol=1e-3)


@pytest.mark.usefixtures("unfaithful")
def test_a_code_between_two_ways_is_hardly_taken(fixed) -> None:
    student, state = fixed(-1.0, 0.0, 1.0), _states(32)
    figures = calibrate(student, _batches(state, _ten(32, 8)), ONES_A, seed=0)
    share_NJ = _shares(student, state)
    assert float(share_NJ[:, 1].max()) < 0.01
    _near(share_NJ, [0.2, 0.0, 0.8], mean=0.01)
    # a third of the plans is 1 from either way, the border is SAME_PLAN
    assert figures["off_support_before"] == pytest.approx((1 - SAME_PLAN) / 3, abs=1e-3)
    assert figures["off_support_after"] == pytest.approx(float(share_NJ[:, 1].mean()) * (1 - SAME_PLAN), abs=1e-4)


@pytest.mark.usefixtures("unfaithful")
def test_shares_that_depend_on_the_observation_are_found(fixed) -> None:
    student, state = fixed(-1.0, 1.0), _states(120)
    offset_N = (state[:, -1, 0] - 0.5) / 0.25  # over the statistics' range: -1 to 1
    state, left_N = state[offset_N.abs() > 0.2], offset_N[offset_N.abs() > 0.2] < 0
    chunks = torch.where(left_N[:, None, None, None], _ten(len(state), 10), _ten(len(state), 4))
    figures = calibrate(student, _batches(state, chunks), ONES_A, seed=0)
    up_N = _shares(student, state)[:, 1]
    assert float(up_N[left_N].mean()) > 0.95 and float(up_N[~left_N].mean()) == pytest.approx(0.4, abs=0.05)
    # even shares cost 1; 2 (2/5 6/5 + 3/5 4/5) - 2 6/25 2 = 24/25 is least on the right, 0 on the left
    assert figures["energy_before"] == pytest.approx(1.0, abs=1e-3)
    assert figures["energy_after"] == pytest.approx(0.96 * float((~left_N).float().mean()), abs=0.02)


def test_the_figures_are_the_students_own_and_weigh_every_observation_the_same(fixed) -> None:
    # 70 observations are 64 and 6: the last six alone have one way only
    student, state, chunks = fixed(-1.0, 0.0, 1.0), _states(70), torch.cat([_ten(64, 8), _ten(6, 10)])
    figures = calibrate(student, _batches(state, chunks), ONES_A, seed=0)
    # even shares: a is (8/5, 1, 2/5) in the first, (2, 1, 0) in the last, its mean 1 in both; D sums to 8; the stray is
    # 1 from either way, and where there is one way only the other code is 2 from it
    assert figures["energy_before"] == pytest.approx(2 - 8 / 9, abs=1e-3)
    assert figures["off_support_before"] == pytest.approx((1 - SAME_PLAN) / 3 + 6 / 70 * (2 - SAME_PLAN) / 3, abs=1e-3)
    # what was learned is what the student does from now on
    share_NJ, codes = _shares(student, state), embed(_levels(-1.0, 0.0, 1.0), ONES_A).expand(70, -1, -1)
    teacher = embed(chunks, ONES_A)
    energy, beyond = _energy(share_NJ, codes, teacher), (share_NJ * off_support_distance(codes, teacher)).sum(-1)
    assert figures["energy_after"] == pytest.approx(float(energy.mean()), abs=1e-4)
    assert figures["off_support_after"] == pytest.approx(float(beyond.mean()), abs=1e-4)
    divergence = (share_NJ * (3 * share_NJ).log()).sum(-1).mean()
    assert figures["divergence_after"] == pytest.approx(float(divergence), abs=1e-4)


@pytest.mark.usefixtures("unfaithful")
def test_only_the_codes_most_taken_are_tried_and_the_rest_counts_as_far_outside(fixed, monkeypatch) -> None:
    monkeypatch.setattr(shares, "MAX_CODES", 2)
    student, state = fixed(-1.0, 1.0, 0.0), _states(32)
    with torch.no_grad():
        student.share_head.bias.copy_(torch.tensor([0.4, 0.4, 0.2]).log() / SHARE_GAIN)  # the stray is the least taken
    figures = calibrate(student, _batches(state, _ten(32, 8)), ONES_A, seed=0)
    # the two that are tried have 4/10 each: E is that of even ones, and the rest lies a half range outside
    assert figures["energy_before"] == pytest.approx(1.0, abs=1e-3)
    assert figures["off_support_before"] == pytest.approx(0.2, abs=1e-3)
    share_NJ = _shares(student, state)
    assert float(share_NJ[:, 2].max()) < 0.01
    _near(share_NJ, [0.2, 0.8, 0.0], each=0.04)


def test_calibration_changes_the_shares_and_nothing_else(fixed) -> None:
    student = fixed(-1.0, 0.0, 1.0)
    before = {name: value.clone() for name, value in student.state_dict().items()}
    trained = [value.requires_grad for value in student.parameters()]
    calibrate(student, _batches(_states(20), _ten(20, 8)), ONES_A, seed=0)
    changed = {name for name, value in student.state_dict().items() if not torch.equal(value, before[name])}
    assert changed and all(name.startswith("share_correction.") for name in changed)
    assert [value.requires_grad for value in student.parameters()] == trained


def test_calibration_is_a_function_of_its_seed(fixed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shares, "STEPS", 50)
    made = []
    for number, seed in enumerate((3, 3, 4)):
        student = fixed(-1.0, 0.0, 1.0)
        torch.manual_seed(number)
        calibrate(student, _batches(_states(80), _normal(80, 6, 8, 2, dtype=torch.float32)), ONES_A, seed)
        made.append(_shares(student, _states(80)))
    assert torch.equal(made[0], made[1]) and not torch.equal(made[0], made[2])


@pytest.mark.usefixtures("unfaithful")
def test_the_far_end_of_a_chunk_counts_as_its_weight_says(fixed) -> None:
    # the hypotheses are even on the first four actions, where the weight lies, and 2 to 8 on the others
    student, state = fixed(-1.0, 1.0), _states(32)
    with torch.no_grad():
        student.share_head.bias.copy_(torch.tensor([0.1, -0.1]))  # not even to begin with
    chunks = torch.cat([_ten(32, 5)[:, :, :4], _ten(32, 8)[:, :, 4:]], dim=2)
    weights_TA = torch.ones(8, 2)
    weights_TA[4:] = 0.0
    calibrate(student, _batches(state, chunks), weights_TA, seed=0)
    _near(_shares(student, state), [0.5, 0.5])


def test_a_student_without_shares_is_not_calibrated(fixed) -> None:
    with pytest.raises(ValueError, match="calibrate: this student learns no shares of its codes"):
        calibrate(fixed(-1.0, 1.0, shares=False), _batches(_states(4), _ten(4, 8)), ONES_A, seed=0)
