"""The choice among checkpoints: by rollouts where there is a world, else by the distance of sample sets."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from distill.evaluation.fidelity import average, set_fidelity
from distill.evaluation.policies import Policy, RawObservation, raw_sample_set
from distill.evaluation.rollouts import summarise
from distill.inputs.observations import HeldOut
from distill.inputs.policies import MeasuredPolicy
from distill.inputs.rollouts import Rollouts, selection_for, selection_settings
from distill.inputs.teachers import TeacherSource
from distill.runtime.context import Context
from distill.runtime.stage import Input
from distill.store.manifest import write_json
from distill.training.loop import step_generator
from students.selection import Selection


class Starts(Input, Protocol):
    """Starts of one split (distill.stages.starts)."""

    def starts(self, context: Context) -> np.ndarray: ...


class Choice(Protocol):
    """inputs, settings: what the chosen checkpoint depends on, apart from the candidates."""

    @property
    def inputs(self) -> Mapping[str, Input]: ...

    def settings(self, student: bool) -> Mapping[str, Any]: ...

    def choose(self, context: Context, folder: Path, trained: Path, load: Callable[[Path], Policy]) -> None:
        """Copy one of the ``candidate-*`` folders in `trained` to `folder`; write the reason to ``validation.json``."""
        ...


@dataclass(frozen=True)
class ByRollouts:
    """The best mean of success rate and mode entropy on the validation starts; on ties the latest.

    Loss is no proxy for either, and success alone would accept a policy with a single mode.
    """

    rollouts: Rollouts
    validation: Starts

    @property
    def inputs(self) -> Mapping[str, Input]:
        return {"validation": self.validation, **self.rollouts.inputs}

    def settings(self, student: bool) -> Mapping[str, Any]:
        return self.rollouts.settings(student)

    def choose(self, context: Context, folder: Path, trained: Path, load: Callable[[Path], Policy]) -> None:
        starts, spec = self.validation.starts(context), self.rollouts.world.spec
        candidates = sorted(trained.glob("candidate-*"))
        rows: list[dict[str, Any]] = []
        for path in candidates:
            summary = summarise(spec, self.rollouts.run(context, load(path), starts, "validation", folder, path.name))
            success = summary["successes"] / summary["episodes"]
            rows.append({"step": step_of(path), "success_rate": success, "entropy": summary["entropy"]})
        best = max(range(len(rows)), key=lambda row: (rows[row]["success_rate"] + (rows[row]["entropy"] or 0.0), row))
        if context.is_main:
            save_choice(folder, candidates, rows, best)


@dataclass(frozen=True)
class BySets:
    """The lowest energy distance to fresh samples of the reference on validation observations; on ties the latest.

    samples: S per set. executed: actions between replans, for the selection. weights_A: of the distance.
    """

    reference: MeasuredPolicy
    source: TeacherSource
    observations: HeldOut
    samples: int
    executed: int
    selection: Selection
    weights_A: tuple[float, ...]
    seed: int

    @property
    def inputs(self) -> Mapping[str, Input]:
        return {"observations": self.observations, **self.reference.inputs}

    def settings(self, student: bool) -> Mapping[str, Any]:
        chosen = selection_settings(self.selection) if student else {}
        return {**self.reference.settings, "samples": self.samples, "execution_horizon": self.executed, "seed": self.seed,
                **chosen}  # fmt: skip

    def choose(self, context: Context, folder: Path, trained: Path, load: Callable[[Path], Policy]) -> None:
        if not context.is_main:
            return
        seen, weights_A = self.observations.held_out(context), torch.tensor(self.weights_A, device=context.device)
        wanted = self._sets(context, self.reference.policy(context), seen)
        candidates, rows = sorted(trained.glob("candidate-*")), []
        for path in context.bar(candidates, "choose a checkpoint", "checkpoint"):
            made = self._sets(context, load(path), seen)
            parts = [(1, set_fidelity(mine, its, weights_A)) for mine, its in zip(made, wanted, strict=True)]
            figures: dict[str, Any] = {name: average(parts)[name] for name in ("energy_distance", "off_support_share")}
            rows.append({"step": step_of(path), **figures})
        best = min(range(len(rows)), key=lambda row: (rows[row]["energy_distance"], -row))
        save_choice(folder, candidates, rows, best)

    def _sets(self, context: Context, policy: Policy, seen: RawObservation) -> list[Tensor]:
        """Normalised chunks `[1, S, T, A]` of a policy for each observation."""
        normaliser, count = self.source.normaliser(context), len(next(iter(seen.values())))
        selection = selection_for(policy, self.selection)
        chunks = [
            raw_sample_set(policy, {name: value[row : row + 1] for name, value in seen.items()},
                           step_generator(self.seed, row, stream=3), self.samples, selection, self.executed)
            for row in range(count)
        ]  # fmt: skip
        return [normaliser.normalise_action(torch.from_numpy(each).to(context.device))[None] for each in chunks]


def step_of(candidate: Path) -> int:
    """The training step of a ``candidate-<step>`` folder."""
    return int(candidate.name.rsplit("-", 1)[1])


def save_choice(folder: Path, candidates: Sequence[Path], rows: Sequence[Mapping[str, Any]], best: int) -> None:
    """Copy the best candidate to `folder` and write ``validation.json``, one row per candidate."""
    for name in ("config.json", "model.safetensors"):
        shutil.copyfile(candidates[best] / name, folder / name)
    write_json(folder / "validation.json", [{**row, "chosen": index == best} for index, row in enumerate(rows)])
