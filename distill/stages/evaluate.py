"""The stages `evaluate/<policy>`: rollouts from the stored test starts, and sample sets against the reference's."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from distill.evaluation.diversity import mode_figures, summarise_modes
from distill.evaluation.external import AdapterPolicy
from distill.evaluation.fidelity import average, dimension_figures, measuring_normaliser, set_fidelity
from distill.evaluation.policies import Policy, device_of
from distill.evaluation.rollouts import summarise, to_json
from distill.inputs.choice import Starts
from distill.inputs.policies import MeasuredPolicy
from distill.inputs.rollouts import Rollouts, selection_settings
from distill.inputs.teachers import TeacherSource
from distill.runtime.context import Context
from distill.runtime.stage import Input, Stage
from distill.stages.reference import DrawReference
from distill.store.manifest import write_json
from envs.specs import TaskSpec
from teachers.networks.normalisation import Normaliser

CLIP_EPISODES = 3
"""Number of episodes that keep their actions, to be replayed for clips."""


@dataclass(frozen=True)
class EvaluatePolicy(Stage[dict[str, Any]]):
    """rollouts, test: None when there is no world, and success is not measured.

    statistics: source of the normaliser in which sets are compared; None: the policy's own. selection: that of
    `reference.sets`.
    """

    policy: MeasuredPolicy
    spec: TaskSpec
    rollouts: Rollouts | None
    test: Starts | None
    reference: DrawReference
    statistics: TeacherSource | None = None

    @property
    def name(self) -> str:
        return f"evaluate/{self.policy.name}"

    @property
    def inputs(self) -> Mapping[str, Input | tuple[Input, ...]]:
        tested = {} if self.rollouts is None or self.test is None else {"test_starts": self.test, **self.rollouts.inputs}
        compared = {} if self.statistics is None else {"statistics": self.statistics}
        return {**self.policy.inputs, **tested, **compared, "reference": self.reference}

    @property
    def settings(self) -> Mapping[str, Any]:
        student = self.policy.kind == "student"
        if self.rollouts is None:
            chosen = selection_settings(self.reference.sets.selection) if student else {}
            return {**self.policy.settings, "execution_horizon": self.reference.sets.executed, **chosen}
        return {**self.policy.settings, **self.rollouts.settings(student)}

    def run(self, context: Context, folder: Path) -> None:
        policy = self.policy.policy(context)
        measured: dict[str, Any] = {"policy": policy.name, "nfe": policy.evaluations, "parameters": parameters_of(policy)}
        episodes = None
        if self.rollouts is not None and self.test is not None:
            starts = self.test.starts(context)
            episodes = self.rollouts.run(context, policy, starts, "test", folder, "test", CLIP_EPISODES)
            measured |= {"summary": summarise(self.spec, episodes), "episodes": to_json(episodes)}
        measured |= self._set_figures(context, policy)
        if context.is_main:
            write_json(folder / "result.json", measured)
            if episodes is not None and self.rollouts is not None:
                self.rollouts.world.write_evaluation(folder, episodes)

    def _set_figures(self, context: Context, policy: Policy) -> dict[str, Any]:
        """Fidelity and mode shares of the policy's sets on every held-out observation; the same on every process."""
        reference, device = self.reference.cached_result(context), device_of(policy)
        rows = context.my_share(range(len(reference["reference"])))
        counted = context.bar(rows, f"sets of {policy.name}", "set", len(reference["reference"]))
        drawn = {row: torch.from_numpy(self.reference.sets.draw(context, policy, row, policy.name)) for row in counted}
        normaliser: Any = policy.module.normaliser if self.statistics is None else self.compared_in(context)
        weights_A = torch.tensor(self.spec.action.weights, device=device)
        parts, modes = [], []
        for row in rows:
            sets = [normaliser.normalise_action(chunks.to(device))[None]
                    for chunks in (drawn[row], reference["reference"][row], reference["floor"][row])]  # fmt: skip
            parts.append((1, set_fidelity(sets[0], sets[1], weights_A)))
            modes.append(mode_figures(sets[0][0], sets[1][0], sets[2][0], weights_A))
        parts, modes = context.gather(parts), context.gather(modes)
        shown = most_diverse_observation(reference["reference"])
        every = sorted(context.gather([(row, chunks.numpy()) for row, chunks in drawn.items()]), key=lambda each: each[0])
        planned = context.gather([np.round(drawn[shown].numpy()[:32], 4).tolist()] if shown in drawn else [])
        return {
            "fidelity": {**average(parts), "observations": len(parts), "samples": self.reference.sets.samples},
            "observation_modes": summarise_modes(modes), "planned_set": planned[0], "planned_at": shown,
            **self._own_units(np.stack([chunks for _, chunks in every]), reference["reference"]),
        }  # fmt: skip

    def compared_in(self, context: Context) -> Normaliser:
        """The normaliser of `statistics`, with inflated ranges replaced: a glitch may have set them."""
        assert self.statistics is not None
        return measuring_normaliser(self.statistics.normaliser(context), self.reference.cached_result(context)["reference"])

    def _own_units(self, chunks_FSTA: np.ndarray, reference_FSTA: Tensor) -> dict[str, Any]:
        """Errors in each action dimension's own unit, for policies on recordings."""
        if self.statistics is None:
            return {}
        return {"dimensions": dimension_figures(torch.from_numpy(chunks_FSTA), reference_FSTA, self.spec.action.names)}

    def load(self, folder: Path) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((folder / "result.json").read_text())
        return found


def most_diverse_observation(chunks_FSTA: Tensor) -> int:
    """The one of `F` observations with the largest variance of the `S` chunks in their first two dimensions, x and y."""
    return int(chunks_FSTA[..., :2].var(dim=1, correction=0).mean((1, 2)).argmax())


def parameters_of(policy: Policy) -> int | None:
    """Number of parameters of a policy's networks; an adapter's as counted in its process, None if it could not be."""
    if isinstance(policy, AdapterPolicy):
        return policy.teacher.description.parameters
    return sum(value.numel() for value in policy.module.parameters())
