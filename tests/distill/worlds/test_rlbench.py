"""RLBench as a world, from stored demonstrations to the report, with two worker processes; resumed, and what it writes."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageSequence

from distill.checks import validate
from distill.config import Config
from distill.evaluation.rollouts import Episode
from distill.graphs.run import run_graph
from distill.presets import apply_preset
from distill.runtime.context import Context
from distill.runtime.stage import Stage
from distill.worlds import open_world
from distill.worlds.clips import write_clip
from distill.worlds.episode_files import write_eval_info
from distill.worlds.rlbench import TRIES, RLBenchWorld
from distill.worlds.rlbench_clips import FILMED, FPS, HOLD, _pictures
from distill.worlds.simulators import Simulators
from envs.demonstrations import Demonstrations
from envs.process.worker import WorkerFailure, WorkerStartError
from envs.rlbench.env import RLBenchEnv
from envs.rlbench.spec import RLBenchSettings
from envs.rlbench.starts import draw_start, split_starts

Store = Callable[..., Path]

TINY = """\
# a tiny run from stored demonstrations
processes: 1
task: rlbench/take_ball
rlbench: {program: replay, dataset: FOLDER, workers: 2, max_steps: 12}
demos: {train_starts: 3}
observation: {sources: [state, points], state_names: [x_m, y_m, z_m, gripper_open], num_points: 32, image_size: [24, 24],
  width: 16, channels: 16}
teacher: {observation_steps: 2, training_steps: 6, batch_size: 8, warmup_steps: 2, candidates: 1, width: 16, depth: 1, heads: 2,
  horizon: 8, patch: 8}
sample: {num_hypotheses: 4, num_steps: 2, num_observations: 12, shard_size: 16, batch_size: 8}
student: {objectives: [chamfer], training_steps: 4, batch_size: 4, num_latents: 2, codes: 0, code_shares: false,
  latent_size: 2, warmup_steps: 1, candidates: 1}
evaluate: {test_starts: 2, validation_starts: 2, teacher_steps: [2], execution_horizon: 4, fidelity_observations: 4,
  fidelity_samples: 6, latency_calls: 20, latency_warmup: 1, baselines: []}
"""


@pytest.fixture(scope="module")
def config(store_rlbench: Store, tmp_path_factory: pytest.TempPathFactory) -> Config:
    folder = tmp_path_factory.mktemp("rlbench_run")
    root = store_rlbench(tasks=["take_ball"], episodes=7, frames=7)
    (folder / "tiny.yaml").write_text(TINY.replace("FOLDER", str(root)))
    made = replace(apply_preset(Config(), folder / "tiny.yaml"), runs_dir=folder / "runs")
    validate(made)
    return made


@pytest.fixture(scope="module")
def finished(config: Config) -> Path:
    """The folder of a whole run."""
    whole(config)
    return config.folder


def whole(config: Config) -> None:
    """Do everything that is missing, to the report."""
    with contextlib.closing(open_world(config)) as world, Context.open(config.folder) as context:
        run_graph(config, world).run(context)


@pytest.fixture
def world(config: Config) -> Iterator[RLBenchWorld]:
    """The world, whose simulators draw nothing."""
    with contextlib.closing(RLBenchWorld(config, open_world(config).spec, None)) as opened:
        yield opened


CONTEXT = Context(Path(), SimpleNamespace(is_main_process=False), alone=True)  # type: ignore[arg-type]
"""One process by itself."""


def read(path: Path) -> Any:
    return json.loads(path.read_text())


# -- from demonstrations to the report ---------------------------------------------------------------------------------


def test_a_run_goes_from_demonstrations_to_the_report(finished: Path) -> None:
    report = read(finished / "report" / "report.json")
    assert finished.name == "rlbench-take_ball-seed0" and report["task"]["name"] == "rlbench/take_ball"
    assert [policy["name"] for policy in report["policies"]] == ["teacher_2", "chamfer"]
    for policy in report["policies"]:
        assert policy["episodes"] == 2 and policy["latency"]["calls"] == 20
        assert sum(policy["failures"].values()) == 2 - policy["successes"]
    assert report["data"]["episodes"] == 3 and report["scene"] == [] and report["tasks"] == []
    assert report["rlbench"]["program"] == "replay" and "not simulated" in report["task"]["summary"]


def test_the_oracle_stands_beside_the_policies(finished: Path) -> None:
    report = read(finished / "report" / "report.json")
    assert (report["oracle"]["successes"], report["oracle"]["episodes"], report["oracle"]["failures"]) == (2, 2, {})
    line = next(line for line in (finished / "report" / "report.md").read_text().splitlines() if line.startswith("| Oracle"))
    assert "100.0 %" in line and "2 of 2" in line and "demonstrations, replayed" in line
    assert "Oracle" in (finished / "report" / "report.html").read_text()
    episodes = read(finished / "evaluate" / "oracle" / "result.json")["episodes"]
    assert [(episode["index"], episode["success"]) for episode in episodes] == [(0, True), (1, True)]


def test_the_first_test_episodes_are_shown(finished: Path) -> None:
    clips = read(finished / "report" / "report.json")["clips"]
    assert clips == {name: f"clips/{name}.webp" for name in ("oracle", "teacher_2", "chamfer")}
    with Image.open(finished / "report" / clips["oracle"]) as clip:
        assert clip.size == (24, 24)
        shown_ms = 0
        for frame in ImageSequence.Iterator(clip):
            frame.load()  # only then it tells for how long
            shown_ms += frame.info["duration"]
    assert shown_ms == 1000 / FPS * FILMED * (1 + HOLD)  # the stored pictures of an episode are all alike here
    page = (finished / "report" / "report.html").read_text()
    assert "What RLBench&#39;s front camera saw" in page or "What RLBench's front camera saw" in page
    assert "<b>Oracle</b>" in page


def test_a_clip_is_read_back_picture_by_picture(tmp_path: Path) -> None:
    dark, light = np.zeros((16, 16, 3), np.uint8), np.full((16, 16, 3), 200, np.uint8)
    write_clip(tmp_path / "clip.webp", [dark, dark, light, dark, dark, dark], FPS)  # its file joins what is alike
    shown = [int(picture.mean() > 100) for picture in _pictures(tmp_path / "clip.webp")]
    assert shown == [0, 0, 1, 0, 0, 0, *[0] * HOLD] and _pictures(tmp_path / "nothing.webp") == []


def test_stored_episodes_are_shared_out_without_overlap(finished: Path) -> None:
    spec_starts = Demonstrations.load(finished / "demos").episode_start[:, 1].tolist()
    held_out = Demonstrations.load(finished / "starts" / "held_out").episode_start[:, 1].tolist()
    test = Demonstrations.load(finished / "starts" / "test").episode_start[:, 1].tolist()
    assert (spec_starts, held_out, test) == ([0, 1, 2], [3, 4], [5, 6])
    assert not list(finished.rglob("episodes"))  # where single ones were kept on the way


def test_every_episode_is_a_line_and_lerobots_keys_are_written(finished: Path) -> None:
    folder = finished / "evaluate" / "chamfer"
    rows = [json.loads(line) for line in (folder / "test-0.jsonl").read_text().splitlines()]
    assert sorted(row["episode"]["index"] for row in rows) == [0, 1] and all(row["seconds"] > 0 for row in rows)
    assert {tuple(row["start"]) for row in rows} == {(0, 5, 0, 1), (0, 6, 0, 1)}
    told = read(folder / "eval_info.json")
    assert set(told) == {"per_task", "per_group", "overall"} and set(told["per_group"]) == {"rlbench"}
    overall, result = told["overall"], read(folder / "result.json")["summary"]
    assert overall["n_episodes"] == 2 and overall["n_success"] == result["successes"]
    assert overall["pc_success"] == 50 * result["successes"] == 100 * overall["avg_sum_reward"]
    low, high = overall["pc_success_ci95"]
    assert 0 <= low <= overall["pc_success"] <= high <= 100 and overall["eval_s"] > 0
    assert told["per_task"][0]["task"] == "take_ball" and len(told["per_task"][0]["metrics"]["successes"]) == 2


def test_a_second_go_does_nothing_again(finished: Path, config: Config, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("manifest.json")}
    # where it is made is no part of a key
    moved = replace(config, rlbench=replace(config.rlbench, python="/elsewhere/python", workers=1))
    whole(moved)
    assert {path: path.stat().st_mtime_ns for path in finished.rglob("manifest.json")} == before


# -- several simulators, failures, going on ----------------------------------------------------------------------------


def _roll(world: RLBenchWorld, folder: Path, work: Callable[[RLBenchEnv, int], Episode], count: int = 4) -> list[Episode]:
    return world._episodes(CONTEXT, None, count, folder, "test", "policy", work)


def test_episodes_that_are_written_down_are_not_done_again(world: RLBenchWorld, tmp_path: Path) -> None:
    rows = [{"seconds": 1.0, "episode": asdict(Episode(index=index, success=True, mode="solved"))} for index in (0, 2)]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "test-5.jsonl").write_text(text + '{"seconds": 1.0, "episode": {"index": 3, "succ')  # cut off by a crash
    done: list[int] = []

    def work(env: RLBenchEnv, index: int) -> Episode:
        done.append(index)
        return Episode(index=index, failure="timeout")

    episodes = _roll(world, tmp_path, work)
    assert sorted(done) == [1, 3]
    assert [(each.index, each.success, each.failure) for each in episodes] == [
        (0, True, ""), (1, False, "timeout"), (2, True, ""), (3, False, "timeout")
    ]  # fmt: skip
    assert len((tmp_path / "test-0.jsonl").read_text().splitlines()) == 2
    assert [each.index for each in _roll(world, tmp_path, work)] == [0, 1, 2, 3] and sorted(done) == [1, 3]


def test_a_killed_simulator_costs_its_episode_only(world: RLBenchWorld, tmp_path: Path) -> None:
    pids: dict[int, int | None] = {}

    def work(env: RLBenchEnv, index: int) -> Episode:
        try:
            env.reset(options={"start": [0, index, 0, 0]})
            pids[index] = env.worker.pid
            if index == 1:
                assert env.worker.pid is not None
                os.kill(env.worker.pid, signal.SIGKILL)
            for action in env.plan("solved", np.random.default_rng(0)):
                _, _, terminated, _, info = env.step(action)
                if terminated:
                    return Episode(index=index, success=info["is_success"], failure=info["failure"])
        except WorkerFailure as failure:
            return Episode(index=index, failure=failure.name)
        return Episode(index=index, failure="timeout")

    episodes = _roll(world, tmp_path, work)
    assert [each.failure for each in episodes] == ["", "crash", "", ""]
    assert [each.success for each in episodes] == [True, False, True, True]
    assert len(set(pids.values())) >= 2  # two simulators, or one and its successor


def test_two_simulators_work_at_once(world: RLBenchWorld, tmp_path: Path) -> None:
    meet = threading.Barrier(2, timeout=30)

    def work(env: RLBenchEnv, index: int) -> Episode:
        meet.wait()  # passes only while another episode is being done
        return Episode(index=index, success=True)

    assert all(episode.success for episode in _roll(world, tmp_path, work))


def test_a_simulator_that_does_not_start_ends_the_work_at_once(world: RLBenchWorld, tmp_path: Path) -> None:
    settings = replace(world.config.rlbench, python="/nowhere/python")
    world.simulators = Simulators(replace(world.config, rlbench=settings), None)
    with pytest.raises(WorkerStartError, match="/nowhere/python can not be started"):
        _roll(world, tmp_path, lambda env, index: Episode(index=int(env.reset(seed=0)[0] == index)))
    assert (tmp_path / "test-0.jsonl").read_text() == ""


def test_what_stops_the_work_waits_for_no_simulator_and_keeps_nothing_of_them(world: RLBenchWorld, tmp_path: Path) -> None:
    started = threading.Event()

    def work(env: RLBenchEnv, index: int) -> Episode:
        if index == 0:
            started.wait(30)
            raise KeyboardInterrupt
        env.worker.start()
        started.set()
        try:
            env.worker.request({"command": "reset", "start": [0, 0, 0, 0]})
            while True:
                env.worker.request({"command": "describe"})
        except WorkerFailure as failure:
            return Episode(index=index, failure=failure.name)

    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        _roll(world, tmp_path, work, count=2)
    assert time.monotonic() - began < 30 and (tmp_path / "test-0.jsonl").read_text() == ""


# -- starts, keys, presets ---------------------------------------------------------------------------------------------


def test_live_starts_are_drawn_by_split_and_a_longer_list_begins_with_the_shorter() -> None:
    settings = RLBenchSettings(variations=(0, 2))
    short = split_starts("rlbench/x", settings, 0, {"train": 3, "test": 2})
    long = split_starts("rlbench/x", settings, 0, {"train": 5, "test": 4, "validation": 1})
    np.testing.assert_array_equal(short["train"], long["train"][:3])
    assert long["train"][:, 0].tolist() == [0, 2, 0, 2, 0] and set(long["train"][:, 1]) == {-1}
    seeds = np.concatenate([starts[:, 2] for starts in long.values()])
    assert len(set(seeds.tolist())) == 10
    other = split_starts("rlbench/x", settings, 1, {"train": 3})["train"]
    assert not np.array_equal(other, short["train"])
    with pytest.raises(ValueError, match="splits must be of"):
        split_starts("rlbench/x", settings, 0, {"trian": 3})


def test_stored_starts_take_the_variations_in_turn_and_are_never_too_few(tmp_path: Path) -> None:
    for variation, numbers in ((0, (0, 1, 2)), (3, (4,))):
        for number in numbers:
            (tmp_path / "t" / f"variation{variation}" / "episodes" / f"episode{number}").mkdir(parents=True)
    settings = RLBenchSettings(dataset=str(tmp_path), variations=(0, 3))
    starts = split_starts("rlbench/t", settings, 0, {"train": 2, "test": 2})
    assert starts["train"][:, :2].tolist() == [[0, 0], [3, 4]] and starts["test"][:, :2].tolist() == [[0, 1], [0, 2]]
    with pytest.raises(ValueError, match="holds 4 demonstrations of t .* together 5: take fewer"):
        split_starts("rlbench/t", settings, 0, {"train": 4, "test": 1})


def test_several_tasks_are_taken_in_turn(tmp_path: Path) -> None:
    starts = split_starts("rlbench/a+b", RLBenchSettings(variations=(0, 3)), 0, {"train": 5})["train"]
    assert starts[:, 4].tolist() == [0, 1, 0, 1, 0] and starts[:, 0].tolist() == [0, 0, 3, 3, 0]
    for task in ("a", "b"):
        for number in range(2):
            (tmp_path / task / "variation0" / "episodes" / f"episode{number}").mkdir(parents=True)
    stored = split_starts("rlbench/a+b", RLBenchSettings(dataset=str(tmp_path)), 0, {"train": 3, "test": 1})
    assert stored["train"].tolist() == [[0, 0, 0, 0, 0], [0, 0, 0, 0, 1], [0, 1, 0, 0, 0]]
    assert stored["test"].tolist() == [[0, 1, 0, 0, 1]]


def test_success_is_told_by_task_too(tmp_path: Path) -> None:
    episodes = [Episode(index=0, success=True), Episode(index=1, failure="crash"), Episode(index=2, failure="timeout")]
    rows = [{"start": [0, -1, 5, 1, index % 2], "seconds": 2.0, "episode": asdict(episodes[index])} for index in range(3)]
    (tmp_path / "test-0.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    write_eval_info("rlbench/a+b", tmp_path, episodes)
    told = read(tmp_path / "eval_info.json")
    assert [(row["task"], row["metrics"]["pc_success"], row["metrics"]["n_episodes"]) for row in told["per_task"]] == [
        ("a", 50.0, 2), ("b", 0.0, 1)
    ]  # fmt: skip
    assert told["overall"]["eval_s"] == 6.0 and told["overall"]["pc_success"] == pytest.approx(100 / 3)
    assert told["per_task"][1]["metrics"]["failures"] == ["crash"]


def stages(config: Config) -> list[Stage[Any]]:
    return run_graph(config, open_world(config)).stages


def test_what_changes_a_rollout_changes_the_keys_and_nothing_else_does(config: Config) -> None:
    def keys(**changes: Any) -> dict[str, str]:
        made = replace(config, rlbench=replace(config.rlbench, **changes))
        return {stage.name: stage.key for stage in stages(made)}

    assert keys(python="x", workers=5, start_s=1.0, step_s=2.0, restart_after=9) == keys()
    assert "evaluate/oracle" in keys()
    for change in ({"arm": "ik"}, {"collision_checking": True},
                   {"per_action_collision_checking": True}, {"subsample": 2}, {"voxel_m": 0.02},
                   {"renderer": "opengl3"}):  # fmt: skip
        assert all(key != keys()[name] for name, key in keys(**change).items())
    plain = Config()
    other = replace(plain, rlbench=RLBenchSettings(arm="ik", workers=9))
    assert [stage.key for stage in stages(plain)] == [stage.key for stage in stages(other)]
    assert "evaluate/oracle" not in {stage.name for stage in stages(plain)}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("demos: {per_mode: 2}", "demos.per_mode: got 2, expected 1"),
        ("real_time: {latency_ms: [50.0]}", "rlbench/open_drawer does not support real-time evaluation"),
        ("rlbench: {arm: fly}", "rlbench.arm: unknown 'fly'"),
        ("rlbench: {workers: 0}", "must be at least 1"),
        ("observation: {state_names: [tool_x_m]}", "observation.state_names: unknown 'tool_x_m'"),
    ],
)
def test_mistakes_in_a_config_are_told_before_any_work(tmp_path: Path, line: str, message: str) -> None:
    (tmp_path / "wrong.yaml").write_text(f"task: rlbench/open_drawer\n{line}\n")
    with pytest.raises(ValueError, match=message):
        validate(apply_preset(Config(), tmp_path / "wrong.yaml"))


def test_the_small_sizes_fit_every_task() -> None:
    folder = Path(__file__).parents[3] / "configs" / "rlbench"
    for path in folder.glob("*.yaml"):
        if path.stem != "small":
            small = apply_preset(apply_preset(Config(), path), folder / "small.yaml")
            validate(small)
            assert small.teacher.horizon == 32 and small.observation.num_points == 384


class Unsolvable:
    """A simulator whose expert fails so many times before it shows something."""

    def __init__(self, times: int) -> None:
        self.left, self.asked = times, []

    def demonstrate(self, start: np.ndarray, seeing: bool) -> str:
        self.asked.append(start.tolist())
        if self.left:
            self.left -= 1
            raise WorkerFailure("planner_error", "no path")
        return "shown"


def test_a_start_without_a_demonstration_is_replaced_and_said_to_be(capsys: pytest.CaptureFixture[str]) -> None:
    config = Config(task="rlbench/reach_target")
    world = RLBenchWorld.open(config)
    start, failures, env = draw_start(config.task, config.rlbench, 0, "train", 3, 0), [], Unsolvable(2)
    assert world._demonstration(env, start, "train", 3, True, failures) == "shown"
    assert failures == ["planner_error"] * 2 and len({tuple(asked) for asked in env.asked}) == 3
    said = capsys.readouterr().err.splitlines()
    told = "  train, start 3: no demonstration (planner_error), try"
    assert said == [f"{told} {attempt} of {TRIES}" for attempt in (1, 2)]
    with pytest.raises(ValueError, match="no demonstration of rlbench/reach_target at start 3 of train: planner_error: no"):
        world._demonstration(Unsolvable(TRIES), start, "train", 3, True, [])
