"""Latency: warm-up left out, policies interleaved, the device waited for, all candidates counted, the clock's arithmetic."""

from __future__ import annotations

import gc
import time
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from distill.evaluation import latency
from distill.evaluation.latency import STAGES, measure_latency
from distill.evaluation.policies import Policy, StudentPolicy, TeacherPolicy
from envs.specs import STATE
from students.selection import SINGLE_SAMPLE, Selection
from teachers.networks.shapes import PolicyShape

SHAPE = PolicyShape(
    task="avoid", state_names=("tool_x_m", "tool_y_m"), action_names=("x_m", "y_m"), action_weights=(1.0, 1.0),
    dt_s=0.05, observation_steps=2, horizon=4, width=16, depth=1, heads=2, patch=4,
)  # fmt: skip
STATES = {STATE: np.arange(12, dtype=np.float32).reshape(3, 2, 2)}


class Fake:
    """A policy that notes when it is asked; `slow_s` is slept in its head."""

    def __init__(self, name: str, journal: list[tuple[str, float]], slow_s: float = 0.0) -> None:
        self.name, self.journal, self.slow_s = name, journal, slow_s
        self.evaluations, self.shape = 1, SHAPE
        self.module = nn.Linear(1, 1)
        self.module.normaliser = self  # type: ignore[assignment]

    def unnormalise_action(self, chunks: Tensor) -> Tensor:
        return chunks

    def draw(self, samples: int, generator: torch.Generator) -> Tensor:
        return torch.randn(samples, 1, generator=generator)

    def encode(self, observation: dict[str, Tensor]) -> Tensor:
        assert observation[STATE].shape == (1, 2, 2)
        self.journal.append((self.name, float(observation[STATE][0, 0, 0])))
        return observation[STATE]

    def head(self, condition: Tensor, draws: Tensor) -> Tensor:
        assert draws.shape == (1, 1, 1)
        time.sleep(self.slow_s)
        return torch.zeros(1, 1, 4, 2)


@pytest.fixture(autouse=True)
def _unprimed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each round calls a policy once, so that calls can be counted."""
    monkeypatch.setattr(latency, "PRIMED_MS", 0.0)


def _measure(policies: list[Any], calls: int = 3, warmup: int = 2, execution_horizon: int = 5) -> dict[str, Any]:
    return measure_latency(policies, STATES, calls=calls, warmup=warmup, execution_horizon=execution_horizon)


def test_policies_are_asked_in_turns_on_the_same_observation() -> None:
    journal: list[tuple[str, float]] = []
    _measure([Fake("a", journal), Fake("b", journal)])
    # each round asks a policy once; the states go round
    firsts = [4.0, 8.0, 0.0, 4.0, 8.0]
    assert journal == [(name, first) for first in firsts for name in ("a", "b")]


def test_a_short_call_comes_right_after_one_of_the_same_policy_and_a_long_one_does_not(monkeypatch) -> None:
    monkeypatch.setattr(latency, "PRIMED_MS", 20.0)
    journal: list[tuple[str, float]] = []
    rows = _measure([Fake("long", journal, 0.03), Fake("short", journal)], calls=2, warmup=1)
    assert [name for name, _ in journal] == ["long", "short"] + ["long", "short", "short"] * 2
    assert rows["long"]["calls"] == rows["short"]["calls"] == 2


def test_the_device_is_waited_for_before_and_after_every_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[torch.device] = []
    monkeypatch.setattr(latency, "synchronise", waited.append)
    _measure([Fake("a", [])], calls=4, warmup=1)
    assert waited == [torch.device("cpu")] * ((1 + len(STAGES)) * 5)


def test_a_cuda_device_is_synchronised(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "synchronize", asked.append)
    latency.synchronise(torch.device("cpu"))
    latency.synchronise(torch.device("cuda", 0))
    assert asked == [torch.device("cuda", 0)]


def test_the_numbers_follow_from_the_clock_and_the_warm_up_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    # stages of 1, 2, 3 and n ms: calls take 106 ms in the warm-up, then 7, 8, 9, 10, 16 ms
    ticks = np.cumsum([tick for last in (100, 1, 2, 3, 4, 10) for tick in (0, 1, 2, 3, last)]) * 1_000_000
    monkeypatch.setattr(latency.time, "perf_counter_ns", iter(ticks.tolist()).__next__)
    row = _measure([Fake("a", [])], calls=5, warmup=1)["a"]
    assert (row["calls"], row["warmup"]) == (5, 1)
    assert row["median_ms"] == pytest.approx(9.0) and row["hz"] == pytest.approx(1000 / 9)
    assert row["actions_per_second"] == pytest.approx(5000 / 9)
    assert 10.0 < row["p95_ms"] <= row["p99_ms"] <= 16.0
    assert row["stages"] == {"preprocess_ms": 1.0, "encode_ms": 2.0, "head_ms": 3.0, "post_ms": 3.0}


def test_a_policy_that_sleeps_is_slower_and_in_its_head() -> None:
    rows = _measure([Fake("slow", [], 0.005), Fake("fast", [])], calls=15, warmup=1)
    slow, fast = rows["slow"], rows["fast"]
    assert slow["median_ms"] >= 5.0 and slow["median_ms"] > fast["median_ms"]
    assert slow["stages"]["head_ms"] >= 5.0 and slow["stages"]["head_ms"] > fast["stages"]["head_ms"]
    assert slow["stages"]["head_ms"] > slow["stages"]["encode_ms"]


@pytest.mark.parametrize(
    ("selection", "horizon", "candidates"),
    [(Selection("outlier_rejection", 7), 5, 7), (Selection("outlier_rejection", 7), 8, 7),
     (Selection("temporal_consistency", 7), 5, 7),
     (Selection("temporal_consistency", 7), 8, 1), (Selection("kept_latent", 7), 5, 1), (SINGLE_SAMPLE, 5, 1)],
)  # fmt: skip
def test_every_candidate_is_part_of_the_call_and_of_its_head(
    make_teacher, make_student, selection: Selection, horizon: int, candidates: int
) -> None:
    heads: list[tuple[str, tuple[int, ...]]] = []
    trunks: list[tuple[int, ...]] = []

    class Noting(StudentPolicy):
        def head(self, condition_BC: Tensor, draws: Tensor) -> Tensor:
            heads.append((self.name, tuple(draws.shape)))
            return super().head(condition_BC, draws)

    class NotingTeacher(TeacherPolicy):
        def head(self, condition_BC: Tensor, draws: Tensor) -> Tensor:
            heads.append((self.name, tuple(draws.shape)))
            return super().head(condition_BC, draws)

    teacher = make_teacher()
    student = make_student(teacher, 1, codes=4)
    student.trunk.register_forward_hook(lambda _, __, chunks: trunks.append(tuple(chunks.shape)))

    def chosen(policy: Policy) -> Selection:
        return selection if policy.name == "student" else SINGLE_SAMPLE

    policies = [NotingTeacher(teacher, 2), Noting(student, "student")]
    rows = measure_latency(policies, STATES, calls=2, warmup=1, execution_horizon=horizon, selection=chosen)
    assert set(rows) == {"teacher_2", "student"}
    # once in each of three rounds, and one evaluation is of all candidates
    assert heads == [("teacher_2", (1, 1, 8, 2)), ("student", (1, candidates, 1))] * 3
    assert trunks == [(candidates, 8, 2)] * 3


def test_what_is_timed_as_the_last_stage_is_the_choice(make_student) -> None:
    """One chunk leaves each call, however many were sampled."""
    left: list[tuple[int, ...]] = []
    student = make_student(latent_size=1, codes=4)
    plain = student.normaliser.unnormalise_action

    def noting(chunks: Tensor) -> Tensor:
        left.append(tuple(chunks.shape))
        return plain(chunks)

    student.normaliser.unnormalise_action = noting  # type: ignore[method-assign]
    measure_latency([StudentPolicy(student, "student")], STATES, 2, 1, 5, selection=lambda _: Selection("outlier_rejection", 7))
    assert left == [(1, 8, 2)] * 3


def test_a_policy_remembers_from_call_to_call() -> None:
    """A latent that is kept for two calls is drawn by every second call, after it has encoded."""
    drawn: list[int] = []

    class Drawing(Fake):
        def draw(self, samples: int, generator: torch.Generator) -> Tensor:
            drawn.append(len(self.journal))
            return super().draw(samples, generator)

    journal: list[tuple[str, float]] = []
    kept = Selection("kept_latent", forget_every=2)
    measure_latency([Drawing("a", journal)], STATES, 5, 0, 5, selection=lambda _: kept)  # type: ignore[list-item]
    assert drawn == [1, 3, 5]


def test_garbage_collection_is_off_while_timing_and_on_again_even_after_an_error() -> None:
    seen: list[bool] = []

    class Broken(Fake):
        def head(self, condition: Tensor, draws: Tensor) -> Tensor:
            seen.append(gc.isenabled())
            raise RuntimeError("out of order")

    with pytest.raises(RuntimeError, match="out of order"):
        _measure([Broken("a", [])])
    assert seen == [False] and gc.isenabled()
