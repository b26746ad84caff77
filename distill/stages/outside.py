"""A run on recorded observations: what `convert` and `compare` share, built on the run's own stages and measurements."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from distill.cli.opening import Opened, read_seen, spec_of
from distill.context import Run
from distill.evaluation.demonstrated import SupportMonitor
from distill.evaluation.fidelity import measuring_normaliser
from distill.evaluation.policies import Policy, Seen
from distill.hypotheses.cache import draw_hypotheses, hypothesis_seeds
from distill.stages.measuring import draw_reference, measure_policy, parameters_of, set_figures
from distill.stages.pipeline import Pipeline
from distill.stages.plan import Plan
from distill.store.manifest import write_json
from envs.panda.recording import stored_starts
from envs.recorded.outliers import robust_range, without_diverged
from envs.specs import STATE
from teachers.contract import Observation
from teachers.networks.normalisation import Normaliser, observed_ranges
from teachers.networks.observations import sources_of
from teachers.networks.shapes import PolicyShape

if TYPE_CHECKING:
    from envs.recorded.observations import RecordedObservations

PILOT = 64
"""Observations that an adapter is asked at for the range of its actions, before any of its chunks can be normalised."""

MOST_FRAMES = 4096
"""Frames that the ranges of what was observed are taken from, spread over all there are."""


def spread(frames: np.ndarray, most: int) -> np.ndarray:
    """At most so many of the frames, evenly."""
    chosen: np.ndarray = frames[np.unique(np.linspace(0, len(frames) - 1, min(most, len(frames))).round().astype(int))]
    return chosen


class Outside(Pipeline):
    """Existing policies on recorded observations: the first that was opened is the reference of every comparison.

    Nothing is demonstrated and no teacher is trained here. Success is measured where the config names a task.
    """

    def __init__(
        self, run: Run, plan: Plan, recorded: RecordedObservations, opened: Mapping[str, Opened],
        shape: PolicyShape | None = None,
    ) -> None:  # fmt: skip
        """opened: by the names that their results have; shape: of students that start afresh, else the first policy's."""
        self.opened, self.recorded = dict(opened), recorded
        self.first = next(iter(self.opened.values()))
        self.shape = shape or self.first.shape
        super().__init__(run, plan, spec_of(self.first.shape, recorded.path))
        self.frames = recorded.split(self.config.teacher.observation_steps)
        self._statistics: dict[str, Normaliser] = {}

    # -- the data ---------------------------------------------------------------------------------------------------

    def features(self) -> tuple[str, ...]:
        """Everything that any of the policies looks at, the state always among it."""
        shapes = [self.shape, *(each.shape for each in self.opened.values())]
        return tuple(dict.fromkeys((STATE, *(name for shape in shapes for name in sources_of(shape)))))

    def seen_at(self, frames: np.ndarray, features: tuple[str, ...] = ()) -> Seen:
        """What was observed at these frames, raw, `[n, O, ..]`."""
        return read_seen(self.recorded, frames, self.config.teacher.observation_steps, features or self.features())

    def held_out(self) -> Seen:
        if not self._held_out:
            self._held_out = self.seen_at(spread(self.frames["test"], self.config.evaluate.fidelity_observations))
        return self._held_out

    def stored(self) -> dict[str, Tensor]:
        """``test``: starts `[E, D]` of the task, where there is one."""
        config = self.config
        if not self._stored and config.task:
            starts = stored_starts(config.task, config.seed, "test", config.evaluate.test_starts)
            self._stored = {"test": torch.from_numpy(starts)}
        return self._stored

    def monitor(self) -> SupportMonitor | None:
        return None

    # -- statistics -------------------------------------------------------------------------------------------------

    def demos(self) -> Path:
        """The stage `observations`: ranges of what was recorded and of what the reference makes of it."""
        return self._do(self.plan.demos, self._measure_ranges)

    def starts(self) -> Path:
        return self.demos()

    def _measure_ranges(self, folder: Path) -> None:
        if not self.run.is_main:
            return
        shape, frames = self.shape, spread(self.frames["train"], MOST_FRAMES)
        states = []

        def blocks() -> Iterator[Observation]:
            for block in self.bar(np.array_split(frames, -(-len(frames) // 256)), "observations", "block"):
                seen = read_seen(self.recorded, block, 1, tuple(dict.fromkeys((STATE, *sources_of(shape)))))
                states.append(seen[STATE].reshape(-1, shape.state_size))
                yield {name: torch.from_numpy(value) for name, value in seen.items()}

        ranges = observed_ranges(blocks(), robust=True)
        pilot_nTA = self._pilot().flatten(0, 1).numpy()
        kept_n = without_diverged(pilot_nTA)
        if not kept_n.all():
            self.run.say(f"  {int((~kept_n).sum())} of {len(kept_n)} chunks of the teacher are far from all others: they do "
                         f"not set the "
                         "range of its actions")  # fmt: skip
        for name, rows in (("state", np.concatenate(states)), ("action", pilot_nTA[kept_n].reshape(-1, shape.action_size))):
            ranges[name] = dict(zip(("min", "max"), robust_range(rows), strict=True))  # which pass NaN on
        tensors = {f"{name}.{end}": torch.from_numpy(np.asarray(value, dtype=np.float64))
                   for name, ends in ranges.items() for end, value in ends.items()}  # fmt: skip
        wrong = [name for name, value in tensors.items() if not bool(torch.isfinite(value).all())]
        if wrong:
            raise ValueError(f"{', '.join(wrong)}: NaN or infinity, expected finite ranges of what was recorded and of the "
                             "teacher's actions; nothing can be normalised by them")  # fmt: skip
        save_file(tensors, str(folder / "ranges.safetensors"))

    def _pilot(self) -> Tensor:
        """Chunks of the reference at a few training observations."""
        frames = spread(self.frames["train"], PILOT)
        seeds_NK = hypothesis_seeds(self.config.seed ^ 0x9107, frames, 8)
        assert not isinstance(self.first.policy, torch.nn.Module)
        drawn, teacher, host = [], self.first.policy, torch.device("cpu")
        for part in np.array_split(np.arange(len(frames)), -(-len(frames) // self.config.sample.batch_size)):
            seen = self.seen_at(frames[part], sources_of(self.first.shape))
            observation = {name: torch.from_numpy(value) for name, value in seen.items()}
            drawn.append(draw_hypotheses(teacher, observation, seeds_NK[part], self.first.num_steps, host))
        return torch.cat(drawn)

    def normaliser(self) -> Normaliser:
        """The reference's own, or the one made from what was recorded and from its chunks."""
        if isinstance(self.first.policy, torch.nn.Module):
            own: Normaliser = self.first.policy.normaliser
            return own
        if not self._statistics:
            tensors = load_file(str(self.demos() / "ranges.safetensors"))
            told = {name: {end: tensors[f"{name}.{end}"].numpy() for end in ("min", "max")}
                    for name in {key.split(".")[0] for key in tensors}}  # fmt: skip
            made = Normaliser.of(self.shape)
            made.fit(told)
            self._statistics["made"] = made.to(self.run.accelerator.device)
        return self._statistics["made"]

    def measuring_normaliser(self) -> Normaliser:
        """That which sets are compared in: the reference's, without ranges that it never uses."""
        drawn = load_file(str(self.reference() / "reference.safetensors"))["reference"]
        return measuring_normaliser(self.normaliser(), drawn)

    # -- the measuring ----------------------------------------------------------------------------------------------

    def teach(self) -> Path:
        """Nothing is trained; the reference is where it was named."""
        return Path(self.first.label)

    def policy(self, name: str) -> Policy:
        """A policy that was opened, as it is measured under this name."""
        opened, steps = self._named(name)
        return opened.at(steps, name, self.normaliser(), self.run.accelerator.device)

    def _named(self, name: str) -> tuple[Opened, int]:
        return self.opened[name], self.opened[name].num_steps

    def teacher_policy(self, steps: int) -> Policy:
        return self.policy(next(iter(self.plan.baselines_evaluated)))

    def reference(self) -> Path:
        return self._do(self.plan.reference, partial(draw_reference, self))

    def evaluate_baseline(self, name: str) -> Path:
        self.reference()
        return self._do(self.plan.baselines_evaluated[name], lambda folder: self._measure(folder, self.policy(name)))

    def _measure(self, folder: Path, policy: Policy) -> None:
        if self.config.task:
            measure_policy(self, folder, policy, self.measuring_normaliser())
            return
        figures = set_figures(self, policy, self.measuring_normaliser())
        if self.run.is_main:
            write_json(folder / "result.json", {
                "policy": policy.name, "nfe": policy.evaluations, "parameters": parameters_of(policy), **figures,
            })  # fmt: skip

    def evaluate(self) -> None:
        """Every policy, then the latency of all of them side by side."""
        for name in self.plan.baselines_evaluated:
            self.evaluate_baseline(name)
        self.latency()

    def policies(self) -> list[Policy]:
        return [self.policy(name) for name in self.plan.baselines_evaluated]

    def distill(self) -> dict[str, Path]:
        """Nothing: what is compared is there already."""
        return {}

    def report(self) -> Path:
        """report.json, report.md and report.html."""
        from distill.report.conversion import write_outside_report
        from distill.stages.outside_results import collect_outside

        self.evaluate()

        def work(folder: Path) -> None:
            if self.run.is_main:
                write_outside_report(folder, collect_outside(self))

        return self._do(self.plan.report, work)

    def result(self, name: str) -> dict[str, Any]:
        """What was measured of a policy."""
        stage = {**self.plan.baselines_evaluated, **self.plan.students_evaluated}[name]
        told: dict[str, Any] = json.loads((self.run.folder(stage) / "result.json").read_text())
        return told
