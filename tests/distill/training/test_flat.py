"""Parameters as one vector: views of it, their gradient, and a module that is otherwise as before."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from distill.training.flat import FlatParameters


def test_the_vector_and_the_module_are_the_same_numbers() -> None:
    model = nn.Linear(2, 1)
    model.load_state_dict({"weight": torch.tensor([[1.0, 2.0]]), "bias": torch.tensor([3.0])})
    flat = FlatParameters(model.parameters())
    assert flat.vector.tolist() == [1, 2, 3] and model(torch.tensor([1.0, 1.0])).item() == 6
    with torch.no_grad():
        flat.vector.mul_(2)
    assert model.weight.tolist() == [[2, 4]] and model.bias.item() == 6
    model.load_state_dict({"weight": torch.tensor([[5.0, 6.0]]), "bias": torch.tensor([7.0])})
    assert flat.vector.tolist() == [5, 6, 7]


def test_the_gradient_is_taken_and_cleared() -> None:
    model = nn.Linear(2, 1)
    flat = FlatParameters(model.parameters())
    for factor in (1.0, 2.0):  # the second gradient is not added to the first
        (factor * model(torch.tensor([3.0, 4.0]))).sum().backward()
        assert flat.take_gradient().tolist() == [3 * factor, 4 * factor, factor]
        assert flat.vector.grad is not None and flat.vector.grad[0].item() == 3 * factor
        assert all(each.grad is None for each in model.parameters())
    (model.weight.sum()).backward()  # the bias has none
    assert flat.take_gradient().tolist() == [1, 1, 0]


def test_parameters_of_two_kinds_or_none_are_refused() -> None:
    mixed = [nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1, dtype=torch.float64))]
    with pytest.raises(ValueError, match="expected one dtype and device"):
        FlatParameters(mixed)
    with pytest.raises(ValueError, match="got parameters of no kind"):
        FlatParameters([])


def test_parameters_that_left_the_vector_are_noticed() -> None:
    model = nn.Linear(2, 1)
    flat = FlatParameters(model.parameters())
    model.weight.data = model.weight.data.clone()  # as joining several processes does
    model(torch.ones(2)).sum().backward()
    with pytest.raises(AssertionError, match="memory of their own"):
        flat.take_gradient()
