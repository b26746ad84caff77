"""The embedded simulator as a world: scripted experts, stored starts, rollouts in batches, real time, deterministic replays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from time import perf_counter_ns
from typing import Any, ClassVar, Self

import numpy as np

import envs
from distill.config import Config
from distill.evaluation.policies import Policy
from distill.evaluation.real_time import Clock, RealTimeEpisode, run_in_real_time
from distill.evaluation.rollouts import Episode, run_episodes
from distill.hypotheses.cache import episode_seed
from distill.runtime.context import Context
from distill.store.manifest import write_json
from distill.worlds.contract import Clip, RolloutJob, World
from distill.worlds.replays import replay_clips
from distill.worlds.starts import HELD_OUT, HELD_OUT_FOLDER, write_starts
from envs.cameras.specs import CameraSettings
from envs.demonstrations import Demonstration, Demonstrations
from envs.panda.disturbances import Disturbance
from envs.panda.recording import record, stored_starts
from envs.specs import TaskSpec
from students.selection import Selection

VERSION = 1
"""Increased when a task's physics, expert or starts change, so that old results are not reused."""
TRIES = 5
"""How often the expert, whose actions are disturbed, may fail at a start before the run stops."""


class EmbeddedWorld(World):
    """One of `envs.TASKS`. Everything here is deterministic: the same seed gives the same episodes."""

    real_time: ClassVar[bool] = True

    def __init__(self, config: Config, spec: TaskSpec, cameras: CameraSettings | None) -> None:
        self.config, self.spec, self.cameras = config, spec, cameras

    @classmethod
    def supports(cls, task: str) -> bool:
        return task in envs.TASKS

    @classmethod
    def task_names(cls) -> Sequence[str]:
        return sorted(envs.TASKS)

    @classmethod
    def open(cls, config: Config) -> Self:
        return cls(config, envs.task_spec(config.task), config.observation.camera_settings())

    def check(self, config: Config) -> None:
        super().check(config)
        if config.real_time.is_on:
            envs.disturbance(config.task)

    @property
    def origin(self) -> Mapping[str, Any]:
        return {"task": asdict(self.spec), "envs_version": VERSION, "seed": self.config.seed}

    # -- demonstrations and starts ----------------------------------------------------------------------------------

    def record_demonstrations(self, context: Context, folder: Path) -> None:
        """Every training start in every mode; with `demos.episodes` a random, mode-balanced subset."""
        config = self.config
        starts = stored_starts(self.spec.name, config.seed, "train", config.demos.train_starts)
        jobs = [
            (start, mode, repeat)
            for start in range(len(starts)) for mode in self.spec.modes for repeat in range(config.demos.per_mode)
        ]  # fmt: skip
        if config.demos.episodes:
            # in random order within each mode, then one of each mode in turn
            mixed = [jobs[row] for row in np.random.default_rng([config.seed, 13]).permutation(len(jobs))]
            by_mode = [[job for job in mixed if job[1] == mode] for mode in self.spec.modes]
            jobs = sorted([job for turn in zip(*by_mode, strict=True) for job in turn][: config.demos.episodes])
        self._record(context, folder, starts, jobs, "train", config.demos.noise_m)

    def record_starts(self, context: Context, folder: Path) -> None:
        config, evaluate = self.config, self.config.evaluate
        validation = self.drawn_starts(config.seed, "validation", evaluate.validation_starts)
        test = self.drawn_starts(config.seed, "test", evaluate.test_starts)
        chosen = np.random.default_rng([config.seed, 11])
        jobs = [(start, str(chosen.choice(self.spec.modes)), 0) for start in range(min(len(validation), HELD_OUT))]
        self._record(context, folder / HELD_OUT_FOLDER, validation, jobs, "validation", 0.0)
        if context.is_main:
            held_out = Demonstrations.load(folder / HELD_OUT_FOLDER, self.spec)
            write_starts(folder, held_out, validation, test, evaluate.fidelity_observations,
                         config.teacher.observation_steps, chosen)  # fmt: skip

    def drawn_starts(self, seed: int, split: str, count: int) -> np.ndarray:
        return stored_starts(self.spec.name, seed, split, count)

    def _record(
        self, context: Context, folder: Path, starts: np.ndarray, jobs: list[tuple[int, str, int]], split: str, noise_m: float
    ) -> None:
        """Record the jobs (start, mode, repeat) over all processes; their order does not depend on the number of processes."""
        env = envs.make(self.spec.name, self.cameras)
        mine: list[tuple[int, int, Demonstration]] = []
        failed = 0
        numbered = context.my_share(list(enumerate(jobs)))
        for number, (start, mode, _) in context.bar(numbered, f"demos ({split})", "episode", len(jobs)):
            for attempt in range(TRIES):
                seed = episode_seed(self.config.seed, split, number, attempt)
                episode = record(env, starts[start], mode, seed, noise_m)
                if episode is not None:
                    mine.append((number, start, episode))
                    break
                failed += 1
            else:
                raise RuntimeError(f"the expert failed {TRIES} times at start {starts[start].tolist()}, mode {mode}")
        env.close()
        recorded = sorted(context.gather(mine), key=lambda item: item[0])
        failures = sum(context.gather([failed]))
        if context.is_main:
            Demonstrations.from_episodes(
                self.spec, [episode for _, _, episode in recorded], [start for _, start, _ in recorded]
            ).save(folder)
            write_json(folder / "recording.json", {"episodes": len(recorded), "expert_failures_repeated": failures})

    # -- rollouts ---------------------------------------------------------------------------------------------------

    def roll_out(self, context: Context, policy: Policy, starts: np.ndarray, job: RolloutJob) -> list[Episode]:
        mine = context.my_share(range(len(starts)))
        with context.counter(len(mine), f"{policy.name} ({job.split})", "episode", len(starts)) as bar:
            episodes = run_episodes(
                self.spec.name, policy, starts, mine, job.execution_horizon, job.seed, job.keep_actions,
                bar.advance_to, selection=job.selection, monitor=job.monitor, cameras=self.cameras,
            )  # fmt: skip
        return context.gather(episodes)

    @property
    def disturbance(self) -> Disturbance:
        return envs.disturbance(self.spec.name)

    def roll_out_in_real_time(
        self, context: Context, policy: Policy, starts: np.ndarray, clock: Clock, seed: int, disturbed: bool,
        selection: Selection, title: str,
    ) -> list[RealTimeEpisode]:  # fmt: skip
        mine = context.my_share(range(len(starts)))
        with context.counter(len(mine), title, "episode", len(starts)) as bar:
            episodes = run_in_real_time(
                self.spec.name, policy, starts, mine, clock, seed, disturbed, progress=bar.advance_to,
                selection=selection, cameras=self.cameras,
            )  # fmt: skip
        return sorted(context.gather(episodes), key=lambda each: each.episode.index)

    # -- latency and report -----------------------------------------------------------------------------------------

    def camera_ms(self, calls: int, warmup: int) -> float | None:
        """Of the simulated cameras; real ones differ."""
        if self.cameras is None:
            return None
        env = envs.make(self.spec.name, cameras=self.cameras)
        try:
            env.reset(seed=0)
            times = []
            for _ in range(warmup + calls):
                begin = perf_counter_ns()
                env.observe_cameras()
                times.append((perf_counter_ns() - begin) / 1e6)
        finally:
            env.close()
        return float(np.median(times[warmup:]))

    def scene(self) -> list[dict[str, Any]]:
        env = envs.make(self.spec.name)
        env.reset(seed=0)
        shapes = [vars(shape) | {"xy": list(shape.xy), "size": list(shape.size)} for shape in env.top_view()]
        env.close()
        return shapes

    def clips(self, starts: np.ndarray, shown: Sequence[Clip], job: RolloutJob, folder: Path) -> dict[str, str]:
        return replay_clips(self.spec, self.cameras, starts, shown, job, folder)
