"""The flags of `convert` and `compare`: frozen dataclasses, filled from presets and flags like those of a run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Literal

import tyro

import envs
from distill.checks import check_choice, check_distilling, check_numbers, check_writable
from distill.cli.help import VERIFY_OPTION, Option, help_text
from distill.config import Config, EvaluateConfig, SampleConfig, StudentConfig
from distill.objectives.recipes import recipe
from distill.presets import apply_preset
from distill.stages.in_place.config import InPlaceConfig, loss_terms
from envs.gym.settings import GymSettings
from envs.gym.spec import gym_spec
from envs.recorded import open_recorded
from envs.recorded.observations import RecordedObservations
from envs.recorded.splitting import SplitRule
from envs.specs import TaskSpec
from teachers.adapters.teacher import AdapterFile

WARM_STEPS, FRESH_STEPS = 1400, 3000
"""Training steps of a student that starts from its teacher's weights, and of one that starts from random weights."""


@dataclass(frozen=True)
class AdapterConfig:
    """How adapters are run.

    Attributes:
        python: the interpreter they run in, such as /path/to/venv/bin/python; "": the current one
        arguments: name=value for each argument of the adapter's function
        timeout_s: limit for one answer of the adapter, loading included [s]
    """

    python: str = ""
    arguments: tuple[str, ...] = ()
    timeout_s: float = 600.0

    def file(self, text: str) -> AdapterFile:
        """The adapter that `text` names. Raises ValueError when it or these settings are invalid."""
        pairs = [argument.partition("=") for argument in self.arguments]
        wrong = [argument for argument, (name, sign, _) in zip(self.arguments, pairs, strict=True)
                 if not sign or not name.isidentifier()]  # fmt: skip
        if wrong:
            raise ValueError(f"adapter.arguments: got {wrong}, expected name=value for an argument of the adapter's function")
        return AdapterFile.parse(text, {name: value for name, _, value in pairs}, self.python, self.timeout_s)


@dataclass(frozen=True)
class ExternalConfig:
    """The flags that `convert` and `compare` share.

    Attributes:
        observations: folder or file of recorded observations, in any format of docs/recorded.md
        names: key=feature renames a key of the recording to one of our feature names; key= leaves it out
        out: folder to write to
        task: an embedded task whose observations these are, to measure success by rollouts from stored starts; "":
            success is not measured
        features: what the student observes, and an adapter that names no features; empty: everything recorded
        dt_s: the policies' control period [s]; 0: that of the adapter, else of the recording. A recording at a higher
            rate is subsampled to it; any other rate is refused
        recorded_dt_s: period of the recorded frames [s]; 0: from their time stamps
        leave_out: episodes to exclude
        instructions: use only frames with these instructions
        split: training and held-out frames
        action_weights: weight of each action dimension in distances; empty: those of the task or teacher, else 1 each
        seed: seed of all randomness
        processes: worker processes; each queries an adapter process of its own
        wandb: whether metrics also go to Weights & Biases
        adapter: how adapters are run
        world: the gymnasium environment of these observations, to measure success there in place of an embedded task
        evaluate: rollouts, fidelity and latency
    """

    observations: str = ""
    names: tuple[str, ...] = ()
    out: str = ""
    task: str = ""
    features: tuple[str, ...] = ()
    dt_s: float = 0.0
    recorded_dt_s: float = 0.0
    leave_out: tuple[int, ...] = ()
    instructions: tuple[str, ...] = ()
    split: SplitRule = field(default_factory=SplitRule)
    action_weights: tuple[float, ...] = ()
    seed: int = 0
    processes: int = 1
    wandb: Literal["disabled", "offline", "online"] = "disabled"
    adapter: AdapterConfig = field(default_factory=AdapterConfig)
    world: GymSettings = field(default_factory=GymSettings)
    evaluate: EvaluateConfig = field(
        default_factory=lambda: EvaluateConfig(
            teacher_steps=(), baselines=(), test_starts=240, execution_horizon=0, fidelity_observations=48,
            fidelity_samples=32,
        )  # fmt: skip
    )

    def __post_init__(self) -> None:
        if self.world.gym and not self.task:
            object.__setattr__(self, "task", self.world.name)

    def spec(self) -> TaskSpec | None:
        """The task to measure success in; None without one. Raises ValueError for an unknown one."""
        if self.world.gym:
            return gym_spec(self.task, self.world)
        return envs.task_spec(self.task) if self.task else None

    def open_recorded(self) -> RecordedObservations:
        """The recording, with no feature opened yet. Raises ValueError for invalid data or missing packages."""
        pairs = [name.partition("=") for name in self.names]
        if not all(sign for _, sign, _ in pairs):
            raise ValueError(f"names: got {list(self.names)}, expected key=feature, such as img=observation.images.front")
        try:
            return open_recorded(
                self.observations, {key: feature for key, _, feature in pairs}, (), dt_s=self.recorded_dt_s,
                leave_out=self.leave_out, instructions=self.instructions,
            ).divided(self.split)  # fmt: skip
        except (OSError, ImportError) as error:
            raise ValueError(f"--observations: {error}") from error


@dataclass(frozen=True)
class ConvertStudentConfig(StudentConfig):
    """The students of a conversion.

    Attributes:
        kind: in_place fine-tunes the policy's own network in its own interpreter; fresh trains a new flow2one network; both
            does both; auto: in_place if the adapter supports it (docs/adapter.md), else fresh
    """

    kind: Literal["auto", "in_place", "fresh", "both"] = "auto"
    objectives: tuple[str, ...] = ("chamfer",)
    depth: int = 0
    training_steps: int = 0


@dataclass(frozen=True)
class ConvertConfig(ExternalConfig):
    """Convert an external policy and recorded observations to a one-step student, and measure what it costs and gains.

    sample.num_steps 0 and no evaluate.teacher_steps: the steps that the teacher is used with. student.training_steps 0:
    1400 for a student that starts from its teacher's weights, 3000 for any other.

    Attributes:
        teacher: a flow2one teacher folder, or an adapter, path/to/my_policy.py:build
        sample: the hypothesis cache
        in_place: fine-tuning of the policy's own network, see `student.kind`; it has its own number of training steps
        student: the students
    """

    teacher: str = ""
    sample: SampleConfig = field(default_factory=SampleConfig)
    student: ConvertStudentConfig = field(default_factory=ConvertStudentConfig)
    in_place: InPlaceConfig = field(default_factory=InPlaceConfig)


@dataclass(frozen=True)
class CompareConfig(ExternalConfig):
    """Compare policies on the same observations and starts; the first is the reference.

    Attributes:
        policies: flow2one folders (teachers or students) or adapters; a teacher may end in @steps, such as
            runs/x/teach@10
    """

    policies: tuple[str, ...] = ()


USAGE = {
    "convert": "flow2one convert --teacher POLICY --observations PATH --out FOLDER [OPTIONS]",
    "compare": "flow2one compare POLICY POLICY .. --observations PATH --out FOLDER [OPTIONS]",
}
SUMMARY = {
    "convert": """Distil a policy of your own into a student that makes an action chunk in one network evaluation, from recorded
observations, and measure what that costs and gains.

  flow2one convert --teacher my_policy.py:build --observations data.zarr --out mine
  flow2one convert --teacher runs/x/teach --observations runs/x/demos --out again

POLICY: an adapter, a Python file and its function that gives the policy (docs/adapter.md), or a folder of flow2one. 0, or
none, stands for what the policy or the recording says itself. Finished stages are reused.""",
    "compare": """Measure policies on the same recorded observations; the first is what the others are compared with.

  flow2one compare runs/x/teach runs/x/teach@4 runs/x/distill/chamfer \\
                   --observations runs/x/demos --out compared

POLICY: a folder of flow2one, or an adapter, a Python file and its function (docs/adapter.md). @N behind it sets the number
of solver steps.""",
}
FIRST = (
    Option("--config PRESET", "a YAML file with these options; given several times, later ones win; options win over all"),
    Option("--dry-run", "check everything, print every stage with its state and its time in earlier runs; write nothing"),
    VERIFY_OPTION,
)
IRRELEVANT = {
    "convert": ("evaluate.baselines",),
    "compare": ("policies", "evaluate.baselines", "evaluate.teacher_steps", "evaluate.validation_starts"),
}
"""Options that the config has and the command has no use for."""


def external_help(command: str) -> str:
    """The help of one of these commands."""
    config = ConvertConfig() if command == "convert" else CompareConfig()
    required = ("--teacher",) if command == "convert" else ()
    return help_text(
        USAGE[command], SUMMARY[command], config, IRRELEVANT[command], FIRST, required=(*required, "--observations", "--out")
    )


def read_external(command: str, arguments: Sequence[str]) -> tuple[bool, ConvertConfig | CompareConfig]:
    """Whether it is a dry run, and the config. Raises ValueError for invalid input; tyro exits with 2 for an unknown flag."""
    rest, flags, named, dry_run = list(arguments), [], [], False
    config: ConvertConfig | CompareConfig = ConvertConfig() if command == "convert" else CompareConfig()
    while command == "compare" and rest and not rest[0].startswith("-"):
        named.append(rest.pop(0))
    while rest:
        flag = rest.pop(0)
        if flag == "--dry-run":
            dry_run = True
        elif flag == "--config" and rest:
            config = apply_preset(config, Path(rest.pop(0)))  # type: ignore[arg-type,assignment]
        else:
            flags.append(flag)
    if isinstance(config, CompareConfig) and named:
        config = replace(config, policies=tuple(named))
    config = tyro.cli(type(config), args=flags, default=config, prog=f"flow2one {command}")
    check_external(config)
    return dry_run, config


def check_external(config: ConvertConfig | CompareConfig) -> None:
    """Raise ValueError for everything that is wrong before a policy is opened."""
    command = "convert" if isinstance(config, ConvertConfig) else "compare"
    usage = ("convert --teacher <folder or my_policy.py:build>" if command == "convert" else "compare <policy> <policy> ..")
    for name in ("observations", "out"):
        if not getattr(config, name):
            raise ValueError(f"--{name} is missing; {usage} --observations <folder> --out <folder>")
    if isinstance(config, ConvertConfig) and not config.teacher:
        raise ValueError(f"--teacher is missing; {usage} --observations <folder> --out <folder>")
    if isinstance(config, CompareConfig) and len(config.policies) < 2:
        raise ValueError(f"policies: got {list(config.policies)}, expected at least two; {usage} --observations <folder> "
                         "--out <folder>")  # fmt: skip
    config.world.check()
    if config.task and not config.world.gym:
        check_choice("task", config.task, envs.TASKS)
    if config.adapter.timeout_s <= 0:
        raise ValueError(f"adapter.timeout_s: got {config.adapter.timeout_s}, expected more than 0 seconds")
    if not Path(config.observations).exists():
        raise ValueError(f"--observations: {config.observations} does not exist; expected a folder of recorded observations")
    out = Path(config.out)
    if out.exists() and not out.is_dir():
        raise ValueError(f"--out: {out} is a file; name a new folder")
    check_writable(out, "--out")
    if (out.is_dir() and any(out.iterdir())) and not (out / ".lock").exists():
        raise ValueError(f"--out: {out} contains other files; name a new folder, or one of an earlier {command}")
    check_numbers(config, ("adapter", "world"))
    if config.recorded_dt_s < 0 or config.dt_s < 0:
        raise ValueError(f"dt_s, recorded_dt_s: got {config.dt_s}, {config.recorded_dt_s}, expected seconds, or 0")
    if isinstance(config, ConvertConfig):
        _check_in_place(config)
        for name in config.student.objectives:
            if recipe(name).data != "hypotheses":
                raise ValueError(f"student.objectives: {name} needs demonstrations, which convert does not have; use chamfer")


def _check_in_place(config: ConvertConfig) -> None:
    """Raise ValueError for settings that a policy's own network cannot be trained with."""
    settings = config.in_place
    check_numbers(config, ("in_place",))
    terms = [name for _, name in loss_terms(settings.objective)]
    if settings.num_latents < 2:
        raise ValueError("in_place.num_latents: got 1, expected at least 2: with one chunk a set objective is plain L2")
    if "paired" in terms and settings.num_latents > config.sample.num_hypotheses:
        raise ValueError(f"in_place.num_latents: got {settings.num_latents}, but {settings.objective} has only the "
                         f"{config.sample.num_hypotheses} noises an observation; raise --sample.num-hypotheses")  # fmt: skip
    if "paired" in terms and settings.starting_noises:
        raise ValueError(f"in_place.starting_noises: {settings.objective} starts from the teacher's own noise; leave it at 0")


def resolved(
    config: ConvertConfig | CompareConfig, horizon: int, steps: tuple[int, ...], observation_steps: int, warm: bool = False
) -> Config:
    """The run config for this command, with every 0 that stands for a default replaced.

    horizon: T. steps: solver steps of the teacher when none are named, its own first. observation_steps: O. warm: whether
    students start from the teacher's weights. Raises ValueError for settings that contradict each other.
    """
    evaluate = config.evaluate
    evaluate = replace(
        evaluate, teacher_steps=evaluate.teacher_steps or steps, execution_horizon=evaluate.execution_horizon or min(8, horizon)
    )
    if evaluate.execution_horizon > horizon:
        raise ValueError(f"evaluate.execution_horizon: got {evaluate.execution_horizon}, a chunk has only {horizon} actions; "
                         "choose at most that")  # fmt: skip
    teacher_steps = evaluate.teacher_steps
    if min(teacher_steps) < 1 or len(set(teacher_steps)) != len(teacher_steps):
        raise ValueError(f"evaluate.teacher_steps: got {list(teacher_steps)}, expected different numbers of at least 1")
    out = Path(config.out).resolve()
    made = Config(
        task=config.task, name=out.name, runs_dir=out.parent, seed=config.seed, processes=config.processes,
        wandb=config.wandb, evaluate=evaluate, world=config.world,
    )  # fmt: skip
    made = replace(made, teacher=replace(made.teacher, observation_steps=observation_steps, horizon=horizon, path=Path()))
    if isinstance(config, ConvertConfig):
        student = StudentConfig(**{item.name: getattr(config.student, item.name) for item in fields(StudentConfig)})
        if not student.training_steps:
            student = replace(student, training_steps=WARM_STEPS if warm else FRESH_STEPS)
        made = replace(made, sample=config.sample, student=student)
        check_distilling(made)
    check_numbers(made, ("", "sample", "student", "evaluate"))
    return made
