"""The stage `sample`: K teacher chunks for each of many training observations, shard by shard over all processes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from distill.config import SampleConfig
from distill.hypotheses.cache import CachePlan, HypothesisDataset, training_frames, write_index, write_shards
from distill.hypotheses.perturbation import with_copies, with_perturbed
from distill.inputs.observations import ObservationSource
from distill.inputs.teachers import TeacherSource, solved_by
from distill.runtime.context import Context
from distill.runtime.stage import Input, Stage
from teachers.networks.shapes import PolicyShape
from teachers.trained import TrainedTeacher


@dataclass(frozen=True)
class SampleHypotheses(Stage[HypothesisDataset]):
    """shape: of the teacher's observation. label: of what draws the chunks; "": the trained teacher's kind and solver.

    execution_horizon: determines the replanning frames. features: whether the encoder features of a trained teacher are
    stored.
    """

    teacher: TeacherSource
    source: ObservationSource
    config: SampleConfig
    shape: PolicyShape
    execution_horizon: int
    seed: int
    label: str = ""
    features: bool = False
    name = "sample"

    @property
    def inputs(self) -> Mapping[str, Input | tuple[Input, ...]]:
        return {"teacher": self.teacher, "observations": self.source}

    @property
    def settings(self) -> Mapping[str, Any]:
        # without perturbed copies the key does not contain the setting
        drawn = {name: value for name, value in asdict(self.config).items() if name != "perturbation" or value}
        return {"sample": drawn, "seed": self.seed, "execution_horizon": self.execution_horizon}

    def run(self, context: Context, folder: Path) -> None:
        teacher = self.teacher.teacher(context)
        settings = with_solver_defaults(self.config, type(teacher)) if isinstance(teacher, TrainedTeacher) else self.config
        normaliser, count = self.teacher.normaliser(context), self.source.num_frames(context)
        observe = self.source.observe(context, self.shape)
        chosen = training_frames(
            self.source.episode_index(context), settings.num_observations, settings.replanning_share,
            self.execution_horizon, self.seed,
        )  # fmt: skip
        frames = self.source.training_frames(context)[chosen]
        if len(frames) < settings.num_observations:
            context.say(f"  only {len(frames)} training observations exist; all are used")
            moving = self.source.moves
            if settings.perturbation or moving:
                kind = "moved" if moving else "perturbed"
                context.say(f"  {kind} copies are added up to {settings.num_observations}")
                frames = with_copies(frames, count, settings.num_observations, self.seed)
            if settings.perturbation:
                observe = with_perturbed(observe, count, settings.perturbation * normaliser.state_spread(), self.seed)
        plan = CachePlan(
            frames, settings.num_hypotheses, settings.num_steps, settings.shard_size, settings.batch_size, self.seed
        )
        shards = context.my_share(range(plan.num_shards))
        bar = context.counter(len(shards), "sample", "shard", plan.num_shards)
        with bar, solved_by(teacher, settings.solver):
            write_shards(folder, teacher, normaliser, plan, observe, shards, context.device, lambda _: bar.update())
        context.wait()
        if context.is_main:
            label = self.label or f"{teacher.KIND}, {settings.solver}"  # type: ignore[attr-defined]
            write_index(folder, plan, label, self.teacher.key if self.features else "")

    def load(self, folder: Path) -> HypothesisDataset:
        return HypothesisDataset(folder, features_of=self.teacher.key if self.features else "")

    def with_frames(self, context: Context) -> HypothesisDataset:
        """Without features, with frame numbers: for a student that trains its encoder."""
        return HypothesisDataset(self.folder(context), frames=True)


def with_solver_defaults(config: SampleConfig, kind: type[TrainedTeacher]) -> SampleConfig:
    """The config with "" and 0 replaced by the defaults of a kind of trained teacher."""
    return replace(config, solver=config.solver or kind.CACHE_SOLVER, num_steps=config.num_steps or kind.CACHE_STEPS)
