"""The energy teacher: its energy and loss by hand, its descent by closed forms."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from envs.specs import STATE
from teachers.energy import SIGMA_HIGH, SIGMA_LOW, EnergyTeacher, noise_level
from teachers.networks.shapes import PolicyShape


class _Constant(nn.Module):
    """A trunk that is the same everywhere, and keeps what it was given."""

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        self.x = x
        return torch.full_like(x, 0.5)


@pytest.fixture
def teacher(make_teacher) -> EnergyTeacher:
    return make_teacher(kind="energy", scale=0.2)


def test_noise_levels_fall_by_equal_factors() -> None:
    levels = noise_level(torch.tensor([0.0, 0.5, 1.0]))
    torch.testing.assert_close(levels, torch.tensor([SIGMA_HIGH, math.sqrt(SIGMA_HIGH * SIGMA_LOW), SIGMA_LOW]))


def test_the_energy_of_a_hand_made_case(teacher: EnergyTeacher) -> None:
    teacher.trunk = _Constant()
    chunks = torch.tensor([2.0, -1.0, 0.5])[:, None, None].expand(3, 8, 2)
    time, sigma = torch.tensor([math.log(SIGMA_HIGH / 2) / math.log(SIGMA_HIGH / SIGMA_LOW)]), 2.0
    energy = teacher.energy(chunks, time, torch.zeros(1, 16))
    # 16 entries of (x^2 / 2 - x / 2) / 4: 1 / 4, 1 / 4 and -0.125 / 4
    assert energy.tolist() == pytest.approx([4.0, 4.0, -0.5], rel=1e-4)
    torch.testing.assert_close(teacher.trunk.x, chunks / math.sqrt(1 + sigma**2))  # of about unit variance


def test_each_chunk_has_the_noise_level_of_its_condition(teacher: EnergyTeacher) -> None:
    teacher.trunk = _Constant()
    time = torch.tensor([0.3, 0.8])
    energy = teacher.energy(torch.ones(4, 8, 2) * 2, time, torch.zeros(2, 16))
    assert energy.tolist() == pytest.approx([16 / float(noise_level(time[i])) ** 2 for i in (0, 0, 1, 1)], rel=1e-4)


def test_the_loss_of_a_hand_made_case(teacher: EnergyTeacher) -> None:
    teacher.trunk = _Constant()  # so that x - s^2 grad E is 0.5 whatever x
    target = torch.tensor([0.7, -0.5, 0.5])[:, None, None].expand(3, 8, 2)
    sigmas = torch.tensor([0.05, 0.5, 10.0])
    time = (SIGMA_HIGH / sigmas).log() / math.log(SIGMA_HIGH / SIGMA_LOW)
    noise = torch.randn(3, 8, 2, generator=torch.Generator().manual_seed(0))
    loss = teacher({STATE: torch.full((3, 2, 2), 0.4)}, teacher.normaliser.unnormalise_action(target), noise, time)
    # errors 0.2, 1 and 0, over the weights' 0.3, 0.5 and 1
    assert float(loss.detach()) == pytest.approx(((0.2 / 0.3) ** 2 + (1 / 0.5) ** 2 + 0) / 3, rel=1e-4)


# -- sampling: the smoothed energies of known data ----------------------------------------------------------------------

MU, S = 0.3, 0.2


class _Gaussian(EnergyTeacher):
    """Data N(MU, S^2) in every entry; noise adds its variance."""

    def energy(self, x_NTA: Tensor, time_B: Tensor, condition_BC: Tensor) -> Tensor:
        return (x_NTA - MU).square().sum((1, 2)) / (2 * (S**2 + noise_level(time_B[0]) ** 2))


class _TwoModes(EnergyTeacher):
    """Data at -0.4 in one of four and at 0.4 else, in every entry alike, with a little spread."""

    def energy(self, x_NTA: Tensor, time_B: Tensor, condition_BC: Tensor) -> Tensor:
        variance = 0.05**2 + noise_level(time_B[0]) ** 2
        low, high = (-(x_NTA - mode).square().sum((1, 2)) / (2 * variance) for mode in (-0.4, 0.4))
        return -torch.logsumexp(torch.stack([low + math.log(0.25), high + math.log(0.75)]), 0)


def _solve(kind: type[EnergyTeacher], small_shape: PolicyShape, count: int, steps: int) -> tuple[Tensor, Tensor]:
    teacher = kind(small_shape)
    noise = torch.randn(1, count, *teacher.noise_shape(steps), generator=torch.Generator().manual_seed(0))
    return teacher.solve(torch.zeros(1, small_shape.width), noise, steps), noise


@pytest.mark.parametrize("steps", [1, 2, 30])
def test_the_descent_against_a_loop_by_hand(small_shape: PolicyShape, steps: int) -> None:
    chunks, noise = _solve(_Gaussian, small_shape, 3, steps)
    ratio = (SIGMA_LOW / SIGMA_HIGH) ** (1 / max(steps - 1, 1))
    sigmas = [*(SIGMA_HIGH * ratio**step for step in range(steps)), 0.0]
    x = SIGMA_HIGH * noise[:, :, 0].double()
    for step in range(steps):
        s, r = sigmas[step], sigmas[step + 1]
        # what x would be of x_0 = clean: share r^2 / s^2 of the old noise is kept, the rest drawn again
        clean = (S**2 * x + s**2 * MU) / (S**2 + s**2)
        x = clean + (r / s) ** 2 * (x - clean) + r * math.sqrt(1 - (r / s) ** 2) * noise[:, :, 1 + step]
    torch.testing.assert_close(chunks, x.float(), rtol=1e-3, atol=1e-4)


def test_samples_have_the_datas_mean_and_spread(small_shape: PolicyShape) -> None:
    chunks, _ = _solve(_Gaussian, small_shape, 500, 100)
    assert float(chunks.mean()) == pytest.approx(MU, abs=0.01) and float(chunks.std()) == pytest.approx(S, rel=0.08)


def test_samples_fall_to_the_modes_in_their_shares(small_shape: PolicyShape) -> None:
    chunks, _ = _solve(_TwoModes, small_shape, 2000, 50)
    assert float((chunks.abs() - 0.4).abs().max()) < 0.3  # six times the spread: none is left between
    assert torch.equal(chunks.sign().amax((2, 3)), chunks.sign().amin((2, 3)))  # no chunk mixes both modes
    assert float((chunks > 0).float().mean()) == pytest.approx(0.75, abs=0.05)


def test_every_noise_but_the_last_matters(teacher: EnergyTeacher, small_shape: PolicyShape) -> None:
    noise = torch.randn(1, 2, 4, 8, 2, generator=torch.Generator().manual_seed(0))
    chunks = teacher.solve(torch.zeros(1, 16), noise, 3)
    for row, matters in ((0, True), (1, True), (2, True), (3, False)):
        other = noise.clone()
        other[:, :, row] += 1
        assert torch.equal(teacher.solve(torch.zeros(1, 16), other, 3), chunks) != matters


@pytest.mark.parametrize("steps", [0, -2])
def test_no_steps_are_refused(teacher: EnergyTeacher, steps: int) -> None:
    with pytest.raises(ValueError, match=f"num_steps must be at least 1, got {steps}"):
        teacher.solve(torch.zeros(1, 16), torch.zeros(1, 1, 1, 8, 2), steps)
