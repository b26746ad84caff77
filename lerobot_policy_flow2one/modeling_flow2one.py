"""The LeRobot policy: a student's network, its recent frames, and the plan in execution."""

from __future__ import annotations

from collections import deque
from typing import Any

import torch
from lerobot.policies.pretrained import PreTrainedPolicy
from torch import Tensor

from lerobot_policy_flow2one.configuration_flow2one import Flow2OneConfig
from students import STUDENTS
from students.selection import Memory, Selection, choose, draw_candidates
from teachers.networks.observations import sources_of
from teachers.networks.shapes import PolicyShape

ACTION = "action"


class Flow2OnePolicy(PreTrainedPolicy):
    """LeRobot's policy interface for a student. Observations and actions are raw: the student normalises them itself."""

    config_class = Flow2OneConfig
    name = "flow2one"

    def __init__(self, config: Flow2OneConfig, **kwargs: Any) -> None:
        """Raises ValueError for a student of an unknown kind, or one with inputs that the config does not name."""
        super().__init__(config)
        config.validate_features()
        settings = config.student_config
        shape, kind = PolicyShape(**settings.pop("shape")), settings.pop("kind", None)
        if kind not in STUDENTS:
            raise ValueError(f"student: got a {kind!r}, expected one of {sorted(STUDENTS)}")
        settings.pop("schema_version", None)
        self.student = STUDENTS[kind].from_settings(shape, settings)
        self.sources = sources_of(shape)
        missing = [name for name in self.sources if name not in config.input_features]
        if missing:
            raise ValueError(f"the student needs {missing}, input_features has {sorted(config.input_features)}")
        self.selection = Selection(config.selection, config.candidates, config.forget_every)
        self.reset()

    def reset(self) -> None:
        """Starts a new episode: forgets frames and plans."""
        self._frames: deque[dict[str, Tensor]] = deque(maxlen=self.config.n_obs_steps)
        self._planned: deque[Tensor] = deque()
        self._memories: list[Memory] = []
        self._generator = torch.Generator().manual_seed(self.config.seed)

    def get_optim_params(self) -> Any:
        return self.parameters()

    @torch.no_grad()
    def select_action(self, batch: dict[str, Tensor], **kwargs: Any) -> Tensor:
        """The next action `[B, A]` for the present frames `[B, ..]`; replans after n_action_steps actions."""
        self.eval()
        frame = {name: batch[name] for name in self.sources}
        self._frames.extend([frame] * (1 if self._frames else self.config.n_obs_steps))
        if not self._planned:
            window = {name: torch.stack([each[name] for each in self._frames], 1) for name in self.sources}
            self._planned.extend(self.predict_action_chunk(window).unbind(1)[: self.config.n_action_steps])
        return self._planned.popleft()

    @torch.no_grad()
    def predict_action_chunk(self, batch: dict[str, Tensor], **kwargs: Any) -> Tensor:
        """A plan `[B, T, A]` for frames `[B, O, ..]`, or `[B, ..]`, which are repeated O times. Has a memory until `reset`."""
        self.eval()
        observation = {name: self._with_time(name, batch[name].float()) for name in self.sources}
        condition_BC = self.student.encode(observation)
        size, executed, horizon = len(condition_BC), self.config.n_action_steps, self.student.shape.horizon
        if len(self._memories) != size:
            self._memories = [Memory()] * size
        draws = []
        for row, memory in enumerate(self._memories):
            drawn, self._memories[row] = draw_candidates(self.selection, memory, self._draw, executed, horizon)
            draws.append(drawn)
        chunks = self.student.generate(condition_BC, torch.stack(draws).to(condition_BC.device))
        weights_A = torch.tensor(self.student.shape.action_weights, device=chunks.device)
        chosen_BTA, self._memories = choose(self.selection, chunks, self._memories, executed, weights_A)
        return self.student.normaliser.unnormalise_action(chosen_BTA)

    def forward(self, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Any]]:
        """Loss of the demonstrated chunks ``action`` `[B, T, A]`: the distance to the nearest of the student's candidates.

        One-sided, as in IMLE (arXiv 1809.09087), for fine-tuning on demonstrations; distillation is in flow2one itself.
        Actions marked by ``action_is_pad`` do not count.
        """
        observation = {name: self._with_time(name, batch[name].float()) for name in self.sources}
        size, latents = len(batch[ACTION]), self.student.latent_shape
        draws = torch.randn(size, max(2, self.config.candidates), *latents, device=batch[ACTION].device)
        chunks = self.student.generate(self.student.encode(observation), draws)
        weights_A = torch.tensor(self.student.shape.action_weights, device=chunks.device)
        target_BTA = self.student.normaliser.normalise_action(batch[ACTION].float())
        error_BMT = ((chunks - target_BTA[:, None]).square() * (weights_A / weights_A.sum())).sum(-1)
        kept_BT = ~batch["action_is_pad"] if "action_is_pad" in batch else torch.ones_like(error_BMT[:, 0], dtype=torch.bool)
        mean_BM = (error_BMT * kept_BT[:, None]).sum(-1) / kept_BT.sum(-1)[:, None].clamp_min(1)
        nearest_B = (mean_BM + 1e-12).sqrt().amin(1)
        loss = nearest_B.mean()
        return loss, {"nearest": loss.item(), "farthest": mean_BM.detach().sqrt().amax(1).mean().item()}

    def _draw(self, count: int) -> Tensor:
        return torch.randn(count, *self.student.latent_shape, generator=self._generator)

    def _with_time(self, name: str, value: Tensor) -> Tensor:
        dimensions = 3 if name == "observation.state" else 4 if name == "observation.points" else 5
        return value if value.ndim == dimensions else value[:, None].expand(-1, self.config.n_obs_steps, *value.shape[1:])
