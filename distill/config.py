"""What a run is: frozen dataclasses, one per stage, filled from presets (distill.presets) and then from flags."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from envs.cameras.specs import CAMERAS, CameraSettings
from envs.rlbench.spec import RLBenchSettings
from envs.specs import TaskSpec, nearest_name
from students.selection import Selection
from teachers.networks.shapes import Augmentation, EncoderShape, PolicyShape

SOURCES = ("state", "images", "depth", "points")


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
class ObservationConfig:
    """What the policies see; by default the whole state, and no camera is opened.

    sources: any of state, images (colours), depth and points (a cloud fused from all cameras).
    state_names: the numbers of the state that are seen; none: all of them. With cameras name those of the robot alone: a
    state also says where the object is.
    cameras, image_size: whose images and depth are seen, and (height, width) of each [px].
    num_points, colours: N of the cloud; whether each of its points has a colour.
    width, channels: of the encoder's feature, and of its convolutions (teachers.networks.observations.EncoderShape).
    shift_px, colour, point_jitter_m, dropout: augmentation (teachers.networks.augmentation.Augmentation).
    frozen: students keep a copy of the teacher's encoder as it is, so that its features, which are in the cache, are all that
    they are trained on; else they go on training it.
    """

    sources: tuple[str, ...] = ("state",)
    state_names: tuple[str, ...] = ()
    cameras: tuple[str, ...] = ("front", "wrist")
    image_size: tuple[int, int] = (64, 64)
    num_points: int = 512
    colours: bool = False
    width: int = 128
    channels: int = 32
    shift_px: int = 1
    colour: float = 0.1
    point_jitter_m: float = 0.002
    dropout: float = 0.0
    frozen: bool = True

    @property
    def is_plain(self) -> bool:
        """Whether policies see the whole state and nothing else: then they have no encoder of the unified kind."""
        return self.sources == ("state",) and not self.state_names

    def camera_settings(self) -> CameraSettings | None:
        """The cameras that demonstrations are recorded with; None where none is needed."""
        images, depth, points = ("images" in self.sources, "depth" in self.sources, "points" in self.sources)
        if not (images or depth or points):
            return None
        height, width = self.image_size
        return CameraSettings(
            cameras=CAMERAS if points else self.cameras, width=width, height=height, images=images, depth=depth,
            num_points=self.num_points if points else 0, colours=points and self.colours,
        )  # fmt: skip

    def encoder(self, state_names: tuple[str, ...]) -> EncoderShape | None:
        """The encoder for a task whose state has these names; None for a plain observation.

        Raises ValueError for sizes that contradict each other.
        """
        if self.is_plain:
            return None
        points = "points" in self.sources
        try:
            return EncoderShape(
                state_names=(self.state_names or state_names) if "state" in self.sources else (),
                cameras=self.cameras if "images" in self.sources else (),
                depth_cameras=self.cameras if "depth" in self.sources else (),
                image_size=self.image_size, num_points=self.num_points if points else 0,
                point_colours=points and self.colours, width=self.width, channels=self.channels,
                augmentation=Augmentation(self.shift_px, self.colour, self.point_jitter_m, self.dropout),
            )  # fmt: skip
        except ValueError as error:
            raise ValueError(f"observation.{error}") from error

    def check(self, state_names: tuple[str, ...]) -> None:
        """Raise ValueError for everything that is wrong, for a task whose state has these names."""
        for name, values, known in (
            ("sources", self.sources, SOURCES), ("cameras", self.cameras, CAMERAS),
            ("state_names", self.state_names, state_names),
        ):  # fmt: skip
            for value in values:
                if value not in known:
                    raise ValueError(
                        f"observation.{name}: unknown {value!r}; expected some of {list(known)}{nearest_name(value, known)}"
                    )
            if len(set(values)) != len(values):
                raise ValueError(f"observation.{name}: got a name twice in {list(values)}; name each once")
        if not self.sources:
            raise ValueError(f"observation.sources: got none, expected some of {list(SOURCES)}")
        if self.state_names and "state" not in self.sources:
            raise ValueError(
                f"observation.state_names: got {list(self.state_names)}, but the state is not among observation.sources "
                f"{list(self.sources)}; add it there, or name none"
            )
        if not self.cameras and {"images", "depth"} & set(self.sources):
            raise ValueError(f"observation.cameras: got none, but {list(self.sources)} need some of {list(CAMERAS)}")
        if self.colours and "points" not in self.sources:
            raise ValueError("observation.colours: only points have them; add points to observation.sources")
        self.encoder(state_names)


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
class InPlaceConfig:
    """Fine-tuning an external policy's own network so that one evaluation gives a chunk (distill.stages.train_in_place).

    objective: a set objective (those of train_in_place.LOSSES), or a weighted sum of them; num_latents: M, chunks per
    observation a step. starting_noises: how many noises are learned, with their shares, for chunks to start from; 0: Gaussian
    noise, as the policy has it, which needs nothing of ours at run time. learning_rate: 0: by how many weights are trained
    (train_in_place.rate_for).
    unexecuted_weight, candidates: as of StudentConfig. at_once: observations whose graph is held in memory at a time, 0 for the
    whole batch: less memory, the same gradient. bfloat16: autocast. memory_mb: encoded observations that take more are encoded
    again in every step [MiB].
    """

    objective: str = "chamfer"
    starting_noises: int = 0
    num_latents: int = 8
    unexecuted_weight: float = 0.25
    training_steps: int = 3000
    batch_size: int = 32
    at_once: int = 0
    learning_rate: float = 0.0
    weight_decay: float = 1e-4
    warmup_steps: int = 100
    ema_decay: float = 0.99
    candidates: int = 3
    bfloat16: bool = False
    memory_mb: int = 2048


@dataclass(frozen=True)
class EvaluateConfig:
    """Rollouts, fidelity and latency.

    baselines: policies that need no training, for comparison: nearest_demonstration (distill.evaluation.demonstrated), or none.
    teacher_steps: solver steps at which the teacher is evaluated; the first is the reference of every comparison.
    execution_horizon: actions of a chunk that are carried out before the policy is asked again.
    selection: of the students' samples, one (a single one), typical (the first of `selection_candidates` that is no stray),
    consistent (of those the one nearest to what the last plan left) or kept_latent; the last plan or latent is forgotten
    every `forget_every` plans (students.selection).
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
class RealTimeConfig:
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
    real_time: RealTimeConfig = field(default_factory=RealTimeConfig)
    rlbench: RLBenchSettings = field(default_factory=RLBenchSettings)

    @property
    def real_time_selection(self) -> Selection:
        """How a student chooses in a moving world: among as many plans as elsewhere, so a call takes as long."""
        chosen = self.evaluate.student_selection
        if not (self.real_time.consistent and chosen.uses_candidates):
            return chosen
        return dataclasses.replace(chosen, kind="temporal_consistency")

    @property
    def folder(self) -> Path:
        return self.runs_dir / (self.name or f"{self.task.replace('/', '-')}-seed{self.seed}")

    def shape(self, spec: TaskSpec) -> PolicyShape:
        """The network that this config asks for, for its task. Raises ValueError where its sizes contradict each other."""
        teacher = self.teacher
        return PolicyShape(
            task=self.task, state_names=spec.state_names, action_names=spec.action.names,
            action_weights=spec.action.weights, dt_s=spec.dt_s, observation_steps=teacher.observation_steps,
            horizon=teacher.horizon, width=teacher.width, depth=teacher.depth, heads=teacher.heads, patch=teacher.patch,
            encoder=self.observation.encoder(spec.state_names),
        )  # fmt: skip
