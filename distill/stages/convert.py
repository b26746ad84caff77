"""`distill.py convert`: a teacher and recorded observations to a one-step student and its figures; no simulator is needed."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from distill.cli.opening import Opened
from distill.evaluation.fidelity import average, set_fidelity
from distill.evaluation.policies import Policy, Seen, StudentPolicy
from distill.hypotheses.cache import HypothesisDataset, keeps_features, training_frames
from distill.hypotheses.frame_cache import KeptObservations
from distill.objectives.recipes import Batch, Recipe
from distill.stages.measuring import choose_checkpoint, chunks_at
from distill.stages.outside import Outside, spread
from distill.stages.pipeline import Pipeline
from distill.store.manifest import write_json
from distill.training.loop import step_generator
from teachers.contract import Teacher
from teachers.networks.normalisation import Normaliser
from teachers.networks.observations import sources_of
from teachers.networks.shapes import PolicyShape
from teachers.trained import TrainedTeacher


class Conversion(Outside):
    """One teacher, at several numbers of solver steps, and the students that are distilled from it."""

    def _named(self, name: str) -> tuple[Opened, int]:
        return self.first, int(name.removeprefix("teacher_"))

    @property
    def native(self) -> TrainedTeacher | None:
        """The teacher, where it is one of ours, with the weights of which students begin."""
        return self.first.policy if isinstance(self.first.policy, TrainedTeacher) else None

    def teacher(self, folder: Path) -> TrainedTeacher:
        assert self.native is not None
        return self.native.to(self.run.accelerator.device)

    def _needed(self, name: str) -> None:
        self.demos(), self.sample()

    def demos(self) -> Path:
        # a teacher of ours brings its statistics
        return Path() if self.native is not None else super().demos()

    # -- hypotheses -------------------------------------------------------------------------------------------------

    def sample(self) -> Path:
        self.demos()
        return self._do(self.plan.sample, self._draw_hypotheses)

    def _draw_hypotheses(self, folder: Path) -> None:
        """For training frames, a share of them where a policy would be asked for a chunk."""
        settings, teacher, native = self.config.sample, self._asked(), self.native
        train = self.frames["train"]
        frames = train[training_frames(
            self.recorded.episode_index(train), settings.num_observations, settings.replanning_share,
            self.config.evaluate.execution_horizon, self.config.seed,
        )]  # fmt: skip
        if len(frames) < settings.num_observations:
            self.run.say(f"  only {len(frames)} observations are for training, all are taken")
        label, steps, used = self.first.label, settings.num_steps or self.first.num_steps, ""
        if native is not None:
            used, steps = native.solver, settings.num_steps or native.CACHE_STEPS
            native.use_solver(settings.solver or native.CACHE_SOLVER)
            label = f"{native.KIND}, {native.solver}"
        try:
            features_of = self.teacher_key if keeps_features(teacher) else ""
            self._write_hypotheses(
                folder, teacher, self.normaliser(), frames, len(self.recorded), steps, self.seen_at, label, features_of
            )
        finally:
            if native is not None:
                native.use_solver(used)  # it is measured as it came

    def _asked(self) -> Teacher:
        """What hypotheses are drawn from."""
        assert isinstance(self.first.policy, Teacher)
        return self.first.policy

    def _hypotheses(self) -> HypothesisDataset:
        return HypothesisDataset(self.sample(), features_of=self.teacher_key if keeps_features(self._asked()) else "")

    def _read_hypotheses(self, shape: PolicyShape) -> tuple[Callable[[Tensor], Batch], int]:
        if self.native is not None or shape.encoder is None:
            kept = self._hypotheses()
            return kept.batch, len(kept)
        cache = HypothesisDataset(self.sample(), frames=True)
        frames_N = cache.batch(range(len(cache)))["frame_index"].numpy()
        seen = KeptObservations(lambda frames: self.seen_at(frames, sources_of(shape)), frames_N)
        return lambda rows: {**cache.batch(rows), **seen.at(torch.as_tensor(rows))}, len(cache)

    # -- students ---------------------------------------------------------------------------------------------------

    def _basis(self, chosen: Recipe) -> tuple[TrainedTeacher | None, PolicyShape, Normaliser]:
        if self.native is None:
            return None, self.shape, self.normaliser()
        teacher = self.teacher(self.teach()).requires_grad_(False)
        return teacher, teacher.shape, teacher.normaliser

    def student_policy(self, folder: Path, name: str) -> Policy:
        return StudentPolicy(self.student(folder), name)

    def distill(self) -> dict[str, Path]:
        return Pipeline.distill(self)

    def evaluate_student(self, objective: str) -> Path:
        self.reference()
        policy = partial(self.student_policy, self.distill_one(objective), objective)
        return self._do(self.plan.students_evaluated[objective], lambda folder: self._measure(folder, policy()))

    def evaluate(self) -> None:
        self.distill()
        for objective in self.plan.students_evaluated:
            self.evaluate_student(objective)
        super().evaluate()

    def policies(self) -> list[Policy]:
        students = [self.student_policy(self.distill_one(name), name) for name in self.plan.students_evaluated]
        return [*super().policies(), *students]

    def _choose(self, folder: Path, trained: Path, load: Callable[[Path], Policy]) -> None:
        """With a task by roll-outs, as in a run; else by the distance of sets on frames that are for nothing else."""
        if self.config.task:
            choose_checkpoint(self, folder, trained, load)
        elif self.run.is_main:
            self._choose_by_sets(folder, trained, load)

    def _choose_by_sets(self, folder: Path, trained: Path, load: Callable[[Path], Policy]) -> None:
        seen = self.seen_at(spread(self.frames["validation"], self.config.evaluate.fidelity_observations))
        normaliser, weights_A = self.normaliser(), torch.tensor(self.spec.action.weights, device=self.run.accelerator.device)
        teacher = self.teacher_policy(self.config.evaluate.teacher_steps[0])
        wanted = self._sets(teacher, seen, normaliser)
        candidates, rows = sorted(trained.glob("candidate-*")), []
        for path in candidates:
            made = self._sets(load(path), seen, normaliser)
            parts = [(1, set_fidelity(mine, its, weights_A)) for mine, its in zip(made, wanted, strict=True)]
            figures: dict[str, Any] = {name: average(parts)[name] for name in ("energy_distance", "outside_share")}
            rows.append({"step": int(path.name.rsplit("-", 1)[1]), **figures})
        best = min(range(len(rows)), key=lambda row: (rows[row]["energy_distance"], -row))
        for name in ("config.json", "model.safetensors"):
            shutil.copyfile(candidates[best] / name, folder / name)
        write_json(folder / "validation.json", [{**row, "chosen": index == best} for index, row in enumerate(rows)])

    def _sets(self, policy: Policy, seen: Seen, normaliser: Normaliser) -> list[Tensor]:
        """Normalised chunks `[1, S, T, A]` of a policy for each observation."""
        count = len(next(iter(seen.values())))
        chunks = [
            chunks_at(self, policy, {name: value[row : row + 1] for name, value in seen.items()},
                      step_generator(self.config.seed, row, stream=3)) for row in range(count)
        ]  # fmt: skip
        device = self.run.accelerator.device
        return [normaliser.normalise_action(torch.from_numpy(each).to(device))[None] for each in chunks]
