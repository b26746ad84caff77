"""One-step baselines: other ways to train a one-step generator, each as a loss on the student `FlowMapStudent`.

All chunks are normalised, `[N, T, A]`, with N a multiple of the B observations: the first N / B rows belong to the first
observation, and so on. Time runs from noise (t = 0) to data (t = 1), so the papers' equations appear with time reversed:
x_t = (1 - t) x_0 + t x_1. Next to each loss are its random draws, in the order in which the loss takes them.
weights_TA: weight of each entry of a chunk, `[A]` or `[T, A]`; None: all equal.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from students.flow_map import FlowMapStudent
from teachers.contract import Observation
from teachers.flow import FlowTeacher
from teachers.solvers import euler_step, heun_step

# -- reflow ----------------------------------------------------------------------------------------------------------


def reflow_draws(batch_size: int, chunk_shape: tuple[int, int], generator: torch.Generator) -> tuple[Tensor]:
    """Times `[N]`: zero for about half of the rows, uniform for the others. The noise is that of the teacher's pairs.

    A one-step generator is evaluated at t = 0 only, which is the last stage of the paper ("distillation", section 2.2). These
    rows train that stage from the start, so that both stages fit into one training.
    """
    return ((2 * torch.rand(batch_size, generator=generator) - 1).clamp(min=0),)


def reflow_loss(
    student: FlowMapStudent,
    observation: Observation,
    noise_NTA: Tensor,
    end_NTA: Tensor,
    time_N: Tensor,
    weights_TA: Tensor | None = None,
) -> Tensor:
    """E || (x_1 - x_0) - v(x_t, t) ||^2 over the teacher's own pairs of noise x_0 and end point x_1.

    (Liu et al. 2022, arXiv 2209.03003, eq. 1 on the coupling of its section 2.2.) Flow matching on pairs that a flow has
    coupled gives a straighter flow; where it is straight, one step is exact.
    """
    condition_NC = _conditions(student, observation, len(noise_NTA))
    x_NTA = _between(noise_NTA, end_NTA, time_N)
    predicted_NTA = student.velocity(x_NTA, time_N, 1 - time_N, condition_NC)
    return _mean_square((predicted_NTA - (end_NTA - noise_NTA)) * _end_weight(time_N), weights_TA)


# -- consistency distillation ----------------------------------------------------------------------------------------


def consistency_draws(
    batch_size: int, chunk_shape: tuple[int, int], generator: torch.Generator, num_scales: int = 16
) -> tuple[Tensor, Tensor]:
    """Noise `[N, T, A]` and a uniform step of the flow `[N]`, int64 in 0 .. num_scales - 1."""
    noise_NTA = torch.randn(batch_size, *chunk_shape, generator=generator)
    return noise_NTA, torch.randint(num_scales, (batch_size,), generator=generator)


def consistency_loss(
    student: FlowMapStudent,
    teacher: FlowTeacher,
    observation: Observation,
    action_NTA: Tensor,
    noise_NTA: Tensor,
    step_N: Tensor,
    num_scales: int = 16,
    weights_TA: Tensor | None = None,
) -> Tensor:
    """E || f(x_t, t) - sg f(x_t', t') ||^2, x_t' = one Heun step of the teacher from x_t, t' = t + 1 / num_scales.

    (Song et al. 2023, arXiv 2303.01469, eq. 7 and 8.) f(x, t) = `jump` over the remaining time, so f(x, 1) = x by
    construction. The target is the student itself without gradient, not its average (Song and Dhariwal 2023, arXiv
    2310.14189, section 3.2). Their pseudo-Huber distance is not used: it weighs every row alike, however small its error, and
    only the rows of the last step know the data. Squared errors let those rows dominate when the others drift.
    """
    condition_NC = _conditions(student, observation, len(action_NTA))
    time_N, next_N = step_N / num_scales, (step_N + 1) / num_scales
    x_NTA = _between(noise_NTA, action_NTA, time_N)
    with torch.no_grad():
        teacher_condition_NC = _conditions(teacher, observation, len(action_NTA))

        def velocity(x_NTA: Tensor, time_N: Tensor) -> Tensor:
            return teacher.velocity(x_NTA, time_N, teacher_condition_NC)

        # Heun's second evaluation of the last step would be at t = 1: there it is an Euler step, as in `SOLVERS`
        next_NTA = torch.where(
            (step_N == num_scales - 1)[:, None, None],
            euler_step(velocity, x_NTA, time_N, 1 / num_scales),
            heun_step(velocity, x_NTA, time_N, 1 / num_scales),
        )
        target_NTA = student.jump(next_NTA, next_N, 1 - next_N, condition_NC)
    return _mean_square(student.jump(x_NTA, time_N, 1 - time_N, condition_NC) - target_NTA, weights_TA)


# -- shortcut models -------------------------------------------------------------------------------------------------


def shortcut_draws(
    batch_size: int,
    chunk_shape: tuple[int, int],
    generator: torch.Generator,
    halvings: int = 7,
    self_share: float = 0.25,
) -> tuple[Tensor, Tensor, Tensor]:
    """Noise `[N, T, A]`, times `[N]` and spans `[N]`: span 0 for the flow-matching rows, 2^-i for the self-consistency rows.

    Half spans go down to 2^-halvings (128 steps, as in the paper); i is uniform, t uniform over the multiples of the span. The
    last quarter of the rows is for self-consistency, the paper's share.
    """
    noise_NTA = torch.randn(batch_size, *chunk_shape, generator=generator)
    flow_N = torch.arange(batch_size) < batch_size - round(self_share * batch_size)
    steps_N = 2 ** torch.randint(halvings, (batch_size,), generator=generator)
    uniform_N = torch.rand(batch_size, generator=generator)
    time_N = torch.where(flow_N, uniform_N, (uniform_N * steps_N).floor() / steps_N)
    return noise_NTA, time_N, torch.where(flow_N, 0.0, 1 / steps_N)


def shortcut_loss(
    student: FlowMapStudent,
    observation: Observation,
    action_NTA: Tensor,
    noise_NTA: Tensor,
    time_N: Tensor,
    span_N: Tensor,
    halvings: int = 7,
    teacher: FlowTeacher | None = None,
    weights_TA: Tensor | None = None,
) -> Tensor:
    """E || v(x_t, t, 0) - (x_1 - x_0) ||^2 + || v(x_t, t, 2d) - sg (v(x_t, t, d) + v(x_{t+d}, t + d, d)) / 2 ||^2.

    (Frans et al. 2024, arXiv 2410.12557, eq. 5.) The first term where the span is 0, the second where it is 2d > 0; half spans
    of 2^-halvings use the span 0 instead, as in the paper. With a teacher, its velocity at x_t replaces x_1 - x_0: the same
    minimum without the noise of the pairs.
    """
    condition_NC = _conditions(student, observation, len(action_NTA))
    x_NTA = _between(noise_NTA, action_NTA, time_N)
    target_NTA, halved = action_NTA - noise_NTA, span_N > 0
    with torch.no_grad():
        if teacher is not None:
            target_NTA = teacher.velocity(x_NTA, time_N, _conditions(teacher, observation, len(x_NTA)))
        half, time, condition = span_N[halved] / 2, time_N[halved], condition_NC[halved]
        half_span = torch.where(half > 2.0**-halvings, half, 0.0)
        first = student.velocity(x_NTA[halved], time, half_span, condition)
        middle = x_NTA[halved] + half[:, None, None] * first
        target_NTA[halved] = (first + student.velocity(middle, time + half, half_span, condition)) / 2
    predicted_NTA = student.velocity(x_NTA, time_N, span_N, condition_NC)
    return _mean_square((predicted_NTA - target_NTA) * _end_weight(time_N), weights_TA)


# -- mean flow -------------------------------------------------------------------------------------------------------


def mean_flow_draws(
    batch_size: int, chunk_shape: tuple[int, int], generator: torch.Generator, span_share: float = 0.25
) -> tuple[Tensor, Tensor, Tensor]:
    """Noise `[N, T, A]`, times `[N]` and spans `[N]`, from two logit-normal times (-0.4, 1) in the paper's time direction.

    The last quarter of the rows has a span; the others have none, which is flow matching (the paper's table 1).
    """
    noise_NTA = torch.randn(batch_size, *chunk_shape, generator=generator)
    # the paper's time runs from data at 0 to noise at 1
    two_2N = 1 - torch.sigmoid(torch.randn(2, batch_size, generator=generator) - 0.4)
    spanned_N = torch.arange(batch_size) >= batch_size - round(span_share * batch_size)
    return noise_NTA, two_2N.amin(0), torch.where(spanned_N, two_2N.amax(0) - two_2N.amin(0), 0.0)


def mean_flow_loss(
    student: FlowMapStudent,
    observation: Observation,
    action_NTA: Tensor,
    noise_NTA: Tensor,
    time_N: Tensor,
    span_N: Tensor,
    weights_TA: Tensor | None = None,
) -> Tensor:
    """E || v(x_t, t, s) - sg (w + s dv/dt) ||^2, w = x_1 - x_0, dv/dt = (w d_x + d_t - d_s) v along the flow.

    (Geng et al. 2025, arXiv 2505.13447, eq. 9 to 11; each row divided by its own size, p = 1 and c = 1e-3, as in their eq.
    22.) The derivative uses two backward passes, as costly here as forward mode; the fused attention supports neither on the
    CPU, so it uses the plain one. Without a teacher: with its velocity for w the errors of the rows without a span are nearly
    zero, and divided by their own size they drown the others.
    """
    condition_NC = _conditions(student, observation, len(action_NTA))
    x_NTA, flow_NTA = _between(noise_NTA, action_NTA, time_N), action_NTA - noise_NTA

    def velocity(x_NTA: Tensor, time_N: Tensor, span_N: Tensor) -> Tensor:
        return student.velocity(x_NTA, time_N, span_N, condition_NC)

    one_N = torch.ones_like(time_N)
    with sdpa_kernel(SDPBackend.MATH):
        _, slope_NTA = torch.autograd.functional.jvp(velocity, (x_NTA, time_N, span_N), (flow_NTA, one_N, -one_N))
    error_NTA = velocity(x_NTA, time_N, span_N) - (flow_NTA + span_N[:, None, None] * slope_NTA)
    squared_N = _weighted(error_NTA * _end_weight(time_N), weights_TA).square().sum((1, 2))
    return (squared_N / (squared_N.detach() + 1e-3)).mean()


# -- shared by the four ----------------------------------------------------------------------------------------------


def _conditions(policy: FlowMapStudent | FlowTeacher, observation: Observation, rows: int) -> Tensor:
    """The condition of every row `[N, C]`; the encoder runs once per observation. Raises ValueError unless B divides N."""
    condition_BC = policy.encode(observation)
    if rows % len(condition_BC):
        raise ValueError(f"got {rows} chunks for {len(condition_BC)} observations, expected as many for each of them")
    return condition_BC.repeat_interleave(rows // len(condition_BC), dim=0)


def _between(noise_NTA: Tensor, end_NTA: Tensor, time_N: Tensor) -> Tensor:
    """x_t = (1 - t) x_0 + t x_1."""
    return noise_NTA + time_N[:, None, None] * (end_NTA - noise_NTA)


def _end_weight(time_N: Tensor) -> Tensor:
    """min(1, (1 - t) / 0.3) `[N, 1, 1]`, as in `FlowTeacher.forward` and for its reason."""
    return ((1 - time_N) / 0.3).clamp(max=1.0)[:, None, None]


def _weighted(error_NTA: Tensor, weights_TA: Tensor | None) -> Tensor:
    """The error times the square root of the weights, which are scaled to a mean of one over the chunk."""
    if weights_TA is None:
        return error_NTA
    weights_TA = weights_TA.expand(error_NTA.shape[1:])
    return error_NTA * (weights_TA / weights_TA.mean()).sqrt()


def _mean_square(error_NTA: Tensor, weights_TA: Tensor | None) -> Tensor:
    return _weighted(error_NTA, weights_TA).square().mean()
