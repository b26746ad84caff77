"""Drifting: the field against loops, its directions by hand, and where a set of free samples ends up."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from distill.objectives.drift import GROUPS, TEMPERATURES, drift, field

ONE = torch.ones(1)


def _randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _looped(samples_MD: Tensor, positives_KD: Tensor, temperature: float, floor: float) -> list[Tensor]:
    """The field of one group at one temperature, not yet scaled, from the definition."""
    points = [*samples_MD, *positives_KD]
    count, size = samples_MD.shape
    weight = [[0.0 if row == column else math.exp(-float((samples_MD[row] - points[column]).norm()) / (temperature * size**0.5))
               for column in range(len(points))] for row in range(count)]  # fmt: skip
    affinity = [[0.0] * len(points) for _ in range(count)]
    for row in range(count):
        for column in range(len(points)):
            by_row, by_column = sum(weight[row]), sum(weight[other][column] for other in range(count))
            product = weight[row][column] ** 2 / (by_row * by_column)
            affinity[row][column] = 0.0 if row == column else math.sqrt(max(product, floor))
    forces = []
    for row in range(count):
        away, toward = affinity[row][:count], affinity[row][count:]
        pulled = sum(a * y for a, y in zip(toward, positives_KD, strict=True))
        pushed = sum(a * x for a, x in zip(away, samples_MD, strict=True))
        forces.append(sum(away) * pulled - sum(toward) * pushed)
    return forces


@pytest.mark.parametrize("floor", [0.0, 1e-6])
def test_the_field_is_the_definition_in_loops(floor: float) -> None:
    samples, positives = _randn(2, 4, 3).double(), _randn(2, 5, 3, seed=1).double()
    expected = torch.zeros(2, 4, 3, dtype=torch.float64)
    for temperature in TEMPERATURES:
        force = torch.stack([
            torch.stack(_looped(*pair, temperature, floor)) for pair in zip(samples, positives, strict=True)
        ])  # fmt: skip
        expected += force / force.square().mean().sqrt()
    torch.testing.assert_close(field(samples.float(), positives.float(), floor), expected.float(), rtol=1e-3, atol=1e-4)


def test_the_gradient_follows_the_field_and_no_other_path() -> None:
    student, teacher = _randn(2, 4, 3, 2).requires_grad_(), _randn(2, 5, 3, 2, seed=1)
    loss = drift(student, teacher, torch.ones(2))
    (gradient,) = torch.autograd.grad(loss, student)
    flat = student.detach().flatten(2) / 6**0.5  # the metric: a root mean square
    distance = torch.cdist(flat, teacher.flatten(2) / 6**0.5).mean() / 6**0.5
    expected = -2 * field(flat / distance, teacher.flatten(2) / 6**0.5 / distance) / flat.numel() / distance / 6**0.5
    torch.testing.assert_close(gradient.flatten(2), expected, rtol=1e-4, atol=1e-6)


def test_two_samples_between_two_hypotheses_part_and_one_alone_stays() -> None:
    positives = torch.tensor([[[-1.0], [1.0]]])
    moved = field(torch.tensor([[[-0.1], [0.1]]]), positives)
    assert float(moved[0, 0]) < 0 < float(moved[0, 1])
    assert torch.equal(field(torch.tensor([[[0.3]]]), positives), torch.zeros(1, 1, 1))


def test_groups_move_apart_from_each_other() -> None:
    student, teacher = _randn(1, 4, 3, 2).requires_grad_(), _randn(1, 5, 3, 2, seed=1)
    changed = teacher.clone()
    changed[..., 1] += 0.5 * _randn(1, 5, 3, seed=2)  # the second dimension of the hypotheses
    first = {}
    for groups in GROUPS:
        losses = (drift(student, each, torch.ones(2), groups=groups) for each in (teacher, changed))
        before, after = (torch.autograd.grad(loss, student)[0][..., 0] for loss in losses)
        first[groups] = float((before / before.norm() - after / after.norm()).norm())
    # the scale of the batch is shared
    assert first["dimension"] < 0.5 * min(first["chunk"], first["step"]), first


@pytest.mark.parametrize("groups", GROUPS)
def test_free_samples_end_on_both_modes_where_regression_ends_between(groups: str) -> None:
    generator = torch.Generator().manual_seed(0)
    sign = torch.tensor([1.0, -1.0]).repeat(8)[None, :, None, None]
    teacher = sign + 0.05 * torch.randn(1, 16, 2, 1, generator=generator)
    samples = (0.3 * torch.randn(1, 16, 2, 1, generator=generator)).requires_grad_()
    optimizer = torch.optim.Adam([samples], 0.02)
    for _ in range(600):
        optimizer.zero_grad()
        drift(samples, teacher, ONE, groups=groups).backward()
        optimizer.step()
    end = samples.detach()[0, :, 0, 0]  # of a time step alone: moved one by one, those of a chunk may take different modes
    assert bool((end.abs() > 0.7).float().mean() > 0.8) and 5 <= int((end > 0).sum()) <= 11
