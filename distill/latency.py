"""Latency of policy calls: batch 1, synchronised, warmed up, all policies interleaved in one process."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch

from distill.policies import Policy, device_of, plan, postprocess, preprocess
from distill.statistics import latency_summary

STAGES = ("preprocess_ms", "encode_ms", "head_ms", "post_ms")


def synchronise(device: torch.device) -> None:
    """Wait for the device, so that a clock read afterwards counts its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _timed(call: Callable[[], Any], device: torch.device) -> tuple[Any, float]:
    synchronise(device)
    begin = time.perf_counter_ns()
    result = call()
    synchronise(device)
    return result, (time.perf_counter_ns() - begin) / 1e6


@torch.inference_mode()
def _staged_call(policy: Policy, state_1OS: np.ndarray, generator: torch.Generator) -> list[float]:
    """Milliseconds of the four stages, the device synchronised after each."""
    device = device_of(policy)
    observation, preprocess_ms = _timed(lambda: preprocess(policy, state_1OS), device)
    condition, encode_ms = _timed(lambda: policy.encode(observation), device)
    chunk, head_ms = _timed(lambda: policy.head(condition, policy.draw(1, generator)[None].to(device)), device)
    _, post_ms = _timed(lambda: postprocess(policy, chunk), device)
    return [preprocess_ms, encode_ms, head_ms, post_ms]


def measure(
    policies: Sequence[Policy], states_NOS: np.ndarray, calls: int, warmup: int, execution_horizon: int, seed: int = 0
) -> dict[str, Any]:
    """Per policy: median, p95, p99 of the whole call [ms], Hz = 1 / median, and the stages' medians.

    Actions per second = Hz x execution_horizon: what the policy could deliver, another number than Hz.
    states_NOS: raw states that are already on the host, cycled through; every round calls each policy once, so slow
    moments of the machine hit all of them alike.
    """
    generator = torch.Generator().manual_seed(seed)
    whole: dict[str, list[float]] = {policy.name: [] for policy in policies}
    stages: dict[str, list[list[float]]] = {policy.name: [] for policy in policies}
    gc.collect()
    gc.disable()  # a collection in the middle of a call would be counted as the policy's time
    try:
        for call in range(-warmup, calls):
            state_1OS = states_NOS[call % len(states_NOS)][None]
            for policy in policies:
                _, milliseconds = _timed(partial(plan, policy, state_1OS, [generator]), device_of(policy))
                staged = _staged_call(policy, state_1OS, generator)
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
