"""A teacher in closed form, from its samples on disk to students: the set finds its modes, regression their mean."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from distill.config import StudentConfig
from distill.hypotheses.cache import CachePlan, HypothesisDataset, write_index, write_shards
from distill.objectives.code_shares import calibrate
from distill.objectives.recipes import RECIPES, Batch, LossModule, TrainingContext
from distill.training.loop import Share, batch_indices, fit
from envs.specs import STATE
from students import load_student
from students.one_step import OneStepStudent
from teachers.contract import Observation, Teacher, check_teacher
from teachers.networks.normalisation import Normaliser
from teachers.networks.shapes import PolicyShape
from teachers.trained import TrainedTeacher

CPU = torch.device("cpu")
SHARE, HEIGHT, NOISE = 0.8, 0.5, 0.02
"""Of the mode that goes up; how far both modes end from the observation [m]; standard deviation in every entry [m]."""
SHAPE = PolicyShape(
    task="avoid", state_names=("x", "y"), action_names=("x", "y"), action_weights=(1.0, 1.0), dt_s=0.05,
    observation_steps=1, horizon=4, width=32, depth=1, heads=2, patch=4,
)  # fmt: skip
STATISTICS = {
    "state": {"min": np.array([0.0, 0.0]), "max": np.array([1.0, 1.0])},
    "action": {"min": np.array([-0.5, -0.5]), "max": np.array([1.5, 1.5])},
}
RAMP_T = torch.linspace(0.25, 1.0, 4)
OBSERVATIONS, HYPOTHESES = 512, 16


class TwoWays:
    """From the observed point up with probability SHARE, else down, in a straight line; no network."""

    def sample(
        self, observation: Observation, num_hypotheses: int, num_steps: int, generator: torch.Generator
    ) -> Tensor:
        start_B1A = observation[STATE][:, -1:]
        up_BK = torch.rand(len(start_B1A), num_hypotheses, generator=generator) < SHARE
        chunk_BKTA = start_B1A[:, None].repeat(1, num_hypotheses, 4, 1)
        chunk_BKTA[..., 1] += torch.where(up_BK, HEIGHT, -HEIGHT)[..., None] * RAMP_T
        return chunk_BKTA + NOISE * torch.randn(chunk_BKTA.shape, generator=generator)

    def evaluations(self, num_steps: int) -> int:
        return 1


def _states(frames: np.ndarray) -> np.ndarray:
    """State histories `[n, 1, 2]`, uniform over the unit square, each frame its own."""
    return np.stack([np.random.default_rng([7, int(frame)]).random((1, 2)) for frame in frames])


@pytest.fixture(scope="module")
def normaliser() -> Normaliser:
    made = Normaliser(2, 2)
    made.fit(STATISTICS)
    return made


@pytest.fixture(scope="module")
def dataset(normaliser: Normaliser, tmp_path_factory: pytest.TempPathFactory) -> HypothesisDataset:
    folder = tmp_path_factory.mktemp("cache")
    plan = CachePlan(np.arange(OBSERVATIONS), HYPOTHESES, num_steps=1, shard_size=256, batch_size=64, seed=0)
    write_shards(folder, TwoWays(), normaliser, plan, lambda frames: {STATE: _states(frames)}, range(plan.num_shards), CPU)
    write_index(folder, plan, "two ways, in closed form")
    return HypothesisDataset(folder)


def test_the_teacher_keeps_the_contract_and_is_not_one_of_ours() -> None:
    assert isinstance(TwoWays(), Teacher) and not isinstance(TwoWays(), TrainedTeacher)
    check_teacher(TwoWays(), {STATE: torch.from_numpy(_states(np.arange(3))).float()}, action_size=2)


def test_the_cache_holds_the_mixture(dataset: HypothesisDataset, normaliser: Normaliser) -> None:
    assert len(dataset) == OBSERVATIONS and dataset.index["teacher"] == "two ways, in closed form"
    rows = [dataset[row] for row in range(OBSERVATIONS)]
    raw_NKTA = normaliser.unnormalise_action(torch.stack([row["hypotheses"] for row in rows]))
    move_NKTA = raw_NKTA - torch.stack([row[STATE] for row in rows])[:, None]
    up_NK = move_NKTA[..., -1, 1] > 0
    # 8192 draws: a standard deviation of 0.0044
    assert float(up_NK.float().mean()) == pytest.approx(SHARE, abs=0.02)
    expected_NKT = torch.where(up_NK, HEIGHT, -HEIGHT)[..., None] * RAMP_T
    for error in (move_NKTA[..., 0], move_NKTA[..., 1] - expected_NKT):
        # float16 adds less than a thousandth to the noise
        assert float(error.std()) == pytest.approx(NOISE, rel=0.03) and abs(float(error.mean())) < 0.001
    # an observation's number of ups is binomial: no two draws are tied, neither within an observation nor across
    assert float(up_NK.sum(1).float().var()) == pytest.approx(HYPOTHESES * SHARE * (1 - SHARE), rel=0.25)


def _distil(name: str, dataset: HypothesisDataset, normaliser: Normaliser, folder: Path, steps: int) -> Tensor:
    """Where the student's chunks end above fresh observations [m], `[64, 2048]`; trained as the pipeline does it."""
    chosen, settings = RECIPES[name], StudentConfig(
        training_steps=steps, batch_size=32, num_latents=16, codes=32, warmup_steps=20, candidates=1, warm_start=False
    )  # fmt: skip
    given = TrainingContext(SHAPE, normaliser, None, settings, HYPOTHESES, torch.ones(4, 2))
    torch.manual_seed(0)
    student = chosen.build(given)

    def batches(first: int, last: int, share: Share) -> Iterator[Batch]:
        for step in range(first, last):
            yield dataset.batch(share.of(batch_indices(0, step, 32, len(dataset))))

    def loss(model: nn.Module, batch: Batch, generator: torch.Generator, share: Share) -> Tensor:
        value: Tensor = model(batch, *chosen.draws(student, given, 32, generator))
        return value

    curve = fit(
        Accelerator(cpu=True), LossModule(student, chosen, given), batches, loss, replace(settings, batch_size=32), 0, folder,
        lambda model, target: model.student.save_pretrained(target),  # type: ignore[operator,union-attr]
        lambda step, value: None, name,
    )  # fmt: skip
    assert curve[-1]["loss"] < 0.6 * curve[0]["loss"]
    trained = load_student(folder / f"candidate-{steps:06d}")
    state = torch.from_numpy(_states(np.arange(10_000, 10_064))).float()
    if isinstance(trained, OneStepStudent) and trained.share_head is not None:
        batches_of_all = (dataset.batch(rows) for rows in torch.arange(len(dataset)).split(64))
        calibrate(trained, batches_of_all, torch.ones(4, 2), seed=0)
    latents = torch.randn(64, 2048, 1, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        chunks = trained({STATE: state}, latents)
    # sideways there is one way only, whatever the recipe
    assert float((chunks[..., 0] - state[:, :, None, 0]).abs().mean()) < 0.05
    return chunks[..., -1, 1] - state[:, :, 1]


def _near(height: Tensor) -> float:
    """Share that ends within four standard deviations of either mode."""
    return float(((height.abs() - HEIGHT).abs() < 4 * NOISE).float().mean())


def test_the_default_student_finds_both_modes_with_their_weights(dataset, normaliser, tmp_path: Path) -> None:
    height = _distil(StudentConfig().default, dataset, normaliser, tmp_path, steps=300)
    up = height > 0
    # 131072 draws: a standard deviation of 0.0011; the 8192 hypotheses themselves are 0.0044 off
    assert float(up.float().mean()) == pytest.approx(SHARE, abs=0.02)
    assert float(height[up].median()) == pytest.approx(HEIGHT, abs=NOISE)
    assert float(height[~up].median()) == pytest.approx(-HEIGHT, abs=NOISE)
    # codes need not pass between the modes
    assert _near(height) > 0.97
    # for every single observation, not only over all; 2048 draws have a standard deviation of 0.009
    share_B = up.float().mean(1)
    assert float(share_B.min()) > 0.68 and float(share_B.max()) < 0.92 and float(share_B.std()) < 0.04


def test_the_regression_student_ends_between_the_modes(dataset, normaliser, tmp_path: Path) -> None:
    height = _distil("regression", dataset, normaliser, tmp_path, steps=300)
    mean = (2 * SHARE - 1) * HEIGHT  # 0.3, where the teacher never goes
    # each observation's sixteen hypotheses are off by 0.4 / sqrt(16), which the network averages away
    assert float(height.mean()) == pytest.approx(mean, abs=0.03) and float(height.std()) < 0.06
    assert _near(height) == 0.0
