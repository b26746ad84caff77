"""The average of weights against a loop by hand."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from distill.training.ema import ExponentialAverage
from distill.training.flat import FlatParameters


def _weights(model: nn.Module, value: float) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(value)


def test_the_first_updates_by_hand() -> None:
    model = nn.Linear(2, 2)
    _weights(model, 0.0)
    average, flat = ExponentialAverage(model, 0.99), FlatParameters(model.parameters())
    _weights(model, 11.0)
    average.update(flat.vector)  # decay min(0.99, 2 / 11): 11 * 9 / 11 = 9
    assert average.model.weight.flatten().tolist() == pytest.approx([9.0] * 4)
    _weights(model, 1.0)
    average.update(flat.vector)  # decay min(0.99, 3 / 12): 9 / 4 + 3 / 4 = 3
    assert average.model.bias.tolist() == pytest.approx([3.0] * 2)


@pytest.mark.parametrize("decay", [0.0, 0.1, 0.3, 0.999])
def test_many_updates_against_a_loop(decay: float) -> None:
    generator = torch.Generator().manual_seed(0)
    model = nn.Linear(3, 1)
    average, expected = ExponentialAverage(model, decay), model.weight.detach().clone().double()
    flat = FlatParameters(model.parameters())
    for update in range(1, 30):
        with torch.no_grad():
            model.weight.copy_(torch.randn(1, 3, generator=generator))
        average.update(flat.vector)
        now = min(decay, (1 + update) / (10 + update))
        expected = now * expected + (1 - now) * model.weight.detach().double()
    torch.testing.assert_close(average.model.weight.double(), expected, rtol=1e-5, atol=1e-6)
    assert average.updates == 29


def test_the_average_is_a_copy_that_is_not_trained() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Dropout())
    average, flat = ExponentialAverage(model, 0.9), FlatParameters(model.parameters())
    before = model[0].weight.detach().clone()
    average.update(flat.vector)
    assert torch.equal(model[0].weight, before) and model.training and model[0].weight.requires_grad
    assert not average.model.training and not any(value.requires_grad for value in average.model.parameters())


@pytest.mark.parametrize("decay", [1.0, -0.1, 2.0, float("nan")])
def test_a_decay_outside_its_range_is_refused(decay: float) -> None:
    with pytest.raises(ValueError, match=r"decay must lie in \[0, 1\)"):
        ExponentialAverage(nn.Linear(1, 1), decay)


def test_what_is_not_trained_is_not_averaged() -> None:
    model = nn.Sequential(nn.Linear(1, 1), nn.Linear(1, 1))
    _weights(model, 0.0)
    model[1].requires_grad_(False)
    average, flat = ExponentialAverage(model, 0.0), FlatParameters(model[0].parameters())
    _weights(model, 1.0)
    average.update(flat.vector)
    assert [value.item() for value in average.model.parameters()] == [1.0, 1.0, 0.0, 0.0]
