"""RLBench in the pipeline: what its demonstrations, starts, rollouts and oracle are, with several simulators at once."""

from __future__ import annotations

import json
import os
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, replace
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from tqdm import tqdm

import envs
from distill.evaluation.policies import Policy
from distill.evaluation.rollouts import Episode, Monitor, run_wave, summarise, to_json
from distill.evaluation.statistics import wilson_interval
from distill.observation import cameras_for
from distill.store.manifest import write_json
from distill.worlds.embedded import HELD_OUT, save_starts
from distill.worlds.rlbench_clips import filmed
from envs.cameras.specs import CameraSettings
from envs.demonstrations import Demonstration, Demonstrations
from envs.process.worker import WorkerFailure
from envs.rlbench.env import RLBenchEnv
from envs.rlbench.rig import unify_camera_spec
from envs.rlbench.spec import task_names, which_task
from envs.rlbench.starts import draw_start, split_starts
from students.selection import Selection

if TYPE_CHECKING:
    from distill.config import Config
    from distill.stages.pipeline import Pipeline

T = TypeVar("T")

TRIES = 10
"""A live start that can not be demonstrated is replaced by another one so many times."""
HOLD_STEPS = 10
"""The oracle holds its last action so long: some tasks come to rest after the last move."""


# -- several simulators at once ----------------------------------------------------------------------------------------


class Simulators:
    """The simulators of this process, which stay from stage to stage while they are asked for with the same cameras."""

    def __init__(self, config: Config) -> None:
        self._config, self._cameras = config, config.cameras()
        self._made: list[RLBenchEnv] = []

    def take(self, cameras: CameraSettings | None, count: int) -> list[RLBenchEnv]:
        """So many environments, each with a process of its own, that look only when they are asked to."""
        if cameras != self._cameras:
            self.close()
            self._cameras = cameras
        while len(self._made) < count:
            self._made.append(envs.make_rlbench(self._config.task, self._config.rlbench, cameras))
            self._made[-1].cameras_on_demand = True
        return self._made[:count]

    def close(self) -> None:
        """End them all; the next `take` starts others."""
        for env in self._made:
            env.close()
        self._made = []


def side_by_side(
    pipeline: Pipeline, cameras: CameraSettings | None, items: Sequence[int], work: Callable[[RLBenchEnv, int], T],
    keep: Callable[[int, T], None],
) -> None:  # fmt: skip
    """`work` on every item, as many at a time as there are simulators; `keep` gets what it gave, one at a time.

    The first exception ends all of it, Ctrl-C too; what was not finished then is not kept.
    """
    count = min(pipeline.config.rlbench.workers, len(items))
    if not count:
        return
    stopped, keeping, free = threading.Event(), threading.Lock(), SimpleQueue[RLBenchEnv]()
    made = pipeline.simulators.take(cameras, count)
    for env in made:
        free.put(env)

    def one(item: int) -> None:
        env = free.get()
        try:
            result = work(env, item)
            with keeping:
                if not stopped.is_set():
                    keep(item, result)
        finally:
            free.put(env)

    threads = ThreadPoolExecutor(count)
    try:
        for future in as_completed([threads.submit(one, item) for item in items]):
            future.result()
    except BaseException:
        stopped.set()
        threads.shutdown(wait=False, cancel_futures=True)
        for env in made:
            env.interrupt()
        raise
    finally:
        threads.shutdown()
        if stopped.is_set():
            pipeline.simulators.close()


# -- demonstrations and starts -----------------------------------------------------------------------------------------


def record_demonstrations(pipeline: Pipeline, folder: Path) -> None:
    """The training demonstrations, stored or live."""
    config = pipeline.config
    count = config.demos.episodes or config.demos.train_starts
    starts = split_starts(config.task, config.rlbench, config.seed, {**_counts(pipeline), "train": count})["train"]
    _record(pipeline, folder, starts, "train", seeing=True)


def make_starts(pipeline: Pipeline, folder: Path) -> None:
    """Validation and test starts; held-out observations; the test starts' demonstrations, for the oracle.

    A live start that RLBench's planner does not solve is replaced: nothing could tell then whether it can be solved.
    """
    config, run = pipeline.config, pipeline.run
    drawn = split_starts(config.task, config.rlbench, config.seed, _counts(pipeline))
    validation = drawn["validation"]
    _record(pipeline, folder / "held_out", validation[:HELD_OUT], "validation", seeing=True)
    _record(pipeline, folder / "test", drawn["test"], "test", seeing=False)
    if run.is_main:
        held_out, test = (Demonstrations.load(folder / name, pipeline.spec) for name in ("held_out", "test"))
        validation[: held_out.num_episodes] = held_out.episode_start
        save_starts(pipeline, folder, held_out, validation, test.episode_start, np.random.default_rng([config.seed, 11]))
    run.accelerator.wait_for_everyone()


def _counts(pipeline: Pipeline) -> dict[str, int]:
    evaluate, demos = pipeline.config.evaluate, pipeline.config.demos
    return {"train": demos.episodes or demos.train_starts, "validation": evaluate.validation_starts,
            "test": evaluate.test_starts}  # fmt: skip


def _record(pipeline: Pipeline, folder: Path, starts: np.ndarray, split: str, seeing: bool) -> None:
    """Demonstrations from the starts into `folder`. Each is kept as soon as it is there, so that a stopped run goes on."""
    run, kept = pipeline.run, folder / "episodes"
    mine = [number for number in run.my_share(range(len(starts))) if not (kept / f"{number}" / "info.json").is_file()]
    failures: list[str] = []
    told: dict[str, Any] = {}
    with tqdm(total=len(mine), desc=f"demos ({split})", unit="episode", disable=not run.is_main) as bar:

        def work(env: RLBenchEnv, number: int) -> Demonstration:
            shown = _demonstration(pipeline, env, starts[number], split, number, seeing, failures)
            told.update(told or env.describe())
            return shown

        def keep(number: int, shown: Demonstration) -> None:
            half = kept / f".{number}.partial"
            shutil.rmtree(half, ignore_errors=True)
            Demonstrations.from_episodes(pipeline.spec, [shown], [number]).save(half)
            half.rename(kept / f"{number}")
            bar.update()

        kept.mkdir(parents=True, exist_ok=True)
        side_by_side(pipeline, pipeline.cameras, mine, work, keep)
    run.accelerator.wait_for_everyone()
    failed, simulators = run.gather(failures), [each for each in run.gather([told]) if each]
    if run.is_main:
        parts = [Demonstrations.load(kept / f"{number}", pipeline.spec) for number in range(len(starts))]
        join(parts).save(folder)
        write_json(folder / "recording.json", {
            "episodes": len(parts), "expert_failures_repeated": len(failed), "failures": failed,
            "simulator": simulators[0]["versions"] if simulators else {},
        })  # fmt: skip
        shutil.rmtree(kept)
    run.accelerator.wait_for_everyone()


def _demonstration(
    pipeline: Pipeline, env: RLBenchEnv, start: np.ndarray, split: str, number: int, seeing: bool, failures: list[str]
) -> Demonstration:
    """The demonstration of a start, or of the first of its replacements that has one. ValueError when none has."""
    config = pipeline.config
    for attempt in range(TRIES):
        if attempt:
            start = draw_start(config.task, config.rlbench, config.seed, split, number, attempt)
        try:
            return env.demonstrate(start, seeing)
        except WorkerFailure as failure:
            failures.append(failure.name)
            last = failure
            if start[1] >= 0:  # a stored one is no better the second time
                break
            # minutes can go by so, and a bar that stands still says nothing
            line = f"  {split}, start {number}: no demonstration ({failure.name}), try {attempt + 1} of {TRIES}"
            tqdm.write(line, file=sys.stderr)
    raise ValueError(
        f"got no demonstration of {config.task} at start {number} of {split}: {last}; `distill.py doctor --rlbench` says what "
        "is wrong with this machine"
    )


def join(parts: Sequence[Demonstrations]) -> Demonstrations:
    """One after the other; the start index is each one's place. ValueError when their cameras differ."""
    episodes: list[Demonstration] = []
    for part in parts:
        if part.cameras is not None and parts[0].cameras is not None:
            part = replace(part, cameras=unify_camera_spec(part.cameras, parts[0].cameras.spec))
        assert part.num_episodes == 1
        mode = part.spec.modes[int(part.episode_mode[0])]
        episodes.append(Demonstration(part.state, part.action, part.tool, part.episode_start[0], mode, part.cameras))
    return Demonstrations.from_episodes(parts[0].spec, episodes, range(len(episodes)))


# -- rollouts ----------------------------------------------------------------------------------------------------------


def roll_out(
    pipeline: Pipeline, policy: Policy, starts: np.ndarray, seed: int, folder: Path, name: str, selection: Selection,
    monitor: Monitor | None,
) -> list[Episode]:  # fmt: skip
    """Every start once; each episode is a line of ``<name>-<process>.jsonl`` as soon as it has ended, and is not done again."""
    every = pipeline.config.evaluate.execution_horizon

    def work(env: RLBenchEnv, index: int) -> Episode:
        try:
            with filmed(env, folder, name, index):
                return run_wave(policy, [env], starts, [index], every, seed, 0, selection, monitor)[0]
        except WorkerFailure as failure:  # at the reset, or while the cameras looked
            return Episode(index=index, failure=failure.name)

    return _episodes(pipeline, cameras_for(policy.shape, pipeline.cameras), len(starts), folder, name, policy.name, work)


def replay_demonstrations(pipeline: Pipeline, folder: Path) -> None:
    """The oracle: the test starts' own demonstrations, by the same action mode. No policy can be asked to do better."""
    shown = Demonstrations.load(pipeline.starts() / "test", pipeline.spec)

    def work(env: RLBenchEnv, index: int) -> Episode:
        episode = Episode(index=index)
        actions = shown.action[shown.episode_index == index]
        try:
            with filmed(env, folder, "test", index):
                env.reset(options={"start": shown.episode_start[index]})
                for action in [*actions, *[actions[-1]] * HOLD_STEPS]:
                    _, _, terminated, truncated, info = env.step(action)
                    episode.steps += 1
                    episode.path.append([round(float(value), 4) for value in env.tool_position()[:2]])
                    if terminated or truncated:
                        episode.success, episode.failure, episode.mode = info["is_success"], info["failure"], info["mode"]
                        return episode
                episode.failure = "timeout"
        except WorkerFailure as failure:
            episode.failure = failure.name
        return episode

    episodes = _episodes(pipeline, pipeline.cameras, shown.num_episodes, folder, "test", "oracle", work)
    if pipeline.run.is_main:
        write_json(folder / "result.json", {
            "policy": "oracle", "summary": summarise(pipeline.spec, episodes), "episodes": to_json(episodes),
        })  # fmt: skip
        write_eval_info(pipeline, folder, episodes, "test")
    solved = sum(episode.success for episode in episodes)
    pipeline.run.say(f"  oracle: {solved} of {len(episodes)} demonstrations succeed when they are replayed")


def _episodes(
    pipeline: Pipeline, cameras: CameraSettings | None, count: int, folder: Path, name: str, title: str,
    work: Callable[[RLBenchEnv, int], Episode],
) -> list[Episode]:  # fmt: skip
    run = pipeline.run
    mine, done = run.my_share(range(count)), read_episodes(folder, name)
    with (
        tqdm(total=len(mine), desc=f"{title} ({name})", unit="episode", disable=not run.is_main) as bar,
        (folder / f"{name}-{run.share.rank}.jsonl").open("a") as lines,
    ):

        def one(env: RLBenchEnv, index: int) -> dict[str, Any]:
            began = time.monotonic()
            episode = work(env, index)
            return {"start": env.last_start, "seconds": round(time.monotonic() - began, 3), "episode": asdict(episode)}

        def keep(index: int, row: dict[str, Any]) -> None:
            done[index] = Episode(**row["episode"])
            lines.write(json.dumps(row) + "\n")
            lines.flush()
            os.fsync(lines.fileno())
            bar.update()

        bar.update(sum(index in done for index in mine))
        side_by_side(pipeline, cameras, [index for index in mine if index not in done], one, keep)
    gathered = run.gather([done[index] for index in mine])
    return sorted(gathered, key=lambda episode: episode.index)


def read_episodes(folder: Path, name: str) -> dict[int, Episode]:
    """The episodes that are written down, by their index; a line that was cut off by a crash is none."""
    return {row["episode"]["index"]: Episode(**row["episode"]) for row in _rows(folder, name)}


def _rows(folder: Path, name: str) -> Iterable[dict[str, Any]]:
    for path in sorted(folder.glob(f"{name}-*.jsonl")):
        for line in path.read_text().splitlines():
            try:
                yield json.loads(line)
            except json.JSONDecodeError:
                continue


def write_eval_info(pipeline: Pipeline, folder: Path, episodes: Sequence[Episode], name: str) -> None:
    """``eval_info.json`` with LeRobot's keys: per_task, per_group, overall. Only failures have no reward."""
    rows = {row["episode"]["index"]: row for row in _rows(folder, name)}
    seconds = {index: row["seconds"] for index, row in rows.items()}
    names = task_names(pipeline.config.task)
    of_task = {index: which_task(np.array(row["start"]), names)[0] for index, row in rows.items()}
    group, per_task = pipeline.config.task.partition("/")[0], []
    for number, task in enumerate(names):
        mine = [episode for episode in episodes if of_task[episode.index] == number]
        if mine:
            rewards = [float(episode.success) for episode in mine]
            metrics = {"sum_rewards": rewards, "max_rewards": rewards, "successes": [episode.success for episode in mine],
                       "failures": [episode.failure for episode in mine], **_figures(mine, seconds)}  # fmt: skip
            per_task.append({"task_group": group, "task": task, "task_id": number, "metrics": metrics})
    overall = _figures(episodes, seconds)
    write_json(folder / "eval_info.json", {"per_task": per_task, "per_group": {group: overall}, "overall": overall})


def _figures(episodes: Sequence[Episode], seconds: Mapping[int, float]) -> dict[str, Any]:
    """LeRobot's aggregates of a set of episodes, with the 95 % Wilson interval of the success."""
    successes, count = sum(episode.success for episode in episodes), len(episodes)
    low, high = wilson_interval(successes, count)
    took = sum(seconds[episode.index] for episode in episodes)
    return {
        "avg_sum_reward": successes / count, "avg_max_reward": successes / count, "pc_success": 100 * successes / count,
        "pc_success_ci95": [100 * low, 100 * high], "n_success": successes, "n_episodes": count, "eval_s": took,
        "eval_ep_s": took / count, "video_paths": [],
    }  # fmt: skip
