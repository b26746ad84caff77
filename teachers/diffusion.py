"""A diffusion teacher: DDPM training, DDIM or DDPM sampling by diffusers (Ho et al. 2020, arXiv 2006.11239)."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from teachers.contract import Observation
from teachers.networks.shapes import PolicyShape
from teachers.trained import TrainedTeacher

if TYPE_CHECKING:
    from diffusers import DDIMScheduler, DDPMScheduler

LEVELS = 100
"""Number of noise levels: diffusers' timesteps 0 (nearly data) .. LEVELS - 1 (nearly noise)."""

_SCHEDULE = {"num_train_timesteps": LEVELS, "beta_schedule": "squaredcos_cap_v2", "prediction_type": "sample",
             "clip_sample": False}  # fmt: skip


def flow_time(level: Tensor) -> Tensor:
    """diffusers' timestep (0 .. LEVELS - 1, data to noise) as our flow time (0 at pure noise, 1 at data).

    The last level is t = 0; level 0, which still has some noise, is t = 1 - 1 / LEVELS.
    """
    return 1 - (level + 1) / LEVELS


@lru_cache(maxsize=1)
@torch.inference_mode(False)  # its tensors outlive the call and may meet tensors that require a gradient
def training_schedule() -> DDPMScheduler:
    """diffusers' squared-cosine schedule (Nichol and Dhariwal 2021, arXiv 2102.09672, eq. 17)."""
    # imported late: a thousand modules, which take a second or two and which no other teacher needs
    from diffusers.schedulers import DDPMScheduler

    return DDPMScheduler(**_SCHEDULE)


def signal_share(level_B: Tensor) -> Tensor:
    """The factor `[B]` of the clean chunk at these levels, sqrt(alpha bar)."""
    return training_schedule().alphas_cumprod.to(level_B.device)[level_B].sqrt()


@lru_cache(maxsize=16)
@torch.inference_mode(False)
def sampling_schedule(num_steps: int) -> DDIMScheduler:
    """The same schedule for `num_steps` equal steps, the first at the last level ("trailing", arXiv 2305.08891)."""
    DiffusionTeacher.check_steps(num_steps)
    from diffusers.schedulers import DDIMScheduler

    schedule = DDIMScheduler(**_SCHEDULE, timestep_spacing="trailing")
    schedule.set_timesteps(num_steps)
    return schedule


class DiffusionTeacher(TrainedTeacher):
    """Denoiser x_0(x_t, t | observation) over normalised chunks; sampling removes the noise level by level.

    solver: "ddim" makes a chunk from its first noise alone (Song et al. 2021, arXiv 2010.02502, eq. 12, eta = 0); "ddpm"
    adds fresh noise after every step but the last (the same with eta = 1, which is Ho et al.'s sampler).
    """

    KIND = "diffusion_teacher"
    SOLVERS = ("ddim", "ddpm")
    CACHE_SOLVER = "ddim"
    CACHE_STEPS = 20
    STOCHASTIC_SOLVERS = ("ddpm",)

    def __init__(self, shape: PolicyShape, solver: str = "ddim") -> None:
        super().__init__(shape, solver)

    def training_draws(self, batch_size: int, generator: torch.Generator) -> tuple[Tensor, ...]:
        """Noise `[B, T, A]` and levels `[B]` int64 for `forward`, then `encoder_draws`."""
        noise_BTA = torch.randn(batch_size, self.shape.horizon, self.shape.action_size, generator=generator)
        level_B = torch.randint(LEVELS, (batch_size,), generator=generator)
        return noise_BTA, level_B, *self.encoder_draws(batch_size, generator)

    def forward(self, observation: Observation, action_BTA: Tensor, *draws: Tensor) -> Tensor:
        """Denoising loss, a scalar: E || x_0(x_t, t | o) - x_0 ||^2 (Ho et al. 2020, eq. 14, for the clean chunk).

        It predicts the clean chunk, not the noise, for the reason given in `FlowTeacher.velocity`.
        action_BTA: raw units; draws: noise_BTA, standard normal, level_B, 0 .. LEVELS - 1, and the encoder's.
        """
        noise_BTA, level_B, *seeds_B = draws
        target_BTA = self.normaliser.normalise_action(action_BTA)
        x_BTA = training_schedule().add_noise(target_BTA, noise_BTA, level_B)
        return (self.denoise(x_BTA, level_B, self.encode(observation, *seeds_B)) - target_BTA).square().mean()

    def denoise(self, x_NTA: Tensor, level_B: Tensor, condition_BC: Tensor) -> Tensor:
        """One network evaluation: clean chunks `[N, T, A]`, N / B of them for each condition `[B, C]` and its level `[B]`."""
        signal_B = signal_share(level_B) if self.tool_frame else 0.0
        return self.predict(x_NTA, condition_BC, self.time(flow_time(level_B)), data=signal_B)

    def solve(self, condition_BC: Tensor, noise_BK: Tensor, num_steps: int) -> Tensor:
        """Normalised chunks `[B, K, T, A]` from noise `[B, K, *noise_shape]`. ValueError unless num_steps divides LEVELS."""
        schedule = sampling_schedule(num_steps)
        stochastic = not self.is_deterministic(self.solver)
        noise_N = noise_BK.flatten(0, 1)
        x_NTA = noise_N[:, 0] if stochastic else noise_N
        if self.tool_frame:  # the last level is not pure noise
            first_B = schedule.timesteps[:1].to(x_NTA.device).expand(len(condition_BC))
            x_NTA = self.shifted(x_NTA, condition_BC, signal_share(first_B))
        for step, level in enumerate(schedule.timesteps.tolist()):
            levels_B = torch.full((len(condition_BC),), level, device=x_NTA.device)
            x_NTA = schedule.step(
                self.denoise(x_NTA, levels_B, condition_BC), level, x_NTA, eta=float(stochastic),
                variance_noise=noise_N[:, 1 + step] if stochastic else None, return_dict=False,
            )[0]  # fmt: skip
        return x_NTA.unflatten(0, noise_BK.shape[:2])

    def evaluations(self, num_steps: int) -> int:
        """Network evaluations (NFE) of `num_steps` steps: one each. ValueError unless they divide LEVELS."""
        self.check_steps(num_steps)
        return num_steps

    @classmethod
    def check_steps(cls, num_steps: int, name: str = "num_steps") -> None:
        """Raises ValueError, with the name of the setting, unless the steps divide the levels.

        diffusers takes steps of LEVELS // num_steps and would otherwise stop short of the data.
        """
        if num_steps < 1 or LEVELS % num_steps:
            possible = [steps for steps in range(1, LEVELS + 1) if LEVELS % steps == 0]
            raise ValueError(f"{name}: got {num_steps}, a diffusion teacher needs a divisor of {LEVELS}: one of {possible}")
