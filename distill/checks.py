"""Everything that can be wrong with a config before any work: ValueErrors that name the flag and the remedy."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from distill.config import Config
from distill.evaluation.run_modes import check_modes
from distill.objectives.recipes import recipe
from distill.worlds import open_world
from envs.specs import nearest_name
from students.selection import KINDS
from teachers import TEACHERS, load_teacher
from teachers.networks.observations import sources_of
from teachers.networks.scene_motions import check_motions
from teachers.networks.tool_frame import ToolFrame
from teachers.trained import TrainedTeacher

# integers that may be zero; every other one must be at least 1
_MAY_BE_ZERO = {
    "seed", "processes", "demos.episodes", "teacher.warmup_steps", "sample.num_steps", "student.width", "student.depth",
    "student.codes", "student.warmup_steps",
    "in_place.starting_noises", "in_place.at_once", "in_place.warmup_steps",
    "evaluate.forget_every", "evaluate.latency_warmup", "observation.shift_px", "observation.keypoints",
    "real_time.execution_horizon", "real_time.starts", "rlbench.restart_after", "rlbench.max_steps", "rlbench.retries",
}  # fmt: skip

SECTIONS = ("", "demos", "observation", "teacher", "sample", "student", "evaluate", "real_time", "rlbench", "world")
BASELINES = ("nearest_demonstration",)


def check_writable(folder: Path, flag: str) -> None:
    """Raise ValueError where a folder's path is not UTF-8, or it cannot be written, or its nearest parent that exists."""
    place = folder.absolute()
    try:
        str(place).encode()
    except UnicodeEncodeError:  # bytes that are no UTF-8
        raise ValueError(f"{flag}: got {str(place)!r}, expected UTF-8, which safetensors needs; name another") from None
    while not place.exists() and not place.is_symlink():
        place = place.parent
    if not place.is_dir():
        raise ValueError(f"{flag}: {place} is a file, expected a folder; name another place for {folder}")
    if not os.access(place, os.W_OK | os.X_OK):
        raise ValueError(f"{flag}: {place} cannot be written; name another place for {folder}, or change its permissions")


def validate(config: Config) -> None:
    """Raise ValueError, before any work, for everything that the config alone shows to be wrong."""
    check_writable(config.folder, "--runs-dir, --name")
    world = open_world(config)
    spec = world.spec
    world.check(config)
    check_numbers(config, SECTIONS)
    config.observation.check(spec.state_names)
    for section, training in (("teacher", config.teacher), ("student", config.student)):
        if training.accumulate > training.batch_size:
            raise ValueError(
                f"{section}.accumulate: got {training.accumulate} parts of a batch of {training.batch_size}; lower it or raise "
                f"{section}.batch_size"
            )
    available = config.demos.train_starts * len(spec.modes) * config.demos.per_mode
    if config.demos.episodes > available:
        raise ValueError(
            f"demos.episodes: got {config.demos.episodes}, but train_starts x modes x per_mode is only {available}; "
            "raise demos.train_starts"
        )
    check_distilling(config)
    check_choice("wandb", config.wandb, ("disabled", "offline", "online"))
    check_choice("teacher.kind", config.teacher.kind, TEACHERS)
    kind = TEACHERS[config.teacher.kind]
    if config.teacher.solver:
        check_choice("teacher.solver", config.teacher.solver, kind.SOLVERS)
    if config.sample.solver and config.teacher.path is None:
        check_choice("sample.solver", config.sample.solver, kind.SOLVERS)
    power = config.teacher.time_power
    if power == 0 or (power != 1 and config.teacher.kind != "flow"):
        raise ValueError(f"teacher.time_power: got {power}, expected 1 (uniform), or more than 0 with teacher.kind 'flow'")
    for name in config.evaluate.baselines:
        check_choice("evaluate.baselines", name, BASELINES)
    steps = config.evaluate.teacher_steps
    if not steps or min(steps) < 1 or len(set(steps)) != len(steps):
        raise ValueError(f"evaluate.teacher_steps: got {list(steps)}, expected different numbers of at least 1")
    if config.teacher.path is None:
        check_steps_of(kind, config)
    # an existing teacher has its own horizon, checked when it is loaded
    if config.teacher.path is None and config.evaluate.execution_horizon > config.teacher.horizon:
        raise ValueError(
            f"evaluate.execution_horizon: got {config.evaluate.execution_horizon}, a chunk has only "
            f"{config.teacher.horizon} actions (teacher.horizon); choose at most that"
        )
    _check_real_time(config)
    shape = config.shape(spec)
    try:
        check_motions(config.observation.motions, shape, world.state_shows_scene)
        if shape.frame == "tool":
            ToolFrame(shape)
    except ValueError as error:
        raise ValueError(f"observation.{error}") from error
    if config.observation.displace_m and world.shows_robot and "points" in config.observation.sources:
        raise ValueError(
            f"observation.displace_m: got {config.observation.displace_m}, but the clouds of {config.task} show the robot, "
            "which says where the tool really is; set it to 0, or with RLBench set rlbench.without_robot"
        )
    student = config.student
    if config.teacher.path is None and (student.width or student.depth):
        try:
            dataclasses.replace(shape, width=student.width or shape.width, depth=student.depth or shape.depth)
        except ValueError as error:
            raise ValueError(f"student.width, student.depth: {error} (the number of heads is the teacher's)") from error


def check_numbers(config: Any, sections: Sequence[str]) -> None:
    """Raise ValueError, naming the flag, for a number in these sections ("": the config itself) that is out of range."""
    for section in sections:
        values = getattr(config, section) if section else config
        for item in dataclasses.fields(values):
            value, name = getattr(values, item.name), f"{section}.{item.name}" if section else item.name
            if isinstance(value, bool) or not isinstance(value, int | float):
                continue
            lowest = 0 if isinstance(value, float) or name in _MAY_BE_ZERO else 1
            if item.name == "ema_decay" and not 0 <= value < 1:
                raise ValueError(f"{name}: got {value}, expected at least 0 and below 1. Change --{name.replace('_', '-')}")
            if item.name.endswith("_share") and not 0 <= value <= 1:
                raise ValueError(f"{name}: got {value}, expected a share from 0 to 1. Change --{name.replace('_', '-')}")
            if not lowest <= value < float("inf"):
                raise ValueError(f"{name}: got {value}, expected at least {lowest}. Change --{name.replace('_', '-')}")


def check_distilling(config: Config) -> None:
    """Raise ValueError for invalid settings of sampling, of the students, or of their evaluation."""
    student = config.student
    recipes = {name: recipe(name) for name in (*student.objectives, student.default)}
    if student.default not in student.objectives:
        raise ValueError(
            f"student.default: {student.default!r} is not among student.objectives {list(student.objectives)}; "
            "add it there, or choose another default"
        )
    if len(set(student.objectives)) != len(student.objectives):
        raise ValueError(f"student.objectives: got a name twice in {list(student.objectives)}; name each once")
    if student.codes == 1:
        raise ValueError("student.codes: got 1, expected at least 2, or 0 for none: with one code there is one mode")
    if config.sample.num_hypotheses < 2:
        raise ValueError("sample.num_hypotheses: got 1, expected at least 2: a single hypothesis is not a set")
    if config.sample.perturbation and not config.observation.is_plain:
        raise ValueError(
            f"sample.perturbation: got {config.sample.perturbation}, but images and points cannot be moved with a state; "
            "leave it at 0, or use the plain state observation"
        )
    for name, chosen in recipes.items():
        chosen.check(name, config)
    if config.evaluate.fidelity_samples < 6:
        raise ValueError(
            f"evaluate.fidelity_samples: got {config.evaluate.fidelity_samples}, expected at least 6: precision and "
            "recall use the fifth nearest neighbour"
        )
    check_choice("evaluate.selection", config.evaluate.selection, KINDS)
    check_modes(config.evaluate.latency_modes, "evaluate.latency_modes")
    samples = config.evaluate.frontier_samples
    if any(isinstance(count, bool) or not isinstance(count, int) or count < 1 or samples.count(count) > 1 for count in samples):
        raise ValueError(f"evaluate.frontier_samples: got {list(samples)}, expected different numbers of at least 1")


def _check_real_time(config: Config) -> None:
    """Raise ValueError for invalid real-time settings; they are checked only when real-time evaluation is on."""
    real_time, evaluate = config.real_time, config.evaluate
    if not real_time.is_on:
        return
    for name, lowest in (("latency_ms", "0 or more milliseconds"), ("time_scales", "more than 0")):
        for value in (values := getattr(real_time, name)):
            number = isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < float("inf")
            if not number or (value == 0 and name == "time_scales") or values.count(value) > 1:
                raise ValueError(
                    f"real_time.{name}: got {list(values)}, expected different numbers, each {lowest}. "
                    f"Change --real-time.{name.replace('_', '-')}"
                )
    if real_time.delays_per_query < 1:
        raise ValueError(
            f"real_time.delays_per_query: got {real_time.delays_per_query}, expected at least 1: a policy computes "
            "one chunk at a time. Change --real-time.delays-per-query"
        )
    steps = real_time.teacher_steps
    if not steps or len(set(steps)) != len(steps) or not set(steps) <= set(evaluate.teacher_steps):
        raise ValueError(
            f"real_time.teacher_steps: got {list(steps)}, expected distinct numbers, all of them in evaluate.teacher_steps "
            f"{list(evaluate.teacher_steps)}: add them there, or leave them out here"
        )
    if config.teacher.path is None and real_time.execution_horizon > config.teacher.horizon:
        raise ValueError(
            f"real_time.execution_horizon: got {real_time.execution_horizon}, a chunk has only {config.teacher.horizon} "
            "actions (teacher.horizon); choose at most that"
        )
    if real_time.starts > evaluate.test_starts:
        raise ValueError(
            f"real_time.starts: got {real_time.starts}, there are only {evaluate.test_starts} test starts "
            "(evaluate.test_starts); choose at most that, or 0 for all"
        )


def check_steps_of(kind: type[TrainedTeacher], config: Config) -> None:
    """Raise ValueError for numbers of solver steps that this kind of teacher does not support."""
    if config.sample.num_steps:
        kind.check_steps(config.sample.num_steps, "sample.num_steps")
    elif config.sample.solver:
        raise ValueError(f"sample.num_steps: got 0 with sample.solver {config.sample.solver!r}, expected the number of its "
                         "steps; 0 is allowed only with the default solver")
    for steps in config.evaluate.teacher_steps:
        kind.check_steps(steps, "evaluate.teacher_steps")


def check_teacher_folder(config: Config) -> None:
    """Raise ValueError unless the teacher at teacher.path is complete and fits this config's task."""
    if config.teacher.path is None:
        return
    teacher, spec = load_teacher(config.teacher.path), open_world(config).spec
    shape = teacher.shape
    if shape.task != spec.name:
        raise ValueError(
            f"the teacher at {config.teacher.path} is for task {shape.task!r}, this run's task is {spec.name!r}; "
            f"use --task {shape.task} or another --teacher.path"
        )
    for what, got, expected in (
        ("state", shape.state_names, spec.state_names), ("action", shape.action_names, spec.action.names)
    ):  # fmt: skip
        if got != expected:
            raise ValueError(
                f"the teacher at {config.teacher.path} has the {what} {list(got)}, task {spec.name!r} has "
                f"{list(expected)}: it belongs to another version of the task; train it again"
            )
    if shape.encoder != config.shape(spec).encoder:
        raise ValueError(
            f"the teacher at {config.teacher.path} observes {list(sources_of(shape))} with the encoder {shape.encoder}, the "
            f"config has {config.shape(spec).encoder}; use the section observation of the config it was trained with"
        )
    if shape.observation_steps != config.teacher.observation_steps:
        raise ValueError(
            f"the teacher at {config.teacher.path} observes {shape.observation_steps} steps, the config has "
            f"{config.teacher.observation_steps}; add --teacher.observation-steps {shape.observation_steps}"
        )
    if config.sample.solver:
        check_choice("sample.solver", config.sample.solver, teacher.SOLVERS)
    check_steps_of(type(teacher), config)
    alone = [name for name in config.student.objectives if not recipe(name).teacher]
    if alone and shape.horizon != config.teacher.horizon:
        raise ValueError(
            f"{alone[0]} needs no teacher and predicts teacher.horizon = {config.teacher.horizon} actions, but the teacher at "
            f"{config.teacher.path} that it is compared with predicts {shape.horizon}; add --teacher.horizon {shape.horizon}"
        )
    if config.real_time.is_on and config.real_time.execution_horizon > shape.horizon:
        raise ValueError(
            f"real_time.execution_horizon is {config.real_time.execution_horizon}, the teacher at "
            f"{config.teacher.path} predicts {shape.horizon} actions; choose at most that"
        )
    if config.evaluate.execution_horizon > shape.horizon:
        raise ValueError(
            f"evaluate.execution_horizon is {config.evaluate.execution_horizon}, the teacher at {config.teacher.path} "
            f"plans {shape.horizon} actions; choose at most that"
        )


def check_choice(what: str, value: str, choices: Mapping[str, Any] | Sequence[str]) -> None:
    """Raise ValueError, with the choices and the nearest one, when `value` is not among them."""
    if value not in choices:
        raise ValueError(f"{what}: unknown {value!r}; expected one of {sorted(choices)}{nearest_name(value, choices)}")
