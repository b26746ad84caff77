"""Rollouts with made-up policies in the real simulator: whose randomness, how often planned, every outcome named."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import envs
from distill.evaluation.policies import StudentPolicy, TeacherPolicy, postprocess, sample_set
from distill.evaluation.rollouts import Episode, episode_generator, rms_jerk, run_episodes, summarise, to_json
from envs.panda.recording import stored_starts
from envs.specs import STATE, ActionSpec, TaskSpec
from students.selection import SINGLE_SAMPLE, Selection
from teachers.contract import Observation
from teachers.networks.shapes import PolicyShape

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
        assert len(draws) == len(condition)
        return torch.stack([self.chunk(condition, sample) for sample in draws.unbind(1)], dim=1)


def _wander(states: Tensor, draws: Tensor) -> Tensor:
    """Forwards from where the tool is, shaken at random: element by element, so exactly the same in every batch."""
    ahead = torch.linspace(0.02, 0.3, draws.shape[1])[None, :, None] * torch.tensor([1.0, 0.0])
    return states[:, -1:] + ahead + 0.02 * draws


def _hover(states: Tensor, draws: Tensor) -> Tensor:
    """Shaken at random before the first row of pillars, until time is up."""
    return torch.tensor([0.31, 0.0]) + 0.01 * draws


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


# -- what is selected ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("who", ["teacher", "student"])
def test_by_default_an_episode_is_the_plain_receding_horizon_of_one_sample(who: str, make_teacher, make_student) -> None:
    teacher = make_teacher()
    student = make_student(teacher)
    policy = TeacherPolicy(teacher, 2) if who == "teacher" else StudentPolicy(student, "chamfer")
    for index in (0, 3):
        episode = _roll(policy, [index], 3, keep_actions=9)[0]  # type: ignore[arg-type]
        env = envs.make("avoid")
        observation, _ = env.reset(options={"start": STARTS[index]})
        states, actions, generator = [observation[STATE]] * 2, [], episode_generator(5, index)
        for step in range(episode.steps):
            if step % 3 == 0:
                drawn = sample_set(policy, {STATE: np.stack(states[-2:])[None]}, generator, 1, SINGLE_SAMPLE, 3)
                chunk = postprocess(policy, drawn)[0]
            actions.append(chunk[step % 3])
            observation, _, terminated, truncated, info = env.step(actions[-1])
            states.append(observation[STATE])
        np.testing.assert_array_equal(np.array(episode.actions, np.float32), np.stack(actions))
        assert terminated or truncated
        assert (episode.success, episode.failure) == (info["is_success"], info["failure"])


@pytest.mark.parametrize(
    "selection",
    [Selection("temporal_consistency", 4, 3), Selection("kept_latent", forget_every=2), Selection("outlier_rejection", 5)],
)
def test_with_a_choice_too_an_episode_is_the_same_alone_and_in_company(
    small_shape: PolicyShape, selection: Selection
) -> None:
    together = {e.index: e for e in _roll(Scripted(_wander, small_shape), list(range(6)), selection=selection)}
    plain = {e.index: e for e in _roll(Scripted(_wander, small_shape), list(range(6)))}
    assert len({e.steps for e in together.values()}) > 1 and together != plain
    alone = [_roll(Scripted(_wander, small_shape), [index], selection=selection)[0] for index in (4, 1)]
    pairs = _roll(Scripted(_wander, small_shape), [5, 3, 2, 0], selection=selection, at_once=2)
    for episode in [*alone, *pairs]:
        assert episode == together[episode.index]


def _noting(shape: PolicyShape, selection: Selection, execution_horizon: int) -> tuple[list[Tensor], list[Tensor]]:
    """The candidates and the noises `[N, T, A]` of every replan of one episode, checked to carry out the right ones."""
    chunks: list[Tensor] = []
    draws: list[Tensor] = []

    @dataclass
    class Noting(Scripted):
        def head(self, condition: Tensor, noise: Tensor) -> Tensor:
            draws.append(noise[0])
            chunks.append(Scripted.head(self, condition, noise)[0])
            return chunks[-1][None]

    episode = _roll(Noting(_hover, shape), [0], execution_horizon, keep_actions=1, selection=selection)[0]
    executed = torch.tensor(episode.actions).split(execution_horizon)
    last = None
    for replan, (candidates, actions) in enumerate(zip(chunks, executed, strict=True)):
        best = 0
        every = selection.forget_every
        if len(candidates) > 1 and last is not None and not (every and replan % every == 0):
            gaps = [float((candidate[: 8 - execution_horizon] - last).square().sum()) for candidate in candidates]
            best = gaps.index(min(gaps))
        torch.testing.assert_close(actions, candidates[best, : len(actions)], rtol=1e-6, atol=0)
        last = candidates[best, execution_horizon:]
    return chunks, draws


@pytest.mark.parametrize("forget_every", [0, 2])
def test_of_the_candidates_the_one_nearest_to_the_last_plans_rest_is_carried_out(
    small_shape: PolicyShape, forget_every: int
) -> None:
    chunks, _ = _noting(small_shape, Selection("temporal_consistency", 6, forget_every), 3)
    assert len(chunks) > 4 and all(len(candidates) == 6 for candidates in chunks)


def test_plans_that_are_carried_out_to_their_end_are_single_samples(small_shape: PolicyShape) -> None:
    chunks, _ = _noting(small_shape, Selection("temporal_consistency", 6), 8)
    assert len(chunks) > 1 and all(len(candidates) == 1 for candidates in chunks)
    plain = _roll(Scripted(_wander, small_shape), [0, 1], 8)
    assert _roll(Scripted(_wander, small_shape), [0, 1], 8, selection=Selection("temporal_consistency", 6)) == plain


@pytest.mark.parametrize(("forget_every", "different"), [(0, 1), (3, 2), (1, 6)])
def test_a_kept_latent_is_kept(small_shape: PolicyShape, forget_every: int, different: int) -> None:
    chunks, draws = _noting(small_shape, Selection("kept_latent", forget_every=forget_every), 3)
    assert len(draws) >= 6 and all(len(candidates) == 1 for candidates in chunks)
    assert len({tuple(draw.flatten().tolist()) for draw in draws[:6]}) == different
    if forget_every == 3:
        assert torch.equal(draws[0], draws[2]) and torch.equal(draws[3], draws[5])


# -- switches and jerk ---------------------------------------------------------------------------------------------


def _through(*gaps: float) -> Callable[[Tensor, Tensor], Tensor]:
    """At replan r, eight targets straight ahead at y = gaps[r], 2 cm apart."""
    ys = iter(gaps)

    def chunk(states: Tensor, draws: Tensor) -> Tensor:
        xs = states[0, -1, 0] + 0.02 * torch.arange(1, 9)
        return torch.stack([xs, torch.full((8,), next(ys))], dim=1)[None]

    return chunk


def test_switches_of_plans_made_by_hand(small_shape: PolicyShape) -> None:
    # From x = 0.30, four of eight targets carried out: both the first plan's rest and the second plan, made at x = 0.37,
    # cross the first row (x = 0.41, a pillar at y = 0); whatever follows crosses each row in one plan alone, or hits it.
    starts = np.array([[0.30, 0.03]])

    def roll(*gaps: float, execution_horizon: int = 4) -> Episode:
        policy = Scripted(_through(*gaps, *[gaps[-1]] * 60), small_shape)
        return run_episodes("avoid", policy, starts, [0], execution_horizon, 0)[0]  # type: ignore[arg-type]

    same, other, into_the_pillar = roll(0.05, 0.07), roll(0.06, -0.06), roll(0.06, -0.02)
    assert (same.compared, same.switches) == (1, 0)
    assert (other.compared, other.switches) == (1, 1)
    assert (into_the_pillar.compared, into_the_pillar.switches) == (0, 0)
    whole = roll(0.06, -0.06, execution_horizon=8)
    assert (whole.compared, whole.switches) == (0, 0) and whole.steps > 8
    assert summarise(SPEC, [whole])["switch_rate"] is None and summarise(SPEC, [same])["switch_rate"] == 0.0


def test_jerk_of_known_paths() -> None:
    time = np.arange(12) * 0.05
    cubic = np.stack([2.0 * time**3 - time**2, 0.5 * time**3 + time, 0 * time], axis=1)  # third derivatives 12, 3, 0
    assert rms_jerk(cubic, 0.05) == pytest.approx(math.hypot(12, 3), rel=1e-6)
    assert rms_jerk(np.stack([3 * time**2, time], axis=1), 0.05) == pytest.approx(0.0, abs=1e-9)
    # third differences of 0, 0, 0, 1, 1, 1: 1, -2, 1
    assert rms_jerk(np.array([[0.0], [0], [0], [1], [1], [1]]), 0.1) == pytest.approx(math.sqrt(6 / 3) * 1000)
    assert rms_jerk(cubic[:3], 0.05) is None


def test_an_episodes_jerk_is_that_of_the_tool_without_the_step_that_a_collision_cut_short(
    small_shape: PolicyShape,
) -> None:
    ended = set()
    wandering = _roll(Scripted(_wander, small_shape), [0, 1], keep_actions=9)
    for episode in [*wandering, *_roll(Scripted(_hover, small_shape), [2], keep_actions=9)]:
        env = envs.make("avoid")
        env.reset(options={"start": STARTS[episode.index]})
        tool = [env.tool_position()]
        for action in episode.actions:
            env.step(np.array(action, dtype=np.float32))
            tool.append(env.tool_position())
        whole = tool[:-1] if episode.failure == "collision" else tool
        third = [whole[i + 3] - 3 * whole[i + 2] + 3 * whole[i + 1] - whole[i] for i in range(len(whole) - 3)]
        expected = math.sqrt(np.mean([float(each @ each) for each in third])) / 0.05**3
        assert episode.jerk == pytest.approx(expected, rel=1e-9)
        ended.add(episode.failure)
    assert ended == {"collision", "timeout"}


# -- what a monitor sees -------------------------------------------------------------------------------------------


@dataclass
class Beyond:
    """Calls foreign what lies beyond a line across the table, and keeps what it was shown."""

    line: float
    shown: list[np.ndarray] = field(default_factory=list)

    def are_out_of_distribution(self, states_BOS: np.ndarray) -> list[bool]:
        self.shown.append(states_BOS.copy())
        return [bool(state[-1, 0] > self.line) for state in states_BOS]


@pytest.mark.parametrize("execution_horizon", [1, 2, 3])
def test_a_monitor_looks_at_what_the_policy_is_asked_at_and_changes_nothing(
    small_shape: PolicyShape, execution_horizon: int
) -> None:
    policy, monitor = Scripted(_wander, small_shape), Beyond(0.33)
    watched = _roll(policy, list(range(5)), execution_horizon, at_once=2, monitor=monitor)
    assert len(monitor.shown) == len(policy.seen)
    for shown, seen in zip(monitor.shown, policy.seen, strict=True):
        np.testing.assert_array_equal(shown, seen.numpy())
    alone = _roll(Scripted(_wander, small_shape), list(range(5)), execution_horizon)
    for episode, unwatched in zip(watched, alone, strict=True):
        # asked before the first step and after every `execution_horizon` more, at the places of its path
        asked_at = [x for x, _ in episode.path[: episode.steps : execution_horizon]]
        assert episode.queries == unwatched.queries == len(asked_at)
        assert episode.out_of_distribution == sum(x > 0.33 for x in asked_at) and unwatched.out_of_distribution is None
        assert replace(episode, out_of_distribution=None) == unwatched
    assert any(0 < episode.out_of_distribution < episode.queries for episode in watched)
    share = sum(episode.out_of_distribution for episode in watched) / sum(episode.queries for episode in watched)
    assert summarise(envs.task_spec("avoid"), watched)["out_of_distribution_share"] == share > 0


def test_the_share_of_foreign_observations_is_over_all_times_that_a_policy_was_asked() -> None:
    episodes = [Episode(0, queries=8, out_of_distribution=2), Episode(1, True, "", "a", queries=2, out_of_distribution=2),
                Episode(2, queries=0)]  # fmt: skip
    assert summarise(SPEC, episodes)["out_of_distribution_share"] == 0.4


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
        "entropy": pytest.approx(0.459148, abs=1e-6), "switch_rate": None, "jerk_rms": None, "out_of_distribution_share": None,
        "score": None, "refused_actions": 0, "episodes_with_refusals": 0,
    }  # fmt: skip


def test_a_score_is_the_mean_over_all_episodes_and_one_that_has_none_counts_as_nothing() -> None:
    episodes = [Episode(0, score=0.9), Episode(1, failure="crash"), Episode(2, score=0.3)]
    assert summarise(SPEC, episodes)["score"] == pytest.approx(0.4)


def test_switches_and_jerk_are_means_over_the_episodes_that_have_them() -> None:
    episodes = [
        Episode(0, compared=4, switches=1, jerk=2.0), Episode(1, compared=1, switches=1, jerk=5.0),
        Episode(2, compared=0, jerk=None),
    ]  # fmt: skip
    summary = summarise(SPEC, episodes)
    assert (summary["switch_rate"], summary["jerk_rms"]) == (0.625, 3.5)


def test_without_success_there_is_no_entropy_rather_than_a_number() -> None:
    summary = summarise(SPEC, [Episode(0, False, "timeout", "")])
    assert (summary["successes"], summary["modes_reached"], summary["entropy"]) == (0, 0, None)


def test_episodes_are_written_in_the_order_of_their_starts() -> None:
    rows = to_json([Episode(2, True, "", "a", 3, [[0.0, 1.0]]), Episode(0), Episode(1)])
    assert [row["index"] for row in rows] == [0, 1, 2]
    assert rows[2] == {"index": 2, "success": True, "failure": "", "mode": "a", "steps": 3, "path": [[0.0, 1.0]],
                       "carried": [], "actions": [], "compared": 0, "switches": 0, "jerk": None, "queries": 0,
                       "out_of_distribution": None, "refused": 0, "score": None}  # fmt: skip
