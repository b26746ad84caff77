"""`flow2one convert` and `flow2one compare`: open and check everything, then run the stages that are missing."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from distill.cli.external_config import CompareConfig, ConvertConfig, external_help, read_external, resolved
from distill.cli.help import wants_help
from distill.cli.in_place import condition_cost, settled_kind
from distill.cli.launch import is_launched, launch, wanted_processes
from distill.cli.lerobot_card import write_card
from distill.cli.opening import OUR_STEPS, external_shape, observed_by, open_policy
from distill.config import Config
from distill.graphs.external import comparison_graph, conversion_graph
from distill.graphs.graph import Graph
from distill.inputs.recorded import Opened, Recording
from distill.observation_config import observation_of
from distill.runtime.context import Context
from distill.runtime.execution import plan
from distill.stages.in_place.config import IN_PLACE
from distill.worlds import open_world
from distill.worlds.contract import World
from distill.worlds.recorded import RecordedWorld
from envs.recorded.observations import RecordedObservations
from envs.recorded.splitting import in_words
from envs.specs import STATE
from teachers.adapters.teacher import AdapterTeacher
from teachers.networks.observations import sources_of
from teachers.networks.shapes import PolicyShape
from teachers.trained import TrainedTeacher


@dataclass(frozen=True)
class Prepared:
    """What a command will run: the complete config, its world and its graph.

    read_as: lines on how the recording is read; note: which students are trained, why, and what encoding costs.
    """

    config: Config
    world: World
    graph: Graph
    read_as: tuple[str, ...]
    note: str = ""


def run_external(command: str, arguments: Sequence[str], script: str, leading: bool) -> int:
    """Run the command; returns the exit status. Raises ValueError for invalid input, before anything is written."""
    if wants_help(arguments):
        if leading:
            print(external_help(command), end="")
        return 0
    dry_run, config = read_external(command, arguments)
    processes = wanted_processes(config.processes)
    if not dry_run and not is_launched() and processes > 1:
        return launch(processes, script, [command, *arguments])
    with prepared(config) as made:
        if leading:
            print("\n".join(made.read_as))
        if not dry_run:
            work(made)
        elif leading:
            print(_described(command, made))
    return 0


@contextlib.contextmanager
def prepared(config: ConvertConfig | CompareConfig) -> Iterator[Prepared]:
    """The recording and the policies, opened and checked, while the context lasts. Raises ValueError for invalid input."""
    recorded = config.open_recorded()
    recorded.split()  # fails on too few frames, before a policy is opened
    with contextlib.ExitStack() as stack:
        if isinstance(config, ConvertConfig):
            yield _conversion(config, _open(stack, config.teacher, config, recorded), recorded)
        else:
            yield _comparison([_open(stack, text, config, recorded) for text in config.policies], config, recorded)


def _open(
    stack: contextlib.ExitStack, text: str, config: ConvertConfig | CompareConfig, recorded: RecordedObservations
) -> Opened:
    opened = open_policy(text, config, recorded)
    stack.callback(opened.close)
    return opened


def _world(config: Config, shape: PolicyShape, recorded: RecordedObservations) -> World:
    """The world to roll the policies out in: that of the named task or environment, or none."""
    if config.world.gym:
        config = replace(config, observation=observation_of(shape))
    return open_world(config) if config.task else RecordedWorld(shape, recorded.path)


def _recording(config: Config, recorded: RecordedObservations, shapes: Sequence[PolicyShape]) -> Recording:
    """The recording with all features that any of these policies observes; no other feature is opened."""
    features = tuple(dict.fromkeys((STATE, *(name for shape in shapes for name in sources_of(shape)))))
    return Recording(observed_by(recorded, features, shapes[0].dt_s), config.teacher.observation_steps, features)


def _read_as(recording: Recording, opened: Sequence[Opened]) -> tuple[str, ...]:
    """How the recording is read, one line per fact, so that no choice about the data is hidden."""
    recorded = recording.recorded
    lines = [*recorded.opened_as(), in_words(recorded.split_described(recording.observation_steps))]
    tasks = recorded.tasks()
    for each in opened:
        instruction = each.policy.description.instruction if isinstance(each.policy, AdapterTeacher) else ""
        if instruction and list(tasks) not in ([], [instruction]):
            lines.append(f"{each.label} is given the instruction {instruction!r}, the recording says {next(iter(tasks))!r}")
        elif instruction:
            lines.append(f"{each.label} is given the instruction {instruction!r}")
        elif len(tasks) > 1:
            lines.append(f"{each.label} is given no instruction: it must infer from the observation which of "
                         f"{len(tasks)} tasks to do")  # fmt: skip
    summary = f"{recorded.path}: {len(recorded)} frames in {len(recorded.episodes)} episodes"
    return (summary, *(f"  {line}" for line in lines))


def _conversion(config: ConvertConfig, opened: Opened, recorded: RecordedObservations) -> Prepared:
    its, shape, policy = opened.shape, None, opened.policy
    if isinstance(policy, TrainedTeacher):
        steps: tuple[int, ...] = (opened.num_steps, 2, 1)
        if config.features:
            raise ValueError("features: a flow2one teacher defines its own features; leave out --features")
        policy.check_steps(config.sample.num_steps or policy.CACHE_STEPS, "sample.num_steps")
    elif isinstance(policy, AdapterTeacher) and not policy.is_student:
        described = policy.description
        fewer = described.kind == "velocity field" or not described.obstacle
        steps = (opened.num_steps, *(each for each in (10, 4, 2, 1) if fewer and each < opened.num_steps))
        shape = its if not config.features else external_shape(
            recorded, config.features, described.observation_steps, its.horizon, its.action_size, config,
            described.action_names, described.dt_s,
        )  # fmt: skip
        if config.sample.solver:
            raise ValueError("sample.solver: an adapter defines its own solver (its attribute solver); leave it out")
    else:
        raise ValueError(f"{opened.label} is already a one-step student; give the teacher")
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
    in_place, made, note = settled_kind(config, made, opened)
    world = _world(made, its, recorded)
    recording = _recording(made, recorded, [its, *([shape] if shape else [])])
    stored = True
    if in_place is not None:
        cost = condition_cost(opened, recording, made)
        stored = cost.fits(in_place.conditions_gb, made.folder)
        note += "\n" + cost.line(stored, in_place.training_steps, in_place.batch_size)
    graph = conversion_graph(made, world, opened, recording, shape, in_place, stored)
    return Prepared(made, world, graph, _read_as(recording, [opened]), note)


def _comparison(opened: Sequence[Opened], config: CompareConfig, recorded: RecordedObservations) -> Prepared:
    first = opened[0].shape
    for each in opened[1:]:
        for what in ("horizon", "action_size", "dt_s"):
            if getattr(each.shape, what) != getattr(first, what):
                raise ValueError(f"{each.label} has {what} {getattr(each.shape, what)}, {opened[0].label} "
                                 f"{getattr(first, what)}: their chunks cannot be compared")  # fmt: skip
    named = {f"{number}-{_plain(each.label)}": each for number, each in enumerate(opened, 1)}
    made = resolved(config, first.horizon, (OUR_STEPS,), max(each.shape.observation_steps for each in opened))
    world = _world(made, first, recorded)
    recording = _recording(made, recorded, [each.shape for each in opened])
    return Prepared(made, world, comparison_graph(made, world, named, recording), _read_as(recording, opened))


def _plain(label: str) -> str:
    """The end of a path as a folder name."""
    return re.sub(r"[^A-Za-z0-9@]+", "-", label).strip("-")[-40:].strip("-")


def _described(command: str, prepared: Prepared) -> str:
    folder = prepared.config.folder
    lines = [f"{command} into {folder} (seed {prepared.config.seed})", *([prepared.note] if prepared.note else [])]
    return "\n".join([*lines, *plan(folder, prepared.graph.stages)])


def work(prepared: Prepared) -> None:
    """Run what is missing, up to the report."""
    config, graph = prepared.config, prepared.graph
    with Context.open(config.folder, config.wandb) as context, contextlib.closing(prepared.world):
        if prepared.note:
            context.say(prepared.note)
        graph.run(context)
        for chosen in graph.named["distill"]:
            if chosen.name == f"distill/{config.student.default}":
                context.say(f"student: {chosen.folder(context).resolve()}")
        if context.is_main and any(chosen.name == f"distill/{IN_PLACE}" for chosen in graph.named["distill"]):
            written = write_card(config.folder)
            if written is not None:
                context.say(f"model card: {written.resolve()}")
        graph.say_outcome(context)
