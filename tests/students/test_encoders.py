"""Students that see: the teacher's encoder copied, frozen or shared, and features that were made before."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from students import load_student
from students.flow_map import FlowMapStudent
from students.one_step import OneStepStudent
from teachers.contract import FEATURES, Observation
from teachers.flow import FlowTeacher
from teachers.networks.observations import fake_observation
from teachers.networks.shapes import PolicyShape

Student = OneStepStudent | FlowMapStudent


def _randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def teacher(make_teacher, seeing_shape: PolicyShape) -> FlowTeacher:
    return make_teacher(1, scale=0.2, encoder=seeing_shape.encoder)


@pytest.fixture(params=["one_step", "flow_map"])
def student(request: pytest.FixtureRequest, teacher: FlowTeacher, make_student) -> Student:
    """A warm student of either kind."""
    return make_student(teacher) if request.param == "one_step" else FlowMapStudent.from_teacher(teacher).eval()


def _latents(student: Student, rows: int, samples: int) -> Tensor:
    return _randn(rows, samples, *student.latent_shape)


def _encoder(student: Student) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in student.encoder.state_dict().items()}


def _train(student: Student, observation: Observation, steps: int = 3) -> None:
    optimizer = torch.optim.SGD([value for value in student.parameters() if value.requires_grad], 0.05)
    batch = len(next(iter(observation.values())))
    for step in range(steps):
        seeds = student.encoder_draws(batch, torch.Generator().manual_seed(step))
        chunks = student(observation, _latents(student, batch, 2), True, seeds_B=seeds[0] if seeds else None)
        optimizer.zero_grad()
        (chunks - 1).square().mean().backward()
        optimizer.step()


def test_a_warm_student_sees_as_its_teacher_does(student: Student, teacher: FlowTeacher, seen: Observation) -> None:
    assert torch.equal(student.encode(seen), teacher.encode(seen))
    assert student.encoder is not teacher.encoder


def test_an_observation_is_encoded_once_for_all_samples(student: Student, seen: Observation) -> None:
    calls: list[tuple[str, int]] = []
    for name in ("colour", "depth", "points", "fusion"):
        getattr(student.encoder, name).register_forward_hook(
            lambda _, arguments, __, name=name: calls.append((name, len(arguments[0])))
        )
    assert student(seen, _latents(student, 3, 7)).shape == (3, 7, 8, 2)
    assert calls == [("colour", 12), ("depth", 6), ("points", 6), ("fusion", 3)]
    condition_BC = student.encode(seen)
    calls.clear()
    student.generate(condition_BC, _latents(student, 3, 7))
    assert calls == []


def test_a_copied_encoder_is_trained_and_the_teachers_is_not(student: Student, teacher, seen: Observation) -> None:
    before = _encoder(student)
    _train(student.train(), seen)
    moved = [name for name, value in student.encoder.state_dict().items() if not torch.equal(value, before[name])]
    assert set(moved) == set(before)
    assert all(torch.equal(value, before[name]) for name, value in teacher.encoder.state_dict().items())


def test_a_frozen_encoder_is_not_trained_and_the_head_is(student: Student, seen: Observation) -> None:
    before, trunk = _encoder(student), student.trunk.to_tokens.weight.clone()
    student.freeze_encoder()
    _train(student.train(), seen)
    assert all(torch.equal(value, before[name]) for name, value in student.encoder.state_dict().items())
    assert not torch.equal(student.trunk.to_tokens.weight, trunk)


def test_training_on_kept_features_is_training_on_the_observations(student: Student, teacher, seen: Observation) -> None:
    feature_BF = teacher.features(seen).detach()
    student.freeze_encoder()
    start = {name: value.clone() for name, value in student.state_dict().items()}
    _train(student.train(), seen)
    trained = {name: value.clone() for name, value in student.state_dict().items()}
    student.load_state_dict(start)
    encoded: list[int] = []
    student.encoder.register_forward_hook(lambda *_: encoded.append(1))
    _train(student, {FEATURES: feature_BF})
    assert not encoded
    assert all(torch.equal(value, trained[name]) for name, value in student.state_dict().items())
    assert not torch.equal(trained["trunk.to_tokens.weight"], start["trunk.to_tokens.weight"])


def test_an_encoder_in_training_takes_no_kept_features(student: Student) -> None:
    with pytest.raises(ValueError, match="would learn nothing; call freeze_encoder"):
        student.train()({FEATURES: torch.zeros(3, 16)}, _latents(student, 3, 2))


def test_a_narrow_student_uses_its_teachers_encoder(make_teacher, teacher, seen: Observation, tmp_path: Path) -> None:
    shape = make_teacher(encoder=teacher.shape.encoder, width=8, depth=2).shape
    torch.manual_seed(0)
    student = OneStepStudent(shape, 4, codes=3)
    student.normaliser.load_state_dict(teacher.normaliser.state_dict())
    student.take_encoder(teacher)
    student.freeze_encoder()
    kept = {FEATURES: teacher.features(seen).detach()}
    torch.testing.assert_close(student.encode(kept), student.encode(seen))
    _train(student.train(), kept)
    assert student.adapt.weight.grad.any() and student.share_correction is None
    student.eval().save_pretrained(tmp_path)
    again, latents = load_student(tmp_path), _latents(student, 3, 5)
    assert torch.equal(again(seen, latents), student(seen, latents))  # with the teacher's encoder in its own folder
    assert all(torch.equal(value, teacher.encoder.state_dict()[name]) for name, value in again.encoder.state_dict().items())


def test_a_shared_encoder_is_one_module(student: Student, teacher: FlowTeacher, seen: Observation, tmp_path: Path) -> None:
    student.take_encoder(teacher, share=True)
    student.freeze_encoder()
    assert student.encoder is teacher.encoder and not any(value.requires_grad for value in teacher.encoder.parameters())
    student.save_pretrained(tmp_path)
    assert torch.equal(load_student(tmp_path).features(seen), teacher.features(seen))


def test_a_saved_student_sees_the_same(student: Student, seen: Observation, tmp_path: Path) -> None:
    student.save_pretrained(tmp_path)
    again, latents = load_student(tmp_path), _latents(student, 3, 5)
    assert again.shape == student.shape and torch.equal(again(seen, latents), student(seen, latents))


def test_a_students_chunks_depend_on_all_that_it_sees(student: Student, seen: Observation) -> None:
    latents, other = _latents(student, 3, 2), fake_observation(student.shape, 3, seed=3)
    chunks = student(seen, latents)
    for name in seen:
        assert not torch.equal(student({**seen, name: other[name]}, latents), chunks), name
    with pytest.raises(ValueError, match="'observation.points'. is missing"):
        student({name: value for name, value in seen.items() if name != "observation.points"}, latents)


def test_how_long_an_encoders_feature_is_says_nothing_of_the_shares(seeing_shape: PolicyShape) -> None:
    """A share's step goes with the square of that length: with one of 25 all but a code or two died out at once."""
    condition = _randn(2, seeing_shape.width)
    log_shares = {}
    for encoder in (seeing_shape.encoder, None):
        student = OneStepStudent(replace(seeing_shape, encoder=encoder), 1, codes=4, shares=True)
        assert student.share_head is not None
        with torch.no_grad():
            student.share_head.weight.copy_(_randn(4, seeing_shape.width, seed=1))
        log_shares[encoder is not None] = [student.log_shares(scale * condition) for scale in (1.0, 10.0)]
    torch.testing.assert_close(*log_shares[True])
    assert not torch.allclose(*log_shares[False])
    # 3 long, times a gain of 8: the logits are 24 times the weights along its direction
    direction = condition / condition.norm(dim=-1, keepdim=True)
    expected = (24 * direction @ _randn(4, seeing_shape.width, seed=1).T).log_softmax(-1)
    torch.testing.assert_close(log_shares[True][0], expected)
