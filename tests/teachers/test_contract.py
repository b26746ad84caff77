"""The conformance check finds each way to break a teacher, one made-up teacher per fault."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from envs.specs import STATE
from teachers.contract import Observation, Teacher, check_teacher

OBSERVATION = {STATE: torch.arange(12.0).view(2, 3, 2)}
FRONT, DEEP = "observation.images.front", "observation.depth.front"
SEEN = {STATE: OBSERVATION[STATE], FRONT: torch.rand(2, 3, 3, 4, 4), DEEP: torch.full((2, 3, 1, 4, 4), 0.5)}


class Good:
    """B observations to K chunks of 5 actions of size 4, all noise from the generator."""

    def sample(
        self, observation: Observation, num_hypotheses: int, num_steps: int, generator: torch.Generator
    ) -> Tensor:
        return torch.randn(len(observation[STATE]), num_hypotheses, 5, 4, generator=generator)

    def evaluations(self, num_steps: int) -> int:
        return num_steps


class Transposed(Good):
    def sample(self, *arguments, **keywords) -> Tensor:
        return super().sample(*arguments, **keywords).transpose(0, 1)


class Flat(Good):
    def sample(self, *arguments, **keywords) -> Tensor:
        return super().sample(*arguments, **keywords).flatten(0, 1)


class TooManyActions(Good):
    def sample(self, *arguments, **keywords) -> Tensor:
        return super().sample(*arguments, **keywords).repeat(1, 1, 1, 2)


class NotFinite(Good):
    def sample(self, *arguments, **keywords) -> Tensor:
        chunks = super().sample(*arguments, **keywords)
        chunks[1, 2, 3, 0] = torch.inf
        return chunks


class Half(Good):
    def sample(self, *arguments, **keywords) -> Tensor:
        return super().sample(*arguments, **keywords).half()


class Integers(Good):
    def sample(self, *arguments, **keywords) -> Tensor:
        return (1000 * super().sample(*arguments, **keywords)).long()


class WithGradient(Good):
    def sample(self, *arguments, **keywords) -> Tensor:
        return super().sample(*arguments, **keywords).requires_grad_()


class GlobalNoise(Good):
    def sample(self, observation, num_hypotheses, num_steps, generator) -> Tensor:
        return torch.randn(len(observation[STATE]), num_hypotheses, 5, 4)


class DeafToTheSeed(Good):
    def sample(self, observation, num_hypotheses, num_steps, generator) -> Tensor:
        return super().sample(observation, num_hypotheses, num_steps, torch.Generator().manual_seed(3))


class OneNoiseForAll(Good):
    def sample(self, observation, num_hypotheses, num_steps, generator) -> Tensor:
        return super().sample(observation, 1, num_steps, generator).repeat(1, num_hypotheses, 1, 1)


class Free(Good):
    def evaluations(self, num_steps: int) -> int:
        return 0


def test_a_good_teacher_passes_and_is_a_teacher() -> None:
    assert isinstance(Good(), Teacher)
    check_teacher(Good(), OBSERVATION, action_size=4)


@pytest.mark.parametrize(
    ("broken", "complaint"),
    [
        (Transposed, r"shape: got \(3, 2, 5, 4\), expected \(2, 3, T, 4\)"),
        (Flat, r"shape: got \(6, 5, 4\), expected \(2, 3, T, 4\)"),
        (TooManyActions, r"shape: got \(2, 3, 5, 8\)"),
        (NotFinite, "values: got NaN or infinity"),
        (Half, "dtype"),
        (Integers, "dtype"),
        (WithGradient, "gradient: the sample requires grad"),
        (GlobalNoise, "determinism: one seed gave two results"),
        (DeafToTheSeed, "randomness: two seeds gave one result"),
        (OneNoiseForAll, "hypotheses: the K chunks of one observation are equal"),
        (Free, "evaluations: got 0 for 2 steps"),
    ],
)
def test_every_fault_is_found_and_it_alone(broken: type[Good], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint) as caught:
        check_teacher(broken(), OBSERVATION, action_size=4)
    assert len(str(caught.value).splitlines()) == 2, caught.value


class Looks(Good):
    """Moves its chunks by what it sees; refuses what is missing or not a number, and takes unknown depth for 1 m."""

    def seen(self, observation: Observation, name: str) -> Tensor:
        value = observation[name].nan_to_num(1.0) if name == DEEP else observation[name]
        if not bool(value.isfinite().all()):
            raise ValueError(f"{name} has NaN")
        return value.flatten(1).mean(1)

    def sample(self, observation, num_hypotheses, num_steps, generator) -> Tensor:
        moved = sum(self.seen(observation, name) for name in (STATE, FRONT, DEEP))
        return super().sample(observation, num_hypotheses, num_steps, generator) + moved[:, None, None, None]


class FromItsSeeds(Good):
    """Each chunk is its seed's noise; where it mixes, less the mean over all rows of a call, as batch norm would."""

    mixes = False

    def sample_from_seeds(self, observation: Observation, seeds_BK: np.ndarray, num_steps: int) -> Tensor:
        noise = [torch.randn(5, 4, generator=torch.Generator().manual_seed(int(seed))) for seed in seeds_BK.flat]
        chunks = torch.stack(noise).unflatten(0, seeds_BK.shape)
        return chunks - chunks.mean((0, 1)) if self.mixes else chunks


class MixesRows(FromItsSeeds):
    mixes = True


def test_chunks_that_depend_on_the_rest_of_the_batch_are_found() -> None:
    check_teacher(FromItsSeeds(), OBSERVATION, action_size=4)
    with pytest.raises(ValueError, match="independence: an observation's chunks change with the rest of the batch"):
        check_teacher(MixesRows(), OBSERVATION, action_size=4)


class FillsInACamera(Looks):
    def seen(self, observation: Observation, name: str) -> Tensor:
        return super().seen({FRONT: torch.zeros(2, 3), **observation}, name)


class DoesNotMindNan(Looks):
    def seen(self, observation: Observation, name: str) -> Tensor:
        return super().seen({**observation, name: observation[name].nan_to_num(0.0)}, name)


class LetsDepthSpoilAll(Looks):
    def seen(self, observation: Observation, name: str) -> Tensor:
        return observation[name].flatten(1).mean(1)


class Overwrites(Looks):
    def sample(self, observation, num_hypotheses, num_steps, generator) -> Tensor:
        observation[FRONT].clamp_(max=0.1)
        return super().sample(observation, num_hypotheses, num_steps, generator)


def test_teachers_that_use_every_feature_and_none_both_pass() -> None:
    check_teacher(Looks(), SEEN, action_size=4)
    check_teacher(Good(), SEEN, action_size=4)


@pytest.mark.parametrize(
    ("broken", "complaint"),
    [
        (FillsInACamera, f"missing: without {FRONT} it silently draws other chunks"),
        (LetsDepthSpoilAll, f"NaN: one in {DEEP} becomes one in the chunks; treat the pixel as unknown"),
        (Overwrites, "observation: it was changed in place"),
    ],
)
def test_faults_that_are_ignored_silently_are_found(broken: type[Good], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint) as caught:
        check_teacher(broken(), {name: value.clone() for name, value in SEEN.items()}, action_size=4)
    assert len(str(caught.value).splitlines()) == 2, caught.value


def test_nan_that_becomes_a_zero_is_found_in_every_feature_but_depth() -> None:
    with pytest.raises(ValueError) as caught:
        check_teacher(DoesNotMindNan(), SEEN, action_size=4)
    complaints = [line.strip() for line in str(caught.value).splitlines()[1:]]
    assert [line.split(" is ")[0] for line in complaints] == [f"NaN: one in {name}" for name in (STATE, FRONT)]


def test_an_observation_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="observation: got none of its features"):
        check_teacher(Good(), {}, action_size=4)


def test_all_faults_are_told_at_once() -> None:
    class Hopeless(GlobalNoise, Free):
        def sample(self, *arguments, **keywords) -> Tensor:
            return super().sample(*arguments, **keywords)[..., :3].requires_grad_()

    with pytest.raises(ValueError) as caught:
        check_teacher(Hopeless(), OBSERVATION, action_size=4)
    complaints = [line.strip().split(":")[0] for line in str(caught.value).splitlines()[1:]]
    assert complaints == ["shape", "gradient", "determinism", "evaluations"]
