"""A gymnasium environment as a world: from demonstrations to the report, failures as outcomes, resumed, converted, recorded."""

from __future__ import annotations

import contextlib
import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from distill import api
from distill.checks import validate
from distill.cli.command import read_command
from distill.config import Config
from distill.presets import apply_preset
from distill.runtime.context import Context
from distill.worlds import open_world
from distill.worlds.contract import RolloutJob
from distill.worlds.gym import GymWorld
from envs.demonstrations import Demonstrations
from envs.gym.settings import GymSettings
from teachers import load_teacher
from tests.envs.gym.conftest import MAPPING, POINT

TINY = f"""\
# a tiny run in the test environment
processes: 1
task: passing
world: {{gym: "{POINT}", mapping: MAPPING, expert: "{POINT}:expert", workers: 2}}
demos: {{train_starts: 4}}
teacher: {{observation_steps: 1, training_steps: 60, batch_size: 16, warmup_steps: 2, candidates: 1, width: 16, depth: 1,
  heads: 2, horizon: 8, patch: 8}}
sample: {{num_hypotheses: 4, num_steps: 2, num_observations: 16, shard_size: 16, batch_size: 8}}
student: {{objectives: [chamfer], training_steps: 4, batch_size: 4, num_latents: 2, codes: 0, code_shares: false,
  latent_size: 2, warmup_steps: 1, candidates: 1}}
evaluate: {{test_starts: 4, validation_starts: 2, teacher_steps: [2], execution_horizon: 4, fidelity_observations: 4,
  fidelity_samples: 6, latency_modes: [], frontier_samples: [], latency_calls: 20, latency_warmup: 1, baselines: []}}
"""
MAIN = Context(Path(), SimpleNamespace(is_main_process=True), alone=True)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Config:
    folder = tmp_path_factory.mktemp("gym_run")
    (folder / "mapping.yaml").write_text(MAPPING)
    (folder / "tiny.yaml").write_text(TINY.replace("MAPPING", str(folder / "mapping.yaml")))
    made = replace(apply_preset(Config(), folder / "tiny.yaml"), runs_dir=folder / "runs")
    validate(made)
    return made


@pytest.fixture(scope="module")
def finished(config: Config) -> Path:
    """The folder of a whole run."""
    return api.run(config).folder


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def test_a_run_goes_from_demonstrations_to_the_report(finished: Path) -> None:
    report = read(finished / "report/report.json")
    assert finished.name == "passing-seed0" and report["task"]["name"] == "passing"
    assert report["data"]["episodes"] == 8 and report["data"]["frames"] == 64  # 4 starts, both modes, 8 steps
    for policy in report["policies"]:
        assert policy["episodes"] == 4 and sum(policy["failures"].values()) == 4 - policy["successes"]
        assert policy["score"] is not None and policy["jerk"] is not None
    assert report["gym"]["gym"] == str(POINT) and report["gym"]["numpy"] == np.__version__
    text = (finished / "report/report.md").read_text()
    assert "| Score |" in text and "| Environment |" in text


def test_demonstrations_show_both_modes_from_every_start(finished: Path) -> None:
    shown = Demonstrations.load(finished / "demos")
    assert shown.start_index.tolist() == [0, 0, 1, 1, 2, 2, 3, 3] and shown.episode_mode.tolist() == [0, 1] * 4
    assert len(set(shown.episode_start[:, 0].tolist())) == 4
    assert np.allclose(np.sign(shown.action[:, 0]), np.repeat([-1, 1] * 4, 8))


def test_the_first_test_episodes_are_filmed(finished: Path) -> None:
    clips = read(finished / "report/report.json")["clips"]
    assert set(clips) == {"teacher_2", "chamfer"}
    assert all((finished / "report" / path).stat().st_size for path in clips.values())


def test_a_finished_run_is_not_done_again(finished: Path, config: Config) -> None:
    before = (finished / "evaluate/chamfer/result.json").stat().st_mtime_ns
    api.run(config)
    assert (finished / "evaluate/chamfer/result.json").stat().st_mtime_ns == before


def test_starts_are_seeds_the_same_for_every_policy_and_none_is_in_two_splits(config: Config) -> None:
    world = GymWorld.open(config)
    starts = {split: world.drawn_starts(0, split, 50)[:, 0] for split in ("train", "validation", "test")}
    assert all(len(set(each.tolist())) == 50 for each in starts.values())
    assert not set(starts["train"]) & set(starts["test"]) and not set(starts["validation"]) & set(starts["test"])
    assert world.drawn_starts(0, "test", 10)[:, 0].tolist() == starts["test"][:10].tolist()
    assert world.drawn_starts(1, "test", 10)[:, 0].tolist() != starts["test"][:10].tolist()


class Right:
    """A policy that moves to the right. asked: number of queries."""

    name, evaluations = "right", 1

    def __init__(self, teacher: Any) -> None:
        self.module, self.shape, self.asked = teacher, teacher.shape, 0

    def encode(self, observation: Any) -> Any:
        self.asked += 1
        return torch.zeros(1)

    def draw(self, count: int, generator: torch.Generator) -> Any:
        return torch.zeros(count, 1)

    def head(self, condition: Any, draws: Any) -> Any:
        return torch.ones(*draws.shape[:2], self.shape.horizon, 1)


def rolled_out(config: Config, finished: Path, folder: Path, starts: list[float]) -> tuple[list[Any], Right]:
    policy = Right(load_teacher(finished / "teach"))
    job = RolloutJob("test", "test", folder, 4, 0)
    with contextlib.closing(open_world(config)) as world:
        return world.roll_out(MAIN, policy, np.array(starts)[:, None], job), policy  # type: ignore[arg-type]


def test_a_worker_that_dies_is_an_outcome_and_no_other_episode_suffers(config: Config, finished: Path, tmp_path: Path) -> None:
    dying = replace(config, world=replace(config.world, make=("fails=dies",)))
    episodes, policy = rolled_out(dying, finished, tmp_path, [1.0, 2.0, 3.0, 4.0])
    assert [(episode.index, episode.success, episode.failure) for episode in episodes] == [
        (0, False, "crash"), (1, True, ""), (2, False, "crash"), (3, True, ""),
    ]  # fmt: skip
    assert [episode.steps for episode in episodes] == [3, 8, 3, 8] and policy.asked == 6
    again, policy = rolled_out(dying, finished, tmp_path, [1.0, 2.0, 3.0, 4.0])  # each was stored as it ended
    assert again == episodes and policy.asked == 0


def test_what_decides_a_result_is_in_its_key(config: Config, tmp_path: Path) -> None:
    world = open_world(config)
    other = tmp_path / "mapping.yaml"
    other.write_text(MAPPING.replace("info.is_success", "reward >= 0.5"))
    longer = tmp_path / "longer.yaml"
    longer.write_text(MAPPING.replace("max_steps: 12", "max_steps: 20"))
    for changed in ({"make": ("limited=9",)}, {"mapping": str(other)}, {"expert": f"{POINT}:clumsy"}, {"expert_noise": 0.1}):
        assert open_world(replace(config, world=replace(config.world, **changed))).origin != world.origin  # type: ignore[arg-type]
    last = open_world(replace(config, world=replace(config.world, mapping=str(longer), workers=1)))
    assert last.origin == world.origin and last.rollout_settings != world.rollout_settings


def test_recorded_demonstrations_take_the_experts_place(config: Config, finished: Path, tmp_path: Path) -> None:
    settings = replace(config.world, expert="", demonstrations=str(finished / "demos"))
    with contextlib.closing(open_world(replace(config, world=settings, runs_dir=tmp_path))) as world:
        world.record_demonstrations(MAIN, tmp_path / "train")
        world.record_starts(MAIN, tmp_path)
    folders = (finished / "demos", tmp_path / "train", tmp_path / "held_out")
    shown, train, held_out = (Demonstrations.load(path) for path in folders)
    assert (train.num_episodes, held_out.num_episodes) == (7, 1)
    assert np.array_equal(np.concatenate([train.state, held_out.state]), shown.state)
    assert np.array_equal(np.concatenate([train.action, held_out.action]), shown.action)


def test_recorded_demonstrations_of_another_size_are_refused(config: Config, finished: Path, tmp_path: Path) -> None:
    (tmp_path / "mapping.yaml").write_text(MAPPING.replace(", goal: [goal_m]", ""))
    settings = replace(config.world, expert="", demonstrations=str(finished / "demos"), mapping=str(tmp_path / "mapping.yaml"))
    with pytest.raises(ValueError, match="has states of 3 numbers, the mapping gives 2"):
        open_world(replace(config, world=settings)).record_demonstrations(MAIN, tmp_path / "train")


def test_a_run_without_demonstrations_says_what_to_add(config: Config, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="neither an expert nor recorded demonstrations"):
        open_world(replace(config, world=replace(config.world, expert=""))).record_demonstrations(MAIN, tmp_path)


def test_an_expert_that_never_succeeds_stops_the_run_in_one_line(config: Config, tmp_path: Path) -> None:
    clumsy = replace(config, world=replace(config.world, expert=f"{POINT}:clumsy"))
    with (
        contextlib.closing(open_world(clumsy)) as world,
        pytest.raises(ValueError, match=r"the expert of passing failed 10 times .*task_failed"),
    ):
        world.record_demonstrations(MAIN, tmp_path)


def test_a_conversion_measures_success_in_the_environment(config: Config, finished: Path, tmp_path: Path) -> None:
    world = {"gym": str(POINT), "mapping": config.world.mapping}
    result = api.convert(
        teacher=finished / "teach", observations=finished / "demos", out=tmp_path / "out", task="passing", world=world,
        sample={"num_observations": 8, "num_hypotheses": 3}, student={"training_steps": 4},
        evaluate={"test_starts": 4, "validation_starts": 2, "teacher_steps": [2], "fidelity_observations": 2,
                  "fidelity_samples": 6, "latency_modes": (), "frontier_samples": (), "latency_calls": 3, "latency_warmup": 1,
                  "execution_horizon": 4},
    )  # fmt: skip
    assert [policy.episodes for policy in result.policies] == [4, 4]
    mine = read(finished / "evaluate/teacher_2/result.json")["summary"]
    theirs = read(tmp_path / "out/evaluate/teacher_2/result.json")["summary"]
    assert (mine["successes"], mine["failures"]) == (theirs["successes"], theirs["failures"])  # the same seeds


def test_the_flags_name_the_environment_and_the_run_is_named_after_it(config: Config) -> None:
    flags = ["--world.gym", str(POINT), "--world.mapping", config.world.mapping]
    _, _, read_config = read_command([*flags, "--world.make", "deaf=true"])
    assert (read_config.task, read_config.folder) == ("point", Path("runs/point-seed0"))
    assert read_config.world == GymSettings(gym=str(POINT), mapping=config.world.mapping, make=("deaf=true",))
    assert read_command([*flags, "--task", "mine"])[2].task == "mine"
    with pytest.raises(ValueError, match="world.gym: got none"):
        read_command(["--world.mapping", config.world.mapping])
    with pytest.raises(ValueError, match="does not support real-time"):
        read_command([*flags, "--real-time.latency-ms", "10"])
