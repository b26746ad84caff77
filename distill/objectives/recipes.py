"""Recipes: how a student is trained. One per set objective, and one per one-step baseline."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal, Protocol

import torch
from torch import Tensor, nn

from distill.config import Config, StudentConfig
from distill.hypotheses.cache import noise_of
from distill.hypotheses.distances import share_loss
from distill.objectives import flow_maps
from distill.objectives.sets import OBJECTIVES, Objective, objective
from distill.observation import observation_of
from distill.training.data import Batch
from envs.specs import nearest_name
from students.flow_map import FlowMapStudent
from students.one_step import OneStepStudent
from teachers import TEACHERS
from teachers.flow import FlowTeacher
from teachers.networks.normalisation import Normaliser
from teachers.networks.shapes import PolicyShape
from teachers.trained import TrainedTeacher


@dataclass(frozen=True)
class TrainingContext:
    """What a recipe may use.

    shape: of the student's network. normaliser: copied into the student. teacher: None for a student that needs none.
    num_hypotheses: K. weights_TA: of the distance between chunks. chunks_JTA: normalised hypotheses of different observations,
    an initial value per code; None without codes. frozen_encoder: whether a student keeps its teacher's encoder unchanged.
    """

    shape: PolicyShape
    normaliser: Normaliser
    teacher: TrainedTeacher | None
    settings: StudentConfig
    num_hypotheses: int
    weights_TA: Tensor
    chunks_JTA: Tensor | None = None
    frozen_encoder: bool = False


class Recipe(Protocol):
    """label: in the report. data: what a batch is read from. teacher: whether it needs one. cheap: trains much faster than
    others.

    A student without a teacher replaces it, so it is trained for as many steps as the teacher.
    """

    @property
    def label(self) -> str: ...
    @property
    def data(self) -> Literal["hypotheses", "demonstrations"]: ...
    @property
    def teacher(self) -> bool: ...

    @property
    def cheap(self) -> bool: ...
    def learns_shares(self, settings: StudentConfig) -> bool:
        """Whether its student learns the shares of its codes, which are calibrated after training."""
        ...

    def settings(self, config: Config) -> StudentConfig:
        """`config.student` with this recipe's changes."""
        ...

    def check(self, name: str, config: Config) -> None:
        """Raise ValueError for settings that this recipe does not support."""
        ...

    def rows(self, settings: StudentConfig) -> int:
        """Observations per step, such that all recipes train on about as many chunks."""
        ...

    def build(self, given: TrainingContext) -> nn.Module:
        """The student before training."""
        ...

    def draws(self, student: nn.Module, given: TrainingContext, rows: int, generator: torch.Generator) -> tuple[Tensor, ...]:
        """Random tensors `[rows, ...]` of a step, on the CPU, for the whole batch."""
        ...

    def loss(self, student: nn.Module, given: TrainingContext, batch: Batch, *draws: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class SetRecipe:
    """A `OneStepStudent` whose set of M chunks is compared with a set of K by an objective.

    The K chunks are the teacher's hypotheses, or the one demonstrated chunk (data: demonstrations), which is the training of
    IMLE Policy (arXiv 2502.12371): no teacher, and no warm start.
    """

    objective: Objective
    label: str
    data: Literal["hypotheses", "demonstrations"] = "hypotheses"

    @property
    def teacher(self) -> bool:
        return self.data == "hypotheses"

    @property
    def cheap(self) -> bool:
        return self.objective.one_sample

    def learns_shares(self, settings: StudentConfig) -> bool:
        # shares are learned by comparing several samples
        several = not self.objective.one_sample and not self.objective.noise and self.data == "hypotheses"
        return several and settings.code_shares and settings.codes > 0

    def settings(self, config: Config) -> StudentConfig:
        # a student without a teacher replaces it, and is trained as long
        steps = config.student.training_steps if self.teacher else config.teacher.training_steps
        return replace(config.student, training_steps=steps)

    def check(self, name: str, config: Config) -> None:
        settings = config.student
        if settings.num_latents < 2 and not self.objective.one_sample:
            raise ValueError("student.num_latents: got 1, expected at least 2: with one latent a set objective is plain L2")
        if self.objective.noise and settings.num_latents > config.sample.num_hypotheses:
            raise ValueError(
                f"student.num_latents: got {settings.num_latents}, but {name} has only the {config.sample.num_hypotheses} "
                "cached noises per observation; lower it or raise sample.num_hypotheses"
            )
        kind = TEACHERS.get(config.teacher.kind) if config.teacher.path is None else None
        if self.objective.noise and kind is not None and not kind.is_deterministic(config.sample.solver):
            raise ValueError(
                f"{name} pairs each chunk with the one noise it was generated from, and this teacher draws new noise at "
                "every step; use --student.objectives chamfer --student.default chamfer"
            )

    def rows(self, settings: StudentConfig) -> int:
        return settings.batch_size

    def build(self, given: TrainingContext) -> nn.Module:
        settings = given.settings
        if self.objective.noise and (given.teacher is None or not given.teacher.is_deterministic(given.teacher.solver)):
            raise ValueError(
                f"{self.label} pairs each chunk with the one noise it was generated from; {type(given.teacher).__name__} "
                "takes more than one. Use the objective chamfer"
            )
        if self.objective.noise or not self.teacher:  # IMLE Policy's latent is also noise of the chunk's shape
            student = OneStepStudent(given.shape, given.shape.horizon * given.shape.action_size, identity=True)
        else:
            shares = self.learns_shares(settings)
            student = OneStepStudent(given.shape, settings.latent_size, codes=settings.codes, shares=shares)
        student.normaliser.load_state_dict(given.normaliser.state_dict())
        if given.teacher is not None and settings.warm_start and _begins_with(given.teacher.shape, given.shape):
            student.warm_start(given.teacher, given.chunks_JTA)
        if given.frozen_encoder and given.teacher is not None:
            student.take_encoder(given.teacher)  # also without a warm start, or with a head of another size
            student.freeze_encoder()
        return student

    def draws(self, student: nn.Module, given: TrainingContext, rows: int, generator: torch.Generator) -> tuple[Tensor, ...]:
        assert isinstance(student, OneStepStudent)
        if self.objective.noise:  # which of the K hypotheses this step uses
            return torch.rand(rows, given.num_hypotheses, generator=generator), *student.encoder_draws(rows, generator)
        samples = 1 if self.objective.one_sample else given.settings.num_latents * self.objective.pool_factor
        latents_BMZ = torch.randn(rows, samples, student.latent_size, generator=generator)
        return latents_BMZ, *student.encoder_draws(rows, generator)

    def loss(self, student: nn.Module, given: TrainingContext, batch: Batch, *draws: Tensor) -> Tensor:
        assert isinstance(student, OneStepStudent)
        latents_BMZ, *seeds_B = draws
        if self.data == "hypotheses":
            teacher_BKTA = batch["hypotheses"]
        else:
            teacher_BKTA = student.normaliser.normalise_action(batch["action"])[:, None]
        if self.objective.noise:
            order_BK = draws[0].argsort(-1)  # the first M of a random order are the partners
            teacher_BKTA = teacher_BKTA.gather(1, order_BK[..., None, None].expand(-1, -1, *teacher_BKTA.shape[2:]))
            seeds = batch["seed"].gather(1, order_BK[:, : given.settings.num_latents]).cpu().numpy()
            latents_BMZ = noise_of(seeds, tuple(teacher_BKTA.shape[2:])).flatten(2).to(teacher_BKTA.device)
        condition_BC = student.encode(observation_of(batch), *seeds_B)
        log_share_BJ = student.log_shares(condition_BC)
        drawn_BMZ = latents_BMZ  # the pool follows the learned shares, the winners chosen from it do not
        if self.objective.choose is not None:
            with torch.no_grad():
                drawn_BMTA = student.generate_from_lifted(condition_BC, student.lift(latents_BMZ, log_share_BJ))
                index_BN = self.objective.choose(drawn_BMTA, teacher_BKTA, given.weights_TA, given.settings.num_latents)
            latents_BMZ = latents_BMZ.gather(1, index_BN[..., None].expand(-1, -1, latents_BMZ.shape[-1]))
        student_BMTA = student.generate_from_lifted(condition_BC, student.lift(latents_BMZ, log_share_BJ))
        loss = self.objective.loss(student_BMTA, teacher_BKTA, given.weights_TA)
        if log_share_BJ is not None:
            selected_BM = log_share_BJ.gather(1, student.choose_codes(drawn_BMZ, log_share_BJ))
            chunks = student_BMTA if self.objective.choose is None else drawn_BMTA
            loss = loss + share_loss(selected_BM, chunks, teacher_BKTA, given.weights_TA)
        return loss


def _begins_with(teacher: PolicyShape, student: PolicyShape) -> bool:
    """Whether a student of this shape can start from the teacher's weights; it may have fewer blocks."""
    return student.depth <= teacher.depth and replace(teacher, depth=student.depth) == student


@dataclass(frozen=True)
class FlowMapRecipe:
    """A `FlowMapStudent`, from the teacher's noise to a chunk, trained with a loss of `distill.objectives.flow_maps`.

    train: (student, training context, batch, draws) to the loss. draw: (rows, chunk shape, generator) to the draws.
    learning_rate: the best of those tried (docs/lab-notes.md); some of these losses diverge at the set objectives' rate.
    """

    label: str
    data: Literal["hypotheses", "demonstrations"]
    train: Callable[[FlowMapStudent, TrainingContext, Batch, tuple[Tensor, ...]], Tensor]
    draw: Callable[[int, tuple[int, int], torch.Generator], tuple[Tensor, ...]]
    learning_rate: float
    teacher: bool = True

    @property
    def cheap(self) -> bool:
        return False

    def learns_shares(self, settings: StudentConfig) -> bool:
        return False

    def settings(self, config: Config) -> StudentConfig:
        return replace(config.student, learning_rate=self.learning_rate, depth=0)

    def check(self, name: str, config: Config) -> None:
        if config.teacher.kind != "flow" and config.teacher.path is None:
            raise ValueError(f"{name} needs a flow teacher: expected teacher.kind 'flow', got {config.teacher.kind!r}")
        if not config.observation.frozen and not config.observation.is_plain:
            raise ValueError(f"{name} keeps its teacher's encoder; leave observation.frozen at true")
        if config.student.width:
            raise ValueError(f"{name} starts from the teacher's weights; leave student.width at 0")

    def rows(self, settings: StudentConfig) -> int:
        return settings.batch_size * settings.num_latents

    def build(self, given: TrainingContext) -> nn.Module:
        if not isinstance(given.teacher, FlowTeacher):
            raise ValueError(f"{self.label} follows the flow of a teacher of kind 'flow', got {type(given.teacher).__name__}")
        if given.teacher.shape != given.shape:
            raise ValueError(f"{self.label} starts from the teacher's weights; leave student.width at 0")
        student = FlowMapStudent.from_teacher(given.teacher, given.settings.warm_start)
        if given.frozen_encoder:
            student.take_encoder(given.teacher)
            student.freeze_encoder()
        return student

    def draws(self, student: nn.Module, given: TrainingContext, rows: int, generator: torch.Generator) -> tuple[Tensor, ...]:
        return self.draw(rows, (given.shape.horizon, given.shape.action_size), generator)

    def loss(self, student: nn.Module, given: TrainingContext, batch: Batch, *draws: Tensor) -> Tensor:
        assert isinstance(student, FlowMapStudent)
        return self.train(student, given, batch, draws)


def _reflow(student: FlowMapStudent, given: TrainingContext, batch: Batch, draws: tuple[Tensor, ...]) -> Tensor:
    # one of the K pairs of every observation
    time_N, chosen_N = draws
    row = torch.arange(len(chosen_N), device=chosen_N.device)
    end_NTA = batch["hypotheses"][row, (chosen_N * batch["hypotheses"].shape[1]).long()]
    seed_N1 = batch["seed"][row, (chosen_N * batch["seed"].shape[1]).long()][:, None].cpu().numpy()
    noise_NTA = noise_of(seed_N1, tuple(end_NTA.shape[1:]))[:, 0].to(end_NTA.device)
    return flow_maps.reflow_loss(student, observation_of(batch), noise_NTA, end_NTA, time_N, given.weights_TA)


def _reflow_draws(rows: int, chunk_shape: tuple[int, int], generator: torch.Generator) -> tuple[Tensor, ...]:
    return *flow_maps.reflow_draws(rows, chunk_shape, generator), torch.rand(rows, generator=generator)


def _consistency(student: FlowMapStudent, given: TrainingContext, batch: Batch, draws: tuple[Tensor, ...]) -> Tensor:
    assert isinstance(given.teacher, FlowTeacher)
    action_NTA, (noise_NTA, step_N) = student.normaliser.normalise_action(batch["action"]), draws
    return flow_maps.consistency_loss(
        student, given.teacher, observation_of(batch), action_NTA, noise_NTA, step_N, weights_TA=given.weights_TA
    )


def _shortcut(student: FlowMapStudent, given: TrainingContext, batch: Batch, draws: tuple[Tensor, ...]) -> Tensor:
    assert isinstance(given.teacher, FlowTeacher)
    action_NTA, (noise_NTA, time_N, span_N) = student.normaliser.normalise_action(batch["action"]), draws
    return flow_maps.shortcut_loss(
        student, observation_of(batch), action_NTA, noise_NTA, time_N, span_N, teacher=given.teacher,
        weights_TA=given.weights_TA,
    )  # fmt: skip


def _mean_flow(student: FlowMapStudent, given: TrainingContext, batch: Batch, draws: tuple[Tensor, ...]) -> Tensor:
    action_NTA, (noise_NTA, time_N, span_N) = student.normaliser.normalise_action(batch["action"]), draws
    return flow_maps.mean_flow_loss(
        student, observation_of(batch), action_NTA, noise_NTA, time_N, span_N, weights_TA=given.weights_TA
    )


RECIPES: dict[str, Recipe] = {
    **{name: SetRecipe(chosen, chosen.label) for name, chosen in OBJECTIVES.items()},
    "imle_policy": SetRecipe(OBJECTIVES["rs_imle"], "IMLE Policy, from demonstrations", data="demonstrations"),
    "reflow": FlowMapRecipe("Reflow", "hypotheses", _reflow, _reflow_draws, 1.5e-3),
    "consistency": FlowMapRecipe("Consistency distillation", "demonstrations", _consistency, flow_maps.consistency_draws, 3e-4),
    "shortcut": FlowMapRecipe("Shortcut model", "demonstrations", _shortcut, flow_maps.shortcut_draws, 1.5e-3),
    "mean_flow": FlowMapRecipe("MeanFlow", "demonstrations", _mean_flow, flow_maps.mean_flow_draws, 1.5e-3),
}
"""What ``student.objectives`` may name, besides weighted sums of set objectives (`distill.objectives.sets.objective`)."""


def recipe(name: str) -> Recipe:
    """The recipe of a name. Raises ValueError for an unknown one, with the nearest known name."""
    if name in RECIPES:
        return RECIPES[name]
    if name in OBJECTIVES:
        return SetRecipe(OBJECTIVES[name], OBJECTIVES[name].label)
    if re.fullmatch("[a-z_]+", name):  # not a sum
        raise ValueError(f"student.objectives: unknown {name!r}; expected one of {sorted(RECIPES)}, or a weighted sum such as "
                         f"'chamfer+0.5energy_distance'{nearest_name(name, RECIPES)}")
    chosen = objective(name)
    return SetRecipe(chosen, chosen.label)


class LossModule(nn.Module):
    """A student together with its loss, so that training always calls one `forward`, as several processes require."""

    def __init__(self, student: nn.Module, recipe: Recipe, given: TrainingContext) -> None:
        super().__init__()
        self.student = student
        # not submodules: the teacher in the context is neither trained, averaged nor saved
        self._recipe, self._given = recipe, given

    def forward(self, batch: Batch, *draws: Tensor) -> Tensor:
        return self._recipe.loss(self.student, self._given, batch, *draws)
