"""`distill.py convert` and `distill.py compare`: open and check everything, then the stages that are not there yet."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from distill.cli.launch import is_launched, launch, wanted_processes
from distill.cli.opening import OUR_STEPS, Opened, open_policy, outside_shape, seen_of
from distill.cli.outside_config import CompareConfig, ConvertConfig, read_outside, resolved
from distill.config import Config
from distill.context import Stage
from distill.stages.outside_plan import outside_plan, stages_of
from distill.stages.plan import Plan
from envs.recorded.splitting import in_words
from teachers.adapters.teacher import AdapterTeacher
from teachers.networks.observations import sources_of
from teachers.networks.shapes import PolicyShape
from teachers.trained import TrainedTeacher

if TYPE_CHECKING:
    from envs.recorded.observations import RecordedObservations

def run_outside(command: str, arguments: Sequence[str], script: str, leading: bool) -> int:
    """Do the command; returns the exit status. Raises ValueError, before anything is made, for what is wrong."""
    dry_run, config = read_outside(command, arguments)
    processes = wanted_processes(config.processes)
    if not dry_run and not is_launched() and processes > 1:
        return launch(processes, script, [command, *arguments])
    recorded = config.open_recorded()
    recorded.split()  # too few frames are told before a policy is opened
    with contextlib.ExitStack() as stack:
        if isinstance(config, ConvertConfig):
            opened = _open(stack, config.teacher, config, recorded)
            made, plan, named, shape, recorded = _conversion(config, opened, recorded)
        else:
            made, plan, named, shape, recorded = _comparison(stack, config, recorded)
        if leading:
            print("\n".join(_told(recorded, named, made.teacher.observation_steps)))
        native = isinstance(next(iter(named.values())).policy, TrainedTeacher)
        stages = stages_of(plan, native)
        if dry_run:
            if leading:
                print(_described(command, made, stages))
            return 0
        _work(made, plan, named, recorded, shape)
    return 0


def _open(
    stack: contextlib.ExitStack, text: str, config: ConvertConfig | CompareConfig, recorded: RecordedObservations
) -> Opened:
    opened = open_policy(text, config, recorded)
    stack.callback(opened.close)
    return opened


Prepared = tuple[Config, Plan, dict[str, Opened], PolicyShape | None, "RecordedObservations"]
"""The run's config, its plan, the policies by the names of their results, the shape of students that start afresh, and what
of the recording all of them see."""


def _told(recorded: RecordedObservations, named: dict[str, Opened], observation_steps: int) -> list[str]:
    """How the recording is read, a line each: nothing of it is chosen in silence."""
    lines = [f"{recorded.path}: {len(recorded)} frames in {len(recorded.episodes)} episodes", *recorded.opened_as(),
             in_words(recorded.split_described(observation_steps))]  # fmt: skip
    tasks = recorded.tasks()
    for each in {id(each): each for each in named.values()}.values():
        instruction = each.policy.described.instruction if isinstance(each.policy, AdapterTeacher) else ""
        if instruction and list(tasks) not in ([], [instruction]):
            lines.append(f"{each.label} is told {instruction!r}, the recording says {next(iter(tasks))!r}")
        elif instruction:
            lines.append(f"{each.label} is told {instruction!r}")
        elif len(tasks) > 1:
            lines.append(f"{each.label} is given no instruction: it must see from the observation which of {len(tasks)} tasks "
                         f"it is")
    return [lines[0], *(f"  {line}" for line in lines[1:])]


def _conversion(config: ConvertConfig, opened: Opened, recorded: RecordedObservations) -> Prepared:
    its, shape, policy = opened.shape, None, opened.policy
    if isinstance(policy, TrainedTeacher):
        steps: tuple[int, ...] = (opened.num_steps, 2, 1)
        if config.features:
            raise ValueError("features: a teacher of ours says itself what is seen; leave out --features")
        policy.check_steps(config.sample.num_steps or policy.CACHE_STEPS, "sample.num_steps")
    elif isinstance(policy, AdapterTeacher):
        steps = (opened.num_steps, *((2, 1) if policy.described.kind == "velocity field" else ()))
        told = policy.described
        shape = its if not config.features else outside_shape(
            recorded, config.features, told.observation_steps, its.horizon, its.action_size, config, told.action_names,
            told.dt_s,
        )  # fmt: skip
        if config.sample.solver:
            raise ValueError("sample.solver: an adapter says itself how it is solved (its attribute solver); leave it out")
    else:
        raise ValueError(f"{opened.label} is a student already: it makes a chunk in one evaluation; give the teacher")
    if config.sample.perturbation and (shape or its).encoder is not None:
        raise ValueError(f"sample.perturbation: got {config.sample.perturbation}, but images and points cannot be moved with a "
                         "state; leave it at 0")  # fmt: skip
    steps = tuple(dict.fromkeys(steps))
    made = resolved(config, its.horizon, steps, its.observation_steps, warm=shape is None and config.student.warm_start)
    if shape is not None:
        try:
            shape = replace(shape, width=config.student.width or shape.width, depth=config.student.depth or shape.depth)
        except ValueError as error:
            raise ValueError(f"student.width, student.depth: {error}") from error
    if isinstance(policy, TrainedTeacher):
        for each in made.evaluate.teacher_steps:
            policy.check_steps(each, "evaluate.teacher_steps")
    names = {f"teacher_{each}": each for each in made.evaluate.teacher_steps}
    named = dict.fromkeys(names, opened)
    recorded = _seen(recorded, [its, *([shape] if shape else [])])
    plan = outside_plan(made, recorded.fingerprint(), named, names, made.student.objectives, shape)
    return made, plan, named, shape, recorded


def _seen(recorded: RecordedObservations, shapes: Sequence[PolicyShape]) -> RecordedObservations:
    features = [name for shape in shapes for name in sources_of(shape)]
    return seen_of(recorded, features, shapes[0].dt_s)


def _comparison(stack: contextlib.ExitStack, config: CompareConfig, recorded: RecordedObservations) -> Prepared:
    opened = [_open(stack, text, config, recorded) for text in config.policies]
    first = opened[0].shape
    for each in opened[1:]:
        for what in ("horizon", "action_size", "dt_s"):
            if getattr(each.shape, what) != getattr(first, what):
                raise ValueError(f"{each.label} has {what} {getattr(each.shape, what)}, {opened[0].label} "
                                 f"{getattr(first, what)}: their plans cannot be compared")  # fmt: skip
    named = {f"{number}-{_plain(each.label)}": each for number, each in enumerate(opened, 1)}
    made = resolved(config, first.horizon, (OUR_STEPS,), max(each.shape.observation_steps for each in opened))
    recorded = _seen(recorded, [each.shape for each in opened])
    plan = outside_plan(made, recorded.fingerprint(), named, {name: each.num_steps for name, each in named.items()})
    return made, plan, named, None, recorded


def _plain(label: str) -> str:
    """The end of a path as a folder's name."""
    return re.sub(r"[^A-Za-z0-9@]+", "-", label).strip("-")[-40:].strip("-")


def _described(command: str, config: Config, stages: Sequence[Stage]) -> str:
    from distill.cli.main import state_of

    lines = [f"{command} into {config.folder} (seed {config.seed})"]
    return "\n".join([*lines, *(f"  {stage.name:28} {state_of(config, stage)}" for stage in stages)])


def _work(
    config: Config, plan: Plan, named: dict[str, Opened], recorded: RecordedObservations, shape: PolicyShape | None
) -> None:
    from distill.context import Run
    from distill.stages.convert import Conversion
    from distill.stages.outside import Outside

    with Run.open(config) as run:
        kind: type[Outside] = Conversion if plan.students else Outside
        outside = kind(run, plan, recorded, named, shape)
        folder = outside.report()
        if plan.students:
            run.say(f"student: {(run.folder(plan.students[config.student.default])).resolve()}")
        run.say(f"report: {(folder / 'report.html').resolve()}")
