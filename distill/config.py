"""The configuration of a run: frozen dataclasses, one per stage, filled from presets (distill.presets) and then from flags."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from distill.observation_config import ObservationConfig
from envs.gym.settings import GymSettings
from envs.rlbench.spec import RLBenchSettings
from envs.specs import TaskSpec
from students.selection import Selection
from teachers.networks.shapes import PolicyShape

DEFAULT_TASK = "avoid"


@dataclass(frozen=True)
class DemosConfig:
    """Demonstrations of the scripted expert.

    Attributes:
        train_starts: number of training starts; the expert solves each of them in every mode
        per_mode: demonstrations per start and mode
        episodes: keep only this many of those demonstrations, drawn at random with the modes balanced; 0: all
        noise_m: standard deviation of a smooth disturbance of the executed action, never of the recorded one [m]; the
            recorded actions then show how to recover
    """

    train_starts: int = 40
    per_mode: int = 1
    episodes: int = 0
    noise_m: float = 0.004


@dataclass(frozen=True)
class TeacherConfig:
    """The teacher's network and training.

    Attributes:
        kind: flow, diffusion or energy
        path: folder of an existing teacher (config.json, model.safetensors); no teacher is trained then
        time_power: flow teachers are trained at times t = u^time_power, u uniform; above 1: more often near the noise
        solver: one of the solvers of this kind; "": its first
        observation_steps: O, observation steps
        horizon: T, actions of a chunk
        width: width of the transformer
        depth: number of its blocks
        heads: attention heads per block
        patch: actions per patch of the chunk
        training_steps: optimizer steps
        batch_size: chunks per step
        accumulate: parts of a batch that are differentiated one after another, for batches too large for the memory
        learning_rate: peak learning rate
        weight_decay: of AdamW
        warmup_steps: steps of linear warm-up, before a cosine to zero
        ema_decay: decay of the weight average
        candidates: number of checkpoints, from the last 40 % of training, that are compared on the validation starts
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
    batch_size: int = 128
    accumulate: int = 1
    learning_rate: float = 2e-3
    weight_decay: float = 1e-4
    warmup_steps: int = 200
    ema_decay: float = 0.995
    candidates: int = 2


@dataclass(frozen=True)
class SampleConfig:
    """The hypothesis cache: K chunks for each of `num_observations` training observations.

    Attributes:
        num_hypotheses: K, chunks per observation
        num_steps: solver steps; 0: as many as the default solver needs
        solver: solver of the teacher while sampling; "": the one of its kind that is best with few steps
        num_observations: number of observations
        replanning_share: share of the observations taken at replanning frames, every evaluate.execution_horizon-th frame
            of an episode from its first on; the others are drawn from all frames
        shard_size: observations per file
        batch_size: observations per network call
        perturbation: adds perturbed copies of observations when the demonstrations hold fewer than num_observations:
            Gaussian noise moves each state dimension with this standard deviation, in units of half its range. 0: no
            copies; 0.2 suits few demonstrations. Plain state observations only
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

    Attributes:
        objectives: set objectives, weighted sums of them such as chamfer+0.5energy_distance, or one-step baselines
            (docs/how-it-works.md)
        default: the objective whose student the report presents
        codes: number of learned inputs; the first latent dimension selects one of them. 0: no codes
        code_shares: whether the network learns how often it selects each code; otherwise all codes are equally likely
        latent_size: Z, latent dimensions; with codes, the other Z - 1 enter through a linear layer
        num_latents: M, student samples per observation in a training step
        unexecuted_weight: weight, in the training distance between chunks, of the actions after the execution horizon,
            relative to the executed ones; 1: all alike
        warm_start: whether a student starts from its teacher's weights
        width: width of the transformer; 0: the teacher's. Another width starts from random weights
        depth: number of blocks of a one-step student, at most its teacher's; 0: as many. With fewer it starts from some of
            the teacher's. Students that follow the teacher's flow, such as consistency, always have as many
        training_steps: optimizer steps
        batch_size: observations per step
        accumulate: parts of a batch that are differentiated one after another, for batches too large for the memory
        learning_rate: peak learning rate
        weight_decay: of AdamW
        warmup_steps: steps of linear warm-up, before a cosine to zero
        ema_decay: decay of the weight average
        candidates: number of checkpoints, from the last 40 % of training, that are compared on the validation starts
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
    depth: int = 2
    training_steps: int = 2800
    batch_size: int = 32
    accumulate: int = 1
    learning_rate: float = 2.5e-3
    weight_decay: float = 1e-4
    warmup_steps: int = 100
    ema_decay: float = 0.99
    candidates: int = 3


@dataclass(frozen=True)
class EvaluateConfig:
    """Rollouts, fidelity and latency.

    Attributes:
        test_starts: stored starts of the report's rollouts
        validation_starts: stored starts for the choice among checkpoints
        teacher_steps: solver steps at which the teacher is evaluated; the first is the reference of every comparison
        baselines: policies without training: nearest_demonstration, or none
        execution_horizon: actions of a chunk that are executed before the policy is queried again
        selection: which of a student's samples is executed: single (one sample), outlier_rejection (the first of
            selection_candidates samples that is no outlier), temporal_consistency (of these, the one nearest to the
            unexecuted rest of the last chunk) or kept_latent (one latent for several queries)
        selection_candidates: samples per query for outlier_rejection and temporal_consistency
        forget_every: temporal_consistency and kept_latent discard the last chunk or latent every so many queries; 0:
            never
        fidelity_observations: held-out observations of the fidelity measures
        fidelity_samples: samples per observation of the fidelity measures
        latency_calls: timed policy calls
        latency_warmup: untimed calls before them
        latency_modes: run modes that policies are timed in, besides eager PyTorch: any of onnxruntime, openvino, compile,
            aoti, cuda_graph and their variants in half precision (docs/speed.md); those that are not installed are left out
        frontier_samples: further numbers of samples per query at which the default student is evaluated and timed
    """

    test_starts: int = 480
    validation_starts: int = 96
    teacher_steps: tuple[int, ...] = (50, 10, 4, 2, 1)
    baselines: tuple[str, ...] = ("nearest_demonstration",)
    execution_horizon: int = 8
    selection: str = "outlier_rejection"
    selection_candidates: int = 8
    forget_every: int = 5
    fidelity_observations: int = 64
    fidelity_samples: int = 64
    latency_calls: int = 200
    latency_warmup: int = 20
    latency_modes: tuple[str, ...] = ("onnxruntime", "openvino")
    frontier_samples: tuple[int, ...] = (1, 4)

    @property
    def student_selection(self) -> Selection:
        """How one of a student's samples is selected at a replan."""
        return Selection(self.selection, self.selection_candidates, self.forget_every)


@dataclass(frozen=True)
class RealTimeConfig:
    """Real-time evaluation: the simulation goes on while a policy computes, with and without a disturbance.

    Off unless latency_ms, time_scales or scale_to_clock is set; it takes about as long as all other rollouts together.

    Attributes:
        latency_ms: latencies of a policy call that all policies are given [ms]; reproducible, as no measured time enters
        time_scales: factors; each policy is rolled out with its own measured latency (median of the whole call) times
            each factor
        scale_to_clock: adds the factor at which a call of the default student lasts exactly one control period
        teacher_steps: solver steps at which the teacher takes part, besides the default student
        execution_horizon: control steps between two queries of a policy that is fast enough; 0:
            evaluate.execution_horizon
        delays_per_query: minimum time between two queries, in multiples of the control delay: a slow policy is queried
            every max(execution_horizon, delays_per_query x control delay) steps. With 1 it replans as soon as a chunk
            arrives; with 2 it executes each chunk for as long as the chunk took to compute
        starts: use only the first so many test starts; 0: all
        temporal_consistency: whether a student that draws several samples per query executes the one nearest to the
            unexecuted rest of its last chunk; queried this often, it would otherwise switch modes too often. Off:
            evaluate.selection
    """

    latency_ms: tuple[float, ...] = ()
    time_scales: tuple[float, ...] = ()
    scale_to_clock: bool = False
    teacher_steps: tuple[int, ...] = (50, 10)
    execution_horizon: int = 4
    delays_per_query: float = 2.0
    starts: int = 0
    temporal_consistency: bool = True

    @property
    def is_on(self) -> bool:
        """Whether any real-time rollouts are wanted."""
        return bool(self.latency_ms or self.measures)

    @property
    def measures(self) -> bool:
        """Whether some rollouts depend on measured latencies."""
        return bool(self.time_scales or self.scale_to_clock)


@dataclass(frozen=True)
class Config:
    """One run, in the folder runs_dir/name.

    Attributes:
        task: the task, such as avoid or rlbench/open_drawer; with world.gym a name of your own, by default that of the
            environment
        name: folder name of the run; by default <task>-seed<seed>, with cameras <preset>-seed<seed>
        runs_dir: folder of all runs
        seed: seed of all randomness
        processes: worker processes without a GPU; 0: one per core, at most 8
        wandb: whether metrics also go to Weights & Biases; they are always written to metrics.jsonl
        note: a remark that is printed first, such as what a preset is for
    """

    task: str = DEFAULT_TASK
    name: str = ""
    runs_dir: Path = Path("runs")
    seed: int = 0
    processes: int = 0
    wandb: Literal["disabled", "offline", "online"] = "disabled"
    note: str = ""
    demos: DemosConfig = field(default_factory=DemosConfig)
    observation: ObservationConfig = field(default_factory=ObservationConfig)
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    sample: SampleConfig = field(default_factory=SampleConfig)
    student: StudentConfig = field(default_factory=StudentConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    real_time: RealTimeConfig = field(default_factory=RealTimeConfig)
    rlbench: RLBenchSettings = field(default_factory=RLBenchSettings)
    world: GymSettings = field(default_factory=GymSettings)

    def __post_init__(self) -> None:
        if self.world.gym and self.task == DEFAULT_TASK:  # else the run of an environment would be named after a task of ours
            object.__setattr__(self, "task", self.world.name)

    @property
    def real_time_selection(self) -> Selection:
        """How a student selects among its samples in real time. It draws as many as elsewhere, so a call takes as long."""
        chosen = self.evaluate.student_selection
        if not (self.real_time.temporal_consistency and chosen.uses_candidates):
            return chosen
        return dataclasses.replace(chosen, kind="temporal_consistency")

    @property
    def folder(self) -> Path:
        """The run's folder."""
        return self.runs_dir / (self.name or f"{self.task.replace('/', '-')}-seed{self.seed}")

    def shape(self, spec: TaskSpec) -> PolicyShape:
        """The network shape for a task. Raises ValueError when its sizes contradict each other."""
        teacher = self.teacher
        return PolicyShape(
            task=self.task, state_names=spec.state_names, action_names=spec.action.names,
            action_weights=spec.action.weights, dt_s=spec.dt_s, observation_steps=teacher.observation_steps,
            horizon=teacher.horizon, width=teacher.width, depth=teacher.depth, heads=teacher.heads, patch=teacher.patch,
            encoder=self.observation.encoder(spec.state_names), frame=self.observation.frame,
        )  # fmt: skip
