"""Values derived from weights or statistics and used at every call: computed again only when these have changed."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

import torch
from torch import Tensor

Value = TypeVar("Value")


class DerivedValue(Generic[Value]):
    """One cached value derived from tensors, without gradient. At batch 1 deriving it would cost as much as using it."""

    def __init__(self) -> None:
        self._tensors: tuple[Tensor, ...] = ()
        self._versions: list[tuple[int, int]] = []
        self._value: Value

    def get(self, tensors: Sequence[Tensor], derive: Callable[[], Value]) -> Value:
        """The value that `derive` computes from these tensors, cached until one of them is replaced, moved or written to.

        Computed at every call where a change cannot be detected: while compiling, and for tensors created in inference mode.
        """
        if torch.compiler.is_compiling():
            return derive()
        same = len(tensors) == len(self._tensors) and all(map(operator.is_, tensors, self._tensors))
        if not same and any(tensor.is_inference() for tensor in tensors):  # these have no version
            return derive()
        versions = [(tensor._version, tensor.data_ptr()) for tensor in tensors]
        if not same or versions != self._versions:
            # a value computed in inference mode could not be used in training later
            with torch.inference_mode(False), torch.no_grad():
                self._value = derive()
            self._tensors, self._versions = tuple(tensors), versions
        return self._value
