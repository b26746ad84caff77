"""The kinds of LeRobot policy as teachers: what is encoded once for an observation, and what runs for each of the K chunks.

teachers/adapters/lerobot_policies.py loads it by its path, in LeRobot's environment. Written for LeRobot 0.6.1. Python 3.10.
"""

from __future__ import annotations

import contextlib
import copy
import inspect
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

ALIASES = {"observation.images.front": "observation.image"}
"""Our names for features that a policy may name otherwise: `envs.recorded.observations` names a single camera so."""


class LeRobotTeacher:
    """The base class of all kinds. `sample` is that of `teachers.contract.Teacher`; a chunk begins at the present frame.

    num_encoded: observations encoded so far; features: those that it uses, under our names; observation_steps: O; horizon: T;
    num_steps: solver steps it is used with; why_not_in_place: see teachers.adapters.one_step.obstacle.
    """

    why_not_in_place = ""

    def __init__(
        self, policy: Any, preprocessor: Any, postprocessor: Any, instruction: str, names: dict[str, str], num_steps: int
    ) -> None:
        self.policy, self.instruction = policy, instruction
        self.preprocessor, self.postprocessor = preprocessor, postprocessor
        config = policy.config
        self.device = torch.device(config.device)
        self.action_size, self.num_steps = int(config.action_feature.shape[0]), num_steps or self.configured_steps()
        inputs = [name for name in config.input_features if name.startswith("observation.")]
        ours_of = {its: ours for ours, its in {**ALIASES, **names}.items() if its in inputs}
        self.names = {ours_of.get(name, name): name for name in inputs}
        self.features, self.num_encoded = list(self.names), 0
        self.observation_steps = int(getattr(config, "n_obs_steps", 1))
        self.horizon = self.chunk_length()

    @torch.no_grad()
    def sample(self, observation: dict[str, Tensor], num_hypotheses: int, num_steps: int, generator: Any) -> Tensor:
        """`[B, K, T, A]` raw actions; all noise from the generator. Raises ValueError as `preprocess`."""
        batch = self.preprocess(observation)
        size = len(next(iter(observation.values())))
        self.policy.reset()
        chunks_NTA = self.chunks(batch, size, num_hypotheses, num_steps, generator)
        chunks_BKTA = chunks_NTA.float().unflatten(0, (size, num_hypotheses))
        # one hypothesis at a time: a postprocessor of relative actions adds the B states that the preprocessor remembered
        raw = torch.stack([self.postprocessor(chunks_BKTA[:, k]) for k in range(num_hypotheses)], 1)
        return raw.to(self.device).float()[..., : self.action_size]

    def preprocess(self, observation: dict[str, Tensor]) -> dict[str, Any]:
        """An observation `[B, O, ..]` after the policy's own preprocessor; without O for policies of one frame.

        Raises ValueError for missing features, another O, or values that are not finite.
        """
        missing = [name for name in self.features if name not in observation]
        if missing:
            raise ValueError(f"observation: {missing} is missing; got {sorted(observation)}. If it has another name, "
                             "add names=recorded=policy's")  # fmt: skip
        batch: dict[str, Any] = {}
        for name, its in self.names.items():
            value = observation[name]
            if value.shape[1] != self.observation_steps or not bool(value.isfinite().all()):
                raise ValueError(f"observation: {name} is {tuple(value.shape)}, expected {self.observation_steps} frames of "
                                 "finite numbers")  # fmt: skip
            batch[its] = (value if self.takes_history() else value[:, -1]).clone()
        batch["task"] = [self.instruction] * len(value)
        return dict(self.preprocessor(batch))

    def evaluations(self, num_steps: int) -> int:
        """Network evaluations (NFE) of `num_steps` solver steps."""
        return num_steps

    def chunks(self, batch: dict[str, Any], size: int, count: int, num_steps: int, generator: Any) -> Tensor:
        """Normalised chunks `[B*K, T, A]`, the K of an observation in a row. size, count: B and K."""
        raise NotImplementedError

    def takes_history(self) -> bool:
        """Whether its inputs have the dimension O."""
        return True

    def chunk_length(self) -> int:
        """T, actions from the present frame on; LeRobot executes the first n_action_steps of them."""
        return int(self.policy.config.horizon) - self.observation_steps + 1

    def configured_steps(self) -> int:
        """Solver steps in its config."""
        raise NotImplementedError

    def images(self, batch: dict[str, Any]) -> dict[str, Any]:
        """The batch with all cameras' images stacked, as these policies expect them."""
        cameras = list(self.policy.config.image_features)
        return {**batch, "observation.images": torch.stack([batch[name] for name in cameras], dim=-4)} if cameras else batch

    def noise(self, *shape: int, generator: Any) -> Tensor:
        """Standard normal numbers of this shape."""
        return torch.randn(*shape, generator=generator, device=generator.device).to(self.device)


class Diffusion(LeRobotTeacher):
    """DDPM or DDIM on a U-Net: the global conditioning is computed once and repeated."""

    def chunks(self, batch: dict[str, Any], size: int, count: int, num_steps: int, generator: Any) -> Tensor:
        model = self.policy.diffusion
        condition = model._prepare_global_conditioning(self.images(batch))
        self.num_encoded += size
        with patched_attributes(model, num_inference_steps=num_steps):
            drawn = model.conditional_sample(
                size * count, global_cond=condition.repeat_interleave(count, 0), generator=generator
            )
        return drawn[:, self.observation_steps - 1 :]

    def configured_steps(self) -> int:
        return int(self.policy.diffusion.num_inference_steps)


class MultiTaskDiT(LeRobotTeacher):
    """A diffusion transformer whose objective is flow matching (time from 0, noise, to 1) or diffusion."""

    def chunks(self, batch: dict[str, Any], size: int, count: int, num_steps: int, generator: Any) -> Tensor:
        model, objective = self.policy.noise_predictor, self.policy.objective
        condition = self.policy.observation_encoder.encode(self.images(batch))
        self.num_encoded += size
        repeated, config = condition.repeat_interleave(count, 0), self.policy.config
        x_NTA = self.noise(size * count, config.horizon, self.action_size, generator=generator).to(condition.dtype)
        if config.is_flow_matching:
            integrate = objective._rk4_integrate if config.integration_method == "rk4" else objective._euler_integrate
            x_NTA = integrate(model, x_NTA, torch.linspace(0, 1, num_steps + 1, device=self.device), repeated)
        else:
            scheduler = objective.noise_scheduler
            scheduler.set_timesteps(num_steps)
            for time in scheduler.timesteps:
                out = model(x_NTA, torch.full((len(x_NTA),), int(time), device=self.device), conditioning_vec=repeated)
                x_NTA = scheduler.step(out, time, x_NTA, generator=generator).prev_sample
        return x_NTA[:, self.observation_steps - 1 :]

    def evaluations(self, num_steps: int) -> int:
        config = self.policy.config
        return num_steps * (4 if config.is_flow_matching and config.integration_method == "rk4" else 1)

    def configured_steps(self) -> int:
        config = self.policy.config
        return int(config.num_integration_steps if config.is_flow_matching else self.policy.objective.num_inference_steps)


class PrefixPolicy(LeRobotTeacher):
    """smolvla, pi0 and pi05: images and words become a prefix, to whose keys and values the action head attends.

    The policy's own sampler runs for the B observations with noise for B*K chunks. It computes the prefix for B, and every
    denoising step gets each observation's tensors K times. Time runs from 1 (noise) to 0.
    """

    def chunks(self, batch: dict[str, Any], size: int, count: int, num_steps: int, generator: Any) -> Tensor:
        model, config = self.policy.model, self.policy.config
        noise = self.noise(size * count, config.chunk_size, config.max_action_dim, generator=generator)
        embed, denoise = model.embed_prefix, model.denoise_step
        signature, prefix = inspect.signature(denoise), dict[str, Any]()

        def embed_prefix(*given: Any, **named: Any) -> Any:
            self.num_encoded += size
            return embed(*given, **named)

        def denoise_step(*given: Any, **named: Any) -> Any:
            arguments = signature.bind(*given, **named).arguments
            x_t, timestep = arguments.pop("x_t"), arguments.pop("timestep")
            if not prefix:  # the same in every step
                prefix.update({name: repeated(value, count) for name, value in arguments.items()})
            return denoise(**prefix, x_t=x_t, timestep=timestep[:1].expand(len(x_t)))

        steps = {name: num_steps for name in ("num_steps", "num_inference_steps") if hasattr(config, name)}
        hooks = {"embed_prefix": embed_prefix, "denoise_step": denoise_step}
        with patched_attributes(model, **hooks), patched_attributes(config, **steps):
            return self.policy.predict_action_chunk(batch, noise=noise)

    def takes_history(self) -> bool:
        return False

    def chunk_length(self) -> int:
        return int(self.policy.config.chunk_size)

    def configured_steps(self) -> int:
        config = self.policy.config
        return int(getattr(config, "num_steps", None) or config.num_inference_steps)


class XVLA(LeRobotTeacher):
    """The transformer predicts the clean chunk; a step mixes it with the chunk's own noise again. Time from 1 (noise) to 0."""

    def condition(self, batch: dict[str, Any]) -> dict[str, Any]:
        """The arguments of its transformer that stay the same in all steps, a row for each observation."""
        model, inputs = self.policy.model, self.policy._build_model_inputs(batch)
        kept = model._get_target_dtype()
        seen = model.forward_vlm(inputs["input_ids"], inputs["image_input"].to(kept), inputs["image_mask"])
        self.num_encoded += len(inputs["proprio"])
        return {"domain_id": inputs["domain_id"], "proprio": inputs["proprio"].to(kept), **seen}

    def clean(self, condition: dict[str, Any], x: Tensor, time: float) -> Tensor:
        """The clean chunk that its transformer predicts of x `[N, T, A]` at a time, as the model pads it."""
        proprio, noisy = self.policy.model.action_space.preprocess(condition["proprio"], x)
        return self.policy.model.transformer(
            action_with_noise=noisy, t=x.new_full((len(x),), time), **{**condition, "proprio": proprio}
        )

    def chunks(self, batch: dict[str, Any], size: int, count: int, num_steps: int, generator: Any) -> Tensor:
        model, condition = self.policy.model, repeated(self.condition(batch), count)
        noise = self.noise(size * count, model.chunk_size, model.dim_action, generator=generator).to(model._get_target_dtype())
        action = torch.zeros_like(noise)
        for step in range(num_steps, 0, -1):
            time = step / num_steps
            action = self.clean(condition, noise * time + action * (1 - time), time)
        return model.action_space.postprocess(action)

    def takes_history(self) -> bool:
        return False

    def chunk_length(self) -> int:
        return int(self.policy.config.chunk_size)

    def configured_steps(self) -> int:
        return int(self.policy.config.num_denoising_steps)


def teacher_of(kind: str) -> type[LeRobotTeacher]:
    """The class of a kind of policy."""
    kinds: dict[str, type[LeRobotTeacher]] = {"diffusion": Diffusion, "multi_task_dit": MultiTaskDiT, "xvla": XVLA}
    return kinds.get(kind, PrefixPolicy)


def repeated(value: Any, count: int) -> Any:
    """Each row of each tensor `count` times, in dicts, lists, tuples, and transformers' caches of keys and values."""
    if isinstance(value, Tensor):
        return value.repeat_interleave(count, dim=0)
    if isinstance(value, dict):
        return {name: repeated(each, count) for name, each in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(repeated(each, count) for each in value)
    if hasattr(value, "batch_repeat_interleave"):
        copied = copy.deepcopy(value)
        copied.batch_repeat_interleave(count)
        return copied
    if value is None:
        return None
    raise TypeError(f"a prefix holds a {type(value).__name__}, expected tensors or a cache of keys and values")


@contextlib.contextmanager
def patched_attributes(thing: Any, **attributes: Any) -> Iterator[None]:
    """Sets attributes within the context; afterwards restores or removes them."""
    before = {name: vars(thing)[name] for name in attributes if name in vars(thing)}
    for name, value in attributes.items():
        object.__setattr__(thing, name, value)
    try:
        yield
    finally:
        for name in attributes:
            if name in before:
                object.__setattr__(thing, name, before[name])
            else:
                object.__delattr__(thing, name)
