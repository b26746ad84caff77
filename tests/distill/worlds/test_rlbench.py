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
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
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
from distill.worlds.contract import RolloutJob
from distill.worlds.episode_files import read_episodes, write_eval_info
from distill.worlds.recorded_clips import FILMED, FPS, HOLD, _pictures
from distill.worlds.rlbench import TRIES, RLBenchWorld, replay_action
from envs.demonstrations import Demonstration, Demonstrations
from envs.process.worker import WorkerFailure, WorkerStartError
from envs.rlbench.env import RLBenchEnv
from envs.rlbench.spec import RLBenchSettings
from envs.rlbench.starts import draw_start, split_starts
from envs.specs import STATE
from students.selection import Selection
from teachers.networks.shapes import PolicyShape

Store = Callable[..., Path]
PRESETS = Path(__file__).parents[3] / "configs" / "rlbench"

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
  fidelity_samples: 6, latency_modes: [], frontier_samples: [], latency_calls: 20, latency_warmup: 1, baselines: []}
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
"""One process by itself, which writes no results of all."""
MAIN = Context(Path(), SimpleNamespace(is_main_process=True), alone=True)  # type: ignore[arg-type]


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
    return world.run_each(CONTEXT, None, count, folder, "test", "policy", work)


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
    world.simulators = RLBenchWorld(replace(world.config, rlbench=settings), world.spec, None).simulators
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


# -- refused actions ---------------------------------------------------------------------------------------------------


class Reaching:
    """A policy of poses: of each four candidates the second is far out of reach, and the first unless `first_within`."""

    name, evaluations = "reaching", 1

    def __init__(self, world: RLBenchWorld, first_within: bool) -> None:
        spec, self.module, self.queries = world.spec, torch.nn.Linear(1, 1), 0
        self.module.normaliser = SimpleNamespace(unnormalise_action=lambda chunks: chunks)
        self.shape = PolicyShape(
            task=spec.name, state_names=spec.state_names, action_names=spec.action.names,
            action_weights=spec.action.weights, dt_s=spec.dt_s, observation_steps=1, horizon=8, patch=4,
        )  # fmt: skip
        x_m = torch.tensor([0.3 if first_within else 1.25, 1.25, 0.3, 0.3])
        self.candidates_NTA = torch.zeros(4, 8, 10)
        self.candidates_NTA[:, :, 0], self.candidates_NTA[:, :, 2] = x_m[:, None], 0.4
        self.candidates_NTA[:, :, 3] = self.candidates_NTA[:, :, 7] = 1.0  # no rotation

    def draw(self, samples: int, generator: torch.Generator) -> torch.Tensor:
        return torch.zeros(samples, 1)

    def encode(self, observation: Any) -> torch.Tensor:
        self.queries += 1
        return observation[STATE]

    def head(self, condition: torch.Tensor, draws: torch.Tensor) -> torch.Tensor:
        return self.candidates_NTA[None, : draws.shape[1]]


@pytest.mark.parametrize(
    ("first_within", "candidates", "failure", "steps", "refused", "queries"),
    [
        (True, 1, "timeout", 12, 0, 3),  # nothing is refused
        (False, 4, "timeout", 12, 6, 3),  # two of each query's candidates are, before the third is accepted
        (False, 1, "planner_error", 1, 6, 6),  # its only candidate is, at five more queries, too
    ],
)
def test_refused_actions_are_tried_again_and_counted(
    world: RLBenchWorld, tmp_path: Path, first_within: bool, candidates: int, failure: str, steps: int, refused: int,
    queries: int,
) -> None:  # fmt: skip
    policy = Reaching(world, first_within)
    starts = split_starts(world.config.task, world.config.rlbench, 0, {"test": 1})["test"]
    job = RolloutJob("test", "validation", tmp_path, 4, 0, Selection("outlier_rejection", candidates))
    episode = world.roll_out(CONTEXT, policy, starts, job)[0]  # type: ignore[arg-type]
    assert (episode.failure, episode.steps, episode.refused) == (failure, steps, refused)
    assert episode.queries == policy.queries == queries
    row = json.loads((tmp_path / "validation-0.jsonl").read_text())
    assert row["episode"] == asdict(episode)
    write_eval_info(world.config.task, tmp_path, [episode], "validation")
    assert read(tmp_path / "eval_info.json")["per_task"][0]["metrics"]["refused_actions"] == [refused]
    del row["episode"]["refused"]  # as it was written before refused actions were counted
    (tmp_path / "validation-0.jsonl").write_text(json.dumps(row) + "\n")
    assert read_episodes(tmp_path, "validation")[0] == replace(episode, refused=0)


def test_the_oracle_repeats_a_refused_action(world: RLBenchWorld) -> None:
    env = RLBenchEnv(world.config.task, world.config.rlbench)
    episode, within, outside = Episode(0), np.zeros(10), np.zeros(10)
    within[[0, 2, 3, 7]], outside[[0, 2, 3, 7]] = (0.3, 0.4, 1, 1), (1.25, 0.4, 1, 1)
    try:
        env.reset(options={"start": [0, 1, 0, 0]})
        asked: list[int] = []
        reach = env._execute
        env._execute = lambda action: (asked.append(1), (False, "planner_error") if len(asked) < 3 else reach(action))[1]  # type: ignore[method-assign]
        assert not replay_action(env, episode, within)
        assert (episode.steps, episode.refused, episode.failure, len(asked)) == (1, 2, "", 3)
        assert replay_action(env, episode, outside)
        assert (episode.steps, episode.refused, episode.failure) == (2, 2 + 6, "planner_error")
    finally:
        env.close()


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
    episodes = [Episode(index=0, success=True, refused=3), Episode(index=1, failure="crash", refused=6),
                Episode(index=2, failure="timeout")]  # fmt: skip
    rows = [{"start": [0, -1, 5, 1, index % 2], "seconds": 2.0, "episode": asdict(episodes[index])} for index in range(3)]
    (tmp_path / "test-0.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    write_eval_info("rlbench/a+b", tmp_path, episodes)
    told = read(tmp_path / "eval_info.json")
    assert [(row["task"], row["metrics"]["pc_success"], row["metrics"]["n_episodes"]) for row in told["per_task"]] == [
        ("a", 50.0, 2), ("b", 0.0, 1)
    ]  # fmt: skip
    assert told["overall"]["eval_s"] == 6.0 and told["overall"]["pc_success"] == pytest.approx(100 / 3)
    assert told["per_task"][1]["metrics"]["failures"] == ["crash"]
    assert [row["metrics"]["refused_actions"] for row in told["per_task"]] == [[3, 0], [6]]
    assert (told["overall"]["n_refused_actions"], told["overall"]["n_episodes_with_refusals"]) == (9, 2)


def stages(config: Config) -> list[Stage[Any]]:
    return run_graph(config, open_world(config)).stages


def test_what_changes_a_rollout_changes_the_keys_and_nothing_else_does(config: Config) -> None:
    def keys(**changes: Any) -> dict[str, str]:
        made = replace(config, rlbench=replace(config.rlbench, **changes))
        return {stage.name: stage.key for stage in stages(made)}

    assert keys(python="x", workers=5, start_s=1.0, step_s=2.0, restart_after=9) == keys()
    assert "evaluate/oracle" in keys()
    for change in ({"arm": "ik"}, {"per_action_collision_checking": True}, {"subsample": 2}, {"voxel_m": 0.02},
                   {"renderer": "opengl3"}):  # fmt: skip
        assert all(key != keys()[name] for name, key in keys(**change).items())
    # what only rollouts depend on leaves what was recorded and trained; checkpoints are chosen by rollouts
    for change in ({"collision_checking": True}, {"retries": 0}, {"max_steps": 70}):
        same = {name for name, key in keys(**change).items() if key == keys()[name]}
        assert same == {"demos", "starts", "train/teacher"}
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
        ("rlbench: {objects: [lid, lid]}", "rlbench.objects: got .*expected different names"),
        ("rlbench: {objects: [lid]}\nobservation: {rotate_deg: 9.0, state_names: [x_m, y_m, z_m]}", "no point cloud"),
        ("rlbench: {objects: [lid], dataset: d}", "rlbench.objects: got .*stored demonstrations"),
        ("rlbench: {workers: 0}", "must be at least 1"),
        ("observation: {state_names: [tool_x_m]}", "observation.state_names: unknown 'tool_x_m'"),
        ("observation: {sources: [state, points], state_names: [x_m, y_m, z_m], displace_m: 0.02}",
         "observation.displace_m: got 0.02, but the clouds of rlbench/open_drawer show the robot"),
    ],
)
def test_mistakes_in_a_config_are_told_before_any_work(tmp_path: Path, line: str, message: str) -> None:
    (tmp_path / "wrong.yaml").write_text(f"task: rlbench/open_drawer\n{line}\n")
    with pytest.raises(ValueError, match=message):
        validate(apply_preset(Config(), tmp_path / "wrong.yaml"))


def test_from_the_state_no_camera_is_opened_and_every_object_is_observed() -> None:
    for path in (PRESETS / "reach_target_state.yaml", PRESETS / "open_drawer_state.yaml"):
        config = apply_preset(Config(), path)
        world = open_world(config)
        assert world.cameras is None and world.state_shows_scene and config.rlbench.objects
        shape = config.shape(world.spec)
        assert shape.encoder is not None and shape.encoder.sources == (STATE,) and shape.frame == "tool"
        # of an object that is not observed nobody knows where it moves
        fewer = replace(config.observation, state_names=config.observation.state_names[:10])
        assert not open_world(replace(config, observation=fewer)).state_shows_scene
        assert not open_world(replace(config, rlbench=RLBenchSettings(), observation=fewer)).state_shows_scene


def test_the_small_sizes_fit_every_task() -> None:
    for path in PRESETS.glob("*.yaml"):
        if path.stem not in ("small", "state"):  # the latter is no preset, but a part of some
            small = apply_preset(apply_preset(Config(), path), PRESETS / "small.yaml")
            validate(small)
            assert small.teacher.horizon == 16 and small.observation.num_points == 512


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
    start, env = draw_start(config.task, config.rlbench, 0, "train", 3, 0), Unsolvable(2)
    assert world._demonstration(env, start, "train", 3, True) == ("shown", ["planner_error"] * 2)
    assert len({tuple(asked) for asked in env.asked}) == 3
    said = capsys.readouterr().err.splitlines()
    told = "  train, start 3: no demonstration (planner_error), try"
    assert said == [f"{told} {attempt} of {TRIES}" for attempt in (1, 2)]
    with pytest.raises(ValueError, match="no demonstration of rlbench/reach_target at start 3 of train: planner_error: no"):
        world._demonstration(Unsolvable(TRIES), start, "train", 3, True)


# -- an interrupted recording ------------------------------------------------------------------------------------------


class Stumbling(RLBenchEnv):
    """Live starts, from stored demonstrations; those of number `index` fail as often as `fails` says, at most once each."""

    fails: ClassVar[dict[int, list[str]]] = {}
    stop_at: ClassVar[int] = -1
    waiting: ClassVar[threading.Event]

    def demonstrate(self, start: np.ndarray, with_cameras: bool = True) -> Demonstration:
        number = int(start[2])
        if number == self.stop_at:
            assert self.waiting.wait(30)  # until the other simulator is busy
            raise KeyboardInterrupt
        if self.fails.get(number):
            raise WorkerFailure(self.fails[number].pop(0), "as told")
        if self.stop_at >= 0 and number == 3:
            self.worker.start()
            os.kill(self.worker.pid, signal.SIGSTOP)  # type: ignore[arg-type]
            self.waiting.set()
        return super().demonstrate(start, with_cameras)


def test_an_interrupted_recording_counts_its_failures_and_no_others(
    world: RLBenchWorld, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Start 0 fails twice and ends, then Ctrl-C comes at start 2, while another simulator is at start 3."""
    settings = world.config.rlbench
    monkeypatch.setattr("envs.make_rlbench", lambda task, rlbench, cameras: Stumbling(task, rlbench))
    # every attempt at start n of a split is start n, so that the fake knows it
    draw = lambda task, rlbench, seed, split, number, attempt=0: np.array([0, -1, number, 0], float)  # noqa: E731
    monkeypatch.setattr("distill.worlds.rlbench.draw_start", draw)
    starts = np.stack([draw("", settings, 0, "train", number) for number in range(4)])
    Stumbling.fails, Stumbling.stop_at = {0: ["demo_error", "hang"], 1: ["crash"]}, 2
    Stumbling.waiting = threading.Event()
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        world._record(CONTEXT, tmp_path, starts, "train", False)
    assert time.monotonic() - began < 30
    said = [line.split("(")[1].split(")")[0] for line in capsys.readouterr().err.splitlines() if "no demonstration" in line]
    assert sorted(said) == ["crash", "demo_error", "hang"]  # and none for the simulator that was interrupted
    assert sorted(path.name for path in (tmp_path / "episodes").iterdir()) == ["0", "1"]
    assert read(tmp_path / "episodes" / "0" / "recording.json")["failures"] == ["demo_error", "hang"]
    Stumbling.stop_at, Stumbling.fails = -1, {0: ["error"], 2: ["placement_error"]}  # start 0 is not recorded again
    world._record(MAIN, tmp_path, starts, "train", False)
    assert read(tmp_path / "recording.json") == {
        "episodes": 4, "expert_failures_repeated": 4, "failures": ["demo_error", "hang", "crash", "placement_error"],
        "longest": 5, "simulator": {"numpy": np.__version__},
    }  # fmt: skip
    assert Demonstrations.load(tmp_path).num_episodes == 4 and not (tmp_path / "episodes").exists()
