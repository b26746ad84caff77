"""What holds for every kind of teacher that is trained here: its samples, its seeds, its folder, and that it learns."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from envs.specs import STATE
from teachers import TEACHERS, load_teacher, make_teacher
from teachers.contract import Observation, check_teacher
from teachers.networks.shapes import PolicyShape

SOLVERS = [(kind, solver) for kind, teacher in TEACHERS.items() for solver in teacher.SOLVERS]


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def make(make_teacher):
    """A teacher of a kind and a solver, with weights so small that its samples stay finite."""
    return lambda kind, solver="": make_teacher(1, solver, kind, scale=0.2)


# -- sampling ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "solver"), SOLVERS)
def test_every_kind_keeps_the_contract(make, observation: Observation, kind: str, solver: str) -> None:
    teacher = make(kind, solver)
    assert teacher.solver == solver
    check_teacher(teacher, observation, action_size=2, num_steps=4)


@pytest.mark.parametrize(("kind", "solver"), SOLVERS)
def test_the_encoder_runs_once_and_the_trunk_as_often_as_counted(
    make, observation: Observation, kind: str, solver: str
) -> None:
    teacher, encoded, evaluated = make(kind, solver), [], []
    teacher.encoder.register_forward_hook(lambda _, arguments, __: encoded.append(len(arguments[0])))
    teacher.trunk.register_forward_hook(lambda _, arguments, __: evaluated.append(len(arguments[0])))
    assert teacher.sample(observation, 5, 4, _generator(0)).shape == (3, 5, 8, 2)
    assert encoded == [3] and evaluated == [15] * teacher.evaluations(4)


@pytest.mark.parametrize(("kind", "solver"), SOLVERS)
def test_one_noise_makes_one_chunk_whatever_the_batch(make, observation: Observation, kind: str, solver: str) -> None:
    teacher = make(kind, solver)
    noise = torch.randn(3, 4, *teacher.noise_shape(5), generator=_generator(0))
    together = teacher.sample_from_noise(observation, noise, 5)
    assert together.shape == (3, 4, 8, 2)
    for b in range(3):
        for k in range(4):
            alone = teacher.sample_from_noise({STATE: observation[STATE][b : b + 1]}, noise[b : b + 1, k : k + 1], 5)
            torch.testing.assert_close(together[b, k], alone[0, 0], rtol=1e-4, atol=1e-4)
    swapped = teacher.sample_from_noise({STATE: observation[STATE].flip(0)}, noise, 5)
    assert float((swapped - together)[0].abs().max()) > 1e-3  # the observation does matter


@pytest.mark.parametrize(("kind", "solver"), SOLVERS)
@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad, torch.enable_grad])
def test_a_condition_and_noise_made_under_any_gradient_mode_will_do(
    make, observation: Observation, kind: str, solver: str, mode
) -> None:
    teacher = make(kind, solver)
    expected = teacher.sample(observation, 2, 4, _generator(0))
    with mode():
        noise = torch.randn(3, 2, *teacher.noise_shape(4), generator=_generator(0))
        chunks = teacher.normaliser.unnormalise_action(teacher.solve(teacher.encode(observation), noise, 4))
        assert torch.equal(chunks.detach(), expected)
    assert all(value.grad is None for value in teacher.parameters())


# -- learning ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", sorted(TEACHERS))
def test_the_loss_depends_on_its_arguments_only_and_trains_every_weight(
    make, observation: Observation, kind: str
) -> None:
    teacher = make(kind).train()
    action, draws, losses = torch.rand(3, 8, 2), teacher.training_draws(3, _generator(1)), []
    assert all(len(draw) == 3 for draw in draws)
    for seed in (0, 1):
        torch.manual_seed(seed)
        losses.append(teacher(observation, action, *draws))
    assert losses[0].shape == () and torch.equal(losses[0], losses[1])
    losses[0].backward()
    assert [name for name, value in teacher.named_parameters() if value.grad is None or not value.grad.any()] == []


def _two_ways(state_BOS: Tensor, generator: torch.Generator) -> Tensor:
    """Raw chunks `[B, 4, 2]`: the second action is +0.15 in one of four, else -0.15, the first what the state says."""
    way_B = torch.where(torch.rand(len(state_BOS), generator=generator) < 0.25, 0.15, -0.15) - 0.1
    chunk = torch.stack([0.5 + (state_BOS[:, -1, 0] - 0.5), way_B], dim=-1)
    return chunk[:, None].repeat(1, 4, 1) + 0.006 * torch.randn(len(state_BOS), 4, 2, generator=generator)


@pytest.mark.parametrize("kind", sorted(TEACHERS))
def test_a_small_one_learns_two_ways_in_their_shares(small_shape: PolicyShape, statistics, kind: str) -> None:
    torch.manual_seed(0)
    teacher = make_teacher(kind, replace(small_shape, horizon=4, width=32))
    teacher.normaliser.fit(statistics)
    optimizer, generator = torch.optim.Adam(teacher.parameters(), 4e-3), _generator(0)
    for step in range(500):  # with fewer steps or rows the energy's shares depend on the seed
        state = torch.rand(256, 2, 2, generator=generator) * 0.4 + 0.3
        loss = teacher({STATE: state}, _two_ways(state, generator), *teacher.training_draws(256, generator))
        optimizer.param_groups[0]["lr"] = 4e-3 * (1 - step / 500)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    state = torch.tensor([[[0.4, 0.5]] * 2, [[0.6, 0.5]] * 2])
    chunks = teacher.eval().sample({STATE: state}, 400, 20, _generator(1))
    torch.testing.assert_close(chunks[..., 0].mean((1, 2)), torch.tensor([0.4, 0.6]), rtol=0, atol=0.02)
    second = chunks[..., 1].mean(-1) + 0.1  # [B, K]: -0.15 or 0.15, and nothing between
    assert float(((second.abs() - 0.15).abs() < 0.04).float().mean()) > 0.95
    assert float((second > 0).float().mean()) == pytest.approx(0.25, abs=0.08)


# -- on disk, and on to a student --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "solver"), SOLVERS)
def test_a_saved_teacher_is_loaded_by_its_kind_to_the_last_bit(
    make, observation: Observation, tmp_path: Path, kind: str, solver: str
) -> None:
    teacher = make(kind, solver)
    teacher.save_pretrained(tmp_path)
    again = load_teacher(tmp_path)
    assert type(again) is TEACHERS[kind] and again.shape == teacher.shape and again.solver == solver and not again.training
    assert torch.equal(*(each.sample(observation, 3, 4, _generator(0)) for each in (teacher, again)))


def test_a_folder_of_another_kind_is_refused_with_the_known_ones(make, make_student, tmp_path: Path) -> None:
    teacher = make("flow")
    teacher.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="describes a 'flow_teacher', expected a 'energy_teacher'"):
        TEACHERS["energy"].from_pretrained(tmp_path)
    make_student(teacher, 4).save_pretrained(tmp_path)
    known = r"\['diffusion_teacher', 'energy_teacher', 'flow_teacher'\]"
    with pytest.raises(ValueError, match=f"describes a 'one_step_student', expected one of {known}"):
        load_teacher(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps([1]))
    with pytest.raises(ValueError, match="describes a 'list', expected one of"):
        load_teacher(tmp_path)
    with pytest.raises(ValueError, match="no policy at .*nowhere"):
        load_teacher(tmp_path / "nowhere")


def test_a_teacher_is_made_by_its_name(small_shape: PolicyShape) -> None:
    made = [make_teacher(kind, small_shape, solver) for kind in TEACHERS for solver in ("", "euler")]
    assert [type(teacher) for teacher in made] == [teacher for teacher in TEACHERS.values() for _ in range(2)]
    assert [teacher.solver for teacher in made] == ["euler", "euler", "ddim", "ddim", "langevin", "langevin"]
    assert make_teacher("flow", small_shape, "heun", 2.0).settings() == {"solver": "heun", "time_power": 2.0}
    with pytest.raises(ValueError, match=r"kind of teacher 'vae'.*\['diffusion', 'energy', 'flow'\]"):
        make_teacher("vae", small_shape)
    with pytest.raises(ValueError, match=r"unknown solver 'heun' of a diffusion_teacher.*\['ddim', 'ddpm'\]"):
        make_teacher("diffusion", small_shape, "heun")
    with pytest.raises(ValueError, match="time_power: got 2.0, but only a flow teacher has one"):
        make_teacher("energy", small_shape, "", 2.0)


@pytest.mark.parametrize("kind", sorted(TEACHERS))
def test_a_student_starts_from_every_kind(make, make_student, kind: str) -> None:
    teacher = make(kind)
    student = make_student(teacher, 4)
    for part in ("encoder", "trunk"):
        for name, value in getattr(teacher, part).state_dict().items():
            assert torch.equal(getattr(student, part).state_dict()[name], value)
    assert torch.equal(student.time_C, teacher.time(torch.zeros(1))[0])
