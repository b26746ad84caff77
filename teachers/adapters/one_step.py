"""A user's own network as a one-step student: what its adapter offers for that, and the chunk that one evaluation gives.

It runs in the adapter's process, in the user's interpreter: teachers/adapters/program.py loads it by its path. So it imports
torch and nothing of ours. Python 3.10 or newer.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

OneStep = Callable[[Any, Tensor], Tensor]
"""Condition and noise `[N, ..]` to x `[N, ..]`, differentiable."""


def one_step_of(built: Any) -> tuple[OneStep | None, str]:
    """One evaluation from noise to data, and why there is none ("" where there is one).

    Its own `one_step`; else of a velocity field x + v(x, 0), or x - v(x, 1) where noise is at 1; of a denoiser the clean chunk
    that it predicts at the first timestep. A prediction of the noise says nothing there: the chunk would be 0 / 0.
    """
    if callable(getattr(built, "one_step", None)):
        return built.one_step, ""
    scheduler = getattr(built, "scheduler", None)
    if callable(getattr(built, "velocity", None)):
        at = 0 if scheduler is not None else int(getattr(built, "noise_time", 0))
        sign = 1 - 2 * at
        return lambda condition, x: x + sign * built.velocity(condition, x, x.new_full((x.shape[0],), float(at))), ""
    if callable(getattr(built, "denoise", None)) and scheduler is not None:
        return _of_denoiser(built, scheduler)
    return None, "it has neither one_step(condition, noise) nor velocity(condition, x, t)"


def _of_denoiser(built: Any, scheduler: Any) -> tuple[OneStep | None, str]:
    last = float(scheduler.config.num_train_timesteps)
    if not hasattr(scheduler, "alphas_cumprod"):  # of flow matching: sigma 1 is noise, the velocity is noise - data
        return lambda condition, x: x - built.denoise(condition, x, x.new_full((x.shape[0],), last)), ""
    kind, kept = scheduler.config.prediction_type, float(scheduler.alphas_cumprod[-1])

    def out(condition: Any, x: Tensor) -> Tensor:
        return built.denoise(condition, x, torch.full((x.shape[0],), int(last) - 1, device=x.device))

    if kind == "sample":
        return out, ""
    if kind == "v_prediction":
        return lambda condition, x: kept**0.5 * x - (1 - kept) ** 0.5 * out(condition, x), ""
    return None, f"its denoiser predicts {kind!r}, of which pure noise gives no chunk; write one_step(condition, noise)"


def obstacle(built: Any) -> str:
    """Why an adapter's network cannot be fine-tuned into a one-step student; "" where it can.

    An adapter that knows a reason of its own says it in the attribute `why_not_in_place`.
    """
    told = str(getattr(built, "why_not_in_place", "") or "")
    if told:
        return told
    if not callable(getattr(built, "encode", None)):
        return "it has no encode(observation): what is computed once and what is trained are not told apart"
    if not callable(getattr(built, "trained", None)):
        return "it has no trained(): which weights may change is not known"
    return one_step_of(built)[1]


class OneStepPolicy:
    """The network of an adapted policy (teachers.adapters.seeded.AdaptedPolicy) at one evaluation, with the same face.

    policy: whose `repeated` and `tensors` walk through a condition. noise_shape: of one noise, its attribute or `[T, A]`.
    starting_noises: `[J, *noise_shape]` and logarithms of their shares `[J]`, where they were learned; None: Gaussian noise.
    Raises ValueError where there is an obstacle.
    """

    kind = "one step"

    def __init__(self, policy: Any) -> None:
        built = policy.built
        told = obstacle(built)
        if told:
            raise ValueError(f"this policy cannot become its own one-step student: {told}")
        self.policy, self.built, self.device = policy, built, policy.device
        for name in ("horizon", "action_size", "observation_steps", "features"):
            setattr(self, name, getattr(policy, name))
        self.num_steps, self.separable, self.violations = 1, True, list[str]()
        one_step, _ = one_step_of(built)
        assert one_step is not None
        self._one_step = one_step
        shape = getattr(built, "noise_shape", None) or (policy.horizon, policy.action_size)
        if not all(isinstance(size, int) and size > 0 for size in shape):
            raise ValueError(f"noise_shape: got {shape!r}, expected the sizes of one noise, such as (horizon, action_size)")
        self.noise_shape = tuple(shape)
        self.starting_noises: tuple[Tensor, Tensor] | None = None

    def encode(self, observation: dict[str, Tensor]) -> Any:
        """The adapter's own `encode`, without gradient."""
        with torch.no_grad():
            return self.built.encode(observation)

    def noise(self, seeds: Sequence[int]) -> Tensor:
        """`[N, *noise_shape]`, each from its own seed: the noise that the teacher starts from with this seed."""
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        if self.starting_noises is None:
            return torch.stack([torch.randn(*self.noise_shape, generator=each) for each in generators]).to(self.device)
        noises, log_shares = self.starting_noises
        chosen = [int(torch.multinomial(log_shares.exp().cpu(), 1, generator=each)) for each in generators]
        return noises.detach()[chosen]

    def chunks(self, condition: Any, noise: Tensor) -> Tensor:
        """Raw chunks `[N, T, A]` float32 for N rows of a condition, with a gradient where one is wanted.

        Raises ValueError for a result of another shape than the noise, or chunks that are not `[N, T, A]`.
        """
        x = self._one_step(condition, noise)
        if not isinstance(x, Tensor) or x.shape != noise.shape:
            got = tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__
            raise ValueError(f"one_step gave {got}, expected {tuple(noise.shape)}, as its noise")
        to_actions = getattr(self.built, "to_actions", None)
        raw = to_actions(x) if callable(to_actions) else x
        if raw.ndim != 3 or raw.shape[0] != noise.shape[0]:  # len() would fix the size in a graph
            raise ValueError(f"to_actions gave {tuple(raw.shape)}, expected ({noise.shape[0]}, T, A)")
        return raw.float()

    def head(self, condition: Any, seeds: Sequence[Sequence[int]], num_steps: int) -> Tensor:
        """Raw chunks `[B, K, T, A]`, one for each of the seeds `[B][K]`, at one evaluation whatever `num_steps` says."""
        count = len(seeds[0])
        with torch.no_grad():
            chunks = self.chunks(self.repeated(condition, count), self.noise([seed for row in seeds for seed in row]))
        return chunks.detach().unflatten(0, (len(seeds), count))

    def sample(self, observation: dict[str, Tensor], num_hypotheses: int, num_steps: int, seed: int) -> Tensor:
        """As `AdaptedPolicy.sample`."""
        batch = len(next(iter(observation.values())))
        drawn = torch.randint(2**62, (batch, num_hypotheses), generator=torch.Generator().manual_seed(seed))
        return self.head(self.encode(observation), drawn.tolist(), 1)

    def evaluations(self, num_steps: int) -> int:
        return 1

    def repeated(self, condition: Any, count: int) -> Any:
        """Every row of the condition `count` times."""
        return self.policy.repeated(condition, count) if count > 1 else condition

    def tensors(self, condition: Any) -> list[Tensor]:
        """All tensors in a condition."""
        return self.policy.tensors(condition)

    # -- its weights -----------------------------------------------------------------------------------------------

    def trained(self) -> dict[str, torch.nn.Parameter]:
        """The weights that may change, by their names in the networks of the adapter's object.

        Raises ValueError for none, or for something that is no floating-point parameter.
        """
        given = list(self.built.trained())
        wrong = [type(each).__name__ for each in given if not isinstance(each, torch.nn.Parameter)]
        if wrong or not given:
            raise ValueError(f"trained() gave {sorted(set(wrong)) or 'nothing'}, expected parameters, such as "
                             "list(self.net.parameters())")  # fmt: skip
        names = {id(weight): name for name, weight in _named_weights(self.built)}
        return {names.get(id(each), f"trained.{number}"): each for number, each in enumerate(given)}

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Put weights of these names in. Raises ValueError for other names or shapes than those of `trained`."""
        trained, tensors = self.trained(), dict(tensors)
        noises = tensors.pop("starting_noises", None)
        if noises is not None:
            self.starting_noises = (noises.to(self.device), tensors.pop("starting_log_shares").to(self.device))
        wrong = sorted({*trained} ^ {*tensors}) or [name for name in trained if trained[name].shape != tensors[name].shape]
        if wrong:
            raise ValueError(f"these weights are of another network: {wrong[:4]} differ from what trained() gives")
        with torch.no_grad():
            for name, weight in trained.items():
                weight.copy_(tensors[name])

    # -- the contract ----------------------------------------------------------------------------------------------

    def faults(self, observation: dict[str, Tensor]) -> list[str]:
        """What is wrong with what it offers, tried on an observation: a line each."""
        condition, batch = self.encode(observation), len(next(iter(observation.values())))
        wrong = []
        held = self.tensors(condition)
        if any(each.requires_grad for each in held):
            wrong.append("encode: what it gives requires grad; wrap it in torch.no_grad()")
        rows = sorted({tuple(each.shape) for each in held if each.ndim == 0 or len(each) != batch})
        if rows:
            wrong.append(f"encode: got tensors of shape {rows}, expected [{batch}, ..]: a row for each observation")
        if wrong:
            return wrong
        before, noise = [each.clone() for each in held], self.noise(range(batch))
        with torch.no_grad():
            first = self.chunks(condition, noise)
            if any(not torch.equal(old.nan_to_num(), new.nan_to_num()) for old, new in zip(before, held, strict=True)):
                return ["one_step: it changed the condition in place; work on a copy"]
            if not torch.equal(first.nan_to_num(), self.chunks(condition, noise).nan_to_num()):
                wrong.append("one_step: one noise gave two chunks; call .eval() on networks (dropout draws anew in each call)")
        with trainable(self.built, self.trained()) as weights:
            first = self.chunks(condition, noise)
            if not first.requires_grad:
                return [*wrong, "one_step: no gradient reaches the weights; take torch.no_grad() off what it calls, or give by "
                        "trained() those that it uses"]  # fmt: skip
            first.square().mean().backward()
            reached = {name: each.grad for name, each in weights.items() if each.grad is not None}
            broken = [name for name, grad in reached.items() if not bool(torch.isfinite(grad).all())]
            if broken or not bool(torch.isfinite(first).all()):
                wrong.append(f"one_step: {broken[:3] or 'the chunk'} has NaN or infinity, expected finite numbers")
        return wrong


@contextlib.contextmanager
def trainable(built: Any, trained: dict[str, torch.nn.Parameter]) -> Iterator[dict[str, torch.nn.Parameter]]:
    """Within, these weights take a gradient and no others of the adapter's networks do; afterwards all is as before."""
    every = {id(each): each for each in (*(weight for _, weight in _named_weights(built)), *trained.values())}
    before = [(each, each.requires_grad) for each in every.values()]
    wanted = {id(each) for each in trained.values()}
    for each in every.values():
        each.requires_grad_(id(each) in wanted)
        each.grad = None
    try:
        with torch.enable_grad():
            yield trained
    finally:
        for each, needed in before:
            each.requires_grad_(needed)
            each.grad = None


def _named_weights(built: Any) -> Iterator[tuple[str, torch.nn.Parameter]]:
    """Name and weight of the networks that an adapter's object is or holds."""
    if isinstance(built, torch.nn.Module):
        yield from built.named_parameters()
        return
    for name, held in getattr(built, "__dict__", {}).items():
        if isinstance(held, torch.nn.Module):
            yield from ((f"{name}.{inner}", weight) for inner, weight in held.named_parameters())
