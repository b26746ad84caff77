"""Actions that an environment refuses: what is tried instead, in which order, and that nothing else changes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import envs
from distill.evaluation.rollouts import Episode, episode_generator, run_batch, summarise
from envs.cameras.specs import CameraSettings
from envs.panda.recording import stored_starts
from envs.specs import IMAGES, STATE
from students.selection import SINGLE_SAMPLE, Selection, alternatives, are_inliers, first_inlier
from teachers.contract import Observation
from teachers.networks.shapes import EncoderShape, PolicyShape

STARTS = stored_starts("avoid", 0, "test", 3)
EXECUTED, RETRIES = 4, 5
ONE = torch.ones(2)


class Body(nn.Module):
    """Stands where a network would: a device, and statistics that change nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.normaliser = self

    def unnormalise_action(self, chunks: Tensor) -> Tensor:
        return chunks


@dataclass
class Hovering:
    """Chunks at random before the first row of pillars, until time is up; it notes what it saw and made."""

    shape: PolicyShape
    name: str = "hovering"
    evaluations: int = 1
    module: nn.Module = field(default_factory=Body)
    seen: list[dict[str, np.ndarray]] = field(default_factory=list)
    made: list[Tensor] = field(default_factory=list)

    def draw(self, samples: int, generator: torch.Generator) -> Tensor:
        return torch.randn(samples, self.shape.horizon, 2, generator=generator)

    def encode(self, observation: Observation) -> Tensor:
        self.seen.append({name: values.numpy().copy() for name, values in observation.items()})
        return observation[STATE]

    def head(self, condition: Tensor, draws: Tensor) -> Tensor:
        self.made.append(torch.tensor([0.31, 0.0]) + 0.01 * draws)
        return self.made[-1]


class Refusing:
    """The task `avoid`, which refuses an action where `refuses` of the number of the call says so, as RLBench's does."""

    def __init__(self, refuses: Callable[[int], bool], cameras: CameraSettings | None = None) -> None:
        self.env, self.refuses, self.asked, self.row = envs.make("avoid", cameras), refuses, list[np.ndarray](), 0
        self.env.cameras_on_demand = True

    def __getattr__(self, name: str) -> Any:
        return getattr(self.env, name)

    def reset(self, **keywords: Any) -> Any:
        self.last = self.env.reset(**keywords)
        return self.last

    def step(self, action: np.ndarray) -> Any:
        self.asked.append(np.array(action))
        if not self.refuses(len(self.asked) - 1):
            self.row, self.last = 0, self.env.step(action)
            return self.last
        self.row += 1
        ended = self.row > RETRIES
        info = {"is_success": False, "failure": "planner_error" if ended else "", "mode": "", "refused": "planner_error"}
        return self.last[0], 0.0, ended, False, info


def roll(
    policy: Hovering, refuses: Callable[[int], bool], selection: Selection = SINGLE_SAMPLE,
    cameras: CameraSettings | None = None,
) -> tuple[Episode, list[np.ndarray]]:  # fmt: skip
    """Episode 0, and all actions that were asked for."""
    env = Refusing(refuses, cameras)
    episode = run_batch(policy, [env], STARTS, [0], EXECUTED, 5, 1000, selection, None)[0]  # type: ignore[arg-type,list-item]
    return episode, env.asked


def same(actions: list[np.ndarray], expected: Tensor) -> None:
    np.testing.assert_allclose(np.stack(actions), expected.numpy(), rtol=0, atol=0)


# -- one sample ----------------------------------------------------------------------------------------------------


def test_a_policy_with_one_sample_is_queried_again_at_the_same_observation_with_fresh_noise(small_shape: PolicyShape) -> None:
    policy = Hovering(small_shape)
    episode, asked = roll(policy, lambda call: call in (0, 1, 6))
    # refused: the first actions of the first two chunks, then that of the fourth, after four executed ones
    noise = torch.randn(5, 1, 8, 2, generator=episode_generator(5, 0))
    chunks = torch.tensor([0.31, 0.0]) + 0.01 * noise[:, 0]
    same(asked[:11], torch.stack([chunks[0, 0], chunks[1, 0], *chunks[2, :4], chunks[3, 0], *chunks[4, :4]]))
    np.testing.assert_array_equal(policy.seen[0][STATE], policy.seen[1][STATE])
    np.testing.assert_array_equal(policy.seen[3][STATE], policy.seen[4][STATE])
    assert episode.refused == 3 and episode.failure == "timeout"
    max_steps = envs.task_spec("avoid").max_steps
    assert episode.steps == max_steps == len(episode.actions) == len(episode.path) - 1 == len(asked) - 3
    assert episode.queries == len(policy.seen) == -(-max_steps // EXECUTED) + 3


def test_a_refusal_within_a_chunk_drops_its_rest_and_the_next_query_comes_as_much_later(small_shape: PolicyShape) -> None:
    policy = Hovering(small_shape)
    episode, asked = roll(policy, lambda call: call == 2)
    first, second, third = (chunk[0, 0] for chunk in policy.made[:3])
    same(asked[:8], torch.stack([*first[:3], *second[:4], third[0]]))
    # it was queried at steps 0, 2, 6: from the present observation, whose two frames are those of steps 1 and 2
    path = np.array(episode.path)
    np.testing.assert_allclose(policy.seen[1][STATE][0], path[[1, 2]], atol=1e-4)
    np.testing.assert_allclose(policy.seen[2][STATE][0], path[[5, 6]], atol=1e-4)
    assert episode.refused == 1


def test_others_in_the_batch_are_as_they_are_without(small_shape: PolicyShape) -> None:
    pool = [Refusing(lambda call: False), Refusing(lambda call: call % 3 == 2), Refusing(lambda call: False)]
    episodes = run_batch(Hovering(small_shape), pool, STARTS, [0, 1, 2], EXECUTED, 5, 9, SINGLE_SAMPLE, None)  # type: ignore[arg-type]
    plain = [envs.make("avoid") for _ in range(3)]
    expected = run_batch(Hovering(small_shape), plain, STARTS, [0, 1, 2], EXECUTED, 5, 9, SINGLE_SAMPLE, None)
    assert [episodes[0], episodes[2]] == [expected[0], expected[2]] and episodes[1] != expected[1]
    alone = Refusing(lambda call: call % 3 == 2)
    assert run_batch(Hovering(small_shape), [alone], STARTS, [1], EXECUTED, 5, 9, SINGLE_SAMPLE, None) == [episodes[1]]  # type: ignore[list-item]
    summary = summarise(envs.task_spec("avoid"), episodes)
    assert (summary["refused_actions"], summary["episodes_with_refusals"]) == (episodes[1].refused, 1) != (0, 1)


def test_an_episode_ends_with_the_failure_after_its_retries(small_shape: PolicyShape) -> None:
    policy = Hovering(small_shape)
    episode, asked = roll(policy, lambda call: call >= 6)
    assert (episode.failure, episode.success, episode.refused) == ("planner_error", False, RETRIES + 1)
    # six executed; the refused seventh of the second chunk, and the first of five more
    assert len(asked) == 6 + RETRIES + 1 and episode.queries == len(policy.made) == 2 + RETRIES
    assert episode.steps == 7  # the action that ended it is its last step
    np.testing.assert_array_equal(episode.path[-1], episode.path[-2])


@pytest.mark.parametrize("selection", [Selection("kept_latent", forget_every=0), Selection("temporal_consistency", 4, 0)])
def test_what_was_refused_is_not_remembered(small_shape: PolicyShape, selection: Selection) -> None:
    policy = Hovering(small_shape)
    _, asked = roll(policy, lambda call: call in (4, 5), selection)
    first, second, third, fourth = (chunks[0] for chunks in policy.made[:4])
    same([*asked[:4], asked[5], asked[6]], torch.stack([*first[0, :4], third[0, 0], fourth[0, 0]]))
    if selection.kind == "kept_latent":
        assert torch.equal(first, second) and not torch.equal(second, third) and not torch.equal(third, fourth)
    else:  # candidates are compared with the last plan again once something was executed
        nearest = (policy.made[4][0, :, :4] - fourth[0, 4:]).square().sum((1, 2)).argmin()
        same([asked[10]], policy.made[4][0, nearest, :1])


# -- several candidates --------------------------------------------------------------------------------------------


def test_the_other_inliers_are_tried_in_their_order_without_another_query(small_shape: PolicyShape) -> None:
    selection = Selection("outlier_rejection", 4)
    policy = Hovering(small_shape)

    def head(condition: Tensor, draws: Tensor) -> Tensor:
        """Every chunk stays about its start, but for the second candidate, which goes far away."""
        policy.made.append(torch.tensor([0.31, 0.0]) + 1e-3 * draws + torch.tensor([0.0, 0.5, 0.0, 0.0])[:, None, None])
        return policy.made[-1]

    policy.head = head  # type: ignore[method-assign]
    episode, asked = roll(policy, lambda call: call in (0, 1, 7, 8, 9, 10), selection)
    first, second, third = (candidates[0] for candidates in policy.made[:3])
    assert are_inliers(first[None], EXECUTED, ONE)[0].tolist() == [True, False, True, True]
    expected = [first[0, 0], first[2, 0], *first[3, :4]]  # refused twice, then one whole chunk
    expected += [second[0, 0], second[0, 1], third[0, 0], third[2, 0], third[3, 0]]  # refused within a chunk: a new query
    same(asked[:11], torch.stack(expected))
    same(asked[11:12], policy.made[3][0, 0, :1])  # none is left
    assert episode.queries == len(policy.made) and episode.refused == 6


@pytest.mark.parametrize("count", [1, 2, 3, 16])
def test_the_alternatives_are_the_inliers_after_the_chosen_one(count: int) -> None:
    generator = torch.Generator().manual_seed(count)
    candidates = torch.randn(20, count, 8, 2, generator=generator)
    candidates[:, 0] += 50 * torch.rand(20, 1, 1, generator=generator)  # now and then the first is an outlier
    chosen = first_inlier(candidates, 3, ONE)
    inliers = are_inliers(candidates, 3, ONE)
    for row in range(20):
        expected = [index for index in range(int(chosen[row]) + 1, count) if inliers[row, index]]
        got = alternatives(Selection("outlier_rejection", count), candidates[row], 3, ONE)
        assert torch.equal(got, candidates[row, expected])
    assert count < 3 or int(chosen.max()) > 0
    for kind in ("single", "kept_latent", "temporal_consistency"):
        assert len(alternatives(Selection(kind), candidates[0], 3, ONE)) == 0


# -- cameras -------------------------------------------------------------------------------------------------------


def test_a_query_that_nobody_expected_sees_the_present_images(small_shape: PolicyShape) -> None:
    cameras = CameraSettings(cameras=("front",), width=24, height=16, depth=False)
    encoder = EncoderShape(state_names=small_shape.state_names, cameras=("front",), image_size=(16, 24), width=16, heads=2,
                           queries=2, channels=16)  # fmt: skip
    policy = Hovering(replace(small_shape, encoder=encoder))
    _, asked = roll(policy, lambda call: call in (1, 6), cameras=cameras)
    assert all(set(seen) == {STATE, f"{IMAGES}.front"} for seen in policy.seen)
    env = envs.make("avoid", cameras)
    frames = [env.reset(options={"start": STARTS[0]})[0]]
    frames += [env.step(action)[0] for call, action in enumerate(asked[:12]) if call not in (1, 6)]
    # queried at steps 0, 1 (the frame of step 0 has images, that of step 1 gets them), 5 (the end of a chunk), and again 5
    for query, steps in enumerate(([0, 0], [0, 1], [4, 5], [4, 5])):
        for name, values in policy.seen[query].items():
            np.testing.assert_array_equal(values[0], np.stack([frames[step][name] for step in steps]).astype(np.float32))
    policy = Hovering(replace(small_shape, encoder=encoder))
    roll(policy, lambda call: call == 2, cameras=cameras)
    # at step 2 the frame of step 1 has no images: the present one stands for it, as at an episode's start
    for values in policy.seen[1].values():
        np.testing.assert_array_equal(values[0, 0], values[0, 1])
