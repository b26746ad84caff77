"""A LeRobot policy's own action head at one evaluation: how it is fine-tuned, and saved as LeRobot saves a policy.

teachers/adapters/lerobot_policies.py loads it by its path, in LeRobot's environment. Written for LeRobot 0.6.1. What sees and
reads stays as it is; the head alone is trained. Python 3.10.
"""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

STEP_SETTINGS = {"multi_task_dit": "num_integration_steps", "smolvla": "num_steps", "pi0": "num_inference_steps",
                 "pi05": "num_inference_steps"}  # fmt: skip
"""Kinds that can be fine-tuned in place, and what the number of solver steps is called in their config.json."""

PROJECTIONS = ("action_in_proj", "action_out_proj", "action_time_mlp_in", "action_time_mlp_out", "time_mlp_in", "time_mlp_out")
RELATIVE = ("absolute_actions_processor", "delta_actions_processor")
"""Steps of a postprocessor that remember the states of B observations, and would add them to the chunks of others."""


def why_not(policy: Any, folder: Path) -> str:
    """Why a policy cannot be fine-tuned in place; "" where it can."""
    config = policy.config
    if config.type not in STEP_SETTINGS:
        return f"{config.type} is not among {sorted(STEP_SETTINGS)}"
    if config.type == "multi_task_dit" and not config.is_flow_matching:
        return "its objective is diffusion, of which one evaluation gives no chunk; flow_matching can be"
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
        config = self.policy.config
        self._is_dit = config.type == "multi_task_dit"
        self.noise_shape = (config.horizon, teacher.action_size) if self._is_dit else (config.chunk_size, config.max_action_dim)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["teacher"], name)

    def sample(self, observation: dict[str, Tensor], num_hypotheses: int, num_steps: int, generator: Any) -> Tensor:
        """The teacher's."""
        drawn: Tensor = self.teacher.sample(observation, num_hypotheses, num_steps, generator)
        return drawn

    def encode(self, observation: dict[str, Tensor]) -> Any:
        """What images, words and state become: a vector `[B, C]`, or the arguments of `denoise_step` with a row for each."""
        with torch.no_grad():
            batch = self.teacher.preprocess(observation)
            if self._is_dit:
                return self.policy.observation_encoder.encode(self.teacher.images(batch))
            return self._prefix(batch, len(next(iter(observation.values()))))

    def _prefix(self, batch: dict[str, Any], size: int) -> dict[str, Any]:
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

    def one_step(self, condition: Any, noise: Tensor) -> Tensor:
        """From noise to the normalised chunk, padded as the policy's is."""
        if self._is_dit:
            return noise + self.policy.noise_predictor(noise, noise.new_zeros(len(noise)), conditioning_vec=condition)
        from transformers import DynamicCache

        cache = DynamicCache()  # a new one: smolvla's layers add to what they are given
        for layer, (keys, values) in enumerate(zip(condition["keys"], condition["values"], strict=True)):
            cache.update(keys, values, layer)
        rest = {name: value for name, value in condition.items() if name not in ("keys", "values")}
        time = torch.ones(len(noise), dtype=torch.float32, device=noise.device)
        return noise - self.policy.model.denoise_step(**rest, past_key_values=cache, x_t=noise, timestep=time)

    def trained(self) -> list[nn.Parameter]:
        """The action head: all of a diffusion transformer; of a policy with a prefix its expert and what leads in and out.

        smolvla's state_proj lies in the prefix, which is computed once and stays as it is; pi0's does not.
        """
        if self._is_dit:
            return list(self.policy.noise_predictor.parameters())
        model = self.policy.model
        expert = model.vlm_with_expert.lm_expert if self.policy.config.type == "smolvla" else (
            model.paligemma_with_expert.gemma_expert)  # fmt: skip
        names = (*PROJECTIONS, *(("state_proj",) if self.policy.config.type == "pi0" else ()))
        parts = [getattr(model, name) for name in names if hasattr(model, name)]
        weights = [weight for name, weight in expert.named_parameters() if "lm_head" not in name and "embed_tokens" not in name]
        return [*weights, *(weight for part in parts for weight in part.parameters())]

    def to_actions(self, x: Tensor) -> Tensor:
        """Raw actions `[N, T, A]` from the present frame on, by the policy's own postprocessor."""
        first = self.teacher.observation_steps - 1 if self._is_dit else 0
        raw: Tensor = self.teacher.postprocessor(x[:, first:, : self.teacher.action_size].float())
        return raw.to(x.device)

    def save(self, folder: str) -> None:
        """An ordinary ``pretrained_model`` folder: all files as they were, other weights, one step in the config."""
        target = Path(folder)
        others = shutil.ignore_patterns("model.safetensors", "README.md")
        shutil.copytree(self._folder, target, dirs_exist_ok=True, ignore=others)
        self.policy.save_pretrained(str(target))
        config = json.loads((self._folder / "config.json").read_text())
        config[STEP_SETTINGS[config["type"]]] = 1
        if config["type"] == "multi_task_dit":
            config["integration_method"] = "euler"  # a Runge-Kutta step would be four evaluations
        (target / "config.json").write_text(json.dumps(config, indent=4))

    def reload(self, folder: str) -> Any:
        """The policy in such a folder."""
        return self._build(folder)
