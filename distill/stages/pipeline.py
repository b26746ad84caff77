"""The work, stage by stage, in the order it is done: demonstrations to report."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from tqdm import tqdm

from distill.context import Run, Stage
from distill.evaluation.demonstrated import DemonstrationMemory, NearestDemonstration, SupportMonitor
from distill.evaluation.policies import Policy, Seen, StudentPolicy, TeacherPolicy
from distill.hypotheses.cache import (
    CachePlan,
    HypothesisDataset,
    keeps_features,
    training_frames,
    write_index,
    write_shards,
)
from distill.hypotheses.perturbation import beside, with_copies
from distill.objectives.code_shares import calibrate
from distill.objectives.recipes import Batch, Ingredients, Lesson, Recipe, recipe
from distill.objectives.sets import chunk_weights
from distill.observation import camera_sources, observation_of
from distill.stages.measuring import choose_checkpoint, draw_reference, measure_latency, measure_moving, measure_policy
from distill.stages.plan import Plan, make_plan
from distill.store.manifest import write_json
from distill.training.loop import Share, batch_indices, fit
from distill.worlds import embedded as recording
from distill.worlds import rlbench as benchmark
from envs.demonstrations import Demonstrations, windows
from envs.specs import STATE, TaskSpec
from envs.windows import CACHE_MB, WindowDataset
from students import Student, load_student
from students.one_step import OneStepStudent
from teachers import load_teacher, make_teacher
from teachers.contract import Teacher
from teachers.networks.normalisation import Normaliser, observed_ranges
from teachers.networks.shapes import PolicyShape
from teachers.trained import TrainedTeacher


class Pipeline:
    """A run and its plan; one method per stage, each does what it needs that is not there yet."""

    def __init__(self, run: Run, plan: Plan | None = None, spec: TaskSpec | None = None) -> None:
        """plan, spec: others than those of the config's task, for what distill.stages.outside does."""
        self.run, self.config = run, run.config
        self.plan: Plan = plan or make_plan(run.config)
        self.spec = spec or run.config.spec()
        self.cameras = run.config.cameras()
        self.simulators = benchmark.Simulators(run.config)
        self._done: dict[str, Path] = {}
        self._stored: dict[str, Tensor] = {}
        self._held_out: Seen = {}
        self._monitor: SupportMonitor | None = None

    # -- 1. demonstrations and stored starts ------------------------------------------------------------------------

    def demos(self) -> Path:
        """Every training start, solved by the expert in every mode."""
        source = benchmark if self.config.is_rlbench else recording
        return self._do(self.plan.demos, partial(source.record_demonstrations, self))

    def starts(self) -> Path:
        """Validation and test starts, and held-out observations along demonstrations from the validation starts."""
        source = benchmark if self.config.is_rlbench else recording
        return self._do(self.plan.starts, partial(source.make_starts, self))

    def stored(self) -> dict[str, Tensor]:
        """``validation``, ``test``: starts `[E, D]`; ``observations``: held-out state histories `[F, O, S]`; with cameras
        also ``frames`` `[F]`: which frames of the held-out demonstrations these are."""
        if not self._stored:  # asked for once per observation
            self._stored = load_file(str(self.starts() / "starts.safetensors"))
        return self._stored

    def held_out(self) -> Seen:
        """The held-out observations, raw, `[F, O, ..]` each."""
        if not self._held_out:
            stored = self.stored()
            seen = {STATE: stored["observations"].numpy()}
            if self.cameras is not None:
                demonstrations = Demonstrations.load(self.starts() / "held_out", self.spec)
                steps = self.config.teacher.observation_steps
                batch = self._windows(demonstrations, self.config.shape(), steps, 1)[stored["frames"].numpy()]
                seen |= {name: value.numpy() for name, value in observation_of(batch).items()}
            self._held_out = seen
        return self._held_out

    def demonstrations(self) -> Demonstrations:
        return Demonstrations.load(self.demos(), self.spec)

    def _windows(
        self, demonstrations: Demonstrations, shape: PolicyShape, observation_steps: int, horizon: int
    ) -> WindowDataset:
        """Windows of demonstrations with all that a policy of this shape sees, the state always among it."""
        # every process keeps its own, and they may all be on one machine
        return WindowDataset(
            demonstrations, camera_sources(shape), observation_steps=observation_steps, horizon=horizon,
            cache_mb=CACHE_MB / self.run.accelerator.num_processes,
        )  # fmt: skip

    def _normaliser(self, demonstrations: Demonstrations, shape: PolicyShape) -> Normaliser:
        """The statistics that a policy of this shape needs."""
        normaliser, statistics = Normaliser.of(shape), demonstrations.statistics()
        if camera_sources(shape):
            dataset = WindowDataset(demonstrations, camera_sources(shape), observation_steps=1, horizon=1, cache_mb=0)
            blocks = np.array_split(np.arange(len(dataset)), -(-len(dataset) // 256))
            statistics |= observed_ranges(dataset[block] for block in blocks)
        normaliser.fit(statistics)
        return normaliser

    # -- 2. the teacher ---------------------------------------------------------------------------------------------

    def teach(self) -> Path:
        """The flow teacher, chosen among its checkpoints on the validation starts; or the one at teacher.path."""
        if self.plan.teach is None:
            assert self.config.teacher.path is not None
            return self.config.teacher.path
        assert self.plan.train is not None
        self.demos()
        trained = self._do(self.plan.train, self._train_teacher)
        if self.config.is_rlbench:  # checkpoints are chosen on starts that had to be demonstrated
            self.starts()

        def load(folder: Path) -> Policy:
            return TeacherPolicy(self.teacher(folder), self.config.evaluate.teacher_steps[0])

        return self._do(self.plan.teach, lambda folder: choose_checkpoint(self, folder, trained, load))

    def _train_teacher(self, folder: Path) -> None:
        config, settings = self.config, self.config.teacher
        demonstrations = self.demonstrations()
        torch.manual_seed(config.seed)
        teacher = make_teacher(settings.kind, config.shape(), settings.solver, settings.time_power)
        teacher.normaliser.load_state_dict(self._normaliser(demonstrations, teacher.shape).state_dict())
        batches = self._demonstration_batches(demonstrations, settings.batch_size, teacher.shape)

        def loss(model: nn.Module, batch: Batch, generator: torch.Generator) -> Tensor:
            # drawn for the whole batch, then shared out: the draws do not depend on the number of processes
            draws = [self.run.share.of(draw) for draw in teacher.training_draws(settings.batch_size, generator)]
            observation, action_BTA = observation_of(batch), batch["action"]
            teacher_loss: Tensor = model(observation, action_BTA, *(draw.to(action_BTA.device) for draw in draws))
            return teacher_loss

        curve = fit(
            self.run.accelerator, teacher, batches, loss, settings, config.seed, folder,
            lambda model, target: model.save_pretrained(target),  # type: ignore[operator]
            lambda step, value: self.run.log("teach", {"step": step, "loss": value}), "teach",
        )  # fmt: skip
        self._finish_training(folder, curve)

    def _demonstration_batches(
        self, demonstrations: Demonstrations, batch_size: int, shape: PolicyShape
    ) -> Callable[[int, int, Share], Iterator[Batch]]:
        """Batches of observations and of the chunks that were demonstrated from there, as long as `shape` plans."""
        dataset = self._windows(demonstrations, shape, shape.observation_steps, shape.horizon)

        def batches(first: int, last: int, share: Share) -> Iterator[Batch]:
            for step in range(first, last):
                frames = batch_indices(self.config.seed, step, batch_size, len(dataset))
                yield self._to_device(dataset[share.of(frames).numpy()])

        return batches

    def _finish_training(self, folder: Path, curve: list[dict[str, float]], alone: bool = False) -> None:
        if alone or self.run.is_main:
            write_json(folder / "curve.json", curve)
            (folder / "resume.safetensors").unlink(missing_ok=True)

    def teacher(self, folder: Path) -> TrainedTeacher:
        return load_teacher(folder).to(self.run.accelerator.device)

    def teacher_policy(self, steps: int) -> Policy:
        """The teacher at a number of solver steps."""
        return TeacherPolicy(self.teacher(self.teach()), steps)

    # -- 3. the hypotheses ------------------------------------------------------------------------------------------

    def sample(self) -> Path:
        """K teacher chunks for each of many training observations, shard by shard over all processes."""
        self.demos(), self.teach()
        return self._do(self.plan.sample, self._draw_hypotheses)

    def _draw_hypotheses(self, folder: Path) -> None:
        settings = self.config.sample
        demonstrations = self.demonstrations()
        teacher = self.teacher(self.teach())
        teacher.use_solver(settings.solver or teacher.CACHE_SOLVER)
        dataset = self._windows(demonstrations, teacher.shape, teacher.shape.observation_steps, 1)

        def observe(chosen: np.ndarray) -> Seen:
            return {name: value.numpy() for name, value in observation_of(dataset[chosen]).items()}

        frames = training_frames(
            demonstrations.episode_index, settings.num_observations, settings.replanning_share,
            self.config.evaluate.execution_horizon, self.config.seed,
        )  # fmt: skip
        if len(frames) < settings.num_observations:
            self.run.say(f"  only {len(frames)} observations in the demonstrations, all are taken")
        features_of = self.teacher_key if keeps_features(teacher) else ""
        self._write_hypotheses(
            folder, teacher, teacher.normaliser, frames, len(dataset), settings.num_steps or teacher.CACHE_STEPS, observe,
            f"{teacher.KIND}, {teacher.solver}", features_of,
        )  # fmt: skip

    def _write_hypotheses(
        self, folder: Path, teacher: Teacher, normaliser: Normaliser, frames: np.ndarray, count: int, num_steps: int,
        observe: Callable[[np.ndarray], Seen], label: str, features_of: str,
    ) -> None:  # fmt: skip
        """K chunks for each of these of `count` frames and, where they are too few, of perturbed copies of them, if asked for.

        label, features_of: see `distill.hypotheses.cache.write_index`.
        """
        settings = self.config.sample
        if settings.perturbation and len(frames) < settings.num_observations:
            self.run.say(f"  perturbed copies of them make it {settings.num_observations}")
            frames = with_copies(frames, count, settings.num_observations, self.config.seed)
            observe = beside(observe, count, settings.perturbation * normaliser.state_spread(), self.config.seed)
        cache_plan = CachePlan(
            frames, settings.num_hypotheses, num_steps, settings.shard_size, settings.batch_size, self.config.seed
        )
        shards = self.run.my_share(range(cache_plan.num_shards))
        with tqdm(total=len(shards), desc="sample", unit="shard", disable=not self.run.is_main) as bar:
            write_shards(
                folder, teacher, normaliser, cache_plan,
                observe, shards, self.run.accelerator.device, lambda _: bar.update(),
            )  # fmt: skip
        self.run.accelerator.wait_for_everyone()
        if self.run.is_main:
            write_index(folder, cache_plan, label, features_of)

    @property
    def teacher_key(self) -> str:
        """The key of the stage `teach`, or of the files at teacher.path: whose features the cache holds."""
        return str(self.plan.sample.made_from["teacher"])

    def _hypotheses(self) -> HypothesisDataset:
        """The cache, with the teacher's features where it sees by an encoder of its own."""
        seeing = self.config.shape().encoder is not None
        return HypothesisDataset(self.sample(), features_of=self.teacher_key if seeing else "")

    # -- 4. the students --------------------------------------------------------------------------------------------

    def distill(self) -> dict[str, Path]:
        """One one-step student per recipe."""
        self._train_side_by_side()
        return {name: self.distill_one(name) for name in self.config.student.objectives}

    def _needed(self, name: str) -> None:
        """Do what a recipe is made from."""
        self.demos()
        if recipe(name).teacher:
            self.teach()
        if recipe(name).data == "hypotheses":
            self.sample()

    def _train_side_by_side(self) -> None:
        """Where there are several processes and several students to train, each process trains another one, alone.

        Twice as fast on two cores as one after the other on both: nothing waits for the other half of its gradient.
        """
        for name in self.config.student.objectives:
            self._needed(name)
        stages = {name: self.plan.train_students[name] for name in self.config.student.objectives}
        # the cheap ones last, so that they fill up what the dear ones leave
        names = sorted(stages, key=lambda name: recipe(name).cheap)
        todo = [name for name in names if stages[name].name not in self._done and not self.run.is_done(stages[name])]
        if self.run.share.world > 1 and len(todo) > 1:
            self.run.stages_side_by_side(
                [(stages[name], partial(self._train_student, name=name, alone=True)) for name in todo]
            )
            self._done |= {stages[name].name: self.run.folder(stages[name]) for name in todo}
            if self.run.wandb is not None:  # it runs on the first process only, which did not see the others' losses
                for name in set(todo) - set(self.run.my_share(todo)):
                    for row in json.loads((self.run.folder(stages[name]) / "curve.json").read_text()):
                        self.run.wandb.log({f"distill/{name}/{key}": value for key, value in row.items()})

    def distill_one(self, name: str) -> Path:
        """The student of one recipe, chosen among its checkpoints on the validation starts."""
        self._needed(name)
        trained = self._do(self.plan.train_students[name], lambda folder: self._train_student(folder, name))

        def load(folder: Path) -> Policy:
            return StudentPolicy(self.student(folder), name)

        def choose(folder: Path) -> None:
            self._choose(folder, trained, load)
            self._calibrate(folder)

        return self._do(self.plan.students[name], choose)

    def _choose(self, folder: Path, trained: Path, load: Callable[[Path], Policy]) -> None:
        choose_checkpoint(self, folder, trained, load)

    def _calibrate(self, folder: Path) -> None:
        """Set the shares of the chosen student's codes right on hypotheses, where it learns any (objectives.code_shares)."""
        if not self.run.is_main:
            return
        student = self.student(folder)
        if not isinstance(student, OneStepStudent) or student.share_head is None:
            return
        read, count = self._read_hypotheses(student.shape)
        batches = (self._to_device(read(rows)) for rows in torch.arange(count).split(16))
        began = time.process_time()
        figures = calibrate(student, batches, self._weights(student.shape.horizon), self.config.seed)
        student.save_pretrained(folder)
        write_json(folder / "calibration.json", {**figures, "cpu_seconds": round(time.process_time() - began, 3)})

    def _train_student(self, folder: Path, name: str, alone: bool = False) -> None:
        config, chosen, device = self.config, recipe(name), self.run.accelerator.device
        settings = chosen.settings(config)
        given = self._ingredients(chosen)
        torch.manual_seed(config.seed)
        student = chosen.build(given)
        rows = chosen.rows(settings)

        if chosen.data == "hypotheses":
            batches = self._hypothesis_batches(given.shape, rows)
        else:
            batches = self._demonstration_batches(self.demonstrations(), rows, given.shape)

        def loss(model: nn.Module, batch: Batch, generator: torch.Generator) -> Tensor:
            draws = chosen.draws(student, given, rows, generator)
            mine = draws if alone else [self.run.share.of(draw) for draw in draws]
            student_loss: Tensor = model(batch, *(draw.to(device) for draw in mine))
            return student_loss

        curve = fit(
            self.run.accelerator, Lesson(student, chosen, given), batches, loss, replace(settings, batch_size=rows),
            config.seed, folder, lambda model, target: model.student.save_pretrained(target),  # type: ignore[operator,union-attr]
            lambda step, value: self.run.log(f"distill/{name}", {"step": step, "loss": value}), name, alone=alone,
        )  # fmt: skip
        self._finish_training(folder, curve, alone)

    def _hypothesis_batches(self, shape: PolicyShape, batch_size: int) -> Callable[[int, int, Share], Iterator[Batch]]:
        """Batches of observations with all their hypotheses."""
        read, count = self._read_hypotheses(shape)

        def batches(first: int, last: int, share: Share) -> Iterator[Batch]:
            for step in range(first, last):
                yield self._to_device(read(share.of(batch_indices(self.config.seed, step, batch_size, count))))

        return batches

    def _read_hypotheses(self, shape: PolicyShape) -> tuple[Callable[[Tensor], Batch], int]:
        """Rows of the cache to what a student of this shape is trained on, and how many rows there are.

        That is the state, the features that are in the cache or, where the encoder is trained on, all that was seen.
        """
        if shape.encoder is None or self.config.observation.frozen:
            kept = self._hypotheses()
            return kept.batch, len(kept)
        cache = HypothesisDataset(self.sample(), frames=True)
        dataset = self._windows(self.demonstrations(), shape, shape.observation_steps, 1)

        def read(rows: Tensor) -> Batch:
            batch = cache.batch(rows)
            return {**batch, **observation_of(dataset[batch["frame_index"].numpy()])}

        return read, len(cache)

    def _to_device(self, batch: Batch) -> Batch:
        return {name: value.to(self.run.accelerator.device) for name, value in batch.items()}

    def _ingredients(self, chosen: Recipe) -> Ingredients:
        config = self.config
        teacher, shape, normaliser = self._basis(chosen)
        student, weights_TA = config.student, self._weights(shape.horizon)
        shape = replace(shape, width=student.width or shape.width, depth=student.depth or shape.depth)
        chunks_JTA = None
        if chosen.data == "hypotheses" and student.codes:
            dataset, generator = self._hypotheses(), torch.Generator().manual_seed(config.seed)
            rows = torch.randint(len(dataset), (student.codes,), generator=generator)
            chunks_JTA = dataset.batch(rows)["hypotheses"][:, 0].to(weights_TA.device)
        return Ingredients(
            shape, normaliser, teacher, student, config.sample.num_hypotheses, weights_TA, chunks_JTA,
            shape.encoder is not None and config.observation.frozen,
        )  # fmt: skip

    def _basis(self, chosen: Recipe) -> tuple[TrainedTeacher | None, PolicyShape, Normaliser]:
        """The teacher that a student starts from, where it does; the shape and the statistics that it is given."""
        if not chosen.teacher:
            shape = self.config.shape()
            return None, shape, self._normaliser(self.demonstrations(), shape)
        teacher = self.teacher(self.teach())
        teacher.use_solver(self.config.sample.solver or teacher.CACHE_SOLVER)  # what its hypotheses were drawn with
        teacher.requires_grad_(False)
        return teacher, teacher.shape, teacher.normaliser

    def _weights(self, horizon: int) -> Tensor:
        """Weights `[T, A]` of the distance between chunks."""
        weights_A = torch.tensor(self.spec.action.weights, device=self.run.accelerator.device)
        return chunk_weights(
            weights_A, horizon, self.config.evaluate.execution_horizon, self.config.student.unexecuted_weight
        )

    def student(self, folder: Path) -> Student:
        return load_student(folder).to(self.run.accelerator.device)

    # -- 5. the measuring -------------------------------------------------------------------------------------------

    def reference(self) -> Path:
        """Two independent fresh teacher sets per held-out observation: what fidelity compares with, and its floor."""
        self.teach(), self.starts()
        return self._do(self.plan.reference, partial(draw_reference, self))

    def evaluate_teacher(self, steps: int) -> Path:
        """The teacher at a number of solver steps, on the test starts."""
        self.reference()
        return self._do(
            self.plan.teachers_evaluated[steps],
            lambda folder: measure_policy(self, folder, self.teacher_policy(steps)),
        )

    def evaluate_baseline(self, name: str) -> Path:
        """A policy that needs no training, on the test starts."""
        self.reference()
        return self._do(self.plan.baselines_evaluated[name], lambda folder: measure_policy(self, folder, self.baseline()))

    def baseline(self) -> Policy:
        """The chunk of the nearest demonstration by the whole state, whatever the others see (evaluation.demonstrated)."""
        teacher, demonstrations = self.teacher(self.teach()), self.demonstrations()
        shape = replace(teacher.shape, encoder=None)
        memory = DemonstrationMemory(demonstrations, shape, self._normaliser(demonstrations, shape))
        return NearestDemonstration(memory.to(self.run.accelerator.device))

    def monitor(self) -> SupportMonitor | None:
        """Says which observations are unlike those that were demonstrated; made once a process.

        None, nothing is said, where only one start was demonstrated: how far two starts are apart is then not known.
        """
        if self._monitor is None:
            demonstrations = self.demonstrations()
            if len(np.unique(demonstrations.start_index)) < 2:
                return None
            frames = np.arange(demonstrations.num_frames)
            states, _ = windows(demonstrations, frames, self.config.teacher.observation_steps, 1)
            starts = torch.from_numpy(demonstrations.start_index[demonstrations.episode_index])
            normaliser = self._normaliser(demonstrations, replace(self.config.shape(), encoder=None))
            self._monitor = SupportMonitor(torch.from_numpy(states), starts, normaliser)
        return self._monitor

    def evaluate_student(self, objective: str) -> Path:
        """One student on the test starts."""
        self.reference()
        student = self.distill_one(objective)
        return self._do(
            self.plan.students_evaluated[objective],
            lambda folder: measure_policy(self, folder, StudentPolicy(self.student(student), objective)),
        )

    def oracle(self) -> None:
        """The demonstrations of the test starts, replayed, for a task that is not simulated here."""
        if self.plan.oracle is not None:
            self.starts()
            self._do(self.plan.oracle, partial(benchmark.replay_demonstrations, self))

    def evaluate(self) -> None:
        """Every policy on the same stored test starts, then the latency of all of them side by side."""
        self.oracle()
        for steps in self.config.evaluate.teacher_steps:
            self.evaluate_teacher(steps)
        for name in self.config.evaluate.baselines:
            self.evaluate_baseline(name)
        self.distill()
        for objective in self.config.student.objectives:
            self.evaluate_student(objective)
        self.latency()
        self.moving()

    def policies(self) -> list[Policy]:
        """All that are compared; their stages have been done, so one process may ask by itself."""
        teacher = self.teacher(self.teach())
        return [
            *(TeacherPolicy(teacher, steps) for steps in self.config.evaluate.teacher_steps),
            *(self.baseline() for _ in self.config.evaluate.baselines),
            *(StudentPolicy(self.student(self.distill_one(name)), name) for name in self.config.student.objectives),
        ]

    def latency(self) -> Path:
        self.distill()
        return self._do(self.plan.latency, partial(measure_latency, self))

    def moving(self) -> None:
        """The teacher and the default student in a world that goes on while they compute, where that is asked for."""
        for name, stage in self.plan.moving.items():
            self.latency()
            self._do(stage, partial(measure_moving, self, name=name))

    # -- 6. the report ----------------------------------------------------------------------------------------------

    def report(self) -> Path:
        """report.json, report.md and report.html."""
        from distill.report.page import write_report
        from distill.stages.results import collect
        from distill.worlds.replays import render_clips

        self.evaluate()

        def work(folder: Path) -> None:
            if self.run.is_main:
                clips = render_clips(self, folder)
                write_report(folder, collect(self, clips))

        return self._do(self.plan.report, work)

    # -- plumbing ---------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """End the simulators that run in processes of their own, if any do."""
        self.simulators.close()

    def __enter__(self) -> Pipeline:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _do(self, stage: Stage, work: Callable[[Path], None]) -> Path:
        """A stage is looked at (and its files verified) once a process, however many others need it."""
        if stage.name not in self._done:
            self._done[stage.name] = self.run.stage(stage, work)
        return self._done[stage.name]

    def bar(self, items: Any, title: str, unit: str) -> Any:
        """The items, with a bar on the first process."""
        return tqdm(items, desc=title, unit=unit, mininterval=1.0, disable=not self.run.is_main)
