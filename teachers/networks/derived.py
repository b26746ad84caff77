"""What is made of weights or statistics and used at every call: made again only where these have changed."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

import torch
from torch import Tensor

Value = TypeVar("Value")


class Made(Generic[Value]):
    """One value made of tensors, without gradient. At batch 1 making it would cost as much as using it."""

    def __init__(self) -> None:
        self._tensors: tuple[Tensor, ...] = ()
        self._written: list[tuple[int, int]] = []
        self._value: Value

    def of(self, tensors: Sequence[Tensor], make: Callable[[], Value]) -> Value:
        """What `make` makes of these tensors: kept until one of them is another one, was moved, or written to.

        Made anew every time where this cannot be seen: within a graph, and of tensors that were born in inference mode.
        """
        if torch.compiler.is_compiling():
            return make()
        same = len(tensors) == len(self._tensors) and all(map(operator.is_, tensors, self._tensors))
        if not same and any(tensor.is_inference() for tensor in tensors):  # these have no version
            return make()
        written = [(tensor._version, tensor.data_ptr()) for tensor in tensors]
        if not same or written != self._written:
            # what is made in inference mode could not be trained with later
            with torch.inference_mode(False), torch.no_grad():
                self._value = make()
            self._tensors, self._written = tuple(tensors), written
        return self._value
