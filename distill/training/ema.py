"""Exponential moving average of a network's weights."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from distill.training.flat import FlatParameters


def average_weight(decay: float, updates: int) -> float:
    """By how much the average moves to the weights at its `updates`-th update, counted from 1."""
    return 1 - min(decay, (1 + updates) / (10 + updates))


class ExponentialAverage:
    """Keeps ``average <- decay * average + (1 - decay) * weights`` of the trained parameters; the others stay as they are.

    The decay warms up as min(decay, (1 + n) / (10 + n)) over the updates n, so that the first weights are forgotten.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"decay must lie in [0, 1), got {decay}")
        self.decay, self.updates = decay, 0
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        trained = [each.requires_grad for each in model.parameters()]
        copies = zip(self.model.parameters(), trained, strict=True)
        self._flat = FlatParameters(each for each, is_trained in copies if is_trained)

    @torch.no_grad()
    def update(self, weights_P: Tensor) -> None:
        """weights_P: `FlatParameters.vector` of the model's trained parameters."""
        self.updates += 1
        self._flat.vector.lerp_(weights_P, average_weight(self.decay, self.updates))
