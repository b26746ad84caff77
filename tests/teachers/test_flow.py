"""The flow teacher: its loss by hand, its sampling by closed forms, one encoding for all chunks, its folder."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from envs.specs import STATE
from teachers.contract import check_teacher
from teachers.flow import FlowTeacher
from teachers.networks.shapes import PolicyShape


class _Constant(nn.Module):
    """A trunk that predicts one and the same end point."""

    def __init__(self, end: float) -> None:
        super().__init__()
        self.end = end

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        return torch.full_like(x, self.end)


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# -- loss ----------------------------------------------------------------------------------------------------------


def _loss(teacher: FlowTeacher, noise: list[float], target: list[float], time: list[float]) -> float:
    """The loss where all entries of a row are the same; `target` in normalised units."""
    batch, shape = len(noise), teacher.shape
    ones = torch.ones(batch, shape.horizon, shape.action_size)
    action = teacher.normaliser.unnormalise_action(torch.tensor(target)[:, None, None] * ones)
    observation = {STATE: torch.full((batch, 2, 2), 0.4)}
    return float(teacher(observation, action, torch.tensor(noise)[:, None, None] * ones, torch.tensor(time)))


def test_the_loss_of_a_hand_made_case(make_teacher) -> None:
    teacher = make_teacher()
    teacher.trunk = _Constant(0.0)  # so the predicted velocity is -x_t / (1 - t)
    # row 1: t = 0.5, x_0 = 1, x_1 = 3: x_t = 2, velocity 2, predicted -4, error 6
    # row 2: t = 0.2, x_0 = -1, x_1 = 0.5: x_t = -0.7, velocity 1.5, predicted 0.875, error 0.625
    # up to t = 0.7 the weight is 1: (36 + 0.390625) / 2
    assert _loss(teacher, [1.0, -1.0], [3.0, 0.5], [0.5, 0.2]) == pytest.approx(18.1953125, rel=1e-5)


def test_the_loss_counts_the_end_of_the_time_less(make_teacher) -> None:
    teacher = make_teacher()
    teacher.trunk = _Constant(0.0)
    # t = 0.9, x_0 = 0, x_1 = 2: x_t = 1.8, velocity 2, predicted -18, error 20; weight 0.1 / 0.3: (20 / 3)^2
    assert _loss(teacher, [0.0], [2.0], [0.9]) == pytest.approx(400 / 9, rel=1e-4)


def test_the_loss_is_zero_for_the_right_end_point_and_only_then(make_teacher) -> None:
    teacher = make_teacher()
    teacher.trunk = _Constant(0.25)
    assert _loss(teacher, [1.0, -2.0], [0.25, 0.25], [0.3, 0.6]) == pytest.approx(0.0, abs=1e-9)
    assert _loss(teacher, [1.0, -2.0], [0.25, 0.75], [0.3, 0.6]) > 0.1


def test_the_loss_depends_on_nothing_but_its_arguments_and_trains_every_weight(make_teacher, observation) -> None:
    teacher = make_teacher().train()
    action, noise = torch.rand(3, 8, 2), torch.randn(3, 8, 2, generator=_generator(1))
    time = torch.tensor([0.1, 0.5, 0.95])
    losses = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        losses.append(teacher(observation, action, noise, time))
    assert torch.equal(losses[0], losses[1])
    losses[0].backward()
    assert [name for name, value in teacher.named_parameters() if value.grad is None or not value.grad.any()] == []


# -- sampling ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("solver", ["euler", "heun", "midpoint"])
def test_it_keeps_the_contract_of_a_teacher(make_teacher, observation, solver: str) -> None:
    check_teacher(make_teacher(solver=solver), observation, action_size=2)


@pytest.mark.parametrize("steps", [1, 2, 7, 50])
def test_one_known_end_point_is_reached_from_any_noise_in_any_steps(make_teacher, observation, steps: int) -> None:
    # with v = (c - x) / (1 - t) every Euler step leaves x on the straight line to c, and the last one ends there
    teacher = make_teacher()
    teacher.trunk = _Constant(0.5)
    chunks = teacher.sample(observation, 4, steps, _generator(0))
    # normalised 0.5 is 0.5 + 0.3 / 2 = 0.65 and -0.1 + 0.3 / 2 = 0.05
    torch.testing.assert_close(chunks, torch.tensor([0.65, 0.05]).expand(3, 4, 8, 2), rtol=0, atol=1e-5)


def test_an_oracle_for_gaussian_data_samples_its_mean_and_spread(make_teacher, observation) -> None:
    # the velocity of test_solvers.py's Gaussian, in normalised units: N(0.5, 0.1^2)
    class Oracle(FlowTeacher):
        def velocity(self, x_NTA: Tensor, time_N: Tensor, condition_NC: Tensor) -> Tensor:
            t, mu, s = time_N[:, None, None], 0.5, 0.1
            return mu + (t * s**2 - (1 - t)) / ((1 - t) ** 2 + t**2 * s**2) * (x_NTA - t * mu)

    teacher = Oracle(make_teacher().shape, "midpoint")
    teacher.normaliser.load_state_dict(make_teacher().normaliser.state_dict())
    chunks = teacher.sample(observation, 200, 50, _generator(3))  # 4800 draws per action dimension
    torch.testing.assert_close(chunks.mean((0, 1, 2)), torch.tensor([0.65, 0.05]), rtol=0, atol=0.002)
    torch.testing.assert_close(chunks.std((0, 1, 2)), torch.tensor([0.03, 0.03]), rtol=0.05, atol=0)


@pytest.mark.parametrize("solver", ["euler", "heun", "midpoint"])
def test_an_observation_is_encoded_once_and_the_trunk_runs_as_often_as_counted(
    make_teacher, observation, solver: str
) -> None:
    teacher, encoded, evaluated = make_teacher(solver=solver), [], []
    teacher.encoder.register_forward_hook(lambda _, arguments, __: encoded.append(len(arguments[0])))
    teacher.trunk.register_forward_hook(lambda _, arguments, __: evaluated.append(len(arguments[0])))
    chunks = teacher.sample(observation, 5, 3, _generator(0))
    assert chunks.shape == (3, 5, 8, 2)
    assert encoded == [3]  # one call with the three observations, not 15 rows, not once a step
    assert evaluated == [15] * teacher.evaluations(3)


def test_chunks_belong_to_their_own_observation_and_noise(make_teacher, observation) -> None:
    teacher = make_teacher()
    noise = torch.randn(3, 4, 8, 2, generator=_generator(0))
    together = teacher.sample_from_noise(observation, noise, 3)
    for b in range(3):
        for k in range(4):
            alone = teacher.sample_from_noise({STATE: observation[STATE][b : b + 1]}, noise[b : b + 1, k : k + 1], 3)
            torch.testing.assert_close(together[b, k], alone[0, 0], rtol=1e-5, atol=1e-6)
    swapped = teacher.sample_from_noise({STATE: observation[STATE].flip(0)}, noise, 3)
    assert float((swapped - together)[0].abs().max()) > 1e-3  # the observation does matter


def test_all_randomness_comes_from_the_generator(make_teacher, observation) -> None:
    teacher = make_teacher()
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = teacher.sample(observation, 4, 2, _generator(7))
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert torch.equal(teacher.sample(observation, 4, 2, _generator(7)), first)
    assert not torch.equal(teacher.sample(observation, 4, 2, _generator(8)), first)
    assert len(first.flatten(2).unique(dim=1)[0]) == 4


def test_sampling_carries_no_gradient(make_teacher, observation) -> None:
    assert not make_teacher().sample(observation, 2, 2, _generator(0)).requires_grad


@pytest.mark.parametrize("count", [0, -1])
def test_no_hypotheses_are_refused(make_teacher, observation, count: int) -> None:
    with pytest.raises(ValueError, match=f"num_hypotheses must be at least 1, got {count}"):
        make_teacher().sample(observation, count, 2, _generator(0))


def test_an_unknown_solver_is_refused(small_shape: PolicyShape) -> None:
    with pytest.raises(ValueError, match="unknown solver 'leapfrog'"):
        FlowTeacher(small_shape, "leapfrog")


# -- on disk -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("solver", ["euler", "heun"])
def test_a_saved_teacher_comes_back_to_the_last_bit(make_teacher, observation, tmp_path, solver: str) -> None:
    teacher = make_teacher(solver=solver)
    teacher.save_pretrained(tmp_path / "teacher")
    again = FlowTeacher.from_pretrained(tmp_path / "teacher")
    assert again.shape == teacher.shape and again.solver == solver and not again.training
    assert sorted(path.name for path in (tmp_path / "teacher").iterdir()) == ["config.json", "model.safetensors"]
    samples: list[Any] = [each.sample(observation, 3, 4, _generator(0)) for each in (teacher, again)]
    assert torch.equal(*samples)


def test_a_teacher_without_statistics_is_not_saved(small_shape: PolicyShape, tmp_path) -> None:
    with pytest.raises(ValueError, match="statistics.*not finite"):
        FlowTeacher(small_shape).save_pretrained(tmp_path / "teacher")
    assert not (tmp_path / "teacher").exists()
