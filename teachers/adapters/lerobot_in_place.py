"""A LeRobot policy's own action head at one evaluation: how it is fine-tuned, and saved as LeRobot saves a policy.

teachers/adapters/lerobot_policies.py loads it by its path, in LeRobot's environment. Written for LeRobot 0.6.1. The
encoder of observations stays as it is; the head alone is trained. Python 3.10.
"""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

STEP_SETTINGS = {"multi_task_dit": "num_integration_steps", "smolvla": "num_steps", "pi0": "num_inference_steps",
                 "pi05": "num_inference_steps", "xvla": "num_denoising_steps", "diffusion": "num_inference_steps"}  # fmt: skip
"""Kinds that can be fine-tuned in place, and what the number of solver steps is called in their config.json. A multi_task_dit
with the objective diffusion names it as diffusion does."""

PROJECTIONS = ("action_in_proj", "action_out_proj", "action_time_mlp_in", "action_time_mlp_out", "time_mlp_in", "time_mlp_out")
RELATIVE = ("absolute_actions_processor", "delta_actions_processor")
"""Steps of a postprocessor that remember the states of B observations, and would add them to the chunks of others."""


def why_not(policy: Any, folder: Path) -> str:
    """Why a policy cannot be fine-tuned in place; "" where it can."""
    config = policy.config
    if config.type not in STEP_SETTINGS:
        return f"{config.type} is not among {sorted(STEP_SETTINGS)}"
    if getattr(config, "compile_model", False):
        return "its network is compiled (compile_model), whose saved weights have other names; set compile_model to false"
    steps = json.loads((folder / "policy_postprocessor.json").read_text()).get("steps", [])
    relative = [step.get("registry_name") for step in steps if step.get("registry_name") in RELATIVE
                and (step.get("config") or {}).get("enabled", True)]  # fmt: skip
    if relative:
        return f"its actions are relative to a state that its postprocessor remembers ({relative[0]})"
    return ""


class InPlace:
    """A teacher of lerobot_policies.py with what fine-tuning its head in place needs; all else is the teacher's.

    teacher: a `LeRobotTeacher`; folder: of the policy as LeRobot saved it; build: opens such a folder as `teacher` was.
    """

    def __init__(self, teacher: Any, folder: Path, build: Callable[[str], Any]) -> None:
        self.teacher, self.policy, self._folder, self._build = teacher, teacher.policy, folder, build
        self.head = _head_of(teacher)
        self.noise_shape = self.head.noise_shape

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["teacher"], name)

    def sample(self, observation: dict[str, Tensor], num_hypotheses: int, num_steps: int, generator: Any) -> Tensor:
        """The teacher's."""
        drawn: Tensor = self.teacher.sample(observation, num_hypotheses, num_steps, generator)
        return drawn

    def encode(self, observation: dict[str, Tensor]) -> Any:
        """What images, words and state become: a tensor `[B, C]`, or a dict of tensors with a row for each observation."""
        with torch.no_grad():
            return self.head.encode(self.teacher.preprocess(observation), len(next(iter(observation.values()))))

    def one_step(self, condition: Any, noise: Tensor) -> Tensor:
        """From noise to the normalised chunk, padded as the policy's is."""
        x: Tensor = self.head.one_step(condition, noise)
        return x

    def trained(self) -> list[nn.Parameter]:
        """The weights of the action head."""
        found: list[nn.Parameter] = self.head.trained()
        return found

    def to_actions(self, x: Tensor) -> Tensor:
        """Raw actions `[N, T, A]` from the present frame on, by the policy's own postprocessor."""
        chunk = self.head.chunk(x)[..., : self.teacher.action_size]
        raw: Tensor = self.teacher.postprocessor(chunk.float())
        return raw.to(x.device)

    def save(self, folder: str) -> None:
        """An ordinary ``pretrained_model`` folder: all files as they were, other weights, one step in the config."""
        target = Path(folder)
        others = shutil.ignore_patterns("model.safetensors", "README.md")
        shutil.copytree(self._folder, target, dirs_exist_ok=True, ignore=others)
        with self.head.saved_weights():
            self.policy.save_pretrained(str(target))
        config = json.loads((self._folder / "config.json").read_text())
        (target / "config.json").write_text(json.dumps(config | self.head.settings(), indent=4))

    def reload(self, folder: str) -> Any:
        """The policy in such a folder."""
        return self._build(folder)


# -- the heads of the kinds ----------------------------------------------------------------------------------------------


def _head_of(teacher: Any) -> Any:
    config = teacher.policy.config
    if config.type == "diffusion":
        return _Denoiser(teacher, teacher.policy.diffusion.unet, teacher.policy.diffusion, "diffusion_step_encoder")
    if config.type == "multi_task_dit" and config.is_diffusion:
        return _Denoiser(teacher, teacher.policy.noise_predictor, teacher.policy.objective, "time_mlp")
    return {"multi_task_dit": _FlowTransformer, "xvla": _CleanAction}.get(config.type, _Expert)(teacher)


class _Head:
    """What differs between kinds. noise_shape: of one noise."""

    noise_shape: tuple[int, int]

    def __init__(self, teacher: Any) -> None:
        self.teacher, self.policy, self.config = teacher, teacher.policy, teacher.policy.config

    def chunk(self, x: Tensor) -> Tensor:
        """`[N, T, ..]` of x: from the present frame on."""
        return x

    def settings(self) -> dict[str, Any]:
        """What changes in config.json."""
        return {STEP_SETTINGS[self.config.type]: 1}

    def saved_weights(self) -> contextlib.AbstractContextManager[Any]:
        """Within, the policy's weights are those to be saved."""
        return contextlib.nullcontext()


class _FlowTransformer(_Head):
    """multi_task_dit by flow matching: x + v(x, 0). Its condition is one vector."""

    def __init__(self, teacher: Any) -> None:
        super().__init__(teacher)
        self.noise_shape = (self.config.horizon, teacher.action_size)

    def encode(self, batch: dict[str, Any], size: int) -> Tensor:
        encoded: Tensor = self.policy.observation_encoder.encode(self.teacher.images(batch))
        return encoded

    def one_step(self, condition: Tensor, noise: Tensor) -> Tensor:
        return noise + self.policy.noise_predictor(noise, noise.new_zeros(len(noise)), conditioning_vec=condition)

    def chunk(self, x: Tensor) -> Tensor:
        return x[:, self.teacher.observation_steps - 1 :]

    def trained(self) -> list[nn.Parameter]:
        return list(self.policy.noise_predictor.parameters())

    def settings(self) -> dict[str, Any]:
        return {**super().settings(), "integration_method": "euler"}  # a Runge-Kutta step would be four evaluations


class _Denoiser(_Head):
    """diffusion, and multi_task_dit by diffusion: the network's output is the clean chunk, whatever it predicted before.

    It starts at the first timestep of the policy's own sampler. With one step LeRobot's schedulers evaluate at timestep 0
    instead, with the output clipped as it is here; `saved_weights` makes the network see the first timestep there. A network
    that predicted the noise is saved as one that predicts the sample: one step of it gives no chunk, as pure noise holds none.
    """

    def __init__(self, teacher: Any, network: nn.Module, objective: Any, time: str) -> None:
        super().__init__(teacher)
        self.noise_shape = (self.config.horizon, teacher.action_size)
        self.network, self.objective, self._time = network, objective, getattr(network, time)
        scheduler = objective.noise_scheduler
        scheduler.set_timesteps(objective.num_inference_steps)
        self._first = int(scheduler.timesteps[0])

    def encode(self, batch: dict[str, Any], size: int) -> Tensor:
        batch = self.teacher.images(batch)
        if self.config.type == "diffusion":
            encoded: Tensor = self.policy.diffusion._prepare_global_conditioning(batch)
            return encoded
        encoded = self.policy.observation_encoder.encode(batch)
        return encoded

    def one_step(self, condition: Tensor, noise: Tensor) -> Tensor:
        name = "global_cond" if self.config.type == "diffusion" else "conditioning_vec"
        time = torch.full((len(noise),), self._first, dtype=torch.long, device=noise.device)
        x: Tensor = self.network(noise, time, **{name: condition})
        if not self.config.clip_sample:
            return x
        limit = self.config.clip_sample_range
        return x + (x.clamp(-limit, limit) - x).detach()  # clipped as by the scheduler, with a gradient outside, too

    def chunk(self, x: Tensor) -> Tensor:
        return x[:, self.teacher.observation_steps - 1 :]

    def trained(self) -> list[nn.Parameter]:
        return list(self.network.parameters())

    def settings(self) -> dict[str, Any]:
        return {"num_inference_steps": 1, "prediction_type": "sample"}

    @contextlib.contextmanager
    def saved_weights(self) -> Iterator[None]:
        """The bias of the first layer after the time's embedding e holds W (e(first) - e(0))."""
        embed, first = self._time[0], self._time[1]
        times = torch.tensor([self._first, 0], device=first.weight.device)
        before = first.bias.detach().clone()
        with torch.no_grad():
            at_first, at_zero = embed(times).to(first.weight.dtype)
            first.bias.add_(first.weight @ (at_first - at_zero))
        try:
            yield
        finally:
            with torch.no_grad():
                first.bias.copy_(before)


class _CleanAction(_Head):
    """xvla: its transformer predicts the clean chunk, so its one step is the network's own output."""

    def __init__(self, teacher: Any) -> None:
        super().__init__(teacher)
        self.noise_shape = (self.policy.model.chunk_size, self.policy.model.dim_action)

    def encode(self, batch: dict[str, Any], size: int) -> dict[str, Any]:
        condition: dict[str, Any] = self.teacher.condition(batch)
        return condition

    def one_step(self, condition: dict[str, Any], noise: Tensor) -> Tensor:
        x: Tensor = self.teacher.clean(condition, noise.to(condition["proprio"].dtype), 1.0)
        return x

    def chunk(self, x: Tensor) -> Tensor:
        chunk: Tensor = self.policy.model.action_space.postprocess(x.clone())  # it changes grippers in place
        return chunk

    def trained(self) -> list[nn.Parameter]:
        return list(self.policy.model.transformer.parameters())


class _Expert(_Head):
    """smolvla, pi0, pi05: x - v(x, 1) by the action expert, which attends to the keys and values of the prefix."""

    def __init__(self, teacher: Any) -> None:
        super().__init__(teacher)
        self.noise_shape = (self.config.chunk_size, self.config.max_action_dim)

    def encode(self, batch: dict[str, Any], size: int) -> dict[str, Any]:
        """What the policy's own sampler gives to its first denoising step."""
        found: dict[str, Any] = {}

        def denoise_step(**given: Any) -> Tensor:
            found.update(given)
            return torch.zeros_like(given["x_t"])

        own = self.policy.model.denoise_step
        self.policy.model.denoise_step = denoise_step
        try:
            self.policy.predict_action_chunk(batch, noise=torch.zeros(size, *self.noise_shape, device=self.teacher.device))
        finally:
            with contextlib.suppress(AttributeError):
                del self.policy.model.denoise_step  # the class's is found again
            assert self.policy.model.denoise_step == own
        cache = found.pop("past_key_values")
        return {
            "keys": [layer.keys for layer in cache.layers], "values": [layer.values for layer in cache.layers],
            **{name: value for name, value in found.items() if name not in ("x_t", "timestep")},
        }  # fmt: skip

    def one_step(self, condition: dict[str, Any], noise: Tensor) -> Tensor:
        from transformers import DynamicCache

        cache = DynamicCache()  # a new one: smolvla's layers add to what they are given
        for layer, (keys, values) in enumerate(zip(condition["keys"], condition["values"], strict=True)):
            cache.update(keys, values, layer)
        rest = {name: value for name, value in condition.items() if name not in ("keys", "values")}
        time = torch.ones(len(noise), dtype=torch.float32, device=noise.device)
        return noise - self.policy.model.denoise_step(**rest, past_key_values=cache, x_t=noise, timestep=time)

    def trained(self) -> list[nn.Parameter]:
        """The expert and what leads in and out. smolvla's state_proj lies in the prefix, pi0's does not."""
        model = self.policy.model
        expert = model.vlm_with_expert.lm_expert if self.config.type == "smolvla" else model.paligemma_with_expert.gemma_expert
        names = (*PROJECTIONS, *(("state_proj",) if self.config.type == "pi0" else ()))
        parts = [getattr(model, name) for name in names if hasattr(model, name)]
        weights = [weight for name, weight in expert.named_parameters() if "lm_head" not in name and "embed_tokens" not in name]
        return [*weights, *(weight for part in parts for weight in part.parameters())]
