"""The stage `latency`: all policies timed in turn, in the first process only."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from distill.evaluation.latency import measure_latency
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

    calls, warmup: timed calls, and untimed calls before them.
    """

    evaluated: tuple[EvaluatePolicy, ...]
    world: World
    calls: int
    warmup: int
    name = "latency"

    @property
    def inputs(self) -> Mapping[str, Input | tuple[Input, ...]]:
        return {"policies": self.evaluated}

    @property
    def settings(self) -> Mapping[str, Any]:
        return {**selection_settings(self._sets.selection), "calls": self.calls, "warmup": self.warmup}

    @property
    def _sets(self) -> HeldOutSets:
        return self.evaluated[0].reference.sets

    def run(self, context: Context, folder: Path) -> None:
        if not context.is_main:
            return
        sets = self._sets
        policies = [each.policy.policy(context.by_itself()) for each in self.evaluated]
        rounds = self.warmup + self.calls
        with watched() as machine, context.by_itself().counter(rounds, "latency", "round") as bar:
            measured = measure_latency(
                policies, sets.observations.held_out(context), self.calls, self.warmup, sets.executed, sets.seed,
                partial(selection_for, students=sets.selection), bar.update,
            )  # fmt: skip
        camera_ms = self.world.camera_ms(self.calls, self.warmup)
        if camera_ms is not None:  # all policies of a run use the same cameras
            for latency in measured.values():
                latency["read_ms"] = camera_ms
        write_json(folder / "latency.json", measured)
        write_json(folder / MACHINE, machine)

    def load(self, folder: Path) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((folder / "latency.json").read_text())
        return found

    def machine(self, context: Context) -> dict[str, Any] | None:
        """How busy the machine was meanwhile, see `distill.store.machine.watched`; None for a result of before that."""
        path = self.folder(context) / MACHINE
        found: dict[str, Any] | None = json.loads(path.read_text()) if path.is_file() else None
        return found
