"""What a run is: frozen dataclasses, one per stage, filled from presets (YAML) and then from flags."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

import envs
from distill.objectives.recipes import recipe
from distill.observation import ObservationConfig
from envs.cameras.specs import CameraSettings
from envs.rlbench.spec import RLBenchSettings, names_rlbench_task
from envs.specs import TaskSpec, nearest_name
from students.selection import KINDS, Selection
from teachers import TEACHERS
from teachers.networks.shapes import PolicyShape
from teachers.trained import TrainedTeacher


@dataclass(frozen=True)
class DemosConfig:
    """Demonstrations of the scripted expert, and the stored starts.

    train_starts: starts that are demonstrated; every one is solved in every mode `per_mode` times.
    episodes: record only this many of those, drawn at random with the modes as even as can be; 0 records all.
    noise_m: smooth disturbance of the executed (never of the recorded) action [m].
    """

    train_starts: int = 40
    per_mode: int = 1
    episodes: int = 0
    noise_m: float = 0.004


@dataclass(frozen=True)
class TeacherConfig:
    """The teacher.

    kind: flow, diffusion or energy (teachers.TEACHERS); solver: one of that kind's; "" is its first.
    path: a teacher folder that exists already (config.json, model.safetensors); nothing is trained then.
    time_power: a flow teacher is trained at times t = u^time_power, u uniform; above 1 it sees more of the noise.
    observation_steps, horizon: O and T; width, depth, heads, patch: its transformer (teachers.networks.shapes.PolicyShape).
    """

    kind: str = "flow"
    path: Path | None = None
    time_power: float = 1.0
    solver: str = ""
    observation_steps: int = 2
    horizon: int = 16
    width: int = 128
    depth: int = 4
    heads: int = 4
    patch: int = 8
    training_steps: int = 8000
    batch_size: int = 256
    learning_rate: float = 3e-3
    weight_decay: float = 1e-4
    warmup_steps: int = 200
    ema_decay: float = 0.995
    candidates: int = 2


@dataclass(frozen=True)
class SampleConfig:
    """The hypothesis cache: K chunks for each of `num_observations` training observations.

    replanning_share: share of the observations taken where a policy is asked for a chunk, every `execution_horizon`-th
    frame of an episode from its first on; the rest is taken anywhere.
    solver, num_steps: of the teacher; "" and 0: the solver of its kind that does best with few steps, and as many as it needs.
    shard_size: observations a shard; batch_size: observations a network call.
    perturbation: where the demonstrations have fewer observations than `num_observations`, the rest are copies of them, moved
    at random by this much of half the range of each number of the state; 0: there are no copies. For few demonstrations 0.2.
    """

    num_hypotheses: int = 12
    num_steps: int = 0
    solver: str = ""
    num_observations: int = 2048
    replanning_share: float = 0.5
    shard_size: int = 256
    batch_size: int = 64
    perturbation: float = 0.0


@dataclass(frozen=True)
class StudentConfig:
    """The one-step students, one per objective.

    objectives: set objectives (distill.objectives.sets), weighted sums of them, or rivals (distill.objectives.recipes).
    codes, latent_size: the first number of a latent chooses one of `codes` learned inputs (0: none), the other
    latent_size - 1 are lifted linearly (students.one_step); code_shares: how often each code is taken is learned
    (distill.objectives.code_shares), else all are alike.
    default: the one whose student the report presents; num_latents: M, student samples per observation a step.
    unexecuted_weight: weight, in the objectives' distance, of a chunk's actions after the execution horizon; 1 is plain.
    width, depth: of the student's transformer; 0 is the teacher's. One of fewer blocks begins with some of the
    teacher's, one of another width, or of more blocks, with none of its weights.
    candidates: how many checkpoints of the last part of training compete on the validation starts.
    """

    objectives: tuple[str, ...] = ("regression", "chamfer")
    default: str = "chamfer"
    codes: int = 128
    code_shares: bool = True
    latent_size: int = 1
    num_latents: int = 8
    unexecuted_weight: float = 0.25
    warm_start: bool = True
    width: int = 0
    depth: int = 0
    training_steps: int = 1400
    batch_size: int = 32
    learning_rate: float = 2.5e-3
    weight_decay: float = 1e-4
    warmup_steps: int = 100
    ema_decay: float = 0.99
    candidates: int = 3


@dataclass(frozen=True)
class EvaluateConfig:
    """Rollouts, fidelity and latency.

    baselines: policies that need no training, for comparison: nearest_demonstration (distill.evaluation.demonstrated), or none.
    teacher_steps: solver steps at which the teacher is evaluated; the first is the reference of every comparison.
    execution_horizon: actions of a chunk that are carried out before the policy is asked again.
    selection: of the students' samples, single, outlier_rejection (the first of `selection_candidates` that is no outlier),
    temporal_consistency (of those the one nearest to what the last plan left) or kept_latent; the last plan or latent is
    forgotten every `forget_every` plans (students.selection).
    """

    test_starts: int = 480
    validation_starts: int = 96
    teacher_steps: tuple[int, ...] = (50, 10, 4, 2, 1)
    baselines: tuple[str, ...] = ("nearest_demonstration",)
    execution_horizon: int = 8
    selection: str = "outlier_rejection"
    selection_candidates: int = 16
    forget_every: int = 5
    fidelity_observations: int = 64
    fidelity_samples: int = 64
    latency_calls: int = 200
    latency_warmup: int = 20

    @property
    def student_selection(self) -> Selection:
        """How one of a student's samples is chosen at a replan."""
        return Selection(self.selection, self.selection_candidates, self.forget_every)


@dataclass(frozen=True)
class MovingConfig:
    """Rollouts in a world that goes on while the policy computes, undisturbed and disturbed (distill.evaluation.real_time).

    Off while no time is named: they take as long as all the other rollouts together.

    latency_ms: stated times of a policy call [ms], every policy is rolled out at each of them; reproducible.
    time_scales: every policy is rolled out at its own measured time (median of the whole call, latency stage) x this.
    scale_to_clock: one more such factor, the one with which a call of the default student takes a whole control step.
    teacher_steps: solver steps at which the teacher takes part, beside the default student.
    execution_horizon: control steps from one question to the next, for whoever is fast enough; 0 is evaluate's.
    patience: who is not is asked every patience x the steps that a plan takes to make (distill.evaluation.real_time.Clock).
    starts: how many of the test starts, the first; 0 is all.
    consistent: a student that draws several plans a call follows the one nearest to the rest of its last plan (temporal
    consistency), as who is asked this often would change its way too often; off: it chooses as in all other rollouts.
    """

    latency_ms: tuple[float, ...] = ()
    time_scales: tuple[float, ...] = ()
    scale_to_clock: bool = False
    teacher_steps: tuple[int, ...] = (50, 10)
    execution_horizon: int = 4
    patience: float = 2.0
    starts: int = 0
    consistent: bool = True

    @property
    def is_on(self) -> bool:
        return bool(self.latency_ms or self.measures)

    @property
    def measures(self) -> bool:
        """Whether measured times are what some of the rollouts are made from."""
        return bool(self.time_scales or self.scale_to_clock)


@dataclass(frozen=True)
class Config:
    """One run: `runs_dir`/`name`, by default `<task>-seed<seed>`; with cameras `<preset>-seed<seed>` (distill.cli.main).

    processes: worker processes on a CPU-only machine; 0 takes one per core (at most 8).
    """

    task: str = "avoid"
    name: str = ""
    runs_dir: Path = Path("runs")
    seed: int = 0
    processes: int = 0
    wandb: Literal["disabled", "offline", "online"] = "disabled"
    demos: DemosConfig = field(default_factory=DemosConfig)
    observation: ObservationConfig = field(default_factory=ObservationConfig)
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    sample: SampleConfig = field(default_factory=SampleConfig)
    student: StudentConfig = field(default_factory=StudentConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    moving: MovingConfig = field(default_factory=MovingConfig)
    rlbench: RLBenchSettings = field(default_factory=RLBenchSettings)

    @property
    def moving_selection(self) -> Selection:
        """How a student chooses in a moving world: among as many plans as elsewhere, so a call takes as long."""
        chosen = self.evaluate.student_selection
        follows = self.moving.consistent and chosen.uses_candidates
        return dataclasses.replace(chosen, kind="temporal_consistency") if follows else chosen

    @property
    def folder(self) -> Path:
        return self.runs_dir / (self.name or f"{self.task.replace('/', '-')}-seed{self.seed}")

    @property
    def is_rlbench(self) -> bool:
        return names_rlbench_task(self.task)

    def spec(self) -> TaskSpec:
        """Of the task, as this config runs it. Raises ValueError for an unknown one."""
        return envs.task_spec(self.task, self.rlbench)

    def cameras(self) -> CameraSettings | None:
        """What demonstrations are recorded with and policies see with; None where no camera is needed."""
        settings = self.observation.camera_settings()
        if settings is None or not self.is_rlbench:
            return settings
        # thinned by a grid first, so that random points are even over the surfaces
        return dataclasses.replace(
            settings, sampling="random", crop_low=self.rlbench.crop_low, crop_high=self.rlbench.crop_high
        )

    def shape(self) -> PolicyShape:
        """The network that this config asks for. Raises ValueError where its sizes contradict each other."""
        spec, teacher = self.spec(), self.teacher
        return PolicyShape(
            task=self.task, state_names=spec.state_names, action_names=spec.action.names,
            action_weights=spec.action.weights, dt_s=spec.dt_s, observation_steps=teacher.observation_steps,
            horizon=teacher.horizon, width=teacher.width, depth=teacher.depth, heads=teacher.heads, patch=teacher.patch,
            encoder=self.observation.encoder(spec.state_names),
        )  # fmt: skip


# counts that may be zero; every other int of a config must be at least 1
_MAY_BE_ZERO = {
    "seed", "processes", "demos.episodes", "teacher.warmup_steps", "sample.num_steps", "student.width", "student.depth",
    "student.codes", "student.warmup_steps",
    "evaluate.forget_every", "evaluate.latency_warmup", "observation.shift_px",
    "moving.execution_horizon", "moving.starts", "rlbench.restart_after",
}  # fmt: skip


BASELINES = ("nearest_demonstration",)


def validate(config: Config) -> None:
    """Raise ValueError, before any work, for everything that can be known to be wrong from the config alone."""
    spec = config.spec()
    if config.is_rlbench:
        config.rlbench.check()
        if config.demos.per_mode != 1:
            raise ValueError(f"demos.per_mode: got {config.demos.per_mode}, expected 1: RLBench demonstrates each start once")
        if config.moving.is_on:
            raise ValueError("moving: RLBench's world waits for the policy; leave out all that starts with --moving")
    check_numbers(config, ("", "demos", "observation", "teacher", "sample", "student", "evaluate", "moving", "rlbench"))
    config.observation.check(spec.state_names)
    available = config.demos.train_starts * len(spec.modes) * config.demos.per_mode
    if config.demos.episodes > available:
        raise ValueError(
            f"demos.episodes: got {config.demos.episodes}, but train_starts x modes x per_mode are only {available}; "
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
    # a teacher from elsewhere brings its own horizon, checked where it is opened
    if config.teacher.path is None and config.evaluate.execution_horizon > config.teacher.horizon:
        raise ValueError(
            f"evaluate.execution_horizon: got {config.evaluate.execution_horizon}, a chunk has only "
            f"{config.teacher.horizon} actions (teacher.horizon); choose at most that"
        )
    _check_moving(config)
    shape = config.shape()
    student = config.student
    if config.teacher.path is None and (student.width or student.depth):
        try:
            dataclasses.replace(shape, width=student.width or shape.width, depth=student.depth or shape.depth)
        except ValueError as error:
            raise ValueError(f"student.width, student.depth: {error} (heads are the teacher's)") from error


def check_numbers(config: Any, sections: Sequence[str]) -> None:
    """Raise ValueError, with the flag, for a number of these sections ("": the config itself) that is out of its range."""
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
    """Raise ValueError for what is wrong with drawing hypotheses, with the students, or with how they are measured."""
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
        raise ValueError("student.codes: got 1, expected at least 2, or 0 for none: one code is one way")
    if config.sample.num_hypotheses < 2:
        raise ValueError("sample.num_hypotheses: got 1, expected at least 2: one hypothesis is no set")
    if config.sample.perturbation and not config.observation.is_plain:
        raise ValueError(
            f"sample.perturbation: got {config.sample.perturbation}, but images and points cannot be moved with a state; "
            "leave it at 0, or let the policies see the whole state only"
        )
    for name, chosen in recipes.items():
        chosen.check(name, config)
    if config.evaluate.fidelity_samples < 6:
        raise ValueError(
            f"evaluate.fidelity_samples: got {config.evaluate.fidelity_samples}, expected at least 6: precision and "
            "recall look at the fifth neighbour"
        )
    check_choice("evaluate.selection", config.evaluate.selection, KINDS)


def _check_moving(config: Config) -> None:
    """What can be wrong with the rollouts in a moving world, which are checked only where they are asked for."""
    moving, evaluate = config.moving, config.evaluate
    if not moving.is_on:
        return
    envs.disturbance(config.task)
    for name, lowest in (("latency_ms", "0 or more milliseconds"), ("time_scales", "more than 0")):
        for value in (values := getattr(moving, name)):
            number = isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < float("inf")
            if not number or (value == 0 and name == "time_scales") or values.count(value) > 1:
                raise ValueError(
                    f"moving.{name}: got {list(values)}, expected different numbers, each {lowest}. "
                    f"Change --moving.{name.replace('_', '-')}"
                )
    if moving.patience < 1:
        raise ValueError(
            f"moving.patience: got {moving.patience}, expected at least 1: a policy makes one plan at a time. "
            "Change --moving.patience"
        )
    steps = moving.teacher_steps
    if not steps or len(set(steps)) != len(steps) or not set(steps) <= set(evaluate.teacher_steps):
        raise ValueError(
            f"moving.teacher_steps: got {list(steps)}, expected different numbers, all of evaluate.teacher_steps "
            f"{list(evaluate.teacher_steps)}: add them there, or leave them out here"
        )
    if config.teacher.path is None and moving.execution_horizon > config.teacher.horizon:
        raise ValueError(
            f"moving.execution_horizon: got {moving.execution_horizon}, a chunk has only {config.teacher.horizon} actions "
            "(teacher.horizon); choose at most that"
        )
    if moving.starts > evaluate.test_starts:
        raise ValueError(
            f"moving.starts: got {moving.starts}, there are only {evaluate.test_starts} test starts "
            "(evaluate.test_starts); choose at most that, or 0 for all"
        )


def check_steps_of(kind: type[TrainedTeacher], config: Config) -> None:
    """Raise ValueError for numbers of solver steps that a kind of teacher cannot take."""
    if config.sample.num_steps:
        kind.check_steps(config.sample.num_steps, "sample.num_steps")
    elif config.sample.solver:
        raise ValueError(f"sample.num_steps: got 0 with sample.solver {config.sample.solver!r}, expected how many of its "
                         "steps; 0 goes with the kind's own solver")
    for steps in config.evaluate.teacher_steps:
        kind.check_steps(steps, "evaluate.teacher_steps")


def check_choice(what: str, value: str, choices: Mapping[str, Any] | Sequence[str]) -> None:
    """Raise ValueError naming the choices and the nearest one when `value` is not among them."""
    if value not in choices:
        raise ValueError(f"{what}: unknown {value!r}; expected one of {sorted(choices)}{nearest_name(value, choices)}")


def apply_preset(config: Config, path: Path, below: tuple[Path, ...] = ()) -> Config:
    """`config` with the values of a YAML file over it; the file or files that it ``extends``, named from where it stands, are
    applied first, later ones over earlier ones.

    below: the files that extend this one. Raises ValueError for a missing file or one that extends itself, text that is no
    YAML mapping, an unknown key (with the nearest known one) or a value of the wrong type.
    """
    if not path.is_file():
        presets = sorted(str(preset) for preset in Path("configs").glob("**/*.yaml"))
        raise ValueError(f"no config at {path}{nearest_name(str(path), presets)}; presets: {', '.join(presets) or 'none'}")
    try:
        values = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not readable YAML: {error}") from error
    if values is None:
        return config
    if not isinstance(values, dict):
        raise ValueError(f"{path}: got a {type(values).__name__}, expected `key: value` lines")
    extended, below = values.pop("extends", []), (*below, path.resolve())
    for name in extended if isinstance(extended, list) else [extended]:
        parent = path.parent / str(name)
        if parent.resolve() in below:
            raise ValueError(f"{path} extends {parent}, which extends it in turn; name another file, or none")
        config = apply_preset(config, parent, below)
    return _replace(config, values, str(path), "")


def _replace(config: Any, values: Mapping[str, Any], where: str, prefix: str) -> Any:
    known = {item.name: getattr(config, item.name) for item in dataclasses.fields(config)}
    changes: dict[str, Any] = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        if key not in known:
            raise ValueError(f"{where}: unknown key {name!r}{nearest_name(str(key), known)}; known: {sorted(known)}")
        old = known[key]
        if dataclasses.is_dataclass(old):
            if not isinstance(value, dict):
                raise ValueError(f"{where}: {name} is a section, expected `key: value` lines below it, got {value!r}")
            changes[key] = _replace(old, value, where, f"{name}.")
            continue
        if isinstance(old, tuple) and isinstance(value, list):
            value = tuple(value)
        elif isinstance(old, float) and type(value) is int:
            value = float(value)
        elif (isinstance(old, Path) or (key == "path" and old is None)) and isinstance(value, str):
            value = Path(value)
        wanted = Path if isinstance(old, Path) or old is None else type(old)
        fits = isinstance(value, wanted) and isinstance(value, bool) == isinstance(old, bool)
        if isinstance(old, tuple) and old and fits:
            fits = all(type(item) is type(old[0]) for item in value)
        if not fits and not (value is None and key == "path"):
            raise ValueError(f"{where}: {name} is {value!r}, expected a {wanted.__name__} like {old!r}")
        changes[key] = value
    return dataclasses.replace(config, **changes)
