"""Any gymnasium environment as a world: starts are seeds; rollouts in parallel processes; an expert or recorded episodes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np

from distill.config import Config
from distill.evaluation.policies import Policy
from distill.evaluation.rollouts import Episode, run_batch
from distill.hypotheses.cache import episode_seed
from distill.observation import cameras_for
from distill.runtime.context import Context
from distill.store.manifest import write_json
from distill.worlds.contract import Clip, RolloutJob
from distill.worlds.pooled import PooledWorld
from distill.worlds.recorded_clips import filmed, join_clips
from distill.worlds.simulators import Simulators
from distill.worlds.starts import HELD_OUT, HELD_OUT_FOLDER, write_starts
from envs.cameras.specs import CameraSettings
from envs.demonstrations import Demonstration, Demonstrations
from envs.gym.env import GymEnv, gym_cameras
from envs.gym.recorded import demonstration, held_out_episodes, recorded_demonstrations
from envs.gym.spec import described, gym_spec
from envs.process.worker import WorkerFailure
from envs.recorded.observations import RecordedObservations
from envs.specs import SPLITS, TaskSpec

VERSION = 1
"""Increased when demonstrations or rollouts of gymnasium environments change, so that old results are not reused."""
TRIES = 10
"""How often a start at which the expert fails is replaced, for demonstrations only: test starts are never replaced."""
CLIP_FPS = 10.0
"""Most frames per second of a clip."""


class GymWorld(PooledWorld[GymEnv]):
    """`config.world`, chosen by its field `gym`. A start is the seed of a reset, the same for every policy."""

    named_by_preset: ClassVar[bool] = True

    def __init__(self, config: Config, spec: TaskSpec, cameras: CameraSettings | None) -> None:
        self.config, self.spec, self.cameras = config, spec, cameras
        self.simulators = Simulators(lambda wanted: GymEnv(spec.name, config.world, wanted), config.world.workers, cameras)

    @classmethod
    def open(cls, config: Config) -> Self:
        spec = gym_spec(config.task, config.world)
        cameras = config.observation.camera_settings()
        if cameras is not None:  # the environment gives its own cloud: none of ours is fused from all cameras
            cameras = gym_cameras(config.world, replace(cameras, cameras=config.observation.cameras))
        return cls(config, spec, cameras)

    def check(self, config: Config) -> None:
        super().check(config)
        settings = config.world
        if settings.expert_noise and settings.demonstrations:
            raise ValueError(f"world.expert_noise: got {settings.expert_noise}, but the demonstrations are recorded ones; "
                             "leave it at 0")

    @property
    def origin(self) -> Mapping[str, Any]:
        settings = self.config.world
        mapping, _ = described(settings)
        task = {name: value for name, value in asdict(self.spec).items() if name != "max_steps"}
        shown: dict[str, Any] = {"noise": settings.expert_noise} if settings.expert else {}
        if settings.demonstrations:
            shown = {"recorded": self._recorded.fingerprint()}
        made_of = {**settings.sources(), "make": settings.arguments(), "mapping": asdict(mapping) | {"max_steps": 0}, **shown}
        return {"task": task, "envs_version": VERSION, "seed": self.config.seed, "gym": made_of}

    @property
    def rollout_settings(self) -> Mapping[str, Any]:
        return {"max_steps": self.spec.max_steps}

    def versions_of(self, env: GymEnv) -> dict[str, str]:
        return env.description.versions

    # -- demonstrations and starts ----------------------------------------------------------------------------------

    @cached_property
    def _recorded(self) -> RecordedObservations:
        return recorded_demonstrations(self.config.world.demonstrations, self.spec, self.cameras)

    def drawn_starts(self, seed: int, split: str, count: int) -> np.ndarray:
        """Seeds; those of two splits differ, as each split has a third of the numbers."""
        drawn = np.random.default_rng([seed, SPLITS.index(split)]).permutation(2**20)[:count]
        return (3.0 * drawn + SPLITS.index(split))[:, None]

    def record_demonstrations(self, context: Context, folder: Path) -> None:
        """From every training start, in every mode if the expert is given one; or the recorded ones that are not held out."""
        demos = self.config.demos
        if self.config.world.demonstrations:
            train = sorted(set(range(len(self._recorded.episodes))) - set(held_out_episodes(self._recorded, HELD_OUT)))
            return self._copy(context, folder, train[: demos.episodes or None])
        self._require_expert()
        modes = self._expert_modes()
        jobs = [(start, mode) for start in range(demos.train_starts) for mode in modes for _ in range(demos.per_mode)]
        if demos.episodes:
            mixed = np.random.default_rng([self.config.seed, 13]).permutation(len(jobs))[: demos.episodes]
            jobs = [jobs[row] for row in sorted(mixed)]
        self._record(context, folder, jobs, "train")

    def record_starts(self, context: Context, folder: Path) -> None:
        """Test and validation starts are all seeds; held-out observations come from the demonstrations that succeed there."""
        config, evaluate = self.config, self.config.evaluate
        validation, test = (self.drawn_starts(config.seed, split, count) for split, count in (
            ("validation", evaluate.validation_starts), ("test", evaluate.test_starts)))  # fmt: skip
        rng = np.random.default_rng([config.seed, 11])
        if config.world.demonstrations:
            self._copy(context, folder / HELD_OUT_FOLDER, held_out_episodes(self._recorded, HELD_OUT))
        else:
            self._require_expert()
            modes = self._expert_modes()
            jobs = [(start, modes[int(rng.integers(len(modes)))]) for start in range(min(len(validation), HELD_OUT))]
            self._record(context, folder / HELD_OUT_FOLDER, jobs, "validation")
        if context.is_main:
            held_out = Demonstrations.load(folder / HELD_OUT_FOLDER, self.spec)
            write_starts(folder, held_out, validation, test, evaluate.fidelity_observations,
                         config.teacher.observation_steps, rng)  # fmt: skip
        context.wait()

    def _require_expert(self) -> None:
        if not self.config.world.expert:
            raise ValueError(f"{self.spec.name} has neither an expert nor recorded demonstrations: add --world.expert "
                             "my_expert.py:expert, or --world.demonstrations PATH (docs/worlds.md)")  # fmt: skip

    def _expert_modes(self) -> tuple[str, ...]:
        return self.spec.modes if described(self.config.world)[1].expert_takes > 1 else ("",)

    def _copy(self, context: Context, folder: Path, episodes: Sequence[int]) -> None:
        if context.is_main:
            made = [demonstration(self._recorded, episode, self.spec, self.cameras) for episode in episodes]
            Demonstrations.from_episodes(self.spec, made, range(len(made))).save(folder)
            write_json(folder / "recording.json", {"episodes": len(made), "recorded": self.config.world.demonstrations})
        context.wait()

    def _record(self, context: Context, folder: Path, jobs: Sequence[tuple[int, str]], split: str) -> None:
        """Record the jobs (start, mode). A start at which the expert fails is replaced by another seed."""
        seed, starts = self.config.seed, self.drawn_starts(self.config.seed, split, len({start for start, _ in jobs}))

        def work(env: GymEnv, number: int) -> tuple[Demonstration, list[str]]:
            start, mode = jobs[number]
            failures: list[str] = []
            for attempt in range(TRIES):
                placed = starts[start] + (3.0 * 2**20 * attempt)
                try:
                    return env.demonstrate(placed, mode, episode_seed(seed, split, number, attempt)), failures
                except WorkerFailure as failure:
                    failures.append(failure.name)
                    last = failure
            raise ValueError(f"the expert of {self.spec.name} failed {TRIES} times in a row, at last with seed "
                             f"{placed[0]:.0f}: {last}; `flow2one check-world` shows how it does")  # fmt: skip

        self.record_each(context, folder, [start for start, _ in jobs], split, work)

    # -- rollouts ---------------------------------------------------------------------------------------------------

    def roll_out(self, context: Context, policy: Policy, starts: np.ndarray, job: RolloutJob) -> list[Episode]:
        """A failure of an environment's process is the episode's failure."""

        def work(env: GymEnv, index: int) -> Episode:
            env.video_every = self._video_every
            try:
                with filmed(env, job.folder, job.name if self.config.world.clips else "", index, self._fps):
                    episode = run_batch(
                        policy, [env], starts, [index], job.execution_horizon, job.seed, job.keep_actions, job.selection,
                        job.monitor,
                    )[0]  # fmt: skip
            except WorkerFailure as failure:  # at the reset, or while rendering
                return Episode(index=index, failure=failure.name)
            episode.score = env.score
            if not env.mapping.tool:  # nobody knows where the tool is
                episode.jerk, episode.path = None, []
            return episode

        cameras = cameras_for(policy.shape, self.cameras)
        return self.run_each(context, cameras, len(starts), job.folder, job.name, policy.name, work)

    @property
    def _video_every(self) -> int:
        return max(1, round(1 / (CLIP_FPS * self.spec.dt_s)))

    @property
    def _fps(self) -> float:
        return 1 / (self.spec.dt_s * self._video_every)

    # -- report -----------------------------------------------------------------------------------------------------

    def clips(self, starts: np.ndarray, shown: Sequence[Clip], job: RolloutJob, folder: Path) -> dict[str, str]:
        """Recorded during the rollouts."""
        return join_clips(shown, folder, self._fps)

    def report_facts(self, demonstrations: Path, evaluated: Mapping[str, Path]) -> dict[str, Any]:
        settings, found = self.config.world, described(self.config.world)[1]
        facts = {"gym": settings.gym, "make": list(settings.make), "mapping": settings.mapping,
                 "demonstrations": settings.demonstrations or settings.expert, **found.versions}  # fmt: skip
        return {"gym": facts}
