"""A derived value is cached until a tensor is written to, moved or replaced, and never carries a trace of inference mode."""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from teachers.networks.derived import DerivedValue


class _Doubled:
    """Twice the sum of its tensors, and how often that was computed."""

    def __init__(self, *tensors: Tensor) -> None:
        self.tensors, self.count, self.derived = tensors, 0, DerivedValue[Tensor]()

    def __call__(self) -> float:
        return float(self.derived.get(self.tensors, self._derive))

    def _derive(self) -> Tensor:
        self.count += 1
        return 2 * torch.stack([tensor.sum() for tensor in self.tensors]).sum()


def test_it_is_derived_again_only_where_a_tensor_was_written_to_moved_or_exchanged() -> None:
    first, second = torch.nn.Parameter(torch.ones(3)), torch.zeros(2)
    doubled = _Doubled(first, second)
    assert doubled() == doubled() == 6.0 and doubled.count == 1
    second[1] = 4.0
    assert doubled() == 14.0
    with torch.no_grad():
        first.mul_(2)
    assert doubled() == 20.0 and doubled.count == 3
    first.data = torch.full((3,), 5.0)  # as `Module.to` does it
    assert doubled() == 38.0
    doubled.tensors = (first, torch.zeros(2))
    assert doubled() == 30.0 and doubled() == 30.0 and doubled.count == 5


def test_what_was_derived_in_inference_mode_can_be_trained_with() -> None:
    weight = torch.nn.Parameter(torch.ones(2))
    derived: DerivedValue[Tensor] = DerivedValue()
    with torch.inference_mode():
        derived.get((weight,), lambda: 3 * weight)
    kept = derived.get((weight,), lambda: torch.zeros(2))
    wanting = torch.ones(2, requires_grad=True)
    (wanting * kept).sum().backward()  # refused for a tensor of inference mode
    assert wanting.grad is not None and wanting.grad.tolist() == [3.0, 3.0] and not kept.requires_grad


def test_nothing_is_cached_of_tensors_whose_changes_cannot_be_seen() -> None:
    with torch.inference_mode():
        doubled = _Doubled(torch.ones(1))
        assert doubled() == 2.0
        doubled.tensors[0].fill_(5.0)
        assert doubled() == 10.0 and doubled.count == 2


def test_a_copy_makes_its_own() -> None:
    doubled = _Doubled(torch.ones(1))
    assert doubled() == 2.0
    other = copy.deepcopy(doubled)
    other.tensors[0].fill_(3.0)
    assert (other(), doubled()) == (6.0, 2.0)
