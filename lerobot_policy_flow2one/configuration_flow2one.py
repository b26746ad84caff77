"""LeRobot's ``config.json`` of a student: the student's own config as text, and how its plans are executed."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from lerobot.configs.policies import PreTrainedConfig
from lerobot.optim.optimizers import AdamWConfig


@PreTrainedConfig.register_subclass("flow2one")
@dataclass
class Flow2OneConfig(PreTrainedConfig):
    """Settings of `Flow2OnePolicy`.

    student: the text of the student's own ``config.json``, from which the network is built; nothing in it is imported.
    n_action_steps: actions executed per plan; candidates, selection, forget_every: how a plan is selected (`Selection` in
    students.selection); seed: of the latents; learning_rate: of LeRobot's training.

    Raises ValueError for an invalid student, or n_action_steps out of range.
    """

    student: str = ""
    n_action_steps: int = 8
    selection: str = "outlier_rejection"
    candidates: int = 16
    forget_every: int = 5
    seed: int = 0
    learning_rate: float = 1e-4

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.student:
            self.n_obs_steps = int(self.shape["observation_steps"])
            horizon = int(self.shape["horizon"])
            if not 1 <= self.n_action_steps <= horizon:
                raise ValueError(f"n_action_steps: got {self.n_action_steps}, expected 1 to {horizon}, the student's plan")

    @property
    def student_config(self) -> dict[str, Any]:
        """The student's own config. Raises ValueError where there is none."""
        try:
            return dict(json.loads(self.student))
        except ValueError as error:
            raise ValueError("student: expected the text of a student's config.json; make the folder by "
                             f"python -m lerobot_policy_flow2one STUDENT FOLDER ({error})") from error  # fmt: skip

    @property
    def shape(self) -> dict[str, Any]:
        """The fields of the student's `PolicyShape`."""
        return dict(self.student_config["shape"])

    @property
    def observation_delta_indices(self) -> list[int]:
        return list(range(1 - self.n_obs_steps, 1))

    @property
    def action_delta_indices(self) -> list[int]:
        return list(range(int(self.shape["horizon"])))

    @property
    def reward_delta_indices(self) -> None:
        return None

    def get_optimizer_preset(self) -> AdamWConfig:
        return AdamWConfig(lr=self.learning_rate)

    def get_scheduler_preset(self) -> None:
        return None

    def validate_features(self) -> None:
        """Raises ValueError without inputs, or without an action."""
        if not self.input_features or self.action_feature is None:
            raise ValueError(f"flow2one: got inputs {self.input_features} and outputs {self.output_features}, expected both")
