"""Normalisation of states and actions to [-1, 1]; the statistics are buffers, so they travel with the weights."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn


class Normaliser(nn.Module):
    """Affine map of every state and action dimension from its range in the demonstrations to [-1, 1].

    A dimension that never moves in the demonstrations (range below 1e-6) is only shifted, never divided by its range.
    Fresh from the constructor it holds NaN, and every use is refused until `fit` or a loaded checkpoint fills it.
    """

    state_low: Tensor
    state_high: Tensor
    action_low: Tensor
    action_high: Tensor

    def __init__(self, state_size: int, action_size: int) -> None:
        super().__init__()
        self._whole = False
        for name, size in (("state", state_size), ("action", action_size)):
            self.register_buffer(f"{name}_low", torch.full((size,), float("nan")))
            self.register_buffer(f"{name}_high", torch.full((size,), float("nan")))

    def fit(self, statistics: Mapping[str, Mapping[str, np.ndarray]]) -> None:
        """Take ``statistics["state"|"action"]["min"|"max"]``, each `[S]` or `[A]`, in raw units.

        Raises ValueError for a wrong size or a value that is not finite.
        """
        for name in ("state", "action"):
            for ours, theirs in (("low", "min"), ("high", "max")):
                buffer = getattr(self, f"{name}_{ours}")
                value = torch.as_tensor(np.asarray(statistics[name][theirs]), dtype=torch.float32)
                if value.shape != buffer.shape or not bool(torch.isfinite(value).all()):
                    raise ValueError(
                        f"statistics of {name} ({theirs}): got shape {tuple(value.shape)}, finite="
                        f"{bool(torch.isfinite(value).all())}; expected {tuple(buffer.shape)} finite numbers. "
                        "Make the demonstrations' statistics again."
                    )
                buffer.copy_(value)

    def check(self) -> None:
        """Raise ValueError unless every statistic is finite."""
        bad = [name for name, buffer in self.named_buffers() if not bool(torch.isfinite(buffer).all())]
        if bad:
            raise ValueError(
                f"normalisation statistics {bad} are not finite; expected the ranges of the training data. "
                "Call fit(statistics) or load a policy folder that was saved whole."
            )

    def _centre_scale(self, name: str) -> tuple[Tensor, Tensor]:
        if not self._whole:
            self.check()
            self._whole = True
        low, high = getattr(self, f"{name}_low"), getattr(self, f"{name}_high")
        half = (high - low) / 2
        return (high + low) / 2, torch.where(half < 5e-7, torch.ones_like(half), half)

    def normalise_state(self, state: Tensor) -> Tensor:
        """`[.., S]` raw units to about [-1, 1]."""
        centre, scale = self._centre_scale("state")
        return (state - centre) / scale

    def normalise_action(self, action: Tensor) -> Tensor:
        """`[.., A]` raw units to about [-1, 1]."""
        centre, scale = self._centre_scale("action")
        return (action - centre) / scale

    def unnormalise_action(self, action: Tensor) -> Tensor:
        """`[.., A]` from [-1, 1] to raw units."""
        centre, scale = self._centre_scale("action")
        return action * scale + centre
