"""Latency: warm-up left out, policies interleaved, the device waited for, the clock's arithmetic; made-up policies."""

from __future__ import annotations

import gc
import time
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from distill import latency
from distill.latency import STAGES, measure
from envs.specs import STATE

STATES = np.arange(12, dtype=np.float32).reshape(3, 2, 2)


class Fake:
    """A policy that notes when it is asked; `slow_s` is slept in its head."""

    def __init__(self, name: str, journal: list[tuple[str, float]], slow_s: float = 0.0) -> None:
        self.name, self.journal, self.slow_s = name, journal, slow_s
        self.evaluations, self.shape = 1, None
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


def _measure(policies: list[Any], calls: int = 3, warmup: int = 2, execution_horizon: int = 5) -> dict[str, Any]:
    return measure(policies, STATES, calls=calls, warmup=warmup, execution_horizon=execution_horizon)


def test_policies_are_asked_in_turns_on_the_same_observation() -> None:
    journal: list[tuple[str, float]] = []
    _measure([Fake("a", journal), Fake("b", journal)])
    # each round asks a policy twice, once for the whole and once for its stages; the states go round
    firsts = [4.0, 8.0, 0.0, 4.0, 8.0]
    assert journal == [(name, first) for first in firsts for name in ("a", "a", "b", "b")]


def test_the_device_is_waited_for_before_and_after_everything_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[torch.device] = []
    monkeypatch.setattr(latency, "synchronise", waited.append)
    _measure([Fake("a", [])], calls=4, warmup=1)
    assert waited == [torch.device("cpu")] * (2 * (1 + len(STAGES)) * 5)


def test_a_cuda_device_is_synchronised(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "synchronize", asked.append)
    latency.synchronise(torch.device("cpu"))
    latency.synchronise(torch.device("cuda", 0))
    assert asked == [torch.device("cuda", 0)]


def test_the_numbers_follow_from_the_clock_and_the_warm_up_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    # whole calls take 100 in the warm-up, then 1, 2, 3, 4, 10 ms; the stages always 1, 2, 3, 4 ms
    whole = iter([100.0, 1.0, 2.0, 3.0, 4.0, 10.0])
    monkeypatch.setattr(latency, "_timed", lambda call, device: (call(), next(whole)))
    monkeypatch.setattr(latency, "_staged_call", lambda *_: [1.0, 2.0, 3.0, 4.0])
    row = _measure([Fake("a", [])], calls=5, warmup=1)["a"]
    assert (row["calls"], row["warmup"]) == (5, 1)
    assert row["median_ms"] == pytest.approx(3.0) and row["hz"] == pytest.approx(1000 / 3)
    assert row["actions_per_second"] == pytest.approx(5000 / 3)
    assert 4.0 < row["p95_ms"] <= row["p99_ms"] <= 10.0
    assert row["stages"] == {"preprocess_ms": 1.0, "encode_ms": 2.0, "head_ms": 3.0, "post_ms": 4.0}


def test_a_policy_that_sleeps_is_slower_and_in_its_head() -> None:
    rows = _measure([Fake("slow", [], 0.005), Fake("fast", [])], calls=15, warmup=1)
    slow, fast = rows["slow"], rows["fast"]
    assert slow["median_ms"] >= 5.0 and slow["median_ms"] > fast["median_ms"]
    assert slow["stages"]["head_ms"] >= 5.0 and slow["stages"]["head_ms"] > fast["stages"]["head_ms"]
    assert slow["stages"]["head_ms"] > slow["stages"]["encode_ms"]


def test_garbage_collection_is_off_while_timing_and_on_again_even_after_an_error() -> None:
    seen: list[bool] = []

    class Broken(Fake):
        def head(self, condition: Tensor, draws: Tensor) -> Tensor:
            seen.append(gc.isenabled())
            raise RuntimeError("out of order")

    with pytest.raises(RuntimeError, match="out of order"):
        _measure([Broken("a", [])])
    assert seen == [False] and gc.isenabled()
