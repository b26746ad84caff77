"""The plan of a run: which stages there are, and what each depends on, known before anything is done."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

import envs
from distill.config import Config, check_choice, check_steps_of
from distill.context import Stage
from distill.objectives.code_shares import constants
from distill.objectives.recipes import recipe
from distill.observation import recorded_with, seen_by
from distill.store.manifest import make_key, sha256_file
from students.selection import MODE_DUPLICATES, OUTLIER_RATIO, SAME_PLAN, Selection
from teachers import TEACHERS, load_teacher
from teachers.networks.observations import sources_of

ENVS_VERSION = 1
"""Raised when a task's physics, expert or starts change, so that old demonstrations are not taken for new ones."""


@dataclass(frozen=True)
class Plan:
    """All stages of a run. `train` and `teach` are None when the teacher comes from elsewhere (teacher.path), `oracle` where
    no demonstration is replayed (distill.worlds.rlbench).

    Training is one stage and the choice among its checkpoints another, so that other validation starts or another
    execution horizon do not train anything again.
    """

    demos: Stage
    starts: Stage
    train: Stage | None
    teach: Stage | None
    sample: Stage
    train_students: dict[str, Stage]
    students: dict[str, Stage]
    reference: Stage
    teachers_evaluated: dict[int, Stage]
    baselines_evaluated: dict[str, Stage]
    students_evaluated: dict[str, Stage]
    latency: Stage
    moving: dict[str, Stage]
    report: Stage
    oracle: Stage | None = None

    def all(self) -> list[Stage]:
        """Every stage, in the order it is done."""
        teacher = [stage for stage in (self.train, self.teach) if stage is not None]
        students = [stage for name in self.students for stage in (self.train_students[name], self.students[name])]
        return [
            self.demos, self.starts, *([self.oracle] if self.oracle else []), *teacher, self.sample, *students, self.reference,
            *self.teachers_evaluated.values(), *self.baselines_evaluated.values(),
            *self.students_evaluated.values(), self.latency, *self.moving.values(), self.report,
        ]  # fmt: skip


def make_plan(config: Config) -> Plan:
    """Stages and keys of a config. Reads nothing but an external teacher's files."""
    spec, evaluate = config.spec(), config.evaluate
    origin = {"task": asdict(spec), "envs_version": ENVS_VERSION, "seed": config.seed}
    if config.is_rlbench:
        origin["rlbench"] = config.rlbench.result_depends_on()
    cameras, encoder = recorded_with(config.cameras()), seen_by(config.observation, spec.state_names)
    # a student that keeps its teacher's encoder and one that goes on training it are two; without an encoder they are one
    frozen = {"encoder_frozen": config.observation.frozen} if encoder else {}
    demos = Stage("demos", {**origin, "demos": asdict(config.demos), **cameras})
    starts = Stage(
        "starts", {**origin, "validation": evaluate.validation_starts, "test": evaluate.test_starts,
                   "observations": evaluate.fidelity_observations, "observation_steps": config.teacher.observation_steps,
                   **cameras},
    )  # fmt: skip
    rollouts: dict[str, object] = {**origin, **cameras, "execution_horizon": evaluate.execution_horizon}
    selection = selection_key(evaluate.student_selection)
    choice = {**rollouts, "validation": evaluate.validation_starts}
    train, teach = None, None
    if config.teacher.path is None:
        settings = asdict(config.teacher)
        settings["solver"] = settings["solver"] or TEACHERS[config.teacher.kind].SOLVERS[0]
        train = Stage("train/teacher", {"demos": demos.key, "teacher": settings, "seed": config.seed, **encoder})
        teach = Stage("teach", {**choice, "candidates": train.key, "num_steps": evaluate.teacher_steps[0]})
        teacher_key = teach.key
    else:
        teacher_key = external_teacher_key(config.teacher.path)
    # without copies of its observations a cache is what it was before there could be any
    drawn = {name: value for name, value in asdict(config.sample).items() if name != "perturbation" or value}
    drawn["solver"] = drawn["solver"] or TEACHERS[config.teacher.kind].CACHE_SOLVER
    drawn["num_steps"] = drawn["num_steps"] or TEACHERS[config.teacher.kind].CACHE_STEPS
    sample = Stage(
        "sample",
        {"teacher": teacher_key, "demos": demos.key, "sample": drawn, "seed": config.seed,
         "execution_horizon": evaluate.execution_horizon},
    )  # fmt: skip
    # which other recipes there are, and which is presented, changes no student
    def made_from(name: str) -> dict[str, object]:
        chosen = recipe(name)
        settings = {key: value for key, value in asdict(chosen.settings(config)).items()
                    if key not in ("objectives", "default")}  # fmt: skip
        key: dict[str, object] = {"objective": name, "student": settings, "seed": config.seed}
        if chosen.teacher:
            key |= frozen
        if chosen.data == "hypotheses":
            return {**key, "sample": sample.key}
        key |= {"demos": demos.key, "execution_horizon": evaluate.execution_horizon}
        # without a teacher the network's sizes are the config's own
        return {**key, "teacher": teacher_key} if chosen.teacher else {**key, "shape": asdict(config.shape())}

    def finished(name: str) -> dict[str, object]:
        return {"calibration": constants()} if recipe(name).learns_shares(config.student) else {}

    train_students = {name: Stage(f"train/{name}", made_from(name)) for name in config.student.objectives}
    students = {
        name: Stage(f"distill/{name}", {**choice, **selection, **finished(name), "candidates": stage.key})
        for name, stage in train_students.items()
    }
    reference = Stage(
        "reference",
        {"teacher": teacher_key, "starts": starts.key, "seed": config.seed, "samples": evaluate.fidelity_samples,
         "num_steps": evaluate.teacher_steps[0]},
    )  # fmt: skip

    def evaluated(name: str, policy: dict[str, object]) -> Stage:
        made_from = {**policy, **rollouts, "test": evaluate.test_starts, "reference": reference.key}
        return Stage(f"evaluate/{name}", made_from)

    teachers_evaluated = {
        steps: evaluated(f"teacher_{steps}", {"teacher": teacher_key, "num_steps": steps})
        for steps in evaluate.teacher_steps
    }
    baselines_evaluated = {
        name: evaluated(name, {"demos": demos.key, "teacher": teacher_key}) for name in evaluate.baselines
    }
    students_evaluated = {name: evaluated(name, {"student": stage.key, **selection}) for name, stage in students.items()}
    latency = Stage(
        "latency",
        {"policies": [stage.key for group in (teachers_evaluated, baselines_evaluated, students_evaluated)
                      for stage in group.values()],
         **selection, "calls": evaluate.latency_calls, "warmup": evaluate.latency_warmup},
    )  # fmt: skip
    moving = _moving(config, latency, {
        **{f"teacher_{steps}": {"teacher": teacher_key, "num_steps": steps} for steps in config.moving.teacher_steps},
        config.student.default: {"student": students[config.student.default].key, **selection_key(config.moving_selection)},
    }, {**origin, **cameras, "test": evaluate.test_starts})  # fmt: skip
    shown: dict[str, object] = {"latency": latency.key, "default": config.student.default, "run": config.folder.name}
    if moving:  # so that reports of runs without it keep their key
        shown["moving"] = [stage.key for stage in moving.values()]
    oracle = None
    if config.is_rlbench:
        oracle = Stage("evaluate/oracle", {"starts": starts.key})
        shown["oracle"] = oracle.key
    report = Stage("report", shown)
    return Plan(
        demos, starts, train, teach, sample, train_students, students, reference, teachers_evaluated,
        baselines_evaluated, students_evaluated, latency, moving, report, oracle,
    )  # fmt: skip


def selection_key(how: Selection) -> dict[str, object]:
    """How a student's samples are chosen from, as far as it matters: a single one knows neither candidates nor forgetting."""
    selection: dict[str, object] = {} if how.kind == "single" else {"selection": how.kind}
    if how.has_memory:
        selection |= {"forget_every": how.forget_every}
    if how.uses_candidates:
        selection |= {"candidates_of_selection": how.candidates}
    if how.kind == "outlier_rejection":
        selection |= {"outlier_ratio": OUTLIER_RATIO, "mode_duplicates": MODE_DUPLICATES, "same_plan_distance": SAME_PLAN}
    return selection


def _moving(
    config: Config, latency: Stage, policies: dict[str, dict[str, object]], starts: dict[str, object]
) -> dict[str, Stage]:
    """A stage per policy that is rolled out in a moving world; none while that is off."""
    settings = config.moving
    if not settings.is_on:
        return {}
    disturbance = asdict(envs.disturbance(config.task))
    shared: dict[str, object] = {
        **starts, "disturbance": disturbance, "latency_ms": [float(value) for value in settings.latency_ms],
        "execution_horizon": settings.execution_horizon or config.evaluate.execution_horizon, "starts": settings.starts,
        "patience": float(settings.patience),
    }  # fmt: skip
    if settings.measures:  # times that were measured once are what these rollouts are made from
        shared |= {"time_scales": [float(value) for value in settings.time_scales], "latency": latency.key}
    if settings.scale_to_clock:
        shared |= {"scaled_to_clock_of": config.student.default}
    return {name: Stage(f"moving/{name}", {**policy, **shared}) for name, policy in policies.items()}


def external_teacher_key(folder: Path) -> str:
    return make_key({name: sha256_file(folder / name) for name in ("config.json", "model.safetensors")})


def check_external_teacher(config: Config) -> None:
    """Raise ValueError unless the teacher at teacher.path is whole and was made for this config's task."""
    if config.teacher.path is None:
        return
    teacher, spec = load_teacher(config.teacher.path), config.spec()
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
                f"{list(expected)}: it was made for another version of the task; train it again"
            )
    if shape.encoder != config.shape().encoder:
        raise ValueError(
            f"the teacher at {config.teacher.path} sees {list(sources_of(shape))} by the encoder {shape.encoder}, the config "
            f"says {config.shape().encoder}; give the section observation of the config it was trained with"
        )
    if shape.observation_steps != config.teacher.observation_steps:
        raise ValueError(
            f"the teacher at {config.teacher.path} sees {shape.observation_steps} observation steps, the config says "
            f"{config.teacher.observation_steps}; add --teacher.observation-steps {shape.observation_steps}"
        )
    if config.sample.solver:
        check_choice("sample.solver", config.sample.solver, teacher.SOLVERS)
    check_steps_of(type(teacher), config)
    alone = [name for name in config.student.objectives if not recipe(name).teacher]
    if alone and shape.horizon != config.teacher.horizon:
        raise ValueError(
            f"{alone[0]} needs no teacher and plans teacher.horizon = {config.teacher.horizon} actions, but the teacher at "
            f"{config.teacher.path} that it is compared with plans {shape.horizon}; add --teacher.horizon {shape.horizon}"
        )
    if config.moving.is_on and config.moving.execution_horizon > shape.horizon:
        raise ValueError(
            f"moving.execution_horizon is {config.moving.execution_horizon}, the teacher at {config.teacher.path} plans "
            f"{shape.horizon} actions; choose at most that"
        )
    if config.evaluate.execution_horizon > shape.horizon:
        raise ValueError(
            f"evaluate.execution_horizon is {config.evaluate.execution_horizon}, the teacher at {config.teacher.path} "
            f"plans {shape.horizon} actions; choose at most that"
        )
