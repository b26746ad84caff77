"""The stages `real_time/<policy>`: rollouts in which the simulation goes on while the policy computes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from distill.config import RealTimeConfig
from distill.evaluation.real_time import CONDITIONS, Clock, RealTimeEpisode, delay_steps, outcome
from distill.hypotheses.cache import episode_seed
from distill.inputs.choice import Starts
from distill.inputs.policies import MeasuredPolicy
from distill.inputs.rollouts import selection_for, selection_settings
from distill.runtime.context import Context
from distill.runtime.stage import Input, Stage
from distill.stages.timing.latency import MeasureLatency
from distill.store.manifest import write_json
from distill.worlds.contract import World
from students.selection import Selection

STREAM = "moving"
"""Name of the random stream of all these rollouts; another name gives other draws."""


@dataclass(frozen=True)
class RollOutInRealTime(Stage[dict[str, Any]]):
    """One policy at every latency of `config`, with and without the disturbance.

    latency: the stage of the measured latencies. student: the policy whose call `scale_to_clock` scales to one control period.
    """

    policy: MeasuredPolicy
    world: World
    test: Starts
    latency: MeasureLatency
    config: RealTimeConfig
    execution_horizon: int
    selection: Selection
    student: str
    seed: int

    @property
    def name(self) -> str:
        return f"real_time/{self.policy.name}"

    @property
    def inputs(self) -> Mapping[str, Input | tuple[Input, ...]]:
        # measured latencies come from a stage; stated ones are settings
        measured = {"latency": self.latency} if self.config.measures else {}
        return {**self.policy.inputs, "test_starts": self.test, **measured}

    @property
    def settings(self) -> Mapping[str, Any]:
        config = self.config
        settings: dict[str, Any] = {
            **self.policy.settings, **self.world.origin, **self.world.camera_key,
            "disturbance": asdict(self.world.disturbance), "latency_ms": [float(value) for value in config.latency_ms],
            "execution_horizon": self.execution_horizon, "starts": config.starts,
            "delays_per_query": float(config.delays_per_query),
        }  # fmt: skip
        if self.policy.kind == "student":
            settings |= selection_settings(self.selection)
        if config.measures:
            settings |= {"time_scales": [float(value) for value in config.time_scales]}
        if config.scale_to_clock:
            settings |= {"scaled_to_clock_of": self.student}
        return settings

    def run(self, context: Context, folder: Path) -> None:
        policy, every, dt_s = self.policy.policy(context), self.execution_horizon, self.world.spec.dt_s
        starts = self.test.starts(context)[: self.config.starts or None]
        seed = episode_seed(self.seed, STREAM, 0, 0)
        done: dict[Clock, dict[str, list[RealTimeEpisode]]] = {}
        times = self._times(context)
        for time in times:
            clock = Clock(delay_steps(time["latency_ms"], dt_s), every, self.config.delays_per_query)
            time |= {"delay_steps": clock.delay, "period_steps": clock.period}
            if clock not in done:  # equal control delays give the same rollout
                done[clock] = {
                    condition: self.world.roll_out_in_real_time(
                        context, policy, starts, clock, seed, condition == "disturbed",
                        selection_for(policy, self.selection), f"{policy.name} ({clock.delay} steps late, {condition})",
                    )
                    for condition in CONDITIONS
                }  # fmt: skip
        if context.is_main:
            for time in times:
                rolled = done[Clock(time["delay_steps"], every, self.config.delays_per_query)]
                time |= {condition: [outcome(each) for each in rolled[condition]] for condition in CONDITIONS}
            write_json(folder / "result.json", {
                "policy": policy.name, "dt_s": dt_s, "every_steps": every,
                "delays_per_query": self.config.delays_per_query, "times": times,
            })  # fmt: skip

    def _times(self, context: Context) -> list[dict[str, Any]]:
        """The latencies [ms] of a call: the stated ones, then the policy's measured one times each scale."""
        config = self.config
        times: list[dict[str, Any]] = [{"scale": None, "latency_ms": float(stated)} for stated in config.latency_ms]
        if config.measures:
            measured = self.latency.result(context)
            scales = [float(scale) for scale in config.time_scales]
            if config.scale_to_clock:
                scales.append(1000 * self.world.spec.dt_s / measured[self.student]["median_ms"])
            times += [{"scale": scale, "latency_ms": scale * measured[self.policy.name]["median_ms"]} for scale in scales]
        return times

    def load(self, folder: Path) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((folder / "result.json").read_text())
        return found
