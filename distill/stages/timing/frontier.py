"""The stage `frontier`: success and latency of the default student by the number of samples that a query draws."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from distill.evaluation.rollouts import summarise
from distill.evaluation.run_modes import measure_in_modes, policies_in_modes
from distill.inputs.choice import Starts
from distill.inputs.policies import MeasuredPolicy
from distill.inputs.rollouts import Rollouts, selection_for, selection_settings
from distill.runtime.context import Context
from distill.runtime.stage import Input, Stage
from distill.stages.timing.latency import MeasureLatency
from distill.store.manifest import write_json
from students.selection import SINGLE_SAMPLE, Selection


@dataclass(frozen=True)
class MeasureFrontier(Stage[list[dict[str, Any]]]):
    """A row per number in `samples`, each from the same test starts: ``samples``, ``summary``, ``episodes``, ``latency``.

    latency: the stage whose calls, modes and observations are used.
    """

    student: MeasuredPolicy
    rollouts: Rollouts
    test: Starts
    latency: MeasureLatency
    samples: tuple[int, ...]
    name = "frontier"

    @property
    def inputs(self) -> Mapping[str, Input | tuple[Input, ...]]:
        return {**self.student.inputs, "test_starts": self.test, **self.rollouts.inputs, "policies": self.latency.evaluated[0]}

    @property
    def settings(self) -> Mapping[str, Any]:
        timed = {"calls": self.latency.calls, "warmup": self.latency.warmup, "modes": self.latency.modes}
        return {**self.rollouts.settings(student=True), **selection_settings(self.rollouts.selection),
                "samples": self.samples, **timed}  # fmt: skip

    def run(self, context: Context, folder: Path) -> None:
        policy, starts = self.student.policy(context), self.test.starts(context)
        rows = []
        for count in self.samples:
            drawn = replace(self.rollouts, selection=self._selection(count))
            episodes = drawn.run(context, policy, starts, "test", folder, f"samples_{count}")
            rows.append({"samples": count, "summary": summarise(self.rollouts.world.spec, episodes),
                         "episodes": [{"success": episode.success} for episode in episodes]})  # fmt: skip
        if context.is_main:
            alone = context.by_itself()
            timed = [{**row, "latency": self._timed(alone, self._selection(count))}
                     for row, count in zip(rows, self.samples, strict=True)]  # fmt: skip
            write_json(folder / "frontier.json", timed)

    def _selection(self, count: int) -> Selection:
        return SINGLE_SAMPLE if count == 1 else replace(self.rollouts.selection, candidates=count)

    def _timed(self, context: Context, selection: Selection) -> dict[str, Any]:
        sets = self.latency.evaluated[0].reference.sets
        policy, observations = self.student.policy(context), sets.observations.held_out(context)
        chosen = partial(selection_for, students=selection)
        in_modes, _ = policies_in_modes([policy], self.latency.modes, chosen, sets.executed)
        measured = measure_in_modes(
            [policy], in_modes, observations, self.latency.calls, self.latency.warmup, sets.executed, sets.seed, chosen
        )
        found: dict[str, Any] = measured[policy.name]
        return found

    def load(self, folder: Path) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = json.loads((folder / "frontier.json").read_text())
        return found
