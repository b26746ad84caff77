"""The native teacher: conditional flow matching over action chunks (Lipman et al. 2023, arXiv 2210.02747)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from teachers.contract import Observation
from teachers.networks.shapes import PolicyShape
from teachers.solvers import SOLVERS, integrate
from teachers.trained import TrainedTeacher

WARM_TIME = 0.5
"""Flow time at which a student with codes starts. At pure noise the network ignores its input, and all codes would start with
the same chunk."""


class FlowTeacher(TrainedTeacher):
    """Velocity field v(x_t, t | observation) over normalised chunks; sampling solves dx/dt = v from t=0 to t=1."""

    KIND = "flow_teacher"
    SOLVERS = tuple(SOLVERS)
    CACHE_SOLVER = "shrinking"
    CACHE_STEPS = 8

    def __init__(self, shape: PolicyShape, solver: str = "euler", time_power: float = 1.0) -> None:
        super().__init__(shape, solver)
        self.time_power = time_power

    # -- training ------------------------------------------------------------------------------------------------

    def training_draws(self, batch_size: int, generator: torch.Generator) -> tuple[Tensor, ...]:
        """Noise `[B, T, A]` and times t = u^time_power `[B]`, u uniform, for `forward`, then `encoder_draws`.

        A power above 1 trains more near the noise ("Let It Be Simple", arXiv 2606.05737), where a solver of few steps errs.
        """
        noise_BTA = torch.randn(batch_size, self.shape.horizon, self.shape.action_size, generator=generator)
        time_B = torch.rand(batch_size, generator=generator)
        time_B = time_B if self.time_power == 1 else time_B**self.time_power
        return noise_BTA, time_B, *self.encoder_draws(batch_size, generator)

    def forward(self, observation: Observation, action_BTA: Tensor, *draws: Tensor) -> Tensor:
        """Flow-matching loss, a scalar: E w(t)^2 || v(x_t, t | o) - (x_1 - x_0) ||^2, x_t = (1 - t) x_0 + t x_1.

        (Lipman et al. 2023, eq. 23 with sigma_min = 0; Tong et al. 2024, arXiv 2302.00482, independent coupling.)
        w(t) = min(1, (1 - t) / 0.3) keeps times near 1, where the velocity divides a small error by almost zero, from
        dominating the loss. action_BTA: raw units; draws: noise_BTA, standard normal, time_B, in [0, 1), and
        the encoder's.
        """
        # imported late: only training needs torchcfm, which also imports POT and scipy
        from torchcfm.conditional_flow_matching import ConditionalFlowMatcher

        noise_BTA, time_B, *seeds_B = draws
        target_BTA = self.normaliser.normalise_action(action_BTA)
        _, x_BTA, velocity_BTA = ConditionalFlowMatcher(sigma=0.0).sample_location_and_conditional_flow(
            noise_BTA, target_BTA, t=time_B
        )
        predicted_BTA = self.velocity(x_BTA, time_B, self.encode(observation, *seeds_B))
        weight_B = ((1 - time_B) / 0.3).clamp(max=1.0)
        return ((predicted_BTA - velocity_BTA) * weight_B[:, None, None]).square().mean()

    # -- sampling ------------------------------------------------------------------------------------------------

    def velocity(self, x_NTA: Tensor, time_N: Tensor, condition_BC: Tensor) -> Tensor:
        """One network evaluation: the velocity `[N, T, A]` at flow time `[N]`, N / B chunks for each condition `[B, C]`.

        Chunks of one condition must be at one time, as they are in `integrate`.

        The network predicts the end point x_1, and v = (x_1 - x_t) / (1 - t): end points lie on a low-dimensional set, so a
        small network need not spend its capacity on passing the noise through (Li and He 2025, arXiv 2511.13720).
        """
        time_B = time_N[:: len(time_N) // len(condition_BC)]
        end_NTA = self.predict(x_NTA, condition_BC, self.time(time_B), data=time_B)
        velocity_NTA: Tensor = (end_NTA - x_NTA) / (1 - time_N).clamp(min=1e-3)[:, None, None]
        return velocity_NTA

    def solve(self, condition_BC: Tensor, noise_BKTA: Tensor, num_steps: int) -> Tensor:
        """The end points `[B, K, T, A]`, normalised, of the flow from noise `[B, K, T, A]`."""
        end_NTA = integrate(
            lambda x, t: self.velocity(x, t, condition_BC), noise_BKTA.flatten(0, 1), num_steps, self.solver
        )
        return end_NTA.unflatten(0, noise_BKTA.shape[:2])

    def evaluations(self, num_steps: int) -> int:
        """Network evaluations (NFE) of `num_steps` solver steps."""
        return SOLVERS[self.solver].evaluations(num_steps)

    @torch.no_grad()
    def warm_start_inputs(self, noise_NTA: Tensor, chunk_NTA: Tensor) -> tuple[Tensor, Tensor]:
        """x_t = (1 - t) noise + t chunk at t = WARM_TIME."""
        time_1 = torch.full((1,), WARM_TIME, device=noise_NTA.device)
        return (1 - WARM_TIME) * noise_NTA + WARM_TIME * chunk_NTA, self.time(time_1)[0]

    # -- on disk -------------------------------------------------------------------------------------------------

    def settings(self) -> dict[str, Any]:
        """See `PretrainedPolicy.settings`."""
        return {"solver": self.solver, "time_power": self.time_power}
