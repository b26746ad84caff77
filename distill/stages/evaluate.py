"""The stages `evaluate/<policy>`: rollouts from the stored test starts, and the policy's sets against the reference's."""

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
"""Episodes that keep their actions, to be replayed before a camera."""


@dataclass(frozen=True)
class EvaluatePolicy(Stage[dict[str, Any]]):
    """rollouts, test: None where the world cannot roll out, and success is not measured.

    statistics: whose action space sets are compared in; None: the policy's own. selection is that of `reference.sets`.
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
        """How the policy's sets are like the reference's, on every held-out observation; on every process the same."""
        reference, device = self.reference.remembered(context), device_of(policy)
        rows = context.my_share(range(len(reference["reference"])))
        drawn = {row: torch.from_numpy(self.reference.sets.draw(context, policy, row, policy.name)) for row in rows}
        normaliser: Any = policy.module.normaliser if self.statistics is None else self.compared_in(context)
        weights_A = torch.tensor(self.spec.action.weights, device=device)
        parts, modes = [], []
        for row in rows:
            sets = [normaliser.normalise_action(chunks.to(device))[None]
                    for chunks in (drawn[row], reference["reference"][row], reference["floor"][row])]  # fmt: skip
            parts.append((1, set_fidelity(sets[0], sets[1], weights_A)))
            modes.append(mode_figures(sets[0][0], sets[1][0], sets[2][0], weights_A))
        parts, modes = context.gather(parts), context.gather(modes)
        shown = widest(reference["reference"])
        every = sorted(context.gather([(row, chunks.numpy()) for row, chunks in drawn.items()]), key=lambda each: each[0])
        planned = context.gather([np.round(drawn[shown].numpy()[:32], 4).tolist()] if shown in drawn else [])
        return {
            "fidelity": {**average(parts), "observations": len(parts), "samples": self.reference.sets.samples},
            "observation_modes": summarise_modes(modes), "planned_set": planned[0], "planned_at": shown,
            **self._own_units(np.stack([chunks for _, chunks in every]), reference["reference"]),
        }  # fmt: skip

    def compared_in(self, context: Context) -> Normaliser:
        """The action space of `statistics`, without ranges that the reference never uses: a glitch may have set them."""
        assert self.statistics is not None
        return measuring_normaliser(self.statistics.normaliser(context), self.reference.remembered(context)["reference"])

    def _own_units(self, chunks_FSTA: np.ndarray, reference_FSTA: Tensor) -> dict[str, Any]:
        """Errors in each action dimension's own unit, of policies on recordings."""
        if self.statistics is None:
            return {}
        return {"dimensions": dimension_figures(torch.from_numpy(chunks_FSTA), reference_FSTA, self.spec.action.names)}

    def load(self, folder: Path) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((folder / "result.json").read_text())
        return found


def widest(chunks_FSTA: Tensor) -> int:
    """The one of `F` observations at which a policy's `S` chunks differ most in their first two numbers, x and y."""
    return int(chunks_FSTA[..., :2].var(dim=1, correction=0).mean((1, 2)).argmax())


def parameters_of(policy: Policy) -> int | None:
    """Numbers in a policy's networks; of an adapter's what its worker counted, None where it could not."""
    if isinstance(policy, AdapterPolicy):
        return policy.teacher.description.parameters
    return sum(value.numel() for value in policy.module.parameters())
