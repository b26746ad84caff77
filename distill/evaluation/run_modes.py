"""Policies in run modes (students.runtime): the same call by another program, its parity with PyTorch, and the fastest mode."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from distill.evaluation.latency import measure_latency
from distill.evaluation.policies import Policy, RawObservation, StudentPolicy, TeacherPolicy, device_of
from distill.evaluation.rollouts import query_policy
from envs.specs import nearest_name
from students.runtime.calls import StudentInMode, TeacherInMode
from students.runtime.modes import MODES
from students.selection import SAME_PLAN, Memory, Selection, draw_candidates, remembers
from teachers.contract import Observation
from teachers.flow import FlowTeacher
from teachers.networks.shapes import PolicyShape

EAGER = "eager"
"""The name of PyTorch's own way, with all of a policy's checks."""

TOLERANCE = {"float32": 1e-4, "bfloat16": SAME_PLAN, "float16": SAME_PLAN}
"""The largest accepted difference from eager, in half ranges of an action, by a mode's precision. In half precision two plans
that count as one (`SAME_PLAN`) may stand for each other."""


@dataclass(frozen=True)
class PolicyInMode:
    """A policy whose calls are made by a run mode. call: of exactly the selection that it is queried with."""

    policy: TeacherPolicy | StudentPolicy
    mode: str
    call: StudentInMode | TeacherInMode

    @property
    def name(self) -> str:
        return f"{self.policy.name}@{self.mode}"

    @property
    def evaluations(self) -> int:
        return self.policy.evaluations

    @property
    def shape(self) -> PolicyShape:
        return self.policy.shape

    @property
    def module(self) -> torch.nn.Module:
        return self.policy.module

    def draw(self, samples: int, generator: torch.Generator) -> Tensor:
        return self.policy.draw(samples, generator)

    def encode(self, observation: Observation) -> Tensor:
        return self.policy.encode(observation)

    def head(self, condition_BC: Tensor, draws: Tensor) -> Tensor:
        return self.policy.head(condition_BC, draws)

    def query(
        self, seen: RawObservation, generators: Sequence[torch.Generator], selection: Selection, memories: Sequence[Memory],
        executed: int, stage_done: Callable[[], object], drawn: Callable[[Tensor], object] | None,
    ) -> tuple[np.ndarray, list[Memory]]:  # fmt: skip
        """See `distill.evaluation.rollouts.query_policy`: one graph call per observation, with the same random numbers."""
        found, after, horizon = [], [], self.shape.horizon
        for row, (memory, generator) in enumerate(zip(memories, generators, strict=True)):
            draws, memory = draw_candidates(selection, memory, partial(self.draw, generator=generator), executed, horizon)
            last_TA = memory.last_TA if remembers(selection, memory, executed, horizon) else None
            observation = seen if len(memories) == 1 else {name: values[row : row + 1] for name, values in seen.items()}
            stage_done()
            stage_done()
            outcome = self.call(observation, draws.numpy(), None if last_TA is None else last_TA.cpu().numpy())
            stage_done()
            # only what is used later: this is part of the measured call
            plan_TA = torch.from_numpy(outcome.candidates_NTA[outcome.index]) if selection.has_memory else None
            after.append(Memory(memory.replans + 1, plan_TA, memory.draw))
            found.append(outcome)
        if drawn is not None:
            drawn(torch.from_numpy(np.stack([each.candidates_NTA for each in found])))
        result = found[0].chunk_TA[None] if len(found) == 1 else np.stack([each.chunk_TA for each in found])
        stage_done()
        return result, after


def check_modes(names: Sequence[str], setting: str) -> None:
    """Raises ValueError for an unknown or repeated mode, with the name of the setting."""
    for name in names:
        if name not in MODES:
            raise ValueError(f"{setting}: unknown run mode {name!r}; expected some of {list(MODES)}{nearest_name(name, MODES)}")
    if len(set(names)) < len(names):
        raise ValueError(f"{setting}: got a run mode twice in {list(names)}; name each once")


def policies_in_modes(
    policies: Sequence[Policy], modes: Sequence[str], selection: Callable[[Policy], Selection], executed: int,
    built: Callable[[], object] = lambda: None,
) -> tuple[list[PolicyInMode], dict[str, str]]:  # fmt: skip
    """Those of the policies that run in modes, in each mode that this machine has; and why a mode is left out, by its name.

    built: called after each graph. Students and flow teachers run in modes; diffusion and energy teachers, baselines and
    external policies run in PyTorch only.
    """
    found: list[PolicyInMode] = []
    left_out: dict[str, str] = {}
    for name in modes:
        teachers: dict[int, TeacherInMode] = {}
        for policy in policies:
            if not runs_in_modes(policy):
                continue
            reason = MODES[name].missing(device_of(policy))
            if reason:
                left_out[name] = reason
                break
            try:
                found.append(in_mode(policy, name, selection(policy), executed, teachers))
            except RuntimeError as error:
                left_out[name] = f"failed for {policy.name}: {' '.join(str(error).split())[:200]}"
                found = [each for each in found if each.mode != name]
                break
            built()
    return found, left_out


def runs_in_modes(policy: Policy) -> bool:
    """Whether a policy can run in modes."""
    return isinstance(policy, StudentPolicy) or (isinstance(policy, TeacherPolicy) and isinstance(policy.module, FlowTeacher))


def in_mode(
    policy: Policy, mode: str, selection: Selection, executed: int, teachers: dict[int, TeacherInMode] | None = None
) -> PolicyInMode:
    """A policy in a mode that this machine has. teachers: those of this mode by `id`, whose graphs are used again."""
    if isinstance(policy, StudentPolicy):
        return PolicyInMode(policy, mode, StudentInMode(policy.module, MODES[mode], selection, executed))
    assert isinstance(policy, TeacherPolicy) and isinstance(policy.module, FlowTeacher)
    shared = {} if teachers is None else teachers
    call = TeacherInMode(policy.module, MODES[mode], policy.num_steps, shared.get(id(policy.module)))
    shared[id(policy.module)] = call
    return PolicyInMode(policy, mode, call)


@torch.inference_mode()
def parity(
    policy: PolicyInMode, observations: RawObservation, selection: Selection, executed: int, calls: int = 32, seed: int = 0
) -> dict[str, Any]:
    """How far the mode is from eager on the same random numbers, over `calls` observations `[N, O, ..]` in turn.

    largest: the greatest difference of any candidate, in half ranges of an action. other_choice: share of calls that execute
    another of the candidates. holds: whether `largest` is within `TOLERANCE`.
    """
    largest, other = 0.0, 0
    for call in range(calls):
        row = call % len(next(iter(observations.values())))
        seen = {name: values[row : row + 1] for name, values in observations.items()}
        results = []
        for each in (policy.policy, policy):
            candidates: list[Tensor] = []
            generator = torch.Generator().manual_seed(seed + call)
            chunk, _ = query_policy(each, seen, [generator], selection, [Memory()], executed, drawn=candidates.append)
            results.append((candidates[0].cpu(), chunk))
        (eager, eager_chunk), (ours, our_chunk) = results
        largest = max(largest, float((eager - ours).abs().max()))
        _, scale_A = policy.module.normaliser.centre_scale("action")  # type: ignore[operator,union-attr]
        tolerance = TOLERANCE[MODES[policy.mode].precision]
        other += bool((np.abs(eager_chunk - our_chunk) / scale_A.cpu().numpy()).max() > tolerance)
    return {"largest": largest, "other_choice": other / calls, "calls": calls,
            "holds": largest <= TOLERANCE[MODES[policy.mode].precision]}  # fmt: skip


def measure_in_modes(
    policies: Sequence[Policy], in_modes: Sequence[PolicyInMode], observations: RawObservation, calls: int, warmup: int,
    executed: int, seed: int, selection: Callable[[Policy], Selection], round_done: Callable[[], object] = lambda: None,
) -> dict[str, Any]:  # fmt: skip
    """`measure_latency` of the policies, eagerly and in their modes, all in the same rounds.

    Each policy's latency also has ``modes`` (times and `parity` by name) where it has any, and ``best_mode`` (`fastest`).
    """
    measured = measure_latency([*policies, *in_modes], observations, calls, warmup, executed, seed, selection, round_done)
    for each in in_modes:
        alike = parity(each, observations, selection(each.policy), executed)
        measured[each.policy.name].setdefault("modes", {})[each.mode] = {**measured.pop(each.name), "parity": alike}
    for latency in measured.values():
        latency["best_mode"] = fastest(latency)
    return measured


def fastest(latency: Mapping[str, Any]) -> str:
    """The mode of the smallest median of one policy's latency (`median_ms`, and `modes` by name) among those with parity."""
    times = {EAGER: float(latency["median_ms"])}
    times |= {name: float(each["median_ms"]) for name, each in latency.get("modes", {}).items() if each["parity"]["holds"]}
    return min(times, key=lambda name: times[name])
