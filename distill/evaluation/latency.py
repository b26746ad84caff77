"""Latency of policy calls: batch 1, synchronised, warmed up, all policies interleaved in one process."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch

from distill.evaluation.policies import Policy, RawObservation, device_of, postprocess, preprocess
from distill.evaluation.rollouts import query_policy
from distill.evaluation.statistics import latency_summary
from students.selection import SINGLE_SAMPLE, Memory, Selection, choose, draw_candidates

STAGES = ("preprocess_ms", "encode_ms", "head_ms", "post_ms")


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


def _timed(call: Callable[[], Any], device: torch.device) -> tuple[Any, float]:
    synchronise(device)
    begin = time.perf_counter_ns()
    result = call()
    synchronise(device)
    return result, (time.perf_counter_ns() - begin) / 1e6


@torch.inference_mode()
def _staged_call(
    policy: Policy, seen: RawObservation, generator: torch.Generator, selection: Selection, memory: Memory, executed: int
) -> list[float]:
    """Milliseconds of the four stages, device synchronised after each; selecting a candidate belongs to the last."""
    device = device_of(policy)
    observation, preprocess_ms = _timed(lambda: preprocess(policy, seen), device)
    condition, encode_ms = _timed(lambda: policy.encode(observation), device)
    draw = partial(policy.draw, generator=generator)

    def head() -> torch.Tensor:
        draws, _ = draw_candidates(selection, memory, draw, executed, policy.shape.horizon)
        return policy.head(condition, draws[None].to(device))

    candidates, head_ms = _timed(head, device)
    weights = torch.tensor(policy.shape.action_weights, device=device)
    _, post_ms = _timed(
        lambda: postprocess(policy, choose(selection, candidates, [memory], executed, weights)[0]), device
    )
    return [preprocess_ms, encode_ms, head_ms, post_ms]


def measure_latency(
    policies: Sequence[Policy], observations: RawObservation, calls: int, warmup: int, execution_horizon: int, seed: int = 0,
    selection: Callable[[Policy], Selection] = lambda policy: SINGLE_SAMPLE,
) -> dict[str, Any]:  # fmt: skip
    """Per policy: median, p95, p99 of the whole call [ms], Hz = 1 / median, and the medians of the stages.

    actions_per_second = Hz x execution_horizon, a different number from Hz.
    observations: N raw ones, `[N, O, ..]`, already on the host, used in turn. Every round calls each policy once, so slow
    moments of the machine affect all of them alike. selection: how each policy's samples are selected; all candidates are
    part of the call. A `RemotelyTimed` policy is timed in its own process.
    """
    generator = torch.Generator().manual_seed(seed)
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
                    if call >= 0:
                        whole[policy.name].append(milliseconds)
                        stages[policy.name].append(staged)
                    continue
                (_, remembered), milliseconds = _timed(
                    partial(query_policy, policy, seen, [generator], chosen, [memory], execution_horizon), device_of(policy)
                )
                memories[policy.name] = remembered[0]
                staged = _staged_call(policy, seen, generator, chosen, memory, execution_horizon)
                if call >= 0:
                    whole[policy.name].append(milliseconds)
                    stages[policy.name].append(staged)
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
