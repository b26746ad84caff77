"""What is made of weights and kept: until they are written to, moved or others; never with a trace of inference mode."""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from teachers.networks.derived import Made


class _Doubled:
    """Twice the sum of its tensors, and how often that was made."""

    def __init__(self, *tensors: Tensor) -> None:
        self.tensors, self.count, self.made = tensors, 0, Made[Tensor]()

    def __call__(self) -> float:
        return float(self.made.of(self.tensors, self._make))

    def _make(self) -> Tensor:
        self.count += 1
        return 2 * torch.stack([tensor.sum() for tensor in self.tensors]).sum()


def test_it_is_made_again_only_where_a_tensor_was_written_to_moved_or_exchanged() -> None:
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


def test_what_was_made_in_inference_mode_can_be_trained_with() -> None:
    weight = torch.nn.Parameter(torch.ones(2))
    made: Made[Tensor] = Made()
    with torch.inference_mode():
        made.of((weight,), lambda: 3 * weight)
    kept = made.of((weight,), lambda: torch.zeros(2))
    wanting = torch.ones(2, requires_grad=True)
    (wanting * kept).sum().backward()  # refused for a tensor of inference mode
    assert wanting.grad is not None and wanting.grad.tolist() == [3.0, 3.0] and not kept.requires_grad


def test_nothing_is_kept_of_tensors_whose_changes_cannot_be_seen() -> None:
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
