"""Denoisers with schedulers of diffusers: both directions of time give samples of one known distribution."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from teachers.adapters.seeded import DenoiserPolicy, SamplerPolicy, VelocityFieldPolicy, _repeated, adapt, parameters
from teachers.solvers import integrate

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
"""diffusers' own, in its schedulers for numpy 2."""

CENTRE, SPREAD = 2.0, 0.5
"""The data: every number of a chunk is normal with this mean and standard deviation, whatever is observed."""


class Data:
    """The exact denoiser and the exact velocity of that distribution."""

    horizon, action_size, num_steps = 4, 2, 20

    def expected(self, x: Tensor, signal: Tensor, noise: Tensor) -> Tensor:
        """E[x1 | x = signal x1 + noise n]."""
        signal, noise = signal[:, None, None], noise[:, None, None]
        gain = signal * SPREAD**2 / (noise**2 + signal**2 * SPREAD**2)
        return CENTRE + gain * (x - signal * CENTRE)


class WithScheduler(Data):
    def __init__(self, scheduler: Any) -> None:
        self.scheduler = scheduler

    def denoise(self, observation: Any, x: Tensor, timestep: Tensor) -> Tensor:
        if "Flow" in type(self.scheduler).__name__:
            sigma = timestep / 1000
            return (x - self.expected(x, 1 - sigma, sigma)) / sigma[:, None, None]
        kept = self.scheduler.alphas_cumprod[timestep.long()]
        clean = self.expected(x, kept.sqrt(), (1 - kept).sqrt())
        if self.scheduler.config.prediction_type == "sample":
            return clean
        return (x - kept.sqrt()[:, None, None] * clean) / (1 - kept).sqrt()[:, None, None]


class OurTime(Data):
    def velocity(self, observation: Any, x: Tensor, t: Tensor) -> Tensor:
        return (self.expected(x, t, 1 - t) - x) / (1 - t)[:, None, None].clamp(min=1e-3)


class OurTimeWithScheduler(OurTime):
    def __init__(self, scheduler: Any) -> None:
        self.scheduler = scheduler


def schedulers() -> dict[str, Any]:
    import diffusers

    cosine = {"beta_schedule": "squaredcos_cap_v2", "clip_sample": False}
    return {
        "ddim": WithScheduler(diffusers.DDIMScheduler(prediction_type="sample", **cosine)),
        "ddpm": WithScheduler(diffusers.DDPMScheduler(prediction_type="epsilon", **cosine)),
        "dpm": WithScheduler(diffusers.DPMSolverMultistepScheduler(prediction_type="epsilon")),
        "flow": WithScheduler(diffusers.FlowMatchEulerDiscreteScheduler()),
        "ours": OurTime(),
        "ours by flow": OurTimeWithScheduler(diffusers.FlowMatchEulerDiscreteScheduler()),
        "ours by heun": OurTimeWithScheduler(diffusers.FlowMatchHeunDiscreteScheduler()),
    }


SEEDS = [[row * 300 + each for each in range(300)] for row in range(2)]


@pytest.mark.parametrize("name", ["ddim", "ddpm", "dpm", "flow", "ours", "ours by flow", "ours by heun"])
def test_every_scheduler_draws_the_distribution(name: str) -> None:
    it = adapt(schedulers()[name], integrate)
    chunks = it.head({"observation.state": torch.zeros(2, 1, 3)}, SEEDS, 40)
    assert chunks.shape == (2, 300, 4, 2)
    assert float(chunks.mean()) == pytest.approx(CENTRE, abs=0.06)
    assert float(chunks.std()) == pytest.approx(SPREAD, abs=0.06)
    again = it.head({"observation.state": torch.zeros(2, 1, 3)}, SEEDS, 40)
    assert torch.equal(again, chunks)  # a scheduler that remembers begins anew
    alone = it.head({"observation.state": torch.zeros(1, 1, 3)}, [SEEDS[1][:1]], 40)
    torch.testing.assert_close(alone[0, 0], chunks[1, 0], rtol=1e-4, atol=1e-4)  # its noise is its seed's own


def test_a_flow_scheduler_of_diffusers_takes_the_steps_of_our_solver() -> None:
    """sigma from 1 to 0 in equal steps is t from 0 to 1 in equal steps."""
    given = {"observation.state": torch.zeros(2, 1, 3)}
    mine = adapt(OurTime(), integrate).head(given, SEEDS, 10)
    import diffusers

    scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
    theirs = DenoiserPolicy(OurTimeWithScheduler(scheduler), "velocity")
    theirs.scheduler.set_timesteps(10)
    times = 1 - theirs.scheduler.sigmas
    chunk = torch.stack([torch.randn(4, 2, generator=torch.Generator().manual_seed(s)) for s in SEEDS[0]])
    for now, then in zip(times[:-1], times[1:], strict=True):
        chunk = chunk + (then - now) * OurTime().velocity(None, chunk, now.expand(300))
    torch.testing.assert_close(theirs.head(given, SEEDS, 10)[0], chunk, rtol=1e-4, atol=1e-4)
    assert float((mine[0] - chunk).abs().mean()) < 0.05  # diffusers' last step is a little longer


def test_a_field_whose_time_runs_from_data_to_noise_gives_the_same() -> None:
    class Turned(OurTime):
        noise_time = 1

        def velocity(self, observation: Any, x: Tensor, t: Tensor) -> Tensor:
            return -super().velocity(observation, x, 1 - t)

    first, second = (adapt(field, integrate).head({"a": torch.zeros(2, 1)}, SEEDS, 7) for field in (OurTime(), Turned()))
    torch.testing.assert_close(first, second)


def test_network_evaluations_are_the_scheduler_s_steps() -> None:
    made = schedulers()
    assert adapt(made["ddim"], integrate).evaluations(10) == 10
    assert adapt(made["ours by heun"], integrate).evaluations(10) == 19  # two a step, the last has one
    field = OurTime()
    field.solver = "midpoint"  # type: ignore[attr-defined]
    it = adapt(field, integrate)
    it.head({"observation.state": torch.zeros(1, 1, 3)}, [[1]], 10)
    assert it.evaluations(10) == 20


def test_a_velocity_with_a_scheduler_that_is_no_flow_s_is_refused() -> None:
    import diffusers

    with pytest.raises(ValueError, match="velocity goes with a flow-matching scheduler, got DDIMScheduler"):
        adapt(OurTimeWithScheduler(diffusers.DDIMScheduler()), integrate)


def test_kinds_are_told_apart_by_what_they_can_do() -> None:
    class Both(OurTime):
        def sample(self, *given: Any) -> None: ...

    assert isinstance(adapt(Both(), integrate), SamplerPolicy)
    assert isinstance(adapt(OurTime(), integrate), VelocityFieldPolicy)
    with pytest.raises(ValueError, match="with denoise, but no scheduler"):
        adapt(type("Bare", (), {"denoise": lambda self: None})(), integrate)


@pytest.mark.parametrize("encoded", [torch.arange(2.0), [torch.arange(2.0)], {"a": (torch.arange(2.0), None)}])
def test_what_encode_gives_is_repeated_for_every_chunk(encoded: Any) -> None:
    class Encoding(Data):
        def encode(self, observation: Any) -> Any:
            return encoded

        def velocity(self, condition: Any, x: Tensor, t: Tensor) -> Tensor:
            value = condition["a"] if isinstance(condition, dict) else condition
            value = value if isinstance(value, Tensor) else value[0]
            return value[:, None, None] - x

    it = adapt(Encoding(), integrate)
    chunks = it.head(it.encode({}), [[1, 2, 3], [4, 5, 6]], 1)
    torch.testing.assert_close(chunks, torch.tensor([0.0, 1.0])[:, None, None, None].expand(2, 3, 4, 2))


def test_weights_of_networks_are_counted() -> None:
    holder = type("Holder", (), {})()
    assert parameters(holder) is None
    holder.network = torch.nn.Linear(3, 2)
    assert parameters(holder) == parameters(holder.network) == 8


@pytest.mark.parametrize("value", [0, True, "4", 2.5])
def test_a_horizon_that_is_no_count_is_refused(value: Any) -> None:
    field = OurTime()
    field.horizon = value
    with pytest.raises(ValueError, match="horizon: got .*, expected a whole number of at least 1"):
        adapt(field, integrate)


@pytest.mark.parametrize(
    ("name", "function", "message"),
    [
        ("velocity", lambda observation, *, x, t: x, r"seeded.py:\d+: velocity\(observation, \*, x, t\) is called as v"),
        ("velocity", lambda observation, x, t, guidance: x, "missing a required argument: 'guidance'"),
        ("encode", lambda: None, "is called as encode\\(observation\\), one after the other: too many positional"),
    ],
)
def test_a_function_that_cannot_be_called_is_named_with_its_line(name: str, function: Any, message: str) -> None:
    field = OurTime()
    setattr(field, name, function)
    with pytest.raises(ValueError, match=message) as error:
        adapt(field, integrate)
    assert "\n" not in str(error.value)


def test_what_is_changed_in_place_is_a_fault() -> None:
    class InPlace(OurTime):
        def velocity(self, observation: Any, x: Tensor, t: Tensor) -> Tensor:
            out = super().velocity(observation, x, t)
            x.zero_(), observation["observation.state"].mul_(2)
            return out

    given = {"observation.state": torch.ones(2, 1, 3)}
    for kind, violations in ((InPlace, {"x: velocity changed it", "observation: velocity changed it"}), (OurTime, set())):
        it = adapt(kind(), integrate)
        it.sample(dict(given), 3, 2, seed=0)
        assert {violation.partition(" in place")[0] for violation in it.violations} == violations


class Seen(NamedTuple):
    rows: Tensor
    scale: float


def test_a_condition_keeps_its_kind_when_its_rows_are_repeated() -> None:
    rows = torch.tensor([[1.0], [2.0]])
    made = _repeated(OrderedDict(a=Seen(rows, 0.5), b=[rows, None, "text"]), 2)
    assert type(made) is OrderedDict and type(made["a"]) is Seen and made["a"].scale == 0.5
    assert made["a"].rows.tolist() == made["b"][0].tolist() == [[1], [1], [2], [2]] and made["b"][1:] == [None, "text"]
    with pytest.raises(TypeError, match="encode gave a object"):
        _repeated({"a": object()}, 2)
