"""The graph of a run: demonstrations, teacher, hypotheses, students, measurements, report."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from distill.config import Config
from distill.graphs.graph import Graph
from distill.inputs.choice import ByRollouts
from distill.inputs.observations import DemonstratedObservations
from distill.inputs.policies import DistilledStudent, MeasuredPolicy, NearestDemonstrationBaseline, TeacherAt
from distill.inputs.rollouts import MonitorSource, Rollouts
from distill.inputs.teachers import TeacherFolder, TeacherSource
from distill.objectives.recipes import recipe
from distill.runtime.stage import Stage
from distill.stages.choose_student import ChooseStudent
from distill.stages.choose_teacher import ChooseTeacher
from distill.stages.demonstrations import RecordDemonstrations
from distill.stages.evaluate import EvaluatePolicy
from distill.stages.generalisation import MeasureGeneralisation
from distill.stages.oracle import ReplayDemonstrations
from distill.stages.real_time import RollOutInRealTime
from distill.stages.reference import DrawReference, HeldOutSets
from distill.stages.report import WriteReport
from distill.stages.sample import SampleHypotheses, with_solver_defaults
from distill.stages.starts import RecordStarts, StartsOf
from distill.stages.timing.frontier import MeasureFrontier
from distill.stages.timing.latency import MeasureLatency
from distill.stages.train_student import FromDemonstrations, FromTeacher, TrainStudent
from distill.stages.train_teacher import TrainTeacher
from distill.worlds.contract import World
from envs.poses import pose_layout
from teachers import TEACHERS
from teachers.networks.shapes import PolicyShape


@dataclass(frozen=True)
class RunGraph(Graph):
    """A run's stages by name, for code that reads its results."""

    demonstrations: RecordDemonstrations
    starts: RecordStarts
    sample: SampleHypotheses
    reference: DrawReference
    trained: tuple[TrainStudent, ...]
    chosen: tuple[ChooseStudent, ...]
    evaluated: tuple[EvaluatePolicy, ...]
    latency: MeasureLatency
    real_time: tuple[RollOutInRealTime, ...]


EXTRA_STAGES: dict[str, Callable[[RunGraph], Stage[Any]]] = {}
"""Extra stages of a run, by command-line word: a function of the run's graph that returns the stage. To add a stage, add one
file and one line here."""


def run_graph(config: Config, world: World) -> RunGraph:
    """The stages of a config in its world. Reads nothing but the folder of teacher.path."""
    graph = _own_stages(config, world)
    extra = {word: (make(graph),) for word, make in EXTRA_STAGES.items()}
    return replace(graph, named={**graph.named, **extra}, extra=tuple(stage for (stage,) in extra.values()),
                   note=config.note)  # fmt: skip


def _own_stages(config: Config, world: World) -> RunGraph:
    evaluate, seed = config.evaluate, config.seed
    shape = config.shape(world.spec)
    demonstrations = RecordDemonstrations(world, config.demos)
    starts = RecordStarts(world, evaluate, shape)
    validation, test = StartsOf(starts, "validation"), StartsOf(starts, "test")
    rollouts = Rollouts(
        world, seed, evaluate.execution_horizon, evaluate.student_selection, MonitorSource(demonstrations, shape)
    )
    choice = ByRollouts(rollouts, validation)

    teacher, train = _teacher(config, demonstrations, choice, shape)
    # an existing teacher's kind is in its folder, whose bytes are its key
    drawn = with_solver_defaults(config.sample, TEACHERS[config.teacher.kind]) if config.teacher.path is None else config.sample
    motions = config.observation.motions
    source = DemonstratedObservations(demonstrations, motions, seed)
    sample = SampleHypotheses(
        teacher, source, drawn, shape, evaluate.execution_horizon, seed, features=shape.encoder is not None
    )

    trained, chosen = [], []
    for name in config.student.objectives:
        made = recipe(name)
        hypotheses = sample if made.data == "hypotheses" else None
        basis = FromTeacher(teacher) if made.teacher else FromDemonstrations(demonstrations, shape, motions)
        frozen = config.observation.frozen if shape.encoder is not None and made.teacher else None
        student = TrainStudent(
            name, made, made.settings(config), basis, hypotheses, demonstrations if hypotheses is None else None, source,
            world.spec.action.weights, config.sample.num_hypotheses, evaluate.execution_horizon, frozen,
            None if made.teacher else shape, drawn.solver, seed, motions,
        )  # fmt: skip
        trained.append(student)
        chosen.append(ChooseStudent(student, choice))

    teachers: list[MeasuredPolicy] = [TeacherAt(teacher, steps) for steps in evaluate.teacher_steps]
    baselines: list[MeasuredPolicy] = [NearestDemonstrationBaseline(demonstrations, teacher) for _ in evaluate.baselines]
    students: list[MeasuredPolicy] = [
        DistilledStudent(stage.candidates.recipe_name, stage.candidates.recipe.label, stage) for stage in chosen
    ]
    sets = HeldOutSets(starts, evaluate.fidelity_samples, evaluate.execution_horizon, evaluate.student_selection, seed)
    reference = DrawReference(teachers[0], sets)
    evaluated = tuple(
        EvaluatePolicy(policy, world.spec, rollouts, test, reference) for policy in (*teachers, *baselines, *students)
    )
    generalisation = None
    if pose_layout(world.spec.action.names).positions:
        ten_steps = min(teachers, key=lambda each: abs((each.num_steps or 0) - 10))
        generalisation = MeasureGeneralisation((ten_steps, *students), demonstrations, starts, seed)
    latency = MeasureLatency(evaluated, world, evaluate.latency_calls, evaluate.latency_warmup, evaluate.latency_modes)
    frontier = _frontier(config, students, rollouts, test, latency)
    real_time = _real_time(config, world, test, latency, teachers, students)
    oracle = ReplayDemonstrations(starts) if world.has_oracle else None
    choose = teacher if isinstance(teacher, ChooseTeacher) else None
    report = WriteReport(
        "run", config, world, evaluated, latency, teacher, sample, tuple(chosen), train, choose, demonstrations, starts,
        real_time, oracle, generalisation, frontier,
    )  # fmt: skip
    named = {
        "demos": (demonstrations,), "teach": (choose,) if choose else (), "sample": (sample,), "distill": tuple(chosen),
        "evaluate": (*((oracle,) if oracle else ()), *evaluated, *((generalisation,) if generalisation else ()), latency,
                     *((frontier,) if frontier else ()), *real_time), "report": (report,),
    }  # fmt: skip
    return RunGraph(
        report, named, demonstrations, starts, sample, reference, tuple(trained), tuple(chosen), evaluated, latency, real_time
    )


def _teacher(
    config: Config, demonstrations: RecordDemonstrations, choice: ByRollouts, shape: PolicyShape
) -> tuple[TeacherSource, TrainTeacher | None]:
    """The teacher, and its training stage when it is trained here.

    Training is one stage and the choice among its checkpoints another, so that other validation starts or another execution
    horizon need no new training.
    """
    if config.teacher.path is not None:
        return TeacherFolder(config.teacher.path), None
    train = TrainTeacher(demonstrations, config.teacher, shape, config.seed, config.observation.motions)
    return ChooseTeacher(train, choice, config.evaluate.teacher_steps[0]), train


def _frontier(
    config: Config, students: list[MeasuredPolicy], rollouts: Rollouts, test: StartsOf, latency: MeasureLatency
) -> MeasureFrontier | None:
    """The default student at other numbers of samples; None when there are no others, or it compares no samples."""
    selection = config.evaluate.student_selection
    others = tuple(count for count in config.evaluate.frontier_samples if count != selection.candidates)
    if not others or not selection.uses_candidates:
        return None
    student = next(each for each in students if each.name == config.student.default)
    return MeasureFrontier(student, rollouts, test, latency, others)


def _real_time(
    config: Config, world: World, test: StartsOf, latency: MeasureLatency, teachers: list[MeasuredPolicy],
    students: list[MeasuredPolicy],
) -> tuple[RollOutInRealTime, ...]:  # fmt: skip
    """A stage per policy that is evaluated in real time; none when that is off."""
    settings, default = config.real_time, config.student.default
    if not settings.is_on:
        return ()
    policies = [policy for policy in teachers if policy.num_steps in settings.teacher_steps]
    policies.sort(key=lambda policy: settings.teacher_steps.index(policy.num_steps or 0))
    every = settings.execution_horizon or config.evaluate.execution_horizon
    return tuple(
        RollOutInRealTime(
            policy, world, test, latency, settings, every, config.real_time_selection, default, config.seed
        )
        for policy in (*policies, *(student for student in students if student.name == default))
    )
