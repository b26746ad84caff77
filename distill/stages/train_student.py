"""The stages `train/<recipe>`: a one-step student trained by one recipe, and its candidate checkpoints."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn

from distill.config import StudentConfig
from distill.hypotheses.distances import chunk_weights
from distill.hypotheses.frame_cache import FrameCache
from distill.inputs.observations import ObservationSource
from distill.inputs.teachers import TeacherSource, solved_by
from distill.objectives.recipes import LossModule, Recipe, TrainingContext
from distill.runtime.context import Context
from distill.runtime.stage import FolderStage, Input, Stage
from distill.stages.sample import SampleHypotheses
from distill.training.data import Batch, Batches, batches_of, moved, normaliser_of, resident, windows_for
from distill.training.loop import Share, finish, fit, with_candidates, without_accumulate
from envs.demonstrations import Demonstrations
from envs.specs import STATE
from teachers.networks.normalisation import Normaliser
from teachers.networks.scene_motions import STILL, MotionRange
from teachers.networks.shapes import PolicyShape
from teachers.trained import TrainedTeacher


@dataclass(frozen=True)
class Basis:
    """What a student is initialised with. teacher: None for random weights; shape: of its network; normaliser: statistics."""

    teacher: TrainedTeacher | None
    shape: PolicyShape
    normaliser: Normaliser


class BasisSource(Input, Protocol):
    """Provides a student's initialisation."""
    def basis(self, context: Context) -> Basis: ...


@dataclass(frozen=True)
class FromTeacher:
    """A student of a trained teacher: its shape, its normaliser and, with a warm start, its weights."""

    source: TeacherSource

    @property
    def key(self) -> str:
        return self.source.key

    @property
    def needs(self) -> tuple[Stage[Any], ...]:
        return self.source.needs

    def basis(self, context: Context) -> Basis:
        teacher = self.source.teacher(context)
        assert isinstance(teacher, TrainedTeacher)
        teacher.requires_grad_(False)
        return Basis(teacher, teacher.shape, teacher.normaliser)


@dataclass(frozen=True)
class FromDemonstrations:
    """A student without a teacher: the config's shape, and the demonstrations' statistics."""

    demonstrations: Stage[Demonstrations]
    shape: PolicyShape
    motions: MotionRange = STILL

    @property
    def key(self) -> str:
        return self.demonstrations.key

    @property
    def needs(self) -> tuple[Stage[Any], ...]:
        return self.demonstrations.needs

    def basis(self, context: Context) -> Basis:
        return Basis(None, self.shape, normaliser_of(self.demonstrations.cached_result(context), self.shape, self.motions))


@dataclass(frozen=True)
class FromStatistics:
    """A student of an external policy: its measured normaliser, random initial weights."""

    source: TeacherSource
    shape: PolicyShape

    @property
    def key(self) -> str:
        return self.source.key

    @property
    def needs(self) -> tuple[Stage[Any], ...]:
        return self.source.needs

    def basis(self, context: Context) -> Basis:
        return Basis(None, self.shape, self.source.normaliser(context))


@dataclass(frozen=True)
class TrainStudent(FolderStage):
    """recipe_name: name of `recipe` in ``student.objectives``. config: as the recipe takes it (`Recipe.settings`).

    basis: what it is initialised with. hypotheses: what it is trained on, together with `source` when it trains its encoder;
    or demonstrations. weights: `[A]` of the distance between chunks. num_hypotheses: K. solver: of the hypotheses.
    encoder_frozen: whether it keeps its teacher's encoder unchanged, None without one. fresh_shape: of a network that does not
    have a trained teacher's shape. motions: of the scenes of demonstrations; hypotheses were drawn for moved ones.
    """

    recipe_name: str
    recipe: Recipe
    config: StudentConfig
    basis: BasisSource
    hypotheses: SampleHypotheses | None
    demonstrations: Stage[Demonstrations] | None
    source: ObservationSource | None
    weights: tuple[float, ...]
    num_hypotheses: int
    execution_horizon: int
    encoder_frozen: bool | None
    fresh_shape: PolicyShape | None
    solver: str
    seed: int
    motions: MotionRange = STILL
    side_by_side: ClassVar[bool] = True

    @property
    def name(self) -> str:
        return f"train/{self.recipe_name}"

    @property
    def cheap(self) -> bool:
        return self.recipe.cheap

    @property
    def begins_with_teacher(self) -> bool:
        """Whether it starts from its teacher's weights."""
        return self.fresh_shape is None and self.config.warm_start

    @property
    def inputs(self) -> Mapping[str, Input | tuple[Input, ...]]:
        if self.hypotheses is not None:
            # the sample's key includes the teacher's
            return {"sample": self.hypotheses, "basis": self.basis}
        assert self.demonstrations is not None
        return {"demos": self.demonstrations, "basis": self.basis}

    @property
    def settings(self) -> Mapping[str, Any]:
        # other recipes and the default do not affect this student
        student = {name: value for name, value in without_accumulate(asdict(self.config)).items()
                   if name not in ("objectives", "default")}  # fmt: skip
        settings: dict[str, Any] = {"objective": self.recipe_name, "student": student, "seed": self.seed,
                                    "execution_horizon": self.execution_horizon}  # fmt: skip
        if self.fresh_shape is not None:  # without a trained teacher the network sizes are settings
            settings["shape"] = self.fresh_shape.to_json()
            if self.fresh_shape.encoder is not None:
                settings["augmentation"] = asdict(self.fresh_shape.encoder.augmentation)
        elif self.encoder_frozen is not None:
            settings["encoder_frozen"] = self.encoder_frozen
        return settings if self.demonstrations is None else {**settings, **self.motions.key}

    def run(self, context: Context, folder: Path) -> None:
        chosen, settings = self.recipe, self.config
        basis = self.basis.basis(context)
        its = basis.shape
        depth = settings.depth if self.fresh_shape is not None else min(settings.depth, its.depth)
        shape = replace(its, width=settings.width or its.width, depth=depth or its.depth)
        weights_TA = student_weights(context, self.weights, basis.shape.horizon, self.execution_horizon, settings)
        frozen = shape.encoder is not None and bool(self.encoder_frozen)
        codes_JTA = self._code_chunks(context, basis, weights_TA)
        given = TrainingContext(
            shape, basis.normaliser, basis.teacher, settings, self.num_hypotheses, weights_TA, codes_JTA, frozen
        )
        rows = chosen.rows(settings)
        batches = self._batches(context, shape, rows)
        torch.manual_seed(self.seed)
        with solved_by(basis.teacher, self.solver):
            student = chosen.build(given)

            def loss(model: nn.Module, batch: Batch, generator: torch.Generator, share: Share) -> Tensor:
                draws = [share.of(draw) for draw in chosen.draws(student, given, rows, generator)]
                if self.demonstrations is not None:
                    batch = moved(batch, shape, self.motions, rows, generator, share)
                student_loss: Tensor = model(batch, *(draw.to(context.device) for draw in draws))
                return student_loss

            title = self.recipe_name
            curve = fit(
                context.accelerator, LossModule(student, chosen, given), batches, loss, replace(settings, batch_size=rows),
                self.seed, folder, lambda model, target: model.student.save_pretrained(target),  # type: ignore[operator,union-attr]
                lambda step, value: context.log(f"distill/{title}", {"step": step, "loss": value}), title, alone=context.alone,
            )  # fmt: skip
        if context.is_main:
            finish(folder, curve)

    def load(self, folder: Path) -> Path:
        return with_candidates(folder, self.config)

    def relay(self, context: Context) -> None:
        for row in json.loads((self.folder(context) / "curve.json").read_text()):
            context.log_remote(f"distill/{self.recipe_name}", row)

    def _code_chunks(self, context: Context, basis: Basis, weights_TA: Tensor) -> Tensor | None:
        """An initial chunk `[T, A]` per code, hypotheses of different observations; None without codes."""
        if self.hypotheses is None or not self.config.codes:
            return None
        dataset, generator = self.hypotheses.result(context), torch.Generator().manual_seed(self.seed)
        rows = torch.randint(len(dataset), (self.config.codes,), generator=generator)
        chosen = dataset.batch(rows)
        chunks_JTA = chosen["hypotheses"][:, 0].to(weights_TA.device)
        teacher = basis.teacher
        if teacher is None:
            return chunks_JTA
        # codes start from chunks as the network sees them: relative to the tool, in that frame
        _, origin_JA = teacher.in_tool_frame({STATE: chosen[STATE].to(weights_TA.device)})
        return chunks_JTA if origin_JA is None else chunks_JTA - origin_JA[:, None]

    def _batches(self, context: Context, shape: PolicyShape, rows: int) -> Batches:
        if self.hypotheses is None:
            assert self.demonstrations is not None
            demonstrations = self.demonstrations.cached_result(context)
            windows = windows_for(demonstrations, shape, shape.observation_steps, shape.horizon, context.share.world)
            read, count = (lambda frames: windows[frames.numpy()]), len(windows)
        else:
            read, count = self.read_hypotheses(context, shape)
        held = resident(read, count, context.device, context.accelerator.num_processes)
        return batches_of(held, count, rows, self.seed)

    def read_hypotheses(self, context: Context, shape: PolicyShape) -> tuple[Callable[[Tensor], Batch], int]:
        """A reader from cache rows to a training batch for a student of this shape, and the number of rows.

        A batch holds the state, the cached features or, when the encoder is trained, the whole observation.
        """
        assert self.hypotheses is not None
        if shape.encoder is None or (self.encoder_frozen and self.hypotheses.features):
            dataset = self.hypotheses.result(context)
            return dataset.batch, len(dataset)
        assert self.source is not None
        cache = self.hypotheses.with_frames(context)
        frames_N = cache.batch(range(len(cache)), ["frame_index"])["frame_index"].numpy()
        seen = FrameCache(self.source.observe(context, shape), frames_N)
        return lambda rows: {**cache.batch(rows), **seen.at(torch.as_tensor(rows))}, len(cache)


def student_weights(
    context: Context, weights: tuple[float, ...], horizon: int, execution_horizon: int, config: StudentConfig
) -> Tensor:
    """Weights `[T, A]` of the distance between chunks, on the device."""
    weights_A = torch.tensor(weights, device=context.device)
    return chunk_weights(weights_A, horizon, execution_horizon, config.unexecuted_weight)
