"""The same memory as a denoiser with a scheduler of diffusers, whichever is named: an adapter with `denoise` and `scheduler`.

    flow2one convert --teacher examples/remembered_denoiser.py:build \
        --adapter.arguments demonstrations=runs/avoid-seed0/demos scheduler=DDIMScheduler \
        --observations runs/avoid-seed0/demos --out runs/remembered-ddim
"""

from __future__ import annotations

from pathlib import Path

import diffusers
import torch
from remembered_flow import RememberedFlow  # the adapter's own folder is on the path
from torch import Tensor


class RememberedDenoiser(RememberedFlow):
    """denoise(condition, x, timestep) gives what the scheduler expects: the clean chunk, or a flow's velocity."""

    def __init__(self, folder: Path, horizon: int, neighbours: int, scheduler: str) -> None:
        super().__init__(folder, horizon, neighbours)
        kind = getattr(diffusers, scheduler)
        self.is_flow = "Flow" in scheduler
        self.scheduler = kind() if self.is_flow else kind(beta_schedule="squaredcos_cap_v2", prediction_type="sample")
        if hasattr(self.scheduler.config, "clip_sample"):
            self.scheduler.register_to_config(clip_sample=False)

    def denoise(self, found: Tensor, x: Tensor, timestep: Tensor) -> Tensor:
        """timestep `[N]`, the scheduler's own: from much noise to none."""
        if self.is_flow:  # of diffusers: sigma 1 is noise, 0 is data, and the velocity is noise - data
            sigma = timestep / self.scheduler.config.num_train_timesteps
            return (x - self.expected(found, x, 1 - sigma, sigma)) / sigma.clamp(min=1e-3)[:, None, None]
        kept = self.scheduler.alphas_cumprod[timestep.long()]
        return self.expected(found, x, kept.sqrt(), (1 - kept).sqrt())


def build(demonstrations: str, scheduler: str = "DDIMScheduler", horizon: str = "16") -> RememberedDenoiser:
    """scheduler: the name of a class of diffusers."""
    torch.manual_seed(0)
    return RememberedDenoiser(Path(demonstrations), int(horizon), 24, scheduler)
