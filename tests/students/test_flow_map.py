"""The flow map student: a warm start is the teacher itself, steps join up, one evaluation a step."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from envs.specs import STATE
from students.flow_map import FlowMapStudent
from teachers.flow import FlowTeacher


def _noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _student_of(teacher: FlowTeacher) -> FlowMapStudent:
    """With a span that says something: fresh from the teacher its last layer is zero."""
    torch.manual_seed(0)
    student = FlowMapStudent.from_teacher(teacher)
    with torch.no_grad():
        student.span.layers[-1].weight.normal_(std=0.3)
    return student


# -- the warm start ------------------------------------------------------------------------------------------------


def test_a_warm_student_is_the_teacher_at_one_step(make_teacher, observation) -> None:
    teacher, noise_BMTA = make_teacher(), _noise(3, 4, 8, 2)
    student = FlowMapStudent.from_teacher(teacher)
    raw = student(observation, noise_BMTA)
    torch.testing.assert_close(raw, teacher.sample_from_noise(observation, noise_BMTA, 1), rtol=1e-5, atol=1e-5)


def test_a_warm_student_has_the_teachers_velocity_to_the_last_bit_whatever_the_span(make_teacher, observation) -> None:
    teacher, x_BTA, time_B = make_teacher(), _noise(3, 8, 2), torch.tensor([0.0, 0.3, 0.9])
    student = FlowMapStudent.from_teacher(teacher)
    expected = teacher.velocity(x_BTA, time_B, teacher.encode(observation))
    for span in (0.0, 0.1, 1.0):
        velocity = student.velocity(x_BTA, time_B, torch.full((3,), span), student.encode(observation))
        assert torch.equal(velocity, expected)


def test_a_warm_student_in_many_steps_is_the_teacher_in_as_many(make_teacher, observation) -> None:
    teacher, noise_BMTA = make_teacher(), _noise(3, 4, 8, 2)
    chunks = FlowMapStudent.from_teacher(teacher)(observation, noise_BMTA, num_steps=4)
    torch.testing.assert_close(chunks, teacher.sample_from_noise(observation, noise_BMTA, 4), rtol=1e-5, atol=1e-5)


def test_a_cold_student_has_the_teachers_shape_and_statistics_but_not_its_weights(make_teacher) -> None:
    teacher = make_teacher()
    cold = FlowMapStudent.from_teacher(teacher, warm_start=False)
    assert cold.shape == teacher.shape
    for name, value in teacher.normaliser.state_dict().items():
        assert torch.equal(cold.normaliser.state_dict()[name], value)
    for mine, its in ((cold.trunk.to_tokens, teacher.trunk.to_tokens), (cold.time.layers[0], teacher.time.layers[0])):
        assert not torch.equal(mine.weight, its.weight)


# -- the map -------------------------------------------------------------------------------------------------------


def test_a_jump_goes_along_the_line_to_the_end_point(make_teacher, observation) -> None:
    student, x_BTA = _student_of(make_teacher()).requires_grad_(False), _noise(3, 8, 2)
    time_B, span_B = torch.tensor([0.0, 0.25, 0.5]), torch.tensor([1.0, 0.25, 0.125])
    condition_BC = student.encode(observation)
    end_BTA = student.end_point(x_BTA, time_B, span_B, condition_BC)
    # shares of the rest of the way, 1 / 1, 0.25 / 0.75 and 0.125 / 0.5
    share_B = torch.tensor([1.0, 1 / 3, 0.25])[:, None, None]
    expected = (1 - share_B) * x_BTA + share_B * end_BTA
    torch.testing.assert_close(student.jump(x_BTA, time_B, span_B, condition_BC), expected, rtol=1e-5, atol=1e-5)
    # the span is heard
    other_BTA = student.end_point(x_BTA, time_B, span_B / 2, condition_BC)
    assert float((other_BTA - end_BTA).abs().amax()) > 1e-3


def test_at_time_1_the_rest_of_the_way_moves_nothing(make_teacher, observation) -> None:
    student, x_BTA, one_B = _student_of(make_teacher()), _noise(3, 8, 2), torch.ones(3)
    assert torch.equal(student.jump(x_BTA, one_B, 1 - one_B, student.encode(observation)), x_BTA)


def test_two_steps_are_two_halves(make_teacher, observation) -> None:
    student, noise_BMTA = _student_of(make_teacher()).requires_grad_(False), _noise(3, 1, 8, 2)
    half_B, condition_BC = torch.full((3,), 0.5), student.encode(observation)
    middle = student.jump(noise_BMTA[:, 0], torch.zeros(3), half_B, condition_BC)
    expected = student.jump(middle, half_B, half_B, condition_BC)
    chunks = student.generate(condition_BC, noise_BMTA, 2)[:, 0]
    torch.testing.assert_close(chunks, expected, rtol=1e-5, atol=1e-5)


def test_a_refinement_at_time_0_is_a_fresh_chunk_and_at_another_it_keeps_a_part_of_the_old(make_teacher, observation) -> None:
    student = _student_of(make_teacher()).requires_grad_(False)
    chunks, noise, condition_BC = _noise(3, 2, 8, 2), _noise(3, 2, 8, 2, seed=1), student.encode(observation)
    assert torch.equal(student.refine(condition_BC, chunks, noise, 0.0), student.generate(condition_BC, noise))
    refined = student.refine(condition_BC, chunks, noise, 0.75)
    quarter_B = torch.full((3,), 0.25)
    for m in range(2):
        x_BTA = 0.25 * noise[:, m] + 0.75 * chunks[:, m]
        expected = student.end_point(x_BTA, 1 - quarter_B, quarter_B, condition_BC)
        torch.testing.assert_close(refined[:, m], expected, rtol=1e-5, atol=1e-5)


# -- latents -------------------------------------------------------------------------------------------------------


def test_every_latent_makes_its_own_chunk(make_teacher, observation) -> None:
    student, noise = _student_of(make_teacher()).requires_grad_(False), _noise(3, 4, 8, 2)
    assert student.latent_shape == (8, 2)
    together = student(observation, noise, num_steps=2)
    for b in range(3):
        for m in range(4):
            alone = student({STATE: observation[STATE][b : b + 1]}, noise[b : b + 1, m : m + 1], num_steps=2)[0, 0]
            torch.testing.assert_close(together[b, m], alone, rtol=1e-5, atol=1e-5)
    assert float((together[:, 0] - together[:, 1]).abs().amax()) > 1e-3


def test_a_chunk_is_one_evaluation_of_the_network_a_step(make_teacher, observation) -> None:
    student, calls = _student_of(make_teacher()), []
    student.encoder.register_forward_hook(lambda _, arguments, __: calls.append(("encoder", len(arguments[0]))))
    student.trunk.register_forward_hook(lambda _, arguments, __: calls.append(("trunk", len(arguments[0]))))
    student(observation, _noise(3, 7, 8, 2))
    assert calls == [("encoder", 3), ("trunk", 21)]
    student(observation, _noise(3, 7, 8, 2), num_steps=2)
    assert calls[2:] == [("encoder", 3), ("trunk", 21), ("trunk", 21)]


def test_raw_and_normalised_chunks_differ_by_the_statistics_only(make_teacher, observation) -> None:
    student, noise = _student_of(make_teacher()), _noise(3, 2, 8, 2)
    raw, normalised = student(observation, noise), student(observation, noise, normalised=True)
    # centres 0.5, -0.1 and half ranges 0.3 of the fixture's statistics
    torch.testing.assert_close(raw, normalised * 0.3 + torch.tensor([0.5, -0.1]), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("shape", [(3, 8, 2), (2, 4, 8, 2), (3, 4, 8, 3), (3, 4, 16)])
def test_latents_of_another_shape_are_refused(make_teacher, observation, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"latents: got .* expected \(3, M, 8, 2\)"):
        _student_of(make_teacher())(observation, torch.zeros(shape))


def test_no_step_at_all_is_refused(make_teacher, observation) -> None:
    with pytest.raises(ValueError, match="num_steps must be at least 1, got 0"):
        _student_of(make_teacher())(observation, _noise(3, 1, 8, 2), num_steps=0)


# -- on disk -------------------------------------------------------------------------------------------------------


def test_a_saved_student_comes_back_to_the_last_bit(make_teacher, observation, tmp_path: Path) -> None:
    student = _student_of(make_teacher()).eval()
    student.save_pretrained(tmp_path)
    again = FlowMapStudent.from_pretrained(tmp_path)
    assert again.shape == student.shape and not again.training
    assert torch.equal(again(observation, _noise(3, 2, 8, 2)), student(observation, _noise(3, 2, 8, 2)))


def test_a_student_without_statistics_is_not_saved(small_shape, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="statistics.*not finite"):
        FlowMapStudent(small_shape).save_pretrained(tmp_path / "student")
    assert not (tmp_path / "student").exists()


def test_a_folder_of_another_kind_is_refused(make_teacher, tmp_path: Path) -> None:
    make_teacher().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="flow_map_student"):
        FlowMapStudent.from_pretrained(tmp_path)
