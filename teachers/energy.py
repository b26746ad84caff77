"""An energy teacher: chunks by descending a learned energy, after Implicit Behavioral Cloning (arXiv 2109.00137)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from teachers.contract import Observation
from teachers.networks.shapes import PolicyShape
from teachers.trained import TrainedTeacher

SIGMA_HIGH, SIGMA_LOW = 20.0, 0.02
"""Noise range, in normalised actions: from more than the distance of any two chunks down to a few millimetres."""


def noise_level(time: Tensor) -> Tensor:
    """Standard deviation of the noise at a time: SIGMA_HIGH at 0, SIGMA_LOW at 1, geometric between (Song and Ermon 2019)."""
    return SIGMA_HIGH * (SIGMA_LOW / SIGMA_HIGH) ** time


class EnergyTeacher(TrainedTeacher):
    """Energy E_s(x | observation) of normalised chunks x with noise of standard deviation s.

    The policy is that of Implicit Behavioral Cloning (Florence et al. 2021): one number per observation and chunk, low near
    the demonstrations, sampled by Langevin steps along its gradient. The training is not: InfoNCE against uniform
    counter-examples fails for chunks of 32 to 128 numbers, because the counter-examples are so far from the demonstrations
    that separating them says nothing about the gradient. Instead:

    - denoising score matching fits the gradient itself (Vincent 2011): the limit of InfoNCE for counter-examples close to
      the demonstration (Ceylan and Gutmann 2018, arXiv 1806.03664);
    - at noise levels from far beyond the data down to almost none, with one energy for each (Song and Ermon 2019,
      arXiv 1907.05600): at high noise a descent leads from anywhere to every mode in its share.

    The energy of the data is that of the last level. With D(x) = x - s^2 grad E_s(x), score matching fits D to the clean
    chunk. The energy is E_s(x) = (||x||^2 / 2 - <x, f(x)>) / s^2, so that D = f + J_f^T x has the scale of the data at every
    level, f has the shape of a chunk, and f = D at high noise, where D does not depend on x.
    """

    KIND = "energy_teacher"
    SOLVERS = ("langevin",)
    CACHE_SOLVER = "langevin"
    CACHE_STEPS = 20
    STOCHASTIC_SOLVERS = ("langevin",)

    def __init__(self, shape: PolicyShape, solver: str = "langevin") -> None:
        super().__init__(shape, solver)

    # -- training ------------------------------------------------------------------------------------------------

    def training_draws(self, batch_size: int, generator: torch.Generator) -> tuple[Tensor, ...]:
        """Noise `[B, T, A]` and times `[B]`, uniform in [0, 1), for `forward`, then `encoder_draws`."""
        noise_BTA = torch.randn(batch_size, self.shape.horizon, self.shape.action_size, generator=generator)
        return noise_BTA, torch.rand(batch_size, generator=generator), *self.encoder_draws(batch_size, generator)

    def forward(self, observation: Observation, action_BTA: Tensor, *draws: Tensor) -> Tensor:
        """Denoising score matching, a scalar: E w(s)^2 || x - s^2 grad E_s(x) - x_0 ||^2, x = x_0 + s noise.

        (Vincent 2011, times s^4; w(s) = 1 / s, clamped to s in [0.3, 1], so that small noise counts without dominating.)
        action_BTA: raw units; draws: noise_BTA, standard normal, time_B, in [0, 1), and the encoder's. Every
        training step differentiates a gradient, which costs about three times as much as a flow teacher's step.
        """
        noise_BTA, time_B, *seeds_B = draws
        target_BTA = self.normaliser.normalise_action(action_BTA)
        sigma_B11 = noise_level(time_B)[:, None, None]
        x_BTA = (target_BTA + sigma_B11 * noise_BTA).requires_grad_()
        with sdpa_kernel(SDPBackend.MATH):  # the only attention that can be differentiated twice
            energy_B = self.energy(x_BTA, time_B, self.encode(observation, *seeds_B))
            (gradient_BTA,) = torch.autograd.grad(energy_B.sum(), x_BTA, create_graph=True)
            denoised_BTA = x_BTA - sigma_B11**2 * gradient_BTA
            return ((denoised_BTA - target_BTA) / sigma_B11.clamp(0.3, 1.0)).square().mean()

    # -- sampling ------------------------------------------------------------------------------------------------

    def energy(self, x_NTA: Tensor, time_B: Tensor, condition_BC: Tensor) -> Tensor:
        """Energies `[N]` [nat], up to a constant per observation and level, of N / B chunks for each condition `[B, C]`.

        time_B: the noise level of each condition's chunks, see `noise_level`.
        """
        sigma_N11 = noise_level(time_B).repeat_interleave(len(x_NTA) // len(time_B))[:, None, None]
        x_NTA = self.shifted(x_NTA, condition_BC, -1.0)
        condition_BC, _ = self.split_origin(condition_BC)
        f_NTA = self.trunk(x_NTA / (1 + sigma_N11**2).sqrt(), condition_BC + self.time(time_B))
        energy_N: Tensor = ((x_NTA / 2 - f_NTA) * x_NTA / sigma_N11**2).sum((1, 2))
        return energy_N

    def solve(self, condition_BC: Tensor, noise_BK: Tensor, num_steps: int) -> Tensor:
        """Normalised chunks `[B, K, T, A]` from noise `[B, K, 1 + num_steps, T, A]`, by annealed Langevin steps.

        From level s to the next level r, x <- x - (s^2 - r^2) grad E_s(x) + r sqrt(1 - r^2 / s^2) z, with a last step to
        r = 0: the weights of gradient and noise give x the next level's noise after every step (Jolicoeur-Martineau et al.
        2021, arXiv 2009.05475, with the step 1 - r^2 / s^2). Plain Langevin dynamics needs many steps per level.

        Works under no_grad and inference_mode, and returns no gradient. Raises ValueError for fewer than one step.
        """
        self.check_steps(num_steps)
        # the gradient is needed even if the caller disabled it; tensors of inference_mode must be copied
        with torch.inference_mode(False), torch.enable_grad():
            condition_BC, noise_N = condition_BC.detach().clone(), noise_BK.flatten(0, 1).clone()
            times = torch.linspace(0, 1, num_steps, device=noise_N.device) if num_steps > 1 else noise_N.new_zeros(1)
            sigmas = [*noise_level(times).tolist(), 0.0]
            x_NTA = self.shifted(sigmas[0] * noise_N[:, 0], condition_BC)
            for step, (sigma, following) in enumerate(zip(sigmas, sigmas[1:], strict=False)):
                x_NTA = x_NTA.detach().requires_grad_()
                energy_N = self.energy(x_NTA, times[step].expand(len(condition_BC)), condition_BC)
                (gradient_NTA,) = torch.autograd.grad(energy_N.sum(), x_NTA)
                added = following * (1 - (following / sigma) ** 2) ** 0.5
                x_NTA = x_NTA - (sigma**2 - following**2) * gradient_NTA + added * noise_N[:, 1 + step]
            return x_NTA.detach().unflatten(0, noise_BK.shape[:2])

    def evaluations(self, num_steps: int) -> int:
        """Network evaluations (NFE) of `num_steps` steps: one each, forward and backward, so of about three times the cost."""
        return num_steps
