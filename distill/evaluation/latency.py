"""Latency of policy calls: batch 1, synchronised, warmed up, all policies interleaved in one process."""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch

from distill.evaluation.policies import Policy, RawObservation, device_of
from distill.evaluation.rollouts import query_policy
from distill.evaluation.statistics import latency_summary
from students.selection import SINGLE_SAMPLE, Memory, Selection

STAGES = ("preprocess_ms", "encode_ms", "head_ms", "post_ms")

PRIMED_MS = 20.0
"""A policy whose calls take less than this is called once untimed before each timed call. A robot runs one policy; here many
take turns, and a short call would find its weights evicted from the processor's caches by the other policies."""


@runtime_checkable
class RemotelyTimed(Protocol):
    """A policy in another process that is timed there, so that the transfer between processes is not counted."""

    def time_call(
        self, seen: RawObservation, generator: torch.Generator, selection: Selection, executed: int
    ) -> tuple[float, list[float]]:
        """Milliseconds of one call for one observation: whole, and of the four stages; the choice among samples is in both."""
        ...


def synchronise(device: torch.device) -> None:
    """Wait for the device, so that a clock read afterwards includes its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _timed_call(
    policy: Policy, seen: RawObservation, generator: torch.Generator, selection: Selection, memory: Memory, executed: int
) -> tuple[Memory, float, list[float]]:
    """The memory after one call; its milliseconds, whole and by stage: of the same call, so the stages add up to the whole."""
    device, read_ns = device_of(policy), list[int]()

    def read_clock() -> None:
        synchronise(device)
        read_ns.append(time.perf_counter_ns())

    read_clock()
    _, (remembered,) = query_policy(policy, seen, [generator], selection, [memory], executed, read_clock)
    return remembered, (read_ns[-1] - read_ns[0]) / 1e6, [float(each) / 1e6 for each in np.diff(read_ns)]


def measure_latency(
    policies: Sequence[Policy], observations: RawObservation, calls: int, warmup: int, execution_horizon: int, seed: int = 0,
    selection: Callable[[Policy], Selection] = lambda policy: SINGLE_SAMPLE,
    round_done: Callable[[], object] = lambda: None,
) -> dict[str, Any]:  # fmt: skip
    """Per policy: median, p95, p99 of the whole call [ms], Hz = 1 / median, and the medians of the same calls' stages.

    actions_per_second = Hz x execution_horizon, a different number from Hz.
    observations: N raw ones, `[N, O, ..]`, already on the host, used in turn. Every round times each policy once, so slow
    moments of the machine affect all of them alike; see also `PRIMED_MS`. selection: how each policy's samples are selected;
    all candidates are part of the call. A `RemotelyTimed` policy is timed in its own process. round_done: called after every
    round.
    """
    generator, untimed = (torch.Generator().manual_seed(seed + number) for number in range(2))
    last_ms: dict[str, float] = {}
    whole: dict[str, list[float]] = {policy.name: [] for policy in policies}
    memories = {policy.name: Memory() for policy in policies}
    stages: dict[str, list[list[float]]] = {policy.name: [] for policy in policies}
    gc.collect()
    gc.disable()  # a collection during a call would count as the policy's time
    try:
        for call in range(-warmup, calls):
            row = call % len(next(iter(observations.values())))
            seen = {name: values[row : row + 1] for name, values in observations.items()}
            for policy in policies:
                chosen, memory = selection(policy), memories[policy.name]
                if isinstance(policy, RemotelyTimed):
                    milliseconds, staged = policy.time_call(seen, generator, chosen, execution_horizon)
                else:
                    if last_ms.get(policy.name, math.inf) < PRIMED_MS:
                        query_policy(policy, seen, [untimed], chosen, [memory], execution_horizon)
                    memories[policy.name], milliseconds, staged = _timed_call(
                        policy, seen, generator, chosen, memory, execution_horizon
                    )
                    last_ms[policy.name] = milliseconds
                if call >= 0:
                    whole[policy.name].append(milliseconds)
                    stages[policy.name].append(staged)
            round_done()
    finally:
        gc.enable()
    results: dict[str, Any] = {}
    for policy in policies:
        summary: dict[str, Any] = latency_summary(np.array(whole[policy.name]))
        medians = np.median(np.array(stages[policy.name]), axis=0)
        summary |= {
            "calls": calls, "warmup": warmup,
            "actions_per_second": summary["hz"] * execution_horizon,
            "stages": dict(zip(STAGES, (float(value) for value in medians), strict=True)),
        }  # fmt: skip
        results[policy.name] = summary
    return results
