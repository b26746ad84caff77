"""The diffusion teacher: its time and schedule by their formulas, its loss by hand, its sampling by closed forms."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from envs.specs import STATE
from teachers.diffusion import LEVELS, DiffusionTeacher, flow_time, sampling_schedule, training_schedule
from teachers.networks.shapes import PolicyShape


class _Echo(nn.Module):
    """A trunk that predicts what it is given, and keeps it."""

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        self.x, self.condition = x, condition
        return x


def _signal(level: int) -> float:
    """Share of the data's variance at a level: alpha-bar of Nichol and Dhariwal's eq. 17, one step late as diffusers has it."""
    return math.cos(((level + 1) / LEVELS + 0.008) / 1.008 * math.pi / 2) ** 2 / math.cos(0.008 / 1.008 * math.pi / 2) ** 2


@pytest.fixture
def teacher(make_teacher) -> DiffusionTeacher:
    return make_teacher(kind="diffusion", scale=0.2)


def test_the_schedule_is_the_squared_cosine_and_ends_in_noise() -> None:
    ours = torch.tensor([_signal(level) for level in range(LEVELS - 1)])  # the very last step is capped
    torch.testing.assert_close(training_schedule().alphas_cumprod[:-1], ours, rtol=1e-3, atol=1e-6)
    assert float(training_schedule().alphas_cumprod[-1]) < 1e-6


def test_time_runs_from_noise_to_data() -> None:
    torch.testing.assert_close(flow_time(torch.tensor([99, 74, 49, 0])), torch.tensor([0.0, 0.25, 0.5, 0.99]))
    for steps in (1, 4, 50):  # the first level of a sampling is pure noise, and t = 0 there
        times = flow_time(sampling_schedule(steps).timesteps)
        torch.testing.assert_close(times, torch.arange(steps) / steps)


def test_the_loss_of_a_hand_made_case(teacher: DiffusionTeacher) -> None:
    teacher.trunk = _Echo()
    ones, signal = torch.ones(2, 8, 2), (_signal(30), _signal(70))
    action = teacher.normaliser.unnormalise_action(torch.tensor([0.5, -1.0])[:, None, None] * ones)
    noise, level = torch.tensor([2.0, 0.3])[:, None, None] * ones, torch.tensor([30, 70])
    loss = teacher({STATE: torch.full((2, 2, 2), 0.4)}, action, noise, level)
    x = [math.sqrt(a) * clean + math.sqrt(1 - a) * drawn for a, clean, drawn in zip(signal, (0.5, -1), (2, 0.3), strict=True)]
    assert teacher.trunk.x[:, 0, 0].tolist() == pytest.approx(x, rel=1e-3)
    assert float(loss) == pytest.approx(((x[0] - 0.5) ** 2 + (x[1] + 1) ** 2) / 2, rel=2e-3)
    condition = teacher.encode({STATE: torch.full((2, 2, 2), 0.4)}) + teacher.time(torch.tensor([0.69, 0.29]))
    torch.testing.assert_close(teacher.trunk.condition, condition)


def test_draws_are_noise_and_levels_of_every_kind(teacher: DiffusionTeacher) -> None:
    noise, level = teacher.training_draws(4000, torch.Generator().manual_seed(0))
    assert noise.shape == (4000, 8, 2) and float(noise.std()) == pytest.approx(1, abs=0.02)
    assert level.dtype == torch.int64 and sorted(level.unique().tolist()) == list(range(LEVELS))


# -- sampling: data N(0.3, 0.2^2) in every entry, whose best denoiser is known ------------------------------------------

MU, S = 0.3, 0.2


class _Gaussian(DiffusionTeacher):
    def denoise(self, x_NTA: Tensor, level_B: Tensor, condition_BC: Tensor) -> Tensor:
        a = float(training_schedule().alphas_cumprod[level_B[0]])
        return MU + math.sqrt(a) * S**2 / (a * S**2 + 1 - a) * (x_NTA - math.sqrt(a) * MU)


def _solve(kind: type[DiffusionTeacher], small_shape: PolicyShape, solver: str, noise: Tensor, steps: int) -> Tensor:
    return kind(small_shape, solver).solve(torch.zeros(noise.shape[0], small_shape.width), noise, steps)


@pytest.mark.parametrize("steps", [1, 4, 25, 100])
@pytest.mark.parametrize("solver", ["ddim", "ddpm"])
def test_every_step_against_the_papers_formulas(small_shape: PolicyShape, solver: str, steps: int) -> None:
    noise = torch.randn(2, 3, 1 + steps, 8, 2, generator=torch.Generator().manual_seed(0))
    signals = [*(float(training_schedule().alphas_cumprod[99 - i * (100 // steps)]) for i in range(steps)), 1.0]
    x = noise[:, :, 0].double()
    for step, (a, following) in enumerate(zip(signals, signals[1:], strict=False)):
        clean = MU + math.sqrt(a) * S**2 / (a * S**2 + 1 - a) * (x - math.sqrt(a) * MU)
        if solver == "ddim":  # Song et al. 2021, eq. 12 without its noise
            x = math.sqrt(following) * clean + math.sqrt(1 - following) * (x - math.sqrt(a) * clean) / math.sqrt(1 - a)
        else:  # Ho et al. 2020, eq. 6 and 7
            alpha = a / following
            x = (math.sqrt(following) * (1 - alpha) * clean + math.sqrt(alpha) * (1 - following) * x) / (1 - a) + math.sqrt(
                (1 - following) / (1 - a) * (1 - alpha)
            ) * noise[:, :, 1 + step]
    given = noise[:, :, 0] if solver == "ddim" else noise
    torch.testing.assert_close(_solve(_Gaussian, small_shape, solver, given, steps), x.float(), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(("solver", "short"), [("ddim", 0.05), ("ddpm", 0.1)])  # DDPM's steps add a little too little
def test_samples_have_the_datas_mean_and_spread(small_shape: PolicyShape, solver: str, short: float) -> None:
    shape = DiffusionTeacher(small_shape, solver).noise_shape(100)
    assert shape == ((8, 2) if solver == "ddim" else (101, 8, 2))
    noise = torch.randn(1, 500, *shape, generator=torch.Generator().manual_seed(0))
    chunks = _solve(_Gaussian, small_shape, solver, noise, 100)
    assert float(chunks.mean()) == pytest.approx(MU, abs=0.01) and float(chunks.std()) == pytest.approx(S, rel=short)


def test_ddim_makes_nothing_up_after_its_first_noise_and_ddpm_does(teacher: DiffusionTeacher) -> None:
    condition, noise = torch.zeros(1, 16), torch.randn(1, 2, 5, 8, 2, generator=torch.Generator().manual_seed(0))
    first = teacher.solve(condition, noise[:, :, 0], 4)
    torch.manual_seed(3)
    assert torch.equal(teacher.solve(condition, noise[:, :, 0], 4), first)
    teacher.solver = "ddpm"
    chunks = teacher.solve(condition, noise, 4)
    assert torch.equal(teacher.solve(condition, noise, 4), chunks)
    for row, matters in ((1, True), (3, True), (4, False)):  # the last noise is multiplied by zero
        other = noise.clone()
        other[:, :, row] += 1
        assert torch.equal(teacher.solve(condition, other, 4), chunks) != matters


@pytest.mark.parametrize("steps", [0, -1, 3, 60, 200])
def test_steps_that_do_not_divide_the_levels_are_refused(teacher: DiffusionTeacher, steps: int) -> None:
    for check in (teacher.evaluations, sampling_schedule):
        with pytest.raises(ValueError, match=f"num_steps: got {steps}, .*one of .1, 2, 4, 5, 10, 20, 25, 50, 100."):
            check(steps)
