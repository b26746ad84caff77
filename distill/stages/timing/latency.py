"""The stage `latency`: all policies timed in turn, also in the run modes of this machine, in the first process only."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from distill.evaluation.run_modes import measure_in_modes, policies_in_modes, runs_in_modes
from distill.inputs.rollouts import selection_for, selection_settings
from distill.runtime.context import Context
from distill.runtime.stage import Input, Stage
from distill.stages.evaluate import EvaluatePolicy
from distill.stages.reference import HeldOutSets
from distill.store.machine import watched
from distill.store.manifest import write_json
from distill.worlds.contract import World

MACHINE = "machine.json"


@dataclass(frozen=True)
class MeasureLatency(Stage[dict[str, Any]]):
    """evaluated: the evaluations of the timed policies; the calls use their held-out observations.

    calls, warmup: timed calls, and untimed calls before them. modes: run modes besides eager (students.runtime), of those
    policies that have any; modes that this machine lacks are left out, and `left_out` says why.
    """

    evaluated: tuple[EvaluatePolicy, ...]
    world: World
    calls: int
    warmup: int
    modes: tuple[str, ...] = ()
    name = "latency"

    @property
    def inputs(self) -> Mapping[str, Input | tuple[Input, ...]]:
        return {"policies": self.evaluated}

    @property
    def settings(self) -> Mapping[str, Any]:
        return {**selection_settings(self._sets.selection), "calls": self.calls, "warmup": self.warmup,
                **({"modes": self.modes} if self.modes else {})}  # fmt: skip

    @property
    def _sets(self) -> HeldOutSets:
        return self.evaluated[0].reference.sets

    def run(self, context: Context, folder: Path) -> None:
        if not context.is_main:
            return
        sets = self._sets
        policies = [each.policy.policy(context.by_itself()) for each in self.evaluated]
        selection = partial(selection_for, students=sets.selection)
        runnable = len(self.modes) * sum(runs_in_modes(policy) for policy in policies)
        with context.by_itself().counter(runnable, "latency", "graph") as bar:
            in_modes, left_out = policies_in_modes(policies, self.modes, selection, sets.executed, bar.update)
        observations = sets.observations.held_out(context)
        rounds = self.warmup + self.calls
        with watched() as machine, context.by_itself().counter(rounds, "latency", "round") as bar:
            measured = measure_in_modes(
                policies, in_modes, observations, self.calls, self.warmup, sets.executed, sets.seed, selection, bar.update
            )
        camera_ms = self.world.camera_ms(self.calls, self.warmup)
        if camera_ms is not None:  # all policies of a run use the same cameras
            for latency in measured.values():
                latency["read_ms"] = camera_ms
        write_json(folder / "latency.json", measured)
        write_json(folder / MACHINE, {**machine, "left_out": left_out})

    def load(self, folder: Path) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((folder / "latency.json").read_text())
        return found

    def machine(self, context: Context) -> dict[str, Any] | None:
        """How busy the machine was meanwhile, see `distill.store.machine.watched`; left_out: why modes were not timed.

        None for a result of before that.
        """
        path = self.folder(context) / MACHINE
        found: dict[str, Any] | None = json.loads(path.read_text()) if path.is_file() else None
        return found
