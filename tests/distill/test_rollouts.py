"""Rollouts with made-up policies in the real simulator: whose randomness, how often planned, every outcome named."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import envs
from distill.rollouts import Episode, episode_generator, run_episodes, summarise, to_json
from envs.demonstrations import stored_starts
from envs.specs import STATE, ActionSpec, TaskSpec
from teachers.contract import Observation
from teachers.networks import PolicyShape

STARTS = stored_starts("avoid", 0, "test", 8)


class _Body(nn.Module):
    """Stands where a network would: a device, and statistics that change nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.normaliser = self

    def unnormalise_action(self, chunks: Tensor) -> Tensor:
        return chunks


@dataclass
class Scripted:
    """A policy whose chunk is a function of the present states `[B, O, S]` and its randomness `[B, T, A]`."""

    chunk: Callable[[Tensor, Tensor], Tensor]
    shape: PolicyShape
    name: str = "scripted"
    evaluations: int = 1
    module: nn.Module = field(default_factory=_Body)
    seen: list[Tensor] = field(default_factory=list)

    def draw(self, samples: int, generator: torch.Generator) -> Tensor:
        return torch.randn(samples, self.shape.horizon, self.shape.action_size, generator=generator)

    def encode(self, observation: Observation) -> Tensor:
        self.seen.append(observation[STATE].clone())
        return observation[STATE]

    def head(self, condition: Tensor, draws: Tensor) -> Tensor:
        assert draws.shape[:2] == (len(condition), 1)
        return self.chunk(condition, draws[:, 0])[:, None]


def _wander(states: Tensor, draws: Tensor) -> Tensor:
    """Forwards from where the tool is, shaken at random: element by element, so exactly the same in every batch."""
    ahead = torch.linspace(0.02, 0.3, draws.shape[1])[None, :, None] * torch.tensor([1.0, 0.0])
    return states[:, -1:] + ahead + 0.02 * draws


def _roll(policy: Scripted, indices: list[int], execution_horizon: int = 4, **keywords) -> list[Episode]:
    return run_episodes("avoid", policy, STARTS, indices, execution_horizon, 5, **keywords)  # type: ignore[arg-type]


# -- whose randomness ----------------------------------------------------------------------------------------------


def test_an_episode_is_the_same_alone_in_company_and_in_any_order(small_shape: PolicyShape) -> None:
    together = {e.index: e for e in _roll(Scripted(_wander, small_shape), list(range(6)), keep_actions=9)}
    assert len({tuple(map(tuple, e.path)) for e in together.values()}) == 6
    assert len({e.steps for e in together.values()}) > 1  # so episodes did leave the batch at different times
    alone = [_roll(Scripted(_wander, small_shape), [index], keep_actions=9)[0] for index in (4, 1)]
    pairs = _roll(Scripted(_wander, small_shape), [5, 3, 2, 0], keep_actions=9, at_once=2)
    for episode in [*alone, *pairs]:
        assert episode == together[episode.index]


def test_a_real_network_gives_the_same_episodes_alone_and_in_company(make_teacher) -> None:
    from distill.policies import TeacherPolicy

    policy = TeacherPolicy(make_teacher(), 2)
    together, alone = _roll(policy, [0, 1, 2]), [_roll(policy, [index])[0] for index in range(3)]  # type: ignore[arg-type]
    for first, second in zip(together, alone, strict=True):
        assert (first.steps, first.failure) == (second.steps, second.failure)
        np.testing.assert_allclose(first.path, second.path, atol=2e-3)


def test_episodes_have_generators_of_their_own() -> None:
    draws = {float(torch.rand(1, generator=episode_generator(seed, index))) for seed in (0, 1) for index in range(50)}
    assert len(draws) == 100
    assert episode_generator(3, 7).initial_seed() == episode_generator(3, 7).initial_seed()


# -- how often planned, and from what ------------------------------------------------------------------------------


@pytest.mark.parametrize("execution_horizon", [1, 3, 8])
def test_the_policy_is_asked_once_an_execution_horizon(small_shape: PolicyShape, execution_horizon: int) -> None:
    policy = Scripted(_wander, small_shape)
    episodes = _roll(policy, [0, 1, 2], execution_horizon)
    assert len(policy.seen) == max(math.ceil(e.steps / execution_horizon) for e in episodes)
    # the batch holds the episodes that are still going on at that step
    going = [sum(e.steps > call * execution_horizon for e in episodes) for call in range(len(policy.seen))]
    assert [len(states) for states in policy.seen] == going


@pytest.mark.parametrize("execution_horizon", [1, 3, 8])
def test_the_first_actions_of_a_chunk_are_carried_out_in_their_order(
    small_shape: PolicyShape, execution_horizon: int
) -> None:
    made: list[Tensor] = []

    def noting(states: Tensor, draws: Tensor) -> Tensor:
        made.append(_wander(states, draws)[0])
        return made[-1][None]

    episode = _roll(Scripted(noting, small_shape), [0], execution_horizon, keep_actions=1)[0]
    expected = torch.cat([chunk[:execution_horizon] for chunk in made])[: episode.steps]
    assert np.array(episode.actions).shape == (episode.steps, 2)
    np.testing.assert_allclose(episode.actions, expected.numpy(), rtol=1e-6)


def test_the_policy_sees_the_last_observations_the_first_one_repeated(small_shape: PolicyShape) -> None:
    policy = Scripted(_wander, small_shape)
    episode = _roll(policy, [2], 3, keep_actions=9)[0]
    env = envs.make("avoid")
    observation, _ = env.reset(options={"start": STARTS[2]})
    states = [observation[STATE], observation[STATE]]
    places = [env.tool_position()[:2]]
    for action in episode.actions:
        observation, *_ = env.step(np.array(action, dtype=np.float32))
        states.append(observation[STATE])
        places.append(env.tool_position()[:2])
    for call, seen in enumerate(policy.seen):
        np.testing.assert_array_equal(seen[0].numpy(), np.stack(states[3 * call : 3 * call + 2]))
    np.testing.assert_allclose(episode.path, places, atol=6e-5)  # written with four digits


def test_actions_are_kept_for_the_first_episodes_only(small_shape: PolicyShape) -> None:
    episodes = _roll(Scripted(_wander, small_shape), [0, 1, 2, 3], keep_actions=2)
    assert [len(e.actions) == e.steps for e in episodes] == [True, True, False, False]
    assert all(not e.actions for e in episodes[2:]) and all(len(e.path) == e.steps + 1 for e in episodes)


# -- outcomes ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", ["avoid", "handles"])
def test_a_policy_that_replays_the_experts_plan_succeeds_in_the_experts_mode(
    task: str, small_shape: PolicyShape
) -> None:
    spec, starts = envs.task_spec(task), stored_starts(task, 0, "test", 2)
    env = envs.make(task)
    for index, mode in enumerate((spec.modes[0], spec.modes[-1])):
        env.reset(options={"start": starts[index]})
        path = torch.from_numpy(env.plan(mode, np.random.default_rng(0)))
        path = torch.cat([path, path[-1:].expand(spec.max_steps, -1)])
        chunks = iter(path[: 5 * (len(path) // 5)].split(5))
        shape = PolicyShape(
            task=task, state_names=spec.state_names, action_names=spec.action.names,
            action_weights=spec.action.weights, dt_s=spec.dt_s, observation_steps=1, horizon=8, patch=4,
        )  # fmt: skip
        policy = Scripted(lambda _, draws, chunks=chunks: torch.cat([next(chunks), draws[0, 5:] * 0])[None], shape)
        episode = run_episodes(task, policy, starts, [index], 5, 0)[0]  # type: ignore[arg-type]
        assert (episode.success, episode.failure, episode.mode, episode.index) == (True, "", mode, index)
        assert len(episode.carried) == (episode.steps + 1 if task == "handles" else 0)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_chunk_that_is_not_finite_fails_its_own_episode_with_a_name(small_shape: PolicyShape, value: float) -> None:
    def sick(states: Tensor, draws: Tensor) -> Tensor:
        chunk = _wander(states, draws)
        left = (states[:, 0, 1] > 0) & (states[:, -1, 0] > 0.32)  # some episodes, and after the first plan
        chunk[left, -1] = value  # the last action, which would not even be carried out
        return chunk

    healthy = {e.index: e for e in _roll(Scripted(_wander, small_shape), list(range(8)))}
    episodes = _roll(Scripted(sick, small_shape), list(range(8)))
    failed = [e for e in episodes if e.failure == "policy_error"]
    assert 0 < len(failed) < 8
    for episode in failed:
        assert not episode.success and episode.mode == "" and episode.steps % 4 == 0
        assert episode.path == healthy[episode.index].path[: episode.steps + 1]
    assert all(e == healthy[e.index] for e in episodes if e.failure != "policy_error")
    summary = summarise(envs.task_spec("avoid"), episodes)
    assert summary["episodes"] == 8 and summary["failures"]["policy_error"] == len(failed)
    assert summary["successes"] + sum(summary["failures"].values()) == 8


def test_a_policy_that_stands_still_times_out(small_shape: PolicyShape) -> None:
    episode = _roll(Scripted(lambda states, draws: states[:, -1:].expand(-1, 8, -1), small_shape), [0], 8)[0]
    assert (episode.success, episode.failure, episode.steps) == (False, "timeout", envs.task_spec("avoid").max_steps)


def test_progress_and_no_episodes_at_all(small_shape: PolicyShape) -> None:
    told: list[int] = []
    policy = Scripted(lambda states, draws: torch.full((len(states), 8, 2), torch.nan), small_shape)
    assert [e.steps for e in _roll(policy, [3, 4, 5], progress=told.append, at_once=2)] == [0, 0, 0]
    assert told == [2, 3]
    assert _roll(policy, []) == []


# -- summary -------------------------------------------------------------------------------------------------------

SPEC = TaskSpec(
    name="made up", summary="", state_names=("x",), action=ActionSpec(("x",), (0.0,), (1.0,), (1.0,)),
    modes=("a", "b", "c", "d"), start_names=("x",), dt_s=0.1, max_steps=9,
)  # fmt: skip


def test_a_summary_by_hand() -> None:
    outcomes = [
        ("a", ""),
        ("b", ""),
        ("a", ""),
        ("", "collision"),
        ("b", "timeout"),
        ("", "collision"),
        ("", "policy_error"),
    ]
    episodes = [Episode(index, failure == "", failure, mode) for index, (mode, failure) in enumerate(outcomes)]
    assert summarise(SPEC, episodes) == {
        "episodes": 7, "successes": 3, "failures": {"collision": 2, "timeout": 1, "policy_error": 1},
        "mode_counts": {"a": 2, "b": 1, "c": 0, "d": 0}, "modes_reached": 2, "modes_total": 4,
        # -(2/3 ln 2/3 + 1/3 ln 1/3) / ln 4
        "entropy": pytest.approx(0.459148, abs=1e-6),
    }  # fmt: skip


def test_without_success_there_is_no_entropy_rather_than_a_number() -> None:
    summary = summarise(SPEC, [Episode(0, False, "timeout", "")])
    assert (summary["successes"], summary["modes_reached"], summary["entropy"]) == (0, 0, None)


def test_episodes_are_written_in_the_order_of_their_starts() -> None:
    rows = to_json([Episode(2, True, "", "a", 3, [[0.0, 1.0]]), Episode(0), Episode(1)])
    assert [row["index"] for row in rows] == [0, 1, 2]
    assert rows[2] == {"index": 2, "success": True, "failure": "", "mode": "a", "steps": 3, "path": [[0.0, 1.0]],
                       "carried": [], "actions": []}  # fmt: skip
