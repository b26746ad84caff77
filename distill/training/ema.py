"""Exponential moving average of a network's weights."""

from __future__ import annotations

import copy

import torch
from torch import nn


def average_weight(decay: float, updates: int) -> float:
    """By how much the average moves to the weights at its `updates`-th update, counted from 1."""
    return 1 - min(decay, (1 + updates) / (10 + updates))


class ExponentialAverage:
    """Keeps ``average <- decay * average + (1 - decay) * weights``.

    The decay warms up as min(decay, (1 + n) / (10 + n)) over the updates n, so that the first weights are forgotten.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"decay must lie in [0, 1), got {decay}")
        self.decay, self.updates = decay, 0
        self.model = copy.deepcopy(model).eval().requires_grad_(False)

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        self.updates += 1
        weight = average_weight(self.decay, self.updates)
        torch._foreach_lerp_(list(self.model.parameters()), list(model.parameters()), weight)
