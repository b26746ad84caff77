"""RLBench as a world: live or stored demonstrations, rollouts in parallel simulators, the oracle, clips."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
from tqdm import tqdm

import envs
from distill.config import Config
from distill.evaluation.policies import Policy
from distill.evaluation.rollouts import Episode, run_batch, summarise, to_json
from distill.evaluation.statistics import wilson_interval
from distill.observation import cameras_for
from distill.runtime.context import Context
from distill.store.manifest import write_json
from distill.worlds.contract import Clip, RolloutJob
from distill.worlds.episode_files import task_rows, write_eval_info
from distill.worlds.pooled import DEMONSTRATIONS, PooledWorld
from distill.worlds.recorded_clips import filmed, join_clips
from distill.worlds.simulators import Simulators
from distill.worlds.starts import HELD_OUT, HELD_OUT_FOLDER, TEST_FOLDER, write_starts
from envs.cameras.frames import CameraFrames
from envs.cameras.specs import CameraSettings, CamerasSpec
from envs.demonstrations import Demonstration, Demonstrations
from envs.process.worker import WorkerFailure
from envs.rlbench.env import RLBenchEnv
from envs.rlbench.rig import unify_camera_spec
from envs.rlbench.spec import names_rlbench_task, task_names
from envs.rlbench.starts import draw_start, split_starts
from envs.specs import TaskSpec

VERSION = 1
"""Increased when demonstrations or rollouts of RLBench change, so that old results are not reused."""
TRIES = 10
"""How often a live start that cannot be demonstrated is replaced."""
HOLD_STEPS = 10
"""Steps for which the oracle repeats its last action: some tasks settle after the last move."""


class RLBenchWorld(PooledWorld[RLBenchEnv]):
    """``rlbench/<task>``. Placements are reproducible, episodes are not: planners and IK seed from the clock."""

    has_oracle: ClassVar[bool] = True
    repeats_demonstrations: ClassVar[bool] = False
    named_by_preset: ClassVar[bool] = False

    def __init__(self, config: Config, spec: TaskSpec, cameras: CameraSettings | None) -> None:
        self.config, self.spec, self.cameras = config, spec, cameras
        self.simulators = Simulators(
            lambda cameras: envs.make_rlbench(config.task, config.rlbench, cameras), config.rlbench.workers, cameras
        )

    @classmethod
    def supports(cls, task: str) -> bool:
        return names_rlbench_task(task)

    @classmethod
    def task_names(cls) -> Sequence[str]:
        return ["rlbench/<task>"]

    @classmethod
    def open(cls, config: Config) -> Self:
        cameras, settings = config.observation.camera_settings(), config.rlbench
        if cameras is not None:  # the cloud is voxelised first, so random points cover surfaces evenly
            cameras = replace(cameras, sampling="random", crop_low=settings.crop_low, crop_high=settings.crop_high)
        return cls(config, envs.task_spec(config.task, settings), cameras)

    def check(self, config: Config) -> None:
        config.rlbench.check()
        super().check(config)

    @property
    def shows_robot(self) -> bool:
        return not self.config.rlbench.without_robot

    @property
    def state_shows_scene(self) -> bool:
        """Where objects are named, and the policies observe the positions of all of them."""
        objects, observed = self.config.rlbench.objects, self.config.observation.state_names or self.spec.state_names
        return bool(objects) and {f"{name}_{axis}_m" for name in objects for axis in "xyz"} <= set(observed)

    @property
    def origin(self) -> Mapping[str, Any]:
        task = {name: value for name, value in asdict(self.spec).items() if name != "max_steps"}
        return {"task": task, "envs_version": VERSION, "seed": self.config.seed,
                "rlbench": self.config.rlbench.recording()}  # fmt: skip

    @property
    def rollout_settings(self) -> Mapping[str, Any]:
        return {"rlbench_rollouts": self.config.rlbench.rollouts()}

    # -- demonstrations and starts ----------------------------------------------------------------------------------

    @property
    def _counts(self) -> dict[str, int]:
        evaluate, demos = self.config.evaluate, self.config.demos
        return {"train": demos.episodes or demos.train_starts, "validation": evaluate.validation_starts,
                "test": evaluate.test_starts}  # fmt: skip

    def _splits(self) -> dict[str, np.ndarray]:
        return split_starts(self.config.task, self.config.rlbench, self.config.seed, self._counts)

    def record_demonstrations(self, context: Context, folder: Path) -> None:
        """The training demonstrations, stored or live."""
        self._record(context, folder, self._splits()["train"], "train", with_cameras=True)

    def record_starts(self, context: Context, folder: Path) -> None:
        """Validation and test starts; held-out observations; the test starts' demonstrations, for the oracle.

        A live start that RLBench's planner does not solve is replaced, as it might not be solvable at all.
        """
        config, drawn = self.config, self._splits()
        validation = drawn["validation"]
        self._record(context, folder / HELD_OUT_FOLDER, validation[:HELD_OUT], "validation", with_cameras=True)
        self._record(context, folder / TEST_FOLDER, drawn["test"], "test", with_cameras=False)
        if context.is_main:
            held_out, test = (Demonstrations.load(folder / name, self.spec) for name in (HELD_OUT_FOLDER, TEST_FOLDER))
            validation[: held_out.num_episodes] = held_out.episode_start
            write_starts(folder, held_out, validation, test.episode_start, config.evaluate.fidelity_observations,
                         config.teacher.observation_steps, np.random.default_rng([config.seed, 11]))  # fmt: skip
        context.wait()

    def _record(self, context: Context, folder: Path, starts: np.ndarray, split: str, with_cameras: bool) -> None:
        """Record demonstrations from the starts into `folder`."""
        self.record_each(
            context, folder, range(len(starts)), split,
            lambda env, number: self._demonstration(env, starts[number], split, number, with_cameras),
        )  # fmt: skip

    def versions_of(self, env: RLBenchEnv) -> dict[str, str]:
        found: dict[str, str] = env.describe()["versions"]
        return found

    def unify(self, frames: CameraFrames, spec: CamerasSpec) -> CameraFrames:
        return unify_camera_spec(frames, spec)

    def _demonstration(
        self, env: RLBenchEnv, start: np.ndarray, split: str, number: int, with_cameras: bool
    ) -> tuple[Demonstration, list[str]]:
        """The demonstration of a start, or of its first solvable replacement, and the names of the failures before it.

        Raises ValueError when none is solvable.
        """
        config = self.config
        failures: list[str] = []
        for attempt in range(TRIES):
            if attempt:
                start = draw_start(config.task, config.rlbench, config.seed, split, number, attempt)
            try:
                return env.demonstrate(start, with_cameras), failures
            except WorkerFailure as failure:
                failures.append(failure.name)
                last = failure
                if start[1] >= 0:  # a stored one cannot improve
                    break
                # this can take minutes, during which the progress bar stands still
                line = f"  {split}, start {number}: no demonstration ({failure.name}), try {attempt + 1} of {TRIES}"
                tqdm.write(line, file=sys.stderr)
        raise ValueError(
            f"got no demonstration of {config.task} at start {number} of {split}: {last}; `flow2one doctor --rlbench` "
            "checks this machine"
        )

    # -- rollouts ---------------------------------------------------------------------------------------------------

    def roll_out(self, context: Context, policy: Policy, starts: np.ndarray, job: RolloutJob) -> list[Episode]:
        """Each episode is appended to ``<name>-<process>.jsonl`` as it ends, and is not repeated."""

        limit = self._max_steps(context.folder / DEMONSTRATIONS)

        def work(env: RLBenchEnv, index: int) -> Episode:
            env.max_steps = limit
            try:
                with filmed(env, job.folder, job.name, index):
                    return run_batch(
                        policy, [env], starts, [index], job.execution_horizon, job.seed, 0, job.selection, job.monitor
                    )[0]
            except WorkerFailure as failure:  # at the reset, or while rendering
                return Episode(index=index, failure=failure.name)

        cameras = cameras_for(policy.shape, self.cameras)
        return self.run_each(context, cameras, len(starts), job.folder, job.name, policy.name, work)

    def replay_demonstrations(self, context: Context, starts: Path, folder: Path) -> None:
        """With the same action mode as the policies: an upper bound for all of them."""
        demonstrations = Demonstrations.load(starts / TEST_FOLDER, self.spec)
        limit = self._max_steps(context.folder / DEMONSTRATIONS)

        def work(env: RLBenchEnv, index: int) -> Episode:
            env.max_steps = limit
            actions = demonstrations.action[demonstrations.episode_index == index]
            with filmed(env, folder, "test", index):
                return replay(env, index, demonstrations.episode_start[index], actions)

        episodes = self.run_each(context, self.cameras, demonstrations.num_episodes, folder, "test", "oracle", work)
        if context.is_main:
            write_json(folder / "result.json", {
                "policy": "oracle", "summary": summarise(self.spec, episodes), "episodes": to_json(episodes),
            })  # fmt: skip
            self.write_evaluation(folder, episodes)
        solved = sum(episode.success for episode in episodes)
        context.say(f"  oracle: {solved} of {len(episodes)} demonstrations succeed when they are replayed")

    def _max_steps(self, demonstrations: Path) -> int:
        """Actions per episode: as set, or twice those of the longest training demonstration in this folder."""
        path = demonstrations / "recording.json"
        if self.config.rlbench.max_steps or not path.is_file():
            return self.spec.max_steps
        longest = json.loads(path.read_text()).get("longest")
        return 2 * int(longest) if longest else self.spec.max_steps

    def write_evaluation(self, folder: Path, episodes: Sequence[Episode]) -> None:
        write_eval_info(self.config.task, folder, episodes)

    # -- report -----------------------------------------------------------------------------------------------------

    def clips(self, starts: np.ndarray, shown: Sequence[Clip], job: RolloutJob, folder: Path) -> dict[str, str]:
        """Recorded during the rollouts, as RLBench episodes are not reproducible."""
        return join_clips(shown, folder)

    def report_facts(self, demonstrations: Path, evaluated: Mapping[str, Path]) -> dict[str, Any]:
        """RLBench settings, the oracle's successes, and success by task when there are several."""
        recording = json.loads((demonstrations / "recording.json").read_text())
        summary = json.loads((evaluated["Oracle"] / "result.json").read_text())["summary"]
        low, high = wilson_interval(summary["successes"], summary["episodes"])
        oracle = {"episodes": summary["episodes"], "successes": summary["successes"], "success_low": low, "success_high": high,
                  "failures": summary["failures"], "refused_actions": summary["refused_actions"],
                  "episodes_with_refusals": summary["episodes_with_refusals"]}  # fmt: skip
        evaluations = {label: json.loads((folder / "eval_info.json").read_text()) for label, folder in evaluated.items()}
        tasks = task_rows(evaluations) if len(task_names(self.config.task)) > 1 else []
        return {"oracle": oracle, "rlbench": {**vars(self.config.rlbench), **recording["simulator"],
                                               "max_steps": self._max_steps(demonstrations)},
                "tasks": tasks}  # fmt: skip


def replay(env: RLBenchEnv, index: int, start: np.ndarray, actions: np.ndarray) -> Episode:
    """The episode of a demonstration's actions `[L, A]` from its start, the last one held for `HOLD_STEPS`."""
    episode = Episode(index=index, failure="timeout")
    try:
        env.reset(options={"start": start})
        for action in [*actions, *[actions[-1]] * HOLD_STEPS]:
            if replay_action(env, episode, action):
                break
    except WorkerFailure as failure:
        episode.failure = failure.name
    return episode


def replay_action(env: RLBenchEnv, episode: Episode, action: np.ndarray) -> bool:
    """One action of the oracle, recorded in the episode; whether that has ended.

    A refused action is repeated, as the oracle has no other: the planner searches at random.
    """
    while True:
        _, _, terminated, truncated, info = env.step(action)
        episode.refused += info["refused"] != ""
        if not info["refused"] or terminated:
            break
    episode.steps += 1
    episode.path.append([round(float(value), 4) for value in env.tool_position()[:2]])
    if terminated or truncated:
        episode.success, episode.failure, episode.mode = info["is_success"], info["failure"], info["mode"]
    return terminated or truncated
