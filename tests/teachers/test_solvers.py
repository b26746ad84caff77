"""The solvers against closed forms: their exact step polynomials, their order, their evaluations."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from teachers.solvers import SOLVERS, integrate

START = torch.tensor([[1.0, -2.0], [0.5, 3.0]], dtype=torch.float64)


def _decay(x: Tensor, t: Tensor) -> Tensor:
    return -x


def _linear(x: Tensor, t: Tensor) -> Tensor:
    """dx/dt = t - x, whose solution is x(t) = t - 1 + (x(0) + 1) exp(-t)."""
    return t[:, None] - x


@pytest.mark.parametrize("steps", [1, 2, 3, 7])
def test_decay_is_multiplied_by_the_solvers_polynomial_every_step(steps: int) -> None:
    # dx/dt = -x: Euler multiplies by 1 - h, both second-order methods by 1 - h + h^2/2; Heun ends with an Euler step
    h = 1 / steps
    first, second = 1 - h, 1 - h + h * h / 2
    expected = {"euler": first**steps, "midpoint": second**steps, "heun": second ** (steps - 1) * first}
    # shrinking: midpoint steps of length (2 (n - i) - 1) / n^2, i = 0 .. n - 1: odd numbers over n^2, which add up to 1; the
    # last is an Euler step
    lengths = [odd / steps**2 for odd in range(3, 2 * steps, 2)]
    expected["shrinking"] = math.prod(1 - one + one * one / 2 for one in lengths) * (1 - 1 / steps**2)
    assert set(expected) == set(SOLVERS)
    for solver, factor in expected.items():
        torch.testing.assert_close(integrate(_decay, START, steps, solver), START * factor, rtol=1e-13, atol=0)


def test_a_field_of_time_alone_gives_the_rectangle_midpoint_and_trapezium_rules() -> None:
    # dx/dt = 3 t^2 in two steps of 1/2.
    # Euler: 1/2 (0 + 3/4) = 3/8. Midpoint: 1/2 (3/16 + 27/16) = 15/16.
    # Heun: a trapezium, 1/2 * (0 + 3/4) / 2 = 3/16, then an Euler step, 1/2 * 3/4 = 3/8; together 9/16.
    # Shrinking: from 0 to 3/4 by its middle and on to 1 by an Euler step, 3/4 * 27/64 + 1/4 * 27/16 = 189/256.
    for solver, integral in (("euler", 3 / 8), ("midpoint", 15 / 16), ("heun", 9 / 16), ("shrinking", 189 / 256)):
        end = integrate(lambda x, t: 3 * t[:, None].square().expand_as(x), START, 2, solver)
        torch.testing.assert_close(end, START + integral, rtol=1e-13, atol=0)


@pytest.mark.parametrize(("solver", "order"), [("euler", 1), ("midpoint", 2), ("heun", 2), ("shrinking", 2)])
@pytest.mark.parametrize(
    ("field", "end"), [(_decay, START * math.exp(-1)), (_linear, (START + 1) * math.exp(-1))], ids=["decay", "linear"]
)
def test_the_error_falls_with_the_solvers_order(solver: str, order: int, field, end: Tensor) -> None:
    errors = [float((integrate(field, START, steps, solver) - end).abs().max()) for steps in (64, 128, 256)]
    slopes = [math.log2(coarse / fine) for coarse, fine in zip(errors, errors[1:], strict=False)]
    assert all(abs(slope - order) < 0.05 for slope in slopes), slopes


@pytest.mark.parametrize("solver", sorted(SOLVERS))
@pytest.mark.parametrize("steps", [1, 2, 5])
def test_evaluations_are_counted_as_they_happen_and_none_is_at_the_end(solver: str, steps: int) -> None:
    seen: list[Tensor] = []

    def velocity(x: Tensor, t: Tensor) -> Tensor:
        seen.append(t)
        return x

    integrate(velocity, START, steps, solver)
    assert len(seen) == SOLVERS[solver].evaluations(steps)
    assert all(t.shape == (2,) and t.dtype == torch.float64 for t in seen)
    times = [float(t[0]) for t in seen]
    assert min(times) == 0.0 and max(times) < 1.0  # at t = 1 the velocity of an end-point prediction is 0 / 0
    expected = {
        "euler": [k / steps for k in range(steps)],
        "midpoint": [(k + half) / steps for k in range(steps) for half in (0, 0.5)],
        "heun": [(k + whole) / steps for k in range(steps) for whole in (0, 1)][:-1],
        # by hand for the three numbers of steps: 1 - 1, 1 - 1/4, 1 - 16/25, 1 - 9/25, ..
        "shrinking": {1: [0.0], 2: [0.0, 0.375, 0.75], 5: [0.0, 0.18, 0.36, 0.5, 0.64, 0.74, 0.84, 0.9, 0.96]}[steps],
    }[solver]
    assert times == pytest.approx(expected, abs=1e-12)


def test_the_times_of_shrinking_steps_by_hand() -> None:
    shrinking = SOLVERS["shrinking"]
    assert [shrinking.time(i / 4) for i in range(5)] == [0.0, 7 / 16, 12 / 16, 15 / 16, 1.0]
    # the last of 16 steps is 1/256 long, the first 31/256
    assert 1 - shrinking.time(15 / 16) == 1 / 256 and shrinking.time(1 / 16) == 31 / 256
    assert all(SOLVERS[name].time(0.3) == 0.3 for name in SOLVERS if name != "shrinking")


def test_evaluations_by_hand() -> None:
    assert [SOLVERS["shrinking"].evaluations(n) for n in (1, 4, 50)] == [1, 7, 99]
    assert [SOLVERS["euler"].evaluations(n) for n in (1, 4, 50)] == [1, 4, 50]
    assert [SOLVERS["midpoint"].evaluations(n) for n in (1, 4, 50)] == [2, 8, 100]
    assert [SOLVERS["heun"].evaluations(n) for n in (1, 4, 50)] == [1, 7, 99]


@pytest.mark.parametrize("solver", sorted(SOLVERS))
def test_the_flow_of_gaussian_data_carries_every_noise_to_its_quantile(solver: str) -> None:
    # For data N(mu, s^2) and independent noise N(0, 1), x_t = (1 - t) x_0 + t x_1 is N(t mu, v_t) with
    # v_t = (1 - t)^2 + t^2 s^2, and E[x_1 - x_0 | x_t] = mu + (t s^2 - (1 - t)) / v_t (x_t - t mu).
    # Its flow is x_t = t mu + sqrt(v_t) x_0, so every noise ends at mu + s x_0.
    mu, s = 1.5, 0.2

    def velocity(x: Tensor, t: Tensor) -> Tensor:
        t = t[:, None]
        return mu + (t * s**2 - (1 - t)) / ((1 - t) ** 2 + t**2 * s**2) * (x - t * mu)

    noise = torch.randn(4000, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    end = integrate(velocity, noise, 100 if SOLVERS[solver].stages == 2 else 400, solver)
    torch.testing.assert_close(end, mu + s * noise, rtol=0, atol=0.01)
    assert float(end.mean()) == pytest.approx(mu, abs=0.015) and float(end.std()) == pytest.approx(s, rel=0.05)


@pytest.mark.parametrize("steps", [0, -3])
def test_no_steps_are_refused(steps: int) -> None:
    with pytest.raises(ValueError, match=f"num_steps must be at least 1, got {steps}"):
        integrate(_decay, START, steps)


def test_an_unknown_solver_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"'rk4'.*'euler', 'heun', 'midpoint', 'shrinking'"):
        integrate(_decay, START, 2, "rk4")
