"""The graphs of a conversion and of a comparison: existing policies on recorded observations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from distill.config import Config
from distill.graphs.graph import Graph
from distill.inputs.choice import ByRollouts, BySets, Choice
from distill.inputs.policies import DistilledStudent, MeasuredPolicy
from distill.inputs.recorded import HeldOutRecording, Opened, OpenedAt, OpenedTeacher, Recording
from distill.inputs.rollouts import Rollouts
from distill.objectives.recipes import recipe
from distill.stages.choose_student import ChooseStudent
from distill.stages.evaluate import EvaluatePolicy
from distill.stages.in_place.choose import ChooseInPlace, InPlaceStudent
from distill.stages.in_place.config import InPlaceConfig
from distill.stages.in_place.encode import EncodeObservations
from distill.stages.in_place.source import TrainingObservations
from distill.stages.in_place.train import TrainInPlace
from distill.stages.ranges import MeasureRanges
from distill.stages.reference import DrawReference, HeldOutSets
from distill.stages.report import WriteReport
from distill.stages.sample import SampleHypotheses, with_solver_defaults
from distill.stages.starts import DrawnStarts
from distill.stages.timing.latency import MeasureLatency
from distill.stages.train_student import FromStatistics, FromTeacher, TrainStudent
from distill.worlds.contract import World
from teachers.networks.shapes import PolicyShape
from teachers.trained import TrainedTeacher


def conversion_graph(
    config: Config, world: World, opened: Opened, recording: Recording, shape: PolicyShape | None,
    in_place: InPlaceConfig | None = None, stored: bool = True,
) -> Graph:  # fmt: skip
    """One teacher, at every number of `evaluate.teacher_steps`, and the students distilled from it.

    shape: of students with random initial weights; None: they start from the teacher's weights. in_place: how the policy's own
    network is fine-tuned; None: it is not. stored: whether its encoded observations are kept on disk for that.
    """
    source = _statistics(config, opened, recording, shape or opened.shape)
    existing = [OpenedAt(opened, steps, f"teacher_{steps}", source, by_steps=True) for steps in config.evaluate.teacher_steps]
    sets = _held_out_sets(config, recording)
    sample = _sample(config, opened, source, recording)
    choice = _choice(config, world, existing[0], source, recording)
    basis = FromTeacher(source) if shape is None else FromStatistics(source, shape)
    frozen = config.observation.frozen if shape is None and opened.shape.encoder is not None else None
    chosen: list[ChooseStudent | ChooseInPlace] = []
    students: list[MeasuredPolicy] = []
    if in_place is not None:
        observations = TrainingObservations(sample, recording, source)
        encoded = EncodeObservations(opened, observations) if stored else None
        trained = TrainInPlace(
            opened, observations, encoded, in_place, world.spec.action.weights, config.evaluate.execution_horizon, config.seed
        )
        fine_tuned = ChooseInPlace(trained, choice)
        chosen.append(fine_tuned)
        students.append(InPlaceStudent(fine_tuned))
    for name in config.student.objectives:
        made = recipe(name)
        student = TrainStudent(
            name, made, made.settings(config), basis, sample, None, recording, world.spec.action.weights,
            config.sample.num_hypotheses, config.evaluate.execution_horizon, frozen, shape, sample.config.solver, config.seed,
        )  # fmt: skip
        best = ChooseStudent(student, choice)
        chosen.append(best)
        students.append(DistilledStudent(name, f"Student, {made.label}", best))
    return _measured(config, world, [*existing, *students], sets, source, recording, (opened,), sample, tuple(chosen))


def comparison_graph(config: Config, world: World, opened: Mapping[str, Opened], recording: Recording) -> Graph:
    """Policies by the names of their results; the first is the reference."""
    first = next(iter(opened.values()))
    source = _statistics(config, first, recording, first.shape)
    policies = [OpenedAt(each, each.num_steps, name, source) for name, each in opened.items()]
    sets = _held_out_sets(config, recording)
    return _measured(config, world, policies, sets, source, recording, tuple(opened.values()))


def _statistics(config: Config, opened: Opened, recording: Recording, shape: PolicyShape) -> OpenedTeacher:
    """A policy with the normaliser that chunks are compared in: its own, or a measured one for an adapter."""
    measured = MeasureRanges(opened, recording, shape, config.sample.batch_size, config.seed) if opened.external else None
    return OpenedTeacher(opened, measured)


def _held_out_sets(config: Config, recording: Recording) -> HeldOutSets:
    evaluate = config.evaluate
    held_out = HeldOutRecording(recording, "test", evaluate.fidelity_observations)
    return HeldOutSets(held_out, evaluate.fidelity_samples, evaluate.execution_horizon, evaluate.student_selection, config.seed)


def _sample(config: Config, opened: Opened, source: OpenedTeacher, recording: Recording) -> SampleHypotheses:
    if isinstance(opened.policy, TrainedTeacher):
        drawn, label, features = with_solver_defaults(config.sample, type(opened.policy)), "", opened.shape.encoder is not None
    else:
        drawn = replace(config.sample, num_steps=config.sample.num_steps or opened.num_steps)
        label, features = opened.label, False
    return SampleHypotheses(
        source, recording, drawn, opened.shape, config.evaluate.execution_horizon, config.seed, label, features
    )


def _choice(
    config: Config, world: World, reference: MeasuredPolicy, source: OpenedTeacher, recording: Recording
) -> Choice:
    """With a task, checkpoints are chosen by rollouts; without one, by set distance on frames reserved for that."""
    evaluate = config.evaluate
    if world.rolls_out:
        validation = DrawnStarts(world, config.seed, "validation", evaluate.validation_starts)
        return ByRollouts(_rollouts(config, world), validation)
    observations = HeldOutRecording(recording, "validation", evaluate.fidelity_observations)
    return BySets(
        reference, source, observations, evaluate.fidelity_samples, evaluate.execution_horizon,
        evaluate.student_selection, world.spec.action.weights, config.seed,
    )  # fmt: skip


def _rollouts(config: Config, world: World) -> Rollouts:
    return Rollouts(world, config.seed, config.evaluate.execution_horizon, config.evaluate.student_selection)


def _measured(
    config: Config, world: World, policies: Sequence[MeasuredPolicy], sets: HeldOutSets, source: OpenedTeacher,
    recording: Recording, opened: tuple[Opened, ...], sample: SampleHypotheses | None = None,
    chosen: tuple[ChooseStudent | ChooseInPlace, ...] = (),
) -> Graph:  # fmt: skip
    """Every policy evaluated against the first, timed, and reported."""
    reference = DrawReference(policies[0], sets)
    rollouts, test = None, None
    if world.rolls_out:
        rollouts = _rollouts(config, world)
        test = DrawnStarts(world, config.seed, "test", config.evaluate.test_starts)
    evaluated = tuple(EvaluatePolicy(policy, world.spec, rollouts, test, reference, source) for policy in policies)
    evaluate = config.evaluate
    latency = MeasureLatency(evaluated, world, evaluate.latency_calls, evaluate.latency_warmup, evaluate.latency_modes)
    report = WriteReport(
        "conversion" if chosen else "comparison", config, world, evaluated, latency, source, sample, chosen,
        recording=recording, opened=opened,
    )  # fmt: skip
    return Graph(report, {"distill": chosen, "evaluate": (*evaluated, latency), "report": (report,)})
