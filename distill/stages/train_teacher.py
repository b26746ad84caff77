"""The stage `train/teacher`: a teacher trained on the demonstrations, and its candidate checkpoints."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from distill.config import TeacherConfig
from distill.observation import observation_of
from distill.runtime.context import Context
from distill.runtime.stage import FolderStage, Input, Stage
from distill.training.data import Batch, batches_of, moved, normaliser_of, resident, windows_for
from distill.training.loop import Share, finish, fit, with_candidates, without_accumulate
from envs.demonstrations import Demonstrations
from teachers import TEACHERS, make_teacher
from teachers.networks.scene_motions import STILL, MotionRange
from teachers.networks.shapes import EncoderShape, PolicyShape


@dataclass(frozen=True)
class TrainTeacher(FolderStage):
    """shape: of its network. motions: of the scenes it is trained on, see `teachers.networks.scene_motions`."""

    demonstrations: Stage[Demonstrations]
    config: TeacherConfig
    shape: PolicyShape
    seed: int
    motions: MotionRange = STILL
    name = "train/teacher"

    @property
    def inputs(self) -> Mapping[str, Input | tuple[Input, ...]]:
        return {"demos": self.demonstrations}

    @property
    def settings(self) -> Mapping[str, Any]:
        teacher = without_accumulate(asdict(self.config))
        teacher["solver"] = teacher["solver"] or TEACHERS[self.config.kind].SOLVERS[0]
        # a plain observation has no encoder
        encoder = {} if self.shape.encoder is None else {"encoder": encoder_key(self.shape.encoder)}
        return {"teacher": teacher, "seed": self.seed, **encoder, **self.motions.key,
                **({} if self.shape.frame == "base" else {"frame": self.shape.frame})}  # fmt: skip

    def run(self, context: Context, folder: Path) -> None:
        config, demonstrations = self.config, self.demonstrations.cached_result(context)
        torch.manual_seed(self.seed)
        teacher = make_teacher(config.kind, self.shape, config.solver, config.time_power)
        teacher.normaliser.load_state_dict(normaliser_of(demonstrations, self.shape, self.motions).state_dict())
        windows = windows_for(
            demonstrations, self.shape, self.shape.observation_steps, self.shape.horizon, context.share.world
        )
        read = resident(
            lambda frames: windows[frames.numpy()], len(windows), context.device, context.accelerator.num_processes
        )
        batches = batches_of(read, len(windows), config.batch_size, self.seed)

        def loss(model: nn.Module, batch: Batch, generator: torch.Generator, share: Share) -> Tensor:
            # drawn for the whole batch, then divided: the draws do not depend on the number of processes
            draws = [share.of(draw) for draw in teacher.training_draws(config.batch_size, generator)]
            batch = moved(batch, self.shape, self.motions, config.batch_size, generator, share)
            observation, action_BTA = observation_of(batch), batch["action"]
            teacher_loss: Tensor = model(observation, action_BTA, *(draw.to(action_BTA.device) for draw in draws))
            return teacher_loss

        curve = fit(
            context.accelerator, teacher, batches, loss, config, self.seed, folder,
            lambda model, target: model.save_pretrained(target),  # type: ignore[operator]
            lambda step, value: context.log("teach", {"step": step, "loss": value}), "teach",
        )  # fmt: skip
        if context.is_main:
            finish(folder, curve)

    def load(self, folder: Path) -> Path:
        return with_candidates(folder, self.config)


def encoder_key(shape: EncoderShape) -> dict[str, Any]:
    """The encoder's part of a key; without ``keypoints`` where there are none, as in older runs."""
    return {name: value for name, value in asdict(shape).items() if name != "keypoints" or value}
