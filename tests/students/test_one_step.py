"""The one-step student: a warm start is the teacher's own first prediction, latents are apart, one evaluation."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from envs.specs import STATE
from students.one_step import OneStepStudent
from teachers.flow import FlowTeacher


def _latents(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _student_of(teacher: FlowTeacher, latent_size: int = 5) -> OneStepStudent:
    torch.manual_seed(0)
    return OneStepStudent.from_teacher(teacher, latent_size)


# -- the warm start ------------------------------------------------------------------------------------------------


def test_a_warm_student_that_is_given_the_noise_says_what_the_teacher_predicts_at_t_0(
    make_teacher, observation
) -> None:
    teacher = make_teacher()
    student = OneStepStudent.from_teacher(teacher, latent_size=16)  # T * A = 16: a latent can hold a whole noise
    with torch.no_grad():
        student.from_latent.weight.copy_(torch.eye(16))
    noise_BMTA = _latents(3, 4, 8, 2)
    chunks = student(observation, noise_BMTA.flatten(2), normalised=True)
    # at t = 0 the end point is x + v, since v = (x_1 - x) / (1 - 0)
    for m in range(4):
        velocity = teacher.velocity(noise_BMTA[:, m], torch.zeros(3), teacher.encode(observation))
        torch.testing.assert_close(chunks[:, m], noise_BMTA[:, m] + velocity, rtol=1e-5, atol=1e-5)
    # and in raw units it is the teacher at one Euler step
    raw = student(observation, noise_BMTA.flatten(2))
    torch.testing.assert_close(raw, teacher.sample_from_noise(observation, noise_BMTA, 1), rtol=1e-5, atol=1e-5)


def test_a_cold_student_has_the_teachers_shape_and_statistics_but_not_its_weights(make_teacher) -> None:
    teacher = make_teacher()
    cold = OneStepStudent.from_teacher(teacher, 5, warm_start=False)
    assert cold.shape == teacher.shape
    for name, value in teacher.normaliser.state_dict().items():
        assert torch.equal(cold.normaliser.state_dict()[name], value)
    assert not torch.equal(cold.trunk.to_tokens.weight, teacher.trunk.to_tokens.weight)
    assert not torch.equal(cold.encoder.layers[1].weight, teacher.encoder.layers[1].weight)
    assert not cold.time_C.any()


def test_training_the_student_leaves_the_teacher_alone(make_teacher, observation) -> None:
    teacher = make_teacher()
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    student = _student_of(teacher)
    student(observation, _latents(3, 2, 5)).square().sum().backward()
    for value in student.parameters():
        assert value.grad is not None and bool(value.grad.any())
        value.data -= 0.1 * value.grad
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())
    assert all(value.grad is None for value in teacher.parameters())


def test_a_lifted_latent_is_as_large_as_the_noise_the_trunk_knows(make_teacher) -> None:
    student = _student_of(make_teacher(horizon=64), latent_size=8)
    lifted = student.from_latent(_latents(4000, 8)).detach()
    assert float(lifted.square().mean()) == pytest.approx(1.0, abs=0.15)  # 128 entries of 8 weights each


# -- latents -------------------------------------------------------------------------------------------------------


def test_every_latent_makes_its_own_chunk(make_teacher, observation) -> None:
    student, latents = _student_of(make_teacher()).requires_grad_(False), _latents(3, 4, 5)
    together = student(observation, latents)
    assert together.shape == (3, 4, 8, 2)
    for b in range(3):
        for m in range(4):
            alone = student({STATE: observation[STATE][b : b + 1]}, latents[b : b + 1, m : m + 1])[0, 0]
            torch.testing.assert_close(together[b, m], alone, rtol=1e-5, atol=1e-5)
    assert float((together[:, 0] - together[:, 1]).abs().amax()) > 1e-3


def test_a_chunk_is_one_evaluation_of_the_network(make_teacher, observation) -> None:
    student, calls = _student_of(make_teacher()), []
    student.encoder.register_forward_hook(lambda _, arguments, __: calls.append(("encoder", len(arguments[0]))))
    student.trunk.register_forward_hook(lambda _, arguments, __: calls.append(("trunk", len(arguments[0]))))
    student(observation, _latents(3, 7, 5))
    assert calls == [("encoder", 3), ("trunk", 21)]


def test_raw_and_normalised_chunks_differ_by_the_statistics_only(make_teacher, observation) -> None:
    student, latents = _student_of(make_teacher()), _latents(3, 2, 5)
    raw, normalised = student(observation, latents), student(observation, latents, normalised=True)
    # centres 0.5, -0.1 and half ranges 0.3 of the fixture's statistics
    torch.testing.assert_close(raw, normalised * 0.3 + torch.tensor([0.5, -0.1]), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("shape", [(3, 5), (2, 4, 5), (3, 4, 6), (3, 4, 1, 5)])
def test_latents_of_another_shape_are_refused(make_teacher, observation, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"latents: got .* expected \(3, M, 5\)"):
        _student_of(make_teacher())(observation, torch.zeros(shape))


def test_a_latent_of_no_size_is_refused(make_teacher) -> None:
    with pytest.raises(ValueError, match="latent_size must be at least 1, got 0"):
        OneStepStudent.from_teacher(make_teacher(), 0)


# -- on disk -------------------------------------------------------------------------------------------------------


def test_a_saved_student_comes_back_to_the_last_bit(make_teacher, observation, tmp_path: Path) -> None:
    student = _student_of(make_teacher()).eval()
    student.save_pretrained(tmp_path)
    again = OneStepStudent.from_pretrained(tmp_path)
    assert again.latent_size == 5 and again.shape == student.shape and not again.training
    assert torch.equal(again(observation, _latents(3, 2, 5)), student(observation, _latents(3, 2, 5)))


def test_a_student_without_statistics_is_not_saved(small_shape, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="statistics.*not finite"):
        OneStepStudent(small_shape, 4).save_pretrained(tmp_path / "student")
    assert not (tmp_path / "student").exists()


def test_a_truncated_student_is_refused(make_teacher, tmp_path: Path) -> None:
    _student_of(make_teacher()).save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(ValueError, match="model.safetensors is not a whole safetensors file"):
        OneStepStudent.from_pretrained(tmp_path)
